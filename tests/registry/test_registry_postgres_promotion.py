"""In Postgres the lock and the audit record are the database's own: one session at a time, and nothing written is changed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from registry.alias_moves import read_audit
from registry.audit_table import open_table, read_table
from registry.promotion import ChampionChangedError, current_aliases, history, promote, rollback
from registry.tracking import open_tracking
from telemetry.errors import InputError

NAME = "workload-forecaster"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture(scope="module")
def postgres():
    """URI of an empty database of a server of our own."""
    pytest.importorskip("psycopg2")
    initdb = shutil.which("initdb") or (str(BINARIES[-1]) if BINARIES else None)
    if initdb is None:
        pytest.skip("no PostgreSQL server on this machine (initdb)")
    prefix: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="joulewise-pg-"))
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    data, control = folder / "data", str(Path(initdb).with_name("pg_ctl"))
    subprocess.run([*prefix, initdb, "-D", str(data), "-U", "joulewise", "-A", "trust", "--no-sync"], **quiet)
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    subprocess.run([*prefix, control, "-D", str(data), "-w", "-o", settings, "-l", str(folder / "log"), "start"], **quiet)
    try:
        yield f"postgresql+psycopg2://joulewise@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*prefix, control, "-D", str(data), "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_table_is_append_only_and_its_chain_shows_changes(postgres):
    import sqlalchemy

    with open_table(postgres) as audit:
        audit.append({"number": 0})
        audit.append({"number": 1})
    assert [entry["number"] for entry in read_table(postgres)] == [0, 1]
    engine = sqlalchemy.create_engine(postgres, poolclass=sqlalchemy.pool.NullPool)
    for statement in ("UPDATE joulewise.audit SET record = '{}'", "DELETE FROM joulewise.audit", "TRUNCATE joulewise.audit"):
        with pytest.raises(sqlalchemy.exc.DatabaseError, match="append-only"), engine.begin() as connection:
            connection.execute(sqlalchemy.text(statement))
    with engine.begin() as connection:  # the owner can take the trigger off; the chain still tells
        connection.execute(sqlalchemy.text("ALTER TABLE joulewise.audit DISABLE TRIGGER ALL"))
        connection.execute(sqlalchemy.text("UPDATE joulewise.audit SET record = replace(record, '1', '9') WHERE number = 2"))
    with pytest.raises(InputError, match="row 2"):
        read_table(postgres)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP SCHEMA joulewise CASCADE"))


def test_one_session_at_a_time(postgres):
    with open_table(postgres), pytest.raises(InputError, match="still held"), open_table(postgres, timeout_s=0.2):
        pass


def test_promotions_race_and_go_back_in_a_real_database(postgres, tmp_path, make_package, server_keys):
    from registry.packaging import register

    tracking = open_tracking(postgres, artifact_root=(tmp_path / "artifacts").as_uri())
    versions = []
    for _ in range(3):
        with tracking.run("package") as run:
            versions.append(register(run, make_package()))
    first, *rest = versions
    promote(tracking.client, NAME, first, expected_champion=None)
    answers: list[str] = []

    def racer(version: str) -> None:
        try:
            promote(tracking.client, NAME, version, expected_champion=first)
            answers.append(version)
        except ChampionChangedError:
            answers.append("changed")

    threads = [threading.Thread(target=racer, args=(version,)) for version in rest]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("changed") == 1
    winner = next(answer for answer in answers if answer != "changed")
    assert current_aliases(tracking.client, NAME) == {"champion": winner, "previous": first}
    rollback(tracking.client, NAME, reason="late jobs")
    assert [entry["action"] for entry in history(tracking.client, NAME)] == ["promote", "promote", "rollback"]
    assert [entry["phase"] for entry in read_audit(tracking.client)] == ["intent", "done"] * 3

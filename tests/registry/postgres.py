"""A real Postgres for tests: a cluster in a temporary folder, run by an unprivileged user; and an S3 server (moto) beside it.

Import the fixtures into a test module or a conftest::

    from postgres import postgres, postgres_database, s3   # tests/registry is on the path of its tests

``postgres`` (session) is the server; ``postgres_database`` makes a new database, empty or a copy of one with MLflow's tables.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

USER, PASSWORD = "keeper", "s3cr3t-w0rd"


@dataclass
class Server:
    """A running cluster; ``password_file`` holds the password of ``USER``, who may create databases."""

    port: int
    folder: Path
    programs: Path
    password_file: Path
    passfile: Path

    def uri(self, database: str) -> str:
        return f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/{database}?passfile={self.passfile}"

    def execute(self, statement: str) -> None:
        from registry.postgres import connect

        connection = connect(self.uri("postgres"))
        try:
            connection.cursor().execute(statement)
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _programs() -> Path | None:
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists()), None)


def _as_unprivileged() -> list[str] | None:
    """The start of a command that runs as a user that is not root; None where there is none."""
    if os.getuid() != 0:
        return []
    if shutil.which("runuser") is None:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return ["runuser", "-u", name, "--"]
    return None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    programs, prefix = _programs(), _as_unprivileged()
    if programs is None:
        pytest.skip("no Postgres on this machine: apt-get install postgresql")
    if prefix is None:
        pytest.skip("Postgres does not run as root, and there is no other user to run it")
    folder = Path(tempfile.mkdtemp(prefix="joulewise-pg-"))
    owner = prefix[2] if prefix else None
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")
    if owner is not None:
        shutil.chown(folder, owner)
        shutil.chown(secret, owner)
    port, data = free_port(), folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run([*prefix, *command], capture_output=True, text=True, cwd=folder, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    run(
        *(str(programs / "initdb"), "-D", str(data), "-U", USER, f"--pwfile={secret}", "-A", "scram-sha-256"),
        *("--no-sync", "-E", "UTF8", "--locale=C"),
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=200"
    log = folder / "log"
    with open(os.devnull, "w") as nothing:  # pg_ctl's child keeps pipes open, and would be waited for
        started = subprocess.run(
            [*prefix, str(programs / "pg_ctl"), "-D", str(data), "-l", str(log), "-w", "-o", options, "start"],
            stdout=nothing,
            stderr=nothing,
            cwd=folder,
            timeout=120,
            check=False,
        )
    assert started.returncode == 0, log.read_text()
    passfile = Path(tempfile.mkdtemp(prefix="joulewise-pgpass-")) / "passfile"
    passfile.touch(0o600)
    passfile.write_text(f"*:*:*:*:{PASSWORD}\n")
    try:
        yield Server(port, folder, programs, secret, passfile)
    finally:
        run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(passfile.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_database(postgres) -> Callable[..., str]:
    """``postgres_database()`` gives the URI of a new database with MLflow's tables, ``postgres_database(empty=True)`` without."""
    from registry.mlflow_client import open_client

    count, made = itertools.count(), []

    def new(empty: bool = False) -> str:
        name = f"db{next(count)}"
        if not empty and not made:
            postgres.execute("CREATE DATABASE filled")
            _dispose(open_client(postgres.uri("filled"), must_exist=False))
            made.append("filled")
        postgres.execute(f"CREATE DATABASE {name}" + ("" if empty else " TEMPLATE filled"))
        return postgres.uri(name)

    return new


def _dispose(client) -> None:
    """Close pooled connections: a database in use cannot be a template."""
    from mlflow.tracking._tracking_service.utils import _get_store

    _get_store(client.tracking_uri).engine.dispose()
    registry = client._get_registry_client().store
    registry.engine.dispose()


@dataclass
class Bucket:
    """An S3 server in a thread, with one bucket; ``root`` is where artifacts go."""

    endpoint: str
    root: str
    credentials_file: Path

    def objects(self) -> list[str]:
        import boto3

        pages = boto3.client("s3", endpoint_url=self.endpoint).get_paginator("list_objects_v2").paginate(Bucket="models")
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


@pytest.fixture
def s3(tmp_path, monkeypatch) -> Iterator[Bucket]:
    """A fresh bucket ``models``; its endpoint and its credentials' file are in the environment, as the commands put them."""
    pytest.importorskip("boto3", reason="boto3 is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import boto3

    served = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    credentials = tmp_path / "aws-credentials"
    credentials.write_text("[default]\naws_access_key_id = testing\naws_secret_access_key = testing\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    endpoint = "http://{}:{}".format(*served.get_host_and_port())
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="models")
    try:
        yield Bucket(endpoint, "s3://models/joulewise", credentials)
    finally:
        served.stop()
        from moto.backends import get_backend

        get_backend("s3").reset()

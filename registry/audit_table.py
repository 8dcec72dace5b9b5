"""The audit record in a Postgres database: the same chain of hashes, in a table that refuses UPDATE, DELETE and TRUNCATE.

The session that holds the advisory lock also writes the record: a promoter that has lost its session can write nothing any more, and a
killed one loses both at once. The table has a schema of its own, apart from MLflow's. A pooler in transaction mode would break the lock
(https://www.postgresql.org/docs/15/explicit-locking.html#ADVISORY-LOCKS): name the database itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from registry.audit import GENESIS, checked, hash_of
from telemetry.errors import InputError

LOCK_KEY = 0x6A6F756C  # "joul"
_SCHEMA = (
    "CREATE SCHEMA IF NOT EXISTS joulewise",
    """CREATE TABLE IF NOT EXISTS joulewise.audit (
        number bigint PRIMARY KEY, previous_hash text NOT NULL UNIQUE, hash text NOT NULL UNIQUE, record text NOT NULL)""",
    """CREATE OR REPLACE FUNCTION joulewise.append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the audit record is append-only'; END $$""",
    """CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON joulewise.audit
        FOR EACH STATEMENT EXECUTE FUNCTION joulewise.append_only()""",
)
_INSERT = "INSERT INTO joulewise.audit (number, previous_hash, hash, record) VALUES (:number, :previous_hash, :hash, :record)"


class TableAudit:
    """The record behind an open session that holds the lock."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.records = _read(connection)

    def append(self, record: dict[str, Any]) -> dict[str, Any]:
        from sqlalchemy import text

        entry = {**record, "previous_hash": self.records[-1]["hash"] if self.records else GENESIS}
        line = json.dumps(entry, sort_keys=True)
        entry["hash"] = hash_of(entry)
        values = {"number": len(self.records) + 1, "previous_hash": entry["previous_hash"], "hash": entry["hash"], "record": line}
        self._connection.execute(text(_INSERT), values)
        self.records.append(entry)
        return entry

    def still_held(self) -> None:
        """Raises what the driver raises when the session, and so the lock, is lost."""
        from sqlalchemy import text

        self._connection.execute(text("SELECT 1"))


@contextmanager
def open_table(uri: str, timeout_s: float = 60.0) -> Iterator[TableAudit]:
    """Hold the database's advisory lock; the table is made when it is missing.

    Raises:
        InputError: another session held the lock for ``timeout_s``, or the role may not make the schema.
    """
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError, ProgrammingError

    with _session(uri) as connection:
        connection.execute(text(f"SET lock_timeout = {int(timeout_s * 1000)}"))
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
        except OperationalError as error:
            raise InputError(
                f"the promotion lock is still held by another session after {timeout_s:g} s",
                where="tracking_uri",
                remedy="wait for it, or look in pg_locks for one that hangs",
            ) from error
        if connection.execute(text("SELECT to_regclass('joulewise.audit')")).scalar() is None:
            try:
                for statement in _SCHEMA:
                    connection.execute(text(statement))
            except ProgrammingError as error:
                raise InputError(
                    f"the audit table cannot be made: {str(error.orig).strip()}",
                    where="tracking_uri",
                    remedy="grant CREATE on the database to this role, or name a state_folder",
                ) from error
        yield TableAudit(connection)


def read_table(uri: str) -> list[dict[str, Any]]:
    """All records, oldest first, their chain checked; none where nothing was ever recorded."""
    from sqlalchemy import text

    with _session(uri) as connection:
        if connection.execute(text("SELECT to_regclass('joulewise.audit')")).scalar() is None:
            return []
        return _read(connection)


@contextmanager
def _session(uri: str) -> Iterator[Any]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.pool import NullPool

    alive = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "connect_timeout": 10}
    try:
        connection = create_engine(uri, isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args=alive).connect()
    except OperationalError as error:  # its message names host and port, not the password
        raise InputError(f"the database does not answer: {str(error.orig).strip()}", where="tracking_uri") from error
    with connection:
        yield connection


def _read(connection: Any) -> list[dict[str, Any]]:
    from sqlalchemy import text

    rows = connection.execute(text("SELECT record, hash FROM joulewise.audit ORDER BY number")).all()
    return checked(((json.loads(line), stated) for line, stated in rows), "joulewise.audit, row")

"""Below promotion and approval: one change at a time, intent recorded before and end after, finished by whoever is next.

The lock and the audit record are those of the place: for sqlite a locked file beside the database, for a Postgres database an advisory lock
and a table of the same database (so that promoters of several machines are serialised), for any other server a folder that they share.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.audit import Audit, FileAudit
from registry.audit_table import open_table, read_table
from registry.locks import exclusive
from registry.mlflow_client import quiet, sqlite_path
from telemetry.errors import InputError

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)

Aliases = Mapping[str, str | None]
Tags = Mapping[str, str]


def current_aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """``{alias: version}`` of a registered model; empty when it does not exist."""
    with quiet():
        try:
            aliases = client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
    return {alias: str(version) for alias, version in aliases.items()}


def is_postgres(tracking_uri: str) -> bool:
    """Whether the database can hold the lock and the record itself."""
    return tracking_uri.startswith("postgresql")


def audit_path(client: MlflowClient, state_folder: Path | None = None) -> Path:
    """The audit record: beside the sqlite database, or in ``state_folder`` for a server.

    Raises:
        InputError: a server and no folder.
    """
    database = sqlite_path(client.tracking_uri)
    if state_folder is not None:
        return state_folder / "promotions.audit.jsonl"
    if database is None:
        raise InputError("no folder for the lock and the audit record", where="state_folder", remedy="name one shared by all promoters")
    return database.with_name(database.name + ".audit.jsonl")


def read_audit(client: MlflowClient, state_folder: Path | None = None) -> list[dict[str, Any]]:
    """All records of the place, oldest first, their chain checked. Raises InputError where it is broken."""
    if is_postgres(client.tracking_uri) and state_folder is None:
        return read_table(client.tracking_uri)
    return FileAudit(audit_path(client, state_folder)).records


@contextmanager
def serialised(client: MlflowClient, name: str, state_folder: Path | None) -> Iterator[Audit]:
    """Hold the lock of the place, with what an interrupted change left finished first."""
    with _locked(client, state_folder) as audit:
        _finish_interrupted(client, name, audit)
        yield audit


@contextmanager
def _locked(client: MlflowClient, state_folder: Path | None) -> Iterator[Audit]:
    if is_postgres(client.tracking_uri):
        with open_table(client.tracking_uri) as table:
            yield table if state_folder is None else FileAudit(audit_path(client, state_folder))
        return
    path = audit_path(client, state_folder)
    with exclusive(path.with_name(path.name + ".lock")):
        yield FileAudit(path)


def move(
    client: MlflowClient, name: str, after: Aliases, audit: Audit, *, action: str, reason: str, tags: Mapping[str, Tags] | None = None
) -> None:
    """Set aliases in the order of ``after`` (None removes), then tags ``{version: {key: value}}``; intent recorded before, end after."""
    entry = {
        "action": action,
        "before": current_aliases(client, name),
        "after": dict(after),
        "tags": {k: dict(v) for k, v in (tags or {}).items()},
    }
    record(audit, name, "intent", reason, **entry)
    _apply(client, name, after, tags or {}, audit)
    record(audit, name, "done", reason, **entry)


def record(audit: Audit, name: str, phase: str, reason: str, **entry: Any) -> dict[str, Any]:
    """Append one record, with the time and the process."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    by = f"{os_user()}@{socket.gethostname()}:{os.getpid()}"
    return audit.append({"time": now, "name": name, "phase": phase, "reason": reason, "by": by, **entry})


def replayed(records: list[dict[str, Any]], name: str) -> dict[str, str]:
    """The aliases that the completed changes of the record lead to."""
    aliases: dict[str, str | None] = {}
    for entry in records:
        if entry["name"] == name and entry["phase"] == "done":
            aliases |= {**entry.get("before", {}), **entry.get("after", {})}
    return {alias: version for alias, version in aliases.items() if version is not None}


def os_user() -> str:
    """Who runs this process, as the operating system says."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _apply(client: MlflowClient, name: str, after: Aliases, tags: Mapping[str, Tags], audit: Audit) -> None:
    with quiet():
        for alias, version in after.items():
            audit.still_held()
            if version is None:
                client.delete_registered_model_alias(name, alias)
            else:
                client.set_registered_model_alias(name, alias, version)
        for version, entries in tags.items():
            for key, value in entries.items():
                client.set_model_version_tag(name, version, key, value)


def _finish_interrupted(client: MlflowClient, name: str, audit: Audit) -> None:
    """Complete the change whose intent was recorded but not its end: it was verified before the intent was written.

    When someone has moved the champion elsewhere since, that stands; when its version was deleted, the aliases go back. Both are recorded
    as abandoned.
    """
    mine = [entry for entry in audit.records if entry["name"] == name]
    if not mine or mine[-1]["phase"] != "intent":
        return
    last = mine[-1]
    before, after, tags = last["before"], last["after"], last.get("tags", {})
    entry = {"action": last["action"], "before": before, "after": after, "tags": tags}
    champion = current_aliases(client, name).get(CHAMPION)
    if champion not in (before.get(CHAMPION), after.get(CHAMPION, before.get(CHAMPION))):
        record(audit, name, "abandoned", f"champion is version {champion} by now", **entry)
        return
    try:
        _apply(client, name, after, tags, audit)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        _apply(client, name, {alias: before.get(alias) for alias in after}, {}, audit)
        record(audit, name, "abandoned", "its version is gone", **entry)
        return
    record(audit, name, "done", "finished after an interruption", **entry)

"""Promotion: one at a time, against the champion that the gates saw, recorded, and undone by one call.

MLflow's ``set_registered_model_alias`` does not compare before it sets; here a lock between processes makes it so. The aliases move in an
order in which ``champion`` always points to a usable version, and each change is written to the audit record before and after, so that
whoever comes next finishes what a killed process began.
"""

from __future__ import annotations

import getpass
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry import audit
from registry.keys import trust_folder
from registry.loading import VerificationError, believed, fetch, verify_version
from registry.locks import exclusive
from registry.mlflow_client import quiet, sqlite_path
from telemetry.errors import InputError

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
ROLLED_BACK_TAG = "rolled_back"


class PromotionError(RuntimeError):
    """The promotion was refused; nothing changed."""


class ChampionChangedError(PromotionError):
    """Another promotion came between the gates and this one: judge again against the new champion."""


@dataclass(frozen=True)
class Outcome:
    """What a submission led to: ``action`` is ``promoted`` or ``challenger``; versions of the champion now and before."""

    action: str
    champion: str | None
    previous: str | None
    reason: str


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


def champion_version(client: MlflowClient, name: str) -> str | None:
    """The version to give as ``expected_champion`` later: read it before the gates run."""
    return current_aliases(client, name).get(CHAMPION)


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


def submit(
    client: MlflowClient, name: str, version: str, *, expected_champion: str | None, reason: str = "", state_folder: Path | None = None
) -> Outcome:
    """Make ``version`` the challenger, and the champion if all its gates passed.

    Raises:
        ChampionChangedError: the champion is not ``expected_champion`` any more.
        PromotionError: the version fails verification though its gates are recorded as passed.
    """
    stage_challenger(client, name, version, state_folder=state_folder)
    with quiet():
        tags = client.get_model_version(name, version).tags
    if tags.get("gates") != "passed":
        refusals = "; ".join(f"{key.removeprefix('gate.')} {value}" for key, value in tags.items() if value.startswith("refused"))
        aliases = current_aliases(client, name)
        return Outcome("challenger", aliases.get(CHAMPION), aliases.get(PREVIOUS), refusals or "its gates are not recorded as passed")
    return promote(client, name, version, expected_champion=expected_champion, reason=reason, state_folder=state_folder)


def stage_challenger(client: MlflowClient, name: str, version: str, *, state_folder: Path | None = None) -> None:
    """Point ``challenger`` to ``version``."""
    with _serialised(client, name, state_folder) as record:
        with quiet():
            client.get_model_version(name, version)
        _move(client, name, {CHALLENGER: version}, record, action="challenge", reason="")


def promote(
    client: MlflowClient, name: str, version: str, *, expected_champion: str | None, reason: str = "", state_folder: Path | None = None
) -> Outcome:
    """Make ``version`` the champion and the champion ``previous``.

    Args:
        expected_champion: the champion's version when the gates ran; None when there was none.
        reason: why, for the audit record.
        state_folder: see :func:`audit_path`.

    Raises:
        ChampionChangedError: the champion is another by now.
        PromotionError: the version does not exist, fails verification, or is the champion already.
    """
    version = str(version)
    with _serialised(client, name, state_folder) as record:
        aliases = current_aliases(client, name)
        champion = aliases.get(CHAMPION)
        if champion != (None if expected_champion is None else str(expected_champion)):
            raise ChampionChangedError(
                f"{name}: the champion is version {champion}, but the gates of version {version} ran against {expected_champion}; "
                "judge it again"
            )
        if champion == version:
            raise PromotionError(f"{name}: version {version} is the champion already")
        _verify(client, name, version)
        after: dict[str, str | None] = {PREVIOUS: champion} if champion is not None else {}
        after[CHAMPION] = version
        if aliases.get(CHALLENGER) == version:
            after[CHALLENGER] = None
        _move(client, name, after, record, action="promote", reason=reason)
    return Outcome("promoted", version, champion, reason)


def rollback(client: MlflowClient, name: str, *, reason: str, state_folder: Path | None = None) -> Outcome:
    """Put ``previous`` back into service; the version that leaves is tagged ``rolled_back`` and ``previous`` becomes what came before.

    Raises:
        PromotionError: there is no previous version, or it fails verification.
    """
    with _serialised(client, name, state_folder) as record:
        aliases = current_aliases(client, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if previous is None or previous == champion:
            raise PromotionError(f"{name}: there is no previous version to go back to")
        _verify(client, name, previous)
        after = {CHAMPION: previous, PREVIOUS: _predecessor(audit.read(record), name, previous)}
        _move(client, name, after, record, action="rollback", reason=reason)
        with quiet():
            client.set_model_version_tag(name, str(champion), ROLLED_BACK_TAG, reason or "yes")
    return Outcome("promoted", previous, champion, reason)


def history(client: MlflowClient, name: str | None = None, state_folder: Path | None = None) -> list[dict[str, Any]]:
    """Completed changes, oldest first, of one registered model or all."""
    records = audit.read(audit_path(client, state_folder))
    return [entry for entry in records if entry["phase"] == "done" and name in (None, entry["name"])]


@contextmanager
def _serialised(client: MlflowClient, name: str, state_folder: Path | None) -> Iterator[Path]:
    record = audit_path(client, state_folder)
    with exclusive(record.with_name(record.name + ".lock")):
        _finish_interrupted(client, name, record)
        yield record


def _finish_interrupted(client: MlflowClient, name: str, record: Path) -> None:
    """Complete the change whose intent was recorded but not its end: it was verified before the intent was written.

    When someone has moved the champion elsewhere since, that stands, and the change is recorded as abandoned.
    """
    mine = [entry for entry in audit.read(record) if entry["name"] == name]
    if not mine or mine[-1]["phase"] != "intent":
        return
    last = mine[-1]
    before, after = last["before"], last["after"]
    champion = current_aliases(client, name).get(CHAMPION)
    if champion in (before.get(CHAMPION), after.get(CHAMPION, before.get(CHAMPION))):
        _apply(client, name, after)
        audit.append(record, _entry(name, "done", last["action"], before, after, "finished after an interruption"))
    else:
        audit.append(record, _entry(name, "abandoned", last["action"], before, after, f"champion is version {champion} by now"))


def _move(client: MlflowClient, name: str, after: dict[str, str | None], record: Path, *, action: str, reason: str) -> None:
    before = current_aliases(client, name)
    audit.append(record, _entry(name, "intent", action, before, after, reason))
    _apply(client, name, after)
    audit.append(record, _entry(name, "done", action, before, after, reason))


def _apply(client: MlflowClient, name: str, after: dict[str, str | None]) -> None:
    with quiet():
        for alias, version in after.items():
            if version is None:
                client.delete_registered_model_alias(name, alias)
            else:
                client.set_registered_model_alias(name, alias, version)


def _entry(name: str, phase: str, action: str, before: dict[str, str], after: dict[str, str | None], reason: str) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "name": name,
        "phase": phase,
        "action": action,
        "before": before,
        "after": after,
        "reason": reason,
        "by": f"{_user()}@{socket.gethostname()}:{os.getpid()}",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _predecessor(records: list[dict[str, Any]], name: str, version: str) -> str | None:
    """The champion that ``version`` replaced when it was last promoted."""
    for entry in reversed(records):
        if entry["name"] == name and entry["phase"] == "done" and entry["action"] == "promote" and entry["after"].get(CHAMPION) == version:
            return entry["before"].get(CHAMPION)
    return None


def _verify(client: MlflowClient, name: str, version: str) -> None:
    try:
        with quiet():
            found = client.get_model_version(name, version)
        with tempfile.TemporaryDirectory(prefix="joulewise-verify-") as scratch:
            folder = fetch(client, found, Path(scratch), client.tracking_uri)
            verify_version(found, folder, believed(trust_folder(client.tracking_uri), f"{name} version {version}"))
    except (MlflowException, VerificationError) as error:
        raise PromotionError(f"{name}: version {version} cannot be promoted: {error}") from error

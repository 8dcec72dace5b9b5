"""Promotion: one at a time, against the champion that the gates saw, recorded, and undone by one call.

MLflow's ``set_registered_model_alias`` does not compare before it sets; here a lock between processes makes it so. The aliases move in an
order in which ``champion`` always points to a usable version, and each change is written to the audit record before and after, so that
whoever comes next finishes what a killed process began (``registry.alias_moves``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from registry.alias_moves import ALIASES, CHALLENGER, CHAMPION, PREVIOUS, audit_path, current_aliases, move, read_audit, serialised
from registry.approvals import approval_of, needs_approval
from registry.mlflow_client import quiet
from registry.verify import PromotionError, verified_manifest_sha256

__all__ = ["ALIASES", "ChampionChangedError", "NotApprovedError", "Outcome", "PromotionError", "audit_path", "champion_version"]
__all__ += ["current_aliases", "history", "promote", "rollback", "stage_challenger", "submit"]

ROLLED_BACK_TAG = "rolled_back"
WAITS = "waits for approval"


class ChampionChangedError(PromotionError):
    """Another promotion came between the gates and this one: judge again against the new champion."""


class NotApprovedError(PromotionError):
    """The registered model needs a person's approval, and none of exactly this version is recorded."""


@dataclass(frozen=True)
class Outcome:
    """What a submission led to: ``action`` is ``promoted`` or ``challenger``; versions of the champion now and before."""

    action: str
    champion: str | None
    previous: str | None
    reason: str


def champion_version(client: MlflowClient, name: str) -> str | None:
    """The version to give as ``expected_champion`` later: read it before the gates run."""
    return current_aliases(client, name).get(CHAMPION)


def submit(
    client: MlflowClient,
    name: str,
    version: str,
    *,
    expected_champion: str | None,
    reason: str = "",
    state_folder: Path | None = None,
    require_approval: Collection[str] = (),
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
    try:
        return promote(
            client,
            name,
            version,
            expected_champion=expected_champion,
            reason=reason,
            state_folder=state_folder,
            require_approval=require_approval,
        )
    except NotApprovedError:
        aliases = current_aliases(client, name)
        return Outcome("challenger", aliases.get(CHAMPION), aliases.get(PREVIOUS), WAITS)


def stage_challenger(client: MlflowClient, name: str, version: str, *, state_folder: Path | None = None) -> None:
    """Point ``challenger`` to ``version``."""
    with serialised(client, name, state_folder) as audit:
        with quiet():
            client.get_model_version(name, version)
        move(client, name, {CHALLENGER: version}, audit, action="challenge", reason="")


def promote(
    client: MlflowClient,
    name: str,
    version: str,
    *,
    expected_champion: str | None,
    reason: str = "",
    state_folder: Path | None = None,
    require_approval: Collection[str] = (),
) -> Outcome:
    """Make ``version`` the champion and the champion ``previous``.

    Args:
        expected_champion: the champion's version when the gates ran; None when there was none.
        reason: why, for the audit record.
        state_folder: see :func:`audit_path`.
        require_approval: registered models that need a recorded approval (``registry.approvals``).

    Raises:
        ChampionChangedError: the champion is another by now.
        NotApprovedError: it needs an approval of exactly this version, and none is recorded.
        PromotionError: the version does not exist, fails verification, or is the champion already.
    """
    version = str(version)
    with serialised(client, name, state_folder) as audit:
        aliases = current_aliases(client, name)
        champion = aliases.get(CHAMPION)
        if champion != (None if expected_champion is None else str(expected_champion)):
            raise ChampionChangedError(
                f"{name}: the champion is version {champion}, but the gates of version {version} ran against {expected_champion}; "
                "judge it again"
            )
        if champion == version:
            raise PromotionError(f"{name}: version {version} is the champion already")
        digest = verified_manifest_sha256(client, name, version)
        approval = approval_of(audit.records, name, version, digest)
        if approval is None and needs_approval(client, name, require_approval):
            raise NotApprovedError(
                f"{name}: version {version} {WAITS}: none of manifest {digest[:12]} is recorded; "
                f"python -m pipelines.promote approve model={name} version={version} reason=..."
            )
        tags = {version: approval.tags} if approval is not None else {}
        after: dict[str, str | None] = {PREVIOUS: champion} if champion is not None else {}
        after[CHAMPION] = version
        if aliases.get(CHALLENGER) == version:
            after[CHALLENGER] = None
        move(client, name, after, audit, action="promote", reason=reason, tags=tags)
    return Outcome("promoted", version, champion, reason)


def rollback(client: MlflowClient, name: str, *, reason: str, state_folder: Path | None = None) -> Outcome:
    """Put ``previous`` back into service; the version that leaves is tagged ``rolled_back`` and ``previous`` becomes what came before.

    Raises:
        PromotionError: there is no previous version, or it fails verification.
    """
    with serialised(client, name, state_folder) as audit:
        aliases = current_aliases(client, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if previous is None or previous == champion:
            raise PromotionError(f"{name}: there is no previous version to go back to")
        verified_manifest_sha256(client, name, previous)
        after = {CHAMPION: previous, PREVIOUS: _predecessor(audit.records, name, previous)}
        tags = {str(champion): {ROLLED_BACK_TAG: reason or "yes"}}
        move(client, name, after, audit, action="rollback", reason=reason, tags=tags)
    return Outcome("promoted", previous, champion, reason)


def history(client: MlflowClient, name: str | None = None, state_folder: Path | None = None) -> list[dict[str, Any]]:
    """Completed changes, oldest first, of one registered model or all."""
    records = read_audit(client, state_folder)
    return [entry for entry in records if entry["phase"] == "done" and name in (None, entry["name"])]


def _predecessor(records: list[dict[str, Any]], name: str, version: str) -> str | None:
    """The champion that ``version`` replaced when it was last promoted."""
    for entry in reversed(records):
        if entry["name"] == name and entry["phase"] == "done" and entry["action"] == "promote" and entry["after"].get(CHAMPION) == version:
            return entry["before"].get(CHAMPION)
    return None

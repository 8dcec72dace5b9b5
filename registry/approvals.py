"""A person's word before a promotion: who, why, which version, and the digest of exactly what was approved, in the audit record.

The tags ``approved_by`` and ``approval.reason`` are for the eye: what counts is the record. An approval of another manifest does not count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from registry.alias_moves import current_aliases, record, serialised
from registry.mlflow_client import quiet
from registry.verify import verified_manifest_sha256
from telemetry.errors import InputError

APPROVED_BY_TAG, APPROVAL_REASON_TAG, TRAINER_TAG = "approved_by", "approval.reason", "mlflow.user"
REQUIRE_TAG = "require_approval"


@dataclass(frozen=True)
class Approval:
    """Who approved which version, why, and the SHA-256 of the manifest that they approved."""

    name: str
    version: str
    approver: str
    reason: str
    manifest_sha256: str

    @property
    def tags(self) -> dict[str, str]:
        return {APPROVED_BY_TAG: self.approver, APPROVAL_REASON_TAG: self.reason}


def approve(
    client: MlflowClient, name: str, version: str, *, by: str, reason: str, self_approval: bool = True, state_folder: Path | None = None
) -> Approval:
    """Verify ``version`` and record that ``by`` approves it.

    Args:
        by: identity of the person.
        self_approval: whether whoever trained the version may approve it.

    Raises:
        InputError: an empty identity or reason.
        PromotionError: the version fails verification, or self-approval is forbidden and it is one, or nobody knows who trained it.
    """
    by, reason, version = by.strip(), reason.strip(), str(version)
    for key, value in (("by", by), ("reason", reason)):
        if not value:
            raise InputError("is empty", where=key, allowed="a text", remedy="an approval says who and why")
    with serialised(client, name, state_folder) as audit:
        digest = verified_manifest_sha256(client, name, version)
        if not self_approval:
            _not_the_trainer(client, name, version, by)
        approval = Approval(name, version, by, reason, digest)
        aliases = current_aliases(client, name)
        entry = {"version": version, "approver": by, "manifest_sha256": digest}
        record(audit, name, "done", reason, action="approve", before=aliases, after={}, **entry)
        with quiet():
            for key, value in approval.tags.items():
                client.set_model_version_tag(name, version, key, value)
    return approval


def approval_of(records: list[dict[str, Any]], name: str, version: str, manifest_sha256: str) -> Approval | None:
    """The newest recorded approval of this version with this manifest."""
    for entry in reversed(records):
        if (
            entry["action"] == "approve"
            and (entry["name"], entry.get("version"), entry.get("manifest_sha256")) == (name, version, manifest_sha256)
            and entry.get("approver")
        ):
            return Approval(name, version, entry["approver"], entry["reason"], manifest_sha256)
    return None


def needs_approval(client: MlflowClient, name: str, require_approval: Collection[str]) -> bool:
    """Whether config lists the model, or a reviewer set the tag ``require_approval`` on the registered model."""
    if name in require_approval:
        return True
    with quiet():
        return client.get_registered_model(name).tags.get(REQUIRE_TAG, "").lower() in ("true", "yes", "1")


def _not_the_trainer(client: MlflowClient, name: str, version: str, by: str) -> None:
    from registry.verify import PromotionError

    with quiet():
        run_id = client.get_model_version(name, version).run_id
        trainer = client.get_run(run_id).data.tags.get(TRAINER_TAG) or client.get_run(run_id).info.user_id if run_id else None
    if not trainer or trainer in ("unknown", by):
        who = f"{by} trained it" if trainer == by else "nobody knows who trained it"
        raise PromotionError(f"{name}: version {version} needs the approval of another person: {who}")

"""A model that needs a person's word is not promoted without the record of it, for exactly this version and manifest."""

from __future__ import annotations

import json

import pytest

from registry import audit
from registry.approvals import approve
from registry.promotion import NotApprovedError, PromotionError, audit_path, current_aliases, history, promote, submit
from telemetry.errors import InputError

NAME = "workload-forecaster"
NEEDED = {"expected_champion": None, "require_approval": [NAME]}


def test_submit_leaves_it_waiting_and_an_approval_lets_it_pass(tracking, make_version):
    client, version = tracking.client, make_version()
    outcome = submit(client, NAME, version, **NEEDED)
    assert (outcome.action, outcome.reason) == ("challenger", "waits for approval")
    assert current_aliases(client, NAME) == {"challenger": version}

    client.set_model_version_tag(NAME, version, "approved_by", "mallory")
    with pytest.raises(NotApprovedError, match="approve model="):
        promote(client, NAME, version, **NEEDED)

    approval = approve(client, NAME, version, by="ann", reason="read the card")
    assert approval.manifest_sha256 == client.get_model_version(NAME, version).tags["package.manifest_sha256"]
    promote(client, NAME, version, **NEEDED)
    tags = client.get_model_version(NAME, version).tags
    assert (tags["approved_by"], tags["approval.reason"]) == ("ann", "read the card")
    assert [entry["action"] for entry in history(client, NAME)] == ["challenge", "approve", "promote"]


def test_an_approval_of_another_manifest_or_version_is_not_enough(tracking, make_version):
    client, version, other = tracking.client, make_version(), make_version()
    approve(client, NAME, other, by="ann", reason="fine")
    path = audit_path(client)
    forged = {key: value for key, value in audit.read(path)[0].items() if key != "hash"}
    audit.append(path, {**forged, "version": version, "manifest_sha256": "0" * 64})
    with pytest.raises(NotApprovedError):
        promote(client, NAME, version, **NEEDED)
    assert current_aliases(client, NAME) == {}


def test_a_forged_record_breaks_the_chain(tracking, make_version):
    client, version = tracking.client, make_version()
    path = audit_path(client)
    approve(client, NAME, version, by="ann", reason="fine")
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"approver": "mallory"}) + "\n")
    with pytest.raises(InputError, match="chain of hashes"):
        promote(client, NAME, version, **NEEDED)


def test_who_and_why_are_needed_and_oneself_may_be_forbidden(tracking, make_version):
    client, version = tracking.client, make_version()
    for by, reason in ((" ", "fine"), ("ann", "")):
        with pytest.raises(InputError, match="is empty"):
            approve(client, NAME, version, by=by, reason=reason)
    client.set_tag(client.get_model_version(NAME, version).run_id, "mlflow.user", "ann")
    with pytest.raises(PromotionError, match="ann trained it"):
        approve(client, NAME, version, by="ann", reason="fine", self_approval=False)
    assert approve(client, NAME, version, by="bob", reason="fine", self_approval=False).approver == "bob"


def test_a_reviewer_can_ask_for_it_in_the_registry(tracking, make_version):
    client, version = tracking.client, make_version()
    client.set_registered_model_tag(NAME, "require_approval", "true")
    with pytest.raises(NotApprovedError):
        promote(client, NAME, version, expected_champion=None)

"""Bills of materials, scans, keys and revocation: what is not signed by a trusted key, or was revoked, does not load."""

from __future__ import annotations

import datetime as dt
import json
import os
import pickle
import stat
from dataclasses import replace

import pytest

from registry.alias_moves import audit_path
from registry.bom import ENVIRONMENT_FILE, MODEL_FILE
from registry.gates.supply import Scan, Signature
from registry.keys import TrustError, create_trust, read_trust, revoke, rotate, short, signing_trust, trust_folder
from registry.loading import VerificationError, fetch, load_forecaster, load_version, open_package, package_of
from registry.manifest import SIGNATURE_FILE, read_manifest
from registry.packaging import Draft
from registry.promotion import promote
from registry.resigning import resign
from registry.scan import deep_scan
from registry.signing import sign_package, verify_package_signature
from telemetry.errors import InputError

NAME = "workload-forecaster"


@pytest.fixture
def champion(tracking, make_version) -> str:
    version = make_version()
    promote(tracking.client, NAME, version, expected_champion=None)
    return version


def load(tracking):
    return load_forecaster(NAME, tracking_uri=tracking.tracking_uri)[1]


def keys_of(tracking):
    return trust_folder(tracking.tracking_uri)


def test_both_bills_of_materials_fit_the_official_schema(make_package):
    json_validator = pytest.importorskip("cyclonedx.validation.json")
    pytest.importorskip("jsonschema")
    from cyclonedx.schema import SchemaVersion

    package = make_package()
    validator = json_validator.JsonStrictValidator(SchemaVersion.V1_6)
    for name in (ENVIRONMENT_FILE, MODEL_FILE):
        assert validator.validate_str((package / name).read_text()) is None
    environment, model = (json.loads((package / name).read_text()) for name in (ENVIRONMENT_FILE, MODEL_FILE))
    mlflow = next(entry for entry in environment["components"] if entry["name"] == "mlflow")
    assert mlflow["version"].startswith("3.")
    assert len(mlflow["hashes"][0]["content"]) == 64
    assert mlflow["licenses"]
    described = model["metadata"]["component"]
    assert described["type"] == "machine-learning-model"
    assert {"type": "wql", "value": "0.1"} in described["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"name": "hyperparameter:horizon", "value": "6"} in described["properties"]
    assert next(entry for entry in model["components"] if entry["type"] == "data")["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert read_manifest(package).files.keys() >= {ENVIRONMENT_FILE, MODEL_FILE}


def test_modelscan_and_our_scan_find_what_executes(make_package, tmp_path):
    package = make_package()
    assert deep_scan(package) == []
    draft = Draft(package, read_manifest(package))
    assert Scan().judge({"package": draft}).passed

    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    (package / "weights" / "w.pkl").write_bytes(pickle.dumps(Evil()))
    verdict = Scan().judge({"package": draft})
    assert not verdict.passed
    assert "modelscan" in "".join(verdict.evidence["findings"])


def test_the_signature_gate_rehearses_with_the_key_that_will_sign(tracking, make_package):
    package = make_package()
    trust = signing_trust(tracking.tracking_uri)
    draft = Draft(package, read_manifest(package))
    verdict = Signature().judge({"package": draft, "trust": trust})
    assert verdict.passed
    assert short(trust.active) in verdict.reason
    assert not (package / SIGNATURE_FILE).exists(), "it leaves nothing behind"
    trust.private_path().unlink()
    assert not Signature().judge({"package": draft, "trust": trust}).passed
    assert not Signature().judge({"package": draft, "trust": TrustError("none")}).passed
    with pytest.raises(LookupError):
        Signature().judge({"package": draft})


def test_keys_are_private_and_never_leave_their_folder(tracking, champion):
    folder = keys_of(tracking)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    private = list((folder / "private").iterdir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600]
    secret = private[0].read_text().splitlines()[1].encode()
    kept = [path for path in folder.parent.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert kept == private


def test_a_loader_needs_no_private_key(tracking, champion):
    for path in (keys_of(tracking) / "private").iterdir():
        path.unlink()
    assert load(tracking).name == "persistence"


@pytest.mark.parametrize("name", ["trust.json", "revoked.json"])
@pytest.mark.parametrize("spoil", ["delete", "garbage", "empty", "edit", "open"])
def test_a_spoiled_trust_folder_refuses_everything(tracking, champion, name, spoil):
    path = keys_of(tracking) / name
    if spoil == "delete":
        path.unlink()
    elif spoil == "edit":
        path.write_text(path.read_text().replace('"serial": 1', '"serial": 9').replace('"active": "', '"active": "0'))
    elif spoil == "open":
        path.chmod(0o666)
    else:
        path.write_text("{" if spoil == "garbage" else "{}")
    with pytest.raises(VerificationError):
        load(tracking)


def test_an_older_revocation_list_cannot_be_put_back(tracking, champion):
    folder = keys_of(tracking)
    before = (folder / "revoked.json").read_bytes()
    revoke(folder, reason="wrong data", versions=(f"{NAME}:{champion}",))
    with pytest.raises(VerificationError, match="it was revoked: wrong data"):
        load(tracking)
    (folder / "revoked.json").write_bytes(before)
    with pytest.raises(VerificationError, match="is an old one"):
        load(tracking)


def test_after_rotation_the_old_key_verifies_until_its_end_and_a_version_can_be_signed_again(tracking, champion):
    folder = keys_of(tracking)
    old = read_trust(folder).active
    fresh = rotate(folder, overlap_days=30)
    assert fresh.active != old
    assert load(tracking).name == "persistence"
    assert not (folder / "private" / f"{old}.pem").exists()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=31)
    with pytest.raises(TrustError, match="valid from"):
        fresh.usable(old, later)
    assert resign(tracking.client, NAME, champion, folder) == fresh.active
    revoke(folder, reason="leaked", keys=(short(old),))
    assert load(tracking).name == "persistence"
    with pytest.raises(InputError, match="rotate first"):
        revoke(folder, reason="leaked", keys=(fresh.active,))


def test_a_revoked_key_refuses_until_a_person_vouches(tracking, champion):
    folder = keys_of(tracking)
    old = read_trust(folder).active
    rotate(folder)
    revoke(folder, reason="leaked", keys=(old,))
    with pytest.raises(VerificationError, match="revoked: leaked"):
        load(tracking)
    with pytest.raises(VerificationError, match="revoked: leaked"):
        resign(tracking.client, NAME, champion, folder)
    resign(tracking.client, NAME, champion, folder, adopt=True)
    assert load(tracking).name == "persistence"


def test_an_unsigned_version_is_refused_with_a_remedy_and_can_be_adopted(tracking, champion):
    for tag in ("signature", "signature.record"):
        tracking.client.delete_model_version_tag(NAME, champion, tag)
    with pytest.raises(VerificationError, match="adopt=true"):
        load(tracking)
    resign(tracking.client, NAME, champion, keys_of(tracking), adopt=True)
    assert load(tracking).name == "persistence"


def test_a_revoked_package_does_not_serve_from_a_kept_copy_either(tracking, champion, tmp_path):
    folder, keep = keys_of(tracking), tmp_path / "package"
    load_version(NAME, "forecaster", tracking_uri=tracking.tracking_uri, keep=keep)
    assert open_package(keep, folder).manifest.name == "persistence"
    manifest_sha256 = tracking.client.get_model_version(NAME, champion).tags["package.manifest_sha256"]
    revoke(folder, reason="wrong", manifests=(manifest_sha256,))
    with pytest.raises(VerificationError, match="revoked: wrong"):
        open_package(keep, folder)


def test_a_version_signed_by_a_stranger_is_refused(tracking, make_package, champion, tmp_path):
    stranger = create_trust(tmp_path / "stranger")
    package = make_package()
    sign_package(package, stranger)
    with pytest.raises(TrustError, match="not trusted"):
        verify_package_signature(package, read_trust(keys_of(tracking)))


def test_the_alias_moved_by_hand_is_refused(tracking, champion, make_version):
    second = make_version()
    tracking.client.set_registered_model_alias(NAME, "champion", second)
    with pytest.raises(VerificationError, match="moved by hand"):
        load(tracking)


def test_without_its_audit_record_no_alias_is_believed(tracking, champion):
    record = audit_path(tracking.client)
    kept = record.read_bytes()
    record.unlink()
    with pytest.raises(VerificationError, match="audit record is gone"):
        load(tracking)
    record.write_bytes(b"")
    with pytest.raises(VerificationError, match="moved by hand"):
        load(tracking)
    record.write_bytes(kept)
    load(tracking)


def test_sigstore_that_is_asked_for_fails_closed(make_package, tmp_path, monkeypatch):
    trust = create_trust(tmp_path / "trust", sigstore={"identity": "a@example.org", "oidc_issuer": "https://example.org"})
    package = make_package()
    token = tmp_path / "token"
    token.write_text("not a token")
    with pytest.raises(InputError, match="sigstore could not sign"):
        sign_package(package, trust, token)
    sign_package(package, replace(trust, sigstore=None))
    with pytest.raises(TrustError, match="no sigstore signature"):
        verify_package_signature(package, trust)


def test_fetched_copy_is_what_was_signed(tracking, champion, tmp_path):
    version = tracking.client.get_model_version(NAME, champion)
    package = package_of(fetch(tracking.client, version, tmp_path, tracking.tracking_uri))
    assert verify_package_signature(package, read_trust(keys_of(tracking))) == read_trust(keys_of(tracking)).active

"""Signatures: of a package's files (OpenSSF model-signing) and of a version's record in the registry.

``signature.json`` in a package is a Sigstore bundle over the SHA-256 of every other file of it. It is no file of the manifest (it is made
after it), but one of the tree whose digest the version's record has. The record itself (name, number, source, run and tags of a version) is
signed as well and kept as the tag ``signature.record``, so that a changed row of the database is noticed.

With ``sigstore`` in the trust folder each package must also carry ``signature.sigstore.json``, made with the identity of a workload or a
person.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from registry.keys import Trust, TrustError, short, sign_json, verify_json
from registry.manifest import GATE_TAG, SIGNATURE_FILE, SIGSTORE_FILE
from telemetry.errors import InputError

RECORD_TYPE = "application/vnd.joulewise.version+json"
SIGNATURE_TAG, RECORD_TAG = "signature", "signature.record"
RECORD_LIMIT = 8000
_SIGNED_PREFIXES = (GATE_TAG, "package.", "signature")


def sign_package(package: Path, trust: Trust, identity_token_file: Path | None = None) -> str:
    """Write the signature of a sealed package into it and check it; returns the fingerprint of the key.

    Raises:
        TrustError: the key must not or cannot sign.
        InputError: the trust folder asks for sigstore too, and that cannot be reached or used.
    """
    trust.signer()
    (package / SIGNATURE_FILE).unlink(missing_ok=True)
    (package / SIGSTORE_FILE).unlink(missing_ok=True)
    _write_bundle(package, package / SIGNATURE_FILE, trust)
    if trust.sigstore is not None:
        _sign_with_sigstore(package, identity_token_file)
    return verify_package_signature(package, trust)


def try_signature(package: Path, trust: Trust) -> str:
    """Sign and verify the files as they are, with the bundle outside the package and then discarded. Raises TrustError."""
    trust.signer()
    with tempfile.TemporaryDirectory(prefix="joulewise-sign-") as scratch:
        bundle = Path(scratch) / SIGNATURE_FILE
        _write_bundle(package, bundle, trust)
        return _verify_bundle(package, bundle, trust)


def verify_package_signature(package: Path, trust: Trust) -> str:
    """Check the signature of a package; returns the fingerprint of the key that made it.

    Raises:
        TrustError: none, by a key that is not trusted, expired or revoked, or a file differs from what was signed.
    """
    key_id = _verify_bundle(package, package / SIGNATURE_FILE, trust)
    if trust.sigstore is not None:
        _verify_sigstore(package, trust.sigstore)
    return key_id


def _verify_bundle(package: Path, bundle: Path, trust: Trust) -> str:
    if bundle.is_symlink() or not bundle.is_file():
        raise TrustError(f"it is not signed ({SIGNATURE_FILE} is missing); review it, then `python -m pipelines.keys sign`")
    try:
        key_id = str(json.loads(bundle.read_text())["verificationMaterial"]["publicKey"]["hint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrustError(f"{SIGNATURE_FILE} cannot be read as a signature") from error
    public = trust.usable(key_id)
    signing_library = _library()
    try:
        config = signing_library.verifying.Config().use_elliptic_key_verifier(public_key=public)
        config.set_hashing_config(_hashing()).verify(package, bundle)
    except Exception as error:  # whatever the library raises, the signature was not verified
        raise TrustError(f"its signature by key {short(key_id)} does not fit ({type(error).__name__}: {error})") from error
    return key_id


def _write_bundle(package: Path, bundle: Path, trust: Trust) -> None:
    signing_library = _library()
    try:
        config = signing_library.signing.Config().use_elliptic_key_signer(private_key=trust.private_path())
        config.set_hashing_config(_hashing()).sign(package, bundle)
    except (OSError, ValueError, TypeError) as error:
        raise TrustError(f"{package} cannot be signed ({type(error).__name__}: {error})") from error


def _sign_with_sigstore(package: Path, identity_token_file: Path | None) -> None:
    signing_library = _library()
    try:
        if identity_token_file is not None:
            options: dict[str, Any] = {"identity_token": identity_token_file.read_text().strip()}
        else:
            options = {"use_ambient_credentials": True, "force_oob": True}
            _refuse_without_ambient_identity()
        config = signing_library.signing.Config().use_sigstore_signer(**options).set_hashing_config(_hashing())
        config.sign(package, package / SIGSTORE_FILE)
    except InputError:
        raise
    except Exception as error:  # network, identity provider or transparency log: whatever it is, nothing was signed
        (package / SIGSTORE_FILE).unlink(missing_ok=True)
        raise InputError(
            f"sigstore could not sign ({type(error).__name__})",
            where=str(package),
            remedy="see that Fulcio and Rekor can be reached and the identity token is fresh, or create the trust folder without sigstore",
        ) from error


def _refuse_without_ambient_identity() -> None:
    """Without an identity the library would wait for a person at a browser, which no unattended run has."""
    from sigstore.oidc import detect_credential

    if detect_credential() is None:
        raise InputError("no identity for sigstore", where="sigstore", remedy="give identity_token_file, or run where one is ambient (CI)")


def _verify_sigstore(package: Path, identity: Mapping[str, str]) -> None:
    if not (package / SIGSTORE_FILE).is_file():
        raise TrustError(f"it has no sigstore signature ({SIGSTORE_FILE} is missing)")
    signing_library = _library()
    trust_config = identity.get("trust_config_file")
    try:
        config = signing_library.verifying.Config().use_sigstore_verifier(
            identity=identity["identity"], oidc_issuer=identity["oidc_issuer"], trust_config=Path(trust_config) if trust_config else None
        )
        config.set_hashing_config(_hashing()).verify(package, package / SIGSTORE_FILE)
    except Exception as error:  # unreachable or untrue: not verified
        raise TrustError(f"its sigstore signature was not verified ({type(error).__name__}: {error})") from error


def _hashing() -> Any:
    hashing = _library().hashing
    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", max_workers=1)
    return config.set_ignored_paths(paths=[SIGNATURE_FILE, SIGSTORE_FILE], ignore_git_paths=False)


def _library() -> Any:
    """model-signing, which brings sigstore and needs a moment: imported when something is signed or verified."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    return model_signing


# --- the registry's record --------------------------------------------------------------------------------------------------------------


def version_record(version: ModelVersion, tags: Mapping[str, str]) -> dict[str, Any]:
    """What is signed of a version: name, number, source, run, and the digest of each tag in ``tags``."""
    return {
        "name": str(version.name),
        "version": str(version.version),
        "source": str(version.source),
        "run_id": str(version.run_id or ""),
        "tags": {key: hashlib.sha256(str(value).encode()).hexdigest() for key, value in tags.items()},
    }


def sign_record(trust: Trust, version: ModelVersion, tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that carry the signed record of a version whose signed tags are ``tags``.

    Raises:
        TrustError: the key must not or cannot sign.
        InputError: more than a tag can hold.
    """
    record = version_record(version, tags)
    content = _canonical({"record": record, "signature": sign_json(trust, RECORD_TYPE, record)})
    if len(content) > RECORD_LIMIT:
        raise InputError(f"its record has {len(content)} characters", where=f"{version.name} version {version.version}", allowed="8000")
    return {RECORD_TAG: content, SIGNATURE_TAG: f"signed by key {short(trust.active)}"}


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def verify_record(version: ModelVersion, trust: Trust) -> str:
    """Check a version's row against its signed record; returns the fingerprint of the key.

    Raises:
        TrustError: not signed, or naming the first thing that differs.
    """
    tags = dict(version.tags)
    if not tags.get(RECORD_TAG):
        raise TrustError(
            f"its registry record has no tag '{RECORD_TAG}': it was registered unsigned; "
            "review it, then `python -m pipelines.keys sign` with adopt=true"
        )
    try:
        stored = json.loads(tags[RECORD_TAG])
        record, signature = stored["record"], stored["signature"]
        signed_tags: dict[str, str] = dict(record["tags"])
        if _canonical({"record": record, "signature": signature}) != tags[RECORD_TAG]:
            raise ValueError("not as it was written")
    except (ValueError, KeyError, TypeError) as error:
        raise TrustError(f"its tag '{RECORD_TAG}' cannot be understood") from error
    key_id = verify_json(trust, RECORD_TYPE, record, signature)
    if missing := sorted(signed_tags.keys() - tags.keys()):
        raise TrustError(f"its tag '{missing[0]}' was removed")
    found = version_record(version, {key: tags[key] for key in signed_tags})
    for key in ("name", "version", "source", "run_id"):
        if found[key] != record.get(key):
            raise TrustError(f"its {key} is '{found[key]}', signed was '{record.get(key)}'")
    if changed := sorted(key for key in signed_tags if found["tags"][key] != signed_tags[key]):
        raise TrustError(f"its tag '{changed[0]}' was changed")
    allowed = {*signed_tags, RECORD_TAG, SIGNATURE_TAG}
    if added := sorted(key for key in tags if key.startswith(_SIGNED_PREFIXES) and key not in allowed):
        raise TrustError(f"its tag '{added[0]}' was added")
    if tags.get(SIGNATURE_TAG) != f"signed by key {short(key_id)}":
        raise TrustError(f"its tag '{SIGNATURE_TAG}' was changed")
    if version.status != "READY":
        raise TrustError(f"its status is '{version.status}'")
    return key_id


def refuse_revoked(trust: Trust, manifest_sha256: str, name: str = "", version: str = "") -> None:
    """Raises TrustError for a version or a package that the revocation list names."""
    if reason := trust.revoked.manifests.get(manifest_sha256):
        raise TrustError(f"its package was revoked: {reason}")
    if reason := trust.revoked.versions.get(f"{name}:{version}"):
        raise TrustError(f"it was revoked: {reason}")

"""Sign a registered version again: after a rotation, or one that was registered unsigned and that somebody now vouches for."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.digest import folder_digests, sha256_file, tree_digest
from registry.keys import TrustError
from registry.loading import VerificationError, believed, fetch, package_of, verify_digests, verify_version
from registry.manifest import MANIFEST_FILE, SIGNATURE_FILE, SIGSTORE_FILE, read_manifest
from registry.mlflow_client import quiet
from registry.packaging import version_tags
from registry.signing import refuse_revoked, sign_package, sign_record
from telemetry.errors import InputError


def resign(
    client: MlflowClient, name: str, version: str, trust: Path, *, adopt: bool = False, identity_token_file: Path | None = None
) -> str:
    """Sign an intact version with the current key; returns the key's fingerprint.

    The new signature file is stored first, then the tags that bind it: killed between, the version is refused and can be registered anew.

    Args:
        adopt: sign although no trusted key vouches for it now (unsigned, expired or revoked key): digests, gates and scan must still hold.

    Raises:
        VerificationError: it is not intact, or not signed by a trusted key and ``adopt`` is off, or it was itself revoked.
        InputError: no such version, or its files are not those of a logged model.
        TrustError: the key cannot sign.
    """
    where = f"{name} version {version}"
    keys = believed(trust, where)
    try:
        with quiet():
            found = client.get_model_version(name, version)
    except MlflowException as error:
        raise InputError(f"no such version ({error})", where=where) from error
    with tempfile.TemporaryDirectory(prefix="joulewise-sign-") as scratch:
        folder = fetch(client, found, Path(scratch), client.tracking_uri)
        package = package_of(folder)
        if adopt:
            verify_digests(found, folder)
        else:
            verify_version(found, folder, keys)
        try:
            refuse_revoked(keys, sha256_file(package / MANIFEST_FILE), name, str(version))
        except TrustError as error:
            raise VerificationError(f"{where}: {error}") from error
        model_id = yaml.safe_load((folder / "MLmodel").read_text()).get("model_id")
        if not model_id:
            raise InputError("its files are not those of a logged model", where=where, remedy="register it anew")
        key_id = sign_package(package, keys, identity_token_file)
        (folder / "registered_model_meta").unlink(missing_ok=True)
        tags = version_tags(read_manifest(package), sha256_file(package / MANIFEST_FILE), tree_digest(folder_digests(folder)))
        with quiet():
            for file in (SIGNATURE_FILE, SIGSTORE_FILE):
                if (package / file).is_file():
                    client.log_model_artifact(model_id, str(package / file), "artifacts/package")
            for key, value in {**tags, **sign_record(keys, found, tags)}.items():
                client.set_model_version_tag(name, str(version), key, value)
    return key_id

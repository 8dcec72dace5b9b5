"""Verification of a version before an alias may point to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.digest import sha256_file
from registry.keys import trust_folder
from registry.loading import VerificationError, believed, fetch, package_of, verify_version
from registry.manifest import MANIFEST_FILE
from registry.mlflow_client import quiet


class PromotionError(RuntimeError):
    """The promotion was refused; nothing changed."""


def verified_manifest_sha256(client: MlflowClient, name: str, version: str) -> str:
    """SHA-256 of the manifest of a version whose files were fetched and verified just now. Raises PromotionError."""
    try:
        with quiet():
            found = client.get_model_version(name, version)
        with tempfile.TemporaryDirectory(prefix="joulewise-verify-") as scratch:
            folder = fetch(client, found, Path(scratch), client.tracking_uri)
            verify_version(found, folder, believed(trust_folder(client.tracking_uri), f"{name} version {version}"))
            return sha256_file(package_of(folder) / MANIFEST_FILE)
    except (MlflowException, VerificationError) as error:
        raise PromotionError(f"{name}: version {version} cannot be promoted: {error}") from error

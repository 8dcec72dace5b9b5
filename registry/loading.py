"""Verified loading: signatures, revocation, digest of every file, verdicts, a scan, and only then the weights. Any doubt is a refusal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from envs.state import Policy
from models.base import Forecaster
from registry.alias_moves import audit_path, is_postgres, read_audit
from registry.digest import differences, folder_digests, sha256_file, tree_digest
from registry.keys import Trust, TrustError, read_trust, trust_folder
from registry.manifest import (
    GATE_TAG,
    GATES_TAG,
    JUDGE_FILE,
    MANIFEST_FILE,
    PACKAGE_TAG,
    SIGNATURE_FILE,
    TREE_TAG,
    WEIGHTS_FOLDER,
    Manifest,
    package_digests,
    read_manifest,
)
from registry.mlflow_client import DEFAULT_URI, open_client, quiet, sqlite_path
from registry.plain import clip
from registry.scan import scan_folder
from registry.signing import refuse_revoked, verify_package_signature, verify_record
from registry.tracking import TAG_VALUE_LIMIT
from telemetry.errors import InputError

ALIAS_TRIES, ALIAS_PAUSE_S = 5, 0.1
_ADDED_BY_MLFLOW = frozenset({"registered_model_meta"})


class VerificationError(RuntimeError):
    """A model must not be used; the message says which and why. Whoever holds a good version keeps it."""


class NoVersionError(VerificationError):
    """The alias points to nothing: nothing of that name was promoted yet."""


@dataclass(frozen=True)
class Loaded:
    """A verified package in memory."""

    manifest: Manifest
    model: Any
    version: str = ""  # in the registry; empty when loaded from a folder

    def predict(self, model_input: Any, params: Mapping[str, Any]) -> Any:
        """The served form: see ``served_model.PackagedModel``."""
        if self.manifest.kind == "policy":
            return self.model.act(np.asarray(model_input, dtype=np.float32), observation_layout(self.manifest))
        if isinstance(model_input, pd.DataFrame) and len(model_input):
            self.model.update(model_input)
        return self.model.predict(int(params.get("horizon") or 0) or None)


def load_forecaster(
    name: str, alias: str = "champion", tracking_uri: str = DEFAULT_URI, trust: Path | None = None
) -> tuple[Forecaster, Manifest]:
    """The forecaster that ``alias`` of registered model ``name`` points to.

    Args:
        trust: folder of the trusted keys; by default where ``keys.trust_folder`` says for this registry.

    Raises:
        VerificationError: no such version, or any check failed.
        InputError: ``tracking_uri`` names no registry.
    """
    loaded = _load(name, alias, tracking_uri, "forecaster", trust=trust)
    return loaded.model, loaded.manifest


def load_version(
    name: str, kind: str, alias: str = "champion", tracking_uri: str = DEFAULT_URI, keep: Path | None = None, trust: Path | None = None
) -> Loaded:
    """As :func:`load_forecaster` and :func:`load_policy`, with the version's number.

    Args:
        keep: folder that holds a copy of the verified package afterwards, which :func:`open_package` can serve when the registry cannot.
    """
    return _load(name, alias, tracking_uri, kind, keep, trust)


def load_policy(
    alias: str = "champion", tracking_uri: str = DEFAULT_URI, name: str = "scheduling-policy", trust: Path | None = None
) -> tuple[Policy, Manifest]:
    """The scheduling policy that ``alias`` points to: the agent, or the judge that keeps its place. Raises as :func:`load_forecaster`."""
    loaded = _load(name, alias, tracking_uri, "policy", trust=trust)
    if loaded.model.settings.price_forecast == "perfect":
        raise VerificationError(f"{name}@{alias}: decides by prices that are yet to come, which is for comparison only")
    return loaded.model, loaded.manifest


def _load(name: str, alias: str, tracking_uri: str, kind: str, keep: Path | None = None, trust: Path | None = None) -> Loaded:
    client = open_client(tracking_uri)
    version = _aliased(client, name, alias)
    where = f"{name}@{alias} (version {version.version})"
    trusted = believed(trust_folder(client.tracking_uri, trust), where)
    with tempfile.TemporaryDirectory(prefix="joulewise-load-") as scratch:
        folder = fetch(client, version, Path(scratch), tracking_uri)
        manifest = verify_version(version, folder, trusted)
        if manifest.kind != kind:
            raise VerificationError(f"{where}: is a {manifest.kind}, a {kind} is needed")
        loaded = Loaded(manifest, _weights(package_of(folder), manifest, where), str(version.version))
        if keep is not None:
            _keep(package_of(folder), keep)
        return loaded


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion:
    """The version that ``alias`` points to, if the audit record, where it is at hand, says so too."""
    where = f"{name}@{alias}"
    for attempt in range(ALIAS_TRIES):
        try:
            with quiet():
                version = client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise NoVersionError(f"{where}: no such version; nothing was promoted yet") from error
            raise VerificationError(f"{where}: the registry does not answer ({error})") from error
        recorded = _recorded_versions(client, name, alias, where)
        if recorded is None or str(version.version) in recorded:
            return version
        if attempt + 1 < ALIAS_TRIES:  # a promotion may have come between the two reads
            time.sleep(ALIAS_PAUSE_S)
    raise VerificationError(
        f"{where} (version {version.version}): the audit record says {' or '.join(map(str, recorded))}; the alias was moved by hand"
    )


def _recorded_versions(client: MlflowClient, name: str, alias: str, where: str) -> tuple[str | None, ...] | None:
    """Versions that the audit record allows for an alias, two while a change is under way; None where there is no record at hand.

    At hand is the file beside a sqlite database, which must be there, and the table of a Postgres database, where there is one: promoters
    that share a folder keep their record in it.
    """
    try:
        records = _records(client)
    except (OSError, InputError) as error:
        raise VerificationError(f"{where}: {error}") from error
    if records is None:
        return None
    entries = [entry for entry in records if entry.get("name") == name and isinstance(entry.get("after"), dict)]
    held: str | None = None
    for entry in entries:
        if entry.get("phase") == "done" and alias in entry["after"]:
            held = entry["after"][alias]
    if not entries:
        return (None,)
    last = entries[-1]
    underway = last.get("phase") == "intent" and alias in last["after"]
    return (held, last["after"][alias]) if underway else (held,)


def _records(client: MlflowClient) -> list[dict[str, Any]] | None:
    if is_postgres(client.tracking_uri):
        return read_audit(client) or None
    if sqlite_path(client.tracking_uri) is None:
        return None
    if not audit_path(client).exists():
        raise InputError(
            "the audit record is gone: nothing tells who moved the alias",
            where=str(audit_path(client)),
            remedy="restore it from a backup; or look at the version, delete the alias and promote it again",
        )
    return read_audit(client)


def believed(folder: Path, where: str) -> Trust:
    """A trust folder, or a refusal. Raises VerificationError."""
    try:
        return read_trust(folder)
    except TrustError as error:
        raise VerificationError(f"{where}: {error}") from error


def _keep(package: Path, keep: Path) -> None:
    """Make ``keep`` a copy of ``package``, whole or not at all; one that is there and unchanged stays."""
    with contextlib.suppress(VerificationError, OSError):
        verify_package(keep, str(keep), expected_manifest_sha256=sha256_file(package / MANIFEST_FILE))
        if (keep / SIGNATURE_FILE).read_bytes() == (package / SIGNATURE_FILE).read_bytes():
            return
    keep.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{keep.name}.", dir=keep.parent) as scratch:
        shutil.copytree(package, Path(scratch) / "fresh")
        if keep.exists():
            os.replace(keep, Path(scratch) / "old")
        os.replace(Path(scratch) / "fresh", keep)


def fetch(client: MlflowClient, version: ModelVersion, scratch: Path, tracking_uri: str) -> Path:
    """A private copy of all files of a version, so that what is verified is what is loaded."""
    where = f"{version.name} version {version.version}"
    try:
        with quiet():
            source = client.get_model_version_download_uri(version.name, version.version)
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(scratch), tracking_uri=tracking_uri))
    except Exception as error:  # each artifact store raises errors of its own
        raise VerificationError(f"{where}: its files cannot be read ({error})") from error


def package_of(folder: Path) -> Path:
    """The package inside a downloaded model."""
    return folder / "artifacts" / "package"


def verify_version(version: ModelVersion, folder: Path, trust: Trust | None = None) -> Manifest:
    """Check a downloaded version: signed record, signed files, revocation, digests, verdicts, scan.

    Args:
        trust: the keys to believe; None = those of the embedded default.

    Raises:
        VerificationError: naming the first check that failed.
    """
    where = f"{version.name} version {version.version}"
    trust = trust or believed(trust_folder(), where)
    _demand_tags(version.tags, where)
    manifest_sha256 = version.tags[PACKAGE_TAG]
    try:
        verify_record(version, trust)
        refuse_revoked(trust, manifest_sha256, str(version.name), str(version.version))
    except TrustError as error:
        raise VerificationError(f"{where}: {error}") from error
    _verify_signed_package(package_of(folder), where, trust, expected_manifest_sha256=manifest_sha256)
    return verify_digests(version, folder)


def verify_digests(version: ModelVersion, folder: Path) -> Manifest:
    """The checks of a downloaded version that need no key: digests against its record, name, verdicts, scan. Raises VerificationError."""
    where, tags = f"{version.name} version {version.version}", dict(version.tags)
    _demand_tags(tags, where)
    manifest = verify_package(package_of(folder), where, expected_manifest_sha256=tags[PACKAGE_TAG])
    if tree_digest(_digests(folder, where, _ADDED_BY_MLFLOW)) != tags[TREE_TAG]:
        raise VerificationError(f"{where}: a file beside the package was changed, added or removed (tree digest differs)")
    if manifest.registered_name != version.name:
        raise VerificationError(f"{where}: its package was made for '{manifest.registered_name}'")
    _verify_gates(tags, manifest, where)
    if findings := scan_folder(folder):
        raise VerificationError(f"{where}: scan refused it: {findings[0]}")
    return manifest


def _demand_tags(tags: Mapping[str, str], where: str) -> None:
    for tag in (TREE_TAG, PACKAGE_TAG, GATES_TAG):
        if not tags.get(tag):
            raise VerificationError(f"{where}: its registry record has no tag '{tag}'")


def _verify_signed_package(package: Path, where: str, trust: Trust, expected_manifest_sha256: str | None = None) -> Manifest:
    """Digests first, which name the file that differs; then the signature over them, and revocation."""
    manifest = verify_package(package, where, expected_manifest_sha256)
    try:
        verify_package_signature(package, trust)
        refuse_revoked(trust, sha256_file(package / MANIFEST_FILE))
    except TrustError as error:
        raise VerificationError(f"{where}: {error}") from error
    return manifest


def verify_package(package: Path, where: str, expected_manifest_sha256: str | None = None) -> Manifest:
    """Manifest readable (and as expected), every file present and unchanged, none added. Raises VerificationError."""
    path = package / MANIFEST_FILE
    if not path.is_file():
        raise VerificationError(f"{where}: {MANIFEST_FILE} is missing")
    if expected_manifest_sha256 is not None and sha256_file(path) != expected_manifest_sha256:
        raise VerificationError(f"{where}: {MANIFEST_FILE} was changed")
    try:
        manifest = read_manifest(package)
        problems = differences(manifest.files, package_digests(package))
    except (InputError, ValueError) as error:
        raise VerificationError(f"{where}: {error}") from error
    if problems:
        raise VerificationError(f"{where}: {'; '.join(problems[:3])}")
    return manifest


def _digests(folder: Path, where: str, exclude: frozenset[str]) -> dict[str, str]:
    try:
        return folder_digests(folder, exclude)
    except ValueError as error:
        raise VerificationError(f"{where}: {error}") from error


def _verify_gates(tags: Mapping[str, str], manifest: Manifest, where: str) -> None:
    refused = [gate["gate"] for gate in manifest.gates if gate.get("passed") is not True]
    if refused or not manifest.gates:
        raise VerificationError(f"{where}: gates {'refused it: ' + ', '.join(refused) if refused else 'never ran'}")
    if tags[GATES_TAG] != "passed":
        raise VerificationError(f"{where}: the registry records its gates as '{tags[GATES_TAG]}'")
    recorded = {key.removeprefix(GATE_TAG): value for key, value in tags.items() if key.startswith(GATE_TAG)}
    expected = {gate["gate"]: clip(f"passed: {gate['reason']}", TAG_VALUE_LIMIT) for gate in manifest.gates}
    if problems := differences(expected, recorded):
        raise VerificationError(f"{where}: recorded verdict {problems[0]}")


def open_package(package: Path, trust: Path | None = None) -> Loaded:
    """Load a package folder by itself: signature, revocation, its own manifest, its gates, scan. Raises VerificationError.

    Args:
        trust: folder of the trusted keys; None = that of the embedded default.
    """
    where = str(package)
    manifest = _verify_signed_package(package, where, believed(trust_folder(folder=trust), where))
    if not manifest.gates_passed:
        raise VerificationError(f"{where}: its gates did not pass")
    if findings := scan_folder(package):
        raise VerificationError(f"{where}: scan refused it: {findings[0]}")
    return Loaded(manifest, _weights(package, manifest, where))


def _weights(package: Path, manifest: Manifest, where: str) -> Any:
    load = _loader(manifest, where)
    try:
        return load(package / WEIGHTS_FOLDER)
    except Exception as error:  # whatever a library raises on weights that it cannot read, they must not serve
        raise VerificationError(f"{where}: its weights cannot be loaded ({type(error).__name__}: {error})") from error


def _loader(manifest: Manifest, where: str) -> Callable[[Path], Any]:
    if manifest.kind == "forecaster":
        from models.catalog import FORECASTERS

        if manifest.name not in FORECASTERS:
            raise VerificationError(f"{where}: unknown forecaster '{manifest.name}'; known: {', '.join(FORECASTERS)}")
        return FORECASTERS[manifest.name].load
    if manifest.name == "agent":
        from envs.agent.policy import AgentPolicy

        return AgentPolicy.load
    return _load_judge


def _load_judge(weights: Path) -> Policy:
    from envs.heuristics import JUDGES
    from envs.state import PolicySettings

    content = json.loads((weights / JUDGE_FILE).read_text())
    judge = JUDGES[content["judge"]]
    return judge if content["settings"] is None else replace(judge, settings=PolicySettings(**content["settings"]))


def observation_layout(manifest: Manifest) -> Any:
    """The observation layout that a policy package was made for."""
    from envs.observation import ObservationLayout

    return ObservationLayout(int(manifest.layout["pools"]), int(manifest.layout["levels"]))

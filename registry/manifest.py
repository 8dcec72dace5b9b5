"""What a package says of itself: ``manifest.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from registry.digest import folder_digests
from registry.plain import plain
from telemetry.errors import InputError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "signature.json"
SIGSTORE_FILE = "signature.sigstore.json"
WEIGHTS_FOLDER = "weights"
JUDGE_FILE = "judge.json"

# Tags of a version: digest of its manifest, digest of all its files, the verdict over all gates, and one tag a gate.
PACKAGE_TAG = "package.manifest_sha256"
TREE_TAG = "package.tree_sha256"
GATES_TAG = "gates"
GATE_TAG = "gate."

KINDS = ("forecaster", "policy")
REGISTERED_NAMES: dict[str, str] = {
    "workload-forecaster": "forecaster",
    "power-forecaster": "forecaster",
    "scheduling-policy": "policy",
}


@dataclass(frozen=True)
class Manifest:
    """Identity, lineage, results and file digests of one package.

    Attributes:
        kind: ``forecaster`` or ``policy``.
        name: the forecaster's name in the catalogue; ``agent`` or the judge's name for a policy.
        registered_name: the registry entry it was made for.
        created: ISO 8601 with offset, given by the caller.
        config: what it was trained with.
        layout: features of a forecaster; observation, pools, levels, cluster and reward of a policy.
        data: ``provenance.data_facts`` of the training data.
        git, environment: ``provenance``.
        metrics: finite numbers by name.
        gates: verdicts, ``{"gate", "passed", "reason", "threshold", "evidence"}`` each.
        files: sha256 of every other file of the package, by relative POSIX path.
    """

    kind: str
    name: str
    registered_name: str
    created: str
    config: dict[str, Any]
    layout: dict[str, Any]
    data: dict[str, Any]
    git: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, float]
    gates: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def gates_passed(self) -> bool:
        """At least one gate ran and all passed."""
        return bool(self.gates) and all(gate.get("passed") is True for gate in self.gates)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically, with sorted keys."""
        target = folder / MANIFEST_FILE
        draft = target.with_suffix(".tmp")
        draft.write_text(json.dumps(plain(asdict(self)), indent=2, sort_keys=True) + "\n")
        os.replace(draft, target)


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        InputError: missing, not JSON, an unknown format version, or fields missing or unknown.
    """
    path = folder / MANIFEST_FILE
    try:
        content: Any = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path)) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot be read as JSON: {error}", where=str(path)) from error
    if not isinstance(content, Mapping) or content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version") if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"format_version {found}", where=str(path), allowed=str(FORMAT_VERSION))
    try:
        return Manifest(**content)
    except TypeError as error:
        raise InputError(str(error), where=str(path)) from error


def package_digests(folder: Path) -> dict[str, str]:
    """Digests of all files of a package but its manifest and the signatures over it."""
    return folder_digests(folder, exclude=frozenset({MANIFEST_FILE, SIGNATURE_FILE, SIGSTORE_FILE}))

"""CycloneDX 1.6 bills of materials: the environment that a package was made in, and what the model itself is made of.

``environment_bom`` lists every installed distribution with version, licence and, where it has a RECORD, the SHA-256 of that file, which in
turn lists the hash of every installed file. ``model_bom`` has one machine-learning model with its model card (approach, datasets, metrics,
limits) and its weights; the library has no class for model cards, so that part is added to its JSON and held to the official schema by a
test (https://cyclonedx.org/docs/1.6/json/).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from registry.manifest import Manifest
from registry.plain import clip, flatten

ENVIRONMENT_FILE, MODEL_FILE = "environment.cdx.json", "model.cdx.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_LICENCE = 120
_TASKS = {"forecaster": "quantile time-series forecasting", "policy": "job scheduling"}


def write_boms(package: Path, manifest: Manifest) -> None:
    """Write both into a draft; ``manifest.files`` says which weights there are."""
    (package / ENVIRONMENT_FILE).write_text(environment_bom())
    (package / MODEL_FILE).write_text(json.dumps(model_bom(manifest), indent=1) + "\n")


@functools.cache
def environment_bom() -> str:
    """SBOM of the installed distributions as CycloneDX 1.6 JSON; made once a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cyclonedx.model.bom import Bom
        from cyclonedx.output.json import JsonV1Dot6
    found = {}
    for dist in metadata.distributions():
        meta = dist.metadata  # parsed anew at each access
        if meta["Name"]:
            found.setdefault(str(meta["Name"]).lower(), (meta, dist.read_text("RECORD")))  # the first on the path is the one imported
    bom = Bom(components=[_distribution(*found[name]) for name in sorted(found)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no dependency graph is given, which the library warns of
        return str(JsonV1Dot6(bom).output_as_string(indent=1)) + "\n"


def _distribution(meta: Any, record: str | None) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, version = str(meta["Name"]), str(meta["Version"])
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(record.encode()).hexdigest())] if record else []
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"pkg:{name.lower()}@{version}",
        purl=PackageURL("pypi", None, name.lower().replace("_", "-"), version),
        licenses=_licences(meta),
        hashes=hashes,
    )


def _licences(meta: Any) -> list[Any]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    if expression := meta.get("License-Expression"):
        return [LicenseFactory().make_from_string(str(expression))]
    stated = str(meta.get("License") or "").strip()
    if stated and len(stated) <= _LONGEST_LICENCE and "\n" not in stated and stated.upper() != "UNKNOWN":
        return [LicenseFactory().make_with_name(stated)]
    classified = [line.rsplit(" :: ", 1)[-1] for line in meta.get_all("Classifier") or [] if line.startswith("License ::")]
    return [LicenseFactory().make_with_name(line) for line in sorted(set(classified))]


def model_bom(manifest: Manifest) -> dict[str, Any]:
    """ML-BOM of a package: model, model card, training data and weights, as CycloneDX 1.6 JSON."""
    model_ref = f"model:{manifest.registered_name}/{manifest.name}"
    data = _datasets(manifest.data)
    weights = [
        {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for name, digest in sorted(manifest.files.items())
        if name.startswith("weights/")
    ]
    hyper = [{"name": f"hyperparameter:{key}", "value": clip(str(value), 500)} for key, value in sorted(flatten(manifest.config).items())]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "component": {
                "type": "machine-learning-model",
                "bom-ref": model_ref,
                "group": manifest.registered_name,
                "name": manifest.name,
                "version": manifest.created,
                "properties": [*hyper, {"name": "git.commit", "value": str(manifest.git.get("commit", "unknown"))}],
                "modelCard": _model_card(manifest, [entry["bom-ref"] for entry in data]),
            },
        },
        "components": [*data, *weights],
        "dependencies": [{"ref": model_ref, "dependsOn": [entry["bom-ref"] for entry in (*data, *weights)]}],
    }


def _model_card(manifest: Manifest, datasets: list[str]) -> dict[str, Any]:
    from registry.cards import limits

    return {
        "modelParameters": {
            "approach": {"type": "supervised" if manifest.kind == "forecaster" else "reinforcement-learning"},
            "task": _TASKS[manifest.kind],
            "architectureFamily": manifest.name,
            "datasets": [{"ref": ref} for ref in datasets],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [{"type": key, "value": f"{value:.6g}"} for key, value in sorted(manifest.metrics.items())]
        },
        "considerations": {"technicalLimitations": limits(manifest.kind)},
    }


def _datasets(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One component for the training table, and one for each of ``data["sources"]`` (``name``, ``sha256``, ``licence``)."""
    table = {"name": "training data", "sha256": data.get("sha256"), "licence": data.get("licence")}
    entries = []
    for index, source in enumerate([table, *(data.get("sources") or [])]):
        entry: dict[str, Any] = {"type": "data", "bom-ref": f"data:{index}", "name": str(source.get("name") or f"source {index}")}
        if _SHA256.fullmatch(str(source.get("sha256"))):
            entry["hashes"] = [{"alg": "SHA-256", "content": str(source["sha256"])}]
        if licence := source.get("licence"):
            entry["licenses"] = [{"license": {"name": str(licence)}}]
        entry["data"] = [{"type": "dataset", "name": entry["name"]}]
        if index == 0:
            facts = [(key, data.get(key)) for key in ("rows", "start", "end")]
            entry["properties"] = [{"name": key, "value": str(value)} for key, value in facts if value is not None]
        entries.append(entry)
    return entries

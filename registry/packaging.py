"""From something trained to a version in the model registry.

``draft_package`` writes weights, plots and the input example; the gates judge the draft; ``seal_package`` adds card and manifest with the
verdicts; ``register`` makes it a version. A package is one folder::

    package/manifest.json      identity, lineage, metrics, verdicts, SHA-256 of every other file
    package/card.md            the model card
    package/plots/*.png        figures of the card
    package/input_example.json
    package/weights/...        what Forecaster.save, AgentPolicy.save or judge_weights wrote
    package/*.cdx.json         CycloneDX: the environment it was made in, and what it was made of
    package/signature.json     signature over all of the above, made by ``register``
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from models.base import QUANTILE_COLUMNS
from registry.bom import write_boms
from registry.cards import card_markdown, summary_markdown
from registry.digest import folder_digests, sha256_file, tree_digest
from registry.gates import Verdict
from registry.keys import signing_trust
from registry.manifest import (
    GATE_TAG,
    GATES_TAG,
    JUDGE_FILE,
    KINDS,
    MANIFEST_FILE,
    PACKAGE_TAG,
    REGISTERED_NAMES,
    TREE_TAG,
    WEIGHTS_FOLDER,
    Manifest,
    package_digests,
    read_manifest,
)
from registry.mlflow_client import quiet
from registry.plain import clip, flatten, plain
from registry.signing import sign_package, sign_record
from registry.tracking import PARAM_BATCH, TAG_VALUE_LIMIT, Run
from telemetry.errors import InputError

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PACKAGE_FOLDER = "package"
SERVED_FORM = Path(__file__).with_name("served_model.py")
CARD_FILE = "card.md"
EXAMPLE_FILE = "input_example.json"


@dataclass(frozen=True)
class Draft:
    """A package that has not been judged: its folder, its identity and the digests of its files when written."""

    folder: Path
    manifest: Manifest

    @property
    def files(self) -> dict[str, str]:
        return self.manifest.files


def draft_package(
    parent: Path,
    identity: Manifest,
    save_weights: Callable[[Path], None],
    *,
    figures: Mapping[str, Figure],
    input_example: pd.DataFrame | np.ndarray,
) -> Draft:
    """Write ``parent/package`` without card and manifest.

    Args:
        parent: an existing or new folder that has no ``package`` yet.
        identity: the manifest so far; its ``gates`` and ``files`` are filled here and by :func:`seal_package`.
        save_weights: called with the weights folder, e.g. ``forecaster.save``.
        figures: by name, for the card.
        input_example: rows ``unique_id, ds, y`` for a forecaster, observations ``[B, D]`` for a policy.

    Raises:
        InputError: unknown registered name or kind, or the folder exists.
    """
    expected = REGISTERED_NAMES.get(identity.registered_name, identity.kind)
    if identity.kind not in KINDS or identity.kind != expected:
        raise InputError(f"kind '{identity.kind}'", where=f"package for '{identity.registered_name}'", allowed=", ".join(KINDS))
    folder = parent / PACKAGE_FOLDER
    if folder.exists():
        raise InputError("already exists", where=str(folder), remedy="give every package its own folder")
    weights = folder / WEIGHTS_FOLDER
    weights.mkdir(parents=True)
    save_weights(weights)
    for name, figure in figures.items():
        path = folder / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None})
    (folder / EXAMPLE_FILE).write_text(json.dumps(_example_json(input_example)) + "\n")
    write_boms(folder, replace(identity, files=package_digests(folder)))
    return Draft(folder, replace(identity, files=package_digests(folder), gates=[]))


def judge_weights(name: str, settings: Any = None) -> Callable[[Path], None]:
    """The "weights" of a policy package that is a judge: its name and settings (a dataclass, a mapping or None)."""
    values = settings if settings is None or isinstance(settings, Mapping) else asdict(settings)

    def save(folder: Path) -> None:
        (folder / JUDGE_FILE).write_text(json.dumps({"judge": name, "settings": plain(values)}, indent=2, sort_keys=True) + "\n")

    return save


def seal_package(draft: Draft, verdicts: Sequence[Verdict]) -> Manifest:
    """Write the card and the manifest with ``verdicts``; afterwards nothing in the folder may change."""
    judged = replace(draft.manifest, gates=[plain(asdict(verdict)) for verdict in verdicts])
    plots = sorted(name for name in draft.files if name.startswith("plots/"))
    (draft.folder / CARD_FILE).write_text(card_markdown(judged, plots))
    sealed = replace(judged, files={**draft.files, CARD_FILE: sha256_file(draft.folder / CARD_FILE)})
    sealed.write(draft.folder)
    return sealed


def register(run: Run, folder: Path, *, trust: Path | None = None, identity_token_file: Path | None = None) -> str:
    """Sign a sealed package and make it a version of its registered model; returns the version.

    Args:
        trust: folder with the signing key; by default where ``keys.signing_trust`` finds or makes it for this registry.
        identity_token_file: for sigstore, where the trust folder asks for it.

    Raises:
        TrustError, InputError: it cannot be signed; nothing was registered.

    The version carries the verdicts (tags ``gates`` and ``gate.NAME``), the digests of the manifest and of all logged files, a description,
    the signature and the input example. The model is logged from code, so nothing in it is pickled.
    """
    manifest = read_manifest(folder)
    client = run.tracking.client
    keys = signing_trust(run.tracking.tracking_uri, trust)
    sign_package(folder, keys, identity_token_file)
    tags = version_tags(manifest, sha256_file(folder / MANIFEST_FILE), "")
    with quiet():
        model = client.create_logged_model(
            run.tracking.experiment_id, name=manifest.name, source_run_id=run.run_id, model_type=manifest.kind, tags={"kind": manifest.kind}
        )
        with tempfile.TemporaryDirectory(prefix="joulewise-model-") as scratch:
            local = Path(scratch) / "model"
            _save_model(local, folder, manifest, run.run_id, model.model_id)
            tags[TREE_TAG] = tree_digest(folder_digests(local))
            client.log_model_artifacts(model.model_id, str(local))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, 0)])
        _log_model_params(client, model.model_id, manifest)
        _ensure_registered(client, manifest.registered_name)
        version = client.create_model_version(
            manifest.registered_name,
            # A store opened in this process would look a models:/ URI up in MLflow's global tracking URI, which is not ours to set.
            source=f"models:/{model.model_id}" if run.tracking.tracking_uri.startswith("http") else model.artifact_location,
            run_id=run.run_id,
            model_id=model.model_id,
            tags=tags,
            description=summary_markdown(manifest),
        )
        # The number is known only now; until its record is signed the version does not load.
        for key, value in sign_record(keys, client.get_model_version(version.name, version.version), tags).items():
            client.set_model_version_tag(version.name, version.version, key, value)
        client.log_artifacts(run.run_id, str(folder), f"packages/{manifest.registered_name}")
    return str(version.version)


def _save_model(local: Path, folder: Path, manifest: Manifest, run_id: str, model_id: str) -> None:
    import mlflow.pyfunc  # warns when imported: only ever under quiet()
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        str(local),
        python_model=str(SERVED_FORM),
        artifacts={"package": str(folder)},
        signature=signature_of(manifest),
        input_example=_example_value(json.loads((folder / EXAMPLE_FILE).read_text())),
        pip_requirements=["joulewise"],
        model_config={"trust_folder": ""},
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )


def signature_of(manifest: Manifest) -> ModelSignature:
    """Inputs, outputs and parameters of the served form."""
    with quiet():
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    if manifest.kind == "policy":
        return ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, -1))]), Schema([TensorSpec(np.dtype("int64"), (-1,))]))
    key, when, number = DataType.string, DataType.datetime, DataType.double
    inputs = [ColSpec(key, "unique_id"), ColSpec(when, "ds"), ColSpec(number, "y")]
    quantiles = [ColSpec(number, column) for column in QUANTILE_COLUMNS]
    outputs = [ColSpec(key, "unique_id"), ColSpec(when, "issued_at"), ColSpec(when, "ds"), *quantiles, ColSpec(key, "model")]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("horizon", DataType.long, 0)]))


def version_tags(manifest: Manifest, manifest_sha256: str, tree: str) -> dict[str, str]:
    """The tags of a version that are signed: identity, verdicts, digests of the manifest and of all its files."""
    tags = {
        "kind": manifest.kind,
        "model": manifest.name,
        GATES_TAG: "passed" if manifest.gates_passed else "refused",
        PACKAGE_TAG: manifest_sha256,
        TREE_TAG: tree,
        "git.commit": str(manifest.git.get("commit")),
        "data.sha256": str(manifest.data.get("sha256")),
    }
    for gate in manifest.gates:
        tags[GATE_TAG + gate["gate"]] = clip(gate_line(gate), TAG_VALUE_LIMIT)
    return tags


def gate_line(gate: Mapping[str, Any]) -> str:
    """A recorded verdict as shown in its version tag."""
    return f"{'passed' if gate['passed'] is True else 'refused'}: {gate['reason']}"


def _log_model_params(client: MlflowClient, model_id: str, manifest: Manifest) -> None:
    params = {clip(key, 250): clip(str(value), 500) for key, value in flatten(manifest.config).items()}
    keys = list(params)
    for start in range(0, len(keys), PARAM_BATCH):
        client.log_model_params(model_id, {key: params[key] for key in keys[start : start + PARAM_BATCH]})


def _ensure_registered(client: MlflowClient, name: str) -> None:
    descriptions = {
        "workload-forecaster": "Forecasts load: GPUs in demand per pool and requests per second per service, with nine quantiles.",
        "power-forecaster": "Forecasts power: watts per node, pool and site, with nine quantiles.",
        "scheduling-policy": "Decides for every job: hold it, or run it in which pool at which power level.",
    }
    try:
        client.get_registered_model(name)
    except MlflowException as missing:
        try:
            client.create_registered_model(name, description=descriptions.get(name))
        except MlflowException as lost_race:
            if lost_race.error_code != "RESOURCE_ALREADY_EXISTS":
                raise lost_race from missing


def _example_json(example: pd.DataFrame | np.ndarray) -> dict[str, Any]:
    if isinstance(example, pd.DataFrame):
        rows = example.assign(ds=example["ds"].astype(str)) if "ds" in example else example
        return {"columns": list(rows.columns), "rows": plain(rows.to_numpy(dtype=object).tolist())}
    return {"tensor": np.asarray(example, dtype=np.float64).round(6).tolist()}


def _example_value(content: dict[str, Any]) -> pd.DataFrame | np.ndarray:
    if "tensor" in content:
        return np.array(content["tensor"], dtype=np.float32)
    frame = pd.DataFrame(content["rows"], columns=content["columns"])
    return frame.assign(ds=pd.to_datetime(frame["ds"])) if "ds" in frame else frame

"""Runs in MLflow: one parent with nested runs, each with its config, data, commit, environment, metrics, figures and tables.

The database and the experiment are made once, under a lock, by the process that calls :func:`open_tracking`; worker processes get
the resolved URI. (Several first starts on an empty sqlite database crash each other; and without an explicit location MLflow writes
artifacts to ``./mlruns`` of whatever folder is current.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from registry.locks import exclusive
from registry.mlflow_client import DEFAULT_URI, open_client, quiet, resolve_uri, sqlite_path
from registry.plain import clip, flatten, plain
from registry.postgres import is_postgres
from registry.provenance import environment, git_state
from telemetry.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # serving a model draws nothing, and need not wait for it

PARAM_VALUE_LIMIT = 6000
PARAM_BATCH = 100
METRIC_BATCH = 1000
TAG_VALUE_LIMIT = 8000
ARTIFACT_FOLDER = "mlartifacts"
MLFLOW_NOTE = "mlflow.note.content"
# The UI shows the first line of it above the list of runs, and folds the rest.
HOW_TO_REVIEW = """**Review:** open a run `train: ...`, its description holds the outcome; tick two and Compare.

`workload.*`, `power.*` and `policy.*` have the same names in every run. Versions, verdicts first, are in the *Model registry*: `champion`
serves, `challenger` was refused or waits, `previous` is what a rollback brings back."""
# Which of its two workflows the UI shows.
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}


@dataclass(frozen=True)
class Tracking:
    """An initialised tracking store.

    Attributes:
        tracking_uri: absolute; give this one to child processes.
        artifact_location: URI under which the experiment keeps its artifacts.
    """

    tracking_uri: str
    experiment_id: str
    artifact_location: str
    client: MlflowClient

    @contextmanager
    def run(self, name: str, *, tags: Mapping[str, str] | None = None, parent: Run | None = None) -> Iterator[Run]:
        """Open a run; it ends FINISHED, FAILED after an exception, or KILLED after an interrupt."""
        labels = {key: clip(value, TAG_VALUE_LIMIT) for key, value in (tags or {}).items()}
        if parent is not None:
            labels[MLFLOW_PARENT_RUN_ID] = parent.run_id
        with quiet():
            created = self.client.create_run(self.experiment_id, run_name=name, tags=labels)
        run = Run(self, created.info.run_id, name)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            with quiet():
                self.client.set_terminated(run.run_id, status=status)


@dataclass(frozen=True)
class Run:
    """One MLflow run, by id; every method writes at once."""

    tracking: Tracking
    run_id: str
    name: str

    @contextmanager
    def child(self, name: str, *, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """A run nested under this one."""
        with self.tracking.run(name, tags=tags, parent=self) as run:
            yield run

    def log_config(self, config: Mapping[str, Any], not_compared: Collection[str] = ()) -> None:
        """The whole config as ``config.json`` and, flattened with dots and without ``not_compared``, as parameters to compare runs by."""
        with quiet():
            self.tracking.client.log_dict(self.run_id, plain(config), "config.json")
        self.log_params(flatten({key: value for key, value in config.items() if key not in not_compared}))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters; a value longer than MLflow takes is clipped and marked (it is whole in ``config.json``)."""
        entries = [Param(clip(str(key), 250), clip(str(value), PARAM_VALUE_LIMIT)) for key, value in params.items()]
        with quiet():
            for start in range(0, len(entries), PARAM_BATCH):
                self.tracking.client.log_batch(self.run_id, params=entries[start : start + PARAM_BATCH])

    def log_provenance(self, data: Mapping[str, Any] | None = None) -> None:
        """Git commit and dirty flag, Python and packages, and the data facts of ``provenance.data_facts``."""
        git, env = git_state(), environment()
        tags = {"git.commit": git["commit"], "git.dirty": str(git["dirty"]).lower(), "python": env["python"]}
        tags |= {f"data.{key}": str(value) for key, value in (data or {}).items()}
        self.set_tags(tags)
        with quiet():
            self.tracking.client.log_dict(self.run_id, {"git": git, "environment": env, "data": plain(data or {})}, "provenance.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Finite metrics at ``step``; the names of the others go to the tag ``metrics.not_finite``."""
        self.log_steps({step: metrics})

    def log_steps(self, steps: Mapping[int, Mapping[str, float]]) -> None:
        """Metrics of many steps in few calls; what is not finite is named in the tag ``metrics.not_finite``."""
        now = get_current_time_millis()
        rows = [(key, float(value), step) for step, metrics in steps.items() for key, value in metrics.items()]
        entries = [Metric(key, value, now, step) for key, value, step in rows if math.isfinite(value)]
        with quiet():
            for start in range(0, len(entries), METRIC_BATCH):
                self.tracking.client.log_batch(self.run_id, metrics=entries[start : start + METRIC_BATCH])
        if missing := sorted({key for key, value, _ in rows if not math.isfinite(value)}):
            self.set_tags({"metrics.not_finite": ", ".join(missing)})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags, clipped to what MLflow takes."""
        entries = [RunTag(key, clip(str(value), TAG_VALUE_LIMIT)) for key, value in tags.items()]
        with quiet():
            self.tracking.client.log_batch(self.run_id, tags=entries)

    def log_figure(self, figure: Figure, name: str) -> None:
        """A figure under ``plots/NAME.png``."""
        with quiet():
            self.tracking.client.log_figure(self.run_id, figure, f"plots/{name}.png", save_kwargs={"dpi": 110})

    def log_table(self, frame: pd.DataFrame, name: str) -> None:
        """A table under ``tables/NAME.json``, which the UI shows as a table."""
        shown = frame.copy()
        for column in shown.columns:
            if pd.api.types.is_datetime64_any_dtype(shown[column]):
                shown[column] = shown[column].astype(str)
        with quiet():
            self.tracking.client.log_table(self.run_id, shown, f"tables/{name}.json")

    def log_text(self, text: str, path: str) -> None:
        """A text artifact."""
        with quiet():
            self.tracking.client.log_text(self.run_id, text, path)


def open_tracking(tracking_uri: str = DEFAULT_URI, artifact_root: str | Path | None = None, experiment: str = "joulewise") -> Tracking:
    """Initialise database and experiment, or open what exists.

    Args:
        tracking_uri: sqlite by default; a server or Postgres URI otherwise.
        artifact_root: folder or URI for artifacts; by default ``mlartifacts`` beside the sqlite file, or the server's own choice.
        experiment: name; a deleted one of that name is restored.

    Raises:
        InputError: unknown scheme, or an ``artifact_root`` that an existing experiment contradicts.
    """
    uri = resolve_uri(tracking_uri)
    database = sqlite_path(uri)
    if database is None:
        return _open_server(uri, None if artifact_root is None else str(artifact_root), experiment)
    database.parent.mkdir(parents=True, exist_ok=True)
    root = _location(artifact_root if artifact_root is not None else database.parent / ARTIFACT_FOLDER)
    with exclusive(database.with_name(database.name + ".lock")):
        tracking = _open(uri, root, experiment)
    if artifact_root is not None:
        _same_root(tracking, root, experiment)
    return tracking


def _open_server(uri: str, root: str | None, experiment: str) -> Tracking:
    """Postgres or HTTP: what races to make the experiment is answered with the winner's; the artifact store is asked before work begins."""
    if is_postgres(uri) and (root is None or "://" not in root):
        raise InputError(
            f"artifact_root {root} with a database on a server",
            where="registry.artifact_root",
            allowed="s3://BUCKET/PREFIX, or another URI that all machines reach",
        )
    tracking = _open(uri, root, experiment)
    if root is not None:
        _same_root(tracking, root, experiment)
    store_answers(tracking.artifact_location)
    return tracking


def _same_root(tracking: Tracking, root: str, experiment: str) -> None:
    if tracking.artifact_location.rstrip("/") != root.rstrip("/"):
        raise InputError(
            f"experiment '{experiment}' already keeps its artifacts in {tracking.artifact_location}",
            where=f"artifact_root {root}",
            remedy="leave artifact_root out, or choose another experiment or database",
        )


def store_answers(location: str) -> None:
    """Ask an S3 artifact store once; other stores are not asked.

    Raises:
        InputError: boto3 is missing, or the store refuses; named with the bucket and what to do.
    """
    if not location.startswith("s3://"):
        return
    try:
        import boto3  # noqa: F401
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise InputError("boto3 is not installed", where=location, remedy="pip install -e '.[cloud]'") from error
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        with quiet():
            get_artifact_repository(location).list_artifacts("joulewise-asks")
    except (BotoCoreError, ClientError, MlflowException) as error:
        raise InputError(
            f"the artifact store does not answer: {error}",
            where=location,
            remedy="correct registry.artifact_root and registry.access.s3_endpoint, and give boto3 credentials for the bucket",
        ) from None


def _location(root: str | Path) -> str:
    text = str(root)
    return text if "://" in text else Path(text).absolute().as_uri()


def _open(uri: str, root: str | None, name: str) -> Tracking:
    client = open_client(uri, must_exist=False)
    with quiet():
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                client.create_experiment(name, artifact_location=root)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(name)
        elif found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if MLFLOW_NOTE not in found.tags:
            for key, value in {**MODEL_TRAINING, MLFLOW_NOTE: HOW_TO_REVIEW}.items():
                client.set_experiment_tag(found.experiment_id, key, value)
    return Tracking(uri, found.experiment_id, found.artifact_location, client)

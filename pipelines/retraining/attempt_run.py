"""One attempt: data up to now, a challenger, the champion on the same fresh windows, the gates, and the aliases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config import TrainConfig
from pipelines.retraining.attempts import Attempt, Outcome
from pipelines.retraining.fresh import Fresh, TooLittleFreshError, fresh_backtest, fresh_split
from pipelines.stages.agent import run_agent
from pipelines.stages.context import StageContext
from pipelines.stages.evaluate import POLICY_MODEL, evaluate_policies, evaluate_reserves
from pipelines.stages.features import run_features
from pipelines.stages.forecasters import run_forecasters, series_path
from pipelines.stages.ingest import run_ingest
from pipelines.stages.power_levels import PARTS_FILE
from pipelines.stages.promote import run_promote
from pipelines.train import Runner, run_each
from pipelines.workspace import Workspace, read_json, write_json
from registry.loading import Loaded, NoVersionError, VerificationError, load_version
from registry.manifest import REGISTERED_NAMES, WEIGHTS_FOLDER
from registry.mlflow_client import quiet
from registry.promotion import champion_version
from registry.provenance import frame_hash
from registry.tracking import Tracking

ID_TAG = "retrain.id"
PARENT_TAG = "mlflow.parentRunId"
BEFORE: tuple[str, ...] = ("ingest", "features")
INCUMBENT = "incumbent"


@dataclass(frozen=True)
class Learning:
    """How challengers are made: which learners start from the champion's weights, what judges, and up to when data counts."""

    warm: Mapping[str, bool]
    fresh: Fresh
    now: pd.Timestamp | None = None  # UTC without offset


def stages_of(model: str) -> tuple[str, ...]:
    """Stages of an attempt."""
    return (*BEFORE, "agent" if model == POLICY_MODEL else "forecasters", "evaluate", "promote")


def only_model(config: TrainConfig, model: str) -> TrainConfig:
    """``config`` for one model: a forecaster's target alone."""
    if model == POLICY_MODEL:
        return config
    names = (model.removesuffix("-forecaster"),)
    return replace(
        config, target=replace(config.target, names=names), raw={**config.raw, "target": {**config.raw["target"], "names": list(names)}}
    )


def run_attempt(config: TrainConfig, attempt: Attempt, learning: Learning, tracking: Tracking) -> Outcome:
    """Run what is not done of an attempt under one MLflow run; ``config.output_dir`` is its workspace."""
    config = only_model(config, attempt.model)
    stages = stages_of(attempt.model)
    workspace = Workspace(config.output_dir)
    interrupted = end_interrupted(tracking, attempt.id)
    tags = {"command": "pipelines.retrain", ID_TAG: attempt.id, "trigger": attempt.why, "resumed": str(bool(interrupted)).lower()}
    with tracking.run(f"retrain {attempt.model}", tags=tags) as run:
        if version := promoted_by(tracking, attempt):
            outcome = Outcome("promoted", "promoted before this process was killed", version, version)
        else:
            run.log_config(config.raw)
            run.log_provenance()
            context = StageContext(config, workspace, tracking, run, stages)
            outcome = _challenge(context, attempt, learning)
        run.set_tags({"outcome": outcome.action, "outcome.reason": outcome.reason, "started": outcome.started or ""})
        return replace(outcome, run_id=run.run_id)


def _challenge(context: StageContext, attempt: Attempt, learning: Learning) -> Outcome:
    model = attempt.model
    runners: dict[str, Runner] = {"ingest": run_ingest, "features": partial(cut_features, now=learning.now)}
    run_each(context, BEFORE, runners, resuming=True)
    folder = context.workspace.root / INCUMBENT
    incumbent, trouble = serving(context.tracking, model, folder)
    champion = champion_version(context.tracking.client, model)
    data = _data(context, model)
    if incumbent is not None and incumbent.manifest.data["sha256"] == frame_hash(data):
        reason = f"version {incumbent.version} was trained on the very same data"
        return Outcome("no new data", reason, champion=champion)
    if incumbent is not None:
        known_until = pd.Timestamp(incumbent.manifest.data["end"])
        try:
            context = replace(context, config=_fresh(context.config, model, data, known_until, learning.fresh))
        except TooLittleFreshError as error:
            return Outcome("too little fresh data", str(error), champion=champion)
    learner, started = warm_start(context, incumbent, folder / WEIGHTS_FOLDER, learning.warm)
    runners = {
        "forecasters": run_forecasters,
        "agent": run_agent,
        "evaluate": evaluate_policies if model == POLICY_MODEL else evaluate_reserves,
    }
    run_each(learner, context.stages[2:4], runners, resuming=True)
    run_each(context, ("promote",), {"promote": partial(run_promote, models=(model,))}, resuming=True)
    outcome = _submitted(context, attempt, started)
    return replace(outcome, reason=f"{outcome.reason}; {trouble}") if trouble else outcome


def cut_features(context: StageContext, out: Path, now: pd.Timestamp | None) -> None:
    """Stage ``features``, without anything after ``now``."""
    run_features(context, out)
    if now is None:
        return
    facts = read_json(out / "features.json")
    aware = now.tz_localize("UTC")
    tables = {series_path(out, target): ("ds", now, target) for target in context.config.target.names}
    tables |= {
        out / PARTS_FILE: ("ds", now, "parts"),
        out / "jobs.parquet": ("submit_time", aware, "jobs"),
        out / "grid.parquet": ("time", aware, "grid"),
    }
    for path, (column, until, name) in tables.items():
        if path.exists():
            frame = pd.read_parquet(path)
            frame = frame[frame[column] <= until].reset_index(drop=True)
            frame.to_parquet(path)
            facts[name] = {**facts.get(name, {}), "rows": len(frame), "sha256": frame_hash(frame)}
    write_json(out / "features.json", {**facts, "now": now.isoformat()})


def serving(tracking: Tracking, model: str, keep: Path) -> tuple[Loaded | None, str]:
    """The verified champion, with a copy of its package in ``keep``, and what is wrong with one that cannot be used."""
    try:
        return load_version(model, REGISTERED_NAMES[model], tracking_uri=tracking.tracking_uri, keep=keep), ""
    except NoVersionError:
        return None, ""
    except VerificationError as error:
        return None, f"the champion cannot be loaded ({error}): started cold"


def _data(context: StageContext, model: str) -> pd.DataFrame:
    """What the model's manifest names as its data."""
    features = context.folder("features")
    path = features / "jobs.parquet" if model == POLICY_MODEL else series_path(features, model.removesuffix("-forecaster"))
    return pd.read_parquet(path)


def _fresh(config: TrainConfig, model: str, data: pd.DataFrame, known_until: pd.Timestamp, fresh: Fresh) -> TrainConfig:
    if model == POLICY_MODEL:
        aware = known_until if known_until.tzinfo else known_until.tz_localize("UTC")
        return fresh_split(config, data, aware, fresh)
    return fresh_backtest(config, data, known_until.tz_localize(None), fresh)


def warm_start(context: StageContext, incumbent: Loaded | None, weights: Path, warm: Mapping[str, bool]) -> tuple[StageContext, str]:
    """The context that challengers learn in, and how they start: from the champion's weights where ``warm`` says so."""
    if incumbent is None or not warm.get(incumbent.manifest.name, False):
        return context, "cold"
    name, config = incumbent.manifest.name, context.config
    if incumbent.manifest.kind == "policy":
        return replace(context, warm_policy=weights), f"warm from version {incumbent.version}"
    if name not in config.forecasters:
        return context, "cold"
    options = {**config.forecasters[name], "warm_start": str(weights)}
    return replace(
        context, config=replace(config, forecasters={**config.forecasters, name: options})
    ), f"{name} warm from version {incumbent.version}"


def _submitted(context: StageContext, attempt: Attempt, started: str) -> Outcome:
    """What stage ``promote`` led to, marked on the version for whoever reviews it."""
    client = context.tracking.client
    promotion = read_json(context.folder("promote") / "promotion.json")
    own = [entry for entry in promotion["submissions"] if entry["model"] == attempt.model]
    with quiet():
        for entry in own:
            client.set_model_version_tag(attempt.model, entry["version"], "trigger", attempt.why[:5000])
    last = next((entry for entry in own if entry["action"] == "promoted"), own[-1])
    refusals = "; ".join(last["refusals"]) or last["reason"]
    action = "promoted" if last["action"] == "promoted" else "refused"
    reason = "all gates passed" if action == "promoted" else refusals
    if action == "promoted" and last is not own[0]:
        reason = f"{last['name']} stands in: {'; '.join(own[0]['refusals'])}"
    return Outcome(action, reason, last["version"], champion_version(client, attempt.model), started)


def promoted_by(tracking: Tracking, attempt: Attempt) -> str | None:
    """The champion's version if it is this attempt's: its process was killed after the aliases had moved."""
    client = tracking.client
    version = champion_version(client, attempt.model)
    if version is None:
        return None
    with quiet():
        run_id = client.get_model_version(attempt.model, version).run_id
        for _ in range(2):  # the package's run, and the attempt's above it
            if not run_id:
                return None
            tags = client.get_run(run_id).data.tags
            if tags.get(ID_TAG) == attempt.id:
                return version
            run_id = tags.get(PARENT_TAG)
    return None


def end_interrupted(tracking: Tracking, id: str) -> int:
    """Mark runs that killed processes of this attempt left open, and return how many there were."""
    client = tracking.client
    with quiet():
        found = client.search_runs([tracking.experiment_id], f"tags.`{ID_TAG}` = {json.dumps(id)} and attributes.status = 'RUNNING'")
        for run in found:
            for child in client.search_runs(
                [tracking.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}' and attributes.status = 'RUNNING'"
            ):
                client.set_terminated(child.info.run_id, status="KILLED")
            client.set_terminated(run.info.run_id, status="KILLED")
    return len(found)


def described(outcome: Outcome) -> dict[str, Any]:
    """As plain values for history and notification."""
    return {
        "action": outcome.action,
        "reason": outcome.reason,
        "version": outcome.version,
        "champion": outcome.champion,
        "started": outcome.started,
        "run_id": outcome.run_id,
    }

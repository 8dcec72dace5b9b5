"""How one trial is scored: on validation windows alone, by the functions that the main job trains with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from models.backtest import StoppedError
from models.backtest_plan import plan_origins
from models.series import default_season_length
from models.series_store import frame_batches, read_store
from models.validation import Validation, validate, validation_of
from pipelines.cli import quiet_libraries
from pipelines.config import TrainConfig, train_config
from pipelines.stages.agent import train_on
from pipelines.stages.forecasters import bounds_of, members_with, series_path
from pipelines.stages.power_levels import shared_plan
from pipelines.sweeping.space import Space, Values, overridden
from pipelines.sweeping.study import Outcome, Pruning, Task
from registry.provenance import frame_hash
from telemetry.errors import InputError


@dataclass(frozen=True)
class Question:
    """All that a trial needs besides its values, by value.

    Attributes:
        raw: the main job's configuration as plain types.
        features: folder of stage ``features``; read only by the agent's trials.
        families: series by target without their test windows.
        bounds: physical bounds by target.
    """

    space: Space
    raw: Mapping[str, Any]
    features: Path
    families: Mapping[str, Validation]
    bounds: Mapping[str, Mapping[str, list[float]]]
    steps: int
    data_sha256: Mapping[str, str]


def question_of(config: TrainConfig, space: Space, features: Path, raw: Mapping[str, Any]) -> Question:
    """What is asked of every trial, from the tables of stage ``features``."""
    if space.objective == "agent":
        agent = config.agent
        steps = max(1, agent.total_steps // (agent.num_envs * agent.n_steps * agent.validate_every))
        data = {name: frame_hash(pd.read_parquet(features / f"{name}.parquet")) for name in ("jobs", "grid")}
        return Question(space, raw, features, {}, {}, steps, data)
    if space.member not in config.forecasters:
        raise InputError(f"no forecaster '{space.member}'", where="forecaster", allowed=", ".join(config.forecasters))
    series = {target: pd.read_parquet(series_path(features, target)) for target in config.target.names}
    freq = config.target.freq
    season = config.backtest.season_length or default_season_length(freq)
    plan = shared_plan(series, freq, config.backtest)
    families = {
        target: validation_of(
            frame, freq, config.backtest, plan or plan_origins(read_store(frame_batches(frame), freq), config.backtest, season)
        )
        for target, frame in series.items()
    }
    data = {target: frame_hash(frame) for target, frame in series.items()}
    bounds = {target: bounds_of(features, target) for target in series}
    return Question(space, raw, features, families, bounds, sum(one.origins for one in families.values()), data)


def asked(question: Question, config: TrainConfig) -> dict[str, Any]:
    """What the values of a study depend on: two sweeps that differ in any of it must not share one."""
    groups = ("agent", "reward", "cluster", "trace") if question.space.objective == "agent" else ("target", "backtest")
    told = {group: config.raw[group] for group in groups}
    if question.space.member:
        told["options"] = config.forecasters[question.space.member]
    return {"space": question.space.described()["parameters"], "data_sha256": dict(question.data_sha256), "seed": config.seed, **told}


def run_trial(task: Task, question: Question) -> Outcome:
    """Score the values of a task; runs in a worker. A trial that fails is a result too."""
    quiet_libraries()
    begun, pruning = time.perf_counter(), Pruning(task)

    def report(step: int, value: float) -> None:
        if pruning.report(step, value):
            raise StoppedError

    state, value, error, facts = "complete", None, None, {}
    try:
        value, facts = (_agent if question.space.objective == "agent" else _forecaster)(task.values, question, report)
    except StoppedError:
        state = "pruned"
    except (InputError, ValueError, ArithmeticError) as problem:
        state, error = "failed", f"{type(problem).__name__}: {problem}"
    if state == "complete" and (value is None or not math.isfinite(value)):
        state, value, error = "failed", None, "the objective is not finite"
    return Outcome(state, value, pruning.intermediate, time.perf_counter() - begun, error, facts, pruning.rungs())


def _forecaster(values: Values, question: Question, report: Callable[[int, float], None]) -> tuple[float, dict[str, float]]:
    config = trial_config(question.raw, values)
    name = str(question.space.member)
    options = {target: members_with(config.forecasters, dict(question.bounds[target]))[name] for target in question.families}
    return validate(name, options, question.families, report), {}


def _agent(values: Values, question: Question, report: Callable[[int, float], None]) -> tuple[float, dict[str, float]]:
    config = trial_config(question.raw, values)

    def watch(step: int, metrics: dict[str, float]) -> None:
        if "validation/objective_usd" in metrics:
            report(step, metrics["validation/objective_usd"])

    with TemporaryDirectory(prefix="sweep-") as checkpoint:
        population = train_on(config, question.features, Path(checkpoint), lambda place: watch)
    result = population.result
    return float(result.best_objective), {"judge_usd": float(result.judge.mean()), "best_step": float(result.best_step)}


def trial_config(raw: Mapping[str, Any], values: Mapping[str, Any]) -> TrainConfig:
    """The main job's configuration with the values of a trial."""
    return train_config(OmegaConf.create(overridden(raw, values)))

"""Evidence for gates that no stage needs otherwise: probes of a candidate, what it was learned from, and what an answer of it costs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from models.backtest_plan import BacktestConfig
from models.population_shift import training_facts
from models.refit_probe import Probe, probe_leaks, seed_losses, small_part
from pipelines.config import PUBLIC_JOBS, TrainConfig
from pipelines.stages.context import StageContext
from pipelines.workspace import STAGES, read_json
from registry.keys import TrustError, signing_trust
from registry.licences import distribution_licences
from registry.serving_cost import serving_cost
from telemetry.errors import InputError

PROBE_FILE = "probes.json"
SAMPLE_FOLDER = "data/sample/"
OWN, SAMPLE, PUBLIC = "own records", "embedded sample", "public traces"
# Large enough that the loss of a seed says something, small enough to be walked four times in some seconds.
LEAK_PART = {"series": 2, "rows": 1008}
SEED_PART = {"series": 4, "rows": 2016}
SEEDS = 3  # a gate that asks for more refuses
LEAK_ORIGINS, SEED_ORIGINS, CALIBRATION_ORIGINS, TEST_FRACTION = 2, 6, 4, 0.25


def probe_candidate(series: pd.DataFrame, freq: str, name: str, options: Mapping[str, Any], backtest: BacktestConfig) -> dict[str, Any]:
    """Evidence ``leakage`` and ``seed_stability`` of a candidate that was chosen on ``series`` (``unique_id, ds, y``), or ``why_not``."""
    given = {key: value for key, value in options.items() if key != "warm_start"}
    small = replace(backtest, calibration_origins=CALIBRATION_ORIGINS, test_fraction=TEST_FRACTION, align="auto")
    try:
        leak = Probe(small_part(series, **LEAK_PART), freq, name, given, replace(small, origins=LEAK_ORIGINS))
        stable = Probe(small_part(series, **SEED_PART), freq, name, given, replace(small, origins=SEED_ORIGINS))
        others = [backtest.seed + 1 + k for k in range(SEEDS - 1)]
        return {"leakage": probe_leaks(leak, leak.forecasts()), "seed_stability": seed_losses(stable, stable.forecasts(), others)}
    except (InputError, ValueError) as error:
        return {"why_not": str(error)}


def probe_evidence(folder: Path) -> dict[str, Any]:
    """What :func:`probe_candidate` left in a target's folder; without it the gates refuse for want of evidence."""
    path = folder / PROBE_FILE
    return {key: value for key, value in read_json(path).items() if key != "why_not"} if path.exists() else {}


def data_source(config: TrainConfig) -> tuple[str, str | None]:
    """Name and licence of what a run learns from; None where nobody says."""
    if config.target.kind == "public" or config.trace.kind in PUBLIC_JOBS:
        return PUBLIC, None
    files = [str(entry.get("path", "")) for entry in config.raw["source"].get("files") or ()]
    if files and all(file.startswith(SAMPLE_FOLDER) for file in files):
        return SAMPLE, "Apache-2.0"
    return OWN, None


@cache
def _dependencies() -> dict[str, str | None]:
    return distribution_licences()


def licence_evidence(config: TrainConfig) -> dict[str, Any]:
    """Evidence of the gate ``licence``."""
    name, licence = data_source(config)
    return {"data": {name: licence}, "dependencies": _dependencies()}


def training_evidence(context: StageContext, series: pd.DataFrame) -> dict[str, Any]:
    """Evidence of the gate ``training_data``: how old the data are is asked of retraining, which is there to keep a model fresh."""
    facts = training_facts(series, context.config.registry.gates.training_data.max_psi)
    if context.stages == STAGES:
        return {**facts, "recorded": "trained on what was given, not to keep a schedule"}
    told = read_json(context.folder("features") / "features.json").get("now")
    now = pd.Timestamp(told) if told else pd.Timestamp(dt.datetime.now(dt.UTC)).tz_localize(None)
    return {**facts, "age_days": (now - series["ds"].max()) / pd.Timedelta(days=1)}


def package_evidence(context: StageContext, kind: str, answer: Callable[[Path], Callable[[], object]], folder: Path) -> dict[str, Any]:
    """Evidence about a drafted package: the key that would sign it, licences, and what an answer costs.

    Args:
        answer: given the folder of the weights, loads them and returns what gives one answer.
    """
    try:
        trust: Any = signing_trust(context.tracking.tracking_uri)
    except TrustError as error:
        trust = error
    cost = serving_cost(kind, answer(folder / "weights"), folder, budget_s=1.0)
    return {"trust": trust, "licence": licence_evidence(context.config), "serving": cost}

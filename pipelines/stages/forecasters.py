"""Stage ``forecasters``: every forecaster backtested on every target; candidate and naive fitted on the whole history."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.managers import SyncManager
from pathlib import Path
from queue import Empty
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from models.backtest import NAIVES, run_backtest
from models.backtest_plan import OriginPlan
from models.catalog import make_forecaster
from models.diagnosis import diagnose
from models.lstm_network import one_thread
from models.selection import Decision, choose_champion, decision_ratio
from pipelines.cli import quiet_libraries
from pipelines.config import TrainConfig
from pipelines.engine import EngineConfig
from pipelines.reserve import reserve_capacity
from pipelines.stages.context import StageContext
from pipelines.stages.forecast_plots import log_target
from pipelines.stages.power_levels import FOLDER, log_power_levels, reconcile_power, shared_plan
from pipelines.stages.probes import PROBE_FILE, probe_candidate
from pipelines.workspace import write_json

BOUNDS_FILE = "bounds.json"


def series_path(features: Path, target: str) -> Path:
    """The series that stage ``features`` cut for a target."""
    return features / f"series_{target}.parquet"


def bounds_of(features: Path, target: str) -> dict[str, list[float]]:
    """Physical bounds ``{unique_id: [floor, cap]}`` of a target's series."""
    return dict(json.loads((features / BOUNDS_FILE).read_text()).get(target, {}))


def members_with(members: dict[str, dict[str, Any]], bounds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Forecasters and their options, the naives always among them, all with the same bounds."""
    named = {**{name: {} for name in NAIVES}, **members}
    return {name: {**options, **({"bounds": bounds} if bounds else {})} for name, options in named.items()}


def decision_of(config: TrainConfig, series: Iterable[str]) -> Decision:
    """What is decided by forecasts of these series."""
    return config.reserve.decision(reserve_capacity(config.cluster, series))


def engine_share(engine: EngineConfig, targets: int) -> EngineConfig:
    """What each of ``targets`` processes may use: its share of the local workers, or all of the Ray cluster."""
    return replace(engine, workers=max(1, engine.workers // targets)) if engine.kind == "local" else engine


def backtest_target(target: str, features: Path, out: Path, config: TrainConfig, plan: OriginPlan | None, events: Any) -> None:
    """Backtest one target and fit candidate and naive on all of it; leaves everything in ``out`` and tells ``events`` how far it is."""
    series = pd.read_parquet(series_path(features, target))
    backtest, freq = config.backtest, config.target.freq
    options = members_with(config.forecasters, bounds_of(features, target))
    with engine_share(config.engine, len(config.target.names)).start(quiet_libraries) as workers:
        result = run_backtest(
            series, freq, options, backtest, lambda name, done, total: events.put((target, name, done, total)), engine=workers, plan=plan
        )
    decision = decision_of(config, series["unique_id"].unique())
    champion = choose_champion(result, decision=decision)
    out.mkdir(parents=True)
    for folder, name in (("candidate", champion.candidate), ("reference", champion.reference)):
        if name:
            events.put((target, f"final fit of {name}", 0, 0))
            common = {"freq": freq, "horizon": backtest.horizon, "season_length": backtest.season_length, "seed": backtest.seed}
            make_forecaster(name, **{**common, **options[name]}).fit(series).save(out / folder)
    if champion.candidate:
        events.put((target, f"probes of {champion.candidate}", 0, 0))
        write_json(out / PROBE_FILE, probe_candidate(series, freq, champion.candidate, options[champion.candidate], backtest))
    scored = {**result.reference_scores, **result.scores}
    pd.concat([score.forecasts for score in scored.values()], ignore_index=True).to_parquet(out / "forecasts.parquet")
    write_json(out / "backtest.json", result.to_json())
    fallbacks = {name: score.fallbacks for name, score in scored.items()}
    write_json(out / "diagnosis.json", diagnose(series, freq, season_length=result.season_length, fallbacks=fallbacks).to_json())
    write_json(out / "champion.json", asdict(champion))
    reference = result.reference_scores[result.reference]
    ratios = {name: asdict(decision_ratio(score, reference, decision)) for name, score in scored.items() if score.error is None}
    write_json(out / "decision.json", {**asdict(decision), "fractile": decision.fractile, "reference": result.reference, "ratios": ratios})


def end_with_parent() -> None:
    """On Linux, end this process when the one that started it is killed (``prctl(2)``, PR_SET_PDEATHSIG): nothing else would end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _quiet_worker() -> None:
    end_with_parent()
    quiet_libraries()
    torch.set_num_threads(1)


class _Progress:
    """A bar over all targets, which stands in for a queue of events where there is one process."""

    def __init__(self, bar: tqdm, origins: int) -> None:
        self.bar, self.origins = bar, origins
        self.shares: dict[tuple[str, str], float] = {}

    def put(self, event: tuple[str, str, int, int]) -> None:
        target, name, done, pieces = event
        self.bar.set_postfix_str(f"{target}: {name}")
        if pieces:
            self.shares[target, name] = self.origins * done / pieces
        self.bar.update(int(sum(self.shares.values())) - self.bar.n)


def _backtest_targets(features: Path, out: Path, config: TrainConfig, plan: OriginPlan | None, progress: _Progress) -> None:
    """Each target in a process of its own; a single one here. The first failure is raised."""
    targets = config.target.names
    if len(targets) == 1:
        with one_thread():
            backtest_target(targets[0], features, out / targets[0], config, plan, progress)
        return
    spawn = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=spawn)
    manager.start(initializer=end_with_parent)
    with manager, ProcessPoolExecutor(min(config.engine.workers, len(targets)), mp_context=spawn, initializer=_quiet_worker) as pool:
        events = manager.Queue()
        futures = [pool.submit(backtest_target, target, features, out / target, config, plan, events) for target in targets]
        while not all(future.done() for future in futures) or not events.empty():
            with contextlib.suppress(Empty):
                progress.put(events.get(timeout=0.2))
        for future in futures:
            future.result()


def run_forecasters(context: StageContext, out: Path) -> None:
    """Write per target ``backtest, diagnosis, champion, decision`` (JSON), ``forecasts.parquet`` and fitted ``candidate/, reference/``.

    For power also ``levels/``: the champion's forecasts blended with what the load forecast says, and coherent from node to site.
    """
    config, features = context.config, context.folder("features")
    members = len({*NAIVES, *config.forecasters})
    origins = config.backtest.origins + config.backtest.calibration_origins
    series = {target: pd.read_parquet(series_path(features, target)) for target in config.target.names}
    plan = shared_plan(series, config.target.freq, config.backtest)
    with tqdm(total=members * origins * len(series), desc="forecasters", unit="origin", dynamic_ncols=True) as bar:
        _backtest_targets(features, out, config, plan, _Progress(bar, origins))
    if "power" in config.target.names:
        reconcile_power(out, features, bounds_of(features, "power"), config.power, config.backtest, config.target.freq, plan)
    for target in config.target.names:
        with context.run.child(f"forecast {target}", tags={"target": target}) as run:
            log_target(run, target, out / target, series_path(features, target))
            if target == "power":
                log_power_levels(run, out / target / FOLDER, series[target])

"""What forecasts are worth when they set the warm reserve: decision pinball against the naive, and kWh, USD and missed objectives played.

python -m benchmarks.reserve [--run outputs/train] [--traces DIR] [--names sample philly helios] [--wake-s 600] [--origins 60] [--out FILE]

``sample``: forecasts and jobs of a finished ``python -m pipelines.train`` (its test windows). ``philly``: the jobs of four virtual
clusters as one pool of 96 GPUs, its demand forecast by the members of ``--members``, on CAISO prices; the demand is that of an
uncontended cluster, since the trace has no start times. ``helios``: demand of eight virtual clusters, no jobs, so the pinball alone. Each
is played with the cluster's wake latency and with ``--wake-s``: a reserve is worth most where a wake is longer than users accept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.forecast_data import traces_root
from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from models.backtest import BacktestResult, run_backtest
from models.selection import Decision, choose_champion, decision_ratio
from pipelines.cli import compose_config
from pipelines.config import ReserveConfig, TrainConfig, train_config
from pipelines.reserve import compare_reserves, reserve_capacity, reserve_table, summarise_reserves, with_wake_latency
from pipelines.stages.forecasters import members_with
from pipelines.stages.real_traces import HELIOS, public_grid, public_jobs
from pipelines.workspace import read_json, write_json
from telemetry.errors import InputError
from telemetry.readers.public_traces import read_helios_demand
from telemetry.series import SeriesConfig, gpu_demand

NAMES = ("sample", "philly", "helios")
MEMBERS = ("persistence", "seasonal_naive", "empirical_persistence", "lightgbm")
POOL = "vcs"
PHILLY = ClusterSpec("philly", (SiteSpec("west"),), (PoolSpec(POOL, "west", "V100", 12, 8, node_idle_w=280.0),))


@dataclass(frozen=True)
class Played:
    """Everything that a comparison of reserves needs; ``ratios`` are decision pinball against ``reference``."""

    cluster: ClusterSpec
    jobs: pd.DataFrame
    grid: pd.DataFrame
    forecasts: pd.DataFrame
    reference: str
    ratios: dict[str, dict[str, float]]


def sample(run: Path, config: TrainConfig) -> Played:
    """The workload target of a finished run."""
    folder = run / "forecasters" / "workload"
    if not (folder / "decision.json").exists():
        raise InputError("no finished run", where=str(run), remedy="python -m pipelines.train, or --run FOLDER")
    forecasts = pd.read_parquet(folder / "forecasts.parquet")
    decided = read_json(folder / "decision.json")
    tables = (pd.read_parquet(run / "features" / f"{name}.parquet") for name in ("jobs", "grid"))
    return Played(config.cluster, *tables, forecasts[forecasts["part"] == "test"], decided["reference"], decided["ratios"])


def ratios_of(result: BacktestResult, decision: Decision) -> dict[str, dict[str, float]]:
    """Decision pinball of every forecaster that could be scored, against the better naive."""
    scores = {**result.reference_scores, **result.scores}
    reference = scores[result.reference]
    return {name: asdict(decision_ratio(score, reference, decision)) for name, score in scores.items() if score.error is None}


def backtested(series: pd.DataFrame, members: Iterable[str], config: TrainConfig, origins: int) -> BacktestResult:
    """The members' backtest with their options of the main job."""
    options = members_with({name: config.forecasters[name] for name in members}, {})
    return run_backtest(series, config.target.freq, options, replace(config.backtest, origins=origins))


def philly(traces: Path, members: Iterable[str], config: TrainConfig, origins: int) -> Played:
    """Four virtual clusters of Philly as one pool."""
    jobs, _ = public_jobs(traces)
    jobs = jobs.assign(pool=POOL, end_time=jobs["submit_time"] + pd.to_timedelta(jobs["duration_s"], unit="s"))
    series = gpu_demand(jobs, SeriesConfig(config.target.freq)).frame
    result = backtested(series, members, config, origins)
    decision = config.reserve.decision(reserve_capacity(PHILLY, series["unique_id"].unique()))
    print(choose_champion(result, decision=decision).reason)
    scores = {**result.reference_scores, **result.scores}
    forecasts = pd.concat([score.forecasts for score in scores.values()], ignore_index=True)
    zones = {"west": compose_config("train", ["experiment=real_traces"]).grid.zones["west"]}
    return Played(
        PHILLY, jobs, public_grid(traces, zones), forecasts[forecasts["part"] == "test"], result.reference, ratios_of(result, decision)
    )


def helios(traces: Path, members: Iterable[str], config: TrainConfig, origins: int) -> dict[str, dict[str, float]]:
    """Pinball ratios on the demand of eight virtual clusters, each bounded by the GPUs that it has."""
    series, _ = read_helios_demand(traces / HELIOS, freq=config.target.freq)
    raw = pd.read_parquet(traces / HELIOS, columns=["vc", "running_gpu_num", "idle_gpu_num"])
    has = (raw["running_gpu_num"] + raw["idle_gpu_num"]).groupby(raw["vc"]).max()
    capacity = {uid: float(has[uid.rsplit("/", 1)[-1]]) for uid in series["unique_id"].unique()}
    result = backtested(series, members, config, origins)
    decision = config.reserve.decision(capacity)
    print(choose_champion(result, decision=decision).reason)
    return ratios_of(result, decision)


def report(name: str, played: Played, reserve: ReserveConfig, config: TrainConfig, wakes: Iterable[int | None]) -> dict[str, Any]:
    """Print a table for each wake latency; the same as plain values."""
    results: dict[str, Any] = {}
    for wake_s in wakes:
        frame = compare_reserves(
            with_wake_latency(played.cluster, wake_s),
            played.jobs,
            played.grid,
            played.forecasts,
            freq=config.target.freq,
            horizon=config.target.horizon,
            fractile=reserve.fractile,
            reward=config.reward,
            sleep_after_s=reserve.sleep_after_s,
        )
        summary = summarise_reserves(frame, played.reference)
        wake = "the cluster's wake latency" if wake_s is None else f"wakes of {wake_s} s"
        print(f"\n{name}, {wake}, {frame['window'].nunique()} windows, naive: {played.reference}, quantile {reserve.fractile:.3f}")
        print(reserve_table(summary, played.ratios).to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep=""))
        results[wake] = summary
    return {"reference": played.reference, "ratios": played.ratios, "played": results}


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("outputs/train"))
    parser.add_argument("--traces", type=Path, default=traces_root())
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--members", nargs="+", default=list(MEMBERS))
    parser.add_argument("--wake-s", type=int, default=600)
    parser.add_argument("--origins", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/reserve.json"))
    args = parser.parse_args()
    config = train_config(compose_config("train"))
    wakes = (None, args.wake_s)
    results: dict[str, Any] = {}
    for name in args.names:
        if name == "helios":
            ratios = helios(args.traces, args.members, config, args.origins)
            print(f"\nhelios: decision pinball against the better naive\n{pd.DataFrame(ratios).T.round(3).to_string()}")
            results[name] = {"ratios": ratios}
            continue
        played = sample(args.run, config) if name == "sample" else philly(args.traces, args.members, config, args.origins)
        results[name] = report(name, played, config.reserve, config, wakes)
    write_json(args.out, results)
    print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()

"""What demand forecasts cost when the simulator keeps its warm reserve by them: made by stage ``evaluate``, evidence in ``promote``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pipelines.config import TrainConfig
from pipelines.reserve import BOUNDS, compare_reserves, reserve_table, summarise_reserves, with_wake_latency
from pipelines.workspace import read_json, write_json
from registry.policy_plots import reserve_trade
from registry.tracking import Run

TARGET = "workload"
ROWS, SUMMARY = "reserve.parquet", "reserve.json"


def run_reserves(config: TrainConfig, features: Path, forecasters: Path, out: Path) -> None:
    """Write ``reserve.parquet`` (forecaster x window) and ``reserve.json``; without anything to simulate the latter says why."""
    summary: dict[str, Any] = {"simulated": False, "why": f"{TARGET} is not forecast"}
    if TARGET in config.target.names:
        reference = read_json(forecasters / TARGET / "champion.json")["reference"]
        forecasts = pd.read_parquet(forecasters / TARGET / "forecasts.parquet")
        frame = compare_reserves(
            with_wake_latency(config.cluster, config.reserve.wake_latency_s),
            pd.read_parquet(features / "jobs.parquet"),
            pd.read_parquet(features / "grid.parquet"),
            forecasts[forecasts["part"] == "test"],
            freq=config.target.freq,
            horizon=config.target.horizon,
            fractile=config.reserve.fractile,
            reward=config.reward,
            sleep_after_s=config.reserve.sleep_after_s,
        )
        summary["why"] = "no pool of the cluster has both a demand forecast and jobs that ran in it"
        if len(frame):
            frame.to_parquet(out / ROWS)
            windows = int(frame["window"].nunique())
            summary = {"simulated": True, "reference": reference, "windows": windows, **summarise_reserves(frame, reference)}
    write_json(out / SUMMARY, summary)


def printed(evaluated: Path, forecasters: Path) -> pd.DataFrame | None:
    """The table of the command's last lines; None when nothing was simulated."""
    summary = read_json(evaluated / SUMMARY)
    if not summary["simulated"]:
        return None
    return reserve_table(summary, read_json(forecasters / TARGET / "decision.json")["ratios"])


def reserve_figure(evaluated: Path, candidate: str) -> Figure | None:
    """kWh against missed objectives of each forecaster's reserve; None when nothing was simulated."""
    summary = read_json(evaluated / SUMMARY)
    if not summary["simulated"]:
        return None
    return _trade(summary, candidate)


def _trade(summary: Mapping[str, Any], candidate: str) -> Figure:
    means = pd.DataFrame.from_dict(summary["means"], orient="index").rename_axis("policy").reset_index()
    return reserve_trade(means, highlight=candidate, bounds=BOUNDS)


def log_reserves(run: Run, evaluated: Path, forecasters: Path) -> None:
    """Figures, table and metrics by forecaster on a run of their own."""
    summary = read_json(evaluated / SUMMARY)
    run.log_text((evaluated / SUMMARY).read_text(), SUMMARY)
    if not summary["simulated"]:
        return
    for name, means in summary["means"].items():
        run.log_metrics({f"{name}/{key}": value for key, value in means.items()})
    run.log_table(pd.read_parquet(evaluated / ROWS), "reserve_windows")
    candidate = read_json(forecasters / TARGET / "champion.json")["candidate"]
    run.log_figure(_trade(summary, candidate), "reserve")


def decision_evidence(evaluated: Path, forecasters: Path, target: str, *, required: bool) -> tuple[bool, dict[str, Any]]:
    """Whether the gate ``decision`` asks for a simulation, and its evidence on a target's candidate.

    Args:
        required: whether a demand forecaster needs one; one that could not be simulated is then refused.
    """
    choice = read_json(forecasters / target / "champion.json")
    evidence: dict[str, Any] = {
        "naive": choice["reference"],
        "fractile": choice["fractile"],
        "ratio": choice["decision_ratio"],
        "low": choice["decision_ratio_low"],
        "high": choice["decision_ratio_high"],
        "windows": read_json(forecasters / target / "backtest.json")["n_origins"],
    }
    summary = read_json(evaluated / SUMMARY)
    if target != TARGET:
        return False, {**evidence, "not_simulated": f"no reserve is set by {target} forecasts"}
    if not summary["simulated"]:
        return required, {**evidence, "not_simulated": summary["why"]}
    means = summary["means"]
    change = summary["paired"].get(choice["candidate"], {}).get("energy_kwh", {})
    named = {"kwh": "relative", "kwh_low": "relative_low", "kwh_high": "relative_high", "simulated_windows": "windows"}
    evidence |= {key: change[name] for key, name in named.items() if name in change}
    rates = {"sla_violation_rate": choice["candidate"], "naive_sla_violation_rate": choice["reference"]}
    return True, evidence | {key: means[name]["sla_violation_rate"] for key, name in rates.items() if name in means}

"""What a reviewer sees of a forecasting target: figures, tables and one nested run per forecaster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from models.base import QUANTILE_COLUMNS, QUANTILES
from pipelines.workspace import read_json
from registry.plots import calibration, error_by_horizon, forecast_fan, skill_bars
from registry.tracking import Run

FAN_HISTORY_STEPS = 144
UNITS = {"workload": "GPUs or requests/s", "power": "W"}


def _scored(folder: Path) -> dict[str, Any]:
    entries = read_json(folder / "backtest.json")["forecasters"]
    return {name: entry for name, entry in entries.items() if entry["status"] == "ok"}


def observed_quantiles(forecasts: pd.DataFrame) -> pd.DataFrame:
    """Share of actuals at or below each quantile: ``forecaster, nominal, observed``."""
    test = forecasts[forecasts["part"] == "test"]
    rows = []
    for name, group in test.groupby("model", sort=False):
        below = (group["y"].to_numpy()[:, None] <= group[list(QUANTILE_COLUMNS)].to_numpy()).mean(axis=0)
        rows += [{"forecaster": name, "nominal": q, "observed": float(share)} for q, share in zip(QUANTILES, below, strict=True)]
    return pd.DataFrame(rows)


def _fan(folder: Path, series: pd.DataFrame, target: str) -> Figure:
    choice = read_json(folder / "champion.json")
    forecasts = pd.read_parquet(folder / "forecasts.parquet")
    shown = forecasts[(forecasts["model"] == (choice["candidate"] or choice["reference"])) & (forecasts["part"] == "test")]
    middle = np.sort(shown["issued_at"].unique())[shown["issued_at"].nunique() // 2]
    fan = shown[shown["issued_at"] == middle]
    ids = list(fan["unique_id"].unique())
    ids = ids[:: max(1, len(ids) // 6)][:6]
    known = series[series["unique_id"].isin(ids) & (series["ds"] <= middle)]
    return forecast_fan(
        known.groupby("unique_id").tail(FAN_HISTORY_STEPS),
        fan[fan["unique_id"].isin(ids)],
        fan.loc[fan["unique_id"].isin(ids), ["unique_id", "ds", "y"]],
        unit=UNITS[target],
    )


def target_figures(folder: Path, series: pd.DataFrame) -> dict[str, Figure]:
    """Figures of one target by name: fan, error by horizon, calibration, skill."""
    scored, forecasts = _scored(folder), pd.read_parquet(folder / "forecasts.parquet")
    errors = [
        {"forecaster": name, "step": int(row["step"]), "error": row["wql"]}
        for name, entry in scored.items()
        for row in entry["by_horizon"]
        if row.get("wql") is not None
    ]
    skills = [
        {
            "forecaster": name,
            "skill": 1 - entry["skill"]["wql_ratio"],
            "low": 1 - entry["skill"]["wql_ratio_high"],
            "high": 1 - entry["skill"]["wql_ratio_low"],
        }
        for name, entry in scored.items()
        if entry["skill"].get("wql_ratio") is not None
    ]
    return {
        "forecast_fan": _fan(folder, series, folder.name),
        "error_by_horizon": error_by_horizon(pd.DataFrame(errors)),
        "calibration": calibration(observed_quantiles(forecasts)),
        "skill": skill_bars(pd.DataFrame(skills), baseline=read_json(folder / "champion.json")["reference"]),
    }


def log_target(run: Run, target: str, folder: Path, series_file: Path) -> None:
    """Log one target: figures and tables on its run, metrics by horizon step on a nested run per forecaster."""
    run.log_text((folder / "backtest.json").read_text(), "backtest.json")
    choice = read_json(folder / "champion.json")
    run.set_tags({"candidate": choice["candidate"], "reason": choice["reason"]})
    for name, figure in target_figures(folder, pd.read_parquet(series_file)).items():
        run.log_figure(figure, name)
    decided = read_json(folder / "decision.json")
    for name, entry in _scored(folder).items():
        numbers = {key: value for key, value in entry["overall"].items() if value is not None}
        numbers |= {f"decision_{key}": value for key, value in decided["ratios"].get(name, {}).items() if value is not None}
        with run.child(name, tags={"forecaster": name, "target": target}) as child:
            child.log_metrics({**numbers, **{key: value for key, value in entry["skill"].items() if value is not None}})
            steps = {
                int(row["step"]): {f"horizon/{key}": value for key, value in row.items() if key != "step" and value is not None}
                for row in entry["by_horizon"]
            }
            child.log_steps(steps)

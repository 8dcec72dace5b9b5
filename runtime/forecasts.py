"""What the promoted forecasters expect: shown beside a decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from registry.loading import NoVersionError, load_forecaster

FORECASTERS: tuple[tuple[str, str, str], ...] = (
    ("workload-forecaster", "gpu_demand/", "GPUs"),
    ("power-forecaster", "power/site/", "W"),
)


def expectations(tracking_uri: str, history: pd.DataFrame, now: pd.Timestamp) -> tuple[list[dict[str, Any]], list[str]]:
    """Median and 80 % band at the end of the horizon, per pool and site, and notices.

    Args:
        history: rows ``unique_id, ds, y`` newer than what the forecasters were fitted on; may be empty.

    Raises:
        VerificationError: a promoted forecaster fails its checks. One that was never promoted is only noticed.
    """
    rows: list[dict[str, Any]] = []
    notices: list[str] = []
    for name, prefix, unit in FORECASTERS:
        try:
            forecaster, manifest = load_forecaster(name, tracking_uri=tracking_uri)
        except NoVersionError:
            notices.append(f"{name}: nothing was promoted yet")
            continue
        forecast = forecaster.predict()
        known = set(forecast["unique_id"])
        if fresh := sorted(known & set(history["unique_id"])):
            forecast = forecaster.update(_newer(history[history["unique_id"].isin(fresh)], forecast)).predict()
        rows += _last_steps(forecast[forecast["unique_id"].str.startswith(prefix)], name, manifest.name, unit)
        age = now.tz_localize(None) - forecast["issued_at"].max()
        if age > pd.Timedelta(hours=1):
            notices.append(f"{name}: its newest observation is {_hours(age)} old; give newer ones as 'history' in the state file")
    return rows, notices


def _newer(history: pd.DataFrame, forecast: pd.DataFrame) -> pd.DataFrame:
    issued = forecast.groupby("unique_id")["issued_at"].max()
    return history[history["ds"] > history["unique_id"].map(issued)]


def _last_steps(forecast: pd.DataFrame, registered: str, model: str, unit: str) -> list[dict[str, Any]]:
    last = forecast.sort_values("ds").groupby("unique_id", sort=True).tail(1).sort_values("unique_id")
    return [
        {
            "forecaster": registered,
            "model": model,
            "unique_id": row.unique_id,
            "issued_at": row.issued_at.isoformat(),
            "ds": row.ds.isoformat(),
            "q10": float(row.q10),
            "q50": float(row.q50),
            "q90": float(row.q90),
            "unit": unit,
        }
        for row in last.itertuples()
    ]


def _hours(age: pd.Timedelta) -> str:
    hours = age / pd.Timedelta(hours=1)
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"


def expectation_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line a series."""
    return [
        f"{row['unique_id']} at {row['ds']}: {row['q50']:.1f} {row['unit']} (80 %: {row['q10']:.1f} to {row['q90']:.1f}; {row['model']})"
        for row in rows
    ]

"""How the serving forecaster does on the windows of this backtest, so that a challenger is compared on the very same ones.

A champion whose history ends before the first test origin is loaded and walked through the windows as it serves: updated, never refitted. A
champion that was fitted on the windows themselves would know the answers; in its place stands its recipe, fitted by this backtest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS, Forecaster
from models.metrics import quantile_loss
from pipelines.stages.context import StageContext
from pipelines.stages.evaluate import objective_by_window
from pipelines.stages.forecasters import series_path
from pipelines.workspace import fingerprint, read_json
from registry.gates import diebold_mariano, skill_interval
from registry.loading import VerificationError, load_forecaster
from registry.promotion import champion_version


def loss_by_origin(forecasts: pd.DataFrame) -> pd.Series:
    """Pinball loss of the test rows, summed by issue time."""
    rows = forecasts[forecasts["part"] == "test"]
    loss = quantile_loss(rows["y"].to_numpy(), rows[list(QUANTILE_COLUMNS)].to_numpy())
    return pd.Series(loss, index=pd.DatetimeIndex(rows["issued_at"])).groupby(level=0).sum()


def replay(model: Forecaster, series: pd.DataFrame, windows: pd.DataFrame, known_until: pd.Timestamp) -> pd.Series:
    """Loss by issue time of a fitted forecaster that is only updated between origins; NaN where it has no series of a window."""
    rows = windows[windows["part"] == "test"]
    losses = {}
    for issued_at, window in rows.groupby("issued_at", sort=True):
        fresh = series[(series["ds"] > known_until) & (series["ds"] <= issued_at)]
        model.update(fresh)
        known_until = issued_at
        forecast = model.predict()
        joined = window[["unique_id", "ds", "y"]].merge(forecast, on=["unique_id", "ds"], how="left")
        losses[issued_at] = quantile_loss(joined["y"].to_numpy(), joined[list(QUANTILE_COLUMNS)].to_numpy()).sum()
    return pd.Series(losses)


def champion_evidence(context: StageContext, target: str, candidate: str) -> dict[str, Any]:
    """Evidence for the gate ``beats_champion``; incomplete evidence makes the gate refuse."""
    name = f"{target}-forecaster"
    version = champion_version(context.tracking.client, name)
    if version is None:
        return {"version": None}
    try:
        model, manifest = load_forecaster(name, tracking_uri=context.tracking.tracking_uri)
    except VerificationError as error:
        return {"version": version, "unusable": str(error)}
    forecasts = pd.read_parquet(context.folder("forecasters") / target / "forecasts.parquet")
    ours = forecasts[forecasts["model"] == candidate]
    losses = loss_by_origin(ours)
    known_until = pd.Timestamp(manifest.data["end"]).tz_localize(None)
    if known_until < losses.index.min():
        series = pd.read_parquet(series_path(context.folder("features"), target))
        theirs, how = replay(model, series, ours, known_until), "the serving version, updated through the windows"
    else:
        recipe = forecasts[forecasts["model"] == manifest.name]
        if recipe.empty:
            return {"version": version, "unusable": f"its recipe '{manifest.name}' was not backtested"}
        theirs, how = loss_by_origin(recipe), "its recipe, fitted before the windows: the serving version has seen them"
    theirs = theirs.reindex(losses.index)
    if not np.isfinite(theirs).all():
        return {"version": version, "unusable": "it has no forecast for some series of the windows"}
    interval = skill_interval(
        losses.to_numpy(), theirs.to_numpy(), seed=context.config.seed, samples=context.config.registry.bootstrap_samples
    )
    scores = read_json(context.folder("forecasters") / target / "backtest.json")
    overlap = -(-scores["horizon"] // scores["origin_step"])
    try:
        test = diebold_mariano(losses.to_numpy(), theirs.to_numpy(), overlap=overlap)
    except ValueError as error:
        return {"version": version, "unusable": f"no Diebold-Mariano test: {error}"}
    digest = fingerprint([str(moment) for moment in losses.index])
    return {
        "version": version,
        "gain": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "dm_statistic": test.statistic,
        "dm_p_value": test.p_value,
        "overlap": overlap,
        "windows_sha256": digest,
        "champion_windows_sha256": digest,
        "compared": how,
    }


def champion_policy_evidence(context: StageContext, summary: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """Evidence for the gate ``beats_champion`` on a policy, from the held-out windows of stage ``evaluate``."""
    version = summary["champion"]["version"]
    if version is None:
        return {"version": None}
    if policy not in summary["champion"]:
        return {"version": version, "unusable": "it could not be loaded and was not evaluated"}
    frame = pd.read_parquet(context.folder("evaluate") / "rows.parquet")
    starts = pd.to_datetime(frame.drop_duplicates("window").sort_values("window")["window_start"], utc=True)
    stride_h = starts.diff().dt.total_seconds().median() / 3600
    overlap = max(1, int(np.ceil(context.config.trace.window_hours / stride_h))) if stride_h > 0 else 1
    try:
        test = diebold_mariano(objective_by_window(frame, policy), objective_by_window(frame, "champion"), overlap=overlap)
    except ValueError as error:
        return {"version": version, "unusable": f"no Diebold-Mariano test: {error}"}
    told = {"dm_statistic": test.statistic, "dm_p_value": test.p_value, "overlap": overlap}
    return {"version": version, **summary["champion"][policy], **told}


def class_evidence(context: StageContext, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence for the gate ``class_sla``: jobs of each class over all windows and seeds, and their miss rates."""
    best = summary["best_judge"]["judge"]
    runs = summary["best_judge"]["windows"] * context.config.trace.seeds
    ours, theirs = (summary["parts"][name]["by_class"] for name in ("agent", best))
    classes = {
        kind: {"jobs": told["jobs"] * runs, "rate": told["sla_violation_rate"], "judge_rate": theirs[kind]["sla_violation_rate"]}
        for kind, told in ours.items()
    }
    return {"judge": best, "classes": classes}

"""Windows that the serving champion has never seen: the newest part of what came after its training.

The rest of what came after it is there for the challenger to learn from, so both are judged on windows that neither was fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from models.backtest_plan import plan_origins
from pipelines.config import TrainConfig

FRACTIONS = 50  # shares of the history that are tried for the windows


class TooLittleFreshError(RuntimeError):
    """Not enough has come since the champion's training to compare on."""


@dataclass(frozen=True)
class Fresh:
    """How much of the new data judges, and on how many windows at least (``conf/retrain.yaml``)."""

    test_share: float = 0.5
    min_windows: int = 10


@dataclass(frozen=True)
class _Span:
    """Beginnings and ends of series, as ``models.backtest_plan`` asks for them."""

    step_ns: int
    starts_ns: np.ndarray
    ends_ns: np.ndarray


def fresh_backtest(config: TrainConfig, series: pd.DataFrame, known_until: pd.Timestamp, fresh: Fresh) -> TrainConfig:
    """``config`` with all origins of the backtest after ``known_until``.

    Raises:
        TooLittleFreshError: there is no room for ``min_windows`` of them.
    """
    step = pd.Timedelta(config.target.freq)
    ends = series.groupby("unique_id")["ds"].agg(["min", "max"])
    span = _Span(
        step.value,
        ends["min"].to_numpy().astype("datetime64[ns]").astype(np.int64),
        ends["max"].to_numpy().astype("datetime64[ns]").astype(np.int64),
    )
    newest, first = ends["max"].max(), ends["min"].min()
    since = max(0, int((newest - known_until) / step))
    budget, length = int(since * fresh.test_share), int((newest - first) / step) + 1
    backtest, season = config.backtest, config.backtest.season_length or config.target.season_length
    horizon = backtest.horizon
    for fraction in np.linspace(min(backtest.test_fraction, max(budget, 1) / length), 1 / length, FRACTIONS):
        origins = min(backtest.origins, max(1, int(fraction * length) - horizon + 1))
        tried = replace(backtest, test_fraction=float(fraction), origins=origins)
        plan = plan_origins(span, tried, season)
        if plan.test and max(plan.all) <= budget:
            if len(plan.test) < min(fresh.min_windows, backtest.origins):
                break
            changed = {"test_fraction": tried.test_fraction, "origins": tried.origins}
            return replace(config, backtest=tried, raw={**config.raw, "backtest": {**config.raw["backtest"], **changed}})
    raise TooLittleFreshError(
        f"{since:,} steps of {config.target.freq} since the champion's training ended at {known_until}: no room for "
        f"{min(fresh.min_windows, backtest.origins)} windows of {horizon} steps in {fresh.test_share:.0%} of them"
    )


def fresh_split(config: TrainConfig, jobs: pd.DataFrame, known_until: pd.Timestamp, fresh: Fresh) -> TrainConfig:
    """``config`` with the test part of the jobs' time line after ``known_until``.

    Raises:
        TooLittleFreshError: the part is shorter than a window and a half.
    """
    times = pd.to_datetime(jobs["submit_time"], utc=True)
    first, last = times.min(), times.max()
    since_h = (last - known_until).total_seconds() / 3600
    share = min(config.trace.split[2], fresh.test_share * since_h * 3600 / (last - first).total_seconds())
    if share * (last - first).total_seconds() / 3600 < 1.5 * config.trace.window_hours:
        raise TooLittleFreshError(
            f"{since_h:,.0f} h of jobs since the champion's training ended at {known_until}: {fresh.test_share:.0%} of them is less than "
            f"one and a half windows of {config.trace.window_hours:g} h"
        )
    train, validation, _ = config.trace.split
    rest = (1 - share) / (train + validation)
    split = (train * rest, validation * rest, share)
    return replace(
        config, trace=replace(config.trace, split=split), raw={**config.raw, "trace": {**config.raw["trace"], "split": list(split)}}
    )

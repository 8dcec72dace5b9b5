"""A forecaster judged on validation windows alone: a backtest's calibration origins, on a history that ends before its test windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig, OriginPlan
from telemetry.errors import InputError

UNIT = "persistence"  # whose WQL is the unit, so that series families can be averaged


@dataclass(frozen=True)
class Validation:
    """One family of series as validation sees it.

    Attributes:
        series: ``unique_id, ds, y`` up to the first test origin; what came later is not in it.
        plan: the calibration origins, counted back from the new end.
    """

    series: pd.DataFrame
    freq: str
    config: BacktestConfig
    plan: OriginPlan

    @property
    def origins(self) -> int:
        """Validation origins."""
        return len(self.plan.all)


def validation_of(series: pd.DataFrame, freq: str, config: BacktestConfig, plan: OriginPlan) -> Validation:
    """Cut the test windows off.

    Args:
        plan: of the backtest that judges later.

    Raises:
        InputError: the history has no calibration origins, or nothing is left before the test windows.
    """
    if not plan.calibration:
        raise InputError(
            "the history leaves no calibration origins", where="backtest.calibration_origins", remedy="a longer history, or fewer origins"
        )
    step = pd.Timedelta(pd.tseries.frequencies.to_offset(freq))
    ends = series.groupby("unique_id")["ds"].transform("max") if plan.align == "end" else series["ds"].max()
    kept = series[series["ds"] <= ends - plan.test[0] * step].reset_index(drop=True)
    if kept.empty:
        raise InputError("nothing is left before the test windows", where="series", allowed="a longer history")
    missing = 0 if plan.align == "end" else round((series["ds"].max() - plan.test[0] * step - kept["ds"].max()) / step)
    offsets = tuple(k - plan.test[0] - missing for k in plan.calibration)
    if offsets[-1] < 1:
        raise InputError(f"{missing} steps before the test windows were not observed", where="series", allowed="a history without that gap")
    # One chunk and one fit, so that the scores after each origin are known while the forecaster walks.
    config = replace(config, chunk_series=max(1, series["unique_id"].nunique()), refit_every=0)
    return Validation(kept, freq, config, OriginPlan(plan.step, (), offsets, plan.align))


def validate(
    name: str, options: Mapping[str, Any], families: Mapping[str, Validation], report: Callable[[int, float], None] | None = None
) -> float:
    """Geometric mean over families of the WQL on validation windows, each as a share of persistence's.

    Args:
        name: forecaster.
        options: its options by family (bounds differ).
        report: called after each origin with the origins walked over all families, from 1, and the mean so far.

    Raises:
        InputError: it failed on a family, or persistence has no loss there.
        StoppedError: ``report`` raised it.
    """
    done, past = 0, 0.0
    for place, (family, one) in enumerate(families.items()):
        watch = _Watch(name, report, done, past, place) if report else None
        result = run_backtest(one.series, one.freq, {name: options[family]}, one.config, forecasts="none", plan=one.plan, watch=watch)
        scored = result.scores[name]
        if scored.error is not None:
            raise InputError(scored.error, where=f"forecaster {name} on {family}")
        share = _share(scored.overall["wql"], result.reference_scores[UNIT].overall["wql"])
        if not math.isfinite(share):
            raise InputError(f"no loss of {UNIT} to compare with on {family}", where="validation windows", allowed="series that change")
        past += math.log(share)
        done += one.origins
    return math.exp(past / len(families))


@dataclass
class _Watch:
    """Turns the WQL of a family's origins into the mean over families so far."""

    name: str
    report: Callable[[int, float], None]
    done: int
    past: float
    place: int
    unit: dict[int, float] = field(default_factory=dict)

    def __call__(self, who: str, origins: int, wql: float) -> None:
        if who == UNIT:
            self.unit[origins] = wql
        share = _share(wql, self.unit.get(origins, math.nan))
        if who == self.name and math.isfinite(share):
            self.report(self.done + origins, math.exp((self.past + math.log(share)) / (self.place + 1)))


def _share(wql: float, unit: float) -> float:
    return wql / unit if unit > 0 and wql > 0 else math.nan

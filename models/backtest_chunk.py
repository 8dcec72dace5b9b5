"""The unit of work of a backtest: one forecaster over a chunk of series, from one fit to the next.

A chunk is forecast, compared with what came and reduced to sums where it runs; only sums, and the forecasts where they are wanted, go back.
Chunks are the same whatever runs them, so results do not depend on the number of workers or machines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS, QUANTILES, Forecaster
from models.calibrated import CalibratedForecaster
from models.catalog import make_forecaster
from models.conformal import AdaptiveIntervals
from models.member import PanelForecaster
from models.metrics import quantile_loss, ratio
from models.score_sums import ScoreSums, sum_scores
from models.series import Panel, concat_frames
from models.series_store import known_before, known_between
from models.young import YoungSeries
from telemetry.errors import InputError


@dataclass
class Seconds:
    """Time spent, wall clock and CPU (threads and finished child processes included)."""

    fit: float = 0.0
    update: float = 0.0
    predict: float = 0.0
    cpu_fit: float = 0.0
    cpu_update: float = 0.0
    cpu_predict: float = 0.0

    @contextmanager
    def spent_on(self, kind: str) -> Iterator[None]:
        """Add the time of the block to ``fit``, ``update`` or ``predict``."""
        wall, cpu = time.perf_counter(), _cpu_s()
        yield
        setattr(self, kind, getattr(self, kind) + time.perf_counter() - wall)
        setattr(self, f"cpu_{kind}", getattr(self, f"cpu_{kind}") + _cpu_s() - cpu)

    def add(self, other: Seconds) -> None:
        """Add the times of another piece of work."""
        for kind in fields(self):
            setattr(self, kind.name, getattr(self, kind.name) + getattr(other, kind.name))


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass(frozen=True)
class ChunkTask:
    """What a worker needs, by value.

    Args:
        member: name of the forecaster.
        options: all of its options.
        panel: the whole history of the chunk's ``n`` series.
        last: ``[n]`` grid position that origins count back from.
        scales: ``[n]`` MASE scales, NaN for none.
        offsets: of the origins that share this fit, oldest first.
        numbers: of these origins among all.
        calibration: calibration origins in all.
        origins: origins in all.
        segment, chunk: place of the task among all.
        keep: whether the forecasts go back as well.
    """

    member: str
    options: dict[str, Any]
    panel: Panel
    last: np.ndarray
    scales: np.ndarray
    offsets: tuple[int, ...]
    numbers: range
    calibration: int
    origins: int
    segment: int
    chunk: int
    keep: bool


@dataclass(frozen=True)
class Fitted:
    """What was learned from all series, without their history.

    A whole forecaster with its interval corrections at each origin of the fit, if it has any; or, for one that is fitted on each series by
    itself, what series did when they were young.
    """

    forecaster: PanelForecaster | None = None
    corrections: tuple[AdaptiveIntervals, ...] = ()
    young: YoungSeries | None = None


@dataclass
class ChunkResult:
    """What came of a task; ``forecasts`` is empty unless they were wanted."""

    sums: ScoreSums
    seconds: Seconds
    fallbacks: dict[str, str]
    forecasts: pd.DataFrame = field(default_factory=pd.DataFrame)


def run_chunk(
    task: ChunkTask, fitted: Fitted | None, tick: Callable[[], None] | None = None, watch: Callable[[int, float], None] | None = None
) -> ChunkResult:
    """Walk the origins of a task.

    Args:
        task: what to do.
        fitted: learned from all series at the task's first origin; without a forecaster, one is fitted on the series of the chunk.
        tick: called after each origin.
        watch: called after each origin with the number of origins walked and the WQL over all of them.

    Raises:
        InputError: a forecast is not one row per series and step.
    """
    forecaster: Forecaster | None = None
    seconds, cuts = Seconds(), task.last
    paths = Paths.empty(task)
    for number, offset in enumerate(task.offsets):
        older, cuts = cuts, task.last - offset + 1  # [n] grid points known at the origin
        if forecaster is None:
            known = known_before(task.panel, cuts)
            if not len(known):
                continue
            with seconds.spent_on("fit"):
                forecaster = _begin(task, known, fitted)
        else:
            with seconds.spent_on("update"):
                _update(forecaster, known_between(task.panel, older, cuts))
        with seconds.spent_on("predict"):
            if fitted and fitted.corrections:
                forecaster.borrow(fitted.corrections[number])
            forecast = forecaster.predict()
        paths.put(number, forecast)
        if tick:
            tick()
        if watch:
            watch(number + 1, paths.wql())
    sums = sum_scores(paths.actual, paths.quantiles, paths.issued, task.scales, task.numbers, task.calibration, task.origins)
    fallbacks = dict(getattr(forecaster, "fallbacks", {}))
    return ChunkResult(sums, seconds, fallbacks, paths.to_frame() if task.keep else pd.DataFrame())


def run_fold(
    task: ChunkTask, fitted: None, tick: Callable[[], None] | None = None, watch: Callable[[int, float], None] | None = None
) -> ChunkResult:
    """Fit on all series, which are the task's, and walk its origins: a fold that needs nothing from the others."""
    spent, known = Seconds(), known_before(task.panel, task.last - task.offsets[0] + 1)
    result = run_chunk(task, Fitted(fit_pooled(task.member, task.options, known, spent)), tick, watch)
    result.seconds.add(spent)
    return result


def fit_pooled(name: str, options: dict[str, Any], known: Panel, spent: Seconds) -> PanelForecaster:
    """A forecaster fitted on all series, without their history; adds the time to ``spent``."""
    with spent.spent_on("fit"):
        fitted = make_forecaster(name, **options)
        assert isinstance(fitted, PanelForecaster)
        fitted.fit_panel(known)
        return fitted.for_history(Panel(known.step_ns))


def _begin(task: ChunkTask, known: Panel, fitted: Fitted | None) -> Forecaster:
    if fitted and fitted.forecaster:
        return fitted.forecaster.for_history(known)
    forecaster = make_forecaster(task.member, **task.options)
    return (
        forecaster.fit_history(known, fitted and fitted.young)
        if isinstance(forecaster, PanelForecaster)
        else forecaster.fit(known.to_frame())
    )


def _update(forecaster: Forecaster, newer: Panel) -> None:
    if isinstance(forecaster, PanelForecaster):
        forecaster.update_panel(newer)
    else:
        forecaster.update(newer.to_frame())


def corrections_at(fitted: CalibratedForecaster, panel: Panel, last: np.ndarray, offsets: tuple[int, ...]) -> tuple[AdaptiveIntervals, ...]:
    """Interval corrections of a fitted forecaster at each origin, from the series of ``panel``; ``last`` as in ``ChunkTask``."""
    found, cuts = [], last - offsets[0] + 1
    forecaster = fitted.for_history(known_before(panel, cuts))
    for offset in offsets:
        older, cuts = cuts, last - offset + 1
        forecaster.update_panel(known_between(panel, older, cuts))
        found.append(forecaster.correction())
    return tuple(found)


@dataclass
class Paths:
    """Forecasts of a chunk beside what came, by origin, series and step."""

    task: ChunkTask
    quantiles: np.ndarray  # [o, n, H, Q]
    actual: np.ndarray  # [o, n, H], NaN where nothing was observed or forecast
    issued: np.ndarray  # [o, n] grid position of the last value known to the forecast

    @classmethod
    def empty(cls, task: ChunkTask) -> Paths:
        shape = (len(task.offsets), len(task.panel), int(task.options["horizon"]))
        return cls(task, np.full((*shape, len(QUANTILES)), np.nan), np.full(shape, np.nan), np.full(shape[:2], -1, dtype=np.int64))

    def put(self, number: int, forecast: pd.DataFrame) -> None:
        """Place the forecast of an origin by series, and the values that came beside it."""
        panel, horizon = self.task.panel, self.actual.shape[2]
        issued_ns = forecast["issued_at"].to_numpy().astype("datetime64[ns]").astype(np.int64)
        steps = (forecast["ds"].to_numpy().astype("datetime64[ns]").astype(np.int64) - issued_ns) // panel.step_ns
        if len(steps) % horizon or not (steps.reshape(-1, horizon) == np.arange(1, horizon + 1)).all():
            raise InputError(
                "a forecast is not one row per series and step, in this order",
                where=self.task.member,
                allowed=f"steps 1 to {horizon} of each series",
            )
        place = {uid: i for i, uid in enumerate(panel.ids)}
        index = np.array([place[uid] for uid in forecast["unique_id"].to_numpy()[::horizon]], dtype=np.int64)
        starts = np.array(panel.starts_ns, dtype=np.int64)
        self.issued[number, index] = (issued_ns[::horizon] - starts[index]) // panel.step_ns
        self.quantiles[number, index] = forecast[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64).reshape(len(index), horizon, -1)
        for i in index.tolist():
            first = int(self.issued[number, i]) + 1
            came = panel.values[i][first : first + horizon]
            self.actual[number, i, : len(came)] = came

    def wql(self) -> float:
        """Weighted quantile loss of what was forecast so far; NaN before any value came."""
        seen = np.isfinite(self.actual)
        actual = self.actual[seen]
        return ratio(float(quantile_loss(actual, self.quantiles[seen]).sum()), float(np.abs(actual).sum()))

    def to_frame(self) -> pd.DataFrame:
        """Scored rows: ``unique_id, issued_at, ds, q10 ... q90, model, y, step, origin, part``, by origin, series and step."""
        task = self.task
        origin, series, step = np.nonzero(np.isfinite(self.actual))
        numbers = np.array(task.numbers)[origin]
        starts = np.array(task.panel.starts_ns, dtype=np.int64)
        issued_ns = starts[series] + self.issued[origin, series] * task.panel.step_ns
        frame = pd.DataFrame(self.quantiles[origin, series, step], columns=list(QUANTILE_COLUMNS))
        frame.insert(0, "unique_id", np.array(task.panel.ids, dtype=object)[series])
        frame.insert(1, "issued_at", issued_ns.astype("datetime64[ns]"))
        frame.insert(2, "ds", (issued_ns + (step + 1) * task.panel.step_ns).astype("datetime64[ns]"))
        frame["model"] = task.member
        frame["y"] = self.actual[origin, series, step]
        frame["step"] = step + 1
        frame["origin"] = numbers
        frame["part"] = np.where(numbers < task.calibration, "calibration", "test").astype(object)
        return frame


def in_order(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Forecast frames of chunks as one, by origin."""
    frame = concat_frames(frames)
    return frame.sort_values("origin", kind="stable", ignore_index=True) if len(frames) > 1 and len(frame) else frame

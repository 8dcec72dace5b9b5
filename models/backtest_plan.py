"""Where a backtest cuts the history: train | calibration origins | test origins, in this order and disjoint.

The targets of the last calibration origin end where the first test origin begins. Origins are a fixed step apart that shares no factor
with the season: a step that divides the day would always look at the same hours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from telemetry.errors import InputError

ALIGNMENTS = ("auto", "time", "end")


@dataclass(frozen=True)
class BacktestConfig:
    """How to cut and walk the history.

    Args:
        horizon: steps of a forecast.
        origins: test origins wanted; fewer when the history is short, which the result says.
        calibration_origins: origins between train and test, for choosing among forecasters; left out of a short history.
        test_fraction: share of the history over which the test origins are spread.
        refit_every: origins between two fits; 0 fits once, before the first origin.
        align: ``time``: all series share the origins' times; ``end``: origins count back from the end of each series, for series of
            different periods; ``auto``: time, unless that would leave series unscored.
        season_length: steps in a season; None takes the default of the frequency.
        seed: of forecasters and bootstrap.
        chunk_series: series walked together; bounds the memory of a worker and the work that a killed run loses.
    """

    horizon: int = 18
    origins: int = 20
    calibration_origins: int = 8
    test_fraction: float = 0.25
    refit_every: int = 0
    align: str = "auto"
    season_length: int | None = None
    seed: int = 0
    chunk_series: int = 128

    def __post_init__(self) -> None:
        least_by_name = {"horizon": 1, "origins": 1, "calibration_origins": 0, "refit_every": 0, "chunk_series": 1}
        for name, least in least_by_name.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}", where="backtest", allowed=f"a whole number from {least}")
        if not 0 < self.test_fraction < 1:
            raise InputError(f"test_fraction is {self.test_fraction}", where="backtest", allowed="between 0 and 1")
        if self.season_length is not None and self.season_length < 1:
            raise InputError(f"season_length is {self.season_length}", where="backtest", allowed="a whole number from 1, or null")
        if self.align not in ALIGNMENTS:
            raise InputError(f"align is {self.align!r}", where="backtest", allowed=", ".join(ALIGNMENTS))


@dataclass(frozen=True)
class OriginPlan:
    """Origins as steps counted back from the end: an origin at offset k knows all but the last k steps."""

    step: int
    calibration: tuple[int, ...]
    test: tuple[int, ...]
    align: str

    @property
    def all(self) -> tuple[int, ...]:
        """Calibration, then test offsets, oldest first."""
        return self.calibration + self.test

    def segments(self, refit_every: int) -> list[range]:
        """Numbers of the origins that share one fit, oldest first."""
        count = len(self.all)
        size = refit_every or count
        return [range(first, min(first + size, count)) for first in range(0, count, size)]


class Spans(Protocol):
    """When series begin and end on their grids: a ``Panel`` or a ``SeriesStore``."""

    step_ns: int

    @property
    def starts_ns(self) -> list[int] | np.ndarray: ...

    @property
    def ends_ns(self) -> np.ndarray: ...


def plan_origins(spans: Spans, config: BacktestConfig, season_length: int) -> OriginPlan:
    """Offsets of the origins for these series.

    Raises:
        InputError: no series is longer than the horizon.
    """
    starts, ends = np.asarray(spans.starts_ns), np.asarray(spans.ends_ns)
    lengths = (ends - starts) // spans.step_ns + 1
    align = config.align
    whole = int((ends.max() - starts.min()) // spans.step_ns) + 1
    if align == "auto":
        needed = _offsets(whole, config, season_length)[1]
        late = (ends.max() - ends) // spans.step_ns  # steps that a series ends before the latest
        align = "time" if needed and (late < needed[0]).all() else "end"
    enough = lengths > config.horizon
    length = whole if align == "time" else int(np.median(lengths[enough])) if enough.any() else 0
    step, test, calibration = _offsets(length, config, season_length)
    if not test:
        raise InputError(
            f"longest series has {lengths.max()} steps, horizon is {config.horizon}",
            where="backtest",
            allowed=f"at least {config.horizon + 1} steps",
            remedy="give a longer history or a shorter horizon",
        )
    return OriginPlan(step, calibration, test, align)


def _offsets(length: int, config: BacktestConfig, season_length: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Step, test offsets and calibration offsets for a history of ``length`` steps."""
    horizon = config.horizon
    room = length - max(1, min(length // 3, 2 * horizon))  # what the train part can spare
    span = min(max(int(config.test_fraction * length), horizon + config.origins - 1), max(room, min(length - 1, horizon)))
    if span < horizon or length <= horizon:
        return 1, (), ()
    origins = min(config.origins, span - horizon + 1)
    step = coprime_step((span - horizon) // (origins - 1), season_length) if origins > 1 else 1
    test = tuple(horizon + k * step for k in range(origins - 1, -1, -1))
    first = test[0] + horizon
    spare = length // 2 - first  # train keeps at least half
    count = min(config.calibration_origins, spare // step + 1) if spare >= 0 else 0
    return step, test, tuple(first + k * step for k in range(count - 1, -1, -1))


def coprime_step(largest: int, season_length: int) -> int:
    """Largest step up to ``largest`` without a common factor with the season; at least 1."""
    return next((s for s in range(largest, 1, -1) if math.gcd(s, season_length) == 1), 1)

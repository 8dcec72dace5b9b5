"""Detectors: a sequence of scores in, the block at which they alarm out. All are causal and restart from any block.

Scores are those of :mod:`models.drift.standard` (independent, mean 0, deviation 1 without drift), but for ``betting``, which takes shares
as they are, and ``above`` and ``limit``, which take raw values. Nothing is kept between calls: who watches keeps the values and runs over
them again.

=============== =================================================================================================================
cusum           S = max(0, S + z - slack) > threshold (Page 1954); ``both`` runs one each way
page_hinkley    river's PageHinkley: as cusum, with the mean of what was seen instead of 0
adwin           river's ADWIN (Bifet and Gavalda 2007) with confidence ``threshold``, checked at every block
kswin           river's KSWIN (Raab et al. 2020): Kolmogorov-Smirnov of the newest ``stat_size`` against the rest of ``window``
betting         e-detector of Shiryaev-Roberts form (Shin, Ramdas and Rinaldo 2023) for the mean of shares in [0, 1]:
                M = (M + 1)(1 + lambda (x - promised)), mixed over lambda; M > threshold. While the share expected given the past
                is at most ``promised``, the mean time to an alarm is at least ``threshold`` blocks, whatever the distribution
above           the value was over ``threshold`` (by rule: times the largest of the reference) in each of the last ``run`` blocks
limit           the mean of the last ``run`` values is over ``threshold``, whatever the reference: for what no version may do
=============== =================================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from telemetry.errors import InputError

KINDS = ("cusum", "page_hinkley", "adwin", "kswin", "betting", "above", "limit")
DIRECTIONS = ("up", "down", "both")
BETS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Detector:
    """One detector with its options; see the module.

    Raises:
        InputError: an unknown kind or direction, or an option outside its range.
    """

    kind: str
    threshold: float
    direction: str = "up"
    slack: float = 0.5
    promised: float = 0.25
    window: int = 80
    stat_size: int = 16
    run: int = 8

    def __post_init__(self) -> None:
        for what, value, allowed in (("kind", self.kind, KINDS), ("direction", self.direction, DIRECTIONS)):
            if value not in allowed:
                raise InputError(f"unknown {what} '{value}'", where="detector", allowed=", ".join(allowed))
        limits = {
            "threshold": self.kind == "limit" or (self.threshold > 0 and (self.kind not in ("adwin", "kswin") or self.threshold < 1)),
            "slack": self.slack >= 0,
            "promised": 0 < self.promised < 0.5,
            "stat_size": 2 <= self.stat_size <= self.window // 2,
            "run": self.run >= 1,
        }
        for name, good in limits.items():
            if not good:
                raise InputError(
                    f"{getattr(self, name)!r}",
                    where=f"detector.{name}",
                    allowed="threshold above 0 (adwin, kswin: below 1), slack, run from 0, 1, promised in (0, .5), stat_size 2 to window/2",
                )

    @property
    def on_scores(self) -> bool:
        """Whether it takes standardised scores, not raw values."""
        return self.kind not in ("betting", "above", "limit")

    def path(self, values: np.ndarray) -> np.ndarray:
        """How far to an alarm after each block ``[n]``: at or above 1 it alarms; for adwin and kswin 0 or 1. Not restarted by an alarm."""
        signs = {"up": (1.0,), "down": (-1.0,), "both": (1.0, -1.0)}[self.direction]
        if self.kind in ("adwin", "kswin"):
            return self._river(values)
        if self.kind == "above":
            return self._above(values)
        if self.kind == "limit":
            return self._limit(values)
        one = {"cusum": self._cusum, "page_hinkley": self._page_hinkley, "betting": self._betting}[self.kind]
        return np.max([one(sign * values) for sign in signs], axis=0) if len(values) else np.zeros(0)

    def first_alarm(self, values: np.ndarray) -> int | None:
        """Index of the first block at which it alarms."""
        hits = np.flatnonzero(self.path(values) >= 1.0)
        return int(hits[0]) if len(hits) else None

    def _cusum(self, values: np.ndarray) -> np.ndarray:
        out, total = np.zeros(len(values)), 0.0
        for k, value in enumerate(values.tolist()):
            total = max(0.0, total + value - self.slack)
            out[k] = total
        return out / self.threshold

    def _betting(self, values: np.ndarray) -> np.ndarray:
        out, wealth, bets = np.zeros(len(values)), np.zeros(len(BETS)), np.array(BETS)
        for k, value in enumerate(values.tolist()):
            if np.isfinite(value):
                wealth = (wealth + 1.0) * (1.0 + bets * (value - self.promised))
            out[k] = wealth.mean()
        return out / self.threshold

    def _above(self, values: np.ndarray) -> np.ndarray:
        out, length = np.zeros(len(values)), 0
        for k, value in enumerate(values.tolist()):
            length = length + 1 if value > self.threshold else 0
            out[k] = length
        return out / self.run

    def _limit(self, values: np.ndarray) -> np.ndarray:
        """0 or 1: a threshold of logarithms may be below 0, so that there is no share of the way to it."""
        out = np.zeros(len(values))
        for k in range(self.run - 1, len(values)):
            out[k] = float(np.mean(values[k + 1 - self.run : k + 1]) > self.threshold)
        return out

    def _page_hinkley(self, values: np.ndarray) -> np.ndarray:
        detector = river_drift().PageHinkley(min_instances=8, delta=self.slack, threshold=self.threshold, alpha=1.0, mode="up")
        return _told(detector, values)

    def _river(self, values: np.ndarray) -> np.ndarray:
        drift = river_drift()
        if self.kind == "adwin":
            detector = drift.ADWIN(delta=self.threshold, clock=1, grace_period=8)
        else:
            detector = drift.KSWIN(alpha=self.threshold, window_size=self.window, stat_size=self.stat_size, seed=0)
        alarms = _told(detector, values)
        if self.direction == "both" or not len(values):
            return alarms
        # river tells of a change in either direction; the newest blocks against the rest tell which.
        sign, size = (1.0 if self.direction == "up" else -1.0), self.stat_size
        for k in np.flatnonzero(alarms):
            new, old = values[max(0, k + 1 - size) : k + 1], values[: max(1, k + 1 - size)]
            alarms[k] *= sign * (new.mean() - old.mean()) > 0
        return alarms


def _told(detector: Any, values: np.ndarray) -> np.ndarray:
    out = np.zeros(len(values))
    for k, value in enumerate(values.tolist()):
        detector.update(value)
        out[k] = float(detector.drift_detected)
    return out


def river_drift() -> Any:
    """``river.drift``, imported when it is first used.

    Raises:
        InputError: river is not installed.
    """
    try:
        from river import drift
    except ImportError as error:
        raise InputError(
            "river is not installed",
            where="detector",
            allowed="cusum, betting, above without it",
            remedy="pip install -e '.[runtime]'",
        ) from error
    return drift

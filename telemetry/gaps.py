"""Gaps: runs of scrapes that are missing inside a series, and how the gaps of gauges are filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from telemetry.policy import REPAIR, QualityPolicy
from telemetry.quality import MAX_GAPS


@dataclass(frozen=True)
class Gaps:
    """Gaps of one file, arrays of G.

    Attributes:
        after: position of the sample that ends the gap, among the points that were searched.
        series: which series.
        start_ns, end_ns: times of the samples around it.
        samples: how many are missing.
        step_ns: usual distance between samples.
    """

    after: np.ndarray
    series: np.ndarray
    start_ns: np.ndarray
    end_ns: np.ndarray
    samples: np.ndarray
    step_ns: np.ndarray

    def missing_times(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """When the missing samples of the ``chosen`` gaps (positions) should have come [sum of samples], and the gap of each."""
        samples = self.samples[chosen]
        gap = np.repeat(chosen, samples)
        nth = np.arange(len(gap)) - np.repeat(np.cumsum(samples) - samples, samples) + 1
        return self.start_ns[gap] + nth * self.step_ns[gap], gap

    def fillable(self, counter: np.ndarray, policy: QualityPolicy) -> np.ndarray:
        """Which are filled by the policy, bool [G]: gaps of gauges (``counter`` [G] is False) that are not too long."""
        short = self.end_ns - self.start_ns <= policy.max_gap_fill_s * 10**9
        return short & ~counter if policy.of("scrape_gap") == REPAIR else np.zeros(len(self.after), dtype=bool)

    def longest(self) -> np.ndarray:
        """The longest ones and the earliest of them, as positions; of those that are alike all."""
        order = np.lexsort((self.start_ns, -self.samples))
        if len(order) <= MAX_GAPS:
            return order
        last = order[MAX_GAPS - 1]
        alike = (self.samples[order] == self.samples[last]) & (self.start_ns[order] == self.start_ns[last])
        return order[: int(np.flatnonzero(alike)[-1]) + 1]

    def told(self, row: int) -> dict[str, Any]:
        """A gap for the report."""
        start, end = (str(t.astype("datetime64[ns]").astype("datetime64[s]")) + "Z" for t in (self.start_ns[row], self.end_ns[row]))
        return {"start": start, "end": end, "samples": int(self.samples[row])}


_NONE = np.zeros(0, dtype=np.int64)
NO_GAPS = Gaps(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE)


def find_gaps(series: np.ndarray, time_ns: np.ndarray, step_ns: np.ndarray) -> Gaps:
    """Gaps of points sorted by series and time; ``step_ns`` [N] is the usual step of each point's metric, 0 = unknown."""
    step = step_ns[1:]
    inside = (np.diff(series) == 0) & (step > 0)
    missing = np.where(inside, np.round(np.diff(time_ns) / np.maximum(step, 1)).astype(np.int64) - 1, 0)
    before = np.flatnonzero(missing > 0)
    after = before + 1
    return Gaps(after, series[after], time_ns[before], time_ns[after], missing[before], step[before])


@dataclass(frozen=True)
class Filled:
    """Samples put into gaps, arrays of F: position of the sample before the gap, time, value."""

    before: np.ndarray
    time_ns: np.ndarray
    value: np.ndarray


def fill_gauges(gaps: Gaps, series: np.ndarray, time_ns: np.ndarray, value: np.ndarray, policy: QualityPolicy) -> Filled:
    """Fill the gaps of gauges, sorted by series and time, by ``policy.gap_fill``; a gap whose neighbours were dropped stays open."""
    if not len(series):
        return Filled(_NONE, _NONE, np.zeros(0))
    times, when = np.unique(np.concatenate([time_ns, gaps.start_ns]), return_inverse=True)
    key = series * len(times) + when[: len(series)]
    wanted = gaps.series * len(times) + when[len(series) :]
    at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    follows = np.minimum(at + 1, len(key) - 1)
    there = (key[at] == wanted) & (series[follows] == gaps.series) & (time_ns[follows] == gaps.end_ns)
    there &= gaps.fillable(np.zeros(len(at), dtype=bool), policy)
    missing, gap = gaps.missing_times(np.flatnonzero(there))
    before, after = value[at[gap]], value[follows[gap]]
    share = (missing - gaps.start_ns[gap]) / np.maximum(gaps.end_ns[gap] - gaps.start_ns[gap], 1)
    filled = before + (after - before) * share if policy.gap_fill == "linear" else before
    return Filled(at[gap], missing, filled)

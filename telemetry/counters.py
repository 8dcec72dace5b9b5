"""Counters become rates: increase since the sample before, divided by the time between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NS_PER_S = 1e9


@dataclass(frozen=True)
class Rates:
    """Rates of many counters.

    Attributes:
        rows: int [M], positions of the samples that close an interval.
        per_s: float [M], increase per second over that interval; a sample after a gap has the mean over the gap.
        resets: int [R], positions of the samples that lie below their predecessor.
    """

    rows: np.ndarray
    per_s: np.ndarray
    resets: np.ndarray


def counter_rates(series: np.ndarray, time_ns: np.ndarray, value: np.ndarray, delta: np.ndarray | None = None) -> Rates:
    """Rates of counters, sorted by series and time, without duplicates.

    A counter that falls has restarted from zero, so the increase is the new value (as Prometheus' ``rate`` does): a lower bound, since what
    was counted between the last scrape and the restart is lost. The first sample of a series gives no rate.

    Args:
        series: int [N], which counter a sample belongs to; equal values lie together.
        time_ns: int [N], rising within a series.
        value: float [N], cumulative value, or the increase since the sample before where ``delta``.
        delta: bool [N]; None = all cumulative.
    """
    if len(series) < 2:
        none = np.empty(0, dtype=np.int64)
        return Rates(none, np.empty(0), none)
    same = series[1:] == series[:-1]
    rows = np.flatnonzero(same) + 1
    increase = value[rows] - value[rows - 1]
    cumulative = np.ones(len(rows), dtype=bool) if delta is None else ~delta[rows]
    fell = cumulative & (increase < 0)
    increase = np.where(fell | ~cumulative, value[rows], increase)
    seconds = (time_ns[rows] - time_ns[rows - 1]) / NS_PER_S
    return Rates(rows, increase / seconds, rows[fell])

"""Counters become rates: increase since the sample before, divided by the time between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NS_PER_S = 1e9
WRAP_RANGE = 2.0**32
WRAP_RATE = 3.0
# Largest share of the counter's range in which a restart is taken for a wrap.
WRAP_CHANCE = 0.1


@dataclass(frozen=True)
class Rates:
    """Rates of many counters.

    Attributes:
        rows: int [M], positions of the samples that close an interval.
        per_s: float [M], increase per second over that interval; a sample after a gap has the mean over the gap.
        resets: int [R], positions of the samples that lie below their predecessor because the counter began anew.
        wraps: int [W], positions of the samples that lie below their predecessor because a 32-bit counter ran over.
    """

    rows: np.ndarray
    per_s: np.ndarray
    resets: np.ndarray
    wraps: np.ndarray


def counter_rates(
    series: np.ndarray, time_ns: np.ndarray, value: np.ndarray, delta: np.ndarray | None = None, modulus: np.ndarray | None = None
) -> Rates:
    """Rates of counters, sorted by series and time, without duplicates.

    A counter that falls has restarted from zero, so the increase is the new value (as Prometheus' ``rate`` does): a lower bound, since what
    was counted between the last scrape and the restart is lost. The first sample of a series gives no rate.

    A fall is called a wrap, and the increase is the new value plus 2^32 less the old one, when that is at most ``WRAP_RATE`` times what the
    series gains in the time otherwise (the median of its increases), and when it gains so little that a restart so near to 2^32 would be a
    rare chance.

    Args:
        series: int [N], which counter a sample belongs to, rising.
        time_ns: int [N], rising within a series.
        value: float [N], cumulative value, or the increase since the sample before where ``delta``.
        delta: bool [N]; None = all cumulative.
        modulus: float [N], 2^32 in the unit of ``value``; None = no counter wraps.
    """
    if len(series) < 2:
        none = np.empty(0, dtype=np.int64)
        return Rates(none, np.empty(0), none, none)
    same = series[1:] == series[:-1]
    rows = np.flatnonzero(same) + 1
    increase = value[rows] - value[rows - 1]
    cumulative = np.ones(len(rows), dtype=bool) if delta is None else ~delta[rows]
    fell = cumulative & (increase < 0)
    seconds = (time_ns[rows] - time_ns[rows - 1]) / NS_PER_S
    wrapped = np.zeros(len(rows), dtype=bool)
    if modulus is not None and fell.any():
        falls = np.flatnonzero(fell)
        first, end = (np.searchsorted(series[rows], series[rows[falls]], side) for side in ("left", "right"))
        for at, low, high in zip(falls, first, end, strict=True):
            own = np.flatnonzero(~fell[low:high]) + low
            wrapped[at] = _is_wrap(value[rows[at]], value[rows[at] - 1], modulus[rows[at]], increase[own] / seconds[own], seconds[at])
        increase = np.where(wrapped, increase + modulus[rows], increase)
    increase = np.where((fell & ~wrapped) | ~cumulative, value[rows], increase)
    return Rates(rows, increase / seconds, rows[fell & ~wrapped], rows[wrapped])


def _is_wrap(new: float, old: float, modulus: float, others_per_s: np.ndarray, seconds: float) -> bool:
    others = others_per_s[others_per_s > 0]
    if old >= modulus or not len(others):
        return False
    usual = float(np.median(others)) * seconds
    return bool(new + modulus - old <= WRAP_RATE * usual and WRAP_RATE * usual <= WRAP_CHANCE * modulus)

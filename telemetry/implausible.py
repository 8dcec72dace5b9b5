"""Series that cannot be believed, though each of their values alone could be: zeros, foreign units, stuck sensors, two meters that differ.

Points are arrays of N, sorted by series and time, with values in canonical units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from telemetry.counters import NS_PER_S, Rates
from telemetry.policy import QualityPolicy
from telemetry.raw import Labels
from telemetry.sorting import energy_and_work

# What a device that runs cannot be at throughout.
NEVER_ZERO: frozenset[str] = frozenset(
    {"hw.power", "hw.energy", "hw.temperature", "hw.voltage", "hw.gpu.memory.limit", "system.memory.limit"}
)
# Metrics of which like devices have like values.
OF_PEERS: frozenset[str] = frozenset({"hw.power", "hw.energy", "hw.gpu.memory.limit", "system.memory.limit"})
THOUSANDS = (1e3, 1e6)
# A median that is a factor of 3.2 beside a thousand times its peers' is still called a thousand times.
NEAR = 0.5
MIN_PEERS = 3
MIN_INTERVALS = 24
UTILIZATION: dict[bool, str] = {True: "hw.gpu.utilization", False: "system.cpu.utilization"}


def bounds_of(series: np.ndarray) -> np.ndarray:
    """First position of each run of equal numbers, and N at the end: int [S + 1]."""
    if not len(series):
        return np.zeros(1, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(np.diff(series)) + 1, [len(series)]])


class Typical(NamedTuple):
    """Usual value of a series: its identity, what is equal for those that should be alike, and the value (NaN = none above 0)."""

    identity: tuple[str, ...]
    peers: tuple[str, ...]
    value: float


def zero_series(series: np.ndarray, value: np.ndarray, never: np.ndarray) -> np.ndarray:
    """Points of series of at least two points that are zero throughout, of metrics where zero stands for unsupported: bool [N].

    Args:
        never: bool per series, whether its metric is one of ``NEVER_ZERO``.
    """
    at = bounds_of(series)
    size = np.diff(at)
    if not len(size):
        return np.zeros(0, dtype=bool)
    zero = np.logical_and.reduceat(value == 0, at[:-1]) & (size >= 2) & never[series[at[:-1]]]
    return np.repeat(zero, size)


def typical_value(time_ns: np.ndarray, value: np.ndarray, counter: bool) -> float:
    """Median value above 0 of one series, of a counter the median increase per second; NaN where there is none."""
    own = np.diff(value) / (np.diff(time_ns) / NS_PER_S) if counter else value
    own = own[own > 0]
    return float(np.median(own)) if len(own) else math.nan


def unit_factors(series: Sequence[Typical]) -> dict[tuple[str, ...], float]:
    """What each suspected series, by its identity, has to be multiplied by to be like its peers.

    A series is suspected when its median is about 1,000 or 1,000,000 times that of its peers, or a part of it, and most of them agree.
    """
    result: dict[tuple[str, ...], float] = {}
    groups: dict[tuple[str, ...], list[Typical]] = {}
    for one in series:
        if math.isfinite(one.value):
            groups.setdefault(one.peers, []).append(one)
    for members in groups.values():
        if len(members) < MIN_PEERS:
            continue
        logs = np.log10([one.value for one in members])
        off = logs - np.median(logs)
        if 2 * np.count_nonzero(np.abs(off) < 1.5) <= len(off):
            continue
        for factor in THOUSANDS:
            for sign, scale in ((1, 1 / factor), (-1, factor)):
                for row in np.flatnonzero(np.abs(off - sign * np.log10(factor)) <= NEAR):
                    result[members[row].identity] = scale
    return result


def stuck_rows(at: np.ndarray, time_ns: np.ndarray, value: np.ndarray, labels: Sequence[Labels], policy: QualityPolicy) -> np.ndarray:
    """Positions of watts that repeat the value before for ``stuck_min_s`` while utilisation of the device moves by ``stuck_utilization``.

    The first of a run counts as read. Zeros are left to :func:`zero_series`; a device without utilisation in the file is not judged.

    Args:
        at: int [S + 1], bounds of the series.
        labels: [S], of each series.
    """
    spans = list(zip(labels, itertools.pairwise(at.tolist()), strict=True))
    loads = {(la.node, la.device): span for la, span in spans if la.metric == UTILIZATION[bool(la.device)]}
    found: list[np.ndarray] = []
    for label, (first, last) in spans:
        load = loads.get((label.node, label.device)) if label.metric == "hw.power" else None
        if load is None:
            continue
        runs = first + bounds_of(value[first:last])
        long = time_ns[runs[1:] - 1] - time_ns[runs[:-1]] >= policy.stuck_min_s * NS_PER_S
        times = time_ns[load[0] : load[1]]
        for begin, end in zip(runs[:-1][long], runs[1:][long], strict=True):
            low, high = np.searchsorted(times, [time_ns[begin], time_ns[end - 1]], side="left")
            window = value[load[0] + low : load[0] + min(high + 1, len(times))]
            if value[begin] != 0 and len(window) and window.max() - window.min() >= policy.stuck_utilization:
                found.append(np.arange(begin + 1, end))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def energy_mismatches(
    series: np.ndarray,
    time_ns: np.ndarray,
    value: np.ndarray,
    identities: Sequence[tuple[str, str, str, str]],
    counters: np.ndarray,
    rates: Rates,
    share: float,
) -> list[str]:
    """Devices whose energy counter and integral of power (trapezoids between its scrapes) differ by more than ``share`` of the larger.

    Judged over intervals that have watts at both ends, at least ``MIN_INTERVALS`` of them, without those that end in a reset.

    Args:
        series: int [N] into ``identities``, rising.
        counters: int [M], positions of the points of counters, with ``value`` still what was counted; ``rates`` are theirs.
    """
    use = ~np.isin(rates.rows, rates.resets) if len(rates.resets) else slice(None)
    close, per_s = rates.rows[use], rates.per_s[use]
    end, begin = time_ns[counters[close]], time_ns[counters[close - 1]]
    joules = per_s * ((end - begin) / NS_PER_S)
    of = series[counters[close]]
    numbers = np.arange(len(identities) + 1, dtype=series.dtype)
    starts, own_starts = np.searchsorted(series, numbers), np.searchsorted(of, numbers)
    power = {identity[1:]: index for index, identity in enumerate(identities) if identity[0] == "hw.power"}
    found = []
    for index, identity in enumerate(identities):
        other = power.get(identity[1:]) if identity[0] == "hw.energy" else None
        if other is None:
            continue
        own, watts = slice(own_starts[index], own_starts[index + 1]), slice(starts[other], starts[other + 1])
        count, work, counted = energy_and_work(end[own], begin[own], joules[own], time_ns[watts], value[watts])
        if count >= MIN_INTERVALS and abs(work - counted) > share * max(work, counted):
            found.append("/".join(part for part in (identity[1] or identity[3], identity[2]) if part))
    return found

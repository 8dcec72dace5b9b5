"""Series that cannot be believed, though each of their values alone could be: zeros, foreign units, stuck sensors, two meters that differ.

All take the points of one file as arrays of N, sorted by series and time, values in canonical units.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from telemetry.counters import NS_PER_S, Rates
from telemetry.policy import QualityPolicy
from telemetry.raw import Labels

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


def zero_series(series: np.ndarray, value: np.ndarray, never: np.ndarray) -> np.ndarray:
    """Points of series of at least two points that are zero throughout, of metrics where zero stands for unsupported: bool [N].

    Args:
        never: bool [N], whether the point's metric is one of ``NEVER_ZERO``.
    """
    at = bounds_of(series)
    size = np.diff(at)
    if not len(size):
        return np.zeros(0, dtype=bool)
    zero = np.logical_and.reduceat((value == 0) & never, at[:-1]) & (size >= 2)
    return np.repeat(zero, size)


def typical_values(series: np.ndarray, time_ns: np.ndarray, value: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """Per series the median value, of a counter the median increase per second: float [S]; NaN where there is none above 0."""
    at = bounds_of(series)
    found = np.full(len(at) - 1, np.nan)
    for index, (first, last) in enumerate(itertools.pairwise(at)):
        own = value[first:last]
        if counter[first]:
            own = np.diff(own) / (np.diff(time_ns[first:last]) / NS_PER_S)
        own = own[own > 0]
        if len(own):
            found[index] = np.median(own)
    return found


def unit_factors(typical: np.ndarray, peers: Sequence[object]) -> np.ndarray:
    """What each series has to be multiplied by to be like its peers: float [S]; 1 where its unit is not suspected.

    A series is suspected when its median is about 1,000 or 1,000,000 times that of its peers, or a part of it, and most of them agree.

    Args:
        typical: float [S], median of each series; NaN = none.
        peers: [S], equal for series that should be alike; None = has no peers.
    """
    result = np.ones(len(typical))
    groups: dict[object, list[int]] = {}
    for index, key in enumerate(peers):
        if key is not None and np.isfinite(typical[index]):
            groups.setdefault(key, []).append(index)
    for members in groups.values():
        if len(members) < MIN_PEERS:
            continue
        rows = np.asarray(members)
        off = np.log10(typical[rows]) - np.median(np.log10(typical[rows]))
        if 2 * np.count_nonzero(np.abs(off) < 1.5) <= len(rows):
            continue
        for factor in THOUSANDS:
            result[rows[np.abs(off - np.log10(factor)) <= NEAR]] = 1 / factor
            result[rows[np.abs(off + np.log10(factor)) <= NEAR]] = factor
    return result


def stuck_rows(series: np.ndarray, time_ns: np.ndarray, value: np.ndarray, labels: Sequence[Labels], policy: QualityPolicy) -> np.ndarray:
    """Positions of watts that repeat the value before for ``stuck_min_s`` while utilisation of the device moves by ``stuck_utilization``.

    The first of a run counts as read. Zeros are left to :func:`zero_series`; a device without utilisation in the file is not judged.

    Args:
        labels: [S], of each series.
    """
    at = bounds_of(series)
    spans = dict(zip(labels, itertools.pairwise(at), strict=True))
    by_name = {(la.metric, la.node, la.device): span for la, span in spans.items()}
    found: list[np.ndarray] = []
    for label, (first, last) in spans.items():
        load = by_name.get((UTILIZATION[bool(label.device)], label.node, label.device))
        if label.metric != "hw.power" or load is None:
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
    place: np.ndarray, time_ns: np.ndarray, value: np.ndarray, is_power: np.ndarray, energy: np.ndarray, rates: Rates, share: float
) -> np.ndarray:
    """Places whose energy counter and integral of power (trapezoids between its scrapes) differ by more than ``share`` of the larger.

    Judged over intervals that have watts at both ends, at least ``MIN_INTERVALS`` of them, without those that end in a reset.

    Args:
        place: int [N], device of each point.
        energy: int [M], positions of the points of energy counters; ``rates`` are theirs, its rows being positions in ``energy``.

    Returns:
        int [P], places.
    """
    power = np.flatnonzero(is_power)
    use = ~np.isin(rates.rows, rates.resets)
    close, per_s = rates.rows[use], rates.per_s[use]
    if not len(power) or not len(close):
        return np.zeros(0, dtype=np.int64)
    times, when = np.unique(time_ns, return_inverse=True)
    key = place * len(times) + when
    order = power[np.argsort(key[power], kind="stable")]

    def watts(points: np.ndarray) -> np.ndarray:
        index = np.minimum(np.searchsorted(key[order], key[points]), len(order) - 1)
        return np.where(key[order][index] == key[points], value[order][index], np.nan)

    end, begin = energy[close], energy[close - 1]
    seconds = (time_ns[end] - time_ns[begin]) / NS_PER_S
    drawn = (watts(begin) + watts(end)) / 2 * seconds
    both = np.isfinite(drawn)
    size = int(place.max()) + 1
    count = np.bincount(place[end][both], minlength=size)
    by_power = np.bincount(place[end][both], weights=drawn[both], minlength=size)
    by_counter = np.bincount(place[end][both], weights=(per_s * seconds)[both], minlength=size)
    off = np.abs(by_power - by_counter) > share * np.maximum(by_power, by_counter)
    return np.flatnonzero(off & (count >= MIN_INTERVALS))

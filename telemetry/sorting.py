"""Compiled passes over points: what numpy does in many passes and sorts, done in one each. N points, times in ns.

``nogil``: two pieces can be worked on at once in threads. Codes are int32 so that a piece of millions of points stays small.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NEGATIVE_POWER, IMPLAUSIBLE_POWER, ABOVE_ONE, UNPARSEABLE_VALUE = 1, 2, 3, 4
FLAWS: dict[int, str] = {
    NEGATIVE_POWER: "negative_power",
    IMPLAUSIBLE_POWER: "implausible_power",
    ABOVE_ONE: "utilization_above_one",
    UNPARSEABLE_VALUE: "unparseable",
}
NS_PER_S = 1e9
# Up to 5 % above 1 is rounding of an exporter and is cut; more is no share.
MOST_SHARE = 1.05
_compiled = njit(nogil=True, cache=True)


@_compiled
def earlier_than_before(stream: np.ndarray, time_ns: np.ndarray, streams: int) -> np.ndarray:
    """Which points [N] (in file order) are earlier than the one before them in their stream."""
    last = np.full(streams, np.iinfo(np.int64).min, dtype=np.int64)
    late = np.zeros(len(stream), dtype=np.bool_)
    for i in range(len(stream)):
        late[i] = time_ns[i] < last[stream[i]]
        last[stream[i]] = time_ns[i]
    return late


@_compiled
def sorted_rows(series: np.ndarray, time_ns: np.ndarray, count: int) -> np.ndarray:
    """Rows [N] by series (codes below ``count``), then time, then as they came: counted into place, sorted only where out of order."""
    start = np.zeros(count + 1, dtype=np.int64)
    for i in range(len(series)):
        start[series[i] + 1] += 1
    for s in range(count):
        start[s + 1] += start[s]
    at = start[:-1].copy()
    rows = np.empty(len(series), dtype=np.int32)
    for i in range(len(series)):
        rows[at[series[i]]] = i
        at[series[i]] += 1
    for s in range(count):
        first, end = start[s], start[s + 1]
        moved = 0
        for k in range(first + 1, end):
            if time_ns[rows[k]] < time_ns[rows[k - 1]]:
                moved += 1
        if moved == 0:
            continue
        if moved * 64 < end - first or end - first < 64:
            for k in range(first + 1, end):  # nearly sorted: insertion
                row, j = rows[k], k - 1
                while j >= first and time_ns[rows[j]] > time_ns[row]:
                    rows[j + 1] = rows[j]
                    j -= 1
                rows[j + 1] = row
        else:
            own = rows[first:end].copy()
            rows[first:end] = own[np.argsort(time_ns[own], kind="mergesort")]
    return rows


@_compiled
def distance_runs(series: np.ndarray, metric: np.ndarray, time_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances > 0 between neighbours of a series, as runs of equal ones: metric, ns, how many. Points are sorted.

    Args:
        metric: per series.
    """
    metrics, steps, counts = np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.int64)
    runs = 0
    for i in range(1, len(series)):
        if series[i] != series[i - 1] or time_ns[i] == time_ns[i - 1]:
            continue
        own, step = metric[series[i]], time_ns[i] - time_ns[i - 1]
        if runs and metrics[runs - 1] == own and steps[runs - 1] == step:
            counts[runs - 1] += 1
            continue
        if runs == len(metrics):
            metrics, steps = np.concatenate((metrics, np.empty_like(metrics))), np.concatenate((steps, np.empty_like(steps)))
            counts = np.concatenate((counts, np.empty_like(counts)))
        metrics[runs], steps[runs], counts[runs] = own, step, 1
        runs += 1
    return metrics[:runs], steps[:runs], counts[:runs]


@_compiled
def phase_runs(
    series: np.ndarray, entity: np.ndarray, step_ns: np.ndarray, time_ns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Phases of the times on the grid of their step, as runs of equal ones: entity, ns, how many.

    Args:
        entity, step_ns: per series; a step of 0 = unknown, left out.
    """
    entities, phases, counts = np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.int64)
    runs = 0
    for i in range(len(series)):
        step = step_ns[series[i]]
        if step == 0:
            continue
        own, phase = entity[series[i]], time_ns[i] % step
        if runs and entities[runs - 1] == own and phases[runs - 1] == phase:
            counts[runs - 1] += 1
            continue
        if runs == len(entities):
            entities, phases = np.concatenate((entities, np.empty_like(entities))), np.concatenate((phases, np.empty_like(phases)))
            counts = np.concatenate((counts, np.empty_like(counts)))
        entities[runs], phases[runs], counts[runs] = own, phase, 1
        runs += 1
    return entities[:runs], phases[:runs], counts[:runs]


@_compiled
def limit(
    group: np.ndarray,
    value: np.ndarray,
    is_power: np.ndarray,
    max_w: np.ndarray,
    is_share: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """Which values cannot be true: uint8 [N], 0 or a key of ``FLAWS``; shares that round to more than 1 are cut in place.

    Args:
        is_power, max_w, is_share, low, high: per label group.
    """
    flaw = np.zeros(len(group), dtype=np.uint8)
    for i in range(len(group)):
        g, v = group[i], value[i]
        if is_power[g] and v < 0:
            flaw[i] = NEGATIVE_POWER
        elif is_power[g] and v > max_w[g]:
            flaw[i] = IMPLAUSIBLE_POWER
        elif is_share[g] and v > MOST_SHARE:
            flaw[i] = ABOVE_ONE
        elif v < low[g] or (v > high[g] and not is_share[g]):
            flaw[i] = UNPARSEABLE_VALUE
        elif is_share[g] and v > 1.0:
            value[i] = 1.0
    return flaw


@_compiled
def energy_and_work(
    energy_ns: np.ndarray, begins: np.ndarray, joules: np.ndarray, power_ns: np.ndarray, watts: np.ndarray
) -> tuple[int, float, float]:
    """Intervals of a counter with watts at both ends: how many, J by the watts (trapezoids), J by the counter.

    Args:
        energy_ns: [M] end of each interval, rising; begins: [M] its start; joules: [M] what the counter gained.
        power_ns, watts: [P] readings, rising.
    """
    count, work, counted, first = 0, 0.0, 0.0, 0
    for m in range(len(energy_ns)):
        while first < len(power_ns) and power_ns[first] < begins[m]:
            first += 1
        if first == len(power_ns) or power_ns[first] != begins[m]:
            continue
        last = first
        while last < len(power_ns) and power_ns[last] < energy_ns[m]:
            last += 1
        if last == len(power_ns) or power_ns[last] != energy_ns[m]:
            continue
        count += 1
        work += (watts[first] + watts[last]) / 2 * (energy_ns[m] - begins[m]) / NS_PER_S
        counted += joules[m]
    return count, work, counted

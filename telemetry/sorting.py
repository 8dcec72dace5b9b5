"""Compiled passes over points: what numpy does in many passes and sorts, done in one each. N points, times in ns.

``nogil``: two pieces can be worked on at once in threads. Codes are int32 so that a piece of millions of points stays small.
"""

from __future__ import annotations

import numpy as np
from numba import njit

KEPT, DUPLICATE, UNPARSEABLE_VALUE, SENTINEL_VALUE, NEGATIVE_POWER, IMPLAUSIBLE_POWER, COUNTER_START = 0, 1, 2, 3, 4, 5, 6
NS_PER_S = 1e9
# 5 % above 1 is rounding of an exporter and is cut; more is no share.
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
def judge(
    series: np.ndarray,
    group: np.ndarray,
    time_ns: np.ndarray,
    value: np.ndarray,
    state: np.ndarray,
    step_ns: np.ndarray,
    scale: np.ndarray,
    is_power: np.ndarray,
    max_w: np.ndarray,
    is_share: np.ndarray,
    is_counter: np.ndarray,
    is_delta: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What becomes of each point, sorted by series and time. ``value`` is changed in place: converted, cut, a counter's turned into a rate.

    A counter that falls has restarted from zero, so the increase is the new value (as Prometheus' ``rate`` does): a lower bound, since what
    was counted between the last scrape and the restart is lost. The first sample of a series gives no rate.

    Args:
        state: 0 good, 1 sentinel, 2 unparseable.
        step_ns: per series, 0 = unknown; scale, is_power, max_w, is_share, is_counter, is_delta: per label group.

    Returns:
        uint8 [N] (``KEPT`` or why it is dropped), int64 [N] samples missing before the point, bool [N] the counter restarted here.
    """
    n = len(series)
    fate = np.zeros(n, dtype=np.uint8)
    missing = np.zeros(n, dtype=np.int64)
    reset = np.zeros(n, dtype=np.bool_)
    before_ns, held_ns, held, holds = np.int64(0), np.int64(0), 0.0, False
    fresh = True
    for i in range(n):
        if i == 0 or series[i] != series[i - 1]:
            holds, fresh = False, True
        if i + 1 < n and series[i + 1] == series[i] and time_ns[i + 1] == time_ns[i]:
            fate[i] = DUPLICATE
            continue
        step = step_ns[series[i]]
        if not fresh and step > 0:
            # rounded half to even, as numpy does
            missing[i] = max(np.int64(np.round((time_ns[i] - before_ns) / step)) - 1, 0)
        before_ns, fresh = time_ns[i], False
        if state[i] == 2:
            fate[i] = UNPARSEABLE_VALUE
            continue
        if state[i] == 1:
            fate[i] = SENTINEL_VALUE
            continue
        g = group[i]
        v = value[i] * scale[g]
        if is_power[g] and v < 0:
            fate[i] = NEGATIVE_POWER
            continue
        if is_power[g] and v > max_w[g]:
            fate[i] = IMPLAUSIBLE_POWER
            continue
        if v < 0 or (is_share[g] and v > MOST_SHARE):
            fate[i] = UNPARSEABLE_VALUE
            continue
        if is_share[g] and v > 1.0:
            v = 1.0
        value[i] = v
        if is_counter[g]:
            if holds:
                increase = v - held
                if is_delta[g]:
                    increase = v
                elif increase < 0:
                    increase, reset[i] = v, True
                value[i] = increase / ((time_ns[i] - held_ns) / NS_PER_S)
            else:
                fate[i] = COUNTER_START
            held, held_ns, holds = v, time_ns[i], True
    return fate, missing, reset

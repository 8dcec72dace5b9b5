"""Compiled rules of the shield, for rows of observations (``envs.shield`` says what they mean).

Places of features come as an argument: code that is cached on disk must not remember where a feature once was.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

KEPT, MASK, NOT_DEFERRABLE, LATEST_START, DEADLINE, CLASS_FLOOR = range(6)

# what ``places`` holds: sizes, then features of a candidate, then global features
(
    CANDIDATES, LEVELS, FEATURES, KINDS,
    P_VALID, P_LEVEL, P_SLACK, P_DELAY, P_RUNTIME, P_CURRENT,
    P_CLASS, P_LATEST, P_DEADLINE, P_REVIEW,
) = range(14)  # fmt: skip
# columns of ``classes`` and entries of ``numbers``
C_DEFERRABLE, C_START_BOUND, C_FLOOR = range(3)
N_MARGIN_S, N_MARGIN_SHARE, N_START_MARGIN_S, N_HOLD_S = range(4)
# columns of the scratch table, one row for each candidate; seconds left to deadline and latest start, with and without their margins
S_LEFT, S_SPARE, S_START_LEFT, S_START_SPARE = range(4)
ROUNDING = 1e-6

compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def seconds_of(value, unit_s):
    """Whole seconds of a feature that is a signed log(1 + x)."""
    return math.copysign(np.rint(math.expm1(abs(float(value))) * unit_s), float(value))


@compiled
def _fill(row, a, places, numbers, latest_s, scratch):
    at = a * places[FEATURES]
    left = seconds_of(row[at + places[P_SLACK]], 3600.0)
    runtime = seconds_of(row[at + places[P_RUNTIME]], 3600.0)
    start_left = latest_s - seconds_of(row[at + places[P_DELAY]], 60.0)
    scratch[a, S_LEFT] = left
    scratch[a, S_SPARE] = left - numbers[N_MARGIN_S] - numbers[N_MARGIN_SHARE] * runtime
    scratch[a, S_START_LEFT] = start_left
    scratch[a, S_START_SPARE] = start_left - numbers[N_START_MARGIN_S]


@compiled
def _meets(scratch, a, wait_s, ends, starts, need, start_need):
    """Whether a start ``wait_s`` later keeps what is asked for."""
    if ends and (scratch[a, S_LEFT] - wait_s < 0.0 or scratch[a, S_SPARE] - wait_s < need):
        return False
    return not (starts and (scratch[a, S_START_LEFT] - wait_s < 0.0 or scratch[a, S_START_SPARE] - wait_s < start_need))


@compiled
def _hold_is_safe(row, places, numbers, removed, scratch, pool, ends, starts, need, start_need, latest_s, wait_s):
    """Whether some run that is kept would still do at the next question; in a review runs elsewhere, or the plan of the pause."""
    levels = places[LEVELS]
    for a in range(1, places[CANDIDATES]):
        elsewhere = pool < 0 or (a - 1) // levels != pool
        if removed[a] == KEPT and elsewhere and _meets(scratch, a, wait_s, ends, starts, need, start_need):
            return True
    if pool < 0:
        return False
    runtime = seconds_of(row[places[P_RUNTIME]], 3600.0)
    left = seconds_of(row[places[P_DEADLINE]], 3600.0) - runtime - wait_s
    return not ends or (left >= 0.0 and left - numbers[N_MARGIN_S] - numbers[N_MARGIN_SHARE] * runtime >= need)


@compiled
def _service(row, places, numbers, removed, scratch, bound, review, pool):
    """Rules ``deadline`` and ``latest_start``."""
    count = places[CANDIDATES]
    latest_s = seconds_of(row[places[P_LATEST]], 3600.0)
    both, by_end, by_start = False, False, False
    for a in range(1, count):
        if removed[a] != KEPT:
            continue
        _fill(row, a, places, numbers, latest_s, scratch)
        end, start = scratch[a, S_LEFT] >= 0.0, bound and scratch[a, S_START_LEFT] >= 0.0
        both, by_end, by_start = both or (end and start), by_end or end, by_start or start
    ends = both or by_end
    starts = both or (by_start and not by_end)
    if not ends and not starts:
        return
    need, start_need = 0.0, 0.0
    top, start_top = -np.inf, -np.inf
    for a in range(1, count):
        if removed[a] == KEPT and _meets(scratch, a, 0.0, ends, starts, -np.inf, -np.inf):
            top = max(top, scratch[a, S_SPARE])
    need = min(0.0, top)
    for a in range(1, count):
        if removed[a] == KEPT and _meets(scratch, a, 0.0, ends, starts, need, -np.inf):
            start_top = max(start_top, scratch[a, S_START_SPARE])
    start_need = min(0.0, start_top)
    for a in range(1, count):
        if removed[a] != KEPT or _meets(scratch, a, 0.0, ends, starts, need, start_need):
            continue
        removed[a] = LATEST_START if _meets(scratch, a, 0.0, ends, False, need, start_need) else DEADLINE
    if removed[0] != KEPT:
        return
    wait_s = numbers[N_HOLD_S] if review else min(numbers[N_HOLD_S], max(latest_s, 0.0))
    if _hold_is_safe(row, places, numbers, removed, scratch, pool, ends, starts, need, start_need, latest_s, wait_s):
        return
    by_end = _hold_is_safe(row, places, numbers, removed, scratch, pool, ends, False, need, start_need, latest_s, wait_s)
    removed[0] = LATEST_START if by_end else DEADLINE


@compiled
def _floor(row, places, removed, floor, review):
    """Rule ``class_floor``; whether it had to yield."""
    above, below = False, False
    for a in range(1, places[CANDIDATES]):
        if removed[a] == KEPT:
            low = row[a * places[FEATURES] + places[P_LEVEL]] < floor - ROUNDING
            above, below = above or not low, below or low
    if not below:
        return False
    if not above and (review or removed[0] != KEPT):
        return True
    for a in range(1, places[CANDIDATES]):
        if removed[a] == KEPT and row[a * places[FEATURES] + places[P_LEVEL]] < floor - ROUNDING:
            removed[a] = CLASS_FLOOR
    return False


@compiled
def shield_rows(rows, places, classes, numbers, removed, yielded):
    """Which actions the rules remove.

    Args:
        rows: float32 ``[B, D]`` with finite values.
        places, classes, numbers: as ``envs.shield.Shield`` lays them out.
        removed: int8 ``[B, A]``, overwritten: KEPT, MASK, or the rule.
        yielded: bool ``[B]``, overwritten: the class floor could not be kept.
    """
    count, features = places[CANDIDATES], places[FEATURES]
    scratch = np.empty((count, 4))
    for b in range(len(rows)):
        row, runs, pool = rows[b], 0, -1
        yielded[b] = False
        for a in range(count):
            valid = row[a * features + places[P_VALID]] > 0.5
            removed[b, a] = KEPT if valid else MASK
            if valid and a > 0:
                runs += 1
                if row[a * features + places[P_CURRENT]] > 0.5:
                    pool = (a - 1) // places[LEVELS]
        if runs == 0:
            continue
        kind = -1
        for k in range(places[KINDS]):
            if row[places[P_CLASS] + k] > 0.5:
                kind = k
        review = row[places[P_REVIEW]] > 0.5
        if removed[b, 0] == KEPT and (kind < 0 or classes[kind, C_DEFERRABLE] < 0.5):
            removed[b, 0] = NOT_DEFERRABLE
        bound = kind >= 0 and classes[kind, C_START_BOUND] > 0.5 and not review
        _service(row, places, numbers, removed[b], scratch, bound, review, pool)
        if kind >= 0 and classes[kind, C_FLOOR] > 0.0:
            yielded[b] = _floor(row, places, removed[b], classes[kind, C_FLOOR], review)

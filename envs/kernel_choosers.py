"""Compiled judges: each picks an action from the state, and, with the same result, from an observation."""

from __future__ import annotations

import math

import numpy as np

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_node_rules import lowest_offered, preferred_pool
from envs.kernel_rates import rate_rank
from envs.kernel_scores import score_question
from envs.observation import (
    FREE_GPUS,
    GREEDY_SCORE,
    IS_CURRENT,
    N_CANDIDATE_FEATURES,
    NODES_WOKEN,
    PREFERRED_POOL,
    RATE_RANK,
    SCORE,
    VALID,
    best_expected,
    free_gpus_feature,
    nodes_woken_feature,
    relative_score,
)

ROOMIEST, TIGHTEST, GREEDY, LOOKAHEAD = 0, 1, 2, 3
LEAST_LEFT, BEST_NODE, THRESHOLD = 10, 11, 12


@compiled
def choose_from_state(c, kind):
    """Action of a compiled judge for the question; those that do not price actions leave a running job where it is."""
    o, i = c.o, c.i
    if kind in (GREEDY, LOOKAHEAD):
        if not i[fx.SCORED]:
            score_question(c, False, kind == LOOKAHEAD)
        return _cheapest(c, 0 if kind == LOOKAHEAD else 1)
    if i[fx.REVIEWING]:
        a = o[fx.I_JOB] + i[fx.ASKING] * fx.JOB_WIDTH
        return 1 + i[a + fx.POOL] * o[fx.N_LEVELS] + i[a + fx.LEVEL]
    if kind == BEST_NODE:
        p = preferred_pool(c)
        return 1 + p * o[fx.N_LEVELS] + lowest_offered(c, p)
    if kind == THRESHOLD:
        return _by_threshold(c)
    best = -1
    best_free, best_woken = np.float32(0.0), np.float32(0.0)
    for action in range(1, o[fx.N_ACTIONS]):
        if not i[o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK]:
            continue
        free, woken = free_gpus_feature(c, (action - 1) // o[fx.N_LEVELS]), nodes_woken_feature(c, action)
        if best < 0 or _prefer(kind, free, woken, best_free, best_woken):
            best, best_free, best_woken = action, free, woken
    return best


@compiled
def _cheapest(c, first):
    best = -1
    for action in range(first, c.o[fx.N_ACTIONS]):
        if not c.i[c.o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK]:
            continue
        usd = c.f[c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.EXPECTED_USD]
        if best < 0 or usd < c.f[c.o[fx.F_ACTION] + best * fx.ACTION_F_WIDTH + fx.EXPECTED_USD]:
            best = action
    return best


@compiled
def _by_threshold(c):
    """Hold in dear hours, else the pool of least expected objective at full power; scores are compared as the observation has them."""
    o, i = c.o, c.i
    if i[o[fx.I_ACTION] + fx.MASK] and np.float32(rate_rank(c)) > np.float32(c.qf[fx.THRESHOLD_QUANTILE]):
        return 0
    if not i[fx.SCORED]:
        score_question(c, False, False)
    best, best_score, best_run = -1, np.float32(0.0), best_expected(c, 1)
    for p in range(o[fx.N_POOLS]):
        level = lowest_offered(c, p)
        if level < 0:
            continue
        action = 1 + p * o[fx.N_LEVELS] + level
        score = relative_score(c.f[o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.EXPECTED_USD], best_run)
        if best < 0 or score < best_score:
            best, best_score = action, score
    return best


@compiled
def _prefer(kind, free, woken, best_free, best_woken):
    if kind == ROOMIEST:
        return free > best_free
    if kind == LEAST_LEFT:
        return free < best_free or (free == best_free and woken < best_woken)
    return woken < best_woken or (woken == best_woken and free < best_free)


@compiled
def choose_from_row(row, pools, levels, kind, quantile):
    """Action of a compiled judge for one observation row; ``quantile`` is that of the judge ``threshold``."""
    if kind >= BEST_NODE:
        return _choose_pool_from_row(row, pools, levels, kind, quantile)
    best = -1
    for action in range(1 + pools * levels):
        at = action * N_CANDIDATE_FEATURES
        if row[at + VALID] < 0.5 or (action == 0 and kind != LOOKAHEAD):
            continue
        if row[at + IS_CURRENT] > 0.5 and kind != GREEDY and kind != LOOKAHEAD:
            return action
        if best < 0:
            best = action
            continue
        to = best * N_CANDIDATE_FEATURES
        if kind == LOOKAHEAD:
            better = row[at + SCORE] < row[to + SCORE]
        elif kind == GREEDY:
            better = row[at + GREEDY_SCORE] < row[to + GREEDY_SCORE]
        else:
            better = _prefer(kind, row[at + FREE_GPUS], row[at + NODES_WOKEN], row[to + FREE_GPUS], row[to + NODES_WOKEN])
        if better:
            best = action
    return best


@compiled
def _choose_pool_from_row(row, pools, levels, kind, quantile):
    """A pool at the most power that is offered there, for the judges that choose no level; in a review, staying."""
    after = (1 + pools * levels) * N_CANDIDATE_FEATURES
    for action in range(1, 1 + pools * levels):
        if row[action * N_CANDIDATE_FEATURES + IS_CURRENT] > 0.5:
            return action
    if kind == THRESHOLD and row[VALID] > 0.5 and row[after + RATE_RANK] > np.float32(quantile):
        return 0
    preferred = math.floor(row[after + PREFERRED_POOL] * pools + 0.5) - 1
    best = -1
    for p in range(pools):
        if kind == BEST_NODE and p != preferred:
            continue
        for level in range(levels):
            action = 1 + p * levels + level
            at = action * N_CANDIDATE_FEATURES
            if row[at + VALID] > 0.5:
                if best < 0 or row[at + GREEDY_SCORE] < row[best * N_CANDIDATE_FEATURES + GREEDY_SCORE]:
                    best = action
                break
    return best


@compiled
def choose_from_rows(rows, pools, levels, kind, quantile, actions):
    """Actions for a batch of rows; rows without a question get 0."""
    for row in range(len(rows)):
        actions[row] = max(choose_from_row(rows[row], pools, levels, kind, quantile), 0)

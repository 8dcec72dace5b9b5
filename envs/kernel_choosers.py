"""Compiled judges: each picks an action from the state, and, with the same result, from an observation."""

from __future__ import annotations

import numpy as np

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_scores import score_question
from envs.observation import (
    FREE_GPUS,
    GREEDY_SCORE,
    N_CANDIDATE_FEATURES,
    NODES_WOKEN,
    SCORE,
    VALID,
    free_gpus_feature,
    nodes_woken_feature,
)

ROOMIEST, TIGHTEST, GREEDY, LOOKAHEAD = 0, 1, 2, 3


@compiled
def choose_from_state(static, jobs, grid, params, state, b, kind):
    """Action of a compiled judge for the question of environment ``b``."""
    if kind in (GREEDY, LOOKAHEAD):
        if not state.env_i[b, fx.SCORED]:
            score_question(static, jobs, grid, params, state, b)
        first = 0 if kind == LOOKAHEAD else 1
        best = -1
        for action in range(first, state.action_i.shape[2]):
            if state.action_i[b, fx.MASK, action] and (
                best < 0 or state.action_f[b, fx.EXPECTED_USD, action] < state.action_f[b, fx.EXPECTED_USD, best]
            ):
                best = action
        return best
    levels = static.curve.shape[2]
    best = -1
    best_free, best_woken = np.float32(0.0), np.float32(0.0)
    for action in range(1, state.action_i.shape[2]):
        if not state.action_i[b, fx.MASK, action]:
            continue
        p = (action - 1) // levels
        free, woken = free_gpus_feature(state, b, p), nodes_woken_feature(state, b, p)
        if best < 0 or _prefer(kind, free, woken, best_free, best_woken):
            best, best_free, best_woken = action, free, woken
    return best


@compiled
def _prefer(kind, free, woken, best_free, best_woken):
    if kind == ROOMIEST:
        return free > best_free
    return woken < best_woken or (woken == best_woken and free < best_free)


@compiled
def choose_from_row(row, candidates, kind):
    """Action of a compiled judge for one observation row."""
    best = -1
    for action in range(candidates):
        at = action * N_CANDIDATE_FEATURES
        if row[at + VALID] < 0.5 or (action == 0 and kind != LOOKAHEAD):
            continue
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
def choose_from_rows(rows, candidates, kind, actions):
    """Actions for a batch of rows; rows without a question get 0."""
    for row in range(len(rows)):
        actions[row] = max(choose_from_row(rows[row], candidates, kind), 0)

"""Solving the program of :mod:`envs.bound_program` by columns and rows that its dual asks for, and proving the bound."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from envs.bound_columns import NO_POOL
from envs.bound_program import Program

MOST_ROUNDS = 60
FIRST_PER_POOL = 12
MORE_PER_JOB = 15
CLOSE = 1e-3
STALLED_ROUNDS = 2
STALLED = 3e-3


@dataclass(frozen=True)
class Solution:
    """Proven bound of the program's optimum in USD, and what a solver said: ``value`` of its best point (NaN when it has none)."""

    bound: float
    value: float
    x: np.ndarray
    rounds: int


def solve_lp(program: Program, time_limit_s: float) -> Solution:
    """Solve over few columns, add columns and rows that the solution asks for, and go on; the best proven value of all rounds.

    Whatever the rounds leave out, each of their dual points is judged on all columns, so that each is a bound.
    """
    began = time.perf_counter()
    best = Solution(without_solver(program), np.nan, np.zeros(program.size), 0)
    first = FIRST_PER_POOL
    active, history = _first_columns(program, first), []
    for turn in range(MOST_ROUNDS):
        left = time_limit_s - (time.perf_counter() - began)
        if left <= 0:
            break
        below, most = sparse.vstack(program.below).tocsc(), np.concatenate(program.below_to)
        chosen = np.flatnonzero(active)
        answer = linprog(
            program.cost[chosen], below[:, chosen], most, program.equal[:, chosen], program.equal_to,
            np.stack([np.zeros(len(chosen)), program.most[chosen]], axis=1), method="highs-ds", options={"time_limit": left},
        )  # fmt: skip
        if answer.status == 2 and not active.all():  # too few columns to be feasible
            first *= 4
            active = active | _first_columns(program, first)
            continue
        assert answer.status != 2, "a program that holds every schedule cannot be infeasible"
        if answer.status != 0:
            break
        x = np.zeros(program.size)
        x[chosen] = answer.x
        bound, reduced = proven(program, answer.eqlin.marginals, answer.ineqlin.marginals, below, most)
        if bound > best.bound:
            best = Solution(bound, float(answer.fun), x, turn + 1)
        fresh = _worth_adding(program, reduced, active)
        settled = answer.fun - bound <= CLOSE * max(abs(answer.fun), 1e-6)
        cuts = [cut for cut in (program.whole_nodes(x), program.who_runs(x)) if cut is not None]
        if not cuts and (settled or not len(fresh)):
            break
        if settled:
            history.append(best.bound)
            if _stalled(history, float(answer.fun)):
                break
        active[fresh] = True
        for cut in cuts:
            program.add(cut)
    return best


def _first_columns(program: Program, most: int) -> np.ndarray:
    """Variables to begin with: of each job and pool the cheapest early columns."""
    c = program.columns
    active = np.ones(program.size, dtype=np.bool_)
    usd = c.usd / np.maximum(c.weight, 1e-12) + np.where(c.late, 1e12, 0.0)
    key = c.job * (program.pools + 1) + c.pool + 1
    order = np.lexsort((usd, key))
    place = np.empty(c.size, dtype=np.int64)
    place[order] = np.arange(c.size) - np.searchsorted(key[order], key[order])
    active[: c.size] = (place < most) | (c.pool == NO_POOL) | (c.weight < 1.0)
    return active


def _worth_adding(program: Program, reduced: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Columns of negative reduced cost, of each job the worst."""
    c = program.columns
    found = np.flatnonzero((reduced[: c.size] < -1e-9) & ~active[: c.size])
    order = found[np.lexsort((reduced[found], c.job[found]))]
    first = np.searchsorted(c.job[order], c.job[order])
    return order[np.arange(len(order)) - first < MORE_PER_JOB]


def proven(program: Program, equal: np.ndarray, below: np.ndarray, rows: sparse.csr_matrix, most: np.ndarray) -> tuple[float, np.ndarray]:
    """Value of the dual for any multipliers, a bound whatever the solver's tolerances (Neumaier and Shcherbina 2004); reduced costs."""
    below = np.minimum(below, 0.0)
    reduced = program.cost - program.equal.T @ equal - rows.T @ below
    # The columns of a job that is done once share a weight of 1: the worst of them counts, not their sum.
    least = np.zeros(program.jobs)
    c = program.columns
    single = c.weight == 1.0
    np.minimum.at(least, c.job[single], reduced[: c.size][single])
    rest = reduced.copy()
    rest[: c.size][single] = 0.0
    value = equal @ program.equal_to + below @ most + least.sum() + (np.minimum(rest, 0.0) * program.most).sum()
    return float(value), reduced


def without_solver(program: Program) -> float:
    """Each job at its cheapest, nodes for nothing: holds when a solver finds nothing in time."""
    c = program.columns
    each = np.full(program.jobs, np.inf)
    some = c.weight > 0
    np.minimum.at(each, c.job[some], c.usd[some] / c.weight[some])
    equal = np.concatenate([each, np.zeros(program.equal.shape[0] - program.jobs)])
    rows = program.below[0]
    return proven(program, equal, np.zeros(rows.shape[0]), rows, program.below_to[0])[0]


def _stalled(history: list[float], value: float) -> bool:
    """Whether the bound has grown by less than three thousandths in the last rounds."""
    return len(history) > STALLED_ROUNDS and history[-1] - history[-1 - STALLED_ROUNDS] < STALLED * max(abs(value), 1e-6)

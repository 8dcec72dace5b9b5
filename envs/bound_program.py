"""The linear program of :mod:`envs.bound`: columns of jobs, occupied and awake nodes by pool and slot, and who may be late.

Variables, all from 0 to a finite most: columns ``x``; ``held [P, K]`` node-equivalents of GPUs that running jobs hold, and ``on [P, K]``
nodes that carry a running job, both means over a slot; ``stuck [T, K]`` the share of a slot in which a job of kind T finds no room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from envs.bound_columns import NO_POOL, Columns
from envs.bound_rates import JobFacts, Nodes, overlap_s

FEW_WAITING = 8
CUTS_PER_ROUND = 2000
CUT_ROUNDS = 4
LEAST_VIOLATION = 0.02
MILP_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Rooms:
    """Kinds of jobs by what "no room" implies: T kinds, P pools.

    Attributes:
        kind: int64 ``[J]``.
        held: float64 ``[T, P]``, node-equivalents of GPUs that are held, in a pool, when a job of the kind finds no room.
        nodes: float64 ``[T, P]``, nodes that then hold something.
        own: whether only a job's own lack of room can make it late (discipline ``free``); else that of any job.
    """

    kind: np.ndarray
    held: np.ndarray
    nodes: np.ndarray
    own: bool


@dataclass(frozen=True)
class Solution:
    """Proven bound of the program's optimum in USD, and what a solver said: ``value`` of its best point (NaN when it has none)."""

    bound: float
    value: float
    x: np.ndarray
    rounds: int
    tail: np.ndarray


class Program:
    """One window's program.

    Args:
        columns: of all jobs; every job's weights sum to 1.
        alone: jobs in parts, bool ``[J]``: at one place at a time.
        rooms: None = starts are free at any time.
    """

    def __init__(
        self, facts: JobFacts, columns: Columns, nodes: Nodes, edges_s: np.ndarray, alone: np.ndarray, rooms: Rooms | None
    ) -> None:
        self.facts, self.columns, self.nodes, self.edges, self.rooms = facts, columns, nodes, edges_s, rooms
        self.length = np.diff(edges_s)
        self.pools, self.slots = nodes.on_usd.shape
        self.jobs = len(facts.index)
        self.late_slots = self._late_slots()
        kinds = 0 if rooms is None else len(rooms.held)
        self.at_held = columns.size
        self.at_on = self.at_held + self.pools * self.slots
        self.at_stuck = self.at_on + self.pools * self.slots
        self.size = self.at_stuck + kinds * len(self.late_slots)
        self.cost = np.concatenate([columns.usd, np.zeros(self.pools * self.slots), nodes.on_usd.ravel(), np.zeros(self.size - self.at_stuck)])
        up = np.maximum(nodes.up.ravel(), 0.0)
        self.most = np.concatenate([columns.most, up, up, np.ones(self.size - self.at_stuck)])
        self.equal, self.equal_to = self._equalities()
        self.below: list[sparse.csr_matrix] = []
        self.below_to: list[np.ndarray] = []
        self._held_below_on()
        if alone.any():
            self._one_place(alone)
        if rooms is not None and len(self.late_slots):
            self._late_rows(rooms)

    # ---------------------------------------------------------------- rows

    def _matrix(self, row: np.ndarray, column: np.ndarray, value: np.ndarray, rows: int) -> sparse.csr_matrix:
        return sparse.csr_matrix((value, (row, column)), shape=(rows, self.size))

    def _add(self, matrix: sparse.csr_matrix, most: float | np.ndarray = 0.0) -> None:
        self.below.append(matrix)
        self.below_to.append(np.broadcast_to(np.asarray(most, dtype=np.float64), (matrix.shape[0],)))

    def _slot_of(self, time_s: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.edges, time_s, side="right") - 1

    def _mean_overlap(self, column: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Share of slots in which columns certainly run."""
        c = self.columns
        seconds = overlap_s(c.begin_s[column], c.end_s[column], self.edges, slot)
        return seconds / self.length[np.clip(slot, 0, self.slots - 1)]

    def _equalities(self) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Each job is done once; held nodes, as differences from slot to slot, which are 0 but where a run begins or ends."""
        c, slots = self.columns, self.slots
        every = np.arange(c.size)
        once = self._matrix(c.job, every, c.weight, self.jobs)
        runs = np.flatnonzero((c.pool != NO_POOL) & (c.end_s > c.begin_s))
        first, last = self._slot_of(c.begin_s[runs]), self._slot_of(c.end_s[runs])
        row, column, value = [], [], []
        near = np.stack([first, first + 1, first + 2, last, last + 1, last + 2], axis=1)
        for place in range(near.shape[1]):
            slot = near[:, place]
            change = self._mean_overlap(runs, slot) - self._mean_overlap(runs, slot - 1)
            keep = (slot >= 0) & (slot < slots) & (change != 0) & ~(near[:, :place] == slot[:, None]).any(axis=1)
            row.append((c.pool[runs] * slots + slot)[keep])
            column.append(runs[keep])
            value.append((change * self.facts.share[c.job[runs], c.pool[runs]])[keep])
        at = np.arange(self.pools * slots)
        later = at[at % slots > 0]
        row += [at, later]
        column += [self.at_held + at, self.at_held + later - 1]
        value += [-np.ones(len(at)), np.ones(len(later))]
        held = self._matrix(np.concatenate(row), np.concatenate(column), np.concatenate(value), len(at))
        return sparse.vstack([once, held]).tocsr(), np.concatenate([np.ones(self.jobs), np.zeros(len(at))])

    def _held_below_on(self) -> None:
        at = np.arange(self.pools * self.slots)
        ones = np.ones(len(at))
        both = np.concatenate([self.at_held + at, self.at_on + at])
        self._add(self._matrix(np.concatenate([at, at]), both, np.concatenate([ones, -ones]), len(at)))

    def _one_place(self, alone: np.ndarray) -> None:
        """A job in parts runs at one place at a time."""
        c = self.columns
        chosen = np.flatnonzero(alone[c.job] & (c.pool != NO_POOL))
        slot = self._slot_of(c.begin_s[chosen])
        key, row = np.unique(c.job[chosen] * self.slots + slot, return_inverse=True)
        most = np.zeros(len(key))
        np.maximum.at(most, row, c.most[chosen])
        self._add(self._matrix(row, chosen, np.ones(len(chosen)), len(key)), most)

    # ---------------------------------------------------------------- who may be late

    def _late_slots(self) -> np.ndarray:
        """Slots in which some job may wait without a free choice."""
        c = self.columns
        late = np.flatnonzero(c.late)
        if self.rooms is None or not len(late):
            return np.zeros(0, dtype=np.int64)
        latest = self.facts.latest_s[c.job[late]]
        begin, end = latest.min(), np.max(c.late_s[late])
        slots = np.arange(self.slots)
        return slots[(self.edges[1:] > begin) & (self.edges[:-1] < end)]

    def _spread(self, begin: np.ndarray, end: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(column, place in late_slots, seconds) of each interval's part of each late slot."""
        low, high = self.late_slots[0], self.late_slots[-1]
        first = np.clip(self._slot_of(begin), low, None)
        last = np.clip(self._slot_of(np.minimum(end, self.edges[-1])), None, high)
        count = np.maximum(last - first + 1, 0)
        which = np.repeat(np.arange(len(columns)), count)
        slot = np.repeat(first, count) + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        seconds = overlap_s(begin[which], end[which], self.edges, slot)
        keep = seconds > 0
        return columns[which[keep]], slot[keep] - low, seconds[keep]

    def _stuck(self, kind: int, place: np.ndarray) -> np.ndarray:
        return self.at_stuck + kind * len(self.late_slots) + place

    def _late_rows(self, rooms: Rooms) -> None:
        """Nobody waits without a free choice unless somebody finds no room, and then nodes are full (docs/bound.md, "Late starts")."""
        c, kinds, places = self.columns, len(rooms.held), len(self.late_slots)
        late = np.flatnonzero(c.late)
        column, place, seconds = self._spread(self.facts.latest_s[c.job[late]], c.late_s[late], late)
        length = self.length[self.late_slots]
        key, row = np.unique(c.job[column] * places + place, return_inverse=True)
        waiting = self._matrix(row, column, seconds / length[place], len(key))
        job, at, rows = key // places, key % places, np.arange(len(key))
        if rooms.own:
            stuck = self._matrix(rows, self._stuck(0, at) + rooms.kind[job] * places, np.ones(len(key)), len(key))
        else:
            every = np.concatenate([self._stuck(kind, at) for kind in range(kinds)])
            stuck = self._matrix(np.tile(rows, kinds), every, np.ones(len(every)), len(key))
        self._add((waiting - stuck).tocsr())
        if not rooms.own:
            every = np.concatenate([self._stuck(kind, np.arange(places)) for kind in range(kinds)])
            self._add(self._matrix(np.tile(np.arange(places), kinds), every, np.ones(len(every)), places), 1.0)
        self._full_nodes(rooms)
        self._few_waiting(rooms)

    def _full_nodes(self, rooms: Rooms) -> None:
        """Where a kind finds no room, so much is held, and so many nodes are in use or placed on."""
        c, places, pools = self.columns, len(self.late_slots), self.pools
        placed = np.flatnonzero(c.pool != NO_POOL)
        column, place, seconds = self._spread(c.from_s[placed], c.to_s[placed], placed)
        delay = self.facts.delay_s[c.job[column], c.pool[column]]
        share = np.minimum(seconds, delay) / self.length[self.late_slots][place]
        row = c.pool[column] * places + place
        total = pools * places
        for needs, each, at in ((rooms.held, self.facts.share, self.at_held), (rooms.nodes, self.facts.workers[:, None] + np.zeros(pools), self.at_on)):
            extra = self._matrix(row, column, share * each[c.job[column], c.pool[column]], total)
            p, k = np.divmod(np.arange(total), places)
            there = self._matrix(np.arange(total), at + p * self.slots + self.late_slots[k], np.ones(total), total)
            kinds = [self._matrix(np.arange(total), self._stuck(kind, k), needs[kind, p], total) for kind in range(len(needs))]
            for full in kinds if rooms.own else [sum(kinds[1:], kinds[0])]:
                self._add((full - extra - there).tocsr())

    def _few_waiting(self, rooms: Rooms) -> None:
        """A kind finds no room only while a job of it waits; said of kinds of few jobs."""
        c, places = self.columns, len(self.late_slots)
        for kind in range(len(rooms.held)):
            if not 0 < (rooms.kind == kind).sum() <= FEW_WAITING:
                continue
            chosen = np.flatnonzero(rooms.kind[c.job] == kind)
            column, place, seconds = self._spread(self.facts.submit_s[c.job[chosen]], c.waits_s[chosen], chosen)
            waits = self._matrix(place, column, seconds / self.length[self.late_slots][place], places)
            stuck = self._matrix(np.arange(places), self._stuck(kind, np.arange(places)), np.ones(places), places)
            self._add((stuck - waits).tocsr())

    # ---------------------------------------------------------------- whole nodes

    def _whole_nodes(self, x: np.ndarray) -> sparse.csr_matrix | None:
        """Rows that the point breaks: a pool has at least the nodes of each of its jobs awake while that job runs."""
        c = self.columns
        chosen = np.flatnonzero((x[: c.size] > 1e-9) & (c.pool != NO_POOL) & (c.end_s > c.begin_s))
        runs = np.zeros((self.jobs, self.pools, self.slots))
        first, last = self._slot_of(c.begin_s[chosen]), np.minimum(self._slot_of(c.end_s[chosen]), self.slots - 1)
        count = np.maximum(last - first + 1, 0)
        which = np.repeat(chosen, count)
        slot = np.repeat(first, count) + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        np.add.at(runs, (c.job[which], c.pool[which], slot), x[which] * self._mean_overlap(which, slot))
        need = runs * self.facts.nodes[:, :, None] - x[self.at_on : self.at_stuck].reshape(self.pools, self.slots)
        worst = np.argsort(-need, axis=None)[:CUTS_PER_ROUND]
        worst = worst[need.ravel()[worst] > LEAST_VIOLATION]
        if not len(worst):
            return None
        job, pool, slot = np.unravel_index(worst, need.shape)
        return self._node_rows(job, pool, slot)

    def _node_rows(self, job: np.ndarray, pool: np.ndarray, slot: np.ndarray) -> sparse.csr_matrix:
        c = self.columns
        order = np.lexsort((c.pool, c.job))
        key = (c.job * (self.pools + 1) + c.pool + 1)[order]
        low = np.searchsorted(key, job * (self.pools + 1) + pool + 1, side="left")
        count = np.searchsorted(key, job * (self.pools + 1) + pool + 1, side="right") - low
        row = np.repeat(np.arange(len(job)), count)
        column = order[np.repeat(low, count) + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)]
        value = self._mean_overlap(column, slot[row]) * self.facts.nodes[job[row], pool[row]]
        keep = value > 0
        on = self._matrix(np.arange(len(job)), self.at_on + pool * self.slots + slot, np.ones(len(job)), len(job))
        return (self._matrix(row[keep], column[keep], value[keep], len(job)) - on).tocsr()

    # ---------------------------------------------------------------- solving

    def solve_lp(self, time_limit_s: float) -> Solution:
        """Solve, add what whole nodes forbid, and solve again; the best proven value of all rounds."""
        best = Solution(self._without_solver(), np.nan, np.zeros(self.size), 0, np.zeros(self.jobs))
        left = time_limit_s
        for turn in range(CUT_ROUNDS):
            below, most = sparse.vstack(self.below).tocsr(), np.concatenate(self.below_to)
            answer = linprog(
                self.cost, below, most, self.equal, self.equal_to, np.stack([np.zeros(self.size), self.most], axis=1),
                method="highs-ds", options={"time_limit": max(left, 1.0)},
            )  # fmt: skip
            if answer.status != 0:
                return best
            proven = self.proven(answer.eqlin.marginals, answer.ineqlin.marginals, below, most)
            tail = np.zeros(self.jobs)
            np.add.at(tail, self.columns.job, np.where(self.columns.late & (self.columns.pool == NO_POOL), answer.x[: self.columns.size], 0.0))
            best = Solution(max(best.bound, proven), float(answer.fun), answer.x, turn + 1, tail)
            cuts = self._whole_nodes(answer.x) if turn + 1 < CUT_ROUNDS else None
            if cuts is None:
                return best
            self._add(cuts)
        return best

    def proven(self, equal: np.ndarray, below: np.ndarray, rows: sparse.csr_matrix, most: np.ndarray) -> float:
        """Value of the dual for any multipliers: a bound whatever the solver's tolerances (Neumaier and Shcherbina 2004)."""
        below = np.minimum(below, 0.0)
        reduced = self.cost - self.equal.T @ equal - rows.T @ below
        return float(equal @ self.equal_to + below @ most + (np.minimum(reduced, 0.0) * self.most).sum())

    def _without_solver(self) -> float:
        """Each job at its cheapest, nodes for nothing: holds when a solver finds nothing in time."""
        c = self.columns
        each = np.full(self.jobs, np.inf)
        some = c.weight > 0
        np.minimum.at(each, c.job[some], c.usd[some] / c.weight[some])
        equal = np.concatenate([each, np.zeros(self.equal.shape[0] - self.jobs)])
        rows = self.below[0]
        return self.proven(equal, np.zeros(rows.shape[0]), rows, self.below_to[0])

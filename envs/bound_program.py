"""The linear program of :mod:`envs.bound`: columns of jobs, occupied and awake nodes by pool and slot, and who may be late.

Variables, all from 0 to a finite most: columns ``x``; ``held [P, K]`` node-equivalents of GPUs that running jobs hold, and ``on [P, K]``
nodes that carry a running job, both means over a slot; ``stuck [T, K]`` the share of a slot in which a job of kind T finds no room.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from scipy import sparse

from envs.bound_columns import FAR_S, NO_POOL, Columns
from envs.bound_rates import JobFacts, Nodes, overlap_s

FEW_WAITING = 8
CUTS_PER_ROUND = 2000
LEAST_VIOLATION = 0.02
LEAST_GPUS = 0.1


@dataclass(frozen=True)
class Rooms:
    """Kinds of jobs by what "no room" implies: T kinds, P pools.

    Attributes:
        kind: int64 ``[J]``.
        held: float64 ``[T, P]``, node-equivalents of GPUs that are held, in a pool, when a job of the kind finds no room.
        nodes: float64 ``[T, P]``, nodes that then hold something.
        gpus: float64 ``[T]``, GPUs that are then held in all pools together.
        edges_s: of the long slots that lateness is told in, ``[N + 1]``, some of the program's edges.
        possible: bool ``[T, N]``, long slots in which a job of the kind may find no room at all.
        own: whether only a job's own lack of room can make it late (discipline ``free``); else that of any job.
    """

    kind: np.ndarray
    held: np.ndarray
    nodes: np.ndarray
    gpus: np.ndarray
    edges_s: np.ndarray
    possible: np.ndarray
    own: bool


def without_impossible(columns: Columns, facts: JobFacts, rooms: Rooms) -> Columns:
    """The columns without those whose job waits, out of free choices, in a slot in which nobody can lack room."""
    edges = rooms.edges_s
    possible = rooms.possible[rooms.kind] if rooms.own else np.broadcast_to(rooms.possible.any(axis=0), (len(rooms.kind), len(edges) - 1))
    open_s = np.full(len(rooms.kind), np.inf)  # until when each job may wait: the first impossible slot after its last free choice
    for j in range(len(open_s)):
        shut = np.flatnonzero(~possible[j] & (edges[1:] > facts.latest_s[j]))
        open_s[j] = max(edges[shut[0]], facts.latest_s[j]) if len(shut) else np.inf
    keep = ~columns.late | (columns.late_s <= open_s[columns.job])
    return Columns(*(getattr(columns, field.name)[keep] for field in fields(Columns)))


class Program:
    """One window's program.

    Args:
        columns: of all jobs; every job's weights sum to 1.
        alone: jobs in parts, bool ``[J]``: at one place at a time.
        pool_gpus: GPUs of a node, ``[P]``.
        rooms: None = starts are free at any time.
    """

    def __init__(
        self,
        facts: JobFacts,
        columns: Columns,
        nodes: Nodes,
        edges_s: np.ndarray,
        alone: np.ndarray,
        pool_gpus: np.ndarray,
        rooms: Rooms | None,
    ) -> None:
        columns = columns if rooms is None else without_impossible(columns, facts, rooms)
        self.job_gpus = facts.share * pool_gpus  # [J, P]
        self.pool_gpus = pool_gpus
        self.facts, self.columns, self.nodes, self.edges, self.rooms = facts, columns, nodes, edges_s, rooms
        self.length = np.diff(edges_s)
        self.pools, self.slots = nodes.on_usd.shape
        self.jobs = len(facts.index)
        self.late_edges = edges_s if rooms is None else rooms.edges_s
        self.late_length = np.diff(self.late_edges)
        self.late_slots = self._late_slots()
        self.within = [np.flatnonzero((edges_s[:-1] >= a) & (edges_s[1:] <= b)) for a, b in pairwise(self.late_edges.tolist())]
        kinds = 0 if rooms is None else len(rooms.held)
        self.at_held = columns.size
        self.at_on = self.at_held + self.pools * self.slots
        self.at_stuck = self.at_on + self.pools * self.slots
        places = len(self.late_slots)
        self.at_waits = self.at_stuck + kinds * places
        self.at_runs = self.at_waits + self.jobs * places
        self.at_placed = self.at_runs + self.jobs * places
        self.size = self.at_placed + places
        self.cost = np.concatenate(
            [columns.usd, np.zeros(self.pools * self.slots), nodes.on_usd.ravel(), np.zeros(self.size - self.at_stuck)]
        )
        up = np.maximum(nodes.up.ravel(), 0.0)
        most_gpus = self.job_gpus.max(axis=1, initial=0.0)
        self.job_most = most_gpus
        self.most = np.concatenate(
            [
                columns.most,
                up,
                up,
                np.zeros(0) if rooms is None else rooms.possible[:, self.late_slots].astype(np.float64).ravel(),
                np.ones(self.jobs * places),
                np.repeat(most_gpus, places),
                np.full(places, 2.0 * most_gpus.sum()),
            ]
        )
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

    def add(self, matrix: sparse.csr_matrix, most: float | np.ndarray = 0.0) -> None:
        self.below.append(matrix)
        self.below_to.append(np.broadcast_to(np.asarray(most, dtype=np.float64), (matrix.shape[0],)))

    def _slot_of(self, time_s: np.ndarray, edges_s: np.ndarray | None = None) -> np.ndarray:
        return np.searchsorted(self.edges if edges_s is None else edges_s, time_s, side="right") - 1

    def _mean_overlap(self, column: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Share of slots in which columns certainly run."""
        c = self.columns
        return _share(c.begin_s[column], c.end_s[column], self.edges, slot)

    def _equalities(self) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Each job is done once; what is held in a slot, and who waits and runs in the late ones."""
        c, places = self.columns, len(self.late_slots)
        every = np.arange(c.size)
        once = self._matrix(c.job, every, c.weight, self.jobs)
        runs = np.flatnonzero((c.pool != NO_POOL) & (c.end_s > c.begin_s))
        job, pool = c.job[runs], c.pool[runs]
        held = self._states(
            self.edges, self.at_held, self.pools, pool, runs, c.begin_s[runs], c.end_s[runs], self.facts.share[job, pool], 0, self.slots
        )
        rows = [once, held]
        if places:
            low, high = int(self.late_slots[0]), int(self.late_slots[-1]) + 1
            late = np.flatnonzero(c.late)
            since, until = self.facts.latest_s[c.job[late]], np.minimum(c.late_s[late], self.edges[-1])
            rows.append(
                self._states(self.late_edges, self.at_waits, self.jobs, c.job[late], late, since, until, np.ones(len(late)), low, high)
            )
            rows.append(
                self._states(
                    self.late_edges, self.at_runs, self.jobs, job, runs, c.begin_s[runs], c.end_s[runs], self.job_gpus[job, pool], low, high
                )
            )
            rows.append(self._placed())
        equal = sparse.vstack(rows).tocsr()
        return equal, np.concatenate([np.ones(self.jobs), np.zeros(equal.shape[0] - self.jobs)])

    def _states(
        self,
        edges_s: np.ndarray,
        at: int,
        groups: int,
        group: np.ndarray,
        columns: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        each: np.ndarray,
        low: int,
        high: int,
    ) -> sparse.csr_matrix:
        """Mean over slots ``low`` to ``high`` of what intervals of columns hold, as changes from slot to slot: 0 but at begins and ends."""
        width = high - low
        first, last = self._slot_of(begin, edges_s), self._slot_of(end, edges_s)
        near = np.stack([np.full(len(columns), low), first, first + 1, first + 2, last, last + 1, last + 2], axis=1)
        row, column, value = [], [], []
        for place in range(near.shape[1]):
            slot = near[:, place]
            before = np.where(slot > low, _share(begin, end, edges_s, slot - 1), 0.0)
            change = _share(begin, end, edges_s, slot) - before
            keep = (slot >= low) & (slot < high) & (change != 0) & ~(near[:, :place] == slot[:, None]).any(axis=1)
            row.append((group * width + slot - low)[keep])
            column.append(columns[keep])
            value.append((change * each)[keep])
        every = np.arange(groups * width)
        later = every[every % width > 0]
        row += [every, later]
        column += [at + every, at + later - 1]
        value += [-np.ones(len(every)), np.ones(len(later))]
        return self._matrix(np.concatenate(row), np.concatenate(column), np.concatenate(value), len(every))

    def _placed_share(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(column, late place, most share of the slot) in which gangs of columns may be placed and not running."""
        placed = np.flatnonzero(self.columns.pool != NO_POOL)
        column, place, seconds = self._spread(self.columns.from_s[placed], self.columns.to_s[placed], placed)
        delay = self.facts.delay_s[self.columns.job[column], self.columns.pool[column]]
        return column, place, np.minimum(seconds, delay) / self.late_length[self.late_slots][place]

    def _placed(self) -> sparse.csr_matrix:
        """GPUs of gangs that may be placed and not running."""
        column, place, share = self._placed_share()
        places = len(self.late_slots)
        gpus = share * self.job_gpus[self.columns.job[column], self.columns.pool[column]]
        minus = self._matrix(np.arange(places), self.at_placed + np.arange(places), -np.ones(places), places)
        return (self._matrix(place, column, gpus, places) + minus).tocsr()

    def _held_below_on(self) -> None:
        at = np.arange(self.pools * self.slots)
        ones = np.ones(len(at))
        both = np.concatenate([self.at_held + at, self.at_on + at])
        self.add(self._matrix(np.concatenate([at, at]), both, np.concatenate([ones, -ones]), len(at)))

    def _one_place(self, alone: np.ndarray) -> None:
        """A job in parts runs at one place at a time."""
        c = self.columns
        chosen = np.flatnonzero(alone[c.job] & (c.pool != NO_POOL))
        slot = self._slot_of(c.begin_s[chosen])
        key, row = np.unique(c.job[chosen] * self.slots + slot, return_inverse=True)
        most = np.zeros(len(key))
        np.maximum.at(most, row, c.most[chosen])
        self.add(self._matrix(row, chosen, np.ones(len(chosen)), len(key)), most)

    # ---------------------------------------------------------------- who may be late

    def _late_slots(self) -> np.ndarray:
        """Slots in which some job may wait without a free choice."""
        c = self.columns
        late = np.flatnonzero(c.late)
        if self.rooms is None or not len(late):
            return np.zeros(0, dtype=np.int64)
        latest = self.facts.latest_s[c.job[late]]
        begin, end = latest.min(), min(float(latest.max()) + FAR_S, float(self.edges[-1]))
        slots = np.arange(len(self.late_length))
        return slots[(self.late_edges[1:] > begin) & (self.late_edges[:-1] < end)]

    def _spread(self, begin: np.ndarray, end: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(column, place in late_slots, seconds) of each interval's part of each late slot."""
        low, high = self.late_slots[0], self.late_slots[-1]
        edges = self.late_edges
        first = np.clip(self._slot_of(begin, edges), low, None)
        last = np.clip(self._slot_of(np.minimum(end, edges[-1]), edges), None, high)
        count = np.maximum(last - first + 1, 0)
        which = np.repeat(np.arange(len(columns)), count)
        slot = np.repeat(first, count) + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        seconds = overlap_s(begin[which], end[which], edges, slot)
        keep = seconds > 0
        return columns[which[keep]], slot[keep] - low, seconds[keep]

    def _stuck(self, kind: int, place):
        return self.at_stuck + kind * len(self.late_slots) + place

    def _late_rows(self, rooms: Rooms) -> None:
        """Nobody waits without a free choice unless somebody finds no room, and then nodes are full (docs/bound.md, "Late starts")."""
        kinds, places = len(rooms.held), len(self.late_slots)
        with_late = np.unique(self.columns.job[self.columns.late])
        job, at = np.repeat(with_late, places), np.tile(np.arange(places), len(with_late))
        rows = np.arange(len(job))
        waiting = self._matrix(rows, self.at_waits + job * places + at, np.ones(len(job)), len(job))
        if rooms.own:
            stuck = self._matrix(rows, self._stuck(0, at) + rooms.kind[job] * places, np.ones(len(job)), len(job))
        else:
            every = np.concatenate([self._stuck(kind, at) for kind in range(kinds)])
            stuck = self._matrix(np.tile(rows, kinds), every, np.ones(len(every)), len(job))
            all_kinds = np.concatenate([self._stuck(kind, np.arange(places)) for kind in range(kinds)])
            self.add(self._matrix(np.tile(np.arange(places), kinds), all_kinds, np.ones(len(all_kinds)), places), 1.0)
        self.add((waiting - stuck).tocsr())
        self._full_nodes(rooms)
        self._few_waiting(rooms)

    def _full_nodes(self, rooms: Rooms) -> None:
        """Where a kind finds no room, so much is held, and so many nodes are in use or placed on."""
        c, places, pools = self.columns, len(self.late_slots), self.pools
        column, place, share = self._placed_share()
        row, total = c.pool[column] * places + place, pools * places
        workers = np.broadcast_to(self.facts.workers[:, None], self.facts.share.shape)
        for needs, each, at in ((rooms.held, self.facts.share, self.at_held), (rooms.nodes, workers, self.at_on)):
            extra = self._matrix(row, column, share * each[c.job[column], c.pool[column]], total)
            p, k = np.divmod(np.arange(total), places)
            within = [self.within[slot] for slot in self.late_slots[k]]
            count = np.array([len(slots) for slots in within])
            fine = np.concatenate(within)
            share_of = self.length[fine] / np.repeat(self.late_length[self.late_slots[k]], count)
            there = self._matrix(np.repeat(np.arange(total), count), at + np.repeat(p, count) * self.slots + fine, share_of, total)
            kinds = [self._matrix(np.arange(total), self._stuck(kind, k), needs[kind, p], total) for kind in range(len(needs))]
            for full in kinds if rooms.own else [sum(kinds[1:], kinds[0])]:
                self.add((full - extra - there).tocsr())

    def who_runs(self, x: np.ndarray) -> sparse.csr_matrix | None:
        """Rows that the point breaks: while nobody finds room, those who wait do not run, and yet so much is held."""
        rooms, places = self.rooms, len(self.late_slots)
        if rooms is None or not places:
            return None
        kinds = len(rooms.held)
        stuck = x[self.at_stuck : self.at_waits].reshape(kinds, places)
        waits, runs = (x[at : at + self.jobs * places].reshape(self.jobs, places) for at in (self.at_waits, self.at_runs))
        fine_held = self.pool_gpus @ x[self.at_held : self.at_on].reshape(self.pools, self.slots)
        held = np.array([fine_held[self.within[k]] @ self.length[self.within[k]] / self.late_length[k] for k in self.late_slots])
        gpus, cuts = self.job_most, []
        for group in [[kind] for kind in range(kinds)] if rooms.own else [list(range(kinds))]:
            mine = rooms.kind == group[0] if rooms.own else np.ones(self.jobs, dtype=np.bool_)
            share = stuck[group].sum(axis=0)  # [places]
            room = gpus[:, None] * (share - np.where(mine[:, None], waits, 0.0))
            chosen = runs > room
            excess = np.where(chosen, runs - room, 0.0).sum(axis=0)
            need = (rooms.gpus[group] @ stuck[group]) - x[self.at_placed :] - held + excess
            cuts += [(group, mine, int(k), np.flatnonzero(chosen[:, k])) for k in np.flatnonzero(need > LEAST_GPUS)]
        if not cuts:
            return None
        row, column, value = [], [], []
        for number, (group, mine, k, jobs) in enumerate(cuts):
            slots = self.within[self.late_slots[k]]
            pools = (self.at_held + np.arange(self.pools)[:, None] * self.slots + slots).ravel()
            minus = -(self.pool_gpus[:, None] * self.length[slots] / self.late_length[self.late_slots[k]]).ravel()
            late = jobs[mine[jobs]]
            column += [self._stuck(0, k) + np.array(group) * places, self.at_waits + late * places + k, self.at_runs + jobs * places + k]
            column += [pools, np.array([self.at_placed + k])]
            value += [rooms.gpus[group] - gpus[jobs].sum(), gpus[late], np.ones(len(jobs)), minus, -np.ones(1)]
            row.append(np.full(sum(len(part) for part in column[-5:]), number))
        return self._matrix(np.concatenate(row), np.concatenate(column), np.concatenate(value), len(cuts))

    def _few_waiting(self, rooms: Rooms) -> None:
        """A kind finds no room only while a job of it waits; said of kinds of few jobs."""
        c, places = self.columns, len(self.late_slots)
        for kind in range(len(rooms.held)):
            if not 0 < (rooms.kind == kind).sum() <= FEW_WAITING:
                continue
            chosen = np.flatnonzero(rooms.kind[c.job] == kind)
            column, place, seconds = self._spread(self.facts.submit_s[c.job[chosen]], c.waits_s[chosen], chosen)
            waits = self._matrix(place, column, seconds / self.late_length[self.late_slots][place], places)
            stuck = self._matrix(np.arange(places), self._stuck(kind, np.arange(places)), np.ones(places), places)
            self.add((stuck - waits).tocsr())

    # ---------------------------------------------------------------- whole nodes

    def whole_nodes(self, x: np.ndarray) -> sparse.csr_matrix | None:
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


def _share(begin: np.ndarray, end: np.ndarray, edges_s: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """Share of slots that intervals cover."""
    return overlap_s(begin, end, edges_s, slot) / np.diff(edges_s)[np.clip(slot, 0, len(edges_s) - 2)]

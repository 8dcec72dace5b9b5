"""Who held which GPU when: from pod labels first, then from the job table.

The steps, in order; each uses what the ones before left free:

1. *Labels.* A pod's job is found by name. A job that was seen on no more boards than it has GPUs holds each of them from its start to
   its end, so a label that is lost for a while, or that shows only one of several pods of a board, is repaired. Pods without a known job,
   jobs seen on more boards than they have, boards with several pods at once and MIG slices hold what the samples say.
2. *Worker pods.* A pod without a job that is on all boards of a node where the job table has jobs (a Slurm daemon in Kubernetes) is no
   owner.
3. *Matching.* A job whose boards are not all known is put on the boards that fit: of its nodes or its pool, with room over its whole
   run, and busy in it. Exactly as many as it needs: repaired. This repeats, since each job placed leaves fewer boards to the others.
   Where more fit, it is put on those whose watts rise with its start and fall with its end, if they stand out by that.
4. *Node.* Jobs whose nodes are known but not their boards share what is free of these nodes' boards by their GPUs.
5. *Ambiguous.* Jobs of which neither is known count as nobody on the boards that they may be on.
6. *Nobody.* What is busy and still without an owner.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from telemetry.energy import NS_PER_S, EnergyRules, Grid, cut
from telemetry.labels import Boards, Labels, read_labels
from telemetry.owners import FOREVER, JobSpans, Owners, jobs_of_pods

NOBODY = 0
BUSY_SHARE = 0.8  # share of a run's whole intervals in which a board must be busy to be the run's
MATCH_PASSES = 8
STEP_SHARE, RIVAL_SHARE = 0.1, 0.5  # a step is this share of the board's range of watts; the next board's, at most this of it
FULL = 1e-6


@dataclass
class Claims:
    """Held GPU seconds, one entry per board, interval and owner.

    ``gpu_s`` is the board's time held (a quarter of a GPU for 8 s = 2), ``weight`` what the energy above idle is split by.
    """

    board: np.ndarray
    interval: np.ndarray
    owner: np.ndarray
    gpu_s: np.ndarray
    weight: np.ndarray
    counts: Counter[str] = field(default_factory=Counter)


class Claimant:
    """Builds the claims of a window; see the module."""

    def __init__(
        self, boards: Boards, spans: JobSpans, grid: Grid, rules: EnergyRules, *, busy_use: float, busy_watts: float, mig: dict[str, float]
    ) -> None:
        self.boards, self.spans, self.grid, self.rules = boards, spans, grid, rules
        self.busy_use, self.busy_watts, self.mig = busy_use, busy_watts, mig
        self.owners = Owners(spans)
        self.counts: Counter[str] = Counter()
        D, T = len(boards.node), len(grid)
        self.shape = (D, T)
        self.held = np.zeros((D, T))  # GPU seconds claimed
        self.present = np.zeros((D, T))  # seconds in which anybody is on the board
        self.busy_s = np.zeros((D, T))
        self.use_s = np.zeros((D, T))
        self.bare_s = np.zeros((D, T))  # busy seconds without a label
        self.has_use = np.zeros(D, dtype=bool)
        self.step_s = np.zeros(D)
        self.pooled = np.zeros(
            (len(boards.node_names), T), dtype=bool
        )  # a node's boards are shared by jobs of which only the node is known
        self.placed: dict[int, set[int]] = {}
        self._entries: list[tuple[np.ndarray, ...]] = []

    def run(self, samples: pd.DataFrame) -> Claims:
        """All steps over the canonical samples of the window."""
        labels = read_labels(samples, self.boards, self.rules, self.busy_use, self.busy_watts, self.mig)
        self.has_use[labels.board[labels.measured]] = True
        self._measure(labels)
        self._label_claims(labels)
        self._match()
        self._share()
        self._nobody()
        return self._claims()

    # What the samples say

    def _measure(self, la: Labels) -> None:
        """Busy seconds, utilisation seconds and busy seconds without a label of every board and interval."""
        np.maximum.at(self.step_s, la.board, la.step_s)
        part = la.share / la.together
        ones = np.ones(len(la.board))
        pieces = cut(self.grid, la.begin_ns, la.end_ns, ones, ones)
        cell, row = la.board[pieces.row] * self.shape[1] + pieces.interval, pieces.row
        size = self.shape[0] * self.shape[1]
        bare = (la.pods["pod_uid"] == "").to_numpy()[la.pod]
        for target, amount in (("busy_s", la.busy * part), ("use_s", la.use * part), ("bare_s", la.busy * bare * part)):
            setattr(self, target, np.bincount(cell, amount[row] * pieces.seconds, minlength=size).reshape(self.shape))

    # 1 and 2: labels

    def _label_claims(self, la: Labels) -> None:
        job = jobs_of_pods(la.pods["pod_uid"].to_numpy(), self.spans.table["job_id"].to_numpy())
        pods = zip(job, la.pods.itertuples(index=False), strict=True)
        owner = np.array([self.owners.of(j, *row) if row[0] else NOBODY for j, row in pods], dtype=np.int64)
        owner[self._workers(la, job)] = NOBODY
        named = owner[la.pod] != NOBODY
        plain = np.ones(self.shape[0], dtype=bool)
        plain[la.board[(la.together > 1) | (la.share < 1)]] = False
        board, pod = _pairs(la.board[named], la.pod[named], len(la.pods))
        seen: dict[int, set[int]] = {}
        for d, p in zip(board.tolist(), pod.tolist(), strict=True):
            if job[p] >= 0:
                seen.setdefault(int(job[p]), set()).add(d)
        steady = {j for j, on in seen.items() if len(on) <= self.spans.boards[j] and all(plain[d] for d in on)}
        self.counts["jobs seen in labels"] = len(seen)
        self.counts["jobs seen on more GPUs than they have"] = sum(len(on) > self.spans.boards[j] for j, on in seen.items())
        self.counts["pods without a job"] = len({p for p in pod.tolist() if job[p] < 0})
        for d, p in zip(board.tolist(), pod.tolist(), strict=True):
            if job[p] in steady and d not in self.placed.get(int(job[p]), ()):
                self._place(int(job[p]), [d], int(owner[p]))
        by_sample = named & ~np.isin(job[la.pod], sorted(steady))
        self._sample_claims(la, by_sample, owner, job)
        for j, on in seen.items():
            self.placed[j] = on

    def _workers(self, la: Labels, job: np.ndarray) -> np.ndarray:
        """Pods that are workload managers: without a job, on every board of a node that the job table names."""
        known = {name for names in self.spans.nodes for name in names}
        size = np.bincount(self.boards.node, minlength=len(self.boards.node_names))
        board, pod = _pairs(la.board, la.pod, len(la.pods))
        on, count = np.unique(self.boards.node[board] * len(la.pods) + pod, return_counts=True)
        worker = np.zeros(len(job), dtype=bool)
        for n, p, number in zip(on // len(la.pods), on % len(la.pods), count, strict=True):
            if job[p] < 0 and number == size[n] and self.boards.node_names[n] in known and la.pods["pod_uid"].iloc[p]:
                worker[p] = True
        self.counts["worker pods, whose jobs are those of the job table"] = int(worker.sum())
        return np.flatnonzero(worker)

    def _place(self, job: int, boards: list[int], owner: int) -> None:
        """The job holds these boards for its whole run."""
        begin, end = int(self.spans.begin_ns[job]), int(self.spans.end_ns[job])
        first, seconds = self._inside(begin, end)
        part = min(self.spans.gpus[job], 1.0)
        T = len(seconds)
        for d in boards:
            use = self._use(d, first, T)
            self._add(np.full(T, d), np.arange(first, first + T), np.full(T, owner), part * seconds, part * seconds * use)
            self.present[d, first : first + T] += seconds
        self.placed.setdefault(job, set()).update(boards)

    def _inside(self, begin_ns: int, end_ns: int) -> tuple[int, np.ndarray]:
        """First interval that the time touches, and its seconds in each of the intervals from there."""
        edges = self.grid.edges_ns
        low, high = max(begin_ns, edges[0]), min(end_ns, edges[-1])
        first = int(np.searchsorted(edges, low, side="right")) - 1
        last = int(np.searchsorted(edges, high, side="left"))
        inner = edges[first : last + 1]
        return first, (np.minimum(inner[1:], high) - np.maximum(inner[:-1], low)) / NS_PER_S

    def _use(self, d: int, first: int, T: int) -> np.ndarray:
        """Mean utilisation of a board in its intervals; 1 where there is none."""
        if not self.has_use[d]:
            return np.ones(T)
        return np.maximum(self.use_s[d, first : first + T] / self.grid.seconds[first : first + T], FULL)

    def _sample_claims(self, la: Labels, chosen: np.ndarray, owner: np.ndarray, job: np.ndarray) -> None:
        rows = np.flatnonzero(chosen)
        begin, end, of = la.begin_ns[rows], la.end_ns[rows], job[la.pod[rows]]
        if len(self.spans):
            start, stop = (np.where(of >= 0, a[of], b) for a, b in ((self.spans.begin_ns, -FOREVER), (self.spans.end_ns, FOREVER)))
            inside = (start < end) & (stop > begin)
            begin, end = np.where(inside, np.maximum(begin, start), begin), np.where(inside, np.minimum(end, stop), end)
            wanted = np.where((of >= 0) & (self.spans.gpus[of] < 1), self.spans.gpus[of], 1.0)
        else:
            wanted = np.ones(len(rows))
        part = np.where(la.share[rows] < 1, la.share[rows], np.minimum(wanted, 1.0 / la.together[rows]))
        ones = np.ones(len(rows))
        pieces = cut(self.grid, begin, end, ones, ones)
        at = rows[pieces.row]
        # Pods that share a board are weighed by their own utilisation, a slice by its part of the board as well.
        scale = np.where(la.share[at] < 1, la.share[at], np.where(la.together[at] > 1, 1.0, part[pieces.row]))
        weight = pieces.seconds * scale * np.maximum(la.use[at], FULL)
        self._add(la.board[at], pieces.interval, owner[la.pod[at]], part[pieces.row] * pieces.seconds, weight)
        seconds = pieces.seconds * np.where(la.share[at] < 1, la.share[at], 1.0 / la.together[at])
        np.add.at(self.present, (la.board[at], pieces.interval), seconds)

    def _add(self, board: np.ndarray, interval: np.ndarray, owner: np.ndarray, gpu_s: np.ndarray, weight: np.ndarray) -> None:
        self._entries.append((board, interval, owner, gpu_s, weight))
        np.add.at(self.held, (board, interval), gpu_s)

    # 3: matching

    def _missing(self, job: int) -> int:
        return int(self.spans.boards[job]) - len(self.placed.get(job, ()))

    def _match(self) -> None:
        index = {str(name): n for n, name in enumerate(self.boards.node_names)}
        self._of_node = {n: np.flatnonzero(self.boards.node == n) for n in range(len(self.boards.node_names))}
        named = {name for names in self.spans.nodes for name in names}
        self.counts["nodes of jobs that no sample knows"] = len(named - set(index))
        self.counts["jobs without an end"] = self.spans.open_end
        self._nodes = [np.array([index[name] for name in names if name in index], dtype=np.int64) for names in self.spans.nodes]
        self._busy = self.busy_s > 0
        watts = np.nan_to_num(self.boards.watts)
        self._range_w = watts.max(axis=1) - self.boards.idle_w
        self._known = ~np.isnan(self.boards.watts) | (self.busy_s > 0)
        waiting = [j for j in np.argsort(self.spans.begin_ns, kind="stable").tolist() if self._missing(j) > 0]
        self.counts["jobs with GPUs that no label shows"] = len(waiting)
        edges = self.grid.edges_ns
        ends = (np.searchsorted(edges, np.clip(t, edges[0], edges[-1])) for t in (self.spans.begin_ns, self.spans.end_ns))
        self._spans = np.stack(list(ends), axis=1)
        self.waiting = self._passes(waiting)
        for _ in range(MATCH_PASSES):
            left = [j for j in self.waiting if not self._try_steps(j)]
            if len(left) == len(self.waiting):
                break
            self.waiting = self._passes(left)

    def _passes(self, waiting: list[int]) -> list[int]:
        """The jobs that are left when no more of them has only one place."""
        for _ in range(MATCH_PASSES):
            left = [j for j in waiting if not self._try(j)]
            if len(left) == len(waiting):
                break
            waiting = left
        return waiting

    def _try(self, job: int) -> bool:
        """Put the job where it must be; False when several or no places fit."""
        fit = self._fitting(job, self.held, busy=True)
        if len(fit) != self._missing(job):
            return False
        self._place(job, fit.tolist(), self.owners.of(job))
        self.counts["jobs repaired: one place fits"] += 1
        return True

    def _try_steps(self, job: int) -> bool:
        """Put the job where the watts rise with its start and fall with its end; False when no boards stand out by that."""
        fit, missing = self._fitting(job, self.held, busy=True), self._missing(job)
        if len(fit) <= missing or self._has_twin(job, fit):
            return False
        step = self._steps(job, fit)
        order = np.argsort(-step, kind="stable")
        best, rival = step[order[missing - 1]], step[order[missing]]
        if best < STEP_SHARE * self._range_w[fit].max() * min(self.spans.gpus[job], 1.0) or rival > RIVAL_SHARE * best:
            return False
        self._place(job, fit[order[:missing]].tolist(), self.owners.of(job))
        self.counts["jobs repaired: several places fit, the load steps with them in one"] += 1
        return True

    def _has_twin(self, job: int, boards: np.ndarray) -> bool:
        """Whether another job without a place starts and ends with this one, on boards that it may be on: steps cannot tell them apart."""
        spans, waiting = self._spans, np.array(self.waiting, dtype=np.int64)
        near = waiting[(np.abs(spans[waiting] - spans[job]) <= 1).all(axis=1) & (waiting != job)]
        return any(len(np.intersect1d(self._candidates(int(k)), boards)) for k in near if self._missing(int(k)) > 0)

    def _steps(self, job: int, boards: np.ndarray) -> np.ndarray:
        """Watts by which each board rises at the job's start and falls at its end, the smaller of the two; 0 where neither is seen."""
        first, seconds = self._inside(int(self.spans.begin_ns[job]), int(self.spans.end_ns[job]))
        inner = first + np.flatnonzero(seconds >= 0.999 * self.grid.seconds[first : first + len(seconds)])
        if not len(inner):
            return np.zeros(len(boards))
        watts, after = self.boards.watts[boards], first + len(seconds)
        unseen = np.full(len(boards), np.inf)
        rise = watts[:, inner[0]] - watts[:, first - 1] if first > 0 else unseen
        fall = watts[:, inner[-1]] - watts[:, after] if after < self.shape[1] else unseen
        step = np.minimum(rise, fall)
        return np.where(np.isfinite(step), step, 0.0)

    def _candidates(self, job: int) -> np.ndarray:
        if self.spans.nodes[job]:
            parts = [self._of_node[n] for n in self._nodes[job].tolist()]
            return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        pool = self.spans.table["pool"].iloc[job]
        if not isinstance(pool, str):
            return np.arange(self.shape[0])
        return np.flatnonzero((self.boards.pool == pool) | (self.boards.pool == ""))

    def _fitting(self, job: int, held: np.ndarray, *, busy: bool) -> np.ndarray:
        """Boards with room beside ``held`` over the whole run; ``busy``: that also compute in it."""
        boards = self._candidates(job)
        taken = self.placed.get(job)
        if taken:
            boards = np.setdiff1d(boards, sorted(taken))
        first, seconds = self._inside(int(self.spans.begin_ns[job]), int(self.spans.end_ns[job]))
        span = slice(first, first + len(seconds))
        part = min(self.spans.gpus[job], 1.0)
        free = self.grid.seconds[span] - held[boards, span]
        fits = (free >= part * seconds * 0.999 - 1.0).all(axis=1)
        if busy and len(boards):
            whole = seconds > 0.5 * self.grid.seconds[span]
            if not whole.any():
                whole[:] = True
            counted = self._known[boards, span] & whole
            active = (self._busy[boards, span] & counted).sum(axis=1)
            fits &= active >= BUSY_SHARE * counted.sum(axis=1)
        return boards[fits]

    # 4 and 5: shares

    def _share(self) -> None:
        """Jobs that match no single place: over their nodes by GPUs, or as nobody over the boards that they may be on."""
        wanted: dict[int, list[tuple[int, int, np.ndarray]]] = {}
        certain = self.held.copy()
        for job in self.waiting:
            first, seconds = self._inside(int(self.spans.begin_ns[job]), int(self.spans.end_ns[job]))
            need = min(self.spans.gpus[job], 1.0) * self._missing(job) * seconds
            if len(self._nodes[job]):
                self.counts["jobs shared: the node is known, the GPU is not"] += 1
                for n, part in zip(self._nodes[job].tolist(), self._parts(job), strict=True):
                    wanted.setdefault(n, []).append((job, first, need * part))
            elif not self.spans.nodes[job]:
                self.counts["jobs ambiguous: several places or none fit"] += 1
                fit = self._fitting(job, certain, busy=True)
                fit = fit if len(fit) else self._fitting(job, certain, busy=False)
                if len(fit) >= self._missing(job):
                    self._spread(fit, first, need, NOBODY, certain)
        for n, jobs in sorted(wanted.items()):
            self._share_node(n, jobs)

    def _parts(self, job: int) -> np.ndarray:
        """Part of what the job misses on each of its nodes, which hold equal numbers of its boards."""
        nodes = self._nodes[job]
        on = np.bincount(self.boards.node[sorted(self.placed.get(job, ()))], minlength=len(self.boards.node_names))[nodes]
        missing = np.maximum(self.spans.boards[job] / len(self.spans.nodes[job]) - on, 0.0)
        return missing / missing.sum() if missing.sum() > 0 else np.full(len(nodes), 1.0 / len(nodes))

    def _share_node(self, n: int, jobs: list[tuple[int, int, np.ndarray]]) -> None:
        """Jobs over the free time of node ``n``'s boards; where they want more than there is, each gets its part of it."""
        boards, T = self._of_node[n], self.shape[1]
        total = np.zeros(T)
        for _, first, need in jobs:
            total[first : first + len(need)] += need
        free = np.maximum(self.grid.seconds - self.held[boards], 0.0).sum(axis=0)
        self.pooled[n] |= total > 0
        over = total > free * 1.001 + 1.0
        self.counts["node intervals with more GPUs asked for than there are"] += int(over.sum())
        cap = np.where(total > free, np.divide(free, total, out=np.zeros(T), where=total > 0), 1.0)
        base = self.held.copy()
        for job, first, need in jobs:
            use = self.spans.table["gpu_utilization"].iloc[job]
            self._spread(boards, first, need * cap[first : first + len(need)], self.owners.of(job), base, 1.0 if np.isnan(use) else use)
            if self.spans.gpus[job] < 1:  # a share makes all of its board busy
                extra = (1 / self.spans.gpus[job] - 1) * need
                self.present[boards, first : first + len(need)] += extra / len(boards)

    def _spread(self, boards: np.ndarray, first: int, need: np.ndarray, owner: int, held: np.ndarray, use: float = 1.0) -> None:
        """GPU seconds over boards in the proportion of what was free of each in ``held``."""
        T = len(need)
        span = slice(first, first + T)
        free = np.maximum(self.grid.seconds[span] - held[boards, span], 0.0)
        total = free.sum(axis=0)
        part = np.divide(free, total, out=np.zeros_like(free), where=total > 0) * np.minimum(need, total)
        board = np.repeat(boards, T)
        interval = np.tile(np.arange(first, first + T), len(boards))
        measured = np.stack([self._use(int(d), first, T) for d in boards]) if len(boards) else part
        self._add(board, interval, np.full(len(board), owner), part.ravel(), (part * measured * use).ravel())
        self.present[boards, span] += part

    # 6: the rest

    def _nobody(self) -> None:
        """Busy time with nobody on the board. Where somebody is, the edge of a run blurs by up to one sample."""
        blur = np.where(self.present > 0, self.step_s[:, None], 0.0)
        lost = np.maximum(self.busy_s - self.present - blur, 0.0)
        for n in np.flatnonzero(self.pooled.any(axis=1)):
            on = np.ix_(self._of_node[n], np.flatnonzero(self.pooled[n]))
            more = np.maximum((self.busy_s[on] - self.present[on] - blur[on]).sum(axis=0), 0.0)
            lost[on] *= np.minimum(np.divide(more, lost[on].sum(axis=0), out=np.zeros_like(more), where=more > 0), 1.0)
        lost = np.minimum(lost, np.maximum(self.grid.seconds - self.held, 0.0))
        lost[lost < FULL] = 0.0
        board, interval = np.nonzero(lost)
        amount = lost[board, interval]
        use = np.where(
            self.has_use[board], np.maximum(self.use_s[board, interval] / np.maximum(self.busy_s[board, interval], FULL), FULL), 1.0
        )
        self._add(board, interval, np.full(len(board), NOBODY), amount, amount * use)
        bare = self.bare_s.sum() / 3600
        left = np.minimum(self.bare_s, lost).sum() / 3600
        self.hours = {"busy without a label": float(bare), "repaired or shared": float(bare - left), "left without an owner": float(left)}

    def _claims(self) -> Claims:
        """Entries of one board, interval and owner as one; boards claimed beyond their time are scaled to it."""
        columns = [np.concatenate(parts) for parts in zip(*self._entries, strict=True)]
        board, interval, owner, gpu_s, weight = columns
        count = len(self.owners.job_rows())
        key = (board * self.shape[1] + interval) * count + owner
        distinct, inverse = np.unique(key, return_inverse=True)
        gpu_s, weight = (np.bincount(inverse, a, minlength=len(distinct)) for a in (gpu_s, weight))
        owner, cell = distinct % count, distinct // count
        total = np.bincount(cell, gpu_s, minlength=self.shape[0] * self.shape[1])
        length = np.tile(self.grid.seconds, self.shape[0])
        self.counts["GPU intervals claimed beyond their time"] = int((total > length * 1.001 + 1.0).sum())
        gpu_s = gpu_s * np.where(total > length, length / np.maximum(total, FULL), 1.0)[cell]
        return Claims(cell // self.shape[1], cell % self.shape[1], owner, gpu_s, weight, self.counts)


def _pairs(board: np.ndarray, pod: np.ndarray, pods: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (board, pod) pairs."""
    key = np.unique(board * pods + pod)
    return key // max(pods, 1), key % max(pods, 1)

"""Who ran where: a simple first-come-first-served replay of the sample's jobs, and the watts that follow from it.

The placement is that of an ordinary cluster (first come, first served, jobs that do not fit are passed by, least allocated node,
full power, nodes always on), not of Joulewise: the sample shows what a cluster looked like *before*.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.power.curves import levels_for
from envs.sample.settings import INTERVAL_S, NEVER, NODE_FAILURE, SampleSettings
from envs.sample.workload import rhythm, slow_noise
from telemetry.classes import CLASS_INDEX

GPU = 1000  # thousandths


@dataclass(frozen=True)
class Share:
    """``milli`` thousandths of GPU ``device`` (index over all nodes) held by job row ``job``."""

    job: int
    device: int
    milli: int


@dataclass(frozen=True)
class Replay:
    """Outcome of the replay. ``jobs`` gains ``start_s, end_s, run_until_s, state, pool, nodes``.

    ``NEVER`` and "" where a job had not started or ended when the period was over; jobs that ended before it are left out."""

    jobs: pd.DataFrame
    shares: list[Share]
    gpus_per_node: int


@dataclass(frozen=True)
class Watts:
    """Means over the intervals. Device arrays are ``[D, T]``, node arrays ``[N, T]``.

    ``node_w`` = sum of its ``gpu_w`` + ``cpu_w`` + the node's idle watts, exactly; meter noise is added by the exports only.
    ``holder`` is the job row that holds most of the device at the end of the interval, -1 when idle. ``job_j``, ``[J]``, is what each job
    used in the period: its GPUs' active energy, its CPUs, and its GPUs' part of the idle energy of GPUs and nodes.
    """

    gpu_w: np.ndarray
    utilization: np.ndarray
    cpu_w: np.ndarray
    node_idle_w: np.ndarray
    node_w: np.ndarray
    holder: np.ndarray
    job_j: np.ndarray


class _Cluster:
    """Free thousandths per device and the pools of every site."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self.cluster = cluster
        self.gpus = cluster.pools[0].gpus_per_node
        self.pool_nodes: list[np.ndarray] = []
        first = 0
        for pool in cluster.pools:
            self.pool_nodes.append(np.arange(first, first + pool.nodes))
            first += pool.nodes
        self.free = np.full((first, self.gpus), GPU, dtype=np.int64)
        self.down = np.zeros(first, dtype=bool)

    def place(self, pool: int, milli: int, workers: int) -> list[tuple[int, int, int]] | None:
        """(node, gpu, thousandths) of a gang on the least allocated nodes, or None; nothing is taken when it does not fit."""
        free = self.free.copy()
        taken: list[tuple[int, int, int]] = []
        for _ in range(workers):
            spot = self._worker(free, self.pool_nodes[pool], milli)
            if not spot:
                return None
            for node, gpu, part in spot:
                free[node, gpu] -= part
            taken.extend(spot)
        self.free = free
        return taken

    def _worker(self, free: np.ndarray, nodes: np.ndarray, milli: int) -> list[tuple[int, int, int]]:
        for node in nodes[np.argsort(-free[nodes].sum(axis=1), kind="stable")]:
            if self.down[node]:
                continue
            if milli < GPU:
                fits = np.flatnonzero(free[node] >= milli)
                if len(fits):  # fill shared GPUs first
                    return [(int(node), int(fits[np.argmin(free[node, fits])]), milli)]
            else:
                whole = np.flatnonzero(free[node] == GPU)[: milli // GPU]
                if len(whole) == milli // GPU:
                    return [(int(node), int(gpu), GPU) for gpu in whole]
        return []


def replay(jobs: pd.DataFrame, cluster: ClusterSpec, settings: SampleSettings) -> Replay:
    """Run the jobs through the cluster. Jobs on the failed node end with state ``node_fail``."""
    run = _Run(jobs, cluster, settings)
    run.go()
    table = _outcome_table(jobs, run)
    keep = np.flatnonzero((table["end_s"] > 0).to_numpy())
    new_row = {int(row): place for place, row in enumerate(keep)}
    kept = [Share(new_row[share.job], share.device, share.milli) for share in run.shares if share.job in new_row]
    return Replay(table.iloc[keep].reset_index(drop=True), kept, run.state.gpus)


_END, _NODE, _SUBMIT = 0, 1, 2  # what happens first at one second


class _Run:
    """One pass over the events: job ends, the node failure, submissions; then the queue is walked once in order of submission."""

    def __init__(self, jobs: pd.DataFrame, cluster: ClusterSpec, settings: SampleSettings) -> None:
        rng = settings.rng("replay")
        self.cluster, self.settings = cluster, settings
        self.state = _Cluster(cluster)
        self.speed = {pool.gpu_model: levels_for(pool.gpu_model, (1.0,))[0][0] for pool in cluster.pools}
        self.records = jobs.to_dict("records")
        self.order = [_allowed_pools(rng, job, cluster) for job in self.records]
        self.start = np.full(len(self.records), NEVER)
        self.end = np.full(len(self.records), NEVER)
        self.pool = np.full(len(self.records), -1)
        self.outcome = [str(job["outcome"]) for job in self.records]
        self.held: dict[int, list[tuple[int, int, int]]] = {}
        self.shares: list[Share] = []
        self.failed = cluster.node_names.index(NODE_FAILURE[0]) if NODE_FAILURE[0] in cluster.node_names else -1
        self.events = [(int(job["submit_s"]), _SUBMIT, row) for row, job in enumerate(self.records)]
        if self.failed >= 0:
            self.events += [(settings.second_of(NODE_FAILURE[1]), _NODE, 1), (settings.second_of(NODE_FAILURE[2]), _NODE, 0)]
        heapq.heapify(self.events)

    def go(self) -> None:
        """All events of the warm-up and the period."""
        waiting: list[int] = []
        while self.events and self.events[0][0] < self.settings.length_s:
            now = self.events[0][0]
            while self.events and self.events[0][0] == now:
                _, what, which = heapq.heappop(self.events)
                if what == _SUBMIT:
                    waiting.append(which)
                elif what == _NODE:
                    self._set_down(bool(which), now)
                elif which in self.held and self.end[which] == now:
                    _release(self.state, self.held.pop(which))
            waiting = [row for row in waiting if not self._try_start(row, now)]

    def _set_down(self, down: bool, now: int) -> None:
        self.state.down[self.failed] = down
        hit = [row for row, taken in self.held.items() if down and any(node == self.failed for node, _, _ in taken)]
        for row in hit:
            self.end[row], self.outcome[row] = now, "node_fail"
            _release(self.state, self.held.pop(row))

    def _try_start(self, row: int, now: int) -> bool:
        job = self.records[row]
        milli, workers = round(job["gpus"] * GPU), int(job["workers"])
        for pool in self.order[row]:
            taken = self.state.place(pool, milli, workers)
            if taken:
                break
        else:
            return False
        speed = self.speed[self.cluster.pools[pool].gpu_model][CLASS_INDEX[job["kind"]]]
        run_s = int(np.ceil(job["duration_s"] / speed))
        if run_s > job["requested_s"]:
            run_s, self.outcome[row] = int(job["requested_s"]), "timeout"
        self.start[row], self.end[row], self.pool[row] = now, now + run_s, pool
        self.held[row] = taken
        self.shares.extend(Share(row, node * self.state.gpus + gpu, part) for node, gpu, part in taken)
        heapq.heappush(self.events, (now + run_s, _END, row))
        return True


def _allowed_pools(rng: np.random.Generator, job: dict[str, object], cluster: ClusterSpec) -> list[int]:
    """Pools of the job's site in the order its user would try them."""
    pools = [
        index
        for index, pool in enumerate(cluster.pools)
        if pool.site == job["site"] and (not isinstance(job["gpu_model"], str) or pool.gpu_model == job["gpu_model"])
    ]
    return [pools[i] for i in rng.permutation(len(pools))]


def _release(state: _Cluster, taken: list[tuple[int, int, int]]) -> None:
    for node, gpu, part in taken:
        state.free[node, gpu] += part


def _outcome_table(jobs: pd.DataFrame, run: _Run) -> pd.DataFrame:
    names, length_s = run.cluster.node_names, run.settings.length_s
    nodes: list[set[str]] = [set() for _ in run.records]
    for share in run.shares:
        nodes[share.job].add(names[share.device // run.state.gpus])
    running = (run.start < NEVER) & (run.end > length_s)
    return jobs.assign(
        start_s=run.start,
        end_s=np.where(running, NEVER, run.end),
        run_until_s=np.where(run.start < NEVER, np.minimum(run.end, length_s), NEVER),
        state=np.select([run.start == NEVER, running], ["pending", "running"], run.outcome),
        pool=[run.cluster.pools[pool].name if pool >= 0 else "" for pool in run.pool],
        nodes=[",".join(sorted(held)) for held in nodes],
    )


def interval_watts(result: Replay, cluster: ClusterSpec, settings: SampleSettings) -> Watts:
    """Mean watts and utilisation of every device and node from the measured curves at full power, with the workloads' own unrest."""
    rng = settings.rng("noise")
    T, gpus = settings.bins, result.gpus_per_node
    device_pool = [pool for pool in cluster.pools for _ in range(pool.nodes * gpus)]
    D = len(device_pool)
    pool_site = [pool.site for pool in device_pool]
    idle_w = np.array([pool.gpu_idle_w for pool in device_pool])
    power_w = {pool.gpu_model: levels_for(pool.gpu_model, (1.0,))[1][0] for pool in cluster.pools}
    board = rng.normal(1.0, 0.02, size=D)  # boards of one model differ
    gpu_w = np.repeat((idle_w * rng.normal(1.0, 0.03, size=D))[:, None], T, axis=1)
    utilization, cpu_w = np.zeros((D, T)), np.zeros((D, T))
    holder, most = np.full((D, T), -1, dtype=np.int64), np.zeros((D, T))
    job_j = np.zeros(len(result.jobs))
    board_idle_w = gpu_w[:, 0].copy()
    unrest: dict[int, np.ndarray] = {}
    demand = _demand(settings)
    kinds, mean_u = result.jobs["kind"].to_numpy(), result.jobs["utilization"].to_numpy()
    starts, ends = result.jobs["start_s"].to_numpy(), result.jobs["run_until_s"].to_numpy()
    for share in result.shares:
        row, d = share.job, share.device
        first, last = max(starts[row] // INTERVAL_S, 0), -(-ends[row] // INTERVAL_S)
        if last <= first:
            continue
        part = share.milli / GPU
        overlap = _overlap(int(starts[row]), int(ends[row]), int(first), int(last))
        if row not in unrest:
            unrest[row] = _unrest(rng, str(kinds[row]), float(mean_u[row]), int(last - first))
            if kinds[row] == "realtime_inference":
                unrest[row] = np.clip(unrest[row] * demand[pool_site[share.device]][first:last], 0.02, 1.0)
        u = unrest[row]
        pool = device_pool[d]
        active_w = (power_w[pool.gpu_model][CLASS_INDEX[kinds[row]]] * board[d] - idle_w[d]) * part
        gpu_w[d, first:last] += overlap * u * active_w
        utilization[d, first:last] += overlap * u * part
        cpu_w[d, first:last] += overlap * part * pool.cpu_w_per_gpu
        held_w = part * (board_idle_w[d] + pool.cpu_w_per_gpu + pool.node_idle_w / gpus)
        job_j[row] += INTERVAL_S * float((overlap * (u * active_w + held_w)).sum())
        at_end = (overlap > 0) & (part * overlap > most[d, first:last])
        holder[d, first:last][at_end] = row
        most[d, first:last] = np.maximum(most[d, first:last], part * overlap)
    node_idle_w = np.repeat(np.array([pool.node_idle_w for pool in cluster.pools for _ in range(pool.nodes)])[:, None], T, axis=1)
    _fail_node(gpu_w, node_idle_w, cluster, settings, gpus)
    by_node = (D // gpus, gpus, T)
    node_cpu_w = cpu_w.reshape(by_node).sum(axis=1)
    node_w = gpu_w.reshape(by_node).sum(axis=1) + node_cpu_w + node_idle_w
    return Watts(gpu_w, np.clip(utilization, 0, 1), node_cpu_w, node_idle_w, node_w, holder, job_j)


def _demand(settings: SampleSettings) -> dict[str, np.ndarray]:
    """How much a replica of a service has to do in each interval, relative to its mean, by site."""
    middle = (np.arange(settings.bins) + 0.5) * INTERVAL_S
    level = {site: rhythm("realtime_inference", middle, site, settings.start_time) for site in ("west", "east")}
    return {site: 0.45 + 0.95 * values for site, values in level.items()}


def _overlap(start_s: int, end_s: int, first: int, last: int) -> np.ndarray:
    """Share of each interval ``first .. last`` that lies in the run."""
    left = np.arange(first, last) * INTERVAL_S
    return (np.minimum(left + INTERVAL_S, end_s) - np.maximum(left, start_s)).clip(0) / INTERVAL_S


def _unrest(rng: np.random.Generator, kind: str, mean: float, count: int) -> np.ndarray:
    """Utilisation of a job by interval: steady for training (with evaluation dips), restless for people and requests."""
    sigma = {"training": 0.02, "fine_tuning": 0.03, "batch_inference": 0.05, "realtime_inference": 0.12, "interactive": 0.30}[kind]
    u = mean * np.exp(slow_noise(rng, count, 0.8, sigma))
    if kind in ("training", "fine_tuning") and count > 3:
        period = int(rng.integers(6, 30))
        u[period - 1 :: period] *= rng.uniform(0.55, 0.9)
    return np.clip(u, 0.02, 1.0)


def _fail_node(gpu_w: np.ndarray, node_idle_w: np.ndarray, cluster: ClusterSpec, settings: SampleSettings, gpus: int) -> None:
    """The failed node draws only its board controller's watts."""
    if NODE_FAILURE[0] not in cluster.node_names:
        return
    node = cluster.node_names.index(NODE_FAILURE[0])
    first, last = (settings.second_of(time) // INTERVAL_S for time in NODE_FAILURE[1:])
    gpu_w[node * gpus : (node + 1) * gpus, max(first, 0) : max(last, 0)] = 0.0
    node_idle_w[node, max(first, 0) : max(last, 0)] = 14.0

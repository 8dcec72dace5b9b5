"""Jobs, tables, results, and what docs/simulator.md says about them before any clock runs: sizes, speeds, watts, feasibility."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from envs.cluster import ClusterSpec
from telemetry.classes import WORKLOAD_CLASSES

END, WAKE_DONE, START, GRID, ARRIVE, REJECT, HOLD, RUN, SLEEP, WAKE, INTERRUPT, NODE_DOWN, NODE_UP, PAUSE, LEVEL, MIGRATE, WITHDRAW = range(
    1, 18
)
NO_GPU_MODEL, TOO_LARGE, MAX_WATTS, TOO_SLOW, STRANDED = 1, 2, 3, 4, 5
AWAKE, WAKING, SLEEPING, DOWN = 0, 1, 2, 3
SEVENTHS = (1, 2, 3, 4, 7)  # slice profiles of a GPU that is cut into seven


@dataclass(frozen=True)
class Job:
    """One job; times in seconds from the window start, ``*_milli`` and ``memory_mib`` for each worker; a lease has ``until_s`` >= 0."""

    submit_s: int
    duration_s: int
    estimate_s: int
    gpu_milli: int
    workers: int
    kind: int
    priority: int
    latest_start_s: int
    deadline_s: int
    max_watts: float = math.inf
    utilization: float = 1.0
    pools_allowed: tuple[bool, ...] = ()
    cpu_milli: int = 0
    memory_mib: int = 0
    preemptible: bool = False
    checkpoint_s: int = 0
    restart_s: int = 0
    data_gib: float = 0.0
    data_site: int = -1
    until_s: int = -1
    service: int = -1
    peak_load: float = 0.0
    curve: int = -1  # in the tables of speed and watts; -1 = its kind's

    @property
    def lease(self) -> bool:
        return self.until_s >= 0

    @property
    def gpus(self) -> float:
        """GPUs of the whole gang as asked for."""
        return self.gpu_milli * self.workers / 1000


@dataclass(frozen=True)
class Grid:
    """Tables ``[site][column]`` (reserves per pool, load per service); column ``history_steps`` begins at second 0; the last is held."""

    step_s: int
    history_steps: int
    price: Sequence[Sequence[float]]
    carbon: Sequence[Sequence[float]]
    pue: Sequence[Sequence[float]]
    warm_reserve: Sequence[Sequence[int]]
    load: Sequence[Sequence[float]] = ()
    keep_awake: Sequence[Sequence[int]] = ()

    def kept_awake(self, p: int, time_s: int) -> int:
        """Nodes of the pool that shall be awake; none without a table."""
        return self.keep_awake[p][self.column(time_s)] if self.keep_awake else 0

    @property
    def last_column(self) -> int:
        return len(self.price[0]) - 1

    def column(self, time_s: int) -> int:
        return min(self.history_steps + time_s // self.step_s, self.last_column)


@dataclass(frozen=True)
class Settings:
    node_rule: str = "best_fit"
    sleep_after_s: int = -1
    discipline: str = "free"
    queue_order: str = "priority"
    hold_s: int = 900
    review_s: int = 0
    pwr_weight: float = 0.1
    ces_buffer: int = -1
    ces_trend: float = 0.5
    ces_keep_s: int = 7200


@dataclass
class Outcome:
    start_s: int = -1
    end_s: int = -1
    pool: int = -1
    level: int = -1
    energy_kwh: float = 0.0
    cost_usd: float = 0.0
    carbon_kg: float = 0.0
    penalty_usd: float = 0.0
    late_start: bool = False
    missed_deadline: bool = False
    rejected: int = 0
    withdrawn: bool = False

    @property
    def violation(self) -> bool:
        return self.late_start or self.missed_deadline or self.rejected > 0


@dataclass
class Result:
    """Event log ``(time, type, job, pool, level, node)`` with -1 where a field has no meaning, and the totals."""

    events: list[tuple[int, int, int, int, int, int]]
    outcomes: list[Outcome]
    site_energy_kwh: list[float]
    site_cost_usd: list[float]
    site_carbon_kg: list[float]
    idle_energy_kwh: list[float]
    idle_cost_usd: list[float]
    idle_carbon_kg: list[float]
    questions: list[tuple[int, int, tuple[int, ...]]]
    end_s: int
    busy_gpu_s: float


def nanowatts(watts: float) -> int:
    """Rounded half up, so that sums do not depend on their order."""
    return math.floor(watts * 1e9 + 0.5)


def merged(outages: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Outages (node, begin, end) with the overlapping and touching ones of a node made one; none begins before second 0."""
    result: list[tuple[int, int, int]] = []
    for node, begin, end in sorted((node, max(0, begin), end) for node, begin, end in outages if end > max(0, begin)):
        if result and result[-1][0] == node and begin <= result[-1][2]:
            result[-1] = (node, result[-1][1], max(result[-1][2], end))
        else:
            result.append((node, begin, end))
    return result


class Rules:
    """What a job takes, draws and may do in a pool at a level. Everything here is constant over a window, hence the caches."""

    def __init__(self, cluster: ClusterSpec, speed, power_w, jobs: Sequence[Job], grid: Grid) -> None:
        self.cluster, self.pools, self.jobs, self.grid = cluster, cluster.pools, jobs, grid
        self.speed_table, self.power_w = speed, power_w
        self.levels = len(cluster.level_fractions)
        names = [site.name for site in cluster.sites]
        self.site_of_pool = [names.index(pool.site) for pool in cluster.pools]
        for name in ("held", "speed", "worker_nw", "node_nw", "choices"):
            setattr(self, name, functools.cache(getattr(self, name)))

    def objective(self, j: int):
        return self.cluster.objectives[WORKLOAD_CLASSES[self.jobs[j].kind]]

    # ---------------------------------------------------------------- sizes

    def held(self, j: int, p: int) -> int:
        """Thousandths of a GPU that each worker takes in the pool: a share is rounded up to a slice profile where GPUs are cut."""
        asked, slices = self.jobs[j].gpu_milli, self.pools[p].mig_slices
        if slices == 0 or not 0 < asked < 1000:
            return asked
        profiles = SEVENTHS if slices == 7 else range(1, slices + 1)
        k = next(k for k in profiles if -(-1000 * k // slices) >= asked)
        return 1000 * k // slices

    def gang_milli(self, j: int, p: int) -> int:
        return self.held(j, p) * self.jobs[j].workers

    def gang_gpus(self, j: int, p: int) -> float:
        """G of the definition."""
        return self.gang_milli(j, p) / 1000

    def node_cpu_milli(self, p: int) -> float:
        return math.floor(self.pools[p].cpus_per_node * 1000 + 0.5) if self.pools[p].cpus_per_node > 0 else math.inf

    def node_memory_mib(self, p: int) -> float:
        return math.floor(self.pools[p].memory_gib_per_node * 1024 + 0.5) if self.pools[p].memory_gib_per_node > 0 else math.inf

    def fits_empty(self, j: int, p: int) -> bool:
        """Could the pool, empty and whole, hold the gang?"""
        job, pool = self.jobs[j], self.pools[p]
        per_node = math.inf
        if 0 < job.gpu_milli < 1000:
            per_node = pool.gpus_per_node * (1000 // self.held(j, p))
        elif job.gpu_milli >= 1000:
            per_node = pool.gpus_per_node // (job.gpu_milli // 1000)
        if job.cpu_milli > 0:
            per_node = min(per_node, self.node_cpu_milli(p) // job.cpu_milli)
        if job.memory_mib > 0:
            per_node = min(per_node, self.node_memory_mib(p) // job.memory_mib)
        return math.isinf(per_node) or per_node * pool.nodes >= job.workers

    # ---------------------------------------------------------------- feasibility

    def curve(self, j: int) -> int:
        job = self.jobs[j]
        return job.kind if job.curve < 0 else job.curve

    def speed(self, j: int, p: int, level: int) -> float:
        return self.speed_table[p][level][self.curve(j)]

    def active_w(self, j: int, p: int, level: int) -> float:
        return self.power_w[p][level][self.curve(j)]

    def within_max_watts(self, j: int, p: int, level: int) -> bool:
        return self.gang_gpus(j, p) * self.active_w(j, p, level) <= self.jobs[j].max_watts

    def choices(self, j: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Reason of rejection (0 = none) and the (pool, level) pairs that the job may ever run at."""
        job = self.jobs[j]
        pools = [p for p in range(len(self.pools)) if job.pools_allowed[p]]
        if not pools:
            return NO_GPU_MODEL, ()
        pools = [p for p in pools if self.fits_empty(j, p)]
        if not pools:
            return TOO_LARGE, ()
        pairs = [(p, level) for p in pools for level in range(self.levels) if self.within_max_watts(j, p, level)]
        if not pairs:
            return MAX_WATTS, ()
        if job.lease:
            pairs = [(p, level) for p, level in pairs if self.speed(j, p, level) >= job.peak_load]
            if not pairs:
                return TOO_SLOW, ()
        return 0, tuple(pairs)

    # ---------------------------------------------------------------- watts

    def awake_w(self, p: int) -> float:
        return self.pools[p].node_idle_w + self.pools[p].gpus_per_node * self.pools[p].gpu_idle_w

    def node_nw(self, p: int, state: int) -> int:
        """What a node draws without jobs."""
        pool = self.pools[p]
        return nanowatts({AWAKE: self.awake_w(p), WAKING: pool.wake_power_w, SLEEPING: pool.node_sleep_w, DOWN: 0.0}[state])

    def committed_node_nw(self, p: int, state: int) -> int:
        """What counts against a budget: a node that wakes counts as awake already, if that is more."""
        return max(self.node_nw(p, WAKING), self.node_nw(p, AWAKE)) if state == WAKING else self.node_nw(p, state)

    def worker_nw(self, j: int, p: int, level: int, u: float) -> int:
        """Dynamic watts of one worker: those of the job over its workers."""
        job, pool, G = self.jobs[j], self.pools[p], self.gang_gpus(j, p)
        above_idle = self.active_w(j, p, level) - pool.gpu_idle_w
        context = min(pool.gpu_context_w, above_idle)
        cpus = job.cpu_milli * job.workers / 1000
        dynamic_w = G * (context + (above_idle - context) * u) + G * pool.cpu_w_per_gpu + cpus * pool.cpu_w_per_cpu
        return nanowatts(dynamic_w / job.workers)

    def committed_worker_nw(self, j: int, p: int, level: int) -> int:
        return self.worker_nw(j, p, level, 1.0 if self.jobs[j].lease else self.jobs[j].utilization)

    def drawn_worker_nw(self, j: int, p: int, level: int, column: int) -> int:
        """With the utilisation in force: a lease's follows the load of its service."""
        job = self.jobs[j]
        u = min(1.0, self.grid.load[job.service][column] / self.speed(j, p, level)) if job.lease else job.utilization
        return self.worker_nw(j, p, level, u)

    def worker_share_nw(self, j: int, p: int) -> int:
        """A worker's part of its node's idle watts, by held GPUs."""
        return nanowatts(self.held(j, p) / 1000 * self.awake_w(p) / self.pools[p].gpus_per_node)

    # ---------------------------------------------------------------- data

    def transfer_s(self, j: int) -> int:
        return math.ceil(self.jobs[j].data_gib * 8.589934592 / self.cluster.transfer_gbps)

    def transfer_kwh(self, j: int) -> float:
        return self.jobs[j].data_gib * self.cluster.transfer_kwh_per_gib

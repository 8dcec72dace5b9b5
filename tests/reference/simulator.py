"""The simulator of docs/simulator.md in plain Python: slow, clear, and written from the definition alone.

It is the yardstick for the compiled kernel. Nothing here is shared with it; every rule is spelled out over lists and dictionaries, and
every quantity is recomputed from scratch whenever it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from envs.cluster import ClusterSpec
from envs.reward import RewardSpec
from telemetry.classes import WORKLOAD_CLASSES

END, WAKE_DONE, START, GRID, ARRIVE, REJECT, HOLD, RUN, SLEEP, WAKE = range(1, 11)
NO_GPU_MODEL, TOO_LARGE, MAX_WATTS = 1, 2, 3
AWAKE, WAKING, SLEEPING = 0, 1, 2


@dataclass(frozen=True)
class Job:
    """One job; times in seconds from the window start, ``gpu_milli`` thousandths of a GPU for each worker."""

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

    @property
    def total_milli(self) -> int:
        return self.gpu_milli * self.workers

    @property
    def gpus(self) -> float:
        return self.total_milli / 1000


@dataclass(frozen=True)
class Grid:
    """Tables per site ``[site][column]``; column ``history_steps`` begins at second 0 of the window; the last column is held."""

    step_s: int
    history_steps: int
    price: Sequence[Sequence[float]]
    carbon: Sequence[Sequence[float]]
    pue: Sequence[Sequence[float]]
    warm_reserve: Sequence[Sequence[int]]

    def column(self, time_s: int) -> int:
        return min(self.history_steps + time_s // self.step_s, len(self.price[0]) - 1)


@dataclass(frozen=True)
class Settings:
    node_rule: str = "best_fit"
    sleep_after_s: int = -1
    discipline: str = "free"
    queue_order: str = "priority"
    hold_s: int = 900


@dataclass
class Node:
    index: int
    pool: int
    gpu_free: list[int]
    state: int = AWAKE
    idle_since: int = 0
    wake_end: int = -1
    jobs: set[int] = field(default_factory=set)

    @property
    def free(self) -> int:
        return sum(self.gpu_free)


@dataclass
class Placed:
    """Where a running (or waking) job sits: pieces are (node, GPU, thousandths)."""

    pool: int
    level: int
    start_s: int
    end_s: int
    pieces: list[tuple[int, int, int]]
    started: bool = False


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


class Simulator:
    """One window. ``choose(job, allowed)`` answers every question with one of the allowed actions."""

    def __init__(
        self,
        cluster: ClusterSpec,
        speed: Sequence[Sequence[Sequence[float]]],
        power_w: Sequence[Sequence[Sequence[float]]],
        jobs: Sequence[Job],
        grid: Grid,
        settings: Settings,
        reward: RewardSpec,
        choose: Callable[[int, list[int]], int],
    ) -> None:
        self.cluster, self.speed, self.power_w = cluster, speed, power_w
        self.jobs, self.grid, self.settings, self.reward, self.choose = jobs, grid, settings, reward, choose
        self.levels = len(cluster.level_fractions)
        site_names = [site.name for site in cluster.sites]
        self.site_of_pool = [site_names.index(pool.site) for pool in cluster.pools]
        self.nodes: list[Node] = []
        for p, pool in enumerate(cluster.pools):
            for _ in range(pool.nodes):
                self.nodes.append(Node(len(self.nodes), p, [1000] * pool.gpus_per_node))
        self.placed: dict[int, Placed] = {}
        self.ask_at: dict[int, int] = {}  # the waiting jobs
        self.not_arrived = sorted(range(len(jobs)), key=lambda j: (jobs[j].submit_s, j))
        self.outcomes = [Outcome() for _ in jobs]
        self.events: list[tuple[int, int, int, int, int, int]] = []
        self.questions: list[tuple[int, int, tuple[int, ...]]] = []
        sites = len(cluster.sites)
        self.site_totals = [[0.0, 0.0, 0.0] for _ in range(sites)]
        self.idle_totals = [[0.0, 0.0, 0.0] for _ in range(sites)]

    # ---------------------------------------------------------------- the clock

    def run(self) -> Result:
        t = 0
        while True:
            self.end_jobs(t)
            self.finish_wakes(t)
            self.start_after_wake(t)
            if t > 0 and t % self.grid.step_s == 0:
                self.log(t, GRID)
            self.arrivals(t)
            self.decisions(t)
            self.fall_asleep(t)
            if not self.placed and not self.ask_at and not self.not_arrived:
                break
            later = self.next_instant(t)
            self.accrue(t, later)
            t = later
        columns = list(zip(*self.site_totals, strict=True)), list(zip(*self.idle_totals, strict=True))
        return Result(self.events, self.outcomes, *map(list, columns[0]), *map(list, columns[1]), self.questions, t)

    def next_instant(self, t: int) -> int:
        times = [(t // self.grid.step_s + 1) * self.grid.step_s]
        times += [placed.end_s for placed in self.placed.values() if placed.started]
        times += [node.wake_end for node in self.nodes if node.state == WAKING]
        times += [self.jobs[j].submit_s for j in self.not_arrived[:1]]
        times += [ask for ask in self.ask_at.values() if ask > t]
        if self.settings.sleep_after_s >= 0:
            sleeps = [node.idle_since + self.settings.sleep_after_s for node in self.nodes if node.state == AWAKE and not node.jobs]
            times += [time for time in sleeps if time > t]
        return min(times)

    def log(self, t: int, kind: int, job: int = -1, pool: int = -1, level: int = -1, node: int = -1) -> None:
        self.events.append((t, kind, job, pool, level, node))

    # ---------------------------------------------------------------- phases 1 to 4

    def end_jobs(self, t: int) -> None:
        for j in sorted(j for j, placed in self.placed.items() if placed.started and placed.end_s == t):
            placed = self.placed.pop(j)
            for n, gpu, milli in placed.pieces:
                self.nodes[n].gpu_free[gpu] += milli
                self.nodes[n].jobs.discard(j)
                if not self.nodes[n].jobs:
                    self.nodes[n].idle_since = t
            job, outcome = self.jobs[j], self.outcomes[j]
            outcome.end_s = t
            if t > job.deadline_s:
                outcome.missed_deadline = True
                outcome.penalty_usd += self.penalty(job, t - job.deadline_s)
            self.log(t, END, j, placed.pool, placed.level)

    def finish_wakes(self, t: int) -> None:
        for node in self.nodes:
            if node.state == WAKING and node.wake_end == t:
                node.state = AWAKE
                self.log(t, WAKE_DONE, pool=node.pool, node=node.index)

    def start_after_wake(self, t: int) -> None:
        for j in sorted(self.placed):
            if not self.placed[j].started and self.placed[j].start_s == t:
                self.start(j, t)

    def start(self, j: int, t: int) -> None:
        placed, job, outcome = self.placed[j], self.jobs[j], self.outcomes[j]
        placed.started = True
        outcome.start_s = t
        if self.objective(job).start_bound and t > job.latest_start_s:
            outcome.late_start = True
            outcome.penalty_usd += self.penalty(job, t - job.latest_start_s)
        self.log(t, START, j, placed.pool, placed.level)

    def penalty(self, job: Job, late_s: int) -> float:
        hours = min(late_s / 3600, self.reward.late_cap_hours)
        return job.gpus * (self.reward.miss_usd_per_gpu + self.reward.late_usd_per_gpu_hour * hours)

    def objective(self, job: Job):
        return self.cluster.objectives[WORKLOAD_CLASSES[job.kind]]

    def arrivals(self, t: int) -> None:
        while self.not_arrived and self.jobs[self.not_arrived[0]].submit_s == t:
            j = self.not_arrived.pop(0)
            reason = self.rejection(self.jobs[j])
            if reason:
                self.outcomes[j].rejected = reason
                self.log(t, REJECT, j)
            else:
                self.ask_at[j] = t
                self.log(t, ARRIVE, j)

    def rejection(self, job: Job) -> int:
        pools = [p for p in range(len(self.cluster.pools)) if job.pools_allowed[p]]
        if not pools:
            return NO_GPU_MODEL
        pools = [p for p in pools if self.fits_empty(job, p)]
        if not pools:
            return TOO_LARGE
        if not any(self.watts_ok(job, p, level) for p in pools for level in range(self.levels)):
            return MAX_WATTS
        return 0

    def fits_empty(self, job: Job, p: int) -> bool:
        pool = self.cluster.pools[p]
        if job.gpu_milli < 1000:
            per_node = pool.gpus_per_node * (1000 // job.gpu_milli)
        else:
            per_node = pool.gpus_per_node // (job.gpu_milli // 1000)
        return per_node * pool.nodes >= job.workers

    def watts_ok(self, job: Job, p: int, level: int) -> bool:
        return job.gpus * self.power_w[p][level][job.kind] <= job.max_watts

    # ---------------------------------------------------------------- phase 5: decisions

    def queue(self, t: int) -> list[int]:
        jobs = self.jobs
        keys = {
            "priority": lambda j: (-jobs[j].priority, jobs[j].latest_start_s, j),
            "fcfs": lambda j: (jobs[j].submit_s, j),
            "sjf": lambda j: (jobs[j].estimate_s, jobs[j].submit_s, j),
            "f1": lambda j: (math.log10(jobs[j].estimate_s) * jobs[j].gpus + 870 * math.log10(max(1, jobs[j].submit_s)), j),
            "wfp3": lambda j: (-(((t - jobs[j].submit_s) / jobs[j].estimate_s) ** 3) * jobs[j].gpus, j),
            "unicep": lambda j: (-(t - jobs[j].submit_s) / (math.log2(max(2, jobs[j].gpus)) * jobs[j].estimate_s), j),
        }
        return sorted(self.ask_at, key=keys[self.settings.queue_order])

    def decisions(self, t: int) -> None:
        reservation: list | None = None  # [pool, shadow time, extra thousandths]
        for j in self.queue(t):
            if self.ask_at[j] > t:
                continue
            job = self.jobs[j]
            runs = self.allowed_runs(job, t, reservation)
            if not runs:
                if self.settings.discipline == "strict":
                    return
                if self.settings.discipline == "easy" and reservation is None:
                    reservation = self.reserve(job, t)
                continue
            hold = self.objective(job).deferrable and t < job.latest_start_s
            allowed = ([0] if hold else []) + runs
            self.questions.append((t, j, tuple(allowed)))
            action = self.choose(j, allowed)
            assert action in allowed
            if action == 0:
                self.ask_at[j] = min(t + self.settings.hold_s, job.latest_start_s)
                self.log(t, HOLD, j)
                continue
            p, level = divmod(action - 1, self.levels)
            if reservation is not None and p == reservation[0]:
                ends = t + self.wake_delay(job, p, t) + self.runtime(job.estimate_s, p, level, job.kind)
                if ends > reservation[1]:
                    reservation[2] -= job.total_milli
            self.commit(j, p, level, t)

    def allowed_runs(self, job: Job, t: int, reservation: list | None) -> list[int]:
        runs = []
        for p in range(len(self.cluster.pools)):
            if not job.pools_allowed[p] or self.place(job, p) is None:
                continue
            for level in range(self.levels):
                if not self.watts_ok(job, p, level):
                    continue
                if reservation is not None and p == reservation[0]:
                    ends = t + self.wake_delay(job, p, t) + self.runtime(job.estimate_s, p, level, job.kind)
                    if ends > reservation[1] and job.total_milli > reservation[2]:
                        continue
                runs.append(1 + p * self.levels + level)
        return runs

    def runtime(self, seconds: int, p: int, level: int, kind: int) -> int:
        return math.ceil(seconds / self.speed[p][level][kind])

    def reserve(self, job: Job, t: int) -> list:
        """Reserve for the head: the pool with the earliest shadow time, judged by free thousandths of the whole pool."""
        best: list | None = None
        for p in range(len(self.cluster.pools)):
            watts_fit = any(self.watts_ok(job, p, level) for level in range(self.levels))
            if not (job.pools_allowed[p] and watts_fit and self.fits_empty(job, p)):
                continue
            free = sum(node.free for node in self.nodes if node.pool == p)
            releases = sorted((self.estimated_end(j, t), self.jobs[j].total_milli) for j, placed in self.placed.items() if placed.pool == p)
            shadow = t
            for end, _ in releases:
                if free + sum(milli for other, milli in releases if other <= shadow) >= job.total_milli:
                    break
                shadow = end
            extra = free + sum(milli for other, milli in releases if other <= shadow) - job.total_milli
            if best is None or shadow < best[1]:
                best = [p, shadow, extra]
        assert best is not None
        return best

    def estimated_end(self, j: int, t: int) -> int:
        placed, job = self.placed[j], self.jobs[j]
        end = placed.start_s + self.runtime(job.estimate_s, placed.pool, placed.level, job.kind)
        return end if end > t else t + 1

    # ---------------------------------------------------------------- placement

    def place(self, job: Job, p: int) -> list[tuple[int, int, int]] | None:
        """Pieces (node, GPU, thousandths) of the whole gang in pool ``p``, or None; nothing is changed."""
        free = {node.index: list(node.gpu_free) for node in self.nodes if node.pool == p}
        state = {n: self.nodes[n].state for n in free}
        sign = 1 if self.settings.node_rule == "best_fit" else -1
        pieces = []
        for _ in range(job.workers):
            able = [n for n in free if self.gpus_for_worker(job, free[n], sign) is not None]
            if not able:
                return None
            n = min(able, key=lambda n: (state[n], sign * sum(free[n]), n))
            if state[n] == SLEEPING:
                state[n] = WAKING
            for gpu in self.gpus_for_worker(job, free[n], sign):
                milli = min(job.gpu_milli, 1000)
                free[n][gpu] -= milli
                pieces.append((n, gpu, milli))
        return pieces

    @staticmethod
    def gpus_for_worker(job: Job, gpu_free: list[int], sign: int) -> list[int] | None:
        if job.gpu_milli >= 1000:
            whole = [gpu for gpu, free in enumerate(gpu_free) if free == 1000]
            need = job.gpu_milli // 1000
            return whole[:need] if len(whole) >= need else None
        fitting = [gpu for gpu, free in enumerate(gpu_free) if free >= job.gpu_milli]
        return [min(fitting, key=lambda gpu: (sign * gpu_free[gpu], gpu))] if fitting else None

    def wake_delay(self, job: Job, p: int, t: int) -> int:
        pieces = self.place(job, p)
        assert pieces is not None
        latency = self.cluster.pools[p].wake_latency_s
        delays = [0]
        for n in {piece[0] for piece in pieces}:
            node = self.nodes[n]
            delays.append({AWAKE: 0, WAKING: node.wake_end - t, SLEEPING: latency}[node.state])
        return max(delays)

    def commit(self, j: int, p: int, level: int, t: int) -> None:
        job, pieces, delay = self.jobs[j], self.place(self.jobs[j], p), self.wake_delay(self.jobs[j], p, t)
        assert pieces is not None
        start = t + delay
        end = start + self.runtime(job.duration_s, p, level, job.kind)
        del self.ask_at[j]
        self.placed[j] = Placed(p, level, start, end, pieces)
        self.outcomes[j].pool, self.outcomes[j].level = p, level
        self.log(t, RUN, j, p, level)
        for n, gpu, milli in pieces:
            node = self.nodes[n]
            node.gpu_free[gpu] -= milli
            node.jobs.add(j)
            if node.state == SLEEPING:
                node.state, node.wake_end = WAKING, t + self.cluster.pools[p].wake_latency_s
                self.log(t, WAKE, pool=p, node=n)
        if delay == 0:
            self.start(j, t)

    # ---------------------------------------------------------------- phase 6 and the accounts

    def fall_asleep(self, t: int) -> None:
        if self.settings.sleep_after_s < 0:
            return
        column = self.grid.column(t)
        for p in range(len(self.cluster.pools)):
            idle = [node for node in self.nodes if node.pool == p and node.state == AWAKE and not node.jobs]
            left = len(idle)
            for node in reversed(idle):
                if t - node.idle_since >= self.settings.sleep_after_s and left - 1 >= self.grid.warm_reserve[p][column]:
                    node.state = SLEEPING
                    left -= 1
                    self.log(t, SLEEP, pool=p, node=node.index)

    def accrue(self, start: int, stop: int) -> None:
        """Book watts over [start, stop), in which nothing changes."""
        column, hours = self.grid.column(start), (stop - start) / 3600
        charged = [0.0] * len(self.cluster.sites)
        drawn = [0.0] * len(self.cluster.sites)
        for node in self.nodes:
            pool = self.cluster.pools[node.pool]
            awake_w = pool.node_idle_w + pool.gpus_per_node * pool.gpu_idle_w
            drawn[self.site_of_pool[node.pool]] += {AWAKE: awake_w, WAKING: pool.wake_power_w, SLEEPING: pool.node_sleep_w}[node.state]
        for j, placed in self.placed.items():
            if not placed.started:
                continue
            job, pool, site = self.jobs[j], self.cluster.pools[placed.pool], self.site_of_pool[placed.pool]
            active_w = (self.power_w[placed.pool][placed.level][job.kind] - pool.gpu_idle_w) * job.utilization
            dynamic_w = job.gpus * active_w + job.gpus * pool.cpu_w_per_gpu
            share_w = job.gpus * (pool.node_idle_w + pool.gpus_per_node * pool.gpu_idle_w) / pool.gpus_per_node
            drawn[site] += dynamic_w
            charged[site] += dynamic_w + share_w
            kwh, usd, kg = self.bill(site, column, dynamic_w + share_w, hours)
            outcome = self.outcomes[j]
            outcome.energy_kwh += kwh
            outcome.cost_usd += usd
            outcome.carbon_kg += kg
        for site in range(len(self.cluster.sites)):
            for totals, watts in ((self.site_totals[site], drawn[site]), (self.idle_totals[site], drawn[site] - charged[site])):
                for index, amount in enumerate(self.bill(site, column, watts, hours)):
                    totals[index] += amount

    def bill(self, site: int, column: int, it_watts: float, hours: float) -> tuple[float, float, float]:
        kwh = it_watts * self.grid.pue[site][column] * hours / 1000
        return kwh, kwh * self.grid.price[site][column], kwh * self.grid.carbon[site][column] / 1000

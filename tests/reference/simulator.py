"""The simulator of docs/simulator.md in plain Python: slow, clear, and written from the definition alone.

It is the yardstick for the compiled kernel. Nothing here is shared with it; every rule is spelled out over lists and dictionaries, and
what depends on the state is recomputed whenever it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from envs.cluster import ClusterSpec
from envs.reward import RewardSpec

from .demand import Demand
from .model import (
    ARRIVE,
    AWAKE,
    DOWN,
    END,
    GRID,
    HOLD,
    INTERRUPT,
    LEVEL,
    MIGRATE,
    NODE_DOWN,
    NODE_UP,
    PAUSE,
    REJECT,
    RUN,
    SLEEP,
    SLEEPING,
    START,
    STRANDED,
    WAKE,
    WAKE_DONE,
    WAKING,
    WITHDRAW,
    Grid,
    Job,
    Outcome,
    Result,
    Rules,
    Settings,
    merged,
)
from .placement import Floor, Run, Seat


class Simulator:
    """One window. ``choose(job, allowed)`` answers every question, reviews too, with one of the allowed actions.

    Args:
        speed, power_w: tables ``[pool][level][curve]``; the first curves are those of the kinds.
        outages: (node index, begin, end) in seconds of the window.
    """

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
        outages: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.jobs, self.grid, self.settings, self.reward, self.choose = jobs, grid, settings, reward, choose
        self.rules = Rules(cluster, speed, power_w, jobs, grid)
        self.floor = Floor(self.rules, settings)
        self.demand = Demand(self.rules, settings) if settings.ces_buffer >= 0 and not any(map(any, grid.keep_awake)) else None
        self.nodes, self.runs = self.floor.nodes, self.floor.runs
        self.outages = merged(outages)
        self.not_arrived = sorted(range(len(jobs)), key=lambda j: (jobs[j].submit_s, j))
        self.ask_at: dict[int, int] = {}  # the waiting jobs
        self.done = [0] * len(jobs)  # finished work, reference seconds
        self.data_site = [job.data_site for job in jobs]
        self.outcomes = [Outcome() for _ in jobs]
        self.events: list[tuple[int, int, int, int, int, int]] = []
        self.questions: list[tuple[int, int, tuple[int, ...]]] = []
        sites = len(cluster.sites)
        self.site_totals = [[0.0, 0.0, 0.0] for _ in range(sites)]
        self.idle_totals = [[0.0, 0.0, 0.0] for _ in range(sites)]
        self.busy_milli_s = 0

    # ---------------------------------------------------------------- the clock

    def run(self) -> Result:
        t = 0
        while True:
            self.end_jobs(t)
            self.change_nodes(t)
            if t > 0 and t % self.grid.step_s == 0:
                self.log(t, GRID)
            self.arrivals(t)
            self.review(t)
            self.scan(t)
            if self.demand is not None:
                self.demand.follow(t, [sum(bool(node.jobs) for node in members) for members in self.floor.pool_nodes])
            self.fall_asleep(t)
            self.wake_ahead(t)
            ahead = self.instants_ahead(t)
            if not ahead and self.grid.column(t) == self.grid.last_column:
                self.reject_stranded(t)
            if not self.runs and not self.ask_at and not self.not_arrived:
                break
            checks = [self.demand.next_check(t)] if self.demand is not None else []
            later = min([*ahead, *checks, (t // self.grid.step_s + 1) * self.grid.step_s])
            self.accrue(t, later)
            t = later
        site, idle = list(zip(*self.site_totals, strict=True)), list(zip(*self.idle_totals, strict=True))
        busy = self.busy_milli_s / 1000
        return Result(self.events, self.outcomes, *map(list, site), *map(list, idle), self.questions, t, busy)

    def instants_ahead(self, t: int) -> list[int]:
        """All instants that are known to come, but for grid steps."""
        times: list[int] = []
        for run in self.runs.values():
            times += [run.end_s, run.review_at] if run.started else [run.start_s]
        for j, ask in self.ask_at.items():
            times += [ask, self.jobs[j].until_s]
        times += [self.jobs[j].submit_s for j in self.not_arrived[:1]]
        for _, begin, end in self.outages:
            times += [begin, end]
        for node in self.nodes:
            if node.state == WAKING:
                times.append(node.wake_end)
            if node.state == AWAKE and not node.jobs and self.settings.sleep_after_s >= 0:
                times.append(node.idle_since + self.settings.sleep_after_s)
        return [time for time in times if time > t]

    def log(self, t: int, kind: int, job: int = -1, pool: int = -1, level: int = -1, node: int = -1) -> None:
        self.events.append((t, kind, job, pool, level, node))

    # ---------------------------------------------------------------- phase 1: job ends

    def end_jobs(self, t: int) -> None:
        ends = [j for j, run in self.runs.items() if run.started and run.end_s == t]
        withdrawn = [j for j in self.ask_at if self.jobs[j].until_s == t]
        for j in sorted(ends + withdrawn):
            if j in self.ask_at:
                self.withdraw(j, t)
            else:
                self.end(j, t)

    def end(self, j: int, t: int) -> None:
        run, job, outcome = self.floor.leave(j, t), self.jobs[j], self.outcomes[j]
        outcome.end_s = t
        if not job.lease and t > job.deadline_s:
            outcome.missed_deadline = True
            outcome.penalty_usd += self.penalty(job, t - job.deadline_s)
        self.log(t, END, j, run.pool, run.level)

    def withdraw(self, j: int, t: int) -> None:
        del self.ask_at[j]
        job, outcome = self.jobs[j], self.outcomes[j]
        outcome.withdrawn = True
        if outcome.start_s < 0 and self.rules.objective(j).start_bound:
            outcome.late_start = True
            outcome.penalty_usd += self.penalty(job, max(0, job.until_s - job.latest_start_s))
        self.log(t, WITHDRAW, j)

    def penalty(self, job: Job, late_s: int) -> float:
        hours = min(late_s / 3600, self.reward.late_cap_hours)
        return job.gpus * (self.reward.miss_usd_per_gpu + self.reward.late_usd_per_gpu_hour * hours)

    # ---------------------------------------------------------------- phase 2: node changes

    def change_nodes(self, t: int) -> None:
        for n in sorted(n for n, _, end in self.outages if end == t):
            node = self.nodes[n]
            node.state, node.idle_since = AWAKE, t
            self.log(t, NODE_UP, pool=node.pool, node=n)
        for n in sorted(n for n, begin, _ in self.outages if begin == t):
            node = self.nodes[n]
            node.state, node.wake_end = DOWN, -1
            self.log(t, NODE_DOWN, pool=node.pool, node=n)
            for j in sorted(node.jobs):
                self.interrupt(j, t, n)
        for node in self.nodes:
            if node.state == WAKING and node.wake_end == t:
                node.state, node.wake_end = AWAKE, -1
                if not node.jobs:
                    node.idle_since = t
                self.log(t, WAKE_DONE, pool=node.pool, node=node.index)
        for j in sorted(j for j, run in self.runs.items() if not run.started and run.start_s == t):
            self.start(j, t)

    def interrupt(self, j: int, t: int, n: int) -> None:
        run, job = self.floor.leave(j, t), self.jobs[j]
        if run.started and job.checkpoint_s > 0:
            worked = max(0, t - run.begin_s - run.loading_s)
            self.credit(j, worked // job.checkpoint_s * job.checkpoint_s, run.speed)
        self.ask_at[j] = t
        self.log(t, INTERRUPT, j, run.pool, run.level, n)

    def start(self, j: int, t: int) -> None:
        run, job, outcome = self.runs[j], self.jobs[j], self.outcomes[j]
        run.started = True
        self.begin_segment(j, t, run.loading_s)
        if self.settings.review_s > 0 and job.preemptible and not job.lease:
            run.review_at = t + self.settings.review_s
        if outcome.start_s < 0:
            outcome.start_s = t
            if self.rules.objective(j).start_bound and t > job.latest_start_s:
                outcome.late_start = True
                outcome.penalty_usd += self.penalty(job, t - job.latest_start_s)
        self.log(t, START, j, run.pool, run.level)

    # ---------------------------------------------------------------- segments and work

    def begin_segment(self, j: int, t: int, loading_s: int) -> None:
        run, job = self.runs[j], self.jobs[j]
        run.begin_s, run.loading_s, run.speed = t, loading_s, self.rules.speed(j, run.pool, run.level)
        run.end_s = job.until_s if job.lease else t + loading_s + math.ceil((job.duration_s - self.done[j]) / run.speed)

    def credit(self, j: int, worked_s: int, speed: float) -> None:
        """Add finished work; a lease carries none, and at least a second is always left to do."""
        job = self.jobs[j]
        if not job.lease:
            self.done[j] += min(math.floor(worked_s * speed), job.duration_s - self.done[j] - 1)

    def checkpoint(self, j: int, t: int) -> None:
        """A chosen end of a segment keeps all its work."""
        run = self.runs[j]
        self.credit(j, max(0, t - run.begin_s - run.loading_s), run.speed)

    def loading_s(self, j: int) -> int:
        """Loading time of the next start."""
        return self.jobs[j].restart_s if self.outcomes[j].start_s >= 0 and not self.jobs[j].lease else 0

    def left_to_do_s(self, j: int, speed: float) -> int:
        """By the visible estimate."""
        return math.ceil(max(1, self.jobs[j].estimate_s - self.done[j]) / speed)

    # ---------------------------------------------------------------- phase 4: arrivals

    def arrivals(self, t: int) -> None:
        while self.not_arrived and self.jobs[self.not_arrived[0]].submit_s == t:
            j = self.not_arrived.pop(0)
            reason, _ = self.rules.choices(j)
            if reason:
                self.outcomes[j].rejected = reason
                self.log(t, REJECT, j)
            else:
                self.ask_at[j] = t
                if self.floor.fragmentation is not None:
                    self.floor.fragmentation.arrived(j)
                self.log(t, ARRIVE, j)

    # ---------------------------------------------------------------- phase 5: reviews

    def ask(self, j: int, t: int, allowed: list[int]) -> int:
        self.questions.append((t, j, tuple(allowed)))
        action = self.choose(j, allowed)
        assert action in allowed, f"{action} is none of {allowed}"
        return action

    def review(self, t: int) -> None:
        for j in sorted(j for j, run in self.runs.items() if run.started and run.review_at == t):
            run = self.runs[j]
            run.review_at = t + self.settings.review_s
            stay = 1 + run.pool * self.rules.levels + run.level
            moves = {action: seats for action, seats in self.possible_runs(j, t).items() if self.pool_of(action) != run.pool}
            levels = [
                1 + run.pool * self.rules.levels + level
                for level in range(self.rules.levels)
                if level != run.level and (run.pool, level) in self.rules.choices(j)[1] and self.floor.level_allowed(j, level)
            ]
            action = self.ask(j, t, sorted([0, stay, *levels, *moves]))
            if action == stay:
                continue
            self.checkpoint(j, t)
            if action == 0:
                self.floor.leave(j, t)
                self.ask_at[j] = t + self.settings.hold_s
                self.log(t, PAUSE, j, run.pool, run.level)
            elif action in levels:
                run.level = self.level_of(action)
                self.outcomes[j].level = run.level
                self.begin_segment(j, t, max(0, run.loading_s - (t - run.begin_s)))
                self.log(t, LEVEL, j, run.pool, run.level)
            else:
                self.floor.leave(j, t)
                self.commit(j, action, moves[action], t, MIGRATE)

    def pool_of(self, action: int) -> int:
        return (action - 1) // self.rules.levels

    def level_of(self, action: int) -> int:
        return (action - 1) % self.rules.levels

    # ---------------------------------------------------------------- phase 5: the scan of the queue

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

    def scan(self, t: int) -> None:
        reservation: list | None = None  # [pool, shadow time, extra thousandths]
        for j in self.queue(t):
            if self.ask_at[j] > t:
                continue
            runs = self.possible_runs(j, t)
            if reservation is not None:
                runs = {action: seats for action, seats in runs.items() if self.spares_the_head(j, action, seats, t, reservation)}
            if not runs:
                if self.settings.discipline == "strict":
                    return
                if self.settings.discipline == "easy" and reservation is None:
                    reservation = self.reserve(j, t)
                continue
            job = self.jobs[j]
            hold = self.rules.objective(j).deferrable and t < job.latest_start_s
            action = self.ask(j, t, [0, *runs] if hold else list(runs))
            if action == 0:
                self.ask_at[j] = min(t + self.settings.hold_s, job.latest_start_s)
                self.log(t, HOLD, j)
                continue
            p = self.pool_of(action)
            if reservation is not None and p == reservation[0] and self.estimated_run_end(j, action, runs[action], t) > reservation[1]:
                reservation[2] -= self.rules.gang_milli(j, p)
            del self.ask_at[j]
            self.commit(j, action, runs[action], t, RUN)

    def possible_runs(self, j: int, t: int) -> dict[int, list[Seat]]:
        """Actions run(p, l) that the state allows now, with the seats that the gang would take; in rising order."""
        runs = {}
        # One unbounded pool needs one placement for all its levels; watts matter where a budget does.
        placed: dict[int, list[Seat] | None] = {}
        for p, level in self.rules.choices(j)[1]:
            if p in placed and not self.budgeted(p):
                seats = placed[p]
            else:
                seats = placed[p] = self.floor.place(j, p, level)
            if seats is None:
                continue
            if self.jobs[j].lease and self.start_of(j, p, seats, t) >= self.jobs[j].until_s:
                continue
            runs[1 + p * self.rules.levels + level] = seats
        return runs

    def budgeted(self, p: int) -> bool:
        pool, site = self.rules.pools[p], self.rules.cluster.sites[self.rules.site_of_pool[p]]
        return pool.rack_budget_w > 0 or pool.budget_w > 0 or site.budget_w > 0

    def sends_data(self, j: int, p: int) -> bool:
        return self.jobs[j].data_gib > 0 and self.data_site[j] not in (-1, self.rules.site_of_pool[p])

    def start_of(self, j: int, p: int, seats: list[Seat], t: int) -> int:
        """Start second of a run decided now: all nodes awake and the data there."""
        data = t + self.rules.transfer_s(j) if self.sends_data(j, p) else t
        return max(self.floor.ready_s(p, seats, t), data)

    def commit(self, j: int, action: int, seats: list[Seat], t: int, kind: int) -> None:
        """Place the gang, wake its nodes, send its data, and start it when nothing has to be waited for."""
        p, level = self.pool_of(action), self.level_of(action)
        start, speed = self.start_of(j, p, seats, t), self.rules.speed(j, p, level)
        self.log(t, kind, j, p, level)
        self.floor.sit(j, Run(p, level, seats, start, start, self.loading_s(j), speed))
        self.outcomes[j].pool, self.outcomes[j].level = p, level
        for seat in seats:
            node = self.nodes[seat.node]
            if node.state == SLEEPING:
                node.state, node.wake_end = WAKING, t + self.rules.pools[p].wake_latency_s
                self.log(t, WAKE, pool=p, node=seat.node)
        if self.sends_data(j, p):
            self.send_data(j, self.rules.site_of_pool[p], t)
        if start == t:
            self.start(j, t)

    def send_data(self, j: int, site: int, t: int) -> None:
        self.data_site[j] = site
        amounts = self.bill(site, self.grid.column(t), self.rules.transfer_kwh(j))
        self.charge(j, amounts)
        self.site_totals[site] = [total + amount for total, amount in zip(self.site_totals[site], amounts, strict=True)]

    # ---------------------------------------------------------------- EASY backfilling

    def reserve(self, j: int, t: int) -> list:
        """Reserve for the head: the pool with the earliest shadow time, judged by free thousandths of the whole pool."""
        best: list | None = None
        for p in sorted({p for p, _ in self.rules.choices(j)[1]}):
            need = self.rules.gang_milli(j, p)
            free = sum(sum(node.gpu_free) for node in self.floor.pool_nodes[p] if node.state != DOWN)
            releases = sorted((self.estimated_end(k, t), self.rules.gang_milli(k, p)) for k, run in self.runs.items() if run.pool == p)
            shadow, extra = t, 0
            for time in [t, *(end for end, _ in releases)]:
                shadow = time
                spare = free + sum(milli for end, milli in releases if end <= shadow) - need
                if spare >= 0:
                    extra = spare
                    break
            if best is None or shadow < best[1]:
                best = [p, shadow, extra]
        assert best is not None
        return best

    def estimated_end(self, j: int, t: int) -> int:
        run = self.runs[j]
        end = self.jobs[j].until_s if self.jobs[j].lease else run.begin_s + run.loading_s + self.left_to_do_s(j, run.speed)
        return max(end, t + 1)

    def estimated_run_end(self, j: int, action: int, seats: list[Seat], t: int) -> int:
        if self.jobs[j].lease:
            return self.jobs[j].until_s
        p, level = self.pool_of(action), self.level_of(action)
        return self.start_of(j, p, seats, t) + self.loading_s(j) + self.left_to_do_s(j, self.rules.speed(j, p, level))

    def spares_the_head(self, j: int, action: int, seats: list[Seat], t: int, reservation: list) -> bool:
        p, shadow, extra = reservation
        if self.pool_of(action) != p or self.rules.gang_milli(j, p) <= extra:
            return True
        return self.estimated_run_end(j, action, seats, t) <= shadow

    # ---------------------------------------------------------------- phases 6 and 7

    def fall_asleep(self, t: int) -> None:
        if self.settings.sleep_after_s < 0:
            return
        column = self.grid.column(t)
        for p, members in enumerate(self.floor.pool_nodes):
            idle = [node for node in members if node.state == AWAKE and not node.jobs]
            left = len(idle)
            for node in reversed(idle):
                spared = self.nodes_up(p) - 1 >= self.kept_awake(p, t) and left - 1 >= self.grid.warm_reserve[p][column]
                if t - node.idle_since >= self.settings.sleep_after_s and spared:
                    node.state = SLEEPING
                    left -= 1
                    self.log(t, SLEEP, pool=p, node=node.index)

    def kept_awake(self, p: int, t: int) -> int:
        return self.grid.kept_awake(p, t) if self.demand is None else self.demand.target[p]

    def nodes_up(self, p: int) -> int:
        return sum(node.state in (AWAKE, WAKING) for node in self.floor.pool_nodes[p])

    def wake_ahead(self, t: int) -> None:
        for p, members in enumerate(self.floor.pool_nodes):
            for node in members:
                wanted = self.nodes_up(p) < self.kept_awake(p, t)
                if wanted and node.state == SLEEPING and self.floor.may_wake(node):
                    node.state, node.wake_end = WAKING, t + self.rules.pools[p].wake_latency_s
                    self.log(t, WAKE, pool=p, node=node.index)

    def reject_stranded(self, t: int) -> None:
        for j in sorted(self.ask_at):
            del self.ask_at[j]
            self.outcomes[j].rejected = STRANDED
            self.log(t, REJECT, j)

    # ---------------------------------------------------------------- the accounts

    def accrue(self, start: int, stop: int) -> None:
        """Book watts over [start, stop), in which nothing changes."""
        rules, column, hours = self.rules, self.grid.column(start), (stop - start) / 3600
        sites = range(len(self.site_totals))
        charged, drawn = [0 for _ in sites], [0 for _ in sites]
        for node in self.nodes:
            drawn[rules.site_of_pool[node.pool]] += rules.node_nw(node.pool, node.state)
        for j, run in self.runs.items():
            if not run.started:
                continue
            site, workers = rules.site_of_pool[run.pool], self.jobs[j].workers
            dynamic_nw = workers * rules.drawn_worker_nw(j, run.pool, run.level, column)
            attributed_nw = dynamic_nw + workers * rules.worker_share_nw(j, run.pool)
            drawn[site] += dynamic_nw
            charged[site] += attributed_nw
            self.charge(j, self.bill(site, column, self.facility_kwh(site, column, attributed_nw, hours)))
            self.busy_milli_s += rules.gang_milli(j, run.pool) * (stop - start)
        for site in sites:
            for totals, nw in ((self.site_totals, drawn[site]), (self.idle_totals, drawn[site] - charged[site])):
                amounts = self.bill(site, column, self.facility_kwh(site, column, nw, hours))
                totals[site] = [total + amount for total, amount in zip(totals[site], amounts, strict=True)]

    def facility_kwh(self, site: int, column: int, it_nw: int, hours: float) -> float:
        return it_nw / 1e9 * self.grid.pue[site][column] * hours / 1000

    def bill(self, site: int, column: int, kwh: float) -> tuple[float, float, float]:
        """kWh, USD and kg at the site's values of the step."""
        return kwh, kwh * self.grid.price[site][column], kwh * self.grid.carbon[site][column] / 1000

    def charge(self, j: int, amounts: tuple[float, float, float]) -> None:
        outcome = self.outcomes[j]
        outcome.energy_kwh += amounts[0]
        outcome.cost_usd += amounts[1]
        outcome.carbon_kg += amounts[2]

"""Nodes, the seats of gangs on them, and the budgets of committed watts that bound who may sit where."""

from __future__ import annotations

from dataclasses import dataclass, field

from .fragmentation import Fragmentation
from .model import AWAKE, DOWN, SLEEPING, WAKING, Rules, Settings, nanowatts


@dataclass
class Node:
    index: int
    pool: int
    rack: int  # within the pool; -1 = no racks
    gpu_free: list[int]
    cpu_free: float
    memory_free: float
    state: int = AWAKE
    idle_since: int = 0
    wake_end: int = -1
    jobs: set[int] = field(default_factory=set)


@dataclass
class Seat:
    """One worker: its node, its GPUs, and the thousandths that it takes of each."""

    node: int
    gpus: list[int]
    milli: int


@dataclass
class Run:
    """A job that is placed or runs, and the segment that it is in (of the future for a job that has not started)."""

    pool: int
    level: int
    seats: list[Seat]
    start_s: int
    begin_s: int
    loading_s: int
    speed: float
    started: bool = False
    end_s: int = -1
    review_at: int = -1


class Floor:
    """All nodes and all runs."""

    def __init__(self, rules: Rules, settings: Settings) -> None:
        self.rules, self.sign = rules, -1 if settings.node_rule == "least_allocated" else 1
        self.fragmentation = Fragmentation(rules, settings) if settings.node_rule in ("fgd", "pwr_fgd") else None
        self.nodes: list[Node] = []
        self.pool_nodes: list[list[Node]] = []
        self.runs: dict[int, Run] = {}
        for p, pool in enumerate(rules.pools):
            cpu, memory = rules.node_cpu_milli(p), rules.node_memory_mib(p)
            members = []
            for k in range(pool.nodes):
                rack = k // pool.nodes_per_rack if pool.nodes_per_rack > 0 else -1
                members.append(Node(len(self.nodes) + k, p, rack, [1000] * pool.gpus_per_node, cpu, memory))
            self.nodes += members
            self.pool_nodes.append(members)

    # ---------------------------------------------------------------- taking and leaving

    def sit(self, j: int, run: Run) -> None:
        self._move(j, run, -1)
        self.runs[j] = run
        for seat in run.seats:
            self.nodes[seat.node].jobs.add(j)

    def leave(self, j: int, t: int) -> Run:
        run = self.runs.pop(j)
        self._move(j, run, +1)
        for seat in run.seats:
            node = self.nodes[seat.node]
            node.jobs.discard(j)
            if not node.jobs:
                node.idle_since = t
        return run

    def _move(self, j: int, run: Run, sign: int) -> None:
        job = self.rules.jobs[j]
        for seat in run.seats:
            node = self.nodes[seat.node]
            for gpu in seat.gpus:
                node.gpu_free[gpu] += sign * seat.milli
            node.cpu_free += sign * job.cpu_milli
            node.memory_free += sign * job.memory_mib

    # ---------------------------------------------------------------- placement

    def place(self, j: int, p: int, level: int) -> list[Seat] | None:
        """Seats of the whole gang in the pool, in the order taken, or None when it does not fit or a budget forbids it."""
        job, held, pool = self.rules.jobs[j], self.rules.held(j, p), self.rules.pools[p]
        worker_nw = self.rules.committed_worker_nw(j, p, level)
        wake_nw = self.rules.committed_node_nw(p, WAKING) - self.rules.committed_node_nw(p, SLEEPING)
        racked = pool.rack_budget_w > 0 and pool.nodes_per_rack > 0
        racks = self.rack_committed_nw(p) if racked else {}
        up = [node for node in self.pool_nodes[p] if node.state != DOWN]
        state = {node.index: node.state for node in up}
        gpu_free = {node.index: list(node.gpu_free) for node in up}
        cpu_free = {node.index: node.cpu_free for node in up}
        memory_free = {node.index: node.memory_free for node in up}
        seats: list[Seat] = []
        added_nw = 0
        for _ in range(job.workers):
            able: list[tuple[Node, list[int], int]] = []
            for node in up:
                n = node.index
                if cpu_free[n] < job.cpu_milli or memory_free[n] < job.memory_mib:
                    continue
                more_nw = worker_nw + (wake_nw if state[n] == SLEEPING else 0)
                if racked and racks[node.rack] + more_nw > nanowatts(pool.rack_budget_w):
                    continue
                gpus = self.gpus_for_worker(held, gpu_free[n])
                if gpus is None:
                    continue
                able.append((node, gpus, more_nw))
            if not able:
                return None
            first = min(state[node.index] for node, _, _ in able)
            able = [entry for entry in able if state[entry[0].index] == first]
            if self.fragmentation is None:
                node, gpus, more_nw = min(able, key=lambda entry: (self.sign * sum(gpu_free[entry[0].index]), entry[0].index))
            else:
                places = [(gpu_free[node.index], cpu_free[node.index]) for node, _, _ in able]
                chosen, gpu = self.fragmentation.choose(j, p, places, first)
                node, gpus, more_nw = able[chosen]
                gpus = gpus if gpu is None else [gpu]
            n = node.index
            seats.append(Seat(n, gpus, min(held, 1000)))
            for gpu in gpus:
                gpu_free[n][gpu] -= min(held, 1000)
            cpu_free[n] -= job.cpu_milli
            memory_free[n] -= job.memory_mib
            added_nw += more_nw
            if racked:
                racks[node.rack] += more_nw
            if state[n] == SLEEPING:
                state[n] = WAKING
        return seats if self.pool_and_site_allow(p, added_nw) else None

    def gpus_for_worker(self, held: int, free: list[int]) -> list[int] | None:
        """GPUs of one node for one worker: none, the lowest wholly free ones, or the one that fits by the node rule."""
        if held >= 1000:
            whole = [gpu for gpu, milli in enumerate(free) if milli == 1000][: held // 1000]
            return whole if len(whole) == held // 1000 else None
        if held == 0:
            return []
        fitting = [gpu for gpu, milli in enumerate(free) if milli >= held]
        return [min(fitting, key=lambda gpu: (self.sign * free[gpu], gpu))] if fitting else None

    def ready_s(self, p: int, seats: list[Seat], t: int) -> int:
        """When the last of the nodes is awake."""
        ready = t
        for seat in seats:
            node = self.nodes[seat.node]
            if node.state == WAKING:
                ready = max(ready, node.wake_end)
            elif node.state == SLEEPING:
                ready = max(ready, t + self.rules.pools[p].wake_latency_s)
        return ready

    # ---------------------------------------------------------------- budgets

    def node_committed_nw(self, node: Node) -> int:
        """The node's watts in its state, and those of every worker on it, started or not."""
        total = self.rules.committed_node_nw(node.pool, node.state)
        for j in node.jobs:
            run = self.runs[j]
            workers = sum(seat.node == node.index for seat in run.seats)
            total += workers * self.rules.committed_worker_nw(j, run.pool, run.level)
        return total

    def rack_committed_nw(self, p: int) -> dict[int, int]:
        racks: dict[int, int] = {}
        for node in self.pool_nodes[p]:
            racks[node.rack] = racks.get(node.rack, 0) + self.node_committed_nw(node)
        return racks

    def pool_committed_nw(self, p: int) -> int:
        return sum(self.node_committed_nw(node) for node in self.pool_nodes[p])

    def pool_and_site_allow(self, p: int, added_nw: int) -> bool:
        pool_budget_w = self.rules.pools[p].budget_w
        if pool_budget_w > 0 and self.pool_committed_nw(p) + added_nw > nanowatts(pool_budget_w):
            return False
        site = self.rules.site_of_pool[p]
        site_budget_w = self.rules.cluster.sites[site].budget_w
        if site_budget_w > 0:
            pools = [q for q in range(len(self.pool_nodes)) if self.rules.site_of_pool[q] == site]
            return sum(self.pool_committed_nw(q) for q in pools) + added_nw <= nanowatts(site_budget_w)
        return True

    def may_wake(self, node: Node) -> bool:
        """Do the budgets allow a sleeping node to wake before anybody needs it?"""
        pool = self.rules.pools[node.pool]
        wake_nw = self.rules.committed_node_nw(node.pool, WAKING) - self.rules.committed_node_nw(node.pool, SLEEPING)
        racked = pool.rack_budget_w > 0 and pool.nodes_per_rack > 0
        if racked and self.rack_committed_nw(node.pool)[node.rack] + wake_nw > nanowatts(pool.rack_budget_w):
            return False
        return self.pool_and_site_allow(node.pool, wake_nw)

    def level_allowed(self, j: int, level: int) -> bool:
        """May the running job change to the level in its place, as far as budgets go? What does not raise the watts always may."""
        run, pool = self.runs[j], self.rules.pools[self.runs[j].pool]
        new_nw = self.rules.committed_worker_nw(j, run.pool, level)
        more_nw = new_nw - self.rules.committed_worker_nw(j, run.pool, run.level)
        if more_nw <= 0:
            return True
        if pool.rack_budget_w > 0 and pool.nodes_per_rack > 0:
            racks = self.rack_committed_nw(run.pool)
            seated = [self.nodes[seat.node].rack for seat in run.seats]
            if any(racks[rack] + seated.count(rack) * more_nw > nanowatts(pool.rack_budget_w) for rack in seated):
                return False
        return self.pool_and_site_allow(run.pool, len(run.seats) * more_nw)

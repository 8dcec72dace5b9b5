"""Which worker sat on which node and GPU: the placement rules of docs/simulator.md applied once more to the decisions in the log."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from envs.replay.facts import Facts
from envs.replay.history import AWAKE, DOWN, NODE_STATE_AFTER, SLEEPING, WAKING
from envs.replay.recompute import held_milli, job_watts
from telemetry.errors import InputError

WHOLE = 1000
MASK = (1 << 64) - 1
RULES = ("best_fit", "least_allocated", "random")
PREFERENCE = {AWAKE: 0, WAKING: 1, SLEEPING: 2}


@dataclass(frozen=True)
class Seat:
    """One worker: where it sits and what it takes of each of those GPUs (none for a worker of CPUs alone)."""

    node: int
    gpus: tuple[int, ...]
    milli: int


@dataclass
class NodeState:
    """One node while the log is read; watts in whole milliwatts."""

    pool: int
    rack: int
    state: str
    free: list[int]
    cpu: float
    memory: float
    jobs_mw: int = 0

    @property
    def total(self) -> int:
        return sum(self.free)


@dataclass
class Books:
    """All nodes, brought forward row by row with :meth:`read`."""

    facts: Facts
    nodes: list[NodeState] = field(init=False)
    seats: dict[int, list[Seat]] = field(init=False, default_factory=dict)
    woken: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.facts.settings.node_rule not in RULES:
            raise InputError(f"node rule '{self.facts.settings.node_rule}'", where="placement", allowed=", ".join(RULES))
        self.nodes = []
        for p, pool in enumerate(self.facts.pools.to_dict("records")):
            racked = pool["nodes_per_rack"] > 0 and pool["rack_budget_w"] > 0
            cpu, memory = pool["cpus_per_node"] * 1000 or math.inf, pool["memory_gib_per_node"] * 1024 or math.inf
            for place in range(pool["nodes"]):
                rack = place // int(pool["nodes_per_rack"]) if racked else -1
                self.nodes.append(NodeState(p, rack, AWAKE, [WHOLE] * pool["gpus_per_node"], _whole(cpu), _whole(memory)))
        self._jobs = self.facts.jobs.to_dict("records")
        self._first = np.concatenate([[0], np.cumsum(self.facts.pools["nodes"])])
        self._pools = self.facts.pools.to_dict("records")
        self._levels: dict[int, int] = {}

    def read(self, event: str, job: int, pool: int, level: int, node: int) -> list[Seat] | None:
        """Bring the nodes forward by one row of the log; the seats of the gang when the row places one.

        Raises:
            InputError: the gang has no room, or the log wakes a node that the rule would not have taken.
        """
        if event in ("end", "pause", "interrupt", "migrate") and job in self.seats:
            self._leave(job)
        if event in ("run", "migrate"):
            return self._place(job, pool, level)
        if event == "level":
            self._commit(job, -1)
            self._levels[job] = level
            self._commit(job, 1)
        elif event == "wake":
            if node in self.woken:
                self.woken.remove(node)
            elif self.woken or self.nodes[node].state != SLEEPING:  # the reserve wakes nodes when no gang's are left to be named
                raise InputError(f"node {node} wakes where the rule places nobody", where="event log", remedy="is it whole and in order?")
            else:
                self.nodes[node].state = WAKING
        elif event in NODE_STATE_AFTER:
            self.nodes[node].state = NODE_STATE_AFTER[event]
        return None

    def _place(self, job: int, pool: int, level: int) -> list[Seat]:
        work = self._jobs[job]
        held = int(held_milli(np.array([work["gpu_milli"]]), int(self._pools[pool]["mig_slices"]))[0])
        self._levels[job] = level
        worker_mw = self._worker_mw(job, pool, level)
        seats = []
        for worker in range(work["workers"]):
            index = self._best(job, pool, worker, held, worker_mw)
            node = self.nodes[index]
            if node.state == SLEEPING:
                node.state = WAKING
                self.woken.append(index)
            seat = Seat(index, self._gpus(node, held), held if held < WHOLE else WHOLE)
            for gpu in seat.gpus:
                node.free[gpu] -= seat.milli
            node.cpu -= work["cpu_milli"]
            node.memory -= work["memory_mib"]
            node.jobs_mw += worker_mw
            seats.append(seat)
        self.seats[job] = seats
        return seats

    def _best(self, job: int, pool: int, worker: int, held: int, worker_mw: int) -> int:
        best: tuple[tuple[int, int, int], int] | None = None
        for index in range(int(self._first[pool]), int(self._first[pool + 1])):
            node = self.nodes[index]
            if node.state == DOWN or not self._fits(node, self._jobs[job], held, worker_mw):
                continue
            key = (PREFERENCE[node.state], self._liking(job, worker, index, node), index)
            if best is None or key < best[0]:
                best = key, index
        if best is None:
            raise InputError(f"no room for worker {worker} of job {job}", where="event log", remedy="is it whole and in order?")
        return best[1]

    def _fits(self, node: NodeState, work: dict, held: int, worker_mw: int) -> bool:
        if held >= WHOLE and sum(free == WHOLE for free in node.free) * WHOLE < held:
            return False
        if 0 < held < WHOLE and max(node.free) < held:
            return False
        if node.cpu < work["cpu_milli"] or node.memory < work["memory_mib"]:
            return False
        return node.rack < 0 or self._rack_mw(node) + worker_mw + self._wake_mw(node) <= _mw(self._pools[node.pool]["rack_budget_w"])

    def _liking(self, job: int, worker: int, index: int, node: NodeState) -> int:
        rule = self.facts.settings.node_rule
        if rule == "random":
            seed = getattr(self.facts.settings, "seed", 0)
            return splitmix64(splitmix64(splitmix64(seed) ^ job) ^ ((worker << 32) + index))
        return node.total if rule == "best_fit" else -node.total

    def _gpus(self, node: NodeState, held: int) -> tuple[int, ...]:
        if held >= WHOLE:
            return tuple(gpu for gpu, free in enumerate(node.free) if free == WHOLE)[: held // WHOLE]
        if held == 0:
            return ()
        sign = -1 if self.facts.settings.node_rule == "least_allocated" else 1
        return (min((gpu for gpu, free in enumerate(node.free) if free >= held), key=lambda gpu: (sign * node.free[gpu], gpu)),)

    def _leave(self, job: int) -> None:
        self._commit(job, -1)
        for seat in self.seats.pop(job):
            node = self.nodes[seat.node]
            for gpu in seat.gpus:
                node.free[gpu] += seat.milli
            node.cpu += self._jobs[job]["cpu_milli"]
            node.memory += self._jobs[job]["memory_mib"]

    # ---------------------------------------------------------------- watts committed to racks

    def _commit(self, job: int, sign: int) -> None:
        for seat in self.seats[job]:
            self.nodes[seat.node].jobs_mw += sign * self._worker_mw(job, self.nodes[seat.node].pool, self._levels[job])

    def _worker_mw(self, job: int, pool: int, level: int) -> int:
        if self._pools[pool]["rack_budget_w"] <= 0:
            return 0
        work = self._jobs[job]
        fixed, span, _ = job_watts(self.facts, np.array([job]), np.array([pool]), np.array([level]))
        utilization = 1.0 if work["until_s"] >= 0 else work["utilization"]
        return _mw((fixed[0] + span[0] * utilization) / work["workers"])

    def _rack_mw(self, wanted: NodeState) -> int:
        mates = [node for node in self.nodes if node.pool == wanted.pool and node.rack == wanted.rack]
        return sum(self._state_mw(node.pool, node.state) + node.jobs_mw for node in mates)

    def _wake_mw(self, node: NodeState) -> int:
        return self._state_mw(node.pool, WAKING) - self._state_mw(node.pool, SLEEPING) if node.state == SLEEPING else 0

    def _state_mw(self, pool: int, state: str) -> int:
        watts = self._pools[pool]
        awake = _mw(watts["node_idle_w"] + watts["gpus_per_node"] * watts["gpu_idle_w"])
        waking = max(_mw(watts["wake_power_w"]), awake)
        return {AWAKE: awake, WAKING: waking, SLEEPING: _mw(watts["node_sleep_w"]), DOWN: 0}[state]


def _whole(value: float) -> float:
    return value if math.isinf(value) else int(value)


def _mw(watts: float) -> int:
    return math.floor(watts * 1000 + 0.5)


def splitmix64(value: int) -> int:
    """Steele, Lea and Flood (2014)."""
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def place_workers(events: pd.DataFrame, facts: Facts) -> pd.DataFrame | None:
    """Seats of every placement: ``row`` (of the log), ``job, worker, node, gpu`` (one row for each GPU), ``milli``.

    None for a node rule that looks at more than the log holds (the fragmentation rules know their typical jobs).
    """
    if facts.settings.node_rule not in RULES:
        return None
    books, rows = Books(facts), []
    columns = (events[name].to_numpy() for name in ("event", "job", "pool", "level", "node"))
    for at, event, job, pool, level, node in zip(events.index, *columns, strict=True):
        seats = books.read(event, int(job), int(pool), int(level), int(node)) or ()
        rows += [(at, job, worker, seat.node, gpu, seat.milli) for worker, seat in enumerate(seats) for gpu in seat.gpus or (0,)]
    return pd.DataFrame(rows, columns=["row", "job", "worker", "node", "gpu", "milli"]).astype(np.int64)

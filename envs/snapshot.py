"""A cluster as it stands now, put into the simulator: one question, the same observation as in training.

``restore`` builds the world around the running and waiting jobs and sets the state by hand. Its clock stands still: the simulator
asks about the waiting jobs in queue order and is done when the scan of the queue ends. True durations are unknown here: estimates
stand for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from envs import fields as fx
from envs.accounting import dynamic_w, idle_share_w
from envs.cluster import ClusterSpec
from envs.job_table import prepare_jobs
from envs.kernel import Simulator
from envs.kernel_decisions import SCAN
from envs.packed import Views, has_budget, nanowatts
from envs.packed_marks import mark_leaves, mark_ready
from envs.reward import RewardSpec
from envs.state import AWAKE, DOWN, PLACED, RUNNING, SLEEPING, WAITING, WAKING, PolicySettings
from envs.windows import WindowTables, check_grid
from envs.world import World, build_world
from envs.world_arrays import REJECT_REASONS, STATIC_ORDERS
from envs.world_jobs import held_milli
from telemetry.errors import InputError

WHOLE = 1000
NODE_STATES: dict[str, int] = {"awake": AWAKE, "waking": WAKING, "sleeping": SLEEPING, "unavailable": DOWN}


@dataclass(frozen=True)
class NodeNow:
    """One node: ``since`` = idle since (awake nodes without jobs), ``ready_at`` = end of the wake (waking nodes)."""

    name: str
    state: str
    since: pd.Timestamp | None = None
    ready_at: pd.Timestamp | None = None


@dataclass(frozen=True)
class Placement:
    """Where a running job runs: one node a worker, and since when (in the future when its nodes still wake)."""

    pool: str
    level: int
    started: pd.Timestamp
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Snapshot:
    """A cluster at one moment.

    Attributes:
        time: now, UTC.
        nodes: every node of the cluster, once.
        jobs: canonical jobs (without ``duration_s``), running and waiting, submitted at or before ``time``.
        placements: of the running jobs, by ``job_id``; all other jobs wait.
        asleep_until: waiting jobs that were held, and when to ask about them again.
        grid: canonical grid up to ``time``; later rows are left out, so that nobody knows the future.
        last_decision: when the scheduler last decided anything.
    """

    cluster: ClusterSpec
    time: pd.Timestamp
    nodes: tuple[NodeNow, ...]
    jobs: pd.DataFrame
    placements: Mapping[str, Placement]
    asleep_until: Mapping[str, pd.Timestamp]
    grid: pd.DataFrame
    last_decision: pd.Timestamp | None = None


def restore(snapshot: Snapshot, settings: PolicySettings, reward: RewardSpec) -> Simulator:
    """A simulator of one cluster that stands at ``snapshot.time`` before its first question.

    Call ``observe`` for the first question and ``step`` to answer; ``done`` when no waiting job is left to ask about.

    Raises:
        InputError: unknown or missing nodes, GPUs used twice, jobs from the future, a grid without the current step.
    """
    world = _world(snapshot)
    simulator = Simulator(world, 1, settings, reward)
    simulator.clear([0])
    state = simulator.state
    now_s = _seconds(world, snapshot.time)
    state.time_s[0], state.column[0] = now_s, min(_column(world, now_s), world.grid.price.shape[2] - 1)
    state.phase[0] = SCAN
    state.arrived[0] = world.jobs.count[0]
    # With nothing left unfinished the window ends with the scan, before the clock would move.
    state.unfinished[0] = 0
    last = snapshot.last_decision if snapshot.last_decision is not None else snapshot.time
    state.last_decision_s[0] = min(_seconds(world, last), now_s)
    _set_jobs(snapshot, simulator, settings)
    _set_nodes(snapshot, simulator)
    if has_budget(world):
        _commit_watts(snapshot, simulator)
    return simulator


def _column(world: World, second: int) -> int:
    return int(world.grid.history_steps[0] + second // world.grid.step_s[0])


def _world(snapshot: Snapshot) -> World:
    jobs = prepare_jobs(snapshot.jobs.assign(duration_s=1), snapshot.cluster)
    jobs["duration_s"] = jobs["estimate_s"]
    late = jobs[jobs["submit_time"] > snapshot.time]
    if len(late):
        raise InputError(
            f"submitted at {late['submit_time'].iloc[0].isoformat()}",
            where=f"job '{late['job_id'].iloc[0]}'",
            allowed=f"at or before the time of the state, {snapshot.time.isoformat()}",
        )
    grid = check_grid(snapshot.grid)
    grid = grid[grid["time"] <= snapshot.time]
    times = pd.DatetimeIndex(grid["time"].unique())
    if len(times) < 2:
        raise InputError(
            f"{len(times)} steps at or before {snapshot.time.isoformat()}", where="grid", allowed="2 or more, best the last 24 hours"
        )
    step = times[1] - times[0]
    if snapshot.time - times[-1] >= 2 * step:
        raise InputError(
            f"newest row is of {times[-1].isoformat()}",
            where="grid",
            allowed=f"a row not older than {2 * step}",
            remedy="refresh prices and carbon intensity",
        )
    moments = [snapshot.time, *jobs["submit_time"], *(place.started for place in snapshot.placements.values())]
    before = max(0, -(-(times[0] - min(moments)) // step))
    start = times[0] - before * step
    padding = [grid[grid["time"] == times[0]].assign(time=start + count * step) for count in range(before)]
    return build_world(snapshot.cluster, [WindowTables(start, jobs, pd.concat([*padding, grid], ignore_index=True))])


def _seconds(world: World, moment: pd.Timestamp) -> int:
    return int((moment - world.window_start[0]) // pd.Timedelta(seconds=1))


def _set_jobs(snapshot: Snapshot, simulator: Simulator, settings: PolicySettings) -> None:
    """Status of every job; the waiting ones that may be asked about are ready."""
    world, state = simulator.world, simulator.state
    jobs = world.jobs
    if settings.queue_order not in STATIC_ORDERS:
        raise InputError(f"queue order '{settings.queue_order}'", where="snapshot", allowed=", ".join(STATIC_ORDERS))
    ready: list[int] = []
    ends: dict[int, tuple[int, int]] = {}
    pool_names = [pool.name for pool in world.cluster.pools]
    for job, job_id in enumerate(world.job_ids[0]):
        place = snapshot.placements.get(job_id)
        if place is None:
            if jobs.reject[0, job]:
                continue
            state.status[0, job] = WAITING
            state.waiting[0] += 1
            state.waiting_milli[0] += jobs.workers[0, job] * jobs.gpu_milli[0, job]
            until = snapshot.asleep_until.get(job_id)
            if until is None or until <= snapshot.time:
                ready.append(job)
            continue
        where = f"running job '{job_id}'"
        if place.pool not in pool_names:
            raise InputError(f"unknown pool '{place.pool}'", where=where, allowed=", ".join(pool_names))
        if not 0 <= place.level < len(world.cluster.level_fractions):
            raise InputError(f"level {place.level}", where=where, allowed=f"0 to {len(world.cluster.level_fractions) - 1}")
        pool = pool_names.index(place.pool)
        state.status[0, job] = RUNNING if place.started <= snapshot.time else PLACED
        state.pool[0, job], state.level[0, job] = pool, place.level
        state.start_s[0, job] = state.begin_s[0, job] = _seconds(world, place.started)
        speed = world.static.speed[pool, place.level, jobs.curve[0, job]]
        state.due_s[0, job] = state.start_s[0, job] + int(np.ceil(jobs.estimate_s[0, job] / speed))
        ends[job] = (pool, int(state.due_s[0, job]))
        at = int(state.n_running[0])
        state.running[0, at], state.running_at[0, job] = job, at
        state.n_running[0] = at + 1
    order = STATIC_ORDERS.index(settings.queue_order)
    mark_ready(simulator.packed_world, simulator.packed_state, 0, 0, order, ready)
    mark_leaves(simulator.packed_world, simulator.packed_state, 0, ends)


def _set_nodes(snapshot: Snapshot, simulator: Simulator) -> None:
    """Free GPUs and states of the nodes, and every counter that the kernel keeps of them."""
    world, state = simulator.world, simulator.state
    static = world.static
    nodes = _node_table(snapshot)
    for counts in (state.pool_free, state.pool_partial, state.idle_awake, state.state_count, state.whole_count):
        counts[0] = 0
    _occupy(snapshot, simulator, nodes)
    idle: list[tuple[int, int]] = []
    for index, name in enumerate(snapshot.cluster.node_names):
        node, pool = nodes[name], int(static.node_pool[index])
        gpus, first = int(static.pool_gpus[pool]), int(static.node_first_gpu[index])
        mode = NODE_STATES[node.state]
        free = state.gpu_free[0, first : first + gpus]
        whole, total = int((free == WHOLE).sum()), int(free.sum())
        state.node_state[0, index] = mode
        state.node_whole[0, index], state.node_free[0, index] = whole, total
        state.state_count[0, mode, pool] += 1
        state.pool_partial[0, pool] += int(((free > 0) & (free < WHOLE)).sum())
        if mode != DOWN:
            state.pool_free[0, pool] += total
        if mode in (AWAKE, WAKING):
            state.whole_count[0, pool, mode, whole] += 1
        if mode == WAKING:
            state.wake_end_s[0, index] = _seconds(world, node.ready_at if node.ready_at is not None else snapshot.time)
        if mode == AWAKE and state.node_jobs[0, index] == 0:
            state.idle_awake[0, pool] += 1
            state.idle_since_s[0, index] = _seconds(world, node.since if node.since is not None else snapshot.time)
            idle.append((int(state.idle_since_s[0, index]), index))
    _link_idle(state, [index for _, index in sorted(idle)])


def _node_table(snapshot: Snapshot) -> dict[str, NodeNow]:
    known = set(snapshot.cluster.node_names)
    table: dict[str, NodeNow] = {}
    for node in snapshot.nodes:
        where = f"node '{node.name}'"
        if node.name not in known:
            raise InputError("is not in the cluster", where=where, allowed=f"nodes of cluster '{snapshot.cluster.name}'")
        if node.name in table:
            raise InputError("is listed twice", where=where)
        if node.state not in NODE_STATES:
            raise InputError(f"state '{node.state}'", where=where, allowed=", ".join(NODE_STATES))
        table[node.name] = node
    if missing := sorted(known - set(table)):
        raise InputError(
            f"{len(missing)} nodes are not listed, the first is '{missing[0]}'",
            where="nodes",
            remedy="list it as unavailable if it is gone",
        )
    return table


def _occupy(snapshot: Snapshot, simulator: Simulator, nodes: Mapping[str, NodeNow]) -> None:
    """Take the GPUs of the running jobs."""
    world, state = simulator.world, simulator.state
    static, index_of = world.static, {name: index for index, name in enumerate(snapshot.cluster.node_names)}
    for job, job_id in enumerate(world.job_ids[0]):
        place = snapshot.placements.get(job_id)
        if place is None:
            continue
        where = f"running job '{job_id}'"
        pool = [pool.name for pool in snapshot.cluster.pools].index(place.pool)
        milli = int(held_milli(world.jobs.gpu_milli[0, job], int(static.mig_slices[pool])))
        workers = int(world.jobs.workers[0, job])
        if len(place.nodes) != workers:
            raise InputError(f"{len(place.nodes)} nodes for {workers} workers", where=where, allowed="one node name a worker")
        for name in place.nodes:
            index = index_of.get(name, -1)
            if index < 0 or snapshot.cluster.pools[static.node_pool[index]].name != place.pool:
                raise InputError(f"node '{name}' is not in pool '{place.pool}'", where=where)
            if nodes[name].state == "sleeping":
                raise InputError(f"node '{name}' is sleeping", where=where, remedy="the state is inconsistent; read it again")
            first = int(static.node_first_gpu[index])
            if not _take(state.gpu_free[0, first : first + int(static.pool_gpus[static.node_pool[index]])], milli):
                raise InputError(f"node '{name}' has not {milli / WHOLE:g} GPUs left for it", where=where, remedy="GPUs are used twice")
            state.node_jobs[0, index] += 1
            state.cpu_free[0, index] -= world.jobs.cpu_milli[0, job]
            state.memory_free[0, index] -= world.jobs.memory_mib[0, job]


def _commit_watts(snapshot: Snapshot, simulator: Simulator) -> None:
    """What nodes and jobs have committed of the budgets of racks, pools and sites (docs/simulator.md)."""
    world, state, o = simulator.world, simulator.state, simulator.packed_world.o
    static = world.static
    awake = static.node_idle_w + static.pool_gpus * static.gpu_idle_w
    by_state = {
        AWAKE: nanowatts(awake),
        WAKING: nanowatts(np.maximum(awake, static.wake_power_w)),
        SLEEPING: nanowatts(static.node_sleep_w),
        DOWN: np.zeros_like(static.pool_nodes),
    }
    pool = static.node_pool
    node_nw = np.array([by_state[int(mode)][p] for mode, p in zip(state.node_state[0, : len(pool)], pool, strict=True)], dtype=np.int64)
    index_of = {name: index for index, name in enumerate(snapshot.cluster.node_names)}
    for job, job_id in enumerate(world.job_ids[0]):
        place = snapshot.placements.get(job_id)
        for name in place.nodes if place is not None else ():
            watts = _dynamic_w(simulator, job, int(pool[index_of[name]]), place.level, at_peak=True)
            node_nw[index_of[name]] += nanowatts(np.array(watts / int(world.jobs.workers[0, job])))
    state.committed_nw[0] = 0
    state.site_committed_nw[0] = 0
    np.add.at(state.committed_nw[0], pool, node_nw)
    np.add.at(state.site_committed_nw[0], static.pool_site[pool], node_nw)
    racks = simulator.packed_state.i[0, int(o[fx.I_RACK]) : int(o[fx.I_RACK]) + int(o[fx.N_RACKS])]
    racks[:] = 0
    in_rack = static.nodes_per_rack[pool] > 0
    count = np.where(static.nodes_per_rack > 0, -(-static.pool_nodes // np.maximum(static.nodes_per_rack, 1)), 0)
    rack = (np.cumsum(count) - count)[pool] + (np.arange(len(pool)) - static.pool_first_node[pool]) // np.maximum(
        static.nodes_per_rack[pool], 1
    )
    np.add.at(racks, rack[in_rack], node_nw[in_rack])


def _take(free: np.ndarray, milli: int) -> bool:
    """Take the lowest wholly free GPUs, or a share of the fullest GPU that has room; whether there were enough."""
    if milli >= WHOLE:
        whole = np.flatnonzero(free == WHOLE)[: milli // WHOLE]
        free[whole] = 0
        return len(whole) == milli // WHOLE
    room = np.flatnonzero(free >= milli)
    if len(room):
        free[room[np.argmin(free[room])]] -= milli
    return len(room) > 0


def _link_idle(state: Views, order: list[int]) -> None:
    """The ring of idle nodes, longest idle first; its head is the last entry."""
    head = state.idle_next.shape[1] - 1
    ring = [head, *order, head]
    for before, after in pairwise(ring):
        state.idle_next[0, before] = after
        state.idle_prev[0, after] = before


def rejection(simulator: Simulator, job_id: str) -> str | None:
    """Why no empty cluster could run the job (``REJECT_REASONS``), or None."""
    job = simulator.world.job_ids[0].index(job_id)
    reason = int(simulator.world.jobs.reject[0, job])
    return REJECT_REASONS[reason] if reason else None


def price_actions(simulator: Simulator) -> None:
    """Make the kernel price the question anew, by the weights that ``simulator.params`` holds now."""
    grid, params = simulator.world.grid, simulator.params
    cost, carbon, energy, _ = params.weights[0]
    simulator.state.rate[0] = (
        cost * grid.cum_price[0]
        + carbon * params.carbon_usd_per_kg[0] * grid.cum_carbon[0]
        + energy * params.energy_usd_per_kwh[0] * grid.cum_pue[0]
    )
    simulator.state.scored[0] = 0


def charged_kw(simulator: Simulator, job: int, pool: int, level: int) -> float:
    """IT power charged to a running job: its dynamic watts and its share of the nodes' idle watts (docs/simulator.md)."""
    jobs, static = simulator.world.jobs, simulator.world.static
    gpus = float(jobs.workers[0, job] * held_milli(jobs.gpu_milli[0, job], int(static.mig_slices[pool]))) / 1000.0
    watts = _dynamic_w(simulator, job, pool, level)
    return float(watts + idle_share_w(gpus, static.node_idle_w[pool], static.gpu_idle_w[pool], static.pool_gpus[pool])) / 1000.0


def committed_w(simulator: Simulator, job: int, pool: int, level: int) -> float:
    """Watts that the job would commit of the budgets of rack, pool and site, without those of nodes that it wakes."""
    return _dynamic_w(simulator, job, pool, level, at_peak=True)


def _dynamic_w(simulator: Simulator, job: int, pool: int, level: int, *, at_peak: bool = False) -> float:
    """Watts that the job adds to its awake nodes; of a replica at the load of its service now, or at its peak."""
    jobs, static = simulator.world.jobs, simulator.world.static
    workers, curve = int(jobs.workers[0, job]), int(jobs.curve[0, job])
    gpus = float(workers * held_milli(jobs.gpu_milli[0, job], int(static.mig_slices[pool]))) / 1000.0
    use = float(jobs.utilization[0, job])
    if jobs.until_s[0, job] >= 0:
        load = simulator.world.grid.load[0, jobs.service[0, job], grid_column(simulator)]
        use = 1.0 if at_peak else min(1.0, load / static.speed[pool, level, curve])
    active, idle, context = static.gpu_power_w[pool, level, curve], static.gpu_idle_w[pool], static.gpu_context_w[pool]
    cpus = workers * float(jobs.cpu_milli[0, job]) / 1000.0
    return float(dynamic_w(gpus, active, idle, use, static.cpu_w_per_gpu[pool], context) + cpus * static.cpu_w_per_cpu[pool])


def grid_column(simulator: Simulator) -> int:
    """Grid column in force now; the last one is held."""
    grid = simulator.world.grid
    return int(min(grid.history_steps[0] + simulator.time_s[0] // grid.step_s[0], grid.price.shape[2] - 1))


def forecast_integral(simulator: Simulator, values: np.ndarray, begin_s: int, end_s: int) -> float:
    """Hours-weighted integral of ``values`` [T] over window seconds ``begin_s`` to ``end_s`` by the kernel's forecast.

    Beyond the current step the last day repeats (``envs.kernel_scores.forecast_sum``).
    """
    grid = simulator.world.grid
    step_s, history = int(grid.step_s[0]), int(grid.history_steps[0])
    day = 86_400 // step_s
    known = grid_column(simulator) + 1
    edges = np.arange(begin_s // step_s, -(-end_s // step_s) + 1)
    columns = edges[:-1] + history
    columns = np.where(columns < known, columns, known - day + (columns - known) % day)
    seconds = np.minimum(edges[1:] * step_s, end_s) - np.maximum(edges[:-1] * step_s, begin_s)
    return float((values[columns] * seconds).sum() / 3600.0)

"""Blocks of memory of the compiled simulator, and named views of the state for everyone else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs import fields as fx
from envs.kernel_ces import DAY_CHECKS
from envs.kernel_fgd import WATTS_FIELDS
from envs.kernel_typical import typical_size
from envs.reward import RewardSpec
from envs.state import DISCIPLINES, LOG_FIELDS, NODE_RULES, PRICE_FORECASTS, PolicySettings
from envs.typical import FALL_OF_SCORE, typical_tables
from envs.world import World
from envs.world_arrays import QUEUE_ORDERS, STATIC_ORDERS
from envs.world_jobs import held_milli
from telemetry.errors import InputError

NANO = 1e9
WHOLE_ROW = 64


class PackedWorld(NamedTuple):
    """What never changes: offsets and cluster, and a row for each window's jobs and grid."""

    o: np.ndarray  # int64 [X]
    k: np.ndarray  # int64 [X]
    kf: np.ndarray  # float64 [X]
    j: np.ndarray  # int64 [M, X]
    jf: np.ndarray  # float64 [M, X]
    g: np.ndarray  # int64 [M, X]
    gf: np.ndarray  # float64 [M, X]


class PackedParams(NamedTuple):
    q: np.ndarray  # int64 [B, F]
    qf: np.ndarray  # float64 [B, F]


class PackedState(NamedTuple):
    i: np.ndarray  # int64 [B, X]
    f: np.ndarray  # float64 [B, X]


class Views:
    """Arrays by name, each a view ``[B, ...]`` of a block; writing to one writes through."""

    def __getattr__(self, name: str) -> np.ndarray:
        raise AttributeError(name)


class _Block:
    """Parts of one block, one after the other."""

    def __init__(self, offsets: np.ndarray, rows: int | None, kind: type, first: int = 0) -> None:
        self.offsets, self.rows, self.kind = offsets, rows, kind
        self.size = first
        self.parts: list[tuple[int, np.ndarray]] = []

    def part(self, offset: int, values: np.ndarray | int) -> None:
        """Give a part its place: values (``[M, ...]`` in a block of rows), or just a size."""
        self.offsets[offset] = self.size
        if isinstance(values, np.ndarray):
            flat = values.reshape(1 if self.rows is None else self.rows, -1)
            self.parts.append((self.size, flat))
            self.size += flat.shape[1]
        else:
            self.size += values

    def array(self) -> np.ndarray:
        block = np.zeros((1 if self.rows is None else self.rows, max(self.size, 1)), dtype=self.kind)
        for at, values in self.parts:
            block[:, at : at + values.shape[1]] = values
        return block[0] if self.rows is None else block


def pack_world(world: World, *, event_log: bool = False) -> PackedWorld:
    """The world in blocks."""
    o = np.zeros(len(fx.OFFSETS), dtype=np.int64)
    pools, levels, curves = world.static.speed.shape
    jobs = world.jobs.submit_s.shape[1]
    shape, first, shapes = _shapes(world)
    o[fx.N_JOBS], o[fx.N_NODES], o[fx.N_POOLS], o[fx.N_SITES] = jobs, len(world.static.node_pool), pools, len(world.cluster.sites)
    o[fx.N_LEVELS], o[fx.N_CURVES], o[fx.N_COLUMNS], o[fx.N_ACTIONS] = levels, curves, world.grid.price.shape[2], world.n_actions
    o[fx.N_SHAPES], o[fx.N_TREE] = shapes, 2 << max(0, int(shapes - 1).bit_length())
    o[fx.N_SHORT] = 2 << max(0, int(jobs - 1).bit_length())
    o[fx.N_GPUS] = int((world.static.pool_nodes * world.static.pool_gpus).sum())
    o[fx.N_RECORDS], o[fx.N_RACKS] = _records(world, int(o[fx.N_GPUS])), int(_racks(world).sum())
    o[fx.N_LOG] = 2 * (8 * jobs + 6 * int(o[fx.N_NODES]) + 4) if event_log else 0
    o[fx.HAS_BUDGET], o[fx.HAS_LEASES] = int(has_budget(world)), int((world.jobs.until_s >= 0).any())
    o[fx.HAS_AWAKE] = int((world.grid.keep_awake > 0).any())
    kinds, kind_of = typical_tables(world, shape, first)
    o[fx.N_TYPICAL] = kinds.shape[1]
    k, kf = _pack_cluster(world, o)
    j, jf = _pack_jobs(world, o, shape, first, (kinds, kind_of))
    g, gf = _pack_grid(world, o)
    _place_state(o)
    return PackedWorld(o, k, kf, j, jf, g, gf)


def has_budget(world: World) -> bool:
    """Whether any rack, pool or site has a budget."""
    static = world.static
    return bool((static.rack_budget_w > 0).any() or (static.pool_budget_w > 0).any() or (static.site_budget_w > 0).any())


def nanowatts(watts: np.ndarray) -> np.ndarray:
    """Whole nanowatts, rounded half up, in which the kernel adds watts."""
    return np.floor(watts * NANO + 0.5).astype(np.int64)


def _racks(world: World) -> np.ndarray:
    """Racks of each pool."""
    per_rack = world.static.nodes_per_rack
    return np.where(per_rack > 0, -(-world.static.pool_nodes // np.maximum(per_rack, 1)), 0)


def _pack_cluster(world: World, o: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    static = world.static
    racks = _racks(world)
    awake = nanowatts(static.node_idle_w + static.pool_gpus * static.gpu_idle_w)
    waking, sleeping = nanowatts(static.wake_power_w), nanowatts(static.node_sleep_w)
    pool = np.zeros((len(static.pool_site), fx.POOL_CONSTANTS_WIDTH), dtype=np.int64)
    columns = {
        fx.POOL_SITE: static.pool_site,
        fx.POOL_FIRST_NODE: static.pool_first_node,
        fx.POOL_NODES: static.pool_nodes,
        fx.POOL_GPUS: static.pool_gpus,
        fx.WAKE_LATENCY_S: static.wake_latency_s,
        fx.AWAKE_NW: awake,
        fx.WAKING_NW: waking,
        fx.SLEEPING_NW: sleeping,
        fx.COMMITTED_WAKING_NW: np.maximum(awake, waking),
        fx.POOL_CPU_MILLI: static.cpu_milli,
        fx.POOL_MEMORY_MIB: static.memory_mib,
        fx.NODES_PER_RACK: static.nodes_per_rack,
        fx.FIRST_RACK: np.cumsum(racks) - racks,
        fx.RACK_BUDGET_NW: np.where(static.nodes_per_rack > 0, nanowatts(static.rack_budget_w), 0),
        fx.POOL_BUDGET_NW: nanowatts(static.pool_budget_w),
    }
    for column, values in columns.items():
        pool[:, column] = values
    share = (static.node_idle_w + static.pool_gpus * static.gpu_idle_w) / static.pool_gpus
    watts = np.stack([static.gpu_idle_w, static.gpu_context_w, static.cpu_w_per_gpu, static.cpu_w_per_cpu, share], axis=1)
    whole, real = _Block(o, None, np.int64), _Block(o, None, np.float64)
    whole.part(fx.K_POOL, pool)
    whole.part(fx.K_NODE, np.stack([static.node_pool, static.node_first_gpu], axis=1))
    whole.part(fx.K_KIND, np.stack([static.deferrable, static.start_bound], axis=1).astype(np.int64))
    whole.part(fx.K_SITE, nanowatts(static.site_budget_w)[:, None])
    real.part(fx.KF_POOL, watts)
    real.part(fx.KF_SPEED, static.speed)
    real.part(fx.KF_POWER, static.gpu_power_w)
    real.part(fx.KF_LEVEL, static.level_fraction)
    real.part(fx.KF_LOGIT, FALL_OF_SCORE)
    return whole.array(), real.array()


def _shapes(world: World) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Shape of each job [M, J], the first job of each shape per window, and the most shapes of a window."""
    jobs = world.jobs
    parts = [jobs.gpu_milli, jobs.cpu_milli, jobs.memory_mib, jobs.workers, jobs.until_s >= 0, *np.moveaxis(jobs.allowed_levels, 2, 0)]
    if has_budget(world):
        parts += [jobs.curve, jobs.utilization.view(np.int64)]
    keys = np.ascontiguousarray(np.stack(parts, axis=2).astype(np.int64))
    shape = np.zeros(jobs.submit_s.shape, dtype=np.int64)
    firsts = []
    for row in range(len(keys)):
        bits = keys[row].view(np.dtype((np.void, keys.shape[2] * 8))).ravel()
        _, first, inverse = np.unique(bits, return_index=True, return_inverse=True)
        shape[row] = inverse.ravel()
        firsts.append(first)
    return shape, firsts, max(len(first) for first in firsts)


def _pack_jobs(
    world: World, o: np.ndarray, shape: np.ndarray, firsts: list[np.ndarray], typical: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    jobs, cluster = world.jobs, world.cluster
    windows, width = jobs.submit_s.shape
    shapes, pools = int(o[fx.N_SHAPES]), int(o[fx.N_POOLS])
    transfer_s = np.ceil(jobs.data_gib * 8.589934592 / cluster.transfer_gbps).astype(np.int64)
    columns = [
        jobs.submit_s,
        jobs.duration_s,
        jobs.estimate_s,
        jobs.gpu_milli * jobs.workers,
        jobs.workers,
        jobs.kind,
        jobs.curve,
        jobs.latest_start_s,
        jobs.deadline_s,
        jobs.reject,
        shape,
        jobs.preemptible,
        jobs.checkpoint_s,
        jobs.restart_s,
        jobs.data_site,
        transfer_s,
        jobs.until_s,
        jobs.service,
    ]
    table = np.stack([column.astype(np.int64) for column in columns], axis=2)
    constants = np.zeros((windows, shapes, fx.SHAPE_CONSTANTS_WIDTH), dtype=np.int64)
    held = np.zeros((windows, shapes, pools), dtype=np.int64)
    slot = np.zeros((windows, len(STATIC_ORDERS), width), dtype=np.int64)
    at_slot = np.zeros_like(slot)
    for row, first in enumerate(firsts):
        counts = np.bincount(shape[row], minlength=len(first))
        ends = np.cumsum(counts)
        fields = [ends - counts, ends, jobs.workers[row, first], jobs.cpu_milli[row, first], jobs.memory_mib[row, first]]
        constants[row, : len(first)] = np.stack(fields, axis=1)
        for p in range(pools):
            held[row, : len(first), p] = held_milli(jobs.gpu_milli[row, first], int(world.static.mig_slices[p]))
        for order in range(len(STATIC_ORDERS)):
            at_slot[row, order] = np.lexsort((jobs.rank[row, order], shape[row]))
            slot[row, order, at_slot[row, order]] = np.arange(width)
    whole, real = _Block(o, windows, np.int64, first=2), _Block(o, windows, np.float64)
    whole.part(fx.J_JOB, table)
    whole.part(fx.J_ALLOWED, jobs.allowed_levels)
    whole.part(fx.J_RANK, jobs.rank.astype(np.int64))
    whole.part(fx.J_SLOT, slot)
    whole.part(fx.J_AT_SLOT, at_slot)
    whole.part(fx.J_SHAPE, constants)
    whole.part(fx.J_HELD, held)
    whole.part(fx.J_TYPICAL, typical[0])
    whole.part(fx.J_TYPICAL_OF, typical[1])
    real.part(fx.JF_JOB, np.stack([jobs.utilization, jobs.data_gib * cluster.transfer_kwh_per_gib], axis=2))
    block = whole.array()
    block[:, fx.JOB_COUNT] = jobs.count
    block[:, fx.SHAPE_COUNT] = [len(first) for first in firsts]
    return block, real.array()


def _pack_grid(world: World, o: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    grid = world.grid
    windows, _, steps = grid.price.shape
    most = max((len(events) for events in world.outages), default=0)
    outages = np.zeros((windows, most, fx.OUTAGE_WIDTH), dtype=np.int64)
    for row, events in enumerate(world.outages):
        outages[row, : len(events)] = events

    def padded(name: str) -> np.ndarray:
        values = getattr(grid, name)
        return values if values.shape[2] == steps + 1 else np.pad(values, ((0, 0), (0, 0), (0, 1)), mode="edge")

    whole, real = _Block(o, windows, np.int64, first=5), _Block(o, windows, np.float64)
    whole.part(fx.G_RESERVE, grid.warm_reserve)
    whole.part(fx.G_AWAKE, grid.keep_awake)
    whole.part(fx.G_OUTAGE, outages)
    real.part(fx.GF_VALUES, np.stack([padded(name) for name in fx.GRID_VALUES], axis=1))
    real.part(fx.GF_LOAD, grid.load)
    block = whole.array()
    block[:, fx.STEP_S], block[:, fx.HISTORY_STEPS], block[:, fx.WEEK_S] = grid.step_s, grid.history_steps, grid.start_s
    block[:, fx.KEEPS_AWAKE] = (grid.keep_awake > 0).any(axis=(1, 2))
    block[:, fx.OUTAGE_COUNT] = [len(events) for events in world.outages] if world.outages else 0
    return block, real.array()


def _place_state(o: np.ndarray) -> None:
    """Places of the state's parts; their sizes end in ``I_END`` and ``F_END``."""
    jobs, nodes, pools, sites, actions = (int(o[at]) for at in (fx.N_JOBS, fx.N_NODES, fx.N_POOLS, fx.N_SITES, fx.N_ACTIONS))
    shapes, columns = int(o[fx.N_SHAPES]), int(o[fx.N_COLUMNS]) + 1
    whole, real = _Block(o, None, np.int64, first=len(fx.ENV_I)), _Block(o, None, np.float64, first=len(fx.ENV_F))
    sizes = {
        fx.I_POOL: pools * fx.POOL_WIDTH,
        fx.I_SITE: sites * fx.SITE_WIDTH,
        fx.I_ACTION: actions * fx.ACTION_WIDTH,
        fx.I_WHOLE: pools * 2 * WHOLE_ROW,
        fx.I_NODE: (nodes + 1) * fx.NODE_WIDTH,
        fx.I_GPU: int(o[fx.N_GPUS]),
        fx.I_RACK: int(o[fx.N_RACKS]),
        fx.I_TREE: int(o[fx.N_TREE]),
        fx.I_SHAPE: shapes * fx.SHAPE_WIDTH,
        fx.I_BLOCKED: shapes,
        fx.I_READY: (jobs >> 5) + 1,
        fx.I_RECORD: int(o[fx.N_RECORDS]) * fx.RECORD_WIDTH,
        fx.I_WAKES: nodes,
        fx.I_WAKES_AT: nodes,
        fx.I_JOB: (jobs + 1) * fx.JOB_WIDTH,
        fx.I_N_LEAVES: pools,
        fx.I_LEAVES: pools * jobs,
        fx.I_SHORT: int(o[fx.N_SHORT]),
        fx.I_BOOKING: jobs * fx.BOOKING_WIDTH,
        fx.I_BOOKED: jobs,
        fx.I_CALENDAR: pools * (fx.N_SLOTS + 1),
        fx.I_ORDER: pools * fx.N_SLOTS,
        fx.I_TYPICAL: typical_size(int(o[fx.N_TYPICAL])),
        fx.I_WATTS: WATTS_FIELDS,
        fx.I_USED: pools * DAY_CHECKS,
    }
    sizes |= dict.fromkeys((fx.I_SKIPPED, fx.I_RUNNING, fx.I_SCRATCH, fx.I_SCAN), jobs)
    sizes |= dict.fromkeys((fx.I_ENDS, fx.I_ENDS_AT, fx.I_TIMERS, fx.I_TIMERS_AT, fx.I_LEAVES_AT), jobs)
    for offset, size in sizes.items():
        whole.part(offset, size)
    real_sizes = {
        fx.F_SITE: sites * 4,
        fx.F_IDLE: sites * 9,
        fx.F_ACTION: actions * fx.ACTION_F_WIDTH,
        fx.F_BEGIN: sites * 26,
        fx.F_RATE: sites * columns,
        fx.F_RANK: sites,
        fx.F_JOB: jobs * fx.JOB_F_WIDTH,
        fx.F_SCORE: jobs,
        fx.F_SLOT: sites * (fx.N_SLOTS + 1),
        fx.F_TRUE: sites * (fx.N_SLOTS + 1),
        fx.F_PLAN: 5 * (fx.N_SLOTS + 1),
    }
    for offset, size in real_sizes.items():
        real.part(offset, size)
    o[fx.I_END], o[fx.F_END] = whole.size, real.size


def _records(world: World, gpus: int) -> int:
    """Most workers that can hold something at one time, and as many again of the largest gang, for trials."""
    jobs = world.jobs
    live = (np.arange(jobs.submit_s.shape[1])[None, :] < jobs.count[:, None]) & (jobs.reject == 0)
    workers = np.where(live, jobs.workers, 0)
    most, gang = int(workers.sum(axis=1).max()), int(workers.max())
    smallest = int(np.where(live, jobs.gpu_milli, 1000).min())
    if smallest > 0 and not (world.static.mig_slices > 0).any():
        most = min(most, gpus * 1000 // smallest)
    return max(1, most) + gang


def make_params(num_envs: int, settings: PolicySettings, reward: RewardSpec, *, plan_regret: bool = False) -> PackedParams:
    """The same settings and objective for every environment."""
    weights = [reward.w_cost, reward.w_carbon, reward.w_energy, reward.w_sla]
    if min(weights) < 0 or reward.scale_usd <= 0:
        raise InputError(f"weights {weights}, scale_usd {reward.scale_usd}", where="reward", allowed="weights from 0, scale above 0")
    ints = [
        NODE_RULES.index(settings.node_rule),
        settings.sleep_after_s,
        DISCIPLINES.index(settings.discipline),
        QUEUE_ORDERS.index(settings.queue_order),
        settings.hold_s,
        int(plan_regret),
        settings.review_s,
        round(1000 * settings.pwr_weight),
        settings.ces_buffer,
        settings.ces_keep_s,
        PRICE_FORECASTS.index(settings.price_forecast),
        int(settings.plans),
    ]
    floats = [
        settings.hold_margin,
        reward.carbon_usd_per_kg,
        reward.energy_usd_per_kwh,
        reward.late_usd_per_gpu_hour,
        reward.late_cap_hours,
        reward.miss_usd_per_gpu,
        reward.scale_usd,
        *weights,
        settings.ces_trend,
        settings.threshold_quantile,
        settings.expected_share,
        settings.padded_share,
        settings.node_weight,
        settings.share_weight,
        settings.overbooked_usd_per_gpu_hour,
        settings.move_margin,
    ]
    return PackedParams(np.tile(np.array(ints, dtype=np.int64), (num_envs, 1)), np.tile(np.array(floats, dtype=np.float64), (num_envs, 1)))


def params_views(params: PackedParams) -> Views:
    """Settings and objective by name; ``weights`` ``[B, 4]`` in the order cost, carbon, energy, SLA."""
    views = Views()
    for names, block in ((fx.PARAMS_I, params.q), (fx.PARAMS_F, params.qf)):
        for at, name in enumerate(names):
            setattr(views, name, block[:, at])
    views.weights = params.qf[:, fx.W_COST : fx.W_COST + 4]
    return views


def allocate_state(packed: PackedWorld, num_envs: int) -> tuple[PackedState, np.ndarray]:
    """Zeroed state and event log for ``num_envs`` clusters; the kernel fills them."""
    o = packed.o
    state = PackedState(np.zeros((num_envs, int(o[fx.I_END])), dtype=np.int64), np.zeros((num_envs, int(o[fx.F_END]))))
    return state, np.zeros((num_envs, max(1, int(o[fx.N_LOG])) * LOG_FIELDS), dtype=np.int64)


def state_views(packed: PackedWorld, state: PackedState) -> Views:
    """The state by name (names in ``envs.fields``); 0 and 1 for truth values."""
    o = packed.o
    views = Views()

    def table(block: np.ndarray, offset: int, rows: int, width: int) -> np.ndarray:
        at = int(o[offset])
        return block[:, at : at + rows * width].reshape(len(block), rows, width)

    def name_all(names: tuple[str, ...], values: np.ndarray) -> None:
        for at, name in enumerate(names):
            setattr(views, name, values[..., at])

    name_all(fx.ENV_I, state.i)
    name_all(fx.ENV_F, state.f)
    jobs, nodes, pools = int(o[fx.N_JOBS]), int(o[fx.N_NODES]), int(o[fx.N_POOLS])
    sites, actions = int(o[fx.N_SITES]), int(o[fx.N_ACTIONS])
    name_all(fx.JOB_I, table(state.i, fx.I_JOB, jobs + 1, fx.JOB_WIDTH))
    name_all(fx.JOB_F, table(state.f, fx.F_JOB, jobs, fx.JOB_F_WIDTH))
    name_all(fx.NODE_I, table(state.i, fx.I_NODE, nodes + 1, fx.NODE_WIDTH))
    name_all(fx.POOL_I, table(state.i, fx.I_POOL, pools, fx.POOL_WIDTH))
    name_all(fx.SITE_I, table(state.i, fx.I_SITE, sites, fx.SITE_WIDTH))
    name_all(fx.ACTION_I, table(state.i, fx.I_ACTION, actions, fx.ACTION_WIDTH))
    name_all(fx.ACTION_F, table(state.f, fx.F_ACTION, actions, fx.ACTION_F_WIDTH))
    name_all(fx.BOOKING_I, table(state.i, fx.I_BOOKING, jobs, fx.BOOKING_WIDTH))
    name_all(fx.RECORD_I, table(state.i, fx.I_RECORD, int(o[fx.N_RECORDS]), fx.RECORD_WIDTH))
    views.state_count = np.swapaxes(table(state.i, fx.I_POOL, pools, fx.POOL_WIDTH)[..., fx.STATE_COUNT :], 1, 2)
    views.gpu_free = table(state.i, fx.I_GPU, int(o[fx.N_GPUS]), 1)[..., 0]
    views.running = table(state.i, fx.I_RUNNING, jobs, 1)[..., 0]
    views.whole_count = table(state.i, fx.I_WHOLE, pools * 2, WHOLE_ROW).reshape(len(state.i), pools, 2, WHOLE_ROW)
    views.site_totals = table(state.f, fx.F_SITE, sites, 4)
    views.idle_totals = table(state.f, fx.F_IDLE, sites, 9).reshape(len(state.f), sites, 3, 3)
    views.rate = table(state.f, fx.F_RATE, sites, int(o[fx.N_COLUMNS]) + 1)
    return views


def state_bytes(state: PackedState) -> int:
    """Memory of one environment in bytes."""
    return sum(array.nbytes for array in state) // len(state.i)

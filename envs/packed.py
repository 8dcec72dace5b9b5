"""Packed arrays for the compiled simulator, and named views of them for everyone else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs import fields as fx
from envs.reward import RewardSpec
from envs.state import DISCIPLINES, LOG_FIELDS, NODE_RULES, PolicySettings
from envs.world import QUEUE_ORDERS, STATIC_ORDERS, Grid, Jobs, Static, World
from telemetry.errors import InputError


class PackedStatic(NamedTuple):
    pool_i: np.ndarray  # int64 [F, P]
    pool_f: np.ndarray  # float64 [F, P]
    node_i: np.ndarray  # int64 [F, N]
    curve: np.ndarray  # float64 [F, P, L, K]
    level: np.ndarray  # float64 [L]
    kind_i: np.ndarray  # int64 [F, K]


class PackedJobs(NamedTuple):
    count: np.ndarray  # int64 [M]
    work_i: np.ndarray  # int64 [M, F, J]
    utilization: np.ndarray  # float64 [M, J]
    allowed: np.ndarray  # int64 [M, J, P]


class PackedGrid(NamedTuple):
    window_i: np.ndarray  # int64 [M, F]
    values: np.ndarray  # float64 [M, F, S, T + 1]
    reserve: np.ndarray  # int64 [M, P, T]


class PackedParams(NamedTuple):
    ints: np.ndarray  # int64 [B, F]
    floats: np.ndarray  # float64 [B, F]


class PackedState(NamedTuple):
    env_i: np.ndarray  # int64 [B, F]
    env_f: np.ndarray  # float64 [B, F]
    heap_size: np.ndarray  # int64 [B, 4]
    job_i: np.ndarray  # int64 [B, F, J + 1]
    job_f: np.ndarray  # float64 [B, F, J]
    ready: np.ndarray  # uint64 [B, W], bits by rank
    scan: np.ndarray  # int64 [B, J], heap of a scan in an order that time changes
    score: np.ndarray  # float64 [B, J], its keys
    node_i: np.ndarray  # int64 [B, F, N + 1]
    gpu_free: np.ndarray  # int16 [B, GPUs], free thousandths
    pool_i: np.ndarray  # int64 [B, F, P]
    whole_count: np.ndarray  # int64 [B, P, 2, H], awake and waking nodes by wholly free GPUs
    record_i: np.ndarray  # int64 [B, F, R]
    site_f: np.ndarray  # float64 [B, F, S]
    site_totals: np.ndarray  # float64 [B, S, 4]: USD, kg, kWh, penalty USD
    idle_totals: np.ndarray  # float64 [B, S, 3, 3]: idle, waking, sleeping; USD, kg, kWh
    action_i: np.ndarray  # int64 [B, F, A]
    action_f: np.ndarray  # float64 [B, F, A]
    rate: np.ndarray  # float64 [B, S, T + 1], running sums of the objective of 1 kW
    log: np.ndarray  # int64 [B, E, 7]


class Views:
    """Arrays by name, each a view ``[B, ...]`` of a packed array; writing to one writes through."""

    def __init__(self, packed: NamedTuple, groups: dict[str, tuple[str, ...]]) -> None:
        for group, names in groups.items():
            array = getattr(packed, group)
            for index, name in enumerate(names):
                self.__dict__[name] = array[:, index]

    def __getattr__(self, name: str) -> np.ndarray:
        raise AttributeError(name)


def state_views(state: PackedState) -> Views:
    """The state by name (names in ``envs.fields``); 0 and 1 for truth values."""
    groups = {
        "env_i": fx.ENV_I,
        "env_f": fx.ENV_F,
        "job_i": fx.JOB_I,
        "job_f": fx.JOB_F,
        "node_i": fx.NODE_I,
        "pool_i": fx.POOL_I,
        "action_i": fx.ACTION_I,
        "action_f": fx.ACTION_F,
    }
    views = Views(state, groups)
    views.state_count = state.pool_i[:, fx.STATE_COUNT : fx.STATE_COUNT + 3]
    views.gpu_free, views.site_totals, views.idle_totals, views.log = state.gpu_free, state.site_totals, state.idle_totals, state.log
    return views


def params_views(params: PackedParams) -> Views:
    """Settings and objective by name; ``weights`` ``[B, 4]`` in the order cost, carbon, energy, SLA."""
    views = Views(params, {"ints": fx.PARAMS_I, "floats": fx.PARAMS_F})
    views.weights = params.floats[:, fx.WEIGHTS : fx.WEIGHTS + 4]
    return views


def pack_static(static: Static) -> PackedStatic:
    def rows(names: tuple[str, ...], kind: type) -> np.ndarray:
        return np.ascontiguousarray(np.stack([getattr(static, name) for name in names]), dtype=kind)

    return PackedStatic(
        pool_i=rows(fx.STATIC_POOL_I, np.int64),
        pool_f=rows(fx.STATIC_POOL_F, np.float64),
        node_i=rows(fx.STATIC_NODE_I, np.int64),
        curve=rows(fx.CURVE, np.float64),
        level=np.ascontiguousarray(static.level_fraction, dtype=np.float64),
        kind_i=rows(fx.KIND_I, np.int64),
    )


def pack_jobs(jobs: Jobs) -> PackedJobs:
    orders = len(STATIC_ORDERS)
    plain = [getattr(jobs, name) for name in fx.WORK_I if name not in ("rank", "by_rank")]
    table = [*plain, *(jobs.rank[:, order] for order in range(orders)), *(jobs.by_rank[:, order] for order in range(orders))]
    return PackedJobs(
        count=np.ascontiguousarray(jobs.count, dtype=np.int64),
        work_i=np.ascontiguousarray(np.stack(table, axis=1), dtype=np.int64),
        utilization=np.ascontiguousarray(jobs.utilization, dtype=np.float64),
        allowed=np.ascontiguousarray(jobs.allowed_levels, dtype=np.int64),
    )


def pack_grid(grid: Grid) -> PackedGrid:
    steps = grid.price.shape[2]

    def padded(name: str) -> np.ndarray:
        values = getattr(grid, name)
        return values if values.shape[2] == steps + 1 else np.pad(values, ((0, 0), (0, 0), (0, 1)), mode="edge")

    return PackedGrid(
        window_i=np.ascontiguousarray(np.stack([getattr(grid, name) for name in fx.WINDOW_I], axis=1), dtype=np.int64),
        values=np.ascontiguousarray(np.stack([padded(name) for name in fx.GRID_VALUES], axis=1), dtype=np.float64),
        reserve=np.ascontiguousarray(grid.warm_reserve, dtype=np.int64),
    )


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
    ]
    return PackedParams(np.tile(np.array(ints, dtype=np.int64), (num_envs, 1)), np.tile(np.array(floats, dtype=np.float64), (num_envs, 1)))


def allocate_state(world: World, num_envs: int, *, event_log: bool = False) -> PackedState:
    """Zeroed arrays for ``num_envs`` clusters; the kernel fills them."""
    static = world.static
    jobs, nodes, pools = world.jobs.submit_s.shape[1], len(static.node_pool), len(static.pool_site)
    sites, actions = len(world.cluster.sites), world.n_actions
    gpus = int((static.pool_nodes * static.pool_gpus).sum())

    def whole(*shape: int, kind: type = np.int64) -> np.ndarray:
        return np.zeros((num_envs, *shape), dtype=kind)

    def real(*shape: int) -> np.ndarray:
        return np.zeros((num_envs, *shape), dtype=np.float64)

    return PackedState(
        env_i=whole(len(fx.ENV_I)),
        env_f=real(len(fx.ENV_F)),
        heap_size=whole(4),
        job_i=whole(len(fx.JOB_I), jobs + 1),
        job_f=real(len(fx.JOB_F), jobs),
        ready=whole((jobs + 63) // 64, kind=np.uint64),
        scan=whole(jobs),
        score=real(jobs),
        node_i=whole(len(fx.NODE_I), nodes + 1),
        gpu_free=whole(gpus, kind=np.int16),
        pool_i=whole(len(fx.POOL_I) + 2, pools),
        whole_count=whole(pools, 2, int(static.pool_gpus.max()) + 1),
        record_i=whole(len(fx.RECORD_I), _records(world, gpus)),
        site_f=real(len(fx.SITE_F), sites),
        site_totals=real(sites, 4),
        idle_totals=real(sites, 3, 3),
        action_i=whole(len(fx.ACTION_I), actions),
        action_f=real(len(fx.ACTION_F), actions),
        rate=real(sites, world.grid.cum_price.shape[2]),
        log=whole(2 * (6 * jobs + 4 * nodes + 16) if event_log else 1, LOG_FIELDS),
    )


def state_bytes(state: PackedState) -> int:
    """Memory of one environment in bytes."""
    return sum(array.nbytes for array in state) // len(state.env_i)


def _records(world: World, gpus: int) -> int:
    """Most workers that can hold GPUs at one time."""
    live = np.arange(world.jobs.submit_s.shape[1])[None, :] < world.jobs.count[:, None]
    workers = int(np.where(live & (world.jobs.reject == 0), world.jobs.workers, 0).sum(axis=1).max())
    smallest = int(np.where(live, world.jobs.gpu_milli, 1000).min())
    return max(1, min(workers, gpus * 1000 // max(1, smallest)))

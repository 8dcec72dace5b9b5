"""Settings of a policy, the state of a batch of clusters, and the totals of a finished window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from envs.reward import RewardSpec
from envs.world import QUEUE_ORDERS, World
from telemetry.errors import InputError

if TYPE_CHECKING:
    from envs.observation import ObservationLayout

NODE_RULES: tuple[str, ...] = ("best_fit", "least_allocated")
DISCIPLINES: tuple[str, ...] = ("free", "strict", "easy")
BEST_FIT, LEAST_ALLOCATED = 0, 1
FREE, STRICT, EASY = 0, 1, 2
AWAKE, WAKING, SLEEPING = 0, 1, 2
ABSENT, WAITING, PLACED, RUNNING, ENDED, REJECTED = range(6)
LATE_START, MISSED_DEADLINE, VIOLATED_BY_REJECTION = 1, 2, 4
COST, CARBON, ENERGY, PENALTY = 0, 1, 2, 3
IDLE_STATES: tuple[str, ...] = ("idle", "waking", "sleeping")
LOG_FIELDS = 7


@dataclass(frozen=True)
class PolicySettings:
    """What a policy fixes beside its choices.

    Attributes:
        node_rule: ``best_fit`` or ``least_allocated``.
        sleep_after_s: an idle node sleeps after so many seconds; -1 = never.
        discipline: ``free``, ``strict`` or ``easy``.
        queue_order: ``priority``, ``fcfs`` or ``sjf``.
        hold_s: a held job is asked about again after so many seconds, at its latest start at the latest.
        hold_margin: relative advantage that a later start must promise in the look-ahead score.
    """

    node_rule: str = "best_fit"
    sleep_after_s: int = 600
    discipline: str = "free"
    queue_order: str = "priority"
    hold_s: int = 900
    hold_margin: float = 0.02

    def __post_init__(self) -> None:
        for name, allowed in (("node_rule", NODE_RULES), ("discipline", DISCIPLINES), ("queue_order", QUEUE_ORDERS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} '{getattr(self, name)}'", where="policy settings", allowed=", ".join(allowed))
        if self.sleep_after_s < -1:
            raise InputError(f"sleep_after_s {self.sleep_after_s}", where="policy settings", allowed="-1 (never) or seconds from 0")
        if self.hold_s < 1:
            raise InputError(f"hold_s {self.hold_s}", where="policy settings", allowed="at least 1 second")
        if not 0.0 <= self.hold_margin < 10.0:
            raise InputError(f"hold_margin {self.hold_margin}", where="policy settings", allowed="0 <= hold_margin < 10")


class Policy(Protocol):
    """What decides: a judge or the agent."""

    name: str
    settings: PolicySettings

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Actions int64 ``[B]`` for observations float32 ``[B, D]``, each allowed by the mask in the observation."""
        ...


class Params(NamedTuple):
    """Settings and objective of each of B environments, as arrays."""

    node_rule: np.ndarray  # int64 [B]
    sleep_after_s: np.ndarray  # int64 [B]
    discipline: np.ndarray  # int64 [B]
    queue_order: np.ndarray  # int64 [B]
    hold_s: np.ndarray  # int64 [B]
    hold_margin: np.ndarray  # float64 [B]
    weights: np.ndarray  # float64 [B, 4]: w_cost, w_carbon, w_energy, w_sla
    carbon_usd_per_kg: np.ndarray  # float64 [B]
    energy_usd_per_kwh: np.ndarray  # float64 [B]
    late_usd_per_gpu_hour: np.ndarray  # float64 [B]
    late_cap_hours: np.ndarray  # float64 [B]
    miss_usd_per_gpu: np.ndarray  # float64 [B]
    scale_usd: np.ndarray  # float64 [B]
    plan_regret: np.ndarray  # bool [B]: also account regret against each job's plan


def make_params(num_envs: int, settings: PolicySettings, reward: RewardSpec, *, plan_regret: bool = False) -> Params:
    """The same settings and objective for every environment; arrays may then be changed per environment."""

    def whole(value: int) -> np.ndarray:
        return np.full(num_envs, value, dtype=np.int64)

    def real(value: float) -> np.ndarray:
        return np.full(num_envs, value, dtype=np.float64)

    weights = [reward.w_cost, reward.w_carbon, reward.w_energy, reward.w_sla]
    if min(weights) < 0 or reward.scale_usd <= 0:
        raise InputError(f"weights {weights}, scale_usd {reward.scale_usd}", where="reward", allowed="weights from 0, scale above 0")
    return Params(
        node_rule=whole(NODE_RULES.index(settings.node_rule)),
        sleep_after_s=whole(settings.sleep_after_s),
        discipline=whole(DISCIPLINES.index(settings.discipline)),
        queue_order=whole(QUEUE_ORDERS.index(settings.queue_order)),
        hold_s=whole(settings.hold_s),
        hold_margin=real(settings.hold_margin),
        weights=np.tile(np.array(weights, dtype=np.float64), (num_envs, 1)),
        carbon_usd_per_kg=real(reward.carbon_usd_per_kg),
        energy_usd_per_kwh=real(reward.energy_usd_per_kwh),
        late_usd_per_gpu_hour=real(reward.late_usd_per_gpu_hour),
        late_cap_hours=real(reward.late_cap_hours),
        miss_usd_per_gpu=real(reward.miss_usd_per_gpu),
        scale_usd=real(reward.scale_usd),
        plan_regret=np.full(num_envs, plan_regret, dtype=np.bool_),
    )


class State(NamedTuple):
    """State of B clusters. First axis: environment; J jobs, N nodes, P pools, S sites, A actions, R allocation records."""

    # clock
    time_s: np.ndarray  # int64 [B]
    window: np.ndarray  # int64 [B]
    done: np.ndarray  # bool [B]
    asking: np.ndarray  # int64 [B], job in question or -1
    in_scan: np.ndarray  # bool [B]
    cursor: np.ndarray  # int64 [B], rank at which the scan goes on
    arrived: np.ndarray  # int64 [B], jobs that have arrived
    unfinished: np.ndarray  # int64 [B], jobs neither ended nor rejected
    decisions: np.ndarray  # int64 [B]
    last_decision_s: np.ndarray  # int64 [B]
    # reservation of the scan
    reserved_pool: np.ndarray  # int64 [B], -1 = none
    reserved_shadow_s: np.ndarray  # int64 [B]
    reserved_extra: np.ndarray  # int64 [B], thousandths
    # objective
    objective_usd: np.ndarray  # float64 [B], since the start
    regret_usd: np.ndarray  # float64 [B], since the start
    marked_usd: np.ndarray  # float64 [B, 2], both at the last question
    # jobs
    status: np.ndarray  # int8 [B, J]
    start_s: np.ndarray  # int64 [B, J], -1 until known
    end_s: np.ndarray  # int64 [B, J], -1 until ended
    due_s: np.ndarray  # int64 [B, J], true end of a placed job
    pool: np.ndarray  # int64 [B, J]
    level: np.ndarray  # int64 [B, J]
    job_kwh: np.ndarray  # float64 [B, J]
    job_usd: np.ndarray  # float64 [B, J]
    job_kg: np.ndarray  # float64 [B, J]
    job_penalty: np.ndarray  # float64 [B, J]
    violation: np.ndarray  # int8 [B, J], bits
    expected_penalty: np.ndarray  # float64 [B, J], by estimate when run
    planned_usd: np.ndarray  # float64 [B, J], planned objective of the job
    # calendars: binary heaps of time << 24 | index
    end_heap: np.ndarray  # int64 [B, J]
    start_heap: np.ndarray  # int64 [B, J]
    hold_heap: np.ndarray  # int64 [B, J]
    wake_heap: np.ndarray  # int64 [B, N]
    heap_size: np.ndarray  # int64 [B, 4]
    # queue
    ready: np.ndarray  # uint64 [B, W], bits by rank: waiting jobs that may be asked about
    waiting: np.ndarray  # int64 [B]
    waiting_milli: np.ndarray  # int64 [B]
    running: np.ndarray  # int32 [B, J], placed jobs in no order
    running_at: np.ndarray  # int32 [B, J], place in ``running``
    n_running: np.ndarray  # int64 [B]
    scratch: np.ndarray  # int64 [B, J]
    # nodes
    node_state: np.ndarray  # int8 [B, N]
    node_whole: np.ndarray  # int16 [B, N], wholly free GPUs
    node_free: np.ndarray  # int32 [B, N], free thousandths
    wake_end_s: np.ndarray  # int64 [B, N]
    idle_since_s: np.ndarray  # int64 [B, N]
    idle_next: np.ndarray  # int32 [B, N + 1], awake nodes without jobs in order of idle_since; N is the head
    idle_prev: np.ndarray  # int32 [B, N + 1]
    tired: np.ndarray  # bool [B, N], idle for long enough to sleep
    gpu_free: np.ndarray  # int16 [B, total GPUs]
    # pools
    whole_count: np.ndarray  # int32 [B, P, 2, largest gpus + 1], nodes awake and waking by wholly free GPUs
    state_count: np.ndarray  # int64 [B, P, 3]
    idle_awake: np.ndarray  # int64 [B, P]
    tired_count: np.ndarray  # int64 [B, P]
    pool_free: np.ndarray  # int64 [B, P], free thousandths
    pool_partial: np.ndarray  # int64 [B, P], GPUs neither free nor full
    pool_running: np.ndarray  # int64 [B, P], thousandths of started jobs
    # allocations: linked lists of records
    record_node: np.ndarray  # int32 [B, R]
    record_gpu: np.ndarray  # int32 [B, R], GPU of a share, -1 for whole GPUs
    record_bits: np.ndarray  # int64 [B, R], whole GPUs of the node
    record_next: np.ndarray  # int32 [B, R]
    record_head: np.ndarray  # int32 [B, J + 1]; J is the free list
    # sites
    dynamic_w: np.ndarray  # float64 [B, S]
    site_running: np.ndarray  # int64 [B, S]
    site_totals: np.ndarray  # float64 [B, S, 4]: USD, kg, kWh, penalty USD
    idle_totals: np.ndarray  # float64 [B, S, 3, 3]: by idle, waking, sleeping; USD, kg, kWh
    busy_gpu_s: np.ndarray  # float64 [B], GPU seconds of started jobs
    # the question
    mask: np.ndarray  # bool [B, A]
    expected_usd: np.ndarray  # float64 [B, A], expected objective
    expected_kwh: np.ndarray  # float64 [B, A]
    expected_late: np.ndarray  # float64 [B, A], expected penalty, USD
    expected_start_s: np.ndarray  # int64 [B, A]
    expected_end_s: np.ndarray  # int64 [B, A]
    scored: np.ndarray  # bool [B], the expectations are those of the question
    start_delay_s: np.ndarray  # int64 [B, P]
    nodes_woken: np.ndarray  # int64 [B, P]
    # event log
    log: np.ndarray  # int64 [B, E, 7]
    log_count: np.ndarray  # int64 [B]


_SHAPES: dict[str, tuple[str, type]] = {
    **dict.fromkeys(("time_s", "window", "asking", "cursor", "arrived", "unfinished", "decisions", "last_decision_s"), ("", np.int64)),
    **dict.fromkeys(("reserved_pool", "reserved_shadow_s", "reserved_extra"), ("", np.int64)),
    **dict.fromkeys(("waiting", "waiting_milli", "n_running", "log_count"), ("", np.int64)),
    **dict.fromkeys(("done", "in_scan"), ("", np.bool_)),
    **dict.fromkeys(("objective_usd", "regret_usd", "busy_gpu_s"), ("", np.float64)),
    **dict.fromkeys(("start_s", "end_s", "due_s", "pool", "level", "end_heap", "start_heap", "hold_heap", "scratch"), ("J", np.int64)),
    **dict.fromkeys(("job_kwh", "job_usd", "job_kg", "job_penalty", "expected_penalty", "planned_usd"), ("J", np.float64)),
    **dict.fromkeys(("running", "running_at"), ("J", np.int32)),
    **dict.fromkeys(("status", "violation"), ("J", np.int8)),
    **dict.fromkeys(("wake_heap", "wake_end_s", "idle_since_s"), ("N", np.int64)),
    **dict.fromkeys(("idle_next", "idle_prev"), ("N1", np.int32)),
    **dict.fromkeys(
        ("idle_awake", "tired_count", "pool_free", "pool_partial", "pool_running", "start_delay_s", "nodes_woken"), ("P", np.int64)
    ),
    **dict.fromkeys(("record_node", "record_gpu", "record_next"), ("R", np.int32)),
    **dict.fromkeys(("expected_usd", "expected_kwh", "expected_late"), ("A", np.float64)),
    "marked_usd": ("2", np.float64),
    "heap_size": ("4", np.int64),
    "ready": ("W", np.uint64),
    "node_state": ("N", np.int8),
    "node_whole": ("N", np.int16),
    "node_free": ("N", np.int32),
    "tired": ("N", np.bool_),
    "gpu_free": ("G", np.int16),
    "whole_count": ("P 2 H", np.int32),
    "state_count": ("P 3", np.int64),
    "record_bits": ("R", np.int64),
    "record_head": ("J1", np.int32),
    "dynamic_w": ("S", np.float64),
    "site_running": ("S", np.int64),
    "site_totals": ("S 4", np.float64),
    "idle_totals": ("S 3 3", np.float64),
    "mask": ("A", np.bool_),
    "expected_start_s": ("A", np.int64),
    "expected_end_s": ("A", np.int64),
    "scored": ("", np.bool_),
    "log": ("E 7", np.int64),
}


def allocate_state(world: World, num_envs: int, *, event_log: bool = False) -> State:
    """Zeroed arrays for ``num_envs`` clusters; ``envs.kernel`` fills them."""
    static = world.static
    jobs, nodes = world.jobs.submit_s.shape[1], len(static.node_pool)
    gpus = int((static.pool_nodes * static.pool_gpus).sum())
    sizes = {
        "J": jobs,
        "J1": jobs + 1,
        "N": nodes,
        "N1": nodes + 1,
        "P": len(static.pool_site),
        "S": len(world.cluster.sites),
        "G": gpus,
        "H": int(static.pool_gpus.max()) + 1,
        "W": (jobs + 63) // 64,
        "A": world.n_actions,
        "R": _records(world, gpus),
        "E": 2 * (6 * jobs + 4 * nodes + 16) if event_log else 1,
        **{digit: int(digit) for digit in "2347"},
    }
    arrays = {}
    for name in State._fields:
        axes, kind = _SHAPES[name]
        arrays[name] = np.zeros((num_envs, *(sizes[axis] for axis in axes.split())), dtype=kind)
    return State(**arrays)


def state_bytes(state: State) -> int:
    """Memory of one environment in bytes."""
    return sum(array.nbytes for array in state) // len(state.time_s)


def _records(world: World, gpus: int) -> int:
    """Most workers that can hold GPUs at one time."""
    live = np.arange(world.jobs.submit_s.shape[1])[None, :] < world.jobs.count[:, None]
    workers = int(np.where(live & (world.jobs.reject == 0), world.jobs.workers, 0).sum(axis=1).max())
    smallest = int(np.where(live, world.jobs.gpu_milli, 1000).min())
    return max(1, min(workers, gpus * 1000 // max(1, smallest)))


@dataclass(frozen=True)
class EpisodeTotals:
    """Totals of M finished windows; S sites, J jobs (padded; -1 or 0 beyond a window's count).

    ``idle_*`` is the remainder of the site that no running job is charged for, by ``IDLE_STATES``. For each site the jobs' and the idle
    parts sum to the whole.
    """

    energy_kwh: np.ndarray  # float64 [M, S]
    cost_usd: np.ndarray  # float64 [M, S]
    carbon_kg: np.ndarray  # float64 [M, S]
    penalty_usd: np.ndarray  # float64 [M, S]
    idle_energy_kwh: np.ndarray  # float64 [M, S, 3]
    idle_cost_usd: np.ndarray  # float64 [M, S, 3]
    idle_carbon_kg: np.ndarray  # float64 [M, S, 3]
    objective_usd: np.ndarray  # float64 [M]
    busy_gpu_s: np.ndarray  # float64 [M]
    end_s: np.ndarray  # int64 [M], second of the window's last event
    decisions: np.ndarray  # int64 [M]
    job_start_s: np.ndarray  # int64 [M, J], -1 = never
    job_end_s: np.ndarray  # int64 [M, J]
    job_pool: np.ndarray  # int64 [M, J]
    job_level: np.ndarray  # int64 [M, J]
    job_energy_kwh: np.ndarray  # float64 [M, J]
    job_cost_usd: np.ndarray  # float64 [M, J]
    job_carbon_kg: np.ndarray  # float64 [M, J]
    job_penalty_usd: np.ndarray  # float64 [M, J]
    job_late_start: np.ndarray  # bool [M, J]
    job_missed_deadline: np.ndarray  # bool [M, J]
    job_rejected: np.ndarray  # int64 [M, J], 0 or a reason (envs.world.REJECT_REASONS)
    events: tuple[np.ndarray, ...] | None  # int64 [E, 7] per window, as in envs.events; None without event_log

"""Settings of a policy, the constants of the simulator's state, and the totals of a finished window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from envs.world_arrays import QUEUE_ORDERS
from telemetry.errors import InputError

if TYPE_CHECKING:
    from envs.observation import ObservationLayout

NODE_RULES: tuple[str, ...] = ("best_fit", "least_allocated", "fgd", "pwr_fgd")
DISCIPLINES: tuple[str, ...] = ("free", "strict", "easy")
BEST_FIT, LEAST_ALLOCATED, FGD, PWR_FGD = 0, 1, 2, 3
PRICE_FORECASTS: tuple[str, ...] = ("last_day", "perfect", "none", "last_week")
FREE, STRICT, EASY = 0, 1, 2
LAST_DAY, PERFECT, NO_FORECAST, LAST_WEEK = 0, 1, 2, 3
AWAKE, WAKING, SLEEPING, DOWN = 0, 1, 2, 3
ABSENT, WAITING, PLACED, RUNNING, ENDED, REJECTED, WITHDRAWN = range(7)
LATE_START, MISSED_DEADLINE, VIOLATED_BY_REJECTION = 1, 2, 4
COST, CARBON, ENERGY, PENALTY = 0, 1, 2, 3
IDLE_STATES: tuple[str, ...] = ("idle", "waking", "sleeping")
LOG_FIELDS = 7


@dataclass(frozen=True)
class PolicySettings:
    """What a policy fixes beside its choices.

    Attributes:
        node_rule: one of ``NODE_RULES``.
        sleep_after_s: an idle node sleeps after so many seconds; -1 = never.
        discipline: ``free``, ``strict`` or ``easy``.
        queue_order: one of ``envs.world_arrays.QUEUE_ORDERS``.
        hold_s: a held job is asked about again after so many seconds, at its latest start at the latest.
        hold_margin: relative advantage that a later start must promise in the look-ahead score.
        review_s: a preemptible running job is asked about again after so many seconds; 0 = never.
        pwr_weight: weight of the power score under ``pwr_fgd``, 0 to 1; fragmentation has the rest.
        ces_buffer: nodes of each pool that stay awake beyond those in use (``envs.kernel_ces``); -1 = idle nodes sleep by
            ``sleep_after_s`` alone.
        ces_trend: nodes by which demand must have fallen, and be expected to fall, before nodes sleep.
        ces_keep_s: after nodes had to wake, none are put to sleep for so many seconds.
        threshold_quantile: the judge ``threshold`` holds while the objective of a kWh is above this quantile of the last 24 h.
        price_forecast: of price, carbon and PUE: ``last_day`` (the last 24 h again), ``perfect`` (what comes; for comparison only),
            ``none`` (the values of now stay), or ``last_week`` (:mod:`envs.kernel_week`: the planner's slots by the last seven days; all
            else as ``last_day``).
        plans: bookings are kept and actions are priced by the capacity-booking planner (:mod:`envs.kernel_planner`), by the next six:
        expected_share: expected duration as a share of the estimate, in what a run costs.
        padded_share: duration as a share of the estimate, in what a run occupies and in how late it ends.
        node_weight: how much of the idle watts of a node that is switched on for a job the job is charged.
        share_weight: how much of its share of a node's idle watts a job is charged, whoever switched the node on.
        overbooked_usd_per_gpu_hour: price of GPU time that running and booked jobs take already.
        move_margin: relative advantage that pausing, moving or another level must promise for a running job.
    """

    node_rule: str = "best_fit"
    sleep_after_s: int = 600
    discipline: str = "free"
    queue_order: str = "priority"
    hold_s: int = 900
    hold_margin: float = 0.02
    review_s: int = 0
    pwr_weight: float = 0.1
    ces_buffer: int = -1
    ces_trend: float = 0.5
    ces_keep_s: int = 7200
    threshold_quantile: float = 0.5
    price_forecast: str = "last_day"
    plans: bool = False
    expected_share: float = 1.0
    padded_share: float = 1.0
    node_weight: float = 1.0
    share_weight: float = 0.0
    overbooked_usd_per_gpu_hour: float = 0.5
    move_margin: float = 0.05

    def __post_init__(self) -> None:
        for name, allowed in (
            ("node_rule", NODE_RULES),
            ("discipline", DISCIPLINES),
            ("queue_order", QUEUE_ORDERS),
            ("price_forecast", PRICE_FORECASTS),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} '{getattr(self, name)}'", where="policy settings", allowed=", ".join(allowed))
        if self.sleep_after_s < -1:
            raise InputError(f"sleep_after_s {self.sleep_after_s}", where="policy settings", allowed="-1 (never) or seconds from 0")
        if self.hold_s < 1:
            raise InputError(f"hold_s {self.hold_s}", where="policy settings", allowed="at least 1 second")
        if self.review_s < 0:
            raise InputError(f"review_s {self.review_s}", where="policy settings", allowed="0 (never) or seconds from 1")
        for name, low, high in (
            ("expected_share", 0.01, 10.0),
            ("padded_share", 0.01, 10.0),
            ("node_weight", 0.0, 10.0),
            ("share_weight", 0.0, 10.0),
            ("overbooked_usd_per_gpu_hour", 0.0, 1e6),
            ("move_margin", 0.0, 10.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} {getattr(self, name)}", where="policy settings", allowed=f"{low:g} to {high:g}")
        if not 0.0 <= self.hold_margin < 10.0:
            raise InputError(f"hold_margin {self.hold_margin}", where="policy settings", allowed="0 <= hold_margin < 10")
        if self.ces_buffer < -1:
            raise InputError(f"ces_buffer {self.ces_buffer}", where="policy settings", allowed="-1 (no such rule) or nodes from 0")
        for name in ("ces_trend", "ces_keep_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} {getattr(self, name)}", where="policy settings", allowed="0 or more")
        for name in ("pwr_weight", "threshold_quantile"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} {getattr(self, name)}", where="policy settings", allowed=f"0 <= {name} <= 1")


class Policy(Protocol):
    """What decides: a judge or the agent."""

    name: str
    settings: PolicySettings

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Actions int64 ``[B]`` for observations float32 ``[B, D]``, each allowed by the mask in the observation."""
        ...


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
    job_rejected: np.ndarray  # int64 [M, J], 0 or a reason (envs.world_arrays.REJECT_REASONS)
    job_withdrawn: np.ndarray  # bool [M, J], leases that were over while they waited
    events: tuple[np.ndarray, ...] | None  # int64 [E, 7] per window, as in envs.events; None without event_log

"""A clairvoyant lower bound on the objective: what no schedule of the simulator can undercut in a window (docs/bound.md has the proof).

Arrivals, true durations, prices, carbon and PUE are known from second 0. Jobs keep their one undisturbed run (or, where they may be
interrupted, their work), pools their GPUs, nodes their idle watts while they carry a running job, and starts their last free choice; what
wakes, idle tails, fragmentation and budgets add is left out. The value returned is that of a dual point, computed here: it holds whatever
the solver's tolerances are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from tqdm import tqdm

from envs.bound_columns import ColumnMaker, Columns, joined
from envs.bound_program import Program, Rooms
from envs.bound_rates import JobFacts, job_facts, node_costs, slot_edges, slot_seconds, window_prices
from envs.bound_solve import Solution, solve_lp
from envs.reward import RewardSpec
from envs.world import World
from telemetry.errors import InputError

METHODS: tuple[str, ...] = ("lp",)
LATE_S = 120 * 3600.0
LONG_SLOT = 3
ROUNDING = 1e-9  # relative error of the accounts and of the sums here, far above either


@dataclass(frozen=True)
class WindowBound:
    """Bound of one window.

    Attributes:
        bound_usd: no schedule's objective is below it; -inf where there is no least objective (docs/bound.md, "Negative prices").
        floor_usd: part of it that no decision touches: the least watts of all nodes.
        jobs_usd, nodes_usd: parts at the relaxation's best point: runs with their penalties, and nodes that carry them. NaN without one.
        gap: (value at that point - bound) / bound: what is lost to numerics and time limits.
        seconds: wall-clock.
        rounds: linear programs solved.
    """

    bound_usd: float
    floor_usd: float
    jobs_usd: float
    nodes_usd: float
    gap: float
    seconds: float
    rounds: int


def bounds(
    world: World,
    reward: RewardSpec,
    *,
    reviews: bool = True,
    only_free: bool = False,
    method: str = "lp",
    time_limit_s: float = 60.0,
    progress: bool = False,
) -> pd.DataFrame:
    """Lower bounds of every window.

    Args:
        reviews: whether schedules with ``review_s`` > 0 are to be covered: preemptible jobs may then be paused, moved and changed in level.
            False is much tighter, and right where no policy reviews.
        only_free: only schedules of discipline ``free`` are to be covered; tighter where jobs wait for room.
        time_limit_s: for the solver, per window; the bound holds, and is weaker, when it ends early.
        progress: show a progress bar on standard error.

    Returns:
        One row per window: ``window, window_start`` and the fields of :class:`WindowBound`.

    Raises:
        InputError: an unknown method, a time limit that is not above 0, or weights below 0.
    """
    if method not in METHODS:
        raise InputError(f"method '{method}'", where="bound", allowed=", ".join(METHODS))
    if not time_limit_s > 0:
        raise InputError(f"time_limit_s {time_limit_s}", where="bound", allowed="above 0")
    weights = (reward.w_cost, reward.w_carbon, reward.w_energy, reward.w_sla)
    if min(weights) < 0:
        raise InputError(f"weights {weights}", where="reward", allowed="0 or more")
    rows = []
    for m in tqdm(range(world.n_windows), desc="bound", unit="window", disable=not progress, dynamic_ncols=True):
        found = window_bound(world, m, reward, reviews=reviews, only_free=only_free, time_limit_s=time_limit_s)
        rows.append({"window": m, "window_start": world.window_start[m], **vars(found)})
    return pd.DataFrame(rows)


def window_bound(
    world: World, m: int, reward: RewardSpec, *, reviews: bool = True, only_free: bool = False, time_limit_s: float = 60.0
) -> WindowBound:
    """Lower bound of window ``m``; arguments as in :func:`bounds`."""
    began = time.perf_counter()
    case = _Case(world, m, reward, reviews, only_free)
    if case.unbounded:
        return WindowBound(-np.inf, np.nan, np.nan, np.nan, np.nan, time.perf_counter() - began, 0)
    program, floor = case.program(LATE_S)
    solution = solve_lp(program, time_limit_s) if len(case.facts.index) else Solution(0.0, 0.0, np.zeros(program.size), 0)
    bound = solution.bound + floor
    parts = program.cost[: len(solution.x)] * solution.x if len(solution.x) == program.size else np.full(1, np.nan)
    return WindowBound(
        bound_usd=bound - ROUNDING * (abs(bound) + abs(floor) + 1e-6),
        floor_usd=floor,
        jobs_usd=float(parts[: program.at_held].sum()),
        nodes_usd=float(parts[program.at_on : program.at_stuck].sum()),
        gap=float((solution.value - solution.bound) / abs(bound)) if bound else 0.0,
        seconds=time.perf_counter() - began,
        rounds=solution.rounds,
    )


class _Case:
    """What holds in one window: which jobs run whole, whether starts are free, and how long the window lasts."""

    def __init__(self, world: World, m: int, reward: RewardSpec, reviews: bool, only_free: bool) -> None:
        self.world, self.m, self.reward, self.only_free = world, m, reward, only_free
        self.facts = facts = job_facts(world, m)
        self.outages = bool(world.outages) and len(world.outages[m]) > 0
        budgets = [world.static.rack_budget_w, world.static.pool_budget_w, world.static.site_budget_w]
        self.budgets = any((budget > 0).any() for budget in budgets)
        preemptible = world.jobs.preemptible[m, facts.index]
        self.parts = ~facts.lease & (self.outages | (preemptible & reviews))
        self.stranded = self.budgets and self._may_strand()
        grid = world.grid
        self.table_s = float((grid.price.shape[2] - int(grid.history_steps[m])) * int(grid.step_s[m]))
        self.unbounded = self._unbounded()

    def _unbounded(self) -> bool:
        """Whether a schedule may go on for ever while that pays, or send data to and fro."""
        if not self.parts.any() and not (self.outages and self.facts.lease.any()):
            return False
        prices = window_prices(self.world, self.m, self.reward, self.table_s)
        sends = (self.parts[:, None] & self.facts.sends).any() and (self.world.jobs.data_gib[self.m] > 0).any()
        return bool((prices.usd_per_kwh[:, -1] < 0).any() or (sends and (prices.sent_usd_per_kwh < 0).any()))

    def _may_strand(self) -> bool:
        """Whether some job might not fit into the budgets of an idle cluster, by its watts beside the most that idle nodes commit."""
        static, facts = self.world.static, self.facts
        awake = static.node_idle_w + static.pool_gpus * static.gpu_idle_w
        most = np.maximum(np.maximum(awake, static.wake_power_w), static.node_sleep_w)
        site_idle = np.bincount(static.pool_site, weights=most * static.pool_nodes, minlength=len(static.site_budget_w))[static.pool_site]
        racks = np.where(static.nodes_per_rack > 0, static.rack_budget_w, 0.0)
        left = np.full(len(awake), np.inf)
        for budget, idle in ((racks, most * static.nodes_per_rack), (static.pool_budget_w, most * static.pool_nodes)):
            left = np.where(budget > 0, np.minimum(left, budget - idle), left)
        site_budget = static.site_budget_w[static.pool_site]
        left = np.where(site_budget > 0, np.minimum(left, site_budget - site_idle), left)
        fits = facts.allowed & (facts.dynamic_w <= left[:, None] - 1e-6)
        return not bool(fits.any(axis=(1, 2)).all())

    def sure_s(self) -> float:
        """Second up to which every window lasts."""
        count = int(self.world.jobs.count[self.m])
        last = float(self.world.jobs.submit_s[self.m, :count].max(initial=0))
        ends = self.facts.submit_s + self.facts.shortest_s
        return max(last, float(ends.max(initial=0.0))) if not self.stranded else last

    def last_s(self) -> float:
        """Second by which every window has ended."""
        if self.parts.any() or self.outages or self.stranded:
            return np.inf
        count = int(self.world.jobs.count[self.m])
        facts = self.facts
        free = max(float(self.world.jobs.submit_s[self.m, :count].max(initial=0)), float(facts.latest_s.max(initial=0.0)))
        free = max(free, float(facts.until_s.max(initial=0.0)), self.table_s if self.budgets else 0.0)
        return free + float(facts.longest_s.sum()) + float(self.world.static.wake_latency_s.max())

    def program(self, late_s: float) -> tuple[Program, float]:
        """The linear program, and the part of the bound that is outside it."""
        world, m, facts = self.world, self.m, self.facts
        longest = float(facts.longest_s.max(initial=0.0))
        busy = float((facts.latest_s + late_s).max(initial=0.0)) + longest
        if self.parts.any():
            busy = max(busy, self.table_s)
        prices = window_prices(world, m, self.reward, max(busy, self.table_s) + 2 * longest + late_s)
        sure = self.sure_s()
        edges = slot_edges(slot_seconds(int(world.grid.step_s[m])), busy + 1.0, (sure,))
        nodes = node_costs(world, m, prices, edges, sure, self.last_s())
        late_edges = long_edges(edges, LONG_SLOT)
        maker = ColumnMaker(world, m, facts, prices, self.reward, edges, late_edges, late_s)
        columns, constant = self._columns(maker)
        free = self.parts.any() or self.outages or self.budgets or facts.lease.any() or not len(facts.index)
        rooms = None if free else _rooms(world, facts, late_edges, self.only_free)
        return Program(facts, columns, nodes, edges, self.parts, world.static.pool_gpus, rooms), nodes.floor_usd + constant

    def _columns(self, maker: ColumnMaker) -> tuple[Columns, float]:
        found: list[Columns] = []
        constant = 0.0
        speed = self.world.static.speed[:, :, self.world.jobs.curve[self.m, self.facts.index]].transpose(2, 0, 1)
        for j in range(len(self.facts.index)):
            if self.facts.lease[j] and self.outages:
                constant += maker.lease_at_best_usd(j)
                found.append(maker.dropped(j))
            elif self.facts.lease[j]:
                found.append(maker.lease(j))
            elif self.parts[j]:
                found.append(maker.parts(j, speed[j]))
            else:
                found.append(maker.whole(j))
            if self.stranded and not self.facts.lease[j]:
                found.append(maker.dropped(j))
        return joined(found or [maker.nothing()]), constant


def long_edges(edges_s: np.ndarray, every: int) -> np.ndarray:
    """Every so many edges, with the first and the last."""
    return np.unique(np.concatenate([edges_s[::every], edges_s[-1:]]))


def _rooms(world: World, facts: JobFacts, edges_s: np.ndarray, own: bool) -> Rooms:
    """Kinds of jobs by the room they need, and what is held and in use in each pool at least when one of a kind finds none."""
    static = world.static
    pools = len(static.pool_site)
    room = facts.allowed.any(axis=2)
    least = np.where(room & (facts.held > 0), facts.held, 1 << 30).min(axis=0)  # [P], of whoever may be there
    held, nodes = np.zeros((len(facts.index), pools)), np.zeros((len(facts.index), pools))
    for p in range(pools):
        bounded = static.cpu_milli[p] > 0 or static.memory_mib[p] > 0
        gpus, count = int(static.pool_gpus[p]), int(static.pool_nodes[p])
        empty = (facts.workers - 1) // np.maximum(facts.per_node[:, p], 1)
        nodes[:, p] = np.maximum(0, count - empty)
        asked = facts.held[:, p]
        whole, share = asked >= 1000, (asked > 0) & (asked < 1000)
        milli = np.zeros(len(asked))
        milli[whole] = _held_when_full(gpus, asked[whole] // 1000, count, facts.workers[whole]) * min(1000, int(least[p]))
        milli[share] = _held_when_full(1000, asked[share], count * gpus, facts.workers[share])
        held[:, p] = 0.0 if bounded else milli / (1000.0 * gpus)
    held, nodes = np.where(room, held, 0.0), np.where(room, nodes, 0.0)
    both, kind = np.unique(np.concatenate([held, nodes], axis=1), axis=0, return_inverse=True)
    held, nodes = both[:, :pools], both[:, pools:]
    gpus = held @ static.pool_gpus
    possible = _possible(facts, edges_s, gpus, nodes.sum(axis=1), static.pool_gpus)
    return Rooms(kind.ravel(), held, nodes, gpus, edges_s, possible, own)


def _possible(facts: JobFacts, edges_s: np.ndarray, gpus: np.ndarray, nodes: np.ndarray, pool_gpus: np.ndarray) -> np.ndarray:
    """Slots in which so many GPUs and nodes can be taken at all, bool ``[T, K]``.

    Until somebody has found no room, every job is decided by its last free choice and ends a longest run later; then it may still be there.
    """
    most = (facts.share * pool_gpus * facts.allowed.any(axis=2)).max(axis=1)
    gone = facts.latest_s + facts.longest_s
    possible = np.zeros((len(gpus), len(edges_s) - 1), dtype=np.bool_)
    first = np.inf
    for k, (begin, end) in enumerate(pairwise(edges_s.tolist())):
        there = (facts.submit_s < end) & ((gone > begin) | (facts.latest_s >= first))
        possible[:, k] = (most[there].sum() >= gpus - 1e-9) & (facts.workers[there].sum() >= nodes)
        if np.isinf(first) and possible[:, k].any():
            first = begin
    return possible


def _held_when_full(size: int, each: np.ndarray, bins: int, workers: np.ndarray) -> np.ndarray:
    """Units that must be taken in ``bins`` of ``size`` so that fewer than ``workers`` items of ``each`` units fit."""
    fit = size // each
    fewer = np.maximum(0, bins * fit - (workers - 1))
    first = np.minimum(fewer, bins)
    return first * (size % each + 1) + (fewer - first) * each

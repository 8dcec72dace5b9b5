"""What each choice of a question is expected to lead to, in the units of a bill, and why the others are not allowed.

For a simulator of one cluster and one window that stands at a question (``envs.snapshot.restore``, or in the middle of a window) and was
observed: the figures are the kernel's own expectations (docs/simulator.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from envs.kernel import Simulator
from envs.snapshot import charged_kw, committed_w, forecast_integral, price_actions

OBJECTIVE_PARTS: tuple[str, ...] = ("cost", "carbon", "energy", "penalty", "hold_margin")


@dataclass(frozen=True)
class Candidate:
    """One choice and what it is expected to lead to; the figures are None where the mask does not allow the choice.

    For a hold, pool and level are those of the start that it waits for. ``energy_kwh`` is charged to the job and leaves out waking nodes;
    cost, carbon and objective count that too.

    Attributes:
        why_not: why it is not allowed, by the mask or by the shield.
        rule: of ``envs.shield.RULES``, the one that removes it; empty when it is allowed.
        score: look-ahead score, as in the observation.
        preference: what the policy that decided ranks by, larger is better (logit of the agent, minus the score of a judge).
        probability: of the agent; None for a judge, which has none.
    """

    action: int
    verb: str
    pool: str | None
    site: str | None
    level: int | None
    power_limit: float | None
    allowed: bool
    why_not: str = ""
    start: str | None = None
    finish: str | None = None
    energy_kwh: float | None = None
    cost_usd: float | None = None
    carbon_kg: float | None = None
    penalty_usd: float | None = None
    objective_usd: float | None = None
    nodes_woken: int = 0
    rule: str = ""
    score: float | None = None
    preference: float | None = None
    probability: float | None = None

    @property
    def name(self) -> str:
        return "hold" if self.verb == "hold" else f"run in {self.pool} at {self.power_limit:.0%} power"


def candidates_of(simulator: Simulator) -> list[Candidate]:
    """Every action of the pending question in order of its number, with the kernel's own expectations."""
    world, state = simulator.world, simulator.state
    assert simulator.num_envs == world.n_windows == 1, "one cluster in one window"
    job = int(state.asking[0])
    levels = len(world.cluster.level_fractions)
    objective = state.expected_usd[0].copy()
    cost, carbon = _priced(simulator, cost=1.0), _priced(simulator, carbon=1.0)
    candidates = [_hold(simulator, job, objective[0])]
    for action in range(1, world.n_actions):
        pool, level = divmod(action - 1, levels)
        allowed = bool(state.mask[0, action])
        figures: dict[str, Any] = {}
        if allowed:
            figures = {
                "start": iso_time(simulator, state.expected_start_s[0, action]),
                "finish": iso_time(simulator, state.expected_end_s[0, action]),
                "energy_kwh": float(state.expected_kwh[0, action]),
                "cost_usd": float(cost[action]),
                "carbon_kg": float(carbon[action]),
                "penalty_usd": float(state.expected_late[0, action]),
                "objective_usd": float(objective[action]),
                "nodes_woken": int(state.nodes_woken[0, action]),
            }
        why = "" if allowed else why_masked(simulator, job, pool, level)
        rule = "" if allowed else "mask"
        candidates.append(
            Candidate(action=action, verb="run", allowed=allowed, why_not=why, rule=rule, **place_of(simulator, pool, level), **figures)
        )
    return candidates


def objective_parts(simulator: Simulator, candidates: list[Candidate]) -> dict[str, np.ndarray]:
    """What the expected objective of each action consists of, USD ``[A]`` by ``OBJECTIVE_PARTS``; NaN where the mask excludes it.

    The parts sum to ``objective_usd``. ``hold_margin`` is the advantage that a later start must promise (``PolicySettings.hold_margin``).
    """
    params = simulator.params
    cost, carbon, energy, penalty = params.weights[0]
    kwh = _priced(simulator, energy=1.0)
    parts = {name: np.full(len(candidates), np.nan) for name in OBJECTIVE_PARTS}
    for candidate in candidates:
        if candidate.objective_usd is None:
            continue
        a = candidate.action
        used = candidate.energy_kwh if candidate.verb == "hold" else kwh[a]
        parts["cost"][a] = cost * (candidate.cost_usd or 0.0)
        parts["carbon"][a] = carbon * params.carbon_usd_per_kg[0] * (candidate.carbon_kg or 0.0)
        parts["energy"][a] = energy * params.energy_usd_per_kwh[0] * (used or 0.0)
        parts["penalty"][a] = penalty * (candidate.penalty_usd or 0.0)
        known = sum(parts[name][a] for name in OBJECTIVE_PARTS[:4])
        parts["hold_margin"][a] = candidate.objective_usd - known if candidate.verb == "hold" else 0.0
    return parts


def _priced(simulator: Simulator, *, cost: float = 0.0, carbon: float = 0.0, energy: float = 0.0) -> np.ndarray:
    """Expected USD, kg or kWh of every allowed run [A], waking and transfer included: the objective under unit weights."""
    params, state = simulator.params, simulator.state
    saved = params.weights[0].copy(), params.carbon_usd_per_kg[0], params.energy_usd_per_kwh[0]
    params.weights[0] = [cost, carbon, energy, 0.0]
    params.carbon_usd_per_kg[0] = params.energy_usd_per_kwh[0] = 1.0
    price_actions(simulator)
    simulator.observe()
    values = state.expected_usd[0].copy()
    params.weights[0], params.carbon_usd_per_kg[0], params.energy_usd_per_kwh[0] = saved
    price_actions(simulator)
    simulator.observe()
    return values


def _hold(simulator: Simulator, job: int, objective: float) -> Candidate:
    state, world = simulator.state, simulator.world
    nowhere = {"pool": None, "site": None, "level": None, "power_limit": None}
    if not state.mask[0, 0]:
        deferrable = world.static.deferrable[world.jobs.kind[0, job]]
        why = "its latest start has come" if deferrable else "its class is not deferrable"
        return Candidate(action=0, verb="hold", allowed=False, why_not=why, rule="mask", **nowhere)
    begin, end = int(state.expected_start_s[0, 0]), int(state.expected_end_s[0, 0])
    pool, level = _planned(simulator, job, begin, end)
    site = int(world.static.pool_site[pool])
    kilowatts = charged_kw(simulator, job, pool, level)
    grid = world.grid
    return Candidate(
        action=0,
        verb="hold",
        allowed=True,
        start=iso_time(simulator, begin),
        finish=iso_time(simulator, end),
        energy_kwh=float(state.expected_kwh[0, 0]),
        cost_usd=kilowatts * forecast_integral(simulator, grid.price[0, site] * grid.pue[0, site], begin, end),
        carbon_kg=kilowatts * forecast_integral(simulator, grid.carbon[0, site] * grid.pue[0, site], begin, end),
        penalty_usd=float(state.expected_late[0, 0]),
        objective_usd=float(objective),
        **place_of(simulator, pool, level),
    )


def _planned(simulator: Simulator, job: int, begin: int, end: int) -> tuple[int, int]:
    """Pool and level that the kernel's best later start stands for: the ones that take as long and as much energy."""
    world, state = simulator.world, simulator.state
    jobs, speed = world.jobs, world.static.speed
    pools, levels, _ = speed.shape
    curve = jobs.curve[0, job]
    every = [(pool, level) for pool in range(pools) for level in range(levels) if jobs.allowed_levels[0, job, pool] >> level & 1]
    choices = [choice for choice in every if int(np.ceil(jobs.estimate_s[0, job] / speed[*choice, curve])) == end - begin]
    target = float(state.expected_kwh[0, 0])
    return min(choices or every, key=lambda choice: abs(_energy(simulator, job, *choice, begin, end) - target))


def _energy(simulator: Simulator, job: int, pool: int, level: int, begin: int, end: int) -> float:
    site = int(simulator.world.static.pool_site[pool])
    return charged_kw(simulator, job, pool, level) * forecast_integral(simulator, simulator.world.grid.pue[0, site], begin, end)


def why_masked(simulator: Simulator, job: int, pool: int, level: int) -> str:
    """Why the mask does not allow a run."""
    world, state = simulator.world, simulator.state
    jobs, static = world.jobs, world.static
    spec = world.cluster.pools[pool]
    if not jobs.pool_mask[0, job, pool]:
        return f"its GPUs are {spec.gpu_model}"
    if not jobs.allowed_levels[0, job, pool]:
        empty = f"{spec.nodes} x {spec.gpus_per_node} GPUs"
        watts = gpu_watts(simulator, job, pool, len(world.cluster.level_fractions) - 1)
        return f"{watts:.0f} W at least, above max_watts" if watts > jobs.max_watts[0, job] else f"too small even when empty ({empty})"
    if not jobs.allowed_levels[0, job, pool] >> level & 1:
        return f"{gpu_watts(simulator, job, pool, level):.0f} W, above max_watts {jobs.max_watts[0, job]:g}"
    if pool == state.reserved_pool[0]:
        return "would delay a job that comes first"
    if budget := _over_budget(simulator, job, pool, level):
        return budget
    free = state.pool_free[0, pool] / 1000
    return f"no room: {free:g} of {static.pool_nodes[pool] * static.pool_gpus[pool]} GPUs are free"


def _over_budget(simulator: Simulator, job: int, pool: int, level: int) -> str:
    """Which budget of pool or site the run would exceed, or empty; those of racks depend on the nodes."""
    cluster, state = simulator.world.cluster, simulator.state
    spec, site = cluster.pools[pool], int(simulator.world.static.pool_site[pool])
    watts = committed_w(simulator, job, pool, level)
    for name, committed_nw, budget in (
        (f"pool {spec.name}", state.committed_nw[0, pool], spec.budget_w),
        (f"site {spec.site}", state.site_committed_nw[0, site], cluster.sites[site].budget_w),
    ):
        if budget > 0 and committed_nw / 1e9 + watts > budget:
            return f"power budget of {name}: {committed_nw / 1e9:.0f} W are committed, {watts:.0f} W more exceed {budget:g} W"
    if spec.rack_budget_w > 0 and state.pool_free[0, pool] >= simulator.world.jobs.workers[0, job] * simulator.world.jobs.gpu_milli[0, job]:
        return f"no rack has both room and watts left of its {spec.rack_budget_w:g} W"
    return ""


def gpu_watts(simulator: Simulator, job: int, pool: int, level: int) -> float:
    """Watts of the job's GPUs at a level, the figure that ``max_watts`` limits."""
    jobs = simulator.world.jobs
    gpus = jobs.workers[0, job] * jobs.gpu_milli[0, job] / 1000
    return float(gpus * simulator.world.static.gpu_power_w[pool, level, jobs.curve[0, job]])


def place_of(simulator: Simulator, pool: int, level: int) -> dict[str, Any]:
    """Names of a pool and level, as a candidate has them."""
    cluster = simulator.world.cluster
    spec = cluster.pools[pool]
    return {"pool": spec.name, "site": spec.site, "level": level, "power_limit": cluster.level_fractions[level]}


def iso_time(simulator: Simulator, second: int) -> str:
    """A second of the window as ISO 8601."""
    return (simulator.world.window_start[0] + pd.Timedelta(seconds=int(second))).isoformat().replace("+00:00", "Z")

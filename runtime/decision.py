"""One decision: put the question to a policy in the simulator's own terms and say what each choice is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from envs.kernel import Simulator
from envs.reward import RewardSpec
from envs.snapshot import Snapshot, charged_kw, forecast_integral, grid_column, price_actions, rejection, restore
from envs.state import Policy
from runtime.jobs import JobRefusedError

DAY_S = 86_400


@dataclass(frozen=True)
class Candidate:
    """One choice and what it is expected to lead to; the figures are None where the choice is not allowed.

    For a hold, pool and level are those of the start that it waits for. ``energy_kwh`` is charged to the job and leaves out waking nodes;
    cost, carbon and objective count that too.
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

    @property
    def name(self) -> str:
        return "hold" if self.verb == "hold" else f"run in {self.pool} at {self.power_limit:.0%} power"


@dataclass(frozen=True)
class Decision:
    """What to do with the job now, why, and what else there was.

    Attributes:
        blocked: no run is possible now; the answer is hold without a question to the policy.
        ahead: decisions on jobs that come first in the queue, which were made on the way.
    """

    job_id: str
    time: str
    chosen: Candidate
    blocked: bool
    reasons: tuple[str, ...]
    alternatives: tuple[Candidate, ...]
    ahead: tuple[str, ...]
    policy: str


def decide(snapshot: Snapshot, job_id: str, policy: Policy, reward: RewardSpec) -> Decision:
    """Ask ``policy`` about ``job_id``, after the jobs that come before it in the policy's queue order.

    Raises:
        JobRefusedError: no empty cluster could run the job within its limits.
        InputError: the snapshot is inconsistent.
    """
    simulator = restore(snapshot, policy.settings, reward)
    _refuse_impossible(simulator, job_id)
    target = simulator.world.job_ids[0].index(job_id)
    ahead: list[str] = []
    observation = simulator.observe()
    while not simulator.done[0] and int(simulator.asking[0]) != target:
        action = int(policy.act(observation, simulator.layout)[0])
        ahead.append(f"{simulator.world.job_ids[0][int(simulator.asking[0])]}: {_verb(simulator, action)}")
        simulator.step(np.array([action]))
        observation = simulator.observe()
    if simulator.done[0]:
        return _blocked(simulator, target, policy, tuple(ahead))
    action = int(policy.act(observation, simulator.layout)[0])
    candidates = _candidates(simulator, target)
    chosen = candidates[action]
    others = sorted((c for c in candidates if c.action != action), key=lambda c: (not c.allowed, c.objective_usd or 0.0, c.action))
    reasons = _reasons(simulator, target, chosen, candidates)
    return Decision(job_id, _iso(simulator, simulator.state.time_s[0]), chosen, False, reasons, tuple(others), tuple(ahead), policy.name)


def _refuse_impossible(simulator: Simulator, job_id: str) -> None:
    reason = rejection(simulator, job_id)
    if reason is None:
        return
    world = simulator.world
    jobs, cluster = world.jobs, world.cluster
    job = world.job_ids[0].index(job_id)
    gpus = jobs.workers[0, job] * jobs.gpu_milli[0, job] / 1000
    models = ", ".join(sorted({pool.gpu_model for pool in cluster.pools}))
    if reason == "no_gpu_model":
        raise JobRefusedError(f"no pool has the GPU model that it asks for; there are {models}")
    if reason == "too_large":
        sizes = ", ".join(f"{pool.name} {pool.nodes} x {pool.gpus_per_node}" for pool in cluster.pools)
        shape = f"{int(jobs.workers[0, job])} workers of {jobs.gpu_milli[0, job] / 1000:g} GPUs"
        raise JobRefusedError(f"{shape} fit no pool even when empty (nodes x GPUs: {sizes})")
    allowed = jobs.pool_mask[0, job]
    least = gpus * world.static.gpu_power_w[allowed][:, :, jobs.curve[0, job]].min()
    raise JobRefusedError(
        f"max_watts {jobs.max_watts[0, job]:g} is impossible: at the lowest power level its {gpus:g} GPUs draw {least:.0f} W or more"
    )


def _candidates(simulator: Simulator, job: int) -> list[Candidate]:
    """Every action in order of its number, with the kernel's own expectations."""
    world, state = simulator.world, simulator.state
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
                "start": _iso(simulator, state.expected_start_s[0, action]),
                "finish": _iso(simulator, state.expected_end_s[0, action]),
                "energy_kwh": float(state.expected_kwh[0, action]),
                "cost_usd": float(cost[action]),
                "carbon_kg": float(carbon[action]),
                "penalty_usd": float(state.expected_late[0, action]),
                "objective_usd": float(objective[action]),
                "nodes_woken": int(state.nodes_woken[0, action]),
            }
        why = "" if allowed else _why_masked(simulator, job, pool, level)
        candidates.append(Candidate(action=action, verb="run", allowed=allowed, why_not=why, **_place(simulator, pool, level), **figures))
    return candidates


def _priced(simulator: Simulator, *, cost: float = 0.0, carbon: float = 0.0) -> np.ndarray:
    """Expected USD or kg of every allowed run [A]: the objective under unit weights, then everything as it was."""
    params, state = simulator.params, simulator.state
    saved = params.weights[0].copy(), params.carbon_usd_per_kg[0]
    params.weights[0] = [cost, carbon, 0.0, 0.0]
    params.carbon_usd_per_kg[0] = 1.0
    price_actions(simulator)
    simulator.observe()
    values = state.expected_usd[0].copy()
    params.weights[0], params.carbon_usd_per_kg[0] = saved
    price_actions(simulator)
    simulator.observe()
    return values


def _hold(simulator: Simulator, job: int, objective: float) -> Candidate:
    state, world = simulator.state, simulator.world
    nowhere = {"pool": None, "site": None, "level": None, "power_limit": None}
    if not state.mask[0, 0]:
        deferrable = world.static.deferrable[world.jobs.kind[0, job]]
        why = "its latest start has come" if deferrable else "its class is not deferrable"
        return Candidate(action=0, verb="hold", allowed=False, why_not=why, **nowhere)
    begin, end = int(state.expected_start_s[0, 0]), int(state.expected_end_s[0, 0])
    pool, level = _planned(simulator, job, begin, end)
    site = int(world.static.pool_site[pool])
    kilowatts = charged_kw(simulator, job, pool, level)
    grid = world.grid
    return Candidate(
        action=0,
        verb="hold",
        allowed=True,
        start=_iso(simulator, begin),
        finish=_iso(simulator, end),
        energy_kwh=float(state.expected_kwh[0, 0]),
        cost_usd=kilowatts * forecast_integral(simulator, grid.price[0, site] * grid.pue[0, site], begin, end),
        carbon_kg=kilowatts * forecast_integral(simulator, grid.carbon[0, site] * grid.pue[0, site], begin, end),
        penalty_usd=float(state.expected_late[0, 0]),
        objective_usd=float(objective),
        **_place(simulator, pool, level),
    )


def _planned(simulator: Simulator, job: int, begin: int, end: int) -> tuple[int, int]:
    """Pool and level that the kernel's best later start stands for: the ones that take as long and as much energy."""
    world, state = simulator.world, simulator.state
    jobs, speed = world.jobs, world.static.speed
    pools, levels, _ = speed.shape
    curve = jobs.curve[0, job]
    choices = [
        (pool, level)
        for pool in range(pools)
        for level in range(levels)
        if jobs.allowed_levels[0, job, pool] >> level & 1
        and int(np.ceil(jobs.estimate_s[0, job] / speed[pool, level, curve])) == end - begin
    ]
    target = float(state.expected_kwh[0, 0])
    return min(choices, key=lambda choice: abs(_energy(simulator, job, *choice, begin, end) - target))


def _energy(simulator: Simulator, job: int, pool: int, level: int, begin: int, end: int) -> float:
    site = int(simulator.world.static.pool_site[pool])
    return charged_kw(simulator, job, pool, level) * forecast_integral(simulator, simulator.world.grid.pue[0, site], begin, end)


def _why_masked(simulator: Simulator, job: int, pool: int, level: int) -> str:
    world, state = simulator.world, simulator.state
    jobs, static = world.jobs, world.static
    spec = world.cluster.pools[pool]
    if not jobs.pool_mask[0, job, pool]:
        return f"its GPUs are {spec.gpu_model}"
    if not jobs.allowed_levels[0, job, pool]:
        empty = f"{spec.nodes} x {spec.gpus_per_node} GPUs"
        watts = _gpu_watts(simulator, job, pool, len(world.cluster.level_fractions) - 1)
        return f"{watts:.0f} W at least, above max_watts" if watts > jobs.max_watts[0, job] else f"too small even when empty ({empty})"
    if not jobs.allowed_levels[0, job, pool] >> level & 1:
        return f"{_gpu_watts(simulator, job, pool, level):.0f} W, above max_watts {jobs.max_watts[0, job]:g}"
    if pool == state.reserved_pool[0]:
        return "would delay a job that comes first"
    free = state.pool_free[0, pool] / 1000
    return f"no room: {free:g} of {static.pool_nodes[pool] * static.pool_gpus[pool]} GPUs are free"


def _gpu_watts(simulator: Simulator, job: int, pool: int, level: int) -> float:
    jobs = simulator.world.jobs
    gpus = jobs.workers[0, job] * jobs.gpu_milli[0, job] / 1000
    return float(gpus * simulator.world.static.gpu_power_w[pool, level, jobs.curve[0, job]])


def _blocked(simulator: Simulator, job: int, policy: Policy, ahead: tuple[str, ...]) -> Decision:
    state, world = simulator.state, simulator.world
    levels = len(world.cluster.level_fractions)
    others = [
        Candidate(
            action=1 + pool * levels + level,
            verb="run",
            allowed=False,
            why_not=_why_masked(simulator, job, pool, level),
            **_place(simulator, pool, level),
        )
        for pool in range(len(world.cluster.pools))
        for level in range(levels)
    ]
    reasons = ["no pool can place it now; it is asked again as soon as something changes"]
    if policy.settings.discipline == "strict":
        reasons.append("the policy serves its queue strictly in order")
    hold = Candidate(action=0, verb="hold", pool=None, site=None, level=None, power_limit=None, allowed=True)
    moment = _iso(simulator, state.time_s[0])
    return Decision(world.job_ids[0][job], moment, hold, True, tuple(reasons), tuple(others), ahead, policy.name)


def _reasons(simulator: Simulator, job: int, chosen: Candidate, candidates: list[Candidate]) -> tuple[str, ...]:
    allowed = [candidate for candidate in candidates if candidate.allowed]
    reasons = [_against_the_best(chosen, allowed)]
    state, world = simulator.state, simulator.world
    if chosen.verb == "hold":
        reasons.append(f"planned: {chosen.pool} at {chosen.power_limit:.0%} power from {chosen.start}")
    pool = next(index for index, spec in enumerate(world.cluster.pools) if spec.name == chosen.pool)
    reasons.append(_price_now(simulator, int(world.static.pool_site[pool])))
    if chosen.nodes_woken:
        reasons.append(f"wakes {chosen.nodes_woken} sleeping node{'s' if chosen.nodes_woken > 1 else ''}")
    end = int(state.expected_end_s[0, chosen.action])
    slack_h = (int(world.jobs.deadline_s[0, job]) - end) / 3600
    reasons.append(f"finishes {abs(slack_h):.1f} h {'before' if slack_h >= 0 else 'AFTER'} its deadline")
    if np.isfinite(world.jobs.max_watts[0, job]) and chosen.verb == "run":
        watts = _gpu_watts(simulator, job, pool, int(chosen.level or 0))
        reasons.append(f"its GPUs draw {watts:.0f} W, within max_watts {world.jobs.max_watts[0, job]:g}")
    return tuple(reasons)


def _against_the_best(chosen: Candidate, allowed: list[Candidate]) -> str:
    if len(allowed) == 1:
        return "the only choice allowed"
    rest = [candidate for candidate in allowed if candidate.action != chosen.action]
    best = min(rest, key=lambda candidate: candidate.objective_usd or 0.0)
    gap = (best.objective_usd or 0.0) - (chosen.objective_usd or 0.0)
    if gap >= 0:
        return f"least expected objective of {len(allowed)} allowed choices, {gap:.3f} USD below the next ({best.name})"
    return f"the policy prefers it although {best.name} is expected to be {-gap:.3f} USD better by itself"


def _price_now(simulator: Simulator, site: int) -> str:
    world = simulator.world
    now = int(simulator.state.time_s[0])
    price, carbon = world.grid.price[0, site], world.grid.carbon[0, site]
    column = grid_column(simulator)
    ahead = forecast_integral(simulator, price, now, now + DAY_S) / 24
    relative = f", {(price[column] - ahead) / abs(ahead):+.0%} against the next 24 h by forecast" if abs(ahead) > 1e-6 else ""
    name = world.cluster.sites[site].name
    return f"power in {name} costs {price[column]:.4f} USD/kWh now{relative}, at {1000 * carbon[column]:.0f} gCO2/kWh"


def _place(simulator: Simulator, pool: int, level: int) -> dict[str, Any]:
    cluster = simulator.world.cluster
    spec = cluster.pools[pool]
    return {"pool": spec.name, "site": spec.site, "level": level, "power_limit": cluster.level_fractions[level]}


def _verb(simulator: Simulator, action: int) -> str:
    if action == 0:
        return "hold"
    place = _place(simulator, *divmod(action - 1, len(simulator.world.cluster.level_fractions)))
    return f"run in {place['pool']} at {place['power_limit']:.0%} power"


def _iso(simulator: Simulator, second: int) -> str:
    return (simulator.world.window_start[0] + pd.Timedelta(seconds=int(second))).isoformat().replace("+00:00", "Z")

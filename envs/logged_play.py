"""Play that is logged as a runtime would log it, and what a single decision would have cost had it been another.

The *cost* of a decision is the bill of the job that it is about, from this decision to the job's end: energy at the prices that come,
carbon at its price, and SLA penalties, in USD weighted as the objective (``envs.reward``). Idle nodes and others' bills are not in it.

Draws depend on (seed of the run, job, how many decisions the job has had), so that a run that differs in one decision draws the same
numbers elsewhere (common random numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from envs.exploration import Exploration, drawn, uniform_of
from envs.kernel import Simulator
from envs.observation import ObservationLayout
from envs.reward import RewardSpec
from envs.state import ENDED, REJECTED, WITHDRAWN, Policy
from envs.world import World
from telemetry.errors import InputError

Target = Callable[[np.ndarray, ObservationLayout], np.ndarray]  # rows [N, D] -> probabilities [N, A]


@dataclass(frozen=True)
class LoggedPlay:
    """N decisions of R runs, in order of time within each run.

    Attributes:
        rows: observations, float32 ``[N, D]``.
        propensities: of the logging policy, float64 ``[N, A]``.
        action, job, run: int64 ``[N]``; ``job`` by its place in the window.
        cost_usd: bill of the job from the decision on, float64 ``[N]``.
        objective_usd: of each run, float64 ``[R]``.
    """

    rows: np.ndarray
    propensities: np.ndarray
    action: np.ndarray
    job: np.ndarray
    run: np.ndarray
    cost_usd: np.ndarray
    objective_usd: np.ndarray
    layout: ObservationLayout


@dataclass(frozen=True)
class Forced:
    """Decisions sampled from R runs, and what taking the targets' answer there would have changed.

    Attributes:
        run: of each sampled decision, int64 ``[S]``.
        logged_usd: cost of the decision as it was taken, float64 ``[S]``.
        change_usd: by target, the cost with its answer less ``logged_usd``, float64 ``[S]``; 0 where it is the same answer.
        decisions: of each run, int64 ``[R]``.
    """

    run: np.ndarray
    logged_usd: np.ndarray
    change_usd: dict[str, np.ndarray]
    decisions: np.ndarray


class _Runs:
    """R clusters that a policy with exploration plays; counts the decisions of each job for the draws."""

    def __init__(self, world: World, count: int, policy: Policy, exploration: Exploration, reward: RewardSpec, seeds: np.ndarray) -> None:
        if policy.settings.review_s:
            raise InputError(
                f"review_s {policy.settings.review_s} of '{policy.name}'",
                where="logged play",
                allowed="0: the bill of a running job is only settled now and then",
            )
        self.simulator = Simulator(world, count, policy.settings, reward)
        self.policy, self.exploration, self.reward = policy, exploration, reward
        self.seeds = np.asarray(seeds, dtype=np.int64)
        self.asked = np.zeros((count, world.jobs.submit_s.shape[1]), dtype=np.int64)

    def bills(self, run: np.ndarray, job: np.ndarray) -> np.ndarray:
        """What jobs have been charged so far, USD ``[N]``."""
        state, reward = self.simulator.state, self.reward
        kwh, usd, kg, penalty = (getattr(state, name)[run, job] for name in ("job_kwh", "job_usd", "job_kg", "job_penalty"))
        money = reward.w_cost * usd + reward.w_carbon * reward.carbon_usd_per_kg * kg + reward.w_energy * reward.energy_usd_per_kwh * kwh
        return np.asarray(money + reward.w_sla * penalty)

    def question(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Runs that ask, their jobs, rows, propensities and drawn answers."""
        asking = np.flatnonzero(self.simulator.asking >= 0)
        job = self.simulator.asking[asking].copy()
        rows = self.simulator.observations[asking].copy()
        chances = self.exploration.propensities(self.policy, rows, self.simulator.layout)
        action = drawn(chances, uniform_of(self.seeds[asking], job, self.asked[asking, job]))
        return asking, job, rows, chances, action

    def answer(self, asking: np.ndarray, job: np.ndarray, action: np.ndarray) -> None:
        actions = np.full(self.simulator.num_envs, -1, dtype=np.int64)
        actions[asking] = action
        self.asked[asking, job] += 1
        self.simulator.step(actions, observe=True)

    def finish(self, job: np.ndarray) -> None:
        """Play on until each run's ``job`` [R] has its whole bill; runs stop there."""
        everyone, state = np.arange(len(job)), self.simulator.state
        while not self.simulator.done.all():
            settled = np.isin(state.status[everyone, job], (ENDED, REJECTED, WITHDRAWN))
            state.done[settled], state.asking[settled] = 1, -1
            asking, asked, _, _, action = self.question()
            self.answer(asking, asked, action)


def logged_play(
    world: World, windows: np.ndarray, policy: Policy, exploration: Exploration, reward: RewardSpec, seeds: np.ndarray
) -> LoggedPlay:
    """Play ``windows`` ``[R]`` (numbers may repeat), each with the draws of its seed, and log every decision.

    Raises:
        InputError: a policy that reviews running jobs.
    """
    runs = _Runs(world, len(windows), policy, exploration, reward, seeds)
    runs.simulator.reset(windows)
    runs.simulator.observe()
    parts: list[tuple[np.ndarray, ...]] = []
    while not runs.simulator.done.all():
        asking, job, rows, chances, action = runs.question()
        parts.append((asking, job, rows, chances, action, runs.bills(asking, job)))
        runs.answer(asking, job, action)
    run, job, rows, chances, action, before = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(run, kind="stable")
    cost = (runs.bills(run, job) - before)[order]
    objective = runs.simulator.state.objective_usd.copy()
    return LoggedPlay(rows[order], chances[order], action[order], job[order], run[order], cost, objective, runs.simulator.layout)


def forced_play(
    world: World,
    windows: np.ndarray,
    policy: Policy,
    exploration: Exploration,
    reward: RewardSpec,
    seeds: np.ndarray,
    targets: Mapping[str, Target],
    *,
    share: float,
    seed: int = 0,
    batch: int = 512,
) -> Forced:
    """What the targets' answers would have cost at a random ``share`` of the decisions, one at a time, the logging policy going on.

    Raises:
        InputError: no share, or a policy that reviews running jobs.
    """
    if not 0 < share <= 1:
        raise InputError(f"share {share}", where="forced play", allowed="above 0, at most 1")
    logged = logged_play(world, windows, policy, exploration, reward, seeds)
    rng, runs_ = np.random.default_rng(seed), len(windows)
    decisions = np.bincount(logged.run, minlength=runs_)
    first = np.concatenate([[0], np.cumsum(decisions)[:-1]])
    sample = np.flatnonzero(rng.random(len(logged.run)) < share)
    wanted: dict[str, np.ndarray] = {}
    for name, target in targets.items():
        wanted[name] = drawn(target(logged.rows[sample], logged.layout), rng.random(len(sample)))
    changes = {name: np.zeros(len(sample)) for name in targets}
    todo: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
    for name, action in wanted.items():
        for s in np.flatnonzero(action != logged.action[sample]):
            at = int(sample[s])
            todo.setdefault((int(logged.run[at]), at - int(first[logged.run[at]])), []).append((name, int(s), int(action[s])))
    runs = _Runs(world, runs_, policy, exploration, reward, seeds)
    runs.simulator.reset(windows)
    runs.simulator.observe()
    step, waiting = np.zeros(runs_, dtype=np.int64), []
    while not runs.simulator.done.all():
        asking, job, _, _, action = runs.question()
        for r, j in zip(asking.tolist(), job.tolist(), strict=True):
            for name, s, forced in todo.get((r, int(step[r])), ()):
                waiting.append((name, s, forced, j, r, [block[r].copy() for block in runs.simulator.packed_state], runs.asked[r].copy()))
        if len(waiting) >= batch:
            _settle(world, waiting, runs, logged.cost_usd[sample], changes)
            waiting = []
        step[asking] += 1
        runs.answer(asking, job, action)
    if waiting:
        _settle(world, waiting, runs, logged.cost_usd[sample], changes)
    return Forced(logged.run[sample], logged.cost_usd[sample], changes, decisions)


def _settle(world: World, waiting: list, runs: _Runs, logged_usd: np.ndarray, changes: dict[str, np.ndarray]) -> None:
    """Play the copies in ``waiting`` to their ends and enter what they changed."""
    of_run = np.array([item[4] for item in waiting])
    copies = _Runs(world, len(waiting), runs.policy, runs.exploration, runs.reward, runs.seeds[of_run])
    for k, block in enumerate(copies.simulator.packed_state):
        block[...] = np.stack([item[5][k] for item in waiting])
    copies.asked[...] = np.stack([item[6] for item in waiting])
    everyone, job = np.arange(len(waiting)), np.array([item[3] for item in waiting])
    before = copies.bills(everyone, job)
    copies.answer(everyone, job, np.array([item[2] for item in waiting]))
    copies.finish(job)
    cost = copies.bills(everyone, job) - before
    for k, (name, s, *_) in enumerate(waiting):
        changes[name][s] = cost[k] - logged_usd[s]

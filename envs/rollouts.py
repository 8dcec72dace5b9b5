"""Counterfactual rollouts: a decision's alternatives played to the end of the window under the same future.

The state of a cluster is one row of each of the simulator's blocks. Rows are copied into another simulator of the same world, an action is
forced in each, and a compiled judge decides from there on. The difference of the objectives to the judge's own choice is a sample of the
action's one-step advantage (common random numbers; policy iteration by rollouts: Bertsekas, Tsitsiklis and Wu, "Rollout algorithms for
combinatorial optimization", 1997). It knows what came: for learning and for looking back at recorded windows, never for deciding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.heuristics import Judge
from envs.kernel import Simulator
from envs.reward import RewardSpec
from envs.world import World
from telemetry.errors import InputError


@dataclass(frozen=True)
class Alternatives:
    """Pending questions with the actions that are to be compared; R rows, those of one question together, the judge's choice first.

    Attributes:
        env: environment of each row, int64 ``[R]``.
        action: int64 ``[R]``.
        first: row of the question's judge's choice, int64 ``[R]``.
    """

    env: np.ndarray
    action: np.ndarray
    first: np.ndarray


def alternatives(observations: np.ndarray, simulator: Simulator, most: int) -> Alternatives:
    """The planner's choice of every pending question with more than one action, and ``most`` others: hold, and the next best by its price.

    Args:
        observations: of the pending questions, float32 ``[B, D]``.
    """
    layout = simulator.layout
    candidates = layout.candidates(observations)
    allowed = layout.mask(observations)
    price = np.where(allowed, candidates[..., layout.planned_index], np.inf)
    env: list[int] = []
    action: list[int] = []
    first: list[int] = []
    for b in np.flatnonzero((simulator.asking >= 0) & (allowed.sum(axis=1) > 1)):
        taken = np.argsort(price[b], kind="stable")[: min(most + 1, int(allowed[b].sum()))]
        if allowed[b, 0] and 0 not in taken:
            taken[-1] = 0
        first += [len(env)] * len(taken)
        env += [int(b)] * len(taken)
        action += [int(a) for a in taken]
    return Alternatives(*(np.array(values, dtype=np.int64) for values in (env, action, first)))


def play_out(simulator: Simulator, env: np.ndarray, action: np.ndarray, chooser: int, reward: RewardSpec, judge: Judge) -> np.ndarray:
    """Objective in USD at the window's end, float64 ``[R]``, when ``action[r]`` answers the question of ``env[r]`` and ``chooser`` goes on.

    ``simulator`` is left as it is.

    Raises:
        InputError: an environment without a question, or an action that its mask excludes.
    """
    if len(env) == 0:
        return np.zeros(0)
    if (simulator.asking[env] < 0).any():
        raise InputError("an environment without a pending question", where="rollouts", allowed="environments that ask")
    other = Simulator(simulator.world, len(env), judge.settings, reward)
    blocks = zip((*other.packed_state, *other.packed_params), (*simulator.packed_state, *simulator.packed_params), strict=True)
    for to, source in blocks:
        to[...] = source[env]
    other.step(action)
    other.play(chooser)
    return other.state.objective_usd.copy()


@dataclass(frozen=True)
class Labels:
    """Sampled decisions and what an alternative to the judge's choice cost; N labels.

    Attributes:
        observations: float32 ``[N, D]``.
        window, decision, action, judged: int64 ``[N]``; ``judged`` is the judge's choice, ``decision`` its place in the window.
        advantage_usd: objective with ``action`` less that with ``judged``, float64 ``[N]``; below 0 the alternative was better.
        judge_usd, decisions: objective and decisions of the judge in each window of the world, ``[M]``.
    """

    observations: np.ndarray
    window: np.ndarray
    decision: np.ndarray
    action: np.ndarray
    judged: np.ndarray
    advantage_usd: np.ndarray
    judge_usd: np.ndarray
    decisions: np.ndarray


def rollout_labels(world: World, judge: Judge, reward: RewardSpec, *, points: int, most: int = 3, seed: int = 0) -> Labels:
    """Labels at ``points`` random decisions of every window while ``judge``, the planner, plays.

    Raises:
        InputError: no points, or a judge that keeps no plans.
    """
    if points < 1 or most < 1 or not judge.settings.plans:
        raise InputError(f"{points} points, {most} alternatives, judge '{judge.name}'", where="rollouts", allowed="at least 1; a planner")
    windows = np.arange(world.n_windows)
    simulator = Simulator(world, len(windows), judge.settings, reward)
    simulator.reset(windows)
    simulator.play(judge.chooser)
    judge_usd, decisions = simulator.state.objective_usd.copy(), simulator.state.decisions.copy()
    rng = np.random.default_rng(seed)
    places = np.sort(np.stack([rng.choice(max(int(n), points), points, replace=False) for n in decisions]), axis=1)
    simulator.reset(windows)
    parts: list[tuple[np.ndarray, ...]] = []
    for k in range(points):
        simulator.play(judge.chooser, places[:, k])
        observations = simulator.observe().copy()
        asked = alternatives(observations, simulator, most)
        usd = play_out(simulator, asked.env, asked.action, judge.chooser, reward, judge)
        others = asked.first != np.arange(len(asked.env))
        env, first = asked.env[others], asked.first[others]
        parts.append(
            (observations[env], env, places[env, k], asked.action[others], asked.action[first], usd[others] - usd[first]),
        )
    rows, window, decision, action, judged, advantage_usd = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Labels(rows, window, decision, action, judged, advantage_usd, judge_usd, decisions)

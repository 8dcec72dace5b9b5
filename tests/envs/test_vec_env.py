"""The VecEnv: exact rewards, restarts, staggering, resume."""

import json

import numpy as np
import pytest

from envs.heuristics import JUDGES
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.vec_env import ClusterVecEnv
from telemetry.errors import InputError

LOOKAHEAD = JUDGES["lookahead"]


@pytest.fixture(scope="module")
def world(worlds):
    return worlds.random_world(41, count=30, windows=4)


def _make(world, **more):
    return ClusterVecEnv(world, 6, RewardSpec(), LOOKAHEAD.settings, 3, **more)


def _random_actions(env, rng):
    return np.array([rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()])


def test_rewards_sum_to_the_objective(world):
    env = _make(world, stagger=False)
    observations = env.reset()
    start = env.simulator.state.objective_usd.copy()
    sums = np.zeros(6)
    open_ = np.ones(6, dtype=bool)
    while open_.any():
        observations, rewards, dones, infos = env.step(LOOKAHEAD.act(observations, env.layout))
        sums += np.where(open_, rewards, 0.0)
        for b in np.flatnonzero(dones & open_):
            assert -sums[b] == pytest.approx(infos[b]["objective_usd"] - start[b], rel=1e-4)
            assert infos[b]["terminal_observation"].shape == (env.layout.size,)
            assert infos[b]["episode"]["l"] > 0
        open_ &= ~dones


def test_it_restarts_forever_within_bounds(world):
    env = _make(world, preferences={"w_carbon": (0.0, 2.0)})
    rng = np.random.default_rng(0)
    observations = env.reset()
    ended = 0
    for _ in range(400):
        assert env.action_masks().any(axis=1).all()
        observations, rewards, dones, infos = env.step(_random_actions(env, rng))
        ended += dones.sum()
        assert env.observation_space.contains(observations[0])
        assert np.isfinite(rewards).all()
        assert all(bool(info) == done for info, done in zip(infos, dones, strict=True))
    assert ended > 6
    assert len(np.unique(env.simulator.params.weights[:, 1])) > 1


def test_starts_are_staggered(world):
    env = _make(world)
    env.reset()
    assert len(np.unique(env.simulator.time_s)) >= 5


@pytest.mark.parametrize("mode", ["exact", "regret"])
def test_resume_is_exact(world, mode):
    env = _make(world, reward_mode=mode)
    rng = np.random.default_rng(1)
    env.reset()
    for _ in range(50):
        env.step(_random_actions(env, rng))
    meta, arrays = env.state_dict()
    meta = json.loads(json.dumps(meta))
    arrays = {name: array.copy() for name, array in arrays.items()}
    fresh = _make(world, reward_mode=mode)
    fresh.load_state_dict(meta, arrays)
    for _ in range(150):
        actions = _random_actions(env, rng)
        one, other = env.step(actions), fresh.step(actions)
        for left, right in zip(one[:3], other[:3], strict=True):
            assert np.array_equal(left, right)


def test_regret_sums_to_the_objective_less_the_plans(worlds):
    """Whatever is chosen, only the moment of a charge differs between the two rewards, and each job's plan is taken off once."""
    world = worlds.random_world(5, windows=1)
    spec = RewardSpec(scale_usd=0.5)
    for seed in range(3):
        env = ClusterVecEnv(world, 1, spec, PolicySettings(sleep_after_s=600), 0, reward_mode="regret", stagger=False)
        observations = env.reset()
        rng = np.random.default_rng(seed)
        before = float(env.simulator.state.objective_usd[0])  # accrued before the first question, rewarded to nobody
        total, done, planned = 0.0, False, 0.0
        arrived = np.zeros(env.simulator.state.planned_usd.shape[1], dtype=bool)
        while not done:
            plans = env.simulator.state.planned_usd[0]
            planned += float(plans[(plans != 0) & ~arrived].sum())
            arrived |= plans != 0
            action = LOOKAHEAD.act(observations, env.layout) if seed == 0 else _random_actions(env, rng)
            observations, rewards, dones, infos = env.step(action)
            total += float(rewards[0])
            done = bool(dones[0])
        assert -total * spec.scale_usd == pytest.approx(infos[0]["objective_usd"] - before - planned, rel=1e-4, abs=1e-6)


def test_regret_charges_a_dear_choice_at_once(worlds):
    price = np.full(24, 0.3)
    price[3:12] = 0.02
    row = worlds.job("x", duration_s=3600, workload_class="training", gpu_model="V100")
    world = worlds.world_of(worlds.cluster(), [row], worlds.grid(price=price))
    sums = {}
    for follow in (True, False):
        env = ClusterVecEnv(world, 1, RewardSpec(), PolicySettings(sleep_after_s=0), 0, reward_mode="regret", stagger=False)
        observations = env.reset()
        total, done = 0.0, False
        while not done:
            action = LOOKAHEAD.act(observations, env.layout) if follow else np.array([1])
            observations, rewards, dones, _ = env.step(action)
            total += float(rewards[0])
            done = bool(dones[0])
        sums[follow] = total
    assert sums[True] > sums[False] + 0.1 * env.simulator.state.planned_usd[0, 0]


def test_bad_arguments_are_named(world, worlds):
    with pytest.raises(InputError, match="reward_mode 'fancy'"):
        _make(world, reward_mode="fancy")
    with pytest.raises(InputError, match="unknown preference 'w_joy'"):
        _make(world, preferences={"w_joy": (0, 1)})
    with pytest.raises(InputError, match="no window has a job"):
        _make(worlds.world_of(worlds.cluster(), []))
    env = _make(world)
    env.reset()
    with pytest.raises(InputError, match="no action"):
        env.step(np.full(6, 99))

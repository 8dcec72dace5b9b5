"""The native vector environment against single environments, value for value, and Gymnasium's autoreset modes."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.gym_env import ENV_ID, ClusterEnv
from envs.gym_vector import ClusterVectorEnv
from envs.heuristics import JUDGES
from envs.reward import RewardSpec
from telemetry.errors import InputError

SETTINGS = JUDGES["lookahead"].settings
TOTALS = {"objective_usd", "cost_usd", "energy_kwh", "penalty_usd", "sla_violation_rate"}


@pytest.fixture(scope="module")
def world(worlds):
    return worlds.random_world(51, count=12, windows=4)


def _random(masks, rng):
    return np.array([rng.choice(np.flatnonzero(mask)) if mask.any() else 0 for mask in masks])


def _same(left, right, where=""):
    """Nested infos with equal keys, values and types of values."""
    assert left.keys() == right.keys(), where
    for key, value in left.items():
        other = right[key]
        if isinstance(value, dict):
            _same(value, other, key)
        elif value.dtype == object:
            assert all(np.array_equal(a, b) for a, b in zip(value, other, strict=True)), key
        else:
            assert value.dtype == other.dtype, key
            assert np.array_equal(value, other), key


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_it_is_the_batch_of_single_environments(world, mode):
    """Gymnasium's own vectorisation of single environments is the definition: seeds, windows, observations, rewards, infos, restarts."""
    spec = RewardSpec(w_carbon=2.0, scale_usd=3.0)
    singles = SyncVectorEnv([lambda: ClusterEnv(world, spec, SETTINGS)] * 5, autoreset_mode=mode)
    batch = ClusterVectorEnv(world, 5, spec, SETTINGS, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    expected, got = singles.reset(seed=11), batch.reset(seed=11)
    assert singles.np_random_seed == batch.np_random_seed
    ended = 0
    for _ in range(120):
        assert np.array_equal(expected[0], got[0])
        _same(expected[-1], got[-1])
        actions = _random(got[-1]["action_mask"], rng)
        expected, got = singles.step(actions), batch.step(actions)
        for left, right in zip(expected[1:4], got[1:4], strict=True):
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)
        ended += int(got[2].sum())
    assert ended >= 10  # every environment has begun again


def test_next_step_gives_the_end_and_then_begins(world):
    env = ClusterVectorEnv(world, 3, settings=SETTINGS)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    rng = np.random.default_rng(1)
    _, infos = env.reset(seed=0)
    while True:
        before = infos["window"].copy()
        observations, _, terminated, truncated, infos = env.step(_random(infos["action_mask"], rng))
        assert not truncated.any()
        if terminated.any():
            break
    b = int(np.flatnonzero(terminated)[0])
    assert not observations[b].any()
    assert infos["window"][b] == before[b]
    assert not infos["action_mask"][b].any()
    assert infos["job_id"][b] is None
    assert all(infos[f"_{name}"][b] for name in TOTALS)
    assert infos["energy_kwh"][b] > 0
    anything = _random(infos["action_mask"], rng)
    anything[b] = 10_000  # ignored, as the window has ended
    observations, rewards, terminated, _, infos = env.step(anything)
    assert rewards[b] == 0
    assert not terminated[b]
    assert observations[b].any()
    assert infos["action_mask"][b].any()


def test_disabled_waits_for_a_partial_reset(world):
    env = ClusterVectorEnv(world, 3, settings=SETTINGS, autoreset_mode="Disabled")
    rng = np.random.default_rng(2)
    observations, infos = env.reset(seed=0)
    terminated = np.zeros(3, dtype=bool)
    while not terminated.any():
        observations, _, terminated, _, infos = env.step(_random(infos["action_mask"], rng))
    with pytest.raises(InputError, match=r"has ended.*reset_mask"):
        env.step(np.zeros(3, dtype=np.int64))
    after, infos = env.reset(options={"reset_mask": terminated})
    assert np.array_equal(after[~terminated], observations[~terminated])
    assert after[terminated].any(axis=1).all()
    assert np.array_equal(infos["_action_mask"], terminated)
    env.step(_random(env.action_masks(), rng))


def _play(world, seed, **more):
    env = ClusterVectorEnv(world, 4, settings=SETTINGS, **more)
    env.action_space.seed(seed)
    observations, _ = env.reset(seed=seed)
    rows, rewards = [observations], []
    for _ in range(60):
        observations, reward, *_ = env.step(env.action_space.sample())
        rows.append(observations)
        rewards.append(reward)
    return np.array(rows), np.array(rewards)


def test_the_same_seed_gives_the_same_result_and_another_does_not(world):
    first, again, other = _play(world, 3), _play(world, 3), _play(world, 4)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_made_by_id_with_spaces_and_allowed_samples(world):
    made = gym.make_vec(ENV_ID, num_envs=8, vectorization_mode="vector_entry_point", world=world, settings=SETTINGS)
    assert isinstance(made, ClusterVectorEnv)
    assert isinstance(gym.make_vec(ENV_ID, num_envs=2, world=world), ClusterVectorEnv)
    assert made.single_observation_space == ClusterEnv(world).observation_space
    assert made.single_action_space == ClusterEnv(world).action_space
    assert made.observation_space.shape == (8, made.layout.size)
    observations, infos = made.reset(seed=1)
    assert made.observation_space.contains(observations)
    for _ in range(30):
        actions = made.action_space.sample()
        assert made.action_space.contains(actions)
        asked = infos["action_mask"].any(axis=1)
        assert (infos["action_mask"][np.arange(8), actions] == 1)[asked].all()
        *_, infos = made.step(actions)
    made.close()


def test_bad_calls_are_named_and_move_nothing(world):
    with pytest.raises(InputError, match=r"autoreset_mode 'Never'.*NextStep"):
        ClusterVectorEnv(world, 2, autoreset_mode="Never")
    with pytest.raises(InputError, match=r"render_mode 'human'.*rgb_array"):
        ClusterVectorEnv(world, 2, render_mode="human")
    env = ClusterVectorEnv(world, 2, settings=SETTINGS)
    with pytest.raises(InputError, match="call reset first"):
        env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(InputError, match=r"3 seeds.*2 of them"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(InputError, match="window 9"):
        env.reset(options={"window": 9})
    with pytest.raises(InputError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(2, dtype=bool)})
    env.reset(seed=0)
    masked = np.array([int(np.argmax(mask)) for mask in env.action_masks()])
    times = env.simulator.state.decisions.copy()
    masked[1] = env.layout.n_candidates
    with pytest.raises(InputError, match=r"environment 1: action 7; allowed: 0 to 6"):
        env.step(masked)
    with pytest.raises(InputError, match="whole numbers"):
        env.step(np.zeros(2))
    assert np.array_equal(env.simulator.state.decisions, times)

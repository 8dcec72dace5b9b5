"""The Gymnasium environment: both checkers, masks, determinism, exact rewards."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from envs.gym_env import ENV_ID, ClusterEnv
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.reward import RewardSpec
from telemetry.errors import InputError

SETTINGS = JUDGES["lookahead"].settings


@pytest.fixture(scope="module")
def world(worlds):
    return worlds.random_world(31, count=40, windows=3)


def test_both_checkers_pass(world):
    made = gym.make(ENV_ID, world=world, settings=SETTINGS)
    check_env(made.unwrapped)  # makes it anew for every render mode, from its id
    sb3_check_env(ClusterEnv(world, settings=SETTINGS))


def _play(env, seed, **options):
    rewards, observation = [], env.reset(seed=seed, options=options or None)[0]
    rows = [observation]
    done = False
    while not done:
        action = JUDGES["lookahead"].act(observation[None], env.layout)[0]
        observation, reward, done, truncated, info = env.step(action)
        assert not truncated
        rewards.append(reward)
        rows.append(observation)
    return np.array(rewards), np.array(rows), info


def test_an_episode_is_the_window_that_evaluation_runs(world):
    env = ClusterEnv(world, RewardSpec(scale_usd=2.0), SETTINGS)
    totals = run_policy(world, JUDGES["lookahead"], RewardSpec(scale_usd=2.0))
    rewards, _, info = _play(env, 1, window=2)
    assert info["objective_usd"] == totals.objective_usd[2]
    assert info["energy_kwh"] == pytest.approx(totals.energy_kwh[2].sum(), rel=1e-12)
    before = totals.objective_usd[2] + 2.0 * rewards.sum()
    assert 0 <= before < 0.05 * totals.objective_usd[2] + 1.0


def test_the_same_seed_gives_the_same_episode(world):
    first, second = (_play(ClusterEnv(world, settings=SETTINGS), 5) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_masked_action_raises_and_nothing_moves(worlds):
    world = worlds.world_of(worlds.cluster(), [worlds.job("picky", gpu_model="A100")])
    env = ClusterEnv(world)
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert {int(env.action_space.sample()) for _ in range(40)} <= {4, 5, 6}
    with pytest.raises(ValueError, match=r"action 2 .*'picky' is masked"):
        env.step(2)
    with pytest.raises(InputError, match="action 9"):
        env.step(9)
    *_, terminated, _, info = env.step(5)
    assert terminated
    with pytest.raises(InputError, match="has ended"):
        env.step(5)


def test_render_names_pools_and_the_question(world):
    env = ClusterEnv(world, settings=SETTINGS, render_mode="ansi")
    env.reset(seed=3)
    text = env.render()
    assert "v: " in text
    assert "USD/kWh" in text
    assert "run(pool" in text


def test_a_search_comes_back_to_the_same_future(world):
    env = ClusterEnv(world, settings=SETTINGS)
    observation, _ = env.reset(seed=4)
    for _ in range(10):
        observation, *_ = env.step(JUDGES["lookahead"].act(observation[None], env.layout)[0])
    saved = env.copy_state()

    def future(judge):
        seen, rewards = env.restore_state(saved)[0], []
        while True:
            seen, reward, done, _, info = env.step(JUDGES[judge].act(seen[None], env.layout)[0])
            rewards.append(reward)
            if done:
                return rewards, info, env.reset()[0]

    straight, info, then = future("lookahead")
    other, *_ = future("k8s_default")
    again, same_info, same_then = future("lookahead")
    assert other != straight
    assert again == straight
    assert same_info["objective_usd"] == info["objective_usd"]
    assert np.array_equal(then, same_then)


def test_a_copy_of_another_world_is_refused(world, worlds):
    env, stranger = ClusterEnv(world), ClusterEnv(worlds.random_world(32, count=40, windows=3))
    env.reset(seed=0)
    stranger.reset(seed=0)
    with pytest.raises(InputError, match="another simulator"):
        env.restore_state(stranger.copy_state())


def test_a_world_without_runnable_jobs_is_refused(worlds):
    with pytest.raises(InputError, match="no window has a job"):
        ClusterEnv(worlds.world_of(worlds.cluster(), []))


def test_every_index_is_described(world):
    layout = ClusterEnv(world).layout
    rows = layout.describe()
    assert [index for index, _, _ in rows] == list(range(layout.size))
    assert len({name for _, name, _ in rows}) == layout.size
    assert layout.action_name(4) == "run(pool 1, level 0)"

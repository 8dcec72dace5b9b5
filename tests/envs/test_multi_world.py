"""Several worlds in one batch: padded observations, exact resume, training on them, and a policy that acts on more pools than it saw."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from envs.agent.config import AgentConfig
from envs.agent.train import train_agent
from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.multi_world import MultiWorldVecEnv, objective_per_decision, split_envs
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv
from envs.worlds.transform import scale_load, shift_grid
from telemetry.errors import InputError

LOOKAHEAD = JUDGES["lookahead"]
MODELS = ("V100", "A40", "A100", "V100")


def cluster_of(pools: int, levels=(1.0, 0.6)) -> ClusterSpec:
    made = tuple(PoolSpec(f"p{i}", "east", MODELS[i], 2, 4) for i in range(pools))
    return ClusterSpec(f"pools{pools}", (SiteSpec("east"),), made, level_fractions=levels)


def world_of(worlds, pools: int, seed: int, count: int = 40, windows: int = 3, **more):
    spec = cluster_of(pools, **more)
    generator = np.random.default_rng(seed)
    price = 0.1 + 0.08 * np.sin(np.arange(24) / 24 * 2 * np.pi)

    def window():
        classes = generator.choice(["training", "batch_inference", "interactive"], count)
        return [
            worlds.job(
                f"j{i:03d}",
                submit_s=int(generator.integers(0, 43_200)),
                duration_s=int(generator.integers(600, 9000)),
                gpus=int(generator.choice([1, 2, 4])),
                workload_class=str(classes[i]),
            )
            for i in range(count)
        ]

    return worlds.windows_of(spec, [window() for _ in range(windows)], worlds.grid(price=price))


def make(world, num_envs: int, seed: int, **more) -> ClusterVecEnv:
    return ClusterVecEnv(world, num_envs, RewardSpec(), LOOKAHEAD.settings, seed, reward_mode="regret", **more)


@pytest.fixture(scope="module")
def pair(worlds):
    return world_of(worlds, 2, 0), world_of(worlds, 4, 1)


def test_each_world_goes_its_own_way_unchanged_but_for_the_padding(pair):
    both = MultiWorldVecEnv([make(pair[0], 3, 0), make(pair[1], 4, 1)])
    alone = [make(pair[0], 3, 0), make(pair[1], 4, 1)]
    rows, singles = both.reset(), [env.reset() for env in alone]
    rng = np.random.default_rng(0)
    narrow = alone[0].layout.n_candidates
    for _ in range(80):
        masks = both.action_masks()
        np.testing.assert_array_equal(masks, both.layout.mask(rows))
        assert not masks[:3, narrow:].any()
        assert (both.layout.candidates(rows)[:3, narrow:] == 0).all()
        np.testing.assert_array_equal(both.layout.candidates(rows)[:3, :narrow], alone[0].layout.candidates(singles[0]))
        globals_ = both.layout.n_global_features
        np.testing.assert_array_equal(rows[:3, -globals_:], singles[0][:, -globals_:])
        np.testing.assert_array_equal(rows[3:], singles[1])
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        rows, rewards, dones, infos = both.step(actions)
        stepped = [alone[0].step(actions[:3]), alone[1].step(actions[3:])]
        singles = [step[0] for step in stepped]
        np.testing.assert_array_equal(rewards, np.concatenate([step[1] for step in stepped]))
        np.testing.assert_array_equal(dones, np.concatenate([step[2] for step in stepped]))
        assert all(info["terminal_observation"].shape == (both.layout.size,) for info in infos if info)
    assert both.observation_space.contains(rows[0])


def test_resume_is_exact_and_other_worlds_are_refused(pair):
    def fresh():
        return MultiWorldVecEnv([make(pair[0], 3, 0), make(pair[1], 4, 1)])

    env, rng = fresh(), np.random.default_rng(1)
    env.reset()
    for _ in range(20):
        env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()]))
    meta, arrays = env.state_dict()
    other = fresh()
    other.load_state_dict(json.loads(json.dumps(meta)), {name: array.copy() for name, array in arrays.items()})
    for _ in range(60):
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()])
        for left, right in zip(env.step(actions)[:3], other.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(left, right)
    with pytest.raises(InputError, match="state of 2 worlds"):
        MultiWorldVecEnv([make(pair[0], 3, 0)]).load_state_dict(meta, arrays)


def test_one_training_over_two_worlds_resumes_and_serves_both(pair, tmp_path):
    config = AgentConfig(
        total_steps=1024, num_envs=8, n_steps=32, batch_size=128, hidden=8, validate_every=2, value_warmup=1, checkpoint_every=1
    )

    def run(folder, total):
        env = MultiWorldVecEnv([make(pair[0], 4, 0, preferences={"w_carbon": (0.0, 2.0)}), make(pair[1], 4, 1)])

        def validate(policy):
            return np.concatenate([evaluate(world, {"agent": policy})["objective_usd"].to_numpy() for world in pair])

        changed = AgentConfig(**{**config.__dict__, "total_steps": total})
        return train_agent(env, LOOKAHEAD.settings, changed, validate, seed=3, checkpoint=folder)

    whole = run(tmp_path / "whole", 1024)
    run(tmp_path / "cut", 512)
    resumed = run(tmp_path / "cut", 1024)
    assert resumed.validation[-1] == whole.validation[-1]
    np.testing.assert_array_equal(resumed.windows, whole.windows)
    assert len(whole.windows) == 6


def test_a_policy_trained_on_two_pools_acts_on_four(worlds, pair):
    """The network scores candidates one by one: pools that training never had are used, and the Kubernetes default is beaten there."""
    config = AgentConfig(
        total_steps=8192,
        num_envs=16,
        n_steps=32,
        batch_size=256,
        hidden=16,
        validate_every=4,
        value_warmup=0,
        learning_rate=1e-3,
        patience=0,
    )
    env = make(pair[0], 16, 0)

    def validate(policy):
        return evaluate(pair[0], {"agent": policy})["objective_usd"].to_numpy()

    result = train_agent(env, LOOKAHEAD.settings, config, validate, seed=0)
    wide = make(pair[1], 8, 5)
    assert wide.layout.n_candidates > env.layout.n_candidates
    rows = wide.reset()
    used = set()
    for _ in range(200):
        actions = result.policy.act(rows, wide.layout)
        used |= set(((actions[actions > 0] - 1) // wide.layout.n_levels).tolist())
        rows = wide.step(actions)[0]
    assert used & {2, 3}
    frame = evaluate(pair[1], {"agent": result.policy, "k8s_default": JUDGES["k8s_default"]})
    means = frame.groupby("policy")["objective_usd"].mean()
    assert means["agent"] < means["k8s_default"]


def test_environments_are_split_by_share():
    assert split_envs(10, [1, 1]) == [5, 5]
    assert split_envs(10, [2, 1]) == [7, 3]
    assert split_envs(3, [100, 1, 1]) == [1, 1, 1]
    assert sum(split_envs(257, [0.2, 0.3, 0.7])) == 257
    with pytest.raises(InputError, match="2 environments for 3 worlds"):
        split_envs(2, [1, 1, 1])


def test_a_decision_in_a_larger_cluster_answers_for_the_same_objective_per_job(pair):
    small = objective_per_decision(pair[0], LOOKAHEAD, RewardSpec())
    frame = evaluate(pair[0], {"lookahead": LOOKAHEAD})
    assert 0 < small <= frame["objective_usd"].sum() / frame["jobs_submitted"].sum()


def test_worlds_that_do_not_go_together_are_refused(worlds, pair):
    with pytest.raises(InputError, match="power levels"):
        MultiWorldVecEnv([make(pair[0], 2, 0), make(world_of(worlds, 2, 3, levels=(1.0, 0.8, 0.6)), 2, 0)])
    with pytest.raises(InputError, match="reward modes"):
        MultiWorldVecEnv([make(pair[0], 2, 0), ClusterVecEnv(pair[1], 2, RewardSpec(), LOOKAHEAD.settings, 0)])
    with pytest.raises(InputError, match="at least one world"):
        MultiWorldVecEnv([])
    with pytest.raises(InputError, match="preference 'w_carbon' from 2"):
        make(pair[0], 2, 0, preferences={"w_carbon": (2.0, 1.0)})


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.5, 2.0, 3.2])
def test_load_is_scaled_within_the_span_with_distinct_jobs(factor):
    rng = np.random.default_rng(0)
    begin = pd.Timestamp("2024-03-04", tz="UTC")
    submit = begin + pd.to_timedelta(np.sort(rng.integers(0, 10 * 86_400, 4000)), unit="s")
    jobs = pd.DataFrame(
        {"job_id": [f"j{i}" for i in range(4000)], "submit_time": submit, "duration_s": rng.integers(60, 9000, 4000), "gpus": 1.0}
    )
    scaled = scale_load(jobs, factor, 1)
    assert len(scaled) / len(jobs) == pytest.approx(factor, rel=0.05)
    assert scaled["job_id"].is_unique
    assert scaled["submit_time"].is_monotonic_increasing
    assert scaled["submit_time"].between(jobs["submit_time"].min(), jobs["submit_time"].max()).all()
    assert set(scaled["duration_s"]) <= set(jobs["duration_s"])
    pd.testing.assert_frame_equal(scaled, scale_load(jobs, factor, 1))
    with pytest.raises(InputError, match="load 0"):
        scale_load(jobs, 0, 1)


def test_a_shifted_grid_has_the_same_values_at_other_times():
    times = pd.date_range("2024-03-04", periods=48, freq="1h", tz="UTC")
    grid = pd.concat([pd.DataFrame({"time": times, "site": site, "price_usd_per_kwh": np.arange(48.0) + k}) for k, site in enumerate("ab")])
    shifted = shift_grid(grid, 5)
    for k, site in enumerate("ab"):
        own = shifted[shifted["site"] == site].sort_values("time")
        np.testing.assert_array_equal(own["price_usd_per_kwh"], np.roll(np.arange(48.0) + k, 5))
    pd.testing.assert_frame_equal(shift_grid(shifted, -5), shift_grid(grid, 0))
    with pytest.raises(InputError, match=r"shift of 0\.3"):
        shift_grid(grid, 0.3)

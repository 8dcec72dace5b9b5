"""The agent: starts as its judge, learns, resumes to the bit, exports exactly, and never picks a masked action."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.agent.config import AgentConfig
from envs.agent.network import ActionScorer
from envs.agent.policy import AgentPolicy
from envs.agent.train import train_agent
from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.observation import N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, ObservationLayout
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv
from telemetry.errors import InputError

SETTINGS = JUDGES["lookahead"].settings
CONFIG = AgentConfig(
    total_steps=2048, num_envs=8, n_steps=32, batch_size=128, n_epochs=2, hidden=16, validate_every=2, checkpoint_every=1, value_warmup=1
)


def scorer(seed: int = 0, hidden: int = 16) -> ActionScorer:
    torch.manual_seed(seed)
    network = ActionScorer(N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, ObservationLayout(1, 1).score_index, hidden=hidden)
    torch.nn.init.normal_(network.residual.weight)
    return network


def exported(network: ActionScorer) -> AgentPolicy:
    return AgentPolicy({key: value.detach().numpy() for key, value in network.state_dict().items()}, SETTINGS, network.score_index)


def random_observation(layout: ObservationLayout, rows: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    observation = generator.uniform(-2, 2, size=(rows, layout.size)).astype(np.float32)
    candidates = layout.candidates(observation)
    valid = generator.random(candidates.shape[:2]) < 0.6
    valid[np.arange(rows), generator.integers(0, candidates.shape[1], rows)] = True
    candidates[..., 0] = valid
    candidates *= valid[..., None]
    return observation


def train(world, **changes):
    config = dataclasses.replace(CONFIG, **{key: value for key, value in changes.items() if key != "checkpoint"})
    env = ClusterVecEnv(world, config.num_envs, RewardSpec(), SETTINGS, seed=1, reward_mode="regret")

    def validate(policy):
        return float(evaluate(world, {"agent": policy})["objective_usd"].mean())

    return train_agent(env, SETTINGS, config, validate, seed=3, checkpoint=changes.get("checkpoint"))


@settings(max_examples=30, deadline=None)
@given(pools=st.integers(1, 5), levels=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_numpy_equals_torch_for_any_number_of_pools_and_obeys_the_mask(pools, levels, seed):
    layout = ObservationLayout(pools, levels)
    network = scorer(seed % 7)
    policy = exported(network)
    observation = random_observation(layout, 5, seed)
    split = layout.n_candidates * layout.n_candidate_features
    with torch.no_grad():
        logits, _ = network(torch.from_numpy(layout.candidates(observation).copy()), torch.from_numpy(observation[:, split:].copy()))
    np.testing.assert_allclose(policy.logits(observation, layout), logits.numpy(), rtol=2e-5, atol=2e-5)
    chosen = policy.act(observation, layout)
    assert layout.mask(observation)[np.arange(5), chosen].all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_scores_follow_the_candidates_when_they_are_permuted(seed):
    layout = ObservationLayout(3, 2)
    policy = exported(scorer(1))
    observation = random_observation(layout, 4, seed)
    order = np.random.default_rng(seed).permutation(layout.n_candidates)
    shuffled = observation.copy()
    layout.candidates(shuffled)[:] = layout.candidates(observation)[:, order]
    np.testing.assert_allclose(policy.logits(shuffled, layout), policy.logits(observation, layout)[:, order], rtol=1e-4, atol=1e-4)


def test_an_untrained_agent_decides_as_the_lookahead_judge(agent_world):
    torch.manual_seed(0)
    network = ActionScorer(N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, ObservationLayout(1, 1).score_index)
    frame = evaluate(agent_world, {"agent": exported(network), "lookahead": JUDGES["lookahead"]})
    ours, judge = (frame[frame["policy"] == name]["objective_usd"].to_numpy() for name in ("agent", "lookahead"))
    np.testing.assert_allclose(ours, judge, rtol=1e-9)


def test_training_is_deterministic_and_the_best_checkpoint_is_no_worse_than_the_start(agent_world):
    first, second = train(agent_world), train(agent_world)
    assert first.validation == second.validation
    for key, value in first.policy.weights.items():
        np.testing.assert_array_equal(value, second.policy.weights[key])
    assert first.best_objective <= first.validation[0][1]
    assert len(first.curve) >= 5


def test_a_resumed_run_ends_in_the_same_weights(agent_world, tmp_path):
    whole = train(agent_world, checkpoint=tmp_path / "whole")
    train(agent_world, checkpoint=tmp_path / "cut", total_steps=1024)
    resumed = train(agent_world, checkpoint=tmp_path / "cut")
    assert resumed.validation[-1] == whole.validation[-1]
    for key, value in whole.policy.weights.items():
        np.testing.assert_array_equal(value, resumed.policy.weights[key])
    untimed = [
        [(step, {k: v for k, v in row.items() if not k.startswith(("time/", "rollout/ep_"))}) for step, row in r.curve]
        for r in (whole, resumed)
    ]
    assert untimed[0] == untimed[1]
    again = train(agent_world, checkpoint=tmp_path / "cut")
    assert (again.validation, again.verdict.described()) == (resumed.validation, resumed.verdict.described())


def test_patience_stops_a_run_that_does_not_get_better(agent_world, tmp_path):
    changes = {"total_steps": 20_000, "patience": 2, "learning_rate": 1e-12, "checkpoint": tmp_path / "still"}
    stopped = train(agent_world, **changes)
    assert stopped.stopped_early
    assert len(stopped.validation) == 3
    again = train(agent_world, **changes)
    assert again.validation == stopped.validation
    assert again.stopped_early


def test_curves_tell_what_was_done_and_what_it_cost(agent_world):
    result = train(agent_world, total_steps=4096, patience=0)
    steps = [step for step, _ in result.curve]
    assert steps == [256 * (i + 1) for i in range(16)]
    for _, row in result.curve:
        assert row["actions/hold"] + row["actions/run_level_0"] + row["actions/run_level_1"] + row["actions/run_level_2"] == pytest.approx(
            1.0
        )
        assert row["rollout/regret_per_decision_usd"] == pytest.approx(-row["rollout/reward_per_decision"])
        for key in ("entropy_loss", "approx_kl", "clip_fraction", "explained_variance", "value_loss"):
            assert np.isfinite(row[f"train/{key}"])
    ended = [row for _, row in result.curve if "episode/objective_usd" in row]
    assert ended
    assert all(row["episode/energy_kwh"] > 0 and 0 <= row["episode/sla_violation_rate"] <= 1 for row in ended)


def test_a_checkpoint_of_another_network_is_refused(agent_world, tmp_path):
    train(agent_world, checkpoint=tmp_path / "cut", total_steps=1024)
    with pytest.raises(InputError, match="another configuration"):
        train(agent_world, checkpoint=tmp_path / "cut", hidden=8)


def test_saved_and_loaded_policy_is_the_same(tmp_path):
    layout = ObservationLayout(2, 3)
    policy = exported(scorer())
    policy.save(tmp_path)
    loaded = AgentPolicy.load(tmp_path)
    observation = random_observation(layout, 6, 0)
    np.testing.assert_array_equal(loaded.logits(observation, layout), policy.logits(observation, layout))
    assert loaded.settings == policy.settings
    assert not list(tmp_path.glob("*.pkl"))


def test_an_observation_of_another_layout_is_refused():
    weights = exported(scorer()).weights
    weights["from_candidate.weight"] = weights["from_candidate.weight"][:, :-1]
    policy = AgentPolicy(weights, SETTINGS, 3)
    layout = ObservationLayout(1, 1)
    with pytest.raises(InputError, match="as in training"):
        policy.act(random_observation(layout, 1, 0), layout)


@pytest.mark.parametrize(("key", "value"), [("total_steps", 0), ("gamma", 0.0), ("gamma", 1.2), ("batch_size", 10**6)])
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(InputError, match=key):
        AgentConfig(**{key: value})


def test_it_learns_what_its_judge_cannot_see(worlds):
    """Users ask for eight times what they need: by estimate every hour of the day costs the same, by truth the cheap hours pay."""
    price = np.full(24, 0.3)
    price[::6] = 0.02
    spec = worlds.cluster(nodes=4)
    generator = np.random.default_rng(0)

    def window():
        return [
            worlds.job(
                f"j{index:03d}",
                submit_s=int(generator.integers(0, 86_400)),
                duration_s=3000,
                requested_duration_s=24_000,
                workload_class="batch_inference",
            )
            for index in range(30)
        ]

    table = worlds.grid(price=price)
    train_world, held_out = (worlds.windows_of(spec, [window() for _ in range(count)], table) for count in (6, 4))
    settings_ = dataclasses.replace(SETTINGS, hold_s=3600, sleep_after_s=60)
    config = dataclasses.replace(
        CONFIG,
        total_steps=90_000,
        num_envs=32,
        n_steps=32,
        batch_size=512,
        n_epochs=4,
        hidden=32,
        learning_rate=3e-3,
        kappa=20.0,
        gae_lambda=0.95,
        validate_every=5,
    )
    env = ClusterVecEnv(train_world, 32, RewardSpec(), settings_, seed=0, reward_mode="regret")

    def validate(policy):
        return float(evaluate(held_out, {"agent": policy})["objective_usd"].mean())

    result = train_agent(env, settings_, config, validate, seed=0)
    assert result.best_objective < 0.9 * result.validation[0][1]

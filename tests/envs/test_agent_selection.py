"""Choosing weights on one half of the windows and confirming them on the other; shares of actions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from envs.agent.config import AgentConfig
from envs.agent.selection import halves, paired_gain, verdict
from envs.agent.tracking import IN_REVIEW, action_shares, episode_means
from envs.agent.train import train_agent
from envs.heuristics import JUDGES
from envs.observation import IS_CURRENT, ObservationLayout
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv
from telemetry.errors import InputError

CONFIG = AgentConfig(total_steps=1024, num_envs=8, n_steps=32, batch_size=128, hidden=8, validate_every=1, value_warmup=0, patience=0)


@pytest.mark.parametrize("windows", [1, 2, 3, 4, 5, 12])
def test_halves_cover_all_windows_and_do_not_share_any_from_four_on(windows):
    choosing, confirming = (list(range(windows))[part] for part in halves(windows))
    assert choosing
    assert confirming
    if windows >= 4:
        assert sorted(choosing + confirming) == list(range(windows))


def test_gain_is_the_share_saved_with_an_interval_around_it():
    theirs = np.array([10.0, 20.0, 30.0, 40.0])
    gain, low, high = paired_gain(theirs * 0.9, theirs)
    assert gain == pytest.approx(0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    gain, low, high = paired_gain(theirs + np.array([3.0, -3.0, 3.0, -5.0]), theirs)
    assert low < gain < high
    assert np.isnan(paired_gain(theirs[:1], theirs[:1])[1])


def test_what_won_by_luck_on_the_choosing_half_is_not_accepted():
    judge = np.full(6, 10.0)
    lucky = np.array([5.0, 5.0, 5.0, 10.5, 10.5, 10.5])
    assert not verdict(lucky, judge).improved
    assert verdict(lucky, judge).held_back
    assert verdict(lucky[::-1], judge).improved


def test_acceptance_by_interval_asks_for_more_than_by_mean():
    judge = np.full(8, 10.0)
    noisy = np.array([10.0] * 4 + [2.0, 11.0, 11.0, 11.0])
    assert verdict(noisy, judge, "mean").improved
    assert not verdict(noisy, judge, "interval").improved
    assert verdict(judge - 1.0, judge, "interval").improved
    with pytest.raises(InputError, match="accept = 'hope'"):
        AgentConfig(accept="hope")


@pytest.mark.parametrize(("change", "improved"), [(-1.0, True), (1.0, False)])
def test_only_what_beats_the_judge_replaces_it(agent_world, change, improved):
    """Validation that tells better or worse for anything but the start: the result follows, weights and all."""
    settings = JUDGES["lookahead"].settings
    env = ClusterVecEnv(agent_world, 8, RewardSpec(), settings, seed=1, reward_mode="regret")
    seen = []

    def validate(policy):
        seen.append(policy)
        return np.full(4, 10.0) if len(seen) == 1 else np.array([9.0, 9.0, 10.0 + change, 10.0 + change])

    result = train_agent(env, settings, dataclasses.replace(CONFIG), validate, seed=0, judge=np.full(4, 10.0))
    assert result.improved == improved
    assert result.best_step > 0
    expected = seen[1 if improved else 0].weights
    for name, value in result.policy.weights.items():
        np.testing.assert_array_equal(value, expected[name])
    assert result.verdict.described()["windows"] == 2


def test_shares_tell_waiting_jobs_from_reviews():
    layout = ObservationLayout(2, 2)
    rows = np.zeros((8, layout.size), np.float32)
    candidates = layout.candidates(rows)
    rows[4:, layout.n_candidates * layout.n_candidate_features + IN_REVIEW] = 1.0
    candidates[4:, 3, IS_CURRENT] = 1.0  # runs in pool 1 at level 0
    shares = action_shares(layout, rows, np.array([0, 1, 2, 4, 0, 3, 4, 1]))
    assert shares["actions/reviews"] == 0.5
    assert shares["actions/hold"] == 0.25
    assert shares["actions/run_level_0"] == 0.25
    assert shares["actions/run_level_1"] == 0.5
    for kind in ("pause", "stay", "change_level", "migrate"):
        assert shares[f"actions/review_{kind}"] == 0.25
    assert "actions/review_stay" not in action_shares(layout, rows[:4], np.zeros(4, int))


def test_means_over_ended_windows():
    row = {"objective_usd": 2.0, "cost_usd": 1.0, "energy_kwh": 3.0, "penalty_usd": 0.0, "sla_violation_rate": 0.5, "episode": {"l": 10}}
    means = episode_means([row, {**row, "objective_usd": 4.0}])
    assert means["episode/objective_usd"] == 3.0
    assert means["episode/ended"] == 2
    assert episode_means([]) == {}

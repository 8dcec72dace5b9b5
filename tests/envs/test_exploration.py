"""Exploration: probabilities that sum to 1, over safe answers only, and draws that follow them and their keys."""

import numpy as np
import pytest

from envs.exploration import EXPECTED_PENALTY, Exploration, answer_features, drawn, ranks, uniform_of
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.observation import SCORE
from envs.reward import RewardSpec
from telemetry.errors import InputError

LOOKAHEAD = JUDGES["lookahead"]


@pytest.fixture(scope="module")
def questions(worlds):
    """Rows of many questions and their layout."""
    world = worlds.random_world(11, count=40, windows=6)
    simulator = Simulator(world, 6, LOOKAHEAD.settings, RewardSpec())
    simulator.reset(np.arange(6))
    rows = []
    observation = simulator.observe()
    while not simulator.done.all():
        asking = np.flatnonzero(simulator.asking >= 0)
        rows.append(observation[asking].copy())
        actions = np.full(6, -1, dtype=np.int64)
        actions[asking] = LOOKAHEAD.act(observation[asking], simulator.layout)
        simulator.step(actions, observe=True)
    return np.concatenate(rows), simulator.layout


def test_without_exploration_the_answer_is_the_policys_own(questions):
    rows, layout = questions
    chances = Exploration().propensities(LOOKAHEAD, rows, layout)
    assert (chances.max(axis=1) == 1.0).all()
    np.testing.assert_array_equal(chances.argmax(axis=1), LOOKAHEAD.act(rows, layout))


@pytest.mark.parametrize("name", ["lookahead", "greedy_cost", "threshold", "k8s_default"])
def test_probabilities_sum_to_one_and_stay_on_safe_answers(questions, name):
    rows, layout = questions
    policy, exploration = JUDGES[name], Exploration(temperature=0.2, epsilon=0.1, within=0.3)
    own = policy.act(rows, layout)
    chances = exploration.propensities(policy, rows, layout)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-12)
    candidates, everyone = layout.candidates(rows), np.arange(len(rows))
    given = chances > 0
    given[everyone, own] = False
    least = np.where(layout.mask(rows), candidates[..., SCORE], np.inf).min(axis=1)
    at, answer = np.nonzero(given)
    assert len(at) > 50
    assert layout.mask(rows)[at, answer].all()
    assert (candidates[at, answer, SCORE] <= least[at] + 0.3 + 1e-6).all()
    assert (candidates[at, answer, EXPECTED_PENALTY] <= candidates[at, own[at], EXPECTED_PENALTY]).all()
    assert (chances[everyone, own] > 0).all()


def test_what_the_shield_removes_is_never_drawn(questions):
    rows, layout = questions
    own = LOOKAHEAD.act(rows, layout)
    allowed = layout.mask(rows).copy()
    removed = (np.arange(layout.n_candidates) % 2 == 1) & (np.arange(layout.n_candidates)[None] != own[:, None])
    allowed &= ~removed
    chances = Exploration(temperature=0.5, epsilon=0.5, within=10.0, sla_safe=False).propensities(
        LOOKAHEAD, rows, layout, allowed=allowed, own=own
    )
    assert (chances[~allowed] == 0).all()
    assert ((chances > 0).sum(axis=1) > 1).any()


def test_a_hotter_softmax_keeps_the_order_and_flattens(questions):
    rows, layout = questions
    cold, hot = (Exploration(temperature=t, within=np.inf, sla_safe=False).propensities(LOOKAHEAD, rows, layout) for t in (0.05, 0.5))
    ranked = ranks(LOOKAHEAD, rows, layout)
    several = layout.mask(rows).sum(axis=1) > 1
    assert (ranked.argmax(axis=1) == hot.argmax(axis=1)).all()
    assert (cold.max(axis=1) >= hot.max(axis=1) - 1e-12)[several].all()
    row = int(np.flatnonzero(several)[0])
    open_ = np.flatnonzero(layout.mask(rows)[row])
    np.testing.assert_allclose(np.diff(np.log(hot[row, open_])), np.diff(ranked[row, open_]) / 0.5, atol=1e-9)


def test_draws_follow_the_probabilities():
    chances = np.tile([0.0, 0.7, 0.05, 0.25], (20_000, 1))
    uniform = uniform_of(7, np.arange(20_000))
    counts = np.bincount(drawn(chances, uniform), minlength=4) / 20_000
    assert counts[0] == 0
    np.testing.assert_allclose(counts, [0.0, 0.7, 0.05, 0.25], atol=0.015)


def test_uniform_numbers_depend_on_every_key_and_repeat():
    keys = np.arange(5000)
    one, again, other = uniform_of(3, keys), uniform_of(3, keys), uniform_of(4, keys)
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.99
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    np.testing.assert_allclose(np.histogram(one, 10, (0, 1))[0] / 5000, 0.1, atol=0.02)


def test_features_of_answers_hold_candidate_and_question(questions):
    rows, layout = questions
    features, scale = answer_features(rows, layout)
    assert features.shape == (len(rows), layout.n_candidates, layout.n_candidate_features + layout.n_global_features)
    np.testing.assert_array_equal(features[:, 3, : layout.n_candidate_features], layout.candidates(rows)[:, 3])
    np.testing.assert_array_equal(features[:, 0, layout.n_candidate_features :], features[:, 5, layout.n_candidate_features :])
    assert (scale > 0).all()


@pytest.mark.parametrize("change", [{"epsilon": 1.5}, {"temperature": -1.0}, {"within": float("nan")}])
def test_impossible_exploration_is_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        Exploration(**change)

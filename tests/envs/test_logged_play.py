"""Logged play: bills add up, replays repeat, and a forced answer is what the simulator does by hand."""

import numpy as np
import pytest

from envs.exploration import Exploration
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.logged_play import forced_play, logged_play
from envs.reward import RewardSpec
from telemetry.errors import InputError

LOOKAHEAD, REWARD = JUDGES["lookahead"], RewardSpec()
WIDE = Exploration(temperature=0.1, epsilon=0.3, within=np.inf, sla_safe=False)


@pytest.fixture(scope="module")
def world(worlds):
    return worlds.random_world(9, count=25, windows=3)


def own(rows, layout):
    return Exploration().propensities(LOOKAHEAD, rows, layout)


def test_without_exploration_it_is_the_judge(world):
    play = logged_play(world, np.arange(3), LOOKAHEAD, Exploration(), REWARD, np.zeros(3))
    totals = run_policy(world, LOOKAHEAD, REWARD)
    np.testing.assert_array_equal(play.objective_usd, totals.objective_usd)
    np.testing.assert_array_equal(np.bincount(play.run), totals.decisions)
    first = np.unique(play.run * 1000 + play.job, return_index=True)[1]
    bill = (totals.job_cost_usd + 0.1 * totals.job_carbon_kg + totals.job_penalty_usd)[play.run[first], play.job[first]]
    np.testing.assert_allclose(play.cost_usd[first], bill, rtol=1e-9)


def test_propensities_are_those_of_the_answers(world):
    play = logged_play(world, np.arange(3).repeat(30), LOOKAHEAD, WIDE, REWARD, np.arange(90))
    given = np.zeros_like(play.propensities)
    given[np.arange(len(play.action)), play.action] = 1.0
    explored = given[:, 1:].sum(axis=0)
    expected = play.propensities[:, 1:].sum(axis=0)
    np.testing.assert_allclose(explored, expected, atol=4 * np.sqrt(expected.max()))
    assert (play.propensities[np.arange(len(play.action)), play.action] > 0).all()


def test_a_run_depends_on_its_seed_alone(world):
    together = logged_play(world, np.array([0, 1, 2]), LOOKAHEAD, WIDE, REWARD, np.array([5, 6, 7]))
    alone = logged_play(world, np.array([1]), LOOKAHEAD, WIDE, REWARD, np.array([6]))
    np.testing.assert_array_equal(together.action[together.run == 1], alone.action)
    other = logged_play(world, np.array([1]), LOOKAHEAD, WIDE, REWARD, np.array([60]))
    assert len(other.action) != len(alone.action) or (other.action != alone.action).any()


def test_forcing_the_answer_that_was_given_changes_nothing_and_another_is_paid_for(world):
    def taken(rows, layout):
        return WIDE.propensities(LOOKAHEAD, rows, layout)

    windows, seeds = np.arange(3), np.arange(3)
    targets = {"own": own, "logger": taken}
    found = forced_play(world, windows, LOOKAHEAD, WIDE, REWARD, seeds, targets, share=1.0, batch=7)
    play = logged_play(world, windows, LOOKAHEAD, WIDE, REWARD, seeds)
    np.testing.assert_array_equal(found.logged_usd, play.cost_usd)
    np.testing.assert_array_equal(found.decisions, np.bincount(play.run))
    same = play.action == own(play.rows, play.layout).argmax(axis=1)
    assert 0 < same.sum() < len(same)
    assert (found.change_usd["own"][same] == 0).all()
    assert (found.change_usd["own"][~same] != 0).mean() > 0.5
    again = forced_play(world, windows, LOOKAHEAD, WIDE, REWARD, seeds, targets, share=1.0, batch=500)
    np.testing.assert_array_equal(found.change_usd["own"], again.change_usd["own"])


def test_the_loggers_own_answers_drawn_again_change_nothing_on_average(world):
    def taken(rows, layout):
        return WIDE.propensities(LOOKAHEAD, rows, layout)

    found = forced_play(world, np.arange(3).repeat(40), LOOKAHEAD, WIDE, REWARD, np.arange(120), {"logger": taken}, share=0.3)
    change = found.change_usd["logger"]
    assert abs(change.mean()) < 4 * change.std() / np.sqrt(len(change))


def test_what_cannot_be_played_is_refused(world):
    with pytest.raises(InputError, match="review_s"):
        logged_play(world, np.arange(3), JUDGES["planner"], WIDE, REWARD, np.arange(3))
    with pytest.raises(InputError, match="share 0"):
        forced_play(world, np.arange(3), LOOKAHEAD, WIDE, REWARD, np.arange(3), {"own": own}, share=0)

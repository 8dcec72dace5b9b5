"""Counterfactual rollouts: copies play on identically, the judge's own choice costs nothing, and a planted advantage is found."""

from dataclasses import replace

import numpy as np
import pytest

from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.reward import RewardSpec
from envs.rollouts import alternatives, play_out, rollout_labels
from telemetry.errors import InputError

PLANNER = JUDGES["planner"]
REWARD = RewardSpec()


@pytest.fixture(scope="module")
def world(worlds):
    return worlds.random_world(5, count=30, windows=3)


def at_a_question(world, decisions=12):
    simulator = Simulator(world, world.n_windows, PLANNER.settings, REWARD)
    simulator.reset(np.arange(world.n_windows))
    simulator.play(PLANNER.chooser, np.full(world.n_windows, decisions))
    return simulator


def test_the_judges_own_choice_ends_where_the_judge_ends(world):
    whole = at_a_question(world, 10**9).state.objective_usd.copy()
    simulator = at_a_question(world)
    observations = simulator.observe().copy()
    before = [block.copy() for block in simulator.packed_state]
    asked = alternatives(observations, simulator, 3)
    own = asked.first == np.arange(len(asked.env))
    assert own.sum() >= 2
    assert (asked.action[own] == PLANNER.act(observations, simulator.layout)[asked.env[own]]).all()
    usd = play_out(simulator, asked.env, asked.action, PLANNER.chooser, REWARD, PLANNER)
    np.testing.assert_array_equal(usd[own], whole[asked.env[own]])
    assert (usd[~own] != whole[asked.env[~own]]).any()
    for block, kept in zip(simulator.packed_state, before, strict=True):
        np.testing.assert_array_equal(block, kept)


def test_a_rollout_is_the_simulator_driven_by_hand(world):
    simulator = at_a_question(world)
    asked = alternatives(simulator.observe().copy(), simulator, 2)
    rows = np.flatnonzero(asked.first != np.arange(len(asked.env)))
    usd = play_out(simulator, asked.env[rows], asked.action[rows], PLANNER.chooser, REWARD, PLANNER)
    b, action = int(asked.env[rows[0]]), int(asked.action[rows[0]])
    actions = np.full(world.n_windows, -1)
    actions[b] = action
    simulator.step(actions)
    simulator.play(PLANNER.chooser)
    assert float(simulator.state.objective_usd[b]) == usd[0]


def test_holding_is_among_the_alternatives_where_it_is_allowed(world):
    simulator = at_a_question(world)
    asked = alternatives(simulator.observe().copy(), simulator, 1)
    for b in np.unique(asked.env):
        if simulator.mask[b, 0]:
            assert 0 in asked.action[asked.env == b]
        assert simulator.mask[b, asked.action[asked.env == b]].all()
        assert (asked.env == b).sum() == 2


def test_labels_depend_on_the_seed_alone(world):
    one, two, other = (rollout_labels(world, PLANNER, REWARD, points=3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.advantage_usd, two.advantage_usd)
    np.testing.assert_array_equal(one.observations, two.observations)
    assert not np.array_equal(one.decision, other.decision)
    assert (one.action != one.judged).all()


def test_a_planted_mistake_is_found(worlds):
    """A planner that will not wait but for half the price is told by its rollouts that waiting for the cheap hours would have paid."""
    spec = replace(worlds.cluster(), pools=worlds.cluster().pools[:1], sites=worlds.cluster().sites[:1], level_fractions=(1.0,))
    table = worlds.grid(sites=("east",), price=[0.30] * 6 + [0.02] * 18)
    rows = [worlds.job("t", submit_s=5 * 3600 + 60, duration_s=3600, workload_class="training", gpus=4.0)]
    hasty = replace(PLANNER, settings=replace(PLANNER.settings, hold_margin=9.0, review_s=0))
    labels = rollout_labels(worlds.world_of(spec, rows, table), hasty, REWARD, points=1)
    assert labels.judged[0] > 0
    assert labels.action[0] == 0
    assert labels.advantage_usd[0] < -0.05


def test_what_cannot_be_rolled_out_is_refused(world):
    with pytest.raises(InputError, match="0 points"):
        rollout_labels(world, PLANNER, REWARD, points=0)
    with pytest.raises(InputError, match="greedy_cost"):
        rollout_labels(world, JUDGES["greedy_cost"], REWARD, points=1)
    simulator = at_a_question(world, 10**9)
    with pytest.raises(InputError, match="without a pending question"):
        play_out(simulator, np.array([0]), np.array([1]), PLANNER.chooser, REWARD, PLANNER)

"""Judges: the compiled chooser and the choice from an observation are the same policy, and each does what its name says."""

import numpy as np
import pytest

from envs.heuristics import FORESIGHTED, JUDGES
from envs.kernel import run_policy
from envs.reward import RewardSpec
from envs.state import PolicySettings
from telemetry.errors import InputError

REWARD = RewardSpec()


class ByObservation:
    """A judge without its compiled chooser."""

    def __init__(self, judge):
        self.name, self.settings, self.act = judge.name, judge.settings, judge.act


@pytest.mark.parametrize("name", sorted(JUDGES))
def test_compiled_and_observed_choices_agree(worlds, name):
    world = worlds.random_world(21, count=30, windows=3)
    compiled = run_policy(world, JUDGES[name], REWARD, event_log=True)
    observed = run_policy(world, ByObservation(JUDGES[name]), REWARD, event_log=True)
    for window in range(3):
        assert np.array_equal(compiled.events[window], observed.events[window])
    assert np.array_equal(compiled.objective_usd, observed.objective_usd)


def test_names_are_the_ones_of_commands_and_reports():
    names = "k8s_default most_allocated fifo sjf easy best_fit fgd pwr_fgd ces threshold greedy_cost lookahead planner"
    assert list(JUDGES) == names.split()
    assert list(FORESIGHTED) == ["lookahead_perfect", "planner_perfect"]
    assert all(judge.name == name and judge.summary for name, judge in JUDGES.items())


def test_kubernetes_default_spreads_at_full_power_and_never_sleeps(worlds):
    world = worlds.random_world(5, count=30)
    totals = run_policy(world, JUDGES["k8s_default"], REWARD)
    assert totals.idle_energy_kwh[..., 1:].sum() == 0
    ran = totals.job_level[0] >= 0
    lowest = np.array(
        [
            min(level for level in range(3) for p in range(2) if bits[p] >> level & 1) if bits.any() else 0
            for bits in world.jobs.allowed_levels[0]
        ]
    )
    assert (totals.job_level[0][ran] >= lowest[ran]).all()
    assert (totals.job_level[0][ran] == 0).any()


def test_sleeping_and_expected_cost_save_money(worlds):
    world = worlds.random_world(9, count=30, nodes=4, windows=4)
    cost = {name: run_policy(world, JUDGES[name], REWARD).cost_usd.sum() for name in ("k8s_default", "most_allocated", "greedy_cost")}
    assert cost["greedy_cost"] < cost["most_allocated"] < cost["k8s_default"]


@pytest.mark.parametrize(
    "bad",
    [{"node_rule": "worst"}, {"discipline": "chaos"}, {"queue_order": "lifo"}, {"sleep_after_s": -2}, {"hold_s": 0}, {"hold_margin": -1}],
)
def test_settings_name_the_wrong_value(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        PolicySettings(**bad)

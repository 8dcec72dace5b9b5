"""Attribution of node energy: parts sum to the whole, and the formulas are the simulator's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.accounting import attribute_node, attributed_w, kwh
from envs.heuristics import Judge
from envs.kernel import run_policy
from envs.kernel_choosers import TIGHTEST
from envs.reward import RewardSpec
from envs.state import PolicySettings
from telemetry.errors import InputError

ENERGY = st.floats(0, 1e6, allow_nan=False)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ENERGY, ENERGY, st.lists(st.floats(0, 2), max_size=4), st.booleans())
def test_parts_sum_to_the_whole(node_kwh, idle_kwh, gpus, weighted):
    weight = np.array(gpus)[::-1] if weighted else None
    shares = attribute_node(node_kwh, idle_kwh, np.array(gpus), 8.0, weight)
    assert shares.total == pytest.approx(node_kwh, rel=1e-9, abs=1e-9)
    assert (shares.jobs >= 0).all()
    assert shares.idle >= 0


def test_split_by_hand():
    shares = attribute_node(10.0, 4.0, np.array([1.0, 2.0]), 4.0, np.array([5.0, 1.0]))
    assert shares.jobs.tolist() == [4 / 4 + 6 * 5 / 6, 2 * 4 / 4 + 6 * 1 / 6]
    assert shares.idle == pytest.approx(1.0)


def test_same_formula_as_the_simulator(worlds):
    row = worlds.job("x", duration_s=5000, gpus=2, gpu_model="V100", gpu_utilization=0.6)
    world = worlds.world_of(worlds.cluster(), [row])
    totals = run_policy(world, Judge("t", PolicySettings(sleep_after_s=-1), TIGHTEST, ""), RewardSpec())
    watts = attributed_w(2, world.static.gpu_power_w[0, 0, 4], 30.0, 0.6, 20.0, 250.0, 4)
    assert totals.job_energy_kwh[0, 0] == pytest.approx(kwh(watts, totals.job_end_s[0, 0], 1.15), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-1.0, 0.0, np.array([1.0]), 4.0), "node energy -1"),
        ((1.0, 0.0, np.array([-1.0]), 4.0), "negative or missing share"),
        ((1.0, 0.0, np.array([3.0, 2.0]), 4.0), "5 GPUs in use"),
    ],
)
def test_impossible_measurements_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        attribute_node(*arguments)

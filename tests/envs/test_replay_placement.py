"""Placement told again from the log agrees with the simulator's nodes at every question."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from envs.events import EVENT_NAMES, events_frame
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.replay.facts import facts_of
from envs.replay.placement import Books, place_workers, splitmix64
from envs.reserve import with_reserve
from envs.reward import RewardSpec
from envs.state import PolicySettings
from telemetry.errors import InputError

START = pd.Timestamp("2024-01-08", tz="UTC")


def reserve(seed):
    """An hourly reserve table of both pools."""
    rng = np.random.default_rng(seed)
    rows = [{"time": START + pd.Timedelta(hours=hour), "pool": pool, "nodes": rng.integers(4)} for hour in range(12) for pool in ("v", "a")]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("reserved", [False, True])
@pytest.mark.parametrize("name", ["k8s_default", "most_allocated", "lookahead"])
def test_free_gpus_agree_at_every_question(worlds, name, reserved):
    judge, asked = JUDGES[name], 0
    for seed in range(4):
        world = worlds.random_world(seed, count=60, nodes=3)
        world = with_reserve(world, [reserve(seed)]) if reserved else world
        simulator = Simulator(world, 1, judge.settings, RewardSpec(), event_log=True)
        simulator.reset([0])
        books, read = Books(facts_of(world, 0, name, judge.settings, RewardSpec())), 0
        while not simulator.done[0]:
            events = simulator.events(0)
            for row in events[read:]:
                books.read(EVENT_NAMES[int(row[1])], int(row[2]), int(row[3]), int(row[4]), int(row[5]))
            read, asked = len(events), asked + 1
            free = np.concatenate([node.free for node in books.nodes])
            assert free.tolist() == simulator.state.gpu_free[0].tolist()
            simulator.step(judge.act(simulator.observe(), simulator.layout))
    assert asked > 150


def test_seats_of_a_gang(worlds):
    rows = [worlds.job("a", gpus=0.5, gpu_model="V100"), worlds.job("b", submit_s=5, gpus=3, workers=2, gpu_model="V100")]
    world = worlds.world_of(worlds.cluster(), rows)
    judge = JUDGES["most_allocated"]
    simulator = Simulator(world, 1, judge.settings, RewardSpec(), event_log=True)
    simulator.reset([0])
    simulator.play(judge.chooser)
    seats = place_workers(events_frame(world, 0, simulator.events(0)), facts_of(world, 0, "x", judge.settings, RewardSpec()))
    assert seats[["job", "worker", "node", "gpu", "milli"]].to_numpy().tolist() == [
        [0, 0, 0, 0, 500],
        *([1, 0, 0, gpu, 1000] for gpu in (1, 2, 3)),
        *([1, 1, 1, gpu, 1000] for gpu in (0, 1, 2)),
    ]


def test_a_log_out_of_order_is_refused(worlds):
    facts = facts_of(worlds.world_of(worlds.cluster(nodes=1), [worlds.job("x", gpus=4)]), 0, "x", PolicySettings(), RewardSpec())
    books = Books(facts)
    with pytest.raises(InputError, match="wakes where the rule places nobody"):
        books.read("wake", -1, 0, -1, 0)
    books.read("run", 0, 0, 0, -1)
    with pytest.raises(InputError, match="no room for worker 0"):
        books.read("run", 0, 0, 0, -1)


def test_random_numbers_are_splitmix64():
    """First outputs of the published generator for seed 0: it adds its constant before each output."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


def test_rack_budgets_bind(worlds):
    """A rack of one node that bears the first job alone sends the second to the next rack."""
    rows = [worlds.job("x", gpus=4), worlds.job("y", gpus=1)]
    facts = facts_of(worlds.world_of(worlds.cluster(nodes=2, gpus=6), rows), 0, "x", PolicySettings(), RewardSpec())
    watts = facts.curves.query("pool == 0 and level == 0 and curve == 4")["gpu_power_w"].iloc[0]
    first_w = 250.0 + 6 * 30.0 + 4 * (watts - 30.0 + 20.0)
    second_w = watts - 30.0 + 20.0
    for budget_w, node in ((first_w, 1), (first_w + second_w, 0), (0.0, 0)):
        pools = facts.pools.assign(nodes_per_rack=1.0, rack_budget_w=budget_w)
        books = Books(dataclasses.replace(facts, pools=pools))
        books.read("run", 0, 0, 0, -1)
        assert books.read("run", 1, 0, 0, -1)[0].node == node

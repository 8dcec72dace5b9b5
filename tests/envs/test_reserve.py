"""The reserve table: what it keeps awake, what it wakes ahead of demand, and what it refuses. The rules themselves are compared with the
reference in ``test_reference_agreement.py``."""

import numpy as np
import pandas as pd
import pytest

from envs import events
from envs.heuristics import Judge
from envs.kernel import run_policy
from envs.kernel_choosers import TIGHTEST
from envs.replay.facts import facts_of
from envs.replay.recompute import recompute
from envs.reserve import keep_awake, with_reserve
from envs.reward import RewardSpec
from envs.state import PolicySettings
from telemetry.errors import InputError

REWARD = RewardSpec()
POLICY = Judge("t", PolicySettings(sleep_after_s=100), TIGHTEST, "")
START = pd.Timestamp("2024-01-08", tz="UTC")


def table(*rows):
    """Rows (hour, pool, nodes)."""
    return pd.DataFrame([{"time": START + pd.Timedelta(hours=hour), "pool": pool, "nodes": nodes} for hour, pool, nodes in rows])


def logged(world, kind, pool):
    """(second, node) of the events of a kind in a pool."""
    log = run_policy(world, POLICY, REWARD, event_log=True).events[0]
    return [(int(row[0]), int(row[5])) for row in log if row[1] == kind and row[3] == pool]


def test_nodes_below_the_reserve_stay_awake_until_the_table_lets_them_go(worlds):
    world = worlds.world_of(worlds.cluster(nodes=3), [worlds.job("x", submit_s=20_000, gpu_model="A100")])
    kept = with_reserve(world, [table((0, "v", 2), (2, "v", 1), (3, "v", 0))])
    assert logged(world, events.SLEEP, 0) == [(100, 2), (100, 1), (100, 0)]
    assert logged(kept, events.SLEEP, 0) == [(100, 2), (7200, 1), (10_800, 0)]
    assert logged(kept, events.SLEEP, 1)[:3] == [(100, 5), (100, 4), (100, 3)], "the other pool has no reserve"


def test_nodes_wake_ahead_of_demand_so_that_nobody_waits_for_them(worlds):
    rows = [worlds.job("x", submit_s=4000, duration_s=600, gpu_model="V100")]
    world = worlds.world_of(worlds.cluster(nodes=3, wake_latency_s=180), rows)
    ahead = with_reserve(world, [table((1, "v", 2), (2, "v", 0))])
    assert logged(ahead, events.WAKE, 0) == [(3600, 0), (3600, 1)]
    assert logged(ahead, events.WAKE_DONE, 0) == [(3780, 0), (3780, 1)]
    starts = [int(run_policy(w, POLICY, REWARD).job_start_s[0, 0]) for w in (world, ahead)]
    assert starts == [4180, 4000]


def test_what_the_reserve_costs_can_be_worked_out(worlds):
    """A third of the hour without a job: one node awake in place of asleep, and nothing else."""
    spec = worlds.cluster(nodes=1, node_idle_w=300.0, gpu_idle_w=25.0, node_sleep_w=20.0)
    world = worlds.world_of(spec, [worlds.job("x", submit_s=7200, duration_s=60, gpu_model="A100")])
    policy = Judge("t", PolicySettings(sleep_after_s=0), TIGHTEST, "")
    awake, asleep = (run_policy(w, policy, REWARD) for w in (with_reserve(world, [table((0, "v", 1), (1, "v", 0))]), world))
    extra_w = 300.0 + 4 * 25.0 - 20.0
    assert awake.energy_kwh[0, 0] - asleep.energy_kwh[0, 0] == pytest.approx(extra_w / 1000 * 1.15, rel=1e-9)


def test_a_busy_node_counts_as_awake(worlds):
    rows = [worlds.job("x", duration_s=7000, gpu_model="V100"), worlds.job("y", submit_s=20_000, gpu_model="A100")]
    world = with_reserve(worlds.world_of(worlds.cluster(nodes=3), rows), [table((0, "v", 2))])
    assert [node for _, node in logged(world, events.SLEEP, 0)][:1] == [2]
    busy_s = int(run_policy(world, POLICY, REWARD).job_end_s[0, 0])
    assert not [at for at, _ in logged(world, events.SLEEP, 0) if 100 < at < busy_s]


def test_a_budget_bounds_what_is_woken(worlds):
    spec = worlds.cluster(nodes=3, node_idle_w=200.0, gpu_idle_w=25.0, node_sleep_w=0.0, wake_power_w=100.0, budget_w=700.0)
    world = worlds.world_of(spec, [worlds.job("x", submit_s=9000, gpu_model="A100")])
    assert len(logged(with_reserve(world, [table((1, "v", 3))]), events.WAKE, 0)) == 2, "three nodes awake would commit 900 W"


def test_the_log_with_reserve_wakes_recomputes_to_the_totals(worlds):
    world = with_reserve(worlds.random_world(3, count=12), [table((1, "v", 2), (3, "a", 2), (5, "v", 0), (6, "a", 1))])
    totals = run_policy(world, POLICY, REWARD, event_log=True)
    bill = recompute(events.events_frame(world, 0, totals.events[0]), facts_of(world, 0, "t", POLICY.settings, REWARD))
    assert bill.sites["energy_kwh"].sum() == pytest.approx(totals.energy_kwh[0].sum(), rel=1e-9)


def test_a_table_is_held_between_its_rows_and_nothing_before_the_first():
    rows = table((2, "b", 4), (0, "a", 1), (1, "a", 3)).sample(frac=1, random_state=1)
    nodes = keep_awake([(rows, START, 1800, 2), (None, START, 1800, 2)], ["a", "b"], 8)
    assert nodes[0].tolist() == [[0, 0, 1, 1, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0, 4, 4]]
    assert not nodes[1].any()


def test_more_nodes_than_there_are_means_all(worlds):
    world = worlds.world_of(worlds.cluster(nodes=2), [worlds.job("x", submit_s=9000, gpu_model="A100")])
    assert not logged(with_reserve(world, [table((0, "v", 99))]), events.SLEEP, 0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (table((0, "z", 1)), "pool 'z'.*v, a"),
        (table((0, "v", -1)), "nodes -1"),
        (table((0, "v", 1.5)), "nodes 1.5"),
        (table((0, "v", np.nan)), "nodes nan"),
        (table((0, "v", 1)).drop(columns="nodes"), "missing column nodes"),
    ],
)
def test_a_wrong_table_is_refused(worlds, rows, said):
    world = worlds.world_of(worlds.cluster(), [worlds.job("x")])
    with pytest.raises(InputError, match=said):
        with_reserve(world, [rows])


def test_every_window_has_its_table(worlds):
    with pytest.raises(InputError, match=r"2 reserve tables.*1 windows"):
        with_reserve(worlds.world_of(worlds.cluster(), [worlds.job("x")]), [None, None])

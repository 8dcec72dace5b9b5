"""Power by level from a log: sums agree with each other and with the replay's own power, and a job's watts are on its GPU."""

from __future__ import annotations

import numpy as np
import pytest

from envs.events import events_frame
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.replay.facts import facts_of
from envs.replay.history import history_of
from envs.replay.levels import level_power
from envs.replay.power import TRANSFER, power_of
from envs.reward import RewardSpec
from telemetry.errors import InputError

STEP_S = 600


def logged(world, name):
    judge = JUDGES[name]
    totals = run_policy(world, judge, RewardSpec(), event_log=True)
    return events_frame(world, 0, totals.events[0]), facts_of(world, 0, name, judge.settings, RewardSpec())


@pytest.mark.parametrize("name", ["k8s_default", "most_allocated", "lookahead"])
def test_levels_add_up_and_sites_are_those_of_the_replay(worlds, name):
    for seed in range(3):
        events, facts = logged(worlds.random_world(seed, count=40, nodes=3), name)
        levels = level_power(events, facts, "10min")
        wide = levels.frame.pivot_table(index="ds", columns="unique_id", values="y")
        for parent in set(levels.parents.values()):
            own = wide[[child for child, of in levels.parents.items() if of == parent]].sum(axis=1)
            np.testing.assert_allclose(wide[parent], own, rtol=1e-9)
        edges = np.arange(0, (len(wide) + 1) * STEP_S, STEP_S)
        told = power_of(events, facts, history_of(events, facts), np.append(edges, edges[-1] + STEP_S))
        told = told[(told["category"] != TRANSFER) & (told["end_s"] <= edges[-1])]
        for site, rows in told.groupby("site"):
            expected_w = rows.groupby("begin_s")["it_kwh"].sum().to_numpy() * 3.6e6 / STEP_S
            np.testing.assert_allclose(wide[f"power/site/{site}"], expected_w, rtol=1e-9)


def test_a_job_s_watts_are_on_its_gpu_while_it_runs(worlds):
    rows = [worlds.job("a", gpus=1, gpu_model="V100", duration_s=1200), worlds.job("z", submit_s=2400, gpus=1, gpu_model="V100")]
    events, facts = logged(worlds.world_of(worlds.cluster(), rows), "most_allocated")
    frame = level_power(events, facts, "10min").frame
    first = facts.node_names[0]
    gpu, other = (frame[frame["unique_id"] == f"power/gpu/{first}/{k}"]["y"].to_numpy() for k in (0, 1))
    idle_w = float(facts.pools["gpu_idle_w"].iloc[0])
    start = int(events.loc[events["event"] == "start", "time_s"].iloc[0])
    assert start < STEP_S
    active_w = facts.curves[(facts.curves["pool"] == 0) & (facts.curves["level"] == 0)].set_index("curve")["gpu_power_w"]
    assert gpu[0] == pytest.approx(active_w[facts.jobs["curve"].iloc[0]])
    assert gpu[0] > idle_w
    assert gpu[2] == pytest.approx(idle_w)
    assert other[0] == pytest.approx(idle_w)
    assert frame["ds"].min() == facts.window_start.tz_localize(None) + np.timedelta64(STEP_S, "s")


def test_what_cannot_be_told_is_refused(worlds):
    events, facts = logged(worlds.world_of(worlds.cluster(), [worlds.job("a", duration_s=60)]), "most_allocated")
    with pytest.raises(InputError, match="at least one bin"):
        level_power(events, facts, "1D")

"""What jobs waited for, and why objectives were missed: worlds and logs made so that one cause is known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from envs.events import events_frame
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.replay.causes import PARTS, RUN_PARTS
from envs.replay.episode import tell
from envs.replay.facts import facts_of
from envs.replay.waits import waits_of
from envs.reward import RewardSpec
from envs.state import PolicySettings

WAIT_PARTS = [f"{part}_s" for part in PARTS if part not in RUN_PARTS]
COLUMNS = ["time_s", "event", "job", "pool", "level", "node", "extra"]


def _told(world, judge, window=0):
    totals = run_policy(world, judge, RewardSpec(), event_log=True)
    facts = facts_of(world, window, judge.name, judge.settings, RewardSpec())
    return tell(events_frame(world, window, totals.events[window]), facts)


def _only(worlds, rows, judge="most_allocated", nodes=1, **pool):
    """Misses of jobs that may run on V100 alone."""
    rows = [row | {"gpu_model": "V100"} for row in rows]
    return _told(worlds.world_of(worlds.cluster(nodes=nodes, **pool), rows), JUDGES[judge]).misses


def _log(*rows):
    return pd.DataFrame([(*row, *(-1,) * (7 - len(row))) for row in rows], columns=COLUMNS)


def test_waits_add_up_to_the_wait(worlds):
    for name in ("lookahead", "easy", "fifo"):
        world = worlds.random_world(5, count=60)
        told = _told(world, JUDGES[name])
        waits = waits_of(told.events)
        first = told.found.jobs["start_s"].to_numpy()[waits["job"]]
        before = waits[waits["end_s"] <= first]
        sums = np.bincount(before["job"], before["end_s"] - before["begin_s"], len(told.found.jobs))
        started = told.found.jobs["start_s"] >= 0
        assert sums[started].tolist() == told.found.jobs["wait_s"][started].tolist()
        late = told.misses[told.misses["miss"] == "late_start"]
        assert late[WAIT_PARTS].sum(axis=1).tolist() == told.found.jobs["wait_s"].to_numpy()[late["job"]].tolist()
        assert (told.misses["unknown_s"] == 0).all(), "the simulator of today refuses for GPUs and queue alone"


def test_waits_by_hand():
    events = _log(
        (0, "arrive", 0),
        (100, "hold", 0, -1, -1, -1, 400),
        (500, "run", 0, 0, 0, -1, 700),
        (700, "start", 0, 0, 0),
        (900, "pause", 0, 0, 0, -1, 1000),
        (1100, "run", 0, 0, 0, -1, 1100),
        (1100, "start", 0, 0, 0),
        (1200, "interrupt", 0, 0, 0),
        (1300, "run", 0, 0, 0, -1, 1300),
        (1300, "start", 0, 0, 0),
        (2000, "end", 0, 0, 0),
    )
    assert waits_of(events).to_numpy()[:, 1:].tolist() == [
        ["blocked", 0, 100],
        ["held", 100, 400],
        ["blocked", 400, 500],
        ["starting", 500, 700],
        ["paused", 900, 1000],
        ["blocked", 1000, 1100],
        ["blocked", 1200, 1300],
    ]


def test_no_free_gpus(worlds):
    misses = _only(worlds, [worlds.job("a", gpus=4, duration_s=9000), worlds.job("b", submit_s=10, gpus=4)])
    assert misses[["job_id", "miss", "cause"]].to_numpy().tolist() == [
        ["b", "late_start", "no_free_gpus"],
        ["b", "missed_deadline", "no_free_gpus"],
    ]
    assert misses["alone"].all()
    assert misses["no_free_gpus_s"].tolist() == [8990.0, 8990.0]


def test_passed_by_later_jobs(worlds):
    rows = [worlds.job("a", gpus=2, duration_s=1000), worlds.job("big", submit_s=10, gpus=4)]
    rows += [worlds.job(f"s{i}", submit_s=20 + 600 * i, gpus=2, duration_s=900) for i in range(6)]
    misses = _only(worlds, rows).set_index("job_id")
    big = misses.loc[["big"]].query("miss == 'late_start'").iloc[0]
    assert big["cause"] == "passed_by_later_jobs"
    assert big["no_free_gpus_s"] == 990.0, "until the first job ended its GPUs were missing anyway"


def test_fragmentation(worlds):
    rows = [worlds.job("a", gpus=3, duration_s=9000), worlds.job("b", gpus=3, duration_s=9000), worlds.job("c", submit_s=5, gpus=2)]
    late = _only(worlds, rows, nodes=2).query("miss == 'late_start'")
    assert late[["job_id", "cause"]].to_numpy().tolist() == [["c", "fragmentation"]]


@pytest.mark.parametrize("judge", ["fifo", "easy"])
def test_queue_order(worlds, judge):
    rows = [worlds.job("a", gpus=3, duration_s=9000), worlds.job("big", submit_s=5, gpus=4, workload_class="training")]
    rows += [worlds.job("small", submit_s=10, gpus=1, duration_s=20_000)]
    late = _only(worlds, rows, judge=judge).query("miss == 'late_start'").set_index("job_id")
    assert late.loc["small", "cause"] == "queue_order"
    assert late.loc["small", "queue_order_s"] == 8990.0


def test_node_wake(worlds):
    late = _only(worlds, [worlds.job("a", submit_s=7200)], wake_latency_s=1500).query("miss == 'late_start'")
    assert late[["cause", "node_wake_s", "over_s"]].to_numpy().tolist() == [["node_wake", 1500.0, 900]]


def test_rejections_name_their_reason(worlds):
    rows = [worlds.job("model", gpu_model="H100"), worlds.job("large", gpus=5), worlds.job("cool", max_watts=4.0)]
    misses = _told(worlds.world_of(worlds.cluster(nodes=1), rows), JUDGES["easy"]).misses.set_index("job_id")
    assert misses["cause"].to_dict() == {"model": "no_gpu_model", "large": "too_large", "cool": "max_watts"}
    assert set(misses["miss"]) == {"rejected"}


# ---------------------------------------------------------------- by hand


def _case(worlds, run_s, speed=None, held_s=0, pool=0, level=0, **job):
    """Misses of one training job of 10,000 s that ran once; all speeds 1 unless given by (pool, level)."""
    facts = facts_of(
        worlds.world_of(worlds.cluster(nodes=1), [worlds.job("x", workload_class="training")]), 0, "x", PolicySettings(), RewardSpec()
    )
    speeds = [(speed or {}).get((p, lv), 1.0) for p, lv in zip(facts.curves["pool"], facts.curves["level"], strict=True)]
    jobs = facts.jobs.assign(**{"duration_s": 10_000, "estimate_s": 10_000, "deadline_s": 12_000} | job)
    facts = dataclasses.replace(facts, curves=facts.curves.assign(speed=speeds), jobs=jobs)
    hold = [(0, "hold", 0, -1, -1, -1, held_s)] if held_s else []
    run = [(held_s, "run", 0, pool, level, -1, held_s), (held_s, "start", 0, pool, level), (held_s + run_s, "end", 0, pool, level)]
    (miss,) = tell(_log((0, "arrive", 0), *hold, *run), facts).misses.to_dict("records")
    return miss


def test_held(worlds):
    miss = _case(worlds, 10_000, held_s=3000)
    assert (miss["cause"], miss["held_s"], miss["over_s"], miss["alone"]) == ("held", 3000.0, 1000, True)


def test_lower_power_level_and_slower_pool(worlds):
    speed = {(0, 0): 0.8, (0, 1): 0.5, (0, 2): 0.5}
    miss = _case(worlds, 20_000, speed=speed, level=1)
    assert miss["cause"] == "lower_power_level"
    assert miss["lower_power_level_s"] == pytest.approx(20_000 - 12_500)
    assert miss["slower_pool_s"] == pytest.approx(12_500 - 10_000)
    assert miss["alone"] is False, "at full power it would have ended at 12,500 s"
    assert _case(worlds, 12_500, speed=speed)["cause"] == "slower_pool"


def test_underestimated_and_impossible(worlds):
    miss = _case(worlds, 10_000, estimate_s=4000, deadline_s=6000)
    assert (miss["cause"], miss["underestimated_duration_s"], miss["alone"]) == ("underestimated_duration", 6000.0, True)
    assert _case(worlds, 10_000, deadline_s=6000)["cause"] == "impossible_objective"


def test_repeated_work_after_an_interruption(worlds):
    facts = facts_of(
        worlds.world_of(worlds.cluster(nodes=1), [worlds.job("x", workload_class="training", gpu_model="V100")]),
        0,
        "x",
        PolicySettings(),
        RewardSpec(),
    )
    jobs = facts.jobs.assign(duration_s=5000, estimate_s=5000, deadline_s=6000)
    facts = dataclasses.replace(facts, curves=facts.curves.assign(speed=1.0), jobs=jobs)
    events = _log(
        (0, "arrive", 0),
        (0, "run", 0, 0, 0, -1, 0),
        (0, "start", 0, 0, 0),
        (4000, "node_down", -1, 0, -1, 0, 5000),
        (4000, "interrupt", 0, 0, 0, 0),
        (5000, "node_up", -1, 0, -1, 0),
        (5000, "run", 0, 0, 0, -1, 5000),
        (5000, "start", 0, 0, 0),
        (10_000, "end", 0, 0, 0),
    )
    (miss,) = tell(events, facts).misses.to_dict("records")
    assert (miss["cause"], miss["interrupted_s"], miss["alone"]) == ("interrupted", 4000.0, True)
    assert miss["no_free_gpus_s"] == 1000.0, "its node was down and there was no other"

"""Outages: maintenance, drawn failures, tables of one's own, and what they do to jobs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from envs.cluster import ClusterSpec, Maintenance, PoolSpec, SiteSpec
from envs.evaluate import evaluate
from envs.events import events_frame
from envs.heuristics import JUDGES, Judge
from envs.kernel import run_policy
from envs.kernel_choosers import TIGHTEST
from envs.outages import check_outages, drawn_failures, maintenance_outages, with_outages
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.windows import WindowTables, prepare_jobs
from envs.world import build_world
from telemetry.errors import InputError

BEGIN = pd.Timestamp("2024-01-01", tz="UTC")
END = BEGIN + pd.Timedelta(days=400)
AWAKE = PolicySettings(sleep_after_s=-1)
HOUR = pd.Timedelta(hours=1)


def failing(first=20, second=30, mtbf=200.0):
    pools = (
        PoolSpec("a", "s", "V100", first, 4, mtbf_hours=mtbf, repair_hours=10.0),
        PoolSpec("b", "s", "A100", second, 4, mtbf_hours=900.0, repair_hours=2.0),
        PoolSpec("never", "s", "A100", 2, 4),
    )
    return ClusterSpec("t", (SiteSpec("s"),), pools)


def hours(spans):
    return spans.dt.total_seconds() / 3600


def test_failures_come_as_mtbf_and_repair_hours_say():
    table = drawn_failures(failing(), BEGIN, END, seed=3)
    assert not table["node"].str.startswith("never").any()
    ours = table[table["node"].str.startswith("a-")]
    assert hours(ours["end"] - ours["begin"]).mean() == pytest.approx(10.0, rel=0.1)
    ups = pd.concat([hours(rows["begin"].shift(-1) - rows["end"]).dropna() for _, rows in ours.groupby("node")])
    assert (ups >= -1 / 3600).all()
    assert ups.mean() == pytest.approx(200.0, rel=0.1)
    assert ups.std() == pytest.approx(200.0, rel=0.15)


def test_a_node_fails_at_the_same_moments_whatever_else_there_is():
    table = drawn_failures(failing(), BEGIN, END, seed=3)
    small = drawn_failures(failing(first=4, second=1), BEGIN, END, seed=3)
    same = table[table["node"].isin([f"a-{i:04d}" for i in range(4)] + ["b-0000"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(small, same)
    begin, end = BEGIN + pd.Timedelta(days=100), BEGIN + pd.Timedelta(days=103)
    inside = table[(table["end"] > begin) & (table["begin"] < end)].reset_index(drop=True)
    assert len(inside) > 5
    pd.testing.assert_frame_equal(drawn_failures(failing(), begin, end, seed=3), inside)
    assert not drawn_failures(failing(), BEGIN, END, seed=4).equals(table)


def test_failures_before_1970_and_in_no_pool():
    old = pd.Timestamp("1969-01-01", tz="UTC")
    assert len(drawn_failures(failing(), old, old + pd.Timedelta(days=30), 0)) > 10
    assert drawn_failures(failing(mtbf=0.0, second=1), BEGIN, BEGIN + HOUR, 0).empty
    with pytest.raises(InputError, match="repair_hours 0"):
        drawn_failures(replace(failing(), pools=(PoolSpec("x", "s", "V100", 1, 1, mtbf_hours=5.0, repair_hours=0.0),)), BEGIN, END, 0)


def test_maintenance_of_the_cluster_file():
    spec = replace(failing(), maintenance=(Maintenance("b", "2024-01-02T03:00", "2024-01-02T05:00+01:00", first_node=2, nodes=2),))
    table = maintenance_outages(spec)
    assert table["node"].tolist() == ["b-0002", "b-0003"]
    assert set(table["begin"]) == {pd.Timestamp("2024-01-02T03:00Z")}
    assert set(table["end"]) == {pd.Timestamp("2024-01-02T04:00Z")}
    with pytest.raises(InputError, match=r"maintenance: end 2024-01-02T03:00:00\+00:00 of node 'b-0000'"):
        maintenance_outages(replace(spec, maintenance=(Maintenance("b", "2024-01-02T04:00", "2024-01-02T03:00"),)))
    with pytest.raises(InputError, match="'next week' is no time"):
        maintenance_outages(replace(spec, maintenance=(Maintenance("b", "next week", "2024-01-02T03:00"),)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("c-0000", "2024-01-01", "2024-01-02")], "unknown node 'c-0000', row 0"),
        ([("a-0000", "2024-01-01", "2024-01-01")], "end 2024-01-01T00:00:00"),
        ([("a-0000", "2024-01-01", None)], "is no time"),
    ],
)
def test_wrong_tables_say_what_is_wrong(rows, message):
    with pytest.raises(InputError, match=message):
        check_outages(pd.DataFrame(rows, columns=["node", "begin", "end"]), failing())
    with pytest.raises(InputError, match="missing column end"):
        check_outages(pd.DataFrame({"node": [], "begin": []}), failing())


def test_an_interrupted_job_loses_what_its_checkpoint_did_not_save(worlds):
    """By hand: down after 4,000 s of work, checkpoints every 1,500 s, so 3,000 s are kept; 240 s to load them after the repair."""
    spec = worlds.cluster(nodes=1)
    row = worlds.job(
        "long", duration_s=9_000, workload_class="training", gpu_model="V100", checkpoint_s=1500, restart_s=240, preemptible=True
    )
    down = pd.DataFrame(
        {"node": ["v-0000"], "begin": [worlds.START + pd.Timedelta(seconds=4000)], "end": [worlds.START + pd.Timedelta(seconds=5000)]}
    )
    window = WindowTables(worlds.START, prepare_jobs(pd.DataFrame([row]), spec), worlds.grid(), 3600)
    world = build_world(spec, with_outages([window], spec, 0, check_outages(down, spec)))
    totals = run_policy(world, Judge("t", AWAKE, TIGHTEST, ""), RewardSpec(), event_log=True)
    speed = world.static.speed[0, 0, 0]
    assert speed == 1.0
    assert totals.job_end_s[0, 0] == 5000 + 240 + (9000 - 3000)
    log = events_frame(world, 0, totals.events[0])
    assert log.loc[log["event"].isin(["start", "interrupt", "node_up", "end"]), "time_s"].tolist() == [0, 4000, 5000, 5000, 11240]
    assert totals.busy_gpu_s[0] == 4000 + 6240
    dynamic = (world.static.gpu_power_w[0, 0, 0] - 30) + 20
    share = (250 + 4 * 30) / 4
    assert totals.job_energy_kwh[0, 0] == pytest.approx((dynamic + share) * 1.15 * 10_240 / 3.6e6, rel=1e-9)


def test_outages_are_the_same_under_every_policy_and_are_told(worlds):
    spec = worlds.cluster(nodes=3, mtbf_hours=10.0, repair_hours=3.0)
    jobs = prepare_jobs(pd.DataFrame(worlds.random_rows(5, 60)), spec)
    window = WindowTables(worlds.START, jobs, worlds.grid(), 40_000)
    windows = with_outages([window], spec, 11)
    world = build_world(spec, windows)
    logs = {}
    for name in ("k8s_default", "easy", "lookahead"):
        totals = run_policy(world, JUDGES[name], RewardSpec(), event_log=True)
        log = events_frame(world, 0, totals.events[0])
        logs[name] = set(map(tuple, log.loc[log["event"] == "node_down", ["time_s", "node", "extra"]].to_numpy()))
        row = evaluate(world, {name: JUDGES[name]}).iloc[0]
        spans = [min(end, totals.end_s[0]) - begin for begin, _, end in logs[name]]
        assert row["down_node_hours"] == pytest.approx(sum(spans) / 3600)
        assert (log["event"] == "interrupt").any()
    common = min(max(time for time, _, _ in log) for log in logs.values())
    assert common > 20_000
    early = [{entry for entry in log if entry[0] <= common} for log in logs.values()]
    assert early[0] == early[1] == early[2]
    assert with_outages([window], worlds.cluster(nodes=3), 11) == [window]


def test_seed_moves_failures_and_windows_keep_their_own(worlds):
    spec = worlds.cluster(nodes=3, mtbf_hours=100.0)
    own = pd.DataFrame({"node": ["v-0001"], "begin": [worlds.START], "end": [worlds.START + HOUR]})
    window = WindowTables(worlds.START, prepare_jobs(pd.DataFrame([worlds.job("x")]), spec), worlds.grid(), 3600, outages=own)
    first, second = (with_outages([window], spec, seed)[0].outages for seed in (0, 1))
    assert not first.equals(second)
    assert ((first["node"] == "v-0001") & (first["begin"] == worlds.START)).any()
    assert np.array_equal(
        build_world(spec, with_outages([window], spec, 0)).outages[0], build_world(spec, [replace(window, outages=first)]).outages[0]
    )

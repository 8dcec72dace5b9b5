"""A cluster restored from a snapshot asks the very question, with the very observation, that the simulator asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from envs import fields as fx
from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.kernel_queue import INDEX_BITS, INDEX_MASK
from envs.reward import RewardSpec
from envs.snapshot import NodeNow, Placement, Snapshot, restore
from envs.state import AWAKE, PLACED, RUNNING, WAITING, WAKING
from envs.windows import WindowTables
from envs.world import build_world
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

START = pd.Timestamp("2026-02-02T00:00:00Z")
CLUSTER = ClusterSpec(
    name="two",
    sites=(SiteSpec("west"), SiteSpec("east", pue_base=1.3)),
    pools=(
        PoolSpec("west-v100", "west", "V100", nodes=3, gpus_per_node=4),
        PoolSpec("east-a40", "east", "A40", nodes=2, gpus_per_node=2, wake_latency_s=240),
    ),
)


def grid_table(hours_before=30, hours_after=40):
    rng = np.random.default_rng(5)
    times = pd.date_range(START - pd.Timedelta(hours=hours_before), START + pd.Timedelta(hours=hours_after), freq="h")
    frames = [
        pd.DataFrame(
            {
                "time": times,
                "site": site,
                "price_usd_per_kwh": rng.uniform(0.02, 0.3, len(times)),
                "carbon_g_per_kwh": rng.uniform(50, 500, len(times)),
                "renewable_fraction": rng.uniform(0, 1, len(times)),
                "temperature_c": rng.uniform(5, 30, len(times)),
            }
        )
        for site in ("west", "east")
    ]
    return pd.concat(frames, ignore_index=True)


def job_table(count=30):
    rng = np.random.default_rng(6)
    submit = np.sort(rng.integers(0, 10 * 3600, count))
    return pd.DataFrame(
        {
            "job_id": [f"j{i:03d}" for i in range(count)],
            "submit_time": START + pd.to_timedelta(submit, unit="s"),
            "duration_s": rng.integers(600, 20_000, count),
            "requested_duration_s": rng.integers(900, 25_000, count).astype(float),
            "gpus": rng.choice([1.0, 2.0], count),
            "workers": rng.choice([1, 1, 2], count),
            "workload_class": rng.choice(WORKLOAD_CLASSES, count),
            "priority": rng.integers(0, 2, count),
            "max_watts": rng.choice([np.inf, np.inf, 400.0], count),
        }
    )


def photograph(simulator: Simulator, jobs: pd.DataFrame, grid: pd.DataFrame) -> Snapshot:
    """What an observer of the simulated cluster would write into a state file."""
    state, world = simulator.state, simulator.world

    def at(second):
        return START + pd.Timedelta(seconds=int(second))

    names = CLUSTER.node_names
    nodes = []
    for index, name in enumerate(names):
        mode = int(state.node_state[0, index])
        since = at(state.idle_since_s[0, index]) if mode == AWAKE else None
        ready = at(state.wake_end_s[0, index]) if mode == WAKING else None
        nodes.append(NodeNow(name, {AWAKE: "awake", WAKING: "waking"}.get(mode, "sleeping"), since, ready))
    placements, present = {}, []
    for job, job_id in enumerate(world.job_ids[0]):
        status = int(state.status[0, job])
        if status in (PLACED, RUNNING):
            record, where = int(state.record_head[0, job]), []
            while record >= 0:
                where.append(names[state.record_node[0, record]])
                record = int(state.record_next[0, record])
            pool = CLUSTER.pools[state.pool[0, job]].name
            placements[job_id] = Placement(pool, int(state.level[0, job]), at(state.begin_s[0, job]), tuple(where))
        if status in (PLACED, RUNNING, WAITING):
            present.append(job_id)
    timers = int(simulator.packed_world.o[fx.I_TIMERS])
    due = simulator.packed_state.i[0, timers : timers + int(state.n_timers[0])]
    holds = [key for key in due if state.status[0, int(key & INDEX_MASK)] == WAITING]
    asleep = {world.job_ids[0][int(key & INDEX_MASK)]: at(key >> INDEX_BITS) for key in holds}
    return Snapshot(
        cluster=CLUSTER,
        time=at(state.time_s[0]),
        nodes=tuple(nodes),
        jobs=jobs[jobs["job_id"].isin(present)].drop(columns="duration_s"),
        placements=placements,
        asleep_until=asleep,
        grid=grid,
        last_decision=at(state.last_decision_s[0]),
    )


def test_restored_cluster_has_committed_what_it_runs(monkeypatch):
    pools = tuple(replace(pool, budget_w=1e6, nodes_per_rack=2, rack_budget_w=1e6) for pool in CLUSTER.pools)
    monkeypatch.setitem(globals(), "CLUSTER", replace(CLUSTER, pools=pools))
    jobs, grid = job_table(12), grid_table()
    policy, reward = JUDGES["lookahead"], RewardSpec()
    simulator = Simulator(build_world(CLUSTER, [WindowTables(START, jobs, grid)]), 1, policy.settings, reward)
    simulator.reset([0])
    racks = slice(*(int(simulator.packed_world.o[at]) for at in (fx.I_RACK, fx.I_TREE)))
    seen = set()
    while not simulator.done[0]:
        restored = restore(photograph(simulator, jobs, grid), policy.settings, reward)
        assert restored.state.committed_nw[0].tolist() == simulator.state.committed_nw[0].tolist()
        assert restored.state.site_committed_nw[0].tolist() == simulator.state.site_committed_nw[0].tolist()
        again = slice(*(int(restored.packed_world.o[at]) for at in (fx.I_RACK, fx.I_TREE)))
        assert restored.packed_state.i[0, again].tolist() == simulator.packed_state.i[0, racks].tolist()
        seen.add(tuple(simulator.state.committed_nw[0].tolist()))
        simulator.step(policy.act(simulator.observe(), simulator.layout))
    assert len(seen) > 5


@pytest.mark.parametrize(("judge", "count"), [("lookahead", 12), ("k8s_default", 30), ("fifo", 30), ("easy", 30)])
def test_restored_cluster_observes_what_the_simulator_observes(judge, count):
    jobs, grid = job_table(count), grid_table()
    policy, reward = JUDGES[judge], RewardSpec()
    world = build_world(CLUSTER, [WindowTables(START, jobs, grid)])
    simulator = Simulator(world, 1, policy.settings, reward)
    simulator.reset([0])
    questions = 0
    while not simulator.done[0]:
        observation = simulator.observe().copy()
        restored = restore(photograph(simulator, jobs, grid), policy.settings, reward)
        again = restored.observe()
        job_id = world.job_ids[0][simulator.state.asking[0]]
        assert restored.world.job_ids[0][restored.state.asking[0]] == job_id
        np.testing.assert_array_equal(restored.state.mask, simulator.state.mask)
        np.testing.assert_allclose(again, observation, rtol=0, atol=2e-6, err_msg=f"question {questions}, job {job_id}")
        simulator.step(policy.act(observation, simulator.layout))
        questions += 1
    assert questions >= 0.9 * count


@pytest.fixture
def calm():
    """An idle cluster with one waiting job."""
    jobs = (
        job_table(1).drop(columns="duration_s").assign(submit_time=START, gpus=2.0, workers=1, max_watts=np.inf, workload_class="training")
    )
    nodes = tuple(NodeNow(name, "awake") for name in CLUSTER.node_names)
    return Snapshot(CLUSTER, START + pd.Timedelta(minutes=30), nodes, jobs, {}, {}, grid_table())


def ask(snapshot):
    simulator = restore(snapshot, JUDGES["lookahead"].settings, RewardSpec())
    simulator.observe()
    return simulator


def test_later_grid_rows_change_nothing(calm):
    first = ask(calm).observations.copy()
    shown = calm.grid[calm.grid["time"] <= calm.time]
    future = calm.grid.assign(price_usd_per_kwh=calm.grid["price_usd_per_kwh"].where(calm.grid["time"] <= calm.time, 99.0))
    for grid in (shown, future):
        np.testing.assert_array_equal(ask(Snapshot(**{**vars(calm), "grid": grid})).observations, first)


def test_unavailable_nodes_take_no_jobs(calm):
    nodes = tuple(NodeNow(node.name, "unavailable" if node.name.startswith("west") else "awake") for node in calm.nodes)
    simulator = ask(Snapshot(**{**vars(calm), "nodes": nodes}))
    np.testing.assert_array_equal(simulator.state.mask[0], [True, False, False, False, True, True, True])
    everything = tuple(NodeNow(node.name, "unavailable") for node in calm.nodes)
    assert ask(Snapshot(**{**vars(calm), "nodes": everything})).done[0]


def test_shares_of_one_gpu_fill_it_before_the_next(calm):
    rows = [calm.jobs.assign(job_id=f"s{i}", gpus=0.5, workload_class="interactive") for i in range(4)]
    placements = {f"s{i}": Placement("east-a40", 0, START, ("east-a40-0000",)) for i in range(4)}
    snapshot = Snapshot(**{**vars(calm), "jobs": pd.concat([calm.jobs, *rows], ignore_index=True), "placements": placements})
    simulator = ask(snapshot)
    node = CLUSTER.node_names.index("east-a40-0000")
    assert simulator.state.node_free[0, node] == 0
    assert simulator.state.pool_free[0].tolist() == [12_000, 2_000]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": ()}, "5 nodes are not listed"),
        ({"nodes": tuple(NodeNow(n, "awake") for n in (*CLUSTER.node_names, "ghost"))}, "is not in the cluster"),
        ({"nodes": tuple(NodeNow(n, "asleep") for n in CLUSTER.node_names)}, "state 'asleep'"),
        ({"time": START - pd.Timedelta(hours=1)}, "at or before the time of the state"),
        ({"time": START + pd.Timedelta(days=30)}, "newest row"),
        ({"placements": {"j000": Placement("north", 0, START, ("east-a40-0000",))}}, "unknown pool 'north'"),
        ({"placements": {"j000": Placement("east-a40", 3, START, ("east-a40-0000",))}}, "level 3"),
        ({"placements": {"j000": Placement("east-a40", 0, START, ("west-v100-0000",))}}, "is not in pool"),
        ({"placements": {"j000": Placement("east-a40", 0, START, ("east-a40-0000",) * 2)}}, "2 nodes for 1 workers"),
    ],
)
def test_inconsistent_snapshots_are_refused(calm, change, message):
    with pytest.raises(InputError, match=message):
        ask(Snapshot(**{**vars(calm), **change}))


def test_gpus_used_twice_are_refused(calm):
    jobs = pd.concat([calm.jobs, calm.jobs.assign(job_id="other")], ignore_index=True)
    placements = {name: Placement("east-a40", 0, START, ("east-a40-0000",)) for name in ("j000", "other")}
    with pytest.raises(InputError, match="GPUs are used twice"):
        ask(Snapshot(**{**vars(calm), "jobs": jobs, "placements": placements}))

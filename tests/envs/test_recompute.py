"""Totals from the event log alone: against the simulator on random worlds, and by hand where an event is rare."""

import numpy as np
import pandas as pd
import pytest

from envs.events import events_frame
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.replay.facts import facts_of, read_files, to_files
from envs.replay.history import history_of
from envs.replay.recompute import UNITS, held_milli, recompute
from envs.reward import RewardSpec
from envs.state import IDLE_STATES, PolicySettings
from telemetry.errors import InputError

REWARD = RewardSpec(w_carbon=0.7, w_energy=0.3, w_sla=1.1, late_cap_hours=2.0)
COLUMNS = ["time_s", "event", "job", "pool", "level", "node", "extra"]


def _agree(recomputed, totals, world, m):
    near = {"rel": 1e-9, "abs": 1e-9}
    for unit, whole in zip(UNITS, (totals.energy_kwh, totals.cost_usd, totals.carbon_kg), strict=True):
        assert recomputed.sites[unit].to_numpy() == pytest.approx(whole[m], **near)
    for unit, idle in zip(UNITS, (totals.idle_energy_kwh, totals.idle_cost_usd, totals.idle_carbon_kg), strict=True):
        for index, state in enumerate(IDLE_STATES):
            assert recomputed.sites[f"{state}_{unit}"].to_numpy() == pytest.approx(idle[m, :, index], **near)
    assert recomputed.sites["penalty_usd"].to_numpy() == pytest.approx(totals.penalty_usd[m], **near)
    n = int(world.jobs.count[m])
    for name, values in (
        ("energy_kwh", totals.job_energy_kwh),
        ("cost_usd", totals.job_cost_usd),
        ("carbon_kg", totals.job_carbon_kg),
        ("penalty_usd", totals.job_penalty_usd),
    ):
        assert recomputed.jobs[name].to_numpy() == pytest.approx(values[m, :n], **near)
    assert recomputed.jobs["start_s"].tolist() == totals.job_start_s[m, :n].tolist()
    assert recomputed.jobs["end_s"].tolist() == totals.job_end_s[m, :n].tolist()
    waits = np.where(totals.job_start_s[m, :n] >= 0, totals.job_start_s[m, :n] - world.jobs.submit_s[m, :n], -1)
    assert recomputed.jobs["wait_s"].tolist() == waits.tolist()
    assert recomputed.jobs["late_start"].tolist() == totals.job_late_start[m, :n].tolist()
    assert recomputed.jobs["missed_deadline"].tolist() == totals.job_missed_deadline[m, :n].tolist()
    assert recomputed.jobs["rejected"].tolist() == totals.job_rejected[m, :n].tolist()
    assert recomputed.jobs["busy_gpu_s"].sum() == pytest.approx(totals.busy_gpu_s[m], **near)
    assert recomputed.objective_usd == pytest.approx(totals.objective_usd[m], **near)
    assert recomputed.end_s == totals.end_s[m]


@pytest.mark.parametrize("name", ["k8s_default", "sjf", "easy", "greedy_cost", "lookahead"])
def test_totals_of_random_worlds(worlds, name):
    for seed in range(6):
        world = worlds.random_world(seed, count=40, windows=2)
        totals = run_policy(world, JUDGES[name], REWARD, event_log=True)
        for m in range(2):
            facts = facts_of(world, m, name, JUDGES[name].settings, REWARD)
            _agree(recompute(events_frame(world, m, totals.events[m]), facts), totals, world, m)


def test_the_files_hold_everything(worlds, tmp_path):
    world = worlds.random_world(3, count=40)
    judge = JUDGES["lookahead"]
    totals = run_policy(world, judge, REWARD, event_log=True)
    facts = facts_of(world, 0, "lookahead", judge.settings, REWARD)
    for name, content in to_files(events_frame(world, 0, totals.events[0]), facts).items():
        (tmp_path / name).write_bytes(content)
    events, read = read_files(tmp_path)
    assert read.settings == judge.settings
    assert read.window_start == world.window_start[0]
    assert read.node_names == list(world.cluster.node_names)
    _agree(recompute(events, read), totals, world, 0)
    (tmp_path / "grid.parquet").unlink()
    with pytest.raises(InputError, match=r"grid\.parquet"):
        read_files(tmp_path)


# ---------------------------------------------------------------- by hand


def _facts(worlds, rows, **pool):
    """Two sites with one pool each of one 4-GPU node; 0.1 USD/kWh, 0.4 kg/kWh, PUE 1.15 everywhere."""
    world = worlds.world_of(worlds.cluster(nodes=1), rows)
    facts = facts_of(world, 0, "hand", PolicySettings(), RewardSpec())
    return facts if not pool else _with(facts, pools=facts.pools.assign(**pool))


def _with(facts, **tables):
    return type(facts)(**{**{name: getattr(facts, name) for name in facts.__dataclass_fields__}, **tables})


def _log(*rows):
    return pd.DataFrame([(*row, *(-1,) * (7 - len(row))) for row in rows], columns=COLUMNS)


def _dynamic_w(facts, pool, level, gpus, utilization=1.0):
    row = facts.curves.query(f"pool == {pool} and level == {level} and curve == {int(facts.jobs['curve'].iloc[0])}").iloc[0]
    return gpus * (row["gpu_power_w"] - 30.0) * utilization + gpus * 20.0


AWAKE_W = 250.0 + 4 * 30.0
PER_W_HOUR = 1.15 / 1000.0


def test_levels_pauses_and_migration_by_hand(worlds):
    facts = _facts(worlds, [worlds.job("x", duration_s=50_000, gpus=2, workload_class="training")])
    events = _log(
        (0, "arrive", 0),
        (0, "run", 0, 0, 0, -1, 0),
        (0, "start", 0, 0, 0),
        (3600, "level", 0, 0, 2),
        (7200, "pause", 0, 0, 2, -1, 9000),
        (9000, "run", 0, 0, 1, -1, 9000),
        (9000, "start", 0, 0, 1),
        (12600, "migrate", 0, 1, 0, -1, 14400),
        (14400, "start", 0, 1, 0),
        (18000, "end", 0, 1, 0),
    )
    done = recompute(events, facts)
    east = 5 * AWAKE_W + _dynamic_w(facts, 0, 0, 2) + _dynamic_w(facts, 0, 2, 2) + _dynamic_w(facts, 0, 1, 2)
    west = 5 * AWAKE_W + _dynamic_w(facts, 1, 0, 2)
    assert done.sites["energy_kwh"].tolist() == pytest.approx([east * PER_W_HOUR, west * PER_W_HOUR], rel=1e-12)
    assert done.sites["cost_usd"].sum() == pytest.approx(0.1 * (east + west) * PER_W_HOUR, rel=1e-12)
    charged = east + west - 10 * AWAKE_W + 4 * 2 * AWAKE_W / 4
    assert done.jobs["energy_kwh"].iloc[0] == pytest.approx(charged * PER_W_HOUR, rel=1e-12)
    assert done.sites["idle_energy_kwh"].sum() == pytest.approx((10 - 2) * AWAKE_W * PER_W_HOUR, rel=1e-12)
    assert history_of(events, facts).stays["ending"].tolist() == ["pause", "migrate", "end"]


def test_outages_by_hand(worlds):
    facts = _facts(worlds, [worlds.job("x", duration_s=4000, gpus=4, workload_class="training")])
    events = _log(
        (0, "arrive", 0),
        (0, "run", 0, 0, 0, -1, 0),
        (0, "start", 0, 0, 0),
        (1800, "node_down", -1, 0, -1, 0, 5400),
        (1800, "interrupt", 0, 0, 0, 0),
        (3600, "sleep", -1, 1, -1, 1),
        (5400, "node_up", -1, 0, -1, 0),
        (5400, "run", 0, 1, 0, -1, 5580),
        (5400, "wake", -1, 1, -1, 1, 5580),
        (5580, "wake_done", -1, 1, -1, 1),
        (5580, "start", 0, 1, 0),
        (9180, "end", 0, 1, 0),
    )
    done = recompute(events, facts)
    hours_up = (1800 + 9180 - 5400) / 3600
    east = hours_up * AWAKE_W + 0.5 * _dynamic_w(facts, 0, 0, 4)
    west = 2 * AWAKE_W + 0.5 * 15.0 + 180 / 3600 * 400.0 + _dynamic_w(facts, 1, 0, 4)
    assert done.sites["energy_kwh"].tolist() == pytest.approx([east * PER_W_HOUR, west * PER_W_HOUR], rel=1e-12)
    assert done.jobs["interruptions"].tolist() == [1]
    assert done.jobs["start_s"].tolist() == [0]
    assert done.sites.loc["west", "sleeping_energy_kwh"] == pytest.approx(0.5 * 15.0 * PER_W_HOUR, rel=1e-12)


def test_leases_data_contexts_and_slices_by_hand(worlds):
    rows = [worlds.job("a", gpus=0.5, workload_class="realtime_inference"), worlds.job("b", gpus=1, workload_class="realtime_inference")]
    facts = _facts(worlds, rows, gpu_context_w=25.0, mig_slices=7.0, cpu_w_per_cpu=3.0)
    jobs = facts.jobs.assign(until_s=[7200, 900], service=[0, 0], cpu_milli=[2000, 0], data_site=[1, -1], transfer_kwh=[0.25, 0.0])
    jobs["latest_start_s"] = 300
    loads = pd.DataFrame({"service": 0, "step": [0, 1], "load": [0.4, 0.8]})
    facts = _with(facts, jobs=jobs, loads=loads)
    events = _log(
        (0, "arrive", 0),
        (0, "arrive", 1),
        (0, "run", 0, 0, 0, -1, 0),
        (0, "start", 0, 0, 0),
        (900, "withdraw", 1),
        (3600, "grid", -1, -1, -1, -1, 1),
        (7200, "end", 0, 0, 0),
    )
    done = recompute(events, facts)
    row = facts.curves.query(f"pool == 0 and level == 0 and curve == {int(jobs['curve'].iloc[0])}").iloc[0]
    gpus = 4000 // 7 / 1000
    both = min(1.0, 0.4 / row["speed"]) + min(1.0, 0.8 / row["speed"])
    dynamic_wh = 2 * gpus * (25.0 + 20.0) + 2 * 2 * 3.0 + gpus * (row["gpu_power_w"] - 30.0 - 25.0) * both
    assert done.sites.loc["east", "energy_kwh"] == pytest.approx((2 * AWAKE_W + dynamic_wh) * PER_W_HOUR + 0.25, rel=1e-12)
    assert done.jobs["energy_kwh"].iloc[0] == pytest.approx((dynamic_wh + 2 * gpus * AWAKE_W / 4) * PER_W_HOUR + 0.25, rel=1e-12)
    assert done.jobs["withdrawn"].tolist() == [False, True]
    assert done.jobs["penalty_usd"].tolist() == pytest.approx([0.0, 0.25 + 0.5 * 600 / 3600])


def test_shares_are_rounded_up_to_profiles():
    assert held_milli(np.array([1, 143, 144, 286, 500, 600, 999, 1000, 3000]), 7).tolist() == [
        *(142, 142, 285, 285, 571, 1000, 1000, 1000, 3000),
    ]
    assert held_milli(np.array([0, 200, 251, 700]), 4).tolist() == [0, 250, 500, 750]
    assert held_milli(np.array([123]), 0).tolist() == [123]


def test_a_log_that_is_not_whole_is_refused(worlds):
    facts = _facts(worlds, [worlds.job("x")])
    with pytest.raises(InputError, match="job 0 never ends"):
        recompute(_log((0, "run", 0, 0, 0, -1, 0), (0, "start", 0, 0, 0)), facts)
    with pytest.raises(InputError, match="'end' of job 0 at second 5"):
        recompute(_log((5, "end", 0, 0, 0)), facts)
    with pytest.raises(InputError, match="unknown event 'jump'"):
        recompute(_log((5, "jump", 0, 0, 0)), facts)

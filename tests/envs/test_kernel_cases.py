"""The compiled simulator on cases computed by hand."""

import numpy as np
import pytest

from envs import events
from envs.events import events_frame
from envs.heuristics import JUDGES, Judge
from envs.kernel import Simulator, run_policy
from envs.kernel_choosers import LOOKAHEAD, TIGHTEST
from envs.reward import RewardSpec
from envs.state import PolicySettings
from telemetry.errors import InputError

REWARD = RewardSpec()
AWAKE = PolicySettings(sleep_after_s=-1)


def _watts(spec, world, pool, level, kind, gpus, utilization=1.0):
    p = spec.pools[pool]
    active = world.static.gpu_power_w[pool, level, kind]
    dynamic = gpus * (active - p.gpu_idle_w) * utilization + gpus * p.cpu_w_per_gpu
    return dynamic, gpus * (p.node_idle_w + p.gpus_per_node * p.gpu_idle_w) / p.gpus_per_node


def test_energy_of_one_job_by_hand(worlds):
    spec = worlds.cluster(nodes=1)
    world = worlds.world_of(spec, [worlds.job("one", duration_s=7200, gpus=2, gpu_model="V100", gpu_utilization=0.8)])
    totals = run_policy(world, Judge("t", AWAKE, TIGHTEST, ""), REWARD)
    speed = world.static.speed[0, 0, 4]
    seconds = int(np.ceil(7200 / speed))
    dynamic, share = _watts(spec, world, 0, 0, 4, 2, 0.8)
    pue = 1.15
    assert totals.end_s[0] == seconds
    assert totals.job_energy_kwh[0, 0] == pytest.approx((dynamic + share) * pue * seconds / 3.6e6, rel=1e-12)
    assert totals.job_cost_usd[0, 0] == pytest.approx(totals.job_energy_kwh[0, 0] * 0.1, rel=1e-12)
    assert totals.job_carbon_kg[0, 0] == pytest.approx(totals.job_energy_kwh[0, 0] * 0.4, rel=1e-12)
    base = 250 + 4 * 30
    assert totals.energy_kwh[0, 0] == pytest.approx((base + dynamic) * pue * seconds / 3.6e6, rel=1e-12)
    assert totals.energy_kwh[0, 1] == pytest.approx(base * pue * seconds / 3.6e6, rel=1e-12)


def test_deferred_job_pays_the_price_of_its_hours(worlds):
    """Midnight is dear and 5 to 8 is cheap: look-ahead holds the job until 5 and its cost is exact."""
    price = np.full(24, 0.30)
    price[5:8] = 0.05
    spec = worlds.cluster(nodes=1)
    row = worlds.job("later", duration_s=3600, gpus=1, workload_class="training", gpu_model="V100")
    world = worlds.world_of(spec, [row], worlds.grid(price=price))
    settings = PolicySettings(sleep_after_s=-1, hold_s=900)
    totals = run_policy(world, Judge("t", settings, LOOKAHEAD, ""), RewardSpec(w_carbon=0.0))
    assert totals.job_start_s[0, 0] == 5 * 3600
    level = totals.job_level[0, 0]
    seconds = int(np.ceil(3600 / world.static.speed[0, level, 0]))
    assert seconds <= 3 * 3600
    watts = sum(_watts(spec, world, 0, level, 0, 1))
    assert totals.job_cost_usd[0, 0] == pytest.approx(watts * 1.15 * seconds / 3.6e6 * 0.05, rel=1e-12)


def test_wake_takes_time_and_energy(worlds):
    spec = worlds.cluster(nodes=1, wake_latency_s=200, wake_power_w=500.0, node_sleep_w=10.0)
    world = worlds.world_of(spec, [worlds.job("woken", submit_s=1000, duration_s=600, gpu_model="V100")])
    totals = run_policy(world, Judge("t", PolicySettings(sleep_after_s=0), TIGHTEST, ""), REWARD, event_log=True)
    assert totals.job_start_s[0, 0] == 1200
    assert totals.idle_energy_kwh[0, 0, 1] == pytest.approx(500 * 200 * 1.15 / 3.6e6, rel=1e-12)
    assert totals.idle_energy_kwh[0, 0, 2] == pytest.approx(10 * 1000 * 1.15 / 3.6e6, rel=1e-12)
    frame = events_frame(world, 0, totals.events[0])
    assert frame["event"].tolist() == ["sleep", "sleep", "arrive", "run", "wake", "wake_done", "start", "end", "sleep"]
    assert frame["job_id"].iloc[3] == "woken"
    assert frame["node_name"].iloc[4] == "v-0000"


def test_penalties_for_late_start_and_missed_deadline(worlds):
    spec = worlds.cluster(nodes=1, gpus=1)
    rows = [worlds.job("first", duration_s=10_000, gpu_model="V100"), worlds.job("second", submit_s=1, duration_s=10_000, gpu_model="V100")]
    world = worlds.world_of(spec, rows)
    totals = run_policy(world, Judge("t", AWAKE, TIGHTEST, ""), REWARD)
    seconds = int(np.ceil(10_000 / world.static.speed[0, 0, 4]))
    late = seconds - (1 + 600)
    missed = 2 * seconds - (1 + 600 + 15_000)
    expected = sum(0.25 + 0.5 * min(s / 3600, 12.0) for s in (late, missed) if s > 0)
    assert totals.job_late_start[0].tolist() == [False, True]
    assert totals.job_missed_deadline[0].tolist() == [False, missed > 0]
    assert totals.job_penalty_usd[0, 1] == pytest.approx(expected)


def test_impossible_jobs_are_rejected_with_their_reason(worlds):
    rows = [
        worlds.job("model", gpu_model="NoSuchGPU"),
        worlds.job("large", gpus=8),
        worlds.job("gang", gpus=4, workers=5),
        worlds.job("watts", gpus=1, max_watts=20.0),
        worlds.job("fine", gpus=4, workers=2),
    ]
    totals = run_policy(worlds.world_of(worlds.cluster(), rows), JUDGES["k8s_default"], REWARD)
    by_id = dict(zip(("fine", "gang", "large", "model", "watts"), totals.job_rejected[0], strict=True))
    assert by_id == {"fine": 0, "gang": 2, "large": 2, "model": 1, "watts": 3}


def test_max_watts_leaves_only_levels_below_it(worlds):
    spec = worlds.cluster()
    watts = worlds.world_of(spec, [worlds.job("x")]).static.gpu_power_w[0, :, 0]
    assert watts[2] < watts[0]
    limit = float(watts[2] + watts[0]) / 2
    row = worlds.job("capped", gpu_model="V100", max_watts=limit, workload_class="training")
    simulator = Simulator(worlds.world_of(spec, [row]), 1, AWAKE, REWARD)
    simulator.reset([0])
    expected = [1 + level for level in range(3) if watts[level] <= limit]
    assert [action for action in np.flatnonzero(simulator.mask[0]).tolist() if action > 0] == expected
    assert 1 not in expected


def test_backfill_uses_the_gap_that_fifo_leaves(worlds):
    """EASY's textbook case: a short narrow job passes the wide head of the queue without delaying it."""
    spec = worlds.cluster(nodes=1, gpus=4)
    rows = [
        worlds.job("a", 0, 4000, gpus=3, gpu_model="V100"),
        worlds.job("b", 1, 4000, gpus=4, gpu_model="V100"),
        worlds.job("c", 2, 1000, gpus=1, gpu_model="V100"),
        worlds.job("d", 3, 9000, gpus=1, gpu_model="V100"),
    ]
    world = worlds.world_of(spec, rows)
    starts = {}
    for discipline in ("strict", "easy", "free"):
        settings = PolicySettings(sleep_after_s=-1, discipline=discipline, queue_order="fcfs")
        starts[discipline] = run_policy(world, Judge("t", settings, TIGHTEST, ""), REWARD).job_start_s[0]
    ends = int(np.ceil(4000 / world.static.speed[0, 0, 4]))
    assert starts["strict"][1] == ends
    assert starts["strict"][2] >= ends
    assert starts["easy"].tolist()[:3] == [0, ends, 2]
    assert starts["easy"][3] > ends
    assert starts["free"][3] > 2
    assert starts["free"][1] > ends or starts["free"][3] >= ends


def test_warm_reserve_keeps_nodes_awake(worlds):
    spec = worlds.cluster(nodes=3)
    rows = [worlds.job("x", submit_s=5000, duration_s=60, gpu_model="V100")]
    settings = PolicySettings(sleep_after_s=100)
    world = worlds.world_of(spec, rows, warm_reserve=np.array([2, 0]))
    totals = run_policy(world, Judge("t", settings, TIGHTEST, ""), REWARD, event_log=True)
    slept = totals.events[0][totals.events[0][:, 1] == events.SLEEP]
    early = slept[slept[:, 0] == 100]
    assert early[:, 5].tolist() == [2, 5, 4, 3]


def test_empty_window_ends_at_once(worlds):
    totals = run_policy(worlds.world_of(worlds.cluster(), []), JUDGES["lookahead"], REWARD)
    assert totals.end_s[0] == 0
    assert totals.energy_kwh.sum() == 0


def test_masked_action_names_action_job_and_choices(worlds):
    world = worlds.world_of(worlds.cluster(), [worlds.job("picky", gpu_model="A100")])
    simulator = Simulator(world, 1, AWAKE, REWARD)
    simulator.reset([0])
    with pytest.raises(ValueError, match=r"action 1 \(run\(pool 0, level 0\)\) for job 'picky' is masked.*4 = run\(pool 1, level 0\)"):
        simulator.step(np.array([1]))
    simulator.step(np.array([4]))
    assert simulator.done[0]


def test_bad_worlds_are_refused(worlds):
    spec = worlds.cluster()
    with pytest.raises(InputError, match="no rows of site 'west'"):
        worlds.world_of(spec, [worlds.job("x")], worlds.grid(sites=("east",)))
    with pytest.raises(InputError, match="divide a day"):
        worlds.world_of(spec, [worlds.job("x")], worlds.grid(step="7h"))
    with pytest.raises(InputError, match="wake_latency_s 0"):
        worlds.world_of(worlds.cluster(wake_latency_s=0), [worlds.job("x")])
    with pytest.raises(InputError, match="shape"):
        worlds.world_of(spec, [worlds.job("x")], warm_reserve=np.zeros((3, 3)))

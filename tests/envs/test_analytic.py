"""The compiled simulator against textbook formulas and sums on paper.

All cases go through the public interface. Where watts matter they are set to round figures, so that the expected value is a sum of
literals and owes nothing to the power curves.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.heuristics import Judge
from envs.kernel import Simulator, run_policy
from envs.kernel_choosers import TIGHTEST
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.windows import WindowTables, constant_grid, prepare_jobs
from envs.world import build_world

REWARD = RewardSpec()
AWAKE = PolicySettings(sleep_after_s=-1, queue_order="fcfs")
FIFO = Judge("fifo", AWAKE, TIGHTEST, "")
START = pd.Timestamp("2024-01-08", tz="UTC")
PUE = 1.2


def site(name="here"):
    """PUE 1.2 at any temperature."""
    return SiteSpec(name, pue_base=PUE, pue_per_c=0.0)


def machine(nodes, gpus, levels=(1.0,), **pool):
    """One pool of V100, the reference GPU: speed 1 at full power."""
    return ClusterSpec("machine", (site(),), (PoolSpec("p", "here", "V100", nodes, gpus, **pool),), level_fractions=levels)


def with_curves(world, speed, power_w):
    """The world with these speeds and GPU watts, one of each a level, for all classes."""
    shape = world.static.speed.shape
    curves = {
        name: np.broadcast_to(np.array(v, dtype=float)[None, :, None], shape).copy() for name, v in (("speed", speed), ("power", power_w))
    }
    return replace(world, static=world.static._replace(speed=curves["speed"], gpu_power_w=curves["power"]))


# ---------------------------------------------------------------- queueing theory


def erlang_c(servers, load):
    """Probability of having to wait in M/M/c with utilisation ``load`` (Erlang 1917)."""
    offered = servers * load
    terms = np.cumprod(np.concatenate([[1.0], offered / np.arange(1, servers + 1)]))
    last = terms[-1] / (1 - load)
    return last / (terms[:-1].sum() + last)


def first_come_first_served(arrivals, services, servers):
    """Waiting times by the recursion of Kiefer and Wolfowitz (1955): each job takes the server that is free first."""
    free = np.zeros(servers, dtype=np.int64)
    waits = np.zeros(len(arrivals), dtype=np.int64)
    for index, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        server = free.argmin()
        begin = max(free[server], arrival)
        waits[index], free[server] = begin - arrival, begin + service
    return waits


@pytest.mark.parametrize(("servers", "load"), [(1, 0.8), (2, 0.7), (3, 0.7), (4, 0.7)])
def test_mmc_waits_as_erlang_c_says(servers, load):
    """360,000 jobs a case: the share that waits and the mean wait, each within the 95 % interval of 20 independent runs.

    Whole seconds: a service is rounded up, so its mean is that of the geometric distribution, 1 / (1 - exp(-1 / 1000 s)) = 1000.5 s, and
    the load follows it. What remains, arrivals cut to seconds, is below 0.1 % of the wait, far inside the interval. The intervals must be
    narrow, so that a wrong wait of a few per cent fails; and the first run must agree with the recursion job for job.
    """
    runs, count, warm_up, mean_s = 20, 20_000, 2_000, 1000.0
    rng = np.random.default_rng(2024)
    spec = machine(servers, 1)
    grid = constant_grid(["here"], START - pd.Timedelta(days=1), START, step_s=86_400)
    names = np.char.zfill(np.arange(count).astype(str), 6)
    windows = []
    for _ in range(runs):
        arrivals = np.floor(np.cumsum(rng.exponential(mean_s / (servers * load), count))).astype(np.int64)
        services = np.ceil(rng.exponential(mean_s, count)).astype(np.int64)
        rows = {"job_id": names, "submit_time": START + pd.to_timedelta(arrivals, unit="s"), "duration_s": services}
        jobs = prepare_jobs(pd.DataFrame(rows).assign(gpus=1.0, workers=1, workload_class="interactive"), spec)
        windows.append(WindowTables(START, jobs, grid))
    world = build_world(spec, windows)
    waits = run_policy(world, FIFO, REWARD).job_start_s - world.jobs.submit_s
    assert np.array_equal(waits[0], first_come_first_served(world.jobs.submit_s[0], world.jobs.duration_s[0], servers))
    service_s = 1.0 / -np.expm1(-1.0 / mean_s)
    load *= service_s / mean_s
    chance = erlang_c(servers, load)
    steady = waits[:, warm_up:]
    for measured, exact, width in (
        ((steady > 0).mean(axis=1), chance, 0.02),
        (steady.mean(axis=1), chance * service_s / (servers * (1 - load)), 0.04),
    ):
        half = student.ppf(0.975, runs - 1) * measured.std(ddof=1) / np.sqrt(runs)
        assert half < width * exact
        assert abs(measured.mean() - exact) < half


# ---------------------------------------------------------------- energy, cost and carbon on paper


def test_kwh_of_a_capped_gang_on_paper(worlds):
    """3 workers of 2 GPUs at 200 W and 0.8 speed for an hour of work, half used; 4-GPU nodes of 100 W and 25 W a GPU idle.

    Dynamic: 6 x ((200 - 25) x 0.5 + 10) = 585 W. Share of idle: 6 x (100 + 4 x 25) / 4 = 300 W. Run: 3600 / 0.8 = 4500 s. PUE 1.2.
    Job: 885 W x 1.2 x 1.25 h = 1.3275 kWh. Site: (2 x 200 + 585) W x 1.2 x 1.25 h = 1.4775 kWh. Idle: the difference, 0.15 kWh.
    """
    spec = machine(2, 4, (1.0, 0.7), node_idle_w=100.0, gpu_idle_w=25.0, cpu_w_per_gpu=10.0)
    row = worlds.job("gang", duration_s=3600, gpus=2.0, workers=3, gpu_utilization=0.5, workload_class="training")
    world = with_curves(worlds.world_of(spec, [row], worlds.grid(sites=("here",))), (1.0, 0.8), (300.0, 200.0))
    simulator = Simulator(world, 1, AWAKE, REWARD)
    simulator.reset([0])
    simulator.step(np.array([2]))
    totals = simulator.totals()
    assert totals.end_s[0] == 4500
    assert totals.job_energy_kwh[0, 0] == pytest.approx(1.3275, rel=1e-12)
    assert totals.energy_kwh[0, 0] == pytest.approx(1.4775, rel=1e-12)
    assert totals.idle_energy_kwh[0, 0].tolist() == pytest.approx([0.15, 0.0, 0.0], abs=1e-12)
    assert totals.busy_gpu_s[0] == 6 * 4500


def test_deferred_job_pays_each_price_for_its_own_minutes(worlds):
    """Held three times for 900 s, the job runs from 0:45 to 2:15: 15 minutes at 0.40, 60 at -0.10 and 15 at 0.20 USD/kWh.

    One GPU of 350 W busy on a node of 100 W and 50 W idle, CPU 0: 300 + 150 = 450 W, x 1.2 = 0.54 kW, all of it the job's.
    0.54 x (0.25 x 0.40 - 1 x 0.10 + 0.25 x 0.20) = 0.54 x 0.05 = 0.027 USD. Carbon alike with 100, 200, 400 g: 0.54 x 0.325 kg.
    """
    spec = machine(1, 1, node_idle_w=100.0, gpu_idle_w=50.0, cpu_w_per_gpu=0.0)
    price, carbon = np.full(24, 9.0), np.full(24, 9000.0)
    price[:3], carbon[:3] = (0.40, -0.10, 0.20), (100.0, 200.0, 400.0)
    row = worlds.job("late", duration_s=5400, workload_class="training")
    world = with_curves(worlds.world_of(spec, [row], worlds.grid(("here",), price=price, carbon=carbon)), (1.0,), (350.0,))
    simulator = Simulator(world, 1, PolicySettings(sleep_after_s=-1, hold_s=900), REWARD)
    simulator.reset([0])
    for action in (0, 0, 0, 1):
        simulator.step(np.array([action]))
    totals = simulator.totals()
    assert (totals.job_start_s[0, 0], totals.job_end_s[0, 0]) == (2700, 8100)
    assert totals.job_cost_usd[0, 0] == pytest.approx(0.027, rel=1e-12)
    assert totals.job_carbon_kg[0, 0] == pytest.approx(0.54 * 0.325, rel=1e-12)
    idle_kw = 0.15 * PUE  # before its start the node idles at the site's expense
    assert totals.cost_usd[0, 0] == pytest.approx(0.027 + idle_kw * 0.75 * 0.40, rel=1e-12)
    assert simulator.state.objective_usd[0] == pytest.approx(totals.cost_usd.sum() + 0.1 * totals.carbon_kg.sum(), rel=1e-12)


def test_carbon_of_a_constant_load_is_its_kilowatts_times_the_hours_of_the_grid(worlds):
    """A day of a constant 1.2 kW emits 1.2 x the sum of the hourly intensities, whatever their order; two days twice that."""
    carbon = np.random.default_rng(0).uniform(20.0, 700.0, 24)
    spec = machine(1, 1, node_idle_w=600.0, gpu_idle_w=0.0, cpu_w_per_gpu=0.0)
    for days, order in ((1, carbon), (1, carbon[::-1]), (2, carbon)):
        rows = [worlds.job("always", duration_s=86_400 * days)]
        world = with_curves(worlds.world_of(spec, rows, worlds.grid(("here",), carbon=order)), (1.0,), (400.0,))
        totals = run_policy(world, FIFO, REWARD)
        assert totals.energy_kwh[0, 0] == pytest.approx(1.2 * 24 * days, rel=1e-12)
        assert totals.carbon_kg[0, 0] == pytest.approx(1.2 * carbon.sum() / 1000.0 * days, rel=1e-9)
        assert totals.job_carbon_kg[0, 0] == pytest.approx(totals.carbon_kg[0, 0], rel=1e-9)


def test_a_gang_wakes_each_node_once_and_pays_every_state_on_paper(worlds):
    """Two nodes of 2 GPUs; idle 300 s, asleep until a gang of 3 single GPUs comes at 1000 s, 120 s of waking, 600 s of work, idle 300 s.

    Waking 500 W, asleep 10 W, awake 100 + 2 x 20 = 140 W, PUE 1.2. The gang needs both nodes, and a third worker on a waking node wakes
    nothing: 2 x 120 s x 500 W. A fourth job on the free GPU, submitted while they wake, waits for the same wake.
    """
    spec = machine(2, 2, node_idle_w=100.0, gpu_idle_w=20.0, cpu_w_per_gpu=0.0, node_sleep_w=10.0, wake_latency_s=120, wake_power_w=500.0)
    rows = [worlds.job("gang", 1000, 600, workers=3), worlds.job("guest", 1060, 600), worlds.job("last", 2019, 1)]
    world = with_curves(worlds.world_of(spec, rows, worlds.grid(("here",))), (1.0,), (220.0,))
    settings = PolicySettings(sleep_after_s=300, queue_order="fcfs")
    totals = run_policy(world, Judge("t", settings, TIGHTEST, ""), REWARD)
    assert totals.job_start_s[0].tolist() == [1120, 1120, 2019]
    watt_s = {"waking": 2 * 120 * 500.0, "sleeping": 2 * 700 * 10.0}
    # awake: 300 s idle, 600 s with all GPUs taken, 299 s idle again, then 1 s with one of four
    awake_s, running_gpu_s = 2 * (300 + 600 + 299 + 1), 4 * 600 + 1
    watt_s["idle"] = awake_s * 140.0 - running_gpu_s * 70.0
    kwh = {name: value * PUE / 3.6e6 for name, value in watt_s.items()}
    assert totals.idle_energy_kwh[0, 0].tolist() == pytest.approx([kwh["idle"], kwh["waking"], kwh["sleeping"]], rel=1e-12)
    assert totals.energy_kwh[0, 0] == pytest.approx(sum(kwh.values()) + running_gpu_s * (200.0 + 70.0) * PUE / 3.6e6, rel=1e-12)


# ---------------------------------------------------------------- EASY backfilling


def _easy_starts(worlds, rows, **settings):
    """Start seconds by job id on ten processors under EASY."""
    table = [worlds.job(name, submit, run, workers=size, requested_duration_s=asked) for name, submit, run, asked, size in rows]
    world = worlds.world_of(machine(10, 1), table, worlds.grid(("here",)))
    easy = PolicySettings(sleep_after_s=-1, discipline="easy", queue_order="fcfs", **settings)
    totals = run_policy(world, Judge("easy", easy, TIGHTEST, ""), REWARD)
    return dict(zip(world.job_ids[0], totals.job_start_s[0].tolist(), strict=True))


def test_easy_backfills_by_time_or_by_extra_nodes_and_never_delays_the_head(worlds):
    """Both conditions of Mu'alem and Feitelson (2001, section 2): done before the shadow time, or on no more than the extra nodes.

    A holds 6 of 10 processors until 1000, so the head B (8) is reserved at 1000 with 10 - 8 = 2 extra. C (2, long) takes the extra ones.
    D (2) ends at 503. E (1, long) finds D's processors free from 503 on but no extra left: it waits for B. F (1) at 600 is done by 900
    and passes; G (1) would be done at 1100 and does not.
    """
    rows = [
        ("a", 0, 1000, 1000, 6),
        ("b", 1, 400, 400, 8),
        ("c", 2, 5000, 5000, 2),
        ("d", 3, 500, 500, 2),
        ("e", 4, 5000, 5000, 1),
        ("f", 600, 300, 300, 1),
        ("g", 600, 500, 500, 1),
    ]
    assert _easy_starts(worlds, rows) == {"a": 0, "b": 1000, "c": 2, "d": 3, "e": 1400, "f": 600, "g": 1400}


def test_easy_reserves_by_estimates_and_starts_the_head_when_processors_really_come_free(worlds):
    """A asks for 1000 s and runs 200: until then C (ends 903 by its estimate) may pass, and B starts at 200, or when C really ends."""
    rows = [("a", 0, 200, 1000, 6), ("b", 1, 100, 100, 10), ("c", 3, 50, 900, 4)]
    assert _easy_starts(worlds, rows) == {"a": 0, "b": 200, "c": 3}
    longer = [*rows[:2], ("c", 3, 800, 900, 4)]
    assert _easy_starts(worlds, longer) == {"a": 0, "b": 803, "c": 3}

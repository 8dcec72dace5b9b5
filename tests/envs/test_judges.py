"""What each judge does that the others do not, on worlds small enough to work out by hand; none knows the future."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs import events
from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.heuristics import FORESIGHTED, JUDGES
from envs.kernel import Simulator, run_policy
from envs.observation import PREFERRED_POOL, RATE_RANK
from envs.power.curves import levels_for
from envs.reserve import with_reserve
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.windows import WindowTables, prepare_jobs
from envs.world import build_world
from telemetry.classes import CLASS_INDEX
from telemetry.errors import InputError

REWARD = RewardSpec()
NAMES = sorted(JUDGES)
HOUR = 3600


def load_reference():
    """The package ``tests/reference`` by path: another distribution installs a top-level package named tests."""
    if "joulewise_reference" not in sys.modules:
        path = Path(__file__).parents[1] / "reference" / "__init__.py"
        spec = importlib.util.spec_from_file_location("joulewise_reference", path, submodule_search_locations=[str(path.parent)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["joulewise_reference"] = module
        spec.loader.exec_module(module)
    return sys.modules["joulewise_reference"]


def one_pool(nodes, gpus, **more):
    return ClusterSpec("one", (SiteSpec("east"),), (PoolSpec("v", "east", "V100", nodes, gpus, **more),))


def log_of(world, judge, window=0):
    return run_policy(world, judge, REWARD, event_log=True).events[window]


def free_at_the_end(world, judge):
    """Free thousandths of all GPUs when the last job is asked about."""
    simulator = Simulator(world, 1, judge.settings, REWARD)
    simulator.reset([0])
    while simulator.state.arrived[0] < world.jobs.count[0]:
        simulator.step(judge.act(simulator.observe(), simulator.layout))
    return simulator.state.gpu_free[0].tolist()


# ---------------------------------------------------------------- all judges


def future_pair(worlds):
    """Two worlds that are the same until noon of the first day and differ in jobs and prices from then on."""
    rows = worlds.random_rows(4, 60, span_s=20 * HOUR)
    early = [row for row in rows if row["submit_time"] < worlds.START + pd.Timedelta(hours=12)]
    later = [
        worlds.job(f"k{index}", submit_s=12 * HOUR + 60 * index, gpus=0.7, workers=2, workload_class="batch_inference")
        for index in range(60)
    ]
    grid = worlds.daily_grid(2)
    other = grid.copy()
    after = other["time"] >= worlds.START + pd.Timedelta(hours=12)
    other.loc[after, "price_usd_per_kwh"] = 1.0 - other.loc[after, "price_usd_per_kwh"]
    spec = worlds.cluster(nodes=3)
    pairs = ((rows, grid), (early + later, other))
    return [build_world(spec, [WindowTables(worlds.START, prepare_jobs(pd.DataFrame(jobs), spec), table)]) for jobs, table in pairs]


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_later_changes_nothing_before(worlds, name):
    logs = [log_of(world, JUDGES[name]) for world in future_pair(worlds)]
    before = [log[log[:, 0] < 12 * HOUR] for log in logs]
    assert len(before[0]) > 60
    assert np.array_equal(*before)
    assert not np.array_equal(*logs)


@pytest.mark.parametrize("name", sorted(FORESIGHTED))
def test_only_perfect_prices_are_foresight(worlds, name):
    logs = [log_of(world, FORESIGHTED[name]) for world in future_pair(worlds)]
    assert not np.array_equal(*(log[log[:, 0] < 12 * HOUR] for log in logs))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_repeated_to_the_bit(worlds, name):
    world = worlds.random_world(6, count=25, windows=16)
    first, again, threads = (run_policy(world, JUDGES[name], REWARD, event_log=True, threads=t) for t in (1, 1, 2))
    for other in (again, threads):
        assert np.array_equal(first.objective_usd, other.objective_usd)
        assert all(np.array_equal(a, b) for a, b in zip(first.events, other.events, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_settings_and_both_ends_are_allowed(name):
    judge = JUDGES[name]
    known = {field.name for field in dataclasses.fields(PolicySettings)}
    for parameter in judge.space:
        assert parameter.name in known
        assert parameter.low <= getattr(judge.settings, parameter.name) <= parameter.high
        assert isinstance(getattr(judge.settings, parameter.name), int if parameter.whole else float)
        for value in (parameter.low, parameter.high):
            tuned = judge.tuned({parameter.name: value})
            assert getattr(tuned.settings, parameter.name) == value
            assert tuned.chooser == judge.chooser
    with pytest.raises(InputError, match=f"'{name}': parameter 'luck'"):
        judge.tuned({"luck": 1.0})


def test_values_outside_the_settings_are_refused():
    with pytest.raises(InputError, match=r"threshold_quantile 1\.5"):
        JUDGES["threshold"].tuned({"threshold_quantile": 1.5})


# ---------------------------------------------------------------- best_fit


def test_best_fit_wakes_a_node_where_less_would_be_left(worlds):
    """Pool v, 2 GPUs, sleeps; pool a has 3 of 4 GPUs free and is awake. One GPU: best fit leaves 1 in v, most allocated wakes nobody."""
    pools = (PoolSpec("v", "east", "V100", 1, 2), PoolSpec("a", "west", "A100", 1, 4))
    spec = ClusterSpec("test", (SiteSpec("east"), SiteSpec("west")), pools)
    rows = [worlds.job("x", duration_s=20_000, gpu_model="A100"), worlds.job("y", submit_s=2 * HOUR)]
    world = worlds.world_of(spec, rows)
    assert run_policy(world, JUDGES["best_fit"], REWARD).job_pool[0].tolist() == [1, 0]
    assert run_policy(world, JUDGES["most_allocated"], REWARD).job_pool[0].tolist() == [1, 1]


# ---------------------------------------------------------------- fgd, pwr_fgd


@pytest.mark.parametrize(("typical", "fgd"), [(0.5, [500, 500]), (0.6, [600, 400])])
def test_fgd_keeps_what_the_typical_job_needs(worlds, typical, fgd):
    """Free: 0.6 beside c (b has gone) and 0.5 beside e. A tenth goes where the typical job loses nothing; best fit fills the fuller GPU."""
    rows = [worlds.job(f"a{index:02d}", submit_s=index * 100, duration_s=50, gpus=typical) for index in range(60)]
    rows += [worlds.job("b", submit_s=7000, duration_s=500, gpus=0.6), worlds.job("e", submit_s=7001, duration_s=30_000, gpus=0.5)]
    rows += [worlds.job("c", submit_s=7002, duration_s=30_000, gpus=0.4)]
    rows += [worlds.job("d", submit_s=9000, duration_s=30_000, gpus=0.1), worlds.job("z", submit_s=9001, gpus=0.2)]
    world = worlds.world_of(one_pool(2, 1), rows, worlds.grid(sites=("east",)))
    assert free_at_the_end(world, JUDGES["fgd"]) == fgd
    assert free_at_the_end(world, JUDGES["most_allocated"]) == [600, 400]


def test_pwr_fgd_takes_the_pool_that_adds_the_fewest_watts(worlds):
    """Both pools awake and empty: fragmentation is the same everywhere and watts decide; without their weight the index does."""
    watts = {model: float(levels_for(model, (1.0,))[1][0][CLASS_INDEX["interactive"]]) for model in ("A100", "V100")}
    frugal = min(watts, key=watts.get)
    other = max(watts, key=watts.get)
    pools = tuple(PoolSpec(model, "east", model, 1, 4, gpu_idle_w=30.0) for model in (other, frugal))
    world = worlds.world_of(ClusterSpec("test", (SiteSpec("east"),), pools), [worlds.job("x")], worlds.grid(sites=("east",)))
    assert run_policy(world, JUDGES["pwr_fgd"], REWARD).job_pool[0, 0] == 1
    assert run_policy(world, JUDGES["pwr_fgd"].tuned({"pwr_weight": 0.0}), REWARD).job_pool[0, 0] == 0
    assert run_policy(world, JUDGES["fgd"], REWARD).job_pool[0, 0] == 0


def test_without_weight_on_watts_pwr_fgd_is_fgd(worlds):
    world = worlds.random_world(12, count=40, nodes=3)
    assert np.array_equal(log_of(world, JUDGES["fgd"]), log_of(world, JUDGES["pwr_fgd"].tuned({"pwr_weight": 0.0})))


def test_the_preferred_pool_is_in_the_observation_for_these_rules_alone(worlds):
    world = worlds.random_world(3, count=12)
    for name, used in (("fgd", True), ("pwr_fgd", True), ("easy", False)):
        simulator = Simulator(world, 1, JUDGES[name].settings, REWARD)
        simulator.reset([0])
        seen = set()
        while not simulator.done[0]:
            row = simulator.observe()
            at = simulator.layout.n_candidates * simulator.layout.n_candidate_features + PREFERRED_POOL
            seen.add(float(row[0, at]))
            simulator.step(JUDGES[name].act(row, simulator.layout))
        assert seen <= ({0.5, 1.0} if used else {0.0})


# ---------------------------------------------------------------- ces


def slept_and_woken(world, judge):
    log = log_of(world, judge)
    return [(int(row[0]), events.EVENT_NAMES[int(row[1])], int(row[5])) for row in log if row[1] in (events.SLEEP, events.WAKE)]


def ces_world(worlds):
    """Two of four nodes in use from second 100 to 4100."""
    rows = [worlds.job("x", submit_s=100, duration_s=3900, gpus=2.0, workers=2), worlds.job("z", submit_s=60_000, gpus=2.0)]
    spec = one_pool(4, 2, wake_latency_s=100)
    return worlds.world_of(spec, rows, worlds.grid(sites=("east",)))


def test_ces_keeps_a_buffer_awake_and_wakes_it_ahead(worlds):
    """At second 0 nobody works: one node stays. The gang wakes a second, the buffer makes it three; nothing sleeps for two hours."""
    judge = JUDGES["ces"].tuned({"ces_trend": 0.0})
    assert slept_and_woken(ces_world(worlds), judge)[:6] == [
        (0, "sleep", 3),
        (0, "sleep", 2),
        (0, "sleep", 1),
        (100, "wake", 1),
        (100, "wake", 2),
        (7800, "sleep", 2),
    ]
    quick = judge.tuned({"ces_keep_s": 600, "ces_trend": 0.5})
    assert (4200, "sleep", 2) in slept_and_woken(ces_world(worlds), quick), "the first check after demand fell"


def test_ces_lets_nodes_sleep_only_as_demand_falls(worlds):
    """By default demand must have fallen in the last checks: after two hours of keeping it no longer does, as in the published rule."""
    told = slept_and_woken(ces_world(worlds), JUDGES["ces"])
    assert [row for row in told if row[0] > 100 and row[0] < 60_000] == []


def test_a_table_of_nodes_to_keep_awake_stands_in_the_place_of_the_rule(worlds):
    world = ces_world(worlds)
    table = pd.DataFrame({"time": [worlds.START, worlds.START + pd.Timedelta(hours=3)], "pool": "v", "nodes": [4, 0]})
    told = slept_and_woken(with_reserve(world, [table]), JUDGES["ces"])
    assert told[0][0] == 3 * HOUR
    assert [row[1] for row in told[:4]] == ["sleep"] * 4


def test_from_the_second_day_ces_looks_at_yesterday(worlds):
    """Three days of work by the hour against the rule in plain Python, fed with the nodes in use by the event log."""
    rng = np.random.default_rng(5)
    rows = []
    for index in range(260):
        at = int(rng.integers(0, 3 * 86_400))
        busy = 1.0 if 8 <= at // HOUR % 24 < 18 else 0.15
        if rng.random() < busy:
            rows.append(worlds.job(f"j{index:03d}", submit_s=at, duration_s=int(rng.integers(900, 9000)), gpus=2.0))
    world = worlds.world_of(one_pool(6, 2, wake_latency_s=60), rows, worlds.grid(sites=("east",)))
    judge = JUDGES["ces"].tuned({"ces_keep_s": 1200, "ces_trend": 0.25})
    load_reference()
    demand = sys.modules["joulewise_reference.demand"]
    rules = type("Rules", (), {"pools": world.cluster.pools})
    rule = demand.Demand(rules, judge.settings)
    simulator = Simulator(world, 1, judge.settings, REWARD, event_log=True)
    simulator.reset([0])
    simulator.play(judge.chooser)
    log = simulator.events(0)
    used, up, day, falls = 0, 6, 0, 0
    instants = sorted({*log[:, 0].tolist(), *range(0, int(log[-1, 0]) + 1, 600)})
    for t in instants:
        here = log[log[:, 0] == t]
        kinds = here[:, 1]
        used += int((kinds == events.RUN).sum() - (kinds == events.END).sum())  # every job takes one whole node
        before = rule.target[0]
        rule.follow(t, [used])
        falls += t >= 86_400 and rule.target[0] < before
        up += int((kinds == events.WAKE).sum() - (kinds == events.SLEEP).sum())
        assert up == min(6, max(rule.target[0], used)), f"second {t}"
        day = max(day, t // 86_400)
    assert day >= 2
    assert falls > 5


# ---------------------------------------------------------------- threshold


def dear_day(worlds):
    """0.30 USD/kWh from 08:00 to 18:00, else 0.10."""
    return worlds.grid(price=[0.3 if 8 <= hour < 18 else 0.1 for hour in range(24)], carbon=[400.0] * 24)


def test_threshold_holds_deferrable_jobs_until_the_dear_hours_are_over(worlds):
    spec = worlds.cluster(nodes=2)
    rows = [
        worlds.job("now", submit_s=8 * HOUR, workload_class="interactive"),
        worlds.job("can", submit_s=8 * HOUR, duration_s=600, workload_class="batch_inference", requested_duration_s=600),
        worlds.job("night", submit_s=20 * HOUR, duration_s=600, workload_class="batch_inference", requested_duration_s=600),
    ]
    jobs = prepare_jobs(pd.DataFrame(rows), spec).assign(latest_start=worlds.START + pd.Timedelta(days=2))
    world = build_world(spec, [WindowTables(worlds.START, jobs, dear_day(worlds))])
    start = dict(zip(world.job_ids[0], run_policy(world, JUDGES["threshold"], REWARD).job_start_s[0].tolist(), strict=True))
    wake_s = 600
    assert start["now"] <= 8 * HOUR + wake_s
    assert 18 * HOUR <= start["can"] <= 18 * HOUR + wake_s
    assert 20 * HOUR <= start["night"] <= 20 * HOUR + wake_s
    eager = run_policy(world, JUDGES["threshold"].tuned({"threshold_quantile": 1.0}), REWARD).job_start_s[0]
    assert eager.max() <= 20 * HOUR + wake_s
    assert sorted(eager)[1] <= 8 * HOUR + wake_s


def test_threshold_does_not_wait_beyond_the_latest_start(worlds):
    spec = worlds.cluster(nodes=2)
    rows = [worlds.job("can", submit_s=8 * HOUR, duration_s=600, workload_class="batch_inference")]
    jobs = prepare_jobs(pd.DataFrame(rows), spec).assign(latest_start=worlds.START + pd.Timedelta(hours=10))
    world = build_world(spec, [WindowTables(worlds.START, jobs, dear_day(worlds))])
    judge = dataclasses.replace(JUDGES["threshold"], settings=dataclasses.replace(JUDGES["threshold"].settings, sleep_after_s=-1))
    assert run_policy(world, judge, REWARD).job_start_s[0, 0] == 10 * HOUR


def test_threshold_runs_at_full_power_where_it_is_cheapest(worlds):
    """Greedy prefers a lower level here; at full power both take the same pool."""
    world = worlds.world_of(worlds.cluster(), [worlds.job("x", duration_s=7200, workload_class="batch_inference")])
    ours, greedy = (run_policy(world, JUDGES[name], REWARD) for name in ("threshold", "greedy_cost"))
    assert ours.job_level[0, 0] == 0
    assert greedy.job_level[0, 0] > 0
    settings = dataclasses.replace(JUDGES["greedy_cost"].settings)
    simulator = Simulator(world, 1, settings, REWARD)
    simulator.reset([0])
    score = simulator.layout.candidates(simulator.observe())[0, :, simulator.layout.greedy_index]
    full = [1 + p * simulator.layout.n_levels for p in range(2)]
    assert ours.job_pool[0, 0] == int(np.argmin(score[full]))


def test_prices_that_never_change_are_never_dear(worlds):
    world = worlds.random_world(8, count=15)
    flat = worlds.world_of(worlds.cluster(), worlds.random_rows(8, 15))
    for one, held in ((flat, False), (world, True)):
        log = log_of(one, JUDGES["threshold"].tuned({"threshold_quantile": 0.0}))
        assert (log[:, 1] == events.HOLD).any() == held


def test_the_rank_of_the_rate_is_that_of_the_last_day(worlds):
    """Counted anew from the tables, for the cheaper of both sites, in every hour of a day."""
    rows = [worlds.job(f"j{hour:02d}", submit_s=hour * HOUR, duration_s=60) for hour in range(24)]
    east, west = worlds.daily_grid(3), worlds.daily_grid(4)
    table = pd.concat([east[east["site"] == "east"], west[west["site"] == "west"]], ignore_index=True)
    world = worlds.world_of(worlds.cluster(), rows, table)
    reward = RewardSpec(w_carbon=2.0)
    simulator = Simulator(world, 1, PolicySettings(sleep_after_s=-1), reward)
    simulator.reset([0])
    grid = world.grid
    usd = reward.w_cost * grid.price[0] + reward.w_carbon * reward.carbon_usd_per_kg * grid.carbon[0]
    rate = (usd + reward.w_energy * reward.energy_usd_per_kwh) * grid.pue[0]
    at = simulator.layout.n_candidates * simulator.layout.n_candidate_features + RATE_RANK
    found = []
    for hour in range(24):
        row = simulator.observe()[0]
        column = int(grid.history_steps[0]) + hour
        ranks = [(rate[site, column - 23 : column] < rate[site, column] - 1e-12).sum() / 24 for site in range(2)]
        found.append((float(row[at]), min(ranks), *ranks))
        simulator.step(np.array([1]))
    table = np.array(found)
    assert table[:, 0] == pytest.approx(table[:, 1], abs=1e-6)
    assert len(np.unique(table[:, 1])) > 5
    assert (table[:, 2] != table[:, 3]).sum() > 12, "the sites differ"

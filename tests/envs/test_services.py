"""Services: the autoscaler, its leases, and what the requests met, by hand through the compiled simulator."""

import numpy as np
import pandas as pd
import pytest

from envs.heuristics import Judge
from envs.kernel import run_policy
from envs.kernel_choosers import TIGHTEST
from envs.outages import with_outages
from envs.queueing import erlang_c, mean_response_s, response_beyond
from envs.reward import RewardSpec
from envs.service_report import replica_runs, service_metrics
from envs.services import ServiceSpec, add_services, check_rates, fewest_replicas, leases_of, plan_services, repeated, wanted_replicas
from envs.state import PolicySettings
from envs.windows import WindowTables, prepare_jobs
from envs.world import build_world
from telemetry.errors import InputError

AWAKE = Judge("t", PolicySettings(sleep_after_s=-1), TIGHTEST, "")
STEP_S = 600
REALTIME = 3


def spec(**more):
    return ServiceSpec(**({"name": "chat", "objective_s": 8.0, "mean_service_s": 2.0, "gpu_model": "V100"} | more))


def rates(values, start, name="chat", step_s=STEP_S):
    times = start + pd.to_timedelta(np.arange(len(values)) * step_s, unit="s")
    return pd.DataFrame({"time": times, "service": name, "requests_per_s": np.asarray(values, dtype=float)})


def world_of(worlds, values, service, cluster=None, rows=(), outages=None):
    """A window of the rates' length whose first step has a step of rates before it, its world and its plan."""
    cluster = cluster or worlds.cluster(nodes=1)
    start = worlds.START
    plans = plan_services([service], rates(values, start - pd.Timedelta(seconds=STEP_S)))
    jobs = prepare_jobs(pd.DataFrame(list(rows) or [worlds.job("x", gpus=1, gpu_model="A100", duration_s=60)]), cluster)
    window = add_services(WindowTables(start, jobs, worlds.grid(), (len(values) - 1) * STEP_S, outages), plans, cluster)
    return build_world(cluster, [window]), [window], plans


def test_fewest_replicas_keep_the_objective_and_one_less_does_not():
    service = spec()
    asked = np.array([0.0, 0.01, 0.3, 1.0, 5.0, 20.0])
    found = fewest_replicas(service, asked)
    assert found[0] == 0
    assert found[1] == 1

    def tail(servers, rate):
        return response_beyond(servers, rate, 0.5, erlang_c(servers, rate / 0.5), 8.0)

    for rate, count in zip(asked[2:], found[2:], strict=True):
        assert tail(int(count), rate) <= 0.05
        assert count == 1 or tail(int(count) - 1, rate) > 0.05
    mean = fewest_replicas(spec(objective="mean_response", objective_s=2.5), asked)
    for rate, count in zip(asked[2:], mean[2:], strict=True):
        assert mean_response_s(count, rate, 0.5, erlang_c(count, rate / 0.5)) <= 2.5
        assert mean_response_s(count - 1, rate, 0.5, erlang_c(count - 1, rate / 0.5)) > 2.5
    assert (fewest_replicas(spec(planned_speed=0.8), asked) >= found).all()
    assert fewest_replicas(spec(max_replicas=7), np.array([20.0])) == 7


def test_the_autoscaler_sees_no_future():
    """Whatever comes later, counts up to a step are those that the steps before it make."""
    rng = np.random.default_rng(3)
    values = rng.gamma(2.0, 1.5, 200)
    for service in (spec(), spec(warm_replicas=2, scale_down_delay_s=3000)):
        counts = wanted_replicas(service, values, STEP_S)
        for now in (1, 7, 80, 199):
            other = np.concatenate([values[:now], rng.permutation(values[now:]) * 3])
            np.testing.assert_array_equal(wanted_replicas(service, other, STEP_S)[: now + 1], counts[: now + 1])
        assert counts[0] == service.warm_replicas
        changed = values.copy()
        changed[49] = 60.0
        assert wanted_replicas(service, changed, STEP_S)[50] > counts[50]


def test_scale_down_waits_for_its_delay():
    values = [1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    at_once = wanted_replicas(spec(), np.array(values), STEP_S)
    delayed = wanted_replicas(spec(scale_down_delay_s=2 * STEP_S), np.array(values), STEP_S)
    high, low = at_once[2], at_once[3]
    assert high > low
    assert delayed.tolist() == [0, low, high, high, high, low, low]


def test_leases_pair_begins_with_ends_last_in_first_out(worlds):
    values = np.random.default_rng(1).gamma(1.0, 3.0, 60)
    plan = plan_services([spec(warm_replicas=1)], rates(values, worlds.START))[0]
    begin = int(worlds.START.timestamp()) + 5 * STEP_S + 100
    end = begin + 40 * STEP_S
    leases = leases_of(plan, begin, end)
    assert (leases["until_s"] > leases["begin_s"]).all()
    for at in range(begin, end, 50):
        held = int(((leases["begin_s"] <= at) & (leases["until_s"] > at)).sum())
        assert held == plan.replicas[(at - int(worlds.START.timestamp())) // STEP_S]
    for _, lease in leases.iterrows():
        inner = leases[(leases["begin_s"] > lease["begin_s"]) & (leases["begin_s"] < lease["until_s"])]
        assert (inner["until_s"] <= lease["until_s"]).all()
    assert leases["begin_s"].min() == begin
    assert leases["until_s"].max() == end
    with pytest.raises(InputError, match="service 'chat', request rates: window from"):
        leases_of(plan, begin, begin + 60 * STEP_S)


def test_energy_of_a_lease_by_hand(worlds):
    """One replica for two steps at 30 % and 90 % load, PUE 1.15: watts follow the load of each step."""
    service = spec(max_replicas=1)
    world, windows, plans = world_of(worlds, [0.1, 0.15, 0.45], service)
    totals = run_policy(world, AWAKE, RewardSpec(), event_log=True)
    lease = world.job_ids[0].index("replica-chat-00000")
    assert (totals.job_start_s[0, lease], totals.job_end_s[0, lease], totals.job_level[0, lease]) == (0, 1200, 0)
    active, idle = world.static.gpu_power_w[0, 0, REALTIME], 30.0
    share = (250 + 4 * idle) / 4
    watts = [(active - idle) * load + 20 + share for load in (0.3, 0.9)]
    assert totals.job_energy_kwh[0, lease] == pytest.approx(sum(watts) * 600 * 1.15 / 3.6e6, rel=1e-9)
    row = service_metrics(world, windows, totals, plans).iloc[0]
    assert row["requests"] == pytest.approx(0.15 * 600 + 0.45 * 600)
    assert row["requests_shed"] == 0
    waits = [1 / (0.5 - 0.15), 1 / (0.5 - 0.45)]  # M/M/1
    assert row["mean_response_s"] == pytest.approx((waits[0] * 90 + waits[1] * 270) / 360)
    beyond = [np.exp(-(0.5 - 0.15) * 8), np.exp(-(0.5 - 0.45) * 8)]
    assert row["beyond_share"] == pytest.approx((beyond[0] * 90 + beyond[1] * 270) / 360)
    late = row["p95_response_s"]
    assert (np.exp(-0.35 * late) * 90 + np.exp(-0.05 * late) * 270) / 360 == pytest.approx(0.05)
    assert row["idle_share"] == pytest.approx(1 - 0.6)
    assert row["energy_kwh_per_1000_requests"] == pytest.approx(totals.job_energy_kwh[0, lease] / 360 * 1000)


def test_a_slower_level_answers_slower_and_is_offered_only_when_planned(worlds):
    world, windows, plans = world_of(worlds, [0.1, 0.15, 0.15], spec(max_replicas=1, gpu_model="A100", planned_speed=0.9))
    slow = int(np.argmin(world.static.speed[1, :, REALTIME]))
    runs = replica_runs(world, 0, run_policy(world, AWAKE, RewardSpec(), event_log=True).events[0])
    assert runs["speed"].tolist() == [world.static.speed[1, 0, REALTIME]]
    lease = world.job_ids[0].index("replica-chat-00000")
    assert world.jobs.allowed_levels[0, lease, 1] == sum(1 << level for level in range(3) if world.static.speed[1, level, REALTIME] >= 0.9)
    strict, _, _ = world_of(worlds, [0.1, 0.15, 0.15], spec(max_replicas=1, gpu_model="A100", planned_speed=1.0))
    assert not strict.jobs.allowed_levels[0, lease, 1] >> slow & 1
    totals = run_policy(world, AWAKE, RewardSpec(), event_log=True)
    figures = {}
    for level in (0, slow):
        log = totals.events[0].copy()
        log[log[:, 2] == lease, 4] = np.where(log[log[:, 2] == lease, 4] >= 0, level, -1)
        changed = totals.__class__(**{**totals.__dict__, "events": (log,)})
        figures[level] = service_metrics(world, windows, changed, plans).iloc[0]["mean_response_s"]
        assert figures[level] == pytest.approx(1 / (world.static.speed[1, level, REALTIME] / 2 - 0.15))
    assert figures[slow] > figures[0]
    none, _, _ = world_of(worlds, [0.1, 0.15], spec(planned_speed=1.5))
    assert run_policy(none, AWAKE, RewardSpec()).job_rejected[0].max() == 4


def test_late_and_withdrawn_leases_are_counted_and_their_requests_shed(worlds):
    """Two GPUs in all: a job holds one for 2,000 s and one for the whole hour; a replica starts late, a second one never."""
    cluster = worlds.cluster(nodes=1, gpus=2)
    rows = [worlds.job("a", duration_s=2000, gpu_model="V100"), worlds.job("b", duration_s=8000, gpu_model="V100")]
    jobs_first = [row | {"priority": 9} for row in rows]
    world, windows, plans = world_of(worlds, [0.4] * 7, spec(max_replicas=2), cluster, jobs_first)
    assert plans[0].replicas.tolist() == [0] + [2] * 6
    totals = run_policy(world, AWAKE, RewardSpec(), event_log=True)
    row = service_metrics(world, windows, totals, plans).iloc[0]
    assert (row["leases"], row["leases_late"], row["leases_withdrawn"], row["leases_rejected"]) == (2, 2, 1, 0)
    lease = world.job_ids[0].index("replica-chat-00000")
    assert totals.job_start_s[0, lease] == 2000
    assert row["requests_shed"] == pytest.approx(0.4 * 2000)
    assert row["shed_share"] == pytest.approx(2000 / 3600)
    assert row["replicas_running"] == pytest.approx(1600 / 3600)
    assert row["replicas_wanted"] == 2
    assert row["beyond_share"] > row["shed_share"]
    expected = 0.25 * 2 + 0.5 * ((2000 - 300) + (3600 - 300)) / 3600
    assert totals.job_penalty_usd[0, world.jobs.service[0] >= 0].sum() == pytest.approx(expected)


def test_more_than_the_replicas_admit_is_shed(worlds):
    world, windows, plans = world_of(worlds, [0.1, 2.0], spec(max_replicas=1, admit_utilization=0.9))
    row = service_metrics(world, windows, run_policy(world, AWAKE, RewardSpec(), event_log=True), plans).iloc[0]
    assert row["requests"] == 1200
    assert row["requests_shed"] == pytest.approx((2.0 - 0.9 * 0.5) * 600)
    assert row["mean_response_s"] == pytest.approx(2.0 / (1 - 0.9))
    assert row["idle_share"] == pytest.approx(0.1)


def test_an_interrupted_replica_comes_back_elsewhere(worlds):
    down = pd.DataFrame(
        {"node": ["v-0000"], "begin": [worlds.START + pd.Timedelta(seconds=900)], "end": [worlds.START + pd.Timedelta(hours=9)]}
    )
    cluster = worlds.cluster(nodes=2)
    window = WindowTables(worlds.START, prepare_jobs(pd.DataFrame([worlds.job("x", gpu_model="A100")]), cluster), worlds.grid(), 1800)
    window = with_outages([window], cluster, 0, down)[0]
    plans = plan_services([spec(max_replicas=1)], rates([0.1] * 4, worlds.START - pd.Timedelta(seconds=STEP_S)))
    windows = [add_services(window, plans, cluster)]
    world = build_world(cluster, windows)
    totals = run_policy(world, Judge("t", PolicySettings(sleep_after_s=0), TIGHTEST, ""), RewardSpec(), event_log=True)
    runs = replica_runs(world, 0, totals.events[0])
    assert runs[["begin_s", "end_s", "interrupted"]].to_numpy().tolist() == [[0, 900, True], [900 + 180, 1800, False]]
    row = service_metrics(world, windows, totals, plans).iloc[0]
    assert row["interruptions"] == 1
    assert row["requests_shed"] == pytest.approx(0.1 * 180)


def test_grid_is_cut_to_the_steps_of_the_rates_and_held_to_the_end(worlds):
    world, _, plans = world_of(worlds, [0.2] * 13, spec())
    assert world.grid.step_s[0] == STEP_S
    begin = int(world.grid.history_steps[0])
    np.testing.assert_allclose(world.grid.load[0, 0, begin : begin + 12], plans[0].load[1:13])
    assert np.unique(world.grid.price).tolist() == [0.1]
    short = worlds.grid()
    short = short[short["time"] <= worlds.START]
    window = WindowTables(worlds.START, prepare_jobs(pd.DataFrame([worlds.job("x")]), worlds.cluster()), short, 7200)
    held = add_services(window, plans, worlds.cluster()).grid
    assert held["time"].max() >= worlds.START + pd.Timedelta(seconds=7200 - STEP_S)
    assert held.groupby("site")["time"].count().nunique() == 1


def test_rates_are_checked_and_repeated(worlds):
    table = rates([1.0, 2.0, 3.0], worlds.START)
    for wrong, message in (
        (table.drop(columns="service"), "missing column service"),
        (table.assign(requests_per_s=[1.0, -1.0, 2.0]), "requests_per_s -1.0, row 1"),
        (table.assign(requests_per_s=[1.0, None, 2.0]), "requests_per_s nan, row 1"),
        (table.iloc[[0, 1, 1]], "different steps"),
        (table.iloc[:1], "at least two rows"),
    ):
        with pytest.raises(InputError, match=message):
            check_rates(wrong)
    naive = table.assign(time=table["time"].dt.tz_localize(None).astype(str))
    pd.testing.assert_frame_equal(check_rates(naive), check_rates(table))
    long = check_rates(repeated(check_rates(table), worlds.START - pd.Timedelta(seconds=2000), worlds.START + pd.Timedelta(hours=1)))
    assert long["requests_per_s"].tolist() == [1.0, 2.0, 3.0] * 4
    assert long["time"].iloc[0] == worlds.START - pd.Timedelta(seconds=3600)
    with pytest.raises(InputError, match="no series 'chat'; allowed: talk"):
        plan_services([spec()], table.assign(service="talk"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": "p99"}, "objective 'p99'"),
        ({"mean_service_s": 0.0}, "mean_service_s 0"),
        ({"tokens_per_request": 5.0, "tokens_per_s": 1.0}, "tokens 5 per request"),
        ({"objective_s": 5.9}, r"p95_response within 5.9 s.*5.99 s at the 95th percentile"),
        ({"objective_s": 1.9, "objective": "mean_response"}, "takes 2 s on average"),
        ({"warm_replicas": 9, "max_replicas": 3}, "warm_replicas 9"),
        ({"admit_utilization": 1.0}, "admit_utilization 1"),
    ],
)
def test_wrong_services_say_what_is_wrong(more, message):
    with pytest.raises(InputError, match=message):
        spec(**more)


def test_ids_of_replicas_are_their_own(worlds):
    with pytest.raises(InputError, match="job_id 'replica-chat-00000'"):
        world_of(worlds, [0.2] * 3, spec(), rows=[worlds.job("replica-chat-00000")])

"""The capacity-booking planner: what it books, when it runs and pauses jobs, and rewards by hindsight."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from envs import events
from envs import fields as fx
from envs.heuristics import JUDGES
from envs.kernel import Simulator, run_policy
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv

HOUR = 3600
PLANNER = JUDGES["planner"]
REWARD = RewardSpec()
# Exact estimates, nothing charged but the job's own watts and its share of the node.
PLAIN = replace(
    PLANNER.settings,
    expected_share=1.0,
    padded_share=1.0,
    node_weight=0.0,
    share_weight=1.0,
    hold_margin=0.0,
    move_margin=0.0,
    overbooked_usd_per_gpu_hour=0.0,
    sleep_after_s=0,
    hold_s=1800,
    review_s=1800,
    price_forecast="last_day",
)
DEAR_DAY = [0.02] * 6 + [0.30] * 12 + [0.02] * 6


def one_pool(worlds, **more):
    spec = worlds.cluster(**more)
    return replace(spec, pools=spec.pools[:1], sites=spec.sites[:1], level_fractions=(1.0,))


def training(worlds, name="t", submit_s=0, hours=4, **more):
    return worlds.job(name, submit_s=submit_s, duration_s=hours * HOUR, workload_class="training", **more)


def played(world, settings=PLAIN):
    return run_policy(world, replace(PLANNER, settings=settings), REWARD, event_log=True)


def of_type(totals, kind):
    return totals.events[0][totals.events[0][:, 1] == kind]


def test_a_job_waits_for_cheap_hours_and_is_in_time(worlds):
    spec = one_pool(worlds)
    table = worlds.grid(sites=("east",), price=DEAR_DAY)
    totals = played(worlds.world_of(spec, [training(worlds, submit_s=8 * HOUR)], table), replace(PLAIN, hold_margin=0.05))
    greedy = run_policy(worlds.world_of(spec, [training(worlds, submit_s=8 * HOUR)], table), JUDGES["greedy_cost"], REWARD)
    assert 18 * HOUR <= totals.job_start_s[0, 0] <= 18.5 * HOUR
    assert not totals.job_missed_deadline.any()
    assert totals.job_cost_usd.sum() == pytest.approx(greedy.job_cost_usd.sum() / 15, rel=0.01)


def test_a_long_job_is_paused_in_dear_hours(worlds):
    """Twelve hours of work, a deadline after thirty-eight, six cheap hours at once: it must run in pieces."""
    spec = one_pool(worlds)
    rows = [training(worlds, submit_s=20 * HOUR, hours=12)]
    totals = played(worlds.world_of(spec, rows, worlds.grid(sites=("east",), price=DEAR_DAY)))
    assert len(of_type(totals, events.PAUSE)) >= 1
    assert not totals.job_missed_deadline.any()
    starts, pauses = of_type(totals, events.START)[:, 0], of_type(totals, events.PAUSE)[:, 0]
    hours = (
        np.concatenate([np.arange(a, b, 60) for a, b in zip(starts, [*pauses, totals.job_end_s[0, 0]], strict=True)]) % (24 * HOUR) / HOUR
    )
    assert ((hours < 6) | (hours >= 18)).mean() > 0.95


def test_a_job_that_has_run_may_be_held_until_its_deadline_asks_for_it(worlds):
    spec = one_pool(worlds)
    world = worlds.world_of(spec, [training(worlds, hours=2)])
    simulator = Simulator(world, 1, PLAIN, REWARD)
    simulator.reset([0])
    simulator.step(np.array([1]))
    simulator.step(np.array([0]))  # the first review pauses it
    deadline, latest = int(world.jobs.deadline_s[0, 0]), int(world.jobs.latest_start_s[0, 0])
    done = int(simulator.state.done_s[0, 0])
    while simulator.mask[0, 0]:
        simulator.step(np.array([0]))
    assert done > 0
    assert int(simulator.time_s[0]) == deadline - (2 * HOUR - done) > latest


def test_jobs_that_fill_a_node_together_run_together(worlds):
    spec = one_pool(worlds, nodes=4, gpus=4)
    rows = [training(worlds, f"t{k}", submit_s=k * 600, hours=3, gpus=2.0) for k in range(2)]
    totals = played(worlds.world_of(spec, rows), replace(PLAIN, node_weight=1.0, share_weight=0.0))
    assert len(np.unique(of_type(totals, events.WAKE)[:, 5])) <= 1
    start, end = totals.job_start_s[0, :2], totals.job_end_s[0, :2]
    assert start.max() < end.min()


def test_a_run_avoids_what_others_have_booked(worlds):
    """Two jobs that fill the cluster, one cheap stretch for each: the second does not count on the hours of the first."""
    price = [0.02] * 4 + [0.30] * 4 + [0.04] * 4 + [0.30] * 12
    spec = one_pool(worlds, nodes=1, gpus=4)
    rows = [training(worlds, f"t{k}", submit_s=22 * HOUR + 60 * k, hours=4, gpus=4.0) for k in range(2)]
    totals = played(worlds.world_of(spec, rows, worlds.grid(sites=("east",), price=price)), replace(PLAIN, overbooked_usd_per_gpu_hour=5.0))
    assert not totals.job_missed_deadline.any()
    spans = sorted(zip(totals.job_start_s[0, :2], totals.job_end_s[0, :2], strict=True))
    assert spans[0][1] <= spans[1][0]
    assert 8 * HOUR <= spans[1][0] % (24 * HOUR) <= 8.5 * HOUR


@pytest.mark.parametrize("seed", range(6))
def test_the_price_of_waiting_is_that_of_the_cheapest_slots(worlds, seed):
    """Alone in the cluster, hold costs the cheapest half hours from the next one to the deadline: computed here by sorting alone."""
    rng = np.random.default_rng(seed)
    price = rng.uniform(0.01, 0.3, 24)
    hours = int(rng.integers(2, 9))
    spec = one_pool(worlds)
    world = worlds.world_of(
        spec, [training(worlds, submit_s=int(rng.integers(0, 20)) * HOUR, hours=hours)], worlds.grid(sites=("east",), price=price)
    )
    simulator = Simulator(world, 1, PLAIN, REWARD)
    simulator.reset([0])
    simulator.observe()
    now, ahead = int(simulator.time_s[0]), int(world.jobs.deadline_s[0, 0] - simulator.time_s[0])
    pool = spec.pools[0]
    static, pue = world.static, float(world.grid.pue[0, 0, 0])
    kind = int(world.jobs.kind[0, 0])
    share_w = (static.node_idle_w[0] + pool.gpus_per_node * static.gpu_idle_w[0]) / pool.gpus_per_node
    kw = (static.gpu_power_w[0, 0, kind] - static.gpu_idle_w[0] + static.cpu_w_per_gpu[0] + share_w) / 1000
    slots = [price[(now + k * 1800) // HOUR % 24] + 0.1 * 0.4 for k in range(1, min(ahead // 1800, fx.N_SLOTS))]
    work = hours / float(static.speed[0, 0, kind]) / max(1.0, ahead / (fx.N_SLOTS * 1800))  # what lies beyond the calendar is spread evenly
    whole = int(work * 2)
    cheapest = np.sort(slots)
    expected = (cheapest[:whole].sum() + (work * 2 - whole) * cheapest[whole]) * 0.5 * kw * pue * max(1.0, ahead / (fx.N_SLOTS * 1800))
    expected += static.wake_power_w[0] / 1000 * pool.wake_latency_s / HOUR * pue * (price[now // HOUR % 24] + 0.1 * 0.4)
    assert float(simulator.state.planned_action_usd[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_bookings_are_a_list_without_gaps(worlds):
    world = worlds.random_world(12, count=40, windows=2)
    simulator = Simulator(world, 2, PLANNER.settings, REWARD)
    simulator.reset([0, 1])
    o, seen = simulator.packed_world.o, 0
    while not simulator.done.all():
        observation = simulator.observe()
        state = simulator.state
        for b in range(2):
            count, at = int(state.n_booked[b]), int(o[fx.I_BOOKED])
            listed = simulator.packed_state.i[b, at : at + count]
            booked = np.flatnonzero(state.booked_pool[b] >= 0)
            assert sorted(listed) == booked.tolist()
            assert (state.booked_at[b, listed] == np.arange(count)).all()
            assert np.isin(state.status[b, booked], (1, 2, 3)).all()  # waiting, placed or running
            seen += count
        simulator.step(PLANNER.act(observation, simulator.layout))
    assert seen > 100


@pytest.mark.parametrize("seed", range(3))
def test_rewards_by_hindsight_sum_to_the_objective_less_the_plans(worlds, seed):
    world = worlds.random_world(5, windows=1)
    env = ClusterVecEnv(world, 1, RewardSpec(scale_usd=0.5), PLANNER.settings, 0, reward_mode="regret", stagger=False)
    observations = env.reset()
    rng = np.random.default_rng(seed)
    before = float(env.simulator.state.objective_usd[0])
    total, done, planned = 0.0, False, 0.0
    arrived = np.zeros(env.simulator.state.planned_usd.shape[1], dtype=bool)
    while not done:
        plans = env.simulator.state.planned_usd[0]
        planned += float(plans[(plans != 0) & ~arrived].sum())
        arrived |= plans != 0
        free = env.action_masks()[0]
        action = PLANNER.act(observations, env.layout) if seed == 0 else np.array([rng.choice(np.flatnonzero(free))])
        observations, rewards, dones, infos = env.step(action)
        total += float(rewards[0])
        done = bool(dones[0])
    assert -total * 0.5 == pytest.approx(infos[0]["objective_usd"] - before - planned, rel=1e-3, abs=1e-5)


def test_it_beats_the_look_ahead_where_hours_and_capacity_matter(worlds):
    spec = worlds.cluster(nodes=2, gpus=4)
    rng = np.random.default_rng(1)
    windows = [
        [
            training(
                worlds, f"t{k}", submit_s=int(rng.integers(0, 40 * HOUR)), hours=int(rng.integers(1, 10)), gpus=float(rng.choice([1, 2, 4]))
            )
            for k in range(25)
        ]
        for _ in range(40)  # a few overloaded windows are mostly luck
    ]
    world = worlds.windows_of(spec, windows, worlds.grid(price=DEAR_DAY))
    ours, theirs = (run_policy(world, JUDGES[name], REWARD).objective_usd.mean() for name in ("planner", "lookahead"))
    assert ours < 0.95 * theirs


def test_rewards_by_hindsight_leave_no_trace_in_what_is_seen(worlds):
    """Prices of only two values: which of many equal slots are booked must not follow from prices to come, which the reward knows."""
    price = [0.05] * 12 + [0.15] * 12
    table = worlds.grid(price=price)
    to_come = (table["time"] - worlds.START).dt.days >= 1
    table.loc[to_come, "price_usd_per_kwh"] += 0.01 * (table["time"].dt.hour % 3 == 0)
    spec = worlds.cluster(nodes=2, gpus=4)
    rows = [training(worlds, f"t{k}", submit_s=k * 1700, hours=3 + k % 9, gpus=2.0) for k in range(20)]
    world = worlds.windows_of(spec, [rows], table)
    plain, rewarded = (Simulator(world, 1, PLANNER.settings, REWARD, plan_regret=regret) for regret in (False, True))
    questions = 0
    for simulator in (plain, rewarded):
        simulator.reset([0])
    while not plain.done[0]:
        seen = plain.observe().copy()
        assert np.array_equal(seen, rewarded.observe())
        action = PLANNER.act(seen, plain.layout)
        plain.step(action)
        rewarded.step(action)
        questions += 1
    assert rewarded.done[0]
    assert questions > 150


def by_last_week(rate, at, step_s, now_s):
    """Running sums of the forecast over the slots, written anew from its definition: by seconds of whole minutes, in plain Python."""
    day = 86_400 // step_s
    known = rate[: at + 1]
    days = min(7, len(known) // day)
    level = 0.5 * (known[-day:].mean() - known[-days * day :].mean())
    moved = 0.7 * (known[at] - np.mean([known[at - n * day] for n in range(1, 8)])) if at >= 7 * day else 0.0

    def value(column):
        ahead = column - at
        if ahead == 0:
            return known[at]
        back = next(n for n in range(1, 4) if column - n * day <= at)
        same_hour = [known[column - n * day] for n in range(back, back + days) if column - n * day >= 0]
        week = known[column - 7 * day] if column - 7 * day >= 0 else np.mean(same_hour)
        return 0.3 * same_hour[0] + 0.4 * np.mean(same_hour) + 0.3 * week + level + moved * 0.8 ** (ahead * step_s / 3600)

    minutes = np.array([value(at + (now_s % step_s + 60 * m) // step_s) for m in range(fx.N_SLOTS * 30)]) / 60
    return np.concatenate([[0.0], np.cumsum(minutes.reshape(-1, 30).sum(1))])


@pytest.mark.parametrize(("step", "history_days"), [("1h", 7), ("15min", 7), ("1h", 3)])
def test_the_forecast_by_the_last_week_is_its_definition(worlds, step, history_days):
    spec = one_pool(worlds)
    times = pd.date_range(worlds.START - pd.Timedelta(days=history_days), worlds.START + pd.Timedelta(days=6), freq=step)
    rng = np.random.default_rng(history_days)
    values = {"price_usd_per_kwh": rng.uniform(0.0, 0.3, len(times)), "carbon_g_per_kwh": rng.uniform(100, 500, len(times))}
    table = pd.DataFrame({"time": times, "site": "east", **values, "renewable_fraction": 0.2, "temperature_c": 10.0})
    world = worlds.world_of(spec, [training(worlds, submit_s=5 * HOUR + 1260, hours=6)], table)
    simulator = Simulator(world, 1, replace(PLAIN, price_forecast="last_week"), REWARD)
    simulator.reset([0])
    simulator.observe()
    rate = (world.grid.price[0, 0] + 0.1 * world.grid.carbon[0, 0]) * world.grid.pue[0, 0]
    o, at = simulator.packed_world.o, int(simulator.state.column[0])
    found = simulator.packed_state.f[0, o[fx.F_SLOT] : o[fx.F_SLOT] + fx.N_SLOTS + 1]
    np.testing.assert_allclose(found, by_last_week(rate, at, int(world.grid.step_s[0]), int(simulator.time_s[0])), rtol=1e-9, atol=1e-12)


def test_the_forecast_by_the_last_week_knows_nothing_of_what_comes(worlds):
    """Other prices after the window's second hour change nothing of the first decision's prices."""
    spec, seen = one_pool(worlds), []
    for change in (0.0, 1.0):
        table = worlds.grid(sites=("east",), price=DEAR_DAY)
        later = table["time"] >= worlds.START + pd.Timedelta(hours=2)
        table.loc[later, "price_usd_per_kwh"] += change
        world = worlds.world_of(spec, [training(worlds, submit_s=HOUR)], table)
        simulator = Simulator(world, 1, replace(PLAIN, price_forecast="last_week"), REWARD)
        simulator.reset([0])
        seen.append(simulator.observe().copy())
    np.testing.assert_array_equal(seen[0], seen[1])


def test_a_week_of_days_outvotes_one_odd_day(worlds):
    """Noon was nearly free yesterday and dear on the six days before: by the last day a job waits for noon, by the week it runs tonight."""
    spec = one_pool(worlds)
    table = worlds.grid(sites=("east",), price=DEAR_DAY, days=6)
    history = table.assign(time=table["time"] - pd.Timedelta(days=7))
    table = pd.concat([history[history["time"] < table["time"].min()], table], ignore_index=True)
    last_day = (table["time"] >= worlds.START - pd.Timedelta(days=1)) & (table["time"] < worlds.START)
    table.loc[last_day, "price_usd_per_kwh"] = np.where(table[last_day]["time"].dt.hour.between(6, 17), 0.001, 0.30)
    jobs = [training(worlds, submit_s=60, hours=4)]
    runs = {name: played(worlds.world_of(spec, jobs, table), replace(PLAIN, price_forecast=name)) for name in ("last_day", "last_week")}
    assert runs["last_week"].job_start_s[0, 0] < HOUR
    assert runs["last_day"].job_start_s[0, 0] >= 6 * HOUR

"""Properties of the compiled simulator on random worlds under random decisions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import events
from envs import fields as fx
from envs.heuristics import JUDGES
from envs.kernel import Simulator, run_policy
from envs.kernel_entry import drive
from envs.reward import RewardSpec
from envs.state import DISCIPLINES, NODE_RULES, PolicySettings
from envs.world_arrays import QUEUE_ORDERS

REWARD = RewardSpec(w_energy=0.5, late_cap_hours=2.0)
SETTINGS = st.builds(
    PolicySettings,
    node_rule=st.sampled_from(NODE_RULES),
    sleep_after_s=st.sampled_from([-1, 0, 300]),
    discipline=st.sampled_from(DISCIPLINES),
    queue_order=st.sampled_from(QUEUE_ORDERS),
    hold_s=st.sampled_from([600, 1800]),
)
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


def _random_action(rng, mask, patience):
    allowed = np.flatnonzero(mask)
    if allowed[0] == 0 and rng.random() > patience:
        allowed = allowed[1:]
    return int(rng.choice(allowed))


def _check_gpus(world, simulator):
    """What placed jobs hold and what is free make up every GPU, and no GPU is held beyond its whole."""
    static, state = world.static, simulator.state
    free = state.gpu_free[0].astype(int)
    assert (free >= 0).all()
    assert (free <= 1000).all()
    window = int(state.window[0])
    status = state.status[0][:-1]
    held = status[: world.jobs.count[window]]
    for p in range(len(static.pool_site)):
        placed = [j for j in np.flatnonzero((held == 2) | (held == 3)) if state.pool[0, j] == p]
        taken = sum(int(world.jobs.workers[window, j] * world.jobs.gpu_milli[window, j]) for j in placed)
        first = int(static.node_first_gpu[static.pool_first_node[p]])
        gpus = int(static.pool_nodes[p] * static.pool_gpus[p])
        assert free[first : first + gpus].sum() == gpus * 1000 - taken
        assert state.pool_free[0, p] == gpus * 1000 - taken
        assert state.state_count[0, :, p].sum() == static.pool_nodes[p]


def _gang_fits_a_fresh_count(world, simulator, p):
    """Whether the gang in question fits pool p, counted anew from the GPUs."""
    static, state = world.static, simulator.state
    window, job = int(state.window[0]), int(state.asking[0])
    milli, workers = int(world.jobs.gpu_milli[window, job]), int(world.jobs.workers[window, job])
    room = 0
    for node in range(static.pool_first_node[p], static.pool_first_node[p] + static.pool_nodes[p]):
        gpus = state.gpu_free[0, static.node_first_gpu[node] : static.node_first_gpu[node] + static.pool_gpus[p]].astype(int)
        room += (gpus == 1000).sum() // (milli // 1000) if milli >= 1000 else (gpus // milli).sum()
    return room >= workers


@EXAMPLES
@given(seed=st.integers(0, 10_000), setting=SETTINGS)
def test_no_gpu_is_used_twice_and_masks_admit_only_the_feasible(worlds, seed, setting):
    world = worlds.random_world(seed, count=15)
    simulator = Simulator(world, 1, setting, REWARD)
    rng = np.random.default_rng(seed)
    simulator.reset([0])
    before = 0
    while not simulator.done[0]:
        assert simulator.time_s[0] >= before
        before = int(simulator.time_s[0])
        window, job, mask = 0, int(simulator.asking[0]), simulator.mask[0]
        for p in range(2):
            run = mask[1 + 3 * p : 4 + 3 * p]
            fits = _gang_fits_a_fresh_count(world, simulator, p)
            for level in range(3):
                allowed = bool(world.jobs.allowed_levels[window, job, p] >> level & 1)
                assert not run[level] or (fits and allowed and world.jobs.pool_mask[window, job, p])
                if setting.discipline != "easy":
                    assert run[level] == (fits and allowed)
        assert not mask[0] or before < world.jobs.latest_start_s[window, job]
        simulator.step(np.array([_random_action(rng, mask, 0.3)]))
        _check_gpus(world, simulator)
    state = simulator.state
    assert (state.gpu_free[0] == 1000).all()
    assert set(np.unique(state.status[0][: world.jobs.count[0]])) <= {4, 5}


@EXAMPLES
@given(seed=st.integers(0, 10_000), setting=SETTINGS)
def test_observations_are_finite_bounded_and_agree_with_the_state(worlds, seed, setting):
    world = worlds.random_world(seed, count=12)
    simulator = Simulator(world, 1, setting, RewardSpec(w_carbon=seed % 3, w_energy=seed % 2))
    rng = np.random.default_rng(seed)
    simulator.reset([0])
    while not simulator.done[0]:
        row = simulator.observe()
        assert np.isfinite(row).all()
        assert np.abs(row).max() <= 10
        assert (simulator.layout.mask(row)[0] == simulator.mask[0]).all()
        score = simulator.layout.candidates(row)[0, simulator.mask[0], simulator.layout.score_index]
        assert score.min() == 0
        simulator.step(np.array([_random_action(rng, simulator.mask[0], 0.5)]))
    assert not simulator.observe().any()


@EXAMPLES
@given(seed=st.integers(0, 10_000), name=st.sampled_from(sorted(JUDGES)), reserve=st.integers(0, 1))
def test_parts_sum_to_the_whole(worlds, seed, name, reserve):
    world = worlds.random_world(seed, windows=2, warm_reserve=np.array([reserve, 0]))
    totals = run_policy(world, JUDGES[name], REWARD)
    for whole, jobs, idle in (
        (totals.energy_kwh, totals.job_energy_kwh, totals.idle_energy_kwh),
        (totals.cost_usd, totals.job_cost_usd, totals.idle_cost_usd),
        (totals.carbon_kg, totals.job_carbon_kg, totals.idle_carbon_kg),
    ):
        np.testing.assert_allclose(jobs.sum(axis=1) + idle.sum(axis=(1, 2)), whole.sum(axis=1), rtol=1e-9, atol=1e-12)
        site = np.where(totals.job_pool >= 0, world.static.pool_site[totals.job_pool], -1)
        for s in range(2) if not JUDGES[name].settings.review_s else ():  # a job that moves has parts at several sites
            parts = np.where(site == s, jobs, 0.0).sum(axis=1) + idle[:, s].sum(axis=1)
            np.testing.assert_allclose(parts, whole[:, s], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(totals.job_penalty_usd.sum(axis=1), totals.penalty_usd.sum(axis=1), rtol=1e-9, atol=1e-12)
    objective = totals.cost_usd.sum(axis=1) + 0.1 * totals.carbon_kg.sum(axis=1) + 0.5 * 0.05 * totals.energy_kwh.sum(axis=1)
    np.testing.assert_allclose(totals.objective_usd, objective + totals.penalty_usd.sum(axis=1), rtol=1e-9)


def _recompute(world, spec, log):
    """kWh and USD of each site from the event log, second by second between events."""
    grid, static = world.grid, world.static
    state = np.zeros(len(static.node_pool), dtype=int)
    running = {}
    energy, cost = np.zeros(2), np.zeros(2)
    last = 0
    for time_s, kind, job, pool, level, node, _ in log:
        column = int(grid.history_steps[0] + last // grid.step_s[0])
        watts = np.zeros(2)
        for n, mode in enumerate(state):
            p = spec.pools[static.node_pool[n]]
            idle = p.node_idle_w + p.gpus_per_node * p.gpu_idle_w
            watts[static.pool_site[static.node_pool[n]]] += (idle, p.wake_power_w, p.node_sleep_w)[mode]
        for j, (p, at) in running.items():
            gpus = world.jobs.workers[0, j] * world.jobs.gpu_milli[0, j] / 1000
            active = static.gpu_power_w[p, at, world.jobs.kind[0, j]] - spec.pools[p].gpu_idle_w
            watts[static.pool_site[p]] += gpus * (active * world.jobs.utilization[0, j] + spec.pools[p].cpu_w_per_gpu)
        kwh = watts * grid.pue[0, :, column] * (time_s - last) / 3.6e6
        energy += kwh
        cost += kwh * grid.price[0, :, column]
        last = time_s
        if kind == events.START:
            running[job] = (pool, level)
        elif kind == events.END:
            del running[job]
        elif kind in (events.WAKE, events.SLEEP, events.WAKE_DONE):
            state[node] = {events.WAKE: 1, events.SLEEP: 2, events.WAKE_DONE: 0}[kind]
    return energy, cost


@pytest.mark.parametrize("name", ["lookahead", "easy"])
def test_totals_follow_from_the_event_log(worlds, name):
    world = worlds.random_world(11, count=40)
    totals = run_policy(world, JUDGES[name], REWARD, event_log=True)
    log = totals.events[0]
    assert (np.diff(log[:, 0]) >= 0).all()
    energy, cost = _recompute(world, worlds.cluster(), log)
    np.testing.assert_allclose(energy, totals.energy_kwh[0], rtol=1e-9)
    np.testing.assert_allclose(cost, totals.cost_usd[0], rtol=1e-9)
    starts = log[log[:, 1] == events.START]
    assert (totals.job_start_s[0, starts[:, 2]] == starts[:, 0]).all()
    ends = log[log[:, 1] == events.END]
    assert (totals.job_end_s[0, ends[:, 2]] == ends[:, 0]).all()


def test_log_longer_than_its_buffer_is_complete(worlds):
    world = worlds.random_world(3, count=2)
    short = PolicySettings(hold_s=1, sleep_after_s=-1)
    simulator = Simulator(world, 1, short, REWARD, event_log=True)
    simulator.reset([0])
    while not simulator.done[0]:
        simulator.step(np.array([np.flatnonzero(simulator.mask[0])[0]]))
    log = simulator.events(0)
    assert len(log) > simulator.packed_world.o[fx.N_LOG] or (log[:, 1] == events.HOLD).sum() == 0
    assert (log[:, 1] == events.END).sum() + (log[:, 1] == events.REJECT).sum() == 2


def test_batches_threads_and_repetition_do_not_change_a_result(worlds):
    world = worlds.random_world(7, windows=20)
    first = run_policy(world, JUDGES["lookahead"], REWARD)
    again = run_policy(world, JUDGES["lookahead"], REWARD, threads=2)
    single = Simulator(world, 1, JUDGES["lookahead"].settings, REWARD)
    single.reset([13])
    single.play(JUDGES["lookahead"].chooser)
    for name in ("energy_kwh", "cost_usd", "objective_usd", "job_start_s", "job_end_s", "job_level"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert np.array_equal(getattr(first, name)[13], getattr(single.totals(), name)[0])


def test_forecast_repeats_the_last_day(worlds):
    """A question's expected objective equals the integral over today's known hour and the last 24 hours after it."""
    price = np.linspace(0.05, 0.4, 24)
    spec = worlds.cluster(nodes=1)
    row = worlds.job("x", submit_s=1800, duration_s=40 * 3600, gpus=1, gpu_model="V100", workload_class="training")
    world = worlds.world_of(spec, [row], worlds.grid(price=price))
    simulator = Simulator(world, 1, PolicySettings(sleep_after_s=-1), RewardSpec(w_carbon=0, w_sla=0))
    simulator.reset([0])
    simulator.observe()
    speed, power = world.static.speed[0, 0, 0], world.static.gpu_power_w[0, 0, 0]
    seconds = int(np.ceil(40 * 3600 / speed))
    kilowatts = (power - 30 + 20 + (250 + 4 * 30) / 4) / 1000
    hours = np.arange(1800, 1800 + seconds) // 3600
    expected = kilowatts * 1.15 * price[hours % 24].sum() / 3600
    assert simulator.state.expected_usd[0, 1] == pytest.approx(expected, rel=1e-9)


def test_strided_arguments_do_not_compile_the_kernel_again(worlds):
    """An array that is not contiguous is another type: a minute of compiling for the same code."""
    world = worlds.random_world(4, count=6, windows=2)
    judge = JUDGES["planner"]
    simulator = Simulator(world, 2, judge.settings, RewardSpec())
    simulator.reset(np.array([[0, 5], [1, 5]])[:, 0])
    known = len(drive.signatures)
    simulator.play(judge.chooser, np.full((2, 3), 2)[:, 1])
    simulator.step(np.stack([judge.act(simulator.observe(), simulator.layout)] * 2, axis=1)[:, 0])
    assert len(drive.signatures) == known

"""The shield: its rules against their plain statement on the state, in every decision of random policies over random worlds."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.cluster import DEFAULT_OBJECTIVES, ClusterSpec, PoolSpec, SiteSpec
from envs.evaluate import evaluate
from envs.gym_env import ClusterEnv
from envs.gym_vector import ClusterVectorEnv
from envs.heuristics import JUDGES
from envs.kernel import Simulator, run_policy
from envs.reward import RewardSpec
from envs.shield import RULES, Shield, ShieldConfig, with_warm_floor
from envs.shielded import Ages, ShieldedPolicy, judge_named, shielded
from envs.state import AWAKE, RUNNING, WAKING, PolicySettings
from envs.vec_env import ClusterVecEnv
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

REWARD = RewardSpec(late_cap_hours=2.0)
SETTINGS = PolicySettings(hold_s=1800, review_s=1200, sleep_after_s=300)
FLOORS = {"training": 0.7, "interactive": 0.9, "realtime_inference": 0.75}
CONFIG = ShieldConfig(deadline_margin_s=120, deadline_margin_share=0.05, start_margin_s=30, class_floor_level=FLOORS)


class RandomPolicy:
    """Any action whatever, masked or not."""

    name = "random"

    def __init__(self, seed=0, settings_=SETTINGS, masked=True):
        self.settings, self.masked = settings_, masked
        self.reseed(seed)

    def reseed(self, seed):
        self.generator = np.random.default_rng(seed)

    def act(self, observation, layout):
        if self.masked:
            return self.generator.integers(-1, layout.n_candidates + 1, len(observation))
        draws = self.generator.random((len(observation), layout.n_candidates)) * layout.mask(observation)
        draws[:, 0] *= 5.0
        return draws.argmax(axis=1)


def offers(simulator):
    """What the question's allowed runs come to: (action, level, end s, start s, run s), in the state's own seconds."""
    state, levels = simulator.state, simulator.layout.n_levels
    actions = np.flatnonzero(simulator.mask[0, 1:]) + 1
    ends, starts = state.expected_end_s[0, actions], state.expected_start_s[0, actions]
    return [(int(a), int(a - 1) % levels, int(e), int(s), int(e - s)) for a, e, s in zip(actions, ends, starts, strict=True)]


def broken_rules(simulator, action, config):
    """Rules that an allowed action breaks, by what the state says; written from docs/shield.md, not from the code."""
    state, world, job = simulator.state, simulator.world, int(simulator.asking[0])
    window = int(state.window[0])
    jobs, kind, review = world.jobs, int(world.jobs.kind[window, job]), bool(state.reviewing[0])
    objective = world.cluster.objectives[WORKLOAD_CLASSES[kind]]
    now, deadline, latest = int(state.time_s[0]), int(jobs.deadline_s[window, job]), int(jobs.latest_start_s[window, job])
    runs, broken = offers(simulator), set()
    hold_kept = bool(simulator.mask[0, 0]) and objective.deferrable
    if action == 0 and not objective.deferrable and runs:
        return {"not_deferrable"}
    bound = objective.start_bound and not review
    in_time = [run for run in runs if run[2] <= deadline]
    timely = [run for run in runs if bound and run[3] <= latest]
    joint = [run for run in in_time if run in timely]
    good = joint or in_time or timely
    need_end, need_start = good in (joint, in_time), good in (joint, timely)

    def spare(run):
        return deadline - run[2] - config.deadline_margin_s - config.deadline_margin_share * run[4]

    if good and need_end:
        least = min(0.0, max(map(spare, good)))
        good = [run for run in good if spare(run) >= least - 1e-9]
    if good and need_start and bound:
        least_start = min(0.0, max(latest - run[3] - config.start_margin_s for run in good))
        good = [run for run in good if latest - run[3] - config.start_margin_s >= least_start]
    chosen = [run for run in runs if run[0] == action]
    if good and chosen and chosen[0] not in good:
        broken.add("service")
    if action == 0 and good:
        wait = simulator.params.hold_s[0] if review else min(simulator.params.hold_s[0], max(latest - now, 0))
        still = [
            run
            for run in good
            if not (need_end and (deadline - run[2] < wait or spare(run) - wait < least - 1e-9))
            and not (need_start and bound and (latest - run[3] < wait or latest - run[3] - config.start_margin_s - wait < least_start))
        ]
        if review:
            here, plan = int(state.pool[window, job]), int(state.expected_end_s[0, 0] - state.expected_start_s[0, 0])
            still = [run for run in still if (run[0] - 1) // simulator.layout.n_levels != here]
            left_s = deadline - (now + wait + plan)
            planned = left_s >= 0 and left_s - config.deadline_margin_s - config.deadline_margin_share * plan >= least - 1e-9
            still = still or not need_end or planned
        if not still:
            broken.add("service")
    floor = config.class_floor_level.get(WORKLOAD_CLASSES[kind], 0.0)
    fractions = world.cluster.level_fractions
    left = good or runs
    if chosen and chosen[0] in left and fractions[chosen[0][1]] < floor:
        better = any(fractions[run[1]] >= floor for run in left)
        if better:
            broken.add("class_floor")
    assert hold_kept or runs
    return broken


def walk(world, policy, config, limit=400):
    """Every decision of ``policy``: how often an action was outside the mask, and how often which rule was broken."""
    simulator = Simulator(world, 1, policy.settings, REWARD)
    simulator.reset([0])
    found: dict[str, int] = {"decisions": 0}
    while not simulator.done[0] and found["decisions"] < limit:
        observation = simulator.observe()
        action = int(policy.act(observation.copy(), simulator.layout)[0])
        found["decisions"] += 1
        if not 0 <= action < simulator.layout.n_candidates or not simulator.mask[0, action]:
            found["mask"] = found.get("mask", 0) + 1
            action = int(np.flatnonzero(simulator.mask[0])[0])
        else:
            for rule in broken_rules(simulator, action, config):
                found[rule] = found.get(rule, 0) + 1
        simulator.step(np.array([action]))
    return found


def tense_world(worlds, seed, count=14):
    """Jobs with deadlines near what the estimates allow, on a small cluster that wakes fast, or too slowly for interactive jobs."""
    generator = np.random.default_rng(seed)
    rows = worlds.random_rows(seed, count, span_s=20_000)
    for row in rows:
        if generator.random() < 0.7:
            row["deadline"] = row["submit_time"] + worlds.pd.Timedelta(
                seconds=int(generator.uniform(0.5, 4.0) * row["requested_duration_s"]) + 60
            )
        row["preemptible"] = bool(generator.random() < 0.6)
    spec = worlds.cluster(nodes=2, wake_latency_s=int(generator.choice([60, 700])))
    return worlds.world_of(spec, rows, worlds.daily_grid(seed))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), policy_seed=st.integers(0, 100))
def test_no_random_policy_breaks_a_rule_behind_the_shield(worlds, seed, policy_seed):
    world = tense_world(worlds, seed)
    policy = shielded(RandomPolicy(policy_seed), CONFIG, world.cluster)
    found = walk(world, policy, CONFIG)
    assert set(found) == {"decisions"}
    assert policy.counts["decisions"] == found["decisions"]
    assert policy.counts["unanswerable"] == 0


def test_without_the_shield_the_same_policies_break_every_rule(worlds):
    total: dict[str, int] = {}
    for seed in range(12):
        for rule, count in walk(tense_world(worlds, seed), RandomPolicy(seed, masked=seed % 2 == 0), CONFIG).items():
            total[rule] = total.get(rule, 0) + count
    assert {"mask", "service", "not_deferrable", "class_floor"} <= set(total)


def test_interventions_are_counted_by_rule_and_none_is_silent(worlds):
    counts = {}
    for seed in range(8):
        world = tense_world(worlds, seed)
        policy = shielded(RandomPolicy(seed), CONFIG, world.cluster)
        simulator = Simulator(world, 1, SETTINGS, REWARD)
        simulator.reset([0])
        while not simulator.done[0]:
            before = dict(policy.counts)
            answer = policy.decide(simulator.observe(), simulator.layout)
            rule = RULES[answer.overruled[0]]
            changed = policy.counts["decisions"] - before.get("decisions", 0), answer.actions[0] != answer.proposals[0]
            assert changed == (1, bool(rule))
            if rule:
                key = f"overruled.{rule}"
                assert policy.counts[key] == before.get(key, 0) + 1
            simulator.step(answer.actions)
        for key, value in policy.counts.items():
            counts[key] = counts.get(key, 0) + value
    assert all(counts[f"overruled.{rule}"] > 0 for rule in RULES[1:])
    asked = counts["asked_again"] + counts["replaced"]
    assert asked == sum(value for key, value in counts.items() if key.startswith("overruled."))
    assert min(counts["asked_again"], counts["replaced"]) > 0


@pytest.mark.parametrize("kind", ["rack", "pool", "site", "none"])
def test_the_mask_that_the_shield_trusts_keeps_watts_and_budgets(worlds, kind):
    """Committed watts recounted from the state after every decision of a shielded random policy, against max_watts and the budgets."""
    budget = {"rack": {"nodes_per_rack": 1, "rack_budget_w": 1100.0}, "pool": {"budget_w": 2400.0}}.get(kind, {})
    sites = tuple(SiteSpec(name, budget_w=2600.0 if kind == "site" else 0.0) for name in ("east", "west"))
    pools = tuple(PoolSpec(name, site, model, 3, 4, **budget) for name, site, model in (("v", "east", "V100"), ("a", "west", "A100")))
    spec = ClusterSpec("bounded", sites, pools)
    rows = worlds.random_rows(5, 40, span_s=20_000)
    world = worlds.world_of(spec, rows, worlds.daily_grid(5))
    policy = shielded(RandomPolicy(1), ShieldConfig(), spec)
    simulator = Simulator(world, 1, SETTINGS, REWARD)
    simulator.reset([0])
    static, state, jobs, masked = world.static, simulator.state, world.jobs, 0
    while not simulator.done[0]:
        masked += int((~simulator.mask[0]).sum())
        simulator.step(policy.act(simulator.observe(), simulator.layout))
        node_w = np.zeros(len(static.node_pool))
        for index, pool in enumerate(static.node_pool):
            awake = static.node_idle_w[pool] + static.pool_gpus[pool] * static.gpu_idle_w[pool]
            node_w[index] = {0: awake, 1: max(awake, static.wake_power_w[pool]), 2: static.node_sleep_w[pool]}[
                int(state.node_state[0, index])
            ]
        for job in np.flatnonzero((state.status[0, : len(rows)] == RUNNING) | (state.status[0, : len(rows)] == RUNNING - 1)):
            pool, level, curve = int(state.pool[0, job]), int(state.level[0, job]), int(jobs.curve[0, job])
            gpus = jobs.gpu_milli[0, job] / 1000
            active, idle = static.gpu_power_w[pool, level, curve], static.gpu_idle_w[pool]
            assert jobs.workers[0, job] * gpus * active <= jobs.max_watts[0, job] + 1e-6
            worker_w = gpus * ((active - idle) * jobs.utilization[0, job] + static.cpu_w_per_gpu[pool])
            record = int(state.record_head[0, job])
            while record >= 0:
                node_w[state.record_node[0, record]] += worker_w
                record = int(state.record_next[0, record])
        if kind == "rack":
            assert (node_w <= 1100.0 + 1e-6).all()
        for pool in range(2):
            own = node_w[static.node_pool == pool].sum()
            assert own <= {"pool": 2400.0, "site": 2600.0}.get(kind, np.inf) + 1e-6
    assert masked > 0
    assert policy.counts["overruled.mask"] > 0


def one_question(worlds, row, *, hold_s=1800, nodes=1, cluster_pool=None):
    spec = worlds.cluster(nodes=nodes, **(cluster_pool or {}))
    world = worlds.world_of(spec, [worlds.job("a", **row)])
    simulator = Simulator(world, 1, replace(SETTINGS, hold_s=hold_s), REWARD)
    simulator.reset([0])
    return world, simulator


def verdict(simulator, config, action):
    shield = Shield.of(config, simulator.world.cluster, replace(SETTINGS, hold_s=int(simulator.params.hold_s[0])))
    return RULES[shield.removed(simulator.observe(), simulator.layout)[0][0, action]]


@pytest.mark.parametrize(
    ("submit_s", "extra_s", "margin_s", "rule"),
    [
        (0, 2000, 0, ""),  # asked again after 1800 s, 200 s are left then
        (0, 2000, 200, ""),
        (0, 2000, 201, "deadline"),
        (0, 1000, 0, ""),  # asked again at the latest start, with no second to lose
        (0, 1000, 1, "deadline"),
        (7200, 1980, 0, ""),  # the nodes sleep and take 180 s to wake
        (7200, 1979, 0, "deadline"),
        (7200, 1000, 0, "deadline"),
    ],
)
def test_hold_goes_exactly_when_the_next_question_would_come_too_late(worlds, submit_s, extra_s, margin_s, rule):
    """A job of an hour at the reference speed, due ``extra_s`` after its estimate."""
    due = worlds.START + worlds.pd.Timedelta(seconds=submit_s + 3600 + extra_s)
    _, simulator = one_question(worlds, {"workload_class": "training", "gpu_model": "V100", "submit_s": submit_s, "deadline": due})
    assert simulator.mask[0, 0]
    assert verdict(simulator, ShieldConfig(deadline_margin_s=margin_s), 0) == rule


def test_slower_levels_go_when_only_full_power_is_in_time(worlds):
    _, simulator = one_question(worlds, {"workload_class": "training", "gpus": 1, "deadline": worlds.START + worlds.pd.Timedelta(hours=40)})
    simulator.observe()
    ends = {run[0]: run[2] for run in offers(simulator)}
    assert len(set(ends.values())) > 2
    cut = sorted(ends.values())[1]
    deadline = worlds.START + worlds.pd.Timedelta(seconds=cut)
    _, simulator = one_question(worlds, {"workload_class": "training", "gpus": 1, "deadline": deadline})
    simulator.observe()
    for action, _, end, _, _ in offers(simulator):
        assert verdict(simulator, ShieldConfig(), action) == ("" if end <= cut else "deadline")


def test_a_deadline_that_cannot_be_met_removes_nothing(worlds):
    row = {"workload_class": "training", "gpus": 1, "deadline": worlds.START + worlds.pd.Timedelta(seconds=100)}
    world, simulator = one_question(worlds, row)
    removed, _ = Shield.of(ShieldConfig(), world.cluster, SETTINGS).removed(simulator.observe(), simulator.layout)
    assert ((removed[0] == 0) == simulator.mask[0]).all()


def test_the_class_floor_yields_to_max_watts_and_says_so(worlds):
    objectives = DEFAULT_OBJECTIVES | {"training": replace(DEFAULT_OBJECTIVES["training"], deferrable=False)}
    spec = replace(worlds.cluster(nodes=1), objectives=objectives)
    world = worlds.world_of(spec, [worlds.job("a", workload_class="training", gpu_model="V100")])
    full = float(world.static.gpu_power_w[0, 0, world.jobs.curve[0, 0]])
    world = worlds.world_of(spec, [worlds.job("a", workload_class="training", gpu_model="V100", max_watts=full - 1.0)])
    simulator = Simulator(world, 1, SETTINGS, REWARD)
    simulator.reset([0])
    policy = shielded(RandomPolicy(0), ShieldConfig(class_floor_level={"training": 1.0}), spec)
    levels = [world.cluster.level_fractions[run[1]] for run in offers(simulator)]
    assert levels
    assert max(levels) < 1.0
    answer = policy.decide(simulator.observe(), simulator.layout)
    assert simulator.mask[0, answer.actions[0]]
    assert answer.yielded[0]
    assert policy.counts["floor_yielded"] == 1


def test_a_warm_floor_is_kept_at_every_instant_and_costs_what_it_costs(worlds):
    world = worlds.random_world(3, count=20, nodes=3)
    floored = with_warm_floor(world, {"v": 2})
    awake = {}
    for name, one in (("without", world), ("with", floored)):
        simulator = Simulator(one, 1, SETTINGS, REWARD)
        simulator.reset([0])
        policy, least = shielded(RandomPolicy(4), ShieldConfig(), one.cluster), 99
        while not simulator.done[0]:
            least = min(least, int(simulator.state.state_count[0, [AWAKE, WAKING], 0].sum()))
            simulator.step(policy.act(simulator.observe(), simulator.layout))
        awake[name] = least
    assert awake["with"] >= 2 > awake["without"]
    assert with_warm_floor(world, {}) is world
    assert (with_warm_floor(floored, {"v": 1}).grid.keep_awake == floored.grid.keep_awake).all()
    with pytest.raises(InputError, match="minimum_warm_nodes of 'x'"):
        with_warm_floor(world, {"x": 1})


def test_a_batch_is_judged_as_its_rows_are(worlds):
    world = worlds.random_world(11, count=30, windows=6)
    simulator = Simulator(world, 6, SETTINGS, REWARD)
    simulator.reset(np.arange(6))
    shield = Shield.of(CONFIG, world.cluster, SETTINGS)
    for _ in range(20):
        rows = simulator.observe().copy()
        whole, _ = shield.removed(rows, simulator.layout)
        for b in range(6):
            np.testing.assert_array_equal(shield.removed(rows[b : b + 1], simulator.layout)[0][0], whole[b])
        tight = rows.copy()
        verdicts = shield.tighten(tight, simulator.layout)
        np.testing.assert_array_equal(simulator.layout.mask(tight), verdicts == 0)
        np.testing.assert_array_equal(tight[:, -29:], rows[:, -29:])
        again, _ = shield.removed(tight, simulator.layout)
        assert ((again == 0) == (verdicts == 0)).all()
        simulator.step(np.where(simulator.asking >= 0, (verdicts == 0).argmax(axis=1), -1))


def test_a_judge_that_stays_within_the_rules_is_left_alone(worlds):
    world = worlds.random_world(5, count=25, windows=2)
    judge = JUDGES["k8s_default"]
    guarded = ShieldedPolicy(judge, Shield.of(ShieldConfig(), world.cluster, judge.settings))
    frame = evaluate(world, {"bare": judge, "guarded": guarded})
    bare, other = (frame[frame["policy"] == name].drop(columns="policy").reset_index(drop=True) for name in ("bare", "guarded"))
    assert guarded.counts["decisions"] > 20
    if not any(key.startswith("overruled") for key in guarded.counts):
        np.testing.assert_allclose(bare["objective_usd"], other["objective_usd"])
    assert (other["jobs_completed"] + other["jobs_rejected"] == other["jobs_submitted"]).all()


# ---------------------------------------------------------------- fallback


def question(worlds):
    world = worlds.random_world(2, count=10)
    simulator = Simulator(world, 1, JUDGES["lookahead"].settings, REWARD)
    simulator.reset([0])
    return world, simulator, simulator.observe().copy()


class Constant:
    """Always the same action."""

    name, settings = "constant", JUDGES["lookahead"].settings

    def __init__(self, action):
        self.action, self.asked = action, 0

    def act(self, observation, layout):
        self.asked += len(observation)
        return np.full(len(observation), self.action)


@pytest.mark.parametrize(
    ("ages", "cause", "words"),
    [
        (Ages(telemetry_s=301), "telemetry_stale", "telemetry is 301 s old, allowed are 300 s"),
        (Ages(telemetry_s=float("nan")), "telemetry_missing", "telemetry is missing"),
        (Ages(telemetry_s=10, forecast_s=7201), "forecast_stale", "forecast is 7201 s old, allowed are 7200 s"),
        (Ages(forecast_s=float("inf")), "forecast_missing", "forecast is missing"),
        (Ages(telemetry_s=-60), "telemetry_stale", "telemetry is from 60 s in the future: a clock is wrong"),
    ],
)
def test_stale_or_missing_input_is_answered_by_the_judge_and_said(worlds, ages, cause, words):
    world, simulator, row = question(worlds)
    heard, policy = [], Constant(1)
    guarded = shielded(policy, ShieldConfig(), world.cluster, alert=lambda *told: heard.append(told))
    answer = guarded.decide(row, simulator.layout, ages)
    assert policy.asked == 0
    assert answer.reasons == (words,)
    assert answer.proposals.tolist() == [-1]
    assert guarded.counts[f"fallback.{cause}"] == 1
    assert heard == [(cause, words)]
    tight = row.copy()
    guarded.shield.tighten(tight, simulator.layout)
    assert answer.actions.tolist() == JUDGES["lookahead"].act(tight, simulator.layout).tolist()


@pytest.mark.parametrize("ages", [None, Ages(), Ages(300, 7200), Ages(0, 0), Ages(telemetry_s=-3)])
def test_fresh_input_is_answered_by_the_policy(worlds, ages):
    world, simulator, row = question(worlds)
    policy = Constant(int(np.flatnonzero(simulator.mask[0])[-1]))
    answer = shielded(policy, ShieldConfig(), world.cluster).decide(row, simulator.layout, ages)
    assert (answer.reasons, policy.asked) == (("",), 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_spoilt_observations_go_to_the_fallback_and_stay_within_the_mask(worlds, data):
    world, simulator, row = question(worlds)
    places = data.draw(st.lists(st.integers(0, row.shape[1] - 1), min_size=1, max_size=40, unique=True))
    values = data.draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 10.5, -1e30]), min_size=len(places), max_size=len(places)))
    spoilt, policy = np.vstack([row, row]), Constant(0)
    spoilt[0, places] = values
    guarded = shielded(policy, CONFIG, world.cluster)
    answer = guarded.decide(spoilt, simulator.layout)
    assert (bool(answer.reasons[0]), answer.reasons[1]) == (True, "")
    assert f"{len(places)} value" in answer.reasons[0]
    assert guarded.counts["fallback.observation"] == 1
    lost = not (answer.removed[0] == 0).any()
    assert guarded.counts["unanswerable"] == int(lost)
    assert lost or simulator.mask[0, answer.actions[0]]
    assert np.isnan(spoilt[0, places]).sum() == np.isnan(values).sum(), "the caller's array is left as it was"


def test_a_spoilt_price_is_no_reason_for_the_planner_to_take_a_candidate(worlds):
    world = worlds.random_world(2, count=10)
    simulator = Simulator(world, 1, JUDGES["planner"].settings, REWARD)
    simulator.reset([0])
    row = simulator.observe().copy()
    best = int(JUDGES["planner"].act(row, simulator.layout)[0])
    dear = next(int(a) for a in np.flatnonzero(simulator.mask[0]) if a != best)
    place = simulator.layout.planned_index
    row[0, dear * simulator.layout.n_candidate_features + place] = np.nan
    row[0, best * simulator.layout.n_candidate_features + place] = 0.01

    class Planned(Constant):
        settings = JUDGES["planner"].settings

    answer = shielded(Planned(dear), ShieldConfig(), world.cluster).decide(row, simulator.layout)
    assert answer.reasons[0]
    assert answer.actions[0] != dear


def test_rows_without_a_question_get_zero_and_count_as_nothing(worlds):
    world, simulator, row = question(worlds)
    guarded = shielded(Constant(7), ShieldConfig(), world.cluster)
    answer = guarded.decide(np.zeros_like(row), simulator.layout)
    assert (answer.actions[0], answer.overruled[0], answer.reasons[0]) == (0, 0, "")
    assert guarded.counts["unanswerable"] == 0
    blind = guarded.decide(np.full_like(row, np.nan), simulator.layout)
    assert blind.actions[0] == 0
    assert guarded.counts["unanswerable"] == 1


def test_the_fallback_is_a_parameter(worlds):
    world, simulator, row = question(worlds)
    for name in ("greedy_cost", "k8s_default"):
        guarded = shielded(Constant(0), ShieldConfig(fallback=name), world.cluster)
        assert guarded.fallback is JUDGES[name]
        tight = row.copy()
        guarded.shield.tighten(tight, simulator.layout)
        answer = guarded.decide(row, simulator.layout, Ages(telemetry_s=1e6))
        assert answer.actions[0] == JUDGES[name].act(tight, simulator.layout)[0]
    with pytest.raises(InputError, match="fallback 'nobody'"):
        judge_named("nobody")


# ---------------------------------------------------------------- training


def test_the_training_environment_shows_and_accepts_what_the_shield_leaves(worlds):
    world = tense_world(worlds, 1, count=20)
    shield = Shield.of(CONFIG, world.cluster, SETTINGS)
    env = ClusterVecEnv(world, 4, REWARD, SETTINGS, seed=0, shield=shield)
    observation, tightened, generator = env.reset(), 0, np.random.default_rng(0)
    for _ in range(60):
        masks = env.action_masks()
        np.testing.assert_array_equal(env.layout.mask(observation), masks)
        tightened += int((env.simulator.mask & ~masks).sum())
        removed = np.argwhere(env.simulator.mask & ~masks)
        if len(removed):
            actions = masks.argmax(axis=1)
            actions[removed[0, 0]] = removed[0, 1]
            with pytest.raises(InputError, match="removed by rule"):
                env.step(actions)
        draws = generator.random(masks.shape) * masks
        observation, _, _, _ = env.step(draws.argmax(axis=1))
    assert tightened > 0


def test_the_gymnasium_environments_show_and_accept_the_same(worlds):
    world = tense_world(worlds, 1, count=20)
    shield = Shield.of(CONFIG, world.cluster, SETTINGS)
    single = ClusterEnv(world, REWARD, SETTINGS, shield=shield)
    batch = ClusterVectorEnv(world, 3, REWARD, SETTINGS, autoreset_mode="Disabled", shield=shield)
    alone, info = single.reset(options={"window": 0})
    rows, infos = batch.reset(options={"window": 0})
    tightened, generator = 0, np.random.default_rng(0)
    for step in range(60):
        mask = info["action_mask"].astype(bool)
        np.testing.assert_array_equal(single.layout.mask(alone[None])[0], mask)
        np.testing.assert_array_equal(rows[0], alone)
        np.testing.assert_array_equal(infos["action_mask"], np.tile(info["action_mask"], (3, 1)))
        removed = np.flatnonzero(single.simulator.mask[0] & ~mask)
        tightened += len(removed)
        if len(removed):
            with pytest.raises(InputError, match="removed by rule"):
                single.step(int(removed[0]))
            with pytest.raises(InputError, match="removed by rule"):
                batch.step(np.full(3, removed[0]))
        action = int((generator.random(len(mask)) * mask).argmax())
        if step == 20:
            saved = single.copy_state()
            single.step(action)
            alone, info = single.restore_state(saved)
            np.testing.assert_array_equal(alone, rows[0])
            np.testing.assert_array_equal(info["action_mask"].astype(bool), mask)
        alone, _, done, _, info = single.step(action)
        rows, _, _, _, infos = batch.step(np.full(3, action))
        if done:
            alone, info = single.reset(options={"window": 0})
            batch.reset(options={"window": 0, "reset_mask": np.array([True, False, False])})
            rows, infos = batch.reset(options={"window": 0})
    assert tightened > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deadline_margin_s": -1.0}, "deadline_margin_s -1"),
        ({"telemetry_age_s": float("nan")}, "telemetry_age_s nan"),
        ({"class_floor_level": {"mining": 0.5}}, "class_floor_level of 'mining'"),
        ({"class_floor_level": {"training": 1.5}}, "class_floor_level 1.5"),
        ({"minimum_warm_nodes": {"v": 1.5}}, "minimum_warm_nodes 1.5"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        ShieldConfig(**change)


def test_run_policy_behind_the_shield_ends_every_window(worlds):
    objectives = DEFAULT_OBJECTIVES | {"training": replace(DEFAULT_OBJECTIVES["training"], deferrable=False)}
    spec = dataclasses.replace(worlds.cluster(), objectives=objectives)
    world = worlds.world_of(spec, worlds.random_rows(9, 20), worlds.daily_grid(9))
    totals = run_policy(world, shielded(RandomPolicy(2), CONFIG, spec), REWARD)
    assert ((totals.job_end_s >= 0) | (totals.job_rejected > 0)).all()

"""Each lever takes away what it says, from judges and from policies without a compiled chooser, and leaves the policy itself alone."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.events import events_frame
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.levers import FORECAST_FIELD, LEVERS, with_settings
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.windows import cut_windows, prepare_jobs
from envs.world import build_world

START = pd.Timestamp("2026-01-05", tz="UTC")
CLUSTER = ClusterSpec(
    "c",
    (SiteSpec("west"), SiteSpec("east")),
    (PoolSpec("w", "west", "V100", 4, 4), PoolSpec("e", "east", "V100", 4, 4)),
    level_fractions=(1.0, 0.6),
)


class Plain:
    """The look-ahead, asked through observations as an agent is; ``settings`` can be set."""

    name = "plain"

    def __init__(self, settings=JUDGES["lookahead"].settings):
        self.settings = settings

    def act(self, observation, layout):
        return JUDGES["lookahead"].act(observation, layout)


POLICIES = [JUDGES["lookahead"], Plain()]


def world_of(cluster):
    rng = np.random.default_rng(2)
    count = 80
    jobs = pd.DataFrame(
        {
            "job_id": [f"j{i:03d}" for i in range(count)],
            "submit_time": START + pd.to_timedelta(np.sort(rng.integers(0, 2 * 86_400, count)), unit="s"),
            "duration_s": rng.integers(600, 9000, count).astype(float),
            "gpus": rng.choice([1.0, 2.0], count),
            "workers": 1,
            "workload_class": "training",
        }
    )
    times = pd.date_range(START - pd.Timedelta(days=2), START + pd.Timedelta(days=9), freq="h")
    price = 0.1 + 0.08 * np.sin(np.arange(len(times)) / 24 * 2 * np.pi)
    one = pd.DataFrame({"time": times, "price_usd_per_kwh": price, "carbon_g_per_kwh": 300.0})
    grid = pd.concat([one.assign(site="west"), one.assign(site="east")], ignore_index=True)
    return build_world(cluster, cut_windows(prepare_jobs(jobs, cluster), grid, 30 * 3600, 2, 0))


def play(policy, lever=None):
    """World, totals and events of all windows, with or without a lever."""
    cluster, chosen = CLUSTER, policy
    if lever:
        cluster, chosen = LEVERS[lever].cluster(CLUSTER), with_settings(policy, LEVERS[lever].settings(policy.settings))
    world = world_of(cluster)
    totals = run_policy(world, chosen, RewardSpec(), event_log=True)
    events = pd.concat([events_frame(world, m, log).assign(window=m) for m, log in enumerate(totals.events)])
    return world, totals, events


def waited_s(world, totals):
    live = np.arange(world.jobs.submit_s.shape[1])[None, :] < world.jobs.count[:, None]
    return (totals.job_start_s - world.jobs.submit_s)[live]


@pytest.mark.parametrize("policy", POLICIES, ids=["judge", "observing"])
def test_without_caps_every_run_is_at_full_power(policy):
    assert (play(policy)[1].job_level > 0).any()
    world, totals, _ = play(policy, "no_caps")
    assert world.n_actions == 3
    assert totals.job_level.max() == 0


@pytest.mark.parametrize("policy", POLICIES, ids=["judge", "observing"])
def test_without_sleep_no_node_sleeps_and_energy_is_higher(policy):
    _, totals, events = play(policy)
    assert (events["event"] == "sleep").any()
    _, awake, others = play(policy, "no_sleep")
    assert not (others["event"].isin(["sleep", "wake"])).any()
    assert awake.energy_kwh.sum() > totals.energy_kwh.sum()


@pytest.mark.parametrize("policy", POLICIES, ids=["judge", "observing"])
def test_without_deferral_jobs_wait_for_nothing_but_a_node_to_wake(policy):
    world, totals, _ = play(policy)
    wake_s = max(pool.wake_latency_s for pool in CLUSTER.pools)
    assert waited_s(world, totals).max() > wake_s
    world, totals, _ = play(policy, "no_deferral")
    assert waited_s(world, totals).max() <= wake_s, "the cluster has room for all of them"
    assert totals.cost_usd.sum() > play(policy)[1].cost_usd.sum()


def test_without_migration_running_jobs_are_not_asked_about():
    reviewed = with_settings(JUDGES["lookahead"], replace(JUDGES["lookahead"].settings, review_s=1800))
    assert play(reviewed)[2]["event"].isin(["pause", "migrate", "level"]).any()
    assert not play(reviewed, "no_migration")[2]["event"].isin(["pause", "migrate", "level"]).any()


@pytest.mark.parametrize("policy", POLICIES, ids=["judge", "observing"])
def test_other_settings_leave_the_policy_as_it_was(policy):
    before = policy.settings
    changed = with_settings(policy, replace(before, sleep_after_s=-1))
    assert changed.settings.sleep_after_s == -1
    assert policy.settings is before
    assert type(changed) is type(policy)
    assert getattr(changed, "chooser", None) == getattr(policy, "chooser", None)


def test_levers_on_forecasts_wait_for_the_setting_that_they_change():
    there = FORECAST_FIELD in {field.name for field in fields(PolicySettings)}
    assert LEVERS["no_forecasts"].available == LEVERS["perfect_forecasts"].available == there
    assert all(LEVERS[name].available for name in ("no_caps", "no_sleep", "no_deferral", "no_migration"))


@pytest.mark.skipif(not LEVERS["perfect_forecasts"].available, reason="PolicySettings has no price_forecast yet")
def test_perfect_forecasts_save_and_no_forecasts_cost():
    own, perfect, none = (play(JUDGES["lookahead"], lever)[1].objective_usd.sum() for lever in (None, "perfect_forecasts", "no_forecasts"))
    assert perfect <= own * (1 + 1e-9), "prices repeat every day here: the usual forecast is right"
    assert none > own, "without a forecast there is no reason to wait for the cheap hours"

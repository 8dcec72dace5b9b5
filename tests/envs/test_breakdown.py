"""Results by class and by site: by hand, and summing to the whole."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from envs.breakdown import Breakdown, class_rows, site_rows
from envs.evaluate import evaluate, summarise
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.reward import RewardSpec
from telemetry.classes import WORKLOAD_CLASSES


@pytest.fixture(scope="module")
def world(worlds):
    return worlds.random_world(11, count=60, windows=3)


@pytest.fixture(scope="module")
def totals(world):
    return run_policy(world, JUDGES["lookahead"], RewardSpec())


def test_classes_and_idle_remainder_sum_to_the_sites(world, totals):
    classes, sites = class_rows(world, totals), site_rows(world, totals)
    for name in ("energy_kwh", "cost_usd", "carbon_kg"):
        charged = classes.groupby("window")[name].sum().to_numpy()
        idle = getattr(totals, f"idle_{name}").sum(axis=(1, 2))
        assert charged + idle == pytest.approx(getattr(totals, name).sum(axis=1), rel=1e-9)
        assert sites.groupby("window")[name].sum().to_numpy() == pytest.approx(getattr(totals, name).sum(axis=1), rel=1e-12)
    assert (classes["energy_kwh"] > 0).any()
    assert (sites["idle_energy_kwh"] > 0).any()


def test_a_class_holds_its_own_jobs_and_nobody_elses(world, totals):
    classes = class_rows(world, totals).set_index(["window", "workload_class"])
    assert classes["jobs"].sum() == world.jobs.count.sum()
    for m in range(world.n_windows):
        n = int(world.jobs.count[m])
        for kind, name in enumerate(WORKLOAD_CLASSES):
            own = np.flatnonzero(world.jobs.kind[m, :n] == kind)
            if not len(own):
                assert (m, name) not in classes.index
                continue
            row = classes.loc[(m, name)]
            waits = [totals.job_start_s[m, j] - world.jobs.submit_s[m, j] for j in own if totals.job_end_s[m, j] >= 0]
            bad = [j for j in own if totals.job_late_start[m, j] or totals.job_missed_deadline[m, j] or totals.job_rejected[m, j]]
            assert row["jobs"] == len(own)
            assert row["jobs_completed"] == len(waits)
            assert row["wait_s"] == sum(waits)
            assert row["sla_violations"] == len(bad)
            assert row["late_starts"] == totals.job_late_start[m, own].sum()
            assert row["missed_deadlines"] == totals.job_missed_deadline[m, own].sum()
            assert row["cost_usd"] == pytest.approx(sum(totals.job_cost_usd[m, j] for j in own))


def test_means_by_policy_agree_with_the_metrics_of_windows(world):
    other = replace(world, window_start=tuple(start + pd.Timedelta(hours=1) for start in world.window_start))
    seen = Breakdown()
    policies = {name: JUDGES[name] for name in ("k8s_default", "lookahead")}
    frame = evaluate({0: world, 1: other}, policies, (0, 1), inspect=seen)
    means, classes, sites = summarise(frame), seen.by_class(), seen.by_site()
    for policy in policies:
        own, there = classes.loc[policy], sites.loc[policy]
        assert own["jobs"].sum() == pytest.approx(frame[frame["policy"] == policy]["jobs_submitted"].mean())
        assert own["missed_deadlines"].sum() == pytest.approx(means.loc[policy, "missed_deadlines"])
        assert own["late_starts"].sum() == pytest.approx(means.loc[policy, "late_starts"])
        assert (own["mean_wait_s"] * own["jobs_completed"]).sum() / own["jobs_completed"].sum() == pytest.approx(
            np.average(frame[frame["policy"] == policy]["mean_wait_s"], weights=frame[frame["policy"] == policy]["jobs_completed"])
        )
        assert there["energy_kwh"].sum() == pytest.approx(means.loc[policy, "energy_kwh"])
        assert own["energy_kwh"].sum() + there["idle_energy_kwh"].sum() == pytest.approx(means.loc[policy, "energy_kwh"])
        assert there["idle_energy_share"].between(0, 1).all()
    assert sites.loc["k8s_default", "idle_energy_kwh"].sum() > sites.loc["lookahead", "idle_energy_kwh"].sum(), "one of them sleeps"

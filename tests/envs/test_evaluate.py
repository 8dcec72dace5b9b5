"""Evaluation: metrics by hand, every job accounted for, paired differences with intervals."""

import numpy as np
import pandas as pd
import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.evaluate import CONTRACT_METRICS, METRICS, evaluate, paired_difference, summarise
from envs.heuristics import JUDGES
from envs.job_table import prepare_jobs
from envs.power.curves import levels_for
from envs.windows import constant_grid, cut_windows, window_at
from envs.world import build_world
from telemetry.classes import CLASS_INDEX
from telemetry.errors import InputError

START = pd.Timestamp("2026-01-05", tz="UTC")
ONE_GPU = ClusterSpec("one", (SiteSpec("west", pue_base=1.2),), (PoolSpec("p", "west", "V100", 1, 1),), level_fractions=(1.0,))
GRID = constant_grid(["west"], START - pd.Timedelta(days=1), START + pd.Timedelta(days=3), price_usd_per_kwh=0.2, carbon_g_per_kwh=500.0)


def jobs(*rows):
    """Rows of (submit second, duration, GPUs, class)."""
    frame = pd.DataFrame(rows, columns=["submit", "duration_s", "gpus", "workload_class"])
    frame["submit_time"] = START + pd.to_timedelta(frame["submit"], unit="s")
    frame["job_id"] = [f"j{i:03d}" for i in range(len(frame))]
    return frame.assign(workers=1)


def hand_world():
    table = jobs((0, 100, 1.0, "training"), (0, 100, 1.0, "realtime_inference"), (10, 50, 4.0, "interactive"))
    grid = GRID.sort_values(["time", "site"], ignore_index=True)
    return build_world(ONE_GPU, [window_at(prepare_jobs(table, ONE_GPU), grid, START, 3600)])


def random_world(seed=0, windows=4):
    generator = np.random.default_rng(seed)
    cluster = ClusterSpec("small", (SiteSpec("west"),), (PoolSpec("a", "west", "V100", 2, 2), PoolSpec("b", "west", "A40", 2, 2)))
    count = 150
    rows = zip(
        np.sort(generator.integers(0, 2 * 86400, count)),
        generator.integers(60, 4000, count),
        generator.choice([0.5, 1.0, 2.0, 8.0], count, p=[0.3, 0.4, 0.25, 0.05]),
        generator.choice(list(CLASS_INDEX), count),
        strict=True,
    )
    prepared = prepare_jobs(jobs(*rows), cluster)
    return build_world(cluster, cut_windows(prepared, GRID, 12 * 3600, windows, seed=seed))


def test_metrics_by_hand():
    frame = evaluate(hand_world(), {"k8s_default": JUDGES["k8s_default"]})
    row = frame.iloc[0]
    _, power_w = levels_for("V100", (1.0,))
    watts = [280 + power_w[0, CLASS_INDEX[kind]] - 30 + 20 for kind in ("training", "realtime_inference")]
    kwh = sum(watts) * 100 * 1.2 / 3.6e6
    assert row["energy_kwh"] == pytest.approx(kwh, rel=1e-9)
    assert row["cost_usd"] == pytest.approx(0.2 * kwh, rel=1e-9)
    assert row["carbon_kg"] == pytest.approx(0.5 * kwh, rel=1e-9)
    assert (row["jobs_submitted"], row["jobs_completed"], row["jobs_rejected"]) == (3, 2, 1)
    assert row["mean_wait_s"] == 50
    assert row["p95_wait_s"] == pytest.approx(95)
    assert row["mean_bounded_slowdown"] == 1.5
    assert row["gpu_utilization"] == 1.0
    assert row["sla_violation_rate"] == pytest.approx(1 / 3)
    assert row["sla_violation_rate_interactive"] == 1.0
    assert row["sla_violation_rate_training"] == 0.0
    assert np.isnan(row["sla_violation_rate_fine_tuning"])
    assert row["objective_usd"] == pytest.approx(row["cost_usd"] + 0.1 * row["carbon_kg"] + row["penalty_usd"], rel=1e-9)


def test_slowdown_threshold_bounds_short_jobs():
    table = jobs((0, 100, 1.0, "training"), (0, 1, 1.0, "training"))
    world = build_world(ONE_GPU, [window_at(prepare_jobs(table, ONE_GPU), GRID, START, 3600)])
    policy = {"k8s_default": JUDGES["k8s_default"]}
    assert evaluate(world, policy)["mean_bounded_slowdown"][0] == pytest.approx((1 + 101 / 10) / 2)
    assert evaluate(world, policy, slowdown_threshold_s=1)["mean_bounded_slowdown"][0] == pytest.approx((1 + 101) / 2)


def test_one_row_per_policy_window_and_seed_and_every_job_is_accounted_for():
    worlds = {seed: random_world(seed) for seed in (0, 1)}
    frame = evaluate(worlds, {name: JUDGES[name] for name in ("k8s_default", "easy", "lookahead")}, seeds=(0, 1))
    assert len(frame) == 3 * 4 * 2
    assert not frame.duplicated(["policy", "window", "seed"]).any()
    assert (frame["jobs_completed"] + frame["jobs_rejected"] == frame["jobs_submitted"]).all()
    assert (frame["jobs_rejected"] > 0).any()
    assert frame[[*CONTRACT_METRICS]].notna().all().all()
    assert frame["gpu_utilization"].between(0, 1).all()
    again = evaluate(worlds, {name: JUDGES[name] for name in ("k8s_default", "easy", "lookahead")}, seeds=(0, 1))
    pd.testing.assert_frame_equal(frame, again)


def test_a_policy_without_a_compiled_chooser_is_reseeded_and_scored_alike():
    class Plain:
        """The same judge, asked through observations."""

        name, settings = "plain", JUDGES["k8s_default"].settings

        def __init__(self):
            self.seeds = []

        def reseed(self, seed):
            self.seeds.append(seed)

        def act(self, observation, layout):
            return JUDGES["k8s_default"].act(observation, layout)

    plain = Plain()
    frame = evaluate(random_world(), {"k8s_default": JUDGES["k8s_default"], "plain": plain}, seeds=(3, 4))
    assert plain.seeds == [3, 4]
    both = [frame[frame["policy"] == name][list(METRICS)].reset_index(drop=True) for name in ("k8s_default", "plain")]
    pd.testing.assert_frame_equal(*both)


def test_window_without_jobs_has_zeros_and_no_rates():
    prepared = prepare_jobs(jobs((0, 100, 1.0, "training")), ONE_GPU)
    world = build_world(ONE_GPU, [window_at(prepared, GRID, START, 3600), window_at(prepared, GRID, START + pd.Timedelta(hours=5), 3600)])
    frame = evaluate(world, {"k8s_default": JUDGES["k8s_default"], "easy": JUDGES["easy"]})
    empty = frame[frame["window"] == 1]
    assert (empty[["energy_kwh", "jobs_completed", "jobs_rejected"]] == 0).all().all()
    assert empty["mean_wait_s"].isna().all()
    difference = paired_difference(frame).set_index("metric")
    assert difference.loc["mean_wait_s", "windows"] == 1
    assert difference.loc["energy_kwh", "windows"] == 2


def synthetic(shift=-1.0, noise=0.0, windows=30, seeds=3):
    generator = np.random.default_rng(5)
    rows = []
    for window in range(windows):
        for seed in range(seeds):
            base = 10 + 5 * generator.standard_normal()
            rows.append({"policy": "k8s_default", "window": window, "seed": seed, "cost_usd": base})
            rows.append({"policy": "b", "window": window, "seed": seed, "cost_usd": base + shift + noise * generator.standard_normal()})
    return pd.DataFrame(rows)


def test_paired_difference_sees_through_the_spread_between_windows():
    exact = paired_difference(synthetic(), metrics=["cost_usd"]).iloc[0]
    assert exact["mean"] == pytest.approx(-1)
    assert exact["low"] == pytest.approx(-1)
    assert exact["high"] == pytest.approx(-1)
    noisy = paired_difference(synthetic(noise=2.0), metrics=["cost_usd"]).iloc[0]
    assert noisy["low"] < noisy["mean"] < noisy["high"]
    half = 1.96 * 2.0 / np.sqrt(30 * 3)
    assert 0.5 * half < (noisy["high"] - noisy["low"]) / 2 < 1.6 * half
    assert noisy["relative"] == pytest.approx(noisy["mean"] / synthetic(noise=2.0).query("policy == 'k8s_default'")["cost_usd"].mean())


def test_interval_is_over_windows_and_not_over_repeated_seeds():
    """Copies of the same windows under more seeds must not narrow the interval."""
    one = synthetic(noise=2.0, seeds=1)
    many = pd.concat([one.assign(seed=seed) for seed in range(5)], ignore_index=True)
    columns = ["mean", "low", "high"]
    pd.testing.assert_frame_equal(
        paired_difference(one, metrics=["cost_usd"])[columns], paired_difference(many, metrics=["cost_usd"])[columns]
    )


def test_one_window_has_no_interval_and_unknown_baseline_is_named():
    single = paired_difference(synthetic(windows=1), metrics=["cost_usd"]).iloc[0]
    assert single["mean"] == pytest.approx(-1)
    assert np.isnan(single["low"])
    with pytest.raises(InputError, match=r"baseline 'easy'.*k8s_default, b"):
        paired_difference(synthetic(), "easy", metrics=["cost_usd"])


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(InputError, match="0 policies"):
        evaluate(hand_world(), {})
    with pytest.raises(InputError, match="no world for seed 7"):
        evaluate({0: hand_world()}, {"easy": JUDGES["easy"]}, seeds=(0, 7))


def test_summary_is_the_mean_over_windows_and_seeds():
    frame = evaluate(random_world(), {name: JUDGES[name] for name in ("k8s_default", "easy")})
    means = summarise(frame)
    assert list(means.index) == ["k8s_default", "easy"]
    assert means.loc["easy", "cost_usd"] == pytest.approx(frame[frame["policy"] == "easy"]["cost_usd"].mean())

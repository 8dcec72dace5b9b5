"""The sweep over preferences: weights reach the policies, fronts and volumes are those of their points, and the chart is drawn."""

import numpy as np
import pandas as pd
import pytest
from evaluation_makers import START, cluster_yaml, jobs_table
from matplotlib.collections import PathCollection

from envs.heuristics import JUDGES
from envs.hypervolume import hypervolume
from envs.kernel import run_policy
from envs.reward import RewardSpec
from envs.windows import cut_windows, prepare_jobs
from envs.world import build_world
from pipelines.pareto import AXES, BLIND, VOLUMES, _box, _volumes, preferences
from registry.preference_plots import SIDES, preference_fronts
from telemetry.errors import InputError

CLUSTER = cluster_yaml(nodes=1, gpus=4)
WINDOWS = ("windows=3", "window_hours=30")
JOBS = jobs_table(150, 144, [1.0, 2.0], ["training", "interactive"])


def grid_table():
    """Dear and clean in the west, cheap and dirty in the east."""
    times = pd.date_range(START - pd.Timedelta(days=2), START + pd.Timedelta(days=9), freq="h")
    wave = np.sin(np.arange(len(times)) / 24 * 2 * np.pi)
    west = pd.DataFrame({"time": times, "price_usd_per_kwh": 0.16 + 0.02 * wave, "carbon_g_per_kwh": 100.0, "site": "west"})
    east = pd.DataFrame({"time": times, "price_usd_per_kwh": 0.05 + 0.02 * wave, "carbon_g_per_kwh": 700.0, "site": "east"})
    return pd.concat([west, east], ignore_index=True)


@pytest.fixture
def call(evaluation):
    return evaluation(JOBS, grid_table(), CLUSTER, *WINDOWS)


def test_a_front_for_every_policy_and_a_chart(call, tmp_path):
    code, found, streams = call("policies=[k8s_default,greedy_cost,lookahead]", "pareto=3")
    assert code == 0
    told = found["pareto"]
    count = {name: len(told["policies"][name]["points"]) for name in told["policies"]}
    assert count == {"k8s_default": 1, "greedy_cost": 9, "lookahead": 9}, "a policy that sees no weight is run once"
    for name, policy in told["policies"].items():
        own = [point for point in policy["points"] if point["configured"]]
        assert len(own) == 1
        assert (own[0]["w_sla"], own[0]["w_carbon"]) == (1.0, 1.0)
        for axis in AXES:
            assert own[0][axis] == pytest.approx(found["summary"][name][axis])
            assert all(told["ideal"][axis] <= point[axis] < told["reference"][axis] for point in policy["points"])
        assert any(point["on_front"] for point in policy["points"])
        for volume, row in policy["hypervolume"].items():
            assert 0 < row["value"] <= 1
            assert row["low"] <= row["high"]
            assert row["beyond_judge"] == pytest.approx(row["value"] - told["policies"][told["judge"]]["hypervolume"][volume]["value"])
    points = pd.DataFrame(told["policies"]["lookahead"]["points"]).sort_values("w_carbon")
    clean, cheap = points[points["w_carbon"] == 10.0].iloc[0], points[points["w_carbon"] == 0.1].iloc[0]
    assert clean["carbon_kg"] < cheap["carbon_kg"]
    assert clean["cost_usd"] > cheap["cost_usd"]
    assert (tmp_path / "out.pareto.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "out.pareto.svg").read_bytes()[:500]
    assert "out.pareto.png" in streams.out
    assert "preferences: share of the box" in streams.out


def test_volumes_are_those_of_the_points(call):
    _, found, _ = call("policies=[greedy_cost,lookahead]", "baseline=null", "pareto=2")
    told = found["pareto"]
    for name in ("greedy_cost", "lookahead"):
        points = pd.DataFrame(told["policies"][name]["points"])
        assert len(points) == 5, "four preferences and the configured one"
        for volume, axes in VOLUMES.items():
            low, high = (np.array([told[key][axis] for axis in axes]) for key in ("ideal", "reference"))
            value = hypervolume(points[[*axes]].to_numpy(), high) / np.prod(high - low)
            assert told["policies"][name]["hypervolume"][volume]["value"] == pytest.approx(value)


def test_no_sweep_unless_asked_and_a_count_is_a_whole_number(call, tmp_path):
    assert "pareto" not in call("policies=[easy]")[1]
    assert not (tmp_path / "out.pareto.png").exists()
    code, _, streams = call("policies=[easy]", "pareto=many")
    assert code == 2
    assert "pareto=many" in streams.err


def test_preferences_lie_evenly_around_the_configured_weights():
    specs = preferences(RewardSpec(w_sla=2.0, w_carbon=0.0, w_cost=3.0), 3)
    assert [spec.w_sla for spec in specs[:4]] == pytest.approx([0.2, 0.2, 0.2, 2.0])
    assert [spec.w_carbon for spec in specs[:4]] == pytest.approx([0.1, 1.0, 10.0, 0.1])
    assert {spec.w_cost for spec in specs} == {3.0}
    assert preferences(RewardSpec(), 1) == [RewardSpec()]


def test_judges_that_are_run_once_do_not_see_weights():
    jobs = prepare_jobs(JOBS, (cluster := _cluster()))
    world = build_world(cluster, cut_windows(jobs, grid_table(), 30 * 3600, 2, 0))
    blind = [judge for judge in JUDGES.values() if judge.chooser in BLIND]
    assert len(blind) >= 5
    for judge in blind:
        ends = [run_policy(world, judge, spec).job_end_s for spec in (RewardSpec(), RewardSpec(w_sla=0.01, w_carbon=50.0))]
        assert (ends[0] == ends[1]).all()


def _cluster():
    from envs.cluster import ClusterSpec, PoolSpec, SiteSpec

    pools = (PoolSpec("w", "west", "V100", 1, 4), PoolSpec("e", "east", "A40", 1, 4))
    return ClusterSpec("c", (SiteSpec("west"), SiteSpec("east")), pools, level_fractions=(1.0, 0.6))


def test_intervals_of_volumes_are_paired():
    """A policy that is the judge, a constant cheaper in every window: its lead in volume is surer than either volume."""
    rng = np.random.default_rng(0)
    judge = np.column_stack([10 + 3 * rng.standard_normal(40), np.full(40, 5.0), np.full(40, 5.0), np.full(40, 0.1)])
    means = np.stack([judge, judge - [1.0, 0, 0, 0]])
    points = pd.DataFrame(means.mean(axis=1), columns=[*AXES])
    ideal, reference = _box(pd.concat([points, points + 3, points - 3]))
    table = _volumes(pd.Series(["easy", "agent"]), means, ideal, reference, "easy", 0).set_index(["policy", "volume"])
    row = table.loc[("agent", "cost_sla")]
    assert row["beyond_judge_low"] > 0
    assert row["beyond_judge_high"] - row["beyond_judge_low"] < 0.2 * (row["high"] - row["low"])
    assert (table.loc["easy"][["beyond_judge", "beyond_judge_low", "beyond_judge_high"]] == 0).all().all()


# ---------------------------------------------------------------- chart


def points_table(policies=3):
    rng = np.random.default_rng(3)
    rows = []
    for k in range(policies):
        for step in np.linspace(0, 1, 6):
            cost = 10 + 3 * k + 5 * step + rng.random()
            rows.append(
                {"policy": f"policy_{k}", "cost_usd": cost, "energy_kwh": 15 * cost, "carbon_kg": 4 * cost, "configured": step == 0.4}
                | {"sla_violation_rate": 0.02 + 0.01 * k - 0.015 * step}
            )
    return pd.DataFrame(rows)


def test_chart_has_a_panel_an_axis_a_point_a_preference_and_falling_fronts():
    figure = preference_fronts(points_table(), highlight="policy_1")
    assert [axes.get_xlabel() for axes in figure.axes] == list(SIDES.values())
    for axes in figure.axes:
        drawn = [item.get_offsets() for item in axes.collections if isinstance(item, PathCollection)]
        assert sum(len(offsets) for offsets in drawn) == 18 + 3, "all points, and a ring around the configured one of each policy"
        lines = [line.get_xydata() for line in axes.lines]
        assert len(lines) == 3
        for line in lines:
            assert (np.diff(line[:, 0]) > 0).all()
            assert (np.diff(line[:, 1]) < 0).all()
    assert max(line.get_linewidth() for line in figure.axes[0].lines) == 2.4


def test_no_two_of_many_policies_look_alike():
    axes = preference_fronts(points_table(14)).axes[0]
    looks = {
        (tuple(item.get_facecolor()[0]), item.get_paths()[0].vertices.tobytes())
        for item in axes.collections
        if len(item.get_offsets()) == 6
    }
    assert len(looks) == 14


def test_chart_names_what_is_missing():
    with pytest.raises(InputError, match="carbon_kg"):
        preference_fronts(points_table().drop(columns="carbon_kg"))

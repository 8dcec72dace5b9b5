"""Sections of ``python -m pipelines.evaluate``: classes and sites, a second baseline, the bound."""

import sys
import types

import numpy as np
import pandas as pd
import pytest
from evaluation_makers import START, cluster_yaml, jobs_table

from envs.heuristics import JUDGES
from envs.state import PolicySettings
from pipelines import evaluate as command
from pipelines import policies
from pipelines.against import against_section, best_judge
from pipelines.bounded import bound_ratios
from telemetry.errors import InputError

CLUSTER = cluster_yaml(nodes=2, gpus=2)
WINDOWS = ("windows=4", "window_hours=24")
JOBS = jobs_table(90, 120, [0.5, 1.0, 2.0], ["training", "interactive", "batch_inference"])


def grid_table():
    times = pd.date_range(START - pd.Timedelta(days=2), START + pd.Timedelta(days=9), freq="h")
    hour = np.arange(len(times))
    one = pd.DataFrame({"time": times, "price_usd_per_kwh": 0.1 + 0.05 * np.sin(hour / 24 * 2 * np.pi), "carbon_g_per_kwh": 300.0})
    return pd.concat([one.assign(site="west"), one.assign(site="east", carbon_g_per_kwh=500.0)], ignore_index=True)


@pytest.fixture
def call(evaluation):
    return evaluation(JOBS, grid_table(), CLUSTER, *WINDOWS)


class Learned:
    """A policy that is no judge: greedy, and it lets nodes sleep at once."""

    name, settings = "learned", PolicySettings(sleep_after_s=0)

    def act(self, observation, layout):
        return JUDGES["greedy_cost"].act(observation, layout)


@pytest.fixture
def learned(monkeypatch):
    def resolve(name, uri="", judges=None, _known=policies.resolve_policy):
        return Learned() if name == "champion" else _known(name, uri)

    monkeypatch.setattr(command, "resolve_policy", resolve)


def test_classes_and_sites_are_in_the_summary_and_printed(call):
    code, found, streams = call("policies=[k8s_default,lookahead]", "seeds=2")
    assert code == 0
    for name in ("k8s_default", "lookahead"):
        means = found["summary"][name]
        assert set(means["by_class"]) == {"training", "interactive", "batch_inference"}
        assert set(means["by_site"]) == {"west", "east"}
        assert sum(row["energy_kwh"] for row in means["by_site"].values()) == pytest.approx(means["energy_kwh"])
        assert sum(row["cost_usd"] for row in means["by_site"].values()) == pytest.approx(means["cost_usd"])
        idle = sum(row["idle_energy_kwh"] for row in means["by_site"].values())
        assert sum(row["energy_kwh"] for row in means["by_class"].values()) + idle == pytest.approx(means["energy_kwh"])
        wanted = np.mean([row["jobs_submitted"] for row in found["policies"][name]["windows"]])
        assert sum(row["jobs"] for row in means["by_class"].values()) == pytest.approx(wanted)
    assert "by workload class" in streams.out
    assert "idle_energy_share" in streams.out


def test_bills_by_class_follow_the_true_grid_under_telemetry_loss(call):
    _, found, _ = call("policies=[lookahead]", "baseline=null", "stress=telemetry_loss", "stress.telemetry_loss.every_hours=24")
    means = found["summary"]["lookahead"]
    idle = sum(row["idle_energy_kwh"] for row in means["by_site"].values())
    assert sum(row["energy_kwh"] for row in means["by_class"].values()) + idle == pytest.approx(means["energy_kwh"])
    assert sum(row["cost_usd"] for row in means["by_site"].values()) == pytest.approx(means["cost_usd"])


def test_a_policy_is_compared_with_the_best_judge_of_these_data(call, learned):
    code, found, streams = call("policies=[k8s_default,easy,lookahead,champion]", "against=best_judge")
    assert code == 0
    judges = {name: found["summary"][name]["objective_usd"] for name in ("k8s_default", "easy", "lookahead")}
    best = min(judges, key=judges.get)
    assert found["against"]["policy"] == best != "k8s_default"
    assert "chosen on the data shown" in found["against"]["chosen"]
    assert set(found["against"]["paired_difference"]) == {"champion"}
    row = found["against"]["paired_difference"]["champion"]["objective_usd"]
    assert row["mean"] == pytest.approx(found["summary"]["champion"]["objective_usd"] - judges[best])
    assert row["baseline"] == best
    assert row["low"] <= row["mean"] <= row["high"]
    assert f"paired difference to {best} (least mean objective among the judges evaluated" in streams.out
    assert set(found["paired_difference"]) == {"easy", "lookahead", "champion"}, "the first baseline stays"


def test_judges_alone_are_compared_with_the_best_of_them(call):
    _, found, _ = call("policies=[k8s_default,easy,lookahead]", "against=best_judge")
    assert set(found["against"]["paired_difference"]) == {"k8s_default", "easy", "lookahead"} - {found["against"]["policy"]}
    _, found, _ = call("policies=[k8s_default,easy]", "against=easy")
    assert found["against"] == {"policy": "easy", "chosen": "named", "paired_difference": found["against"]["paired_difference"]}
    code, _, streams = call("policies=[k8s_default,easy]", "against=fifo")
    assert code == 2
    assert "'fifo' was not evaluated" in streams.err


def test_the_best_judge_is_never_a_policy_that_learned():
    rows = pd.DataFrame({"policy": ["easy", "champion", "fifo"], "window": 0, "objective_usd": [2.0, 1.0, 3.0]})
    assert best_judge(rows) == "easy"
    with pytest.raises(InputError, match="no judge was evaluated"):
        against_section(rows[rows["policy"] == "champion"], "best_judge")


# ---------------------------------------------------------------- bound


def fake_bound(monkeypatch, usd):
    """A module in the place of ``envs.bound``, which counts its calls."""
    calls = []

    def bounds(world, reward, *, method="lp", reviews=True, only_free=False):
        calls.append((method, reviews, only_free))
        return pd.DataFrame({"window": range(world.n_windows), "bound_usd": usd(world)})

    module = types.ModuleType("envs.bound")
    module.bounds = bounds
    monkeypatch.setitem(sys.modules, "envs.bound", module)
    return calls


def test_bound_of_every_window_and_the_ratio_to_it(call, monkeypatch):
    calls = fake_bound(monkeypatch, lambda world: 0.1 + 0.01 * np.arange(world.n_windows))
    code, found, streams = call("policies=[k8s_default,lookahead]", "seeds=2", "bound=lp")
    assert code == 0
    assert calls == [("lp", False, True)] * 2, "once a world, for policies that review nothing and pass blocked jobs by"
    assert found["bound"] == "lp"
    for name in ("k8s_default", "lookahead"):
        rows = found["policies"][name]["windows"]
        assert [row["bound_usd"] for row in rows] == pytest.approx([0.1 + 0.01 * row["window"] for row in rows])
        bound = found["summary"][name]["bound"]
        assert bound["ratio"] == pytest.approx(
            np.mean([row["objective_usd"] for row in rows]) / np.mean([row["bound_usd"] for row in rows])
        )
        assert bound["low"] < bound["ratio"] < bound["high"]
        assert bound["windows"] == 4
        assert bound["below"] == 0
    assert found["summary"]["k8s_default"]["bound"]["ratio"] > found["summary"]["lookahead"]["bound"]["ratio"]
    assert "objective over the clairvoyant lower bound (lp" in streams.out


def test_bounds_of_some_windows_are_spread_over_those_of_the_first_seed(call, monkeypatch):
    calls = fake_bound(monkeypatch, lambda world: world.jobs.count.astype(float))
    _, found, streams = call("policies=[lookahead]", "baseline=null", "seeds=2", "bound=lp", "bound_windows=2")
    assert len(calls) == 1
    rows = found["policies"]["lookahead"]["windows"]
    told = {(row["window"], row["seed"]): row["bound_usd"] for row in rows}
    submitted = {(row["window"], row["seed"]): row["jobs_submitted"] for row in rows}
    assert {key for key, value in told.items() if value is not None} == {(0, 0), (3, 0)}
    assert all(told[key] == submitted[key] for key in ((0, 0), (3, 0))), "each window its own bound"
    bound = found["summary"]["lookahead"]["bound"]
    objective = [row["objective_usd"] for row in rows if row["bound_usd"] is not None]
    assert bound["ratio"] == pytest.approx(sum(objective) / (told[0, 0] + told[3, 0]))
    assert bound["windows"] == 2
    assert "over 2 windows" in streams.out


def test_a_bound_above_an_objective_is_called_wrong(call, monkeypatch):
    calls = fake_bound(monkeypatch, lambda world: np.full(world.n_windows, 1e6))
    _, found, streams = call("policies=[lookahead]", "baseline=null", "bound=milp")
    call("policies=[fifo]", "baseline=null", "bound=milp")
    assert calls == [("milp", False, True), ("milp", False, False)], "a strict queue may have to be undercut otherwise"
    assert found["summary"]["lookahead"]["bound"]["below"] == 4
    assert "BELOW THE BOUND in 4 windows" in streams.out


def test_ratio_is_of_means_and_undefined_without_a_positive_bound():
    rows = pd.DataFrame({"policy": "easy", "window": [0, 0, 1, 1], "seed": [0, 1, 0, 1], "objective_usd": [2.0, 4.0, 6.0, 8.0]})
    found = bound_ratios(rows.assign(bound_usd=[1.0, 1.0, 4.0, 4.0])).loc["easy"]
    assert found["ratio"] == pytest.approx(20 / 10)
    assert found["low"] == pytest.approx(7 / 4), "both draws of the second window"
    assert found["high"] == pytest.approx(3 / 1)
    assert np.isnan(bound_ratios(rows.assign(bound_usd=-1.0)).loc["easy", "ratio"])


def test_no_bound_unless_asked_and_unknown_kinds_are_refused(call):
    code, found, _ = call("policies=[k8s_default]")
    assert code == 0
    assert "bound" not in found
    assert "bound_usd" not in found["policies"]["k8s_default"]["windows"][0]
    code, _, streams = call("policies=[k8s_default]", "bound=lagrange")
    assert code == 2
    assert "bound=lagrange" in streams.err
    assert "none, lp, milp" in streams.err

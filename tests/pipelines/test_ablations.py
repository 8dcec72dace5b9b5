"""Sections that play more: ablations and the table under stress, through the command and by hand."""

import numpy as np
import pandas as pd
import pytest
from evaluation_makers import START, cluster_yaml, jobs_table

from envs.agent.network import ActionScorer
from envs.agent.policy import AgentPolicy
from envs.heuristics import JUDGES
from envs.observation import N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, ObservationLayout
from pipelines import evaluate as command
from pipelines.ablations import ABLATIONS, ablation_names
from pipelines.stress import KINDS
from pipelines.stress_table import degradations
from telemetry.errors import InputError

CLUSTER = cluster_yaml(nodes=2, gpus=2)
WINDOWS = ("windows=3", "window_hours=30")
JOBS = jobs_table(120, 144, [1.0, 2.0], ["training", "batch_inference"])


def grid_table():
    times = pd.date_range(START - pd.Timedelta(days=2), START + pd.Timedelta(days=9), freq="h")
    hour = np.arange(len(times))
    one = pd.DataFrame({"time": times, "price_usd_per_kwh": 0.1 + 0.08 * np.sin(hour / 24 * 2 * np.pi), "temperature_c": 20.0})
    one = one.assign(carbon_g_per_kwh=300.0)
    return pd.concat([one.assign(site="west"), one.assign(site="east", carbon_g_per_kwh=350.0)], ignore_index=True)


@pytest.fixture
def call(evaluation):
    return evaluation(JOBS, grid_table(), CLUSTER, *WINDOWS)


def test_what_each_lever_of_the_best_judge_is_worth(call):
    code, found, streams = call("policies=[k8s_default,lookahead]", "ablations=true")
    assert code == 0
    told = found["ablations"]
    assert told["policy"] == "lookahead"
    assert "chosen on the data shown" in told["chosen"]
    assert set(told["levers"]) == set(ABLATIONS)
    assert told["levers"]["no_warm_start"] == {"not_available": "a judge is not trained"}
    assert told["levers"]["no_migration"] == {"not_available": "the policy does not have it"}
    worth = {name: told["levers"][name]["worth"] for name in ("no_caps", "no_sleep", "no_deferral")}
    assert worth["no_sleep"]["energy_kwh"]["low"] > 0
    assert worth["no_deferral"]["cost_usd"]["mean"] > 0
    for rows in worth.values():
        assert rows["energy_kwh"]["baseline"] == "lookahead"
        assert rows["energy_kwh"]["low"] <= rows["energy_kwh"]["mean"] <= rows["energy_kwh"]["high"]
        assert rows["energy_kwh"]["windows"] == 3
    _, alone, _ = call("policies=[lookahead]", "baseline=null")
    assert alone["summary"]["lookahead"] == found["summary"]["lookahead"], "the whole policy is played as ever"
    assert "what each lever of lookahead" in streams.out
    assert "no_warm_start      not available: a judge is not trained" in streams.out


def test_an_agent_against_the_same_trained_from_scratch(call, monkeypatch):
    class Agent:
        name, settings = "agent", JUDGES["lookahead"].settings

        def act(self, observation, layout):
            return JUDGES["lookahead"].act(observation, layout)

    class Scratch(Agent):
        settings = JUDGES["k8s_default"].settings

        def act(self, observation, layout):
            return JUDGES["k8s_default"].act(observation, layout)

    known = {"champion": Agent(), "previous": Scratch()}
    monkeypatch.setattr(command, "resolve_policy", lambda name, uri="", judges=None: known.get(name) or JUDGES[name])
    asked = ("policies=[k8s_default,champion]", "ablations=[no_warm_start,no_caps]")
    _, found, _ = call(*asked, "scratch=previous")
    assert found["ablations"]["policy"] == "champion"
    assert found["ablations"]["chosen"] == "the promoted policy"
    worth = found["ablations"]["levers"]["no_warm_start"]["worth"]["cost_usd"]["mean"]
    assert worth == pytest.approx(found["summary"]["k8s_default"]["cost_usd"] - found["summary"]["champion"]["cost_usd"])
    _, found, _ = call(*asked)
    assert found["ablations"]["levers"]["no_warm_start"]["not_available"].startswith("no policy trained from scratch")
    _, found, _ = call(*asked, "ablation_policy=k8s_default")
    assert found["ablations"]["policy"] == "k8s_default"
    code, _, streams = call(*asked, "ablation_policy=fifo")
    assert code == 2
    assert "'fifo' was not evaluated" in streams.err


def test_an_exported_agent_by_its_folder_loses_with_each_lever_what_its_teacher_loses(call, tmp_path):
    """Untrained, it decides as the look-ahead: so it does without caps, sleep or deferral."""
    network = ActionScorer(N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, ObservationLayout(1, 1).score_index, hidden=16)
    weights = {key: value.detach().numpy() for key, value in network.state_dict().items()}
    AgentPolicy(weights, JUDGES["lookahead"].settings, network.score_index).save(tmp_path / "agent")
    asked = ("policies=[lookahead,agent]", "baseline=lookahead", "ablations=[no_caps,no_sleep,no_deferral]")
    code, agent, _ = call(*asked, "ablation_policy=agent")
    assert code == 0
    judge = call(*asked, "ablation_policy=lookahead")[1]
    assert agent["summary"]["agent"]["cost_usd"] == pytest.approx(agent["summary"]["lookahead"]["cost_usd"])
    for lever in ("no_caps", "no_sleep", "no_deferral"):
        worth = [found["ablations"]["levers"][lever]["worth"]["cost_usd"]["mean"] for found in (agent, judge)]
        assert worth[0] == pytest.approx(worth[1])
        assert worth[0] > 0
    code, _, streams = call("policies=[lookahead,agents]")
    assert code == 2
    assert "the folder of an exported agent" in streams.err


def test_names_of_ablations():
    assert ablation_names(False) == ablation_names(None) == ()
    assert ablation_names(True) == ABLATIONS
    assert ablation_names(["no_caps"]) == ("no_caps",)
    with pytest.raises(InputError, match=r"no_cups.*no_caps"):
        ablation_names(["no_cups"])
    with pytest.raises(InputError, match="ablations="):
        ablation_names([])


# ---------------------------------------------------------------- stress


def test_every_stress_on_its_own_beside_the_calm_world(call):
    code, found, streams = call("policies=[k8s_default,lookahead]", "stress=all", "stress.price_spike.factor=20")
    assert code == 0
    calm = call("policies=[k8s_default,lookahead]")[1]
    assert found["policies"] == calm["policies"], "the report itself is of the calm world"
    table = found["stress_table"]
    assert table["judge"] == "lookahead"
    assert list(table["stresses"]) == list(KINDS)
    assert table["stresses"]["price_spike"]["factor"] == 20
    assert table["stresses"]["price_spike"]["begin"]["0"]
    spike = call("policies=[k8s_default,lookahead]", "stress=price_spike", "stress.price_spike.factor=20")[1]
    for name in ("k8s_default", "lookahead"):
        row = table["stresses"]["price_spike"]["policies"][name]["objective_usd"]
        assert row["calm"] == pytest.approx(calm["summary"][name]["objective_usd"])
        assert row["stressed"] == pytest.approx(spike["summary"][name]["objective_usd"])
        assert row["mean"] == pytest.approx(row["stressed"] - row["calm"])
        assert row["low"] <= row["mean"] <= row["high"]
    both = table["stresses"]["price_spike"]["policies"]
    own, judge = both["k8s_default"]["objective_usd"], both["lookahead"]["objective_usd"]
    assert own["beyond_judge"] == pytest.approx(own["mean"] - judge["mean"])
    assert own["beyond_judge_low"] <= own["beyond_judge"] <= own["beyond_judge_high"]
    assert judge["beyond_judge"] == 0
    assert table["stresses"]["heat_wave"]["policies"]["k8s_default"]["energy_kwh"]["mean"] > 0
    assert "under stress" in streams.out
    assert "beyond the judge" in streams.out


def test_degradation_by_hand_is_paired():
    def rows(policy, values):
        columns = ("objective_usd", "cost_usd", "energy_kwh", "carbon_kg", "sla_violation_rate")
        return pd.DataFrame({"policy": policy, "window": [0, 1], "seed": 0, **dict.fromkeys(columns, values)})

    calm = pd.concat([rows("easy", [1.0, 5.0]), rows("champion", [1.0, 2.0])])
    stressed = pd.concat([rows("champion", [4.0, 5.0]), rows("easy", [2.0, 6.0])])
    found = degradations(calm, stressed, "easy").set_index(["policy", "metric"])
    row = found.loc[("champion", "cost_usd")]
    assert (row["calm"], row["stressed"], row["mean"], row["low"], row["high"]) == (1.5, 4.5, 3.0, 3.0, 3.0)
    assert (row["beyond_judge"], row["beyond_judge_low"], row["beyond_judge_high"]) == (2.0, 2.0, 2.0)
    assert found.loc[("easy", "cost_usd"), "beyond_judge"] == 0


# ---------------------------------------------------------------- held-out part


def test_windows_of_a_part_lie_in_its_span_and_do_not_reach_beyond(call):
    code, found, streams = call("policies=[k8s_default]", "part=test", "windows=4", "window_hours=20", "seeds=2")
    assert code == 0
    last = pd.Timestamp(JOBS["submit_time"].max()).ceil("h")
    first = pd.Timestamp(JOBS["submit_time"].min()).floor("h")
    begin = last - (last - first) * 0.25 - pd.Timedelta(hours=1)
    starts = pd.to_datetime([row["window_start"] for row in found["policies"]["k8s_default"]["windows"]], utc=True)
    assert starts.min() >= begin
    assert starts.max() <= last - pd.Timedelta(hours=20)
    assert found["part"].startswith("test, 2026-01-")
    assert "part: test" in streams.out
    _, train, _ = call("policies=[k8s_default]", "part=train", "windows=4", "window_hours=20")
    ends = pd.to_datetime([row["window_start"] for row in train["policies"]["k8s_default"]["windows"]], utc=True) + pd.Timedelta(hours=20)
    assert ends.max() <= begin


def test_stress_leaves_the_span_of_a_part_where_it_is(call):
    asked = ("policies=[k8s_default]", "part=test", "windows=3", "window_hours=20")
    calm, crowded = call(*asked)[1], call(*asked, "stress=flash_crowd")[1]
    assert crowded["part"] == calm["part"]
    starts = [[row["window_start"] for row in found["policies"]["k8s_default"]["windows"]] for found in (calm, crowded)]
    assert starts[0] == starts[1]


def test_parts_are_of_time_and_named(call):
    for wrong, words in (
        ("part=holdout", "train, validation, test"),
        ("split=[0.5,0.5]", "three shares"),
        ("trace.length=10", "windows of"),
    ):
        code, _, streams = call("policies=[k8s_default]", "part=test", wrong)
        assert code == 2
        assert words in streams.err

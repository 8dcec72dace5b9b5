"""The command with a log, listeners, exploration and an experiment: what is written, and that the answer stays the champion's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from envs.exploration import Exploration
from envs.heuristics import JUDGES
from envs.reward import RewardSpec
from registry.decision_log import DecisionLog, Outcome, read_log
from registry.guardrails import Breach, stop
from registry.packaging import judge_weights
from registry.promotion import current_aliases, stage_challenger
from registry.tracking import open_tracking
from runtime.decide import EXIT_INPUT, main
from runtime.decision import decide
from runtime.jobs import read_job
from runtime.split import Split
from runtime.state_file import read_state

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
NAME = "scheduling-policy"
NAMED = ("--shadow", "greedy_cost", "planner", "k8s_default")


def run(capsys, uri, *more, job=EXAMPLES / "job.json"):
    status = main([str(job), "--json", "--no-forecasts", "--tracking-uri", uri, *map(str, more)])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


@pytest.fixture
def two_versions(tmp_path, publish, empty_database):
    """The look-ahead as champion, the greedy judge as challenger."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    tracking = open_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    greedy = publish(tracking, tmp_path / "greedy", "greedy_cost", judge_weights("greedy_cost"))
    publish(tracking, tmp_path / "lookahead", "lookahead", judge_weights("lookahead"))
    stage_challenger(tracking.client, NAME, greedy)
    return tracking


def test_a_decision_is_logged_with_what_challengers_said_and_stays_the_same(judge_registry, tmp_path, capsys):
    uri = judge_registry.tracking_uri
    _, plain, _ = run(capsys, uri)
    status, answer, _ = run(capsys, uri, "--decision-log", tmp_path / "log", "--shadow-budget", 60, *NAMED)
    assert status == 0
    same = set(plain) - {"notices"}
    assert {key: answer[key] for key in same} == {key: plain[key] for key in same}
    read = read_log(tmp_path / "log")
    (row,) = read.decisions.to_dict("records")
    assert row["decision_id"] == answer["decision_id"]
    assert (row["job_id"], row["team"], row["policy"], row["arm"], row["answered_by"]) == (
        "tune-llm-17",
        "nlp",
        "lookahead",
        "champion",
        "policy",
    )
    assert row["version"] == current_aliases(judge_registry.client, NAME)["champion"]
    assert row["action"] == answer["chosen"]["action"]
    assert row["propensities"][row["action"]] == 1.0
    assert len(row["propensities"]) == 10
    shadow = {one["name"]: one for one in row["shadow"]}
    assert shadow["greedy_cost"]["action"] is not None
    assert "decides by plans" in shadow["planner"]["error"]
    assert answer["shadow"] == list(row["shadow"])


def test_the_logged_row_asked_again_gives_the_same_answer(judge_registry, tmp_path, capsys):
    run(capsys, judge_registry.tracking_uri, "--decision-log", tmp_path / "log")
    row = read_log(tmp_path / "log").decisions.iloc[0]
    from envs.observation import ObservationLayout

    seen = np.array(row["observation"], dtype=np.float32)[None]
    assert JUDGES["lookahead"].act(seen, ObservationLayout(row["pools"], row["levels"]))[0] == row["action"]


def test_a_challenger_that_cannot_be_loaded_costs_no_answer(judge_registry, tmp_path, capsys):
    status, answer, _ = run(capsys, judge_registry.tracking_uri, "--shadow", "challenger")
    assert status == 0
    assert any(notice.startswith("shadow 'challenger' does not listen") for notice in answer["notices"])


def test_a_log_that_cannot_be_written_costs_no_answer(judge_registry, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, answer, _ = run(capsys, judge_registry.tracking_uri, "--decision-log", tmp_path / "file" / "log")
    assert status == 0
    assert "decision_id" not in answer
    assert any("was not logged" in notice for notice in answer["notices"])


def test_exploring_answers_are_drawn_among_what_the_shield_leaves_and_say_so():
    job, seen = read_job(EXAMPLES / "job.json"), read_state(EXAMPLES / "state.json")
    explore = Exploration(temperature=0.2, epsilon=0.2, within=5.0, sla_safe=False)

    def ask(uniform, explore=explore):
        return decide(seen.snapshot(job, seen.cluster), job.job_id, JUDGES["lookahead"], RewardSpec(), explore=explore, uniform=uniform)

    own = ask(0.5, Exploration())
    strayed = 0
    for uniform in np.linspace(0, 0.999, 9):
        decision = ask(float(uniform))
        question = decision.question
        assert question.propensities.sum() == pytest.approx(1.0)
        assert question.propensities[question.action] > 0
        assert (question.propensities[~question.allowed] == 0).all()
        assert decision.chosen.action == question.action
        assert decision.chosen.allowed
        if question.action != own.chosen.action:
            strayed += 1
            assert question.answered_by == "explored"
            assert decision.reasons[0].startswith("explored: drawn with probability")
    assert strayed > 0
    assert own.question.answered_by == "policy"
    assert own.question.propensities.max() == 1.0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--explore", "0.1:0.1"], "exploration without a log"),
        (["--explore", "much", "--decision-log", "x"], "TEMPERATURE:EPSILON"),
        (["--explore", "0.1:2", "--decision-log", "x"], "epsilon 2.0"),
        (["--shadow", "oracle"], "challenger 'oracle'"),
        (["--experiment", "exp", "--share", "2000"], "0 to 1000"),
    ],
)
def test_impossible_options_are_one_error(judge_registry, tmp_path, capsys, monkeypatch, more, said):
    status, _answer, err = run(capsys, judge_registry.tracking_uri, *more)
    assert status == EXIT_INPUT
    assert said in err


def _team(arm):
    return next(name for name in (f"team-{k}" for k in range(200)) if Split("exp", 500).arm_of(name) == arm)


def test_each_arm_is_answered_by_its_version_until_the_experiment_stops(two_versions, tmp_path, capsys):
    folder, aliases = tmp_path / "log", current_aliases(two_versions.client, NAME)
    for arm, policy in (("challenger", "greedy_cost"), ("champion", "lookahead"), ("outside", "lookahead")):
        job = json.loads((EXAMPLES / "job.json").read_text()) | {"team": _team(arm)}
        (tmp_path / "job.json").write_text(json.dumps(job))
        status, answer, _ = run(
            capsys, two_versions.tracking_uri, "--decision-log", folder, "--experiment", "exp", "--share", 500, job=tmp_path / "job.json"
        )
        assert status == 0
        assert (answer["arm"], answer["policy"]["name"]) == (arm, policy)
        row = read_log(folder).decisions.set_index("decision_id").loc[answer["decision_id"]]
        assert row["version"] == aliases["challenger" if arm == "challenger" else "champion"]
        assert (row["arm"], row["arm_propensity"]) == (arm, 1.0 if arm == "outside" else 0.5)
    stop(folder, "exp", Breach("sla", "2026-03-01T00:00:00+00:00", 5, "worse"))
    job = json.loads((EXAMPLES / "job.json").read_text()) | {"team": _team("challenger")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    _, answer, _ = run(
        capsys, two_versions.tracking_uri, "--decision-log", folder, "--experiment", "exp", "--share", 500, job=tmp_path / "job.json"
    )
    assert (answer["arm"], answer["policy"]["name"]) == ("outside", "lookahead")
    assert any("was stopped: worse" in notice for notice in answer["notices"])


def test_an_arm_whose_challenger_cannot_be_trusted_is_answered_by_the_champion(judge_registry, tmp_path, capsys):
    job = json.loads((EXAMPLES / "job.json").read_text()) | {"team": _team("challenger")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    more = ("--experiment", "exp", "--share", 500, "--decision-log", tmp_path / "log")
    status, answer, _ = run(capsys, judge_registry.tracking_uri, *more, job=tmp_path / "job.json")
    assert status == 0
    assert (answer["arm"], answer["policy"]["name"]) == ("outside", "lookahead")
    assert any(notice.startswith("the champion answers for the challenger") for notice in answer["notices"])


def test_outcomes_are_joined_to_what_the_runtime_wrote(judge_registry, tmp_path, capsys):
    _, _answer, _ = run(capsys, judge_registry.tracking_uri, "--decision-log", tmp_path / "log")
    DecisionLog(tmp_path / "log").append(Outcome("2026-02-11T00:00:00+00:00", 0.7, job_id="tune-llm-17", sla_violated=False))
    assert read_log(tmp_path / "log").decisions["objective_usd"].tolist() == [0.7]

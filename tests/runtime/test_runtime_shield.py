"""Shield, fallback and explanation of the command: what is stale is answered by the judge, what is removed is said, and why."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.heuristics import JUDGES
from envs.reward import RewardSpec
from envs.shield import ShieldConfig
from envs.shield_io import load_shield
from envs.shielded import Ages
from registry.tracking import open_tracking
from runtime.ages import ages_of, carried_forward
from runtime.decide import EXIT_INPUT, main
from runtime.decision import decide
from runtime.jobs import parse_job
from runtime.state_file import read_state
from telemetry.errors import InputError

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
FRESH = "2026-02-10T08:01:00Z"
ADDED = {"shield", "fallback", "explanation"}
BEFORE = {"job_id", "time", "chosen", "blocked", "reasons", "alternatives", "ahead", "policy", "decision", "forecasts", "notices"}


class Constant:
    """Always the same action, allowed or not."""

    name, settings = "constant", JUDGES["lookahead"].settings

    def __init__(self, action):
        self.action = action

    def act(self, observation, layout):
        return np.full(len(observation), self.action)


def decision_for(policy, *, shield=None, ages=None, explained=False, **change):
    job = parse_job(json.loads((EXAMPLES / "job.json").read_text()) | {"priority": 5} | change)
    seen = read_state(EXAMPLES / "state.json")
    snapshot = seen.snapshot(job, seen.cluster)
    return decide(snapshot, job.job_id, policy, RewardSpec(), shield=shield, ages=ages, explained=explained)


@pytest.fixture
def agent_registry(agent, tmp_path, publish, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    tracking = open_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    publish(tracking, tmp_path / "made", "agent", agent().save)
    return tracking


def asked(capsys, *arguments):
    status = main([str(EXAMPLES / "job.json"), *map(str, arguments), "--no-forecasts", "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if status == 0 else err


def test_a_fresh_state_is_answered_by_the_promoted_agent_and_a_stale_one_by_the_judge(agent, agent_registry, tmp_path, capsys):
    state = ("--state", EXAMPLES / "state.json", "--tracking-uri", agent_registry.tracking_uri)
    _, fresh = asked(capsys, *state, "--now", FRESH)
    _, stale = asked(capsys, *state, "--now", "2026-02-10T08:06:00Z")
    _, today = asked(capsys, *state)
    assert set(fresh) == BEFORE | ADDED
    assert fresh["fallback"] == {"used": False, "reason": None, "policy": "lookahead"}
    assert fresh["chosen"]["action"] == decision_for(agent(), priority=0).chosen.action
    assert fresh["chosen"]["probability"] == max(c["probability"] or 0 for c in [fresh["chosen"], *fresh["alternatives"]])
    assert stale["fallback"] == {"used": True, "reason": "telemetry is 360 s old, allowed are 300 s", "policy": "lookahead"}
    assert stale["policy"]["name"] == "agent"
    assert stale["shield"]["counts"]["fallback.telemetry_stale"] == 1 + len(stale["ahead"])
    assert stale["reasons"][0].startswith("FALLBACK: the judge 'lookahead' decides, because telemetry is 360 s old")
    assert stale["chosen"]["action"] == decision_for(JUDGES["lookahead"], priority=0).chosen.action
    assert stale["chosen"]["probability"] is None
    assert today["fallback"]["used"], "by this machine's clock the example is long past"
    (tmp_path / "shield.yaml").write_text("telemetry_age_s: 400\nfallback: greedy_cost\n")
    _, patient = asked(capsys, *state, "--now", "2026-02-10T08:06:00Z", "--shield", tmp_path / "shield.yaml")
    assert patient["fallback"] == {"used": False, "reason": None, "policy": "greedy_cost"}


def test_prices_that_stopped_are_carried_forward_and_answered_by_the_judge(agent_registry, tmp_path, capsys):
    content = json.loads((EXAMPLES / "state.json").read_text())
    last = pd.Timestamp("2026-02-10T04:00:00Z")
    content["grid"] = [row for row in content["grid"] if pd.Timestamp(row["time"]) <= last]
    (tmp_path / "state.json").write_text(json.dumps(content))
    status, answer = asked(capsys, "--state", tmp_path / "state.json", "--now", FRESH, "--tracking-uri", agent_registry.tracking_uri)
    assert status == 0
    assert answer["fallback"] == {"used": True, "reason": "forecast is 14460 s old, allowed are 7200 s", "policy": "lookahead"}


def test_carried_prices_repeat_the_last_day_that_is_known():
    job = parse_job(json.loads((EXAMPLES / "job.json").read_text()))
    seen = read_state(EXAMPLES / "state.json")
    whole = seen.snapshot(job, seen.cluster)
    assert carried_forward(whole) is whole
    cut = seen.grid[seen.grid["time"] <= pd.Timestamp("2026-02-10T04:00:00Z")]
    carried = carried_forward(replace(whole, grid=cut)).grid
    added = carried[carried["time"] > pd.Timestamp("2026-02-10T04:00:00Z")].set_index(["time", "site"])
    assert len(added) == 4 * 2
    for (moment, site), row in added.iterrows():
        own = cut[cut["site"] == site].set_index("time")["price_usd_per_kwh"]
        day_before = moment - pd.Timedelta(days=1)
        assert row["price_usd_per_kwh"] == (own[day_before] if day_before in own.index else own[cut["time"].max()])
    assert sum(moment - pd.Timedelta(days=1) in set(cut["time"]) for moment, _ in added.index) > 0


def test_ages_are_those_of_the_state_and_of_the_site_whose_prices_end_first():
    seen = read_state(EXAMPLES / "state.json")
    now = seen.time + pd.Timedelta(seconds=90)
    newest = seen.grid[seen.grid["time"] <= seen.time]["time"].max()
    assert ages_of(seen, now) == Ages(90.0, (now - newest).total_seconds())
    late = seen.grid[~((seen.grid["site"] == "west") & (seen.grid["time"] > newest - pd.Timedelta(hours=5)))]
    replaced = replace(seen, grid=late)
    assert ages_of(replaced, now).forecast_s == (now - newest).total_seconds() + 5 * 3600
    empty = replace(seen, grid=seen.grid.iloc[:0])
    assert ages_of(empty, now).forecast_s == float("inf")


def test_a_hold_that_would_miss_the_deadline_is_refused_and_a_run_that_meets_it_taken():
    due = "2026-02-10T09:30:00Z"
    free = decision_for(Constant(0), deadline="2026-02-12T08:00:00Z")
    assert free.chosen.verb == "hold"
    assert free.shield["rule"] is None
    tight = decision_for(Constant(0), deadline=due, requested_duration_s=3600, shield=ShieldConfig(deadline_margin_s=1800))
    assert tight.chosen.verb == "run"
    assert tight.chosen.finish <= "2026-02-10T09:00:00Z"
    assert tight.shield["rule"] == "deadline"
    assert {"action": 0, "name": "hold", "rule": "deadline"} in tight.shield["removed"]
    late = [c for c in tight.alternatives if c.rule == "deadline" and c.verb == "run"]
    assert late
    assert all(
        c.finish > "2026-02-10T09:00:00Z" and not c.allowed and "would miss the deadline" in c.why_not and c.cost_usd > 0 for c in late
    )
    assert tight.fallback["used"]
    assert tight.fallback["reason"] == "'constant' proposed twice what the shield removes"
    assert any("the shield refused what 'constant' proposed" in reason for reason in tight.reasons)
    assert tight.shield["counts"]["replaced"] == 1


def test_a_masked_proposal_is_refused_in_words():
    answer = decision_for(Constant(99))
    assert answer.shield["rule"] == "mask"
    assert answer.shield["proposed"] is None
    assert any("action 99" in reason for reason in answer.reasons)
    assert answer.chosen.action == decision_for(JUDGES["lookahead"]).chosen.action


def test_a_class_floor_is_kept_and_said():
    shield = ShieldConfig(class_floor_level={"training": 0.75, "fine_tuning": 0.75, "batch_inference": 0.75})
    lowest = decision_for(Constant(3), shield=shield)
    assert lowest.shield["rule"] == "class_floor"
    assert lowest.chosen.verb == "hold" or lowest.chosen.power_limit >= 0.75
    floored = [c for c in lowest.alternatives if c.rule == "class_floor"]
    assert {c.power_limit for c in floored} == {0.55}


def test_a_budget_is_the_reason_that_is_told(tmp_path):
    content = json.loads((EXAMPLES / "state.json").read_text())
    for pool in content["cluster"]["pools"]:
        pool["budget_w"] = 1.0 if pool["name"] == "east-a40" else 0.0
    (tmp_path / "state.json").write_text(json.dumps(content))
    seen = read_state(tmp_path / "state.json")
    job = parse_job(json.loads((EXAMPLES / "job.json").read_text()) | {"priority": 5})
    decision = decide(seen.snapshot(job, seen.cluster), job.job_id, JUDGES["lookahead"], RewardSpec())
    east = [c for c in decision.alternatives if c.pool == "east-a40"]
    assert len(east) == 3
    assert all("power budget of pool east-a40" in c.why_not and "exceed 1 W" in c.why_not and c.rule == "mask" for c in east)


@pytest.mark.parametrize("weights", [(0, 8), (5, 32), None], ids=["agent", "wider", "judge"])
def test_explanations_sum_and_name_both_candidates(agent, weights):
    policy = JUDGES["lookahead"] if weights is None else agent(*weights)
    why = decision_for(policy, explained=True).explanation
    assert sum(why["shares"].values()) == pytest.approx(why["difference"], abs=1e-6)
    assert why["policy"] == policy.name
    assert why["chosen"] != why["runner_up"]
    assert why["difference"] >= 0
    json.dumps(why)


def test_explained_answers_show_shares_in_text(agent_registry, capsys):
    status = main([str(EXAMPLES / "job.json"), "--tracking-uri", agent_registry.tracking_uri, "--no-forecasts", "--explain"])
    out, _ = capsys.readouterr()
    assert status == 0
    assert "\nwhy " in out
    assert "(by agent):" in out
    assert "  score\n" in out
    assert "the look-ahead scores differ by" in out


def test_without_room_the_record_is_empty_and_the_age_is_told():
    blocked = decision_for(
        Constant(0), gpus=4, workers=4, max_watts=None, workload_class="realtime_inference", ages=Ages(telemetry_s=1e5), explained=True
    )
    assert blocked.blocked
    assert blocked.shield["removed"] == []
    assert blocked.fallback["reason"] == "telemetry is 100000 s old, allowed are 300 s"
    assert blocked.explanation is None


def test_the_example_settings_load_and_defaults_are_those_of_the_code(tmp_path):
    assert load_shield(EXAMPLES / "shield.yaml").class_floor_level == {"realtime_inference": 0.75, "interactive": 0.75}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_shield(tmp_path / "empty.yaml") == ShieldConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deadline_margin: 3", "unknown key 'deadline_margin'"),
        ("deadline_margin_s: soon", "deadline_margin_s: 'soon'"),
        ("telemetry_age_s: -1", "telemetry_age_s -1"),
        ("class_floor_level: 0.5", "class_floor_level: 0.5"),
        ("minimum_warm_nodes: {west: 1.5}", "minimum_warm_nodes: 1.5"),
        ("fallback: nobody", "fallback 'nobody'"),
        ("fallback: 3", "fallback: 3"),
        ("[1]", "list"),
        ("a: [", "not YAML"),
    ],
)
def test_settings_that_are_none_are_refused(tmp_path, capsys, text, message):
    path = tmp_path / "shield.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_shield(path)
    status, err = asked(capsys, "--shield", path)
    assert status == EXIT_INPUT
    assert "unusable" in err


def test_a_pool_that_is_not_there_and_a_clock_without_zone_are_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="minimum_warm_nodes of 'x'"):
        decision_for(Constant(0), shield=ShieldConfig(minimum_warm_nodes={"x": 1}))
    status, err = asked(capsys, "--now", "2026-02-10T08:01:00")
    assert status == EXIT_INPUT
    assert "a time with zone" in err

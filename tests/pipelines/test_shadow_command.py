"""``pipelines.shadow``: estimates from a log that a simulated runtime wrote, refusals with exit 1, and guardrails that act."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks.simulator_worlds import START, synthetic_cluster, synthetic_jobs
from envs.exploration import Exploration
from envs.heuristics import JUDGES
from envs.logged_play import logged_play
from envs.reward import RewardSpec
from envs.windows import WindowTables, constant_grid, prepare_jobs
from envs.world import build_world
from pipelines import shadow
from registry.decision_log import DecisionLog, DecisionRecord, Outcome
from registry.guardrails import stopped_experiments

DAY = pd.Timedelta(days=1)
EXPLORE = Exploration(temperature=0.1, epsilon=0.3, within=np.inf, sla_safe=False)


@pytest.fixture(scope="module")
def play():
    """Twelve short windows that the look-ahead plays, exploring."""
    cluster = synthetic_cluster(8)
    grid = constant_grid(tuple(site.name for site in cluster.sites), START - DAY, START + 3 * DAY)
    grid["price_usd_per_kwh"] *= 1 + 0.8 * np.sin(2 * np.pi * grid["time"].dt.hour / 24)
    windows = []
    for k in range(3):
        jobs = synthetic_jobs(cluster, np.random.default_rng(k), 30, 8 * 3600, 64 * 3600.0)
        windows.append(WindowTables(START, prepare_jobs(jobs, cluster), grid, 8 * 3600))
    world = build_world(cluster, windows)
    return logged_play(world, np.arange(3).repeat(5), JUDGES["lookahead"], EXPLORE, RewardSpec(), np.arange(15))


def write_log(folder: Path, play, *, explored=True, outcomes=True, **change):
    """The play as a log, a run a day."""
    folder.mkdir(parents=True)
    records, known, n = [], [], play.layout
    for k in range(len(play.run)):
        chances = play.propensities[k] if explored else np.eye(n.n_candidates)[play.action[k]]
        moment = START + int(play.run[k]) * DAY + pd.Timedelta(seconds=k % 80_000)
        record = DecisionRecord(
            time=moment.isoformat(),
            job_id=f"{play.run[k]}-{play.job[k]}",
            pools=n.n_pools,
            levels=n.n_levels,
            observation=tuple(play.rows[k].tolist()),
            allowed=tuple(np.flatnonzero(n.mask(play.rows[k][None])[0]).tolist()),
            propensities=tuple((chances / chances.sum()).tolist()),
            action=int(play.action[k]),
            policy="lookahead",
            decision_id=str(k),
            block=f"day-{play.run[k]:02d}",
            **change,
        )
        records.append(json.dumps(asdict(record)))
        known.append(json.dumps(asdict(Outcome(moment.isoformat(), float(play.cost_usd[k]), decision_id=str(k), sla_violated=False))))
    (folder / "decisions-000001.jsonl").write_text("\n".join(records) + "\n")
    if outcomes:
        (folder / "outcomes-000001.jsonl").write_text("\n".join(known) + "\n")
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shadow", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            shadow.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return run


def test_targets_are_estimated_and_drawn(play, call, tmp_path):
    write_log(tmp_path / "log", play)
    done = call("log=log", "policies=[lookahead,greedy_cost]", "estimate.model=ridge", "limits.effective=10", "out=found")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "found" / "evaluate.json").read_text())
    assert found["log"]["decisions"] == len(play.run)
    own = found["targets"]["lookahead"]
    weight = (play.propensities.argmax(axis=1) == play.action) / play.propensities.max(axis=1)
    assert own["value_usd"]["ips"]["mean"] == pytest.approx((weight * play.cost_usd).mean(), rel=1e-6)
    assert own["overlap"]["clusters"] == 15
    assert own["value_usd"]["dr"]["low"] < own["value_usd"]["dr"]["mean"] < own["value_usd"]["dr"]["high"]
    assert "if this one answer were the target's" in done.out
    assert (tmp_path / "found" / "evaluate.png").stat().st_size > 10_000


def test_a_log_that_never_explored_is_refused_with_exit_one(play, call, tmp_path):
    write_log(tmp_path / "log", play, explored=False)
    done = call("log=log", "policies=k8s_default", "estimate.model=none")
    assert done.code == 1
    assert "no overlap: " in done.out
    assert "it never explored" in done.out
    found = json.loads((tmp_path / "outputs" / "shadow" / "evaluate.json").read_text())["targets"]["k8s_default"]
    assert "value_usd" not in found
    assert found["overlap"]["refusals"]


def test_bills_may_come_in_a_table(play, call, tmp_path):
    write_log(tmp_path / "log", play, outcomes=False)
    done = call("log=log", "policies=lookahead")
    assert done.code == 2
    assert "no outcome yet" in done.err
    jobs = sorted({f"{r}-{j}" for r, j in zip(play.run, play.job, strict=True)})
    pd.DataFrame({"job_id": jobs[1:], "objective_usd": 0.5}).to_csv(tmp_path / "bills.csv", index=False)
    done = call("log=log", "policies=lookahead", "outcomes=bills.csv", "estimate.model=ridge", "estimate.samples=0")
    assert done.code == 0, done.err
    assert "1 no outcome yet" in done.out or "no outcome yet" in done.out
    found = json.loads((tmp_path / "outputs" / "shadow" / "evaluate.json").read_text())
    assert found["targets"]["lookahead"]["value_usd"]["snips"]["mean"] == pytest.approx(0.5)


def test_a_planner_cannot_answer_questions_without_plans(play, call, tmp_path):
    write_log(tmp_path / "log", play)
    done = call("log=log", "policies=planner")
    assert done.code == 2
    assert "decides by plans" in done.err


def test_answers_of_the_fallback_do_not_count(play, call, tmp_path):
    write_log(tmp_path / "log", play, answered_by="fallback")
    done = call("log=log", "policies=lookahead")
    assert done.code == 2
    assert f"{len(play.run)} answered by the fallback" in done.err


def arms_log(folder, *, days=60, gap=0.0, seed=0):
    rng, decisions, outcomes = np.random.default_rng(seed), [], []
    for day in range(days):
        arm = "challenger" if rng.random() < 0.5 else "champion"
        told = {"arm": arm, "arm_propensity": 0.5, "experiment": "winter", "team": f"t{day % 7}", "version": "12"[arm == "challenger"]}
        level = rng.normal(2, 0.3)
        for k in range(4):
            moment, job = (START + day * DAY + pd.Timedelta(hours=k)).isoformat(), f"{day}-{k}"
            row = (1.0,) * (3 * 20 + 31)
            decisions.append(DecisionRecord(moment, job, 1, 2, row, (0, 1), (0.0, 1.0, 0.0), 1, "p", decision_id=job, **told))
            cost = max(level + gap * (arm == "challenger") + rng.normal(0, 0.1), 0.0)
            late = bool(rng.random() < (0.9 if gap and arm == "challenger" else 0.05))
            outcomes.append(Outcome(moment, float(cost), job_id=job, sla_violated=late))
    folder.mkdir()
    for stem, records in (("decisions", decisions), ("outcomes", outcomes)):
        (folder / f"{stem}-000001.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in records))
    return folder


def test_days_that_were_drawn_compare_the_arms(call, tmp_path):
    arms_log(tmp_path / "log", gap=1.0)
    done = call("log=log", "estimate.unit=day", "estimate.model=ridge", "estimate.samples=200")
    assert done.code == 0, done.out + done.err
    gap = json.loads((tmp_path / "outputs" / "shadow" / "evaluate.json").read_text())["challenger_less_champion"]["dr"]
    assert gap["low"] < 1.0 < gap["high"]
    assert gap["low"] > 0.5
    done = call("log=log", "estimate.unit=team")
    assert done.code == 2
    assert "in both arms" in done.err
    assert "experiment 'summer'" in call("log=log", "estimate.unit=day", "split=summer").err


def test_a_breach_is_told_and_with_act_the_experiment_stops(call, tmp_path):
    arms_log(tmp_path / "log", gap=3.0)
    done = call("guard", "log=log", "split=winter")
    assert done.code == 1
    assert "BREACH (" in done.out
    assert "done: nothing; guard.act=true" in done.out
    assert stopped_experiments(tmp_path / "log") == {}
    done = call("guard", "log=log", "split=winter", "guard.act=true")
    assert done.code == 1
    assert "winter" in stopped_experiments(tmp_path / "log")
    assert (tmp_path / "outputs" / "shadow" / "guard.png").stat().st_size > 5000


def test_equal_arms_are_within_the_limits(call, tmp_path):
    arms_log(tmp_path / "log")
    done = call("guard", "log=log", "split=winter", "guard.act=true")
    assert done.code == 0, done.out
    assert "within the limits" in done.out
    assert stopped_experiments(tmp_path / "log") == {}


def test_a_champion_that_lost_for_days_is_rolled_back_once(call, tmp_path, monkeypatch):
    arms_log(tmp_path / "log", gap=3.0)
    calls = []
    monkeypatch.setattr(shadow, "open_client", lambda uri: uri)
    monkeypatch.setattr(shadow, "current_aliases", lambda client, name: {"champion": "2", "previous": "1"})

    def undo(client, name, *, reason, state_folder=None):
        calls.append((name, reason, state_folder))
        return SimpleNamespace(champion="1")

    monkeypatch.setattr(shadow, "rollback", undo)
    common = ("guard", "log=log", "guard.watch=champion", "guard.hard_violation_rate=1.0")
    assert "guard.act=true" in call(*common).out
    assert "nothing yet" in call(*common, "guard.act=true", "guard.sustained=400").out
    assert calls == []
    done = call(*common, "guard.act=true", "state_folder=state")
    assert done.code == 1
    assert "rolled back: version 1 is the champion again" in done.out
    ((name, reason, folder),) = calls
    assert name == "scheduling-policy"
    assert "days in a row" in reason
    assert folder == Path("state")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no log given"),
        (("log=nowhere",), "no decision log"),
        (("log=log",), "no policy given"),
        (("log=log", "policies=oracle"), "unknown policy 'oracle'"),
        (("log=log", "policies=lookahead", "estimate.unit=week"), "decision, day, team"),
        (("log=log", "policies=lookahead", "estimate.level=2"), "level"),
        (("log=log", "mode=dance"), "evaluate, guard"),
        (("log=log", "policies=lookahead", "outcomes=none.csv"), "none.csv"),
        (("log=log", "policies=lookahead", "since=soon"), "'soon'"),
        (("guard", "log=log"), "no experiment given"),
        (("guard", "log=log", "guard.watch=all"), "experiment, champion"),
        (("log=log", "polices=x"), "polices"),
    ],
)
def test_bad_arguments_are_named(call, tmp_path, arguments, said):
    DecisionLog(tmp_path / "log").append(
        DecisionRecord("2026-03-01T00:00:00+00:00", "j", 1, 1, (1.0,) * 71, (0, 1), (0.5, 0.5), 1, "lookahead", decision_id="a")
    )
    DecisionLog(tmp_path / "log").append(Outcome("2026-03-01T00:00:00+00:00", 1.0, decision_id="a"))
    done = call(*arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_help_says_how(call):
    done = call("--help")
    assert "usage: python -m pipelines.shadow" in done.out


def test_conf_and_code_have_the_same_defaults():
    from envs.off_policy import OverlapLimits
    from pipelines.cli import build, compose_config
    from registry.guardrails import GuardConfig

    config = compose_config("shadow")
    assert build(OverlapLimits, config.limits, "limits") == OverlapLimits()
    assert build(Exploration, config.explore, "explore") == Exploration()
    guard = {key: value for key, value in config.guard.items() if key not in ("watch", "act")}
    assert build(GuardConfig, guard, "guard") == GuardConfig()

"""``python -m pipelines.retrain``: from a trigger to a champion or a refusal, told and recorded once."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import replace

import pandas as pd
import pytest

from benchmarks.retrain_world import MODEL, START, overrides, until, write_world
from pipelines import retrain as command
from pipelines.cli import compose_config
from pipelines.retrain import NotifyConfig, retrain_config, retrain_model
from pipelines.retraining.attempts import ModelState, Outcome, read_history
from pipelines.triggers import Trigger
from registry.loading import load_version
from registry.mlflow_client import open_client
from registry.promotion import current_aliases
from telemetry.errors import InputError


def config_at(folder, day, *extra):
    return retrain_config(compose_config("retrain", [*overrides(folder), until(day), *extra]))


def offer(config, name="planned"):
    trigger = Trigger(MODEL, "loss", f"{name} drift", {"ratio": 1.4}, name, START.isoformat())
    assert config.triggers.offer(trigger).accepted
    return trigger


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world whose champion, a naive, was put up by a first retraining at day 30."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    naive = [one for one in overrides(folder) if not one.startswith("forecaster")]
    first = retrain_config(compose_config("retrain", [*naive, "forecaster=persistence", "force=true", until(30)]))
    ((attempt, outcome, told),) = retrain_model(first, MODEL)
    assert (outcome.action, outcome.champion, told) == ("promoted", outcome.version, "nobody to tell")
    assert attempt.triggers == ()
    return folder


def champion(config):
    return current_aliases(open_client(config.train.registry.tracking_uri), MODEL)["champion"]


def test_a_trigger_leads_to_a_promoted_challenger_that_says_why(world):
    config = config_at(world, 60)
    trigger, before = offer(config), champion(config)
    ((attempt, outcome, _),) = retrain_model(config, MODEL)
    assert (outcome.action, outcome.champion) == ("promoted", outcome.version), outcome.reason
    assert outcome.version != before
    assert attempt.triggers == (trigger.id,)
    assert config.triggers.open() == []
    loaded = load_version(MODEL, "forecaster", tracking_uri=config.train.registry.tracking_uri)
    assert (loaded.version, loaded.manifest.name) == (outcome.version, "lightgbm")
    gate = next(entry for entry in loaded.manifest.gates if entry["gate"] == "beats_champion")
    assert gate["evidence"]["compared"].startswith("the serving version, updated"), "on windows that the champion never saw"
    client = open_client(config.train.registry.tracking_uri)
    assert "planned drift" in client.get_model_version(MODEL, outcome.version).tags["trigger"]
    tags = client.get_run(outcome.run_id).data.tags
    assert (tags["outcome"], tags["retrain.id"]) == ("promoted", attempt.id)
    assert "planned drift" in tags["trigger"]
    last = read_history(config.state)[-1]
    assert (last["id"], last["action"], last["version"], last["triggers"]) == (attempt.id, "promoted", outcome.version, [trigger.id])
    assert retrain_model(config, MODEL) == [], "a trigger is answered once"
    ((_, again, _),) = retrain_model(replace(config, force=True), MODEL)
    assert (again.action, again.champion) == ("no new data", outcome.version)


def test_a_bad_challenger_is_refused_and_the_champion_stays(world):
    config = config_at(world, 75, "forecaster.n_estimators=1", "forecaster.learning_rate=0.001")
    before = champion(config)
    offer(config, "second")
    ((_, outcome, _),) = retrain_model(config, MODEL)
    assert (outcome.action, outcome.champion) == ("refused", before)
    assert "beats_champion" in outcome.reason
    assert champion(config) == before
    assert config.triggers.open() == []
    load_version(MODEL, "forecaster", tracking_uri=config.train.registry.tracking_uri)


def test_two_retrainings_of_one_model_do_not_run_at_once(world):
    config = config_at(world, 60)
    before = read_history(config.state)
    with ModelState(config.state, MODEL).locked(0.0), pytest.raises(InputError, match="held by another process"):
        retrain_model(config, MODEL)
    assert read_history(config.state) == before


@pytest.fixture
def quickly(tmp_path, monkeypatch):
    """The command's configuration with training replaced by a ready outcome; ``outcomes`` are handed out in order."""
    outcomes = [Outcome("refused", "beats_champion: no", "7", "3", "cold", "run")]
    calls = []

    def run_attempt(config, attempt, learning, tracking):
        calls.append(attempt)
        return outcomes[min(len(calls), len(outcomes)) - 1]

    monkeypatch.setattr(command, "run_attempt", run_attempt)
    monkeypatch.setattr(command, "open_tracking", lambda *_: None)
    return config_at(tmp_path, 40), calls, outcomes


def test_what_cannot_be_told_is_reported_and_fails_nothing(quickly, tmp_path):
    config, _, _ = quickly
    secret = tmp_path / "webhook"
    config = replace(config, notify=NotifyConfig(str(secret), 1.0))
    for content, said in (
        (None, "cannot be read (FileNotFoundError)"),
        ("file:///etc/passwd", "holds no http(s) URL"),
        ("http://127.0.0.1:1/token-x", "failed: ConnectionError"),
    ):
        if content:
            secret.write_text(content + "\n")
        offer(config, said)
        ((_, outcome, told),) = retrain_model(config, MODEL)
        assert outcome.action == "refused"
        assert said in told
        assert read_history(config.state)[-1]["notified"] == told
        assert "token-x" not in told
    assert config.triggers.open() == []


def test_people_are_told_in_a_form_that_slack_shows(quickly, tmp_path):
    config, _, _ = quickly
    got = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if len(got) == 1 else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "webhook").write_text(f"http://127.0.0.1:{server.server_port}/hook")
        config = replace(config, notify=NotifyConfig(str(tmp_path / "webhook"), 5.0))
        told = []
        for name in ("first", "second"):
            offer(config, name)
            told += [one[2] for one in retrain_model(config, MODEL)]
        server.shutdown()
    assert told == ["sent", "failed: the webhook answered 500"]
    assert got[0]["text"].startswith(
        f"{MODEL} version 7 (cold): refused: beats_champion: no; version 3 serves; because of loss: first drift"
    )
    assert (got[0]["action"], got[0]["model"], got[0]["version"]) == ("refused", MODEL, "7")


def test_all_open_triggers_of_a_model_are_one_retraining(quickly):
    config, calls, _ = quickly
    ids = {offer(config, "one").id, offer(config, "two").id}
    assert len(retrain_model(config, MODEL)) == 1
    assert set(calls[0].triggers) == ids
    assert config.triggers.open() == []


def test_a_retraining_that_fails_is_recorded_and_its_trigger_waits(quickly, monkeypatch):
    config, _, _ = quickly

    def broken(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(command, "run_attempt", broken)
    offer(config)
    ((_, outcome, _),) = retrain_model(config, MODEL)
    assert (outcome.action, outcome.reason) == ("failed", "RuntimeError: disk full")
    assert read_history(config.state)[-1]["action"] == "failed"
    assert len(config.triggers.open()) == 1


def test_an_attempt_left_behind_is_gone_on_with_before_new_triggers(quickly, monkeypatch):
    config, calls, _ = quickly
    killed = []

    def interrupted(*arguments):
        killed.append(arguments[1])
        raise KeyboardInterrupt

    working = command.run_attempt
    offer(config, "one")
    monkeypatch.setattr(command, "run_attempt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retrain_model(config, MODEL)
    monkeypatch.setattr(command, "run_attempt", working)
    offer(config, "two")
    done = retrain_model(config, MODEL)
    assert next(one[0].id for one in done) == killed[0].id, "the claim of the killed process is taken over"
    assert len(calls) == 2
    assert config.triggers.open() == []


def test_an_attempt_of_another_configuration_is_abandoned_and_its_trigger_claimed_anew(quickly, monkeypatch, tmp_path):
    config, calls, _ = quickly
    state = ModelState(config.state, MODEL)
    trigger = offer(config)
    with state.locked(0.0):
        state.begin((trigger.id,), "before", "another fingerprint")
    done = retrain_model(config, MODEL)
    assert [outcome.action for _, outcome, _ in done] == ["abandoned", "refused"]
    assert calls[0].triggers == (trigger.id,)


def test_old_workspaces_are_pruned(quickly):
    config, _, _ = quickly
    config = replace(config, keep=2, force=True)
    state = ModelState(config.state, MODEL)
    for _ in range(4):
        with state.locked(0.0):
            attempt = state.begin((), "schedule", command.config_mark(config))
            state.workspace(attempt).mkdir()
        retrain_model(config, MODEL)
    assert len([path for path in state.folder.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("models=[oracle]", "workload-forecaster"),
        ("keep=0", "keep"),
        ("fresh.test_share=1", "fresh.test_share"),
        ("fresh.min_windows=1", "fresh.min_windows"),
        ("warm.lstm=2", "warm"),
        ("now=soon", "now"),
        ("lock_timeout_s=-1", "lock_timeout_s"),
    ],
)
def test_wrong_values_are_named(tmp_path, override, said):
    with pytest.raises(InputError, match=said):
        config_at(tmp_path, 40, override)


def test_history_survives_a_line_that_was_cut_off(quickly):
    config, _, _ = quickly
    offer(config, "one")
    retrain_model(config, MODEL)
    with (config.state / "history.jsonl").open("a") as handle:
        handle.write('{"id": "half')
    assert len(read_history(config.state)) == 1
    offer(config, "two")
    retrain_model(config, MODEL)
    assert [entry["action"] for entry in read_history(config.state)] == ["refused", "refused"]


def test_the_windows_that_judge_begin_after_the_champions_training(tmp_path):
    from models.backtest_plan import plan_origins
    from pipelines.retraining.fresh import Fresh, TooLittleFreshError, _Span, fresh_backtest

    config = config_at(tmp_path, 40).train
    ds = pd.date_range("2026-01-01", periods=1000, freq="1h")
    series = pd.DataFrame({"unique_id": "a", "ds": ds, "y": 1.0})
    for fresh_steps in (100, 200, 400, 900):
        known = ds[-1 - fresh_steps]
        backtest = fresh_backtest(config, series, known, Fresh()).backtest
        span = _Span(
            3600 * 10**9,
            ds[:1].to_numpy().astype("datetime64[ns]").astype("int64"),
            ds[-1:].to_numpy().astype("datetime64[ns]").astype("int64"),
        )
        plan = plan_origins(span, backtest, 24)
        assert len(plan.test) >= 10
        assert max(plan.all) <= fresh_steps / 2, "the other half is for the challenger to learn from"
    with pytest.raises(TooLittleFreshError, match="20 steps"):
        fresh_backtest(config, series, ds[-21], Fresh())

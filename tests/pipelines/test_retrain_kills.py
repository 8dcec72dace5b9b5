"""Retraining killed (SIGKILL) after a stage, after the aliases moved, and at some moment: it resumes, and nothing is done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.retrain_kills import config_at, problems
from benchmarks.retrain_world import MODEL, START, write_world
from pipelines.retrain import retrain_model
from pipelines.retraining.attempts import ModelState, read_history
from pipelines.triggers import Trigger
from registry.mlflow_client import open_client
from registry.promotion import current_aliases

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys
from pathlib import Path
from benchmarks.retrain_kills import config_at
from benchmarks.retrain_world import MODEL
from pipelines.retrain import retrain_model
from pipelines.retraining import attempt_run

real = attempt_run.run_each

def run_each(context, stages, runners, *, resuming):
    real(context, stages, runners, resuming=resuming)
    if sys.argv[2] in stages:
        os.kill(os.getpid(), signal.SIGKILL)

attempt_run.run_each = run_each
retrain_model(config_at(Path(sys.argv[1]), 25.0), MODEL)
"""


def begin(folder, stage):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), stage], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_killed_again_and_again_it_resumes_and_promotes_once(tmp_path):
    write_world(tmp_path)
    config = config_at(tmp_path, 25.0)
    trigger = Trigger(MODEL, "loss", "drift", {}, "data", START.isoformat())
    config.triggers.offer(trigger)
    state = ModelState(config.state, MODEL)

    assert begin(tmp_path, "features").wait(300) == -signal.SIGKILL
    left = state.open()
    assert left is not None
    assert left.triggers == (trigger.id,)
    assert (state.workspace(left) / "features" / "stage.json").exists()
    assert problems(tmp_path, config, None) == []

    process = begin(tmp_path, "nowhere")
    time.sleep(2.0)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert problems(tmp_path, config, None) == []
    assert state.open() == left

    assert begin(tmp_path, "promote").wait(300) == -signal.SIGKILL
    client = open_client(config.train.registry.tracking_uri)
    promoted = current_aliases(client, MODEL)["champion"]
    assert problems(tmp_path, config, None) == []
    assert config.triggers.open() == [trigger]
    assert read_history(config.state) == []

    ((attempt, outcome, _),) = retrain_model(config, MODEL)
    assert attempt.id == left.id
    assert (outcome.action, outcome.version, outcome.champion) == ("promoted", promoted, promoted)
    assert [entry["id"] for entry in read_history(config.state)] == [left.id]
    assert config.triggers.open() == []
    assert state.open() is None
    assert problems(tmp_path, config, promoted) == []
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert "RUNNING" not in {run.info.status for run in runs}
    assert retrain_model(config, MODEL) == []

"""Runs, their content, and where they are stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow.artifacts
import pandas as pd
import pytest
from matplotlib.figure import Figure

from registry.plain import clip, flatten, plain
from registry.provenance import data_facts, frame_hash, git_state
from registry.tracking import open_tracking
from telemetry.errors import InputError


def fetch(tracking, run, path: str) -> str:
    return Path(mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path=path, tracking_uri=tracking.tracking_uri)).read_text()


def test_artifacts_lie_beside_the_database_whatever_the_current_folder(tracking, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with tracking.run("parent") as run:
        run.log_text("hello", "note.txt")
    assert tracking.artifact_location == (tmp_path / "mlartifacts").as_uri()
    assert [path.name for path in (tmp_path / "mlartifacts").rglob("note.txt")] == ["note.txt"]
    assert list(elsewhere.iterdir()) == []


def test_a_relative_database_stays_the_same_one_after_a_change_of_folder(tracking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = open_tracking("sqlite:///mlflow.db")
    assert opened.tracking_uri == tracking.tracking_uri
    assert opened.experiment_id == tracking.experiment_id


def test_another_artifact_root_for_an_existing_experiment_is_refused(tracking, tmp_path):
    with pytest.raises(InputError, match="already keeps its artifacts"):
        open_tracking(tracking.tracking_uri, tmp_path / "other")


@pytest.mark.parametrize("uri", ["file:///tmp/runs", "mlruns", ""])
def test_stores_that_mlflow_does_not_serve_are_refused(uri):
    with pytest.raises(InputError, match="sqlite"):
        open_tracking(uri)


def test_a_deleted_experiment_is_restored(tracking):
    tracking.client.delete_experiment(tracking.experiment_id)
    assert open_tracking(tracking.tracking_uri).experiment_id == tracking.experiment_id


def test_nested_run_carries_config_provenance_metrics_and_tables(tracking):
    config = {"agent": {"steps": 10, "net": {"width": 64}}, "long": "x" * 7000}
    with tracking.run("parent", tags={"kind": "train"}) as parent, parent.child("forecaster") as child:
        child.log_config(config)
        child.log_provenance({"sha256": "ab", "rows": 3})
        for step, loss in enumerate((3.0, 2.0, float("nan"))):
            child.log_metrics({"loss": loss}, step)
        child.log_table(pd.DataFrame({"when": pd.to_datetime(["2026-01-01"]), "wql": [0.1]}), "scores")
        figure = Figure()
        figure.subplots().plot([1, 2])
        child.log_figure(figure, "curve")
    data = tracking.client.get_run(child.run_id)
    assert data.info.status == "FINISHED"
    assert data.data.tags["mlflow.parentRunId"] == parent.run_id
    assert data.data.params["agent.net.width"] == "64"
    assert data.data.params["long"].endswith("[clipped]")
    assert len(data.data.params["long"]) == 6000
    assert json.loads(fetch(tracking, child, "config.json"))["long"] == "x" * 7000
    assert data.data.tags["git.commit"] == git_state()["commit"]
    assert data.data.tags["data.sha256"] == "ab"
    assert json.loads(fetch(tracking, child, "provenance.json"))["environment"]["packages"]["mlflow"].startswith("3.")
    assert [(m.step, m.value) for m in tracking.client.get_metric_history(child.run_id, "loss")] == [(0, 3.0), (1, 2.0)]
    assert data.data.tags["metrics.not_finite"] == "loss"
    assert json.loads(fetch(tracking, child, "tables/scores.json"))["columns"] == ["when", "wql"]
    assert [entry.path for entry in tracking.client.list_artifacts(child.run_id, "plots")] == ["plots/curve.png"]


def test_more_than_a_hundred_params_are_logged(tracking):
    with tracking.run("many") as run:
        run.log_params({f"p{i}": i for i in range(250)})
    assert len(tracking.client.get_run(run.run_id).data.params) == 250


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_ends_badly_says_so(tracking, error, status):
    with pytest.raises(error), tracking.run("parent") as parent, parent.child("child") as child:
        raise error
    assert {tracking.client.get_run(run.run_id).info.status for run in (parent, child)} == {status}


def test_first_starts_at_once_on_an_empty_folder(tmp_path):
    code = f"from registry.tracking import open_tracking; print(open_tracking('sqlite:///{tmp_path}/new.db').experiment_id)"
    root = Path(__file__).resolve().parents[2]
    starts = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120) for process in starts]
    assert [process.returncode for process in starts] == [0, 0, 0]
    assert len({out for out, _ in answers}) == 1
    assert {err for _, err in answers} == {""}


def test_git_state_outside_a_checkout_is_unknown(tmp_path):
    assert git_state(tmp_path) == {"commit": "unknown", "dirty": None}


def test_data_hash_depends_on_values_names_and_order():
    frame = pd.DataFrame({"ds": pd.to_datetime(["2026-01-01", "2026-01-02"]), "y": [1.0, 2.0]})
    assert frame_hash(frame) == frame_hash(frame.set_axis([5, 6]))
    others = [frame.assign(y=[1.0, 2.1]), frame.rename(columns={"y": "z"}), frame.iloc[::-1], frame.astype({"y": "float32"})]
    assert len({frame_hash(frame), *map(frame_hash, others)}) == 5
    assert data_facts(frame) | {"sha256": ""} == {"sha256": "", "rows": 2, "start": "2026-01-01T00:00:00", "end": "2026-01-02T00:00:00"}


def test_plain_flatten_clip():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}
    assert plain({"x": float("inf"), "y": (1, pd.Timestamp("2026-01-01"))}) == {"x": None, "y": [1, "2026-01-01 00:00:00"]}
    assert len(clip("x" * 100, 30)) == 30

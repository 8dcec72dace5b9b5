"""``python -m pipelines.characterise``: from a small lake to answers, disagreements and suggestions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.characterise.classifier import UNKNOWN
from models.characterise.generator import ProfileSetting, generate_profiles
from pipelines.characterise import MODEL_FOLDER, characterise, config_of, disagreements, report, suggestions, summary, write_found
from pipelines.cli import compose_config
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.lake import Lake, SourceTables
from telemetry.quality import QualityReport
from telemetry.schema import empty

REPOSITORY = Path(__file__).resolve().parents[2]
START = pd.Timestamp("2026-01-05", tz="UTC")
NODES = 4


def ingest_jobs(root, profiles, spoilt_after=None):
    """Generated jobs as a lake: one device each; job-3 states a wrong class, job-10 to job-19 none."""
    samples, jobs = [], []
    for number, p in enumerate(profiles):
        begin = START + pd.Timedelta(hours=number)
        kind = p.workload_class
        if number == 3:
            kind = "interactive" if kind != "interactive" else "training"
        if 10 <= number < 20:
            kind = None
        end = begin + pd.Timedelta(seconds=round(p.elapsed_s))
        times = {"submit_time": begin, "start_time": begin, "end_time": end, "duration_s": p.elapsed_s}
        shape = {"gpus": p.gpus, "workers": p.workers, "workload_class": kind, "requested_duration_s": p.requested_s}
        jobs.append({"job_id": p.job_id, **times, **shape})
        for metric, values in (("hw.gpu.utilization", p.utilization), ("hw.power", p.power_w), ("hw.gpu.memory.utilization", p.memory)):
            rows = pd.DataFrame({"time": begin + pd.to_timedelta(p.seconds.round(), unit="s"), "value": values}).dropna()
            samples.append(
                rows.assign(metric=metric, node=f"n{number % NODES}", device=f"gpu{number}", pod_uid=f"{p.job_id}-abcde", site="s")
            )
    table = pd.concat(samples, ignore_index=True)
    if spoilt_after is not None:
        later = table["time"] > spoilt_after
        table.loc[later, "value"] = 0.5 * table.loc[later, "value"]
    for name in empty("samples").columns:
        if name not in table:
            table[name] = "t" if name == "source" else ""
    frame = pd.DataFrame(jobs).reindex(columns=list(empty("jobs").columns))
    frame = frame.astype({name: dtype for name, dtype in empty("jobs").dtypes.items() if str(dtype) != "object"})
    for name in (n for n, d in frame.dtypes.items() if str(d) == "object"):
        frame[name] = frame[name].where(frame[name].notna(), None)
    table = table[list(empty("samples").columns)].astype({"time": "datetime64[ns, UTC]", "value": float})
    Lake(root).ingest(SourceTables("t", "0" * 64, {"samples": table, "jobs": frame}, QualityReport()))


def some_profiles():
    return generate_profiles(200, ProfileSetting(step_s=600.0, duration_scale=0.5, use_known=1.0), seed=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characterise")
    ingest_jobs(folder / "lake", some_profiles())
    nodes = {f"n{i}": {"site": "s", "pool": "p", "gpu_model": "A40", "gpus": 50} for i in range(NODES)}
    (folder / "nodes.json").write_text(json.dumps({"nodes": nodes}))
    return folder


def config(place, *overrides):
    return config_of(
        compose_config("characterise", [f"lake.root={place}/lake", f"inventory={place}/nodes.json", f"out={place}/out", *overrides])
    )


@pytest.fixture(scope="module")
def found(place):
    return characterise(config(place, "train=lake"))


def test_stated_classes_are_compared_and_missing_ones_suggested(found, place):
    assert len(found.table) == 200
    assert found.validation.groups == NODES
    value = report(found)
    assert value["stated"]["accuracy"] > 0.75
    assert value["stated"]["jobs"] == 190
    wrong = disagreements(found.table)
    assert (wrong["label"] != wrong["stated"]).all()
    assert (wrong["label"] != UNKNOWN).all()
    told = suggestions(found.table)
    assert set(told["job_id"]) <= {f"job-{i}" for i in range(10, 20)}
    assert len(told) >= 5
    truth = {f"job-{i}": WORKLOAD_CLASSES[i % 5] for i in range(200)}
    assert np.mean([truth[job] == kind for job, kind in zip(told["job_id"], told["workload_class"], strict=True)]) >= 0.7
    np.testing.assert_allclose(found.table[[f"p_{name}" for name in WORKLOAD_CLASSES]].sum(axis=1), 1.0, rtol=1e-6)
    assert "190 jobs" in summary(value)


def test_a_job_is_never_judged_by_a_model_that_saw_its_stated_class(found):
    stated = found.table[found.table["stated"] != ""]
    columns = [f"p_{name}" for name in WORKLOAD_CLASSES]
    np.testing.assert_allclose(stated[columns].to_numpy(float), found.validation.probabilities)
    with_own_label = found.model.answer([p for p in found.profiles if p.workload_class]).probabilities
    assert np.abs(with_own_label - stated[columns].to_numpy(float)).max() > 0.1


def test_files_are_written_and_the_model_answers_again(found, place):
    files = write_found(found, place / "out")
    names = {path.name for path in files}
    assert names >= {
        "predictions.csv",
        "disagreements.csv",
        "suggestions.csv",
        "power_profiles.csv",
        "report.json",
        "quality.png",
        "watts.png",
    }
    assert len(pd.read_csv(place / "out" / "predictions.csv")) == 200
    watts = pd.read_csv(place / "out" / "power_profiles.csv")
    assert set(watts["workload_class"]) == set(WORKLOAD_CLASSES)
    assert not list((place / "out").glob(".*"))
    again = characterise(config(place, f"model={place}/out/{MODEL_FOLDER}"))
    blank = found.table["stated"] == ""
    np.testing.assert_allclose(again.table.loc[blank, "probability"], found.table.loc[blank, "probability"], rtol=1e-9)


def test_as_of_changes_nothing_when_the_future_changes(place, tmp_path):
    model = place / "asof"
    characterise(config(place, "train=generated", "generated_jobs=200")).model.save(model)
    at = "2026-01-06T12:00"
    first = characterise(config(place, f"model={model}", f"as_of={at}")).table
    ingest_jobs(tmp_path / "lake", some_profiles(), spoilt_after=pd.Timestamp(at, tz="UTC"))
    again = characterise(config(place, f"model={model}", f"as_of={at}", f"lake.root={tmp_path}/lake")).table
    pd.testing.assert_frame_equal(first, again)
    assert len(first) == 37  # one job an hour has started
    assert (first["elapsed_s"] <= 36 * 3600.0).all()
    whole = [characterise(config(place, f"model={model}", f"lake.root={root}/lake")).table["probability"] for root in (place, tmp_path)]
    assert not np.allclose(*whole)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train=magic"], "auto, lake, generated"),
        (["target_error=2"], "error between 0 and 1"),
        (["target_error=much"], "'much'"),
        (["generated_jobs=3"], "generated_jobs"),
        (["as_of=yesterday"], "as_of"),
        (["as_of=2020-01-01"], "no job has started"),
        (["model=gone"], "gone"),
        (["lake.root=nowhere"], "no job that has started"),
        (["inventory=gone.json"], "gone.json"),
    ],
)
def test_bad_input_is_named(place, overrides, told):
    with pytest.raises(InputError, match=told):
        characterise(config(place, *overrides))


def test_the_command_from_end_to_end(place):
    run = subprocess.run(
        [sys.executable, "-m", "pipelines.characterise", f"lake.root={place}/lake", f"inventory={place}/nodes.json", f"out={place}/cli"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "trained on 190 jobs of the lake" in run.stdout
    assert json.loads((place / "cli" / "report.json").read_text())["jobs"] == 200
    bad = subprocess.run(
        [sys.executable, "-m", "pipelines.characterise", "train=magic"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr

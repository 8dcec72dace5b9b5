"""Public job traces by name: configuration, readers, transforms, the command, and the documentation's table."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from envs.worlds.transform import scale_time, tag_classes, thin
from pipelines.cli import build, compose_config
from pipelines.config import PUBLIC_JOBS, TraceConfig
from pipelines.make_trace import _without_gpus, make_jobs
from pipelines.origins import trace_infos
from telemetry.errors import InputError
from telemetry.readers import ReadContext, reader_named
from telemetry.readers.public_jobs import read_eagle, read_gaia, read_openb

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT / ".." / "shared" / "traces")).resolve()
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not there")
PODS = ["name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "qos", "creation_time", "deletion_time", "scheduled_time"]


def pods(tmp_path):
    rows = [
        ("p0", 12000, 2048, 1, 460, "LS", 100, 200, 150.0),
        ("p1", 1000, 0, 0, 0, "BE", 50, 90, 60.0),
        ("p2", 1000, 1024, 8, 1000, "LS", 300, 400, None),
        ("p3", 1000, 1024, 8, 1000, "LS", 86_400, 86_500, 86_400.0),
    ]
    path = tmp_path / "pods.parquet"
    pd.DataFrame(rows, columns=PODS).to_parquet(path)
    return path


def test_openb_shares_cpus_and_run_time(tmp_path):
    jobs, counts = read_openb(pods(tmp_path), start="2023-01-01")
    assert list(jobs["job_id"]) == ["p1", "p0", "p3"]
    assert list(jobs["gpus"]) == [0.0, 0.46, 8.0]
    assert list(jobs["duration_s"]) == [30.0, 50.0, 100.0]
    assert list(jobs["cpus"]) == [1.0, 12.0, 1.0]
    assert jobs["memory_gib"].isna().tolist() == [True, False, False]
    assert jobs["memory_gib"].iloc[1] == 2.0
    assert counts == {"before_first_day": 0, "never_scheduled": 1, "no_duration": 0}
    late, counts = read_openb(pods(tmp_path), start="2023-01-01", duration="lifetime", first_day=1)
    assert list(late["job_id"]) == ["p3"]
    assert counts["before_first_day"] == 3
    with pytest.raises(InputError, match="run, lifetime"):
        read_openb(pods(tmp_path), start="2023-01-01", duration="life")


def test_gaia_keeps_one_tile(tmp_path):
    path = tmp_path / "vms.parquet"
    pd.DataFrame({"arrival_time": [0.5, 679.9, 680.5], "length": [1.0, 0.5, 1.0], "cpus": [2, 4, 2]}).to_parquet(path)
    jobs, counts = read_gaia(path, start="2022-01-03")
    assert list(jobs["duration_s"]) == [3600.0, 1800.0]
    assert jobs["submit_time"].iloc[0] == pd.Timestamp("2022-01-03T00:30:00Z")
    assert counts == {"repeated_tiles": 1}
    assert len(read_gaia(path, start="2022-01-03", first_tile=False)[0]) == 3


def test_eagle_workers_and_requests(tmp_path):
    path = tmp_path / "eagle.csv"
    pd.DataFrame(
        {
            "job_id": [1, 1, 3], "user": "u", "account": "a", "wallclock_req": 600.0, "nodes_req": [10, 2, 1],
            "processors_req": [360, 2, 1],
            "gpus_req": [0, 3, 0],
            "submit_time": "2019-01-01 08:55:55", "run_time": [60.0, 9.0, 9.0],
            "state": ["COMPLETED", "TIMEOUT", "NODE_FAIL"],
        }
    ).to_csv(path, index=False)  # fmt: skip
    jobs, counts = read_eagle(path)
    assert list(jobs["job_id"]) == ["1", "1_1"]
    assert list(jobs["workers"]) == [10, 2]
    assert list(jobs["cpus"]) == [36.0, 1.0]
    assert list(jobs["gpus"]) == [0.0, 2.0]
    assert list(jobs["state"]) == ["completed", "timeout"]
    assert counts == {"other_state": 1, "no_duration": 0}


def test_missing_file_and_column_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_gaia(tmp_path / "none.parquet", start="2022-01-03")
    path = tmp_path / "x.parquet"
    pd.DataFrame({"arrival_time": [1.0]}).to_parquet(path)
    with pytest.raises(InputError, match="missing column length, cpus"):
        read_gaia(path, start="2022-01-03")


def many(count=4000):
    submit = pd.Timestamp("2023-01-02", tz="UTC") + pd.to_timedelta([60 * i for i in range(count)], unit="s")
    return pd.DataFrame(
        {"job_id": [f"{i:05d}" for i in range(count)], "submit_time": submit, "duration_s": 5.0, "gpus": 1.0, "workers": 1.0}
    )


def test_scaling_time_and_thinning():
    jobs = many()
    fast = scale_time(jobs, 0.5)
    assert fast["submit_time"].iloc[-1] - fast["submit_time"].iloc[0] == (jobs["submit_time"].iloc[-1] - jobs["submit_time"].iloc[0]) / 2
    assert (fast["duration_s"] == jobs["duration_s"]).all()
    thinned = thin(jobs, 0.25, seed=1)
    assert thinned.equals(thin(jobs, 0.25, seed=1))
    assert not thinned.equals(thin(jobs, 0.25, seed=2))
    assert abs(len(thinned) / len(jobs) - 0.25) < 0.03
    first = thinned["submit_time"] < jobs["submit_time"].iloc[len(jobs) // 2]
    assert abs(first.mean() - 0.5) < 0.06
    for bad in (0.0, 1.5):
        with pytest.raises(InputError, match="thin"):
            thin(jobs, bad, 0)
    with pytest.raises(InputError, match="time_scale"):
        scale_time(jobs, 0.0)


def test_classes_follow_the_shape_not_the_duration():
    jobs = many(5).assign(gpus=[0.0, 0.5, 1.0, 1.0, 8.0], workers=[1.0, 1.0, 1.0, 2.0, 1.0])
    tagged = tag_classes(jobs)
    assert list(tagged["workload_class"]) == ["batch_inference", "interactive", "fine_tuning", "training", "training"]
    assert tag_classes(jobs.assign(duration_s=1e6))["workload_class"].equals(tagged["workload_class"])
    assert list(tag_classes(jobs.assign(workload_class="interactive"))["workload_class"]) == ["interactive"] * 5
    with pytest.raises(InputError, match="none, shape"):
        tag_classes(jobs, "guess")


def trace_config(name):
    values = OmegaConf.to_container(compose_config("make_trace", [f"trace={name}", "out=x.parquet"]).trace, resolve=True)
    return build(TraceConfig, {**values, "path": str(TRACES)} if values["path"] else values, "trace")


@needs_traces
@pytest.mark.parametrize("name", PUBLIC_JOBS)
def test_every_public_trace_loads_as_canonical_jobs(name, tmp_path):
    jobs, _ = make_jobs(trace_config(name), 1.0, 1.0, 0, "shape")
    assert len(jobs) > 900
    assert jobs["duration_s"].gt(0).all()
    assert jobs["job_id"].is_unique
    assert (jobs["gpus"] >= 0).all()
    assert (jobs["gpus"].max() == 0) == (name == "gaia")
    on_gpus = jobs[jobs["gpus"] > 0]
    if len(on_gpus):
        on_gpus.to_parquet(tmp_path / "jobs.parquet")
        table = reader_named("jobs_table").read(tmp_path / "jobs.parquet", ReadContext(source="jobs")).tables["jobs"]
        assert table["job_id"].tolist() == on_gpus["job_id"].tolist()
    assert jobs["submit_time"].is_monotonic_increasing


def test_lake_is_no_public_trace():
    with pytest.raises(InputError, match="trace=openb"):
        make_jobs(trace_config("lake"), 1.0, 1.0, 0, "shape")


@needs_traces
def test_the_command_writes_and_names_flaws(tmp_path):
    out = tmp_path / "eagle.parquet"
    env = {**os.environ, "JOULEWISE_TRACES": str(TRACES)}
    command = [sys.executable, "-m", "pipelines.make_trace", "trace=eagle", "without_gpus=keep", "thin=0.5", f"hydra.run.dir={tmp_path}/h"]
    done = subprocess.run([*command, f"out={out}"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "known flaw: two days only" in done.stdout
    assert 400 < len(pd.read_parquet(out)) < 600
    assert not list(tmp_path.glob("*.new"))
    bad = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "out=FILE.parquet" in bad.stderr


def test_every_public_trace_states_origin_and_flaws():
    infos = {info.name: info for info in trace_infos()}
    assert set(PUBLIC_JOBS) | {"demand/helios", "requests/mooncake"} <= set(infos)
    assert all(len(info.origin["commit"]) >= 12 and info.flaws for info in infos.values())


def test_jobs_without_gpus_are_left_out_and_counted():
    jobs = many(4).assign(gpus=[0.0, 0.5, 0.0, 1.0])
    counts = {}
    assert list(_without_gpus(jobs, counts, "drop", "openb")["gpus"]) == [0.5, 1.0]
    assert counts == {"without_gpus": 2}
    assert len(_without_gpus(jobs, counts, "keep", "openb")) == 4
    with pytest.raises(InputError, match="no job asks for GPUs"):
        _without_gpus(jobs.assign(gpus=0.0), {}, "drop", "gaia")
    with pytest.raises(InputError, match="drop, keep"):
        _without_gpus(jobs, counts, "some", "openb")

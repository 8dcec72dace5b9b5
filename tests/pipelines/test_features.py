"""Jobs on their way from an export to the simulator."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from envs.cluster_io import load_cluster
from envs.power.curves import levels_for
from pipelines.cli import CONF_DIR, compose_config
from pipelines.config import train_config
from pipelines.stages.features import _jobs, to_reference_gpu
from telemetry.classes import CLASS_INDEX
from telemetry.lake import Lake


def jobs() -> pd.DataFrame:
    times = pd.to_datetime(["2026-01-05T00:00:00Z"] * 4)
    return pd.DataFrame(
        {
            "job_id": list("abcd"),
            "submit_time": times,
            "duration_s": [1000.0, 1000.0, float("nan"), 1000.0],
            "requested_duration_s": [2000.0, 2000.0, 2000.0, 2000.0],
            "gpus": 1.0,
            "workers": 1.0,
            "workload_class": "fine_tuning",
            "team": "t",
            "project": "p",
            "pool": ["west-a40", "elsewhere", "west-a40", "west-a40"],
            "state": ["completed", "completed", "completed", "running"],
        }
    )


def test_elapsed_time_becomes_time_on_the_reference_gpu_and_open_jobs_are_counted():
    kept, counts = to_reference_gpu(jobs(), load_cluster("sample", CONF_DIR))
    speed = levels_for("A40", (1.0,))[0][0, CLASS_INDEX["fine_tuning"]]
    assert speed > 1.2
    assert kept["duration_s"].tolist() == pytest.approx([1000 * speed, 1000])
    assert kept["requested_duration_s"].tolist() == pytest.approx([2000 * speed, 2000])
    assert counts == {"jobs": 4, "not_ended": 1, "without_duration_or_gpus": 1}


def test_a_named_network_has_its_own_speed_where_it_was_measured():
    cluster = load_cluster("two_site", CONF_DIR)
    table = jobs()[:3].assign(duration_s=1000.0, pool="east-p100", workload=["resnet-50 (batch size 64)", None, "A3C"])
    table.loc[2, "pool"] = "west-a40"
    kept, _ = to_reference_gpu(table, cluster)
    of_class = {model: levels_for(model, (1.0,))[0][0, CLASS_INDEX["fine_tuning"]] for model in ("P100", "A40")}
    assert kept["duration_s"].tolist() == pytest.approx([596.0, 1000 * of_class["P100"], 1000 * of_class["A40"]])


def test_a_canonical_table_keeps_its_durations(tmp_path):
    jobs().dropna(subset="duration_s").to_csv(tmp_path / "jobs.csv", index=False)
    config = train_config(compose_config("train", ["trace=table", f"trace.path={tmp_path}/jobs.csv"]))
    kept, _ = _jobs(replace(config, lake={"root": str(tmp_path)}), Lake(tmp_path))
    assert kept["duration_s"].tolist() == [1000.0, 1000.0]

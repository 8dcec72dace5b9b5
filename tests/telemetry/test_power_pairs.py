"""Watts and utilisation of the same device: joined in time, linked to jobs, and what has no partner is counted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from telemetry.inventory import Inventory
from telemetry.power_pairs import kinds_of, node_pairs, pair_samples
from telemetry.readers import ReadContext, reader_named

START = pd.Timestamp("2026-01-05", tz="UTC")


def rows(metric, values, *, node="n1", device="gpu0", pod="", step="60s", offset="0s"):
    times = START + pd.Timedelta(offset) + pd.to_timedelta(np.arange(len(values)) * pd.Timedelta(step).total_seconds(), unit="s")
    return pd.DataFrame({"time": times, "metric": metric, "value": values, "node": node, "device": device, "pod_uid": pod})


def test_each_power_reading_gets_the_nearest_utilisation_within_half_a_step():
    samples = pd.concat(
        [
            rows("hw.power", [50.0, 60.0, 70.0, 80.0], pod="job-1-abcde"),
            rows("hw.gpu.utilization", [0.1, 0.2, 0.3], offset="20s"),
            rows("hw.power", [500.0], device=""),
        ]
    )
    pairs = pair_samples(samples, {"n1": "A40"})
    assert pairs.table["power_w"].tolist() == [50.0, 60.0, 70.0]
    assert pairs.table["utilization"].tolist() == [0.1, 0.2, 0.3]
    assert pairs.table["limit_w"].isna().all()
    assert pairs.table["held"].all()
    assert pairs.dropped == {"no utilisation at the time": 1}


def test_a_limit_holds_until_it_changes_and_is_of_the_own_device():
    samples = pd.concat(
        [
            rows("hw.power", [50.0, 60.0, 70.0]),
            rows("hw.gpu.utilization", [0.1, 0.2, 0.3]),
            rows("hw.power.limit", [200.0], offset="60s"),
            rows("hw.power", [55.0], device="gpu1"),
            rows("hw.gpu.utilization", [0.5], device="gpu1"),
        ]
    )
    table = pair_samples(samples, {"n1": "A40"}).table
    first = table[table["device"] == "n1/gpu0"]["limit_w"]
    assert np.isnan(first.iloc[0])
    assert first.iloc[1:].tolist() == [200.0, 200.0]
    assert table[table["device"] == "n1/gpu1"]["limit_w"].isna().all()


def test_what_has_no_partner_or_model_is_counted():
    samples = pd.concat([rows("hw.power", [50.0, 60.0]), rows("hw.power", [1.0], node="n2"), rows("hw.gpu.utilization", [0.5], node="n2")])
    pairs = pair_samples(samples, {"n1": "A40", "n2": ""})
    assert pairs.table.empty
    assert pairs.dropped == {"no utilisation of the device": 2, "GPU model not known": 1}


def test_pods_are_linked_to_their_jobs():
    jobs = pd.DataFrame({"job_id": ["train-1", "serve-2-x"], "workload_class": ["training", None]})
    pods = pd.Series(["train-1-abcde", "train-1", "train-10-abcde", "serve-2-x-1", ""])
    assert kinds_of(pods, jobs).tolist() == ["training", "training", "", "", ""]
    assert kinds_of(pods, None).tolist() == [""] * 5


def test_a_daemon_that_names_every_gpu_holds_none():
    samples = pd.concat([rows("hw.power", [50.0], pod="slurm-worker-n1"), rows("hw.gpu.utilization", [0.0])])
    assert not pair_samples(samples, {"n1": "A40"}).table["held"].any()


def test_node_meters_beside_their_gpus():
    samples = pd.concat(
        [
            rows("hw.power", [500.0, 510.0], device=""),
            rows("hw.power", [100.0, 110.0]),
            rows("hw.power", [50.0], device="gpu1"),
            rows("hw.power", [50.0, 60.0], node="n2", device=""),
        ]
    )
    table = node_pairs(samples)
    assert len(table) == 1  # the second reading lacks gpu1, the second node has no GPUs
    assert table["gpu_w"].iloc[0] == 150.0
    assert table["node_w"].iloc[0] == 500.0


@pytest.mark.parametrize("value", [250.0])
def test_limits_are_read_from_the_exporter(tmp_path, value):
    series = {"metric": {"__name__": "DCGM_FI_DEV_POWER_MGMT_LIMIT", "Hostname": "n1", "gpu": "0"}, "values": [[1767571200, str(value)]]}
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [series]}}))
    frame = reader_named("prometheus").read(file, ReadContext("answer.json", Inventory(nodes={}))).tables["samples"]
    assert frame["metric"].astype(str).tolist() == ["hw.power.limit"]
    assert frame["value"].tolist() == [value]

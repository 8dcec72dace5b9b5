"""The state file: the shipped example reads, and anything odd is named with its place."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest

from runtime.jobs import parse_job
from runtime.state_file import read_state
from telemetry.errors import InputError

EXAMPLE = json.loads((Path(__file__).resolve().parents[2] / "deploy" / "examples" / "state.json").read_text())


def read(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_text(json.dumps(content))
    return read_state(path)


def changed(*path, value):
    content = copy.deepcopy(EXAMPLE)
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return content


def test_example_reads(tmp_path):
    state = read(tmp_path, EXAMPLE)
    assert state.time == pd.Timestamp("2026-02-10T08:00:00Z")
    assert state.cluster.total_gpus == 48
    assert len(state.nodes) == 12
    assert len(state.running) == 6
    assert [job.job_id for job, _ in state.queue] == ["train-audio-5", "notebook-ben"]
    assert state.history.empty
    asking = parse_job({"job_id": "notebook-ben", "gpus": 1, "workload_class": "training"})
    jobs = state.snapshot(asking, state.cluster).jobs
    assert jobs["job_id"].is_unique
    assert jobs.set_index("job_id").loc["notebook-ben", "gpus"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "a JSON object"),
        ({"time": "2026-02-10T08:00:00Z"}, "key 'nodes' missing"),
        (EXAMPLE | {"nods": []}, "unknown key 'nods'"),
        (EXAMPLE | {"time": "2026-02-10 08:00"}, "a time with zone"),
        (EXAMPLE | {"time": 5}, "a time with zone"),
        (EXAMPLE | {"nodes": {}, "queue": "none"}, "a list"),
        (changed("nodes", 4, value={"name": "x", "state": "waking"}), r"nodes\[4\]: a waking node without ready_at"),
        (changed("running", 1, "level", value="full"), r"running\[1\]: level is a whole number"),
        (changed("running", 1, "max_watts", value="abc"), r"running\[1\]: max_watts 'abc'"),
        (changed("queue", 0, "gpus", value=-1), r"queue\[0\]: gpus"),
        (changed("grid", 3, value={"time": "2026-02-09T08:00:00Z", "site": "west"}), r"grid\[3\]: key 'price_usd_per_kwh' missing"),
        (changed("cluster", "pools", 0, "gpus_per_node", value="four"), "gpus_per_node"),
        (EXAMPLE | {"history": [{"unique_id": "a", "ds": "2026-02-10T08:00:00Z", "y": "5"}]}, r"history\[0\]: y '5'"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


def test_truncated_or_missing_file(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(EXAMPLE)[:400])
    with pytest.raises(InputError, match="is not JSON"):
        read_state(tmp_path / "state.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path / "none.json")


def test_history_becomes_utc_without_zone(tmp_path):
    state = read(tmp_path, EXAMPLE | {"history": [{"unique_id": "a", "ds": "2026-02-10T09:00:00+01:00", "y": 5}]})
    assert state.history["ds"].tolist() == [pd.Timestamp("2026-02-10T08:00:00")]


def test_a_running_job_cannot_ask(tmp_path):
    state = read(tmp_path, EXAMPLE)
    with pytest.raises(InputError, match="is running already"):
        state.snapshot(parse_job({"job_id": "chat-serve-1", "gpus": 1, "workload_class": "training"}), state.cluster)

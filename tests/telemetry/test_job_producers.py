"""What sacct and kubectl print on clusters: arrays, heterogeneous jobs, MIG, odd states and times; pods as jobs with their nodes."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_json import spoiled

from telemetry.errors import InputError
from telemetry.jobs import mig_share
from telemetry.readers import READERS
from telemetry.readers.kubernetes import quantity
from telemetry.readers.slurm import array_tasks, span_s
from telemetry.schema import validate


@pytest.fixture
def read(tmp_path, context):
    def run(reader, content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "export").write_bytes(data)
        result = READERS[reader].read(tmp_path / "export", context)
        return result.tables["jobs"], result.quality

    return run


# sacct -P -o JobID,State,Submit,Start,End,Elapsed,Timelimit,AllocTRES,ReqTRES,NNodes,NodeList,Account,Partition,ConsumedEnergyRaw
SACCT = """JobID|State|Submit|Start|End|Elapsed|Timelimit|AllocTRES|ReqTRES|NNodes|NodeList|Account|Partition|ConsumedEnergyRaw
100_4|COMPLETED|2026-01-05T00:00:00|2026-01-05T01:00:00|2026-01-06T03:03:04|1-02:03:04|2-00:00:00|billing=8,cpu=8,gres/gpu:a100=1,gres/gpu=1,mem=64G,node=1|billing=8,cpu=8,gres/gpu=1,mem=64G,node=1|1|gpu07|bio|gpu|1834022
100_4.batch|COMPLETED|2026-01-05T01:00:00|2026-01-05T01:00:00|2026-01-06T03:03:04|1-02:03:04||cpu=8,gres/gpu:a100=1,gres/gpu=1,mem=64G,node=1||1|gpu07|bio||1834022
100_[5-6,9%2]|PENDING|2026-01-05T00:00:00|Unknown|Unknown|00:00:00|2-00:00:00||cpu=8,gres/gpu=1,mem=64G,node=1|1|None assigned|bio|gpu|
200+0|NODE_FAIL|2026-01-05T00:00:00|2026-01-05T00:10:00|2026-01-05T00:20:00|00:10:00|UNLIMITED|cpu=64,gres/gpu=8,node=2|cpu=64,gres/gpu=8,node=2|2|gpu[01-02]|bio|gpu|0
200+1|OUT_OF_MEMORY|2026-01-05T00:00:00|2026-01-05T00:10:00|2026-01-05T00:20:00|10:00|Partition_Limit|cpu=4,gres/gpu=1,node=1|cpu=4,gres/gpu=1,node=1|1|gpu03|bio|gpu|0
300|CANCELLED by 1001|2026-01-05T00:00:00|None|2026-01-05T00:30:00|00:00:00|01:00:00||cpu=4,gres/gpu=2,node=1|1|None assigned|bio|gpu|
400|RUNNING|2026-01-05T00:00:00|2026-01-05T00:10:00|Unknown|01:00:00|01:00:00|cpu=4,gres/gpu:1g.5gb=2,gres/gpu=2,node=1|cpu=4,gres/gpu:1g.5gb=2,gres/gpu=2,node=1|1|gpu04|bio|mig|
500|REQUEUE_HOLD|2026-01-05T00:00:00|Unknown|Unknown|00:00:00|01:00:00||cpu=4,gres/gpu=2,node=1|1||bio|gpu|
"""


def test_sacct_of_a_cluster(read):
    jobs, quality = read("slurm", SACCT.encode())
    own = jobs.set_index("job_id")
    assert set(own.index) == {"100_4", "100_5", "100_6", "100_9", "200+0", "200+1", "300", "400", "500"}
    assert own["state"].to_dict() == {
        "100_4": "completed", "100_5": "pending", "100_6": "pending", "100_9": "pending", "200+0": "failed", "200+1": "failed",
        "300": "cancelled", "400": "running", "500": "pending",
    }  # fmt: skip
    assert own.loc["100_4", ["duration_s", "requested_duration_s", "gpu_model", "nodes"]].tolist() == [93784.0, 172800.0, "A100", "gpu07"]
    assert own.loc["200+0", ["gpus", "workers", "nodes"]].tolist() == [4.0, 2.0, "gpu01 gpu02"]
    assert own.loc[["200+0", "200+1"], "requested_duration_s"].isna().all()
    assert own.loc["200+1", "duration_s"] == 600.0
    assert own.loc["400", "gpus"] == pytest.approx(2 / 7)
    assert own.loc["400", "gpu_model"] is None
    assert own.loc[["100_5", "300", "500"], "nodes"].isna().all()
    assert own.loc["300", "start_time"] is pd.NaT
    assert quality.total() == {}
    assert quality.notes["src"] == {"job steps, which repeat their job": 1}


def test_parts_of_sacct():
    assert [span_s(text) for text in ("1-02:03:04", "02:03:04", "03:04", "00:01.500", "UNLIMITED", "", "1-02")] == [
        93784.0, 7384.0, 184.0, 1.5, None, None, None,
    ]  # fmt: skip
    assert array_tasks("7_[1-7:3,9]") == ["7_1", "7_4", "7_7", "7_9"]
    assert [array_tasks(text) for text in ("7", "7_3", "7+1", "7_[1-3,...]", "7_[1-999999999]")] == [
        ["7"], ["7_3"], ["7+1"], ["7_[1-3,...]"], ["7_[1-999999999]"],
    ]  # fmt: skip


def test_mig_profiles_and_quantities():
    names = ("nvidia.com/mig-1g.5gb", "gres/gpu:a100_3g.20gb", "mig-7g.80gb", "1g.6gb", "4g.24gb", "mig-1g.10gb.me", "a100", "8g.5gb")
    assert [mig_share(name) for name in names] == [1 / 7, 3 / 7, 1.0, 0.25, 1.0, 1 / 7, None, None]
    assert [quantity(text) for text in ("500m", "64Gi", "4", "1e3", "100n", "2Pi", ".5", 3)] == pytest.approx(
        [0.5, 64 * 2.0**30, 4.0, 1000.0, 1e-7, 2.0**51, 0.5, 3.0]
    )
    for text in ("", "1x", "-1", "1e999", "one"):
        with pytest.raises(ValueError, match="quantity"):
            quantity(text)


def pod(
    name, *, owner=None, phase="Succeeded", start="2026-01-05T00:05:00Z", end="2026-01-05T01:05:00Z", node="n0", namespace="ns", **change
):
    meta = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": "2026-01-05T00:00:00Z"}
    meta["labels"] = {"team": "nlp", "project": "p"}
    if owner:
        meta["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": owner[0], "name": owner[1], "controller": True}]
    status = {"phase": phase, "startTime": start, "conditions": [{"type": "Ready", "lastTransitionTime": "2026-01-05T00:45:00Z"}]}
    if end and phase in ("Succeeded", "Failed"):
        status["containerStatuses"] = [{"name": "main", "state": {"terminated": {"exitCode": 0, "finishedAt": end}}}]
    resources = {"requests": {"nvidia.com/gpu": "2", "cpu": "8", "memory": "64Gi"}, "limits": {"nvidia.com/gpu": "2"}}
    item = {
        "apiVersion": "v1", "kind": "Pod", "metadata": meta,
        "spec": {"nodeName": node, "containers": [{"name": "main", "resources": resources}]},
        "status": status,
    }  # fmt: skip
    return item | change


def test_a_bare_pod_is_a_job(read):
    jobs, quality = read("kubernetes", {"kind": "PodList", "items": [pod("a") | {"kind": None}]})
    job = jobs.iloc[0]
    assert job[["job_id", "gpus", "workers", "cpus", "memory_gib", "team", "project", "nodes", "state", "duration_s"]].tolist() == [
        "a", 2.0, 1.0, 8.0, 64.0, "nlp", "p", "n0", "completed", 3600.0,
    ]  # fmt: skip
    assert job["end_time"] == pd.Timestamp("2026-01-05T01:05Z")
    assert quality.total() == {}


def test_pods_of_a_job_are_one_job(read):
    job = ("Job", "train")
    items = [
        pod("train-0-abcde", owner=job),
        pod("train-1-fghij", owner=job, node="n1", end="2026-01-05T01:15:00Z"),
        pod("train-1-first", owner=job, phase="Failed", node="n2", end="2026-01-05T00:05:00Z", start="2026-01-05T00:01:00Z"),
        pod("web-7d9f-xyz", owner=("ReplicaSet", "web-7d9f"), phase="Running"),
    ]
    jobs, _ = read("kubernetes", {"kind": "List", "items": items})
    own = jobs.set_index("job_id")
    assert set(own.index) == {"train", "web-7d9f-xyz"}
    assert own.loc["train", ["gpus", "workers", "nodes", "state"]].tolist() == [2.0, 2.0, "n0 n1 n2", "completed"]
    assert own.loc["train", "start_time"] == pd.Timestamp("2026-01-05T00:01Z")
    assert own.loc["train", "end_time"] == pd.Timestamp("2026-01-05T01:15Z")
    assert own.loc["web-7d9f-xyz", "state"] == "running"
    assert own.loc["web-7d9f-xyz", "end_time"] is pd.NaT
    items[0]["status"]["phase"] = "Running"
    jobs, _ = read("kubernetes", {"kind": "List", "items": items})
    assert jobs.set_index("job_id").loc["train", ["state", "end_time"]].tolist() == ["running", pd.NaT]


def test_phases_reasons_and_names_of_two_namespaces(read):
    waiting = pod("d", phase="Pending", node=None)
    waiting["status"] = {"phase": "Pending"}
    evicted = pod("b", phase="Failed", end=None)
    evicted["status"]["reason"] = "Evicted"
    late = pod("c", phase="Failed")
    late["status"]["reason"] = "DeadlineExceeded"
    jobs, _ = read("kubernetes", {"items": [pod("a"), pod("a", namespace="other"), evicted, late, waiting]})
    own = jobs.set_index("job_id")
    assert own["state"].to_dict() == {"ns/a": "completed", "other/a": "completed", "b": "cancelled", "c": "timeout", "d": "pending"}
    assert own.loc["b", "end_time"] == pd.Timestamp("2026-01-05T00:45Z")
    assert own.loc["d", "start_time"] is pd.NaT
    assert own.loc["d", "nodes"] is None


def test_a_pod_with_an_odd_time_is_counted_and_the_others_are_kept(read):
    odd = pod("train-1-fghij", owner=("Job", "train"))
    odd["status"]["startTime"] = "soon"
    bare = pod("b")
    del bare["metadata"]["creationTimestamp"]
    jobs, quality = read("kubernetes", {"items": [pod("train-0-abcde", owner=("Job", "train")), odd, bare, 7]})
    assert jobs[["job_id", "workers"]].to_numpy().tolist() == [["train", 1.0]]
    assert quality.total() == {"unparseable": 3}


def test_mig_and_limits_alone(read):
    sliced = pod("a")
    sliced["spec"]["containers"] = [
        {"resources": {"limits": {"nvidia.com/mig-1g.5gb": 2}}},
        {"resources": {"limits": {"nvidia.com/mig-3g.20gb": "1"}, "requests": None}},
        {},
    ]
    cpu = pod("b")
    cpu["spec"]["containers"] = [{"resources": {"requests": {"cpu": "1"}}}]
    jobs, quality = read("kubernetes", {"items": [sliced, cpu]})
    assert jobs["gpus"].tolist() == pytest.approx([5 / 7])
    assert quality.notes["src"] == {"pods without a GPU, left out": 1}
    with pytest.raises(InputError, match="no GPU job"):
        read("kubernetes", {"items": [cpu]})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_in_a_pod_is_counted_or_refused_by_name(data, tmp_path, context):
    items = [pod("x-abcde", owner=("Job", "x")), data.draw(spoiled(pod("x-fghij", owner=("Job", "x")))), pod("y")]
    path = tmp_path / "pods.json"
    path.write_text(json.dumps({"kind": "List", "items": items}))
    try:
        result = READERS["kubernetes"].read(path, context)
    except InputError as error:
        assert "pods.json" in str(error)  # noqa: PT017
    else:
        validate("jobs", result.tables["jobs"], where="test")


CELLS = st.one_of(
    st.sampled_from(["", "Unknown", "None", "COMPLETED", "7_[1-3%2]", "1-02:03:04", "gres/gpu=-1", "cpu=4,gres/gpu=2", "n[1-3]"]),
    st.text(max_size=8),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cell_of_sacct_is_counted_or_refused_by_name(data, tmp_path, context):
    lines = [line.split("|") for line in SACCT.splitlines()]
    for _ in range(data.draw(st.integers(1, 4))):
        row = data.draw(st.sampled_from(lines[1:]))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(CELLS)
    path = tmp_path / "sacct.txt"
    path.write_text("\n".join(map("|".join, lines)))
    try:
        result = READERS["slurm"].read(path, context)
    except InputError as error:
        assert "sacct.txt" in str(error)  # noqa: PT017
    else:
        validate("jobs", result.tables["jobs"], where="test")

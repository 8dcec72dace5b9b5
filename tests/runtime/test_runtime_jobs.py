"""Jobs are read exactly or refused with the reason."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from runtime.jobs import JobRefusedError, parse_job, read_job

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
WIRE = Path(os.environ.get("JOULEWISE_FIXTURES", Path(__file__).resolve().parents[3] / "shared" / "fixtures")) / "kubernetes-wire"
JOB = {"job_id": "a", "gpus": 2, "workload_class": "training", "requested_duration_s": 3600, "max_watts": 500}


def pod(annotations=None, labels=None, gpus="1", **spec):
    resources = {} if gpus is None else {"limits": {"nvidia.com/gpu": gpus}, "requests": {"nvidia.com/gpu": gpus}}
    meta = {"name": "p", "namespace": "n", "annotations": annotations or {}, "labels": labels or {}}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": {"containers": [{"name": "c", "resources": resources}], **spec}}


def test_canonical_job():
    job = parse_job(JOB | {"deadline": "2026-02-11T01:00:00+01:00", "duration_s": 7, "team": "nlp"})
    assert (job.job_id, job.gpus, job.workers, job.max_watts, job.requested_duration_s, job.team) == ("a", 2, 1, 500, 3600, "nlp")
    assert job.deadline == pd.Timestamp("2026-02-11T00:00:00Z")
    assert job.notes == ("duration_s has no part in the decision",)
    now = pd.Timestamp("2026-02-10T08:00:00Z")
    assert job.row(now)["submit_time"] == now
    assert "duration_s" not in job.row(now)


@pytest.mark.parametrize(
    "watts", ["abc", "", "150W", "1e999", "nan", "inf", "-5", 0, -1, True, [150], {"w": 1}, float("nan"), float("inf"), "0x10", "1_000"]
)
def test_unparseable_or_senseless_max_watts_is_refused(watts):
    with pytest.raises(JobRefusedError, match="max_watts"):
        parse_job(JOB | {"max_watts": watts})
    with pytest.raises(JobRefusedError, match="max-watts"):
        parse_job(pod({"joulewise.io/max-watts": watts}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpus": None}, "gpus missing"),
        ({"job_id": None}, "job_id missing"),
        ({"workload_class": None}, "workload_class missing"),
        ({"workload_class": "mining"}, "unknown workload class 'mining'; known are training"),
        ({"gpus": 0}, "not above 0"),
        ({"gpus": 1.5}, "a share of one GPU or whole GPUs"),
        ({"gpus": "two"}, "not a plain number"),
        ({"gpus": 1e308, "workers": 10}, "beyond any cluster"),
        ({"workers": 0}, "whole number from 1"),
        ({"workers": 1.5}, "whole number from 1"),
        ({"max_wats": 100}, "unknown field 'max_wats'"),
        ({"requested_duration_s": -1}, "not above 0"),
        ({"deadline": "tomorrow"}, "is not a time"),
        ({"deadline": "2026-02-11T00:00:00"}, "has no zone"),
        ({"gpu_utilization": 2}, "0 to 1"),
        ({"job_id": 7}, "not a text"),
    ],
)
def test_bad_canonical_job_is_refused_with_the_reason(change, reason):
    with pytest.raises(JobRefusedError, match=reason):
        parse_job(JOB | change)


@pytest.mark.parametrize(
    "content", [[], "job", None, 3, {}, {"kind": "Deployment", "metadata": {}, "spec": {}}, {"kind": "Pod"}, {"kind": "AdmissionReview"}]
)
def test_what_is_no_job_is_refused(content):
    with pytest.raises(JobRefusedError):
        parse_job(content)


@pytest.mark.parametrize("text", ["", "{", '{"job_id": "a"', "\x00"])
def test_truncated_file_is_refused(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(JobRefusedError, match="not JSON"):
        read_job(tmp_path / "job.json")
    with pytest.raises(JobRefusedError, match="cannot be read"):
        read_job(tmp_path / "none.json")


def test_kubernetes_job():
    job = read_job(EXAMPLES / "job-kubernetes.json")
    assert (job.job_id, job.gpus, job.workers, job.workload_class) == ("search/embed-corpus", 1, 2, "batch_inference")
    assert (job.max_watts, job.requested_duration_s, job.team, job.project) == (550, 5400, "search", "index")
    assert job.deadline == pd.Timestamp("2026-02-11T06:00:00Z")


def test_pod_resources_selector_priority_and_fraction():
    job = parse_job(
        pod(
            {"gpu-fraction": "0.5", "x.io/workload-class": "interactive"},
            nodeSelector={"nvidia.com/gpu.product": "NVIDIA-A40"},
            priorityClassName="priority-2",
        )
    )
    assert (job.gpus, job.gpu_model, job.priority, job.workload_class) == (0.5, "A40", 2, "interactive")
    several = pod(gpus="2")
    several["spec"]["containers"].append(copy.deepcopy(several["spec"]["containers"][0]))
    several["spec"]["initContainers"] = [{"name": "i", "resources": {"limits": {"nvidia.com/gpu": "3"}}}]
    assert parse_job(several).gpus == 4
    assert parse_job(several).notes[0].startswith("no workload-class: taken as realtime_inference")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pod(gpus=None), "asks for no GPU"),
        (pod(gpus="one"), "not a plain number"),
        (pod(gpus="0.5"), "whole number"),
        (pod({"a.io/max-watts": "100"}, {"b.io/max-watts": "200"}), "two values for max-watts"),
        (pod({"a.io/max-wats": "100"}), "misspelt max-watts"),
        (pod({"a.io/maxWatts": "100"}), "misspelt max-watts"),
        (pod({"gpu-fraction": "2"}), "gpu-fraction"),
        (pod({"a.io/workload-class": "mining"}), "unknown workload class"),
    ],
)
def test_bad_pod_is_refused(content, reason):
    with pytest.raises(JobRefusedError, match=reason):
        parse_job(content)


def test_limits_and_requests_must_agree():
    content = pod()
    content["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "2"
    with pytest.raises(JobRefusedError, match="requests and limits differ"):
        parse_job(content)


@pytest.mark.skipif(not WIRE.is_dir(), reason="recorded Kubernetes messages are not here (JOULEWISE_FIXTURES)")
def test_recorded_kubernetes_messages():
    call = json.loads((WIRE / "wire-filter.json").read_text())
    job = parse_job(call)
    assert (job.job_id, job.gpus, job.max_watts) == ("default/fits", 1, 150)
    assert "priority 'low-power' is no number and has no part in the decision" in job.notes
    with pytest.raises(JobRefusedError, match="max-watts 'abc'"):
        parse_job(json.loads((WIRE / "wire-admission-validate.json").read_text()))

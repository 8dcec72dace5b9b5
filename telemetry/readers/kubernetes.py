"""Kubernetes jobs: ``kubectl get jobs -o json`` (a List), or ``kubectl get pods -o json``, plain or gzipped.

Give the one or the other: a job and its pods are the same GPUs. Of pods, see ``kubernetes_pods``.

Submit = creationTimestamp, start = status.startTime (with Kueue: when it was unsuspended), end = status.completionTime, or the last
transition of the Failed condition. Labels ``joulewise.io/workload-class, team, project, kueue.x-k8s.io/queue-name`` (= pool); annotations
``joulewise.io/deadline``, ``joulewise.io/max-watts``, ``gpu-fraction``. Workers = spec.parallelism, GPUs per worker = ``nvidia.com/gpu``
(``amd.com/gpu``) of the pod template's containers, and shares of a GPU for ``nvidia.com/mig-1g.5gb`` and its like, requested duration =
spec.activeDeadlineSeconds. Jobs without a GPU are left out and told.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.jobs import flag, gpu_model_name, jobs_frame, mig_share, number
from telemetry.quality import QualityReport
from telemetry.readers.base import Mapped, ReadContext, ReadResult, mapping_at, read_json
from telemetry.readers.kubernetes_pods import is_pod, jobs_of_pods, pod_row
from telemetry.times import parse_time_s

QUANTITY = re.compile(r"^(\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d{1,2})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?$")
FACTORS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
WHOLE_GPUS = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe")


class KubernetesReader:
    """See the module."""

    name = "kubernetes"
    reads = "kubectl get jobs -o json, or get pods (.json, .gz)"
    tested = "an export made in its documented form, damaged in many ways; the embedded sample"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [
            Mapped("creationTimestamp, startTime, completionTime", "jobs.submit_time, start_time, end_time", "UTC"),
            Mapped("spec.parallelism, nvidia.com/gpu", "jobs.workers, gpus", "1", "per worker"),
            Mapped("activeDeadlineSeconds", "jobs.requested_duration_s", "s"),
            Mapped("labels team, project, workload-class, queue-name", "jobs.team, project, workload_class, pool"),
            Mapped("annotations deadline, max-watts, gpu-fraction", "jobs.deadline, max_watts, gpus"),
        ]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        items = mapping_at(read_json(path), "items", where)
        if not isinstance(items, list):
            raise InputError("'items' is no list", where=where)
        quality, jobs, pods = QualityReport(), [], []
        for item in items:
            pod = is_pod(item)
            try:
                job = pod_row(item, *asked_of(item["spec"])) if pod else self._job(item)
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
                quality.add(context.source, "unparseable")
                continue
            if job["gpus"] == 0:
                quality.note(context.source, "pods without a GPU, left out" if pod else "jobs without a GPU, left out")
            else:
                (pods if pod else jobs).append(job)
        jobs += jobs_of_pods(pods)
        if not jobs:
            raise InputError("empty export: no GPU job", where=where, remedy="check the namespace and the selector")
        return ReadResult({"jobs": jobs_frame(jobs, context.source, quality, where=where)}, quality)

    def _job(self, item: dict[str, Any]) -> dict[str, Any]:
        meta, spec, status = item["metadata"], item["spec"], item.get("status", {})
        labels, notes = meta.get("labels", {}), meta.get("annotations", {})
        pod = spec["template"]["spec"]
        gpus, cpus, memory_gib = asked_of(pod)
        state, end = outcome(status)
        start = status.get("startTime")
        if gpus and "gpu-fraction" in notes:
            gpus = float(notes["gpu-fraction"])
        priority = re.search(r"(\d+)$", pod.get("priorityClassName", ""))
        job = {
            "job_id": str(meta["name"]),
            "submit_time": meta["creationTimestamp"],
            "start_time": start,
            "end_time": end,
            "gpus": gpus,
            "workers": int(spec.get("parallelism", 1)) or 1,
            "cpus": cpus or None,
            "memory_gib": memory_gib or None,
            "requested_duration_s": number(spec.get("activeDeadlineSeconds")),
            "workload_class": labels.get("joulewise.io/workload-class"),
            "team": labels.get("team"),
            "project": labels.get("project"),
            "priority": float(priority.group(1)) if priority else None,
            "deadline": notes.get("joulewise.io/deadline"),
            "max_watts": number(notes.get("joulewise.io/max-watts")),
            "preemptible": flag(notes.get("joulewise.io/preemptible", labels.get("joulewise.io/preemptible"))),
            "gpu_model": gpu_model_name(pod.get("nodeSelector", {}).get("nvidia.com/gpu.product", "")),
            "pool": labels.get("kueue.x-k8s.io/queue-name"),
            "state": state,
        }
        if end is not None:
            job["duration_s"] = _seconds_between(start, end) if start else 0.0
        return job


def asked_of(spec: dict[str, Any]) -> tuple[float, float, float]:
    """GPUs, CPUs and GiB of memory that the containers of a pod ask for; limits count where there are no requests.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is not shaped as a pod's spec.
    """
    gpus = cpus = memory = 0.0
    for container in spec.get("containers", ()):
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, amount in asked.items():
            share = 1.0 if name in WHOLE_GPUS else mig_share(name) if name.startswith("nvidia.com/mig-") else None
            gpus += 0.0 if share is None else share * quantity(amount)
        cpus += quantity(asked.get("cpu", 0))
        memory += quantity(asked.get("memory", 0))
    return gpus, cpus, memory / 2**30


def outcome(status: dict[str, Any]) -> tuple[str, str | None]:
    """State and end time of a Job status."""
    if status.get("completionTime"):
        return "completed", status["completionTime"]
    for condition in status.get("conditions", ()):
        if condition.get("status") == "True" and condition.get("type") in ("Failed", "Complete"):
            state = "completed" if condition["type"] == "Complete" else "failed"
            if condition.get("reason") == "DeadlineExceeded":
                state = "timeout"
            return state, condition["lastTransitionTime"]
    return ("running" if status.get("startTime") else "pending"), None


def quantity(text: Any) -> float:
    """A Kubernetes quantity (``500m``, ``64Gi``, ``4``) as a number.

    Raises:
        ValueError: it is none.
    """
    match = QUANTITY.match(str(text))
    if match is None:
        raise ValueError(f"quantity {text!r}")
    return float(match.group(1) + (match.group(2) or "")) * FACTORS.get(match.group(3) or "", 1.0)


def _seconds_between(start: str, end: str) -> float:
    first, last = parse_time_s(start), parse_time_s(end)
    if first is None or last is None:
        raise ValueError(f"times {start!r} to {end!r}")
    return max(last - first, 0.0)

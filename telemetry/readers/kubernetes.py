"""Kubernetes jobs: ``kubectl get jobs -o json`` (a List), plain or gzipped.

Submit = creationTimestamp, start = status.startTime (with Kueue: when it was unsuspended), end = status.completionTime, or the last
transition of the Failed condition. Labels ``joulewise.io/workload-class, team, project, kueue.x-k8s.io/queue-name`` (= pool); annotations
``joulewise.io/deadline``, ``joulewise.io/max-watts``, ``gpu-fraction``. Workers = spec.parallelism, GPUs per worker = ``nvidia.com/gpu``
of the pod template's containers, requested duration = spec.activeDeadlineSeconds. Jobs without a GPU are left out and told.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.jobs import flag, gpu_model_name, jobs_frame, number
from telemetry.quality import QualityReport
from telemetry.readers.base import Mapped, ReadContext, ReadResult, mapping_at, read_json
from telemetry.times import parse_time_s

QUANTITY = re.compile(r"^([\d.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
FACTORS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


class KubernetesReader:
    """See the module."""

    name = "kubernetes"
    reads = "kubectl get jobs -o json (.json, .gz)"
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
        quality, jobs = QualityReport(), []
        for item in items:
            try:
                job = self._job(item)
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
                quality.add(context.source, "unparseable")
                continue
            if job["gpus"] == 0:
                quality.note(context.source, "jobs without a GPU, left out")
            else:
                jobs.append(job)
        if not jobs:
            raise InputError("empty export: no GPU job", where=where, remedy="check the namespace and the selector")
        return ReadResult({"jobs": jobs_frame(jobs, context.source, quality, where=where)}, quality)

    def _job(self, item: dict[str, Any]) -> dict[str, Any]:
        meta, spec, status = item["metadata"], item["spec"], item.get("status", {})
        labels, notes = meta.get("labels", {}), meta.get("annotations", {})
        pod = spec["template"]["spec"]
        asked = [c.get("resources", {}).get("requests") or c.get("resources", {}).get("limits", {}) for c in pod.get("containers", ())]
        state, end = outcome(status)
        start = status.get("startTime")
        gpus = sum(quantity(a.get("nvidia.com/gpu", 0)) for a in asked)
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
            "cpus": sum(quantity(a.get("cpu", 0)) for a in asked) or None,
            "memory_gib": sum(quantity(a.get("memory", 0)) for a in asked) / 2**30 or None,
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
    return float(match.group(1)) * FACTORS.get(match.group(2) or "", 1.0)


def _seconds_between(start: str, end: str) -> float:
    first, last = parse_time_s(start), parse_time_s(end)
    if first is None or last is None:
        raise ValueError(f"times {start!r} to {end!r}")
    return max(last - first, 0.0)

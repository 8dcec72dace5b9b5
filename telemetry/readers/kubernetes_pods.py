"""Pods as jobs: ``kubectl get pods -o json``.

Pods of one controller that is a job (a Job, or one of Kubeflow or Ray) are one job of that name, with as many workers as ran at a time;
any other pod is a job of its own. Submit = creationTimestamp, start = status.startTime (from then on it holds its GPUs), end = when the
last container ended, nodes = spec.nodeName. GPUs as in ``kubernetes``; names that two namespaces have become ``NAMESPACE/NAME``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from telemetry.jobs import flag, gpu_model_name, number
from telemetry.times import parse_time_s

JOB_KINDS = frozenset(
    {"Job", "PyTorchJob", "TFJob", "MPIJob", "XGBoostJob", "PaddleJob", "JAXJob", "TrainJob", "JobSet", "RayJob", "RayCluster"}
)
PHASES = {"Pending": "pending", "Running": "running", "Unknown": "running", "Succeeded": "completed", "Failed": "failed"}
REASONS = {
    "DeadlineExceeded": "timeout",
    "Evicted": "cancelled",
    "Preempting": "cancelled",
    "Preempted": "cancelled",
    "Shutdown": "cancelled",
}


def is_pod(item: Any) -> bool:
    """Whether an item of a list is a pod; items of a PodList do not say so."""
    if not isinstance(item, dict) or not isinstance(item.get("spec"), dict):
        return False
    return item.get("kind") == "Pod" or ("containers" in item["spec"] and "template" not in item["spec"])


def pod_row(item: dict[str, Any], gpus: float, cpus: float, memory_gib: float) -> dict[str, Any]:
    """One pod as a canonical job, with its controller under ``owner``; absent values are None.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is not shaped as a pod.
    """
    meta, spec, status = item["metadata"], item["spec"], item.get("status") or {}
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    state = PHASES[status.get("phase", "Pending")]
    if state == "failed":
        state = REASONS.get(status.get("reason", ""), state)
    start, over = status.get("startTime"), state not in ("pending", "running")
    for moment in (meta["creationTimestamp"], *((start,) if start else ())):
        _at(moment)
    end = _end(status, start) if over else None
    owner = next((ref for ref in meta.get("ownerReferences") or () if ref.get("controller", True) and ref.get("kind") in JOB_KINDS), None)
    return {
        "job_id": str(meta["name"]),
        "owner": (str(meta.get("namespace", "")), str(owner["name"]) if owner else str(meta["name"])),
        "submit_time": meta["creationTimestamp"],
        "start_time": start,
        "end_time": end,
        "duration_s": _seconds(start, end) if over else None,
        "gpus": gpus,
        "workers": 1,
        "cpus": cpus or None,
        "memory_gib": memory_gib or None,
        "requested_duration_s": number(spec.get("activeDeadlineSeconds")),
        "workload_class": labels.get("joulewise.io/workload-class"),
        "team": labels.get("team"),
        "project": labels.get("project"),
        "deadline": notes.get("joulewise.io/deadline"),
        "max_watts": number(notes.get("joulewise.io/max-watts")),
        "preemptible": flag(notes.get("joulewise.io/preemptible", labels.get("joulewise.io/preemptible"))),
        "gpu_model": gpu_model_name(str((spec.get("nodeSelector") or {}).get("nvidia.com/gpu.product", ""))),
        "pool": labels.get("kueue.x-k8s.io/queue-name"),
        "nodes": str(spec.get("nodeName") or "") or None,
        "state": state,
    }


def jobs_of_pods(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pods of one controller joined; see the module."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["owner"], []).append(row)
    names = [name for _, name in groups]
    jobs = []
    for (namespace, name), pods in groups.items():
        job = pods[-1] if len(pods) == 1 else _joined(pods)
        job["job_id"] = f"{namespace}/{name}" if names.count(name) > 1 and namespace else name
        jobs.append({key: value for key, value in job.items() if key != "owner"})
    return jobs


def _joined(pods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    states = [pod["state"] for pod in pods]
    state = next((known for known in ("running", "pending", "completed") if known in states), states[-1])
    starts = [pod["start_time"] for pod in pods if pod["start_time"]]
    ends = [pod["end_time"] for pod in pods if pod["end_time"]]
    start = min(starts, key=_at) if starts else None
    end = max(ends, key=_at) if ends and state not in ("running", "pending") else None
    nodes = dict.fromkeys(pod["nodes"] for pod in pods if pod["nodes"])
    return {
        **pods[0],
        "submit_time": min((pod["submit_time"] for pod in pods), key=_at),
        "start_time": start,
        "end_time": end,
        "duration_s": _seconds(start, end) if end else None,
        "gpus": max(pod["gpus"] for pod in pods),
        "workers": _most_at_a_time(pods),
        "nodes": " ".join(nodes) or None,
        "state": state,
    }


def _most_at_a_time(pods: Iterable[dict[str, Any]]) -> int:
    """Most pods that ran at a time; of pods none of which has started, all."""
    pods = list(pods)
    changes = [(_at(pod["start_time"]), 1) for pod in pods if pod["start_time"]]
    changes += [(_at(pod["end_time"]), -1) for pod in pods if pod["start_time"] and pod["end_time"]]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most or len(pods)


def _end(status: dict[str, Any], start: str | None) -> str | None:
    """When the last container ended; of an evicted pod, which tells of no container, its last change."""
    containers = (status.get("containerStatuses") or []) + (status.get("initContainerStatuses") or [])
    ends = [(container.get("state") or {}).get("terminated", {}).get("finishedAt") for container in containers]
    known = [end for end in ends if end] or [c["lastTransitionTime"] for c in status.get("conditions") or () if c.get("lastTransitionTime")]
    return max(known, key=_at) if known else start


def _seconds(start: str | None, end: str | None) -> float | None:
    if not end:
        return None
    return max(_at(end) - _at(start), 0.0) if start else 0.0


def _at(text: str | None) -> float:
    seconds = parse_time_s(text) if isinstance(text, str) else None
    if seconds is None:
        raise ValueError(f"time {text!r}")
    return seconds

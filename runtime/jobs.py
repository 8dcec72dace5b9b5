"""Read the job that asks: our canonical form, or a Kubernetes Pod or Job. What cannot be understood is refused, never guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from telemetry.classes import WORKLOAD_CLASSES

REQUIRED = ("job_id", "gpus", "workload_class")
GPU_RESOURCE = "nvidia.com/gpu"
GPU_PRODUCT = "nvidia.com/gpu.product"
MAX_GPUS = 1_000_000
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class JobRefusedError(ValueError):
    """The job must not run as it is; the message is the reason to give to its owner."""


@dataclass(frozen=True)
class JobRequest:
    """A job before its placement.

    Attributes:
        gpus: per worker; a share of one GPU below 1.
        requested_duration_s: the owner's estimate on the reference GPU; None = the class default.
        max_watts: limit for the GPUs of the whole job; None = no limit.
        notes: what was read but has no part in the decision.
    """

    job_id: str
    gpus: float
    workload_class: str
    workers: int = 1
    submit_time: pd.Timestamp | None = None
    requested_duration_s: float | None = None
    deadline: pd.Timestamp | None = None
    priority: int = 0
    max_watts: float | None = None
    gpu_model: str | None = None
    gpu_utilization: float | None = None
    team: str = ""
    project: str = ""
    notes: tuple[str, ...] = field(default=())

    def row(self, now: pd.Timestamp) -> dict[str, Any]:
        """A row of the canonical jobs table; a job without a submit time is submitted now."""
        return {
            "job_id": self.job_id,
            "submit_time": self.submit_time if self.submit_time is not None else now,
            "gpus": self.gpus,
            "workers": self.workers,
            "workload_class": self.workload_class,
            "requested_duration_s": math.nan if self.requested_duration_s is None else self.requested_duration_s,
            "deadline": pd.NaT if self.deadline is None else self.deadline,
            "priority": self.priority,
            "max_watts": math.inf if self.max_watts is None else self.max_watts,
            "gpu_model": self.gpu_model,
            "gpu_utilization": 1.0 if self.gpu_utilization is None else self.gpu_utilization,
            "team": self.team,
            "project": self.project,
        }


def read_job(path: Path) -> JobRequest:
    """Read a job file. Raises JobRefusedError with the reason."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobRefusedError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise JobRefusedError(f"{path}: is not JSON ({error})") from error
    return parse_job(content)


def parse_job(content: Any) -> JobRequest:
    """A job from parsed JSON: canonical fields, a Pod, a Job, or an AdmissionReview or extender call around a Pod."""
    if not isinstance(content, Mapping):
        raise JobRefusedError(f"a job is a JSON object, not {type(content).__name__}")
    if content.get("kind") == "AdmissionReview":
        return parse_job(_mapping(_mapping(content, "request"), "object"))
    if "Pod" in content and "kind" not in content:
        return _pod_request({"kind": "Pod", **_mapping(content, "Pod")})
    if "kind" in content or "apiVersion" in content:
        return _pod_request(content)
    return _canonical(content)


# ---------------------------------------------------------------- canonical

_READERS = {
    "job_id": lambda name, value: _text(name, value),
    "gpus": lambda name, value: _positive(name, value),
    "workload_class": lambda name, value: _class(value),
    "workers": lambda name, value: _whole(name, value, 1),
    "submit_time": lambda name, value: _time(name, value),
    "requested_duration_s": lambda name, value: _positive(name, value),
    "deadline": lambda name, value: _time(name, value),
    "priority": lambda name, value: _whole(name, value, -(10**9)),
    "max_watts": lambda name, value: _positive(name, value),
    "gpu_model": lambda name, value: _text(name, value),
    "gpu_utilization": lambda name, value: _share(name, value),
    "team": lambda name, value: _text(name, value),
    "project": lambda name, value: _text(name, value),
}
# Columns of the canonical table that say nothing to a decision, or that only the future knows.
_IGNORED = ("duration_s", "start_time", "end_time", "cpus", "memory_gib", "preemptible", "state", "pool")


def _canonical(content: Mapping[str, Any]) -> JobRequest:
    given = {key: value for key, value in content.items() if value is not None}
    if missing := [name for name in REQUIRED if name not in given]:
        raise JobRefusedError(f"{', '.join(missing)} missing; a job needs {', '.join(REQUIRED)}")
    # A misspelt limit that is silently dropped would let the job run without it.
    if unknown := sorted(set(given) - set(_READERS) - set(_IGNORED)):
        raise JobRefusedError(f"unknown field '{unknown[0]}'; known are {', '.join([*_READERS, *_IGNORED])}")
    values = {name: _READERS[name](name, value) for name, value in given.items() if name in _READERS}
    notes = tuple(f"{name} has no part in the decision" for name in _IGNORED if name in given)
    return _checked(JobRequest(**values, notes=notes))


# ---------------------------------------------------------------- Kubernetes


def _pod_request(content: Mapping[str, Any]) -> JobRequest:
    kind = content.get("kind")
    spec, meta = _mapping(content, "spec"), _mapping(content, "metadata")
    if kind == "Pod":
        pod, workers, layers = spec, 1, [meta]
    elif kind == "Job":
        template = _mapping(spec, "template")
        pod, layers = _mapping(template, "spec"), [meta, template.get("metadata") or {}]
        workers = _whole("spec.parallelism", spec.get("parallelism", 1), 1)
    else:
        raise JobRefusedError(f"kind '{kind}' is not understood; Pod, Job or a canonical job are")
    marks = _marks(layers)
    max_watts = _positive("max-watts", marks["max-watts"]) if "max-watts" in marks else None
    gpus = _gpus(pod)
    if "gpu-fraction" in marks:
        share = _positive("gpu-fraction", marks["gpu-fraction"])
        if gpus != 1 or share >= 1:
            raise JobRefusedError(f"gpu-fraction {marks['gpu-fraction']} with {gpus:g} GPUs; a share below 1 of one GPU is understood")
        gpus = share
    if gpus == 0:
        raise JobRefusedError(f"asks for no GPU ({GPU_RESOURCE}); there is nothing to decide")
    notes = []
    priority = _priority(pod, marks, notes)
    duration = marks.get("requested-duration-s", spec.get("activeDeadlineSeconds", pod.get("activeDeadlineSeconds")))
    return _checked(
        JobRequest(
            job_id=_name(meta),
            gpus=gpus,
            workload_class=_pod_class(kind, gpus, marks, notes),
            workers=workers,
            submit_time=_time("creationTimestamp", meta["creationTimestamp"]) if meta.get("creationTimestamp") else None,
            requested_duration_s=None if duration is None else _positive("requested duration", duration),
            deadline=_time("deadline", marks["deadline"]) if "deadline" in marks else None,
            priority=priority,
            max_watts=max_watts,
            gpu_model=_product(pod),
            team=marks.get("team", ""),
            project=marks.get("project", ""),
            notes=tuple(notes),
        )
    )


_MARKS = ("max-watts", "workload-class", "requested-duration-s", "deadline", "gpu-fraction", "priority", "team", "project")


def _marks(layers: list[Any]) -> dict[str, str]:
    """Annotations and labels that speak to us, by the part of their name after the domain.

    Any domain is read, since clusters bring their own; two that disagree are refused, and so is a name that looks like a misspelt limit.
    """
    marks: dict[str, str] = {}
    for source in (layer.get(part) or {} for layer in layers if isinstance(layer, Mapping) for part in ("labels", "annotations")):
        if not isinstance(source, Mapping):
            raise JobRefusedError("labels and annotations are JSON objects")
        for key, value in source.items():
            name = str(key).rsplit("/", 1)[-1]
            if name not in _MARKS:
                if re.sub(r"[^a-z]", "", name.lower()).startswith(("maxwat", "maxpower", "wattsmax")):
                    raise JobRefusedError(f"annotation '{key}' looks like a misspelt max-watts")
                continue
            if name in marks and marks[name] != str(value):
                raise JobRefusedError(f"two values for {name}: '{marks[name]}' and '{value}'")
            marks[name] = str(value)
    return marks


def _gpus(pod: Mapping[str, Any]) -> float:
    """GPUs of a pod: the sum over containers, or a larger init container."""
    together = sum(_container_gpus(container) for container in _containers(pod, "containers"))
    first = max((_container_gpus(container) for container in _containers(pod, "initContainers")), default=0.0)
    return max(together, first)


def _containers(pod: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    items = pod.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise JobRefusedError(f"spec.{key} is a list of containers")
    yield from items


def _container_gpus(container: Mapping[str, Any]) -> float:
    resources = container.get("resources") or {}
    found = {
        _whole(GPU_RESOURCE, amounts[GPU_RESOURCE], 0)
        for part in ("requests", "limits")
        if GPU_RESOURCE in (amounts := resources.get(part) or {})
    }
    if len(found) > 1:
        raise JobRefusedError(f"{GPU_RESOURCE}: requests and limits differ ({' and '.join(map(str, sorted(found)))})")
    return float(found.pop()) if found else 0.0


def _name(meta: Mapping[str, Any]) -> str:
    name = meta.get("name") or meta.get("generateName")
    if not name:
        raise JobRefusedError("metadata.name missing")
    return f"{meta['namespace']}/{name}" if meta.get("namespace") else str(name)


def _pod_class(kind: str, gpus: float, marks: Mapping[str, str], notes: list[str]) -> str:
    if "workload-class" in marks:
        return _class(marks["workload-class"])
    guess = "interactive" if gpus < 1 else "training" if kind == "Job" else "realtime_inference"
    notes.append(f"no workload-class: taken as {guess} (a bare Pod may be serving, so it is never held back)")
    return guess


def _priority(pod: Mapping[str, Any], marks: Mapping[str, str], notes: list[str]) -> int:
    for words in (str(pod.get("priorityClassName") or ""), marks.get("priority", "")):
        if match := re.fullmatch(r"(?:priority-)?(\d{1,9})", words):
            return int(match[1])
        if words:
            notes.append(f"priority '{words}' is no number and has no part in the decision")
    return 0


def _product(pod: Mapping[str, Any]) -> str | None:
    """GPU model of the node selector: NVIDIA-A40 -> A40, Tesla-V100-SXM2-32GB -> V100, NVIDIA-H100-80GB-HBM3 -> H100."""
    product = (pod.get("nodeSelector") or {}).get(GPU_PRODUCT)
    if product is None:
        return None
    parts = [part for part in str(product).split("-") if part.upper() not in ("NVIDIA", "TESLA", "")]
    if not parts:
        raise JobRefusedError(f"{GPU_PRODUCT} '{product}' names no GPU model")
    return parts[0]


# ---------------------------------------------------------------- values


def _checked(job: JobRequest) -> JobRequest:
    if job.gpus > 1 and job.gpus != int(job.gpus):
        raise JobRefusedError(f"gpus {job.gpus:g}: a share of one GPU or whole GPUs are understood")
    if job.gpus * job.workers > MAX_GPUS:
        raise JobRefusedError(f"{job.gpus:g} GPUs x {job.workers} workers is beyond any cluster")
    return job


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise JobRefusedError(f"'{key}' is missing or not an object")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise JobRefusedError(f"{name} {value!r} is not a text")
    return value


def _class(value: Any) -> str:
    if value not in WORKLOAD_CLASSES:
        raise JobRefusedError(f"unknown workload class {value!r}; known are {', '.join(WORKLOAD_CLASSES)}")
    return str(value)


def _number(name: str, value: Any) -> float:
    """A plain decimal number, as JSON number or text; no units, no words, nothing infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise JobRefusedError(f"{name} {value!r} is not a number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise JobRefusedError(f"{name} '{value}' is not a plain number")
    number = float(value)
    if not math.isfinite(number):
        raise JobRefusedError(f"{name} {value} is not finite")
    return number


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if number <= 0:
        raise JobRefusedError(f"{name} {value} is not above 0")
    return number


def _share(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise JobRefusedError(f"{name} {value} is not within 0 to 1")
    return number


def _whole(name: str, value: Any, least: int) -> int:
    number = _number(name, value)
    if number != int(number) or number < least:
        raise JobRefusedError(f"{name} {value} is not a whole number from {least}")
    return int(number)


def _time(name: str, value: Any) -> pd.Timestamp:
    try:
        moment = pd.Timestamp(_text(name, value))
    except ValueError as error:
        raise JobRefusedError(f"{name} '{value}' is not a time; ISO 8601 with zone is") from error
    if moment is pd.NaT or moment.tzinfo is None:
        raise JobRefusedError(f"{name} '{value}' has no zone; write e.g. 2026-02-10T08:00:00Z")
    return moment.tz_convert("UTC").floor("s")

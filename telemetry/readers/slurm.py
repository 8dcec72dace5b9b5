"""Slurm accounting: ``sacct --parsable2`` with a header line, plain or gzipped.

Needs at least ``JobID, Submit, Start, End, State, ReqTRES`` (or ``AllocTRES``); reads ``User, Account, Partition, ElapsedRaw, TimelimitRaw,
NNodes, NodeList, Comment`` as well. Times without a zone are UTC (run sacct with ``TZ=UTC``). Account = team, partition = pool. Job steps
(``123.batch``) are skipped; they repeat their job. ``Comment`` may hold ``key=value;`` pairs: ``class, project, priority, deadline,
max_watts, workers, preemptible``. GPUs are ``gres/gpu``, shares of one for MIG profiles (``gres/gpu:1g.5gb``), or ``gres/shard`` divided by
the inventory's shards per GPU. Jobs without a GPU are left out and told. A task of an array (``123_4``) and a component of a heterogeneous
job (``123+1``) is a job; a row of tasks that still wait (``123_[5-9%2]``) is one job for each. ``Elapsed`` and ``Timelimit``
(``1-02:03:04``) are read where their raw columns are not exported.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.jobs import flag, gpu_model_name, jobs_frame, mig_share, number
from telemetry.quality import QualityReport
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text

REQUIRED = ("JobID", "Submit", "Start", "End", "State")
STATES = {
    "PENDING": "pending", "RUNNING": "running", "SUSPENDED": "running", "COMPLETING": "running", "COMPLETED": "completed",
    "CANCELLED": "cancelled", "PREEMPTED": "cancelled", "REVOKED": "cancelled", "TIMEOUT": "timeout", "DEADLINE": "timeout",
    "FAILED": "failed", "NODE_FAIL": "failed", "OUT_OF_MEMORY": "failed", "BOOT_FAIL": "failed", "REQUEUED": "pending",
    "LAUNCH_FAILED": "failed", "RECONFIG_FAIL": "failed", "SPECIAL_EXIT": "pending", "REQUEUE_HOLD": "pending", "REQUEUE_FED": "pending",
    "RESV_DEL_HOLD": "pending", "CONFIGURING": "running", "RESIZING": "running", "SIGNALING": "running", "STAGE_OUT": "running",
    "STOPPED": "running",
}  # fmt: skip
HOSTS = re.compile(r"[^,\[]*(?:\[[^\]]*\][^,\[]*)*")
MOST_HOSTS = 100_000
SPAN = re.compile(r"^(?:(?:(\d{1,6})-)?(\d{1,3}):)?(\d{1,6}):(\d{1,2}(?:\.\d{1,9})?)$")
ARRAY = re.compile(r"^(\d+)_\[([\d,:-]+)(?:%\d+)?\]$")
TASKS = re.compile(r"^(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?$")
MEMORY_GIB = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}


class SlurmReader:
    """See the module."""

    name = "slurm"
    reads = "sacct --parsable2 with header (.txt, .gz)"
    tested = "an export made in its documented form, damaged in many ways; the embedded sample"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [
            Mapped("JobID, Submit, Start, End, State", "jobs.job_id, submit_time, start_time, end_time, state", "UTC without a zone"),
            Mapped("ElapsedRaw, TimelimitRaw", "jobs.duration_s, requested_duration_s", "s, min"),
            Mapped("ReqTRES, NNodes", "jobs.gpus, cpus, memory_gib, workers", "gres/gpu or gres/shard, cpu, mem", "per worker"),
            Mapped("Account, Partition", "jobs.team, pool"),
            Mapped("Comment", "jobs.workload_class, project, priority, deadline, max_watts, workers, preemptible", "key=value;"),
        ]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        lines = read_text(path).splitlines()
        head = lines[0].split("|")
        missing = [name for name in REQUIRED if name not in head]
        if "ReqTRES" not in head and "AllocTRES" not in head:
            missing.append("ReqTRES")
        if missing:
            raise InputError(
                f"missing column {', '.join(missing)}",
                where=f"{where}, line 1",
                allowed=", ".join((*REQUIRED, "ReqTRES")),
                remedy="sacct --parsable2 --allocations -o JobID,User,Account,Partition,State,Submit,Start,End,ElapsedRaw,TimelimitRaw,"
                "AllocTRES,ReqTRES,NNodes,NodeList,Comment",
            )
        quality, jobs = QualityReport(), []
        for line in lines[1:]:
            cells = line.split("|", len(head) - 1)
            if not line.strip():
                continue
            if len(cells) < len(head):
                quality.add(context.source, "unparseable")
                continue
            job = self._job(dict(zip(head, cells, strict=True)), context, quality)
            if job is not None:
                jobs += [{**job, "job_id": name} for name in array_tasks(job["job_id"])]
        if not jobs:
            raise InputError("empty export: no GPU job", where=where, remedy="check sacct's time range and states")
        return ReadResult({"jobs": jobs_frame(jobs, context.source, quality, where=where)}, quality)

    def _job(self, row: dict[str, str], context: ReadContext, quality: QualityReport) -> dict[str, Any] | None:
        if "." in row["JobID"]:
            quality.note(context.source, "job steps, which repeat their job")
            return None
        request = tres(row.get("ReqTRES") or row.get("AllocTRES", ""))
        gpus = request_gpus(request, context.inventory.shards_per_gpu)
        state = STATES.get(row["State"].split(" ")[0])
        if gpus is None or state is None or not row["JobID"]:
            quality.add(context.source, "unparseable")
            return None
        if gpus == 0:
            quality.note(context.source, "jobs without a GPU, left out")
            return None
        comment = dict(pair.split("=", 1) for pair in row.get("Comment", "").split(";") if "=" in pair)
        nodes = int(number(row.get("NNodes")) or 1)
        workers = int(number(comment.get("workers")) or (nodes if gpus % max(nodes, 1) == 0 else 1)) or 1
        limit_s = _seconds(row, "Timelimit", 60.0)
        allocated = tres(row.get("AllocTRES", ""))
        typed = [key.split(":", 1)[1] for key in (*request, *allocated) if key.startswith("gres/gpu:") and mig_share(key) is None]
        return {
            "job_id": row["JobID"],
            "submit_time": row["Submit"],
            "start_time": row["Start"],
            "end_time": row["End"],
            "duration_s": _seconds(row, "Elapsed", 1.0) if state not in ("pending", "running") else None,
            "gpus": gpus / workers,
            "workers": workers,
            "cpus": number(request.get("cpu")),
            "memory_gib": memory_gib(request.get("mem", "")),
            "requested_duration_s": limit_s,
            "workload_class": comment.get("class"),
            "team": row.get("Account"),
            "project": comment.get("project"),
            "priority": number(comment.get("priority")),
            "deadline": comment.get("deadline"),
            "max_watts": number(comment.get("max_watts")),
            "preemptible": flag(comment.get("preemptible")),
            "gpu_model": gpu_model_name(typed[0]) if typed else None,
            "pool": row.get("Partition"),
            "nodes": " ".join(host_names(row.get("NodeList", ""))),
            "state": state,
        }


def _seconds(row: dict[str, str], name: str, unit_s: float) -> float | None:
    """``NAMERaw`` in its unit, else ``NAME`` as ``[days-]hours:minutes:seconds``; None for UNLIMITED and the like."""
    raw = number(row.get(f"{name}Raw"))
    return span_s(row.get(name, "")) if raw is None else raw * unit_s


def span_s(text: str) -> float | None:
    """Seconds of ``1-02:03:04``, ``02:03:04``, ``03:04`` or ``03:04.567``; None when it is none."""
    match = SPAN.match(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def array_tasks(job_id: str) -> list[str]:
    """``123_[5-7,9%2]`` as ``123_5``, ``123_6``, ``123_7``, ``123_9``; any other id, also a list that sacct cut (``...``), as it is."""
    match = ARRAY.match(job_id)
    if match is None:
        return [job_id]
    tasks: list[str] = []
    for part in match.group(2).split(","):
        step = TASKS.match(part)
        if step is None:
            return [job_id]
        low, high, by = int(step.group(1)), int(step.group(2) or step.group(1)), int(step.group(3) or 1)
        if by < 1 or (high - low) // by >= MOST_HOSTS or len(tasks) > MOST_HOSTS:
            return [job_id]
        tasks += [f"{match.group(1)}_{task}" for task in range(low, high + 1, by)]
    return tasks or [job_id]


def tres(text: str) -> dict[str, str]:
    """``cpu=32,mem=128G,gres/gpu=4`` as a dict."""
    return dict(item.split("=", 1) for item in text.split(",") if "=" in item)


def request_gpus(request: dict[str, str], shards_per_gpu: int) -> float | None:
    """GPUs of all workers together; 0 when none are asked for, None when the number is none."""
    slices = {key: share for key in request if key.startswith("gres/gpu:") and (share := mig_share(key)) is not None}
    if slices:
        amounts = {key: number(request[key]) for key in request if key.startswith("gres/gpu:")}
        return None if None in amounts.values() else float(sum(slices.get(key, 1.0) * (n or 0.0) for key, n in amounts.items()))
    if "gres/gpu" in request:
        return number(request["gres/gpu"])
    typed = [number(value) for key, value in request.items() if key.startswith("gres/gpu:")]
    if typed:
        return None if None in typed else float(sum(typed))  # type: ignore[arg-type]
    if "gres/shard" in request:
        shards = number(request["gres/shard"])
        return None if shards is None else shards / shards_per_gpu
    return 0.0


def memory_gib(text: str) -> float | None:
    """``128G``, ``4096M`` (per node suffixes ``n`` and ``c`` of old versions are cut) in GiB."""
    text = text.rstrip("nc")
    amount = number(text[:-1] if text[-1:] in MEMORY_GIB else text)
    return None if amount is None else amount * MEMORY_GIB.get(text[-1:], 1 / 1024)


def host_names(text: str) -> list[str]:
    """Nodes of a Slurm host list: ``gpu[08-10,12],login1`` is gpu08, gpu09, gpu10, gpu12, login1. None where the text is no list.

    Written as slurm.conf(5) describes it; ``None assigned`` and the like, and lists of more than 100,000 nodes, give none.
    """
    text = text.strip()
    if not text or " " in text or text.count("[") != text.count("]"):
        return []
    names: list[str] = []
    for group in HOSTS.findall(text):
        parts = [_numbers(part[1:-1]) if part.startswith("[") else [part] for part in re.split(r"(\[[^\]]*\])", group) if part]
        count = 1
        for part in parts:
            count *= len(part)
        if len(names) + count > MOST_HOSTS:
            return []
        if parts:
            names += ["".join(combination) for combination in itertools.product(*parts)]
    return names


def _numbers(text: str) -> list[str]:
    """``08-10,12`` as ``08, 09, 10, 12``; nothing where it is none."""
    found: list[str] = []
    for item in text.split(","):
        low, _, high = item.partition("-")
        if not low.isdigit() or (high and not high.isdigit()) or len(low) > 9 or len(high) > 9:
            return []
        last = int(high or low)
        if last - int(low) >= MOST_HOSTS:
            return []
        found += [str(number).zfill(len(low)) for number in range(int(low), last + 1)]
    return found

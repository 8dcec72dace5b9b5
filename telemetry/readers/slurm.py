"""Slurm accounting: ``sacct --parsable2`` with a header line, plain or gzipped.

Needs at least ``JobID, Submit, Start, End, State, ReqTRES`` (or ``AllocTRES``); reads ``User, Account, Partition, ElapsedRaw, TimelimitRaw,
NNodes, Comment`` as well. Times without a zone are UTC (run sacct with ``TZ=UTC``). Account = team, partition = pool. Job steps
(``123.batch``) are skipped; they repeat their job. ``Comment`` may hold ``key=value;`` pairs: ``class, project, priority, deadline,
max_watts, workers, preemptible``. GPUs are ``gres/gpu``, or ``gres/shard`` divided by the inventory's shards per GPU. Jobs without a GPU
are left out and told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.jobs import flag, gpu_model_name, jobs_frame, number
from telemetry.quality import QualityReport
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text

REQUIRED = ("JobID", "Submit", "Start", "End", "State")
STATES = {
    "PENDING": "pending", "RUNNING": "running", "SUSPENDED": "running", "COMPLETING": "running", "COMPLETED": "completed",
    "CANCELLED": "cancelled", "PREEMPTED": "cancelled", "REVOKED": "cancelled", "TIMEOUT": "timeout", "DEADLINE": "timeout",
    "FAILED": "failed", "NODE_FAIL": "failed", "OUT_OF_MEMORY": "failed", "BOOT_FAIL": "failed", "REQUEUED": "pending",
}  # fmt: skip
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
                "AllocTRES,ReqTRES,NNodes,Comment",
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
                jobs.append(job)
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
        limit_min = number(row.get("TimelimitRaw"))
        typed = [key.split(":", 1)[1] for key in request if key.startswith("gres/gpu:")]
        return {
            "job_id": row["JobID"],
            "submit_time": row["Submit"],
            "start_time": row["Start"],
            "end_time": row["End"],
            "duration_s": number(row.get("ElapsedRaw")) if state not in ("pending", "running") else None,
            "gpus": gpus / workers,
            "workers": workers,
            "cpus": number(request.get("cpu")),
            "memory_gib": memory_gib(request.get("mem", "")),
            "requested_duration_s": None if limit_min is None else limit_min * 60,
            "workload_class": comment.get("class"),
            "team": row.get("Account"),
            "project": comment.get("project"),
            "priority": number(comment.get("priority")),
            "deadline": comment.get("deadline"),
            "max_watts": number(comment.get("max_watts")),
            "preemptible": flag(comment.get("preemptible")),
            "gpu_model": gpu_model_name(typed[0]) if typed else None,
            "pool": row.get("Partition"),
            "state": state,
        }


def tres(text: str) -> dict[str, str]:
    """``cpu=32,mem=128G,gres/gpu=4`` as a dict."""
    return dict(item.split("=", 1) for item in text.split(",") if "=" in item)


def request_gpus(request: dict[str, str], shards_per_gpu: int) -> float | None:
    """GPUs of all workers together; 0 when none are asked for, None when the number is none."""
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

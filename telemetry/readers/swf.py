"""Standard Workload Format (Feitelson, v2.2): 18 numbers a line, ``;`` header lines, -1 = unknown; plain or gzipped.

Field 8 (requested processors; else 5, allocated) is read as GPUs: a job is one worker of that many, or the fewest
equal workers of at most ``GPUS_PER_WORKER``. Requested time -1 means the run time is what was asked for. A run time of
-1 has no duration: the job is left out. Frame attrs ``max_procs`` and ``unix_start_time`` hold the header's ``MaxProcs`` (or ``MaxNodes``)
and ``UnixStartTime`` (0 when absent: then times count from 1970).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from telemetry.errors import InputError
from telemetry.jobs import jobs_frame
from telemetry.quality import QualityReport
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text

FIELDS = 18
GPUS_PER_WORKER = 8
STATES = {0: "failed", 1: "completed", 5: "cancelled"}


class SwfReader:
    """See the module."""

    name = "swf"
    reads = "Standard Workload Format (.swf, .gz)"
    tested = "a log made in its documented form, damaged in many ways"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [
            Mapped("fields 1, 2, 4", "jobs.job_id, submit_time, duration_s", "s"),
            Mapped("field 8, else 5", "jobs.gpus, workers", "processors as GPUs"),
            Mapped("field 9, else 4", "jobs.requested_duration_s", "s"),
            Mapped("field 11", "jobs.state"),
        ]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, jobs, header = QualityReport(), [], {}
        lines = read_text(path).splitlines()
        for line in lines:
            if line.startswith(";"):
                key, _, value = line.lstrip("; ").partition(":")
                header[key.strip()] = value.strip()
        start_s = _header_number(header, "UnixStartTime", where) or 0
        for line in lines:
            if line.strip() and not line.startswith(";"):
                job = self._job(line, start_s, context.source, quality)
                if job is not None:
                    jobs.append(job)
        if not jobs:
            raise InputError("empty export: no job with a run time and processors", where=where, allowed=f"{FIELDS} numbers a line")
        frame = jobs_frame(jobs, context.source, quality, where=where)
        frame.attrs["max_procs"] = _header_number(header, "MaxProcs", where) or _header_number(header, "MaxNodes", where) or 0
        frame.attrs["unix_start_time"] = start_s
        return ReadResult({"jobs": frame}, quality)

    def _job(self, line: str, start_s: int, source: str, quality: QualityReport) -> dict[str, Any] | None:
        try:
            v = [float(cell) for cell in line.split()]
        except ValueError:
            v = []
        if len(v) != FIELDS or v[1] < 0:
            quality.add(source, "unparseable")
            return None
        processors = v[7] if v[7] > 0 else v[4]
        if v[3] < 0 or processors <= 0:
            quality.add(source, "sentinel")
            return None
        gpus, workers = _shape(int(processors))
        submit_s, wait_s = start_s + v[1], v[2]
        return {
            "job_id": str(int(v[0])),
            "submit_time": _iso(submit_s),
            "start_time": _iso(submit_s + wait_s) if wait_s >= 0 else None,
            "end_time": _iso(submit_s + wait_s + v[3]) if wait_s >= 0 else None,
            "duration_s": v[3],
            "gpus": gpus,
            "workers": workers,
            "cpus": None,
            "memory_gib": v[9] * processors / 1024**2 if v[9] > 0 else None,
            "requested_duration_s": v[8] if v[8] >= 0 else v[3],
            "team": f"group-{int(v[12])}" if v[12] >= 0 else None,
            "project": f"user-{int(v[11])}" if v[11] >= 0 else None,
            "pool": f"partition-{int(v[15])}" if v[15] >= 0 else None,
            "state": STATES.get(int(v[10]), "completed"),
        }


def _shape(processors: int) -> tuple[float, int]:
    """GPUs per worker and workers: the fewest equal workers of at most ``GPUS_PER_WORKER``."""
    if processors <= GPUS_PER_WORKER:
        return float(processors), 1
    per_worker = next(n for n in range(GPUS_PER_WORKER, 0, -1) if processors % n == 0)
    return float(per_worker), processors // per_worker


def _header_number(header: dict[str, str], key: str, where: str) -> int | None:
    text = header.get(key, "").split(" ")[0]
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{key} {text!r} is no whole number", where=f"{where}, header") from error


def _iso(seconds: float) -> str:
    return pd.Timestamp(seconds, unit="s", tz="UTC").isoformat()

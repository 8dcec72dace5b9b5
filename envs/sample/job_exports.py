"""Writers of the job exports (Slurm ``sacct --parsable2``, ``kubectl get jobs -o json``) and of the grid table, with their flaws."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.sample.flaws import scaled
from envs.sample.settings import NEVER, SampleSettings
from telemetry.errors import InputError

SACCT_COLUMNS = (
    "JobID|JobName|User|Account|Partition|State|Submit|Start|End|ElapsedRaw|TimelimitRaw|AllocTRES|ReqTRES|NNodes|NodeList|Comment"
)
SHARDS_PER_GPU = 4
SLURM_STATES = {
    "completed": "COMPLETED",
    "failed": "FAILED",
    "timeout": "TIMEOUT",
    "node_fail": "NODE_FAIL",
    "running": "RUNNING",
    "pending": "PENDING",
}
CPUS_PER_GPU, MEMORY_G_PER_GPU = 8, 32
JOB_PREFIX = {
    "training": "train",
    "fine_tuning": "tune",
    "batch_inference": "score",
    "realtime_inference": "serve",
    "interactive": "lab",
}


def name_jobs(jobs: pd.DataFrame) -> pd.DataFrame:
    """Give every job its id: a Slurm number in the west, a Kubernetes name in the east."""
    ids = []
    for row, job in enumerate(jobs.itertuples()):
        ids.append(str(481_200 + row) if job.site == "west" else f"{JOB_PREFIX[job.kind]}-{job.project}-{row:05d}")
    return jobs.assign(job_id=ids)


class _Clock:
    def __init__(self, settings: SampleSettings) -> None:
        self.start = settings.start_time

    def __call__(self, second: float, zone: str = "") -> str:
        return (self.start + pd.Timedelta(seconds=int(second))).strftime("%Y-%m-%dT%H:%M:%S") + zone


def sacct_text(jobs: pd.DataFrame, cluster: ClusterSpec, settings: SampleSettings) -> tuple[str, dict[str, int]]:
    """The dump of the west jobs, with steps, requeued rows (duplicates) and cut rows (unparseable)."""
    rng, clock = settings.rng("flaws_sacct"), _Clock(settings)
    west = jobs[jobs["site"] == "west"].reset_index(drop=True)
    if len(west) < 8:
        raise InputError(f"{len(west)} Slurm jobs", where="make_sample", remedy="a longer period")
    special = rng.permutation(np.flatnonzero(west["start_s"].to_numpy() < NEVER))
    requeued = set(special[: scaled(12, settings)].tolist())
    cut = set(special[scaled(12, settings) :][: scaled(3, settings)].tolist())
    unlimited = set(special[scaled(15, settings) :][: scaled(10, settings)].tolist())
    lines = [SACCT_COLUMNS]
    for row, job in enumerate(west.itertuples()):
        fields = _sacct_fields(job, cluster, clock, row in unlimited)
        if row in requeued:
            begun = clock(job.submit_s)
            lines.append("|".join([*fields[:5], "REQUEUED", *fields[6:7], begun, begun, "0", *fields[10:]]))
        lines.append("|".join(fields[:9]) if row in cut else "|".join(fields))
        if job.start_s < NEVER and row not in cut:
            lines.append("|".join(_batch_step(fields)))
    counts = Counter(duplicate=len(requeued), unparseable=len(cut))
    return "\n".join(lines) + "\n", dict(counts)


def _sacct_fields(job: Any, cluster: ClusterSpec, clock: _Clock, unlimited: bool) -> list[str]:
    gpus = job.gpus * job.workers
    started, ended = job.start_s < NEVER, job.end_s < NEVER
    nodes = job.nodes.split(",") if job.nodes else []
    base = f"cpu={max(int(gpus * CPUS_PER_GPU), 2)},mem={max(int(gpus * MEMORY_G_PER_GPU), 8)}G,node={max(len(nodes), 1)}"
    device = f"gres/shard={round(gpus * SHARDS_PER_GPU)}" if gpus < 1 else f"gres/gpu={round(gpus)}"
    wanted = f",gres/gpu:{job.gpu_model.lower()}={round(gpus)}" if isinstance(job.gpu_model, str) else ""
    state = SLURM_STATES.get(job.state) or f"CANCELLED by {1000 + int(job.user[2:])}"
    partition = job.pool or next(p.name for p in cluster.pools if p.site == "west" and job.gpu_model in (None, p.gpu_model))
    return [
        job.job_id,
        f"{JOB_PREFIX[job.kind]}-{job.project}",
        job.user,
        job.team,
        partition,
        state,
        clock(job.submit_s),
        clock(job.start_s) if started else "Unknown",
        clock(job.end_s) if ended else "Unknown",
        str(job.run_until_s - job.start_s) if started else "0",
        "UNLIMITED" if unlimited else str(job.requested_s // 60),
        f"{base},{device}" if started else "",
        f"{base},{device}{wanted}",
        str(max(len(nodes), 1)),
        ",".join(nodes) if nodes else "None assigned",
        _comment(job, clock),
    ]


def _comment(job: Any, clock: _Clock) -> str:
    parts = [f"class={job.kind}", f"project={job.project}", f"priority={job.priority}"]
    if not np.isnan(job.deadline_s):
        parts.append(f"deadline={clock(job.deadline_s)}")
    if not np.isnan(job.max_watts):
        parts.append(f"max_watts={job.max_watts:.0f}")
    if job.workers > 1:
        parts.append(f"workers={job.workers}")
    return ";".join(parts)


def _batch_step(fields: list[str]) -> list[str]:
    return [
        f"{fields[0]}.batch",
        "batch",
        "",
        fields[3],
        "",
        "CANCELLED" if fields[5].startswith("CANCELLED") else fields[5],
        *[fields[7]] * 2,
        *fields[8:10],
        "",
        fields[11].rpartition(",")[0],
        "",
        fields[13],
        fields[14],
        "",
    ]


def kubernetes_text(jobs: pd.DataFrame, settings: SampleSettings) -> tuple[str, dict[str, int]]:
    """The ``List`` of the east jobs; some items come twice, as from a listing that was paged while jobs changed."""
    rng, clock = settings.rng("flaws_kubernetes"), _Clock(settings)
    east = jobs[jobs["site"] == "east"].reset_index(drop=True)
    items = [_kubernetes_job(job, clock) for job in east.itertuples()]
    twice = set(rng.choice(len(items), size=min(scaled(4, settings), len(items)), replace=False).tolist())
    listed = [item for i, item in enumerate(items) for _ in range(2 if i in twice else 1)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": listed, "metadata": {"resourceVersion": ""}}, separators=(",", ":"))
    return text + "\n", {"duplicate": len(twice)}


def _kubernetes_job(job: Any, clock: _Clock) -> dict[str, object]:
    annotations: dict[str, str] = {}
    if job.gpus < 1:
        annotations["gpu-fraction"] = f"{job.gpus:g}"
    if not np.isnan(job.deadline_s):
        annotations["joulewise.io/deadline"] = clock(job.deadline_s, "Z")
    if not np.isnan(job.max_watts):
        annotations["joulewise.io/max-watts"] = f"{job.max_watts:.0f}"
    gpus = max(round(job.gpus), 1)
    limits = {"cpu": str(CPUS_PER_GPU * gpus), "memory": f"{MEMORY_G_PER_GPU * gpus}Gi", "nvidia.com/gpu": str(gpus)}
    pod = {
        "containers": [{"name": "main", "resources": {"limits": limits}}],
        "priorityClassName": f"priority-{job.priority}",
        "restartPolicy": "Never",
    }
    if isinstance(job.gpu_model, str):
        pod["nodeSelector"] = {"nvidia.com/gpu.product": f"NVIDIA-{job.gpu_model}"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job.job_id,
            "namespace": f"team-{job.team}",
            "creationTimestamp": clock(job.submit_s, "Z"),
            "labels": {
                "joulewise.io/workload-class": job.kind,
                "team": job.team,
                "project": job.project,
                "kueue.x-k8s.io/queue-name": job.pool or "east-a40",
            },
            "annotations": annotations,
        },
        "spec": {
            "parallelism": job.workers,
            "completions": job.workers,
            "activeDeadlineSeconds": int(job.requested_s),
            "template": {"spec": pod},
        },
        "status": _kubernetes_status(job, clock),
    }


def _kubernetes_status(job: Any, clock: _Clock) -> dict[str, object]:
    state, workers = job.state, job.workers
    if state == "pending":
        return {"conditions": [{"type": "Suspended", "status": "True", "lastTransitionTime": clock(job.submit_s, "Z")}]}
    status: dict[str, object] = {"startTime": clock(job.start_s, "Z")}
    if state == "running":
        return {**status, "active": workers}
    end = clock(job.end_s, "Z")
    if state == "completed":
        done = {"type": "Complete", "status": "True", "lastTransitionTime": end}
        return {**status, "completionTime": end, "succeeded": workers, "conditions": [done]}
    reason = {"timeout": "DeadlineExceeded", "cancelled": "Cancelled"}.get(state, "BackoffLimitExceeded")
    return {**status, "failed": workers, "conditions": [{"type": "Failed", "status": "True", "reason": reason, "lastTransitionTime": end}]}


def grid_text(grid: pd.DataFrame, settings: SampleSettings) -> tuple[str, dict[str, int]]:
    """The grid table as CSV, with blank cells and repeated rows."""
    rng = settings.rng("flaws_grid")
    text = grid.assign(time=grid["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_csv(index=False, lineterminator="\n")
    head, *rows = text.splitlines()
    chosen = rng.permutation(np.arange(24, len(rows) // 2 - 24)) * 2  # apart, and never at an end
    blanks, repeats = chosen[: scaled(9, settings)], set(chosen[scaled(9, settings) :][: scaled(4, settings)].tolist())
    for i, row in enumerate(blanks.tolist()):
        cells = rows[row].split(",")
        cells[2 + i % 4] = ""
        rows[row] = ",".join(cells)
    lines = [line for i, line in enumerate(rows) for _ in range(2 if i in repeats else 1)]
    return "\n".join([head, *lines]) + "\n", {"sentinel": len(blanks), "duplicate": len(repeats)}

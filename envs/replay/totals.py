"""Headline figures of one window, made from its log and tables alone (names and units as in ``envs.evaluate``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from envs.replay.facts import Facts
from envs.replay.recompute import IDLE, UNITS, Recomputed
from telemetry.classes import WORKLOAD_CLASSES

SLOWDOWN_THRESHOLD_S = 10.0


def totals_of(found: Recomputed, facts: Facts, slowdown_threshold_s: float = SLOWDOWN_THRESHOLD_S) -> dict[str, Any]:
    """``window`` (whole), ``sites``, ``states`` (idle, waking, sleeping) and ``classes``, each by name with its sums and rates."""
    jobs = found.jobs.assign(workload_class=facts.jobs["workload_class"].to_numpy())
    jobs["violated"] = jobs["late_start"] | jobs["missed_deadline"] | (jobs["rejected"] > 0)
    sums = found.sites.sum()
    seconds = float(found.end_s)
    gpus = int((facts.pools["nodes"] * facts.pools["gpus_per_node"]).sum())
    window = {unit: float(sums[unit]) for unit in (*UNITS, "penalty_usd")}
    window |= {"objective_usd": found.objective_usd, "hours": seconds / 3600.0, "gpus": gpus, "end_s": found.end_s}
    window["gpu_utilization"] = float(jobs["busy_gpu_s"].sum() / (gpus * seconds)) if seconds > 0 else None
    window |= _served(jobs, slowdown_threshold_s)
    return {
        "window": window,
        "sites": {name: {column: float(value) for column, value in row.items()} for name, row in found.sites.iterrows()},
        "states": {state: {unit: float(sums[f"{state}_{unit}"]) for unit in UNITS} for state in IDLE.values()},
        "classes": {
            name: {
                **{unit: float(part[unit].sum()) for unit in (*UNITS, "penalty_usd")},
                "busy_gpu_hours": float(part["busy_gpu_s"].sum() / 3600.0),
                **_served(part, slowdown_threshold_s),
            }
            for name in WORKLOAD_CLASSES
            if len(part := jobs[jobs["workload_class"] == name])
        },
        "slowdown_threshold_s": slowdown_threshold_s,
    }


def _served(jobs: pd.DataFrame, threshold_s: float) -> dict[str, Any]:
    done = jobs[jobs["end_s"] >= 0]
    wait, run = done["wait_s"].to_numpy(dtype=float), (done["end_s"] - done["start_s"]).to_numpy(dtype=float)
    slowdown = np.maximum(1.0, (wait + run) / np.maximum(run, threshold_s))
    return {
        "jobs_submitted": len(jobs),
        "jobs_completed": len(done),
        "jobs_rejected": int((jobs["rejected"] > 0).sum()),
        "late_starts": int(jobs["late_start"].sum()),
        "missed_deadlines": int(jobs["missed_deadline"].sum()),
        "sla_violation_rate": _mean(jobs["violated"].to_numpy()),
        "mean_wait_s": _mean(wait),
        "p95_wait_s": float(np.percentile(wait, 95)) if len(wait) else None,
        "mean_bounded_slowdown": _mean(slowdown),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None

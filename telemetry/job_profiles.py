"""What single jobs did over their time: utilisation, memory and watts of their GPUs, cut from the lake's samples by the pods' names.

A pod is a job's when its name is the job's, or the job's, '-' and one more part. A device that several pods share says the same of all of
them. With ``as_of`` nothing later is looked at: no sample, no end of a job, no job that was submitted after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from telemetry.errors import InputError
from telemetry.series import SEPARATOR

METRICS: dict[str, str] = {
    "hw.power": "power_w",
    "hw.gpu.utilization": "utilization",
    "hw.gpu.memory.utilization": "memory",
}
MEASURES = tuple(METRICS.values())
LEAST_SPAN_S = 30.0


@dataclass(frozen=True)
class JobProfile:
    """One job as seen up to a time.

    Attributes:
        group: ``site/node`` of its first reading: jobs of a group share hardware. '' = none known.
        workload_class: as stated, '' = not stated.
        elapsed_s: seconds from its start to its end, or to the time it is looked at.
        requested_s: asked run time, NaN = not known.
        seconds: time of the readings since the start, ``[T]``, rising.
        utilization, memory: shares of 1, means over its devices, ``[T]``; NaN where not read.
        power_share: watts above idle over those between idle and the board's limit, ``[T]``; NaN where not read or the board is not known.
        power_w: watts of one GPU, ``[T]``.
    """

    job_id: str
    group: str
    workload_class: str
    gpus: float
    workers: float
    elapsed_s: float
    requested_s: float
    seconds: np.ndarray
    utilization: np.ndarray
    memory: np.ndarray
    power_share: np.ndarray
    power_w: np.ndarray

    def until(self, seconds: float) -> JobProfile:
        """The job as it was seen so many seconds after its start."""
        seen = self.seconds <= seconds
        parts = (self.seconds, self.utilization, self.memory, self.power_share, self.power_w)
        return JobProfile(
            self.job_id, self.group, self.workload_class, self.gpus, self.workers, min(seconds, self.elapsed_s), self.requested_s,
            *(part[seen] for part in parts),
        )  # fmt: skip


def job_profiles(
    samples: pd.DataFrame,
    jobs: pd.DataFrame,
    limits: Mapping[str, tuple[float, float]] | None = None,
    as_of: pd.Timestamp | None = None,
) -> list[JobProfile]:
    """Profiles of jobs that have started, by start; those without a reading have empty arrays.

    Args:
        samples, jobs: canonical tables.
        limits: node -> idle watts and limit of its GPUs.
        as_of: nothing later is looked at; None = everything.

    Raises:
        InputError: ``as_of`` without a time zone.
    """
    if as_of is not None and as_of.tzinfo is None:
        raise InputError(f"{as_of}", where="as_of", allowed="a time with its zone")
    jobs = jobs[jobs["start_time"].notna()]
    if as_of is not None:
        jobs = jobs[(jobs["submit_time"] <= as_of) & (jobs["start_time"] <= as_of)]
        samples = samples[samples["time"] <= as_of]
    jobs = jobs.sort_values(["start_time", "job_id"], kind="stable")
    readings = {str(job): rows for job, rows in _readings(samples, jobs, limits or {}).groupby("job", sort=False)}
    return [_profile(job, readings.get(str(job.job_id)), as_of) for job in jobs.itertuples(index=False)]


def _readings(samples: pd.DataFrame, jobs: pd.DataFrame, limits: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """Readings of devices with a job's pod, a column a measure: ``job, time, group``, `MEASURES`, ``power_share``."""
    pods = samples["pod_uid"].astype(str)
    owners = dict(_owners(pods.unique(), set(jobs["job_id"].astype(str))))
    metric = samples["metric"].astype(str)
    keep = pods.isin(list(owners)) & metric.isin(list(METRICS)) & (samples["device"].astype(str) != "")
    rows = samples[keep].assign(job=pods[keep].map(owners), measure=metric[keep].map(METRICS))
    if rows.empty:
        return pd.DataFrame(columns=["job", "time", "group", *MEASURES, "power_share"])
    rows["key"] = rows["node"].astype(str) + SEPARATOR + rows["device"].astype(str)
    wide = rows.pivot_table(index=["job", "time", "key"], columns="measure", values="value", aggfunc="mean", observed=True).reset_index()
    for name in MEASURES:
        if name not in wide:
            wide[name] = np.nan
    sites = rows.drop_duplicates("key").set_index("key")["site"].astype(str)
    node = wide["key"].str.split(SEPARATOR).str[0]
    idle = node.map({name: figures[0] for name, figures in limits.items()}).astype(float)
    limit = node.map({name: figures[1] for name, figures in limits.items()}).astype(float)
    wide["power_share"] = (wide["power_w"] - idle) / (limit - idle)
    wide["group"] = wide["key"].map(sites) + "/" + node
    return wide


def _owners(pods: np.ndarray, names: set[str]) -> Iterator[tuple[str, str]]:
    for pod in map(str, pods):
        if pod in names:
            yield pod, pod
        elif (name := pod.rpartition("-")[0]) in names:
            yield pod, name


def _profile(job: Any, rows: pd.DataFrame | None, as_of: pd.Timestamp | None) -> JobProfile:
    start = job.start_time
    last = rows["time"].max() if rows is not None else start
    end = job.end_time if pd.notna(job.end_time) else last
    if as_of is not None:
        end = as_of if pd.isna(job.end_time) else min(end, as_of)
    elapsed_s = max((end - start).total_seconds(), 0.0)
    series, group = {name: np.empty(0) for name in ("seconds", *MEASURES, "power_share")}, ""
    if rows is not None:
        rows = rows[(rows["time"] > start) & (rows["time"] <= start + pd.Timedelta(seconds=max(elapsed_s, LEAST_SPAN_S)))]
        means = rows.groupby("time")[[*MEASURES, "power_share"]].mean()
        series = {name: means[name].to_numpy(dtype=np.float64) for name in means}
        series["seconds"] = (means.index - start).total_seconds().to_numpy(dtype=np.float64) if len(means) else np.empty(0)
        group = str(rows["group"].iloc[0]) if len(rows) else ""
    return JobProfile(
        job_id=str(job.job_id),
        group=group,
        workload_class=job.workload_class if isinstance(job.workload_class, str) else "",
        gpus=float(job.gpus),
        workers=float(job.workers),
        elapsed_s=float(elapsed_s),
        requested_s=float(job.requested_duration_s) if pd.notna(job.requested_duration_s) else np.nan,
        **series,
    )

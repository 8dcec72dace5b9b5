"""Who can own energy: pods and jobs, the job that a pod belongs to, and when and where a job ran."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

FOREVER = np.iinfo(np.int64).max // 4
# Kubernetes names a Job's pods JOB-xxxxx, and JOB-INDEX-xxxxx when it is indexed; the five characters leave out vowels and 0, 1, 3, but
# exporters and mirrors have their own.
POD_SUFFIX = re.compile(r"-[a-z0-9]{5}$")
POD_INDEX = re.compile(r"-\d+$")
OWNER_COLUMNS = ("pod_uid", "job_id", "team", "project", "workload_class")


@dataclass(frozen=True)
class JobSpans:
    """The jobs that started, as arrays over J jobs.

    Attributes:
        table: their rows of the canonical jobs.
        begin_ns, end_ns: int64 ``[J]``; a job without an end runs on for ever.
        gpus: float64 ``[J]``, of one worker.
        boards: int64 ``[J]``, boards that it lies on when each worker's share is on a board of its own.
        nodes: the node names of each job, empty where they are not known.
        open_end: jobs that have no end and are not said to run.
    """

    table: pd.DataFrame
    begin_ns: np.ndarray
    end_ns: np.ndarray
    gpus: np.ndarray
    boards: np.ndarray
    nodes: list[list[str]]
    open_end: int

    def __len__(self) -> int:
        return len(self.table)


def job_spans(jobs: pd.DataFrame, begin_ns: int, end_ns: int) -> JobSpans:
    """Jobs with GPUs that ran in ``[begin_ns, end_ns)``. Without an end: start plus duration once it is over, else it runs on."""
    started = (jobs["start_time"].notna() & (jobs["gpus"] > 0)).to_numpy()
    table = jobs[started]
    begin = _ns(table["start_time"])
    over = table["end_time"].notna().to_numpy()
    end = np.where(over, _ns(table["end_time"]), FOREVER)
    running = table["state"].isin(["running"]).to_numpy()
    known = ~over & ~running & table["duration_s"].notna().to_numpy()
    end = np.where(known, begin + (table["duration_s"].fillna(0).to_numpy() * 1e9).astype(np.int64), end)
    inside = (end > begin) & (begin < end_ns) & (end > begin_ns)
    kept = table[inside].reset_index(drop=True)
    gpus, workers = kept["gpus"].to_numpy(dtype=np.float64), kept["workers"].to_numpy(dtype=np.float64)
    nodes = [str(names).split() if isinstance(names, str) else [] for names in kept["nodes"]]
    return JobSpans(
        kept,
        begin[inside],
        end[inside],
        gpus,
        (np.ceil(gpus - 1e-9) * workers).astype(np.int64),
        nodes,
        int((~over & ~running & ~known)[inside].sum()),
    )


def _ns(times: pd.Series) -> np.ndarray:
    return times.dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)


def most_gpus(spans: JobSpans, node: str) -> float:
    """Most GPUs that the job table puts on a node at one time, at least 1."""
    at = [j for j, names in enumerate(spans.nodes) if node in names]
    if not at:
        return 1.0
    held = spans.table["workers"].to_numpy(dtype=np.float64)[at] * spans.gpus[at] / [len(spans.nodes[j]) for j in at]
    times = np.concatenate([spans.end_ns[at], spans.begin_ns[at]])
    change = np.concatenate([-held, held])  # at one time, ends come first
    return max(1.0, float(np.cumsum(change[np.argsort(times, kind="stable")]).max()))


def jobs_of_pods(pods: np.ndarray, job_ids: np.ndarray) -> np.ndarray:
    """Job row of each pod, int64 ``[P]``, -1 where none fits: the pod's own name, without its suffix, or without index and suffix."""
    rows = {str(name): row for row, name in enumerate(job_ids)}
    found = np.full(len(pods), -1, dtype=np.int64)
    for place, pod in enumerate(pods):
        name = str(pod)
        bare = POD_SUFFIX.sub("", name)
        for candidate in (name, bare, POD_INDEX.sub("", bare), POD_INDEX.sub("", name)):
            if candidate and candidate in rows:
                found[place] = rows[candidate]
                break
    return found


class Owners:
    """Distinct owners of energy; number 0 is nobody."""

    def __init__(self, spans: JobSpans) -> None:
        named = [["" if not isinstance(v, str) else v for v in spans.table[name]] for name in OWNER_COLUMNS[1:]]
        self._told = list(zip(*named, strict=True))  # of each job
        self._number: dict[tuple[str, int], int] = {("", -1): 0}
        self._rows: list[tuple[str, ...]] = [("",) * len(OWNER_COLUMNS)]
        self._job: list[int] = [-1]

    def of(self, job: int, pod: str = "", team: str = "", project: str = "") -> int:
        """Number of the owner: pod ``pod`` of job row ``job`` (-1 = no job is known; team and project are then the pod's labels)."""
        key = (pod, job)
        if key not in self._number:
            self._number[key] = len(self._rows)
            self._job.append(job)
            if job < 0:
                self._rows.append((pod, "", team, project, ""))
            else:
                told = self._told[job]
                self._rows.append((pod, told[0], told[1] or team, told[2] or project, told[3]))
        return self._number[key]

    def job_rows(self) -> np.ndarray:
        """Job row of every owner, -1 = none."""
        return np.array(self._job, dtype=np.int64)

    def table(self) -> pd.DataFrame:
        """``[O]`` rows of ``pod_uid, job_id, team, project, workload_class``."""
        return pd.DataFrame(self._rows, columns=list(OWNER_COLUMNS))

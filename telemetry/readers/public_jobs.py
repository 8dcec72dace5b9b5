"""More public job traces as canonical jobs: Alibaba's GPU pods (openb), a CPU virtual machine trace (GAIA), a Slurm sample (Eagle).

Like :mod:`telemetry.readers.public_traces`: public data in, canonical frame and counts out. No workload class is stated by any of them; the
column is left out. Jobs without a GPU have ``gpus`` 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.errors import InputError

GAIA_PERIOD_H = 680.0
MIB_PER_GIB = 1024.0
EAGLE_STATES = {"COMPLETED": "completed", "TIMEOUT": "timeout", "FAILED": "failed", "CANCELLED": "cancelled"}


def read_openb(path: Path | str, *, start: str, duration: str = "run", first_day: float = 0.0) -> tuple[pd.DataFrame, dict[str, int]]:
    """Pods of Alibaba's GPU cluster of 2023 (hkust-adsl/kubernetes-scheduler-simulator, Apache-2.0).

    ``gpus`` is the share ``gpu_milli`` / 1000 of a pod with one GPU, else its GPU count; pods without a GPU have 0. A memory request of 0
    is unknown. The quality of service (``LS``, ``BE``, ...) becomes ``project``.

    Known flaws: the pods are those alive at or near a snapshot, so arrivals are not stationary: half were created in the last 16 of 149
    days (``first_day`` leaves the thin beginning out); nobody's requested time, user or calendar date is known.

    Args:
        start: UTC time that stands for second 0.
        duration: ``run`` = deletion - scheduling, pods never scheduled are dropped; ``lifetime`` = deletion - creation, waiting included.
        first_day: pods created before this day of the trace are dropped.

    Returns:
        Canonical jobs sorted by submit time, and counts of what was dropped: ``never_scheduled``, ``no_duration``, ``before_first_day``.
    """
    names = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "qos", "creation_time", "deletion_time", "scheduled_time")
    return openb_jobs(_read(path, names), start=start, duration=duration, first_day=first_day)


def openb_jobs(raw: pd.DataFrame, *, start: str, duration: str = "run", first_day: float = 0.0) -> tuple[pd.DataFrame, dict[str, int]]:
    """As :func:`read_openb`, of a table that is read."""
    if duration not in ("run", "lifetime"):
        raise InputError(f"duration '{duration}'", where="openb", allowed="run, lifetime")
    early = raw["creation_time"] < first_day * 86_400
    ran = raw["scheduled_time"].notna() | (duration == "lifetime")
    begin = raw["scheduled_time"] if duration == "run" else raw["creation_time"]
    length = (raw["deletion_time"] - begin).astype(float)
    positive = length > 0
    counts = {
        "before_first_day": int(early.sum()),
        "never_scheduled": int((~early & ~ran).sum()),
        "no_duration": int((~early & ran & ~positive).sum()),
    }
    kept = raw[~early & ran & positive]
    share = np.where(kept["num_gpu"] == 1, kept["gpu_milli"] / 1000.0, kept["num_gpu"].astype(float))
    jobs = pd.DataFrame(
        {
            "job_id": kept["name"].astype(str),
            "submit_time": _begin(start) + pd.to_timedelta(kept["creation_time"], unit="s"),
            "duration_s": length[kept.index],
            "gpus": share,
            "workers": 1.0,
            "cpus": kept["cpu_milli"] / 1000.0,
            "memory_gib": (kept["memory_mib"] / MIB_PER_GIB).where(kept["memory_mib"] > 0),
            "team": "",
            "project": kept["qos"].astype(str),
        }
    )
    return _sorted(jobs), counts


def read_gaia(path: Path | str, *, start: str, first_tile: bool = True) -> tuple[pd.DataFrame, dict[str, int]]:
    """Virtual machines of Azure as sampled for GAIA (umassos/GAIA, MIT; upstream Azure VM trace 2017, CC-BY-4.0). CPUs only.

    Known flaws: the year is one span of 680 hours laid end to end 12.9 times (``first_tile`` keeps the first span only, so that held-out
    windows do not repeat training windows); the unit (hours) is not stated but follows from the authors' code; no user, memory or date.

    Returns:
        Canonical jobs sorted by submit time, and counts (``repeated_tiles`` rows dropped).
    """
    return gaia_jobs(_read(path, ("arrival_time", "length", "cpus")), start=start, first_tile=first_tile)


def gaia_jobs(raw: pd.DataFrame, *, start: str, first_tile: bool = True) -> tuple[pd.DataFrame, dict[str, int]]:
    """As :func:`read_gaia`, of a table that is read."""
    kept = raw[raw["arrival_time"] < GAIA_PERIOD_H] if first_tile else raw
    jobs = pd.DataFrame(
        {
            "job_id": ["vm-" + format(index, "06d") for index in kept.index],
            "submit_time": _begin(start) + pd.to_timedelta((kept["arrival_time"] * 3600).round(), unit="s"),
            "duration_s": (kept["length"] * 3600).round().astype(float),
            "gpus": 0.0,
            "workers": 1.0,
            "cpus": kept["cpus"].astype(float),
            "team": "",
            "project": "vm",
        }
    )
    return _sorted(jobs), {"repeated_tiles": len(raw) - len(kept)}


def read_eagle(path: Path | str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The first 1,000 jobs of 2019 on NREL's Eagle (NREL/eagle-jobs, BSD-3-Clause): Slurm, with requested times, users and accounts.

    Tasks of an array share one id in the source: the second and later ones get ``_1``, ``_2``, ... in their order.

    Known flaws: two days only; times have no zone and are read as UTC; the unit of ``mem_req`` is not stated, so memory is left out; nodes
    were given whole while ``processors_req`` counts what was asked for.

    Returns:
        Canonical jobs sorted by submit time, and counts (``other_state`` and ``no_duration`` rows dropped).
    """
    names = ("job_id", "user", "account", "wallclock_req", "nodes_req", "processors_req", "gpus_req", "submit_time", "run_time", "state")
    return eagle_jobs(_read(path, names))


def eagle_jobs(raw: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """As :func:`read_eagle`, of a table that is read; with ``start_time`` and ``end_time`` where it has them."""
    known = raw["state"].isin(EAGLE_STATES)
    positive = raw["run_time"] > 0
    kept = raw[known & positive]
    place = kept.groupby("job_id").cumcount()
    nodes = kept["nodes_req"].clip(lower=1).astype(float)
    jobs = pd.DataFrame(
        {
            "job_id": kept["job_id"].astype(str) + place.map(lambda index: f"_{index}" if index else ""),
            "submit_time": pd.to_datetime(kept["submit_time"], utc=True),
            "duration_s": kept["run_time"].astype(float),
            "gpus": np.ceil(kept["gpus_req"] / nodes),
            "workers": nodes,
            "cpus": kept["processors_req"] / nodes,
            "requested_duration_s": kept["wallclock_req"].astype(float),
            "team": kept["account"].astype(str),
            "project": kept["user"].astype(str),
            "state": kept["state"].map(EAGLE_STATES),
        }
    )
    for name in ("start_time", "end_time"):
        if name in kept:
            jobs[name] = kept[name]
    return _sorted(jobs), {"other_state": int((~known).sum()), "no_duration": int((known & ~positive).sum())}


def _sorted(jobs: pd.DataFrame) -> pd.DataFrame:
    return jobs.sort_values(["submit_time", "job_id"], ignore_index=True)


def _begin(start: str) -> pd.Timestamp:
    time = pd.Timestamp(start)
    return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")


def _read(path: Path | str, columns: tuple[str, ...]) -> pd.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", where=str(path), remedy="set JOULEWISE_TRACES to the folder that holds the traces")
    try:
        raw = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=str(path)) from error
    missing = [name for name in columns if name not in raw.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=str(path), allowed=", ".join(columns))
    return raw[list(columns)]

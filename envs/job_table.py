"""The canonical jobs table, completed with everything the simulator needs.

Nothing that a policy sees is derived from the true duration: estimates are what users requested, else a default of the workload class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.power.networks import network_named
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.times import utc_times as texts_as_utc

# Stated for a job that requests no run time. Round figures of the usual queue limits: a working day for training, half of it for
# fine-tuning, an hour or two for the rest. They are deliberately not medians of the trace: a median over all jobs would know the future.
DEFAULT_ESTIMATE_S: dict[str, int] = {
    "training": 8 * 3600,
    "fine_tuning": 4 * 3600,
    "batch_inference": 2 * 3600,
    "realtime_inference": 3600,
    "interactive": 3600,
}

LARGEST_AMOUNT = 1e9
# Bounds of what the simulator counts exactly: 100 years, and gangs whose thousandths of GPUs stay within 64 bits.
LARGEST_SECONDS = 36_525 * 86_400
LARGEST_GPUS = 1_000_000
LARGEST_WORKERS = 1_000_000_000
LARGEST_PRIORITY = 1 << 53

# The calendar of 64-bit nanoseconds ends in 2262.
EPOCH = pd.Timestamp(0, tz="UTC")
LAST_SECOND = pd.Timestamp.max.timestamp() - 1

REQUIRED_JOB_COLUMNS = ("job_id", "submit_time", "duration_s", "gpus", "workers")


def prepare_jobs(jobs: pd.DataFrame, cluster: ClusterSpec) -> pd.DataFrame:
    """Complete the canonical jobs table with everything the simulator needs.

    Filled: ``workload_class`` (see :func:`tag_class`), ``estimate_s`` (``requested_duration_s``, else ``DEFAULT_ESTIMATE_S`` of the
    class), ``deadline`` and ``latest_start`` (objectives of ``cluster``), ``priority`` 0, ``max_watts`` infinity, ``gpu_utilization`` 1,
    ``gpu_model`` None = any; ``cpu_milli`` and ``memory_mib`` of a worker (``cpus``, ``memory_gib``) 0; ``preemptible``, ``checkpoint_s``
    and ``restart_s`` of the class; ``data_gib`` 0 and ``data_site`` None; ``workload`` None, else the network's name as
    `envs.power.networks` writes it; ``until``, ``service`` and ``peak_load`` of replicas empty.
    ``submit_time`` is cut to whole seconds, ``duration_s`` rounded up to at least 1 s, ``gpus`` to thousandths.

    Returns:
        A new frame sorted by ``submit_time, job_id`` with columns ``job_id, submit_time, duration_s, estimate_s, gpus, gpu_milli, workers,
        workload_class, kind, priority, latest_start, deadline, max_watts, gpu_utilization, gpu_model, workload, cpu_milli, memory_mib,
        preemptible, checkpoint_s, restart_s, data_gib, data_site, until, service, peak_load`` and the original remaining columns.

    Raises:
        InputError: a missing column, an unknown class, or values outside their range, with the job named.
    """
    missing = [name for name in REQUIRED_JOB_COLUMNS if name not in jobs.columns]
    if missing:
        raise InputError(
            f"missing column {', '.join(missing)}",
            where="jobs table",
            allowed=", ".join(REQUIRED_JOB_COLUMNS),
            remedy="see the jobs schema",
        )
    table = jobs.reset_index(drop=True).copy()
    if table["job_id"].isna().any():
        raise InputError(f"{int(table['job_id'].isna().sum())} rows without job_id", where="jobs table", remedy="name every job")
    table["job_id"] = table["job_id"].astype(str)
    table["submit_time"] = utc_times(table["submit_time"], "submit_time").dt.floor("s")
    _check_numbers(table, "duration_s", lambda v: (v >= 0) & (v <= LARGEST_SECONDS), f"0 to {LARGEST_SECONDS:,} seconds (100 years)")
    table["duration_s"] = np.maximum(np.ceil(table["duration_s"].astype(float)), 1).astype(np.int64)
    few = f"a whole number from 1 to {LARGEST_WORKERS:,}"
    _check_numbers(table, "workers", lambda v: (v >= 1) & (v == np.floor(v)) & (v <= LARGEST_WORKERS), few)
    table["workers"] = table["workers"].astype(np.int64)
    _resources(table)
    table["gpu_milli"] = _gpu_milli(table)
    table["workload_class"] = tag_class(table)
    table["kind"] = table["workload_class"].map(CLASS_INDEX).astype(np.int64)
    table["estimate_s"] = estimate_seconds(table)
    table["priority"] = _optional(table, "priority", 0.0)
    _check_numbers(
        table, "priority", lambda v: (v == np.floor(v)) & (v.abs() <= LARGEST_PRIORITY), "a whole number of at most 2^53 in size"
    )
    table["priority"] = table["priority"].astype(np.int64)
    table["max_watts"] = _optional(table, "max_watts", np.inf)
    _check_numbers(table, "max_watts", lambda v: v > 0, "above 0 W", finite=False)
    table["gpu_utilization"] = _optional(table, "gpu_utilization", 1.0)
    _check_numbers(table, "gpu_utilization", lambda v: (v >= 0) & (v <= 1), "a fraction of 0 to 1")
    models = table["gpu_model"] if "gpu_model" in table else pd.Series(None, index=table.index, dtype=object)
    table["gpu_model"] = models.astype(object).where(models.notna() & (models.astype(str) != ""), None)
    _workloads(table)
    _objectives(table, cluster)
    _interruptions(table, cluster)
    _data(table, cluster)
    _leases(table)
    duplicated = table["job_id"].duplicated()
    if duplicated.any():
        raise InputError(
            f"job_id '{table.loc[duplicated, 'job_id'].iloc[0]}' occurs twice", where="jobs table", remedy="make job_id unique"
        )
    return table.sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True)


def tag_class(jobs: pd.DataFrame) -> pd.Series:
    """Workload class of each job: the given one, else by shape.

    A job below one GPU is ``interactive`` (notebooks and debugging share GPUs), anything else is ``training``: the classes whose objectives
    bind hardest are never guessed for a whole-GPU job.
    """
    guessed = pd.Series(np.where(jobs["gpus"].astype(float) < 1, "interactive", "training"), index=jobs.index, dtype=object)
    if "workload_class" not in jobs:
        return guessed
    given = jobs["workload_class"].astype(object)
    unknown = sorted({str(value) for value in given.dropna().unique()} - set(WORKLOAD_CLASSES) - {""})
    if unknown:
        raise InputError(f"unknown workload_class '{unknown[0]}'", where="jobs table", allowed=", ".join(WORKLOAD_CLASSES))
    return given.where(given.notna() & (given != ""), guessed)


def estimate_seconds(jobs: pd.DataFrame) -> pd.Series:
    """Visible estimate of the run time on the reference GPU, int64 seconds; never derived from ``duration_s``.

    A request that is missing, not above 0 or infinite counts as none.
    """
    default = jobs["workload_class"].map(DEFAULT_ESTIMATE_S).astype(float)
    requested = _optional(jobs, "requested_duration_s", np.nan)
    usable = requested.notna() & np.isfinite(requested) & (requested > 0)
    estimate = requested.where(usable, default)
    named = jobs.assign(requested_duration_s=estimate)
    _check_numbers(named, "requested_duration_s", lambda v: v <= LARGEST_SECONDS, f"up to {LARGEST_SECONDS:,} seconds (100 years)")
    return np.ceil(estimate).clip(lower=1).astype(np.int64)


def _objectives(table: pd.DataFrame, cluster: ClusterSpec) -> None:
    """Add ``deadline`` and ``latest_start`` as :class:`~envs.cluster.ClassObjective` defines them; a given deadline stays."""
    column = {
        name: table["workload_class"].map({k: getattr(o, name) for k, o in cluster.objectives.items()})
        for name in ("max_wait_s", "deadline_stretch", "start_bound")
    }
    estimate = pd.to_timedelta(table["estimate_s"], unit="s")
    stretch_s = np.ceil(column["deadline_stretch"].astype(float) * table["estimate_s"])
    late = (table["submit_time"].max() - EPOCH).total_seconds() + column["max_wait_s"] + stretch_s > LAST_SECOND
    if late.any():
        row = table[late].iloc[0]
        raise InputError(
            f"a deadline after {pd.Timestamp.max.year} (estimate {row['estimate_s']:,} s)",
            where=f"jobs table, job '{row['job_id']}'",
            allowed="submit_time + max_wait_s + deadline_stretch x estimate within the calendar",
            remedy="give a shorter requested_duration_s",
        )
    wait_end = table["submit_time"] + pd.to_timedelta(column["max_wait_s"].astype(np.int64), unit="s")
    stretch_s = stretch_s.astype(np.int64)
    default_deadline = wait_end + pd.to_timedelta(stretch_s, unit="s")
    if "deadline" in table:
        given = utc_times(table["deadline"], "deadline", nullable=True).dt.floor("s")
    else:
        given = pd.Series(pd.NaT, index=table.index, dtype="datetime64[ns, UTC]")
    own = given.notna()
    table["deadline"] = given.where(own, default_deadline)
    by_deadline = given - estimate
    bound = column["start_bound"].astype(bool)
    own_start = by_deadline.where(~bound | (by_deadline < wait_end), wait_end)
    latest = own_start.where(own, wait_end)
    table["latest_start"] = latest.where(latest > table["submit_time"], table["submit_time"])


def _workloads(table: pd.DataFrame) -> None:
    """Add ``workload``, the network whose speed the job has (None = its class's), in the spelling of `envs.power.networks`."""
    given = table["workload"].astype(object) if "workload" in table else pd.Series(None, index=table.index, dtype=object)
    given = given.where(given.notna() & (given.astype(str).str.strip() != ""), None)
    first = table.loc[given.notna()].groupby(given)["job_id"].first()
    names = {text: network_named(str(text), f"jobs table, job '{job_id}'") for text, job_id in first.items()}
    table["workload"] = given.map(names).astype(object).where(given.notna(), None)


def _resources(table: pd.DataFrame) -> None:
    """Add ``cpu_milli`` and ``memory_mib`` of one worker; 0 where nothing is asked for."""
    for name, given, scale in (("cpu_milli", "cpus", 1000), ("memory_mib", "memory_gib", 1024)):
        amount = _optional(table, given, 0.0)
        bad = ~np.isfinite(amount) | (amount < 0) | (amount > LARGEST_AMOUNT)
        if bad.any():
            row = table[bad].iloc[0]
            raise InputError(f"{given} {row[given]}", where=f"jobs table, job '{row['job_id']}'", allowed=f"0 to {LARGEST_AMOUNT:g}")
        table[name] = np.ceil(amount * scale - 1e-9).astype(np.int64)


def _interruptions(table: pd.DataFrame, cluster: ClusterSpec) -> None:
    """Add ``preemptible``, ``checkpoint_s`` and ``restart_s``: given, else as the class has them."""
    for name in ("preemptible", "checkpoint_s", "restart_s"):
        default = table["workload_class"].map({k: float(getattr(o, name)) for k, o in cluster.objectives.items()}).astype(float)
        given = pd.to_numeric(table[name], errors="coerce").astype(float) if name in table else default
        table[name] = given.where(given.notna(), default)
        _check_numbers(table, name, lambda v: (v >= 0) & (v <= LARGEST_SECONDS), f"0 to {LARGEST_SECONDS:g}")
        table[name] = table[name].astype(bool if name == "preemptible" else np.int64)


def _data(table: pd.DataFrame, cluster: ClusterSpec) -> None:
    """Add ``data_gib`` and ``data_site`` (None = data is everywhere or there is none)."""
    table["data_gib"] = _optional(table, "data_gib", 0.0)
    _check_numbers(table, "data_gib", lambda v: (v >= 0) & (v <= LARGEST_AMOUNT), f"0 to {LARGEST_AMOUNT:g}")
    sites = table["data_site"].astype(object) if "data_site" in table else pd.Series(None, index=table.index, dtype=object)
    table["data_site"] = sites.where(sites.notna() & (sites.astype(str) != ""), None)
    names = [site.name for site in cluster.sites]
    unknown = table["data_site"].notna() & ~table["data_site"].isin(names)
    if unknown.any():
        row = table[unknown].iloc[0]
        raise InputError(f"data_site '{row['data_site']}'", where=f"jobs table, job '{row['job_id']}'", allowed=", ".join(names))


def _leases(table: pd.DataFrame) -> None:
    """Add ``until``, ``service`` and ``peak_load`` of replicas; empty for jobs."""
    if "until" not in table:
        table["until"] = pd.Series(pd.NaT, index=table.index, dtype="datetime64[ns, UTC]")
    table["until"] = utc_times(table["until"], "until", nullable=True).dt.floor("s")
    services = table["service"].astype(object) if "service" in table else pd.Series(None, index=table.index, dtype=object)
    table["service"] = services.where(services.notna() & (services.astype(str) != ""), None)
    table["peak_load"] = _optional(table, "peak_load", 0.0)
    lease = table["until"].notna()
    bad = lease & ((table["until"] <= table["submit_time"]) | table["service"].isna())
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(
            f"until {row['until']}, service {row['service']!r}",
            where=f"jobs table, job '{row['job_id']}'",
            allowed="a replica's end after its submission, and the service it belongs to",
        )
    table["preemptible"] &= ~lease


def _gpu_milli(table: pd.DataFrame) -> pd.Series:
    _check_numbers(table, "gpus", lambda v: (v >= 0) & (v <= LARGEST_GPUS), f"0 (a job of CPUs alone) to {LARGEST_GPUS:,} for one worker")
    table["gpus"] = table["gpus"].astype(float)
    milli = (table["gpus"] * 1000).round().astype(np.int64)
    bad = ((milli < 1) & (table["cpu_milli"] == 0)) | ((milli > 1000) & (milli % 1000 != 0)) | ((milli == 0) & (table["gpus"] > 0))
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(
            f"gpus {row['gpus']:g}",
            where=f"jobs table, job '{row['job_id']}'",
            allowed="a share of one GPU (0.001 to 1) or whole GPUs, or 0 with CPUs",
        )
    return milli


def _optional(table: pd.DataFrame, name: str, default: float) -> pd.Series:
    if name not in table:
        return pd.Series(default, index=table.index, dtype=float)
    values = pd.to_numeric(table[name], errors="coerce").astype(float)
    unread = values.isna() & table[name].notna() & (table[name].astype(str).str.strip() != "")
    if unread.any():
        row = table[unread].iloc[0]
        raise InputError(f"{name} '{row[name]}'", where=f"jobs table, job '{row['job_id']}'", allowed="a number, or nothing")
    return values.fillna(default)


def _check_numbers(table: pd.DataFrame, name: str, allowed: Callable[[pd.Series], pd.Series], words: str, *, finite: bool = True) -> None:
    values = pd.to_numeric(table[name], errors="coerce").astype(float)
    bad = values.isna() | ~allowed(values)
    if finite:
        bad |= ~np.isfinite(values)
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(f"{name} {row[name]}", where=f"jobs table, job '{row['job_id']}'", allowed=words)


def utc_times(values: pd.Series, name: str, *, nullable: bool = False) -> pd.Series:
    """A column of times as ``datetime64[ns, UTC]``; texts are ISO 8601, UTC where they have no zone."""
    if pd.api.types.is_datetime64_any_dtype(values):
        times = pd.to_datetime(values, utc=True)
    else:
        times, wrong = texts_as_utc(values.where(values.notna(), None).tolist())
        times.index = wrong.index = values.index
        if wrong.any():
            raise InputError(f"{name} is not a time ({values[wrong].iloc[0]!r})", where="jobs table", allowed="ISO 8601 with zone")
    if times.isna().any() and not nullable:
        raise InputError(f"{int(times.isna().sum())} rows without {name}", where="jobs table", remedy="drop or repair them")
    return times.astype("datetime64[ns, UTC]")

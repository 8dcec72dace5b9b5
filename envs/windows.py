"""From canonical tables to evaluation windows: job preparation, disjoint time splits, random window starts.

Nothing that a policy sees is derived from the true duration: estimates are what users requested, else a default of the workload class.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES
from telemetry.errors import InputError

DAY_S = 86_400
HISTORY_S = 7 * DAY_S
TAIL_S = 7 * DAY_S

# Stated for a job that requests no run time. Round figures of the usual queue limits: a working day for training, half of it for
# fine-tuning, an hour or two for the rest. They are deliberately not medians of the trace: a median over all jobs would know the future.
DEFAULT_ESTIMATE_S: dict[str, int] = {
    "training": 8 * 3600,
    "fine_tuning": 4 * 3600,
    "batch_inference": 2 * 3600,
    "realtime_inference": 3600,
    "interactive": 3600,
}

REQUIRED_JOB_COLUMNS = ("job_id", "submit_time", "duration_s", "gpus", "workers")
REQUIRED_GRID_COLUMNS = ("time", "site", "price_usd_per_kwh", "carbon_g_per_kwh")


@dataclass(frozen=True)
class WindowTables:
    """One window of a trace.

    Attributes:
        start: second 0 of the window, UTC.
        jobs: rows of :func:`prepare_jobs` submitted in ``[start, start + length_s)``.
        grid: canonical grid rows around the window, with the history before ``start`` that forecasts of a policy may use.
        length_s: span of submissions; jobs may run on after it.
    """

    start: pd.Timestamp
    jobs: pd.DataFrame
    grid: pd.DataFrame
    length_s: int = 0


def prepare_jobs(jobs: pd.DataFrame, cluster: ClusterSpec) -> pd.DataFrame:
    """Complete the canonical jobs table with everything the simulator needs.

    Filled: ``workload_class`` (see :func:`tag_class`), ``estimate_s`` (``requested_duration_s``, else ``DEFAULT_ESTIMATE_S`` of the class),
    ``deadline`` and ``latest_start`` (objectives of ``cluster``), ``priority`` 0, ``max_watts`` infinity, ``gpu_utilization`` 1,
    ``gpu_model`` None = any. ``submit_time`` is cut to whole seconds, ``duration_s`` rounded up to at least 1 s.

    Returns:
        A new frame sorted by ``submit_time, job_id`` with columns ``job_id, submit_time, duration_s, estimate_s, gpus, gpu_milli, workers,
        workload_class, kind, priority, latest_start, deadline, max_watts, gpu_utilization, gpu_model`` and the original remaining columns.

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
    table["job_id"] = table["job_id"].astype(str)
    table["submit_time"] = _utc(table["submit_time"], "submit_time").dt.floor("s")
    _check_numbers(table, "duration_s", lambda v: v >= 0, "0 or more seconds")
    table["duration_s"] = np.maximum(np.ceil(table["duration_s"].astype(float)), 1).astype(np.int64)
    _check_numbers(table, "workers", lambda v: (v >= 1) & (v == np.floor(v)), "a whole number from 1")
    table["workers"] = table["workers"].astype(np.int64)
    table["gpu_milli"] = _gpu_milli(table)
    table["workload_class"] = tag_class(table)
    table["kind"] = table["workload_class"].map(CLASS_INDEX).astype(np.int64)
    table["estimate_s"] = estimate_seconds(table)
    table["priority"] = _optional(table, "priority", 0.0).astype(np.int64)
    table["max_watts"] = _optional(table, "max_watts", np.inf)
    _check_numbers(table, "max_watts", lambda v: v > 0, "above 0 W", finite=False)
    table["gpu_utilization"] = _optional(table, "gpu_utilization", 1.0)
    _check_numbers(table, "gpu_utilization", lambda v: (v >= 0) & (v <= 1), "a fraction of 0 to 1")
    models = table["gpu_model"] if "gpu_model" in table else pd.Series(None, index=table.index, dtype=object)
    table["gpu_model"] = models.astype(object).where(models.notna() & (models.astype(str) != ""), None)
    _objectives(table, cluster)
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
    """Visible estimate of the run time on the reference GPU, int64 seconds; never derived from ``duration_s``."""
    default = jobs["workload_class"].map(DEFAULT_ESTIMATE_S).astype(float)
    requested = _optional(jobs, "requested_duration_s", np.nan)
    usable = requested.notna() & np.isfinite(requested) & (requested > 0)
    return np.ceil(requested.where(usable, default)).clip(lower=1).astype(np.int64)


def _objectives(table: pd.DataFrame, cluster: ClusterSpec) -> None:
    """Add ``deadline`` and ``latest_start`` as :class:`~envs.cluster.ClassObjective` defines them; a given deadline stays."""
    column = {
        name: table["workload_class"].map({k: getattr(o, name) for k, o in cluster.objectives.items()})
        for name in ("max_wait_s", "deadline_stretch", "start_bound")
    }
    estimate = pd.to_timedelta(table["estimate_s"], unit="s")
    wait_end = table["submit_time"] + pd.to_timedelta(column["max_wait_s"].astype(np.int64), unit="s")
    stretch_s = np.ceil(column["deadline_stretch"].astype(float) * table["estimate_s"]).astype(np.int64)
    default_deadline = wait_end + pd.to_timedelta(stretch_s, unit="s")
    if "deadline" in table:
        given = _utc(table["deadline"], "deadline", nullable=True).dt.floor("s")
    else:
        given = pd.Series(pd.NaT, index=table.index, dtype="datetime64[ns, UTC]")
    own = given.notna()
    table["deadline"] = given.where(own, default_deadline)
    by_deadline = given - estimate
    bound = column["start_bound"].astype(bool)
    own_start = by_deadline.where(~bound | (by_deadline < wait_end), wait_end)
    latest = own_start.where(own, wait_end)
    table["latest_start"] = latest.where(latest > table["submit_time"], table["submit_time"])


def _gpu_milli(table: pd.DataFrame) -> pd.Series:
    _check_numbers(table, "gpus", lambda v: v > 0, "above 0")
    table["gpus"] = table["gpus"].astype(float)
    milli = (table["gpus"] * 1000).round().astype(np.int64)
    bad = (milli < 1) | ((milli > 1000) & (milli % 1000 != 0))
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(
            f"gpus {row['gpus']:g}", where=f"jobs table, job '{row['job_id']}'", allowed="a share of one GPU (0.001 to 1) or whole GPUs"
        )
    return milli


def _optional(table: pd.DataFrame, name: str, default: float) -> pd.Series:
    if name not in table:
        return pd.Series(default, index=table.index, dtype=float)
    return pd.to_numeric(table[name], errors="coerce").astype(float).fillna(default)


def _check_numbers(table: pd.DataFrame, name: str, allowed, words: str, *, finite: bool = True) -> None:
    values = pd.to_numeric(table[name], errors="coerce").astype(float)
    bad = values.isna() | ~allowed(values)
    if finite:
        bad |= ~np.isfinite(values)
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(f"{name} {row[name]}", where=f"jobs table, job '{row['job_id']}'", allowed=words)


def _utc(values: pd.Series, name: str, *, nullable: bool = False) -> pd.Series:
    try:
        times = pd.to_datetime(values, utc=True, format=None if pd.api.types.is_datetime64_any_dtype(values) else "ISO8601")
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is not a time ({error})", where="jobs table", allowed="ISO 8601 with zone") from error
    if times.isna().any() and not nullable:
        raise InputError(f"{int(times.isna().sum())} rows without {name}", where="jobs table", remedy="drop or repair them")
    return times.astype("datetime64[ns, UTC]")


def check_grid(grid: pd.DataFrame) -> pd.DataFrame:
    """Check a canonical grid table and return it sorted by time and site; negative prices are allowed, gaps and NaN are not.

    Raises:
        InputError: missing column, NaN price or intensity, negative intensity, duplicate or irregular times, sites of unequal span.
    """
    missing = [name for name in REQUIRED_GRID_COLUMNS if name not in grid.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where="grid table", allowed=", ".join(REQUIRED_GRID_COLUMNS))
    if grid.empty:
        raise InputError("no rows", where="grid table", allowed="at least one step for each site")
    table = grid.copy()
    table["time"] = _utc(table["time"], "time")
    table = table.sort_values(["time", "site"], kind="stable", ignore_index=True)
    for name in ("price_usd_per_kwh", "carbon_g_per_kwh"):
        values = pd.to_numeric(table[name], errors="coerce")
        bad = ~np.isfinite(values) | ((values < 0) if name.startswith("carbon") else False)
        if bad.any():
            row = table[bad].iloc[0]
            raise InputError(
                f"{name} {row[name]}",
                where=f"grid table, {row['site']} at {row['time'].isoformat()}",
                allowed="a finite number" + (", 0 or more" if name.startswith("carbon") else ""),
                remedy="fill the gap with a forecast or the value of the day before, or cut the table there",
            )
        table[name] = values.astype(float)
    first: np.ndarray | None = None
    for site, rows in table.groupby("site", sort=True):
        times = rows["time"].dt.tz_localize(None).to_numpy()
        _check_steps(times, str(site))
        if first is not None and not np.array_equal(first, times):
            raise InputError(
                "covers other times than the first site", where=f"grid table, site '{site}'", allowed="the same times for every site"
            )
        first = times
    return table


def _check_steps(times: np.ndarray, site: str) -> None:
    """One site's sorted times must be distinct and regular."""
    steps = np.diff(times)
    wrong = (steps != steps[steps > np.timedelta64(0)].min()) if (steps > np.timedelta64(0)).any() else np.ones(len(steps), dtype=bool)
    if wrong.any():
        at = pd.Timestamp(times[1:][wrong][0]).isoformat()
        raise InputError(
            f"{int(wrong.sum())} gaps or repeated times, the first before {at}",
            where=f"grid table, site '{site}'",
            allowed="one constant step",
            remedy="repair the export, or fill the gap with the day before",
        )


def split_time(jobs: pd.DataFrame, fractions: Sequence[float] = (0.6, 0.2, 0.2), *, gap_s: int = 0) -> tuple[pd.DataFrame, ...]:
    """Cut jobs into consecutive, disjoint spans of submit time (train, validation, test, ...), oldest first.

    Args:
        fractions: share of the time span of each part, summing to 1.
        gap_s: seconds left out before each later part, so that jobs of one part are over before the next begins.
    """
    if not fractions or any(f <= 0 for f in fractions) or not np.isclose(sum(fractions), 1):
        raise InputError(f"fractions {tuple(fractions)}", allowed="positive, summing to 1")
    if jobs.empty:
        raise InputError("no jobs to split", where="jobs table")
    times = _utc(jobs["submit_time"], "submit_time")
    first, last = times.min(), times.max() + pd.Timedelta(seconds=1)
    edges = [first + (last - first) * share for share in np.concatenate([[0.0], np.cumsum(fractions)])]
    edges[-1] = last
    gap = pd.Timedelta(seconds=gap_s)
    parts = []
    for index, (begin, end) in enumerate(itertools.pairwise(edges)):
        begin = begin + gap if index else begin
        parts.append(jobs[(times >= begin) & (times < end)].reset_index(drop=True))
    return tuple(parts)


def split_months(jobs: pd.DataFrame, *, validation: int = 1, test: int = 1) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Cut jobs by calendar months (UTC): the last ``test`` months, the ``validation`` months before them, the rest for training."""
    months = _utc(jobs["submit_time"], "submit_time").dt.strftime("%Y-%m")
    names = sorted(months.unique())
    if len(names) < validation + test + 1:
        raise InputError(
            f"{len(names)} months of jobs",
            where="jobs table",
            allowed=f"at least {validation + test + 1}",
            remedy="use split_time on short traces",
        )
    held = names[len(names) - test :]
    tuned = names[len(names) - test - validation : len(names) - test]
    take = [~months.isin(held + tuned), months.isin(tuned), months.isin(held)]
    return tuple(jobs[mask].reset_index(drop=True) for mask in take)  # type: ignore[return-value]


def cut_windows(
    jobs: pd.DataFrame,
    grid: pd.DataFrame,
    length_s: int,
    count: int,
    seed: int,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
) -> list[WindowTables]:
    """Cut ``count`` windows of ``length_s`` seconds at random, distinct starts.

    Starts lie on whole grid steps, one at random in each of ``count`` equal strata of the span, so that windows overlap as little as the
    span allows; they depend on ``seed`` alone. The span is ``[start, end)``, by default from the first submit to just after the last, cut
    to where the grid has data. Another seed moves every window within its stratum: window *i* of all seeds is the same part of the trace.

    Args:
        jobs: output of :func:`prepare_jobs`.
        grid: canonical grid table; every window keeps 7 days before its start and after its last submission where the table has them.

    Raises:
        InputError: when the span is shorter than a window, has fewer starts than windows, or the grid does not cover it.
    """
    if length_s < 1 or count < 1:
        raise InputError(f"{count} windows of {length_s} s", where="windows", allowed="at least 1 of at least 1 s")
    grid = check_grid(grid)
    begin, stop = _span(jobs, grid, start, end)
    times = pd.DatetimeIndex(grid["time"].unique())
    room = stop - pd.Timedelta(seconds=length_s)
    if room < begin:
        room = begin
        if len(jobs) and start is not None and end is not None:
            raise InputError(
                f"window of {length_s} s", where="windows", allowed=f"at most {int((stop - begin).total_seconds())} s (the span given)"
            )
    starts = times[(times >= begin) & (times <= room)]
    if len(starts) == 0:
        starts = times[times <= begin][-1:] if (times <= begin).any() else times[:1]
    if len(starts) < count:
        raise InputError(
            f"{count} distinct windows of {length_s / 3600:g} h between {begin.isoformat()} and {stop.isoformat()}",
            where="windows",
            allowed=f"at most {len(starts)}",
            remedy="ask for fewer or shorter windows, or give a longer trace",
        )
    generator = np.random.default_rng(seed)
    edges = np.linspace(0, len(starts), count + 1).astype(int)
    chosen = [starts[int(generator.integers(low, high))] for low, high in itertools.pairwise(edges)]
    return [window_at(jobs, grid, at, length_s) for at in chosen]


def window_at(jobs: pd.DataFrame, grid: pd.DataFrame, start: pd.Timestamp, length_s: int) -> WindowTables:
    """The window of ``length_s`` seconds that begins at ``start``; ``grid`` as checked by :func:`check_grid`."""
    stop = start + pd.Timedelta(seconds=length_s)
    inside = jobs[(jobs["submit_time"] >= start) & (jobs["submit_time"] < stop)].reset_index(drop=True)
    near = grid[(grid["time"] >= start - pd.Timedelta(seconds=HISTORY_S)) & (grid["time"] <= stop + pd.Timedelta(seconds=TAIL_S))]
    if near.empty or grid["time"].max() < start or near["time"].min() > start:
        raise InputError(
            f"no grid data at {start.isoformat()}",
            where="grid table",
            allowed=f"{grid['time'].min().isoformat()} to {grid['time'].max().isoformat()}",
            remedy="give a grid table that covers the jobs",
        )
    return WindowTables(start, inside, near.reset_index(drop=True), length_s)


def _span(
    jobs: pd.DataFrame, grid: pd.DataFrame, start: pd.Timestamp | None, end: pd.Timestamp | None
) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Limits of the windows: what was asked for, else the jobs' span, cut to the grid."""
    times = grid["time"]
    step = times.drop_duplicates().diff().min()
    grid_end = times.max() + (step if pd.notna(step) else pd.Timedelta(0))
    if len(jobs):
        first, last = jobs["submit_time"].min(), jobs["submit_time"].max() + pd.Timedelta(seconds=1)
    else:
        first, last = times.min(), grid_end
    begin, stop = max(start or first, times.min()), min(end or last, grid_end)
    if begin >= stop:
        spans = f"jobs from {first.isoformat()} to {last.isoformat()}, grid from {times.min().isoformat()} to {grid_end.isoformat()}"
        raise InputError(f"{spans}: they do not meet", where="windows", remedy="give tables of the same time")
    return begin, stop

"""From canonical tables to evaluation windows: grid checks, disjoint time splits, random window starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.job_table import prepare_jobs, utc_times
from telemetry.errors import InputError

__all__ = [
    "WindowTables",
    "check_grid",
    "constant_grid",
    "cut_by_jobs",
    "cut_windows",
    "prepare_jobs",
    "split_months",
    "split_time",
    "window_at",
]
DAY_S = 86_400
HISTORY_S = 7 * DAY_S
TAIL_S = 7 * DAY_S

GridMaker = Callable[[pd.Timestamp, pd.Timestamp], pd.DataFrame]
GRID_RANGES = {"temperature_c": (-90.0, 65.0), "renewable_fraction": (0.0, 1.0)}
REQUIRED_GRID_COLUMNS = ("time", "site", "price_usd_per_kwh", "carbon_g_per_kwh")


@dataclass(frozen=True)
class WindowTables:
    """One window of a trace.

    Attributes:
        start: second 0 of the window, UTC.
        jobs: rows of :func:`prepare_jobs` submitted in ``[start, start + length_s)``.
        grid: canonical grid rows around the window, with the history before ``start`` that forecasts of a policy may use.
        length_s: span of submissions; jobs may run on after it.
        outages: ``node`` (name), ``begin``, ``end`` (UTC) of nodes that are down for a while; none when None.
        services: ``time, service, load``, the load of one replica of each service in units of the reference GPU, on the grid's steps
            (held between and after them); needed where jobs are replicas.
    """

    start: pd.Timestamp
    jobs: pd.DataFrame
    grid: pd.DataFrame
    length_s: int = 0
    outages: pd.DataFrame | None = None
    services: pd.DataFrame | None = None


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
    table["time"] = utc_times(table["time"], "time")
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
    for name, (least, most) in GRID_RANGES.items():
        if name not in table:
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        bad = (values.isna() & table[name].notna()) | (values < least) | (values > most)  # a missing value is allowed
        if bad.any():
            row = table[bad].iloc[0]
            raise InputError(
                f"{name} {row[name]}",
                where=f"grid table, {row['site']} at {row['time'].isoformat()}",
                allowed=f"{least:g} to {most:g}, or nothing",
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
    times = utc_times(jobs["submit_time"], "submit_time")
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
    months = utc_times(jobs["submit_time"], "submit_time").dt.strftime("%Y-%m")
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


def cut_by_jobs(
    jobs: pd.DataFrame, grid: pd.DataFrame | GridMaker, length: int, count: int, seed: int, first: int | None = None
) -> list[WindowTables]:
    """Cut ``count`` windows of ``length`` consecutive jobs each, as the literature on workload archives does.

    Second 0 of a window is its first submission (with ``grid``, the grid step that holds it).

    Args:
        grid: canonical grid table, or what makes one from the limits of a window (a partial of :func:`constant_grid`).
        first: index of the first job; windows follow each other from there. None = random distinct starts.

    Raises:
        InputError: the table has too few jobs.
    """
    need = (first or 0) + length * count if first is not None else length + count - 1
    if length < 1 or count < 1 or need > len(jobs) or (first or 0) < 0:
        raise InputError(
            f"{count} windows of {length} jobs from job {0 if first is None else first}",
            where="windows",
            allowed=f"within {len(jobs)} jobs",
        )
    if first is None:
        starts = np.sort(np.random.default_rng(seed).choice(len(jobs) - length + 1, count, replace=False))
    else:
        starts = first + length * np.arange(count)
    table = grid if callable(grid) else check_grid(grid)
    return [_window_of(jobs.iloc[at : at + length].reset_index(drop=True), table) for at in starts]


def _window_of(jobs: pd.DataFrame, grid: pd.DataFrame | GridMaker) -> WindowTables:
    begin, last = jobs["submit_time"].iloc[0], jobs["submit_time"].iloc[-1]
    if callable(grid):
        return WindowTables(begin, jobs, grid(begin - pd.Timedelta(seconds=DAY_S), begin), int((last - begin).total_seconds()) + 1)
    before = grid["time"][grid["time"] <= begin]
    start = before.max() if len(before) else begin
    length_s = int((last - start).total_seconds()) + 1
    window = window_at(jobs, grid, start, length_s)
    return WindowTables(start, jobs, window.grid, length_s)


def constant_grid(
    sites: Sequence[str],
    start: pd.Timestamp,
    end: pd.Timestamp,
    *,
    price_usd_per_kwh: float = 0.10,
    carbon_g_per_kwh: float = 400.0,
    step_s: int = 3600,
) -> pd.DataFrame:
    """A canonical grid table that never changes: 0.10 USD/kWh and 400 gCO2/kWh unless said otherwise, no renewables, 15 °C."""
    times = pd.date_range(start.floor("s"), end, freq=f"{step_s}s")
    one = pd.DataFrame({"time": times, "price_usd_per_kwh": price_usd_per_kwh, "carbon_g_per_kwh": carbon_g_per_kwh})
    one = one.assign(renewable_fraction=0.0, temperature_c=15.0)
    return pd.concat([one.assign(site=site) for site in sites], ignore_index=True)


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
    if start is None:  # the step that holds the first submission, so that no job is before every window
        first = times[times <= first].max() if (times <= first).any() else first
    begin, stop = max(start or first, times.min()), min(end or last, grid_end)
    if begin >= stop:
        spans = f"jobs from {first.isoformat()} to {last.isoformat()}, grid from {times.min().isoformat()} to {grid_end.isoformat()}"
        raise InputError(f"{spans}: they do not meet", where="windows", remedy="give tables of the same time")
    return begin, stop

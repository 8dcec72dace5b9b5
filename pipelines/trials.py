"""What an evaluation runs on: a cluster and, for each seed, its windows, from job and grid files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from omegaconf import DictConfig

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from envs.job_table import utc_times
from envs.power.curves import read_curves
from envs.state import DISCIPLINES, Policy, PolicySettings
from envs.windows import (
    DAY_S,
    TAIL_S,
    GridMaker,
    WindowTables,
    check_grid,
    constant_grid,
    cut_by_jobs,
    cut_windows,
    prepare_jobs,
    window_at,
)
from envs.world import LARGEST_GPUS_PER_NODE
from pipelines.cli import CONF_DIR
from pipelines.spans import SPLIT, part_span
from pipelines.stress import Stressed, stress_of
from telemetry.errors import InputError
from telemetry.quality import FLAWS
from telemetry.readers import READERS, ReadContext, ReadResult

DEFAULT_WINDOWS = 5
DEFAULT_WINDOW_HOURS = 48.0
DAY = pd.Timedelta(days=1)
ARCHIVE_ORDERS = ("fcfs", "sjf", "f1", "wfp3", "unicep", "priority")


@dataclass(frozen=True)
class Trial:
    """A cluster, its windows by seed, and what to tell about them.

    Attributes:
        reported: the same windows with the grid that policies see, where that is not the true one; else None.
        stress: options and times of each stress.
    """

    cluster: ClusterSpec
    windows: dict[int, list[WindowTables]]
    description: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    reported: dict[int, list[WindowTables]] | None = None
    stress: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Tables:
    """What windows of one seed are cut from; ``grid`` may be a maker of constant ones when no stress needs a table."""

    jobs: pd.DataFrame
    grid: pd.DataFrame | GridMaker
    reported: pd.DataFrame | None = None
    outages: pd.DataFrame | None = None

    def grid_around(self) -> pd.DataFrame:
        """The grid, a constant one from a day before the first submission to a day after the last."""
        submit = self.jobs["submit_time"]
        return self.grid(submit.min().floor("h") - DAY, submit.max() + DAY) if callable(self.grid) else self.grid

    def befall(self, windows: list[WindowTables]) -> list[WindowTables]:
        """The windows with the outages of a stress."""
        return windows if self.outages is None else [replace(window, outages=self.outages) for window in windows]


def read_jobs(path: str, notes: list[str]) -> pd.DataFrame:
    """A canonical jobs table (CSV or Parquet); what the reader dropped or repaired goes to ``notes``."""
    return _tell(READERS["jobs_table"].read(Path(path), ReadContext(source="jobs")), "jobs", notes)


def read_grid(path: str, notes: list[str]) -> pd.DataFrame:
    """A canonical grid table. CSV goes through the grid reader, which fills short gaps and says so; a Parquet table has to be whole."""
    if not path.endswith(".parquet"):
        return _tell(READERS["grid"].read(Path(path), ReadContext(source="grid")), "grid", notes)
    try:
        return check_grid(pd.read_parquet(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=path, remedy="is it a whole Parquet file?") from error


def read_archive(path: str, notes: list[str]) -> tuple[pd.DataFrame, int]:
    """Jobs of an SWF file as gangs of single processors, and the header's ``MaxProcs`` (0 when it has none).

    Job numbers are padded with zeros, so that jobs of one second keep the order of the file.
    """
    jobs = _tell(READERS["swf"].read(Path(path), ReadContext(source="jobs")), "jobs", notes)
    processors = int(jobs.attrs.get("max_procs", 0))
    width = jobs["job_id"].str.len().max()
    each = jobs["gpus"] * jobs["workers"]
    return jobs.assign(job_id=jobs["job_id"].str.zfill(width), gpus=1.0, workers=each, workload_class="training"), processors


def _tell(result: ReadResult, table: str, notes: list[str]) -> pd.DataFrame:
    notes += [f"{table}: {count} x {flaw} ({FLAWS[flaw]})" for flaw, count in result.quality.total().items()]
    notes += [f"{table}: {what}: {count}" for told in result.quality.notes.values() for what, count in sorted(told.items())]
    return result.tables[table]


def swf_cluster(processors: int) -> ClusterSpec:
    """One pool of ``processors`` GPUs at the reference speed: a processor of the archive is a GPU here.

    Jobs are gangs of single processors, so how processors are grouped into nodes does not matter; few large nodes are simulated faster.
    """
    per_node = max(size for size in range(1, LARGEST_GPUS_PER_NODE + 1) if processors % size == 0)
    pool = PoolSpec("processors", "archive", "V100", nodes=processors // per_node, gpus_per_node=per_node)
    return ClusterSpec(f"{processors} processors", (SiteSpec("archive"),), (pool,), level_fractions=(1.0,))


def queue_policy(order: str, discipline: str) -> dict[str, Policy]:
    """The queue order itself as the one policy: first in the order that fits starts at once, at full power; nothing sleeps.

    Sources: F1 of Carastan-Santos and de Camargo (2017), WFP3 and UNICEP of Tang, Lan, Desai and Buettner (2009).
    """
    if order not in ARCHIVE_ORDERS:
        raise InputError(f"queue.order={order}", where="queue.order", allowed=", ".join(ARCHIVE_ORDERS))
    if discipline not in DISCIPLINES:
        raise InputError(f"queue.discipline={discipline}", where="queue.discipline", allowed=", ".join(DISCIPLINES))
    settings = PolicySettings(node_rule="best_fit", sleep_after_s=-1, discipline=discipline, queue_order=order)
    name = f"{order}_{discipline}"
    return {name: replace(JUDGES["fifo"], name=name, settings=settings)}


def swf_trial(cfg: DictConfig, seeds: tuple[int, ...]) -> Trial:
    """An archive file on its own processors, on a constant grid unless one is given."""
    if cfg.get("part") is not None:
        raise InputError(
            f"part={cfg.part}", where="part", allowed="canonical jobs in windows of time", remedy="give policies= and cluster="
        )
    notes: list[str] = []
    jobs, processors = read_archive(str(cfg.jobs), notes)
    processors = whole_number(cfg.cluster.processors, "cluster.processors", processors)
    if processors < 1:
        raise InputError("no MaxProcs in the header", where=str(cfg.jobs), remedy="give cluster.processors=N")
    cluster = swf_cluster(processors)
    tables, stress = _tables(cfg, cluster, jobs, notes, seeds, step_s=DAY_S)
    for one in tables.values():
        one.jobs["archive_submit_s"] = (one.jobs["submit_time"] - one.jobs["submit_time"].min()).dt.total_seconds()
    return _trial_by_jobs(cfg, cluster, tables, notes, stress, count=whole_number(cfg.windows, "windows", 1))


def table_trial(cfg: DictConfig, seeds: tuple[int, ...]) -> Trial:
    """Any jobs on any cluster and grid, in windows of time (of jobs with ``trace.length``)."""
    notes: list[str] = []
    cluster, jobs = _cluster_and_jobs(cfg, notes)
    tables, stress = _tables(cfg, cluster, jobs, notes, seeds, step_s=DAY_S if by_jobs(cfg) else 3600)
    count = whole_number(cfg.windows, "windows", DEFAULT_WINDOWS)
    if by_jobs(cfg):
        if cfg.get("part") is not None:
            raise InputError(f"part={cfg.part} with windows of jobs", where="part", remedy="leave out trace.start and trace.length")
        return _trial_by_jobs(cfg, cluster, tables, notes, stress, count)
    grids = {seed: one.grid_around() for seed, one in tables.items()}
    first = next(iter(tables))
    start, end = part_span(jobs, cfg.get("part"), tuple(cfg.get("split") or SPLIT))  # of the jobs as they are: no stress moves it
    hours = _window_hours(cfg, _between(tables[first].jobs, start, end), grids[first], count, notes)

    def cut(seed: int, grid: pd.DataFrame) -> list[WindowTables]:
        return tables[seed].befall(cut_windows(tables[seed].jobs, grid, round(hours * 3600), count, seed, start, end))

    windows = {seed: cut(seed, grid) for seed, grid in grids.items()}
    reported = {seed: cut(seed, one.reported) for seed, one in tables.items() if one.reported is not None}
    description = _description(cfg, cluster, tables[first].jobs, count, f"{hours:g} h each")
    if start is not None and end is not None:
        description["part"] = f"{cfg.part}, {start.isoformat()} to {end.isoformat()}"
    return Trial(cluster, windows, description, notes, reported or None, stress)


def _between(jobs: pd.DataFrame, start: pd.Timestamp | None, end: pd.Timestamp | None) -> pd.DataFrame:
    """Jobs submitted from ``start`` and before ``end``; all without limits."""
    if start is None or end is None:
        return jobs
    inside = jobs[(jobs["submit_time"] >= start) & (jobs["submit_time"] < end)]
    if inside.empty:
        raise InputError(f"no job from {start.isoformat()} to {end.isoformat()}", where="part", remedy="another split=, or more jobs")
    return inside


def span_trial(cfg: DictConfig, seed: int, start: pd.Timestamp | None) -> Trial:
    """One window: from ``start`` (its grid step) for ``window_hours``; without them from the first submission to the last.

    Raises:
        InputError: no job is submitted in it, or the grid does not cover its start.
    """
    if cfg.get("part") is not None:
        raise InputError(f"part={cfg.part}", where="part", allowed="windows by number: windows=N window=I")
    notes: list[str] = []
    cluster, jobs = _cluster_and_jobs(cfg, notes)
    tables, stress = _tables(cfg, cluster, jobs, notes, (seed,), step_s=3600)
    one = tables[seed]
    prepared, grid = one.jobs, check_grid(one.grid_around())
    times = pd.DatetimeIndex(grid["time"].unique())
    grid_end = times[-1] + ((times[1] - times[0]) if len(times) > 1 else pd.Timedelta(hours=1))
    first, last = prepared["submit_time"].min(), prepared["submit_time"].max() + pd.Timedelta(seconds=1)
    wanted = max(first, times[0]) if start is None else start
    begin = times[times <= wanted].max() if times[0] <= wanted < grid_end else wanted
    end = min(last, grid_end) if cfg.window_hours is None else begin + pd.Timedelta(hours=float(cfg.window_hours))
    inside = prepared["submit_time"].between(begin, end, inclusive="left")
    if not inside.any() or not times[0] <= begin < grid_end:
        raise InputError(
            f"no job and grid step from {begin.isoformat()} to {end.isoformat()}",
            where="window",
            allowed=f"jobs from {first.isoformat()} to {last.isoformat()}, grid from {times[0].isoformat()} to {grid_end.isoformat()}",
            remedy="another window= or window_hours=, or a grid of the same time",
        )
    left = int((~inside).sum())
    if left:
        notes.append(f"{left} jobs submitted outside the window left out")
    length_s = int((end - begin).total_seconds())
    windows = one.befall([window_at(prepared, grid, begin, length_s)])
    description = _description(cfg, cluster, prepared, 1, f"{length_s / 3600:g} h")
    return Trial(cluster, {seed: windows}, description, notes, None, stress)


def by_jobs(cfg: DictConfig) -> bool:
    """Whether windows are counted in jobs."""
    return cfg.trace.length is not None or cfg.trace.start is not None


def queue_runs_itself(cfg: DictConfig, named: bool) -> bool:
    """Whether the jobs are an archive whose queue order is the policy, on its own processors.

    Args:
        named: the command line names a policy.

    Raises:
        InputError: no jobs, or queue options where they mean nothing.
    """
    if not cfg.jobs:
        raise InputError("no jobs given", where="jobs", allowed="jobs=FILE.csv, FILE.parquet or FILE.swf", remedy="see --help")
    archive = is_archive(str(cfg.jobs)) and not named and cfg.cluster.source is None
    if not archive and (cfg.queue.order or cfg.queue.discipline):
        raise InputError(
            "queue.* given", where="queue", allowed="an SWF file with neither a policy nor cluster=", remedy="name a judge instead"
        )
    return archive


def _cluster_and_jobs(cfg: DictConfig, notes: list[str]) -> tuple[ClusterSpec, pd.DataFrame]:
    """The cluster, and the jobs as they are read."""
    if cfg.cluster.processors is not None:
        cluster = swf_cluster(whole_number(cfg.cluster.processors, "cluster.processors"))
    else:
        cluster = load_cluster(str(cfg.cluster.source or "sample"), CONF_DIR)
    if cfg.cluster.curves:
        cluster = replace(cluster, curves=read_curves(str(cfg.cluster.curves)))
    return cluster, read_archive(str(cfg.jobs), notes)[0] if is_archive(str(cfg.jobs)) else read_jobs(str(cfg.jobs), notes)


def _tables(
    cfg: DictConfig, cluster: ClusterSpec, jobs: pd.DataFrame, notes: list[str], seeds: tuple[int, ...], step_s: int
) -> tuple[dict[int, _Tables], dict[str, Any]]:
    """Prepared jobs and grid of each seed, under the stress that the configuration names, and what to state about it."""
    jobs = _finished(jobs, notes)
    stress = stress_of(cfg.stress)
    grid: pd.DataFrame | GridMaker = _constant(cfg, cluster, step_s)
    if (given := _grid(cfg, notes)) is not None:
        grid = given
    if not stress:
        return dict.fromkeys(seeds, _Tables(prepare_jobs(jobs, cluster), grid)), {}
    jobs = jobs.assign(submit_time=utc_times(jobs["submit_time"], "submit_time"))
    if stress.needs_grid and callable(grid):
        tail = pd.Timedelta(seconds=TAIL_S)
        grid = _constant(cfg, cluster, 3600)(jobs["submit_time"].min().floor("h") - DAY, jobs["submit_time"].max() + tail)
    table = None if callable(grid) else check_grid(grid)
    found: dict[int, Stressed] = {seed: stress.apply(jobs, table, cluster, seed) for seed in seeds}
    notes += stress.notes(found)
    tables = {
        seed: _Tables(prepare_jobs(one.jobs, cluster), one.grid if one.grid is not None else grid, one.reported, one.outages)
        for seed, one in found.items()
    }
    return tables, stress.told(found)


def _trial_by_jobs(
    cfg: DictConfig, cluster: ClusterSpec, tables: dict[int, _Tables], notes: list[str], stress: dict[str, Any], count: int
) -> Trial:
    """Windows of ``trace.length`` jobs from job ``trace.start`` on; without a length they share what there is, from the first job."""
    random_starts = cfg.trace.start is None and cfg.trace.length is not None
    first = None if random_starts else whole_number(cfg.trace.start, "trace.start", 0, low=0)
    shortest = min(len(one.jobs) for one in tables.values())
    length = whole_number(cfg.trace.length, "trace.length", (shortest - (first or 0)) // count)
    windows = {seed: one.befall(cut_by_jobs(one.jobs, one.grid, length, count, seed, first)) for seed, one in tables.items()}
    reported = {
        seed: one.befall(cut_by_jobs(one.jobs, one.reported, length, count, seed, first))
        for seed, one in tables.items()
        if one.reported is not None
    }
    description = _description(cfg, cluster, next(iter(tables.values())).jobs, count, f"{length} jobs each")
    return Trial(cluster, windows, description, notes, reported or None, stress)


def whole_number(value: Any, where: str, default: int | None = None, *, low: int = 1) -> int:
    """``value`` when it is a whole number from ``low``; ``default`` for None."""
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InputError(f"{where}={value}", where=where, allowed=f"a whole number from {low}")
    return value


def is_archive(path: str) -> bool:
    """Whether a path names a workload archive file."""
    return path.endswith((".swf", ".swf.gz"))


def _finished(jobs: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Jobs that had ended when the table was written; the others have no duration and are left out, counted."""
    if "duration_s" in jobs:
        unfinished = jobs["duration_s"].isna()
        if unfinished.any():
            notes.append(f"{int(unfinished.sum())} jobs without a duration (not ended) left out")
            jobs = jobs[~unfinished]
    if jobs.empty:
        raise InputError("no jobs", where="jobs table", allowed="at least one job that has ended")
    return jobs


def _grid(cfg: DictConfig, notes: list[str]) -> pd.DataFrame | None:
    """The grid table given, or None and a note that it is constant."""
    if cfg.grid.source:
        return read_grid(str(cfg.grid.source), notes)
    notes.append(f"no grid given: constant {cfg.grid.price_usd_per_kwh:g} USD/kWh and {cfg.grid.carbon_g_per_kwh:g} gCO2/kWh")
    return None


def _constant(cfg: DictConfig, cluster: ClusterSpec, step_s: int) -> GridMaker:
    values = {key: float(cfg.grid[key]) for key in ("price_usd_per_kwh", "carbon_g_per_kwh")}
    return partial(constant_grid, [site.name for site in cluster.sites], step_s=step_s, **values)


def _window_hours(cfg: DictConfig, jobs: pd.DataFrame, grid: pd.DataFrame, count: int, notes: list[str]) -> float:
    """The length asked for; else 48 h, or what a short table allows for ``count`` distinct starts."""
    if cfg.window_hours is not None:
        return float(cfg.window_hours)
    times = pd.DatetimeIndex(grid["time"].unique()).sort_values()
    step = times[1] - times[0] if len(times) > 1 else pd.Timedelta(hours=1)
    begin = max(jobs["submit_time"].min().floor(step), times[0])
    end = min(jobs["submit_time"].max() + pd.Timedelta(seconds=1), times[-1] + step)
    room = (end - begin - (count - 1) * step) / pd.Timedelta(hours=1)
    if room >= DEFAULT_WINDOW_HOURS or room <= 0:
        return DEFAULT_WINDOW_HOURS
    notes.append(f"jobs span only {(end - begin) / pd.Timedelta(hours=1):.1f} h: windows of {room:.2f} h that overlap")
    return room


def _description(cfg: DictConfig, cluster: ClusterSpec, jobs: pd.DataFrame, count: int, length: str) -> dict[str, Any]:
    return {
        "jobs": str(cfg.jobs),
        "jobs_in_table": len(jobs),
        "grid": str(cfg.grid.source or "constant"),
        "cluster": cluster.name,
        "gpus": cluster.total_gpus,
        "windows": count,
        "window_length": length,
    }

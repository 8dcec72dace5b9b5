"""What was observed since the champion was trained: a grid that new rows are merged into, in whatever order they come."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow.parquet import read_schema

from models.series import validate_series
from telemetry.errors import InputError
from telemetry.lake import Lake
from telemetry.series import METRICS_NEEDED, SeriesConfig, cut_series, targets_of

NOTHING_NS = int(np.iinfo(np.int64).max)  # no log is whole after it


@dataclass(frozen=True)
class Merged:
    """What a merge found; times in ns since the epoch."""

    ids: np.ndarray  # [n] of the rows that were not known before
    times_ns: np.ndarray  # [n]
    values: np.ndarray  # [n]
    late: int  # of them, rows before the newest that was known of their series
    revised: int  # known rows that have another value now
    off_grid: int  # rows between the grid points of their series: left out
    too_old: int  # rows before the grid begins: left out

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class ObservationLog:
    """``values[i, k]`` is series ``ids[i]`` at ``origin_ns + phase_ns[i] + k * step_ns``; NaN where nothing was observed.

    Whatever was observed after ``whole_after_ns`` is here; of earlier times only some may be.
    """

    step_ns: int
    origin_ns: int = 0
    whole_after_ns: int = NOTHING_NS
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.str_))  # [N]
    phase_ns: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # [N], below one step
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # [N, T]

    @classmethod
    def load(cls, path: Path, step_ns: int) -> ObservationLog:
        """Read what ``save`` wrote.

        Raises:
            InputError: missing, damaged, or of another step.
        """
        try:
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
                times = (int(stored[name]) for name in ("step_ns", "origin_ns", "whole_after_ns"))
                log = cls(*times, stored["ids"], stored["phase_ns"], stored["values"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"cannot be read ({error})", where=str(path)) from error
        if log.step_ns != step_ns or log.values.shape[:1] != log.ids.shape:
            raise InputError(f"holds steps of {log.step_ns} ns", where=str(path), allowed=f"{step_ns} ns")
        return log

    def save(self, path: Path) -> None:
        """Write atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        with fresh.open("wb") as handle:
            np.savez(handle, **vars(self))
        os.replace(fresh, path)

    @property
    def newest_ns(self) -> np.ndarray:
        """Time of the last observation of each series ``[N]``; the smallest integer for a series without any."""
        none = np.full(len(self.ids), np.iinfo(np.int64).min)
        if not self.values.size:
            return none
        known = ~np.isnan(self.values)
        last = self.values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
        return np.where(known.any(axis=1), self.origin_ns + self.phase_ns + last * self.step_ns, none)

    def know(self, ids: np.ndarray, phase_ns: np.ndarray) -> None:
        """Take the grids ``phase_ns`` ``[n]`` of ``ids`` ``[n]`` from who forecasts them; rows of another grid are forgotten."""
        rows = self._rows_of(ids, phase_ns)
        moved = rows[self.phase_ns[rows] != phase_ns]
        if len(moved):
            self.values[moved] = np.nan
            self.phase_ns[rows] = phase_ns
            self.whole_after_ns = NOTHING_NS

    def begin(self, since_ns: int, whole_after_ns: int) -> None:
        """Make room from ``since_ns`` on; the next merge brings all that was observed after ``whole_after_ns``."""
        origin_ns = since_ns // self.step_ns * self.step_ns
        if not self.values.shape[1]:
            self.origin_ns = origin_ns
        before = max(0, (self.origin_ns - origin_ns) // self.step_ns)
        self.values = np.pad(self.values, ((0, 0), (before, 0)), constant_values=np.nan)
        self.origin_ns -= before * self.step_ns
        self.whole_after_ns = whole_after_ns

    def merge(self, frame: pd.DataFrame) -> Merged:
        """Put rows ``unique_id, ds, y`` (checked, without NaN) into the grid; the newest value of a point counts."""
        times, y = frame["ds"].to_numpy().astype("datetime64[ns]").astype(np.int64), frame["y"].to_numpy(dtype=np.float64)
        codes, names = pd.factorize(frame["unique_id"].to_numpy())
        first = np.full(len(names), np.iinfo(np.int64).max)
        np.minimum.at(first, codes, times)
        rows = self._rows_of(np.asarray(names, dtype=np.str_), first)[codes]  # [n]
        column, rest = np.divmod(times - self.origin_ns - self.phase_ns[rows], self.step_ns)
        usable = (rest == 0) & (column >= 0)
        counts = {"off_grid": int((rest != 0).sum()), "too_old": int(((rest == 0) & (column < 0)).sum())}
        rows, column, times, y = rows[usable], column[usable], times[usable], y[usable]
        before = self.newest_ns[rows]
        if len(column) and column.max() >= self.values.shape[1]:
            self.values = np.pad(self.values, ((0, 0), (0, int(column.max()) + 1 - self.values.shape[1])), constant_values=np.nan)
        old = self.values[rows, column]
        self.values[rows, column] = y
        new = np.isnan(old)
        late = int((new & (times < before)).sum())
        return Merged(self.ids[rows[new]], times[new], y[new], late, int((~new & (old != y)).sum()), **counts)

    def _rows_of(self, names: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Row of each name ``[names]``; unknown ones get a row, on the grid that their time ``first`` ``[names]`` is on."""
        rows = pd.Index(self.ids).get_indexer(pd.Index(names))
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            rows[unknown] = len(self.ids) + np.arange(len(unknown))
            self.ids = np.concatenate([self.ids, names[unknown]])
            self.phase_ns = np.concatenate([self.phase_ns, first[unknown] % self.step_ns])
            self.values = np.pad(self.values, ((0, len(unknown)), (0, 0)), constant_values=np.nan)
        return rows

    def trim(self, steps: int) -> None:
        """Keep the last ``steps`` grid points."""
        cut = max(0, self.values.shape[1] - steps)
        self.origin_ns, self.values = self.origin_ns + cut * self.step_ns, self.values[:, cut:].copy()
        if cut:
            self.whole_after_ns = max(self.whole_after_ns, self.origin_ns - 1)

    def later_than(self, ends_ns: dict[str, int]) -> pd.DataFrame:
        """Observations after the end of each series (all of a series that has none): what ``Forecaster.update`` wants."""
        ends = np.array([ends_ns.get(uid, np.iinfo(np.int64).min) for uid in self.ids.tolist()], dtype=np.int64)
        times = (self.origin_ns + self.phase_ns)[:, None] + np.arange(self.values.shape[1], dtype=np.int64) * self.step_ns  # [N, T]
        rows, columns = np.nonzero(~np.isnan(self.values) & (times > ends[:, None]))
        uid, ds = self.ids.astype(object)[rows], times[rows, columns].astype("datetime64[ns]")
        return pd.DataFrame({"unique_id": uid, "ds": ds, "y": self.values[rows, columns]})


def from_lake(root: Path | str, target: str, freq: str, since: pd.Timestamp, max_fill_steps: int) -> pd.DataFrame:
    """Series of a target cut from the lake's newest samples (all its jobs: one may run for weeks), from ``since`` on (UTC).

    Raises:
        InputError: the lake never held anything of the target, or cannot be read.
    """
    lake, metrics = Lake(root), [METRICS_NEEDED[name] for name in targets_of([target]) if name in METRICS_NEEDED]
    samples = lake.table("samples", start=since)
    samples = samples[samples["metric"].isin(metrics)]
    jobs = lake.table("jobs") if target == "workload" else None
    if samples.empty and (jobs is None or jobs.empty) and lake.rows()["samples"]:
        return _no_rows()
    frame = cut_series([target], samples, jobs, SeriesConfig(freq=freq, max_fill_steps=max_fill_steps)).frame
    return frame[frame["ds"] > since]


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame({"unique_id": pd.Series(dtype=object), "ds": pd.Series(dtype="datetime64[ns]"), "y": pd.Series(dtype=float)})


def from_file(file: Path, since: pd.Timestamp) -> pd.DataFrame:
    """Rows of a Parquet or CSV file (CSV also gzipped) from ``since`` on (UTC), checked.

    Raises:
        InputError: no such file, another format, not readable, or a column that is missing or wrong.
    """
    if not file.is_file():
        raise InputError("no such file", where=str(file), remedy="pass series=FILE.parquet or series=FILE.csv")
    try:
        frame = _read(file, since)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=str(file), remedy="check that the file is whole") from error
    if frame.empty:
        return _no_rows()
    # Each series may have its own grid, which the log checks: here every nanosecond is on it.
    table, _ = validate_series(frame, "1ns", where=str(file))
    return table[table["ds"] > since]


def _read(file: Path, since: pd.Timestamp) -> pd.DataFrame:
    if file.suffix != ".parquet":
        return pd.read_csv(file, dtype={"unique_id": str})
    schema = read_schema(file)
    kind = schema.field("ds").type if "ds" in schema.names else pa.null()
    if not pa.types.is_timestamp(kind):
        return pd.read_parquet(file)
    in_unit = since.to_datetime64().astype(f"datetime64[{kind.unit}]")  # rounded down; a zone is one of display, the numbers are UTC
    return pd.read_parquet(file, filters=[("ds", ">", pa.scalar(int(in_unit.astype(np.int64)), kind))])

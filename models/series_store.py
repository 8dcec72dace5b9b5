"""Many series in one flat array, read in batches: what a backtest of ten thousand series walks over.

Rows may come in any order and in any number of batches. A first pass over them learns which series there are and when each begins and ends;
a second one writes every value to its place on the grid. Neither sorts, and memory beyond one batch is that of the values, which may live
in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd

from models.series import REQUIRED_COLUMNS, Panel, SeriesReport, concat_frames, family_of, freq_step_ns, numbers, utc_naive
from telemetry.errors import InputError

BATCH_ROWS = 1_000_000
SPARSE_POINTS = 20_000_000  # a grid of more points than this has to hold at least one row per SPARSE_RATIO of them
SPARSE_RATIO = 16
FREQ_SERIES = 1_000
LARGEST = 1e100  # squares of larger values overflow

Batches = Callable[[], Iterator[pd.DataFrame]]


@dataclass(frozen=True)
class SeriesStore:
    """Series on their grids: ``values[begins[i] + k]`` is series ``ids[i]`` at ``starts_ns[i] + k * step_ns``; NaN is a gap.

    Every series begins and ends with an observation; ids are sorted. ``covariates`` are further numeric columns on the same grids, known at
    their time; ``static`` text columns with one value per series; ``left_out`` says why a column is in neither.
    """

    step_ns: int
    ids: list[str]
    starts_ns: np.ndarray  # [N]
    begins: np.ndarray  # [N + 1]
    values: np.ndarray  # [G]
    report: SeriesReport
    covariates: dict[str, np.ndarray] = field(default_factory=dict)  # [G] each
    static: dict[str, list[str]] = field(default_factory=dict)  # [N] each
    left_out: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ends_ns(self) -> np.ndarray:
        """Time of the last observation of each series ``[N]``."""
        return self.starts_ns + (np.diff(self.begins) - 1) * self.step_ns

    def panel(self, first: int = 0, last: int | None = None) -> Panel:
        """Whole history of series ``first`` to ``last`` (exclusive), without a copy."""
        return self.select(range(first, len(self) if last is None else last))

    def select(self, chosen: Iterable[int]) -> Panel:
        """Whole history of the series at ``chosen``, without a copy."""
        out = Panel(self.step_ns)
        for i in chosen:
            own = slice(self.begins[i], self.begins[i + 1])
            labels = [self.static[name][i] for name in self.static]
            out.ids.append(self.ids[i])
            out.starts_ns.append(int(self.starts_ns[i]))
            out.values.append(self.values[own])
            out.families.append("/".join([family_of(self.ids[i]), *labels]).strip("/"))
            out.covariates.append({name: column[own] for name, column in self.covariates.items()})
        return out

    def to_frame(self) -> pd.DataFrame:
        """Long frame of the observations."""
        return self.panel().to_frame()


def known_before(panel: Panel, cuts: np.ndarray) -> Panel:
    """The first ``cuts[i]`` grid points of each series, ending with an observation; series without any are left out."""
    return known_between(panel, np.zeros(len(panel), dtype=np.int64), cuts)


def known_between(panel: Panel, older: np.ndarray, newer: np.ndarray) -> Panel:
    """Grid points ``older[i]`` to ``newer[i]`` (exclusive), beginning and ending with an observation; series without any are left out."""
    begins = np.maximum(older, 0)
    ends = [_observed_end(values, begin, end) for values, begin, end in zip(panel.values, begins.tolist(), newer.tolist(), strict=True)]
    return panel.between(begins, ends)


def _observed_end(values: np.ndarray, begin: int, end: int) -> int:
    """Place after the last observation of ``values[begin:end]``; ``begin`` without any."""
    end = min(max(end, begin), len(values))
    while end > begin and np.isnan(values[end - 1]):
        end -= 1
    return end


def frame_batches(frame: pd.DataFrame, rows: int = BATCH_ROWS) -> Batches:
    """A frame as batches."""
    return lambda: (frame.iloc[first : first + rows] for first in range(0, max(len(frame), 1), rows))


def leading_series(batches: Batches, *, where: str = "series") -> pd.DataFrame:
    """``unique_id, ds`` of the first ``FREQ_SERIES`` series, for finding the frequency."""
    seen: set[str] = set()
    parts = []
    for batch in batches():
        rows = _clean(batch, where)
        seen |= set(rows.names[: max(FREQ_SERIES - len(seen), 0)])
        wanted = np.isin(rows.codes, [code for code, name in enumerate(rows.names) if name in seen])
        ids = np.array(rows.names, dtype=object)[rows.codes[wanted]]
        parts.append(pd.DataFrame({"unique_id": ids, "ds": rows.ns[wanted].astype("datetime64[ns]")}))
    return concat_frames(parts)


def read_store(batches: Batches, freq: str, *, where: str = "series", folder: Path | None = None) -> SeriesStore:
    """Check rows and put them on their grids.

    Args:
        batches: gives the rows anew each time it is called, as frames with at least ``unique_id, ds, y``.
        freq: step of the grid.
        where: name of the rows for error messages.
        folder: where to keep the values in unnamed files; None keeps them in memory.

    Raises:
        InputError: missing column, unreadable time or number, infinite value, contradicting duplicate, timestamp off the grid, a grid that
            is nearly empty, no rows.
    """
    step_ns = freq_step_ns(freq)
    survey = _Survey(where)
    for batch in batches():
        survey.see(batch)
    if not survey.rows:
        raise InputError("no rows", where=where, remedy="give at least one observation")
    if survey.missing == survey.rows:
        raise InputError("every y is missing", where=where)
    grid = _Grid(survey, step_ns, freq, where, folder)
    for batch in batches():
        grid.write(_clean(batch, where))
    return grid.store()


@dataclass(frozen=True)
class _Rows:
    """One batch, checked: names of its series, and per row the number of the name, the time and the value."""

    names: list[str]
    codes: np.ndarray
    ns: np.ndarray
    y: np.ndarray
    others: pd.DataFrame


def _clean(batch: pd.DataFrame, where: str) -> _Rows:
    missing = [column for column in REQUIRED_COLUMNS if column not in batch.columns]
    if missing:
        raise InputError(
            f"missing column(s) {', '.join(missing)}; found {', '.join(map(str, batch.columns))}",
            where=where,
            allowed=", ".join(REQUIRED_COLUMNS),
            remedy="rename or add the column",
        )
    codes, names = pd.factorize(batch["unique_id"])
    if (codes < 0).any():
        raise InputError(f"{int((codes < 0).sum())} row(s) without a unique_id", where=where)
    y = numbers(batch["y"], where)
    if len(y) and np.nanmax(np.abs(y), initial=0.0) > LARGEST:
        raise InputError(f"y reaches {np.nanmax(np.abs(y)):g}", where=where, allowed=f"up to {LARGEST:g}", remedy="give y in a larger unit")
    others = batch[[column for column in batch.columns if column not in REQUIRED_COLUMNS]]
    return _Rows([str(name) for name in names], codes, _times_ns(batch["ds"], where), y, others)


def _times_ns(ds: pd.Series, where: str) -> np.ndarray:
    """Times in ns; texts are read once each, since all series tend to share their times."""
    if not len(ds) or pd.api.types.is_numeric_dtype(ds) or pd.api.types.is_datetime64_any_dtype(ds):
        return utc_naive(ds, where).astype(np.int64)
    if ds.isna().any():
        raise InputError(f"{int(ds.isna().sum())} row(s) without a ds", where=where)
    codes, texts = pd.factorize(ds)
    return utc_naive(pd.Series(np.asarray(texts, dtype=object), dtype=object), where).astype(np.int64)[codes]


class _Survey:
    """First pass: which series, their first and last observed time, which columns."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.number: dict[str, int] = {}  # by name, in the order of appearance
        self.first_ns = np.empty(0, dtype=np.int64)
        self.last_ns = np.empty(0, dtype=np.int64)
        self.rows = self.missing = 0
        self.numeric: list[str] = []
        self.texts: dict[str, list[str | None]] = {}
        self.left_out: dict[str, str] = {}

    def numbers_of(self, names: list[str]) -> np.ndarray:
        """Numbers of series, new ones included."""
        out = np.array([self.number.setdefault(name, len(self.number)) for name in names], dtype=np.int64)
        grown = len(self.number) - len(self.first_ns)
        self.first_ns = np.append(self.first_ns, np.full(grown, np.iinfo(np.int64).max))
        self.last_ns = np.append(self.last_ns, np.full(grown, np.iinfo(np.int64).min))
        return out

    def see(self, batch: pd.DataFrame) -> None:
        rows = _clean(batch, self.where)
        series = self.numbers_of(rows.names)[rows.codes] if rows.names else rows.codes
        known = ~np.isnan(rows.y)
        self.rows += len(known)
        self.missing += int((~known).sum())
        np.minimum.at(self.first_ns, series[known], rows.ns[known])
        np.maximum.at(self.last_ns, series[known], rows.ns[known])
        for column in rows.others.columns:
            self._see_column(str(column), rows.others[column], series)

    def _see_column(self, name: str, column: pd.Series, series: np.ndarray) -> None:
        if name in self.left_out or not column.notna().any():
            return
        if pd.api.types.is_numeric_dtype(column):
            if name in self.texts:
                self.left_out[name] = "numbers and text"
            elif name not in self.numeric:
                self.numeric.append(name)
        elif not (
            isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)
        ):
            self.left_out[name] = "neither number nor text"
        elif name in self.numeric:
            self.left_out[name] = "numbers and text"
        else:
            self._see_text(name, column, series)

    def _see_text(self, name: str, column: pd.Series, series: np.ndarray) -> None:
        values = self.texts.setdefault(name, [])
        values += [None] * (len(self.number) - len(values))
        pairs = pd.DataFrame({"series": series, "value": column.to_numpy(dtype=object)}).dropna().drop_duplicates()
        for number, value in zip(pairs["series"].tolist(), pairs["value"].astype(str).tolist(), strict=True):
            if values[number] not in (None, value):
                self.left_out[name] = "text that changes within a series"
                return
            values[number] = value


class _Grid:
    """Second pass: every value to its place."""

    def __init__(self, survey: _Survey, step_ns: int, freq: str, where: str, folder: Path | None) -> None:
        self.survey, self.step_ns, self.freq, self.where, self.folder = survey, step_ns, freq, where, folder
        names = list(survey.number)
        seen = [k for k in range(len(names)) if survey.first_ns[k] <= survey.last_ns[k]]
        order = np.array(sorted(seen, key=names.__getitem__), dtype=np.int64)
        self.ids = [names[k] for k in order]
        self.order = order
        self.rank = np.full(len(names), -1, dtype=np.int64)  # place in the store by number; -1 without any observation
        self.rank[order] = np.arange(len(order))
        self.starts_ns = survey.first_ns[order]
        lengths = (survey.last_ns[order] - self.starts_ns) // step_ns + 1
        self.begins = np.append(0, np.cumsum(lengths))
        self._check_density(lengths)
        self.values = self._array()
        self.covariates = {name: self._array() for name in survey.numeric if name not in survey.left_out}

    def _check_density(self, lengths: np.ndarray) -> None:
        points, rows = int(self.begins[-1]), self.survey.rows
        if points > SPARSE_POINTS and points > SPARSE_RATIO * rows:
            raise InputError(
                f"{rows} rows over {points} steps of {self.freq}: the longest series spans {int(lengths.max())} steps",
                where=self.where,
                allowed=f"at least one row in {SPARSE_RATIO} steps",
                remedy="pass the frequency that the data has, or resample it",
            )

    def _array(self) -> np.ndarray:
        size = int(self.begins[-1])
        if self.folder is None:
            return np.full(size, np.nan)
        with TemporaryFile(dir=self.folder) as file:  # has no name: it goes when the process goes
            array = np.asarray(np.memmap(file, dtype=np.float64, mode="w+", shape=size))
        array[:] = np.nan
        return array

    def write(self, rows: _Rows) -> None:
        if not len(rows.codes):
            return
        series = self.rank[self.survey.numbers_of(rows.names)][rows.codes]
        known = ~np.isnan(rows.y)
        self._check_on_grid(rows, series, known)
        place, y = self.begins[series[known]] + (rows.ns[known] - self.starts_ns[series[known]]) // self.step_ns, rows.y[known]
        before = self.values[place]
        self.values[place] = y
        clash = (self.values[place] != y) | (np.isfinite(before) & (before != y))
        if clash.any():
            at = np.flatnonzero(known)[np.flatnonzero(clash)[0]]
            raise InputError(
                f"{int(clash.sum())} timestamp(s) with two different values, first {self._named(rows, series, at)}",
                where=self.where,
                remedy="keep one value per unique_id and ds",
            )
        for name, array in self.covariates.items():
            if name in rows.others:
                column = rows.others[name].to_numpy(dtype=np.float64, na_value=np.nan)[known]
                array[place] = np.where(np.isfinite(column), column, np.nan)

    def _check_on_grid(self, rows: _Rows, series: np.ndarray, known: np.ndarray) -> None:
        off = np.flatnonzero(known & ((rows.ns - self.starts_ns[series]) % self.step_ns != 0))
        if off.size:
            raise InputError(
                f"{off.size} timestamp(s) off the {self.freq} grid, first {self._named(rows, series, off[0])}",
                where=self.where,
                allowed=f"timestamps a whole number of {self.freq} after the first of their series",
                remedy="resample to the frequency, or pass the frequency that the data has",
            )

    def _named(self, rows: _Rows, series: np.ndarray, at: int) -> str:
        return f"{self.ids[series[at]]!r} at {pd.Timestamp(int(rows.ns[at]))}"

    def store(self) -> SeriesStore:
        observed = sum(int(np.isfinite(self.values[k : k + BATCH_ROWS]).sum()) for k in range(0, len(self.values), BATCH_ROWS))
        survey = self.survey
        report = SeriesReport(
            rows=observed,
            series=len(self.ids),
            missing_values=survey.missing,
            exact_duplicates=survey.rows - survey.missing - observed,
            gap_rows=len(self.values) - observed,
        )
        static = {}
        for name, values in survey.texts.items():
            if name not in survey.left_out:
                padded = values + [None] * (len(survey.number) - len(values))
                static[name] = [padded[k] or "" for k in self.order]
        return SeriesStore(
            self.step_ns, self.ids, self.starts_ns, self.begins, self.values, report, self.covariates, static, dict(survey.left_out)
        )

"""Series in, checked: long frames become panels on a regular grid, with every gap counted.

A long frame holds ``unique_id, ds, y``. A panel holds the same numbers as one float array per series on the grid
``start + i * step``; a row that is missing (or whose ``y`` is NaN) is NaN there. Further numeric columns are covariates, known at their
``ds`` and not before; further text columns that are constant per series say what kind of series it is; other columns are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from telemetry.errors import InputError
from telemetry.times import utc_times

REQUIRED_COLUMNS = ("unique_id", "ds", "y")
FAMILY = "family"
NS_PER_DAY = 86_400 * 10**9


@dataclass(frozen=True)
class SeriesReport:
    """What validation found: counts only, nothing is repaired silently."""

    rows: int
    series: int
    missing_values: int  # rows whose y is NaN: treated as gaps
    exact_duplicates: int  # rows repeated with the same y: dropped
    gap_rows: int  # grid points between first and last row of a series without a value


def freq_step_ns(freq: str) -> int:
    """Length of one step of ``freq`` in nanoseconds.

    Raises:
        InputError: not a pandas frequency of fixed length.
    """
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
        if isinstance(offset, pd.offsets.Week):  # seven days, on whichever weekday the data has
            offset = offset.n * pd.offsets.Day(7)
        step_ns = int(pd.Timedelta(offset).as_unit("ns").value)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"frequency {freq!r} has no fixed length", where="freq", allowed="a fixed pandas frequency such as 1min, 10min, 1h, 1D, W"
        ) from error
    if step_ns <= 0:
        raise InputError(f"frequency {freq!r} is not positive", where="freq", allowed="1min, 10min, 1h, 1D, ...")
    return step_ns


def default_season_length(freq: str) -> int:
    """Steps in a day for frequencies below a day, else steps in a week; at least 1."""
    step_ns = freq_step_ns(freq)
    period_ns = NS_PER_DAY if step_ns < NS_PER_DAY else 7 * NS_PER_DAY
    return max(1, round(period_ns / step_ns))


def infer_freq(frame: pd.DataFrame) -> str:
    """Most common distance between neighbouring timestamps, as a frequency in seconds (``600s``) or nanoseconds."""
    ordered = frame.sort_values(["unique_id", "ds"])
    steps = ordered.groupby("unique_id")["ds"].diff().dropna()
    steps = steps[steps > pd.Timedelta(0)]
    if steps.empty:
        raise InputError("no series has two timestamps, so its frequency is unknown", where="freq", remedy="pass freq=10min or the like")
    step_ns = int(steps.mode().iloc[0].as_unit("ns").value)
    return f"{step_ns}ns" if step_ns % 10**9 else f"{step_ns // 10**9}s"


def validate_series(frame: pd.DataFrame, freq: str, *, where: str = "series") -> tuple[pd.DataFrame, SeriesReport]:
    """Check and normalise a long frame.

    Args:
        frame: at least ``unique_id, ds, y``; further columns as told at the top of the module.
        freq: step of the grid.
        where: name of the frame for error messages.

    Returns:
        ``unique_id`` (str), ``ds`` (tz-naive UTC ns), ``y`` (float) sorted, without NaN; numeric columns beyond these as float (their NaN
        stay), text columns joined to ``family``; and the counts.

    Raises:
        InputError: missing column, unreadable time or number, infinite value, contradicting duplicate, timestamp off the grid, no rows.
    """
    missing = [column for column in REQUIRED_COLUMNS if column not in frame.columns]
    if missing:
        raise InputError(
            f"missing column(s) {', '.join(missing)}; found {', '.join(map(str, frame.columns))}",
            where=where,
            allowed=", ".join(REQUIRED_COLUMNS),
            remedy="rename or add the column",
        )
    if frame.empty:
        raise InputError("no rows", where=where, remedy="give at least one observation")
    if frame["unique_id"].isna().any():
        raise InputError(f"{int(frame['unique_id'].isna().sum())} row(s) without a unique_id", where=where)
    table = pd.DataFrame(
        {"unique_id": frame["unique_id"].astype(str).to_numpy(), "ds": utc_naive(frame["ds"], where), "y": numbers(frame["y"], where)}
    )
    _add_further_columns(table, frame)
    missing_values = int(table["y"].isna().sum())
    table = table.dropna(subset=["y"])
    if table.empty:
        raise InputError("every y is missing", where=where)
    unique = table.drop_duplicates()
    exact_duplicates = len(table) - len(unique)
    clash = unique.duplicated(["unique_id", "ds"])
    if clash.any():
        row = unique[clash].iloc[0]
        raise InputError(
            f"{int(clash.sum())} timestamp(s) with two different values, first {row.unique_id!r} at {row.ds}",
            where=where,
            remedy="keep one value per unique_id and ds",
        )
    table = unique.sort_values(["unique_id", "ds"], kind="stable", ignore_index=True)
    gap_rows = _check_grid(table, freq_step_ns(freq), freq, where)
    return table, SeriesReport(len(table), table["unique_id"].nunique(), missing_values, exact_duplicates, gap_rows)


def _add_further_columns(table: pd.DataFrame, frame: pd.DataFrame) -> None:
    """Covariates as float columns, and ``family`` from text columns."""
    labels = []
    for name in frame.columns:
        if name in REQUIRED_COLUMNS:
            continue
        column = frame[name]
        if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            table[str(name)] = np.where(np.isfinite(values), values, np.nan)
        elif isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column):
            text = column.astype(str).reset_index(drop=True)
            if text.groupby(table["unique_id"]).nunique().le(1).all():
                labels.append(text)
    if labels:
        table[FAMILY] = ["/".join(parts) for parts in zip(*labels, strict=True)]


def utc_naive(ds: pd.Series, where: str) -> np.ndarray:
    """Times as tz-naive UTC ``datetime64[ns]``; a time without a zone is UTC.

    Raises:
        InputError: numbers, an unreadable text, or none.
    """
    if pd.api.types.is_numeric_dtype(ds):
        raise InputError(f"ds holds numbers (first {ds.iloc[0]!r}), not timestamps", where=where, remedy="convert with pandas.to_datetime")
    if not pd.api.types.is_datetime64_any_dtype(ds):
        times, wrong = utc_times(ds.where(ds.notna(), None).tolist())
        if wrong.any():
            bad = ds.to_numpy()[wrong.to_numpy()][0]
            raise InputError(f"ds cannot be read as time: {bad!r}", where=where, allowed="ISO 8601 timestamps")
        ds = times
    if ds.isna().any():
        raise InputError(f"{int(ds.isna().sum())} row(s) without a ds", where=where)
    if ds.dt.tz is not None:
        ds = ds.dt.tz_convert("UTC").dt.tz_localize(None)
    return ds.to_numpy().astype("datetime64[ns]")


def numbers(column: pd.Series, where: str) -> np.ndarray:
    """A column as floats, NaN where it has no value.

    Raises:
        InputError: not a number, or infinite.
    """
    try:
        values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise InputError(f"{column.name} is not numeric: {error}", where=where) from error
    if np.isinf(values).any():
        found = f"{int(np.isinf(values).sum())} infinite value(s) in {column.name}"
        raise InputError(found, where=where, remedy="drop them or mark them missing")
    return values


def _check_grid(table: pd.DataFrame, step_ns: int, freq: str, where: str) -> int:
    """Number of grid points without a row; raises when a timestamp lies off its series' grid."""
    ns = table["ds"].to_numpy().astype(np.int64)
    first = np.flatnonzero(~table["unique_id"].duplicated().to_numpy())
    lengths = np.diff(np.append(first, len(table)))
    offsets = ns - np.repeat(ns[first], lengths)
    off_grid = np.flatnonzero(offsets % step_ns)
    if off_grid.size:
        row = table.iloc[off_grid[0]]
        raise InputError(
            f"{off_grid.size} timestamp(s) off the {freq} grid, first {row.unique_id!r} at {row.ds}",
            where=where,
            allowed=f"timestamps a whole number of {freq} after the first of their series",
            remedy="resample to the frequency, or pass the frequency that the data has",
        )
    last = np.append(first[1:], len(table)) - 1
    return int((offsets[last] // step_ns + 1 - lengths).sum())


@dataclass
class Panel:
    """Series on their grids: ``values[i][k]`` is series ``ids[i]`` at ``starts_ns[i] + k * step_ns``; NaN is a gap.

    ``covariates[i][name][k]`` is known at the same time as ``values[i][k]``; ``families[i]`` says what kind of series it is.
    """

    step_ns: int
    ids: list[str] = field(default_factory=list)
    starts_ns: list[int] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    covariates: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.families = self.families or [family_of(uid) for uid in self.ids]
        self.covariates = self.covariates or [{} for _ in self.ids]

    @classmethod
    def from_frame(cls, table: pd.DataFrame, step_ns: int) -> Panel:
        """Panel of a frame that ``validate_series`` returned."""
        panel = cls(step_ns)
        ids, ns, y = table["unique_id"].to_numpy(), table["ds"].to_numpy().astype(np.int64), table["y"].to_numpy(dtype=np.float64)
        further = {name: table[name].to_numpy(dtype=np.float64) for name in table.columns if name not in (*REQUIRED_COLUMNS, FAMILY)}
        labels = table[FAMILY].to_numpy() if FAMILY in table.columns else None
        first = np.flatnonzero(~table["unique_id"].duplicated().to_numpy())
        for begin, end in zip(first, np.append(first[1:], len(table)), strict=True):
            place = (ns[begin:end] - ns[begin]) // step_ns
            uid, length = str(ids[begin]), int(place[-1]) + 1
            family = family_of(uid) if labels is None else f"{family_of(uid)}/{labels[begin]}".strip("/")
            covariates = {name: _on_grid(column[begin:end], place, length) for name, column in further.items()}
            panel._add(uid, int(ns[begin]), _on_grid(y[begin:end], place, length), family, covariates)
        return panel

    def _add(self, uid: str, start_ns: int, values: np.ndarray, family: str, covariates: dict[str, np.ndarray]) -> None:
        self.ids.append(uid)
        self.starts_ns.append(start_ns)
        self.values.append(values)
        self.families.append(family)
        self.covariates.append(covariates)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ends_ns(self) -> np.ndarray:
        """Time of the last observation of each series ``[N]``, ns since the epoch."""
        return np.array([s + (len(v) - 1) * self.step_ns for s, v in zip(self.starts_ns, self.values, strict=True)], dtype=np.int64)  # [N]

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """Covariates that any series has, sorted."""
        return tuple(sorted({name for covariates in self.covariates for name in covariates}))

    def covariate(self, name: str, index: int) -> np.ndarray:
        """Covariate of one series on its grid ``[T]``; NaN where it has none."""
        return self.covariates[index].get(name, np.full(len(self.values[index]), np.nan))

    def times_ns(self, index: int) -> np.ndarray:
        """Grid times of one series, ns since the epoch."""
        return self.starts_ns[index] + np.arange(len(self.values[index]), dtype=np.int64) * self.step_ns

    def append(self, newer: Panel, keep: int | None = None) -> Panel:
        """This panel followed by ``newer``, whose series start after the last observation here; new series are added.

        Args:
            newer: later rows on the same grids.
            keep: rows of each series to retain at most; None keeps all.

        Raises:
            InputError: a row is not newer than what is known, or lies off the known grid.
        """
        known = {uid: i for i, uid in enumerate(self.ids)}
        out = self.select(range(len(self)))
        for j, (uid, start_ns, values) in enumerate(zip(newer.ids, newer.starts_ns, newer.values, strict=True)):
            if uid not in known:
                out._add(uid, start_ns, values, newer.families[j], newer.covariates[j])
                continue
            i = known[uid]
            gap, rest = divmod(start_ns - self.starts_ns[i], self.step_ns)
            gap -= len(self.values[i])
            if gap < 0:
                raise InputError(
                    f"series {uid!r} has a row at {pd.Timestamp(start_ns)}, not after the last known "
                    f"{pd.Timestamp(int(self.starts_ns[i] + (len(self.values[i]) - 1) * self.step_ns))}",
                    where="update",
                    remedy="append only rows that are newer than the history",
                )
            if rest:
                raise InputError(f"series {uid!r} continues off its grid at {pd.Timestamp(start_ns)}", where="update")
            between = np.full(gap, np.nan)
            out.values[i] = np.concatenate([self.values[i], between, values])
            out.covariates[i] = {
                name: np.concatenate([self.covariate(name, i), between, newer.covariate(name, j)])
                for name in sorted({*self.covariates[i], *newer.covariates[j]})
            }
        return out if keep is None else out.tail(keep)

    def tail(self, rows: int) -> Panel:
        """The last ``rows`` grid points of each series, beginning with an observation."""
        return self.between(np.array([max(0, len(values) - rows) for values in self.values]), [len(values) for values in self.values])

    def between(self, begins: Sequence[int] | np.ndarray, ends: Sequence[int] | np.ndarray) -> Panel:
        """Rows from ``begins`` up to ``ends`` of each series, moved up to its first observation; a series without one is left out."""
        out = Panel(self.step_ns)
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            known = np.flatnonzero(~np.isnan(self.values[i][begin:end]))
            if not len(known):
                continue
            cut = slice(int(begin) + int(known[0]), int(end))
            covariates = {name: column[cut] for name, column in self.covariates[i].items()}
            start_ns = self.starts_ns[i] + cut.start * self.step_ns
            out._add(self.ids[i], start_ns, self.values[i][cut], self.families[i], covariates)
        return out

    def select(self, indices: Iterable[int]) -> Panel:
        """Panel of the series at ``indices``."""
        chosen = list(indices)
        parts = (self.ids, self.starts_ns, self.values, self.families, self.covariates)
        return Panel(self.step_ns, *([part[i] for i in chosen] for part in parts))  # type: ignore[arg-type]

    def to_frame(self) -> pd.DataFrame:
        """Long frame of the observations with covariates and family; gaps are left out."""
        if not self.ids:
            return pd.DataFrame({"unique_id": pd.Series(dtype=str), "ds": pd.Series(dtype="datetime64[ns]"), "y": pd.Series(dtype=float)})
        lengths = [len(v) for v in self.values]
        columns = {
            "unique_id": np.repeat(np.array(self.ids, dtype=object), lengths),
            "ds": np.concatenate([self.times_ns(i) for i in range(len(self))]).astype("datetime64[ns]"),
            "y": np.concatenate(self.values),
            **{name: np.concatenate([self.covariate(name, i) for i in range(len(self))]) for name in self.covariate_names},
        }
        own = [family.removeprefix(family_of(uid)).strip("/") for uid, family in zip(self.ids, self.families, strict=True)]
        if any(own):
            columns[FAMILY] = np.repeat(np.array(own, dtype=object), lengths)
        return pd.DataFrame(columns)[~np.isnan(columns["y"])].reset_index(drop=True)


def family_of(unique_id: str) -> str:
    """What kind of series an id names: all before its last slash (``power/node/a`` is a ``power/node``)."""
    return unique_id.rpartition("/")[0]


def _on_grid(column: np.ndarray, place: np.ndarray, length: int) -> np.ndarray:
    out = np.full(length, np.nan)
    out[place] = column
    return out


def forward_fill(values: np.ndarray) -> np.ndarray:
    """Gaps ``[T]`` filled with the last known value: causal, unlike interpolation. The first value must be known."""
    known = ~np.isnan(values)
    if known.all():
        return values
    return values[np.maximum.accumulate(np.where(known, np.arange(len(values)), 0))]


def seasonal_scale(values: np.ndarray, season_length: int) -> float:
    """Mean absolute seasonal difference of ``values`` ``[T]`` (the MASE scale, Hyndman and Koehler 2006).

    Falls back to one-step differences when no full season is there, and is NaN when no difference exists.
    """
    for lag in (season_length, 1):
        if len(values) > lag:
            difference = np.abs(values[lag:] - values[:-lag])
            if np.isfinite(difference).any():
                return float(np.nanmean(difference))
    return float("nan")


def concat_frames(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames one under the other, skipping empty ones."""
    kept = [frame for frame in frames if len(frame)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()

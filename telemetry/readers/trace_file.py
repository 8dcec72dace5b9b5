"""What the readers of public traces share: from a table of whatever state to canonical tables, every row accounted for.

A row ends in one of three ways: in a table, under a flaw of the quality report, or in a note that says why it was left out on purpose.
"""

from __future__ import annotations

import csv
import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import FIRST_S, LAST_S, SENTINEL, UNPARSEABLE, ColumnSamples, Labels, parse_column
from telemetry.readers.base import Mapped, ReadContext, ReadResult, check_options, read_bytes
from telemetry.schema import JOB_COLUMNS, JOB_NUMBERS, JOB_TEXT, JOB_TIMES, REFERENCE_COLUMNS, UTC, validate
from telemetry.times import utc_times

PARQUET = b"PAR1"
# What the parsers raise on damaged bytes.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    csv.Error,
    pa.ArrowException,
)
START = "UTC time that stands for second 0: the trace has no calendar"
ZONES = "zone of the source -> site of ours; the other zones are left out. Default: all, each its own site"
STEP = "length of a window of requests, s; 60 by default"
ESCAPES = (("%", "%25"), (",", "%2C"), ("=", "%3D"))


def load_table(path: Path) -> tuple[pd.DataFrame, int]:
    """A Parquet, CSV or JSON-lines table, plain or gzipped (all by content), columns as they come; and its rows of too many fields.

    Raises:
        InputError: missing, empty, cut short, corrupt, or of another format.
    """
    data, where = read_bytes(path), str(path)
    try:
        frame, ragged = _parsed(data, where)
    except InputError:
        raise
    except UNREADABLE as error:
        told = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"cannot be read: {told}", where=where, allowed="a whole Parquet or CSV table") from error
    frame.columns = frame.columns.map(str)
    if not frame.columns.is_unique:
        raise InputError(f"column '{frame.columns[frame.columns.duplicated()][0]}' occurs twice", where=where)
    kinds = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    return frame.astype(dict.fromkeys(kinds, object)), ragged


def _parsed(data: bytes, where: str) -> tuple[pd.DataFrame, int]:
    if data.startswith(PARQUET):
        return pq.read_table(pa.BufferReader(data)).to_pandas(ignore_metadata=True), 0
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"neither Parquet nor UTF-8 text (byte {error.start})", where=where, allowed="a Parquet or CSV table") from error
    if text.startswith("{"):
        return pd.DataFrame([json.loads(line) for line in text.splitlines() if line.strip()]), 0
    try:
        frame = _csv(text)
    except pd.errors.ParserError:
        return _whole_rows(text)
    # pandas takes the first of too many fields for the name of the row.
    return (frame, 0) if isinstance(frame.index, pd.RangeIndex) else _whole_rows(text)


def _csv(text: str) -> pd.DataFrame:
    # round_trip: the nearest double of a text; the parser's default may miss it by one unit.
    return pd.read_csv(io.StringIO(text), float_precision="round_trip", low_memory=False)


def _whole_rows(text: str) -> tuple[pd.DataFrame, int]:
    """The rows of a CSV text that have no more fields than its header, and how many have."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    kept = [row for row in rows if len(row) <= len(rows[0])]
    out = io.StringIO()
    csv.writer(out).writerows(kept)
    return _csv(out.getvalue()), len(rows) - len(kept)


@dataclass
class Trace:
    """A loaded table on its way: what is dropped from ``frame`` is counted."""

    frame: pd.DataFrame
    path: Path
    context: ReadContext
    quality: QualityReport

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def stem(self) -> str:
        """File name without its endings."""
        return self.path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".parquet")

    def has(self, *columns: str) -> bool:
        return all(name in self.frame for name in columns)

    def require(self, *columns: str, also: Sequence[str] = ()) -> None:
        """Refuse a table without these columns or rows; columns that are neither these nor ``also`` are noted as not read."""
        missing = [name for name in columns if name not in self.frame]
        if missing:
            found = ", ".join(map(str, self.frame.columns[:12]))[:160]
            raise InputError(
                f"missing column {', '.join(missing)} (found {found})",
                where=self.where,
                allowed=", ".join(columns),
                remedy="is this the right reader for the file?",
            )
        if self.frame.empty:
            raise InputError("empty export: no rows", where=self.where)
        unread = [name for name in self.frame.columns if name not in {*columns, *also}]
        if unread:
            self.note(f"columns that are not read: {', '.join(unread)[:200]}", len(unread))

    def note(self, what: str, count: int = 1) -> None:
        self.quality.note(self.context.source, what, count)

    def drop(self, rows: pd.Series | np.ndarray, flaw: str = "", note: str = "") -> None:
        """Leave rows out, under a flaw or with a note."""
        rows = np.asarray(rows, dtype=bool)
        if flaw:
            self.quality.add(self.context.source, flaw, int(rows.sum()))
        else:
            self.note(note, int(rows.sum()))
        self.frame = self.frame[~rows].reset_index(drop=True)
        if self.frame.empty:
            raise InputError(f"no row is left (last dropped: {flaw or note})", where=self.where)

    def need_numbers(self, limits: Mapping[str, tuple[float, float]], *, optional: Sequence[str] = ()) -> None:
        """Make columns floats; a row with a number that is missing, unreadable or outside its limits is dropped (``optional``: blank).

        A lower limit below 0 makes -1 a number like any other.
        """
        bad, blank = np.zeros(len(self.frame), dtype=bool), np.zeros(len(self.frame), dtype=bool)
        parsed = {}
        for name, (low, high) in limits.items():
            value, state = parse_column(self.frame[name], low < 0)
            wrong = (state == UNPARSEABLE) | (value < low) | (value > high)
            parsed[name] = np.where(wrong, np.nan, value)
            if name in optional:
                self.quality.add(self.context.source, "unparseable", int(wrong.sum()))
            else:
                bad |= wrong
                blank |= state == SENTINEL
        self.frame = self.frame.assign(**parsed)
        self.drop(bad, "unparseable")
        self.drop((blank & ~bad)[~bad], "sentinel")

    def need_texts(self, *columns: str, blank: bool = False) -> None:
        """Make columns texts; a row without one is dropped, unless ``blank`` is allowed."""
        for name in columns:
            values = self.frame[name].astype(object)
            self.frame[name] = values.where(values.notna(), "").map(lambda v: str(v).strip())
            if not blank:
                self.drop(self.frame[name] == "", "sentinel")

    def option(self, name: str, default: Any = None) -> Any:
        return self.context.options.get(name, default)

    def start(self) -> pd.Timestamp:
        """Option ``start``.

        Raises:
            InputError: not given, or no time.
        """
        given = self.option("start")
        times, _ = utc_times([str(given)])
        start = times.iloc[0]
        if given is None or start is pd.NaT or not FIRST_S <= start.timestamp() < LAST_S:
            raise InputError(
                "option 'start' is missing" if given is None else f"option 'start' is {given!r}",
                where=self.where,
                allowed="a UTC time between 2000 and 2100, as in {start: 2023-01-01}",
                remedy="the trace has no calendar: say what its second 0 stands for",
            )
        return start

    def whole_number(self, name: str, default: int) -> int:
        """Option that is a whole number from 1.

        Raises:
            InputError: it is not.
        """
        value = self.option(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"option '{name}' is {value!r}", where=self.where, allowed="a whole number from 1")
        return value

    def sites(self, column: str) -> Mapping[str, str]:
        """Site of each zone in a text column; the rows of zones that option ``zones`` leaves out are dropped.

        Raises:
            InputError: ``zones`` names a zone that is not there.
        """
        there = sorted(self.frame[column].unique())
        zones = self.option("zones")
        if zones is None:
            return {zone: zone for zone in there}
        if not isinstance(zones, Mapping) or not zones:
            raise InputError(f"option 'zones' is {zones!r}", where=self.where, allowed="{zone: site, ...}")
        unknown = sorted(str(zone) for zone in zones if zone not in there)
        if unknown:
            raise InputError(f"unknown zone '{unknown[0]}'", where=self.where, allowed=", ".join(there[:40]))
        self.drop(~self.frame[column].isin(list(zones)), note="rows of zones that were not asked for")
        return {str(zone): str(site) for zone, site in zones.items()}

    def after(self, start: pd.Timestamp, seconds: pd.Series | np.ndarray) -> pd.Series:
        """Times ``start`` + seconds [N]; NaT where that is no time of this century."""
        value, _ = parse_column(pd.Series(np.asarray(seconds)), True)
        value = np.where((value >= 0) & (value + start.timestamp() < LAST_S), value, np.nan)
        return (start + pd.to_timedelta(pd.Series(value), unit="s")).astype(UTC)

    def iso(self, column: str, *, note_naive: bool = False) -> pd.Series:
        """Times [N] of ISO 8601 texts (no zone = UTC, told as a note); NaT where there is none."""
        values = self.frame[column]
        if pd.api.types.is_datetime64_any_dtype(values):
            times = values.dt.tz_localize("UTC") if values.dt.tz is None else values.dt.tz_convert("UTC")
            return times.astype(UTC)
        times, _ = utc_times(values.astype(object).where(values.notna(), None).tolist())
        if note_naive:
            self.note("times without a zone, read as UTC", len(times))
        return times


def loaded(path: Path, context: ReadContext, quality: QualityReport) -> Trace:
    """The trace in a file; rows of too many fields are counted."""
    frame, ragged = load_table(path)
    quality.add(context.source, "unparseable", ragged)
    return Trace(frame, path, context, quality)


class SampleColumns:
    """Samples of a trace, column by column."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.points = trace, ColumnSamples(trace.context.source)

    def add(self, values: pd.Series, times: pd.Series, keys: pd.Series | str, labels: Callable[[str], Labels]) -> None:
        """A column of values; ``labels`` of each distinct key."""
        if isinstance(keys, str):
            group, names = np.zeros(len(values), dtype=np.int64), [keys]
        else:
            codes, found = pd.factorize(keys, sort=True)
            group, names = np.asarray(codes, dtype=np.int64), [str(name) for name in found]
        self.points.add([labels(name) for name in names], group, times, values)

    def tables(self) -> dict[str, pd.DataFrame]:
        trace = self.trace
        if not len(self.points):
            raise InputError("no value in any column", where=trace.where)
        return {"samples": trace.context.cleaned(self.points, trace.quality, where=trace.where)}


def job_tables(trace: Trace, jobs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Canonical jobs of a frame that holds some of their columns; of two jobs of one id the last is kept."""
    again = jobs["job_id"].duplicated(keep="last")
    trace.quality.add(trace.context.source, "duplicate", int(again.sum()))
    frame = jobs[~again].reindex(columns=list(JOB_COLUMNS))
    for name in JOB_TIMES:
        frame[name] = pd.to_datetime(frame[name], utc=True).astype(UTC)
    for name in JOB_NUMBERS:
        frame[name] = frame[name].astype(float)
    for name in JOB_TEXT:
        values = frame[name].astype(object)
        frame[name] = values.where(values.notna() & (values != ""), None)
    frame["preemptible"] = frame["preemptible"].astype("boolean")
    frame["source"] = trace.context.source
    frame = frame.sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True)
    return {"jobs": validate("jobs", frame, where=trace.where)}


def reference_tables(
    trace: Trace, keys: Sequence[str], quantities: Mapping[str, tuple[str, str]], *, highest: float = math.inf
) -> dict[str, pd.DataFrame]:
    """Published numbers without a time: a row for each value, its item the key columns as ``key=value`` pairs.

    Args:
        keys: columns that say what a row is about; ``%``, ``,`` and ``=`` in them are escaped as in URLs.
        quantities: column -> quantity and unit; values below 0 cannot be.
        highest: values above cannot be either.
    """
    trace.require(*keys, *quantities)
    source, quality = trace.context.source, trace.quality
    trace.need_texts(*keys, blank=True)
    texts = [trace.frame[key] for key in keys]
    for plain, escaped in ESCAPES:
        texts = [text.str.replace(plain, escaped, regex=False) for text in texts]
    items = pd.Series("", index=trace.frame.index, dtype=object)
    for position, (key, text) in enumerate(zip(keys, texts, strict=True)):
        items = items + ("," if position else "") + f"{key}=" + text
    parts = []
    for column, (quantity, unit) in quantities.items():
        value, state = parse_column(trace.frame[column])
        wrong = (state == UNPARSEABLE) | (value < 0) | (value > highest)
        quality.add(source, "unparseable", int(wrong.sum()), quantity)
        quality.add(source, "sentinel", int((state == SENTINEL).sum()), quantity)
        part = pd.DataFrame({"source": source, "item": items, "quantity": quantity, "value": value, "unit": unit})
        parts.append(part[~wrong & (state != SENTINEL)])
    frame = pd.concat(parts, ignore_index=True)
    again = frame.duplicated(["item", "quantity"], keep="last")
    quality.add(source, "duplicate", int(again.sum()))
    frame = frame[~again].sort_values(["item", "quantity"], kind="stable", ignore_index=True)
    if frame.empty:
        raise InputError("no value in any column", where=trace.where)
    return {"reference": validate("reference", frame[list(REFERENCE_COLUMNS)], where=trace.where)}


class TraceReader(ABC):
    """Base of the readers of public traces; a reader says what its tables are.

    Attributes:
        options: what the reader may be told, by name, and what it means.
        companions: those options that name a further file.
        maps: source's name -> canonical name, unit of the source, what the labels hold.
        flaws: known flaws of the source that no check can see.
    """

    name: ClassVar[str]
    reads: ClassVar[str]
    tested: ClassVar[str] = "the whole public file (where it is there) and a small table of its form"
    options: ClassVar[Mapping[str, str]] = {}
    companions: ClassVar[Sequence[str]] = ()
    maps: ClassVar[Sequence[Mapped]] = ()
    flaws: ClassVar[str] = ""

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        """See ``telemetry.readers.base.Reader``."""
        check_options(self, context.options, str(path))
        quality = QualityReport()
        return ReadResult(self.tables(loaded(path, context, quality)), quality)

    @abstractmethod
    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        """Canonical tables of the loaded file."""

    def mapping(self) -> Sequence[Mapped]:
        """Rows of docs/telemetry.md."""
        return self.maps

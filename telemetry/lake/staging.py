"""Tables of a source written as Parquet, one file a day (two where pieces come faster than one core packs them)."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.readers.base import Pieces
from telemetry.schema import COMPACTED, SAMPLE_COLUMNS, TIME_COLUMN, validate
from telemetry.units import SAMPLE_METRICS

DAY_US = 86_400_000_000
SORT: tuple[str, ...] = ("metric", "node", "device", "service", "time")
# Measured by ``python -m benchmarks.lake --levels`` (docs/lake.md): readings repeat, which zstd sees in plain values and no longer in
# split bytes; level 6 saves 6 % for a quarter more time.
LEVEL = 1
LANES = 2
_ENCODINGS = {"time": "DELTA_BINARY_PACKED", "value": "PLAIN"}
UNDATED = "1970-01-01"  # folder of the tables without a time


@dataclass(frozen=True)
class SourceTables:
    """Tables of one source, or of one file of it, to be stored under the digest of what they were made from.

    ``source`` is the name that a later ingest replaces; ``label`` (default: the same) is the one that quality is reported under. ``pieces``
    are read while they are stored; their quality counts, and ``quality`` is then not used.
    """

    source: str
    digest: str
    tables: Mapping[str, pd.DataFrame]
    quality: QualityReport
    label: str = ""
    pieces: Pieces | None = None


@dataclass
class Staged:
    """Files that were written and are not in place yet, by key, and the manifest's entry for them."""

    files: dict[str, Path] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)


def stage(source: SourceTables, folder: Path, version: str) -> Staged:
    """Write one source's files below ``folder``.

    Raises:
        InputError: a table that does not fit its schema, or what a reader of pieces finds.
        OSError: the disk is full or not writable.
    """
    staged, tables = Staged(), {}
    below = f"source={safe_name(source.source)}/version={version}"
    quality = source.quality.merge(())
    rows = {table: len(frame) for table, frame in source.tables.items()}
    for table, frame in sorted(source.tables.items()):
        with DayFiles(folder, f"tables/{table}/{below}", table) as days:
            days.add(_sorted(table, validate(table, frame, where=f"source '{source.source}'")))
            tables[table] = days.close(staged.files)
    if source.pieces is not None:
        tables |= _stage_pieces(source, folder, below, staged.files)
        rows = {table: sum(part["rows"] for part in parts) for table, parts in tables.items()}
        quality = source.pieces.quality
    for table, count in rows.items():
        quality.set_rows(source.label or source.source, table, count)
    staged.entry = {"digest": source.digest, "tables": tables, "quality": quality.to_dict()}
    return staged


def _stage_pieces(source: SourceTables, folder: Path, below: str, files: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Pack pieces in ``LANES`` threads while the next are read; piece n always goes to the same lane, so the files are the same again."""
    assert source.pieces is not None
    lanes: dict[tuple[str, int], DayFiles] = {}
    pools, waiting = [ThreadPoolExecutor(1) for _ in range(LANES)], [_done() for _ in range(LANES)]
    try:
        for number, (table, piece) in enumerate(source.pieces.tables):
            lane = number % LANES
            checked = valid_piece(table, piece, where=f"source '{source.source}'")
            days = lanes.setdefault((table, lane), DayFiles(folder, f"tables/{table}/{below}", table, f"-{lane}"))
            waiting[lane].result()
            waiting[lane] = pools[lane].submit(days.add, checked)
        for future in waiting:
            future.result()
        tables: dict[str, list[dict[str, Any]]] = {}
        for (table, _), days in sorted(lanes.items()):
            tables.setdefault(table, []).extend(days.close(files))
        return {table: sorted(parts, key=lambda part: (part["date"], part["path"])) for table, parts in tables.items()}
    finally:
        for pool in pools:
            pool.shutdown()
        for days in lanes.values():
            days.abandon()


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


class DayFiles:
    """One Parquet file a day of a table, written piece by piece; each piece is a row group of its days' files.

    Use as a context, or call ``close`` (all is written) and ``abandon`` (nothing is).
    """

    def __init__(self, folder: Path, below: str, table: str, suffix: str = "") -> None:
        self._folder, self._below, self._table, self._suffix = folder, below, table, suffix
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._rows: dict[str, int] = {}

    def __enter__(self) -> DayFiles:
        return self

    def __exit__(self, *_error: object) -> None:
        self.abandon()

    def add(self, table: pa.Table) -> None:
        """Rows of any days."""
        if not len(table):
            return
        for day, rows in _by_day(table, TIME_COLUMN.get(self._table)):
            writer = self._writers.get(day)
            if writer is None:
                writer = self._writers[day] = self._open(day, rows.schema)
                self._rows[day] = 0
            writer.write_table(rows.cast(writer.schema) if rows.schema != writer.schema else rows, row_group_size=1 << 20)
            self._rows[day] += len(rows)

    def _key(self, day: str) -> str:
        return f"{self._below}/date={day}/part{self._suffix}.parquet"

    def _open(self, day: str, schema: pa.Schema) -> pq.ParquetWriter:
        path = self._folder / self._key(day)
        path.parent.mkdir(parents=True, exist_ok=True)
        encodings = {k: v for k, v in _ENCODINGS.items() if k in schema.names}
        sampled = "metric" in schema.names
        ordered = self._table == "samples"
        return pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=LEVEL, coerce_timestamps="us",
            use_dictionary=[f.name for f in schema if f.name not in encodings] if sampled else True,
            column_encoding=encodings if sampled else None,
            sorting_columns=[pq.SortingColumn(schema.get_field_index(name)) for name in SORT] if ordered else None,
        )  # fmt: skip

    def close(self, files: dict[str, Path]) -> list[dict[str, Any]]:
        """Finish the files; they are added to ``files``. Returns the manifest's list of them."""
        for writer in self._writers.values():
            writer.close()
        found = [{"path": self._key(day), "date": day, "rows": rows} for day, rows in sorted(self._rows.items())]
        files.update({part["path"]: self._folder / part["path"] for part in found})
        self._writers, self._rows = {}, {}
        return found

    def abandon(self) -> None:
        """Let go of files that are not finished."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def _by_day(table: pa.Table, time: str | None) -> Iterator[tuple[str, pa.Table]]:
    """Days and their rows, which keep their order; without a time, one day for all."""
    if time is None:
        yield UNDATED, table
        return
    day = table.column(time).cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64()).to_numpy() // DAY_US
    first = int(day[0])
    if (day == first).all():
        yield _day_name(first), table
        return
    order = np.argsort(day, kind="stable")
    ordered, rows = table.take(pa.array(order)), day[order]
    bounds = [0, *(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(rows)]
    for start, end in itertools.pairwise(bounds):
        yield _day_name(int(rows[start])), ordered.slice(start, end - start)


def _day_name(day: int) -> str:
    return str(np.datetime64(day, "D"))


def _sorted(table: str, frame: pd.DataFrame) -> pa.Table:
    """Samples by series and time, so that a row group holds few metrics and nodes; other tables by time, those without one as they come."""
    by = list(SORT) if table == "samples" else [TIME_COLUMN[table]] if table in TIME_COLUMN else []
    return pa.Table.from_pandas(frame.sort_values(by, kind="stable") if by else frame, preserve_index=False)


def valid_piece(name: str, table: pa.Table, *, where: str) -> pa.Table:
    """The piece, checked as ``telemetry.schema.validate`` checks a frame.

    Raises:
        InputError: names the column.
    """
    if name not in ("samples", *COMPACTED):
        raise InputError(f"table '{name}' in pieces", where=where, allowed="samples")
    if name == "samples":
        if tuple(table.column_names) != SAMPLE_COLUMNS:
            raise InputError(
                f"columns {', '.join(table.column_names)}", where=f"{where}, table '{name}'", allowed=", ".join(SAMPLE_COLUMNS)
            )
        value = table.column("value")
        if not (pa.types.is_float64(value.type) and value.null_count == 0 and np.isfinite(value.to_numpy()).all()):
            raise InputError("column 'value' has what is no finite number", where=f"{where}, table '{name}'")
        unknown = sorted(set(pc.unique(table.column("metric")).to_pylist()) - set(SAMPLE_METRICS), key=str)
        if unknown:
            raise InputError(f"column 'metric': {unknown[0]}", where=f"{where}, table '{name}'", allowed=", ".join(SAMPLE_METRICS))
    if table.column("time").null_count:
        raise InputError("column 'time' has blanks", where=f"{where}, table '{name}'")
    return table


def safe_name(name: str) -> str:
    """Name as a folder: other characters are replaced, and a digest keeps different names apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

"""Rows of a lake's files: as frames, and as DuckDB views."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from telemetry.errors import InputError
from telemetry.schema import COMPACTED, SCHEMAS, TIME_COLUMN, UTC, empty
from telemetry.storage import Storage

TABLES: tuple[str, ...] = (*SCHEMAS, *COMPACTED)


def read_frame(
    storage: Storage,
    name: str,
    parts: Sequence[Mapping[str, Any]],
    first: pd.Timestamp | None,
    last: pd.Timestamp | None,
    columns: Sequence[str] | None,
    where: Mapping[str, str | Sequence[str]],
) -> pd.DataFrame:
    """Rows of the parts with ``first <= time < last`` and those texts, sorted by time; of a table without one
    all, sorted by its first column.

    Raises:
        InputError: an unknown column, or a file that cannot be read.
    """
    known = list(empty(name).columns)
    wanted = list(columns) if columns is not None else known
    unknown = [column for column in (*wanted, *where) if column not in known]
    if unknown:
        raise InputError(f"unknown column {', '.join(unknown)}", where=f"table '{name}'", allowed=", ".join(known))
    key = TIME_COLUMN.get(name, wanted[0])
    try:
        tables = [_read_part(storage, part["path"], [*{key, *wanted}], where, key, first, last) for part in parts]
    except (OSError, pa.ArrowException, duckdb.Error) as error:
        raise InputError(f"a file of the lake cannot be read ({error})", where=storage.place(""), remedy="ingest again") from error
    tables = [table for table in tables if len(table)]
    if not tables:
        return empty(name)[wanted]
    frame = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries().to_pandas()
    stamps = [column for column in frame if isinstance(frame[column].dtype, pd.DatetimeTZDtype)]
    frame = frame.astype(dict.fromkeys(stamps, UTC))
    for column in set(wanted) - set(frame):
        blank = empty(name)[column].reindex(frame.index)
        frame[column] = blank.where(blank.notna(), None) if blank.dtype == object else blank
    return frame.iloc[np.argsort(frame[key].to_numpy(), kind="stable")].reset_index(drop=True)[wanted]


def _read_part(
    storage: Storage,
    path: str,
    columns: Sequence[str],
    where: Mapping[str, str | Sequence[str]],
    key: str,
    first: pd.Timestamp | None,
    last: pd.Timestamp | None,
) -> pa.Table:
    """Those columns that the file has (one of an older schema has not all), and the rows asked for: row groups that cannot have any stay
    on the disk."""
    filesystem, place = storage.arrow(path)
    file = pq.ParquetFile(filesystem.open_input_file(place) if filesystem is not None else place)
    with file:
        there = file.schema_arrow.names
        texts = {name: [value] if isinstance(value, str) else list(value) for name, value in where.items()}
        if any(name not in there for name in texts):
            return file.schema_arrow.empty_table().select([name for name in columns if name in there])
        groups = [g for g in range(file.num_row_groups) if _may_hold(file.metadata.row_group(g), texts, there)]
        chosen = [name for name in there if name in {*columns, *texts}]
        table = file.read_row_groups(groups, columns=chosen)
    masks = [_among(table.column(name), values) for name, values in texts.items()]
    time = table.column(key)
    if first is not None:
        masks.append(pc.greater_equal(time, pa.scalar(first).cast(time.type, safe=False)))
    if last is not None:
        masks.append(pc.less(time, pa.scalar(last).cast(time.type, safe=False)))
    if masks:
        table = table.filter(functools.reduce(pc.and_, masks))
    return table.select([name for name in columns if name in there])


def _may_hold(group: pq.RowGroupMetaData, texts: Mapping[str, Sequence[str]], names: Sequence[str]) -> bool:
    """Whether a row group can have one of the texts in each column, by its statistics."""
    for name, values in texts.items():
        stats = group.column(names.index(name)).statistics
        if stats is not None and stats.has_min_max and not any(stats.min <= value <= stats.max for value in values):
            return False
    return True


def _among(column: pa.ChunkedArray, values: Sequence[str]) -> pa.ChunkedArray:
    chunks = []
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            hit = pc.is_in(chunk.dictionary, value_set=pa.array(values, type=chunk.dictionary.type))
            chunks.append(pc.fill_null(pc.take(hit, chunk.indices), False))
        else:
            chunks.append(pc.is_in(chunk, value_set=pa.array(values, type=chunk.type)))
    return pa.chunked_array(chunks, type=pa.bool_())


def run_query(sql: str, storage: Storage, parts: Mapping[str, Sequence[str]], forecasts: Sequence[Path]) -> pd.DataFrame:
    """Answer of a DuckDB query over the tables as views.

    Args:
        parts: table -> keys of its files.

    Raises:
        InputError: DuckDB refuses the query.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, keys in parts.items():
            _view(connection, table, storage, keys)
        if forecasts:
            _files_view(connection, "forecasts", [str(path) for path in forecasts])
        else:
            _view(connection, "forecasts", storage, [])
        try:
            return connection.execute(sql).fetch_df()
        except duckdb.Error as error:
            allowed = f"DuckDB SQL over {', '.join((*TABLES, 'forecasts'))}"
            raise InputError(str(error).splitlines()[0], where="query", allowed=allowed) from error


def _view(connection: duckdb.DuckDBPyConnection, table: str, storage: Storage, keys: Sequence[str]) -> None:
    if not keys:
        connection.register(f"_{table}", pa.Table.from_pandas(_typed_empty(table)))
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM _{table}")
        return
    places = [storage.arrow(key) for key in keys]
    if places[0][0] is None:
        _files_view(connection, table, [path for _, path in places])
        return
    # A bucket: DuckDB's own reader would have to be downloaded; Arrow's takes projections and filters from it as well.
    connection.register(f"_{table}", ds.dataset([path for _, path in places], filesystem=places[0][0], format="parquet"))
    connection.execute(f"CREATE VIEW {table} AS SELECT * FROM _{table}")


def _files_view(connection: duckdb.DuckDBPyConnection, table: str, files: Sequence[str]) -> None:
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    connection.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet([{listed}], union_by_name = true, hive_partitioning = false)")


def _typed_empty(table: str) -> pd.DataFrame:
    frame = empty(table)
    return frame.astype({name: "string" for name in frame if frame[name].dtype == object})


def utc(time: pd.Timestamp | str | None) -> pd.Timestamp | None:
    """A time in UTC; one without a zone is UTC.

    Raises:
        InputError: no time.
    """
    if time is None:
        return None
    try:
        stamp = pd.Timestamp(time)
    except ValueError as error:
        raise InputError(f"{time!r} is no time", where="table", allowed="ISO 8601") from error
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")

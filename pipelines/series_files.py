"""Series files, read in batches: Parquet by row groups, CSV by lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from models.series import infer_freq
from models.series_store import BATCH_ROWS, Batches, leading_series
from telemetry.errors import InputError

SUFFIXES = (".parquet", ".csv")
DICTIONARY_COLUMNS = ("unique_id",)


def series_batches(file: Path) -> Batches:
    """Rows of a Parquet file, a folder of them, or a CSV file (also gzipped).

    Raises:
        InputError: no such file, another format; and while reading, when it is not readable.
    """
    if file.is_dir():
        parts = sorted(file.rglob("*.parquet"))
        if not parts:
            raise InputError("no Parquet file in the folder", where=str(file), remedy="pass a file, or a folder of *.parquet")
        return lambda: (batch for part in parts for batch in _checked(_parquet(part), part))
    if not file.is_file():
        raise InputError("no such file", where=str(file), remedy="pass series=FILE.parquet or series=FILE.csv")
    kind = next((s for s in reversed(file.suffixes) if s in SUFFIXES), "")
    if not kind:
        raise InputError(f"unknown format {file.suffix!r}", where=str(file), allowed=", ".join(SUFFIXES))
    return lambda: _checked(_parquet(file) if kind == ".parquet" else _csv(file), file)


def freq_of(batches: Batches, file: Path) -> str:
    """Most common step of the file's first series."""
    return infer_freq(leading_series(batches, where=str(file)))


def _parquet(file: Path) -> Iterator[pd.DataFrame]:
    with pq.ParquetFile(file) as probe:
        texts = [f.name for f in probe.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    with pq.ParquetFile(file, read_dictionary=[name for name in texts if name in DICTIONARY_COLUMNS]) as stream:
        empty = stream.schema_arrow.empty_table().to_pandas(ignore_metadata=True)
        if not stream.metadata.num_rows:
            yield empty
        for batch in stream.iter_batches(batch_size=BATCH_ROWS):
            yield pa.Table.from_batches([batch]).to_pandas(ignore_metadata=True)


def _csv(file: Path) -> Iterator[pd.DataFrame]:
    yield from pd.read_csv(file, dtype={"unique_id": str}, chunksize=BATCH_ROWS)


def _checked(batches: Iterator[pd.DataFrame], file: Path) -> Iterator[pd.DataFrame]:
    try:
        yield from batches
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ArrowInvalid and pandas' parser errors are ValueErrors
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=str(file), remedy="check that the file is whole") from error

"""Finished pieces of a backtest on disk, so that a killed one goes on where it stopped.

``FOLDER/<key>/<member>-<options>/<segment>-<chunk>.npz`` holds the sums of one piece, written last and whole; beside it lie its forecasts
where they are wanted, one Parquet file with a row group for calibration and one for test. The key covers the series, the configuration and
the source of this package: what was computed from anything else is not found.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from models.backtest_chunk import ChunkResult, Seconds
from models.score_sums import ScoreSums
from models.series_store import SeriesStore

DIGEST_BLOCK = 1 << 22
SUMS = ("series", "steps", "calibration", "origins")


def digest(value: Any) -> str:
    """Hex digest of a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def store_digest(store: SeriesStore) -> str:
    """Digest of the series: ids, grids, values and further columns."""
    running = hashlib.blake2b(digest([store.step_ns, store.ids, store.static, sorted(store.covariates)]).encode())
    for array in (store.starts_ns, store.begins, store.values, *(store.covariates[name] for name in sorted(store.covariates))):
        for first in range(0, len(array), DIGEST_BLOCK):
            running.update(np.ascontiguousarray(array[first : first + DIGEST_BLOCK]).data)
    return running.hexdigest()


@functools.cache
def source_digest() -> str:
    """Digest of the source of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class PartialResults:
    """Finished pieces under ``folder``.

    Args:
        folder: where.
        key: of everything that all members share.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def member(self, name: str, options: Any) -> MemberResults:
        """Pieces of one member with these options."""
        return MemberResults(self.folder / self.key[:16] / f"{name}-{digest(options)[:8]}")

    def forget(self) -> None:
        """Remove the pieces of all members."""
        shutil.rmtree(self.folder / self.key[:16], ignore_errors=True)


class MemberResults:
    """Finished pieces of one member."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, segment: int, chunk: int, *, forecasts: bool) -> ChunkResult | None:
        """A finished piece, without its forecasts; None when it, or its forecasts where they are wanted, are not there."""
        file = self._file(segment, chunk, "npz")
        if not file.exists() or (forecasts and not self.forecast_file(segment, chunk).exists()):
            return None
        with np.load(file, allow_pickle=False) as stored:
            told = json.loads(str(stored["told"]))
            sums = ScoreSums(*(stored[name] for name in SUMS))
        return ChunkResult(sums, Seconds(**told["seconds"]), told["fallbacks"])

    def write(self, segment: int, chunk: int, result: ChunkResult) -> None:
        """Keep a piece; its forecasts first, so that a piece that is found is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if len(result.forecasts.columns):
            with _replacing(self.forecast_file(segment, chunk)) as fresh:
                write_forecasts(fresh, result.forecasts)
        told = json.dumps({"seconds": asdict(result.seconds), "fallbacks": result.fallbacks})
        with _replacing(self._file(segment, chunk, "npz")) as fresh, fresh.open("wb") as stream:
            np.savez(stream, told=np.array(told), **{name: getattr(result.sums, name) for name in SUMS})

    def forecast_file(self, segment: int, chunk: int) -> Path:
        """Forecasts of a piece."""
        return self._file(segment, chunk, "parquet")

    def forecast_files(self) -> list[Path]:
        """Forecasts of all pieces, in order."""
        return sorted(self.folder.glob("*.parquet"))

    def read_fit(self, segment: int) -> Seconds | None:
        """What a fit on all series took, if all that came of it is done."""
        file = self._file(segment, None, "json")
        return Seconds(**json.loads(file.read_text())) if file.exists() else None

    def write_fit(self, segment: int, seconds: Seconds) -> None:
        """Keep what a fit took."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _replacing(self._file(segment, None, "json")) as fresh:
            fresh.write_text(json.dumps(asdict(seconds)))

    def _file(self, segment: int, chunk: int | None, suffix: str) -> Path:
        return self.folder / f"{segment:03d}-{'fit' if chunk is None else f'{chunk:05d}'}.{suffix}"


def write_forecasts(file: Path, forecasts: pd.DataFrame) -> None:
    """Parquet with one row group per part: calibration, then test."""
    table = pa.Table.from_pandas(forecasts, preserve_index=False)
    with pq.ParquetWriter(file, table.schema) as writer:
        for part in ("calibration", "test"):
            rows = table.filter(pa.compute.equal(table["part"], part))
            if len(rows):
                writer.write_table(rows, row_group_size=len(rows))


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A fresh path that takes the place of ``file`` when the block succeeds."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        yield fresh
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)

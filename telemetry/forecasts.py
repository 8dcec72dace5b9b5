"""The table ``forecasts``: ``unique_id, issued_at, ds, q10 ... q90, model, version``, appended to every few minutes.

::

    ROOT/tables/forecasts/source=<registered model>/date=<day of issue>/issued=<time of issue>-v<version>.parquet

One file an issue, put there by one rename: a reader sees a whole issue or none, and writing the same issue again replaces it. Nothing has
to be rewritten to append, so the files stand beside the lake's manifest and not in it; whole days are dropped when they are old.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from telemetry.errors import InputError
from telemetry.schema import FORECAST_COLUMNS, UTC, empty, validate

_TEXT = ["unique_id", "model", "version"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ForecastTable:
    """Forecasts under the root of a lake; made on the first write."""

    def __init__(self, root: Path | str) -> None:
        self.folder = Path(root) / "tables" / "forecasts"

    def path(self, source: str, issued_at: pd.Timestamp, version: str) -> Path:
        """Where an issue is or will be.

        Raises:
            InputError: a name that is no file name.
        """
        for value in (source, version):
            if not _NAME.fullmatch(value):
                raise InputError(f"{value!r}", where="forecasts", allowed="letters, digits, '.', '_' and '-'")
        return self.folder / f"source={source}" / f"date={issued_at:%Y-%m-%d}" / f"issued={issued_at:%Y%m%dT%H%M%SZ}-v{version}.parquet"

    def write(self, frame: pd.DataFrame, source: str, issued_at: pd.Timestamp, version: str) -> Path:
        """Store one issue, replacing an earlier one of the same time and version.

        Args:
            frame: rows of the table; each row's ``issued_at`` is that of its series and may be earlier than the issue's.
            source: name of the registered model.
            issued_at: newest ``issued_at``, UTC.
            version: of the model.

        Raises:
            InputError: a row that does not fit the schema.
            OSError: not writable; what was there stays.
        """
        target = self.path(source, issued_at, version)
        rows = validate("forecasts", frame, where=f"forecasts of '{source}'")
        table = pa.Table.from_pandas(rows, preserve_index=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
        try:
            pq.write_table(table, fresh, compression="zstd", compression_level=1, coerce_timestamps="us", use_dictionary=_TEXT)
            os.replace(fresh, target)
        finally:
            fresh.unlink(missing_ok=True)
        return target

    def files(self, source: str | None = None, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None) -> list[Path]:
        """Files of one or all sources whose time of issue is within ``start <= issue < end`` (UTC), oldest first within a source."""
        found = sorted(self.folder.glob(f"source={source or '*'}/date=*/issued=*.parquet"))
        low = f"issued={start:%Y%m%dT%H%M%SZ}" if start is not None else ""
        high = f"issued={end:%Y%m%dT%H%M%SZ}" if end is not None else "j"
        return [file for file in found if low <= file.name < high]

    def read(self, source: str | None = None, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None) -> pd.DataFrame:
        """Rows of the issues that ``files`` names; times are UTC.

        Raises:
            InputError: a file cannot be read.
        """
        files = self.files(source, start, end)
        if not files:
            return empty("forecasts")
        try:
            tables = [pq.read_table(file, columns=list(FORECAST_COLUMNS), partitioning=None) for file in files]
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"a forecast file cannot be read ({error})", where=str(self.folder), remedy="remove that file") from error
        frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        return frame.astype({"issued_at": UTC, "ds": UTC})

    def prune(self, source: str, before: pd.Timestamp) -> int:
        """Drop days of issue that ended by ``before`` (UTC); returns how many."""
        limit = f"date={before:%Y-%m-%d}"
        old = [day for day in self.folder.glob(f"source={source}/date=*") if day.name < limit]
        for day in old:
            shutil.rmtree(day, ignore_errors=True)
        return len(old)

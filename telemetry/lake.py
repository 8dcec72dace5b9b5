"""The lake: canonical tables as Parquet, partitioned by table, source and date, queried with DuckDB.

::

    ROOT/manifest.json                                          what is in the lake; replaced atomically, the only commit point
    ROOT/tables/<table>/source=<s>/version=<digest>/date=<d>/part.parquet
    ROOT/tables/forecasts/source=<s>/date=<d>/issued=*.parquet  what was forecast: one file an issue, see telemetry/forecasts.py
    ROOT/quality/report.{html,json}                             of everything in the lake
    ROOT/.staging-*                                             files of an ingest that is not committed

Readers see only files that the manifest names. Files are written to a staging folder, moved into place, and then one ``os.replace`` of
the manifest makes all sources of the ingest visible at once. An ingest that is killed, or that runs out of disk, leaves the last good
state; what it left behind is removed by the next one. A source whose content, reader and inventory are unchanged is not read again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from telemetry.errors import InputError
from telemetry.forecasts import ForecastTable
from telemetry.quality import QualityReport
from telemetry.schema import SCHEMAS, TIME_COLUMN, UTC, empty, validate

FORMAT = 1
UNDATED = pd.Timestamp("1970-01-01", tz="UTC")  # folder of the tables without a time


@dataclass(frozen=True)
class SourceTables:
    """Tables of one source, or of one file of it, to be stored under the digest of what they were made from.

    ``source`` is the name that a later ingest replaces; ``label`` (default: the same) is the one that quality is reported under.
    """

    source: str
    digest: str
    tables: Mapping[str, pd.DataFrame]
    quality: QualityReport
    label: str = ""


class Lake:
    """A lake in a folder; created on the first ingest.

    Raises:
        InputError: (every method that reads) the manifest is corrupt or of another format.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @property
    def _manifest_path(self) -> Path:
        return self.root / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """``{"format", "sources": {source: {"digest", "tables": {table: [{"path", "date", "rows"}]}, "quality"}}}``."""
        if not self._manifest_path.exists():
            return {"format": FORMAT, "sources": {}}
        try:
            manifest = json.loads(self._manifest_path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"cannot be read ({error})", where=str(self._manifest_path), remedy="remove the lake and ingest again"
            ) from error
        if manifest.get("format") != FORMAT:
            raise InputError(
                f"format {manifest.get('format')}",
                where=str(self._manifest_path),
                allowed=str(FORMAT),
                remedy="remove the lake and ingest again",
            )
        return manifest

    def sources(self) -> dict[str, str]:
        """Digest of each source in the lake."""
        return {name: entry["digest"] for name, entry in self.manifest()["sources"].items()}

    def data_hash(self) -> str:
        """Hex digest of everything in the lake: the same for the same source files, in whatever order they came."""
        return hashlib.sha256(json.dumps(sorted(self.sources().items())).encode()).hexdigest()

    def quality(self) -> QualityReport:
        """Report over all sources in the lake."""
        entries = self.manifest()["sources"].values()
        return QualityReport().merge(QualityReport.from_dict(entry["quality"]) for entry in entries)

    def rows(self) -> dict[str, int]:
        """Rows per table; one without a time is told only where it has some."""
        rows = {table: sum(part["rows"] for part in self._parts(table)) for table in SCHEMAS}
        return {table: count for table, count in rows.items() if count or table in TIME_COLUMN}

    # Writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One ingest at a time.

        Raises:
            InputError: another one is running.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    "another ingest is running", where=str(self.root), remedy="wait for it, or use another lake.root"
                ) from error
            yield

    def ingest(self, *sources: SourceTables, remove: Sequence[str] = ()) -> None:
        """Store sources, each replacing what the lake held of it, all or nothing; ``remove`` forgets others in the same step.

        Raises:
            InputError: a table that does not fit its schema.
            OSError: the disk is full or not writable; the lake is as before.
        """
        with self.lock():
            manifest = self.manifest()
            self._sweep(manifest)
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.root))
            moved: list[Path] = []
            try:
                entries = {s.source: self._stage(s, staging) for s in sources}
                for part in sorted(staging.glob("tables/*/*/*")):
                    target = self.root / part.relative_to(staging)
                    shutil.rmtree(target, ignore_errors=True)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(part, target)
                    moved.append(target)
                kept = {name: entry for name, entry in manifest["sources"].items() if name not in remove}
                fresh = {"format": FORMAT, "sources": dict(sorted({**kept, **entries}.items()))}
                self._write(self._manifest_path, json.dumps(fresh, indent=1))
            except BaseException:
                named = self._versions(manifest)
                for target in moved:
                    if target not in named:
                        shutil.rmtree(target, ignore_errors=True)
                raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            self._sweep(fresh)
            self._report()

    def tidy(self) -> None:
        """Remove what a killed ingest left behind, and write the report again if it is not that of the manifest."""
        with self.lock():
            self._sweep(self.manifest())
            path = self.root / "quality" / "report.json"
            if not path.exists() or json.loads(path.read_text()) != self.quality().to_dict():
                self._report()

    def _stage(self, source: SourceTables, staging: Path) -> dict[str, Any]:
        """Write one source's files below ``staging``; its manifest entry."""
        tables: dict[str, list[dict[str, Any]]] = {}
        folder = f"source={_safe(source.source)}/version={source.digest[:16]}"
        for table, frame in sorted(source.tables.items()):
            frame = validate(table, frame, where=f"source '{source.source}'")
            parts = tables.setdefault(table, [])
            time = frame[TIME_COLUMN[table]] if table in TIME_COLUMN else pd.Series(UNDATED, index=frame.index)
            order = time.argsort(kind="stable")
            frame, date = frame.iloc[order.to_numpy()], time.iloc[order.to_numpy()].dt.strftime("%Y-%m-%d")
            arrow = pa.Table.from_pandas(frame, preserve_index=False)
            bounds = [*(date.ne(date.shift())).to_numpy().nonzero()[0], len(frame)]
            for first, last in itertools.pairwise(bounds):
                day = str(date.iloc[first])
                path = f"tables/{table}/{folder}/date={day}/part.parquet"
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(arrow.slice(first, last - first), staging / path, compression="zstd", coerce_timestamps="us")
                parts.append({"path": path, "date": day, "rows": int(last - first)})
        quality = source.quality.merge(())
        for table, frame in source.tables.items():
            quality.set_rows(source.label or source.source, table, len(frame))
        return {"digest": source.digest, "tables": tables, "quality": quality.to_dict()}

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with fresh.open("w") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    def _report(self) -> None:
        quality = self.quality()
        self._write(self.root / "quality" / "report.html", quality.to_html())
        self._write(self.root / "quality" / "report.json", json.dumps(quality.to_dict(), indent=1) + "\n")

    def _versions(self, manifest: Mapping[str, Any]) -> set[Path]:
        """Version folders that the manifest names."""
        parts = (p for entry in manifest["sources"].values() for parts in entry["tables"].values() for p in parts)
        return {(self.root / part["path"]).parent.parent for part in parts}

    def _sweep(self, manifest: Mapping[str, Any]) -> None:
        """Remove what killed ingests left behind and versions that were replaced."""
        named = self._versions(manifest)
        for folder in (*self.root.glob("tables/*/*/version=*"), *self.root.glob(".staging-*")):
            if folder not in named:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.root.glob("tables/*/source=*"):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only when it is empty

    # Reading

    def _parts(self, table: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None) -> list[dict[str, Any]]:
        if table not in SCHEMAS:
            raise InputError(f"unknown table '{table}'", where=str(self.root), allowed=", ".join(SCHEMAS))
        parts = [part for _, entry in sorted(self.manifest()["sources"].items()) for part in entry["tables"].get(table, ())]
        low = start.strftime("%Y-%m-%d") if start is not None else ""
        high = end.strftime("%Y-%m-%d") if end is not None else "9999"
        return [part for part in parts if low <= part["date"] <= high]

    def table(
        self,
        name: str,
        start: pd.Timestamp | str | None = None,
        end: pd.Timestamp | str | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Rows of a canonical table with ``start <= time < end`` (jobs: submit time), sorted by time; no zone = UTC. ``reference``
        has no time: all of it, sorted by its first column.

        Raises:
            InputError: unknown table or column, or a file of the lake is missing.
        """
        first, last = (_utc(start), _utc(end)) if name in TIME_COLUMN else (None, None)
        parts = self._parts(name, first, last)
        wanted = list(columns) if columns is not None else list(empty(name).columns)
        unknown = [column for column in wanted if column not in empty(name).columns]
        if unknown:
            raise InputError(f"unknown column {', '.join(unknown)}", where=f"table '{name}'", allowed=", ".join(empty(name).columns))
        if not parts:
            return empty(name)[wanted]
        key = TIME_COLUMN.get(name, wanted[0])
        try:
            frames = [_read_part(self.root / p["path"], [*{key, *wanted}]) for p in parts]
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"a file of the lake cannot be read ({error})", where=str(self.root), remedy="ingest again") from error
        frame = pa.concat_tables(frames, promote_options="permissive").unify_dictionaries().to_pandas()
        stamps = [column for column in frame if isinstance(frame[column].dtype, pd.DatetimeTZDtype)]
        frame = frame.astype(dict.fromkeys(stamps, UTC))
        for column in set(wanted) - set(frame):
            blank = empty(name)[column].reindex(frame.index)
            frame[column] = blank.where(blank.notna(), None) if blank.dtype == object else blank
        times = frame[key]
        keep = pd.Series(True, index=frame.index)
        if first is not None:
            keep &= times >= first
        if last is not None:
            keep &= times < last
        return frame[keep].sort_values(key, kind="stable", ignore_index=True)[wanted]

    def query(self, sql: str) -> pd.DataFrame:
        """Answer of a DuckDB query over the views ``samples``, ``jobs``, ``grid``, ``reference`` and ``forecasts``; times are UTC.

        Raises:
            InputError: DuckDB refuses the query.
        """
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            stored = {table: [self.root / part["path"] for part in self._parts(table)] for table in SCHEMAS}
            for table, files in (stored | {"forecasts": ForecastTable(self.root).files()}).items():
                if files:
                    listed = ", ".join("'" + str(f).replace("'", "''") + "'" for f in files)
                    connection.execute(
                        f"CREATE VIEW {table} AS SELECT * FROM read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
                    )
                else:
                    connection.register(f"_{table}", pa.Table.from_pandas(_typed_empty(table)))
                    connection.execute(f"CREATE VIEW {table} AS SELECT * FROM _{table}")
            try:
                return connection.execute(sql).fetch_df()
            except duckdb.Error as error:
                raise InputError(
                    str(error).splitlines()[0], where="query", allowed=f"DuckDB SQL over {', '.join((*SCHEMAS, 'forecasts'))}"
                ) from error


def _read_part(path: Path, columns: Sequence[str]) -> pa.Table:
    """Those columns that the file has: one of an older schema has not all."""
    there = pq.read_schema(path).names
    return pq.read_table(path, columns=[name for name in columns if name in there], partitioning=None)


def _typed_empty(table: str) -> pd.DataFrame:
    frame = empty(table)
    return frame.astype({name: "string" for name in frame if frame[name].dtype == object})


def _utc(time: pd.Timestamp | str | None) -> pd.Timestamp | None:
    if time is None:
        return None
    try:
        stamp = pd.Timestamp(time)
    except ValueError as error:
        raise InputError(f"{time!r} is no time", where="table", allowed="ISO 8601") from error
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")


def _safe(name: str) -> str:
    """Name as a folder: other characters are replaced, and a digest keeps different names apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

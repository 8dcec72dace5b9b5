"""The lake itself: its manifest, what is committed to it, and what is read from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from telemetry.errors import InputError
from telemetry.forecasts import ForecastTable
from telemetry.lake.reading import TABLES, read_frame, run_query, utc
from telemetry.lake.staging import SourceTables, Staged, stage
from telemetry.quality import QualityReport
from telemetry.schema import SCHEMAS, TIME_COLUMN
from telemetry.storage import MISSING, Changed, LocalStorage, Storage, storage_of

FORMAT = 1
MANIFEST = "manifest.json"
# Files that no manifest names may belong to a writer that has not committed yet, where writers cannot keep each other out.
ORPHANED_S = 24 * 3600.0


class Lake:
    """A lake in a folder or a bucket; created on the first ingest.

    Args:
        root: folder, or ``s3://bucket/prefix``.
        storage: where its files lie; default: as ``root`` says.

    Raises:
        InputError: (every method that reads) the manifest is corrupt or of another format.
    """

    def __init__(self, root: Path | str, storage: Storage | None = None) -> None:
        self.storage = storage or storage_of(root)
        self.root = self.storage.root if isinstance(self.storage, LocalStorage) else Path(str(root))

    def place(self, key: str) -> str:
        """A file of the lake as a user names it."""
        return self.storage.place(key)

    def manifest(self) -> dict[str, Any]:
        """``{"format", "sources": {source: {"digest", "tables": {table: [{"path", "date", "rows"}]}, "quality"}}}``."""
        return self._manifest()[0]

    def _manifest(self) -> tuple[dict[str, Any], str]:
        where, remedy = self.place(MANIFEST), "remove the lake and ingest again"
        try:
            data, tag = self.storage.read(MANIFEST)
            if tag == MISSING:
                return {"format": FORMAT, "sources": {}}, tag
            manifest = json.loads(data)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read ({error})", where=where, remedy=remedy) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
            raise InputError(f"format {found}", where=where, allowed=str(FORMAT), remedy=remedy)
        return manifest, tag

    def sources(self) -> dict[str, str]:
        """Digest of each source in the lake."""
        return {name: entry["digest"] for name, entry in self.manifest()["sources"].items()}

    def sources_with(self, flaw: str) -> set[str]:
        """Sources of which a flaw was counted."""
        entries = self.manifest()["sources"].items()
        return {name for name, entry in entries if flaw in entry["quality"]["total"]}

    def data_hash(self) -> str:
        """Hex digest of everything in the lake: the same for the same source files, in whatever order they came."""
        return hashlib.sha256(json.dumps(sorted(self.sources().items())).encode()).hexdigest()

    def quality(self) -> QualityReport:
        """Report over all sources in the lake."""
        entries = self.manifest()["sources"].values()
        return QualityReport().merge(QualityReport.from_dict(entry["quality"]) for entry in entries)

    def rows(self) -> dict[str, int]:
        """Rows per table; of the coarser ones, and of those without a time, where there are any."""
        found = {table: sum(part["rows"] for part in self.parts(table)) for table in TABLES}
        return {table: rows for table, rows in found.items() if rows or (table in SCHEMAS and table in TIME_COLUMN)}

    # Writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One writer at a time; in a bucket, the one that commits second is refused.

        Raises:
            InputError: another one is running.
        """
        with self.storage.lock():
            yield

    def ingest(self, *sources: SourceTables, remove: Sequence[str] = ()) -> None:
        """Store sources, each replacing what the lake held of it, all or nothing; ``remove`` forgets others in the same step.

        Raises:
            InputError: a table that does not fit its schema, or another writer.
            OSError: the disk is full or not writable; the lake is as before.
        """

        def work(manifest: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
            files: dict[str, Path] = {}
            entries: dict[str, Any] = {}
            for source in sources:
                staged: Staged = stage(source, folder, self.storage.version(source.digest))
                files.update(staged.files)
                entries[source.source] = staged.entry
            kept = {name: entry for name, entry in manifest["sources"].items() if name not in remove}
            return {**kept, **entries}, files

        self.change(work)

    def change(self, work: Callable[[Mapping[str, Any], Path], tuple[dict[str, Any], dict[str, Path]]]) -> None:
        """Commit what ``work(manifest, folder)`` makes: the sources of the manifest anew, and files written below ``folder`` by key.

        Raises:
            InputError: another writer is at work, or committed meanwhile; the lake is as that one left it.
            OSError: the disk is full or not writable; the lake is as before.
        """
        with self.lock():
            manifest, tag = self._manifest()
            self._sweep(manifest)
            folder = self.storage.scratch()
            files: dict[str, Path] = {}
            try:
                entries, files = work(manifest, folder)
                fresh = {"format": FORMAT, "sources": dict(sorted(entries.items()))}
                self.storage.put(files)
                self.storage.replace(MANIFEST, json.dumps(fresh, indent=1).encode(), tag)
            except BaseException as error:
                # Read anew: a commit whose answer was lost may stand.
                self.storage.delete(set(files) - self._named(self.manifest()))
                if isinstance(error, Changed):
                    raise InputError(
                        "another ingest or compaction committed meanwhile", where=self.place(""), remedy="run the command again"
                    ) from error
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            self.storage.delete(self._named(manifest) - self._named(fresh))
            self._report()

    def tidy(self) -> None:
        """Remove what a killed ingest left behind, and write the report again if it is not that of the manifest."""
        with self.lock():
            self._sweep(self.manifest())
            data, _ = self.storage.read("quality/report.json")
            if not data or json.loads(data) != self.quality().to_dict():
                self._report()

    def _report(self) -> None:
        quality = self.quality()
        self.storage.replace("quality/report.html", quality.to_html().encode())
        self.storage.replace("quality/report.json", (json.dumps(quality.to_dict(), indent=1) + "\n").encode())

    def _named(self, manifest: Mapping[str, Any]) -> set[str]:
        """Files that the manifest names."""
        tables = (parts for entry in manifest["sources"].values() for parts in entry["tables"].values())
        return {part["path"] for parts in tables for part in parts}

    def _sweep(self, manifest: Mapping[str, Any]) -> None:
        """Remove what killed ingests left behind and versions that were replaced."""
        named = self._named(manifest)
        for table in TABLES:
            self.storage.delete(key for key in list(self.storage.keys(f"tables/{table}/", ORPHANED_S)) if key not in named)

    # Reading

    def parts(self, table: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None) -> list[dict[str, Any]]:
        """Files of a table that may hold times of the span, of all sources.

        Raises:
            InputError: unknown table.
        """
        if table not in TABLES:
            raise InputError(f"unknown table '{table}'", where=self.place(""), allowed=", ".join(TABLES))
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
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> pd.DataFrame:
        """Rows of a canonical table with ``start <= time < end`` (jobs: submit time), sorted by time; no zone = UTC.

        Args:
            where: text column -> the value, or values, that rows must have: ``{"metric": "hw.power", "pool": ["a", "b"]}``. What the
                statistics of the files rule out is not read.

        Raises:
            InputError: unknown table or column, or a file of the lake is missing.
        """
        first, last = (utc(start), utc(end)) if name in TIME_COLUMN else (None, None)
        while True:
            _, before = self._manifest()
            parts = self.parts(name, first, last)
            try:
                return read_frame(self.storage, name, parts, first, last, columns, where or {})
            except InputError:
                # Files go when a writer replaces them: the manifest of now names others.
                if self._manifest()[1] == before:
                    raise

    def query(self, sql: str) -> pd.DataFrame:
        """Answer of a DuckDB query over the tables (``samples``, ``jobs``, ``grid``, ``forecasts``, the coarser samples); times are UTC.

        Raises:
            InputError: DuckDB refuses the query.
        """
        forecasts = ForecastTable(self.root).files() if isinstance(self.storage, LocalStorage) else []
        return run_query(sql, self.storage, {table: _paths(self.parts(table)) for table in TABLES}, forecasts)


def _paths(parts: Iterable[Mapping[str, Any]]) -> list[str]:
    return [part["path"] for part in parts]

"""From source files to the lake: read what changed, store all of it or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from telemetry.errors import InputError, NoPointsError
from telemetry.inventory import Inventory, NodeInfo
from telemetry.lake import Lake, SourceTables
from telemetry.policy import QualityPolicy
from telemetry.quality import QualityReport
from telemetry.readers import READERS, ReadContext, read_export, read_pieces, reader_named
from telemetry.readers.base import PieceReader, Pieces, check_options, companions_of, mapping_at, read_json
from telemetry.readers.columnar import files_below
from telemetry.schema import TIME_COLUMN
from telemetry.spool import Spool, Window
from telemetry.storage import LocalStorage

# Part of every digest: raise it when readers give other tables for the same file, so that lakes are filled anew.
READERS_VERSION = 2
DEFAULT_MAX_GRID_GAP_S = 24 * 3600


@dataclass(frozen=True)
class SourceSpec:
    """A file, or a spool of fetched windows, and who reads it; ``name`` (default: that of the path) is the rows' ``source``.

    ``window`` is that of a file of a spool: what the file holds outside of it is left out. ``options`` are what a reader is told besides
    (its ``options``).
    """

    path: Path
    reader: str
    name: str = ""
    window: Window | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return self.name or Path(self.path).name

    @property
    def key(self) -> str:
        """Name in the lake's manifest: that of the source, and the window where it has many files."""
        return self.source if self.window is None else f"{self.source}/{self.window.stem}"

    @property
    def _in_pieces(self) -> bool:
        return isinstance(reader_named(self.reader), PieceReader)

    def parts(self) -> list[SourceSpec]:
        """The files: itself, or one per window of the spool. A folder of columns that is no spool is one source.

        Raises:
            InputError: an empty spool, or one with a file that is no window.
        """
        if not Path(self.path).is_dir() or (self._in_pieces and not Spool.holds(self.path)):
            return [self]
        files = Spool(self.path).files()
        if not files:
            raise InputError("an empty folder", where=str(self.path), remedy="fetch into it first: python -m pipelines.collect")
        return [dataclasses.replace(self, path=path, name=self.source, window=window) for window, path in files]


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did.

    Attributes:
        quality: report over the given sources, also of those that were unchanged.
        rows: table -> rows in the lake, of all its sources.
        status: source -> ``ingested`` or ``unchanged``.
        data_hash: digest of the lake.
    """

    quality: QualityReport
    rows: dict[str, int]
    status: dict[str, str] = field(default_factory=dict)
    data_hash: str = ""


def load_inventory(path: Path) -> Inventory:
    """Inventory of a JSON file ``{"nodes": {name: {"site", "pool", "gpu_model", "gpus"}}, "shards_per_gpu": 4}``.

    A node may also tell ``max_power_w`` (what it draws at most) and ``gpu_max_power_w`` (each of its GPUs); other keys are ignored.

    Raises:
        InputError: unreadable, a node without site or pool, or a limit that is none.
    """
    value = read_json(path)
    nodes: dict[str, NodeInfo] = {}
    for name, info in mapping_at(value, "nodes", str(path)).items():
        where = f"{path}, node '{name}'"
        nodes[name] = NodeInfo(
            site=str(mapping_at(info, "site", where)),
            pool=str(mapping_at(info, "pool", where)),
            gpu_model=str(info.get("gpu_model", "")),
            gpus=int(info.get("gpus", 0)),
            max_power_w=_watts(info, "max_power_w", where),
            gpu_max_power_w=_watts(info, "gpu_max_power_w", where),
        )
    shards = value.get("shards_per_gpu", 4)
    if not isinstance(shards, int) or shards < 1:
        raise InputError(f"shards_per_gpu {shards!r}", where=str(path), allowed="a whole number from 1")
    return Inventory(nodes=nodes, shards_per_gpu=shards)


def _watts(info: dict[str, Any], key: str, where: str) -> float:
    value = info.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError(f"{key} {value!r}", where=where, allowed="watts above 0, or leave it out")
    return float(value)


def source_digest(spec: SourceSpec, context: ReadContext) -> str:
    """Hex digest of the file's content and of everything else that its tables depend on, but for the clock.

    Raises:
        InputError: the file cannot be opened.
    """
    inventory = {name: asdict(info) for name, info in sorted(context.inventory.nodes.items())}
    told = [
        READERS_VERSION,
        spec.reader,
        context.source,
        inventory,
        context.inventory.shards_per_gpu,
        context.max_grid_gap_s,
        asdict(context.policy),
    ]
    if spec.window is not None:
        told.append(spec.window.stem)
    if spec.options:
        told.append(json.dumps({"options": dict(spec.options)}, sort_keys=True, default=str))
    digest, path = hashlib.sha256(json.dumps(told, default=str).encode()), Path(spec.path)
    files = [*(files_below(path) if path.is_dir() else [path]), *companions_of(reader_named(spec.reader), context)]
    for file in files:
        if path.is_dir() and file.is_relative_to(path):
            digest.update(file.relative_to(path).as_posix().encode())
        try:
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        except OSError as error:
            raise InputError(f"cannot be opened: {error.strerror}", where=str(file), remedy="check the path and its permissions") from error
    return digest.hexdigest()


def ingest_sources(
    lake: Lake,
    sources: Sequence[SourceSpec],
    inventory: Inventory | None = None,
    *,
    max_grid_gap_s: int = DEFAULT_MAX_GRID_GAP_S,
    policy: QualityPolicy | None = None,
    now: pd.Timestamp | None = None,
    replace: bool = False,
    progress: Callable[[str], None] | None = None,
    rows: Callable[[str, int, int], None] | None = None,
) -> IngestResult:
    """Read every source that changed and store them in one step.

    Args:
        inventory: nodes with site and pool; None = what the exports themselves say.
        policy: what is done about each flaw; None = the default.
        now: the clock that times are held against; None = that of this machine. A file with times in the future is read again each time.
        replace: forget sources that the lake holds but that are not given.
        progress: called with the name of each file's source when it is read, or found unchanged.
        rows: called with what is being done, rows done and rows in all, while big inputs are read.

    Raises:
        InputError: no source, an unknown reader, two sources of one name, a job in two sources, or a file that its reader or the policy
            refuses. The lake is as before.
        OSError: the disk is full or not writable; the lake is as before.
    """
    if not sources:
        raise InputError(
            "no files",
            where="source.files",
            allowed=f"[{{path: FILE, reader: {'|'.join(READERS)}}}, ...]",
            remedy="name the exports to read",
        )
    names = [spec.source for spec in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two files are named '{twice[0]}'", where="source.files", remedy="give each a name: {path:, reader:, name:}")
    for spec in sources:
        check_options(reader_named(spec.reader), spec.options, f"source '{spec.source}'")
    files = [part for spec in sources for part in spec.parts()]
    held, fresh = lake.sources(), []
    clock, policy = now if now is not None else pd.Timestamp.now(tz="UTC"), policy or QualityPolicy()
    early = lake.sources_with("future_timestamp")
    scratch = lake.root if isinstance(lake.storage, LocalStorage) else None
    status = dict.fromkeys(names, "unchanged")
    for spec in files:
        context = ReadContext(
            spec.source, inventory or Inventory(), max_grid_gap_s, policy=policy, now=clock, scratch=scratch, progress=rows,
            options=spec.options,
        )  # fmt: skip
        digest = source_digest(spec, context)
        if held.get(spec.key) != digest or spec.key in early:
            status[spec.source] = "ingested"
            fresh.append(_read(spec, context, digest))
        if progress is not None:
            progress(spec.source)
    gone = sorted(set(held) - {spec.key for spec in files}) if replace else []
    _unique_jobs(lake, fresh, gone)
    if fresh or gone:
        lake.ingest(*fresh, remove=gone)
    else:
        lake.tidy()
    return IngestResult(lake.quality().of(names), lake.rows(), status, lake.data_hash())


def _read(spec: SourceSpec, context: ReadContext, digest: str) -> SourceTables:
    """What a reader makes of the file; a reader of pieces begins when the lake takes them.

    The tables of a fetched window may be none, since a system may have been down for all of it.
    """
    reader, path = reader_named(spec.reader), Path(spec.path)
    if isinstance(reader, PieceReader):
        pieces = read_pieces(reader, path, context)
        if spec.window is not None:
            pieces = Pieces(((name, _part_within(spec.window, name, table)) for name, table in pieces.tables), pieces.quality)
        return SourceTables(spec.key, digest, {}, QualityReport(), label=spec.source, pieces=pieces)
    try:
        result = read_export(spec.reader, path, context)
    except NoPointsError:
        if spec.window is None:
            raise
        quality = QualityReport()
        quality.note(context.source, "fetched windows without a point of a known metric")
        return SourceTables(spec.key, digest, {}, quality, label=spec.source)
    return SourceTables(spec.key, digest, _within(spec.window, result.tables), result.quality, label=spec.source)


def _part_within(window: Window, name: str, table: pa.Table) -> pa.Table:
    time = table.column(TIME_COLUMN[name])
    start, end = (pa.scalar(edge).cast(time.type) for edge in (window.start, window.end))
    return table.filter(pc.and_(pc.greater_equal(time, start), pc.less(time, end)))


def _within(window: Window | None, tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Rows of the window alone: what a fetched file holds before it belongs to the file before."""
    if window is None:
        return tables
    kept = {}
    for name, frame in tables.items():
        time = frame[TIME_COLUMN[name]] if name in TIME_COLUMN else None
        kept[name] = frame if time is None else frame[(time >= window.start) & (time < window.end)]
    return kept


def _unique_jobs(lake: Lake, fresh: Sequence[SourceTables], gone: Sequence[str]) -> None:
    """Refuse a job id that two sources claim."""
    changed = {s.source for s in fresh} | set(gone)
    held = lake.table("jobs", columns=["job_id", "source"]) if any("jobs" in s.tables for s in fresh) else None
    owner: dict[str, str] = {}
    if held is not None:
        held = held[~held["source"].isin(changed)]
        owner = dict(zip(held["job_id"], held["source"], strict=True))
    for source in fresh:
        if "jobs" in source.tables:
            for job in source.tables["jobs"]["job_id"]:
                if owner.setdefault(job, source.source) != source.source:
                    raise InputError(
                        f"job '{job}' is also in source '{owner[job]}'",
                        where=f"source '{source.source}'",
                        remedy="do not give the same jobs twice; replace=true forgets the sources of before",
                    )

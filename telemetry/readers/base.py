"""The one interface of all readers, and how their files are opened."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import pandas as pd
import pyarrow as pa

from telemetry.cleaning import clean_samples
from telemetry.errors import InputError
from telemetry.inventory import Inventory
from telemetry.policy import QualityPolicy
from telemetry.quality import QualityReport
from telemetry.raw import PointSource


@dataclass(frozen=True)
class ReadContext:
    """What a reader is told besides the file.

    Attributes:
        source: name that the rows carry in their ``source`` column and the report counts under.
        inventory: nodes with site and pool.
        max_grid_gap_s: longest gap of a price series that is filled; longer ones are refused.
        policy: what is done about each flaw.
        now: the clock that times of samples are held against; None = they are not, and a file is read alike at any time.
        scratch: folder for what does not fit in memory; None = that of temporary files.
        progress: called with what is being done, rows done and rows in all, by readers of big inputs.
        options: what the reader's own ``options`` name.
    """

    source: str
    inventory: Inventory = field(default_factory=Inventory)
    max_grid_gap_s: int = 24 * 3600
    policy: QualityPolicy = field(default_factory=QualityPolicy)
    now: pd.Timestamp | None = None
    scratch: Path | None = None
    progress: Callable[[str, int, int], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def cleaned(self, raw: PointSource, quality: QualityReport, *, where: str) -> pd.DataFrame:
        """Canonical samples of raw points, by this context's inventory, policy and clock; see :func:`telemetry.cleaning.clean_samples`."""
        return clean_samples(raw, self.inventory, quality, where=where, policy=self.policy, now=self.now)


@dataclass(frozen=True)
class ReadResult:
    """Canonical tables by name (``samples``, ``jobs``, ``grid``, ``reference``), and what was found on the way."""

    tables: dict[str, pd.DataFrame]
    quality: QualityReport


@dataclass(frozen=True)
class Pieces:
    """A result too big for memory: parts of canonical tables, one after another. A series of samples is in one part, sorted by time.

    Attributes:
        tables: table name and part; text columns are dictionaries, times ``timestamp[us, UTC]``. What it reads from is closed at its end.
        quality: what was found on the way; complete once ``tables`` has ended.
    """

    tables: Iterator[tuple[str, pa.Table]]
    quality: QualityReport


class Mapped(NamedTuple):
    """One name of a source, and what it becomes: a row of docs/telemetry.md."""

    source: str
    canonical: str
    unit: str = ""
    labels: str = ""


class Reader(Protocol):
    """Reads one export format.

    Every reader: times become UTC; the tables fit ``telemetry.schema``; what is dropped or repaired is counted; the same file gives the
    same result; ``InputError`` names file and place when the file cannot be read at all (missing, empty, cut short, another format).

    A reader of big inputs has ``read_pieces(path, context) -> Pieces`` besides: the same rows and counts, in bounded memory. Its ``path``
    may be a folder.
    A reader may also have ``mapping() -> Sequence[Mapped]``, ``options`` (name -> meaning) and ``companions`` (options that name files).
    """

    name: ClassVar[str]
    reads: ClassVar[str]  # one line for --help and errors
    # What its tests read, for docs/telemetry.md.
    tested: ClassVar[str]

    def read(self, path: Path, context: ReadContext) -> ReadResult: ...


@runtime_checkable
class PieceReader(Protocol):
    """A reader of big inputs; see :class:`Reader`."""

    def read_pieces(self, path: Path, context: ReadContext) -> Pieces: ...


def check_options(reader: Any, options: Mapping[str, Any], where: str) -> None:
    """Refuse an option that the reader does not have.

    Raises:
        InputError: names it and those that there are.
    """
    known: Mapping[str, str] = getattr(reader, "options", {})
    unknown = sorted(str(name) for name in options if name not in known)
    if unknown:
        told = "; ".join(f"{name}: {meaning}" for name, meaning in known.items()) or "none"
        raise InputError(f"unknown option '{unknown[0]}' of reader '{reader.name}'", where=where, allowed=told)


def companions_of(reader: Any, context: ReadContext) -> Sequence[Path]:
    """Files that the reader opens besides the one it is given, because an option names them (one that says it all itself names none)."""
    names: Sequence[str] = getattr(reader, "companions", ())
    return [Path(context.options[name]) for name in names if isinstance(context.options.get(name), str)]


def read_bytes(path: Path) -> bytes:
    """Whole content of a plain or gzipped file (by content, not by name).

    Raises:
        InputError: missing, empty, corrupt or truncated gzip.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", where=str(path), remedy="check the path and its permissions") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"corrupt or truncated gzip ({error})", where=str(path), remedy="export or copy the file again") from error
    elif path.suffix == ".gz" and data:
        raise InputError("corrupt gzip: the header is missing", where=str(path), remedy="export or copy the file again")
    if not data.strip():
        raise InputError("empty export", where=str(path), remedy="check the query and its time range")
    return data


def read_text(path: Path) -> str:
    """Whole text of a plain or gzipped file.

    Raises:
        InputError: as :func:`read_bytes`, or empty, or not UTF-8.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text at byte {error.start}", where=str(path)) from error
    if not text.strip():
        raise InputError("empty export", where=str(path), remedy="check the query and its time range")
    return text


def read_json(path: Path) -> Any:
    """JSON of a plain or gzipped file.

    Raises:
        InputError: as :func:`read_text`, or no JSON, with line and column.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "deep nesting"
        problem = "truncated JSON" if isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()) - 1 else "no valid JSON"
        raise InputError(problem, where=f"{path}, {at}", remedy="export the file again") from error


def mapping_at(value: Any, key: str, where: str) -> Any:
    """``value[key]`` of a JSON object.

    Raises:
        InputError: no object, or without the key.
    """
    if not isinstance(value, dict) or key not in value:
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise InputError(f"missing key '{key}' (found {found[:120]})", where=where, remedy="is this the right reader for the file?")
    return value[key]

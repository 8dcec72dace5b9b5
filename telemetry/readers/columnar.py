"""Files in columns: Parquet and Arrow IPC, one or a folder of them, as batches with canonical column names."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from telemetry.errors import InputError

SPELLINGS: dict[str, tuple[str, ...]] = {
    "time": ("time", "timestamp", "ts", "time_ms", "timestamp_ms"),
    "value": ("value",),
    "metric": ("metric", "__name__", "metric_name"),
    "unit": ("unit",),
    "service": ("service", "service_name", "exported_service"),
    "site": ("site",),
    "namespace": ("namespace", "exported_namespace", "pod_namespace"),
    "team": ("team", "label_team"),
    "project": ("project", "label_project"),
    "node": ("node", "Hostname", "hostname", "nodename", "instance"),
    "device": ("device",),
    "gpu": ("gpu",),
    "mig": ("GPU_I_ID",),
    "pod_uid": ("pod_uid", "pod", "pod_name", "exported_pod"),
}
SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
_HIVE = re.compile(r"([A-Za-z_]\w*)=(.*)")
_BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, KeyError, TypeError)


@dataclass(frozen=True)
class ColumnarFile:
    """One file, its columns found.

    Attributes:
        columns: canonical name -> the file's own.
        fixed: canonical name -> value, of the folders that it lies in.
        rows: in the file.
        time_unit: of a time that is a number, ``s`` or ``ms``.
    """

    path: Path
    columns: Mapping[str, str]
    fixed: Mapping[str, str]
    rows: int
    time_unit: str

    @property
    def where(self) -> str:
        return str(self.path)

    def batches(self, rows: int, wanted: Sequence[str] = tuple(SPELLINGS)) -> Iterator[pa.Table]:
        """Tables of at most ``rows`` rows with those of the ``wanted`` columns that there are; text as dictionaries.

        Raises:
            InputError: the file is damaged.
        """
        chosen = [name for name in wanted if name in self.columns]
        own = [self.columns[name] for name in chosen]
        try:
            for batch in _raw_batches(self.path, own, rows, text=[self.columns[n] for n in chosen if n not in ("time", "value")]):
                columns = {name: batch.column(self.columns[name]) for name in chosen}
                for name in wanted:
                    if name in self.fixed:
                        codes = pa.Array.from_buffers(pa.int32(), batch.num_rows, [None, pa.py_buffer(bytes(4 * batch.num_rows))])
                        columns[name] = pa.DictionaryArray.from_arrays(codes, [self.fixed[name]])
                yield pa.table(columns) if columns else pa.table({"nothing": pa.nulls(batch.num_rows)})
        except InputError:
            raise
        except _BROKEN as error:
            raise _damaged(self.path, error) from error


def columnar_files(path: Path) -> list[ColumnarFile]:
    """The file, or all of a folder by name.

    Raises:
        InputError: missing, empty, another format, or without one of the columns time, metric and value.
    """
    if not path.is_dir():
        return [_described(path, path.parent)]
    found = files_below(path)
    if not found:
        raise InputError("no file to read in the folder", where=str(path), allowed=f"names that end in {', '.join(SUFFIXES)}")
    return [_described(file, path) for file in found]


def files_below(path: Path) -> list[Path]:
    """Files in columns below a folder, by name."""
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix in SUFFIXES and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    ]


def _described(path: Path, root: Path) -> ColumnarFile:
    try:
        names, rows, types = _header(path)
    except InputError:
        raise
    except _BROKEN as error:
        raise _damaged(path, error) from error
    folders = [match.groups() for part in path.relative_to(root).parts[:-1] if (match := _HIVE.fullmatch(part))]
    columns = {name: own for name, spellings in SPELLINGS.items() if (own := next((s for s in spellings if s in names), None))}
    fixed = {
        name: value for key, value in folders for name, spellings in SPELLINGS.items() if key in spellings and name not in ("time", "value")
    }
    fixed = {name: value for name, value in fixed.items() if name not in columns}
    for name in ("time", "metric", "value"):
        if name not in columns and name not in fixed:
            raise InputError(
                f"missing column '{name}' (found {', '.join(names)[:120]})",
                where=str(path),
                allowed=" or ".join(SPELLINGS[name]),
                remedy="rename the column",
            )
    for name, own in columns.items():
        kind = types[names.index(own)]
        text = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(text) or (
            name == "time" and not (pa.types.is_timestamp(text) or pa.types.is_integer(text) or pa.types.is_floating(text))
        ):
            raise InputError(
                f"column '{own}' is {kind}", where=str(path), allowed="timestamp or seconds" if name == "time" else "one value a row"
            )
    return ColumnarFile(path, columns, fixed, rows, "ms" if columns["time"].endswith("_ms") else "s")


def _source(path: Path) -> pa.NativeFile | io.BytesIO:
    """The file, opened; a gzipped one is unpacked in memory.

    Raises:
        InputError: missing, empty, or corrupt gzip.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", where=str(path), remedy="check the path and its permissions") from error
    if not head.strip():
        raise InputError("empty export", where=str(path), remedy="check the query and its time range")
    if head[:2] == b"\x1f\x8b":
        try:
            return io.BytesIO(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"corrupt or truncated gzip ({error})", where=str(path), remedy="export or copy the file again") from error
    if path.suffix == ".gz":
        raise InputError("corrupt gzip: the header is missing", where=str(path), remedy="export or copy the file again")
    return pa.memory_map(str(path))


def _header(path: Path) -> tuple[list[str], int, list[pa.DataType]]:
    """Names of the columns, number of rows, types."""
    with _source(path) as source:
        magic = bytes(source.read(6))
        source.seek(0)
        if magic[:4] == b"PAR1":
            file = pq.ParquetFile(source)
            schema = file.schema_arrow
            return schema.names, file.metadata.num_rows, list(schema.types)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(source)
            rows = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
            return reader.schema.names, rows, list(reader.schema.types)
    raise InputError("neither Parquet nor an Arrow IPC file", where=str(path), remedy="is this the right reader for the file?")


def _raw_batches(path: Path, columns: list[str], rows: int, text: list[str]) -> Iterator[pa.Table]:
    with _source(path) as source:
        magic = bytes(source.read(4))
        source.seek(0)
        if magic == b"PAR1":
            file = pq.ParquetFile(source, read_dictionary=text, page_checksum_verification=True, pre_buffer=False)
            for batch in file.iter_batches(rows, columns=columns, use_threads=True):
                yield pa.Table.from_batches([batch])
            return
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            whole = reader.get_batch(index)
            whole.validate(full=True)
            for first in range(0, whole.num_rows, rows):
                yield pa.Table.from_batches([whole.select(columns).slice(first, rows)])


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
        where=str(path),
        remedy="export or copy the file again",
    )

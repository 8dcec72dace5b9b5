"""Label groups and times of samples in columns: which rows of a batch have the same text, over all batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from telemetry.errors import InputError
from telemetry.raw import FIRST_S, LAST_S
from telemetry.spill import NO_TIME, NS_PER_MS, PairIndex

# From few distinct values to many: the tables of pairs stay small for long.
TEXT = ("metric", "unit", "service", "site", "namespace", "team", "project", "node", "device", "gpu", "mig", "pod_uid")
_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class GroupIndex:
    """A code for each distinct combination of the text columns, in order of first occurrence; keeps growing over batches."""

    def __init__(self, columns: Sequence[str] = TEXT) -> None:
        self.columns = tuple(columns)
        self._codes: list[dict[str, int]] = [{"": 0} for _ in columns]
        self._names: list[list[str]] = [[""] for _ in columns]
        self._pairs = [PairIndex() for _ in columns[1:]]

    @property
    def count(self) -> int:
        """Groups so far."""
        return self._pairs[-1].count

    def groups(self, batch: pa.Table) -> np.ndarray:
        """Group of each row, int32 [N]; a column that is not there is blank, and so is null."""
        there = set(batch.column_names)
        known = [self._column(i, batch.column(name)) if name in there else None for i, name in enumerate(self.columns)]
        nothing = np.zeros(batch.num_rows, dtype=np.int32)
        group = nothing if known[0] is None else known[0]
        for pairs, own in zip(self._pairs, known[1:], strict=True):
            group = pairs.codes(group, nothing if own is None else own)
        return group

    def _column(self, index: int, column: pa.ChunkedArray) -> np.ndarray:
        parts = []
        for chunk in column.chunks:
            if not pa.types.is_dictionary(chunk.type):
                chunk = chunk.dictionary_encode()
            local = [self._code(index, value) for value in chunk.dictionary.to_pylist()]
            codes = np.array([*local, 0], dtype=np.int32)
            at = chunk.indices
            if at.null_count:
                at = pc.fill_null(at.cast(pa.int32()), len(local))
            parts.append(codes[at.to_numpy(zero_copy_only=False)])
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def _code(self, index: int, value: object) -> int:
        text = "" if value is None else value.decode() if isinstance(value, bytes) else str(value)
        codes, names = self._codes[index], self._names[index]
        if text not in codes:
            codes[text] = len(names)
            names.append(text)
        return codes[text]

    def texts(self, first: int = 0) -> Iterator[tuple[str, ...]]:
        """Text of each group from ``first`` on, in the order of ``columns``."""
        columns = []
        left, right = self._pairs[-1].pairs(first)
        for index in range(len(self.columns) - 1, 0, -1):
            columns.append([self._names[index][code] for code in right])
            if index > 1:
                lefts, rights = self._pairs[index - 2].pairs()
                left, right = lefts[left], rights[left]
        columns.append([self._names[0][code] for code in left])
        return zip(*reversed(columns), strict=True)


def times_of(column: pa.ChunkedArray, unit: str, where: str) -> np.ndarray:
    """Nanoseconds since 1970 [N], rounded to milliseconds; ``NO_TIME`` where there is none between 2000 and 2100.

    Args:
        unit: of times that are numbers, ``s`` or ``ms``.

    Raises:
        InputError: the column is no time.
    """
    kind = column.type
    if pa.types.is_floating(kind):
        number = column.to_numpy() / _PER_S[unit]
        bad = ~((number >= FIRST_S) & (number < LAST_S))
        return np.where(bad, NO_TIME, np.round(np.where(bad, 0.0, number) * 1e3).astype(np.int64) * NS_PER_MS)
    if pa.types.is_timestamp(kind):
        unit = kind.unit
    elif not pa.types.is_integer(kind):
        raise InputError(f"time is {kind}", where=where, allowed="timestamp, or seconds since 1970")
    whole = column.cast(pa.int64(), safe=False)
    number = pc.fill_null(whole, NO_TIME).to_numpy()
    per_s = _PER_S[unit]
    bad = (number < FIRST_S * per_s) | (number >= LAST_S * per_s)
    if per_s > 1000:
        number = (number + per_s // 2000) // (per_s // 1000)
    elif per_s < 1000:
        number = number * (1000 // per_s)
    return np.where(bad, NO_TIME, number * NS_PER_MS)

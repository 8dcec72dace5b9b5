"""Points too many for memory, sorted into buckets of whole entities on disk and read back one bucket at a time, in file order.

Each batch of a bucket is one block: the number of points, the unit of its times, then group (int32), time and value (float64). Times are
milliseconds, as int32 from the block's first where that fits: a block of 24 days or less takes 16 bytes a point.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numba import njit

NO_TIME = np.iinfo(np.int64).min
NS_PER_MS = 1_000_000
_SHORT = np.iinfo(np.int32).max
_compiled = njit(nogil=True, cache=True)


@_compiled
def _rows_by_bucket(bucket: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows by bucket (stable), and where each bucket begins [count + 1]."""
    start = np.zeros(count + 1, dtype=np.int64)
    for b in bucket:
        start[b + 1] += 1
    for b in range(count):
        start[b + 1] += start[b]
    at = start[:-1].copy()
    rows = np.empty(len(bucket), dtype=np.int32)
    for i in range(len(bucket)):
        rows[at[bucket[i]]] = i
        at[bucket[i]] += 1
    return rows, start


@_compiled
def _find(left: np.ndarray, right: np.ndarray, slots: np.ndarray, keys: np.ndarray, count: int) -> tuple[np.ndarray, int, int]:
    """Codes of pairs by a hash table with open addressing; stops before a row that would fill it. Returns codes, pairs known, rows done."""
    mask = np.uint64(len(slots) - 1)
    codes = np.empty(len(left), dtype=np.int32)
    last_key, last_code = np.int64(-1), np.int32(0)
    for i in range(len(left)):
        key = (np.int64(left[i]) << 32) | np.int64(right[i])
        if key == last_key:
            codes[i] = last_code
            continue
        mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth, TAOCP 3, 6.4), twice: both halves count
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        at = (mixed >> np.uint64(32)) & mask
        while slots[at] >= 0 and keys[slots[at]] != key:
            at = (at + np.uint64(1)) & mask
        if slots[at] < 0:
            if count * 2 >= len(slots) or count == len(keys):
                return codes, count, i
            slots[at], keys[count] = count, key
            count += 1
        last_key, last_code = key, slots[at]
        codes[i] = last_code
    return codes, count, len(left)


class PairIndex:
    """A code for each distinct pair of codes, in order of first occurrence; keeps growing over batches."""

    def __init__(self) -> None:
        self.count = 0
        self._slots, self._keys = np.full(1 << 12, -1, dtype=np.int32), np.empty(1 << 11, dtype=np.int64)

    def codes(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """int32 [N] of two int32 [N]."""
        parts, done = [], 0
        while True:
            found, self.count, rows = _find(left[done:], right[done:], self._slots, self._keys, self.count)
            parts.append(found[:rows])
            done += rows
            if done == len(left):
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._grow()

    def _grow(self) -> None:
        keys = np.empty(len(self._keys) * 2, dtype=np.int64)
        keys[: self.count] = self._keys[: self.count]
        self._slots, self._keys = np.full(len(self._slots) * 2, -1, dtype=np.int32), np.empty(0, dtype=np.int64)
        known = keys[: self.count]
        self._keys = keys
        _find((known >> 32).astype(np.int32), (known & 0xFFFFFFFF).astype(np.int32), self._slots, keys, 0)

    def pairs(self, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Left and right code of each pair from ``first`` on."""
        known = self._keys[first : self.count]
        return (known >> 32).astype(np.int64), (known & 0xFFFFFFFF).astype(np.int64)


class Spill:
    """Buckets of points; in memory where there is one. Use as a context: its files go with it.

    Args:
        folder: where its folder is made; None = that of temporary files.
    """

    def __init__(self, buckets: int, folder: Path | None) -> None:
        self.rows = [0] * buckets
        self._held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._root: Path | None = None
        self._files: list[BinaryIO] = []
        if buckets > 1:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix=".staging-spill-", dir=folder))
            self._files = [(self._root / str(b)).open("wb") for b in range(buckets)]

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove its files."""
        for file in self._files:
            file.close()
        self._held = []
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def add(self, bucket_of_group: np.ndarray, group: np.ndarray, time_ns: np.ndarray, value: np.ndarray) -> None:
        """Points of a batch, in file order; ``NO_TIME`` = without a readable one."""
        if not self._files:
            self._held.append((group, time_ns, value))
            self.rows[0] += len(group)
            return
        rows, start = _rows_by_bucket(bucket_of_group[group], len(self._files))
        group, time_ns, value = group[rows], time_ns[rows], value[rows]
        for b in np.flatnonzero(np.diff(start)).tolist():
            own = slice(int(start[b]), int(start[b + 1]))
            self._write(b, group[own], time_ns[own], value[own])

    def _write(self, b: int, group: np.ndarray, time_ns: np.ndarray, value: np.ndarray) -> None:
        base, short = int(time_ns[0]), False
        if base != NO_TIME and int(time_ns.min()) != NO_TIME:
            offset = (time_ns - base) // NS_PER_MS
            short = bool(np.abs(offset).max() <= _SHORT)
        times = offset.astype(np.int32) if short else time_ns
        file = self._files[b]
        file.write(np.array([len(group), int(short), base], dtype=np.int64).tobytes())
        for array in (group, times, value):
            file.write(np.ascontiguousarray(array).data)
        self.rows[b] += len(group)

    def flush(self) -> None:
        """All that was added can be read from here on."""
        for file in self._files:
            file.flush()

    def read(self, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Group (int32), time (ns) and value of a bucket's points, in file order."""
        if self._root is None:
            if len(self._held) > 1:
                self._held = [tuple(np.concatenate(parts) for parts in zip(*self._held, strict=True))]  # type: ignore[misc]
            if self._held:
                return self._held[0]
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64), np.empty(0)
        n, at = self.rows[b], 0
        group, time_ns, value = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int64), np.empty(n)
        with (self._root / str(b)).open("rb") as file:
            while at < n:
                size, short, base = np.frombuffer(file.read(24), dtype=np.int64).tolist()
                own = slice(at, at + size)
                file.readinto(group[own].data.cast("B"))
                if short:
                    time_ns[own] = np.frombuffer(file.read(4 * size), dtype=np.int32).astype(np.int64) * NS_PER_MS + base
                else:
                    file.readinto(time_ns[own].data.cast("B"))
                file.readinto(value[own].data.cast("B"))
                at += size
        return group, time_ns, value


def ranges(names: Sequence[str], rows: Sequence[int], most: int) -> Callable[[str], int]:
    """Buckets of neighbouring names, each of about ``most`` rows at most (one name is never cut): name -> bucket.

    Args:
        names, rows: distinct names and how many rows each has.
    """
    bucket, held, found = 0, 0, {}
    for name, count in sorted(zip(names, rows, strict=True)):
        if held and held + count > most:
            bucket, held = bucket + 1, 0
        found[name] = bucket
        held += count
    return found.__getitem__

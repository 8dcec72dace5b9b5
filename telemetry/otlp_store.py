"""Received OTLP requests on disk: one file of JSON lines per window of data time, finished by a rename, a spool that ``ingest`` reads.

::

    ROOT/20261124T000000Z_20261124T001000Z.jsonl.gz         finished: never written again
    ROOT/.open-20261124T001000Z_20261124T002000Z.jsonl      being written; every acknowledged request is in it and synced

A request goes into the window of each of its points, and also into the next one where a point lies in the last ``lookback_s`` of its
window, so that no counter interval is lost between files (``ingest`` keeps a file's own window). A window is finished ``grace_s`` after its
end; points that come later are refused, and so counted by their sender. A kill leaves open files, whose last line may be cut: the next
start cuts it off and goes on.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from telemetry.errors import InputError
from telemetry.spool import NAME, STAMP, Spool, Window

PREFIX = ".open-"


class FullError(Exception):
    """A window's file has reached its limit."""


@dataclass(frozen=True)
class StoreConfig:
    """How received requests are kept.

    Attributes:
        window_s: length of a window of data time.
        lookback_s: how far a file reaches back before its window: at least one export interval.
        grace_s: how long after its end a window waits for late points.
        ahead_s: how far a sender's clock may be ahead.
        max_window_mib: size of an open file at which requests for it are turned away.
    """

    window_s: int = 600
    lookback_s: int = 120
    grace_s: int = 300
    ahead_s: int = 60
    max_window_mib: int = 512

    def __post_init__(self) -> None:
        for name in ("window_s", "max_window_mib"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)}", where=name, allowed="1 or more")
        for name in ("lookback_s", "grace_s", "ahead_s"):
            if getattr(self, name) < 0:
                raise InputError(f"{getattr(self, name)}", where=name, allowed="0 or more seconds")
        if self.lookback_s > self.window_s:
            raise InputError(f"{self.lookback_s}", where="lookback_s", allowed=f"at most window_s, {self.window_s}")


class RequestStore:
    """See the module. Safe for threads; one process per folder."""

    def __init__(self, root: Path | str, config: StoreConfig | None = None) -> None:
        self.root, self.config = Path(root), config or StoreConfig()
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._files: dict[Window, BinaryIO] = {}
        finished = Spool(self.root).files()
        self._finished_s = finished[-1][0].end.timestamp() if finished else 0.0
        self._recover({window.stem for window, _ in finished})

    def _recover(self, finished: set[str]) -> None:
        for path in sorted(self.root.glob(f"{PREFIX}*")):
            match = NAME.fullmatch(path.name.removeprefix(PREFIX))
            if match is None:
                continue
            start, end = (pd.to_datetime(stamp, format=STAMP, utc=True) for stamp in match.groups())
            window = Window(start, end)
            if window.stem in finished:
                path.unlink()
                continue
            file = path.open("r+b", buffering=0)
            _cut_last_line(file)
            self._files[window] = file

    def add(self, line: bytes, times_s: Sequence[float], now_s: float) -> tuple[int, int]:
        """Store a request, synced, in the windows of its points; numbers of points that are too old and too far ahead to be stored.

        Args:
            line: the request as JSON, without a line end.
            times_s: times of its points, seconds since 1970.

        Raises:
            FullError: a window's file is full; nothing is stored.
            OSError: the disk is full or not writable; nothing is stored.
        """
        config = self.config
        old = [t for t in times_s if t < self._oldest_s(now_s)]
        ahead = [t for t in times_s if t > now_s + config.ahead_s]
        good = {t for t in times_s if self._oldest_s(now_s) <= t <= now_s + config.ahead_s}
        starts = {t // config.window_s for t in good} | {(t + config.lookback_s) // config.window_s for t in good}
        windows = [self._window(int(start) * config.window_s) for start in sorted(starts)]
        with self._lock:
            written: list[tuple[BinaryIO, int]] = []
            try:
                for window in windows:
                    if window.start.timestamp() >= self._finished_s:
                        self._append(window, line + b"\n", written)
                for file, _ in written:
                    os.fsync(file.fileno())
            except BaseException:
                for file, size in written:
                    file.truncate(size)
                    file.seek(size)
                raise
        return len(old), len(ahead)

    def _append(self, window: Window, data: bytes, written: list[tuple[BinaryIO, int]]) -> None:
        file = self._files.get(window)
        if file is None:
            file = self._files[window] = (self.root / f"{PREFIX}{window.stem}.jsonl").open("xb", buffering=0)
            _sync_folder(self.root)
        size = file.seek(0, os.SEEK_END)
        if size + len(data) > self.config.max_window_mib * 2**20:
            raise FullError(f"the window from {window.start} holds {self.config.max_window_mib} MiB")
        written.append((file, size))
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]

    def _oldest_s(self, now_s: float) -> float:
        """Start of the oldest window that still takes points."""
        length = self.config.window_s
        return max(((now_s - self.config.grace_s) // length) * length, self._finished_s)

    def _window(self, start_s: int) -> Window:
        return Window(pd.Timestamp(start_s, unit="s", tz="UTC"), pd.Timestamp(start_s + self.config.window_s, unit="s", tz="UTC"))

    def finish_due(self, now_s: float) -> list[Path]:
        """Finish the windows whose grace has passed; their files, oldest first.

        Raises:
            OSError: the disk is full or not writable; what is open stays open.
        """
        return [self._finish(window) for window in self._open() if window.end.timestamp() + self.config.grace_s <= now_s]

    def finish_all(self, now_s: float) -> list[Path]:
        """Finish every window that has begun: points that come for them later are refused."""
        return [self._finish(window) for window in self._open() if window.start.timestamp() <= now_s]

    def _open(self) -> list[Window]:
        with self._lock:
            return sorted(self._files, key=lambda window: window.start)

    def _finish(self, window: Window) -> Path:
        """Pack and rename a window's file; without the lock, since none of its points is taken any more."""
        source, target = self.root / f"{PREFIX}{window.stem}.jsonl", self.root / f"{window.stem}.jsonl.gz"
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self.root)
        try:
            with os.fdopen(handle, "wb") as out, source.open("rb") as lines:
                with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed:
                    shutil.copyfileobj(lines, packed)
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(self.root)
        with self._lock:
            self._files.pop(window).close()
            self._finished_s = max(self._finished_s, window.end.timestamp())
        source.unlink()
        return target

    def close(self) -> None:
        """Close the open files; the next start goes on with them."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()


def _cut_last_line(file: BinaryIO) -> None:
    """Cut off what stands after the last line end: a request that was not acknowledged."""
    at = file.seek(0, os.SEEK_END)
    end = 0
    while at > 0 and not end:
        start = max(at - 65536, 0)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        end = start + found + 1 if found >= 0 else 0
        at = start
    file.truncate(end)
    file.seek(end)


def _sync_folder(root: Path) -> None:
    """Make a new name in the folder last."""
    handle = os.open(root, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

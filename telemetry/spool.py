"""Spool: exports that a collector fetched, one native file per time window, in a folder that ``ingest`` reads as one source.

::

    ROOT/20261124T000000Z_20261124T060000Z.json.gz    everything with start <= time < end, and a little before it
    ROOT/.new-*                                       being written; never read

A file is written whole or not at all, so what is there is done: a collector that was killed goes on with the windows that are missing. The
file may reach back before its window (``LOOKBACK_S``), so that a counter's first interval has both its ends; ``ingest`` keeps the window.
"""

from __future__ import annotations

import gzip
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from telemetry.errors import InputError

STAMP = "%Y%m%dT%H%M%SZ"
NAME = re.compile(r"(\d{8}T\d{6}Z)_(\d{8}T\d{6}Z)\.[A-Za-z0-9.]+")


@dataclass(frozen=True)
class Window:
    """Times ``start <= t < end``, UTC."""

    start: pd.Timestamp
    end: pd.Timestamp

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise InputError(f"from {self.start} to {self.end}", where="time window", allowed="an end after its start")

    @property
    def stem(self) -> str:
        return f"{self.start.strftime(STAMP)}_{self.end.strftime(STAMP)}"


def windows_between(start: pd.Timestamp, end: pd.Timestamp, length: pd.Timedelta) -> Iterator[Window]:
    """Windows of ``length`` on a grid counted from 1970, cut at ``start`` and ``end``: the same windows whenever it is asked."""
    at = start
    while at < end:
        edge = min(at.floor(length) + length, end)
        yield Window(at, edge)
        at = edge


class Spool:
    """A folder of fetched windows; created on the first write."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @staticmethod
    def holds(root: Path | str) -> bool:
        """Whether a folder has nothing but windows in it."""
        names = [path.name for path in Path(root).iterdir() if not path.name.startswith(".")]
        return bool(names) and all(NAME.fullmatch(name) for name in names)

    def files(self) -> list[tuple[Window, Path]]:
        """Windows that are there, by start.

        Raises:
            InputError: a file whose name is no window, or two windows that overlap.
        """
        found = []
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if path.name.startswith("."):
                continue
            match = NAME.fullmatch(path.name)
            if match is None:
                raise InputError(
                    f"file '{path.name}'", where=str(self.root), allowed="START_END.ext with times such as 20261124T000000Z",
                    remedy="name single files in source.files instead, or move this one away",
                )  # fmt: skip
            start, end = (pd.to_datetime(stamp, format=STAMP, utc=True) for stamp in match.groups())
            if found and start < found[-1][0].end:
                raise InputError(
                    f"windows of '{found[-1][1].name}' and '{path.name}' overlap", where=str(self.root), remedy="remove one of them"
                )
            found.append((Window(start, end), path))
        return found

    def missing(self, start: pd.Timestamp, end: pd.Timestamp, length: pd.Timedelta) -> list[Window]:
        """Windows between the times that are not there yet, cut around those that are."""
        gaps, at = [], start
        for window, _ in self.files():
            if window.end <= at or window.start >= end:
                continue
            if window.start > at:
                gaps.append((at, window.start))
            at = max(at, window.end)
        if at < end:
            gaps.append((at, end))
        return [window for first, last in gaps for window in windows_between(first, last, length)]

    def write(self, window: Window, suffix: str, data: bytes) -> Path:
        """Store a window; ``suffix`` such as ``json`` is followed by ``.gz``, and the data are packed.

        Raises:
            OSError: the disk is full or not writable; nothing is left behind.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        target = self.root / f"{window.stem}.{suffix}.gz"
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self.root)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(gzip.compress(data, mtime=0))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return target

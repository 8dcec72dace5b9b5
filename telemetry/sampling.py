"""Systems that tell only the present: asked every so often, and what they say kept in a spool, one file per span of time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from telemetry.errors import InputError
from telemetry.spool import Spool, Window


class Sampler(Protocol):
    """Tells of the present, in the native format of the reader named ``reader``; texts of several times may be joined end to end.

    Attributes:
        counts: whether it tells of counters, so that a file needs the last sample of the file before.
    """

    reader: str
    suffix: str
    counts: bool

    def sample(self, now: pd.Timestamp) -> bytes: ...


@dataclass(frozen=True)
class Pace:
    """How often is sampled, and how much goes into a file.

    Attributes:
        interval_s: between samples, on a grid counted from 1970: samples of several machines fall together.
        window_s: of a file, on the same grid; what is not yet written is lost when the process is killed.
        seconds: in all; 0 = until stopped.
    """

    interval_s: float = 1.0
    window_s: float = 60.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, low in (("interval_s", 0.01), ("window_s", 1.0), ("seconds", 0.0)):
            value = getattr(self, name)
            if not (low <= value < math.inf):
                raise InputError(f"{value}", where=name, allowed=f"{low:g} or more seconds")


def sample_into(
    spool: Spool, sampler: Sampler, pace: Pace, stop: threading.Event, *, told: Callable[[Window, int], None] | None = None
) -> list[Window]:
    """Sample until ``pace.seconds`` are over or ``stop`` is set; each file is written whole or not at all.

    A file of counters begins with the last sample of the file before, so that the interval between them is not lost; ``ingest`` keeps each
    file's own window.

    Args:
        told: called with each window that was written and the number of its samples.

    Returns:
        The windows that were written.

    Raises:
        InputError: what the sampler raises; what was sampled before is written first.
        OSError: the disk is full or not writable.
    """
    written: list[Window] = []
    last = b""
    start = _first_start(spool)
    until = start + pd.Timedelta(pace.seconds or 10**9, unit="s")
    while start < until and not stop.is_set():
        end = min(_edge(start, pace.window_s), until.ceil("s"))
        window_parts, before = [], last if sampler.counts else b""
        try:
            for now in _times(start, min(end, until), pace.interval_s, stop):
                last = sampler.sample(now)
                window_parts.append(last)
        finally:
            if window_parts:
                # Cut short by a stop or an error, a window ends with what was sampled, so that the next run may begin.
                now = pd.Timestamp.now("UTC") + pd.Timedelta("1ms")  # a window is open at its end
                cut = min(end, max(now.ceil("s"), start + pd.Timedelta("1s")))
                window = Window(start, cut)
                spool.write(window, sampler.suffix, before + b"".join(window_parts))
                written.append(window)
                if told is not None:
                    told(window, len(window_parts))
        start = end
    return written


def _first_start(spool: Spool) -> pd.Timestamp:
    """Now in whole seconds, or the end of the last window where that is later (a clock that was set back, a run that ended just now)."""
    files = spool.files()
    now = pd.Timestamp.now("UTC").ceil("s")
    return max(now, files[-1][0].end) if files else now


def _edge(start: pd.Timestamp, window_s: float) -> pd.Timestamp:
    """End of the window that ``start`` lies in, in whole seconds."""
    seconds = start.timestamp()
    return pd.Timestamp(math.ceil((math.floor(seconds / window_s) + 1) * window_s), unit="s", tz="UTC")


def _times(start: pd.Timestamp, end: pd.Timestamp, interval_s: float, stop: threading.Event) -> Iterator[pd.Timestamp]:
    """Times of the grid from ``start`` until before ``end``, each when it has come; what passes while a sample takes long is left out."""
    tick = math.ceil(start.timestamp() / interval_s - 1e-9)
    while not stop.is_set():
        now_s = pd.Timestamp.now("UTC").timestamp()
        tick = max(tick, math.ceil(now_s / interval_s - 1e-9))
        due = pd.Timestamp(round(tick * interval_s * 1e3), unit="ms", tz="UTC")
        if due >= end:
            stop.wait(max(end.timestamp() - now_s, 0.0))
            return
        if stop.wait(max(due.timestamp() - now_s, 0.0)):
            return
        yield due
        tick += 1

"""What the sampling commands share: a loop until stopped, a line per file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from telemetry.errors import InputError
from telemetry.sampling import Pace, Sampler, sample_into
from telemetry.spool import Spool, Window


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that what was sampled is written before the end."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(*_: Any) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(sampler: Sampler, pace: Pace, out: str) -> int:
    """Sample into the spool ``out``; prints each file and how ingest reads it. Returns the number of samples.

    Raises:
        InputError: what the sampler raises, or no room on the disk.
    """
    counts: list[int] = []

    def told(window: Window, samples: int) -> None:
        counts.append(samples)
        print(f"{window.stem}.{sampler.suffix}.gz: {samples} samples", flush=True)

    with stopped_by_signals() as stop:
        try:
            sample_into(Spool(out), sampler, pace, stop, told=told)
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror or error})", where=out, remedy="make room or permit writing") from error
    if counts:
        print(f"read it: python -m pipelines.ingest source=files 'source.files=[{{path: {out}, reader: {sampler.reader}}}]'")
    return sum(counts)

"""``python -m pipelines.collect``: windows of a live system into a spool, which ``python -m pipelines.ingest`` reads."""

from __future__ import annotations

import fcntl
import logging
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.cli import build, hydra_command
from telemetry.collectors import COLLECTORS, Collector, UnavailableError, collect
from telemetry.errors import InputError
from telemetry.spool import Spool, Window
from telemetry.times import parse_time_s

LOG = logging.getLogger(__name__)
RELATIVE = re.compile(r"-\d+(?:\.\d+)?(?:s|min|h|d)")
TIMES = "now, a span back such as -90min, -6h or -7d, or an ISO 8601 time (UTC unless it has a zone)"


@dataclass(frozen=True)
class CollectConfig:
    """Everything but the collector.

    Attributes:
        start, end: see ``TIMES``. What lies less than ``settle_s`` back is left for the next run.
        out: folder of the spool.
        chunk_h: length of a window, hours: what is asked for, and lost in a kill, at once.
        lookback_s: how far a file reaches back before its window, so that a counter's first interval has both its ends: two scrapes.
        settle_s: age from which the system is trusted to have all of its points.
        follow: go on for ever, with a look every ``interval_s``; ``end`` is then now.
    """

    start: str
    end: str
    out: str
    chunk_h: float = 6.0
    lookback_s: float = 120.0
    settle_s: float = 120.0
    follow: bool = False
    interval_s: float = 600.0

    def __post_init__(self) -> None:
        for name, least in (("chunk_h", 1 / 60), ("interval_s", 1.0), ("lookback_s", 0.0), ("settle_s", 0.0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{getattr(self, name)}", where=name, allowed=f"{least:.4g} or more")
        if self.follow and self.end != "now":
            raise InputError(f"end={self.end} with follow=true", where="end", allowed="now")


def collector_of(values: Mapping[str, Any]) -> Collector:
    """Collector of a config group: ``kind`` is its name in ``COLLECTORS``, the other keys are its fields.

    Raises:
        InputError: an unknown kind, or a wrong key or value.
    """
    fields = dict(OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values)  # type: ignore[arg-type]
    kind = fields.pop("kind", None)
    if kind not in COLLECTORS:
        raise InputError(f"{kind!r}", where="collector.kind", allowed=", ".join(COLLECTORS))
    return build(COLLECTORS[kind], fields, "collector")


def time_of(text: str, now: pd.Timestamp, where: str) -> pd.Timestamp:
    """UTC time of ``TIMES``, cut to the second.

    Raises:
        InputError: it is none of them.
    """
    if text == "now":
        return now.floor("s")
    if RELATIVE.fullmatch(text):
        return (now - pd.Timedelta(text[1:])).floor("s")
    seconds = parse_time_s(text)
    if seconds is None:
        raise InputError(f"'{text}'", where=where, allowed=TIMES)
    return pd.Timestamp(seconds, unit="s", tz="UTC").floor("s")


def collect_once(collector: Collector, config: CollectConfig, now: pd.Timestamp) -> list[Window]:
    """Fetch what the spool lacks between start and end, as of ``now``; see :func:`telemetry.collectors.collect`.

    Raises:
        InputError: what the collector cannot fetch, or a span that holds nothing yet.
        OSError: the disk is full or not writable.
    """
    start = time_of(config.start, now, "start")
    end = min(time_of(config.end, now, "end"), (now - pd.Timedelta(config.settle_s, unit="s")).floor("s"))
    if not start < end:
        raise InputError(
            f"from {start} to {end}", where="start, end", allowed=f"a start before the end, more than settle_s={config.settle_s:g} s ago"
        )
    spool, chunk = Spool(config.out), pd.Timedelta(config.chunk_h, unit="h")
    wanted = len(spool.missing(start, end, chunk))
    with tqdm(total=wanted, desc="collect", unit="window", dynamic_ncols=True, leave=False) as bar:

        def progress(window: Window, done: bool) -> None:
            bar.set_postfix_str(window.stem, refresh=not done)
            bar.update(int(done))

        return collect(
            collector, spool, start, end, chunk=chunk, lookback=pd.Timedelta(config.lookback_s, unit="s"), progress=progress
        )  # fmt: skip


def follow(collector: Collector, config: CollectConfig, stop: threading.Event) -> int:
    """Collect, wait, and again, until ``stop``; a system that is away for a while is waited for. Returns the number of windows."""
    first, fetched = time_of(config.start, pd.Timestamp.now("UTC"), "start"), 0
    while not stop.is_set():
        now = pd.Timestamp.now("UTC")
        if first < now - pd.Timedelta(config.settle_s, unit="s"):
            # From the first start on, not from one that moves along: what an outage has left out is fetched after it.
            own = CollectConfig(**{**vars(config), "start": first.isoformat()})
            try:
                fetched += len(collect_once(collector, own, now))
            except UnavailableError as error:
                LOG.warning("%s; next look in %g s", error, config.interval_s)
        stop.wait(config.interval_s)
    return fetched


@contextmanager
def sole_writer(out: str) -> Iterator[None]:
    """Keep a second collector out of the spool: two would fetch the same, cut otherwise.

    Raises:
        InputError: there is one already, or the folder cannot be written.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        handle = (Path(out) / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=out, remedy="make room or permit writing") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError("another collector writes here", where=out, remedy="give each its own folder") from None
        yield


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of their usual ends."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@hydra_command("collect")
def main(cfg: DictConfig) -> int:
    """Fetch, store, say what was stored."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    collector = collector_of(values.pop("collector"))
    config = build(CollectConfig, values, "collect")
    with sole_writer(config.out):
        try:
            if config.follow:
                with stop_signals() as stop:
                    fetched = follow(collector, config, stop)
            else:
                fetched = len(collect_once(collector, config, pd.Timestamp.now("UTC")))
        except OSError as error:
            raise InputError(
                f"cannot be written ({error.strerror or error})",
                where=config.out,
                remedy="make room; the same command goes on",
            ) from error
        held = Spool(config.out).files()
    print(f"{fetched} new window(s), {len(held)} in {config.out}")
    print(f"read them with: python -m pipelines.ingest source=files 'source.files=[{{path: {config.out}, reader: {collector.reader}}}]'")
    return 0


if __name__ == "__main__":
    main()

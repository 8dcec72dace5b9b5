"""What the sample is: its period, its calendar of events and its random streams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from telemetry.errors import InputError

GENERATOR_VERSION = 1
INTERVAL_S = 600
DAY_S = 86_400
WARMUP_DAYS = 3  # the cluster is already busy when the period begins
NEVER = 2**40  # second of a start or an end that the period does not see
STREAMS = (
    "jobs",
    "requests",
    "grid",
    "replay",
    "noise",
    "request_counts",
    "ipmi_noise",
    "flaws_prometheus",
    "flaws_otlp",
    "flaws_ipmi",
    "flaws_sacct",
    "flaws_kubernetes",
    "flaws_grid",
)


@dataclass(frozen=True)
class SampleSettings:
    """Period and seed. Events are placed by calendar date; those outside a shortened period simply do not occur.

    Attributes:
        seed: one integer; every part draws from its own stream of it.
        start: first instant, UTC, a Monday.
        days: length of the period.
        jobs_per_day: mean arrivals on an ordinary working day before the trend.
    """

    seed: int = 20260105
    start: str = "2026-01-05T00:00:00Z"
    days: int = 42
    jobs_per_day: float = 134.0

    def __post_init__(self) -> None:
        if self.days < 1:
            raise InputError(f"days={self.days}", where="make_sample", allowed="1 or more")
        if pd.Timestamp(self.start).tzinfo is None:
            raise InputError(f"start={self.start}", where="make_sample", allowed="a time with its zone, such as 2026-01-05T00:00:00Z")

    @property
    def start_time(self) -> pd.Timestamp:
        return pd.Timestamp(self.start).tz_convert("UTC")

    @property
    def start_s(self) -> int:
        """Unix seconds of the start."""
        return int(self.start_time.timestamp())

    @property
    def length_s(self) -> int:
        return self.days * DAY_S

    @property
    def bins(self) -> int:
        """Number T of scrape intervals."""
        return self.length_s // INTERVAL_S

    def second_of(self, time: str) -> int:
        """Seconds from the start to a UTC time such as ``2026-01-19T08:00``."""
        return int((pd.Timestamp(time, tz="UTC") - self.start_time).total_seconds())

    def rng(self, stream: str) -> np.random.Generator:
        """The generator of one part; parts do not disturb each other."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, STREAMS.index(stream)])))


# Calendar of the period (UTC).
HOLIDAYS = ("2026-01-19",)  # Martin Luther King Day
NODE_FAILURE = ("west-a40-0001", "2026-01-28T14:20", "2026-01-28T21:40")
SERVICE_OUTAGE = ("2026-02-04T16:00", "2026-02-04T18:30")
DEADLINE_RUSH = ("2026-02-10T15:00", "2026-02-12T06:00")  # a conference deadline: sweeps of one team
PRICE_EVENT = ("west", "2026-01-22T17:00", "2026-01-23T05:00")  # cold snap: evening scarcity
WIND_LULL = ("east", "2026-02-01T00:00", "2026-02-02T12:00")


def local_hour(second: np.ndarray, site: str) -> np.ndarray:
    """Local hour of day at a site, 0 .. 24: Pacific standard time in the west, Eastern in the east; the period has no daylight saving."""
    offset_h = {"west": -8, "east": -5}.get(site, 0)
    return (np.asarray(second, dtype=float) / 3600 + offset_h) % 24


def local_weekday(second: np.ndarray, site: str) -> np.ndarray:
    """Local day of the week, 0 = Monday, for a period that starts on a Monday 00:00 UTC."""
    offset_h = {"west": -8, "east": -5}.get(site, 0)
    return np.floor((np.asarray(second, dtype=float) / 3600 + offset_h) / 24).astype(int) % 7

"""Stress by configuration: which worlds of ``envs.worlds.stress``, when, and what each changes.

A stress comes at one time (``at``), or once in every stretch of ``every_hours`` at a time drawn by the seed, so that windows anywhere in a
long table meet it. ``flash_crowd`` changes the jobs; ``price_spike`` and ``heat_wave`` the grid; ``telemetry_loss`` only the grid that
policies see; ``site_loss`` makes a table of outages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.worlds.stress import STRESSES, flash_crowd, heat_wave, price_spike, site_loss, telemetry_loss
from pipelines.cli import build
from telemetry.errors import InputError

ON_JOBS = ("flash_crowd",)
ON_GRID = ("price_spike", "heat_wave", "telemetry_loss")
SHOWN_TIMES = 4
EACH = "each"


@dataclass(frozen=True)
class Occasions:
    """When a stress comes: at ``at``, or once in every stretch of about ``every_hours``; it lasts ``hours``."""

    at: str | None
    every_hours: float
    hours: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.hours) and self.hours > 0):
            raise InputError(f"{self.hours}", where="stress, hours", allowed="a finite number above 0")
        if self.at is None and not (np.isfinite(self.every_hours) and self.every_hours >= self.hours):
            raise InputError(f"{self.every_hours}", where="stress, every_hours", allowed=f"at least hours ({self.hours:g})")

    def times(self, begin: pd.Timestamp, end: pd.Timestamp, seed: tuple[int, int], where: str) -> list[pd.Timestamp]:
        """Whole hours within ``[begin, end]`` such that each occasion is over by ``end`` (``at`` as it is).

        Raises:
            InputError: ``at`` is no time, or the span is shorter than the stress.
        """
        if self.at is not None:
            try:
                time = pd.Timestamp(self.at)
            except ValueError as error:
                raise InputError(f"{self.at!r}", where=f"{where}, at", allowed="a time, ISO 8601") from error
            return [time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")]
        first = begin.ceil("h")
        span_h = (end - first) / pd.Timedelta(hours=1)
        if span_h < self.hours:
            raise InputError(f"{self.hours:g} h", where=f"{where}, hours", allowed=f"at most the {max(span_h, 0):.1f} h of the tables")
        # Equal stretches as near to every_hours as the span allows.
        count = max(1, round(span_h / self.every_hours))
        if span_h / count < self.hours:
            count = int(span_h // self.hours)
        stretch_h = span_h / count
        late = np.random.default_rng(seed).integers(0, int(stretch_h - self.hours) + 1, count)
        starts = [first + pd.Timedelta(hours=float(np.floor(place * stretch_h) + shift)) for place, shift in enumerate(late)]
        return [time for time in starts if time + pd.Timedelta(hours=self.hours) <= end]


@dataclass(frozen=True)
class FlashCrowd(Occasions):
    factor: float = 4.0


@dataclass(frozen=True)
class PriceSpike(Occasions):
    factor: float = 10.0
    floor_usd_per_kwh: float = 0.2
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeatWave(Occasions):
    add_c: float = 12.0
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteLoss(Occasions):
    site: str | None = None


@dataclass(frozen=True)
class TelemetryLoss(Occasions):
    sites: tuple[str, ...] = ()


KINDS: dict[str, type[Occasions]] = {
    "flash_crowd": FlashCrowd,
    "price_spike": PriceSpike,
    "heat_wave": HeatWave,
    "site_loss": SiteLoss,
    "telemetry_loss": TelemetryLoss,
}


@dataclass(frozen=True)
class Stressed:
    """Tables under stress.

    Attributes:
        jobs: canonical jobs.
        grid: the grid as it is, which bills are made from; None when none was given.
        reported: the grid that policies see where it is another one, else None.
        outages: ``node, begin, end`` (``envs.worlds.stress.OUTAGE_COLUMNS``), or None.
        occasions: begin of every occasion by stress.
    """

    jobs: pd.DataFrame
    grid: pd.DataFrame | None
    reported: pd.DataFrame | None = None
    outages: pd.DataFrame | None = None
    occasions: dict[str, list[pd.Timestamp]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stress:
    """The stresses that a configuration names, in the order in which they are applied."""

    specs: dict[str, Occasions]

    def __bool__(self) -> bool:
        return bool(self.specs)

    @property
    def needs_grid(self) -> bool:
        return any(name in ON_GRID for name in self.specs)

    def apply(self, jobs: pd.DataFrame, grid: pd.DataFrame | None, cluster: ClusterSpec | None, seed: int) -> Stressed:
        """Jobs and grid under stress.

        Args:
            jobs: canonical jobs with times in UTC.
            grid: canonical grid, needed when ``needs_grid``.
            cluster: needed by ``site_loss``.
            seed: draws the times and the crowds; each stress has its own stream.

        Raises:
            InputError: a stress that changes nothing or does not fit the tables.
        """
        begin, end = _span(jobs, grid)
        source, occasions, reported, outages = jobs, {}, None, None
        for name, spec in self.specs.items():
            stream = (seed, STRESSES.index(name))
            times = spec.times(_begin_of(name, begin, grid), end, stream, f"stress.{name}")
            occasions[name] = times
            for place, at in enumerate(times):
                if isinstance(spec, FlashCrowd):
                    own = int(np.random.default_rng((*stream, place)).integers(2**32))
                    jobs = flash_crowd(jobs, at, spec.hours, spec.factor, own, like=source, prefix=f"crowd{place}")
                elif isinstance(spec, PriceSpike):
                    grid = price_spike(_given(grid), at, spec.hours, spec.factor, spec.floor_usd_per_kwh, spec.sites)
                elif isinstance(spec, HeatWave):
                    grid = heat_wave(_given(grid), at, spec.hours, spec.add_c, spec.sites)
                elif isinstance(spec, TelemetryLoss):
                    reported = telemetry_loss(_given(grid if reported is None else reported), at, spec.hours, spec.sites)
                elif isinstance(spec, SiteLoss):
                    assert cluster is not None, "site_loss needs a cluster"
                    lost = site_loss(cluster, spec.site or cluster.sites[0].name, at, spec.hours)
                    outages = lost if outages is None else pd.concat([outages, lost], ignore_index=True)
        return Stressed(jobs, grid, reported, outages, occasions)

    def told(self, by_seed: Mapping[int, Stressed]) -> dict[str, Any]:
        """What is stated in an output: the options of each stress, and its times by seed."""
        return {
            name: {
                **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()},
                "begin": {str(seed): [time.isoformat() for time in one.occasions[name]] for seed, one in by_seed.items()},
            }
            for name, spec in self.specs.items()
        }

    def notes(self, by_seed: Mapping[int, Stressed]) -> list[str]:
        """The same in a line each."""
        lines = []
        for name, spec in self.specs.items():
            seed, one = next(iter(by_seed.items()))
            times = one.occasions[name]
            shown = ", ".join(f"{time:%Y-%m-%d %H:%M}" for time in times[:SHOWN_TIMES]) + (", ..." if len(times) > SHOWN_TIMES else "")
            options = ", ".join(f"{key} {value}" for key, value in asdict(spec).items() if key not in ("at", "every_hours") and value)
            lines.append(f"stress {name}: {len(times)} times with seed {seed} ({shown} UTC); {options}")
        if "flash_crowd" in self.specs:
            more = {seed: int(one.jobs["job_id"].str.match(r"crowd\d+-").sum()) for seed, one in by_seed.items()}
            lines.append("stress flash_crowd: jobs added by seed: " + ", ".join(f"{seed}: {count:,}" for seed, count in more.items()))
        if "telemetry_loss" in self.specs:
            lines.append(
                "stress telemetry_loss: policies see values that stand still, and forecasts that repeat them for a day; "
                "energy, cost, carbon and objective are recomputed from the event log on the true values"
            )
        return lines


def stress_of(node: Any, only: tuple[str, ...] = STRESSES, why: str = "") -> Stress:
    """The stresses of a config node (``conf/stress``).

    Args:
        only: names that the command can use; ``why`` says why the others are refused.

    Raises:
        InputError: an unknown or refused stress, or a wrong option.
    """
    given = dict(node or {})
    if EACH in given:
        raise InputError(
            "stress=all", where="stress", allowed=", ".join(KINDS), remedy="python -m pipelines.evaluate stress=all is a table"
        )
    for name in given:
        if name not in KINDS:
            raise InputError(f"unknown stress '{name}'", where="stress", allowed=", ".join(KINDS))
        if name not in only:
            raise InputError(f"stress '{name}'", where="stress", allowed=", ".join(only), remedy=why)
    return Stress({name: build(KINDS[name], given[name], f"stress.{name}") for name in STRESSES if name in given})


def one_by_one(node: Any) -> dict[str, dict[str, Any]]:
    """Config nodes of ``stress=all``, each with one stress; empty for any other choice."""
    given = dict(node or {})
    return {name: {name: given[name]} for name in STRESSES if name in given} if given.get(EACH) else {}


def _given(grid: pd.DataFrame | None) -> pd.DataFrame:
    assert grid is not None, "a stress on the grid needs a grid"
    return grid


def _span(jobs: pd.DataFrame, grid: pd.DataFrame | None) -> tuple[pd.Timestamp, pd.Timestamp]:
    """The time that both tables cover, where windows are cut."""
    begin, end = jobs["submit_time"].min(), jobs["submit_time"].max()
    if grid is None:
        return begin, end
    times = grid["time"].drop_duplicates().sort_values()
    return max(begin, times.iloc[0]), min(end, times.iloc[-1])


def _begin_of(name: str, begin: pd.Timestamp, grid: pd.DataFrame | None) -> pd.Timestamp:
    """Telemetry stands still at a value that was there before: not from the grid's first step on."""
    if name != "telemetry_loss" or grid is None:
        return begin
    times = grid["time"].drop_duplicates().sort_values()
    return max(begin, times.iloc[min(1, len(times) - 1)])

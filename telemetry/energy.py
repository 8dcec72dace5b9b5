"""Joules of every device and interval from power gauges and energy counters.

Rules (``EnergyRules``):

- A counter is exact where it covers: a rate at time t is the mean since the sample before, so its energy lies between the two. Where the
  sample before is further away than ``max_counter_gap_s`` (or there is none) it covers one usual step of its series.
- A gauge follows ``gauge``: ``trapezoid`` joins neighbouring samples at most ``max_gap_s`` apart by a line; ``hold`` lets a value stand
  until the next sample, at most for ``max_gap_s``; ``mean`` takes a value as the mean of the time before it (what DCMI averages and
  recording rules export), back to the sample before, or one usual step where that is further away than ``max_gap_s``.
- Time that no sample covers is unknown: it has neither joules nor covered seconds. Nothing is filled in.

Every rule gives pieces of power that are linear in time, and an interval holds the integral of what lies in it. So splitting an interval
splits its joules, and the parts sum to the whole (to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from telemetry.devices import codes_of, combined
from telemetry.errors import InputError

NS_PER_S = 1e9
GAUGE_RULES: tuple[str, ...] = ("trapezoid", "hold", "mean")
POWER, RATE = "hw.power", "hw.energy.rate"
EPSILON_S = 1e-6


@dataclass(frozen=True)
class EnergyRules:
    """How samples become energy; see the module."""

    gauge: str = "trapezoid"
    max_gap_s: float = 900.0
    max_counter_gap_s: float = 3600.0
    sources: tuple[str, ...] = ()  # preferred first, where several measure one device

    def __post_init__(self) -> None:
        if self.gauge not in GAUGE_RULES:
            raise InputError(f"{self.gauge!r}", where="energy.gauge", allowed=", ".join(GAUGE_RULES))
        for name in ("max_gap_s", "max_counter_gap_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{getattr(self, name)}", where=f"energy.{name}", allowed="more than 0 seconds")


@dataclass(frozen=True)
class Grid:
    """Intervals ``[edges[k], edges[k + 1])``; ``edges_ns`` int64 ``[T + 1]``, ns since 1970, rising."""

    edges_ns: np.ndarray

    def __post_init__(self) -> None:
        if len(self.edges_ns) < 2 or (np.diff(self.edges_ns) <= 0).any():
            raise InputError("an interval of no length", where="grid", allowed="rising edges, at least two")

    @classmethod
    def of(cls, start: pd.Timestamp, end: pd.Timestamp, freq: str) -> Grid:
        """Intervals of ``freq`` from ``start``; the last one is shorter when ``end`` cuts it.

        Raises:
            InputError: no time between start and end, or a ``freq`` that is no length of time.
        """
        try:
            step = pd.Timedelta(pd.tseries.frequencies.to_offset(freq)).value
        except (ValueError, TypeError) as error:
            raise InputError(f"{freq!r}", where="freq", allowed="a length of time: 30s, 10min, 1h") from error
        first, last = start.value, end.value
        if step <= 0 or last <= first:
            raise InputError(f"{start} to {end} by {freq}", where="grid", allowed="an end after the start, a step above zero")
        edges = np.arange(first, last, step, dtype=np.int64)
        return cls(np.append(edges, last))

    @property
    def seconds(self) -> np.ndarray:
        """Length of each interval, float64 ``[T]``."""
        return np.diff(self.edges_ns) / NS_PER_S

    @property
    def starts(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.edges_ns[:-1].astype("datetime64[ns]")).tz_localize("UTC")

    @property
    def ends(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.edges_ns[1:].astype("datetime64[ns]")).tz_localize("UTC")

    def __len__(self) -> int:
        return len(self.edges_ns) - 1

    def refined(self, longest_s: float) -> tuple[Grid, np.ndarray]:
        """The same time in equal parts of each interval, none longer than ``longest_s``; and the interval of each part, int64 ``[T']``."""
        count = np.maximum(np.ceil(self.seconds / longest_s - 1e-9), 1).astype(np.int64)
        of = np.repeat(np.arange(len(self)), count)
        place = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        edges = self.edges_ns[of] + (np.diff(self.edges_ns)[of] * (place / count[of])).astype(np.int64)
        return Grid(np.append(edges, self.edges_ns[-1])), of


@dataclass(frozen=True)
class Pieces:
    """Stretches of samples cut at the edges of a grid, all ``[P]``: sample row, interval, seconds, integral of the value over them."""

    row: np.ndarray
    interval: np.ndarray
    seconds: np.ndarray
    integral: np.ndarray


def cut(grid: Grid, begin_ns: np.ndarray, end_ns: np.ndarray, first: np.ndarray, last: np.ndarray) -> Pieces:
    """Cut stretches at the grid's edges; what lies outside the grid is left out.

    Args:
        begin_ns, end_ns: int64 ``[M]``, the stretches.
        first, last: float64 ``[M]``, the value at both ends of a stretch, linear between them.
    """
    edges = grid.edges_ns
    low = np.clip(begin_ns, edges[0], edges[-1])
    high = np.clip(end_ns, edges[0], edges[-1])
    rows = np.flatnonzero(high > low)
    left = np.searchsorted(edges, low[rows], side="right") - 1
    count = np.searchsorted(edges, high[rows], side="left") - left
    row = np.repeat(rows, count)
    before = np.cumsum(count) - count
    interval = np.repeat(left - before, count) + np.arange(len(row))
    a = np.maximum(low[row], edges[interval])
    b = np.minimum(high[row], edges[interval + 1])
    length = (end_ns - begin_ns)[row] / NS_PER_S
    slope = (last - first)[row] / length
    middle = first[row] + slope * ((a - begin_ns[row]) + (b - begin_ns[row])) / (2 * NS_PER_S)
    seconds = (b - a) / NS_PER_S
    return Pieces(row, interval, seconds, middle * seconds)


@dataclass(frozen=True)
class IntervalEnergy:
    """Energy of S series over T intervals.

    Attributes:
        grid: the intervals.
        series: ``[S]`` rows of ``site, pool, node, device, source, metric``; one row is one gauge or one counter.
        energy_j: float64 ``[S, T]``.
        covered_s: float64 ``[S, T]``, seconds that are known.
    """

    grid: Grid
    series: pd.DataFrame
    energy_j: np.ndarray
    covered_s: np.ndarray


def usual_step_ns(series: np.ndarray, time_ns: np.ndarray, count: int) -> np.ndarray:
    """Lower median distance of neighbouring samples of each series, int64 ``[count]``; 0 where there is but one sample. Sorted input."""
    step = np.diff(time_ns)
    same = (np.diff(series) == 0) & (step > 0)
    of, step = series[1:][same], step[same]
    order = np.lexsort((step, of))
    size = np.bincount(of, minlength=count)
    first = np.cumsum(size) - size
    found = np.zeros(count, dtype=np.int64)
    some = size > 0
    found[some] = step[order][(first + (size - 1) // 2)[some]]
    return found


def stretches(
    series: np.ndarray, time_ns: np.ndarray, value: np.ndarray, is_counter: np.ndarray, count: int, rules: EnergyRules
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which time each sample stands for and the value at both ends of it: begin, end (int64 ``[M]``), first, last (float64 ``[M]``).

    Args:
        series: int64 ``[M]``, sorted; ``time_ns`` rises within a series.
        is_counter: bool ``[M]``.
        count: number of series.
    """
    joined = np.zeros(len(series), dtype=bool)
    joined[1:] = np.diff(series) == 0
    before = np.roll(time_ns, 1)
    gap = np.where(joined, time_ns - before, np.iinfo(np.int64).max)
    step = usual_step_ns(series, time_ns, count)[series]
    begin, end, first = time_ns.copy(), time_ns.copy(), value.copy()
    limit = np.where(is_counter, rules.max_counter_gap_s, rules.max_gap_s) * NS_PER_S
    backward = is_counter | (rules.gauge == "mean")
    begin[backward] = (time_ns - np.where(gap <= limit, gap, np.minimum(step, limit).astype(np.int64)))[backward]
    if rules.gauge == "trapezoid":
        line = ~backward & (gap <= limit)
        begin[line], first[line] = before[line], np.roll(value, 1)[line]
    elif rules.gauge == "hold":
        after = np.roll(gap, -1)
        after[-1:] = np.iinfo(np.int64).max
        held = np.minimum(after, limit).astype(np.int64)
        end[~backward] = (time_ns + held)[~backward]
    return begin, end, first, value


def interval_energy(samples: pd.DataFrame, grid: Grid, rules: EnergyRules) -> IntervalEnergy:
    """Joules per series and interval.

    Args:
        samples: canonical samples; only ``hw.power`` and ``hw.energy.rate`` count. Of several rows of one series and time the last counts.

    Raises:
        InputError: a negative or missing value, which cleaning never leaves.
    """
    rows = samples[samples["metric"].isin([POWER, RATE]).to_numpy()]
    value = rows["value"].to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(value) | (value < 0))
    if len(wrong):
        one = rows.iloc[int(wrong[0])]
        raise InputError(f"{one['value']} W", where=f"samples, {one['node']}/{one['device']} at {one['time']}", allowed="finite, 0 or more")
    key, series = combined([codes_of(rows[name]) for name in ("node", "device", "source", "metric")])
    time_ns = rows["time"].dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
    order = np.lexsort((time_ns, series))
    series, time_ns, value = series[order], time_ns[order], value[order]
    keep = np.ones(len(series), dtype=bool)
    keep[:-1] = (np.diff(series) != 0) | (np.diff(time_ns) != 0)
    first_row = np.zeros(len(key), dtype=np.int64)
    first_row[series[::-1]] = order[::-1]
    columns = ["site", "pool", "node", "device", "source", "metric"]
    table = rows.iloc[first_row][columns].astype(object).reset_index(drop=True) if len(key) else pd.DataFrame(columns=columns)
    series, time_ns, value = series[keep], time_ns[keep], value[keep]
    is_counter = (table["metric"] == RATE).to_numpy(dtype=bool)[series]
    begin, end, first, last = stretches(series, time_ns, value, is_counter, len(table), rules)
    pieces = cut(grid, begin, end, first, last)
    shape = (len(table), len(grid))
    cell = series[pieces.row] * shape[1] + pieces.interval
    size = shape[0] * shape[1]
    energy = np.bincount(cell, pieces.integral, minlength=size).reshape(shape)
    covered = np.bincount(cell, pieces.seconds, minlength=size).reshape(shape)
    return IntervalEnergy(grid, table, energy, covered)


@dataclass(frozen=True)
class DeviceEnergy:
    """Energy of D devices, each from the best of its series in every interval.

    Attributes:
        grid: the intervals.
        devices: ``[D]`` rows of ``site, pool, node, device, source``: the source preferred; ``counter``, whether it has a counter.
        energy_j, covered_s: float64 ``[D, T]``.
        checks: one row per series that was not preferred: ``node, device, chosen, other`` (source and metric), ``hours`` in which both
            cover whole intervals, ``chosen_kwh``, ``other_kwh`` in them, and ``difference_percent`` of the other against the chosen.
    """

    grid: Grid
    devices: pd.DataFrame
    energy_j: np.ndarray
    covered_s: np.ndarray
    checks: pd.DataFrame


CHECK_COLUMNS = ("node", "device", "chosen", "other", "hours", "chosen_kwh", "other_kwh", "difference_percent")


def per_device(energy: IntervalEnergy, sources: Sequence[str] = ()) -> DeviceEnergy:
    """One series for each device and interval: never two summed.

    Preferred are counters, then the ``sources`` in their order, then what covers most, then the first name. Another series fills an
    interval only where it covers more of it than those before.
    """
    table, T = energy.series, len(energy.grid)
    rank = {name: place for place, name in enumerate(sources)}
    order = pd.DataFrame(
        {
            "node": table["node"],
            "device": table["device"],
            "gauge": (table["metric"] != RATE).astype(int),
            "rank": [rank.get(name, len(rank)) for name in table["source"]],
            "missing": -energy.covered_s.sum(axis=1),
            "source": table["source"],
        }
    ).sort_values(["node", "device", "gauge", "rank", "missing", "source"], kind="stable")
    place = order.groupby(["node", "device"], sort=True).cumcount().to_numpy()
    rows = order.index.to_numpy(dtype=np.int64)
    device = np.cumsum(place == 0) - 1
    best = rows[place == 0]
    devices = table.iloc[best].drop(columns="metric").reset_index(drop=True)
    devices["counter"] = (table["metric"].iloc[best] == RATE).to_numpy()
    joules, covered = energy.energy_j[best].copy(), energy.covered_s[best].copy()
    checks = []
    for level in range(1, int(place.max(initial=0)) + 1):
        at = np.flatnonzero(place == level)
        other, of = rows[at], device[at]
        checks += [_check(energy, best[d], s) for d, s in zip(of, other, strict=True)]
        more = energy.covered_s[other] > covered[of] + EPSILON_S
        joules[of] = np.where(more, energy.energy_j[other], joules[of])
        covered[of] = np.where(more, energy.covered_s[other], covered[of])
    return DeviceEnergy(
        energy.grid, devices, joules.reshape(-1, T), covered.reshape(-1, T), pd.DataFrame(checks, columns=list(CHECK_COLUMNS))
    )


def _check(energy: IntervalEnergy, chosen: int, other: int) -> tuple[object, ...]:
    table, seconds = energy.series, energy.grid.seconds
    both = (energy.covered_s[chosen] >= seconds - EPSILON_S) & (energy.covered_s[other] >= seconds - EPSILON_S)
    mine, its = (float(energy.energy_j[s][both].sum()) / 3.6e6 for s in (chosen, other))
    names = [f"{table['source'].iloc[s]} {table['metric'].iloc[s]}" for s in (chosen, other)]
    difference = 100 * (its - mine) / mine if mine > 0 else float("nan")
    return (
        table["node"].iloc[chosen], table["device"].iloc[chosen], *names, float(seconds[both].sum()) / 3600, mine, its, difference,
    )  # fmt: skip

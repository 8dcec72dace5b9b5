"""Worlds under stress: a crowd of jobs, dear power, heat, a site lost, a telemetry that stands still.

Pure functions on canonical tables. What befalls begins at ``at`` (UTC) and lasts ``hours``. Each refuses to return tables that it did not
change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.worlds.arrivals import restamped
from telemetry.errors import InputError

STRESSES: tuple[str, ...] = ("flash_crowd", "price_spike", "heat_wave", "site_loss", "telemetry_loss")
OUTAGE_COLUMNS: tuple[str, ...] = ("node", "begin", "end")
# A crowd comes at once and thins out: three time constants within its hours.
CROWD_TIME_CONSTANTS = 3.0


def flash_crowd(
    jobs: pd.DataFrame,
    at: pd.Timestamp,
    hours: float,
    factor: float = 4.0,
    seed: int = 0,
    *,
    like: pd.DataFrame | None = None,
    prefix: str = "crowd",
) -> pd.DataFrame:
    """Jobs for ``factor`` times the mean load of such a span: those there are, and copies of jobs drawn from the whole table.

    The copies come at ``at`` and after it, ever fewer; they are ids ``crowd-...``, know no past, and keep their deadlines' distance.

    Args:
        like: table that the mean load and the copies are taken from; None = ``jobs``. A second crowd takes the table before the first.
        prefix: of the copies' ids; each crowd needs its own.
    """
    span_s = _span_s(hours)
    _above(factor, 1.0, "factor")
    source = jobs if like is None else like
    submit = source["submit_time"]
    if not submit.min() <= at <= submit.max():
        raise InputError(f"at {at.isoformat()}", where="flash_crowd", allowed=f"{submit.min().isoformat()} to {submit.max().isoformat()}")
    rng = np.random.default_rng(seed)
    expected = (factor - 1) * len(source) * span_s / max((submit.max() - submit.min()).total_seconds(), 1.0)
    count = rng.poisson(expected)
    if count == 0:
        raise InputError(f"{expected:.2f} more jobs expected, none drawn", where="flash_crowd", remedy="a larger factor, or more hours")
    share = -np.log1p(-rng.random(count) * -np.expm1(-CROWD_TIME_CONSTANTS)) / CROWD_TIME_CONSTANTS
    second = int(at.timestamp()) + np.floor(share * span_s).astype(np.int64)
    crowd = restamped(source, rng.integers(0, len(source), count), second, prefix)
    table = pd.concat([jobs, crowd.reindex(columns=jobs.columns).astype(jobs.dtypes.to_dict())], ignore_index=True)
    return table.sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True)


def price_spike(
    grid: pd.DataFrame, at: pd.Timestamp, hours: float, factor: float = 10.0, floor_usd_per_kwh: float = 0.2, sites: Sequence[str] = ()
) -> pd.DataFrame:
    """Prices ``factor`` times as high, at least ``floor_usd_per_kwh`` (prices below zero are lifted as well); no site named = all."""
    _above(factor, 1.0, "factor")
    table, rows = _rows(grid, at, hours, sites, "price_spike")
    price = table.loc[rows, "price_usd_per_kwh"]
    table.loc[rows, "price_usd_per_kwh"] = np.maximum(price * factor, np.maximum(price, floor_usd_per_kwh))
    return table


def heat_wave(grid: pd.DataFrame, at: pd.Timestamp, hours: float, add_c: float = 10.0, sites: Sequence[str] = ()) -> pd.DataFrame:
    """Temperatures up by ``add_c`` at the middle of the wave, as half a sine from 0 to 0; PUE follows. Prices stay: add a spike."""
    _above(add_c, 0.0, "add_c")
    table, rows = _rows(grid, at, hours, sites, "heat_wave")
    if "temperature_c" not in table or table.loc[rows, "temperature_c"].isna().any():
        raise InputError("no temperature", where="heat_wave, grid table", allowed="a temperature_c in every row of the wave")
    # A step's value stands for the whole step: the wave is taken at its middle.
    step_s = table["time"].drop_duplicates().sort_values().diff().min().total_seconds()
    share = ((table.loc[rows, "time"] - at).dt.total_seconds() + step_s / 2) / _span_s(hours)
    table.loc[rows, "temperature_c"] += add_c * np.sin(np.pi * np.clip(share, 0.0, 1.0))
    return table


def telemetry_loss(grid: pd.DataFrame, at: pd.Timestamp, hours: float, sites: Sequence[str] = ()) -> pd.DataFrame:
    """The grid as an exporter that stands still reports it: from ``at`` on every value is the last one before.

    It is what a policy would see. The simulator bills by the table that it is given: figures on this one are reported, not true ones.
    """
    table, rows = _rows(grid, at, hours, sites, "telemetry_loss")
    columns = [name for name in ("price_usd_per_kwh", "carbon_g_per_kwh", "renewable_fraction", "temperature_c") if name in table]
    for site in table.loc[rows, "site"].unique():
        own = table["site"] == site
        before = table[own & (table["time"] < at)].sort_values("time")
        if before.empty:
            raise InputError(f"no value before {at.isoformat()}", where=f"telemetry_loss, site '{site}'", remedy="a later at")
        for name in columns:
            table.loc[rows & own, name] = before[name].iloc[-1]
    return table


def site_loss(cluster: ClusterSpec, site: str, at: pd.Timestamp, hours: float) -> pd.DataFrame:
    """Outages of all nodes of a site: ``node`` (name as in ``ClusterSpec.node_names``), ``begin``, ``end`` (UTC)."""
    names = [one.name for one in cluster.sites]
    if site not in names:
        raise InputError(f"unknown site '{site}'", where="site_loss", allowed=", ".join(names))
    of_node = np.repeat([pool.site for pool in cluster.pools], [pool.nodes for pool in cluster.pools])
    nodes = [name for name, where in zip(cluster.node_names, of_node, strict=True) if where == site]
    if not nodes:
        raise InputError(f"site '{site}' has no nodes", where="site_loss")
    end = at + pd.Timedelta(seconds=_span_s(hours))
    return pd.DataFrame({"node": nodes, "begin": at, "end": end})[list(OUTAGE_COLUMNS)]


def _rows(grid: pd.DataFrame, at: pd.Timestamp, hours: float, sites: Sequence[str], where: str) -> tuple[pd.DataFrame, pd.Series]:
    """A copy of the grid, and which of its rows lie in the span at the sites."""
    end = at + pd.Timedelta(seconds=_span_s(hours))
    known = sorted(grid["site"].unique())
    unknown = sorted(set(sites) - set(known))
    if unknown:
        raise InputError(f"unknown site '{unknown[0]}'", where=where, allowed=", ".join(known))
    rows = (grid["time"] >= at) & (grid["time"] < end) & grid["site"].isin(list(sites) or known)
    if not rows.any():
        span = f"{grid['time'].min().isoformat()} to {grid['time'].max().isoformat()}"
        raise InputError(f"no grid row from {at.isoformat()} to {end.isoformat()}", where=where, allowed=span)
    return grid.copy(), rows


def _span_s(hours: float) -> float:
    _above(hours, 0.0, "hours")
    return hours * 3600.0


def _above(value: float, low: float, name: str) -> None:
    if not (np.isfinite(value) and value > low):
        raise InputError(f"{name} {value}", where="stress", allowed=f"a finite number above {low:g}")

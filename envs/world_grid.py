"""Prices, carbon, weather, loads and outages of all windows as arrays on the grid's steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.windows import DAY_S, WindowTables, check_grid
from envs.world_arrays import Grid, seconds_after
from telemetry.errors import InputError

DEFAULT_STEP_S = 3600


def outage_events(cluster: ClusterSpec, start: pd.Timestamp, outages: pd.DataFrame | None) -> np.ndarray:
    """Outages as events: int64 ``[X, 4]``, overlapping and touching ones merged, those of before ``start`` left out or cut.

    Raises:
        InputError: an unknown node, or an outage that ends before it begins.
    """
    if outages is None or not len(outages):
        return np.zeros((0, 4), dtype=np.int64)
    places = {name: index for index, name in enumerate(cluster.node_names)}
    unknown = sorted(set(outages["node"].astype(str)) - set(places))
    if unknown:
        raise InputError(f"node '{unknown[0]}'", where="outages", allowed=f"nodes of cluster '{cluster.name}'")
    begin = np.maximum(seconds_after(pd.to_datetime(outages["begin"], utc=True), start), 0)
    end = seconds_after(pd.to_datetime(outages["end"], utc=True), start)
    wrong = pd.to_datetime(outages["end"], utc=True) <= pd.to_datetime(outages["begin"], utc=True)
    if wrong.any():
        raise InputError(
            f"end {outages['end'][wrong].iloc[0]}", where=f"outages, node '{outages['node'][wrong].iloc[0]}'", allowed="after its begin"
        )
    node = outages["node"].astype(str).map(places).to_numpy(dtype=np.int64)
    merged: list[list[int]] = []
    for n, first, last in sorted(zip(node.tolist(), begin.tolist(), end.tolist(), strict=True)):
        if last <= first:
            continue
        if merged and merged[-1][0] == n and first <= merged[-1][2]:
            merged[-1][2] = max(merged[-1][2], last)
        else:
            merged.append([n, first, last])
    events = [(first, 1, n, last) for n, first, last in merged] + [(last, 0, n, last) for n, first, last in merged]
    return np.array(sorted(events, key=lambda event: event[:3]), dtype=np.int64).reshape(-1, 4)


def build_grid(
    cluster: ClusterSpec, windows: Sequence[WindowTables], warm_reserve: np.ndarray | None, services: tuple[tuple[str, ...], ...]
) -> Grid:
    parts = [_window_grid(cluster, window, row) for row, window in enumerate(windows)]
    width = max(part["price"].shape[1] for part in parts)

    def stacked(name: str) -> np.ndarray:
        rows = [np.pad(part[name], ((0, 0), (0, width - part[name].shape[1])), mode="edge") for part in parts]
        return np.ascontiguousarray(np.stack(rows))

    price, carbon, renewable, pue = (stacked(name) for name in ("price", "carbon", "renewable", "pue"))

    def summed(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((*values.shape[:2], values.shape[2] + 1))
        np.cumsum(values, axis=2, out=sums[..., 1:])
        return sums

    monday = pd.Timestamp("1970-01-05", tz="UTC")
    return Grid(
        step_s=np.array([part["step_s"] for part in parts], dtype=np.int64),
        history_steps=np.array([part["history"] for part in parts], dtype=np.int64),
        start_s=np.array([int((window.start - monday).total_seconds()) % (7 * DAY_S) for window in windows], dtype=np.int64),
        price=price,
        carbon=carbon,
        renewable=renewable,
        pue=pue,
        cum_price=summed(price * pue),
        cum_carbon=summed(carbon * pue),
        cum_pue=summed(pue),
        warm_reserve=_reserve(warm_reserve, len(windows), len(cluster.pools), width),
        keep_awake=np.zeros((len(windows), len(cluster.pools), width), dtype=np.int64),
        load=_loads(windows, parts, services, width),
    )


def _loads(windows: Sequence[WindowTables], parts: list[dict], services: tuple[tuple[str, ...], ...], width: int) -> np.ndarray:
    """Load of one replica of each service on the grid's columns, [M, V, T]; held between and after its rows, 0 before them."""
    load = np.zeros((len(windows), max((len(names) for names in services), default=0), width))
    for row, (window, part) in enumerate(zip(windows, parts, strict=True)):
        if window.services is None:
            continue
        columns = np.arange(width) * part["step_s"] - part["history"] * part["step_s"]
        for place, name in enumerate(services[row]):
            table = window.services[window.services["service"].astype(str) == name].sort_values("time")
            values = table["load"].to_numpy(dtype=np.float64)
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise InputError("a load that is negative or missing", where=f"window {row}, service '{name}'", allowed="0 or more")
            at = np.searchsorted(seconds_after(pd.to_datetime(table["time"], utc=True), window.start), columns, side="right") - 1
            load[row, place] = np.where(at >= 0, values[np.maximum(at, 0)], 0.0)
    return load


def _reserve(given: np.ndarray | None, windows: int, pools: int, width: int) -> np.ndarray:
    if given is None:
        return np.zeros((windows, pools, width), dtype=np.int64)
    values = np.asarray(given)
    axes = {1: (0, 2), 2: (2,), 3: ()}.get(values.ndim)
    wide = values if axes is None else np.expand_dims(values, axes)
    fits = axes is not None and all(have in (1, want) for have, want in zip(wide.shape, (windows, pools, width), strict=True))
    if not fits:
        raise InputError(
            f"shape {values.shape}", where="warm_reserve", allowed=f"({pools},), ({windows}, {pools}) or ({windows}, {pools}, {width})"
        )
    if (wide < 0).any():
        raise InputError("a negative reserve", where="warm_reserve", allowed="0 or more nodes")
    return np.ascontiguousarray(np.broadcast_to(wide, (windows, pools, width)), dtype=np.int64)


def _window_grid(cluster: ClusterSpec, window: WindowTables, row: int) -> dict:
    """Arrays [S, T] of one window, history extended backwards to a full day by the earliest value."""
    table = check_grid(window.grid)
    where = f"window {row}, grid"
    names = [site.name for site in cluster.sites]
    missing = sorted(set(names) - set(table["site"]))
    if missing:
        raise InputError(f"no rows of site '{missing[0]}'", where=where, allowed=f"sites of cluster '{cluster.name}': {', '.join(names)}")
    wide = {name: table.pivot_table(index="time", columns="site", values=name, dropna=False) for name in _grid_columns(table)}
    times = pd.DatetimeIndex(wide["price_usd_per_kwh"].index)
    step_s = int((times[1] - times[0]).total_seconds()) if len(times) > 1 else DEFAULT_STEP_S
    if step_s < 1 or DAY_S % step_s:
        raise InputError(f"steps of {step_s} s", where=where, allowed="whole seconds that divide a day")
    offset_s = (window.start - times[0]).total_seconds()
    if offset_s < 0 or offset_s % step_s:
        raise InputError(
            f"window start {window.start.isoformat()}",
            where=where,
            allowed=f"a whole step of {step_s} s at or after {times[0].isoformat()}",
        )
    before = int(offset_s) // step_s
    extra = max(0, DAY_S // step_s - before)

    def values(name: str, missing_value: float) -> np.ndarray:
        if name not in wide:
            return np.full((len(names), len(times) + extra), missing_value)
        array = np.nan_to_num(wide[name][names].to_numpy(dtype=np.float64).T, nan=missing_value)
        array = np.pad(array, ((0, 0), (extra, 0)), mode="edge")
        short = before + extra + 1 - array.shape[1]
        return np.pad(array, ((0, 0), (0, max(0, short))), mode="edge")

    temperature = values("temperature_c", -np.inf)
    base, slope, free = (np.array([[getattr(s, key)] for s in cluster.sites]) for key in ("pue_base", "pue_per_c", "pue_free_cooling_c"))
    return {
        "step_s": step_s,
        "history": before + extra,
        "price": values("price_usd_per_kwh", 0.0),
        "carbon": values("carbon_g_per_kwh", 0.0) / 1000.0,
        "renewable": values("renewable_fraction", 0.0),
        "pue": base + slope * np.maximum(0.0, temperature - free),
    }


def _grid_columns(table: pd.DataFrame) -> list[str]:
    return [n for n in ("price_usd_per_kwh", "carbon_g_per_kwh", "renewable_fraction", "temperature_c") if n in table]

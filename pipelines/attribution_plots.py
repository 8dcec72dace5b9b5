"""Figures of the attribution report: who drew the watts over time, and how far nodes and their parts disagree."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from envs.replay.style import CLASS_COLOURS
from registry.plots import INK, MUTED, PALETTE, new_figure, styled, time_axis
from telemetry.energy import Grid
from telemetry.reconciliation import Reconciliation

REMAINDERS = {"idle": "#C9C9C9", "unattributed": "#C4161C", "overhead": "#6B6B6B"}
MOST_TEAMS, MOST_NODES, MOST_POINTS, RESIDUAL_POINTS = 8, 12, 360, 120


def _bins(grid: Grid) -> np.ndarray:
    """Interval -> point of the plot: neighbours are averaged when there are more than can be seen."""
    return np.arange(len(grid)) * min(len(grid), MOST_POINTS) // len(grid)


def stacked_kw(rows: pd.DataFrame, grid: Grid, column: str) -> tuple[pd.DatetimeIndex, dict[str, np.ndarray]]:
    """Times and mean kW by name of ``column`` (jobs) and by remainder, largest jobs first; the smaller ones are ``others``."""
    point, name = _bins(grid), rows[column].astype(str)
    kind = rows["kind"].astype(str)
    name = name.where(kind == "job", kind).where((kind != "job") | (name != ""), "no " + column.replace("_", " "))
    count = int(point[-1]) + 1
    seconds = np.bincount(point, grid.seconds, minlength=count)
    at = point[grid.starts.get_indexer(pd.DatetimeIndex(rows["interval_start"]))]
    names, code = np.unique(name.to_numpy(dtype=str), return_inverse=True)
    joules = np.bincount(code.reshape(-1) * count + at, rows["energy_j"].to_numpy(), minlength=len(names) * count).reshape(
        len(names), count
    )
    watts = dict(zip(names.tolist(), joules / seconds / 1000, strict=True))
    order = sorted((n for n in watts if n not in REMAINDERS), key=lambda n: -watts[n].sum())
    found = {n: watts[n] for n in order[:MOST_TEAMS]}
    if len(order) > MOST_TEAMS:
        found["others"] = np.sum([watts[n] for n in order[MOST_TEAMS:]], axis=0)
    found |= {n: watts[n] for n in REMAINDERS if n in watts}
    first = np.flatnonzero(np.diff(point, prepend=-1))
    return grid.starts[first], found


@styled
def area_figure(rows: pd.DataFrame, grid: Grid) -> Figure:
    """Two stacked areas, by workload class and by team; the remainders on top."""
    figure, axes = new_figure(11.0, 8.0, nrows=2, ncols=1, sharex=True)
    for place, (axis, column) in enumerate(zip(axes[:, 0], ("workload_class", "team"), strict=True)):
        time, watts = stacked_kw(rows, grid, column)
        fresh = iter(PALETTE * 2)
        colours = [REMAINDERS.get(n) or (CLASS_COLOURS.get(n, MUTED) if place == 0 else next(fresh)) for n in watts]
        edges = time.append(pd.DatetimeIndex([grid.ends[-1]])).tz_localize(None)
        stack = [np.append(values, values[-1:]) for values in watts.values()]
        axis.stackplot(edges, stack, colors=colours, labels=[n.replace("_", " ") for n in watts], step="post", linewidth=0)
        axis.set_title("By workload class" if place == 0 else "By team")
        axis.set_ylabel("kW")
        axis.margins(x=0)
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    time_axis(axes[-1, 0])
    axes[-1, 0].set_xlabel("UTC")
    return figure


@styled
def residual_figure(found: Reconciliation, start: pd.Timestamp) -> Figure | None:
    """What the node readings have beyond their parts over time, W; None where no node has both."""
    nodes = [one for one in found.of("node") if len(one.day)]
    if not nodes:
        return None
    shown = nodes[:MOST_NODES]
    figure, axes = new_figure(11.0, 4.2)
    axis = axes[0, 0]
    for place, one in enumerate(shown):
        parts = np.array_split(np.arange(len(one.day)), min(len(one.day), RESIDUAL_POINTS))
        day, residual = (np.array([values[p].mean() for p in parts]) for values in (one.day, one.residual))
        label = f"{one.place}{'' if one.suspect == '' else ': ' + one.verdict}"
        axis.plot(
            (start + pd.to_timedelta(day, unit="D")).tz_localize(None),
            residual,
            color=PALETTE[place % len(PALETTE)],
            linestyle="-" if place < len(PALETTE) else "--",
            linewidth=1.1,
            label=label,
        )
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_ylabel("W")
    more = f" ({len(shown)} of {len(nodes)}, those to doubt first)" if len(nodes) > len(shown) else ""
    axis.set_title(f"Node reading minus its boards, packages and memory{more}")
    axis.margins(x=0)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    time_axis(axis)
    axis.set_xlabel("UTC")
    return figure

"""What a reviewer sees of power across levels: agreement, the top of the hierarchy with its cap, and whether passing it was foretold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from registry.plots import INK, MUTED, PALETTE, need, new_figure, styled, time_axis

HISTORY_STEPS = 72
LEVEL_ORDER = ("gpu", "host", "node", "pool", "site")


@styled
def power_levels_figure(series: pd.DataFrame, forecasts: pd.DataFrame, windows: pd.DataFrame, scores: Mapping[str, Any]) -> Figure:
    """Four panels: one forecast of the largest capped series with its cap; WQL by level before and after; peaks; reliability.

    Args:
        series: ``unique_id, ds, y`` in W.
        forecasts: reconciled ones with ``y``, ``q10 ... q90``.
        windows: ``models.peaks.window_table`` of them.
        scores: ``levels``, ``caps``, ``reliability`` and ``incoherence_w`` as stage ``forecasters`` writes them.
    """
    need(forecasts, ("unique_id", "issued_at", "ds", "q10", "q50", "q90", "y"), "power forecasts")
    figure, grid = new_figure(12.0, 7.2, nrows=2, ncols=2)
    _fan(grid[0, 0], series, forecasts, windows)
    _bars(grid[0, 1], scores)
    _peaks(grid[1, 0], windows)
    _reliability(grid[1, 1], scores)
    return figure


def _fan(axes: Axes, series: pd.DataFrame, forecasts: pd.DataFrame, windows: pd.DataFrame) -> None:
    """The window in which passing the cap was least certain, of the largest capped series (of any, where none has a cap)."""
    capped = windows.dropna(subset=["cap"])
    shown = capped if len(capped) else windows
    uid = shown.groupby("unique_id")["peak_q50"].mean().idxmax()
    own = shown[shown["unique_id"] == uid]
    row = own.loc[(own["p_exceed"].fillna(0.0) - 0.5).abs().idxmin()]
    fan = forecasts[(forecasts["unique_id"] == uid) & (forecasts["issued_at"] == row["issued_at"])].sort_values("ds")
    past = series[(series["unique_id"] == uid) & (series["ds"] <= row["issued_at"])].sort_values("ds").tail(HISTORY_STEPS)
    axes.plot(past["ds"], past["y"], color=INK, lw=1.2, label="history")
    for low, alpha in ((10, 0.18), (30, 0.25)):
        axes.fill_between(fan["ds"], fan[f"q{low}"], fan[f"q{100 - low}"], color=PALETTE[0], alpha=alpha, lw=0)
    axes.plot(fan["ds"], fan["q50"], color=PALETTE[0], lw=1.8, label="median, 40 and 80 % band")
    axes.plot(fan["ds"], fan["y"], color=PALETTE[1], lw=1.2, ls="--", label="actual")
    if np.isfinite(row["cap"]):
        axes.axhline(row["cap"], color=PALETTE[3], lw=1.4, label=f"cap; probability to pass it in the window: {row['p_exceed']:.0%}")
    axes.set_title(str(uid))
    axes.yaxis.set_major_formatter(EngFormatter(unit="W", sep=" "))
    axes.legend(loc="best", fontsize=8)
    time_axis(axes)


def _bars(axes: Axes, scores: Mapping[str, Any]) -> None:
    levels = [level for level in LEVEL_ORDER if level in scores["levels"]] + sorted(set(scores["levels"]) - set(LEVEL_ORDER))
    names = list(scores["levels"][levels[0]]["wql"])
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        values = [scores["levels"][level]["wql"][name] for level in levels]
        axes.bar(np.arange(len(levels)) + (k - (len(names) - 1) / 2) * width, values, width, color=PALETTE[k], label=name)
    axes.set_xticks(np.arange(len(levels)), levels)
    axes.set_ylabel("WQL (lower is better)")
    gap = scores["incoherence_w"]
    axes.set_title(f"Levels agree: medians off by {gap['direct']['mean']:.0f} W before, {gap['reconciled']['mean']:.0f} W after")
    axes.grid(visible=False, axis="x")
    axes.legend()


def _peaks(axes: Axes, windows: pd.DataFrame) -> None:
    known = windows.dropna(subset=["peak"])
    levels = known["unique_id"].str.split("/").str[1]
    for k, level in enumerate(name for name in LEVEL_ORDER if (levels == name).any()):
        own = known[levels == level]
        axes.scatter(own["peak"], own["peak_q50"], s=7, color=PALETTE[k], alpha=0.6, label=level)
    ends = [known["peak"].min(), known["peak"].max()] if len(known) else [0, 1]
    axes.plot(ends, ends, color=MUTED, lw=1, ls=":")
    axes.set(xlabel="largest watts of a window", ylabel="forecast median of it", title="Peaks", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(unit="W", sep=" "))
        axis.set_minor_formatter("")
    axes.legend(markerscale=2)


def _reliability(axes: Axes, scores: Mapping[str, Any]) -> None:
    table = pd.DataFrame(scores["reliability"])
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":", label="ideal")
    if len(table):
        axes.plot(
            table["forecast"], table["observed"], color=PALETTE[0], lw=1.6, marker="o", ms=4, label="windows, by forecast probability"
        )
        for row in table.itertuples():
            axes.annotate(f"{int(row.count)}", (row.forecast, row.observed), textcoords="offset points", xytext=(5, -9), fontsize=8)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability that a cap is passed", ylabel="share that passed it")
    axes.set_title("Is passing a cap foretold?")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="upper left")

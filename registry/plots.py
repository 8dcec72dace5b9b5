"""Figures of forecasts and of learning. Each function takes a table and returns a figure that is not registered with pyplot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from telemetry.errors import InputError

# Okabe and Ito (2008): told apart with every common form of colour blindness.
PALETTE: tuple[str, ...] = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B5A900", "#5E3C99", "#8C564B")
INK, MUTED, GRID = "#222222", "#6B6B6B", "#E3E3E3"
NAIVE = frozenset({"persistence", "empirical_persistence", "seasonal_naive"})
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in our style, whatever the process has set."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float = 9.0, height: float = 4.0, **grid: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes ``[rows, columns]``; ``grid`` as for ``Figure.subplots``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(squeeze=False, **grid)


def need(frame: pd.DataFrame, columns: tuple[str, ...], what: str) -> pd.DataFrame:
    """``frame`` itself, after checking that it has ``columns`` and rows.

    Raises:
        InputError: naming the missing columns, or an empty table.
    """
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        raise InputError(
            f"columns {', '.join(missing)} missing" if missing else "no rows", where=f"table of {what}", allowed=", ".join(columns)
        )
    return frame


def time_axis(axes: Axes) -> None:
    """Dates as short as they can be told."""
    locator = mdates.AutoDateLocator(minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))


def colours(names: list[str]) -> dict[str, str]:
    """A colour for every name; naive forecasters share the greys."""
    greys = iter(("#4D4D4D", "#8C8C8C", "#BDBDBD"))
    fresh = iter(PALETTE * (1 + len(names) // len(PALETTE)))
    return {name: next(greys) if name in NAIVE else next(fresh) for name in names}


@styled
def forecast_fan(
    history: pd.DataFrame, forecast: pd.DataFrame, actual: pd.DataFrame | None = None, *, unit: str = "", limit: int = 6
) -> Figure:
    """History, median, bands of 80, 60, 40 and 20 %, and what came; one panel a series, at most ``limit``.

    Args:
        history: ``unique_id, ds, y`` up to the issue of the forecast.
        forecast: forecast frame of one issue.
        actual: ``unique_id, ds, y`` over the forecast's span.
        unit: label of the vertical axis.
    """
    need(forecast, ("unique_id", "ds", "q10", "q50", "q90"), "forecasts")
    need(history, ("unique_id", "ds", "y"), "history")
    ids = list(dict.fromkeys(forecast["unique_id"]))[:limit]
    columns = 1 if len(ids) == 1 else 2
    rows = -(-len(ids) // columns)
    figure, grid = new_figure(5.2 * columns + (3 if columns == 1 else 0), 2.7 * rows + 0.6, nrows=rows, ncols=columns)
    for axes, name in zip(grid.flat, ids, strict=False):
        past = history[history["unique_id"] == name].sort_values("ds")
        ahead = forecast[forecast["unique_id"] == name].sort_values("ds")
        axes.plot(past["ds"], past["y"], color=INK, lw=1.2, label="history")
        for low, alpha in ((10, 0.16), (20, 0.2), (30, 0.25), (40, 0.3)):
            if {f"q{low}", f"q{100 - low}"} <= set(ahead):
                band = f"{100 - 2 * low} % band" if low == 10 else None
                axes.fill_between(ahead["ds"], ahead[f"q{low}"], ahead[f"q{100 - low}"], color=PALETTE[0], alpha=alpha, lw=0, label=band)
        axes.plot(ahead["ds"], ahead["q50"], color=PALETTE[0], lw=1.8, label="median")
        if actual is not None:
            came = actual[actual["unique_id"] == name].sort_values("ds")
            axes.plot(came["ds"], came["y"], color=PALETTE[1], lw=1.2, ls="--", label="actual")
        axes.axvline(past["ds"].max(), color=MUTED, lw=0.8, ls=":")
        axes.set_title(name)
        axes.set_ylabel(unit)
        time_axis(axes)
    for axes in grid.flat[len(ids) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


@styled
def error_by_horizon(errors: pd.DataFrame, *, metric: str = "WQL", step_minutes: float | None = None) -> Figure:
    """One line a forecaster. ``errors``: ``forecaster, step, error`` with ``step`` from 1."""
    need(errors, ("forecaster", "step", "error"), "errors by horizon")
    figure, grid = new_figure(8.5, 4.2)
    axes = grid[0, 0]
    scale = 1.0 if step_minutes is None else step_minutes / 60.0
    names = list(dict.fromkeys(errors["forecaster"]))
    for name, colour in colours(names).items():
        line = errors[errors["forecaster"] == name].sort_values("step")
        style = "--" if name in NAIVE else "-"
        axes.plot(line["step"] * scale, line["error"], color=colour, ls=style, lw=1.8, marker="o", ms=3, label=name)
    axes.set_xlabel("steps ahead" if step_minutes is None else "hours ahead")
    axes.set_ylabel(f"{metric} (lower is better)")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{metric} by horizon")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@styled
def calibration(observed: pd.DataFrame) -> Figure:
    """Share of actuals below each quantile against the quantile. ``observed``: ``forecaster, nominal, observed`` in 0-1."""
    need(observed, ("forecaster", "nominal", "observed"), "calibration")
    figure, grid = new_figure(6.8, 4.8)
    axes = grid[0, 0]
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":", label="ideal")
    for name, colour in colours(list(dict.fromkeys(observed["forecaster"]))).items():
        line = observed[observed["forecaster"] == name].sort_values("nominal")
        axes.plot(
            line["nominal"], line["observed"], color=colour, lw=1.6, marker="o", ms=3.5, ls="--" if name in NAIVE else "-", label=name
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="quantile", ylabel="share of actuals below it", title="Calibration")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@styled
def skill_bars(skills: pd.DataFrame, *, baseline: str = "the better naive") -> Figure:
    """Skill with its interval, best on top. ``skills``: ``forecaster, skill, low, high``."""
    need(skills, ("forecaster", "skill", "low", "high"), "skills")
    table = skills.sort_values("skill").reset_index(drop=True)
    figure, grid = new_figure(8.0, 1.2 + 0.42 * len(table))
    axes = grid[0, 0]
    tints = [
        PALETTE[2] if low > 0 else PALETTE[1] if high < 0 else "#9A9A9A" for low, high in zip(table["low"], table["high"], strict=True)
    ]
    reach = np.abs(np.array([table["skill"] - table["low"], table["high"] - table["skill"]], dtype=float))  # [2, N]
    axes.barh(table.index, table["skill"], color=tints, height=0.62)
    axes.errorbar(table["skill"], table.index, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
    axes.axvline(0, color=INK, lw=0.9)
    axes.set_yticks(list(table.index), list(table["forecaster"]))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"skill over {baseline}, with 95 % interval (green: clear of zero)")
    axes.set_title("Who beats the naive forecast")
    return figure


@styled
def learning_curves(curves: pd.DataFrame, *, references: Mapping[str, float] | None = None, ylabel: str = "objective, USD") -> Figure:
    """Value over steps, a line a name. ``curves``: ``step, name, value`` and optional ``low, high``; ``references`` are dotted levels."""
    need(curves, ("step", "name", "value"), "learning curves")
    figure, grid = new_figure(8.5, 4.2)
    axes = grid[0, 0]
    for name, colour in colours(list(dict.fromkeys(curves["name"]))).items():
        line = curves[curves["name"] == name].sort_values("step")
        axes.plot(line["step"], line["value"], color=colour, lw=1.7, label=name)
        if {"low", "high"} <= set(line):
            axes.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.18, lw=0)
    for index, (name, level) in enumerate((references or {}).items()):
        axes.axhline(level, color=("#4D4D4D", "#8C8C8C", "#B5A900")[index % 3], lw=1.2, ls=":", label=name)
    axes.set(xlabel="training steps", ylabel=ylabel, title="Learning")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure

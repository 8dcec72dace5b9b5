"""A picture of how drawn months compare with the trace."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from envs.worlds.arrivals import SESSION_GAP_S, split_sessions
from pipelines.drawn import DRAWN, FITTED, HELD_OUT
from registry.plots import INK, MUTED, PALETTE, new_figure, styled

COLOURS = {FITTED: INK, DRAWN: PALETTE[1], HELD_OUT: PALETTE[0]}
DASHES = {FITTED: "-", DRAWN: "-", HELD_OUT: "--"}
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
BINS_S = np.array([60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400])
LARGEST_USERS = 12


@styled
def comparison_figure(
    parts: Mapping[str, pd.DataFrame], users: tuple[str, ...] = ("team",), session_gap_s: float = SESSION_GAP_S, title: str = ""
) -> Figure:
    """Eight panels: jobs by day, gaps, hour of day, hour of week, burstiness by bin width, session sizes, durations, GPUs.

    Args:
        parts: canonical jobs by name; ``fitted``, ``drawn`` and ``held out`` have colours of their own.
    """
    figure, panels = new_figure(16.0, 8.0, nrows=2, ncols=4)
    for name, jobs in parts.items():
        style = {"label": name, "color": COLOURS.get(name, MUTED), "linestyle": DASHES.get(name, "-"), "linewidth": 1.6}
        seconds = np.sort(jobs["submit_time"].dt.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64))
        _days(panels[0, 0], seconds, style)
        _survival(panels[0, 1], np.maximum(np.diff(seconds), 0.5), style)
        _hours(panels[0, 2], seconds, style)
        _week(panels[0, 3], seconds, style)
        _burstiness(panels[1, 0], seconds, style)
        _survival(panels[1, 1], split_sessions(jobs, users, session_gap_s).count, style)
        _survival(panels[1, 2], jobs["duration_s"].to_numpy(), style)
        _survival(panels[1, 3], (jobs["gpus"] * jobs["workers"]).to_numpy(), style)
    _label(panels)
    panels[0, 0].legend()
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _label(panels: np.ndarray) -> None:
    texts = (
        ("Jobs a day", "day of the part", ""),
        ("Gaps between submissions", "seconds", "share longer"),
        ("Day rhythm", "hour of the day, UTC", "share of jobs"),
        ("Week rhythm", "", "jobs an hour"),
        ("Burstiness", "width of the bins, s", "variance / mean of counts"),
        ("Sessions", "jobs in a session", "share larger"),
        ("Durations", "seconds", "share longer"),
        ("Sizes", "GPUs of the gang", "share larger"),
    )
    for axes, (title, x, y) in zip(panels.ravel(), texts, strict=True):
        axes.set(title=title, xlabel=x, ylabel=y)
    panels[0, 0].set_ylim(bottom=0)
    panels[0, 2].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0, 2].set_ylim(bottom=0)
    panels[0, 2].set_xticks(range(0, 25, 6))
    panels[0, 3].set_ylim(bottom=0)
    panels[0, 3].set_xticks(range(12, 168, 24), WEEKDAYS)
    panels[1, 0].axhline(1.0, color=MUTED, linewidth=1.0)
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
    panels[1, 0].annotate("Poisson process", (BINS_S[-1], 1.0), color=MUTED, fontsize=9, **place)
    panels[1, 0].set(xscale="log", yscale="log")


def _days(axes: Axes, seconds: np.ndarray, style: Mapping[str, object]) -> None:
    counts = np.bincount((seconds - seconds[0]) // 86_400)[:-1]
    axes.plot(np.arange(len(counts)), counts, **style)  # type: ignore[arg-type]


def _survival(axes: Axes, values: np.ndarray, style: Mapping[str, object]) -> None:
    """Share of the values above x; x is logarithmic where all are above 0."""
    x = np.sort(values)
    axes.plot(x, 1 - np.arange(1, len(x) + 1) / len(x), drawstyle="steps-post", **style)  # type: ignore[arg-type]
    if x[0] > 0:
        axes.set_xscale("log")
    axes.set_ylim(0, 1)


def _hours(axes: Axes, seconds: np.ndarray, style: Mapping[str, object]) -> None:
    share = np.bincount(seconds // 3600 % 24, minlength=24) / len(seconds)
    axes.step(np.arange(25), np.append(share, share[-1]), where="post", **style)  # type: ignore[arg-type]


def _week(axes: Axes, seconds: np.ndarray, style: Mapping[str, object]) -> None:
    """Mean jobs an hour by hour of the week, over six hours each: a few weeks hold too little for single hours."""
    hour = seconds // 3600
    every = np.arange(hour[0], hour[-1] + 1)
    # 1970 began on a Thursday.
    held, width = (np.bincount((hours + 72) % 168 // 6, minlength=28) for hours in (hour, every))
    rate = held / np.maximum(width, 1)
    axes.step(np.arange(29) * 6, np.append(rate, rate[-1]), where="post", **style)  # type: ignore[arg-type]


def _burstiness(axes: Axes, seconds: np.ndarray, style: Mapping[str, object]) -> None:
    """Variance over mean of the counts in bins of growing width, as long as the span holds ten whole bins."""
    span_s = seconds[-1] - seconds[0]
    widths = BINS_S[span_s >= BINS_S * 12]
    values = []
    for width in widths:
        counts = np.bincount(seconds // width - seconds[0] // width)[1:-1]
        values.append(counts.var() / counts.mean() if counts.any() else np.nan)
    axes.plot(widths, values, marker="o", markersize=3, **style)  # type: ignore[arg-type]

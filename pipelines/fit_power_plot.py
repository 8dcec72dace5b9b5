"""A picture of one GPU model's fitted curve: readings, curve, and both bands."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from envs.power.fit import DeviceFit
from registry.plots import INK, MUTED, PALETTE, new_figure, styled
from telemetry.classes import WORKLOAD_CLASSES

MOST_POINTS = 4000


@styled
def curve_figure(fit: DeviceFit, readings: pd.DataFrame) -> Figure:
    """Left: readings and the curve of the mix with the bands of readings and of the curve; right: classes, and watts under limits."""
    figure, panels = new_figure(11.0, 4.2, ncols=2)
    u = np.linspace(0.006, 1.0, 200)
    left, right = panels[0]
    shown = readings.sample(min(len(readings), MOST_POINTS), random_state=0)
    left.scatter(shown["utilization"], shown["power_w"], s=4, alpha=0.25, color=MUTED, linewidths=0, label="readings")
    bands = fit.quantiles(u)
    left.fill_between(u, bands[:, 0], bands[:, -1], color=PALETTE[0], alpha=0.15, linewidth=0, label="5-95 % of readings")
    low, high = fit.curve_band(u)
    left.fill_between(u, low, high, color=PALETTE[0], alpha=0.5, linewidth=0, label="5-95 % of the curve")
    left.plot(u, fit.watts(u), color=INK, linewidth=1.4, label="mix of classes")
    left.axhline(fit.board.limit_w, color=MUTED, linewidth=0.8, linestyle=":")
    left.set_title(f"{fit.board.gpu_model}: {fit.rows:,} readings, idle {fit.idle_w:.0f} W")
    for number, kind in enumerate(WORKLOAD_CLASSES):
        right.plot(u, fit.watts(u, kind=kind), color=PALETTE[number], linewidth=1.4, label=kind)
        right.plot(u, fit.watts(u, 0.55 * fit.board.limit_w, kind), color=PALETTE[number], linewidth=1.0, linestyle="--")
    right.set_title("Classes; dashed: under a limit of 55 %")
    for axes in (left, right):
        axes.set_xlabel("utilisation")
        axes.set_ylabel("W")
        axes.set_ylim(0, 1.08 * fit.board.limit_w)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend()
    return figure

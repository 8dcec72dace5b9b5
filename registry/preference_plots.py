"""Figure of what policies make of preferences: cost, energy and carbon against service, a front a policy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from registry.plots import PALETTE, colours, need, new_figure, styled

SIDES = {"cost_usd": "cost per window, USD", "energy_kwh": "energy per window, kWh", "carbon_kg": "carbon per window, kgCO2e"}
SERVICE = "sla_violation_rate"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


@styled
def preference_fronts(points: pd.DataFrame, *, highlight: str = "champion") -> Figure:
    """Three panels: each policy's points of all preferences, and the front of those that none of its own beats there.

    Args:
        points: ``policy, cost_usd, energy_kwh, carbon_kg, sla_violation_rate`` and ``configured`` (bool, ringed), a row a preference.
        highlight: policy whose front is drawn thick.
    """
    need(points, ("policy", *SIDES, SERVICE, "configured"), "points of preferences")
    figure, grid = new_figure(13.5, 5.0, ncols=3, sharey=True)
    palette = colours(list(dict.fromkeys(points["policy"])))
    for axes, (column, label) in zip(grid[0], SIDES.items(), strict=True):
        for place, (name, colour) in enumerate(palette.items()):
            own = points[points["policy"] == name]
            marker = MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]  # colours repeat: never with the same marker
            _front(axes, own[[column, SERVICE]].to_numpy(dtype=np.float64), colour, 2.4 if name == highlight else 1.2)
            axes.scatter(own[column], own[SERVICE], color=colour, marker=marker, s=24, zorder=3, alpha=0.85, lw=0, label=name)
            ringed = own[own["configured"]]
            axes.scatter(ringed[column], ringed[SERVICE], facecolor="none", edgecolor=colour, s=110, lw=1.3, zorder=4)
        axes.set(xlabel=label, title=label.split(" per ")[0].capitalize())
        axes.margins(0.08)
    _limits(grid[0, 0], points[SERVICE])
    grid[0, 0].set_ylabel("jobs that miss their objective")
    figure.suptitle(
        "What preferences buy (lower left is better; ringed: the configured weights)", x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 7))
    return figure


def _front(axes: Axes, values: np.ndarray, colour: str, width: float) -> None:
    """The staircase between a policy's points that none of its own beats in this panel."""
    order = values[np.lexsort((values[:, 1], values[:, 0]))]
    best = np.minimum.accumulate(order[:, 1])
    keep = np.concatenate([[True], order[1:, 1] < best[:-1]])
    if keep.sum() > 1:
        axes.step(order[keep, 0], order[keep, 1], where="post", color=colour, lw=width, alpha=0.7, zorder=2)


def _limits(axes: Axes, rates: pd.Series) -> None:
    """Rates from near the least to above the most, never below 0."""
    low, high = float(rates.min()), float(rates.max())
    room = max(0.08 * (high - low), 0.002)
    axes.set_ylim(max(low - room, -0.15 * room), high + room)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))

"""Pictures of a classifier of workload classes: how good it is, and what classes draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from models.characterise.scores import CALIBRATION_BINS, confusion, coverage_curve
from registry.plots import INK, MUTED, PALETTE, new_figure, styled
from telemetry.classes import WORKLOAD_CLASSES


@styled
def quality_figure(probabilities: np.ndarray, truth: np.ndarray, threshold: float) -> Figure:
    """Confusion, error against coverage, and said against observed probability, of out-of-fold answers ``[N, K]``."""
    figure, panels = new_figure(13.0, 4.2, ncols=3)
    left, middle, right = panels[0]
    matrix = confusion(truth, probabilities.argmax(axis=1))
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    left.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        left.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", color="white" if share[row, column] > 0.5 else INK)
    names = [name.replace("_", "\n") for name in WORKLOAD_CLASSES]
    left.set_xticks(range(len(names)), names, fontsize=8)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.grid(visible=False)
    left.set_title("Stated (rows) and most likely")
    coverage, error = coverage_curve(probabilities, truth)
    middle.plot(coverage, error, color=PALETTE[0])
    at = float(np.mean(probabilities.max(axis=1) >= threshold))
    middle.axvline(at, color=MUTED, linewidth=0.9, linestyle=":")
    middle.set_title("Wrong answers as more are given")
    middle.set_xlabel("answered")
    middle.set_ylabel("wrong among them")
    best, good = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((best * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    points = [(float(best[bins == b].mean()), float(good[bins == b].mean()), int((bins == b).sum())) for b in np.unique(bins)]
    said, seen, count = (np.array(part) for part in zip(*points, strict=True))
    right.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=":")
    right.scatter(said, seen, s=20 + 200 * count / max(int(count.max()), 1), color=PALETTE[0], alpha=0.7)
    right.set_title("Said and observed")
    right.set_xlabel("probability said")
    right.set_ylabel("right")
    for axes in (middle, right):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


@styled
def watts_figure(table: pd.DataFrame) -> Figure:
    """Watts of one GPU over relative job time: median, and 10 to 90 % of jobs; a panel a class."""
    kinds = [kind for kind in WORKLOAD_CLASSES if (table["workload_class"] == kind).any()]
    figure, panels = new_figure(2.8 * len(kinds) + 0.6, 3.2, ncols=len(kinds), sharey=True)
    for number, (kind, axes) in enumerate(zip(kinds, panels[0], strict=True)):
        rows = table[table["workload_class"] == kind]
        middle = (rows["part"].to_numpy() + 0.5) / (rows["part"].max() + 1)
        axes.fill_between(middle, rows["watts_q10"], rows["watts_q90"], color=PALETTE[number], alpha=0.2, linewidth=0)
        axes.plot(middle, rows["watts_q50"], color=PALETTE[number])
        axes.set_title(f"{kind} ({int(rows['jobs'].iloc[0]):,})", fontsize=9)
        axes.set_xlabel("job time")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0, 0].set_ylabel("W of one GPU")
    panels[0, 0].set_ylim(bottom=0)
    return figure

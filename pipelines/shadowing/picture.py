"""Pictures of an off-policy evaluation and of guardrails."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from envs.off_policy import Evaluation
from registry.guardrails import Watched
from registry.plots import INK, MUTED, PALETTE, new_figure, styled


@styled
def evaluation_figure(found: Mapping[str, Evaluation], weights: Mapping[str, np.ndarray]) -> Figure:
    """For each target a histogram of its weights, and its estimates of the difference to the log with their intervals."""
    figure, panels = new_figure(12.0, 2.2 + 2.2 * len(found), nrows=len(found), ncols=2)
    for (left, right), (name, one) in zip(panels, found.items(), strict=True):
        w = weights[name]
        left.hist(w[w > 0], bins=40, color=PALETTE[0])
        left.set_yscale("log")
        left.set_xlabel("weight of a decision")
        left.set_ylabel("decisions")
        share = f"effective sample {one.overlap.effective_share:.1%} of {one.overlap.decisions:,}, {np.mean(w == 0):.0%} of weight 0"
        left.set_title(f"{name}: {share}", fontsize=9, loc="left")
        if one.overlap.refusals:
            right.text(0.02, 0.5, "no overlap:\n" + "\n".join(one.overlap.refusals), color=PALETTE[1], fontsize=8, va="center", wrap=True)
            right.set_axis_off()
            continue
        for at, (estimate, interval) in enumerate(one.difference.items()):
            colour = INK if estimate == "dr" else MUTED
            right.plot([interval.low, interval.high], [at, at], color=colour, linewidth=2)
            right.plot([interval.mean], [at], "o", color=colour)
        right.axvline(0.0, color=MUTED, linewidth=0.8, linestyle="--")
        right.set_yticks(range(len(one.difference)), list(one.difference))
        right.set_xlabel("USD a decision less than 0: cheaper than what was logged")
    return figure


@styled
def guard_figure(found: Watched, title: str) -> Figure:
    """Bounds of the excess of the watched side, outcome by outcome."""
    figure, panels = new_figure(12.0, 3.6, nrows=1, ncols=2)
    both = (("share of jobs that violate objectives", found.sla), ("USD a job", found.cost))
    for panel, (label, excess) in zip(panels[0], both, strict=True):
        at = np.arange(len(excess.low))
        shown = np.isfinite(excess.low)
        panel.fill_between(at[shown], excess.low[shown], excess.high[shown], color=PALETTE[0], alpha=0.3, linewidth=0)
        panel.plot(at[shown], excess.mean[shown], color=INK, linewidth=1.2)
        panel.axhline(0.0, color=MUTED, linewidth=0.8, linestyle="--")
        if found.breach is not None:
            panel.axvline(found.breach.job, color=PALETTE[1], linewidth=1.2)
        panel.set_xlabel("outcomes")
        panel.set_ylabel(f"excess, {label}")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure

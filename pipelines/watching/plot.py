"""The page of a shot: every watched signal over time, what was normal, and where rules alarmed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from models.drift.rules import Rule
from pipelines.watching.target import WatchReport
from registry.plots import INK, MUTED, PALETTE, new_figure, styled, time_axis

TITLES = {
    "loss": "ln loss, in scales",
    "loss_ratio": "ln loss over persistence's",
    "miss": "share outside the 80 % interval",
    "bias": "error of the median, in interval widths",
    "level": "level, in training deviations",
    "psi": "PSI of the last day against training",
    "power": "ln measured over modelled watts",
    "policy_cost": "ln realised over simulated USD",
    "policy_sla": "missed jobs above the simulated, a job",
}


@styled
def watch_figure(report: WatchReport, rules: tuple[Rule, ...]) -> Figure:
    """One row a rule that judged: left the signal with its reference shaded, right how far the detector is to an alarm."""
    shown = [rule for rule in rules if rule.name in report.judged]
    figure, panels = new_figure(11.0, 2.0 * max(len(shown), 1) + 0.6, nrows=max(len(shown), 1), ncols=2)
    blocks = report.blocks
    times = pd.to_datetime((blocks.index.to_numpy(dtype=np.int64) + 1) * report.block_ns)
    for (left, right), rule in zip(panels, shown, strict=False):
        judged, values = report.judged[rule.name], blocks[rule.signal].to_numpy(dtype=np.float64)
        held = np.flatnonzero(np.isfinite(values))[: 0 if rule.detector.kind == "limit" else rule.reference_blocks]
        left.plot(times, values, color=MUTED, linewidth=0.7)
        left.plot(times, pd.Series(values).rolling(8, min_periods=1).mean(), color=PALETTE[0], linewidth=1.6)
        if len(held):
            left.axvspan(times[held[0]], times[held[-1]], color=PALETTE[2], alpha=0.12, linewidth=0)
        right.plot(times, judged.path, color=INK, linewidth=1.2)
        right.axhline(1.0, color=PALETTE[1], linestyle="--", linewidth=1.0)
        right.set_ylim(0, max(1.2, float(np.nanmax(judged.path)) * 1.05 if np.isfinite(judged.path).any() else 0.0))
        for alarm in judged.alarms:
            for axes in (left, right):
                axes.axvline(pd.Timestamp((alarm + 1) * report.block_ns), color=PALETTE[1], linewidth=1.2)
        left.set_title(f"{rule.name}: {TITLES[rule.signal]}")
        state = f"{judged.waiting} more blocks needed" if judged.waiting else f"{len(judged.alarms)} alarms"
        right.set_title(f"{rule.detector.kind}, {rule.severity}: {state} (1 = alarm)")
        for axes in (left, right):
            axes.set_xlim(times[0], times[-1])
            time_axis(axes)
    figure.suptitle(f"{report.target}: {report.model} version {report.version}")
    return figure

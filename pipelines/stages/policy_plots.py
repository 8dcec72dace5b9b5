"""What a reviewer sees of the scheduling policy: learning, trade-offs, a day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipelines.workspace import read_json
from registry.plots import MUTED, PALETTE, new_figure, styled
from registry.policy_plots import gantt, pareto


def learning_figure(agent: Path) -> Figure:
    """Objective that the agent saves on validation windows over its training, against the judge that it started from.

    Solid: the windows on which weights are chosen; dashed: those on which they are confirmed. The dot is what was chosen.
    """
    validation, facts = pd.read_parquet(agent / "validation.parquet"), read_json(agent / "result.json")
    return _learning(validation, facts)


@styled
def _learning(validation: pd.DataFrame, facts: dict[str, Any]) -> Figure:
    figure, grid = new_figure(8.5, 4.2)
    axes = grid[0, 0]
    halves = (
        ("objective_usd", "judge_usd", PALETTE[0], "-", "chosen on"),
        ("confirmation_usd", "judge_confirmation_usd", PALETTE[1], "--", "confirmed on"),
    )
    for name, judge, colour, style, label in halves[: 2 if facts["verdict"]["held_back"] else 1]:
        reference = float(validation[judge].iloc[0])
        gain = 100 * (reference - validation[name]) / abs(reference)
        axes.plot(
            validation["step"], gain, color=colour, ls=style, lw=1.7, label=f"windows {label} ({facts['judge']}: {reference:.2f} USD)"
        )
        best = validation["step"] == facts["best_step"]
        axes.plot(validation["step"][best], gain[best], "o", color=colour, ms=7, label="chosen" if name == "objective_usd" else None)
    axes.axhline(0.0, color=MUTED, lw=1.2, ls=":", label=facts["judge"])
    axes.set(xlabel="training steps", ylabel=f"objective saved against {facts['judge']}, %")
    axes.set_title("Learning: " + ("accepted" if facts["improved"] else f"not better than {facts['judge']}, which stays"))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


# Panels of the figure of training: title, label, {column of curve.parquet: label}, whether the scale is logarithmic.
PANELS: tuple[tuple[str, str, dict[str, str], bool], ...] = (
    ("Regret per decision", "USD", {"rollout/regret_per_decision_usd": ""}, False),
    ("Objective of training windows", "USD per window", {"episode/objective_usd": ""}, False),
    (
        "Answers to waiting jobs",
        "share",
        {"actions/hold": "hold", **{f"actions/run_level_{level}": f"run, level {level}" for level in range(4)}},
        False,
    ),
    (
        "Answers in reviews",
        "share",
        {
            f"actions/review_{key}": label
            for key, label in (("pause", "pause"), ("stay", "stay"), ("change_level", "change level"), ("migrate", "migrate"))
        },
        False,
    ),
    ("Entropy", "nats", {"train/entropy_loss": ""}, False),
    ("Size of updates", "", {"train/approx_kl": "approximate KL", "train/clip_fraction": "clipped share"}, True),
    ("Value function", "explained variance", {"train/explained_variance": ""}, False),
    ("Service in training windows", "share of jobs violated", {"episode/sla_violation_rate": ""}, False),
)


@styled
def training_figure(agent: Path) -> Figure:
    """How training went, rollout by rollout: regret, what was done, and whether the updates were sound."""
    curve = pd.read_parquet(agent / "curve.parquet")
    shown = [panel for panel in PANELS if any(column in curve and curve[column].notna().any() for column in panel[2])]
    figure, grid = new_figure(11.0, 2.6 * -(-len(shown) // 2) + 0.4, nrows=-(-len(shown) // 2), ncols=2)
    for axes, (title, label, columns, logarithmic) in zip(grid.flat, shown, strict=False):
        for (column, name), colour in zip(columns.items(), PALETTE, strict=False):
            if column in curve and curve[column].notna().any():
                values = -curve[column] if column == "train/entropy_loss" else curve[column]
                known = values.notna() & ((values > 0) | (not logarithmic))
                if not known.any():
                    continue
                axes.plot(curve["step"][known], values[known], color=colour, lw=1.4, label=name or None)
        axes.set(title=title, ylabel=label)
        if logarithmic:
            axes.set_yscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if len(columns) > 1:
            axes.legend(loc="best", fontsize=8)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("training steps")
    return figure


def policy_figures(evaluated: Path, agent: Path, features: Path) -> dict[str, Figure]:
    """Figures by name: learning curve, Pareto chart of cost against service, Gantt of one window."""
    rows = pd.read_parquet(evaluated / "rows.parquet")
    events = pd.read_parquet(evaluated / "events.parquet")
    classes = events[events["job"] >= 0].drop_duplicates("job").set_index("job")["workload_class"].to_dict()
    prices = pd.read_parquet(features / "grid.parquet", columns=["time", "site", "price_usd_per_kwh"])
    return {
        "learning": learning_figure(agent),
        "pareto": pareto(rows, highlight="agent"),
        "gantt": gantt(events, classes, prices=prices, title="The agent's schedule of one held-out window"),
    }

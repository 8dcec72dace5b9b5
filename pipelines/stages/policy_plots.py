"""What a reviewer sees of the scheduling policy: learning, trade-offs, a day."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from registry.plots import learning_curves
from registry.policy_plots import gantt, pareto


def learning_figure(agent: Path) -> Figure:
    """Objective of the agent on validation windows over its training, against the policy that it started from."""
    validation = pd.read_parquet(agent / "validation.parquet")
    curve = validation.rename(columns={"objective_usd": "value"}).assign(name="agent, validation windows")
    start = float(validation["objective_usd"].iloc[0])
    return learning_curves(curve, references={"untrained": start}, ylabel="objective per window, USD")


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

"""Plots of a study: how it went, which parameters mattered, and a slice through each."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.sweeping.study import TrialStore, optuna_module


def figures(store: TrialStore, frame: pd.DataFrame) -> dict[str, Figure]:
    """Figures by name; importances only where there are enough trials that differ."""
    complete = frame[frame["state"] == "complete"]
    found = {"history": history(frame, complete), "slices": slices(store, complete), "learning": learning(store)}
    if weights := importances(store, len(complete)):
        found["importances"] = bars(weights)
    return found


def history(frame: pd.DataFrame, complete: pd.DataFrame) -> Figure:
    """Value of each trial and the best so far; pruned and failed ones at the edge."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(complete["trial"], complete["value"], s=18, label="complete")
    axes.step(complete["trial"], complete["value"].cummin(), where="post", color="C1", label="best so far")
    top = float(complete["value"].max())
    for state, marker in (("pruned", "|"), ("failed", "x")):
        others = frame.loc[frame["state"] == state, "trial"]
        if len(others):
            axes.scatter(others, np.full(len(others), top), marker=marker, color="0.5", label=state)
    axes.set(xlabel="trial", ylabel="objective (less is better)", title="History")
    axes.legend()
    return figure


def learning(store: TrialStore) -> Figure:
    """Intermediate values of all trials; those cut short in grey."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for trial in store.finished():
        steps = sorted(trial.intermediate_values.items())
        if steps:
            pruned = trial.state.name == "PRUNED"
            axes.plot(*zip(*steps, strict=True), color="0.7" if pruned else "C0", lw=0.8, marker="x" if pruned else None, markevery=[-1])
    axes.set(xlabel="step", ylabel="objective so far", title="Intermediate values (grey: pruned)")
    return figure


def slices(store: TrialStore, complete: pd.DataFrame) -> Figure:
    """Value against each parameter."""
    parameters = store.space.parameters
    figure = Figure(figsize=(3.2 * len(parameters), 3.4), layout="constrained")
    for place, (key, one) in enumerate(parameters.items()):
        axes = figure.add_subplot(1, len(parameters), place + 1)
        x: Any = complete[key]
        if one.choices:
            order = [json.dumps(choice) for choice in one.choices]
            x = [order.index(json.dumps(value)) for value in complete[key]]
            axes.set_xticks(range(len(order)), order, rotation=30, ha="right", fontsize=7)
        elif one.log:
            axes.set_xscale("log")
        axes.scatter(x, complete["value"], c=complete["trial"], s=16)
        axes.set(title=key.rpartition(".")[2])
    figure.supylabel("objective")
    return figure


def importances(store: TrialStore, complete: int) -> dict[str, float]:
    """Share of each parameter in what separates the best trials (PED-ANOVA); empty where it cannot be told."""
    if complete < 8:
        return {}
    optuna = optuna_module("sweep")
    try:
        return dict(optuna.importance.get_param_importances(store.study))
    except (RuntimeError, ValueError):
        return {}


def bars(weights: dict[str, float]) -> Figure:
    """Importances as bars."""
    figure = Figure(figsize=(7, 0.5 * len(weights) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(weights)[::-1]
    axes.barh([name.rpartition(".")[2] for name in names], [weights[name] for name in names])
    axes.set(xlabel="share", title="Importance (PED-ANOVA)")
    return figure

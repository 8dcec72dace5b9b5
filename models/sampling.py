"""Training rows of the global learners, drawn over all series from the part before the cut."""

from __future__ import annotations

import numpy as np

from models.features import IssueTable
from models.series import Panel

MAX_TRAIN_SERIES = 1000


def training_series(panel: Panel, cut: np.ndarray, seed: int) -> tuple[Panel, np.ndarray]:
    """At most ``MAX_TRAIN_SERIES`` series with their cuts: more of them add cost and memory, and hardly anything to learn."""
    if len(panel) <= MAX_TRAIN_SERIES:
        return panel, cut
    chosen = np.sort(np.random.default_rng(seed).choice(len(panel), MAX_TRAIN_SERIES, replace=False))
    return panel.select(chosen), cut[chosen]


def sample_issues(table: IssueTable, cut: np.ndarray, ahead: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Observed issue rows of series that move, each with ``ahead`` rows between it and its series' cut, without repeats.

    Args:
        table: of the series.
        cut: ``[N]`` first row of each series that must not be seen.
        ahead: rows.
        size: rows at most.
    """
    usable = (table.position + ahead < cut[table.series]) & table.observed & (table.scale > 0)
    rows = np.flatnonzero(usable)
    return rows if len(rows) <= size else np.sort(rng.choice(rows, size=size, replace=False))


def sample_pairs(table: IssueTable, cut: np.ndarray, horizon: int, size: int, per_issue: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of issue row and horizon step whose target is observed and lies before the cut.

    Args:
        table, cut: as for :func:`sample_issues`.
        horizon: steps.
        size: pairs at most.
        per_issue: different steps per issue row at least, more where there are few rows.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    rows = sample_issues(table, cut, 1, max(1, size // min(per_issue, horizon)), rng)
    if not len(rows):
        return rows, rows
    per_issue = min(horizon, max(per_issue, size // len(rows)))
    steps = np.argpartition(rng.random((len(rows), horizon)), per_issue - 1, axis=1)[:, :per_issue] + 1
    rows, steps = np.repeat(rows, per_issue), steps.reshape(-1)
    inside = table.position[rows] + steps < cut[table.series[rows]]
    rows, steps = rows[inside], steps[inside]
    seen = table.observed[rows + steps]
    return rows[seen], steps[seen]

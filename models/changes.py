"""Pooled naives: the last value, and last season's, plus the quantiles of all series' scaled errors.

It needs next to nothing to learn and nothing of a series' own history but its scale, so it serves a series from its first value on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.base import QUANTILES
from models.features import Issues, IssueTable
from models.sampling import sample_issues

ACTIVITY_ROWS = 12
CLASS_EDGES = (0.25, 0.5, 0.75)  # quantiles of activity that part its classes
MAX_ISSUES = 12_000
LEAST_ISSUES = 200  # of a class, before it is told apart


@dataclass(frozen=True)
class PooledChanges:
    """Quantiles of scaled changes by activity class and step.

    Shapes: ``edges [C - 1]`` of activity in units of the scale, ``table [C, H, Q]``.
    """

    edges: np.ndarray
    table: np.ndarray
    issues: int = 0  # issue times learned from

    @property
    def trusted(self) -> bool:
        """Whether there was enough to learn from to be preferred to a series' own few changes."""
        return self.issues >= LEAST_ISSUES

    @classmethod
    def nothing(cls, horizon: int) -> PooledChanges:
        """No change, for certain: when no series moved."""
        return cls(np.empty(0), np.zeros((1, horizon, len(QUANTILES))))

    @classmethod
    def learn(cls, table: IssueTable, cut: np.ndarray, horizon: int, seed: int) -> PooledChanges:
        """From the rows before ``cut`` ``[N]`` of each series."""
        rng = np.random.default_rng(seed)
        ahead = next((h for h in range(horizon, 0, -1) if (table.position + h < cut[table.series]).any()), 0)
        rows = sample_issues(table, cut, ahead, MAX_ISSUES, rng) if ahead else np.empty(0, dtype=np.int64)
        if len(rows) < 2:
            return cls.nothing(horizon)
        steps = np.arange(1, ahead + 1)
        changes = (table.values[rows[:, None] + steps] - table.values[rows][:, None]) / table.unit[rows][:, None]
        changes[~table.observed[rows[:, None] + steps]] = np.nan
        lively = activity(table, rows)
        edges = np.unique(np.quantile(lively, CLASS_EDGES)) if len(rows) >= LEAST_ISSUES * (len(CLASS_EDGES) + 1) else np.empty(0)
        number = np.searchsorted(edges, lively)
        found = np.zeros((len(edges) + 1, horizon, len(QUANTILES)))
        for k in range(len(found)):
            own = changes[number == k] if (number == k).sum() >= LEAST_ISSUES else changes
            found[k, :ahead] = _quantiles(own)
            grown = np.sqrt(np.arange(ahead + 1, horizon + 1) / ahead)  # as a random walk beyond what the history shows
            found[k, ahead:] = grown[:, None] * found[k, ahead - 1]
        return cls(edges, found, len(rows))

    def changes(self, issues: Issues) -> np.ndarray:
        """Quantiles ``[n, H, Q]`` of scaled changes."""
        return self.table[np.searchsorted(self.edges, activity(issues.table, issues.at)), : issues.horizon]

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {"edges": self.edges.tolist(), "table": self.table.tolist(), "issues": self.issues}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> PooledChanges:
        """What ``to_json`` gave."""
        return cls(np.array(stored["edges"], dtype=np.float64), np.array(stored["table"]), int(stored["issues"]))


@dataclass(frozen=True)
class PooledSeasons:
    """Quantiles of the scaled errors of last season's value by step, ``table [H, Q]``; None where too few were seen."""

    table: np.ndarray | None = None

    @classmethod
    def learn(cls, table: IssueTable, cut: np.ndarray, horizon: int, seed: int, country: str | None) -> PooledSeasons:
        """From the rows before ``cut`` ``[N]`` of each series."""
        rows = sample_issues(table, cut, horizon, len(table.values), np.random.default_rng(seed))
        rows = rows[table.position[rows] >= table.season_length]
        if len(rows) < LEAST_ISSUES:
            return cls()
        rows = np.random.default_rng(seed).choice(rows, size=min(len(rows), MAX_ISSUES // 4), replace=False)
        issues = Issues(table, rows, horizon, country)
        change = (issues.actual - table.values[rows][:, None]) / table.unit[rows][:, None]
        return cls(_quantiles(change - issues.season))

    def changes(self, issues: Issues, otherwise: np.ndarray) -> np.ndarray:
        """Quantiles ``[n, H, Q]`` of scaled changes; ``otherwise`` where a series has no season yet."""
        if self.table is None:
            return otherwise
        season = issues.season[:, :, None]
        return np.where(np.isnan(season), otherwise, season + self.table[: issues.horizon])


def activity(table: IssueTable, rows: np.ndarray) -> np.ndarray:
    """Mean absolute change over the last ``ACTIVITY_ROWS`` steps in units of the scale, ``[n]``."""
    back = np.minimum(np.arange(ACTIVITY_ROWS + 1), table.position[rows][:, None])
    return np.abs(np.diff(table.values[rows[:, None] - back], axis=1)).mean(axis=1) / table.unit[rows]


def _quantiles(changes: np.ndarray) -> np.ndarray:
    """Quantiles ``[H, Q]`` of the known changes of each column."""
    known = ~np.isnan(changes)
    if known.all():
        return np.quantile(changes, QUANTILES, axis=0).T
    columns = [changes[known[:, h], h] for h in range(changes.shape[1])]
    return np.stack([np.quantile(c, QUANTILES) if len(c) else np.zeros(len(QUANTILES)) for c in columns])

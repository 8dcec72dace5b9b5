"""Quantile averaging of members, with weights per horizon band learned out of sample and shrunk towards equal ones.

Members are fitted on the part of the history before the cut; on the part after it their forecasts are replayed, and a greedy search
(Caruana et al. 2004) averages the quantiles that lose least there. Two naives with pooled quantiles of their scaled errors always take
part: the last value, which is also the fallback, and last season's. So an ensemble of members that learned nothing is empirical
persistence. The widths of the average are corrected like those of any member.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.base import monotone
from models.calibrated import REPLAY_TIMES
from models.changes import PooledChanges, PooledSeasons
from models.features import Issues, IssueTable
from models.global_learner import GlobalLearner
from models.intervals import BANDS, horizon_bands
from models.lightgbm import LightGbm
from models.lstm import Lstm
from models.metrics import quantile_loss
from telemetry.errors import InputError

PARAMETERS = "ensemble.json"
MEMBERS: dict[str, type[GlobalLearner]] = {cls.name: cls for cls in (LightGbm, Lstm)}
ROUNDS = 20
MAX_ISSUES = 4000  # that the weights are learned on
PRIOR_WINDOWS = 20.0  # separate windows that weigh as much as equal weights


@dataclass(frozen=True)
class EnsembleOptions:
    """Options of ``ensemble``.

    Args:
        members: forecasters to average, besides the fallback.
        member_options: options by member.
        holdout_fraction: newest share of each series on which weights and widths are learned; also the members'.
        country: ISO 3166 code whose public holidays are a feature, of all members; None for none.
    """

    members: tuple[str, ...] = ("lightgbm", "lstm")
    member_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    holdout_fraction: float = 0.15
    country: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted({*self.members, *self.member_options} - set(MEMBERS))
        if unknown:
            raise InputError(f"member(s) {', '.join(unknown)}", where="ensemble", allowed=", ".join(MEMBERS))


class Ensemble(GlobalLearner):
    """Average of members' quantiles by horizon band."""

    name = "ensemble"
    options_class = EnsembleOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        common = {key: getattr(self, key) for key in ("freq", "horizon", "season_length", "seed")}
        shared = {key: getattr(self.options, key) for key in ("holdout_fraction", "country")}
        self.members: dict[str, GlobalLearner] = {
            name: MEMBERS[name](**common, **{**self.options.member_options.get(name, {}), **shared}) for name in self.options.members
        }
        self.pooled, self.seasons = PooledChanges.nothing(self.horizon), PooledSeasons()
        self.weights = self._equal()

    def learn(self, table: IssueTable, cut: np.ndarray) -> None:
        for member in self.members.values():
            member.families = self.families
            member.warm_start = None if self.warm_start is None else self.warm_start / member.name
            member.learn(table, cut)
        self.pooled = PooledChanges.learn(table, cut, self.horizon, self.seed)
        self.seasons = PooledSeasons.learn(table, cut, self.horizon, self.seed, self.options.country)
        self.weights = self._learn_weights(table, cut)

    def _equal(self) -> np.ndarray:
        """Weights ``[B, K]`` before anything is known: the members alike, the fallback only where there is none."""
        row = [0.0 if self.members else 1.0, 0.0, *[1.0 / len(self.members) for _ in self.members]]
        return np.tile(row, (BANDS, 1))

    def _learn_weights(self, table: IssueTable, cut: np.ndarray) -> np.ndarray:
        """Weights ``[B, K]`` from the rows held back."""
        every = max(1, self.calibration_rows // REPLAY_TIMES)
        grid = (table.times_ns // table.step_ns) % every == 0
        rows = np.flatnonzero((table.position >= cut[table.series]) & grid & table.observed & (table.position + 1 < table.length))
        if not len(rows) or not self.members:
            return self._equal()
        rng = np.random.default_rng(self.seed)
        rows = rows if len(rows) <= MAX_ISSUES else np.sort(rng.choice(rows, size=MAX_ISSUES, replace=False))
        issues = Issues(table, rows, self.horizon, self.options.country)
        found = self._stacked(issues)
        if found is None:
            return self._equal()
        actual, stacked = issues.actual, np.stack([issues.values(change) for change in found])
        known = np.isfinite(actual)
        per_scale = np.where(table.scale[rows] > 0, 1.0 / table.unit[rows], 0.0)[:, None] + np.zeros(self.horizon)
        trust = self._trust(table, rows)
        weights, bands = self._equal(), horizon_bands(self.horizon)
        for band in np.unique(bands):
            own = bands == band
            if known[:, own].any():
                best = greedy_weights(actual[:, own], stacked[:, :, own], per_scale[:, own], known[:, own])
                weights[band] = trust * best + (1.0 - trust) * weights[band]
        return weights

    def _trust(self, table: IssueTable, rows: np.ndarray) -> float:
        """Share of what was found in the weights, by the number of separate windows: series count with the root of their number."""
        span = np.ptp(table.times_ns[rows]) / table.step_ns / self.horizon
        windows = span * np.sqrt(len(np.unique(table.series[rows])))
        return float(windows / (windows + PRIOR_WINDOWS))

    def _stacked(self, issues: Issues) -> list[np.ndarray] | None:
        """Changes ``[n, H, Q]`` of the two naives and of each member; one that learned nothing gives the fallback's.

        None when all learned next to nothing.
        """
        fallback = self.pooled.changes(issues)
        found = [member.changes(issues) for member in self.members.values()]
        if not self.pooled.trusted and all(change is None for change in found):
            return None
        return [fallback, self.seasons.changes(issues, fallback), *(fallback if change is None else monotone(change) for change in found)]

    def changes(self, issues: Issues) -> np.ndarray | None:
        stacked = self._stacked(issues)
        if stacked is None:
            return None
        weights = self.weights[horizon_bands(self.horizon)[: issues.horizon]]  # [H, K]
        return sum(weights[:, k, None] * change for k, change in enumerate(stacked))

    def save_learned(self, folder: Path) -> None:
        seasons = None if self.seasons.table is None else self.seasons.table.tolist()
        stored = {"pooled": self.pooled.to_json(), "seasons": seasons, "weights": self.weights.tolist()}
        (folder / PARAMETERS).write_text(json.dumps(stored))
        for name, member in self.members.items():
            (folder / name).mkdir()
            member.save_learned(folder / name)

    def load_learned(self, folder: Path) -> None:
        stored = json.loads((folder / PARAMETERS).read_text())
        self.pooled, self.weights = PooledChanges.from_json(stored["pooled"]), np.array(stored["weights"])
        self.seasons = PooledSeasons(None if stored["seasons"] is None else np.array(stored["seasons"]))
        for name, member in self.members.items():
            member.families = self.families
            member.load_learned(folder / name)


def greedy_weights(actual: np.ndarray, stacked: np.ndarray, per_scale: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Weights ``[K]`` of the members whose averaged quantiles lose least, by greedy selection with replacement.

    The loss is the sum of two shares: of the pooled loss, in which large series count most, and of the loss in units of each series' scale.

    Args:
        actual: ``[n, H]``.
        stacked: ``[K, n, H, Q]``.
        per_scale: ``[n, H]`` one over the scale of each value's series, 0 where it has none.
        known: ``[n, H]``.
    """
    y, candidates = actual[known], stacked[:, known]  # [r], [K, r, Q]
    pooled, scaled = np.ones(len(y)), per_scale[known]
    first = np.array([quantile_loss(y, q) for q in candidates])
    reference = [max(float((first * u).sum(axis=1).min()), 1e-300) for u in (pooled, scaled)]
    importance = pooled / reference[0] + scaled / reference[1]
    total, counts = np.zeros_like(candidates[0]), np.zeros(len(candidates))
    for done in range(ROUNDS):
        losses = [float((quantile_loss(y, (total + q) / (done + 1)) * importance).sum()) for q in candidates]
        best = int(np.argmin(losses))
        total += candidates[best]
        counts[best] += 1
    return counts / counts.sum()

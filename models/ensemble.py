"""Quantile averaging of members, with weights per horizon band learned out of sample and shrunk towards equal ones.

Members are fitted on the part of the history before the cut; on the part after it their forecasts are replayed, and a greedy search
(Caruana et al. 2004) averages the quantiles that lose least there. A fallback that needs no learning, the last value with the pooled
quantiles of scaled changes, always takes part, so that an ensemble of members that learned nothing is empirical persistence. The widths
of the average are corrected like those of any member.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.base import monotone
from models.calibrated import CalibratedForecaster, learn_prior
from models.changes import PooledChanges
from models.features import IssueTable, ScalePrior, issue_table
from models.intervals import BANDS, horizon_bands
from models.lightgbm import LightGbm
from models.lstm import Lstm
from models.member import PanelForecaster, reading
from models.metrics import quantile_loss
from models.sampling import training_series
from models.series import Panel
from telemetry.errors import InputError

PARAMETERS = "ensemble.json"
FALLBACK = "changes"
MEMBERS: dict[str, type[PanelForecaster]] = {cls.name: cls for cls in (LightGbm, Lstm)}
ROUNDS = 20
PRIOR_WINDOWS = 20.0  # separate windows that weigh as much as equal weights


@dataclass(frozen=True)
class EnsembleOptions:
    """Options of ``ensemble``.

    Args:
        members: forecasters to average, besides the fallback.
        member_options: options by member.
        holdout_fraction: newest share of each series on which weights and widths are learned; also the members'.
    """

    members: tuple[str, ...] = ("lightgbm", "lstm")
    member_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    holdout_fraction: float = 0.15

    def __post_init__(self) -> None:
        unknown = sorted({*self.members, *self.member_options} - set(MEMBERS))
        if unknown:
            raise InputError(f"member(s) {', '.join(unknown)}", where="ensemble", allowed=", ".join(MEMBERS))


class Ensemble(CalibratedForecaster):
    """Average of members' quantiles by horizon band."""

    name = "ensemble"
    options_class = EnsembleOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        common = {key: getattr(self, key) for key in ("freq", "horizon", "season_length", "seed", "floor", "cap", "bounds")}
        shared = {"holdout_fraction": self.options.holdout_fraction}
        self.members: dict[str, PanelForecaster] = {
            name: MEMBERS[name](**common, **{**shared, **self.options.member_options.get(name, {})}) for name in self.options.members
        }
        self.changes = PooledChanges.nothing(self.horizon)
        self.prior = ScalePrior()
        self.weights = np.full((BANDS, 1 + len(self.members)), 1.0 / (1 + len(self.members)))  # [B, K], the fallback first

    @property
    def history_rows(self) -> int:
        return max([super().history_rows, *(member.history_rows for member in self.members.values())])

    def _fit(self, panel: Panel) -> None:
        cut = self.split(panel, self.options.holdout_fraction)
        for member in self.members.values():
            member.fit_panel(panel)
        chosen, chosen_cut = training_series(panel, cut, self.seed)
        self.prior = learn_prior(chosen, chosen_cut, self.horizon)
        self.changes = PooledChanges.learn(self._table(chosen), chosen_cut, self.horizon, self.seed)
        self.weights = self._learn_weights(panel.tail(self.history_rows))

    def _table(self, panel: Panel) -> IssueTable:
        return issue_table(panel, season_length=self.season_length, horizon=self.horizon, prior=self.prior)

    def _learn_weights(self, panel: Panel) -> np.ndarray:
        """Weights ``[B, K]`` from the rows held back."""
        series, rows = self.replay_rows(panel)
        equal = np.full((BANDS, 1 + len(self.members)), 1.0 / max(1, len(self.members)))
        equal[:, 0] = 0.0 if self.members else 1.0
        if not len(rows) or not self.members:
            return equal
        floors, caps = self._limits(panel)
        stacked = np.clip(self._stacked(panel, series, rows, self.horizon), floors[series][:, None, None], caps[series][:, None, None])
        actual = self.actual_after(panel, series, rows)  # [n, H]
        known = np.isfinite(actual)
        scale = np.array([self._scale(panel, i) for i in range(len(panel))])
        own = np.where(known & (scale[series] > 0)[:, None], 1.0, 0.0) / np.where(scale > 0, scale, 1.0)[series][:, None]
        windows = self._separate_windows(panel, rows)
        trust = windows / (windows + PRIOR_WINDOWS)
        weights = equal.copy()
        bands = horizon_bands(self.horizon)
        for band in range(BANDS):
            steps = bands == band
            if not steps.any():
                continue
            found = greedy_weights(actual[:, steps], stacked[:, :, steps], own[:, steps], known[:, steps])
            weights[band] = trust * found + (1.0 - trust) * equal[band]
        return weights

    def _separate_windows(self, panel: Panel, rows: np.ndarray) -> float:
        """Windows of the horizon's length that the replayed rows span, series counted with the root of their number: they move together."""
        span = (rows.max() - rows.min() + 1) / self.horizon
        return float(span * np.sqrt(len(panel)))

    def _stacked(self, panel: Panel, series: np.ndarray, rows: np.ndarray, horizon: int) -> np.ndarray:
        """Quantiles of fallback and members, ``[K, n, H, Q]``."""
        table = self._table(panel)
        at = table.first_rows[series] + rows
        fallback = self.changes.quantiles(table, at, horizon)
        return np.stack([fallback, *(monotone(m.quantiles_at(panel, series, rows, horizon)) for m in self.members.values())])

    def quantiles_at(self, panel: Panel, series: np.ndarray, rows: np.ndarray, horizon: int) -> np.ndarray:
        weights = self.weights[horizon_bands(self.horizon)[:horizon]]  # [H, K]
        last = np.array([panel.values[i][row] for i, row in zip(series.tolist(), rows.tolist(), strict=True)])[:, None, None]
        return last + np.einsum("hk,knhq->nhq", weights, self._stacked(panel, series, rows, horizon) - last)

    def _save_parameters(self, folder: Path) -> None:
        stored = {
            "learned_until_ns": self.learned_until_ns,
            "prior": [self.prior.overall, self.prior.by_family],
            "changes": self.changes.to_json(),
            "weights": self.weights.tolist(),
        }
        (folder / PARAMETERS).write_text(json.dumps(stored))
        for name, member in self.members.items():
            (folder / name).mkdir()
            member._save_parameters(folder / name)

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            stored = json.loads((folder / PARAMETERS).read_text())
            self.learned_until_ns, self.prior = stored["learned_until_ns"], ScalePrior(*stored["prior"])
            self.changes, self.weights = PooledChanges.from_json(stored["changes"]), np.array(stored["weights"])
        for name, member in self.members.items():
            member._load_parameters(folder / name)


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

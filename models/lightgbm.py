"""LightGBM, one global model per quantile, direct over all horizon steps.

The target is the change from the last value in units of the series' own scale, so that one model serves every series and "no change" is the
prediction of an empty tree. The horizon step is a feature. A held-out slice at the end of the history corrects the widths.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import lightgbm as lgb
import numpy as np

from models.base import QUANTILES, monotone
from models.features import IssueTable, design_matrix, issue_table, series_scale
from models.intervals import Correction, fit_correction
from models.member import PanelForecaster, reading
from models.series import Panel, forward_fill

PARAMETERS = "lightgbm.json"


@dataclass(frozen=True)
class LightGbmOptions:
    """Options of ``lightgbm``.

    Args:
        n_estimators: trees per quantile.
        learning_rate: shrinkage.
        num_leaves: leaves of a tree.
        min_data_in_leaf: rows of a leaf at least.
        max_train_rows: pairs (issue time, horizon step) sampled for training; 50,000 did as well as 100,000 in half the time.
        holdout_fraction: newest share of each series kept from training, on which the widths are corrected.
        threads: quantiles trained at a time.
        max_seasons: seasons of history kept for the features.
    """

    n_estimators: int = 90
    learning_rate: float = 0.08
    num_leaves: int = 24
    min_data_in_leaf: int = 100
    max_train_rows: int = 50_000
    holdout_fraction: float = 0.15
    threads: int = 2
    max_seasons: int = 8


class LightGbm(PanelForecaster):
    """Global quantile trees on scaled changes from the last value."""

    name = "lightgbm"
    options_class = LightGbmOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.boosters: list[lgb.Booster] = []
        self.scales: dict[str, float] = {}
        self.correction = Correction.none(self.horizon)

    @property
    def history_rows(self) -> int:
        return self.options.max_seasons * self.season_length + self.horizon + 64

    def _fit(self, panel: Panel) -> None:
        self.boosters, self.correction = [], Correction.none(self.horizon)
        self.scales = {uid: series_scale(forward_fill(v), self.horizon) for uid, v in zip(panel.ids, panel.values, strict=True)}
        moving = [i for i, uid in enumerate(panel.ids) if self.scales[uid] > 0]
        if not moving:
            return
        table = self._table(panel.select(moving))
        rng = np.random.default_rng(self.seed)
        split = np.floor(table.length * (1.0 - self.options.holdout_fraction))
        rows, steps = self._sample(table, rng, self.options.max_train_rows, np.zeros_like(split), split)
        if len(rows) < 4 * self.options.min_data_in_leaf:
            return
        target = self._target(table, rows, steps)
        self._train(self._matrix(table, rows, steps), target)
        held_rows, held_steps = self._sample(table, rng, self.options.max_train_rows // 5, split, table.length)
        if len(held_rows):
            predicted = self._predict_matrix(self._matrix(table, held_rows, held_steps))
            held_target = self._target(table, held_rows, held_steps)
            self.correction = fit_correction(held_target, predicted, held_steps, target, steps, self.horizon)

    def _table(self, panel: Panel) -> IssueTable:
        scales = np.array([self._scale(uid, values) for uid, values in zip(panel.ids, panel.values, strict=True)])
        return issue_table(panel, scales, self.season_length)

    def _scale(self, uid: str, values: np.ndarray) -> float:
        """Scale of the fit; a series that was constant or unknown then is measured on its history now."""
        return self.scales.get(uid, 0.0) or series_scale(forward_fill(values), self.horizon)

    def _sample(
        self, table: IssueTable, rng: np.random.Generator, size: int, begin: np.ndarray, end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of issue row at or after ``begin`` and step whose target lies before ``end`` (row numbers within the series)."""
        rows = np.flatnonzero((table.position >= begin) & (table.position + 1 < end) & (table.position >= 2))
        if not len(rows):
            return rows, rows
        rows = rng.choice(rows, size=min(size, len(rows) * self.horizon))
        steps = rng.integers(1, self.horizon + 1, size=len(rows))
        fits = table.position[rows] + steps < end[rows]
        return rows[fits], steps[fits]

    def _matrix(self, table: IssueTable, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return design_matrix(table, rows, steps, season_length=self.season_length, step_ns=self.step_ns)

    @staticmethod
    def _target(table: IssueTable, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return (table.values[rows + steps] - table.values[rows]) / table.scale[rows]

    def _train(self, features: np.ndarray, target: np.ndarray) -> None:
        shared: dict[str, Any] = {
            "learning_rate": self.options.learning_rate,
            "num_leaves": self.options.num_leaves,
            "min_data_in_leaf": self.options.min_data_in_leaf,
            "feature_fraction": 0.7,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "max_bin": 127,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,  # one quantile per thread instead: barriers within a tree stall when other work holds the cores
            "verbosity": -1,
        }
        data = lgb.Dataset(features, target, params=shared, free_raw_data=False)
        data.construct()
        preparing = Lock()

        def boost(quantile: float) -> lgb.Booster:
            with preparing:  # here and not outside: LightGBM keeps its verbosity per thread
                booster = lgb.Booster({**shared, "objective": "quantile", "alpha": quantile}, data)
            return self._grow(booster)

        with ThreadPoolExecutor(max(1, self.options.threads)) as pool:
            self.boosters = list(pool.map(boost, QUANTILES))

    def _grow(self, booster: lgb.Booster) -> lgb.Booster:
        for _ in range(self.options.n_estimators):
            if booster.update():
                break
        return booster.free_dataset()

    def _predict_matrix(self, features: np.ndarray) -> np.ndarray:
        return monotone(np.column_stack([booster.predict(features, num_threads=1) for booster in self.boosters]))

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        if not self.boosters:
            reason = "too little history to train on"
            return np.stack([self._fall_back(panel, i, horizon, reason) for i in range(len(panel))])
        table = self._table(panel)
        last = table.last_rows
        rows, steps = np.repeat(last, horizon), np.tile(np.arange(1, horizon + 1), len(last))
        change = self._predict_matrix(self._matrix(table, rows, steps)).reshape(len(last), horizon, len(QUANTILES))
        change = self.correction.apply(change)
        constant = np.array([self._scale(uid, v) == 0 for uid, v in zip(panel.ids, panel.values, strict=True)])
        scale = np.where(constant, 0.0, table.scale[last])
        return table.values[last][:, None, None] + scale[:, None, None] * change

    def _save_parameters(self, folder: Path) -> None:
        for q, booster in zip(QUANTILES, self.boosters, strict=False):
            booster.save_model(folder / f"q{round(100 * q)}.txt")
        stored = {"scales": self.scales, "correction": self.correction.to_json(), "trained": bool(self.boosters)}
        (folder / PARAMETERS).write_text(json.dumps(stored))

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            stored = json.loads((folder / PARAMETERS).read_text())
            self.scales, self.correction = stored["scales"], Correction.from_json(stored["correction"])
            files = [folder / f"q{round(100 * q)}.txt" for q in QUANTILES] if stored["trained"] else []
            self.boosters = [lgb.Booster(model_str=file.read_text()) for file in files]

"""LightGBM, one global model per quantile, direct over all horizon steps.

The target is the change from the last value in units of the series' recent scale, so that one model serves every series and "no change"
is the prediction of an empty tree. The horizon step is a feature. Five quantiles are learned and the four between them interpolated on
the normal scale, which costs nothing that was measurable and saves nearly half of the time.
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
from models.calibrated import CalibratedForecaster, learn_prior
from models.features import IssueTable, ScalePrior, design_matrix, issue_table
from models.intervals import normal_interpolation
from models.member import reading
from models.sampling import sample_pairs, training_series
from models.series import Panel

PARAMETERS = "lightgbm.json"
LEARNED = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class LightGbmOptions:
    """Options of ``lightgbm``.

    Args:
        n_estimators: trees per quantile.
        learning_rate: shrinkage.
        num_leaves: leaves of a tree.
        min_data_in_leaf: rows of a leaf at least.
        max_train_rows: pairs (issue time, horizon step) sampled for training; 50,000 did as well as 100,000 in half the time.
        pairs_per_issue: steps sampled per issue time at least.
        holdout_fraction: newest share of each series kept from training, on which the widths are corrected.
        threads: quantiles trained at a time.
        country: ISO 3166 code whose public holidays are a feature; None for none.
    """

    n_estimators: int = 60
    learning_rate: float = 0.08
    num_leaves: int = 12
    min_data_in_leaf: int = 200
    max_train_rows: int = 50_000
    pairs_per_issue: int = 3
    holdout_fraction: float = 0.15
    threads: int = 2
    country: str | None = None


class LightGbm(CalibratedForecaster):
    """Global quantile trees on scaled changes from the last value."""

    name = "lightgbm"
    options_class = LightGbmOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.boosters: list[lgb.Booster] = []
        self.prior = ScalePrior()
        self.families: dict[str, int] = {}
        self.covariates: tuple[str, ...] = ()

    def _fit(self, panel: Panel) -> None:
        self.boosters = []
        self.families = {family: i for i, family in enumerate(sorted(set(panel.families)))}
        self.covariates = panel.covariate_names
        cut = self.split(panel, self.options.holdout_fraction)
        panel, cut = training_series(panel, cut, self.seed)
        self.prior = learn_prior(panel, cut, self.horizon)
        table = self._table(panel)
        rows, steps = sample_pairs(table, cut, self.horizon, self.options.max_train_rows, self.options.pairs_per_issue, self.seed)
        if len(rows) < 2 * self.options.min_data_in_leaf:
            return
        target = (table.values[rows + steps] - table.values[rows]) / table.unit[rows]
        self._train(design_matrix(table, rows, steps, self.options.country), target)

    def _table(self, panel: Panel) -> IssueTable:
        return issue_table(
            panel,
            season_length=self.season_length,
            horizon=self.horizon,
            prior=self.prior,
            families=self.families,
            covariates=self.covariates,
        )

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
            self.boosters = list(pool.map(boost, LEARNED))

    def _grow(self, booster: lgb.Booster) -> lgb.Booster:
        for _ in range(self.options.n_estimators):
            if booster.update():
                break
        return booster.free_dataset()

    def quantiles_at(self, panel: Panel, series: np.ndarray, rows: np.ndarray, horizon: int) -> np.ndarray:
        if not self.boosters:
            return self.own_changes(panel, series, rows, horizon)
        table = self._table(panel)
        at = table.first_rows[series] + rows
        pairs, steps = np.repeat(at, horizon), np.tile(np.arange(1, horizon + 1), len(at))
        learned = monotone(self._boosted(design_matrix(table, pairs, steps, self.options.country)))
        change = normal_interpolation(learned, LEARNED).reshape(len(at), horizon, len(QUANTILES))
        return table.values[at][:, None, None] + table.scale[at][:, None, None] * change

    def _boosted(self, features: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(max(1, self.options.threads)) as pool:
            return np.column_stack(list(pool.map(lambda booster: booster.predict(features, num_threads=1), self.boosters)))

    def _save_parameters(self, folder: Path) -> None:
        for q, booster in zip(LEARNED, self.boosters, strict=False):
            booster.save_model(folder / f"q{round(100 * q)}.txt")
        stored = {
            "trained": bool(self.boosters),
            "learned_until_ns": self.learned_until_ns,
            "prior": [self.prior.overall, self.prior.by_family],
            "families": self.families,
            "covariates": self.covariates,
        }
        (folder / PARAMETERS).write_text(json.dumps(stored))

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            stored = json.loads((folder / PARAMETERS).read_text())
            self.learned_until_ns, self.families = stored["learned_until_ns"], stored["families"]
            self.prior, self.covariates = ScalePrior(*stored["prior"]), tuple(stored["covariates"])
            files = [folder / f"q{round(100 * q)}.txt" for q in LEARNED] if stored["trained"] else []
            self.boosters = [lgb.Booster(model_str=file.read_text()) for file in files]

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
from models.features import Issues, IssueTable, design_matrix
from models.global_learner import GlobalLearner
from models.intervals import normal_interpolation
from models.member import reading
from models.sampling import sample_pairs

PARAMETERS = "lightgbm.json"
LEARNED = (0.1, 0.25, 0.5, 0.75, 0.9)
THREADED_ROWS = 20_000
WARM_SHARE = 3  # a warm start adds a third of the trees to those of the earlier model,
MOST_TREES = 3  # and is a cold one again when that would make more than this multiple of a fresh model


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


class LightGbm(GlobalLearner):
    """Global quantile trees on scaled changes from the last value."""

    name = "lightgbm"
    options_class = LightGbmOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.boosters: list[lgb.Booster] = []

    def learn(self, table: IssueTable, cut: np.ndarray) -> None:
        earlier = self._earlier()
        self.boosters = []
        rows, steps = sample_pairs(table, cut, self.horizon, self.options.max_train_rows, self.options.pairs_per_issue, self.seed)
        if len(rows) < 2 * self.options.min_data_in_leaf:
            return
        target = (table.values[rows + steps] - table.values[rows]) / table.unit[rows]
        self._train(design_matrix(table, rows, steps, self.options.country), target, earlier)

    def _earlier(self) -> list[lgb.Booster]:
        """Boosters to continue; none for a cold start."""
        if self.warm_start is None:
            return []
        with reading(self.warm_start):
            self.load_learned(self.warm_start)
        added = self.options.n_estimators // WARM_SHARE
        full = any(booster.num_trees() + added > MOST_TREES * self.options.n_estimators for booster in self.boosters)
        return [] if full else self.boosters

    def _train(self, features: np.ndarray, target: np.ndarray, earlier: list[lgb.Booster]) -> None:
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
        if earlier:
            self.boosters = self._continue(features, target, shared, earlier)
            return
        data = lgb.Dataset(features, target, params=shared, free_raw_data=False)
        data.construct()
        preparing = Lock()

        def boost(quantile: float) -> lgb.Booster:
            with preparing:  # here and not outside: LightGBM keeps its verbosity per thread
                booster = lgb.Booster({**shared, "objective": "quantile", "alpha": quantile}, data)
            return self._grow(booster)

        with ThreadPoolExecutor(max(1, self.options.threads)) as pool:
            self.boosters = list(pool.map(boost, LEARNED))

    def _continue(self, features: np.ndarray, target: np.ndarray, shared: dict[str, Any], earlier: list[lgb.Booster]) -> list[lgb.Booster]:
        """The earlier boosters with further trees that learn what they leave over on these rows."""
        rounds = max(1, self.options.n_estimators // WARM_SHARE)

        def boost(given: tuple[float, lgb.Booster]) -> lgb.Booster:
            parameters = {**shared, "objective": "quantile", "alpha": given[0]}
            data = lgb.Dataset(features, target, params=shared, free_raw_data=False)
            return lgb.train(parameters, data, num_boost_round=rounds, init_model=given[1]).free_dataset()

        return [boost(given) for given in zip(LEARNED, earlier, strict=True)]

    def _grow(self, booster: lgb.Booster) -> lgb.Booster:
        for _ in range(self.options.n_estimators):
            if booster.update():
                break
        return booster.free_dataset()

    def changes(self, issues: Issues) -> np.ndarray | None:
        if not self.boosters:
            return None
        n, horizon, further = issues.ahead.shape
        features = np.column_stack([np.repeat(issues.known, horizon, axis=0), issues.ahead.reshape(n * horizon, further)])
        learned = monotone(self._boosted(features))
        return normal_interpolation(learned, LEARNED).reshape(n, horizon, len(QUANTILES))

    def _boosted(self, features: np.ndarray) -> np.ndarray:
        if len(features) < THREADED_ROWS or self.options.threads < 2:
            return np.column_stack([booster.predict(features, num_threads=1) for booster in self.boosters])
        with ThreadPoolExecutor(self.options.threads) as pool:
            return np.column_stack(list(pool.map(lambda booster: booster.predict(features, num_threads=1), self.boosters)))

    def save_learned(self, folder: Path) -> None:
        for q, booster in zip(LEARNED, self.boosters, strict=False):
            booster.save_model(folder / f"q{round(100 * q)}.txt")
        (folder / PARAMETERS).write_text(json.dumps({"trained": bool(self.boosters)}))

    def load_learned(self, folder: Path) -> None:
        trained = json.loads((folder / PARAMETERS).read_text())["trained"]
        files = [folder / f"q{round(100 * q)}.txt" for q in LEARNED] if trained else []
        self.boosters = [lgb.Booster(model_str=file.read_text()) for file in files]

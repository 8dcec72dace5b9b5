"""What the learners over all series share: cut, scale, kinds of series and covariates; they differ in how they learn scaled changes."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from models.base import QUANTILES
from models.calibrated import CalibratedForecaster
from models.features import Issues, IssueTable, ScalePrior, issue_table, trailing_scale
from models.member import FALLBACK_ROWS, reading
from models.sampling import training_series
from models.series import Panel, forward_fill

COMMON = "learner.json"
SERIES_CHUNK = 1000  # series whose rows are laid out at a time


class GlobalLearner(CalibratedForecaster):
    """One model of all series: quantiles of the change from the last value, in units of the series' recent scale.

    Options of every learner: ``holdout_fraction``, the newest share of each series kept from training, and ``country``, the ISO 3166 code
    whose public holidays are a feature. ``warm_start`` is the folder of a saved forecaster of the same kind whose weights training starts
    from; it is not kept when the forecaster is saved.
    """

    def __init__(self, **options: object) -> None:
        warm_start = options.pop("warm_start", None)
        super().__init__(**options)
        self.warm_start = None if warm_start is None else Path(str(warm_start))
        self.prior = ScalePrior()
        self.families: dict[str, int] = {}
        self.covariates: tuple[str, ...] = ()

    @abstractmethod
    def learn(self, table: IssueTable, cut: np.ndarray) -> None:
        """Learn from the rows of ``table`` before ``cut`` ``[N]`` of each series; those after it may only stop or weigh, never train."""

    @abstractmethod
    def changes(self, issues: Issues) -> np.ndarray | None:
        """Quantiles ``[n, H, Q]`` of scaled changes; None when there was too little to learn from."""

    def _fit(self, panel: Panel) -> None:
        cut = self.split(panel, self.options.holdout_fraction)
        panel, cut = training_series(panel, cut, self.seed)
        self.families = {family: i for i, family in enumerate(sorted(set(panel.families)))}
        self.covariates = panel.covariate_names
        self.prior = learn_prior(panel, cut, self.horizon)
        self._check_warm_start()
        self.learn(self._table(panel), cut)

    def _check_warm_start(self) -> None:
        """Start cold where the earlier weights were learned on other inputs: kinds of series and covariates are among them."""
        if self.warm_start is None:
            return
        with reading(self.warm_start):
            stored = json.loads((self.warm_start / COMMON).read_text())
            if (stored["families"], tuple(stored["covariates"])) != (self.families, self.covariates):
                self.warm_start = None

    def _table(self, panel: Panel) -> IssueTable:
        return issue_table(
            panel,
            season_length=self.season_length,
            horizon=self.horizon,
            prior=self.prior,
            families=self.families,
            covariates=self.covariates,
        )

    def quantiles_at(self, panel: Panel, series: np.ndarray, rows: np.ndarray, horizon: int) -> np.ndarray:
        out = np.empty((len(series), horizon, len(QUANTILES)))
        for begin in range(0, len(panel), SERIES_CHUNK):
            own = np.flatnonzero((series >= begin) & (series < begin + SERIES_CHUNK))
            if not len(own):
                continue
            part = panel if len(panel) <= SERIES_CHUNK else panel.select(range(begin, min(begin + SERIES_CHUNK, len(panel))))
            table = self._table(part)
            issues = Issues(table, table.first_rows[series[own] - begin] + rows[own], horizon, self.options.country)
            change = self.changes(issues)
            out[own] = self._own_changes(part, series[own] - begin, rows[own], horizon) if change is None else issues.values(change)
        return out

    def _scales(self, panel: Panel) -> np.ndarray:
        rows = self.calibration_rows
        ends = [forward_fill(values[-rows - self.horizon :]) for values in panel.tail(rows + self.horizon).values]
        return np.array([trailing_scale(values, self.horizon, rows)[-1] for values in ends])

    def _own_changes(self, panel: Panel, series: np.ndarray, rows: np.ndarray, horizon: int) -> np.ndarray:
        """Empirical persistence from each series' own history: what is left when nothing could be learned."""
        out = np.empty((len(series), horizon, len(QUANTILES)))
        for k, (i, row) in enumerate(zip(series.tolist(), rows.tolist(), strict=True)):
            values = panel.values[i][max(0, row + 1 - FALLBACK_ROWS) : row + 1]
            out[k] = values[-1] + self._changes(panel, i, values, horizon)
            self.fallbacks[panel.ids[i]] = "too little history to learn from"
        return out

    def _save_parameters(self, folder: Path) -> None:
        stored = {
            "learned_until_ns": self.learned_until_ns,
            "prior": [self.prior.overall, self.prior.by_family],
            "families": self.families,
            "covariates": self.covariates,
        }
        (folder / COMMON).write_text(json.dumps(stored))
        self.save_learned(folder)

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            stored: dict[str, Any] = json.loads((folder / COMMON).read_text())
            self.learned_until_ns, self.families = stored["learned_until_ns"], stored["families"]
            self.prior, self.covariates = ScalePrior(*stored["prior"]), tuple(stored["covariates"])
            self.load_learned(folder)

    @abstractmethod
    def save_learned(self, folder: Path) -> None:
        """Write what ``learn`` found."""

    @abstractmethod
    def load_learned(self, folder: Path) -> None:
        """Read what ``save_learned`` wrote."""


def learn_prior(panel: Panel, cut: np.ndarray, horizon: int) -> ScalePrior:
    """Typical change relative to the level by family, from the rows before ``cut`` of each series."""
    scales, levels = np.zeros(len(panel)), np.zeros(len(panel))
    for i, values in enumerate(panel.values):
        dense = forward_fill(values[: max(int(cut[i]), 1)])
        scales[i] = trailing_scale(dense, horizon, len(dense))[-1]
        levels[i] = np.abs(dense).mean()
    return ScalePrior.learn(scales, levels, panel.families)

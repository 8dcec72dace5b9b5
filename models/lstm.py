"""LSTM over all series, all quantiles and all steps at once (torch), anchored on the last value and in units of the recent scale."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.base import QUANTILES
from models.calibrated import CalibratedForecaster, learn_prior
from models.features import IssueTable, ScalePrior, issue_features, issue_table, pair_features
from models.member import reading
from models.sampling import sample_issues, training_series
from models.series import Panel

PARAMETERS, WEIGHTS = "lstm.json", "lstm.safetensors"
CLIP_UNITS = 8.0  # inputs beyond this many units of scale are squashed
MAX_FAMILIES = 16
PREDICT_WINDOWS = 4096


@dataclass(frozen=True)
class LstmOptions:
    """Options of ``lstm``.

    Args:
        window: past steps read by the recurrent part.
        stride: past steps read at once; each further one costs an input, not a step of the recursion.
        hidden: width of the network.
        max_windows: training windows sampled per epoch.
        epochs: at most; training stops earlier.
        patience: epochs without a better held-out loss before it stops; the best weights are kept.
        batch: windows in a batch.
        learning_rate: of Adam.
        holdout_fraction: newest share of each series kept from training, for stopping and for the widths.
        country: ISO 3166 code whose public holidays are an input; None for none.
    """

    window: int = 48
    stride: int = 3
    hidden: int = 48
    max_windows: int = 8_000
    epochs: int = 10
    patience: int = 2
    batch: int = 128
    learning_rate: float = 3e-3
    holdout_fraction: float = 0.15
    country: str | None = None


@dataclass(frozen=True)
class Windows:
    """Inputs and targets of ``n`` windows."""

    past: np.ndarray  # [n, W / stride, stride] changes from the last value
    static: np.ndarray  # [n, F]
    future: np.ndarray  # [n, H, G] calendar and earlier seasons at each target
    target: np.ndarray  # [n, H] scaled change


class Lstm(CalibratedForecaster):
    """Recurrent encoder of the recent past, one head for every step and quantile."""

    name = "lstm"
    options_class = LstmOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.network: Any = None
        self.prior = ScalePrior()
        self.families: dict[str, int] = {}
        self.covariates: tuple[str, ...] = ()

    def _fit(self, panel: Panel) -> None:
        from models.lstm_network import train

        self.network = None
        self.families = {family: i for i, family in enumerate(sorted(set(panel.families))[:MAX_FAMILIES])}
        self.covariates = panel.covariate_names
        cut = self.split(panel, self.options.holdout_fraction)
        panel, cut = training_series(panel, cut, self.seed)
        self.prior = learn_prior(panel, cut, self.horizon)
        table = self._table(panel)
        rng = np.random.default_rng(self.seed)
        learn = sample_issues(table, cut, self.horizon, 3 * self.options.max_windows, rng)
        held = sample_issues(table, table.length[table.first_rows], self.horizon, len(table.values), rng)
        held = held[table.position[held] >= cut[table.series[held]]]
        if len(learn) < 64 or len(held) < 8:
            return
        held = rng.choice(held, size=min(len(held), 2_000), replace=False)
        self.network = train(self._windows(table, learn, self.horizon), self._windows(table, held, self.horizon), self.options, self.seed)

    def _table(self, panel: Panel) -> IssueTable:
        return issue_table(
            panel,
            season_length=self.season_length,
            horizon=self.horizon,
            prior=self.prior,
            families=self.families,
            covariates=self.covariates,
        )

    def _windows(self, table: IssueTable, rows: np.ndarray, horizon: int, *, targets: bool = True) -> Windows:
        value, unit = table.values[rows][:, None], table.unit[rows][:, None]
        stride = self.options.stride
        back = np.arange(self.options.window // stride * stride - 1, -1, -1)
        source = rows[:, None] - np.minimum(back, table.position[rows][:, None])  # the first value repeats before the series began
        past = _squash((table.values[source] - value) / unit).reshape(len(rows), -1, stride)
        known = issue_features(table, rows)
        family = table.family[rows][:, None] == np.arange(len(self.families))
        pairs, steps = np.repeat(rows, horizon), np.tile(np.arange(1, horizon + 1), len(rows))
        ahead = pair_features(table, pairs, steps, self.options.country)[:, 1:]
        step = (steps / self.horizon)[:, None]
        future = np.column_stack([_squash(np.nan_to_num(ahead)), np.isfinite(ahead[:, [-1]]), step, np.sqrt(step)])
        target = (table.values[rows[:, None] + 1 + np.arange(horizon)] - value) / unit if targets else np.zeros((len(rows), horizon))
        return Windows(
            past.astype(np.float32),
            np.column_stack([_squash(np.nan_to_num(known)), np.isnan(known[:, -1:]), family]).astype(np.float32),
            future.reshape(len(rows), horizon, -1).astype(np.float32),
            target.astype(np.float32),
        )

    def quantiles_at(self, panel: Panel, series: np.ndarray, rows: np.ndarray, horizon: int) -> np.ndarray:
        from models.lstm_network import predict

        if self.network is None:
            return self.own_changes(panel, series, rows, horizon)
        table = self._table(panel)
        at = table.first_rows[series] + rows
        out = np.empty((len(at), horizon, len(QUANTILES)))
        for begin in range(0, len(at), PREDICT_WINDOWS):
            own = slice(begin, begin + PREDICT_WINDOWS)
            out[own] = predict(self.network, self._windows(table, at[own], horizon, targets=False))
        return table.values[at][:, None, None] + table.scale[at][:, None, None] * out

    def _save_parameters(self, folder: Path) -> None:
        stored: dict[str, Any] = {
            "trained": self.network is not None,
            "learned_until_ns": self.learned_until_ns,
            "prior": [self.prior.overall, self.prior.by_family],
            "families": self.families,
            "covariates": self.covariates,
        }
        if self.network is not None:
            from models.lstm_network import save

            stored["sizes"] = self.network.sizes
            save(self.network, folder / WEIGHTS)
        (folder / PARAMETERS).write_text(json.dumps(stored))

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            stored = json.loads((folder / PARAMETERS).read_text())
            self.learned_until_ns, self.families = stored["learned_until_ns"], stored["families"]
            self.prior, self.covariates = ScalePrior(*stored["prior"]), tuple(stored["covariates"])
            if stored["trained"]:
                from models.lstm_network import load

                self.network = load(stored["sizes"], folder / WEIGHTS)


def _squash(values: np.ndarray) -> np.ndarray:
    """Linear near 0, bounded by ``CLIP_UNITS``: a spike in the history must not drive the network."""
    return CLIP_UNITS * np.tanh(values / CLIP_UNITS)

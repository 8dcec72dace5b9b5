"""LSTM over all series, all quantiles and all horizon steps at once (torch), anchored on the last value and scaled per series."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.base import QUANTILES, monotone
from models.features import SEASONS_BACK, IssueTable, calendar_features, issue_table, seasonal_features, series_scale
from models.intervals import Correction, fit_correction
from models.member import PanelForecaster, reading
from models.series import Panel, forward_fill

PARAMETERS, WEIGHTS = "lstm.json", "lstm.safetensors"
CLIP_UNITS = 8.0  # inputs beyond this many units of scale are squashed


@dataclass(frozen=True)
class LstmOptions:
    """Options of ``lstm``.

    Args:
        window: past steps read by the recurrent part.
        hidden: its width.
        max_windows: training windows sampled per epoch.
        epochs: at most; training stops earlier.
        patience: epochs without a better held-out loss before it stops; the best weights are kept.
        batch: windows in a batch.
        learning_rate: of Adam.
        holdout_fraction: newest share of each series kept from training, for stopping and for the widths.
        max_seasons: seasons of history kept for the features.
    """

    window: int = 48
    hidden: int = 48
    max_windows: int = 8_000
    epochs: int = 12
    patience: int = 3
    batch: int = 128
    learning_rate: float = 3e-3
    holdout_fraction: float = 0.15
    max_seasons: int = 8


@dataclass(frozen=True)
class Windows:
    """Inputs and targets of ``n`` windows."""

    past: np.ndarray  # [n, W, 1] changes from the last value
    static: np.ndarray  # [n, F]
    future: np.ndarray  # [n, H, G] calendar and earlier seasons at each target
    target: np.ndarray  # [n, H] scaled change


class Lstm(PanelForecaster):
    """Recurrent encoder of the recent past, one head for every step and quantile."""

    name = "lstm"
    options_class = LstmOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.network: Any = None
        self.scales: dict[str, float] = {}
        self.correction = Correction.none(self.horizon)

    @property
    def history_rows(self) -> int:
        return max(self.options.max_seasons * self.season_length, self.options.window) + self.horizon + 64

    def _fit(self, panel: Panel) -> None:
        from models.lstm_network import train

        self.network, self.correction = None, Correction.none(self.horizon)
        self.scales = {uid: series_scale(forward_fill(v), self.horizon) for uid, v in zip(panel.ids, panel.values, strict=True)}
        moving = [i for i, uid in enumerate(panel.ids) if self.scales[uid] > 0]
        if not moving:
            return
        table = self._table(panel.select(moving))
        rng = np.random.default_rng(self.seed)
        split = np.floor(table.length * (1.0 - self.options.holdout_fraction))
        complete = table.position + self.horizon
        learn = np.flatnonzero((complete < split) & (table.position >= 2))
        held = np.flatnonzero((table.position >= split) & (complete < table.length))
        if len(learn) < 64 or len(held) < 8:
            return
        learn = rng.choice(learn, size=min(len(learn), 3 * self.options.max_windows), replace=False)
        held = rng.choice(held, size=min(len(held), 2_000), replace=False)
        learn_windows, held_windows = self._windows(table, learn, self.horizon), self._windows(table, held, self.horizon)
        self.network = train(learn_windows, held_windows, self.options, self.seed)
        predicted = self._network_quantiles(held_windows).reshape(-1, len(QUANTILES))
        held_steps, steps = (np.tile(np.arange(1, self.horizon + 1), n) for n in (len(held), len(learn)))
        held_target, target = held_windows.target.reshape(-1).astype(np.float64), learn_windows.target.reshape(-1).astype(np.float64)
        self.correction = fit_correction(held_target, predicted, held_steps, target, steps, self.horizon)

    def _table(self, panel: Panel) -> IssueTable:
        scales = np.array([self._scale(uid, values) for uid, values in zip(panel.ids, panel.values, strict=True)])
        return issue_table(panel, scales, self.season_length)

    def _scale(self, uid: str, values: np.ndarray) -> float:
        """Scale of the fit; a series that was constant or unknown then is measured on its history now."""
        return self.scales.get(uid, 0.0) or series_scale(forward_fill(values), self.horizon)

    def _windows(self, table: IssueTable, rows: np.ndarray, horizon: int, *, targets: bool = True) -> Windows:
        back = np.arange(self.options.window - 1, -1, -1)
        source = rows[:, None] - np.minimum(back, table.position[rows][:, None])  # the first value repeats before the series began
        unit = table.scale[rows][:, None]
        past = (table.values[source] - table.values[rows][:, None]) / unit
        pairs_rows, pairs_steps = np.repeat(rows, horizon), np.tile(np.arange(1, horizon + 1), len(rows))
        seasonal = seasonal_features(table, pairs_rows, pairs_steps, self.season_length)
        known = np.isfinite(seasonal[:, : len(SEASONS_BACK)]).astype(np.float64)
        calendar = calendar_features(table.times_ns[pairs_rows] + pairs_steps * self.step_ns)
        step = (pairs_steps / self.horizon)[:, None]
        future = np.column_stack([_squash(np.nan_to_num(seasonal)), known, calendar, step, np.sqrt(step)])
        ahead = table.values[rows[:, None] + 1 + np.arange(horizon)] if targets else np.zeros((len(rows), horizon))
        return Windows(
            _squash(past)[:, :, None].astype(np.float32),
            _squash(np.nan_to_num(table.statistics[rows])).astype(np.float32),
            future.reshape(len(rows), horizon, -1).astype(np.float32),
            ((ahead - table.values[rows][:, None]) / unit).astype(np.float32),
        )

    def _network_quantiles(self, windows: Windows) -> np.ndarray:
        from models.lstm_network import predict

        return monotone(predict(self.network, windows))

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        if self.network is None:
            reason = "too little history to train on"
            return np.stack([self._fall_back(panel, i, horizon, reason) for i in range(len(panel))])
        table = self._table(panel)
        last = table.last_rows
        change = self._network_quantiles(self._windows(table, last, horizon, targets=False))
        change = self.correction.apply(change)
        constant = np.array([self._scale(uid, v) == 0 for uid, v in zip(panel.ids, panel.values, strict=True)])
        scale = np.where(constant, 0.0, table.scale[last])
        return table.values[last][:, None, None] + scale[:, None, None] * change

    def _save_parameters(self, folder: Path) -> None:
        stored = {"scales": self.scales, "correction": self.correction.to_json(), "trained": self.network is not None}
        if self.network is not None:
            from models.lstm_network import save

            stored["sizes"] = self.network.sizes
            save(self.network, folder / WEIGHTS)
        (folder / PARAMETERS).write_text(json.dumps(stored))

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            stored = json.loads((folder / PARAMETERS).read_text())
            self.scales, self.correction = stored["scales"], Correction.from_json(stored["correction"])
            if stored["trained"]:
                from models.lstm_network import load

                self.network = load(stored["sizes"], folder / WEIGHTS)


def _squash(values: np.ndarray) -> np.ndarray:
    """Linear near 0, bounded by ``CLIP_UNITS``: a spike in the history must not drive the network."""
    return CLIP_UNITS * np.tanh(values / CLIP_UNITS)

"""Forecasters whose intervals are corrected by what they would have forecast lately.

Parameters are learned up to a cut in each series; every later issue time is out of sample. The forecaster is replayed at such issue times
of the newest rows, and the errors correct the quantiles it gives next (``models.conformal``). The window moves on with every update, so the
correction follows drift without a refit, and it depends on the history alone: whether that arrived in one update or in many makes no
difference.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from models.base import QUANTILES, monotone
from models.conformal import AdaptiveIntervals, AdaptiveOptions
from models.features import lookback
from models.intervals import BANDS, horizon_bands
from models.member import PanelForecaster
from models.series import Panel
from models.young import kinds_of

REPLAY_SERIES = 256  # series replayed at most, spread over all
REPLAY_TIMES = 72  # issue times replayed of each
GROWN_HORIZONS = 8  # rows, in horizons, from which on a series stands for itself
OPTIONS = AdaptiveOptions(memory_steps=48, gain=0.01)


@dataclass(frozen=True)
class Replay:
    """Forecasts at ``n`` past issue rows and what came, oldest first: the time and the series' scale ``[n]``, actual ``[n, H]`` (NaN where
    unknown) and quantiles ``[n, H, Q]``."""

    times_ns: np.ndarray
    scale: np.ndarray
    actual: np.ndarray
    quantiles: np.ndarray

    def __len__(self) -> int:
        return len(self.times_ns)


class CalibratedForecaster(PanelForecaster):
    """A member that holds the newest part of the history back from training, and corrects its widths on it and on what follows.

    A series of n known rows leans on what others did at its age by h^2 / (n^2 + h^2), with h the horizon: the features of a few rows are
    not what a learner of whole series was trained on.
    """

    learns_youth = True

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.learned_until_ns: dict[str, int] = {}
        self._replayed: dict[str, dict[int, np.ndarray]] = {}  # by series and issue time, [H, Q]
        self._borrowed: AdaptiveIntervals | None = None

    @property
    def calibration_rows(self) -> int:
        """Newest rows of each series at which the forecaster is replayed."""
        return max(3 * self.season_length, 12 * self.horizon)

    @property
    def history_rows(self) -> int:
        return lookback(self.season_length, self.horizon) + self.calibration_rows + self.horizon

    def split(self, panel: Panel, fraction: float) -> np.ndarray:
        """Rows of each series before the part held back ``[N]``; notes up to when parameters are learned."""
        self._replayed = {}
        lengths = np.array([len(values) for values in panel.values])
        held = np.minimum(np.ceil(fraction * lengths), self.calibration_rows + self.horizon).astype(np.int64)
        until = np.array(panel.starts_ns) + (lengths - held) * self.step_ns
        self.learned_until_ns = dict(zip(panel.ids, until.tolist(), strict=True))
        return lengths - held

    @abstractmethod
    def _scales(self, panel: Panel) -> np.ndarray:
        """Typical change of each series lately ``[N]``."""

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        scale = self._scales(panel)
        return self.corrected(panel, self.uncorrected(panel, horizon), self._borrowed or self.intervals(panel, scale), scale)

    def uncorrected(self, panel: Panel, horizon: int) -> np.ndarray:
        return monotone(super()._quantiles(panel, horizon))

    def corrected(self, panel: Panel, raw: np.ndarray, state: AdaptiveIntervals, scale: np.ndarray) -> np.ndarray:
        """As in every member; young series then lean on others, whoever keeps ``state``."""
        return self._leaning_on_others(panel, super().corrected(panel, raw, state, scale))

    def _leaning_on_others(self, panel: Panel, quantiles: np.ndarray) -> np.ndarray:
        """``quantiles`` ``[N, H, Q]``, those of young series drawn to what others did at their age."""
        young = [i for i, values in enumerate(panel.values) if len(values) < GROWN_HORIZONS * self.horizon]
        for i in young if self.young is not None else ():
            values = panel.values[i]
            changes = self.young.change_quantiles(kinds_of(panel.ids[i], panel.families[i]), values, quantiles.shape[1])
            if changes is not None:
                weight = self.horizon**2 / (np.isfinite(values).sum() ** 2 + self.horizon**2)
                quantiles[i] = (1.0 - weight) * quantiles[i] + weight * (values[-1] + changes)
        return quantiles

    def for_history(self, panel: Panel) -> Self:
        other = super().for_history(panel)
        other._replayed = {}
        return other

    def correction(self) -> AdaptiveIntervals:
        """What the history teaches now."""
        panel = self._known_history()
        return self.intervals(panel, self._scales(panel))

    def borrow(self, correction: AdaptiveIntervals) -> None:
        """Predict with the correction of this forecaster over other series, not with one of its own."""
        self._borrowed = correction

    def intervals(self, panel: Panel, scale: np.ndarray) -> AdaptiveIntervals:
        """Correction that the newest rows of ``panel`` teach: set up on the older third of the replay, led on through the rest."""
        replay = self.replay(panel, scale)
        bands = np.tile(horizon_bands(self.horizon), len(replay))
        actual, quantiles = replay.actual.reshape(-1), replay.quantiles.reshape(-1, len(QUANTILES))
        scales, times = np.repeat(replay.scale, self.horizon), np.repeat(replay.times_ns, self.horizon)
        steps = np.unique(replay.times_ns)
        first = times < steps[len(steps) // 3] if len(steps) else times < 0
        state = AdaptiveIntervals.fit(actual[first], quantiles[first], bands[first], scale=scales[first], n_bands=BANDS, options=OPTIONS)
        edges = np.searchsorted(times, [*steps[len(steps) // 3 :], np.iinfo(np.int64).max])
        for begin, end in pairwise(edges):
            own = slice(int(begin), int(end))
            state.observe(actual[own], quantiles[own], bands[own], scale=scales[own])
        return state

    def replay(self, panel: Panel, scale: np.ndarray) -> Replay:
        """Forecasts issued at out-of-sample rows of the newest ``calibration_rows``; those computed before are kept."""
        rows_of = self._rows_of(panel)
        self._compute(panel, rows_of)
        parts = []
        for i, rows in rows_of.items():
            if not len(rows):
                continue
            times_ns = panel.starts_ns[i] + rows * self.step_ns
            padded = np.r_[panel.values[i], np.full(self.horizon, np.nan)]
            actual = padded[rows[:, None] + 1 + np.arange(self.horizon)]
            known = self._replayed[panel.ids[i]]
            quantiles = np.stack([known[int(t)] for t in times_ns])
            parts.append((times_ns, np.full(len(rows), scale[i]), actual, quantiles))
        if not parts:
            h, q = self.horizon, len(QUANTILES)
            return Replay(np.empty(0, dtype=np.int64), np.empty(0), np.empty((0, h)), np.empty((0, h, q)))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return Replay(*(column[order] for column in columns))

    def _rows_of(self, panel: Panel) -> dict[int, np.ndarray]:
        chosen = np.unique(np.linspace(0, len(panel) - 1, min(len(panel), REPLAY_SERIES)).astype(np.int64))
        return {int(i): self._replay_rows(panel, int(i)) for i in chosen}

    def _compute(self, panel: Panel, rows_of: dict[int, np.ndarray]) -> None:
        """Forecast the rows not yet known; forget those that left the window."""
        fresh: list[tuple[int, int]] = []
        for i, rows in rows_of.items():
            known = self._replayed.get(panel.ids[i], {})
            times = (panel.starts_ns[i] + rows * self.step_ns).tolist()
            self._replayed[panel.ids[i]] = {t: known[t] for t in times if t in known}
            fresh += [(i, row) for row, t in zip(rows.tolist(), times, strict=True) if t not in known]
        if not fresh:
            return
        series, rows = np.array(fresh, dtype=np.int64).T
        floors, caps = self._limits(panel)
        quantiles = monotone(self.quantiles_at(panel, series, rows, self.horizon))
        quantiles = np.clip(quantiles, floors[series][:, None, None], caps[series][:, None, None])
        for i, row, issued in zip(series.tolist(), rows.tolist(), quantiles, strict=True):
            self._replayed[panel.ids[i]][panel.starts_ns[i] + row * self.step_ns] = issued

    def _replay_rows(self, panel: Panel, index: int) -> np.ndarray:
        """Observed rows on a grid of absolute times, after what was learned, before the last value, and no longer of a newborn series."""
        values = panel.values[index]
        every = max(1, self.calibration_rows // REPLAY_TIMES)
        rows = np.arange(max(self.horizon, len(values) - 1 - self.calibration_rows), len(values) - 1)
        times_ns = panel.starts_ns[index] + rows * self.step_ns
        after = times_ns >= self.learned_until_ns.get(panel.ids[index], panel.starts_ns[index])
        return rows[after & ((times_ns // self.step_ns) % every == 0) & ~np.isnan(values[rows])]

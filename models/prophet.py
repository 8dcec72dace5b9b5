"""Prophet, anchored on the last value.

Prophet describes the seasonal path well and the present badly: it has no autoregression. The forecast is therefore the last value, plus a
share of the change of Prophet's path, less a share of the present deviation from that path: both shares are what the history supports at
each step, so that a path that misleads is shrunk away. A deviation beyond those of the history is a new level and pulls no further back.
The quantiles are those of the errors that this rule made, renewed at every update.
Prophet's own Monte-Carlo intervals are switched off: they cost most of its prediction time and know nothing of the anchor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.base import QUANTILES
from models.features import holiday_days
from models.intervals import MIN_RESIDUALS, residual_quantiles
from models.member import PanelForecaster, reading
from models.series import NS_PER_DAY, Panel

PARAMETERS = "prophet.json"
PATH_CHUNK_ROWS = 512
REACH_QUANTILE = 0.99  # of the deviations from the path in the history: a larger one is a new level


@dataclass(frozen=True)
class ProphetOptions:
    """Options of ``prophet``.

    Args:
        growth: Prophet's trend; ``flat`` because the anchor follows the level and an extrapolated trend hurts.
        max_rows: newest rows used to fit and to measure errors.
        daily_terms: Fourier pairs of the day (below daily frequencies), from two days of history on.
        weekly_terms: Fourier pairs of the week, from two weeks on.
        uncertainty_samples: Prophet's own samples; 0 since the intervals come from the errors.
        max_fits: series fitted at most; the others fall back on empirical persistence and are reported.
        workers: fits at a time; each runs in Stan's own process.
        country: ISO 3166 code whose public holidays have effects of their own; None for none.
    """

    growth: str = "flat"
    max_rows: int = 2016
    daily_terms: int = 6
    weekly_terms: int = 3
    uncertainty_samples: int = 0
    max_fits: int = 300
    workers: int = 2
    country: str | None = None


class ProphetForecaster(PanelForecaster):
    """Per series the last value, moved along Prophet's path and back towards it as far as history supports."""

    name = "prophet"
    per_series = True
    options_class = ProphetOptions
    learns_youth = True

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.models: dict[str, Any] = {}
        self.shares: dict[str, np.ndarray] = {}
        self.reach: dict[str, float] = {}  # largest deviation from the path that pulls back
        self._paths: dict[str, tuple[int, np.ndarray]] = {}  # start in ns and Prophet's path from there on

    @property
    def history_rows(self) -> int:
        return self.options.max_rows

    def _fit(self, panel: Panel) -> None:
        self.models, self.shares, self.reach, self._paths = {}, {}, {}, {}
        tail = panel.tail(self.options.max_rows)
        jobs = []
        for i, uid in enumerate(tail.ids[: self.options.max_fits]):
            values = tail.values[i]
            if np.isfinite(values).sum() < 40:
                self.fallbacks[uid] = f"history of {int(np.isfinite(values).sum())} rows is below 40"
            elif np.nanmax(values) == np.nanmin(values):
                self.fallbacks[uid] = "constant history"
            else:
                jobs.append(i)
        with quiet_prophet(), ThreadPoolExecutor(max(1, self.options.workers)) as pool:
            fitted = list(pool.map(lambda i: self._fit_one(tail.times_ns(i), tail.values[i]), jobs))
        for i, model in zip(jobs, fitted, strict=True):
            self.models[tail.ids[i]] = model
        whole = panel.tail(2 * self.options.max_rows)
        for i in jobs:
            uid, values, times_ns = tail.ids[i], whole.values[i], whole.times_ns(i)
            # on rows before those fitted, if there are enough: in its own sample a path looks better than it is
            older = len(values) - len(tail.values[i])
            judged = slice(0, older) if older >= max(2 * self.season_length, 4 * self.horizon) else slice(None)
            path = self._path(uid, times_ns[judged])
            self.shares[uid] = anchor_shares(values[judged], path, self.horizon)
            self.reach[uid] = float(np.nanquantile(np.abs(values[judged] - path), REACH_QUANTILE))

    def _fit_one(self, times_ns: np.ndarray, values: np.ndarray) -> Any:
        from prophet import Prophet

        span_ns = times_ns[-1] - times_ns[0]
        model = Prophet(
            growth=self.options.growth,
            uncertainty_samples=self.options.uncertainty_samples,
            daily_seasonality=self.options.daily_terms if self.step_ns < NS_PER_DAY / 2 and span_ns >= 2 * NS_PER_DAY else False,
            weekly_seasonality=self.options.weekly_terms if self.step_ns <= NS_PER_DAY and span_ns >= 14 * NS_PER_DAY else False,
            yearly_seasonality=bool(span_ns >= 730 * NS_PER_DAY),
        )
        if self.options.country:
            holiday_days(self.options.country, int(times_ns[0] // NS_PER_DAY), int(times_ns[-1] // NS_PER_DAY))  # refuses what is unknown
            model.add_country_holidays(country_name=self.options.country)
        known = np.isfinite(values)
        model.fit(pd.DataFrame({"ds": times_ns[known].astype("datetime64[ns]"), "y": values[known]}), seed=self.seed)
        return model

    def _path(self, uid: str, times_ns: np.ndarray) -> np.ndarray:
        """Prophet's path at consecutive grid times, computed in chunks ahead and kept."""
        start_ns, path = self._paths.get(uid, (int(times_ns[0]), np.empty(0)))
        if times_ns[0] < start_ns:
            start_ns, path = int(times_ns[0]), np.empty(0)
        needed = int((times_ns[-1] - start_ns) // self.step_ns) + 1
        if needed > len(path):
            rows = np.arange(len(path), needed + PATH_CHUNK_ROWS, dtype=np.int64)
            ds = pd.DataFrame({"ds": (start_ns + rows * self.step_ns).astype("datetime64[ns]")})
            path = np.concatenate([path, self.models[uid].predict(ds)["yhat"].to_numpy()])
        first = int((times_ns[0] - start_ns) // self.step_ns)
        self._paths[uid] = (start_ns + first * self.step_ns, path[first:])
        return path[first:needed]

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        out = np.empty((len(panel), horizon, len(QUANTILES)))
        for i, uid in enumerate(panel.ids):
            if uid not in self.models:
                reason = self.fallbacks.get(uid, "not fitted: new since the fit, or beyond max_fits")
                out[i] = self._fall_back(panel, i, horizon, reason)
                continue
            values, times_ns = panel.values[i], panel.times_ns(i)
            path = self._path(uid, np.r_[times_ns, times_ns[-1] + (1 + np.arange(horizon)) * self.step_ns])
            known, ahead, now = path[: len(values)], path[len(values) :], path[len(values) - 1]
            shares, reach = self.shares[uid][:horizon], self.reach[uid]
            centre = values[-1] + shares[:, 0] * (ahead - now) + shares[:, 1] * np.clip(now - values[-1], -reach, reach)
            out[i] = centre[:, None] + residual_quantiles(anchored_errors(values, known, shares, reach))
        return out

    def _save_parameters(self, folder: Path) -> None:
        from prophet.serialize import model_to_json

        stored = {
            uid: {"model": model_to_json(m), "shares": self.shares[uid].tolist(), "reach": self.reach[uid]}
            for uid, m in self.models.items()
        }
        (folder / PARAMETERS).write_text(json.dumps(stored))

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder), quiet_prophet():
            from prophet.serialize import model_from_json

            stored = json.loads((folder / PARAMETERS).read_text())
            self.models = {uid: model_from_json(s["model"]) for uid, s in stored.items()}
            self.shares = {uid: np.array(s["shares"]) for uid, s in stored.items()}
            self.reach = {uid: float(s["reach"]) for uid, s in stored.items()}


def anchor_shares(values: np.ndarray, path: np.ndarray, horizon: int) -> np.ndarray:
    """Least-squares shares ``[H, 2]`` in y[t+h] - y[t] = a (p[t+h] - p[t]) - b (y[t] - p[t]), each within [0, 1].

    Args:
        values: ``[T]`` with NaN gaps.
        path: ``[T]`` p, Prophet's path at the same times.
        horizon: steps.
    """
    out = np.tile((1.0, 0.0), (horizon, 1))
    for h in range(1, min(horizon, len(values) - 3) + 1):
        inputs = np.column_stack([path[h:] - path[:-h], path[:-h] - values[:-h]])
        change = values[h:] - values[:-h]
        known = np.isfinite(change)
        if known.sum() < MIN_RESIDUALS:
            continue
        moments = inputs[known].T @ inputs[known]
        moments += 1e-9 * (np.trace(moments) + 1e-12) * np.eye(2)
        out[h - 1] = np.clip(np.linalg.solve(moments, inputs[known].T @ change[known]), 0.0, 1.0)
    return out


def anchored_errors(values: np.ndarray, path: np.ndarray, shares: np.ndarray, reach: float = np.inf) -> np.ndarray:
    """Errors ``[T, H]`` that the anchored rule made, deviations cut at ``reach``; NaN where either end is not known."""
    out = np.full((len(values), len(shares)), np.nan)
    back_to_path = np.clip(path - values, -reach, reach)
    for h in range(1, min(len(shares), len(values) - 1) + 1):
        seasonal, back = shares[h - 1]
        out[:-h, h - 1] = values[h:] - values[:-h] - seasonal * (path[h:] - path[:-h]) - back * back_to_path[:-h]
    return out


@contextmanager
def quiet_prophet() -> Iterator[None]:
    """Silence cmdstanpy's line per chain and Prophet's notes on its optional plotting, for the time of the block."""
    loggers = [logging.getLogger(name) for name in ("prophet", "prophet.plot", "prophet.models", "cmdstanpy")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True  # a level would not last: cmdstanpy sets its own when it first speaks
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled

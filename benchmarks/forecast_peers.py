"""Public libraries behind the forecasting contract: fit, update, predict, nine quantiles. Those that live in this environment.

============================ ==========================================================================================================
auto_ets, auto_theta, mstl   statsforecast, one model per series, refitted at every origin on the newest ``input_size`` rows
mlforecast_lightgbm          mlforecast with LightGBM, one for all series, recursive, conformal intervals; fitted once, then ``update``
mlforecast_quantile          the same features, one LightGBM of the quantile objective per quantile and horizon step (``max_horizon``)
============================ ==========================================================================================================

Each gets what the members get: the same rows, the same origins, gaps filled forward, quantiles sorted, and no values below 0 for a series
that was never negative. ``conformal`` intervals of the statsforecast models are the library's ``conformal_distribution`` (forecast plus
and minus the absolute errors of cross-validation windows), measured once at the fit, as mlforecast does; of the two kinds of intervals
each model has the one with the lower loss over the data sets, the other one is in ``VARIANTS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS, QUANTILES, monotone
from telemetry.errors import InputError

LEVELS = (20, 40, 60, 80)
# q10 ... q40 are the lower ends of the wider to the narrower interval, q60 ... q90 the upper ends of the narrower to the wider one
INTERVAL_ENDS = (*(f"lo-{level}" for level in reversed(LEVELS)), "", *(f"hi-{level}" for level in LEVELS))
LAGS = (1, 2, 3, 4, 6, 9, 12, 18, 36, 72)
ROLLING = (6, 18, 72)


def on_grid(frame: pd.DataFrame, freq: str) -> pd.DataFrame:
    """``unique_id, ds, y`` sorted, with gaps of the grid filled forward."""
    table = frame[["unique_id", "ds", "y"]].sort_values(["unique_id", "ds"], ignore_index=True)
    spans = table.groupby("unique_id", sort=False)["ds"].agg(["min", "max", "size"])
    whole = (spans["max"] - spans["min"]) // pd.Timedelta(freq) + 1 == spans["size"]
    if whole.all():
        return table
    parts = [
        rows if whole[uid] else rows.set_index("ds").reindex(pd.date_range(*spans.loc[uid, ["min", "max"]], freq=freq, name="ds")).ffill()
        for uid, rows in table.groupby("unique_id", sort=False)
    ]
    return pd.concat([part.reset_index()[["unique_id", "ds", "y"]] for part in parts], ignore_index=True)


def conformal_distribution(errors: np.ndarray) -> np.ndarray:
    """Quantiles of ``{-|e|, |e|}`` over windows: errors ``[W, H]`` to offsets ``[H, Q]`` (statsforecast's method of that name)."""
    spread = np.abs(errors)
    return np.quantile(np.concatenate([-spread, spread]), QUANTILES, axis=0).T


class Peer(ABC):
    """History and forecast frame; subclasses give ``_learn``, ``_observe`` and ``_forecast``."""

    name: ClassVar[str]
    seasons: ClassVar[int] = 7  # of history that a refit or forecast looks back on

    def __init__(self, *, freq: str, horizon: int, season_length: int, seed: int = 0, input_size: int | None = None) -> None:
        self.freq, self.horizon, self.season_length, self.seed = freq, horizon, season_length, seed
        self.input_size = input_size or self.seasons * season_length
        self.raw_crossings = 0  # rows whose quantiles crossed before they were sorted
        self._history = pd.DataFrame()
        self._floors: dict[str, float] = {}

    def fit(self, series: pd.DataFrame) -> Self:
        """Learn from ``unique_id, ds, y``."""
        self._history = on_grid(series, self.freq)
        self._note_floors(series)
        self._learn(self._history)
        self._trim()
        return self

    def update(self, series: pd.DataFrame) -> Self:
        """Append newer rows."""
        if self._history.empty:
            raise InputError("used before fit", where=self.name, remedy="call fit first")
        if len(series):
            known = self._history.groupby("unique_id")["ds"].max()
            whole = on_grid(pd.concat([self._history, series[["unique_id", "ds", "y"]]], ignore_index=True), self.freq)
            newer = whole[whole["ds"] > whole["unique_id"].map(known).fillna(pd.Timestamp.min)]
            self._history = whole
            self._note_floors(series)
            self._observe(newer.reset_index(drop=True))
            self._trim()
        return self

    def predict(self) -> pd.DataFrame:
        """``unique_id, issued_at, ds, q10 ... q90, model``."""
        ids, quantiles = self._forecast()  # [N], [N, H, Q]
        self.raw_crossings += int((np.diff(quantiles, axis=-1) < 0).any(axis=-1).sum())
        floors = np.array([self._floors[uid] for uid in ids])
        quantiles = monotone(np.maximum(quantiles, floors[:, None, None]))
        issued = self._history.groupby("unique_id")["ds"].max().reindex(ids).to_numpy()
        steps = np.arange(1, self.horizon + 1) * pd.Timedelta(self.freq).to_timedelta64()
        frame = pd.DataFrame(quantiles.reshape(-1, len(QUANTILES)), columns=list(QUANTILE_COLUMNS))
        frame.insert(0, "unique_id", np.repeat(np.asarray(ids, dtype=object), self.horizon))
        frame.insert(1, "issued_at", np.repeat(issued, self.horizon))
        frame.insert(2, "ds", (issued[:, None] + steps).reshape(-1))
        return frame.assign(model=self.name)

    def _note_floors(self, series: pd.DataFrame) -> None:
        for uid, least in series.groupby("unique_id")["y"].min().items():
            self._floors[str(uid)] = 0.0 if least >= 0 and self._floors.get(str(uid), 0.0) == 0.0 else -np.inf

    def _trim(self) -> None:
        self._history = self._history.groupby("unique_id", sort=False).tail(self.input_size).reset_index(drop=True)

    def _learn(self, history: pd.DataFrame) -> None:
        """Learn parameters from the whole history; nothing where every forecast fits anew."""
        return

    def _observe(self, newer: pd.DataFrame) -> None:
        """Take in new rows; ``_history`` has them already."""
        return

    @abstractmethod
    def _forecast(self) -> tuple[list[str], np.ndarray]:
        """Ids ``[N]`` and quantiles ``[N, H, Q]``."""


class StatsPeer(Peer):
    """A statsforecast model per series, refitted whenever it forecasts.

    Args:
        intervals: ``native``, or ``conformal`` (from ``windows`` cross-validation windows at the fit).
    """

    intervals: ClassVar[str] = "native"
    windows: ClassVar[int] = 20

    @abstractmethod
    def _model(self) -> Any:
        """The library's model."""

    def _engine(self) -> Any:
        from statsforecast import StatsForecast
        from statsforecast.models import Naive

        return StatsForecast(models=[self._model()], freq=self.freq, n_jobs=1, fallback_model=Naive())

    def _learn(self, history: pd.DataFrame) -> None:
        self._spread: dict[str, np.ndarray] = {}
        if self.intervals != "conformal":
            return
        tried = self._engine().cross_validation(
            df=history, h=self.horizon, n_windows=self.windows, step_size=self.horizon, input_size=self.input_size
        )
        for uid, rows in tried.groupby("unique_id", sort=False):
            error = (rows["y"] - rows[self._alias()]).to_numpy().reshape(-1, self.horizon)
            self._spread[str(uid)] = conformal_distribution(error)

    def _alias(self) -> str:
        return str(self._model().alias)

    def _forecast(self) -> tuple[list[str], np.ndarray]:
        native = self.intervals == "native"
        table = self._engine().forecast(df=self._history, h=self.horizon, level=list(LEVELS) if native else None)
        name = self._alias()
        ids = [str(uid) for uid in table["unique_id"].unique()]
        centre = table[name].to_numpy(dtype=float).reshape(len(ids), self.horizon)
        if native:
            columns = [f"{name}-{end}" if end else name for end in INTERVAL_ENDS]
            return ids, table[columns].to_numpy(dtype=float).reshape(len(ids), self.horizon, len(QUANTILES))
        return ids, centre[:, :, None] + np.stack([self._spread[uid] for uid in ids])


class AutoEtsPeer(StatsPeer):
    """Exponential smoothing without a season: statsforecast, as R's ets, has none of more than 24 steps."""

    name, intervals = "auto_ets", "conformal"

    def _model(self) -> Any:
        from statsforecast.models import AutoETS

        return AutoETS(season_length=1)


class AutoThetaPeer(StatsPeer):
    """The best Theta model, seasonally adjusted where its own test finds a season; three days did as well as seven."""

    name, intervals, seasons = "auto_theta", "conformal", 3

    def _model(self) -> Any:
        from statsforecast.models import AutoTheta

        return AutoTheta(season_length=self.season_length)


class MstlPeer(StatsPeer):
    """Seasonal-trend decomposition by the day, the trend by AutoETS."""

    name = "mstl"

    def _model(self) -> Any:
        from statsforecast.models import MSTL

        return MSTL(season_length=[self.season_length])


class AutoEtsNativePeer(AutoEtsPeer):
    name, intervals = "auto_ets_native", "native"


class AutoThetaNativePeer(AutoThetaPeer):
    name, intervals = "auto_theta_native", "native"


class MstlConformalPeer(MstlPeer):
    name, intervals = "mstl_conformal", "conformal"


class MlforecastPeer(Peer):
    """mlforecast with LightGBM as its documentation shows it: lags, rolling means, the calendar, target transforms, conformal intervals.

    Of the documented choices those that did best over the data sets: absolute errors, on first differences scaled by series.
    """

    name = "mlforecast_lightgbm"
    windows: ClassVar[int] = 20
    trees: ClassVar[int] = 100

    def _models(self) -> dict[str, Any]:
        return {"lightgbm": self._regressor(objective="l1")}

    def _regressor(self, **objective: Any) -> Any:
        from lightgbm import LGBMRegressor

        return LGBMRegressor(n_estimators=self.trees, random_state=self.seed, verbosity=-1, n_jobs=1, **objective)

    def _transforms(self) -> list[Any]:
        from mlforecast.target_transforms import Differences, LocalStandardScaler

        return [Differences([1]), LocalStandardScaler()]

    def _engine(self) -> Any:
        from mlforecast import MLForecast
        from mlforecast.lag_transforms import RollingMean

        m = self.season_length
        return MLForecast(
            models=self._models(),
            freq=self.freq,
            lags=[*LAGS, m, m + 1],
            lag_transforms={1: [RollingMean(window) for window in (*ROLLING, m)]},
            date_features=["hour", "dayofweek"],
            target_transforms=self._transforms(),
            num_threads=1,
        )

    def _fit_options(self) -> dict[str, Any]:
        from mlforecast.utils import PredictionIntervals

        return {"prediction_intervals": PredictionIntervals(n_windows=self.windows, h=self.horizon)}

    def _learn(self, history: pd.DataFrame) -> None:
        self._fitted = self._engine()
        self._fitted.fit(history, static_features=[], **self._fit_options())

    def _observe(self, newer: pd.DataFrame) -> None:
        self._fitted.update(newer)

    def _forecast(self) -> tuple[list[str], np.ndarray]:
        table = self._fitted.predict(self.horizon, level=list(LEVELS))
        return self._shaped(table, [f"lightgbm-{end}" if end else "lightgbm" for end in INTERVAL_ENDS])

    def _shaped(self, table: pd.DataFrame, columns: list[str]) -> tuple[list[str], np.ndarray]:
        ids = [str(uid) for uid in table["unique_id"].unique()]
        return ids, table[columns].to_numpy(dtype=float).reshape(len(ids), self.horizon, len(columns))


class MlforecastQuantilePeer(MlforecastPeer):
    """Quantile objective, direct: a recursion, or the sum over differences, would take a quantile for what happened."""

    name = "mlforecast_quantile"

    def _models(self) -> dict[str, Any]:
        return {name: self._regressor(objective="quantile", alpha=q) for name, q in zip(QUANTILE_COLUMNS, QUANTILES, strict=True)}

    def _transforms(self) -> list[Any]:
        from mlforecast.target_transforms import LocalStandardScaler

        return [LocalStandardScaler()]

    def _fit_options(self) -> dict[str, Any]:
        return {"max_horizon": self.horizon}

    def _forecast(self) -> tuple[list[str], np.ndarray]:
        return self._shaped(self._fitted.predict(self.horizon), list(QUANTILE_COLUMNS))


PEERS: dict[str, type[Peer]] = {cls.name: cls for cls in (AutoEtsPeer, AutoThetaPeer, MstlPeer, MlforecastPeer, MlforecastQuantilePeer)}
# The same models with the intervals that came out behind, when asked for by name.
VARIANTS: dict[str, type[Peer]] = {cls.name: cls for cls in (AutoEtsNativePeer, AutoThetaNativePeer, MstlConformalPeer)}

"""No forecast and no feature knows anything after its issue time, wherever it is computed; and the probes catch those that do."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from dirty_makers import fitted
from leak_probes import probe_backtest, probe_issue_rows, probe_known_at_predict
from series_makers import QUICK, daily, series_frame

from models.backtest import BacktestConfig
from models.catalog import FORECASTERS
from models.features import design_matrix, issue_table
from models.naive import Persistence
from models.series import Panel, forward_fill

NAMES = list(FORECASTERS)
CONFIG = BacktestConfig(horizon=6, origins=4, calibration_origins=2, refit_every=3, align="time")


def whole_frame() -> pd.DataFrame:
    """Two series with a past covariate that foretells them, as a queue does."""
    frame = series_frame({"a": daily(460, 1), "b": daily(460, 2, level=60.0)})
    ahead = frame.groupby("unique_id")["y"].shift(-3)
    return frame.assign(pending=ahead.fillna(frame["y"]))


def first_frame() -> pd.DataFrame:
    frame = whole_frame()
    return frame[frame.groupby("unique_id").cumcount() < 400]


@pytest.mark.parametrize("name", NAMES)
def test_a_backtest_s_forecasts_know_nothing_after_their_issue_time(name: str) -> None:
    assert probe_backtest(whole_frame(), name, QUICK.get(name, {}), CONFIG) >= (1 + 3 * 4) * 6 * 2


@pytest.mark.parametrize("name", NAMES)
def test_replayed_forecasts_know_nothing_after_their_issue_row(name: str) -> None:
    forecaster = fitted(name, first_frame)

    def at_rows(panel: Panel, series: np.ndarray, rows: np.ndarray) -> np.ndarray:
        kept = slice(None, None, 29)  # some issue rows are enough, and a small part of the time
        return forecaster.quantiles_at(panel, series[kept], rows[kept], 6)

    probe_issue_rows(first_frame(), at_rows, cuts=(150, 300))


def test_features_know_nothing_after_their_issue_row() -> None:
    def at_rows(panel: Panel, series: np.ndarray, rows: np.ndarray) -> np.ndarray:
        table = issue_table(panel, season_length=144, horizon=6, covariates=panel.covariate_names)
        at = table.first_rows[series] + rows
        return np.column_stack([table.scale[at], *(design_matrix(table, at, np.full(len(at), h), "US") for h in (1, 3, 6))])

    probe_issue_rows(first_frame(), at_rows, cuts=(20, 150, 300, 397))


@pytest.mark.parametrize("name", NAMES)
def test_observed_covariates_of_the_future_change_nothing(name: str) -> None:
    frame = whole_frame()
    probe_known_at_predict(fitted(name, first_frame), frame[frame.groupby("unique_id").cumcount() >= 400])


class Peeking(Persistence):
    """Planted: its unit comes from the whole table, as when data are normalised before the split."""

    whole: ClassVar[pd.DataFrame]

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        return super()._quantiles(panel, horizon) + 1e-9 * self.whole["y"].std()


class Foretold(Persistence):
    """Planted: it looks up what the covariates of the future say."""

    whole: ClassVar[pd.DataFrame]

    def predict(self, horizon: int | None = None, covariates: pd.DataFrame | None = None) -> pd.DataFrame:
        forecast = super().predict(horizon)
        return forecast if covariates is None else forecast.assign(q90=forecast["q90"] + covariates["pending"].mean())


def smoothed(panel: Panel, series: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Planted: a queue length that is filled backwards over its gaps."""
    filled = [pd.Series(np.where(np.arange(len(v)) % 9, np.nan, v)).bfill().to_numpy() for v in (c["pending"] for c in panel.covariates)]
    return np.array([filled[i][t] for i, t in zip(series, rows, strict=True)])


def centred(panel: Panel, series: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Planted: a rolling mean that is centred on the issue row."""
    means = [pd.Series(forward_fill(v)).rolling(5, center=True, min_periods=1).mean().to_numpy() for v in panel.values]
    return np.array([means[i][t] for i, t in zip(series, rows, strict=True)])


def rescaled(panel: Panel, series: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Planted: features in units of the whole series."""
    return np.array([panel.values[i][t] / np.nanstd(panel.values[i]) for i, t in zip(series, rows, strict=True)])


def test_the_backtest_probe_catches_a_planted_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    import leak_probes

    ran = leak_probes.run_backtest

    def watched(frame: pd.DataFrame, *rest: object) -> object:
        Peeking.whole = frame
        return ran(frame, *rest)

    monkeypatch.setitem(FORECASTERS, "peeking", Peeking)
    monkeypatch.setattr(leak_probes, "run_backtest", watched)
    with pytest.raises(AssertionError, match="values are different"):
        probe_backtest(whole_frame(), "peeking", {}, CONFIG)


@pytest.mark.parametrize("leaking", [centred, rescaled, smoothed])
def test_the_row_probe_catches_planted_leaks(leaking) -> None:
    with pytest.raises(AssertionError, match="not equal"):
        probe_issue_rows(first_frame(), leaking, cuts=(150,))


def test_the_covariate_probe_catches_a_planted_leak() -> None:
    frame = whole_frame()
    forecaster = Foretold(freq="10min", horizon=6).fit(first_frame())
    with pytest.raises(AssertionError, match="values are different"):
        probe_known_at_predict(forecaster, frame[frame.groupby("unique_id").cumcount() >= 400])

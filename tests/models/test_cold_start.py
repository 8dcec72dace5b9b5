"""A new tenant, node or service has a usable forecast and a calibrated interval from its first row on, whichever forecaster serves it."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
from dirty_makers import HORIZON, Q, fitted, later_frame, make
from series_makers import series_frame

from models.catalog import FORECASTERS

NAMES = list(FORECASTERS)
REFERENCES = ("persistence", "seasonal_naive")  # kept as the plain reference: they know a series by itself alone
POOLING = [name for name in NAMES if name not in REFERENCES]
KNOWN, FRESH, ROWS = 12, 48, 500


@functools.cache
def tenants() -> dict[str, np.ndarray]:
    """Siblings with levels that differ tenfold, a common daily rhythm and steps of about 3 %."""
    rng = np.random.default_rng(5)
    wave = 1.0 + 0.3 * np.sin(2 * np.pi * np.arange(ROWS + 200) / 144)
    paths = np.exp(np.cumsum(rng.normal(scale=0.03, size=(KNOWN + FRESH, ROWS + 200)), axis=1) * 0.5)
    levels = 10 ** rng.uniform(1, 2, size=KNOWN + FRESH)
    return {f"tenant/{i:02d}": levels[i] * wave * paths[i] for i in range(KNOWN + FRESH)}


def known_frame() -> pd.DataFrame:
    return series_frame({uid: y[:ROWS] for uid, y in list(tenants().items())[:KNOWN]})


@functools.cache
def newcomers(name: str, rows: int, born: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles ``[N, H, Q]`` and truth ``[N, H]`` of all fresh tenants, which began ``rows`` rows ago; the known ones follow along."""
    fresh = dict(list(tenants().items())[KNOWN:])
    end = ROWS + born
    forecaster = fitted(name, known_frame)
    forecaster.update(later_frame({uid: y[ROWS:end] for uid, y in list(tenants().items())[:KNOWN]}, ROWS))
    forecaster.update(later_frame({uid: y[end - rows : end] for uid, y in fresh.items()}, end - rows))
    forecast = forecaster.predict().set_index("unique_id")
    quantiles = np.stack([forecast.loc[uid, Q].to_numpy() for uid in fresh])
    return quantiles, np.stack([y[end : end + HORIZON] for y in fresh.values()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 2, 6, 40])
def test_a_new_series_is_forecast_from_its_first_row(name: str, rows: int) -> None:
    quantiles, truth = newcomers(name, rows, 60)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=-1) >= 0).all()
    assert (np.abs(quantiles[:, :, 4] / truth - 1.0) < 1.0).all()


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_its_interval_is_calibrated_from_its_first_row(name: str, rows: int) -> None:
    hits, widths = [], []
    for born in (20, 60, 110, 170):
        quantiles, truth = newcomers(name, rows, born)
        hits.append(((quantiles[:, :, 0] <= truth) & (truth <= quantiles[:, :, -1])).mean())
        widths.append(np.ptp(quantiles, axis=-1) / truth)
    assert 0.6 < np.mean(hits) < 0.95, hits
    assert (np.concatenate(widths) > 0).all()


@pytest.mark.parametrize("name", POOLING)
def test_the_forecasts_of_a_young_cluster_are_no_worse_than_persistence(name: str) -> None:
    """Fitted on 18 rows of every tenant and nothing else."""
    young = {uid: y[:18] for uid, y in tenants().items()}
    losses = []
    for member in (name, "persistence"):
        forecast = make(member).fit(series_frame(young)).predict().set_index("unique_id")
        error = np.stack([y[18 : 18 + HORIZON] for y in tenants().values()])[:, :, None] - np.stack(
            [forecast.loc[uid, Q].to_numpy() for uid in tenants()]
        )
        levels = np.arange(1, 10) / 10
        losses.append(np.maximum(levels * error, (levels - 1.0) * error).sum())
    assert losses[0] < 1.05 * losses[1]

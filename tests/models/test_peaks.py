"""Windows: peaks and exceedance against a plant whose paths are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from models.base import QUANTILE_COLUMNS, QUANTILES
from models.metrics import peak_error, ramp_error
from models.peaks import Paths, brier_score, reliability, window_scores, window_table, windows_of

Q = list(QUANTILE_COLUMNS)
HORIZON = 8


def windows(rho: float, count: int, seed: int) -> pd.DataFrame:
    """Gaussian windows around 1000 W with sigma 50 with correlation ``rho`` between neighbours, forecast correctly step by step."""
    rng = np.random.default_rng(seed)
    steps = np.arange(HORIZON)
    root = np.linalg.cholesky(rho ** np.abs(steps[:, None] - steps[None, :]) + 1e-9 * np.eye(HORIZON))
    y = 1000.0 + 50.0 * rng.normal(size=(count, HORIZON)) @ root.T
    issued = pd.Timestamp("2025-03-03") + pd.to_timedelta(np.repeat(np.arange(count), HORIZON), unit="h")
    frame = pd.DataFrame({"unique_id": "power/site/s", "issued_at": issued, "step": np.tile(steps + 1, count), "y": y.reshape(-1)})
    return frame.assign(**dict(zip(Q, 1000.0 + 50.0 * norm.ppf(QUANTILES), strict=True)))


@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_peaks_and_window_exceedance_follow_how_steps_moved_together(rho):
    paths = Paths.fit(windows(rho, 300, 0), HORIZON)
    cap = 1080.0
    table = window_table(windows(rho, 400, 1), paths, {"power/site/s": cap}, {})
    truth = windows(rho, 20_000, 2)
    peaks = truth["y"].to_numpy().reshape(-1, HORIZON).max(axis=1)
    assert table["p_exceed"].mean() == pytest.approx((peaks > cap).mean(), abs=0.05)
    np.testing.assert_allclose(table[[f"peak_{q}" for q in Q]].mean(), np.quantile(peaks, QUANTILES), atol=12.0)
    scores = window_scores(table)
    assert 0.72 < scores["peak_coverage80"] < 0.88
    assert scores["windows"] == 400


def test_the_median_of_the_peak_beats_the_peak_of_the_median_path():
    paths = Paths.fit(windows(0.5, 300, 0), HORIZON)
    test = windows(0.5, 200, 1)
    scores = window_scores(window_table(test, paths, {}, {}))
    assert scores["peak_error"] < 0.6 * peak_error(test)
    assert scores["ramp_error"] < 0.6 * ramp_error(test)


def test_every_step_keeps_the_distribution_that_was_forecast():
    paths = Paths.fit(windows(0.9, 300, 3), HORIZON)
    table = np.tile(1000.0 + 50.0 * norm.ppf(QUANTILES), (1, HORIZON, 1))
    drawn = paths.draws(table)
    assert drawn.shape == (1, 300, HORIZON)
    np.testing.assert_allclose(np.quantile(drawn[0], QUANTILES, axis=0, method="hazen").T, table[0], atol=0.5)


def test_too_few_windows_keep_their_rank():
    paths = Paths.fit(windows(0.5, 5, 0), HORIZON)
    assert (paths.scores == paths.scores[:, :1]).all()


def test_paths_keep_physical_bounds_and_unknown_windows_have_no_outcome():
    frame = windows(0.5, 30, 4)
    frame.loc[3, "y"] = np.nan
    table = window_table(frame, Paths.fit(frame, HORIZON), {"power/site/s": 1000.0}, {"power/site/s": (950.0, 1030.0)})
    assert table[[f"peak_{q}" for q in Q]].to_numpy().max() <= 1030.0
    assert table[[f"ramp_{q}" for q in Q]].to_numpy().max() <= 80.0
    assert np.isnan(table.loc[0, ["peak", "exceeded"]].to_numpy(dtype=float)).all()
    assert len(windows_of(frame.drop(index=[8]), HORIZON)[0]) == 29, "a window without one of its steps is left out"


def test_brier_and_reliability_by_hand():
    probability, happened = np.array([0.0, 0.5, 0.5, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    assert brier_score(probability, happened) == pytest.approx(0.125)
    assert np.isnan(brier_score(np.empty(0), np.empty(0)))
    table = reliability(probability, happened, bins=2)
    assert table["count"].tolist() == [1, 3]
    assert table["observed"].tolist() == pytest.approx([0.0, 2 / 3])
    assert table["forecast"].tolist() == pytest.approx([0.0, 2 / 3])

"""Where a forecaster has a formula or a library to agree with, it does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter
from scipy.stats import norm
from series_makers import QUICK, daily, series_frame

from models import arima as arima_module
from models.base import QUANTILE_COLUMNS, QUANTILES
from models.catalog import make_forecaster
from models.changes import PooledChanges, PooledSeasons
from models.ensemble import greedy_weights
from models.features import LAGS, Issues, calendar_features, design_matrix, issue_features, issue_table, seasonal_features, trailing_scale
from models.metrics import quantile_loss
from models.prophet import anchor_shares, anchored_errors
from models.series import Panel, freq_step_ns, validate_series
from telemetry.errors import InputError

Q = list(QUANTILE_COLUMNS)


def test_persistence_is_a_gaussian_random_walk() -> None:
    values = np.array([4.0, 6.0, 5.0, 9.0])
    forecast = make_forecaster("persistence", freq="10min", horizon=4, floor=None).fit(series_frame({"a": values})).predict()
    sigma = np.sqrt(np.mean([4.0, 1.0, 16.0]))
    expected = 9.0 + sigma * np.sqrt([1, 2, 3, 4])[:, None] * norm.ppf(QUANTILES)
    np.testing.assert_allclose(forecast[Q].to_numpy(), expected)


def test_seasonal_naive_repeats_the_season_even_beyond_one() -> None:
    values = np.tile([1.0, 2.0, 3.0], 3)
    forecast = make_forecaster("seasonal_naive", freq="10min", horizon=7, season_length=3).fit(series_frame({"a": values})).predict()
    np.testing.assert_array_equal(forecast["q50"], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(forecast["q10"], forecast["q90"])


def test_empirical_persistence_knows_the_hour() -> None:
    """Twice a day the level jumps: right before a jump the conditional intervals must see it coming."""
    rows = 144 * 8 + 60  # ends at 10:00
    hour = (np.arange(rows) // 6) % 24
    values = np.where((hour >= 11) & (hour < 20), 50.0, 10.0) + np.random.default_rng(0).normal(scale=0.1, size=rows)
    frame = series_frame({"a": values})
    options = {"freq": "10min", "horizon": 18}
    plain = make_forecaster("empirical_persistence", **options, condition="none").fit(frame).predict()
    hourly = make_forecaster("empirical_persistence", **options, condition="hour", hours=0.3).fit(frame).predict()
    chosen = make_forecaster("empirical_persistence", **options, hours=0.3).fit(frame)
    assert plain["q50"].iloc[-1] < 20.0
    assert hourly["q50"].iloc[-1] > 45.0
    assert chosen.conditions == {"a": "hour"}
    with pytest.raises(InputError, match="none, hour, activity, auto"):
        make_forecaster("empirical_persistence", **options, condition="moon")


@pytest.mark.parametrize("order", [(1, 1, 1), (2, 0, 1)])
def test_arima_continues_as_statsmodels_append_does(order: tuple[int, int, int]) -> None:
    from statsmodels.tsa.arima.model import ARIMA

    rng = np.random.default_rng(1)
    noise = lfilter([1.0, 0.3], [1.0, -0.7], rng.normal(size=700))
    values = (np.cumsum(noise) if order[1] else noise) + 50.0
    step = np.arange(730)
    fourier = np.column_stack([f(2 * np.pi * step / 144) for f in (np.sin, np.cos)])
    ours = arima_module.estimate(values[:600], fourier[:600], order)
    assert ours is not None
    model = ARIMA(values[:600] / ours.scale, exog=fourier[:600], order=order, trend="n" if order[1] else "c")
    constant = [] if order[1] else [ours.constant]
    fitted = model.filter([*constant, *ours.fourier, *ours.ar, *ours.ma, 1.0])
    theirs = fitted.append(values[600:] / ours.scale, exog=fourier[600:700], refit=False).forecast(30, exog=fourier[700:])
    path = arima_module.residual_series(ours, values, fourier[:700])
    mine = arima_module.forecast_path(ours, path, 30) + fourier[700:] @ np.array(ours.fourier) + ours.constant
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_arima_errors_are_the_forecast_s_own() -> None:
    parameters = arima_module.ArimaParameters(1, 1.0, 0.0, [], [0.6], [0.2])
    path = np.cumsum(lfilter([1.0, 0.2], [1.0, -0.6], np.random.default_rng(2).normal(size=300)))
    errors = arima_module.forecast_errors(parameters, path, 5)
    origin = 200
    ahead = arima_module.forecast_path(parameters, path[: origin + 1], 5)
    for h in range(1, 6):
        # errors are indexed by the differenced series, one shorter than the path
        assert errors[origin + h - 1, h - 1] == pytest.approx(path[origin + h] - ahead[h - 1])


def test_prophet_s_anchor_finds_what_history_supports() -> None:
    """A path that is right with AR(1) deviations of 0.8: follow it fully and fall back by 1 - 0.8^h; a path that is noise: ignore it."""
    rng = np.random.default_rng(3)
    path = 10 * np.sin(np.arange(60_000) / 20)
    deviation = lfilter([1.0], [1.0, -0.8], rng.normal(size=60_000))
    right = anchor_shares(path + deviation, path, 3)
    np.testing.assert_allclose(right, [[1.0, 0.2], [1.0, 0.36], [1.0, 0.488]], atol=0.03)
    wrong = anchor_shares(np.cumsum(rng.normal(size=60_000)), path, 3)
    np.testing.assert_allclose(wrong, 0.0, atol=0.03)
    np.testing.assert_array_equal(anchor_shares(np.zeros(2), np.zeros(2), 2), [[1.0, 0.0], [1.0, 0.0]])


def test_prophet_s_errors_are_the_forecast_s_own() -> None:
    values, path = np.array([1.0, 4.0, np.nan, 9.0]), np.array([0.0, 3.0, 5.0, 8.0])
    errors = anchored_errors(values, path, np.array([[0.5, 0.1], [1.0, 0.0]]))
    assert errors[0, 0] == pytest.approx(4.0 - (1.0 + 0.5 * 3.0 + 0.1 * (0.0 - 1.0)))
    assert errors[1, 1] == pytest.approx(9.0 - (4.0 + 5.0))
    assert np.isnan(errors[[1, 2, 3], 0]).all()


def features(panel: Panel, t: int, season_length: int = 144) -> np.ndarray:
    """All features of the 18 pairs issued at row ``t`` of every series that has it."""
    table = issue_table(panel, season_length=season_length, horizon=18, covariates=panel.covariate_names)
    at = np.repeat(np.flatnonzero(table.position == t), 18)
    return design_matrix(table, at, np.tile(np.arange(1, 19), len(at) // 18), "US")


@pytest.mark.parametrize("season_length", [1, 7, 24, 144, 300])
def test_features_do_not_change_when_the_future_does(season_length: int) -> None:
    """Features of (t, h) before and after everything later than t is replaced, covariates included."""
    frame = series_frame({"a": daily(700, 1), "b": daily(650, 2)})
    frame["queue"] = np.random.default_rng(0).poisson(3.0, len(frame)).astype(float)
    panel = Panel.from_frame(validate_series(frame, "10min")[0], freq_step_ns("10min"))
    for t in (0, 5, 150, 431, 640):
        rng = np.random.default_rng(t)
        other = panel.select(range(2))
        for i, values in enumerate(panel.values):
            future = rng.permutation(values[t + 1 :]) * 50.0 - 7.0
            queue = panel.covariates[i]["queue"]
            other.values[i] = np.r_[values[: t + 1], future]
            other.covariates[i] = {"queue": np.r_[queue[: t + 1], 9.0 * rng.permutation(queue[t + 1 :])]}
        np.testing.assert_allclose(features(panel, t, season_length), features(other, t, season_length), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("season_length", [24, 144])
def test_features_of_the_last_row_are_those_of_any_row(season_length: int) -> None:
    """Training rows and prediction rows come out of the same numbers: cutting the series at t changes nothing at t."""
    values = daily(600, 1)
    for t in (0, 1, 30, 300, 599):
        panels = [Panel(600 * 10**9, ["a"], [0], [v]) for v in (values, values[: t + 1])]
        whole, cut = (features(panel, t, season_length) for panel in panels)
        np.testing.assert_allclose(whole, cut, rtol=1e-5, atol=1e-5)


def test_features_are_what_their_names_say() -> None:
    """Lags, means, earlier seasons and holidays against the series itself."""
    values = daily(144 * 9, 3)
    table = issue_table(Panel(600 * 10**9, ["pool/a"], [0], [values]), season_length=144, horizon=18)
    t, h = 1200, 5
    known = issue_features(table, np.array([t]))[0]
    unit = table.scale[t]
    assert unit == pytest.approx(trailing_scale(values[: t + 1], 18, 1008)[-1])
    assert unit == pytest.approx(
        np.mean([np.abs(values[t - 1007 : t + 1] - values[t - 1007 - k : t + 1 - k]).mean() for k in (1, 9, 18)]), rel=0.02
    )
    assert known[1] == pytest.approx((values[t - 2] - values[t]) / unit, rel=1e-5)
    assert known[len(LAGS) + 2] == pytest.approx((values[t - 11 : t + 1].mean() - values[t]) / unit, rel=1e-4, abs=1e-5)
    ahead = seasonal_features(table, np.array([t]), np.array([h]))[0]
    assert ahead[0] == pytest.approx((values[t + h - 144] - values[t]) / unit)
    assert ahead[6] == pytest.approx((values[t + h - 144] - values[t - 144]) / unit)
    smooth = np.median([values[t + h - 144 * k - 2 : t + h - 144 * k + 3].mean() for k in range(1, 8)])
    assert ahead[-1] == pytest.approx((smooth - values[t]) / unit)
    july = np.array([pd.Timestamp(day).value for day in ("2025-07-03 12:00", "2025-07-04 12:00")])
    assert calendar_features(july, "US")[:, 4].tolist() == [0.0, 1.0]
    with pytest.raises(InputError, match="ISO 3166"):
        calendar_features(july, "Utopia")


@pytest.mark.parametrize("name", ["arima", "prophet", "lightgbm", "lstm", "ensemble"])
def test_learners_learn_a_rhythm_that_persistence_cannot(name: str) -> None:
    """A clean daily rhythm: every learner must beat the last value clearly, on an unseen day."""
    rng = np.random.default_rng(5)
    series = {
        uid: 40 + 20 * np.sin(2 * np.pi * (np.arange(144 * 8) + phase) / 144) + rng.normal(scale=0.5, size=144 * 8)
        for uid, phase in (("a", 0), ("b", 50), ("c", 95))
    }
    frame = series_frame(series)
    position = frame.groupby("unique_id").cumcount()
    quick = {
        **QUICK[name],
        **({"epochs": 6, "max_windows": 1500} if name == "lstm" else {"n_estimators": 40} if name == "lightgbm" else {}),
    }
    quick |= {"max_rows": 576} if "max_rows" in quick else {}
    if name == "ensemble":
        quick = {"member_options": {"lightgbm": {"threads": 1, "min_data_in_leaf": 20}, "lstm": {"epochs": 6, "max_windows": 1500}}}
    losses = {}
    for member, options in ((name, quick), ("persistence", {})):
        forecaster = make_forecaster(member, freq="10min", horizon=18, **options).fit(frame[position < 1000])
        total = 0.0
        for begin in range(1000, 1130, 13):
            joined = forecaster.predict().merge(frame, on=["unique_id", "ds"])
            total += quantile_loss(joined["y"].to_numpy(), joined[Q].to_numpy()).sum()
            forecaster.update(frame[(position >= begin) & (position < begin + 13)])
        losses[member] = total
    assert losses[name] < 0.5 * losses["persistence"]


def test_fallbacks_are_told() -> None:
    frame = pd.concat([series_frame({"a": daily(300, 1)}), series_frame({"flat": np.ones(300)})])
    fitted = make_forecaster("arima", freq="10min", horizon=3, max_fits=1).fit(frame)
    fitted.predict()
    assert "beyond max_fits" in fitted.fallbacks["flat"]
    short = make_forecaster("seasonal_naive", freq="10min", horizon=3).fit(series_frame({"a": daily(20, 1)}))
    short.predict()
    assert "not above one season" in short.fallbacks["a"]


@pytest.mark.parametrize("name", ["prophet", "lightgbm"])
def test_public_holidays_are_foreseen(name: str) -> None:
    """Every American holiday of two years is a day off; the next one is seen coming by a forecaster that knows the calendar."""
    days = pd.date_range("2023-01-02", "2025-07-03", freq="1D")
    off = calendar_features(days.to_numpy().astype(np.int64), "US")[:, 4]
    y = 40.0 - 30.0 * off + np.random.default_rng(0).normal(scale=0.5, size=len(days))
    frame = series_frame({uid: y + level for uid, level in (("a", 0.0), ("b", 20.0), ("c", 40.0))}, freq="1D", start="2023-01-02")
    quick = {"max_rows": 912} if name == "prophet" else {"min_data_in_leaf": 10, "n_estimators": 80, "threads": 1}
    ahead = {}
    for country in ("US", None):
        forecast = make_forecaster(name, freq="1D", horizon=2, country=country, **quick).fit(frame).predict()
        ahead[country] = forecast[(forecast["ds"] == "2025-07-04") & (forecast["unique_id"] == "a")]["q50"].item()
    assert ahead["US"] < 30.0 < ahead[None]
    with pytest.raises(InputError, match="ISO 3166"):
        make_forecaster(name, freq="1D", horizon=2, country="Utopia", **quick).fit(frame)


def test_pooled_naives_are_the_quantiles_of_scaled_errors() -> None:
    """Changes of a random walk, and errors of last season's value of a clean rhythm, against numpy on the same rows."""
    rng = np.random.default_rng(2)
    walk = Panel(600 * 10**9, ["a"], [0], [np.cumsum(rng.normal(size=6000))])
    table = issue_table(walk, season_length=144, horizon=6)
    pooled = PooledChanges.learn(table, np.array([5000]), 6, seed=0)
    assert pooled.trusted
    values = walk.values[0]
    rows = np.arange(1, 4994)
    expected = np.quantile((values[rows + 3] - values[rows]) / table.scale[rows], QUANTILES)
    at = Issues(table, np.array([5500]), 6)
    np.testing.assert_allclose(np.mean([pooled.table[k, 2] for k in range(len(pooled.table))], axis=0), expected, atol=0.12)
    assert pooled.changes(at).shape == (1, 6, 9)
    rhythm = 40 + 12 * np.sin(2 * np.pi * np.arange(3000) / 144) + rng.normal(scale=0.1, size=3000)
    table = issue_table(Panel(600 * 10**9, ["a"], [0], [rhythm]), season_length=144, horizon=6)
    seasons = PooledSeasons.learn(table, np.array([2500]), 6, seed=0, country=None)
    issues = Issues(table, np.array([2900]), 6)
    forecast = issues.values(seasons.changes(issues, np.full((1, 6, 9), np.nan)))[0]
    np.testing.assert_allclose(forecast[:, 4], rhythm[2901 - 144 : 2907 - 144], atol=0.1)
    assert np.mean(forecast[:, 8] - forecast[:, 0]) == pytest.approx(2 * 1.2816 * 0.1 * np.sqrt(2), rel=0.15)
    young = Issues(table, np.array([20]), 6)
    otherwise = np.ones((1, 6, 9))
    np.testing.assert_array_equal(seasons.changes(young, otherwise), otherwise)
    np.testing.assert_array_equal(PooledSeasons().changes(issues, otherwise), otherwise)
    assert not PooledChanges.nothing(6).trusted


def test_greedy_weights_find_the_sharp_member_and_share_between_equals() -> None:
    rng = np.random.default_rng(0)
    actual = rng.normal(size=(400, 3))
    right, wide = (np.tile(norm.ppf(QUANTILES) * width, (400, 3, 1)) for width in (1.0, 4.0))
    known = rng.random((400, 3)) < 0.9
    alone = greedy_weights(actual, np.stack([wide, right]), np.ones((400, 3)), known)
    assert alone[1] > 0.9
    apart = np.stack([right + 0.8, right - 0.8])  # wrong to either side: their average is right
    np.testing.assert_allclose(greedy_weights(actual, apart, np.ones((400, 3)), known), [0.5, 0.5], atol=0.11)

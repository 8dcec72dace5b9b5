"""Metrics against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gamma, norm

from models.base import QUANTILE_COLUMNS, QUANTILES, monotone
from models.intervals import change_quantiles, normal_interpolation, residual_quantiles, step_differences
from models.metrics import (
    bootstrap_ratio,
    coverage80,
    critical_fractile,
    decision_pinball,
    peak_error,
    pinball,
    quantile_at,
    quantile_loss,
    ramp_error,
    score,
    width80,
    wql,
)
from models.series import seasonal_scale
from telemetry.errors import InputError


def test_pinball_by_hand() -> None:
    assert pinball(np.array([10.0]), np.array([8.0]), 0.9)[0] == pytest.approx(1.8)
    assert pinball(np.array([10.0]), np.array([12.0]), 0.9)[0] == pytest.approx(0.2)


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_quantile_loss_of_a_point_mass_is_the_absolute_error(y: float, forecast: float) -> None:
    loss = quantile_loss(np.array([y]), np.full((1, 9), forecast))
    assert loss[0] == pytest.approx(abs(y - forecast), abs=1e-9)


def test_quantile_loss_approaches_the_crps_of_a_normal() -> None:
    """CRPS of N(0, 1) at 0 is (sqrt(2) - 1) / sqrt(pi) = 0.2337; nine quantiles average the inner part of that integral."""
    levels = np.asarray(QUANTILES)
    loss = quantile_loss(np.array([0.0]), norm.ppf(levels)[None, :])[0]
    by_hand = 2 * np.mean(np.where(levels < 0.5, levels, 1 - levels) * np.abs(norm.ppf(levels)))
    assert loss == pytest.approx(by_hand)
    assert loss == pytest.approx((np.sqrt(2) - 1) / np.sqrt(np.pi), rel=0.1)


def test_true_quantiles_lose_least() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=20_000)
    losses = [quantile_loss(y, np.tile(norm.ppf(QUANTILES) * width, (len(y), 1))).mean() for width in (0.5, 0.8, 1.0, 1.25, 2.0)]
    assert int(np.argmin(losses)) == 2


def test_wql_pools_over_series_and_handles_zero() -> None:
    actual, forecast = np.array([10.0, 30.0]), np.array([[12.0] * 9, [27.0] * 9])
    assert wql(actual, forecast) == pytest.approx((2 + 3) / 40)
    assert wql(np.zeros(2), np.zeros((2, 9))) == 0.0
    assert np.isnan(wql(np.zeros(2), np.ones((2, 9))))


def test_coverage_and_width_by_hand() -> None:
    quantiles = np.tile(np.arange(1.0, 10.0), (4, 1))
    assert coverage80(np.array([1.0, 5.0, 9.0, 9.5]), quantiles) == 0.75
    assert width80(quantiles) == 8.0


def test_mase_scale_is_the_seasonal_difference() -> None:
    values = np.array([1.0, 5.0, 2.0, 7.0, 4.0, 8.0])
    assert seasonal_scale(values, 2) == pytest.approx(np.mean([1, 2, 2, 1]))
    assert seasonal_scale(values, 10) == pytest.approx(np.mean([4, 3, 5, 3, 4]))
    assert np.isnan(seasonal_scale(values[:1], 2))


def rows_of(y: list[float], median: list[float], uid: str = "a") -> pd.DataFrame:
    frame = pd.DataFrame(np.tile(np.array(median)[:, None], (1, 9)), columns=list(QUANTILE_COLUMNS))
    return frame.assign(unique_id=uid, issued_at=pd.Timestamp("2025-01-01"), y=y)


def test_scaled_metrics_average_series_in_their_own_units() -> None:
    rows = pd.concat([rows_of([10.0, 10.0], [11.0, 11.0], "a"), rows_of([100.0, 100.0], [130.0, 130.0], "b")])
    scores = score(rows, {"a": 2.0, "b": 10.0})
    assert scores["mase"] == pytest.approx((0.5 + 3.0) / 2)
    assert scores["sql"] == pytest.approx(scores["mase"])  # a point mass
    assert scores["wql"] == pytest.approx(62 / 220)
    assert scores["width80_relative"] == 0.0


def test_series_without_a_scale_count_only_when_forecast_exactly() -> None:
    constant = rows_of([5.0, 5.0], [5.0, 5.0], "c")
    assert score(constant, {"c": 0.0})["mase"] == 0.0
    assert np.isnan(score(rows_of([5.0, 5.0], [5.0, 6.0], "c"), {"c": 0.0})["mase"])
    mixed = pd.concat([rows_of([10.0], [11.0], "a"), rows_of([5.0], [6.0], "c")])
    assert score(mixed, {"a": 2.0, "c": 0.0})["mase"] == 0.5


def test_peak_and_ramp_error_by_hand() -> None:
    rows = rows_of([1.0, 5.0, 3.0], [2.0, 4.0, 4.0])
    assert peak_error(rows) == pytest.approx(1 / 5)
    assert ramp_error(rows) == pytest.approx(abs(2 - 4) / 4)


def test_bootstrap_interval_holds_the_ratio_and_narrows() -> None:
    rng = np.random.default_rng(1)
    wide = bootstrap_ratio(rng.gamma(2.0, 1.0, 20), rng.gamma(2.0, 2.0, 20))
    narrow = bootstrap_ratio(rng.gamma(2.0, 1.0, 2000), rng.gamma(2.0, 2.0, 2000))
    for point, low, high in (wide, narrow):
        assert low < point < high
    assert narrow[2] - narrow[1] < (wide[2] - wide[1]) / 4
    assert bootstrap_ratio(np.full(20, 3.0), np.full(20, 4.0)) == pytest.approx((0.75, 0.75, 0.75))


def test_blocks_widen_the_interval_of_dependent_losses() -> None:
    slow = np.repeat(np.random.default_rng(2).gamma(1.0, 1.0, 10), 10)
    alone, blocked = (bootstrap_ratio(slow, np.ones(100), block=b) for b in (1, 10))
    assert blocked[2] - blocked[1] > 1.5 * (alone[2] - alone[1])


def test_bootstrap_without_any_loss_is_even() -> None:
    assert bootstrap_ratio(np.zeros(5), np.zeros(5)) == (1.0, 1.0, 1.0)
    assert np.isnan(bootstrap_ratio(np.ones(5), np.zeros(5))[0])


def test_step_differences_and_their_quantiles() -> None:
    values = np.array([1.0, 3.0, np.nan, 6.0])
    expected = np.array([[2.0, np.nan], [np.nan, 3.0], [np.nan, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(step_differences(values, 2), expected)
    errors = np.column_stack([np.arange(11.0), np.full(11, np.nan)])
    table = residual_quantiles(errors)
    np.testing.assert_allclose(table[0], np.arange(1.0, 10.0))
    np.testing.assert_allclose(table[1], np.arange(1.0, 10.0) * np.sqrt(2.0))
    np.testing.assert_array_equal(residual_quantiles(np.full((3, 2), np.nan)), 0.0)


def test_changes_of_a_long_random_walk_have_its_spread() -> None:
    values = np.cumsum(np.random.default_rng(3).normal(size=50_000))
    table = change_quantiles(values, 4)
    np.testing.assert_allclose(table, np.sqrt([1, 2, 3, 4])[:, None] * norm.ppf(QUANTILES), atol=0.08)
    assert np.ptp(change_quantiles(values[:3], 4)[3]) > 0


def test_quantiles_between_learned_ones_lie_on_the_normal_curve() -> None:
    levels = (0.1, 0.25, 0.5, 0.75, 0.9)
    learned = 3.0 + 2.0 * norm.ppf(levels)
    np.testing.assert_allclose(normal_interpolation(learned, levels), 3.0 + 2.0 * norm.ppf(QUANTILES), rtol=1e-12)
    rows = np.sort(np.random.default_rng(0).normal(size=(50, 5)), axis=1)
    found = normal_interpolation(rows, levels)
    assert (np.diff(found, axis=1) >= 0).all()
    np.testing.assert_allclose(found[:, [0, 4, 8]], rows[:, [0, 2, 4]])


@pytest.mark.parametrize(("shortage", "idle"), [(0.045, 0.009), (1.0, 1.0), (0.01, 0.3), (5.0, 0.05)])
def test_the_critical_fractile_minimises_the_expected_cost_of_a_known_demand(shortage: float, idle: float) -> None:
    """Newsvendor: for a gamma demand, the reserve at the fractile costs least of all reserves, by numerical expectation."""
    demand = gamma(4.0, scale=3.0)
    levels = (np.arange(20_000) + 0.5) / 20_000
    draws = demand.ppf(levels)
    reserves = np.linspace(0.1, 60.0, 1200)
    cost = np.array([(shortage * np.maximum(draws - r, 0) + idle * np.maximum(r - draws, 0)).mean() for r in reserves])
    best = reserves[cost.argmin()]
    fractile = critical_fractile(shortage, idle)
    assert demand.ppf(fractile) == pytest.approx(best, abs=0.06)
    at_fractile = (shortage + idle) * pinball(draws, np.full_like(draws, demand.ppf(fractile)), fractile).mean()
    assert at_fractile == pytest.approx(cost.min(), rel=1e-3)


@pytest.mark.parametrize("costs", [(0.0, 1.0), (1.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_costs_must_be_above_zero(costs: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="cost"):
        critical_fractile(*costs)


def test_a_quantile_between_two_is_interpolated_and_the_nine_are_themselves() -> None:
    quantiles = np.array([[1.0, 2, 4, 7, 11, 16, 22, 29, 37]])
    for level, value in zip(QUANTILES, quantiles[0], strict=True):
        assert quantile_at(quantiles, level)[0] == pytest.approx(value)
    assert quantile_at(quantiles, 0.85)[0] == pytest.approx(33.0)
    assert quantile_at(quantiles, 0.12)[0] == pytest.approx(1.2)


@pytest.mark.parametrize("fractile", [0.005, 0.05, 0.95, 0.99])
def test_tails_of_a_normal_are_exact_and_a_point_mass_has_none(fractile: float) -> None:
    normal = 5.0 + 2.0 * norm.ppf(QUANTILES)[None, :]
    assert quantile_at(normal, fractile)[0] == pytest.approx(norm.ppf(fractile, 5.0, 2.0))
    assert quantile_at(np.full((1, 9), 3.0), fractile)[0] == 3.0


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(0, 99))
def test_quantiles_rise_with_the_fractile(a: float, b: float, seed: int) -> None:
    quantiles = monotone(np.random.default_rng(seed).gamma(1.0, 5.0, (3, 9)))
    low, high = sorted((a, b))
    assert (quantile_at(quantiles, low) <= quantile_at(quantiles, high) + 1e-9).all()


def test_a_fractile_outside_the_open_interval_is_refused() -> None:
    for fractile in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="fractile"):
            quantile_at(np.zeros((1, 9)), fractile)


def test_beyond_the_capacity_neither_demand_nor_reserve_counts() -> None:
    quantiles = np.array([[8.0] * 9, [20.0] * 9, [8.0] * 9])
    loss = decision_pinball(np.array([30.0, 30.0, 4.0]), quantiles, 0.8, np.array([16.0, 16.0, 16.0]))
    assert loss == pytest.approx([0.8 * 8.0, 0.0, 0.2 * 4.0])

"""Nine quantiles as a distribution: exact for a Gaussian, right for atoms, within stated bounds for others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import expon, norm

from models.base import QUANTILES
from models.distribution import exceedance_probability, mean_of, middle_scores, quantiles_of, scores_at, sum_of_independent, values_at


def gaussian(mean: float, sigma: float) -> np.ndarray:
    return norm.ppf(QUANTILES, loc=mean, scale=sigma)


@pytest.mark.parametrize("cap", [3000.0, 4700.0, 5000.0, 5321.0, 6000.0, 7000.0])
def test_exceedance_of_a_gaussian_is_exact_in_the_middle_and_in_both_tails(cap):
    found = exceedance_probability(gaussian(5000.0, 400.0), cap)
    assert found == pytest.approx(norm.sf(cap, loc=5000.0, scale=400.0), rel=1e-9)


def test_exceedance_of_an_exponential_is_near_inside_and_too_small_far_out():
    table = expon.ppf(QUANTILES, scale=100.0)
    inside = np.linspace(table[0], table[-1], 50)
    found = exceedance_probability(table[None, :], inside)
    assert np.abs(found - expon.sf(inside, scale=100.0)).max() < 0.012
    far = expon.ppf(0.999, scale=100.0)
    assert exceedance_probability(table, far) < expon.sf(far, scale=100.0), "a Gaussian tail is lighter than an exponential one"


def test_exceedance_never_rises_with_the_cap():
    table = np.sort(np.random.default_rng(0).gamma(2.0, 300.0, size=(50, 9)), axis=1)
    caps = np.linspace(0, 4000, 200)
    found = exceedance_probability(table[:, None, :], caps[None, :])
    assert found.shape == (50, 200)
    assert (np.diff(found, axis=1) <= 1e-12).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_point_mass_and_an_atom_keep_their_probabilities():
    point = np.full(9, 700.0)
    assert exceedance_probability(point, 699.9) == 1.0
    assert exceedance_probability(point, 700.0) == 0.0, "exceeding is more than"
    atom = np.array([500.0] * 6 + [600.0, 700.0, 800.0])  # 60 % idle
    assert exceedance_probability(atom, 500.0) == pytest.approx(0.4)
    assert norm.cdf(scores_at(atom, np.array(500.0), strict=True)) == 0.0, "no tail below a half without width"
    assert norm.cdf(middle_scores(atom, np.array(500.0))) == pytest.approx(0.3)


def test_physical_bounds_decide_where_they_are_known():
    table = gaussian(5000.0, 400.0)
    assert exceedance_probability(table, 5500.0, limit=5500.0) == 0.0
    assert exceedance_probability(table, 900.0, floor=1000.0) == 1.0


def test_values_and_scores_are_inverse_to_each_other():
    table = np.sort(np.random.default_rng(1).normal(1000.0, 200.0, size=(20, 9)), axis=1)
    scores = np.linspace(-3, 3, 41)
    values = values_at(table, scores)
    assert values.shape == (20, 41)
    np.testing.assert_allclose(scores_at(table[:, None, :], values), np.broadcast_to(scores, values.shape), atol=1e-9)


def test_sum_of_independent_gaussians_is_the_gaussian_of_the_summed_variance():
    found = sum_of_independent(gaussian(100.0, 30.0)[None], gaussian(-20.0, 40.0)[None])[0]
    np.testing.assert_allclose(found, gaussian(80.0, 50.0), atol=1.5)


def test_sum_with_a_point_mass_is_a_shift():
    found = sum_of_independent(np.full((1, 9), 250.0), gaussian(0.0, 10.0)[None])[0]
    np.testing.assert_allclose(found, gaussian(250.0, 10.0), atol=0.4)


def test_mean_and_quantiles_of_draws():
    assert mean_of(gaussian(300.0, 20.0)) == pytest.approx(300.0)
    draws = np.random.default_rng(2).normal(10.0, 2.0, size=40_000)
    np.testing.assert_allclose(quantiles_of(draws), gaussian(10.0, 2.0), atol=0.06)

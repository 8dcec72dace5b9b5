"""Bounds that hold at every moment: their false alarms under continuous looking, and how soon a difference is seen."""

import numpy as np
import pytest

from envs.sequential import bounds_of, excess_of
from telemetry.errors import InputError


@pytest.mark.parametrize("draw", ["rare", "even", "skewed"])
def test_the_mean_stays_within_at_every_moment(draw):
    rng = np.random.default_rng(3)
    runs, n, outside = 200, 1500, 0
    for _ in range(runs):
        values, mean = {
            "rare": (rng.random(n) < 0.03, 0.03),
            "even": (rng.random(n), 0.5),
            "skewed": (rng.beta(0.2, 1.8, n), 0.1),
        }[draw]
        found = bounds_of(values, 0.1)
        outside += ((found.low > mean) | (found.high < mean)).any()
    assert outside <= 0.1 * runs + 2 * np.sqrt(runs * 0.09)


def test_ordinary_intervals_looked_at_all_the_time_would_not_hold():
    """The same check on intervals of a fixed size: what the sequence is for."""
    rng = np.random.default_rng(3)
    outside = 0
    for _ in range(200):
        values = rng.random(1500)
        t = np.arange(1, 1501)
        mean = np.cumsum(values) / t
        radius = 1.645 * np.sqrt(1 / 12 / t)
        outside += (np.abs(mean - 0.5) > radius)[20:].any()
    assert outside > 60


def test_bounds_shrink_and_scale():
    rng = np.random.default_rng(1)
    values = rng.random(4000)
    one, ten = bounds_of(values, 0.05), bounds_of(10 * values, 0.05, largest=10.0)
    np.testing.assert_allclose(10 * one.low, ten.low)
    width = one.high - one.low
    assert width[-1] < 0.06
    assert width[3999] < width[400] < width[40]
    assert (one.low >= 0).all()
    assert (one.high <= 1).all()


def test_an_excess_is_seen_and_one_that_is_not_there_is_not():
    rng = np.random.default_rng(5)
    false, seen = 0, []
    for _ in range(60):
        watched = rng.random(4000) < 0.5
        same = rng.random(4000) < 0.05
        false += (excess_of(same, watched, 0.05).low > 0).any()
        worse = rng.random(4000) < np.where(watched, 0.15, 0.05)
        hits = np.flatnonzero(excess_of(worse, watched, 0.05).low > 0)
        seen.append(hits[0] if len(hits) else 4000)
    assert false <= 3
    assert max(seen) < 4000
    assert np.median(seen) < 1500


def test_an_arm_without_observations_proves_nothing():
    found = excess_of(np.ones(50), np.ones(50, dtype=bool), 0.05)
    assert np.isneginf(found.low).all()
    assert np.isposinf(found.high).all()
    assert len(excess_of(np.zeros(0), np.zeros(0, dtype=bool), 0.05).low) == 0


def test_the_future_does_not_change_the_past():
    rng = np.random.default_rng(2)
    values, watched = rng.random(300), rng.random(300) < 0.4
    whole, half = excess_of(values, watched, 0.05), excess_of(values[:150], watched[:150], 0.05)
    np.testing.assert_array_equal(whole.low[:150], half.low)


@pytest.mark.parametrize(
    ("values", "alpha", "said"), [([0.5, 1.5], 0.05, "observation 1"), ([0.5, float("nan")], 0.05, "nan"), ([0.5], 0.0, "alpha")]
)
def test_what_is_out_of_bounds_is_refused(values, alpha, said):
    with pytest.raises(InputError, match=said):
        bounds_of(np.array(values), alpha)

"""Adaptive intervals: invariants of every correction, and coverage under planted drift against a static calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from benchmarks.adaptive_intervals import METHODS, follow, judged
from benchmarks.drift_worlds import drift_world
from models.base import QUANTILES
from models.conformal import AdaptiveIntervals, AdaptiveOptions
from telemetry.errors import InputError

N_BANDS, N_STEPS = 3, 6
BANDS = np.repeat(np.arange(N_BANDS), 2)
SCORES = norm.ppf(QUANTILES)
values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3))


def sorted_rows(n: int):
    return arrays(np.float64, (n, len(QUANTILES)), elements=values).map(lambda q: np.sort(q, axis=1))


def taught(seed: int, steps: int = 40, spread: float = 3.0, options: AdaptiveOptions | None = None) -> AdaptiveIntervals:
    """State after values that scatter ``spread`` times as far as forecast."""
    rng = np.random.default_rng(seed)
    state = AdaptiveIntervals(N_BANDS, options)
    for _ in range(steps):
        state.observe(spread * rng.normal(size=60), np.tile(SCORES, (60, 1)), rng.integers(0, N_BANDS, 60), scale=1.0)
    return state


def test_a_fresh_state_changes_nothing():
    quantiles = np.sort(np.random.default_rng(0).normal(size=(50, N_STEPS, 9)), axis=-1)
    quantiles[::7] = quantiles[::7, :, :1]  # zero widths
    np.testing.assert_array_equal(AdaptiveIntervals(N_BANDS).apply(quantiles, BANDS, scale=2.0), quantiles)


@settings(max_examples=60, deadline=None)
@given(
    actual=arrays(np.float64, 24, elements=values | st.just(np.nan)),
    seen=sorted_rows(24),
    quantiles=sorted_rows(N_STEPS),
    scale=st.floats(0, 1e6),
    gain=st.floats(0, 1),
    memory=st.floats(1, 1e4),
    floor=st.floats(-1e6, 0),
    cap=st.floats(0, 1e6),
)
def test_whatever_it_saw_quantiles_stay_ordered_finite_and_within_bounds(actual, seen, quantiles, scale, gain, memory, floor, cap):
    state = AdaptiveIntervals(N_BANDS, AdaptiveOptions(memory_steps=memory, gain=gain))
    for _ in range(3):
        state.observe(actual, seen, np.tile(BANDS, 4), scale=scale)
    issued = state.apply(quantiles, BANDS, scale=scale, floor=floor, cap=cap)
    assert issued.shape == quantiles.shape
    assert np.isfinite(issued).all()
    assert (np.diff(issued, axis=-1) >= 0).all()
    assert issued.min() >= floor
    assert issued.max() <= cap
    restored = AdaptiveIntervals.from_json(json.loads(json.dumps(state.to_json())))
    np.testing.assert_array_equal(restored.apply(quantiles, BANDS, scale=scale, floor=floor, cap=cap), issued)
    restored.observe(actual, seen, np.tile(BANDS, 4), scale=scale)
    state.observe(actual, seen, np.tile(BANDS, 4), scale=scale)
    assert restored.to_json() == state.to_json()


@settings(max_examples=40, deadline=None)
@given(unit=st.sampled_from([1e-6, 0.25, 8.0, 2.0**20]), shift=st.sampled_from([-1024.0, 0.0, 512.0]), seed=st.integers(0, 99))
def test_units_and_origin_of_the_data_do_not_matter(unit, shift, seed):
    rng = np.random.default_rng(seed)
    actual, quantiles = 2.0 * rng.normal(size=90), np.sort(rng.normal(size=(90, 9)), axis=1)
    bands = rng.integers(0, N_BANDS, 90)
    plain = AdaptiveIntervals.fit(actual, quantiles, bands, scale=1.0)
    other = AdaptiveIntervals.fit(unit * (actual + shift), unit * (quantiles + shift), bands, scale=unit)
    new = np.sort(rng.normal(size=(N_STEPS, 9)), axis=1)
    expected = unit * (plain.apply(new, BANDS, scale=1.0) + shift)
    np.testing.assert_allclose(other.apply(unit * (new + shift), BANDS, scale=unit), expected, rtol=0, atol=unit * 1e-6)


def test_the_order_of_rows_within_a_step_does_not_matter():
    rng = np.random.default_rng(3)
    actual, quantiles, bands = rng.normal(size=60), np.sort(rng.normal(size=(60, 9)), axis=1), rng.integers(0, N_BANDS, 60)
    order = rng.permutation(60)
    one = AdaptiveIntervals(N_BANDS).observe(actual, quantiles, bands).to_json()
    other = AdaptiveIntervals(N_BANDS).observe(actual[order], quantiles[order], bands[order]).to_json()
    for name in ("mass", "shift", "steps"):
        np.testing.assert_allclose(one[name], other[name], atol=1e-12)


def test_the_state_is_small_and_depends_on_nothing_but_what_it_saw():
    assert taught(1).to_json() == taught(1).to_json()
    assert len(json.dumps(taught(1, steps=300).to_json())) < 60_000


def test_widths_grow_where_values_scatter_more_and_shrink_where_less():
    forecast = np.tile(SCORES, (N_STEPS, 1))
    for spread in (3.0, 1 / 3):
        issued = taught(0, steps=300, spread=spread).apply(forecast, BANDS, scale=1.0)
        np.testing.assert_allclose(issued[:, -1] - issued[:, 0], spread * 2 * SCORES[-1], rtol=0.2)
        np.testing.assert_allclose(issued[:, 4], 0.0, atol=0.1 * spread)


def test_a_correction_stretches_wide_rows_more_than_narrow_ones():
    forecast = np.stack([SCORES, 5 * SCORES])[:, None]
    width = np.ptp(taught(0).apply(forecast, BANDS[:1], scale=1.0), axis=-1)[:, 0]
    assert width[1] == pytest.approx(5 * width[0])


def test_zero_widths_open_when_they_miss_and_leave_ordinary_rows_alone():
    rng = np.random.default_rng(0)
    state = AdaptiveIntervals(N_BANDS)
    flat, bands = np.zeros((60, 9)), np.tile(BANDS, 20)
    quantiles = np.concatenate([flat, np.tile(SCORES, (60, 1))])
    for _ in range(200):
        actual = np.concatenate([0.5 * rng.normal(size=60), rng.normal(size=60)])
        state.observe(actual, quantiles, bands, scale=1.0)
    opened = state.apply(np.zeros((N_STEPS, 9)), BANDS, scale=1.0)
    np.testing.assert_allclose(np.ptp(opened, axis=1), 0.5 * 2 * SCORES[-1], rtol=0.25)
    ordinary = state.apply(np.tile(SCORES, (N_STEPS, 1)), BANDS, scale=1.0)
    np.testing.assert_allclose(np.ptp(ordinary, axis=1), 2 * SCORES[-1], rtol=0.15)
    np.testing.assert_array_equal(state.apply(np.zeros((N_STEPS, 9)), BANDS), np.zeros((N_STEPS, 9)))  # no scale, nothing to open by


def test_exact_hits_keep_zero_widths_closed():
    state = AdaptiveIntervals(N_BANDS)
    rng = np.random.default_rng(0)
    for _ in range(200):
        actual = np.where(rng.random(60) < 0.95, 7.0, 7.0 + rng.normal(size=60))
        state.observe(actual, np.full((60, 9), 7.0), np.tile(BANDS, 10), scale=1.0)
    np.testing.assert_array_equal(state.apply(np.full((N_STEPS, 9), 7.0), BANDS, scale=1.0), np.full((N_STEPS, 9), 7.0))


def test_bands_are_apart():
    state = AdaptiveIntervals(N_BANDS)
    rng = np.random.default_rng(0)
    for _ in range(200):
        state.observe(4 * rng.normal(size=30), np.tile(SCORES, (30, 1)), np.zeros(30, dtype=int), scale=1.0)
    width = np.ptp(state.apply(np.tile(SCORES, (N_STEPS, 1)), BANDS, scale=1.0), axis=-1)
    np.testing.assert_allclose(width[2:], 2 * SCORES[-1])
    assert width[:2].min() > 3 * 2 * SCORES[-1]


def test_the_report_tells_coverage_and_width():
    state = taught(5, steps=400)
    for row in state.report():
        assert row["steps"] == 400
        assert row["coverage80"] == pytest.approx(0.8, abs=0.04)
        assert row["width80_ratio"] == pytest.approx(3.0, rel=0.15)
    assert AdaptiveIntervals(1).report() == [{"band": 0, "steps": 0, "coverage80": None, "width80_ratio": None}]


def test_a_calibration_slice_counts_by_its_rows():
    rng = np.random.default_rng(2)
    widths = []
    for rows in (0, 30, 3000):
        state = AdaptiveIntervals.fit(2 * rng.normal(size=rows), np.tile(SCORES, (rows, 1)), np.zeros(rows, dtype=int), scale=1.0)
        widths.append(float(np.ptp(state.apply(SCORES[None], np.zeros(1, dtype=int), scale=1.0))) / (2 * SCORES[-1]))
    assert widths[0] == pytest.approx(1.0)
    assert 1.0 < widths[1] < 1.8
    assert widths[2] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "drift", "loss"),
    [
        ("walk", "none", 1.03),
        ("walk", "variance x3", 0.95),
        ("walk", "variance / 3", 0.8),
        ("walk", "heavy tails", 1.0),
        ("season", "level shift", 0.6),
        ("season", "season shift", 1.06),
    ],
)
def test_coverage_holds_under_planted_drift_where_a_static_calibration_loses_it(kind, drift, loss):
    world = drift_world(kind, drift, 8, length=1000, start=300, seed=4)
    static, adaptive = (judged(world, follow(world, METHODS[name])) for name in ("static", "adaptive"))
    for coverage in adaptive["coverage"]:
        assert coverage == pytest.approx(0.8, abs=0.02)
    assert adaptive["crossings"] == 0
    assert adaptive["loss"] < loss * static["loss"]
    if drift != "none":
        assert max(abs(coverage - 0.8) for coverage in static["coverage"]) > 0.1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: AdaptiveIntervals(0), "at least 1"),
        (lambda: AdaptiveIntervals(2).observe(np.zeros(3), np.zeros((2, 9)), np.zeros(3, dtype=int)), r"\[n, 9\]"),
        (lambda: AdaptiveIntervals(2).apply(np.zeros((1, 9)), np.array([2])), "0 to 1"),
        (lambda: AdaptiveOptions(gain=2.0), "gain"),
        (lambda: AdaptiveIntervals.from_json({"n_bands": 1}), "start afresh"),
        (lambda: AdaptiveIntervals.from_json({**AdaptiveIntervals(1).to_json(), "shift": [[0.0]]}), "shape"),
    ],
)
def test_wrong_calls_are_told(call, named):
    with pytest.raises(InputError, match=named):
        call()

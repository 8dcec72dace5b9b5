"""From residuals to quantiles, and held-out corrections of quantiles that are too narrow or too wide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from models.base import QUANTILES

MIN_RESIDUALS = 8
BANDS = 3
BLEND_GRID = (1.0, 0.75, 0.5, 0.25, 0.0)
NORMAL_SCORES = norm.ppf(QUANTILES)  # [Q]


def step_differences(values: np.ndarray, horizon: int) -> np.ndarray:
    """Differences ``y[t+h] - y[t]`` for h = 1 .. horizon: ``[T, H]``, NaN where the future is not known."""
    out = np.full((len(values), horizon), np.nan)
    for h in range(1, min(horizon, len(values) - 1) + 1):
        out[:-h, h - 1] = values[h:] - values[:-h]
    return out


def residual_quantiles(errors: np.ndarray, quantiles: tuple[float, ...] = QUANTILES) -> np.ndarray:
    """Empirical quantiles of ``errors`` ``[n, H]`` by horizon, ``[H, Q]``.

    A horizon with fewer than ``MIN_RESIDUALS`` errors takes the nearest shorter one that has enough, grown by the square root of the
    horizon as in a random walk; without any, the quantiles of all errors there are; without errors, 0.
    """
    horizon = errors.shape[1]
    out = np.zeros((horizon, len(quantiles)))
    counts = np.isfinite(errors).sum(axis=0)
    supported = 0  # last horizon with enough errors
    for h in range(1, horizon + 1):
        column = errors[:, h - 1]
        if counts[h - 1] >= MIN_RESIDUALS:
            out[h - 1] = np.quantile(column[np.isfinite(column)] if counts[h - 1] < len(column) else column, quantiles)
            supported = h
        elif supported:
            out[h - 1] = out[supported - 1] * np.sqrt(h / supported)
        elif counts.sum():
            out[h - 1] = np.quantile(errors[np.isfinite(errors)], quantiles)
    return out


def change_quantiles(
    values: np.ndarray, horizon: int, rows: np.ndarray | None = None, prior_windows: float = 1.0, prior: np.ndarray | None = None
) -> np.ndarray:
    """Quantiles ``[H, Q]`` of the historical h-step changes of one series, leaning on a prior while the history is short.

    Overlapping changes repeat each other, so those issued within the same h steps count as one window.

    Args:
        values: ``[T]`` with NaN gaps.
        horizon: steps.
        rows: mask ``[T]`` of the issue times whose changes count; None for all.
        prior_windows: separate windows that weigh as much as the prior.
        prior: ``[H, Q]``; default a Gaussian random walk of the series' own one-step changes.
    """
    changes = step_differences(values, horizon)
    changes = changes if rows is None else changes[rows]
    if prior is None:
        one_step = np.diff(values)
        one_step = one_step[np.isfinite(one_step)]
        sigma = float(np.sqrt(np.mean(one_step**2))) if one_step.size else 0.0
        prior = sigma * np.sqrt(1.0 + np.arange(horizon))[:, None] * NORMAL_SCORES
    issued = np.arange(len(values)) if rows is None else np.flatnonzero(rows)
    windows = np.array([len(np.unique(issued[np.isfinite(changes[:, h - 1])] // h)) for h in range(1, horizon + 1)])
    weight = (windows / (windows + prior_windows))[:, None]
    return weight * residual_quantiles(changes) + (1.0 - weight) * prior


def horizon_bands(horizon: int, bands: int = BANDS) -> np.ndarray:
    """Band number of each horizon step ``[H]``: near, middle, far."""
    return np.minimum(np.arange(horizon) * bands // max(horizon, 1), bands - 1)


def width_factors(
    actual: np.ndarray,
    predicted: np.ndarray,
    bands: np.ndarray,
    *,
    limits: tuple[float, float] = (0.5, 2.0),
    prior_rows: int = 200,
) -> np.ndarray:
    """Factors on the distance from the median that make each quantile's held-out coverage nominal.

    A multiplicative form of conformalised quantile regression (Romano et al. 2019): wide rows are stretched more than narrow ones.

    Args:
        actual: ``[n]`` values of a slice that the model did not see.
        predicted: ``[n, Q]`` non-decreasing quantiles for them.
        bands: ``[n]`` horizon band of each row.
        limits: smallest and largest factor.
        prior_rows: rows at which the factor is half way from 1 to its estimate.

    Returns:
        ``[B, Q]`` factors, 1 for the median and for bands without rows.
    """
    middle = len(QUANTILES) // 2
    factors = np.ones((int(bands.max(initial=0)) + 1, len(QUANTILES)))
    for band in range(len(factors)):
        rows = bands == band
        if not rows.any():
            continue
        centre, deviation = predicted[rows, middle], actual[rows] - predicted[rows, middle]
        weight = rows.sum() / (rows.sum() + prior_rows)
        for j, q in enumerate(QUANTILES):
            distance = np.abs(predicted[rows, j] - centre)
            usable = distance > 1e-9
            if j == middle or usable.sum() < MIN_RESIDUALS:
                continue
            side = 1.0 if j > middle else -1.0
            ratio = side * deviation[usable] / distance[usable]
            factor = np.clip(np.quantile(ratio, q if j > middle else 1.0 - q), *limits)
            factors[band, j] = factor**weight
    return factors


def apply_width_factors(quantiles: np.ndarray, factors: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """Stretch ``quantiles`` ``[..., H, Q]`` around their median by ``factors[bands]`` ``[H, Q]``."""
    centre = quantiles[..., len(QUANTILES) // 2, None]
    return centre + (quantiles - centre) * factors[bands]


def blend_weights(actual: np.ndarray, predicted: np.ndarray, base: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """Share of ``predicted`` in its average with ``base`` that loses least on held-out rows, by horizon band ``[B]``.

    Args:
        actual: ``[n]``.
        predicted, base: ``[n, Q]`` quantiles of the model and of what it falls back on.
        bands: ``[n]`` horizon band of each row.
    """
    levels = np.asarray(QUANTILES)
    weights = np.ones(int(bands.max(initial=0)) + 1)
    for band in range(len(weights)):
        rows = bands == band
        losses = []
        for weight in BLEND_GRID:
            error = actual[rows, None] - (weight * predicted[rows] + (1.0 - weight) * base[rows])
            losses.append(np.maximum(levels * error, (levels - 1.0) * error).sum())
        weights[band] = BLEND_GRID[int(np.argmin(losses))]
    return weights


@dataclass(frozen=True)
class Correction:
    """What a held-out slice taught about a global model of scaled changes: how far to trust it, and how wide it should be.

    Shapes: ``base [H, Q]`` pooled quantiles of the change per step, ``weights [B]``, ``factors [B, Q]``.
    """

    base: np.ndarray
    weights: np.ndarray
    factors: np.ndarray

    @classmethod
    def none(cls, horizon: int) -> Correction:
        """The correction that changes nothing."""
        return cls(np.zeros((horizon, len(QUANTILES))), np.ones(BANDS), np.ones((BANDS, len(QUANTILES))))

    def apply(self, change: np.ndarray) -> np.ndarray:
        """Corrected quantiles of the change, ``[N, H, Q]``; H may be shorter than that of the fit."""
        steps = change.shape[1]
        bands = horizon_bands(len(self.base))[:steps]
        weight = self.weights[bands][:, None]
        return apply_width_factors(weight * change + (1.0 - weight) * self.base[:steps], self.factors, bands)

    def to_json(self) -> dict[str, list]:
        """Plain lists."""
        return {"base": self.base.tolist(), "weights": self.weights.tolist(), "factors": self.factors.tolist()}

    @classmethod
    def from_json(cls, stored: dict[str, list]) -> Correction:
        """What ``to_json`` gave."""
        return cls(*(np.array(stored[key]) for key in ("base", "weights", "factors")))


def fit_correction(
    held: np.ndarray, predicted: np.ndarray, held_steps: np.ndarray, learned: np.ndarray, learned_steps: np.ndarray, horizon: int
) -> Correction:
    """Correction from a held-out slice.

    Args:
        held: ``[n]`` scaled changes that the model did not see.
        predicted: ``[n, Q]`` its quantiles for them.
        held_steps: ``[n]`` their horizon steps, from 1.
        learned: ``[m]`` scaled changes that it was trained on, for the pooled quantiles it falls back on.
        learned_steps: ``[m]`` their horizon steps.
        horizon: steps.
    """
    base = np.stack(
        [
            np.quantile(learned[learned_steps == h], QUANTILES) if (learned_steps == h).any() else np.zeros(len(QUANTILES))
            for h in range(1, horizon + 1)
        ]
    )
    bands = horizon_bands(horizon)[held_steps - 1]
    weights = np.ones(BANDS)
    found = blend_weights(held, predicted, base[held_steps - 1], bands)
    weights[: len(found)] = found
    mixed = weights[bands][:, None] * predicted + (1.0 - weights[bands][:, None]) * base[held_steps - 1]
    factors = np.ones((BANDS, len(QUANTILES)))
    found = width_factors(held, mixed, bands)
    factors[: len(found)] = found
    return Correction(base, weights, factors)

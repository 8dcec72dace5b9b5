"""From residuals to quantiles."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from models.base import QUANTILES

MIN_RESIDUALS = 8
BANDS = 3
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


def change_quantiles(values: np.ndarray, horizon: int, rows: np.ndarray | None = None, prior_windows: float = 1.0) -> np.ndarray:
    """Quantiles ``[H, Q]`` of the historical h-step changes of one series, leaning on a Gaussian random walk while the history is short.

    Overlapping changes repeat each other, so those issued within the same h steps count as one window.

    Args:
        values: ``[T]`` with NaN gaps.
        horizon: steps.
        rows: mask ``[T]`` of the issue times whose changes count; None for all.
        prior_windows: separate windows that weigh as much as the random walk.
    """
    changes = step_differences(values, horizon)
    changes = changes if rows is None else changes[rows]
    one_step = np.diff(values)
    one_step = one_step[np.isfinite(one_step)]
    sigma = float(np.sqrt(np.mean(one_step**2))) if one_step.size else 0.0
    steps = 1.0 + np.arange(horizon)
    issued = np.arange(len(values)) if rows is None else np.flatnonzero(rows)
    windows = np.array([len(np.unique(issued[np.isfinite(changes[:, h - 1])] // h)) for h in range(1, horizon + 1)])
    weight = (windows / (windows + prior_windows))[:, None]
    return weight * residual_quantiles(changes) + (1.0 - weight) * sigma * np.sqrt(steps)[:, None] * NORMAL_SCORES


def horizon_bands(horizon: int, bands: int = BANDS) -> np.ndarray:
    """Band number of each horizon step ``[H]``: near, middle, far."""
    return np.minimum(np.arange(horizon) * bands // max(horizon, 1), bands - 1)


def normal_interpolation(learned: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """The nine quantiles ``[..., Q]`` from those at ``levels`` ``[..., L]``, linear on the scale of normal scores.

    ``levels`` must reach from the first to the last of the nine.
    """
    scores = norm.ppf(levels)
    upper = np.clip(np.searchsorted(scores, NORMAL_SCORES - 1e-9), 1, len(levels) - 1)
    share = (NORMAL_SCORES - scores[upper - 1]) / (scores[upper] - scores[upper - 1])
    return (1.0 - share) * learned[..., upper - 1] + share * learned[..., upper]

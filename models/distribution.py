"""A whole distribution from nine quantiles: its values, its probabilities and its mean.

Between two quantiles the distribution is linear on the normal scale (a piece of a Gaussian). **Tail assumption**: below q10 and above q90
it goes on as a Gaussian whose scale is that of the half it belongs to, (q90 - q50) / 1.2816 above and (q50 - q10) / 1.2816 below. So a
Gaussian is met exactly everywhere, a point mass stays one, and equal quantiles are an atom. What a heavier tail than that would do
beyond q90 is not known from nine quantiles; physical bounds are to be given where they exist.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from models.base import QUANTILES, monotone

SCORES = norm.ppf(QUANTILES)  # [Q]
MIDDLE = len(QUANTILES) // 2
MEAN_WEIGHTS = np.array([0.15, *[0.1] * (len(QUANTILES) - 2), 0.15])  # midpoint rule; the outer quantiles stand for their tails
NODES, CHUNK = 25, 2000


def tail_scales(quantiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales of the lower and the upper tail, each ``[...]`` for ``quantiles [..., Q]``."""
    return (
        (quantiles[..., MIDDLE] - quantiles[..., 0]) / -SCORES[0],
        (quantiles[..., -1] - quantiles[..., MIDDLE]) / SCORES[-1],
    )


def values_at(quantiles: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Values of the distributions at normal scores: ``quantiles [..., Q]`` and ``scores [..., D]`` (broadcast) give ``[..., D]``."""
    shape = np.broadcast_shapes(quantiles.shape[:-1], scores.shape[:-1])
    table = np.broadcast_to(quantiles, (*shape, len(QUANTILES)))
    wanted = np.broadcast_to(scores, (*shape, scores.shape[-1]))
    left = np.clip(np.searchsorted(SCORES, wanted) - 1, 0, len(QUANTILES) - 2)
    low, high = np.take_along_axis(table, left, -1), np.take_along_axis(table, left + 1, -1)
    share = np.clip((wanted - SCORES[left]) / (SCORES[left + 1] - SCORES[left]), 0.0, 1.0)
    below, above = tail_scales(table)
    tails = below[..., None] * np.minimum(wanted - SCORES[0], 0.0) + above[..., None] * np.maximum(wanted - SCORES[-1], 0.0)
    return low + share * (high - low) + tails


def scores_at(quantiles: np.ndarray, values: np.ndarray, *, strict: bool = False) -> np.ndarray:
    """Normal scores of the probability of at most (``strict``: of less than) ``values [...]``, for ``quantiles [..., Q]``.

    At an atom the two differ. Infinite where the distribution has no mass on that side.
    """
    value = np.asarray(values, dtype=np.float64)[..., None]
    table, value = np.broadcast_arrays(quantiles, value)
    value = value[..., 0]
    passed = (table < value[..., None] if strict else table <= value[..., None]).sum(axis=-1)  # quantiles left behind
    left = np.clip(passed - 1, 0, len(QUANTILES) - 2)
    low, high = np.take_along_axis(table, left[..., None], -1)[..., 0], np.take_along_axis(table, left[..., None] + 1, -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, (value - low) / (high - low), 0.0)
        inside = SCORES[left] + share * (SCORES[left + 1] - SCORES[left])
        below, above = tail_scales(table)
        under = np.where(below > 0, SCORES[0] + (value - table[..., 0]) / below, -np.inf)
        over = np.where(above > 0, SCORES[-1] + (value - table[..., -1]) / above, np.inf)
    return np.where(passed == 0, under, np.where(passed == len(QUANTILES), over, inside))


def exceedance_probability(
    quantiles: np.ndarray, cap: float | np.ndarray, *, floor: float | np.ndarray = -np.inf, limit: float | np.ndarray = np.inf
) -> np.ndarray:
    """Probability of more than ``cap``, ``[...]``, under the module's tail assumption.

    Args:
        quantiles: ``[..., Q]`` non-decreasing along the last axis.
        cap: a number, or one per distribution ``[...]``, in the unit of the quantiles.
        floor, limit: physical bounds: a cap below the floor is certainly exceeded, one at or above the limit never.
    """
    probability = norm.sf(scores_at(quantiles, np.asarray(cap, dtype=np.float64)))
    return np.where(np.asarray(cap) >= limit, 0.0, np.where(np.asarray(cap) < floor, 1.0, probability))


def middle_scores(quantiles: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Normal scores of ``values [...]`` in their forecasts ``[..., Q]``, half way through an atom, and within 4 of 0."""
    share = 0.5 * (norm.cdf(scores_at(quantiles, values)) + norm.cdf(scores_at(quantiles, values, strict=True)))
    return np.clip(norm.ppf(share), -4.0, 4.0)


def mean_of(quantiles: np.ndarray) -> np.ndarray:
    """Mean ``[...]`` of the distributions ``[..., Q]``."""
    return quantiles @ MEAN_WEIGHTS


def quantiles_of(draws: np.ndarray) -> np.ndarray:
    """The nine quantiles ``[..., Q]`` of equally likely draws ``[..., D]``."""
    return np.moveaxis(np.quantile(draws, QUANTILES, axis=-1, method="hazen"), 0, -1)


def sum_of_independent(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Quantiles of the sum of two independent distributions, both ``[n, Q]``, on ``NODES`` x ``NODES`` equally likely pairs of values."""
    nodes = norm.ppf((np.arange(NODES) + 0.5) / NODES)[None, :]
    out = np.empty(first.shape)
    for begin in range(0, len(first), CHUNK):
        part = slice(begin, begin + CHUNK)
        pairs = values_at(first[part], nodes)[:, :, None] + values_at(second[part], nodes)[:, None, :]  # [c, NODES, NODES]
        out[part] = quantiles_of(pairs.reshape(len(pairs), -1))
    return monotone(out)

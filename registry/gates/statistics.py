"""Paired comparisons: intervals by block bootstrap, and the Diebold-Mariano test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its ``level`` interval over ``n`` paired windows."""

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95


def skill_interval(
    losses: np.ndarray, baseline_losses: np.ndarray, *, block: int = 4, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Skill 1 - sum(losses) / sum(baseline) over the same windows ``[N]`` with a circular block-bootstrap interval.

    Neighbouring windows share weather, so blocks of ``block`` windows are drawn (Politis and Romano 1992).

    Raises:
        ValueError: different lengths, fewer than two windows, or a baseline without loss.
    """
    model, naive = np.asarray(losses, dtype=float), np.asarray(baseline_losses, dtype=float)
    if model.shape != naive.shape or model.ndim != 1 or len(model) < 2:
        raise ValueError(f"losses {model.shape} and baseline {naive.shape}: two vectors of one length, at least 2, are needed")
    if not (np.isfinite(model).all() and np.isfinite(naive).all() and naive.sum() > 0):
        raise ValueError("losses must be finite and the baseline's sum positive")
    n, width = len(model), max(1, min(block, len(model) // 2))
    starts = np.random.default_rng(seed).integers(0, n, size=(samples, math.ceil(n / width)))  # [S, blocks]
    rows = ((starts[..., None] + np.arange(width)) % n).reshape(samples, -1)[:, :n]  # [S, N]
    base = naive[rows].sum(1)
    skills = 1.0 - model[rows].sum(1)[base > 0] / base[base > 0]
    tail = (1 - level) / 2
    low, high = np.quantile(skills, [tail, 1 - tail])
    return Interval(float(1 - model.sum() / naive.sum()), float(low), float(high), n, level)


@dataclass(frozen=True)
class DieboldMariano:
    """Whether the mean of loss differences is below zero: statistic, one-sided p-value (first is better), windows and HAC lags."""

    statistic: float
    p_value: float
    n: int
    lags: int
    kernel: str


def diebold_mariano(losses: np.ndarray, baseline_losses: np.ndarray, *, overlap: int = 1) -> DieboldMariano:
    """Test of equal accuracy of two forecasts against "the first loses less" (Diebold and Mariano 1995).

    The variance of the mean difference sums the autocovariances over the ``overlap - 1`` lags that windows share (rectangular kernel;
    Bartlett weights where that sum is not positive). The statistic is corrected for small samples and compared with Student's t of
    ``n - 1`` degrees of freedom (Harvey, Leybourne and Newbold 1997, International Journal of Forecasting 13, equations 8 and 9).

    Args:
        losses, baseline_losses: of the same windows in order of time, ``[N]``.
        overlap: windows that a forecast reaches into: the horizon in steps between origins; 1 where windows do not overlap.

    Raises:
        ValueError: different lengths, not finite, or too few windows for the overlap (at least ``2 * overlap + 1``).
    """
    first, second = np.asarray(losses, dtype=float), np.asarray(baseline_losses, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"losses {first.shape} and baseline {second.shape}: two vectors of one length are needed")
    n, lags = len(first), overlap - 1
    if overlap < 1 or n < 2 * overlap + 1:
        raise ValueError(f"{n} windows, each overlapping {overlap}: at least {2 * max(overlap, 1) + 1} are needed")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError("losses must be finite")
    mean = float(difference.mean())
    centred = difference - mean
    scale = float(np.abs(first).max() + np.abs(second).max())
    if np.abs(centred).max() <= 1e-12 * max(scale, 1e-300):  # the same difference everywhere: nothing is left to chance
        sign = 0.0 if abs(mean) <= 1e-12 * scale else math.copysign(math.inf, mean)
        return DieboldMariano(sign, {0.0: 0.5, -math.inf: 0.0}.get(sign, 1.0), n, lags, "none")
    covariances = np.array([centred[lag:] @ centred[: n - lag] for lag in range(overlap)]) / n
    kernel, variance = "rectangular", covariances[0] + 2 * covariances[1:].sum()
    if variance <= 0:
        kernel, variance = "bartlett", covariances[0] + 2 * ((1 - np.arange(1, overlap) / overlap) * covariances[1:]).sum()
    correction = math.sqrt((n + 1 - 2 * overlap + overlap * (overlap - 1) / n) / n)
    statistic = correction * mean / math.sqrt(variance / n)
    return DieboldMariano(float(statistic), float(stats.t.cdf(statistic, n - 1)), n, lags, kernel)

"""Forecast metrics, each with its formula; inputs are arrays, NaN marks what was not observed.

Shapes: ``actual [n]``, ``quantiles [n, Q]`` in the order of ``models.base.QUANTILES``. An undefined metric (a zero denominator with a
non-zero loss, or no rows) is NaN; zero loss over a zero denominator is 0.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS, QUANTILES
from telemetry.errors import InputError

MEDIAN = len(QUANTILES) // 2
METRIC_NAMES = ("wql", "sql", "mase", "coverage80", "width80")


def pinball(actual: np.ndarray, predicted: np.ndarray, quantile: float | np.ndarray) -> np.ndarray:
    """Pinball loss ``max(q (y - f), (q - 1) (y - f))``, elementwise and unscaled."""
    error = actual - predicted
    return np.maximum(quantile * error, (quantile - 1.0) * error)


def quantile_loss(actual: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Twice the pinball loss averaged over the nine quantiles, ``[n]``: a discrete CRPS, equal to |error| for a point mass."""
    return 2.0 * pinball(actual[:, None], quantiles, np.asarray(QUANTILES)).mean(axis=1)


def critical_fractile(shortage: float, idle: float) -> float:
    """The quantile that a reserve should cover: ``shortage / (shortage + idle)``, the newsvendor's (Arrow, Harris and Marschak 1951).

    Args:
        shortage: what a unit of demand beyond the reserve costs, in any unit of money.
        idle: what a unit of the reserve beyond demand costs, in the same unit.

    Raises:
        InputError: a cost that is not a finite number above 0.
    """
    for name, cost in (("shortage", shortage), ("idle", idle)):
        if not (math.isfinite(cost) and cost > 0):
            raise InputError(f"{name} cost {cost}", where="critical fractile", allowed="a finite number above 0")
    return shortage / (shortage + idle)


def quantile_at(quantiles: np.ndarray, fractile: float) -> np.ndarray:
    """Any quantile ``[n]`` from the nine ``[n, Q]``: linear between two of them, by the probability.

    Beyond 0.1 and 0.9 the tail is that of a normal distribution whose median is q50 and which passes q90 (above) or q10 (below); each side
    has its own width, and a side without width stays where it is.

    Raises:
        InputError: a fractile that is not between 0 and 1.
    """
    if not 0.0 < fractile < 1.0:
        raise InputError(f"fractile {fractile}", where="quantile", allowed="between 0 and 1, both excluded")
    levels = np.asarray(QUANTILES)
    if levels[0] <= fractile <= levels[-1]:
        right = max(int(np.searchsorted(levels, fractile)), 1)
        share = (fractile - levels[right - 1]) / (levels[right] - levels[right - 1])
        return quantiles[:, right - 1] + share * (quantiles[:, right] - quantiles[:, right - 1])
    outer, level = (quantiles[:, -1], levels[-1]) if fractile > levels[-1] else (quantiles[:, 0], levels[0])
    normal = NormalDist()
    return quantiles[:, MEDIAN] + (outer - quantiles[:, MEDIAN]) * (normal.inv_cdf(fractile) / normal.inv_cdf(float(level)))


def decision_pinball(actual: np.ndarray, quantiles: np.ndarray, fractile: float, capacity: np.ndarray | None = None) -> np.ndarray:
    """Pinball loss at the critical fractile, ``[n]``, in the unit of y; times (shortage + idle) it is the cost of the reserve.

    Args:
        capacity: ``[n]``, the most that can be reserved: demand and reserve count up to it, for beyond it no forecast helps.
    """
    reserve = quantile_at(quantiles, fractile)
    if capacity is not None:
        actual, reserve = np.minimum(actual, capacity), np.minimum(reserve, capacity)
    return pinball(actual, reserve, fractile)


def ratio(numerator: float, denominator: float) -> float:
    """``numerator / denominator``; 0 when both are 0, NaN when only the denominator is."""
    if denominator > 0:
        return float(numerator / denominator)
    return 0.0 if numerator == 0 else float("nan")


def wql(actual: np.ndarray, quantiles: np.ndarray) -> float:
    """Weighted quantile loss: sum of quantile losses over sum of |y|."""
    return ratio(float(quantile_loss(actual, quantiles).sum()), float(np.abs(actual).sum()))


def coverage80(actual: np.ndarray, quantiles: np.ndarray) -> float:
    """Share of values within [q10, q90]; 0.8 is ideal for continuous data, more where the data repeats values exactly."""
    return float(np.mean((actual >= quantiles[:, 0]) & (actual <= quantiles[:, -1]))) if len(actual) else float("nan")


def width80(quantiles: np.ndarray) -> float:
    """Mean of q90 - q10, in the unit of y."""
    return float(np.mean(quantiles[:, -1] - quantiles[:, 0])) if len(quantiles) else float("nan")


def scaled_mean(loss: np.ndarray, scale: np.ndarray) -> float:
    """Mean of ``loss / scale`` over rows; rows without a scale count as 0 if none of them has a loss, else they are left out."""
    usable = scale > 0
    if not loss[~usable].any():
        usable[:] = True
    if not usable.any():
        return float("nan")
    return float(np.mean(loss[usable] / np.where(scale[usable] > 0, scale[usable], 1.0)))


def score(rows: pd.DataFrame, scales: dict[str, float]) -> dict[str, float]:
    """All point and interval metrics of scored rows.

    Args:
        rows: ``unique_id, y, q10 ... q90``, one row per forecast step with a known ``y``.
        scales: MASE scale per series (mean absolute seasonal difference of its training data).

    Returns:
        ``wql, sql, mase, coverage80, width80, width80_relative, rows``. ``sql`` and ``mase`` weigh every row alike after division by
        its series' scale; ``width80_relative`` is the sum of widths over the sum of |y|.
    """
    actual = rows["y"].to_numpy(dtype=np.float64)
    quantiles = rows[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64)
    scale = rows["unique_id"].map(scales).fillna(0.0).to_numpy(dtype=np.float64)
    return {
        "wql": wql(actual, quantiles),
        "sql": scaled_mean(quantile_loss(actual, quantiles), scale),
        "mase": scaled_mean(np.abs(actual - quantiles[:, MEDIAN]), scale),
        "coverage80": coverage80(actual, quantiles),
        "width80": width80(quantiles),
        "width80_relative": ratio(float((quantiles[:, -1] - quantiles[:, 0]).sum()), float(np.abs(actual).sum())),
        "rows": len(rows),
    }


def peak_error(rows: pd.DataFrame) -> float:
    """Sum over windows of |max of the median path - max of y| over the sum of |max of y|; rows: ``unique_id, issued_at, y, q50``."""
    peaks = rows.groupby(["unique_id", "issued_at"], sort=False)[["q50", "y"]].max()
    return ratio(float((peaks["q50"] - peaks["y"]).abs().sum()), float(peaks["y"].abs().sum()))


def ramp_error(rows: pd.DataFrame) -> float:
    """Sum over windows of |forecast ramp - ramp| over the sum of |ramp|; a ramp is the largest minus the smallest value of the window."""
    windows = rows.groupby(["unique_id", "issued_at"], sort=False)[["q50", "y"]]
    ramps = windows.max() - windows.min()
    return ratio(float((ramps["q50"] - ramps["y"]).abs().sum()), float(ramps["y"].sum()))


def bootstrap_ratio(
    numerator: np.ndarray, denominator: np.ndarray, *, block: int | None = None, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of two summed losses with a circular block-bootstrap interval over origins.

    Neighbouring origins are dependent, so whole blocks of them are drawn (Politis and Romano 1992); all series of an origin move together.

    Args:
        numerator: ``[n_origins]`` summed loss of the forecaster.
        denominator: ``[n_origins]`` summed loss of the reference.
        block: origins in a block; default the cube root of their number, rounded up.
        draws: bootstrap samples.
        level: coverage of the interval.
        seed: of the draws.

    Returns:
        ratio, lower and upper end. Without loss in the reference: 1 when there is none in the forecaster either, else NaN.
    """
    n = len(numerator)
    if not denominator.sum() > 0:
        equal = float("nan") if numerator.sum() > 0 else 1.0
        return equal, equal, equal
    point = ratio(float(numerator.sum()), float(denominator.sum()))
    if n < 2:
        return point, point, point
    sampled = sampled_ratios(numerator, denominator, block=block, draws=draws, seed=seed)
    low, high = np.quantile(sampled[np.isfinite(sampled)], [(1 - level) / 2, (1 + level) / 2])
    return point, float(low), float(high)


def sampled_ratios(
    numerator: np.ndarray, denominator: np.ndarray, *, block: int | None = None, draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """Ratios of the sums over drawn blocks of origins ``[draws]``; NaN where the reference has no loss. Arguments as of
    :func:`bootstrap_ratio`."""
    n = len(numerator)
    size = block or int(np.ceil(n ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, n, size=(draws, -(-n // size)))
    rows = ((starts[:, :, None] + np.arange(size)) % n).reshape(draws, -1)[:, :n]  # [draws, n]
    bottom = denominator[rows].sum(axis=1)
    return np.where(bottom > 0, numerator[rows].sum(axis=1), np.nan) / np.where(bottom > 0, bottom, 1.0)

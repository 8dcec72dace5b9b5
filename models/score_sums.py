"""Scores as sums: what ``models.metrics.score`` computes on a whole table, added up piece by piece.

Every metric is a ratio of sums over scored rows, so that pieces of the series can be scored where they were forecast and only a few numbers
per series, step and origin are kept. A row of sums has one number per entry of ``TERMS``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.intervals import horizon_bands
from models.metrics import MEDIAN, quantile_loss, ratio

ROW_TERMS = (
    "rows",
    "loss",
    "abs_actual",
    "inside",
    "width",
    "crossings",
    "scaled_rows",
    "scaled_loss",
    "scaled_error",
    "unscaled_loss",
    "unscaled_error",
)
WINDOW_TERMS = ("peak_error", "peak", "ramp_error", "ramp")
TERMS = ROW_TERMS + WINDOW_TERMS
INDEX = {name: k for k, name in enumerate(TERMS)}
BAND_NAMES = ("near", "middle", "far")


@dataclass
class ScoreSums:
    """Sums of one forecaster over some series and origins."""

    series: np.ndarray  # [N, K] over the test rows of each series
    steps: np.ndarray  # [H, K] over the test rows at each horizon step
    calibration: np.ndarray  # [K]
    origins: np.ndarray  # [O, 2] scored rows and their loss at each origin, calibration first

    @classmethod
    def empty(cls, series: int, horizon: int, origins: int) -> ScoreSums:
        """Nothing scored yet."""
        return cls(np.zeros((series, len(TERMS))), np.zeros((horizon, len(TERMS))), np.zeros(len(TERMS)), np.zeros((origins, 2)))

    def add(self, part: ScoreSums, first: int) -> None:
        """Add the sums of the series from number ``first`` on."""
        self.series[first : first + len(part.series)] += part.series
        self.steps += part.steps
        self.calibration += part.calibration
        self.origins += part.origins


def sum_scores(
    actual: np.ndarray, quantiles: np.ndarray, issued: np.ndarray, scale: np.ndarray, numbers: range, calibration: int, origins: int
) -> ScoreSums:
    """Sums over the windows of ``n`` series at ``o`` origins.

    Args:
        actual: ``[o, n, H]``; NaN where nothing was observed, or nothing forecast.
        quantiles: ``[o, n, H, Q]``.
        issued: ``[o, n]`` grid position of the last value known to each forecast; origins that share it share their window.
        scale: ``[n]`` MASE scale; 0 or NaN for none.
        numbers: of the origins among all.
        calibration: how many of all origins are calibration origins.
        origins: how many there are in all.
    """
    _, n, horizon = actual.shape
    observed = np.isfinite(actual)
    terms = np.zeros((*actual.shape, len(ROW_TERMS)))
    terms[observed] = _row_terms(actual[observed], quantiles[observed], scale[:, None], observed)
    test = np.array(numbers) >= calibration
    sums = ScoreSums.empty(n, horizon, origins)
    width = len(ROW_TERMS)
    sums.series[:, :width] = terms[test].sum(axis=(0, 2))
    sums.series[:, width:] = _window_terms(actual[test], quantiles[test][..., MEDIAN], issued[test])
    sums.steps[:, :width] = terms[test].sum(axis=(0, 1))
    sums.calibration[:width] = terms[~test].sum(axis=(0, 1, 2))
    sums.origins[numbers.start : numbers.stop] = terms[..., : INDEX["loss"] + 1].sum(axis=(1, 2))
    return sums


def _row_terms(actual: np.ndarray, quantiles: np.ndarray, scale: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """``[m, len(ROW_TERMS)]`` of the ``m`` observed rows; ``scale`` ``[n, 1]``, ``observed`` ``[o, n, H]``."""
    unit = np.nan_to_num(np.broadcast_to(scale, observed.shape)[observed])
    usable = unit > 0
    divisor = np.where(usable, unit, 1.0)
    loss, error = quantile_loss(actual, quantiles), np.abs(actual - quantiles[:, MEDIAN])
    low, high = quantiles[:, 0], quantiles[:, -1]
    columns = {
        "rows": np.ones(len(actual)),
        "loss": loss,
        "abs_actual": np.abs(actual),
        "inside": (actual >= low) & (actual <= high),
        "width": high - low,
        "crossings": (np.diff(quantiles, axis=1) < 0).any(axis=1),
        "scaled_rows": usable,
        "scaled_loss": np.where(usable, loss / divisor, 0.0),
        "scaled_error": np.where(usable, error / divisor, 0.0),
        "unscaled_loss": np.where(usable, 0.0, loss),
        "unscaled_error": np.where(usable, 0.0, error),
    }
    return np.column_stack([columns[name] for name in ROW_TERMS])


def _window_terms(actual: np.ndarray, median: np.ndarray, issued: np.ndarray) -> np.ndarray:
    """Peak and ramp sums by series ``[n, 4]``; windows of one series with the same issue time are one window."""
    out = np.zeros((actual.shape[1], len(WINDOW_TERMS)))
    seen = np.isfinite(actual)
    origin, series = np.nonzero(seen.any(axis=2))
    if not len(origin):
        return out
    order = np.lexsort((issued[origin, series], series))
    origin, series = origin[order], series[order]
    key = issued[origin, series]
    first = np.flatnonzero(np.r_[True, (np.diff(series) != 0) | (np.diff(key) != 0)])
    extremes = []
    for path in (actual[origin, series], median[origin, series]):
        there = seen[origin, series]
        high = np.maximum.reduceat(np.where(there, path, -np.inf).max(axis=1), first)
        low = np.minimum.reduceat(np.where(there, path, np.inf).min(axis=1), first)
        extremes.append((high, high - low))
    (peak, ramp), (peak_median, ramp_median) = extremes
    terms = np.column_stack([np.abs(peak_median - peak), np.abs(peak), np.abs(ramp_median - ramp), ramp])
    np.add.at(out, series[first], terms)
    return out


def metrics_of(sums: np.ndarray) -> dict[str, float]:
    """What ``models.metrics.score`` returns for the rows behind ``sums`` ``[K]``."""
    total = dict(zip(TERMS, sums.tolist(), strict=True))
    rows = total["rows"]
    return {
        "wql": ratio(total["loss"], total["abs_actual"]),
        "sql": _scaled(total, "loss"),
        "mase": _scaled(total, "error"),
        "coverage80": total["inside"] / rows if rows else float("nan"),
        "width80": total["width"] / rows if rows else float("nan"),
        "width80_relative": ratio(total["width"], total["abs_actual"]),
        "rows": int(rows),
    }


def _scaled(total: dict[str, float], kind: str) -> float:
    """Mean of scaled rows; rows without a scale count as 0 if none of them has a loss, else they are left out."""
    rows = total["scaled_rows"] if total[f"unscaled_{kind}"] else total["rows"]
    return total[f"scaled_{kind}"] / rows if rows else float("nan")


def peak_and_ramp(sums: np.ndarray) -> dict[str, float]:
    """Peak and ramp error of ``sums`` ``[K]``."""
    return {
        kind: ratio(float(sums[INDEX[kind]]), float(sums[INDEX[over]])) for kind, over in (("peak_error", "peak"), ("ramp_error", "ramp"))
    }


def coverage_by_band(steps: np.ndarray) -> dict[str, float]:
    """80 % coverage of the near, middle and far third of the horizon; NaN for a band without rows. ``steps``: ``[H, K]``."""
    bands = horizon_bands(len(steps), len(BAND_NAMES))
    return {name: metrics_of(steps[bands == band].sum(axis=0))["coverage80"] for band, name in enumerate(BAND_NAMES)}

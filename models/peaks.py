"""What a whole window will do: its peak, its ramp, and whether it passes a cap, from the quantiles of its single steps.

Quantiles of single steps do not say how steps move together. That comes from past windows: where in its own forecast each step of a past
window lay (its normal score) is kept as a path, and future paths follow the same ranks (the empirical copula of Schefzik et al. 2013, along
the horizon). Scores are ranked step by step, so every step keeps exactly the distribution that was forecast for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

from models.base import QUANTILE_COLUMNS, QUANTILES
from models.distribution import middle_scores, quantiles_of, values_at
from models.metrics import pinball, ratio

MOST_PATHS = 300
FEWEST_PATHS = 20
KEYS = ["unique_id", "issued_at"]
CHUNK = 256


def rank_scores(scores: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks of ``scores [D, ...]`` along the first axis: evenly spread, in the order that was seen."""
    order = rankdata(scores, method="ordinal", axis=0)
    return norm.ppf((order - 0.5) / len(scores))


def thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the rows, evenly spread."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


@dataclass(frozen=True)
class Paths:
    """How steps of a window move together: ``scores [D, H]``, every column a permutation of the same evenly spread normal scores."""

    scores: np.ndarray

    @classmethod
    def fit(cls, forecasts: pd.DataFrame, horizon: int, most: int = MOST_PATHS) -> Paths:
        """Paths of past windows that were observed whole.

        Fewer than ``FEWEST_PATHS`` of them say too little: then all steps keep their rank throughout the window, the cautious assumption
        for the length of a stay above a cap, and the bold one for the height of the peak.

        Args:
            forecasts: ``unique_id, issued_at, step, q10 ... q90, y`` of past windows.
            horizon: steps of a window.
        """
        _, quantiles, y = windows_of(forecasts, horizon)
        known = ~np.isnan(y).any(axis=1)
        whole = middle_scores(quantiles[known], y[known])  # [n, H]
        if len(whole) < FEWEST_PATHS:
            even = norm.ppf((np.arange(99) + 0.5) / 99)
            return cls(np.repeat(even[:, None], horizon, axis=1))
        return cls(rank_scores(thinned(whole, most)))

    def draws(self, quantiles: np.ndarray) -> np.ndarray:
        """Equally likely paths ``[n, D, H]`` of windows ``[n, H, Q]``; H may be shorter than that of the fit."""
        steps = quantiles.shape[1]
        drawn = values_at(quantiles, self.scores[:, :steps].T)  # [n, H, D]
        return np.swapaxes(drawn, 1, 2)


def windows_of(forecasts: pd.DataFrame, horizon: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Windows of a forecast frame: their keys ``unique_id, issued_at`` (``[n]`` rows), quantiles ``[n, H, Q]`` and what came ``[n, H]``.

    Only windows with all steps of ``1 .. horizon`` are given; ``y`` is NaN where it is not known.
    """
    ordered = forecasts.sort_values([*KEYS, "step"], kind="stable")
    count = ordered.groupby(KEYS, sort=False)["step"].transform("size")
    ordered = ordered[count == horizon]
    n = len(ordered) // horizon
    quantiles = ordered[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64).reshape(n, horizon, -1)
    y = ordered["y"].to_numpy(dtype=np.float64).reshape(n, horizon) if "y" in ordered else np.full((n, horizon), np.nan)
    return ordered[KEYS].iloc[::horizon].reset_index(drop=True), quantiles, y


def window_table(forecasts: pd.DataFrame, paths: Paths, caps: dict[str, float], bounds: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Peak, ramp and exceedance of every whole window.

    Args:
        forecasts: ``unique_id, issued_at, step, q10 ... q90`` and ``y`` where known.
        paths: how steps move together.
        caps: by series; windows of other series have NaN probabilities.
        bounds: ``(floor, cap)`` by series, kept by every path.

    Returns:
        ``unique_id, issued_at``; ``peak_q10 ... peak_q90, ramp_q10 ... ramp_q90`` (largest value of the window, and that minus the
        smallest); ``cap, p_exceed`` (probability that the window passes the cap at some step); ``peak, ramp, exceeded`` (what came; NaN
        where a step is not known).
    """
    keys, quantiles, y = windows_of(forecasts, paths.scores.shape[1])
    low = keys["unique_id"].map({uid: pair[0] for uid, pair in bounds.items()}).fillna(-np.inf).to_numpy(dtype=np.float64)
    high = keys["unique_id"].map({uid: pair[1] for uid, pair in bounds.items()}).fillna(np.inf).to_numpy(dtype=np.float64)
    cap = keys["unique_id"].map(caps).to_numpy(dtype=np.float64)
    peaks, ramps, passed = [np.empty((0, len(QUANTILE_COLUMNS)))], [np.empty((0, len(QUANTILE_COLUMNS)))], [np.empty(0)]
    for rows in _chunks(len(keys)):
        drawn = np.clip(paths.draws(quantiles[rows]), low[rows, None, None], high[rows, None, None])  # [c, D, H]
        largest = drawn.max(axis=2)
        peaks.append(quantiles_of(largest))
        ramps.append(quantiles_of(largest - drawn.min(axis=2)))
        passed.append(np.where(np.isnan(cap[rows]), np.nan, (largest > cap[rows, None]).mean(axis=1)))
    peak, ramp = y.max(axis=1), y.max(axis=1) - y.min(axis=1)  # NaN where a step is not known
    exceeded = np.where(np.isnan(cap) | np.isnan(peak), np.nan, peak > cap)
    came = {"cap": cap, "p_exceed": np.concatenate(passed), "peak": peak, "ramp": ramp, "exceeded": exceeded}
    return keys.assign(**_columns("peak", peaks), **_columns("ramp", ramps), **came)


def _columns(name: str, parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}_{column}": values for column, values in zip(QUANTILE_COLUMNS, np.concatenate(parts).T, strict=True)}


def _chunks(count: int) -> Iterator[slice]:
    return (slice(begin, begin + CHUNK) for begin in range(0, count, CHUNK))


def window_scores(windows: pd.DataFrame) -> dict[str, float]:
    """Scores of :func:`window_table` over windows that are known whole.

    Returns:
        ``peak_error`` and ``ramp_error`` (median of the window's peak or ramp, as a share of what came), ``peak_wql`` and ``ramp_wql``
        (quantile losses of the whole distribution), ``peak_coverage80``, ``windows``.
    """
    known = windows.dropna(subset=["peak"])
    out = {"windows": float(len(known))}
    for name in ("peak", "ramp"):
        came = known[name].to_numpy()
        table = known[[f"{name}_{column}" for column in QUANTILE_COLUMNS]].to_numpy()
        total = float(np.abs(came).sum())
        out[f"{name}_error"] = ratio(float(np.abs(table[:, len(QUANTILE_COLUMNS) // 2] - came).sum()), total)
        out[f"{name}_wql"] = ratio(float(2.0 * pinball(came[:, None], table, np.asarray(QUANTILES)).mean(axis=1).sum()), total)
        if name == "peak":
            out["peak_coverage80"] = float(np.mean((came >= table[:, 0]) & (came <= table[:, -1]))) if len(came) else float("nan")
    return out


def brier_score(probability: np.ndarray, happened: np.ndarray) -> float:
    """Mean squared difference of probability and outcome (Brier 1950); NaN without rows."""
    return float(np.mean((probability - happened) ** 2)) if len(probability) else float("nan")


def reliability(probability: np.ndarray, happened: np.ndarray, bins: int = 5) -> pd.DataFrame:
    """Share of outcomes by forecast probability: ``bin, forecast`` (mean probability), ``observed, count``; empty bins are left out."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": place, "forecast": probability, "observed": happened.astype(float)})
    grouped = table.groupby("bin").agg(forecast=("forecast", "mean"), observed=("observed", "mean"), count=("observed", "size"))
    return grouped.reset_index()

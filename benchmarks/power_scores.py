"""Scores of power forecasts by level: quantile losses, peaks, ramps, and the probability of passing a cap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS
from models.distribution import exceedance_probability
from models.metrics import bootstrap_ratio, peak_error, quantile_loss, ramp_error, score
from models.peaks import Paths, brier_score, reliability, window_scores, window_table
from models.power import level_of

Q = list(QUANTILE_COLUMNS)
LEVELS = ("gpu", "host", "node", "pool", "site")


def levels_in(frame: pd.DataFrame) -> list[str]:
    """Levels of a frame from the smallest part up."""
    found = set(frame["unique_id"].map(level_of))
    return [level for level in LEVELS if level in found] + sorted(found - set(LEVELS))


def score_levels(
    calibration: pd.DataFrame,
    test: pd.DataFrame,
    *,
    scales: Mapping[str, float],
    caps: Mapping[str, float],
    bounds: Mapping[str, Sequence[float | None]],
    horizon: int,
) -> dict[str, dict[str, Any]]:
    """Scores of one forecast by level on ``test``; how steps move together is learned on ``calibration``.

    ``brier_step`` and ``brier_window``: mean squared error of the probability that a step, or any step of a window, passes the cap;
    ``climate_*``: the same for the share that was seen, said every time.
    """
    out = {}
    limits = {uid: (-np.inf if low is None else low, np.inf if high is None else high) for uid, (low, high) in bounds.items()}
    for level in levels_in(test):
        own = test[test["unique_id"].map(level_of) == level]
        past = calibration[calibration["unique_id"].map(level_of) == level]
        windows = window_table(own, Paths.fit(past, horizon), dict(caps), limits)
        cap = own["unique_id"].map(caps).to_numpy(dtype=float)
        top = own["unique_id"].map({uid: pair[1] for uid, pair in limits.items()}).fillna(np.inf).to_numpy(dtype=float)
        probability, happened = exceedance_probability(own[Q].to_numpy(), cap, limit=top), own["y"].to_numpy() > cap
        known = windows.dropna(subset=["p_exceed", "exceeded"])
        share = float(known["exceeded"].mean())
        out[level] = {
            **score(own, dict(scales)),
            "peak_error": peak_error(own),
            "ramp_error": ramp_error(own),
            **{f"window_{name}": value for name, value in window_scores(windows).items()},
            "brier_step": brier_score(probability, happened),
            "climate_step": float(happened.mean() * (1 - happened.mean())),
            "brier_window": brier_score(known["p_exceed"].to_numpy(), known["exceeded"].to_numpy()),
            "climate_window": share * (1.0 - share),
            "reliability_step": reliability(probability, happened).to_dict("records"),
            "reliability_window": reliability(known["p_exceed"].to_numpy(), known["exceeded"].to_numpy()).to_dict("records"),
        }
    return out


def loss_ratio(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[float, float, float]:
    """Ratio of summed quantile losses on the same rows, with its 95 % block-bootstrap interval over origins."""
    sums = []
    for frame in (ours, theirs):
        loss = quantile_loss(frame["y"].to_numpy(), frame[Q].to_numpy())
        sums.append(pd.Series(loss, index=frame["origin"].to_numpy()).groupby(level=0).sum())
    return bootstrap_ratio(sums[0].to_numpy(), sums[1].reindex(sums[0].index).to_numpy())


def ratios_by_level(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, list[float]]:
    """:func:`loss_ratio` per level."""
    parts = {level: [f[f["unique_id"].map(level_of) == level] for f in (ours, theirs)] for level in levels_in(ours)}
    return {level: list(loss_ratio(*pair)) for level, pair in parts.items()}


COLUMNS = {
    "wql": "WQL",
    "sql": "SQL",
    "coverage80": "cover80",
    "peak_error": "peak",
    "ramp_error": "ramp",
    "window_peak_error": "peak*",
    "window_ramp_error": "ramp*",
    "window_peak_wql": "peakWQL",
    "brier_step": "Brier",
    "brier_window": "Brier*",
}


def lines_of(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A table: one row for each level and forecast."""
    lines = [f"{'level':6s}{'forecast':24s}" + "".join(f"{title:>9s}" for title in COLUMNS.values())]
    levels = list(next(iter(scores.values())))
    for level in levels:
        for name, by_level in scores.items():
            row = by_level[level]
            lines.append(f"{level:6s}{name:24s}" + "".join(f"{row[key]:9.4f}" for key in COLUMNS))
        row = next(iter(scores.values()))[level]
        lines.append(f"{level:6s}{'climate (Brier)':24s}{'':72s}{row['climate_step']:9.4f}{row['climate_window']:9.4f}")
    return lines

"""A candidate fitted anew on a small part of its series: does it know the future, and does its seed matter?

The backtest is walked end to end, so that whatever runs in it (validation, features, calibration, the forecaster) is probed as it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig
from models.base import QUANTILE_COLUMNS
from models.metrics import quantile_loss
from telemetry.errors import InputError

KEYS = ["unique_id", "issued_at", "ds"]


@dataclass(frozen=True)
class Probe:
    """What is fitted: ``frame`` (``unique_id, ds, y``) under ``config``, forecaster ``name`` with ``options``."""

    frame: pd.DataFrame
    freq: str
    name: str
    options: Mapping[str, Any]
    config: BacktestConfig

    def forecasts(self, frame: pd.DataFrame | None = None, seed: int | None = None) -> pd.DataFrame:
        """``unique_id, issued_at, ds, q10 ... q90, y, part`` of every origin.

        Raises:
            InputError: the forecaster failed.
        """
        config = self.config if seed is None else BacktestConfig(**{**vars(self.config), "seed": seed})
        scored = run_backtest(self.frame if frame is None else frame, self.freq, {self.name: dict(self.options)}, config).scores[self.name]
        if scored.error is not None:
            raise InputError(f"{self.name} failed: {scored.error}", where="probe of a candidate")
        return scored.forecasts[[*KEYS, *QUANTILE_COLUMNS, "y", "part"]].sort_values(KEYS, ignore_index=True)


def small_part(frame: pd.DataFrame, *, series: int, rows: int) -> pd.DataFrame:
    """The last ``rows`` rows of ``series`` series, spread evenly over their names, varying ones first."""
    by_series = frame.groupby("unique_id")["y"]
    varying = by_series.max() > by_series.min()
    names = sorted(varying.index[varying]) or sorted(varying.index)
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(series, len(names))).round().astype(int))]
    kept = frame[frame["unique_id"].isin(chosen)]
    start = kept["ds"].drop_duplicates().nlargest(rows).min()
    return kept[kept["ds"] >= start].reset_index(drop=True)


def futures(frame: pd.DataFrame, after: pd.Timestamp) -> Iterator[pd.DataFrame]:
    """The frame with ``y`` after a time shuffled, and shuffled and blown up far beyond anything known."""
    late = (frame["ds"] > after).to_numpy()
    for seed, (factor, shift) in enumerate(((1.0, 0.0), (1e4, 1e6))):
        values = frame["y"].to_numpy(dtype=float).copy()
        values[late] = np.random.default_rng(seed).permutation(values[late]) * factor + shift
        yield frame.assign(y=values)


def probe_leaks(probe: Probe, plain: pd.DataFrame) -> dict[str, Any]:
    """Compare, bit by bit, the forecasts of all origins up to a cut with those made when everything after the cut is another future.

    The first cut is the first origin (a fit that reads on is caught there), the second the middle one (an update that does). ``plain`` is
    what ``probe.forecasts()`` gave.

    Returns:
        ``compared, differing`` (forecast rows), ``futures, series, origins``.
    """
    issued = np.sort(plain["issued_at"].unique())
    compared = differing = 0
    shuffled, blown_up = 0, 1
    cuts = ((issued[0], blown_up), (issued[len(issued) // 2], shuffled))
    for cut, kind in cuts:
        other = probe.forecasts(list(futures(probe.frame, cut))[kind])
        joined = plain[plain["issued_at"] <= cut].merge(other, on=KEYS, how="left", suffixes=("", "_other"))
        ours, theirs = joined[[*QUANTILE_COLUMNS]].to_numpy(), joined[[f"{column}_other" for column in QUANTILE_COLUMNS]].to_numpy()
        same = ((ours == theirs) | (np.isnan(ours) & np.isnan(theirs))).all(axis=1)
        compared, differing = compared + len(joined), differing + int((~same).sum())
    return {"compared": compared, "differing": differing, "futures": len(cuts), **_size(probe, issued)}


def seed_losses(probe: Probe, plain: pd.DataFrame, seeds: Sequence[int]) -> dict[str, Any]:
    """Pinball loss on the same windows with the seed of the probe and with ``seeds``.

    Returns:
        ``losses`` (the probe's own first), ``identical`` (whether every forecast is the same for all seeds), ``series, origins``.
    """
    runs = [plain, *(probe.forecasts(seed=seed) for seed in seeds)]
    quantiles = [run[[*QUANTILE_COLUMNS]].to_numpy() for run in runs]
    identical = all(np.array_equal(quantiles[0], other, equal_nan=True) for other in quantiles[1:])
    losses = [float(np.nanmean(quantile_loss(run["y"].to_numpy(), values))) for run, values in zip(runs, quantiles, strict=True)]
    return {"losses": losses, "identical": identical, **_size(probe, plain["issued_at"].unique())}


def _size(probe: Probe, issued: np.ndarray) -> dict[str, int]:
    return {"series": int(probe.frame["unique_id"].nunique()), "origins": len(issued)}

"""How alike two job tables are: rhythm, burstiness, memory, durations and sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from telemetry.errors import InputError

HOUR_S = 3600
MIN_JOBS = 10


@dataclass(frozen=True)
class ArrivalFigures:
    """What one table's arrivals look like.

    Attributes:
        jobs_per_day: over the span from the first to the last submission.
        gap_cv: coefficient of variation of the gaps between submissions; 1 for a Poisson process.
        dispersion_10min, dispersion_1h: variance over mean of the counts in such bins; 1 for a Poisson process.
        autocorrelation_1h, autocorrelation_24h: of the hourly counts at those lags.
        hour_share: float64 ``[24]``, share of the submissions by hour of the day (UTC).
    """

    jobs_per_day: float
    gap_cv: float
    dispersion_10min: float
    dispersion_1h: float
    autocorrelation_1h: float
    autocorrelation_24h: float
    hour_share: np.ndarray


def arrival_figures(jobs: pd.DataFrame) -> ArrivalFigures:
    """Figures of a canonical jobs table.

    Raises:
        InputError: fewer than 10 jobs, or all within two days (no autocorrelation at 24 h).
    """
    second = np.sort(jobs["submit_time"].dt.tz_localize(None).to_numpy().astype("datetime64[ms]").astype(np.int64)) / 1000.0
    if len(second) < MIN_JOBS or second[-1] - second[0] < 48 * HOUR_S:
        raise InputError(f"{len(second)} jobs", where="arrival figures", allowed=f"at least {MIN_JOBS} over at least two days")
    gaps = np.diff(second)
    hourly = _counts(second, HOUR_S)
    return ArrivalFigures(
        jobs_per_day=(len(second) - 1) / (second[-1] - second[0]) * 86_400,
        gap_cv=float(gaps.std() / gaps.mean()),
        dispersion_10min=_dispersion(_counts(second, 600)),
        dispersion_1h=_dispersion(hourly),
        autocorrelation_1h=_autocorrelation(hourly, 1),
        autocorrelation_24h=_autocorrelation(hourly, 24),
        hour_share=np.bincount((second // HOUR_S).astype(np.int64) % 24, minlength=24) / len(second),
    )


def distances(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Distances of two tables, 0 (alike) to 1: Kolmogorov-Smirnov of gaps, durations and total GPUs, total variation of the hours."""
    hours = np.abs(arrival_figures(one).hour_share - arrival_figures(other).hour_share).sum() / 2
    return {
        "gap_ks": _ks(_gaps(one), _gaps(other)),
        "duration_ks": _ks(one["duration_s"].to_numpy(), other["duration_s"].to_numpy()),
        "gpus_ks": _ks((one["gpus"] * one["workers"]).to_numpy(), (other["gpus"] * other["workers"]).to_numpy()),
        "hour_of_day_tv": float(hours),
    }


def _gaps(jobs: pd.DataFrame) -> np.ndarray:
    return jobs["submit_time"].sort_values().diff().dt.total_seconds().dropna().to_numpy()


def _ks(one: np.ndarray, other: np.ndarray) -> float:
    return float(ks_2samp(one, other, method="asymp").statistic)


def _counts(second: np.ndarray, width_s: int) -> np.ndarray:
    """Counts of whole bins, without the first and the last, which the span cuts."""
    bins = (second // width_s).astype(np.int64)
    return np.bincount(bins - bins[0])[1:-1].astype(float)


def _dispersion(counts: np.ndarray) -> float:
    return float(counts.var() / counts.mean())


def _autocorrelation(counts: np.ndarray, lag: int) -> float:
    centred = counts - counts.mean()
    return float((centred[:-lag] * centred[lag:]).sum() / (centred**2).sum())

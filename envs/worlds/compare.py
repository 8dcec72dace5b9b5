"""How alike two job tables are: rhythm, burstiness, memory, users' sessions, durations and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from envs.worlds.arrivals import SESSION_GAP_S, Sessions, split_sessions
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
        weekday_share: float64 ``[7]``, share of the submissions by day of the week (UTC), Monday first, per day that the span holds.
    """

    jobs_per_day: float
    gap_cv: float
    dispersion_10min: float
    dispersion_1h: float
    autocorrelation_1h: float
    autocorrelation_24h: float
    hour_share: np.ndarray
    weekday_share: np.ndarray


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
        weekday_share=_weekday_share(second),
    )


@dataclass(frozen=True)
class SessionFigures:
    """What users' sessions and their jobs look like.

    Attributes:
        users: users with at least one job.
        busiest_user_share: share of the sessions that the busiest one starts.
        sessions_per_day, jobs_per_session, largest_session: see :func:`envs.worlds.arrivals.split_sessions`.
        median_duration_s, p95_duration_s: of the jobs.
        mean_gpus, gpu_hours_per_day: GPUs of a whole gang; GPU-hours at the reference speed.
    """

    users: int
    busiest_user_share: float
    sessions_per_day: float
    jobs_per_session: float
    largest_session: int
    median_duration_s: float
    p95_duration_s: float
    mean_gpus: float
    gpu_hours_per_day: float


def session_figures(jobs: pd.DataFrame, users: tuple[str, ...] = ("team",), session_gap_s: float = SESSION_GAP_S) -> SessionFigures:
    """Figures of a canonical jobs table; ``users`` are columns that together name a user."""
    sessions = split_sessions(jobs, users, session_gap_s)
    days = max((jobs["submit_time"].max() - jobs["submit_time"].min()).total_seconds(), 1.0) / 86_400
    gpus = jobs["gpus"] * jobs["workers"]
    return SessionFigures(
        users=len(np.unique(sessions.user)),
        busiest_user_share=float(np.bincount(sessions.user).max() / len(sessions.user)),
        sessions_per_day=len(sessions.user) / days,
        jobs_per_session=float(sessions.count.mean()),
        largest_session=int(sessions.count.max()),
        median_duration_s=float(jobs["duration_s"].median()),
        p95_duration_s=float(jobs["duration_s"].quantile(0.95)),
        mean_gpus=float(gpus.mean()),
        gpu_hours_per_day=float((gpus * jobs["duration_s"]).sum() / HOUR_S / days),
    )


def comparison(
    parts: Mapping[str, pd.DataFrame], users: tuple[str, ...] = ("team",), session_gap_s: float = SESSION_GAP_S
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figures of each part (columns), and distances of each pair of parts (columns ``one - other``).

    Raises:
        InputError: a part with too few jobs (:func:`arrival_figures`).
    """
    figures = {
        name: {
            key: value
            for key, value in {**asdict(arrival_figures(jobs)), **asdict(session_figures(jobs, users, session_gap_s))}.items()
            if key not in ("hour_share", "weekday_share")
        }
        for name, jobs in parts.items()
    }
    names = list(parts)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    apart = {
        f"{one} - {other}": {
            **distances(parts[one], parts[other]),
            **session_distances(parts[one], parts[other], users, session_gap_s),
        }
        for one, other in pairs
    }
    return pd.DataFrame(figures), pd.DataFrame(apart)


def session_distances(
    one: pd.DataFrame, other: pd.DataFrame, users: tuple[str, ...] = ("team",), session_gap_s: float = SESSION_GAP_S
) -> dict[str, float]:
    """Kolmogorov-Smirnov of the jobs in a session, and total variation of who starts the sessions."""
    first, second = (split_sessions(jobs, users, session_gap_s) for jobs in (one, other))
    shares = [_user_share(sessions, users) for sessions in (first, second)]
    together = pd.concat(shares, axis=1).fillna(0.0)
    return {
        "session_jobs_ks": _ks(first.count, second.count),
        "session_user_tv": float((together.iloc[:, 0] - together.iloc[:, 1]).abs().sum() / 2),
    }


def _user_share(sessions: Sessions, users: tuple[str, ...]) -> pd.Series:
    names = sessions.jobs.iloc[sessions.first][list(users)].astype(str).agg("/".join, axis=1)
    return names.value_counts(normalize=True)


def distances(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Distances of two tables, 0 (alike) to 1: Kolmogorov-Smirnov of gaps, durations and total GPUs, total variation of hours and days."""
    first, second = arrival_figures(one), arrival_figures(other)
    return {
        "gap_ks": _ks(_gaps(one), _gaps(other)),
        "duration_ks": _ks(one["duration_s"].to_numpy(), other["duration_s"].to_numpy()),
        "gpus_ks": _ks((one["gpus"] * one["workers"]).to_numpy(), (other["gpus"] * other["workers"]).to_numpy()),
        "hour_of_day_tv": float(np.abs(first.hour_share - second.hour_share).sum() / 2),
        "day_of_week_tv": float(np.abs(first.weekday_share - second.weekday_share).sum() / 2),
    }


def _weekday_share(second: np.ndarray) -> np.ndarray:
    """Submissions by day of the week, each over the hours of that day that the span holds; 1970 began on a Thursday."""
    hour = (second // HOUR_S).astype(np.int64)
    day_of = (np.arange(hour[0], hour[-1] + 1) // 24 + 3) % 7
    rate = np.bincount((hour // 24 + 3) % 7, minlength=7) / np.maximum(np.bincount(day_of, minlength=7), 1)
    return rate / rate.sum()


def _gaps(jobs: pd.DataFrame) -> np.ndarray:
    return jobs["submit_time"].sort_values().diff().dt.total_seconds().dropna().to_numpy()


def _ks(one: np.ndarray, other: np.ndarray) -> float:
    return float(ks_2samp(one, other, method="asymp").statistic)


def _counts(second: np.ndarray, width_s: int) -> np.ndarray:
    """Counts of whole bins, without the first and the last, which the span cuts."""
    bins = (second // width_s).astype(np.int64)
    return np.bincount(bins - bins[0])[1:-1].astype(float)


def _dispersion(counts: np.ndarray) -> float:
    return float(counts.var() / counts.mean()) if counts.any() else float("nan")


def _autocorrelation(counts: np.ndarray, lag: int) -> float:
    """NaN where every bin holds as much."""
    centred = counts - counts.mean()
    if not centred.any():
        return float("nan")
    return float((centred[:-lag] * centred[lag:]).sum() / (centred**2).sum())

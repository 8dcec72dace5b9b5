"""A model of how jobs arrive: users' sessions, started by a Poisson process whose rate follows the week and drifts at random.

A *session* is what one user submits in one go. Sessions start at a rate for each hour of the week, times exp(X) with X a Gaussian process
(a log-Gaussian Cox process): a week with twice the usual work is more likely than a Poisson process says, and it comes in stretches. A new
month draws session starts, a user for each, and one of that user's own sessions, whole: gaps, shapes, durations and requests of its jobs
stay together as they were. Nothing is drawn that was never submitted; what is new is when, and together with what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from telemetry.errors import InputError

HOUR_S, WEEK_HOURS, DAY_HOURS = 3600, 168, 24
MONTH_DAYS = 30
SESSION_GAP_S, SESSION_LIMIT_S = 600.0, 3600.0
# Part of a user's mean gap that still counts as one session: without it a busy user would have a single session without end.
SESSION_GAP_SHARE = 0.1
# AR(1) coefficients per hour of the drift's parts: 0 = of that hour alone, the others fade over 1.4 h, 4.5 h, a day and four days.
DRIFT_MEMORY: tuple[float, ...] = (0.0, 0.5, 0.8, 0.96, 0.99)
DRIFT_LAGS = 96
# Largest variance of the drift: exp(X) is then at most about 60 times its mean (three standard deviations).
LARGEST_DRIFT = 2.0
MIN_SESSIONS, MIN_HOURS = 20, 48


@dataclass(frozen=True)
class Sessions:
    """N sessions of J jobs.

    Attributes:
        start_s: int64 ``[N]``, seconds since 1970.
        user: int64 ``[N]``.
        first, count: int64 ``[N]``, a session's jobs are rows ``first`` to ``first + count - 1`` of ``jobs``.
        offset_s: int64 ``[J]``, a job's submission after its session's start.
        jobs: canonical rows ordered by session.
        resolution_s: all submissions are whole multiples of this apart.
    """

    start_s: np.ndarray
    user: np.ndarray
    first: np.ndarray
    count: np.ndarray
    offset_s: np.ndarray
    jobs: pd.DataFrame
    resolution_s: int


def split_sessions(
    jobs: pd.DataFrame, users: tuple[str, ...] = ("team",), gap_s: float = SESSION_GAP_S, limit_s: float = SESSION_LIMIT_S
) -> Sessions:
    """Cut each user's submissions into sessions.

    A submission belongs to the session before it when it comes at most ``gap_s`` after the last one (less for busy users: a fifth of their
    mean gap) and at most ``limit_s`` after the session's start.

    Args:
        users: columns that together name a user.
    """
    missing = [name for name in (*users, "submit_time") if name not in jobs.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where="jobs table", allowed="columns that name a user")
    code = jobs.groupby(list(users), dropna=False, sort=True).ngroup().to_numpy()
    second = jobs["submit_time"].dt.floor("s").dt.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64)
    order = np.lexsort((np.arange(len(jobs)), second, code))
    code, second = code[order], second[order]
    begins = np.zeros(len(jobs), dtype=bool)
    resolution_s = int(np.gcd.reduce(np.diff(np.sort(second)))) or 1
    for user in np.unique(code):
        rows = np.flatnonzero(code == user)
        begins[rows] = _begins(second[rows], gap_s, limit_s, resolution_s)
    first = np.flatnonzero(begins)
    count = np.diff(np.append(first, len(jobs)))
    offset = second - np.repeat(second[first], count)
    return Sessions(second[first], code[first], first, count, offset, jobs.iloc[order].reset_index(drop=True), resolution_s)


def _begins(second: np.ndarray, gap_s: float, limit_s: float, resolution_s: int) -> np.ndarray:
    """Which of one user's submissions begin a session; ``second`` rises. Stamps coarser than the gap tell nothing: then all do."""
    mean_gap = (second[-1] - second[0]) / max(len(second) - 1, 1)
    widest = min(gap_s, SESSION_GAP_SHARE * mean_gap)
    begins = np.ones(len(second), dtype=bool)
    if widest < resolution_s:
        return begins
    start = second[0]
    for i in range(1, len(second)):
        begins[i] = second[i] - second[i - 1] > widest or second[i] - start > limit_s
        if begins[i]:
            start = second[i]
    return begins


@dataclass(frozen=True)
class ArrivalModel:
    """See the module.

    Attributes:
        rate: float64 ``[168]``, mean session starts an hour by hour of the week (0 = Monday 00:00 UTC).
        drift_variance: float64 ``[len(DRIFT_MEMORY)]``, variance of each part of X.
        user_share: float64 ``[U]``, share of the sessions that a user starts.
        end: end of the span the model was fitted on.
    """

    rate: np.ndarray
    drift_variance: np.ndarray
    user_share: np.ndarray
    sessions: Sessions
    end: pd.Timestamp

    @classmethod
    def fit(
        cls, jobs: pd.DataFrame, *, users: tuple[str, ...] = ("team",), shrink_weeks: float = 2.0, session_gap_s: float = SESSION_GAP_S
    ) -> ArrivalModel:
        """Fit to canonical jobs.

        Args:
            users: columns that together name a user.
            shrink_weeks: weeks of data that the hour-of-week rates are shrunk by towards day rhythm times weekday level.

        Raises:
            InputError: fewer than 2 days or 20 sessions.
        """
        if jobs.empty:
            raise InputError("no jobs", where="arrival model")
        sessions = split_sessions(jobs, users, session_gap_s)
        hour = sessions.start_s // HOUR_S
        hours = int(hour.max() - hour.min() + 1)
        if hours < MIN_HOURS or len(hour) < MIN_SESSIONS:
            raise InputError(
                f"{hours} hours with {len(hour)} sessions", where="arrival model", allowed=f"at least {MIN_HOURS} and {MIN_SESSIONS}"
            )
        # The span cuts the first and the last hour; the first may also hold what was already there when a recording began.
        counts = np.bincount(hour - hour.min(), minlength=hours)[1:-1].astype(float)
        place = _hour_of_week(np.arange(1, hours - 1) + hour.min())
        rate = week_rates(counts, place, shrink_weeks)
        share = np.bincount(sessions.user) / len(sessions.user)
        return cls(rate, drift_variances(counts, _unseen_rates(counts, place, shrink_weeks)), share, sessions, jobs["submit_time"].max())

    def sample(self, months: float = 1.0, seed: int = 0, start: pd.Timestamp | None = None) -> pd.DataFrame:
        """Canonical jobs of so many months of 30 days from ``start`` (default: the Monday after the fitted span), by submit time.

        Columns are those of the fitted jobs without what belongs to their past (start, end, state, pool); deadlines keep their distance.
        """
        if not (np.isfinite(months) and months > 0):
            raise InputError(f"{months} months", where="arrival model", allowed="a finite number above 0")
        rng = np.random.default_rng(seed)
        begin = self._monday() if start is None else pd.Timestamp(start)
        begin_s = int(begin.timestamp())
        end_s = begin_s + round(months * MONTH_DAYS * DAY_HOURS * HOUR_S)
        # Sessions of the hour before reach into the span.
        hour = np.arange(begin_s // HOUR_S - 1, -(-end_s // HOUR_S))
        drift = sample_drift(self.drift_variance, len(hour), rng)
        number = rng.poisson(self.rate[_hour_of_week(hour)] * np.exp(drift - self.drift_variance.sum() / 2))
        step = self.sessions.resolution_s if HOUR_S % self.sessions.resolution_s == 0 else 1
        starts = np.repeat(hour * HOUR_S, number) + step * rng.integers(0, HOUR_S // step, number.sum())
        rows, second = self._rows(starts, rng)
        inside = (second >= begin_s) & (second < end_s)
        return restamped(self.sessions.jobs, rows[inside], second[inside], "drawn")

    def _rows(self, starts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Job rows and submit seconds of one session drawn for each start."""
        own = [np.flatnonzero(self.sessions.user == user) for user in range(len(self.user_share))]
        users = rng.choice(len(self.user_share), len(starts), p=self.user_share)
        chosen = np.array([own[user][rng.integers(len(own[user]))] for user in users], dtype=np.int64)
        count = self.sessions.count[chosen]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        rows = np.repeat(self.sessions.first[chosen], count) + within
        return rows, np.repeat(starts, count) + self.sessions.offset_s[rows]

    def _monday(self) -> pd.Timestamp:
        day = self.end.floor("D")
        return day + pd.Timedelta(days=7 - day.dayofweek)


def week_rates(counts: np.ndarray, place: np.ndarray, shrink_weeks: float) -> np.ndarray:
    """Mean count by hour of the week, float64 ``[168]``, shrunk towards mean x hour-of-day factor x weekday factor (themselves shrunk).

    Args:
        counts: ``[H]`` per hour.
        place: ``[H]`` hour of the week.
        shrink_weeks: weight of the prior in weeks of data; 0 = raw means (hours never seen then take the prior).
    """
    if not shrink_weeks >= 0:
        raise InputError(f"shrink_weeks {shrink_weeks}", where="arrival model", allowed="0 or more")
    return _shrunk(counts, place, WEEK_HOURS, _plain_rates(counts, place, shrink_weeks), max(shrink_weeks, 1e-9))


def _plain_rates(counts: np.ndarray, place: np.ndarray, shrink_weeks: float) -> np.ndarray:
    """Day rhythm times weekday level, float64 ``[168]``."""
    mean = counts.mean()
    day_rhythm = _shrunk(counts, place % DAY_HOURS, DAY_HOURS, np.full(DAY_HOURS, mean), shrink_weeks)
    weekday = _shrunk(counts, place // DAY_HOURS, 7, np.full(7, mean), shrink_weeks * DAY_HOURS)
    return (weekday[:, None] * day_rhythm[None, :] / mean).ravel()


def _unseen_rates(counts: np.ndarray, place: np.ndarray, shrink_weeks: float) -> np.ndarray:
    """Each hour's mean by day rhythm and weekday level of the other weeks: rates that have seen an hour explain part of its drift away."""
    week = np.arange(len(counts)) // WEEK_HOURS
    expected = np.empty(len(counts))
    for one in np.unique(week):
        rest = week != one
        if not counts[rest].any():
            return _plain_rates(counts, place, shrink_weeks)[place]
        expected[~rest] = _plain_rates(counts[rest], place[rest], shrink_weeks)[place[~rest]]
    return expected


def _shrunk(counts: np.ndarray, bins: np.ndarray, size: int, prior: np.ndarray, weight_h: float) -> np.ndarray:
    hours = np.bincount(bins, minlength=size)
    weight = np.where(hours == 0, max(weight_h, 1e-9), weight_h)
    return (np.bincount(bins, counts, minlength=size) + weight * prior) / (hours + weight)


def drift_variances(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Variance of each part of the drift, from how counts scatter around ``expected`` beyond Poisson, at lags up to four days.

    For a log-Gaussian Cox process cov(N_h, N_h+k) = m_h m_h+k (exp(C(k)) - 1), plus m_h at k = 0; C is fitted by non-negative least squares
    as a sum of ``DRIFT_MEMORY ** k``.
    """
    lags = np.arange(min(DRIFT_LAGS, len(counts) // 4) + 1)
    residual = counts - expected
    excess = np.empty(len(lags))
    for k in lags:
        ahead = len(counts) - k
        noise = expected.sum() if k == 0 else 0.0
        excess[k] = ((residual[:ahead] * residual[k:]).sum() - noise) / (expected[:ahead] * expected[k:]).sum()
    covariance = np.log1p(np.clip(excess, -0.5, None))
    basis = np.array(DRIFT_MEMORY)[None, :] ** lags[:, None]
    variances = nnls(basis, covariance)[0]
    return variances * min(1.0, LARGEST_DRIFT / max(variances.sum(), 1e-12))


def sample_drift(variance: np.ndarray, hours: int, rng: np.random.Generator) -> np.ndarray:
    """X for each hour, float64 ``[hours]``: a sum of stationary AR(1) processes."""
    total = np.zeros(hours)
    for memory, part in zip(DRIFT_MEMORY, variance, strict=True):
        noise = rng.standard_normal(hours) * np.sqrt(part * (1 - memory**2))
        value = rng.standard_normal() * np.sqrt(part)
        for h in range(hours):
            value = memory * value + noise[h]
            total[h] += value
    return total


def _hour_of_week(hour: np.ndarray) -> np.ndarray:
    """Hour of the week of hours since 1970, which began on a Thursday."""
    return (hour + 3 * DAY_HOURS) % WEEK_HOURS


def restamped(jobs: pd.DataFrame, rows: np.ndarray, second: np.ndarray, prefix: str) -> pd.DataFrame:
    """Copies of ``rows`` submitted at ``second`` since 1970, in that order, with ids of their own and without a past."""
    order = np.argsort(second, kind="stable")
    table = jobs.iloc[rows[order]].reset_index(drop=True)
    submit = pd.Series(pd.to_datetime(second[order], unit="s", utc=True)).astype("datetime64[ns, UTC]")
    if "deadline" in table:
        table["deadline"] = submit + (table["deadline"] - table["submit_time"])
    table["submit_time"] = submit
    table["job_id"] = [f"{prefix}-{index:07d}" for index in range(len(table))]
    return table.drop(columns=[name for name in ("start_time", "end_time", "state", "pool") if name in table])

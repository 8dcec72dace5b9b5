"""Features of a job's profile. All are computed from what the profile holds, so that one cut at a time knows nothing later.

Names of jobs, teams and projects are left out on purpose: they tell the class where people name well, and nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from telemetry.job_profiles import JobProfile

SHAPE = ("log_elapsed", "log_requested", "gpus", "workers", "total_gpus", "shared", "log_readings")
LEVEL = ("mean", "std", "q10", "q50", "q90", "low_share", "high_share")
MOTION = ("step", "lag1", "period_strength", "dips", "gaps_per_hour", "longest_gap", "burst", "trend")
MEMORY = ("memory_mean", "memory_max", "memory_growth")
MIXED = ("watts_per_use", "day_wave")
FEATURES: tuple[str, ...] = (
    *SHAPE,
    *(f"{series}_{name}" for series in ("use", "power") for name in (*LEVEL, *MOTION)),
    *MEMORY,
    *MIXED,
)  # fmt: skip
LOW, HIGH = 0.08, 0.9
DAY_S = 86_400.0


def feature_table(profiles: Sequence[JobProfile]) -> np.ndarray:
    """``[N, F]`` in the order of `FEATURES`; NaN where a profile cannot tell."""
    return np.array([features_of(profile) for profile in profiles], dtype=np.float64).reshape(len(profiles), len(FEATURES))


def features_of(profile: JobProfile) -> np.ndarray:
    """Features of one job, ``[F]``."""
    use, power = profile.utilization, profile.power_share
    shape = [
        np.log1p(profile.elapsed_s), np.log1p(profile.requested_s), profile.gpus, profile.workers, profile.gpus * profile.workers,
        float(profile.gpus < 1.0), np.log1p(len(profile.seconds)),
    ]  # fmt: skip
    series = [value for values in (use, power) for value in (*_level(values), *_motion(profile.seconds, values))]
    both = np.isfinite(use) & np.isfinite(power) & (use > LOW)
    ratio = float(np.median(power[both] / use[both])) if both.any() else np.nan
    shown = use if np.isfinite(use).sum() > 2 else power
    return np.array([*shape, *series, *_memory(profile.memory), ratio, _day_wave(profile.seconds, shown)])


def _level(values: np.ndarray) -> list[float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return [np.nan] * len(LEVEL)
    low, middle, high = np.quantile(known, (0.1, 0.5, 0.9))
    return [
        float(known.mean()), float(known.std()), float(low), float(middle), float(high),
        float(np.mean(known < LOW)), float(np.mean(known > HIGH * max(float(known.max()), 0.1))),
    ]  # fmt: skip


def _motion(seconds: np.ndarray, values: np.ndarray) -> list[float]:
    known = np.isfinite(values)
    seconds, values = seconds[known], values[known]
    if len(values) < 4:
        return [np.nan] * len(MOTION)
    mean, spread = float(values.mean()), float(values.std())
    moves = np.abs(np.diff(values))
    step = float(np.median(moves)) / max(mean, 0.02)
    scaled = (values - mean) / spread if spread > 1e-6 else np.zeros(len(values))
    n = len(values)
    correlation = np.array([float(scaled[:-lag] @ scaled[lag:]) / n for lag in range(1, max(n // 2, 2))])
    later = correlation[1:]
    low = values < LOW
    hours = max(float(seconds[-1] - seconds[0]) / 3600.0, 1e-3)
    starts = int(np.sum(low[1:] & ~low[:-1]))
    slope = float(np.polyfit((seconds - seconds[0]) / (hours * 3600.0), values, 1)[0]) if hours > 1e-2 else 0.0
    return [
        step, float(correlation[0]), float(later.max()) if len(later) else np.nan,
        float(np.mean(values < 0.85 * np.median(values))), starts / hours, _longest(low) / n,
        float(np.var(moves) / max(float(moves.mean()), 1e-3)), slope,
    ]  # fmt: skip


def _longest(flags: np.ndarray) -> int:
    """Longest run of True."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int64), [0]]))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return int((ends - begins).max()) if len(begins) else 0


def _memory(values: np.ndarray) -> list[float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return [np.nan] * len(MEMORY)
    third = max(len(known) // 3, 1)
    return [float(known.mean()), float(known.max()), float(known[-third:].mean() - known[:third].mean())]


def _day_wave(seconds: np.ndarray, values: np.ndarray) -> float:
    """Share of the variance that a wave of a day explains; NaN below half a day."""
    known = np.isfinite(values)
    seconds, values = seconds[known], values[known]
    if len(values) < 12 or seconds[-1] - seconds[0] < DAY_S / 2:
        return float("nan")
    if (total := float(np.var(values))) < 1e-9:
        return 0.0
    angle = 2 * np.pi * seconds / DAY_S
    rows = np.column_stack([np.ones(len(values)), np.sin(angle), np.cos(angle)])
    rest = values - rows @ np.linalg.lstsq(rows, values, rcond=None)[0]
    return float(1.0 - np.var(rest) / total)

"""Generated job profiles of the five classes: for training where a site has no stated classes, and as a test with other settings.

What makes a class is written here and nowhere measured: *training* is long, on many GPUs, steady with evaluation dips at an even period;
*fine-tuning* the same but short and on few; *batch inference* is even, with a pause to load at each shard; *real-time inference* follows
the requests of a day and bursts; *interactive* is bursts of use with gaps between. `ProfileSetting` moves every such figure, so that a
test can ask what a classifier is worth elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.job_profiles import JobProfile

DAY_S = 86_400.0


@dataclass(frozen=True)
class ProfileSetting:
    """A site.

    Attributes:
        step_s: seconds between readings.
        duration_scale: factor of all run times.
        use_shift: added to all utilisations.
        noise: standard deviation of a reading's utilisation.
        power_slope: power share at full use of a heavy class.
        power_bend: 1 = power in proportion to use; below, it rises early.
        gap_scale: factor of the pauses of interactive work.
        memory, asked, use_known: share of jobs with memory readings, with a requested run time, with utilisation.
        largest_gang: most workers of a job.
    """

    step_s: float = 60.0
    duration_scale: float = 1.0
    use_shift: float = 0.0
    noise: float = 0.03
    power_slope: float = 0.8
    power_bend: float = 0.9
    gap_scale: float = 1.0
    memory: float = 0.7
    asked: float = 0.7
    use_known: float = 0.8
    largest_gang: int = 8

    def __post_init__(self) -> None:
        if not (self.step_s > 0 and self.duration_scale > 0 and self.power_bend > 0 and self.gap_scale > 0 and self.largest_gang >= 1):
            raise InputError(f"{self}", where="ProfileSetting", allowed="steps, scales and gangs above 0")


SETTINGS: dict[str, ProfileSetting] = {
    "base": ProfileSetting(),
    "coarse": ProfileSetting(step_s=600.0, duration_scale=1.5, noise=0.05, memory=0.0, use_known=0.5),
    "shifted": ProfileSetting(
        step_s=120.0,
        duration_scale=0.6,
        use_shift=-0.08,
        noise=0.05,
        power_slope=0.65,
        power_bend=0.7,
        gap_scale=0.6,
        asked=0.3,
        largest_gang=4,
    ),
}


def drawn_setting(rng: np.random.Generator) -> ProfileSetting:
    """A site at random, so that what is learned on many of them does not hang on one (domain randomisation, Tobin et al. 2017)."""
    return ProfileSetting(
        step_s=float(rng.choice([30.0, 60.0, 120.0, 300.0, 600.0])),
        duration_scale=float(np.exp(rng.normal(0.0, 0.5))),
        use_shift=float(rng.uniform(-0.12, 0.05)),
        noise=float(rng.uniform(0.01, 0.07)),
        power_slope=float(rng.uniform(0.55, 0.95)),
        power_bend=float(rng.uniform(0.6, 1.1)),
        gap_scale=float(np.exp(rng.normal(0.0, 0.5))),
        memory=float(rng.uniform(0.0, 1.0)),
        asked=float(rng.uniform(0.0, 1.0)),
        use_known=float(rng.uniform(0.2, 1.0)),
        largest_gang=int(rng.integers(1, 9)),
    )


# median run time in s, its log spread, mean use (low, high), GPUs with weights, chance of a gang, power of the class relative to heavy ones
CLASSES: dict[str, tuple[float, float, tuple[float, float], tuple[tuple[float, float], ...], float, float]] = {
    "training": (30_000.0, 0.9, (0.72, 0.99), ((1, 0.25), (2, 0.2), (4, 0.25), (8, 0.3)), 0.35, 1.0),
    "fine_tuning": (10_000.0, 0.8, (0.65, 0.97), ((1, 0.5), (2, 0.25), (4, 0.2), (8, 0.05)), 0.05, 1.1),
    "batch_inference": (6_000.0, 0.8, (0.55, 0.95), ((1, 0.7), (2, 0.2), (4, 0.1)), 0.1, 0.75),
    "realtime_inference": (40_000.0, 0.8, (0.2, 0.65), ((0.25, 0.2), (0.5, 0.3), (1, 0.5)), 0.0, 0.55),
    "interactive": (7_000.0, 0.9, (0.1, 0.7), ((0.25, 0.3), (0.5, 0.2), (1, 0.5)), 0.0, 0.5),
}


def generate_profiles(count: int, setting: ProfileSetting, seed: int = 0, groups: int = 8) -> list[JobProfile]:
    """``count`` jobs, classes in equal shares, on ``groups`` nodes whose boards differ by a few percent."""
    rng = np.random.default_rng(seed)
    boards = 1.0 + 0.04 * rng.standard_normal(groups)
    return [
        _profile(rng, number, WORKLOAD_CLASSES[number % len(WORKLOAD_CLASSES)], setting, int(rng.integers(groups)), boards)
        for number in range(count)
    ]


def drawn_profiles(count: int, sites: int = 40, seed: int = 0) -> list[JobProfile]:
    """``count`` jobs of ``sites`` random sites; a site is a group."""
    rng = np.random.default_rng(seed)
    each, profiles = -(-count // sites), []
    for site in range(sites):
        jobs = generate_profiles(each, drawn_setting(rng), int(rng.integers(2**31)), groups=1)
        profiles += [replace(job, job_id=f"{site}-{job.job_id}", group=f"site {site}") for job in jobs]
    return profiles[:count]


def _profile(rng: np.random.Generator, number: int, kind: str, setting: ProfileSetting, group: int, boards: np.ndarray) -> JobProfile:
    median_s, sigma, use_range, shapes, gang, heat = CLASSES[kind]
    elapsed_s = float(np.clip(setting.duration_scale * median_s * np.exp(sigma * rng.standard_normal()), 300.0, 6 * DAY_S))
    weights = np.array([weight for _, weight in shapes])
    gpus = float(shapes[int(rng.choice(len(shapes), p=weights / weights.sum()))][0])
    workers = int(rng.integers(2, setting.largest_gang + 1)) if setting.largest_gang > 1 and rng.random() < gang else 1
    step_s = max(setting.step_s, elapsed_s / 600.0)  # long jobs are told by 600 readings
    seconds = np.arange(step_s, elapsed_s + 1e-9, step_s)
    mean = float(rng.uniform(*use_range)) + setting.use_shift
    use = np.clip(_use(rng, kind, seconds, mean, setting) + setting.noise * rng.standard_normal(len(seconds)), 0.0, 1.0)
    share = setting.power_slope * heat * boards[group] * np.power(use, setting.power_bend) + 0.02 * rng.standard_normal(len(seconds))
    level = float(np.clip(rng.normal(0.75 if kind in ("training", "fine_tuning") else 0.55, 0.15), 0.05, 0.98))
    grows = 0.15 * rng.random() if kind in ("interactive", "realtime_inference") else 0.0
    memory = (
        np.clip(level + grows * seconds / max(elapsed_s, 1.0), 0.0, 1.0) if rng.random() < setting.memory else np.full(len(seconds), np.nan)
    )
    asked = float(elapsed_s * (1.1 + rng.lognormal(-0.3, 0.8))) if rng.random() < setting.asked else np.nan
    power_share = np.clip(share, 0.0, 1.0)
    shown = use if rng.random() < setting.use_known else np.full(len(seconds), np.nan)
    return JobProfile(
        f"job-{number}", f"g/{group}", kind, gpus, float(workers), elapsed_s, asked, seconds, shown, memory, power_share,
        30.0 + 270.0 * power_share,
    )  # fmt: skip


def _use(rng: np.random.Generator, kind: str, seconds: np.ndarray, mean: float, setting: ProfileSetting) -> np.ndarray:
    """Utilisation of each reading, before its noise, ``[T]``."""
    n, step_s = len(seconds), float(seconds[0]) if len(seconds) else 60.0
    if kind in ("training", "fine_tuning"):
        use = np.full(n, mean)
        period = max(int(rng.uniform(900.0, 7200.0) / step_s), 2)
        use[period - 1 :: period] *= rng.uniform(0.4, 0.9)
        return use
    if kind == "batch_inference":
        use = mean * np.exp(0.05 * _slow(rng, n, 0.7))
        return np.where(rng.random(n) < 0.06, use * rng.uniform(0.1, 0.7), use)
    if kind == "realtime_inference":
        day = 0.75 + 0.45 * np.sin(2 * np.pi * (seconds / DAY_S + rng.random()))
        return mean * day * np.exp(0.15 * _slow(rng, n, 0.85))
    busy_s, gap_s = rng.uniform(300.0, 2400.0), setting.gap_scale * rng.uniform(600.0, 4800.0)
    state, use = bool(rng.random() < 0.5), np.zeros(n)
    for i in range(n):
        use[i] = mean * rng.uniform(0.5, 1.4) if state else 0.0
        if rng.random() < 1.0 - np.exp(-step_s / (busy_s if state else gap_s)):
            state = not state
    return use


def _slow(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """Stationary AR(1) of unit variance, ``[count]``."""
    shocks, out, level = rng.standard_normal(count), np.empty(count), float(rng.standard_normal())
    for i in range(count):
        level = rho * level + np.sqrt(1.0 - rho**2) * shocks[i]
        out[i] = level
    return out

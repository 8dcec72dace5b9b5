"""Jobs and service requests of the sample: daily and weekly rhythm, trend, bursts, a holiday, incidents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.power.curves import levels_for
from envs.sample.settings import (
    DAY_S,
    DEADLINE_RUSH,
    HOLIDAYS,
    INTERVAL_S,
    SERVICE_OUTAGE,
    WARMUP_DAYS,
    SampleSettings,
    local_hour,
    local_weekday,
)
from telemetry.classes import CLASS_INDEX

TREND_PER_DAY = 0.0035  # +15 % in six weeks
SERVICES: dict[str, float] = {"chat": 9.0, "embed": 26.0, "vision": 3.5}  # mean requests a second


@dataclass(frozen=True)
class ClassShape:
    """How jobs of a class look. ``shapes``: (GPUs per worker, workers, weight). Durations are lognormal, clipped to the range."""

    share: float
    east: float
    shapes: tuple[tuple[float, int, float], ...]
    median_s: float
    sigma: float
    range_s: tuple[int, int]
    utilization: tuple[float, float]
    day: tuple[float, float, float]  # peak local hour, width in hours, floor relative to the peak
    weekend: float


SHAPES: dict[str, ClassShape] = {
    "training": ClassShape(
        0.12,
        0.26,
        ((1, 1, 0.30), (2, 1, 0.24), (4, 1, 0.26), (2, 2, 0.08), (4, 2, 0.08), (1, 4, 0.04)),
        25_500,
        0.85,
        (900, 72_000),
        (0.72, 0.99),
        (17.0, 4.5, 0.12),
        0.55,
    ),
    "fine_tuning": ClassShape(
        0.17, 0.30, ((1, 1, 0.52), (2, 1, 0.30), (4, 1, 0.18)), 12_600, 0.75, (600, 50_000), (0.65, 0.97), (15.0, 4.0, 0.08), 0.40
    ),
    "batch_inference": ClassShape(
        0.21, 0.40, ((1, 1, 0.72), (2, 1, 0.18), (1, 2, 0.10)), 7_000, 0.80, (180, 36_000), (0.55, 0.95), (3.0, 4.0, 0.30), 0.80
    ),
    "realtime_inference": ClassShape(
        0.22, 0.76, ((0.25, 1, 0.30), (0.5, 1, 0.38), (1, 1, 0.32)), 16_500, 0.55, (1200, 50_400), (0.25, 0.75), (14.0, 4.5, 0.10), 0.60
    ),
    "interactive": ClassShape(
        0.28, 0.28, ((0.25, 1, 0.36), (0.5, 1, 0.34), (1, 1, 0.30)), 5_000, 0.90, (120, 30_000), (0.05, 0.60), (14.5, 3.6, 0.05), 0.22
    ),
}
TEAMS: dict[str, tuple[str, ...]] = {
    "training": ("vision", "language", "research"),
    "fine_tuning": ("language", "vision", "applied"),
    "batch_inference": ("applied", "search", "language"),
    "realtime_inference": ("serving", "search"),
    "interactive": ("research", "vision", "language", "applied"),
}
PRIORITY = {"training": 0, "fine_tuning": 0, "batch_inference": 0, "interactive": 1, "realtime_inference": 2}
JOB_COLUMNS = [
    "kind",
    "submit_s",
    "duration_s",
    "requested_s",
    "gpus",
    "workers",
    "site",
    "team",
    "project",
    "user",
    "gpu_model",
    "max_watts",
    "deadline_s",
    "priority",
    "utilization",
    "outcome",
]


def rhythm(kind: str, second: np.ndarray, site: str, start: pd.Timestamp) -> np.ndarray:
    """Relative arrival intensity of a class at seconds from the start; 1 at the peak of an ordinary working day before the trend."""
    shape = SHAPES[kind]
    peak_h, width_h, floor = shape.day
    distance = (local_hour(second, site) - peak_h + 12) % 24 - 12
    intensity = floor + (1 - floor) * np.exp(-0.5 * (distance / width_h) ** 2)
    intensity = intensity * np.where(local_weekday(second, site) >= 5, shape.weekend, 1.0)
    for holiday in HOLIDAYS:
        day = (np.asarray(second) // DAY_S) == (pd.Timestamp(holiday, tz="UTC") - start) // pd.Timedelta(days=1)
        intensity = np.where(day, intensity * (0.9 * shape.weekend), intensity)
    return intensity * (1 + TREND_PER_DAY * np.asarray(second) / DAY_S)


def make_jobs(settings: SampleSettings, cluster: ClusterSpec) -> pd.DataFrame:
    """All jobs of the warm-up (negative seconds) and the period, by submission.

    Returns:
        Columns ``JOB_COLUMNS``: times in seconds from the start, ``gpus`` per worker, ``duration_s`` on the reference GPU at full power
        (until success, failure or cancellation), ``gpu_model`` and ``deadline_s`` and ``max_watts`` NaN/None when there is none.
    """
    rng = settings.rng("jobs")
    hours = np.arange(-WARMUP_DAYS * 24, settings.days * 24)
    mood = slow_noise(rng, len(hours), rho=0.97, sigma=0.10)  # weeks differ, as crews and deadlines do
    parts: list[dict[str, object]] = []
    for kind, shape in SHAPES.items():
        for site, share in (("west", 1 - shape.east), ("east", shape.east)):
            level = rhythm(kind, hours * 3600 + 1800, site, settings.start_time)
            day = rhythm(kind, np.arange(24) * 3600 + 1800 + DAY_S, site, settings.start_time).mean()
            per_hour = settings.jobs_per_day * shape.share * share / 24 * level / day * np.exp(mood)
            for hour, count in zip(hours, rng.poisson(per_hour), strict=True):
                for second in np.sort(rng.integers(0, 3600, size=count)):
                    parts.append(_job(rng, kind, site, int(hour * 3600 + second)))
    parts.extend(_sweeps(rng, settings))
    table = pd.DataFrame(parts)
    table = table[table["submit_s"] < settings.length_s]
    table = table.sort_values(["submit_s", "kind", "duration_s"], kind="stable").reset_index(drop=True)
    return _with_wishes(rng, table, cluster)


def _job(rng: np.random.Generator, kind: str, site: str, submit_s: int) -> dict[str, object]:
    shape = SHAPES[kind]
    weights = np.array([weight for _, _, weight in shape.shapes])
    gpus, workers, _ = shape.shapes[int(rng.choice(len(weights), p=weights / weights.sum()))]
    duration_s = float(np.clip(shape.median_s * np.exp(shape.sigma * rng.standard_normal()), *shape.range_s))
    team = TEAMS[kind][min(int(rng.exponential(0.9)), len(TEAMS[kind]) - 1)]
    return {
        "kind": kind,
        "submit_s": submit_s,
        "duration_s": int(duration_s),
        "gpus": float(gpus),
        "workers": int(workers),
        "site": site,
        "team": team,
        "project": f"{team}-{int(rng.integers(1, 6))}",
        "user": f"{team[:2]}{int(rng.integers(1, 9)):02d}",
        "utilization": float(rng.uniform(*shape.utilization)),
    }


def _sweeps(rng: np.random.Generator, settings: SampleSettings) -> list[dict[str, object]]:
    """Bursts: hyper-parameter sweeps that arrive at once, more of them in the rush before the deadline."""
    jobs: list[dict[str, object]] = []
    for day in range(-WARMUP_DAYS, settings.days):
        weekday = day % 7 < 5
        for _ in range(rng.poisson(0.45 if weekday else 0.12)):
            jobs.extend(_sweep(rng, day * DAY_S + int(rng.integers(15 * 3600, 25 * 3600)), int(rng.integers(6, 15))))
    rush_start, rush_end = (settings.second_of(time) for time in DEADLINE_RUSH)
    for begin in np.sort(rng.integers(rush_start, rush_end, size=7)):
        jobs.extend(_sweep(rng, int(begin), int(rng.integers(8, 16))))
    return jobs


def _sweep(rng: np.random.Generator, begin_s: int, size: int) -> list[dict[str, object]]:
    kind = "training" if rng.random() < 0.35 else "fine_tuning"
    site = "west" if rng.random() < 0.75 else "east"
    first = _job(rng, kind, site, begin_s)
    first.update(gpus=1.0, workers=1, duration_s=int(np.clip(first["duration_s"], 1200, 9000)))  # type: ignore[call-overload]
    spread = np.sort(rng.integers(0, 1200, size=size))
    return [
        {**first, "submit_s": begin_s + int(offset), "duration_s": int(first["duration_s"] * rng.uniform(0.85, 1.15))}  # type: ignore[operator]
        for offset in spread
    ]


def _with_wishes(rng: np.random.Generator, table: pd.DataFrame, cluster: ClusterSpec) -> pd.DataFrame:
    """Requested run time, deadline, power limit, GPU model, priority and outcome."""
    count = len(table)
    kinds = table["kind"].to_numpy()
    duration_s = table["duration_s"].to_numpy(dtype=float)
    batch = np.isin(kinds, ["training", "fine_tuning", "batch_inference"])
    # Users ask for a multiple of what they need, in round figures (Philly and Helios show the same).
    asked = duration_s * 1.12 * (1 + rng.lognormal(-0.3, 0.8, size=count))
    steps = np.array([1800, 3600, 7200, 10_800, 14_400, 21_600, 28_800, 43_200, 64_800, 86_400, 129_600, 172_800])
    table["requested_s"] = steps[np.minimum(np.searchsorted(steps, asked), len(steps) - 1)]
    slack = rng.uniform(1.6, 4.0, size=count)
    own = batch & (rng.random(count) < 0.28)
    deadline = table["submit_s"] + slack * table["requested_s"] + 3600
    table["deadline_s"] = np.where(own, np.ceil(deadline / 900) * 900, np.nan)
    table["priority"] = [PRIORITY[kind] for kind in kinds]
    table.loc[batch & (rng.random(count) < 0.06), "priority"] = 1
    table["gpu_model"] = None
    wants_model = batch & (rng.random(count) < 0.10) & (table["site"] == "west")
    models = rng.choice(["V100", "A40"], size=count)
    table.loc[wants_model, "gpu_model"] = models[wants_model]
    table["max_watts"] = np.where(batch & (rng.random(count) < 0.03), _watt_limits(rng, table, cluster), np.nan)
    draw = rng.random(count)
    table["outcome"] = np.select([draw < 0.07, draw < 0.13, draw < 0.145], ["failed", "cancelled", "timeout"], "completed")
    # A job that hits its limit asked for less than it needed.
    late = (table["outcome"] == "timeout") & (duration_s >= steps[0])
    below = steps[np.maximum(np.searchsorted(steps, duration_s, side="right") - 1, 0)]
    table["requested_s"] = np.where(late, below, table["requested_s"])
    table.loc[(table["outcome"] == "timeout") & ~late, "outcome"] = "completed"
    early = np.where(np.isin(table["outcome"], ["failed", "cancelled"]), rng.uniform(0.05, 1.0, size=count), 1.0)
    table["duration_s"] = np.maximum((duration_s * early).astype(int), 45)
    return table[JOB_COLUMNS]


def _watt_limits(rng: np.random.Generator, table: pd.DataFrame, cluster: ClusterSpec) -> np.ndarray:
    """Watt limits that some level of the V100 and the A40 can meet, seldom the full one."""
    middle = {model: levels_for(model, cluster.level_fractions)[1] for model in {pool.gpu_model for pool in cluster.pools}}
    k = table["kind"].map(CLASS_INDEX).to_numpy()
    least = np.max([power_w[-1, k] for power_w in middle.values()], axis=0)
    most = np.max([power_w[0, k] for power_w in middle.values()], axis=0)
    total = (table["gpus"] * table["workers"]).to_numpy()
    return np.ceil(total * (least + (most - least) * rng.uniform(0.15, 1.05, size=len(table))) / 10) * 10


def slow_noise(rng: np.random.Generator, count: int, rho: float, sigma: float) -> np.ndarray:
    """Stationary AR(1), standard deviation ``sigma``, float64 ``[count]``."""
    shocks = rng.standard_normal(count) * sigma
    out = np.empty(count)
    level = shocks[0]
    for i in range(count):
        level = rho * level + np.sqrt(1 - rho**2) * shocks[i] if i else level
        out[i] = level
    return out


def request_rates(settings: SampleSettings) -> dict[str, np.ndarray]:
    """Mean requests a second of every service in each interval, float64 ``[T]``."""
    rng = settings.rng("requests")
    middle = np.arange(settings.bins) * INTERVAL_S + INTERVAL_S / 2
    outage = (middle >= settings.second_of(SERVICE_OUTAGE[0])) & (middle < settings.second_of(SERVICE_OUTAGE[1]))
    after = middle - settings.second_of(SERVICE_OUTAGE[1])
    rebound = np.where(after >= 0, 0.45 * np.exp(-np.maximum(after, 0) / 5400), 0.0)
    rates: dict[str, np.ndarray] = {}
    for service, mean in SERVICES.items():
        level = rhythm("realtime_inference", middle, "east", settings.start_time)
        if service == "embed":  # an indexing service with a second, nightly peak
            level = 0.6 * level + 0.5 * np.exp(-0.5 * (((local_hour(middle, "east") - 2.0 + 12) % 24 - 12) / 1.6) ** 2)
        noise = slow_noise(rng, settings.bins, rho=0.93, sigma=0.16) + 0.05 * rng.standard_normal(settings.bins)
        spikes = np.zeros(settings.bins)
        for begin in np.flatnonzero(rng.random(settings.bins) < 1 / (144 * 3)):
            reach = int(rng.integers(3, 12))
            spikes[begin : begin + reach] += rng.uniform(0.4, 1.5) * np.exp(-np.arange(reach) / 4)[: settings.bins - begin]
        rate = mean * level / 0.6 * np.exp(noise) * (1 + spikes) * (1 + rebound)
        rates[service] = np.where(outage, rate * 0.02, rate)
    return rates

"""Series with a planted change, and forecasts that were right before it: what adaptive intervals are measured and tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from models.base import QUANTILES

HORIZON, SEASON = 18, 144
STEPS = np.arange(1, HORIZON + 1)
WALK_DRIFTS = ("none", "variance x3", "variance / 3", "growing variance", "regimes", "heavy tails", "skew")
MEAN_DRIFTS = ("none", "level shift", "season shift", "season growth", "variance x3")
CASES = (*(("walk", drift) for drift in WALK_DRIFTS), *(("season", drift) for drift in MEAN_DRIFTS))


@dataclass(frozen=True)
class DriftWorld:
    """``actual [T, S, H]``, ``quantiles [T, S, H, Q]`` of forecasts issued at every time step, ``scale [S]``; a change at ``start``."""

    actual: np.ndarray
    quantiles: np.ndarray
    scale: np.ndarray
    start: int


def drift_world(kind: str, drift: str, n_series: int, *, length: int = 1300, start: int = 400, seed: int = 0) -> DriftWorld:
    """Forecasts that know the process as it is before ``start``.

    Args:
        kind: ``walk`` (random walk; forecast is the last value with its exact spread) or ``season`` (autoregression around a daily wave;
            forecast is its exact conditional distribution).
        drift: see ``CASES``.
    """
    rng = np.random.default_rng(seed)
    total = length + HORIZON
    time = np.arange(total)[:, None]
    scale = np.exp(rng.normal(size=n_series))
    noise = _noise(drift, rng, time, (total, n_series), start, length)
    ahead = np.arange(length)[:, None] + STEPS  # [T, H]
    if kind == "walk":
        y = np.cumsum(noise, axis=0)
        centre = np.repeat(y[:length, None], HORIZON, axis=1)  # [T, H, S]
        spread = np.sqrt(STEPS)
    else:
        y = np.zeros_like(noise)
        for step in range(1, total):
            y[step] = 0.9 * y[step - 1] + noise[step]
        before, after = _means(drift, time)
        mean = before[:, 0]
        y = y + np.where(time >= start, after, before)
        centre = mean[ahead][..., None] + (y[:length] - mean[:length, None])[:, None] * (0.9**STEPS)[:, None]
        spread = np.sqrt((1.0 - 0.81**STEPS) / (1.0 - 0.81))
    quantiles = centre.transpose(0, 2, 1)[..., None] + spread[:, None] * norm.ppf(QUANTILES)
    return DriftWorld(y[ahead].transpose(0, 2, 1) * scale[:, None], quantiles * scale[:, None, None], scale, start)


def _noise(drift: str, rng: np.random.Generator, time: np.ndarray, shape: tuple[int, int], start: int, length: int) -> np.ndarray:
    noise, later = rng.normal(size=shape), time >= start
    other: dict[str, Callable[[], np.ndarray]] = {
        "variance x3": lambda: 3.0 * noise,
        "variance / 3": lambda: noise / 3.0,
        "growing variance": lambda: noise * np.exp(np.log(4.0) * (time - start) / (length - start)),
        "regimes": lambda: noise * np.where((time - start) // 200 % 2 == 0, 3.0, 1.0),
        "heavy tails": lambda: rng.standard_t(2.2, size=shape),
        "skew": lambda: 1.5 * (rng.exponential(size=shape) - 1.0),
    }
    return np.where(later, other[drift](), noise) if drift in other else noise


def _means(drift: str, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wave = 6.0 * np.sin(2.0 * np.pi * time / SEASON)
    other = {
        "level shift": wave + 5.0,
        "season shift": 6.0 * np.sin(2.0 * np.pi * time / SEASON + np.pi / 3.0),
        "season growth": 1.7 * wave,
    }
    return wave, other.get(drift, wave)

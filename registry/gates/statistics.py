"""Intervals of paired comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its ``level`` interval over ``n`` paired windows."""

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95


def skill_interval(
    losses: np.ndarray, baseline_losses: np.ndarray, *, block: int = 4, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Skill 1 - sum(losses) / sum(baseline) over the same windows ``[N]`` with a circular block-bootstrap interval.

    Neighbouring windows share weather, so blocks of ``block`` windows are drawn (Politis and Romano 1992).

    Raises:
        ValueError: different lengths, fewer than two windows, or a baseline without loss.
    """
    model, naive = np.asarray(losses, dtype=float), np.asarray(baseline_losses, dtype=float)
    if model.shape != naive.shape or model.ndim != 1 or len(model) < 2:
        raise ValueError(f"losses {model.shape} and baseline {naive.shape}: two vectors of one length, at least 2, are needed")
    if not (np.isfinite(model).all() and np.isfinite(naive).all() and naive.sum() > 0):
        raise ValueError("losses must be finite and the baseline's sum positive")
    n, width = len(model), max(1, min(block, len(model) // 2))
    starts = np.random.default_rng(seed).integers(0, n, size=(samples, math.ceil(n / width)))  # [S, blocks]
    rows = ((starts[..., None] + np.arange(width)) % n).reshape(samples, -1)[:, :n]  # [S, N]
    base = naive[rows].sum(1)
    skills = 1.0 - model[rows].sum(1)[base > 0] / base[base > 0]
    tail = (1 - level) / 2
    low, high = np.quantile(skills, [tail, 1 - tail])
    return Interval(float(1 - model.sum() / naive.sum()), float(low), float(high), n, level)

"""Bounds of a mean that hold at every moment at once, so that one may look after every observation and stop at will."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from telemetry.errors import InputError

LARGEST_BET = 0.5


@dataclass(frozen=True)
class Bounds:
    """After each of n observations: estimate, lower and upper bound, float64 ``[n]`` each."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bounds_of(values: np.ndarray, alpha: float, *, largest: float = 1.0) -> Bounds:
    """Confidence sequence of the mean of values in [0, ``largest``].

    Empirical Bernstein with predictable plug-in weights (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
    betting", JRSS B 2024, theorem 2; after Howard et al., "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
    Statistics 2021).
    Each side fails at any time with probability ``alpha`` / 2 at most. Where expectations change, what is bounded is their weighted average
    so far, the expectation of each observation given all before it.

    Raises:
        InputError: a value outside [0, ``largest``], or an ``alpha`` outside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64) / largest
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha}", where="confidence sequence", allowed="above 0, below 1")
    if x.size and not ((x >= 0) & (x <= 1)).all():
        wrong = int(np.flatnonzero(~((x >= 0) & (x <= 1)))[0])
        raise InputError(f"value {x[wrong] * largest:g}", where=f"confidence sequence, observation {wrong}", allowed=f"0 to {largest:g}")
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    before = np.concatenate([[0.5], mean[:-1]])
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    known = np.concatenate([[0.25], variance[:-1]])
    bet = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (known * t * np.log1p(t))), LARGEST_BET)
    spent = np.cumsum(4 * (x - before) ** 2 * (-np.log1p(-bet) - bet) / 4)
    total = np.cumsum(bet)
    centre, radius = np.cumsum(bet * x) / total, (math.log(2 / alpha) + spent) / total
    return Bounds(largest * centre, largest * np.maximum(centre - radius, 0.0), largest * np.minimum(centre + radius, 1.0))


@dataclass(frozen=True)
class Excess:
    """By how much one arm's mean exceeds another's, after each of n observations, float64 ``[n]``; infinite while an arm has none."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def excess_of(values: np.ndarray, watched: np.ndarray, alpha: float, *, largest: float = 1.0) -> Excess:
    """Bounds of the mean of the ``watched`` (bool ``[n]``) less that of the others, over observations in the order in which they came.

    The lower bound holds at every moment at once with probability 1 - ``alpha``, and so does the upper one.
    """
    values, watched = np.asarray(values, dtype=np.float64), np.asarray(watched, dtype=np.bool_)
    sides = []
    for arm in (watched, ~watched):
        found = bounds_of(values[arm], alpha, largest=largest)
        at = np.cumsum(arm) - 1
        sides.append(
            [np.where(at >= 0, part[np.maximum(at, 0)] if len(part) else 0.0, np.nan) for part in (found.mean, found.low, found.high)]
        )
    (mean, low, high), (other, other_low, other_high) = sides
    lowest, highest = low - other_high, high - other_low
    return Excess(mean - other, np.where(np.isnan(lowest), -np.inf, lowest), np.where(np.isnan(highest), np.inf, highest))

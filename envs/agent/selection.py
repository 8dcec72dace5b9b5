"""Which weights are kept, and whether they are better than the judge that they started from.

Weights are chosen on one half of the validation windows and confirmed on the other: the best of many candidates on any windows is partly
the luckiest there (the winner's curse). The halves are consecutive in time, as windows that overlap share their luck.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEAST_FOR_HALVES = 4
SAMPLES = 2000
ACCEPT: tuple[str, ...] = ("mean", "interval")


@dataclass(frozen=True)
class Verdict:
    """Paired comparison of the chosen weights with the starting judge.

    Attributes:
        improved: the agent is accepted; else the judge stays.
        gain, low, high: share of the judge's objective that the agent saves, with a 95 % bootstrap interval over windows (NaN below two).
        windows: number of windows that it rests on.
        held_back: whether these windows took no part in choosing the weights.
    """

    improved: bool
    gain: float
    low: float
    high: float
    windows: int
    held_back: bool

    def described(self) -> dict[str, Any]:
        """As plain values; numbers that are not finite are None."""
        return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in asdict(self).items()}


def halves(windows: int) -> tuple[slice, slice]:
    """Windows to choose on and to confirm on; with fewer than four all serve for both."""
    if windows < LEAST_FOR_HALVES:
        return slice(0, windows), slice(0, windows)
    return slice(0, windows - windows // 2), slice(windows - windows // 2, windows)


def paired_gain(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Relative saving of ``ours`` against ``theirs`` (objectives ``[W]`` of the same windows, lower is better) with its 95 % interval."""
    reference = float(theirs.mean())
    gain = (reference - float(ours.mean())) / abs(reference) if reference else 0.0
    if len(ours) < 2:
        return gain, float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(ours), (SAMPLES, len(ours)))
    means = theirs[draws].mean(axis=1)
    gains = (means - ours[draws].mean(axis=1)) / np.where(means == 0, np.inf, np.abs(means))
    low, high = np.percentile(gains, [2.5, 97.5])
    return gain, float(low), float(high)


def verdict(ours: np.ndarray, judge: np.ndarray, accept: str = "mean") -> Verdict:
    """Judge the chosen weights by the windows that are held back for it.

    Args:
        ours, judge: objectives ``[W]`` of all validation windows.
        accept: ``mean``, the mean gain is above 0; ``interval``, its whole interval is (where there is none: the mean).
    """
    _, confirming = halves(len(ours))
    gain, low, high = paired_gain(ours[confirming], judge[confirming])
    improved = gain > 0 if accept == "mean" or np.isnan(low) else low > 0
    return Verdict(bool(improved), gain, low, high, len(ours[confirming]), len(ours) >= LEAST_FOR_HALVES)

"""A signal as detectors want it: without its rhythm of the day, without memory from one block to the next, in deviations of its reference.

The reference is the first blocks of a version. From them: a mean for every block of the day, shrunk to the mean of all; the correlation
of neighbours; the deviation of what remains. A detector for independent values then sees x[b] - phi x[b-1], whose mean moves by (1 - phi)
of a shift: in deviations this is the shift over the *long-run* deviation, which is what autocorrelated evidence is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHRINK_DAYS = 3.0  # days of a reference that a block of the day's own mean is worth half of
MOST_PHI = 0.9
CLIP = 4.0  # deviations: one wild block is no drift


@dataclass(frozen=True)
class Reference:
    """``means [P]`` by block of the day, ``phi``, and ``deviation`` of the innovations."""

    means: tuple[float, ...]
    phi: float
    deviation: float

    @classmethod
    def of(cls, values: np.ndarray, phases: np.ndarray, per_day: int, least_deviation: float = 1e-3) -> Reference:
        """From ``values [R]`` with their block of the day ``phases [R]`` in ``0 .. per_day - 1``; NaN are left out."""
        known = np.isfinite(values)
        x, p = values[known], phases[known]
        centre = float(np.median(x))
        counts = np.bincount(p, minlength=per_day).astype(np.float64)
        sums = np.bincount(p, weights=np.clip(x - centre, *_fence(x - centre)), minlength=per_day)
        means = centre + sums / (counts + SHRINK_DAYS)
        rest = x - means[p]
        means += rest.mean()
        rest = np.clip(rest - rest.mean(), *_fence(rest))
        power = float((rest**2).sum())
        phi = float((rest[1:] * rest[:-1]).sum() / power) if power > 0 else 0.0
        # Small samples estimate the correlation too low: (1 + 4 phi) / n, Kendall (1954).
        phi = min(max(phi + (1.0 + 4.0 * phi) / max(len(x), 1), 0.0), MOST_PHI)
        innovations = rest[1:] - phi * rest[:-1]
        return cls(tuple(means.tolist()), phi, max(float(innovations.std()) if len(innovations) else 0.0, least_deviation))

    def scores(self, values: np.ndarray, phases: np.ndarray) -> np.ndarray:
        """Innovations in deviations ``[n]``, within ``CLIP``; a block without a value scores 0."""
        rest = values - np.array(self.means)[phases]
        before = np.concatenate([[0.0], rest[:-1]])
        scores = (rest - self.phi * np.where(np.isfinite(before), before, 0.0)) / self.deviation
        return np.clip(np.where(np.isfinite(scores), scores, 0.0), -CLIP, CLIP)


def _fence(rest: np.ndarray) -> tuple[float, float]:
    """Where outliers of a reference are cut: four robust deviations, never nothing."""
    spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    limit = CLIP * max(spread, 0.25 * float(rest.std()), 1e-9)
    return -limit, limit

"""What a power limit leaves of the watts that work asks for.

A board under a limit draws its demand where that is far below the limit, the limit where demand is far above, and less than both between,
because demand varies within the seconds that are averaged and the limit cuts its peaks. The p-norm minimum has these ends::

    P = (demand^-p + (headroom x limit)^-p)^(-1/p)

It rises with both, is below both, and has an inverse. On the power-limit sweeps of Zeus (NSDI'23; V100, A40, P100, six networks) boards
agree on both figures; ``python -m benchmarks.power_curves`` prints them, and what they are worth on a board that was left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import least_squares

PRIOR_ROWS = 20.0
ROBUST_SCALE = 0.05
LEAST, MOST = (0.6, 1.5), (1.0, 40.0)  # headroom, sharpness


@dataclass(frozen=True)
class CapCurve:
    """Watts under a limit. The defaults are fitted on all three boards of the Zeus sweeps.

    Attributes:
        headroom: share of the limit that is drawn when demand is far above it.
        sharpness: p; infinity would be the minimum of demand and limit.
    """

    headroom: float = 0.98
    sharpness: float = 5.4

    def watts(self, demand_w: np.ndarray | float, limit_w: np.ndarray | float) -> np.ndarray:
        """Watts drawn, elementwise; a limit of NaN or infinity is none."""
        demand = np.asarray(demand_w, dtype=np.float64)
        limit = np.asarray(limit_w, dtype=np.float64)
        limit = np.where(np.isfinite(limit), limit, np.inf)
        with np.errstate(divide="ignore"):
            ratio = np.where(demand > 0, demand / (self.headroom * limit), 0.0)
        return demand * (1.0 + ratio**self.sharpness) ** (-1.0 / self.sharpness)

    def demand(self, watts: np.ndarray | float, limit_w: np.ndarray | float) -> np.ndarray:
        """Inverse of `watts`; infinity where the limit alone explains them."""
        drawn = np.asarray(watts, dtype=np.float64)
        ratio = np.minimum(drawn / (self.headroom * np.asarray(limit_w, dtype=np.float64)), 1.0)
        with np.errstate(divide="ignore"):
            return drawn * (1.0 - ratio**self.sharpness) ** (-1.0 / self.sharpness)

    @classmethod
    def fit(cls, demand_w: np.ndarray, limit_w: np.ndarray, watts: np.ndarray, prior: Self | None = None) -> Self:
        """Robust least squares of the logarithm (``[N]`` each), pulled to ``prior`` as by ``PRIOR_ROWS`` rows."""
        known = prior if prior is not None else cls()

        def rest(figures: np.ndarray) -> np.ndarray:
            return np.log(cls(float(figures[0]), float(figures[1])).watts(demand_w, limit_w) / watts)

        pull = np.sqrt(PRIOR_ROWS) if prior is not None else 0.0
        start = np.array([known.headroom, known.sharpness])

        def loss(figures: np.ndarray) -> np.ndarray:
            # A unit of log sharpness moves watts near the limit by about a tenth.
            return np.append(rest(figures), pull * np.array([figures[0] - start[0], 0.1 * np.log(figures[1] / start[1])]))

        found = least_squares(loss, start, bounds=(LEAST, MOST), loss="soft_l1", f_scale=ROBUST_SCALE, x_scale=(0.1, 3.0))
        return cls(float(found.x[0]), float(found.x[1]))

"""How watts rise with utilisation: never falling, learned over GPU models and shrunk to what they share.

A shape is a mixture of saturating ramps ``min(u / k, 1)`` and of late ones ``max(u - k, 0) / (1 - k)`` with weights >= 0 and sum 1, so
that s(0) = 0, s(1) = 1 and s never falls. Saturating ramps alone give every concave piecewise linear shape with these knots, which is what
one kind of work gives (Fan, Weber and Barroso 2007); late ramps are for a mix of kinds, where the light ones use little. Watts are linear
in ``(idle, active x w)``, so the fit is non-negative least squares (Lawson and Hanson 1974) on Gram matrices, made robust by reweighting
(Huber 1964) by relative errors; a prior joins as rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

EARLY = np.array([0.1, 0.25, 0.5, 0.75, 1.0])
LATE = np.array([0.25, 0.5, 0.75])
LINEAR = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
HUBER = 1.5
ROUNDS = 6
TINY = 1e-9
LEAST_LEVEL = 0.05  # of the scale: errors below it are absolute


def ramps(utilization: np.ndarray) -> np.ndarray:
    """Both kinds of ramps, ``[N, K]``; utilisation is clipped to 0 .. 1."""
    u = np.clip(np.asarray(utilization, dtype=np.float64), 0.0, 1.0)[..., None]
    return np.concatenate([np.minimum(u / EARLY, 1.0), np.maximum(u - LATE, 0.0) / (1.0 - LATE)], axis=-1)


@dataclass(frozen=True)
class Shape:
    """Share of active watts at a utilisation; ``weights`` of the ramps, ``[K]``, sum 1."""

    weights: tuple[float, ...] = LINEAR

    def __call__(self, utilization: np.ndarray | float) -> np.ndarray:
        return ramps(np.asarray(utilization)) @ np.asarray(self.weights)


@dataclass(frozen=True)
class Prior:
    """What is believed before the data.

    Attributes:
        idle_w: idle watts, believed as ``idle_rows`` readings.
        active_w: watts above idle at full use, believed as ``active_rows`` readings.
        shape: believed with the weight ``shape_rows``. Shapes differ by a small share of watts, so that a small weight outdoes some tens
            of readings.
    """

    idle_w: float
    active_w: float
    shape: Shape = Shape()
    idle_rows: float = 2.0
    active_rows: float = 1.0
    shape_rows: float = 0.1

    def gram(self, scale_w: float) -> tuple[np.ndarray, np.ndarray]:
        """Gram matrix ``[1 + K, 1 + K]`` and right side ``[1 + K]`` of the prior's rows, watts over ``scale_w``."""
        K = len(LINEAR)
        w = np.asarray(self.shape.weights)
        unlike = np.sqrt(self.shape_rows) * (np.eye(K) - w[:, None])  # b_k - w_k sum(b): 0 where the shape is the prior's
        rows = np.zeros((K + 2, K + 1))
        rows[:K, 1:] = unlike
        rows[K, 0] = np.sqrt(self.idle_rows)
        rows[K + 1, 1:] = np.sqrt(self.active_rows)
        sides = np.zeros(K + 2)
        sides[K] = np.sqrt(self.idle_rows) * self.idle_w / scale_w
        sides[K + 1] = np.sqrt(self.active_rows) * self.active_w / scale_w
        return rows.T @ rows, rows.T @ sides


def solve(gram: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Non-negative ``x`` that minimises ``x'Gx - 2 side'x``, ``[1 + K]``."""
    ridge = TINY * max(float(np.trace(gram)), 1.0) * np.eye(len(side))
    factor = np.linalg.cholesky(gram + ridge)
    return nnls(factor.T, np.linalg.solve(factor, side))[0]


def robust_weights(rest: np.ndarray) -> np.ndarray:
    """Huber weights of residuals ``[N]``, their scale from the median absolute deviation."""
    scale = max(1.4826 * float(np.median(np.abs(rest))), TINY)
    return np.minimum(1.0, HUBER * scale / np.maximum(np.abs(rest), TINY))


def fit_free(rows: np.ndarray, watts: np.ndarray, scale_w: float) -> np.ndarray:
    """As `fit_rows` for any non-negative design ``[N, C]`` and without a prior; coefficients over ``scale_w``, ``[C]``."""
    nothing = np.zeros((rows.shape[1], rows.shape[1]))
    return _reweighted(rows, watts / scale_w, nothing, nothing[0])[0]


def fit_rows(rows: np.ndarray, watts: np.ndarray, prior: Prior, scale_w: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (idle and ramps, over ``scale_w``) ``[1 + K]`` and the rows' final weights ``[N]``: Huber's, of *relative* residuals.

    Args:
        rows: design matrix ``[N, 1 + K]``: ones, and ramps (times the class's gain).
        watts: ``[N]``.
    """
    return _reweighted(rows, watts / scale_w, *prior.gram(scale_w))


def _reweighted(rows: np.ndarray, y: np.ndarray, gram0: np.ndarray, side0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = np.ones(len(y))
    found = solve(gram0, side0)
    for _ in range(ROUNDS):
        weighted = rows * weight[:, None]
        found = solve(gram0 + rows.T @ weighted, side0 + weighted.T @ y)
        if len(y):
            level = np.maximum(rows @ found, LEAST_LEVEL)
            weight = robust_weights((y - rows @ found) / level) / level**2
            weight /= weight.mean()
    return found, weight


def design(utilization: np.ndarray, gain: np.ndarray | float = 1.0) -> np.ndarray:
    """Rows for `fit_rows`: ``[N, 1 + K]``."""
    ramped = ramps(utilization) * np.broadcast_to(np.asarray(gain, dtype=np.float64), np.shape(utilization))[:, None]
    return np.column_stack([np.ones(len(ramped)), ramped])


def shape_of(coefficients: np.ndarray) -> Shape:
    """The shape of fitted ramps ``[1 + K]``; linear when nothing rises."""
    active = coefficients[1:]
    total = active.sum()
    return Shape(tuple(float(w) for w in active / total)) if total > TINY else Shape()


def pooled_shape(shapes: list[Shape], rows: list[int], prior_rows: float = 200.0) -> Shape:
    """Mean of shapes weighted by the square root of their rows, so that no model outvotes all; linear as ``prior_rows`` rows."""
    weight = np.sqrt(np.array([prior_rows, *rows], dtype=np.float64))
    mean = weight @ np.array([LINEAR, *(shape.weights for shape in shapes)]) / weight.sum()
    return Shape(tuple(float(w) for w in mean))

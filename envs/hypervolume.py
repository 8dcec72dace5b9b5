"""Fronts of points that are better the smaller, and the volume that they dominate.

The hypervolume (Zitzler and Thiele 1999) is the measure of what lies between the points and a reference point that is worse than all of
them: one number for how far and how wide a front reaches. Exact in two dimensions by a sweep, in three by slices of two.
"""

from __future__ import annotations

import numpy as np

from telemetry.errors import InputError


def undominated(points: np.ndarray) -> np.ndarray:
    """Which points no other beats: bool ``[N]`` for ``[N, D]``. Of equal points the first counts."""
    values = np.asarray(points, dtype=np.float64)
    no_worse = (values[None, :, :] <= values[:, None, :]).all(axis=2)  # [N, N], column j against row i
    better = (values[None, :, :] < values[:, None, :]).any(axis=2)
    earlier = np.tri(len(values), k=-1, dtype=np.bool_)
    return ~(no_worse & (better | earlier)).any(axis=1)


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume between ``points`` ``[N, D]`` and ``reference`` ``[D]``, D = 2 or 3; points beyond the reference add nothing.

    Raises:
        InputError: another number of dimensions, or values that are not finite.
    """
    values, corner = np.asarray(points, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if values.ndim != 2 or corner.shape != (values.shape[1],) or values.shape[1] not in (2, 3):
        raise InputError(
            f"points {values.shape}, reference {corner.shape}", where="hypervolume", allowed="[N, 2] and [2], or [N, 3] and [3]"
        )
    if not (np.isfinite(values).all() and np.isfinite(corner).all()):
        raise InputError("a value that is not finite", where="hypervolume", allowed="finite points and reference")
    inside = values[(values < corner).all(axis=1)]
    return _area(inside, corner) if len(corner) == 2 else _volume(inside, corner)


def _area(points: np.ndarray, corner: np.ndarray) -> float:
    """Sweep from the left: over each stretch of the first axis the lowest second value so far counts."""
    order = points[np.argsort(points[:, 0], kind="stable")]
    widths = np.diff(np.append(order[:, 0], corner[0]))
    return float(np.sum(widths * (corner[1] - np.minimum.accumulate(order[:, 1])))) if len(order) else 0.0


def _volume(points: np.ndarray, corner: np.ndarray) -> float:
    """Slices along the third axis: between two values of it, the area of all points below counts."""
    order = points[np.argsort(points[:, 2], kind="stable")]
    depths = np.diff(np.append(order[:, 2], corner[2]))
    return float(sum(depth * _area(order[: k + 1, :2], corner[:2]) for k, depth in enumerate(depths) if depth > 0))

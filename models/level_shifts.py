"""Level shifts, found online: each is told as soon as the rows that show it are there, and no later row takes it back.

A moving-sum monitor (MOSUM; Chu, Hornik and Kaul 1995) with medians for means, so that a spike is no shift: the median of the newest
``w`` rows against that of the ``w`` rows before, in units of the root mean square of the same difference over all earlier rows. What a
series does every day is in that unit, so that a daily rhythm or steps of a usual size are no shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

THRESHOLD = 5.0  # 14 of 400 Gaussian random walks of four weeks at 10 minutes pass it once, none of 100 noisy daily rhythms
RELATIVE_FLOOR = 0.01  # a unit below this share of the level is rounding: a shift is at least THRESHOLD times it
LEAST_WINDOW, MOST_WINDOW = 5, 37
WARM_UP_WINDOWS = 6


@dataclass(frozen=True)
class LevelShift:
    """One shift; rows count from the first of the series.

    Attributes:
        row: first row at the new level.
        detected: row at which it was known.
        before, after: medians of the window on either side when it was detected.
        score: the change in units of what the series did before; infinite after a constant.
    """

    row: int
    detected: int
    before: float
    after: float
    score: float

    @property
    def size(self) -> float:
        """Change of the level, in the unit of y."""
        return self.after - self.before


def shift_window(season_length: int) -> int:
    """Rows of one window: a twelfth of a season, odd, within ``LEAST_WINDOW`` and ``MOST_WINDOW``."""
    return int(np.clip(season_length // 12, LEAST_WINDOW, MOST_WINDOW)) | 1


def level_shifts(values: np.ndarray, season_length: int) -> list[LevelShift]:
    """Shifts of one series, oldest first.

    Args:
        values: ``[T]``; NaN gaps are left out, so that the rows on either side of a gap are neighbours.
        season_length: steps in a season. Nothing is told of the first season, nor of the first ``WARM_UP_WINDOWS`` windows: there is no
            usual change yet to compare with.
    """
    rows = np.flatnonzero(np.isfinite(values))
    known = values[rows]
    w = shift_window(season_length)
    begin = max(WARM_UP_WINDOWS * w, min(season_length, len(known) // 2) + w)
    if len(known) <= begin or np.ptp(known) == 0:
        return []
    medians = median_filter(known, size=w, mode="nearest")[w // 2 : len(known) - w // 2]  # of rows k .. k + w - 1, [T - w + 1]
    change = medians[w:] - medians[:-w]  # known at row k + 2 w - 1, [T - 2 w + 1]
    usual = np.sqrt(np.cumsum(change**2) / np.arange(1, len(change) + 1))
    unit = np.maximum(usual[:-w], RELATIVE_FLOOR * np.abs(medians[w:-w]))  # nothing of either window but the older one's beginning
    at = np.arange(2 * w - 1 + w, len(known))  # row at which change[w:] is known
    new = (np.abs(change[w:]) > THRESHOLD * unit) & (change[w:] != 0) & (at >= begin)
    found: list[LevelShift] = []
    free = 0
    for k in np.flatnonzero(new):
        if at[k] < free:
            continue
        t, size = int(at[k]), float(change[w + k])
        inside = known[t - w + 1 : t + 1] - known[t - w : t]
        row = t - w + 1 + int(np.argmax(np.sign(size) * inside))
        score = float(abs(size) / unit[k]) if unit[k] > 0 else float("inf")
        found.append(LevelShift(int(rows[row]), int(rows[t]), float(medians[w + k]), float(medians[2 * w + k]), score))
        free = t + 2 * w  # the window has left the shift by then
    return found

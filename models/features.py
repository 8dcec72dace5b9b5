"""Features of the global learners: what is known at an issue time, relative to the last value and in units of the series' own scale.

A row is a pair (issue row t, horizon step h). Everything in it is read at or before t: lags and rolling statistics end at t, and a value
"one season before the target" is read at t + h - k m with k m >= h.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.member import filled
from models.series import NS_PER_DAY, Panel

LAGS = (2, 3, 4, 7, 13, 25, 49)  # lag k of the row after t is y[t + 1 - k]
MEAN_WINDOWS = (3, 6, 18, 36)
SPREAD_WINDOWS = (6, 36)
SEASONS_BACK = (1, 2, 7)


def series_scale(values: np.ndarray, horizon: int) -> float:
    """Typical absolute change of ``values`` ``[T]`` over one, half and all steps of the horizon; 0 for a constant series."""
    steps = sorted({1, max(1, horizon // 2), horizon})
    changes = [np.abs(values[h:] - values[:-h]).mean() for h in steps if len(values) > h]
    return float(np.mean(changes)) if changes else 0.0


@dataclass(frozen=True)
class IssueTable:
    """Per grid row of every series, one under the other (``R`` rows): values and the statistics known there."""

    values: np.ndarray  # [R], gaps forward-filled
    position: np.ndarray  # [R], row number within its series
    length: np.ndarray  # [R], rows of its series
    series: np.ndarray  # [R], series number
    scale: np.ndarray  # [R]
    times_ns: np.ndarray  # [R]
    statistics: np.ndarray  # [R, F], relative to the value and the scale

    @property
    def last_rows(self) -> np.ndarray:
        """Row of the last value of each series ``[N]``."""
        return np.flatnonzero(self.position == self.length - 1)


def issue_table(panel: Panel, scales: np.ndarray, season_length: int) -> IssueTable:
    """Statistics at every row of ``panel``; the lag and rolling ones by mlforecast.

    Args:
        panel: series.
        scales: ``[N]`` unit of each series; 0 is read as 1.
        season_length: steps in a season; also the longest rolling window.
    """
    dense = filled(panel)
    lengths = np.array([len(values) for values in dense])
    series = np.repeat(np.arange(len(panel)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    scale = np.where(scales > 0, scales, 1.0)[series]
    values = np.concatenate(dense)
    rolling = _rolling(dense, lengths, season_length)  # [R, F]
    relative, spread = rolling[:, : -len(SPREAD_WINDOWS)], rolling[:, -len(SPREAD_WINDOWS) :]
    statistics = np.column_stack(
        [
            (relative - values[:, None]) / scale[:, None],
            spread / scale[:, None],
            values / scale,
            np.log1p(np.concatenate([_rows_since_change(v) for v in dense])),
        ]
    )
    times_ns = np.concatenate([panel.times_ns(i) for i in range(len(panel))])
    return IssueTable(values, position, lengths[series], series, scale, times_ns, statistics)


def _rolling(dense: list[np.ndarray], lengths: np.ndarray, season_length: int) -> np.ndarray:
    """Lags, rolling means, minima and maxima, then rolling deviations, each ending at the row itself: ``[R, F]``."""
    from mlforecast import MLForecast
    from mlforecast.lag_transforms import RollingMax, RollingMean, RollingMin, RollingStd

    windows = sorted({*MEAN_WINDOWS, season_length} - {1})
    transforms = [RollingMean(w, min_samples=1) for w in windows]
    transforms += [kind(w, min_samples=1) for w in (18, season_length) if w > 1 for kind in (RollingMin, RollingMax)]
    transforms += [RollingStd(w, min_samples=2) for w in SPREAD_WINDOWS]
    engine = MLForecast(models=[], freq=1, lags=list(LAGS), lag_transforms={1: transforms})
    # mlforecast's lag 1 of the row after t is the row t: one more row per series makes the last row an issue time as well
    padded = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(len(dense)), lengths + 1),
            "ds": np.concatenate([np.arange(n + 1) for n in lengths]),
            "y": np.concatenate([np.r_[v, v[-1]] for v in dense]),
        }
    )
    table = engine.preprocess(padded, static_features=[], dropna=False)
    columns = [c for c in table.columns if c not in ("unique_id", "ds", "y")]
    return table.loc[table["ds"].to_numpy() > 0, columns].to_numpy(dtype=np.float64)


def _rows_since_change(values: np.ndarray) -> np.ndarray:
    rows = np.arange(len(values))
    changed = np.r_[True, values[1:] != values[:-1]]
    return rows - np.maximum.accumulate(np.where(changed, rows, 0))


def seasonal_features(table: IssueTable, rows: np.ndarray, steps: np.ndarray, season_length: int) -> np.ndarray:
    """Values and changes at the target's place in earlier seasons, ``[n, 2 S + 1]``; NaN before the series began.

    Args:
        table: of the series.
        rows: ``[n]`` issue rows of the table.
        steps: ``[n]`` horizon steps, from 1.
        season_length: m.
    """
    least = -(-steps // season_length)  # seasons back that make the target's counterpart known
    levels, changes = [], []
    for k in SEASONS_BACK:
        back = np.maximum(k, least) * season_length
        known = table.position[rows] >= back
        then = np.where(known, rows - back, rows)
        unit = np.where(known, table.scale[rows], np.nan)
        ahead = table.values[then + np.where(known, steps, 0)]
        levels.append((ahead - table.values[rows]) / unit)
        changes.append((ahead - table.values[then]) / unit)
    stacked = np.column_stack(changes)
    known = np.isfinite(stacked)
    mean = np.where(known, stacked, 0.0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    return np.column_stack([*levels, stacked, mean])


def calendar_features(times_ns: np.ndarray) -> np.ndarray:
    """Time of day and day of week on circles, ``[n, 4]``."""
    day = 2 * np.pi * (times_ns % NS_PER_DAY) / NS_PER_DAY
    week = 2 * np.pi * ((times_ns // NS_PER_DAY) % 7) / 7
    return np.column_stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)])


def design_matrix(table: IssueTable, rows: np.ndarray, steps: np.ndarray, *, season_length: int, step_ns: int) -> np.ndarray:
    """All features of pairs (issue row, step), ``[n, F]``."""
    return np.column_stack(
        [
            table.statistics[rows],
            steps,
            calendar_features(table.times_ns[rows] + steps * step_ns),
            seasonal_features(table, rows, steps, season_length),
        ]
    )

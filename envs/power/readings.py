"""Paired readings of one GPU model made ready for a fit: idle and context told apart, the lag found, limits turned back into demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.power.caps import CapCurve
from envs.power.shape import Prior, design, fit_rows
from telemetry.errors import InputError

COLUMNS = ("time", "device", "power_w", "utilization", "limit_w", "kind", "held")
IDLE_U = 0.005
LAGS = range(-3, 4)
LEAST_LAG_ROWS = 30
LAG_GAIN = 0.95
UNCAPPED_SHARE = 0.97  # limits from this share of the board's own count as none
LIKELY_ACTIVE_SHARE = 0.75  # of limit - idle, at full use: between what MLPerf's and Zeus' heavy runs draw
BLOCKS = 40


@dataclass(frozen=True)
class Board:
    """What a data sheet says: the board's power limit and idle watts."""

    gpu_model: str
    limit_w: float
    idle_w: float

    def __post_init__(self) -> None:
        if not (0 <= self.idle_w < self.limit_w < 1e5):
            raise InputError(
                f"limit {self.limit_w} W, idle {self.idle_w} W", where=f"board '{self.gpu_model}'", allowed="0 <= idle < limit, watts"
            )


@dataclass(frozen=True)
class Rows:
    """Rows that tell the demand: GPUs in use, without a limit or with one turned back into demand. All ``[N]``; ``block`` of time."""

    utilization: np.ndarray
    watts: np.ndarray
    kind: np.ndarray
    block: np.ndarray

    def where(self, keep: np.ndarray) -> Rows:
        return Rows(self.utilization[keep], self.watts[keep], self.kind[keep], self.block[keep])


def capped(limit_w: np.ndarray, board: Board) -> np.ndarray:
    """Whether a limit is set below the board's own, bool ``[N]``."""
    return np.isfinite(limit_w) & (limit_w < UNCAPPED_SHARE * board.limit_w)


def rows_in_use(table: pd.DataFrame, board: Board, cap: CapCurve) -> Rows:
    """The rows of GPUs in use. Where limits are the rule, rows well below theirs stand in, as the demand that they came from."""
    limits, watts = table["limit_w"].to_numpy(dtype=np.float64), table["power_w"].to_numpy(dtype=np.float64)
    low, used = capped(limits, board), table["utilization"].to_numpy() > IDLE_U
    keep = used & ~low
    if keep.sum() < 0.2 * used.sum():
        limit = np.where(low, limits, np.inf)
        keep = used & (watts < 0.8 * limit)
        watts = np.where(low, cap.demand(watts, limit), watts)
    rows = Rows(table["utilization"].to_numpy(dtype=np.float64), watts, table["kind"].to_numpy(dtype=object), blocks_of(table["time"]))
    return rows.where(keep)


def split_idle(watts: np.ndarray, held: np.ndarray | None = None) -> tuple[float, float, float]:
    """Idle watts, context watts above them, and the share of readings with a context, from readings without use ``[N]``.

    Two groups are told apart where ``held`` says which GPUs were allocated and both are there, else at the best cut (Otsu 1979) with at
    least 5 % on each side. They count as two when their middles lie five times the spread within them apart, and a tenth of idle.
    """
    values = np.sort(np.asarray(watts, dtype=np.float64))
    if len(values) < 10:
        return (float(np.median(values)) if len(values) else np.nan), 0.0, 0.0
    if held is not None and 0.05 <= np.mean(held) <= 0.95:
        low, high = np.asarray(watts)[~held], np.asarray(watts)[held]
    else:
        total, count = np.cumsum(values), np.arange(1, len(values) + 1)
        left, right = total / count, (total[-1] - total) / np.maximum(len(values) - count, 1)
        between = count * (len(values) - count) * (left - right) ** 2
        edge = max(int(0.05 * len(values)), 1)
        cut = edge + int(np.argmax(between[edge - 1 : len(values) - edge]))
        low, high = values[:cut], values[cut:]
    middle, upper = float(np.median(low)), float(np.median(high))
    within = max(1.4826 * float(np.median(np.abs(group - np.median(group)))) for group in (low, high))
    if upper - middle > max(5.0 * within, 0.1 * middle, 1.0):
        return middle, upper - middle, len(high) / len(values)
    return float(np.median(values)), 0.0, 0.0


def best_lag(table: pd.DataFrame, board: Board) -> int:
    """Readings by which watts follow utilisation, of ``LAGS``: what leaves least, if that is a twentieth less than no lag leaves."""
    left: dict[int, float] = {}
    prior = Prior(board.idle_w, LIKELY_ACTIVE_SHARE * (board.limit_w - board.idle_w))
    for lag in LAGS:
        moved = lagged(table, lag)
        if len(moved) < LEAST_LAG_ROWS:
            return 0
        rows, watts = design(moved["utilization"].to_numpy()), moved["power_w"].to_numpy()
        found, _ = fit_rows(rows, watts, prior, board.limit_w)
        left[lag] = float(np.mean(np.abs(watts / board.limit_w - rows @ found)))
    best = min(left, key=lambda lag: (left[lag], abs(lag)))
    return best if left[best] < LAG_GAIN * left[0] else 0


def lagged(table: pd.DataFrame, lag: int) -> pd.DataFrame:
    """The table with the utilisation of ``lag`` readings before; rows without one are left out."""
    if lag == 0:
        return table
    moved = table.assign(utilization=table.groupby("device", sort=False)["utilization"].shift(lag))
    return moved[moved["utilization"].notna()].reset_index(drop=True)


def blocks_of(time: pd.Series) -> np.ndarray:
    """Block of time of each row, ``[N]``: the span in ``BLOCKS`` equal parts, the same for all devices."""
    seconds = (time - time.min()).dt.total_seconds().to_numpy()
    return np.minimum((seconds / max(float(seconds.max()), 1.0) * BLOCKS).astype(np.int64), BLOCKS - 1)


def minutes_of(table: pd.DataFrame) -> float:
    """Device minutes that the rows stand for: rows times the median step of a device (one row of a device: a minute)."""
    return len(table) * step_minutes(table)


def step_minutes(table: pd.DataFrame) -> float:
    """Median minutes between readings of a device; 1 where no device has two."""
    steps = table.groupby("device", sort=False)["time"].diff().dt.total_seconds()
    return float(steps[steps > 0].median()) / 60.0 if (steps > 0).any() else 1.0

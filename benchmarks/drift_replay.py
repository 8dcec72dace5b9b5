"""Real series with a planted drift, and a champion's forecasts of them: what ``benchmarks/drift.py`` watches.

Each series is copied once for every drift, all copies alike until its start; one champion is fitted to what is before, and forecasts all
copies at the begin of every block, knowing what it would have known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS
from models.catalog import make_forecaster
from models.drift.blocks import Training, score_blocks

FREQ, HORIZON, SEASON = "10min", 18, 144
STEP_NS = 600 * 10**9
BLOCK_NS = STEP_NS * HORIZON
PER_DAY = SEASON // HORIZON
NONE = "none"


def _level(y: np.ndarray, after: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(after, y + size * np.nanstd(y[~after]), y)


def _tenant(y: np.ndarray, after: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Another team: on by day, ``size`` means of the series high, in bursts of an hour."""
    time = np.arange(len(y))
    by_day = (time % SEASON >= SEASON // 3) & (time % SEASON < 5 * SEASON // 6)
    bursts = np.repeat(rng.exponential(size=len(y) // 6 + 1), 6)[: len(y)]
    return np.where(after, y + size * np.nanmean(np.abs(y[~after])) * by_day * bursts, y)


def _season(y: np.ndarray, after: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """From the start on, what was there ``size`` hours before."""
    return np.where(after, np.roll(y, round(6 * size)), y)


def _hardware(y: np.ndarray, after: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(after, y * (1.0 + size), y)


def _sensor(y: np.ndarray, after: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """The meter reads more every hour, ``size`` of the value after a week."""
    return y * (1.0 + size * np.cumsum(after) / (7 * SEASON))


PLANTS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...], str]] = {
    "level shift": (_level, (0.5, 1.0, 2.0), "deviations"),
    "new tenant": (_tenant, (0.25, 0.5, 1.0), "of the mean"),
    "season": (_season, (3.0, 6.0, 12.0), "h"),
    "new hardware": (_hardware, (0.1, 0.25, 0.5), "of the watts"),
    "sensor bias": (_sensor, (0.05, 0.1, 0.25), "a week"),
}
LOAD_PLANTS, POWER_PLANTS = ("level shift", "new tenant", "season"), ("new hardware", "sensor bias")


@dataclass(frozen=True)
class Watched:
    """One copy of a series: its blocks of signals since the champion serves, and the block at which its drift starts."""

    data: str
    series: str
    plant: str
    size: float
    start: int
    blocks: pd.DataFrame


def aligned(frame: pd.DataFrame, days: int) -> pd.DataFrame:
    """The last whole ``days`` of each series on one grid ``[T, N]``, moved by whole days so that all end together; gaps carry forward."""
    columns = {}
    for uid, own in frame.groupby("unique_id", sort=True):
        values = own.set_index("ds")["y"].astype(np.float64)
        values = values.reindex(pd.date_range(values.index[0], values.index[-1], freq=FREQ)).ffill()
        values = values[values.index <= values.index[-1].normalize()][-days * SEASON :]
        if len(values) == days * SEASON and values.std() > 0:
            columns[str(uid)] = values.to_numpy()
    return pd.DataFrame(columns, index=pd.date_range("2026-01-05", periods=days * SEASON, freq=FREQ))


def replay(
    data: str, wide: pd.DataFrame, load: pd.DataFrame | None, train_days: int, start_days: int, champion: str, seed: int
) -> list[Watched]:
    """All copies of all series of a data set, forecast and scored.

    Args:
        wide: ``[T, N]`` on a 10-minute grid.
        load: ``[T, N]`` what the power model says that ``wide`` draws; None for a load, which gets other drifts.
        train_days: before the champion serves.
        start_days: days of service before a drift starts; every other series half a day later, for another time of day.
    """
    plants = [(NONE, 0.0)] + [(name, size) for name in (LOAD_PLANTS if load is None else POWER_PLANTS) for size in PLANTS[name][1]]
    copies: dict[str, tuple[str, str, float, int]] = {}
    values: dict[str, np.ndarray] = {}
    for number, series in enumerate(wide):
        y, start = wide[series].to_numpy(), (train_days + start_days) * SEASON + (number % 2) * SEASON // 2
        for plant, size in plants:
            rng, uid = np.random.default_rng([seed, number]), f"{series}|{plant}|{size:g}"
            values[uid] = y if plant == NONE else PLANTS[plant][0](y, np.arange(len(y)) >= start, size, rng)
            copies[uid] = (series, plant, size, start)
    grid = pd.DataFrame(values, index=wide.index)
    forecasts = _forecasts(grid, train_days * SEASON, champion, seed)
    long = _long(grid)
    out = []
    by_copy, seen = dict(tuple(forecasts.groupby("unique_id"))), dict(tuple(long.groupby("unique_id")))
    for uid, (series, plant, size, start) in copies.items():
        training = Training.of(grid[uid].to_numpy()[: train_days * SEASON], HORIZON)
        blocks = score_blocks(by_copy[uid], seen[uid], {uid: training}, STEP_NS)
        if load is not None:
            blocks["power"] = _residual(grid[uid], load[series], blocks.index)
        out.append(Watched(data, series, plant, size, int(wide.index[start].value // BLOCK_NS), blocks))
    return out


def _residual(measured: pd.Series, drawn: pd.Series, blocks: pd.Index) -> np.ndarray:
    """ln of measured over modelled watts by block; a block is (begin, end]."""
    number = (measured.index.as_unit("ns").asi8 - 1) // BLOCK_NS
    sums = pd.DataFrame({"measured": measured.to_numpy(), "drawn": drawn.to_numpy()}).groupby(number).sum().reindex(blocks)
    return np.log(sums["measured"] / sums["drawn"]).to_numpy()


def _long(grid: pd.DataFrame) -> pd.DataFrame:
    ids = np.repeat(grid.columns.to_numpy(dtype=object), len(grid))
    return pd.DataFrame({"unique_id": ids, "ds": np.tile(grid.index.to_numpy(), grid.shape[1]), "y": grid.to_numpy().T.ravel()})


def _forecasts(grid: pd.DataFrame, trained: int, champion: str, seed: int) -> pd.DataFrame:
    """Forecasts of all copies at the begin of every block after ``trained`` rows, with their ``block``."""
    options = {"n_estimators": 40, "max_train_rows": 20_000, "threads": 1} if champion == "lightgbm" else {}
    forecaster = make_forecaster(champion, freq=FREQ, horizon=HORIZON, season_length=SEASON, seed=seed, **options).fit(
        _long(grid[:trained])
    )
    issues = [k for k in range(trained, len(grid) - HORIZON) if grid.index[k].value % BLOCK_NS == 0]
    parts, known = [], trained
    for k in issues:
        forecaster.update(_long(grid[known : k + 1]))
        known = k + 1
        panel = forecaster._known_history()  # uncorrected: what adaptive intervals do would hide a part of the drift from the benchmark
        raw = forecaster._forecast_frame(panel, forecaster._clip(panel, forecaster.uncorrected(panel, HORIZON)))
        parts.append(raw[["unique_id", "issued_at", "ds", *QUANTILE_COLUMNS]])
    table = pd.concat(parts, ignore_index=True)
    table["block"] = table["issued_at"].to_numpy().astype("datetime64[ns]").astype(np.int64) // BLOCK_NS
    return table

"""Forecasters fitted once per session on a given frame, and the kinds of dirt that series come with."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from series_makers import QUICK, daily, series_frame

from models.base import QUANTILE_COLUMNS, Forecaster
from models.catalog import FORECASTERS, make_forecaster

HORIZON = 6
SEASON = 144
ROWS = 720
START = pd.Timestamp("2025-03-03")
STEP = pd.Timedelta("10min")
Q = list(QUANTILE_COLUMNS)


def make(name: str, **options: object) -> Forecaster:
    """Forecaster ``name``, small and quick."""
    return make_forecaster(name, **{"freq": "10min", "horizon": HORIZON, **QUICK.get(name, {}), **options})


@functools.cache
def fitted_folder(name: str, frame_maker) -> Path:
    """Folder of forecaster ``name`` fitted on ``frame_maker()``; made once for all tests of a process."""
    folder = Path(tempfile.mkdtemp(prefix="dirty")) / name
    make(name).fit(frame_maker()).save(folder)
    return folder


def fitted(name: str, frame_maker) -> Forecaster:
    """A forecaster of one's own, fitted on ``frame_maker()``."""
    return FORECASTERS[name].load(fitted_folder(name, frame_maker))


def bursts(rows: int, seed: int, share: float = 0.35) -> np.ndarray:
    """A tenant with independent requests in ``share`` of the rows, nothing in the others."""
    rng = np.random.default_rng(seed)
    whole = max(rows, 4 * ROWS)  # drawn whole and cut, so that a longer tenant begins like a shorter one
    return np.where(rng.random(whole) < share, rng.gamma(4.0, 2.5, size=whole), 0.0)[:rows]


def dirty_values(rows: int = ROWS) -> dict[str, np.ndarray]:
    """One series of every kind, the last row always known."""
    rng = np.random.default_rng(0)
    holes = daily(rows, 1)
    holes[200:488] = np.nan  # two days
    thin = daily(rows, 2)
    thin[np.flatnonzero(rng.random(rows - 1) < 0.4)] = np.nan
    spiky = daily(rows, 3)
    spiky[[360, 361, 550]] += (4e4, 5e4, 3e4)  # at hours far from that of the last row
    stuck = daily(rows, 4)
    stuck[-60:] = stuck[-60]
    shifted = daily(rows, 5)
    shifted[rows // 2 :] += 300.0
    return {
        "bursts": bursts(rows, 6),
        "counter": np.cumsum(rng.integers(0, 9, size=rows)).astype(float),
        "holes": holes,
        "huge": 1e12 * daily(rows, 7),
        "idle": np.zeros(rows),
        "negative": daily(rows, 8) - 500.0,
        "one": np.array([5.0]),
        "shifted": shifted,
        "spiky": spiky,
        "steady": daily(rows, 7),
        "stuck": stuck,
        "thin": thin,
        "thousand": 1e3 * daily(rows, 7),
        "tiny": 1e-9 * daily(rows, 7),
        "two": np.array([5.0, 6.0]),
    }


def dirty_frame() -> pd.DataFrame:
    """All of ``dirty_values``, each ending at the same time."""
    parts = [series_frame({uid: y}, start=str(START + (ROWS - len(y)) * STEP)) for uid, y in dirty_values().items()]
    return pd.concat(parts, ignore_index=True).dropna(ignore_index=True)


def later_frame(values: dict[str, np.ndarray], first_row: int) -> pd.DataFrame:
    """Long frame of arrays that begin ``first_row`` steps after ``START``."""
    return series_frame(values, start=str(START + first_row * STEP))

"""The forecasting contract.

Series are long frames: ``unique_id`` (str), ``ds`` (tz-naive UTC ``datetime64[ns]``, regular at ``freq``), ``y`` (float) and optional
covariates. Forecast frames hold ``unique_id, issued_at, ds, q10 ... q90, model``; nothing in a row depends on data after ``issued_at``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

QUANTILES: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
QUANTILE_COLUMNS: tuple[str, ...] = tuple(f"q{round(100 * q)}" for q in QUANTILES)


class Forecaster(ABC):
    """One forecaster of many series.

    Life: ``fit`` once on history, then any number of ``update`` (appends observed rows, cheap, no refit) and ``predict``.
    Every implementation is deterministic for a given ``seed`` and accepts series of unequal length, constant series and gaps
    (rows missing on the regular grid).
    """

    name: ClassVar[str]
    per_series: ClassVar[bool] = False  # whether each series is forecast from its own history alone, so that parts can be forecast apart

    def __init__(self, *, freq: str, horizon: int, season_length: int, seed: int = 0) -> None:
        self.freq = freq
        self.horizon = horizon
        self.season_length = season_length
        self.seed = seed

    @abstractmethod
    def fit(self, series: pd.DataFrame) -> Forecaster:
        """Learn from ``series`` (``unique_id, ds, y``), which becomes the history that ``predict`` continues."""

    @abstractmethod
    def update(self, series: pd.DataFrame) -> Forecaster:
        """Append rows observed after the last known ``ds`` of each series; parameters stay as they are."""

    @abstractmethod
    def predict(self, horizon: int | None = None, covariates: pd.DataFrame | None = None) -> pd.DataFrame:
        """Forecast the next ``horizon`` steps of every series.

        Returns:
            ``unique_id, issued_at, ds, q10 ... q90, model``, ``horizon`` rows a series, quantiles non-decreasing along a row.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write parameters and history tail under ``folder`` in non-executable formats (JSON, safetensors, LightGBM text, Parquet)."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Forecaster:
        """Read what ``save`` wrote; the loaded forecaster predicts exactly what the saved one did."""


def monotone(quantiles: np.ndarray) -> np.ndarray:
    """Sort along the last axis, so that quantiles ``[..., Q]`` never cross (Chernozhukov et al. 2010, rearrangement)."""
    return np.sort(quantiles, axis=-1)

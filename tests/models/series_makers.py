"""Small series and quick options, so that the contract runs over every forecaster in seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd

QUICK = {
    "arima": {"max_rows": 288},
    "prophet": {"max_rows": 432, "workers": 1},
    "lightgbm": {"n_estimators": 12, "max_train_rows": 3000, "min_data_in_leaf": 20, "threads": 1},
    "lstm": {"epochs": 2, "max_windows": 600, "hidden": 12, "window": 12},
}
QUICK["ensemble"] = {"member_options": {name: QUICK[name] for name in ("lightgbm", "lstm")}}


def series_frame(values: dict[str, np.ndarray], freq: str = "10min", start: str = "2025-03-03") -> pd.DataFrame:
    """Long frame of arrays, all starting at ``start``."""
    parts = [
        pd.DataFrame({"unique_id": uid, "ds": pd.date_range(start, periods=len(y), freq=freq), "y": np.asarray(y, dtype=float)})
        for uid, y in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def daily(rows: int, seed: int, season: int = 144, level: float = 40.0) -> np.ndarray:
    """A noisy daily rhythm, never negative."""
    rng = np.random.default_rng(seed)
    noise = np.cumsum(rng.normal(scale=0.4, size=rows))
    noise -= np.linspace(0, noise[-1], rows)
    return np.maximum(level + 12 * np.sin(2 * np.pi * np.arange(rows) / season) + noise + rng.normal(scale=0.5, size=rows), 0.0)

"""Seconds of a window as the UTC clock times that the figures show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd


class Clock:
    """Second 0 and what follows from it."""

    def __init__(self, window_start: pd.Timestamp) -> None:
        naive = window_start.tz_convert("UTC").tz_localize(None) if window_start.tzinfo else window_start
        self._zero = np.datetime64(naive.to_datetime64(), "s")
        self.start = str(self._zero)

    def at(self, seconds: Iterable[Any]) -> np.ndarray:
        """ISO times ``[R]`` without a zone, as text: plotly.js would show numbers in the reader's own zone."""
        return np.datetime_as_string(self._zero + np.asarray(list(seconds), dtype=np.int64).astype("timedelta64[s]"), unit="s")

"""Frames that nobody prepared: each ends in scores of every forecaster, or in one clear error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from series_makers import daily, series_frame

from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig
from telemetry.errors import InputError

MEMBERS = {
    "persistence": {},
    "seasonal_naive": {},
    "empirical_persistence": {"condition": "none", "max_rows": 200},
    "arima": {"max_rows": 60, "max_fits": 1, "orders": [[0, 1, 1]]},
    "lightgbm": {"n_estimators": 4, "max_train_rows": 1000, "min_data_in_leaf": 20, "threads": 1},
}
CONFIG = BacktestConfig(horizon=6, origins=3, calibration_origins=1)


def base() -> pd.DataFrame:
    return series_frame({"a": daily(330, 1), "b": daily(330, 2, level=400.0)})


def with_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(y=frame["y"].where(np.random.default_rng(0).random(len(frame)) > 0.3))


FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    "one series": lambda: series_frame({"a": daily(330, 1)}),
    "short": lambda: series_frame({"a": daily(8, 1)}),
    "long beside short": lambda: series_frame({"a": daily(330, 1), "b": daily(8, 2), "c": daily(1, 3)}),
    "constant": lambda: series_frame({"a": np.full(330, 3.0)}),
    "all zero": lambda: series_frame({"a": np.zeros(330), "b": np.zeros(330)}),
    "zero, then not": lambda: series_frame({"a": np.r_[np.zeros(300), daily(30, 1)]}),
    "scales": lambda: series_frame({f"s{k}": 10.0**k * daily(330, abs(k)) for k in (-12, 0, 12)}),
    "negative": lambda: base().assign(y=-base()["y"]),
    "numbered": lambda: base().assign(unique_id=base()["unique_id"].map({"a": 1, "b": 2})),
    "objects": lambda: base().assign(unique_id=base()["unique_id"].map({"a": 1, "b": "two"})),
    "categories": lambda: base().assign(unique_id=base()["unique_id"].astype("category")),
    "zones": lambda: base().assign(ds=base()["ds"].dt.tz_localize("UTC").dt.tz_convert("Asia/Kolkata")),
    "texts": lambda: base().assign(ds=base()["ds"].astype(str) + "+02:00", y=base()["y"].astype(str)),
    "unsorted": lambda: base().sample(frac=1.0, random_state=0),
    "missing": lambda: with_gaps(base()),
    "repeated": lambda: pd.concat([base(), base().head(99)]),
    "late and ended": lambda: pd.concat([base(), base().tail(20).assign(unique_id="late"), base().iloc[:200].assign(unique_id="ended")]),
    "a month without": lambda: pd.concat([base(), base().assign(ds=base()["ds"] + pd.Timedelta("30D"))]),
    "never observed": lambda: pd.concat([base(), base().head(9).assign(unique_id="never", y=np.nan)]),
    "many": lambda: series_frame({f"s{k}": daily(40, k) for k in range(150)}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_every_forecaster_scores_it(name: str) -> None:
    result = run_backtest(FRAMES[name](), "10min", MEMBERS, CONFIG, forecasts="none")
    assert result.failed == {}
    for scored in result.scores.values():
        assert scored.overall["wql"] >= 0
        assert 0 <= scored.overall["coverage80"] <= 1
        assert scored.crossings == 0


@pytest.mark.parametrize("freq", ["30s", "1min", "15min", "1h", "1D", "W", "7D"])
def test_every_frequency_of_fixed_length(freq: str) -> None:
    result = run_backtest(series_frame({"a": daily(150, 1, season=24)}, freq), freq, MEMBERS, CONFIG, forecasts="none")
    assert result.failed == {}
    assert result.n_origins == 3


@pytest.mark.parametrize(("frame", "said"), [(base().iloc[:6], "at least 7 steps"), (base().iloc[:1], "at least 7 steps")])
def test_a_history_that_is_too_short_is_one_error(frame: pd.DataFrame, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_backtest(frame, "10min", MEMBERS, CONFIG)

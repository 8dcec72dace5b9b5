"""Warm starts: training begins from earlier weights where they fit, and leaves no trace of where they lay."""

import json

import numpy as np
import pandas as pd
import pytest

from models.catalog import make_forecaster

COMMON = {"freq": "1h", "horizon": 6, "season_length": 24, "seed": 0}
OPTIONS = {
    "lightgbm": {"n_estimators": 9, "min_data_in_leaf": 20, "threads": 1},
    "lstm": {"epochs": 2, "max_windows": 200, "window": 24, "hidden": 8},
    "ensemble": {
        "member_options": {"lightgbm": {"n_estimators": 9, "min_data_in_leaf": 20}, "lstm": {"epochs": 1, "max_windows": 200, "hidden": 8}}
    },
}


def series(rows, kind="a"):
    rng = np.random.default_rng(1)
    y = 10 + 5 * np.sin(np.arange(rows) * 2 * np.pi / 24) + rng.normal(0, 0.5, rows)
    return pd.DataFrame({"unique_id": f"{kind}/one", "ds": pd.date_range("2026-01-01", periods=rows, freq="1h"), "y": y})


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_warm_start_learns_from_earlier_weights_and_keeps_no_path(name, tmp_path):
    make_forecaster(name, **COMMON, **OPTIONS[name]).fit(series(400)).save(tmp_path / "earlier")
    cold = make_forecaster(name, **COMMON, **OPTIONS[name]).fit(series(500))
    warm = make_forecaster(name, **COMMON, **OPTIONS[name], warm_start=str(tmp_path / "earlier")).fit(series(500))
    columns = [f"q{q}0" for q in range(1, 10)]
    assert not np.allclose(cold.predict()[columns], warm.predict()[columns]), "the start matters"
    warm.save(tmp_path / "warm")
    assert not [path for path in (tmp_path / "warm").rglob("*.json") if "earlier" in json.dumps(json.loads(path.read_text()))]
    loaded = type(warm).load(tmp_path / "warm")
    pd.testing.assert_frame_equal(loaded.predict(), warm.predict())


def test_lightgbm_adds_a_third_of_the_trees_and_starts_anew_before_there_are_too_many(tmp_path):
    counts, earlier = [], {}
    for step in range(8):
        model = make_forecaster("lightgbm", **COMMON, **OPTIONS["lightgbm"], **earlier).fit(series(400 + 10 * step))
        counts.append(model.boosters[0].num_trees())
        model.save(tmp_path / str(step))
        earlier = {"warm_start": str(tmp_path / str(step))}
    assert counts == [9, 12, 15, 18, 21, 24, 27, 9]


def test_weights_learned_on_other_kinds_of_series_are_left_out(tmp_path):
    make_forecaster("lightgbm", **COMMON, **OPTIONS["lightgbm"]).fit(series(400, "b")).save(tmp_path / "other")
    cold = make_forecaster("lightgbm", **COMMON, **OPTIONS["lightgbm"]).fit(series(400))
    warm = make_forecaster("lightgbm", **COMMON, **OPTIONS["lightgbm"], warm_start=str(tmp_path / "other")).fit(series(400))
    pd.testing.assert_frame_equal(warm.predict(), cold.predict())

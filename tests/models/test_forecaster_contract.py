"""One suite over every forecaster of the catalogue."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series_makers import QUICK, daily, series_frame

from models.base import QUANTILE_COLUMNS, Forecaster
from models.catalog import FORECASTERS, make_forecaster
from telemetry.errors import InputError

HORIZON = 6
NAMES = list(FORECASTERS)
Q = list(QUANTILE_COLUMNS)


def make(name: str, **options: object) -> Forecaster:
    return make_forecaster(name, **{"freq": "10min", "horizon": HORIZON, **QUICK.get(name, {}), **options})


def base_frame() -> pd.DataFrame:
    return series_frame({"pool/a": daily(576, 1), "pool/b": daily(576, 2, level=60.0)})


def split(frame: pd.DataFrame, rows: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    position = frame.groupby("unique_id").cumcount()
    return frame[position < rows], frame[position >= rows]


@functools.cache
def fitted_folder(name: str) -> Path:
    """A forecaster fitted on 500 rows of the base frame, saved once; tests load their own copy."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="contract")) / name
    make(name).fit(split(base_frame(), 500)[0]).save(folder)
    return folder


def fitted(name: str) -> Forecaster:
    return FORECASTERS[name].load(fitted_folder(name))


@pytest.mark.parametrize("name", NAMES)
def test_forecast_has_the_contract_s_shape(name: str) -> None:
    forecast = fitted(name).predict()
    assert list(forecast.columns) == ["unique_id", "issued_at", "ds", *Q, "model"]
    assert forecast.groupby("unique_id").size().to_dict() == {"pool/a": HORIZON, "pool/b": HORIZON}
    assert set(forecast["model"]) == {name}
    last = split(base_frame(), 500)[0]["ds"].max()
    assert (forecast["issued_at"] == last).all()
    steps = (forecast["ds"] - forecast["issued_at"]) / pd.Timedelta("10min")
    assert steps.to_numpy().tolist() == [*range(1, HORIZON + 1)] * 2
    values = forecast[Q].to_numpy()
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=1) >= 0).all()
    shorter = fitted(name).predict(2)
    pd.testing.assert_frame_equal(shorter, forecast.groupby("unique_id", sort=False).head(2).reset_index(drop=True))


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_predicts_exactly_the_same(name: str, tmp_path: Path) -> None:
    forecaster = fitted(name)
    forecaster.update(split(split(base_frame(), 500)[1], 40)[0])
    forecaster.save(tmp_path / "saved")
    loaded = FORECASTERS[name].load(tmp_path / "saved")
    pd.testing.assert_frame_equal(loaded.predict(), forecaster.predict(), check_exact=True)
    later = split(split(base_frame(), 540)[1], 20)[0]
    pd.testing.assert_frame_equal(loaded.update(later).predict(), forecaster.update(later).predict(), check_exact=True)
    suffixes = {file.suffix for file in (tmp_path / "saved").rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".parquet", ".safetensors", ".txt"}


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_forecast(name: str) -> None:
    again = make(name).fit(split(base_frame(), 500)[0]).predict()
    pd.testing.assert_frame_equal(again, fitted(name).predict(), check_exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_after_the_issue_time_matters(name: str) -> None:
    """The probe against leaks: rows after the issue time are shuffled, scaled and shifted, and the forecast stays the same.

    The future is present in the frame from which history and updates are cut, so a forecaster that kept or normalised by it would show.
    """
    forecasts = []
    for variant in range(3):
        frame = base_frame()
        position = frame.groupby("unique_id").cumcount().to_numpy()
        future = position >= 540
        rng = np.random.default_rng(variant)
        y = frame["y"].to_numpy().copy()
        if variant:
            y[future] = rng.permutation(y[future]) * 10.0**variant
        frame["y"] = y
        forecaster = fitted(name).update(frame[(position >= 500) & ~future])
        before = forecaster.predict()
        forecaster.update(frame[future]).predict()
        forecasts.append(before)
        cut = FORECASTERS[name].load(fitted_folder(name)).update(frame[(position >= 500) & ~future]).predict()
        pd.testing.assert_frame_equal(cut, before, check_exact=True)
    pd.testing.assert_frame_equal(forecasts[0], forecasts[1], check_exact=True)
    pd.testing.assert_frame_equal(forecasts[0], forecasts[2], check_exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_row_order_and_update_slicing_do_not_matter(name: str) -> None:
    later = split(base_frame(), 500)[1]
    at_once = fitted(name).update(later).predict()
    shuffled = fitted(name).update(later.sample(frac=1.0, random_state=3)).predict()
    pd.testing.assert_frame_equal(shuffled, at_once, check_exact=True)
    stepwise = fitted(name)
    for day in range(0, 76, 19):
        part = later.groupby("unique_id", sort=False).nth(list(range(day, day + 19)))
        stepwise.update(part)
        stepwise.predict()
    pd.testing.assert_frame_equal(stepwise.predict(), at_once, check_exact=True)


@pytest.mark.parametrize("name", ["persistence", "seasonal_naive"])
def test_without_parameters_update_equals_having_known_the_data(name: str) -> None:
    first, later = split(base_frame(), 500)
    assert make(name).fit(first).update(later).predict().equals(make(name).fit(base_frame()).predict())


@pytest.mark.parametrize("condition", ["none", "hour", "activity"])
def test_empirical_persistence_with_a_set_condition_has_no_parameters(condition: str) -> None:
    first, later = split(base_frame(), 500)
    updated = make("empirical_persistence", condition=condition).fit(first).update(later).predict()
    assert updated.equals(make("empirical_persistence", condition=condition).fit(base_frame()).predict())


@pytest.mark.parametrize("name", NAMES)
def test_update_moves_the_issue_time_and_the_level(name: str) -> None:
    later = split(split(base_frame(), 500)[1], 12)[0].assign(y=lambda f: f["y"] + 200.0)
    before, after = fitted(name).predict(), fitted(name).update(later).predict()
    assert (after["issued_at"] - before["issued_at"] == pd.Timedelta("2h")).all()
    if name != "seasonal_naive":
        assert (after["q50"] > before["q50"] + 50.0).mean() > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_constant_zero_short_gappy_and_unequal_series_together(name: str) -> None:
    gappy = daily(560, 4)
    gappy[200:260] = np.nan
    gappy[[300, 410, 501]] = np.nan
    frame = series_frame(
        {
            "a": daily(576, 1),
            "constant": np.full(576, 7.0),
            "gappy": gappy,
            "one": np.array([5.0]),
            "short": daily(9, 5),
            "zero": np.zeros(576),
        }
    )
    forecast = make(name).fit(frame.dropna()).predict().set_index("unique_id")
    assert forecast.index.nunique() == 6
    assert np.isfinite(forecast[Q].to_numpy()).all()
    assert (forecast.loc["constant", Q] == 7.0).all(axis=None)
    assert (forecast.loc["zero", Q] == 0.0).all(axis=None)
    first = forecast.loc["one"]
    assert (first["q50"] - 5.0).abs().max() < 2.0
    if name in ("lightgbm", "lstm", "ensemble"):  # learned from the other series what a first value is worth
        assert (first["q90"] > first["q10"]).all()
    else:
        assert (first[Q] == 5.0).all(axis=None)
    missing_rows = make(name).fit(frame).predict().set_index("unique_id")
    pd.testing.assert_frame_equal(missing_rows, forecast, check_exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_gap_before_an_update_and_a_series_unknown_at_fit(name: str) -> None:
    later = split(base_frame(), 500)[1]
    late = later.groupby("unique_id", sort=False).nth(list(range(30, 50)))
    new = series_frame({"pool/new": daily(60, 9)}, start="2025-03-06")
    forecast = fitted(name).update(pd.concat([late, new])).predict()
    assert set(forecast["unique_id"]) == {"pool/a", "pool/b", "pool/new"}
    assert np.isfinite(forecast[Q].to_numpy()).all()
    assert forecast.groupby("unique_id")["issued_at"].first()["pool/a"] == late["ds"].max()


@pytest.mark.parametrize("name", NAMES)
def test_power_never_leaves_its_bounds(name: str) -> None:
    frame = series_frame({"node/a": np.clip(daily(576, 1), 30.0, 50.0), "node/b": daily(576, 2)})
    forecaster = make(name, bounds={"node/a": [30.0, 50.0]}, floor=35.0, cap=None).fit(frame)
    forecast = forecaster.predict().set_index("unique_id")
    assert forecast.loc["node/a", Q].to_numpy().min() >= 30.0
    assert forecast.loc["node/a", Q].to_numpy().max() <= 50.0
    assert forecast.loc["node/b", Q].to_numpy().min() >= 35.0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None)
@given(
    tail=st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(0.0), st.just(float("nan"))), min_size=1, max_size=40),
    steps=st.integers(1, HORIZON),
)
def test_quantiles_never_cross(name: str, tail: list[float], steps: int) -> None:
    start = base_frame()["ds"].iloc[500]
    later = series_frame({"pool/a": np.array([*tail, 1.0])}, start=str(start))
    values = fitted(name).update(later).predict(steps)[Q].to_numpy()
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=1) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_use_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="before fit"):
        make(name).predict()
    forecaster = fitted(name)
    for horizon in (0, HORIZON + 1):
        with pytest.raises(InputError, match="allowed: 1 to 6"):
            forecaster.predict(horizon)
    with pytest.raises(InputError, match="not after the last known"):
        forecaster.update(base_frame())
    with pytest.raises(InputError, match="unknown option"):
        make(name, depth=3)
    with pytest.raises(InputError, match="not a saved forecaster"):
        FORECASTERS[name].load(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    fitted(name).save(tmp_path / "saved")
    files = [f for f in (tmp_path / "saved").rglob("*") if f.is_file() and f.suffix != ".txt"]
    assert files
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError):
            FORECASTERS[name].load(tmp_path / "saved")
        file.write_bytes(whole)
    other = next(n for n in NAMES if n != name)
    with pytest.raises(InputError, match="holds forecaster"):
        FORECASTERS[other].load(tmp_path / "saved")
    manifest = json.loads((tmp_path / "saved" / "forecaster.json").read_text())
    assert manifest["name"] == name


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="persistence, empirical_persistence, seasonal_naive, arima, prophet, lightgbm, lstm, ensemble"):
        make_forecaster("oracle", freq="10min", horizon=3)

"""Frames that users bring: what is refused, what is counted, what is normalised."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from series_makers import series_frame

from models.series import Panel, default_season_length, forward_fill, freq_step_ns, infer_freq, validate_series
from telemetry.errors import InputError


@pytest.fixture
def frame() -> pd.DataFrame:
    return series_frame({"b": np.arange(5.0), "a": np.arange(4.0)})


def test_good_frame_is_sorted_and_counted(frame: pd.DataFrame) -> None:
    table, report = validate_series(frame.sample(frac=1.0, random_state=0).assign(price=1, tenant="x"), "10min")
    assert table["unique_id"].tolist() == ["a"] * 4 + ["b"] * 5
    assert list(table.columns) == ["unique_id", "ds", "y", "price", "family"]
    assert (report.rows, report.series, report.gap_rows, report.missing_values, report.exact_duplicates) == (9, 2, 0, 0, 0)


def test_gaps_missing_values_and_repeats_are_counted(frame: pd.DataFrame) -> None:
    frame.loc[1, "y"] = np.nan
    dirty = pd.concat([frame.drop(index=7), frame.iloc[[0, 0]]])
    table, report = validate_series(dirty, "10min")
    assert (report.rows, report.missing_values, report.exact_duplicates, report.gap_rows) == (7, 1, 2, 2)
    panel = Panel.from_frame(table, freq_step_ns("10min"))
    np.testing.assert_array_equal(panel.values[0], [0.0, 1.0, np.nan, 3.0])
    pd.testing.assert_frame_equal(panel.to_frame(), table)


def test_zones_become_utc(frame: pd.DataFrame) -> None:
    local = frame.assign(ds=frame["ds"].dt.tz_localize("America/New_York"))
    table, _ = validate_series(local, "10min")
    assert table["ds"].dt.tz is None
    assert table["ds"].iloc[0] == pd.Timestamp("2025-03-03 05:00")
    text, _ = validate_series(frame.assign(ds=local["ds"].map(lambda t: t.isoformat())), "10min")
    pd.testing.assert_frame_equal(text, table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="y"), "missing column.*y"),
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: f.assign(y=np.nan), "every y is missing"),
        (lambda f: f.assign(y="many"), "not numeric"),
        (lambda f: f.assign(y=np.inf), "infinite"),
        (lambda f: f.assign(ds="someday"), "cannot be read as time"),
        (lambda f: f.assign(ds=np.arange(9)), "numbers"),
        (lambda f: f.assign(ds=pd.NaT), "without a ds"),
        (lambda f: f.assign(unique_id=None), "without a unique_id"),
        (lambda f: pd.concat([f, f.assign(y=9.5)]), "two different values, first 'b'"),
        (
            lambda f: f.assign(ds=f["ds"].where(f.index != 2, f["ds"] + pd.Timedelta("3min"))),
            "off the 10min grid, first 'b' at 2025-03-03 00:23",
        ),
    ],
)
def test_what_cannot_be_used_is_named(frame: pd.DataFrame, change: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        validate_series(change(frame), "10min")  # type: ignore[operator]


@pytest.mark.parametrize("freq", ["banana", "MS", "-10min", "0min"])
def test_frequency_must_have_a_length(freq: str) -> None:
    with pytest.raises(InputError, match="freq"):
        freq_step_ns(freq)


def test_seasons_and_frequencies() -> None:
    assert [default_season_length(f) for f in ("1min", "10min", "1h", "1D", "7D", "30D")] == [1440, 144, 24, 7, 1, 1]
    assert infer_freq(series_frame({"a": np.arange(9.0)}, "1h")) == "3600s"
    with pytest.raises(InputError, match="frequency is unknown"):
        infer_freq(series_frame({"a": np.arange(1.0)}))


def test_forward_fill_looks_back_only() -> None:
    np.testing.assert_array_equal(forward_fill(np.array([1.0, np.nan, np.nan, 4.0, np.nan])), [1, 1, 1, 4, 4])


def test_append_keeps_the_grid_and_bounds_the_tail(frame: pd.DataFrame) -> None:
    panel = Panel.from_frame(validate_series(frame, "10min")[0], freq_step_ns("10min"))
    later = series_frame({"a": np.array([9.0]), "c": np.array([1.0, 2.0])}, start="2025-03-03 01:00")
    longer = panel.append(Panel.from_frame(later, panel.step_ns))
    np.testing.assert_array_equal(longer.values[0], [0, 1, 2, 3, np.nan, np.nan, 9])
    assert longer.ids == ["a", "b", "c"]
    short = longer.tail(2)  # would begin with a gap: begins at the observation after it
    np.testing.assert_array_equal(short.values[0], [9.0])
    assert short.ends_ns.tolist() == longer.ends_ns.tolist()
    off = Panel.from_frame(series_frame({"a": np.array([9.0])}, start="2025-03-03 01:03"), panel.step_ns)
    with pytest.raises(InputError, match="off its grid"):
        panel.append(off)


def test_panels_carry_covariates_and_families(frame: pd.DataFrame) -> None:
    frame = frame.assign(queue=np.arange(9.0), node_type=["h100"] * 5 + ["a100"] * 4)
    frame.loc[2, "queue"] = np.nan
    table, _ = validate_series(frame, "10min")
    panel = Panel.from_frame(table, freq_step_ns("10min"))
    assert panel.families == ["a100", "h100"]
    assert panel.covariate_names == ("queue",)
    first, later = table[table.groupby("unique_id").cumcount() < 3], table[table.groupby("unique_id").cumcount() >= 3]
    joined = Panel.from_frame(first, panel.step_ns).append(Panel.from_frame(later, panel.step_ns))
    for i in range(2):
        np.testing.assert_array_equal(joined.covariate("queue", i), panel.covariate("queue", i))
    pd.testing.assert_frame_equal(panel.to_frame(), table)
    assert "family" not in validate_series(frame.assign(node_type=["x", "y"] + ["z"] * 7), "10min")[0]

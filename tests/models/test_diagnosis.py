"""Every finding is planted and found where it was planted; clean series have none."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from series_makers import daily, series_frame

from models.diagnosis import ACTIONS, COLUMNS, diagnose
from models.level_shifts import level_shifts, shift_window
from models.series import Panel, freq_step_ns, validate_series
from telemetry.errors import InputError

SEASON = 144
START = pd.Timestamp("2025-03-03")


def found(values: dict[str, np.ndarray], kind: str, **options: object) -> list:
    return diagnose(series_frame(values).dropna(), "10min", **options).of(kind)


def at(row: int) -> pd.Timestamp:
    return START + row * pd.Timedelta("10min")


def test_clean_series_have_no_finding() -> None:
    diagnosis = diagnose(series_frame({f"s{seed}": daily(1000, seed) + 30.0 for seed in range(20)}), "10min")
    assert diagnosis.findings == []
    assert diagnosis.lines() == [f"data: 20 series, 20000 rows to {at(999)}; nothing unusual"]


def test_gaps_are_counted_and_the_longest_is_placed() -> None:
    values = daily(600, 1)
    values[100:107] = values[300] = values[400:430] = np.nan
    (gap,) = found({"a": values}, "gaps")
    assert (gap.where, gap.size) == (at(400), 30)
    assert gap.detail == "3 gap(s), longest 30 steps, 6.3% of the rows"


def test_early_end_late_begin_and_short_history() -> None:
    frame = series_frame({"a": daily(600, 1), "b": daily(588, 2)})
    young = series_frame({"c": daily(20, 3)}, start=str(at(580)))
    diagnosis = diagnose(pd.concat([frame, young]), "10min")
    assert [(f.unique_id, f.size, f.where) for f in diagnosis.of("ends_early")] == [("b", 12, at(587))]
    assert [(f.unique_id, f.size) for f in diagnosis.of("begins_late")] == [("c", 580)]
    assert [(f.unique_id, f.size) for f in diagnosis.of("short")] == [("c", 20)]


def test_constant_zero_inflated_and_stuck() -> None:
    burst = np.zeros(600)
    burst[np.arange(0, 600, 40)] = 5.0
    burst[:200] = 0.0
    stuck = daily(600, 2) + 20.0
    stuck[300:325] = stuck[300]
    values = {"constant": np.full(600, 4.0), "burst": burst, "stuck": stuck, "steps": np.repeat(np.arange(30.0), 20)}
    diagnosis = diagnose(series_frame(values), "10min")
    assert [(f.unique_id, f.size) for f in diagnosis.of("constant")] == [("constant", 4.0)]
    (zeros,) = diagnosis.of("zero_inflated")
    assert (zeros.unique_id, zeros.where, zeros.size) == ("burst", at(0), pytest.approx((burst == 0).mean()))
    assert [(f.unique_id, f.where, f.size) for f in diagnosis.of("stuck")] == [("stuck", at(300), 25)]


def test_level_shift_is_placed_sized_and_known_soon() -> None:
    values = daily(1000, 1)
    values[700:] += 80.0
    (shift,) = found({"a": values}, "level_shift")
    assert shift.where == at(700)
    assert shift.size == pytest.approx(80.0, abs=10.0)
    assert f"known at {at(700 + shift_window(SEASON) // 2)}" in shift.detail


def test_the_daily_step_of_an_office_and_a_spike_are_no_level_shift() -> None:
    rng = np.random.default_rng(0)
    hours = np.arange(2000) % SEASON
    office = np.where((hours > 54) & (hours < 108), 100.0, 0.0) + rng.normal(size=2000)
    spiky = daily(1000, 1)
    spiky[[500, 501, 800]] += 5000.0
    assert found({"office": office, "spiky": spiky}, "level_shift") == []


@pytest.mark.parametrize("length", range(200, 1440, 62))
def test_a_level_shift_once_told_is_never_taken_back(length: int) -> None:
    values = daily(1440, 3)
    values[600:] += 60.0
    values[900:] *= 3.0
    values[1200:] = 0.0
    whole = level_shifts(values, SEASON)
    assert [s.row for s in whole] == [600, 900, 1200]
    assert level_shifts(values[:length], SEASON) == [s for s in whole if s.detected < length]


def test_random_walks_have_few_level_shifts() -> None:
    rng = np.random.default_rng(0)
    assert sum(bool(level_shifts(np.cumsum(rng.normal(size=2000)), SEASON)) for _ in range(100)) <= 8


def test_changed_unit_and_changed_spread() -> None:
    rng = np.random.default_rng(1)
    unit = daily(1000, 1) + 10.0
    unit[700:] *= 1000.0
    calm = 50.0 + rng.normal(size=1000) * np.where(np.arange(1000) < 856, 1.0, 9.0)
    diagnosis = diagnose(series_frame({"unit": unit, "calm": calm}), "10min")
    (scale,) = diagnosis.of("scale_change")
    assert (scale.unique_id, scale.where) == ("unit", at(700))
    assert scale.size == pytest.approx(1000.0, rel=0.2)
    assert [f.size for f in diagnosis.of("spread_change") if f.unique_id == "calm"] == [pytest.approx(9.0, rel=0.2)]


def test_spikes_and_a_jump_of_the_last_value() -> None:
    values = daily(1000, 1) + 20.0
    values[[200, 640]] += (400.0, 900.0)
    jumped = daily(1000, 2)
    jumped[-1] += 500.0
    diagnosis = diagnose(series_frame({"a": values, "b": jumped}), "10min")
    (spike,) = diagnosis.of("spikes")
    assert (spike.unique_id, spike.where) == ("a", at(640))
    assert spike.size == pytest.approx(900.0, rel=0.02)
    assert [(f.unique_id, f.where) for f in diagnosis.of("last_value_jump")] == [("b", at(999))]


def test_counter_sentinel_and_whole_numbers() -> None:
    rng = np.random.default_rng(2)
    counter = np.cumsum(rng.integers(0, 9, size=600)).astype(float)
    counter[400:] -= counter[400]
    blanks = daily(600, 3) + 100.0
    blanks[[50, 90, 91]] = -1.0
    signed = rng.normal(size=600)
    diagnosis = diagnose(series_frame({"counter": counter, "blanks": blanks, "signed": signed}), "10min")
    assert [f.unique_id for f in diagnosis.of("counter")] == ["counter"]
    assert [f.unique_id for f in diagnosis.of("integer")] == ["counter"]
    assert [(f.unique_id, f.where, f.size) for f in diagnosis.of("sentinel")] == [("blanks", at(50), 3)]


def test_table_and_json_hold_the_same_and_name_an_action() -> None:
    values = daily(600, 1)
    values[100:107] = np.nan
    frame = series_frame({"a": values, "b": daily(10, 2)}).dropna()
    diagnosis = diagnose(frame, "10min", fallbacks={"arima": {"b": "history of 10 rows is below 40", "gone": "unknown"}})
    table, stored = diagnosis.table(), json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == len(stored["findings"])
    assert set(table["finding"]) == set(stored["counts"]) <= set(ACTIONS)
    assert stored["counts"]["fallback"] == 1
    assert "arima: history of 10 rows is below 40" in table["detail"].tolist()
    assert table["action"].str.len().min() > 0
    assert len(stored["summary"]) == 1 + len(stored["counts"])
    assert diagnose(series_frame({"a": daily(600, 1) + 30}), "10min").table().empty


def test_a_panel_and_its_frame_give_the_same() -> None:
    frame = series_frame({"a": daily(600, 1), "b": daily(500, 2)})
    panel = Panel.from_frame(validate_series(frame, "10min")[0], freq_step_ns("10min"))
    assert diagnose(panel, "10min") == diagnose(frame, "10min")
    with pytest.raises(InputError, match="missing column"):
        diagnose(frame.drop(columns="y"), "10min")

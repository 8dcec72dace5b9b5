"""Energy of intervals: exact where a rule says so, unknown where nothing was measured, the same however the intervals are cut."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.counters import counter_rates
from telemetry.devices import place_of
from telemetry.energy import EnergyRules, Grid, interval_energy, per_device
from telemetry.errors import InputError
from telemetry.schema import SAMPLE_TEXT, UTC

START = pd.Timestamp("2026-01-05", tz="UTC")


def at(seconds: float) -> pd.Timestamp:
    return START + pd.Timedelta(seconds=seconds)


def samples(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame([dict.fromkeys(SAMPLE_TEXT, "") | {"metric": "hw.power", "unit": "W", "node": "n"} | row for row in rows])
    frame["time"] = pd.to_datetime([at(row["s"]) for row in rows]).astype(UTC)
    frame["value"] = frame["value"].astype(float)
    return frame.drop(columns="s")


def gauge(times: list[float], watts: list[float], **more: str) -> pd.DataFrame:
    return samples([{"s": s, "value": w, **more} for s, w in zip(times, watts, strict=True)])


def joules(frame: pd.DataFrame, grid: Grid, **rules: object) -> tuple[list[float], list[float]]:
    energy = interval_energy(frame, grid, EnergyRules(**rules))  # type: ignore[arg-type]
    assert len(energy.series) == 1
    return energy.energy_j[0].tolist(), energy.covered_s[0].tolist()


def grid(*edges: float) -> Grid:
    return Grid(np.array([at(edge).value for edge in edges], dtype=np.int64))


def test_trapezoid_is_the_area_under_the_line():
    # 100 W rising to 200 W in 60 s: 9,000 J, of which the first half has 30 s x 125 W.
    assert joules(gauge([0, 60], [100, 200]), grid(0, 30, 60)) == ([3750.0, 5250.0], [30.0, 30.0])


def test_a_gap_is_unknown_under_every_rule():
    frame = gauge([0, 60, 1060, 1120], [100, 100, 100, 100])
    edges = grid(0, 60, 1060, 1120)
    assert joules(frame, edges, max_gap_s=300) == ([6000.0, 0.0, 6000.0], [60.0, 0.0, 60.0])
    assert joules(frame, edges, gauge="hold", max_gap_s=300) == ([6000.0, 30_000.0, 6000.0], [60.0, 300.0, 60.0])
    # A mean stands for one usual step (60 s) before the sample that ends the gap.
    assert joules(frame, edges, gauge="mean", max_gap_s=300) == ([6000.0, 6000.0, 6000.0], [60.0, 60.0, 60.0])


def test_hold_lets_the_last_value_stand_and_no_longer():
    assert joules(gauge([0, 60], [100, 200]), grid(0, 60, 600), gauge="hold", max_gap_s=120) == ([6000.0, 24_000.0], [60.0, 120.0])


def test_a_counter_is_exact_over_a_gap_and_a_reset_restarts():
    # 50 W for 300 s, counted at 0, 60, 240; then a restart from zero with 20 W.
    time_s, count = np.array([0, 60, 240, 300]), np.array([1e6, 1e6 + 3000, 1e6 + 12_000, 1200.0])
    rates = counter_rates(np.zeros(4, dtype=int), time_s * 10**9, count)
    frame = gauge(time_s[rates.rows].tolist(), rates.per_s.tolist(), metric="hw.energy.rate", device="gpu0")
    assert joules(frame, grid(0, 60, 120, 240, 300), max_gap_s=1) == ([3000.0, 3000.0, 6000.0, 1200.0], [60.0, 60.0, 120.0, 60.0])
    # Further away than max_counter_gap_s a rate stands for one usual step, at most for that limit.
    assert joules(frame, grid(0, 240, 300), max_counter_gap_s=100)[1] == [120.0, 60.0]


def test_the_counter_is_preferred_and_the_gauge_fills_what_it_lacks():
    counter = gauge([60, 120], [100, 100], metric="hw.energy.rate", device="gpu0")
    watts = gauge([0, 60, 120, 180], [110, 110, 110, 110], device="gpu0")
    energy = per_device(interval_energy(pd.concat([watts, counter]), grid(0, 60, 120, 180), EnergyRules()))
    assert energy.energy_j.tolist() == [[6000.0, 6000.0, 6600.0]]
    assert energy.devices["counter"].tolist() == [True]
    check = energy.checks.iloc[0]
    assert (check["chosen"], check["other"]) == (" hw.energy.rate", " hw.power")
    assert check["difference_percent"] == pytest.approx(10.0)
    assert check["hours"] == pytest.approx(120 / 3600)


def test_two_sources_of_a_device_are_never_summed_and_the_order_can_be_said():
    both = pd.concat([gauge([0, 60], [100, 100], source="dcgm"), gauge([0, 60], [80, 80], source="otlp")])
    energy = interval_energy(both, grid(0, 60), EnergyRules())
    assert per_device(energy).energy_j.tolist() == [[6000.0]]
    assert per_device(energy, ["otlp"]).energy_j.tolist() == [[4800.0]]
    assert per_device(energy, ["otlp"]).devices["source"].tolist() == ["otlp"]


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(["trapezoid", "hold", "mean"]),
    steps=st.lists(st.integers(1, 2000), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 9999), max_size=8),
    counter=st.booleans(),
    data=st.data(),
)
def test_splitting_intervals_keeps_joules_and_seconds(rule, steps, cuts, counter, data):
    times = np.cumsum(steps).tolist()
    watts = data.draw(st.lists(st.floats(0, 3000), min_size=len(times), max_size=len(times)))
    frame = gauge(times, watts, metric="hw.energy.rate" if counter else "hw.power")
    whole = interval_energy(frame, grid(0, 10_000), EnergyRules(gauge=rule))
    parts = interval_energy(frame, grid(*sorted({0, 10_000, *cuts})), EnergyRules(gauge=rule))
    assert parts.energy_j.sum() == pytest.approx(whole.energy_j.sum(), rel=1e-9, abs=1e-9)
    assert parts.covered_s.sum() == pytest.approx(whole.covered_s.sum(), rel=1e-9, abs=1e-9)
    assert (parts.energy_j >= -1e-9).all()
    assert (parts.covered_s <= parts.grid.seconds + 1e-6).all()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_power_that_cleaning_never_leaves_is_refused(value):
    with pytest.raises(InputError, match="n/gpu0 at 2026-01-05"):
        interval_energy(gauge([0, 60], [100, value], device="gpu0"), grid(0, 60), EnergyRules())


def test_no_samples_give_no_series():
    energy = per_device(interval_energy(samples([{"s": 0, "value": 1.0}]).iloc[:0], grid(0, 60, 120), EnergyRules()))
    assert energy.energy_j.shape == (0, 2)


@pytest.mark.parametrize("arguments", [(0, 0, "10min"), (60, 0, "10min"), (0, 60, "soon"), (0, 60, "-5min")])
def test_a_grid_without_length_is_refused(arguments):
    start, end, freq = arguments
    with pytest.raises(InputError):
        Grid.of(at(start), at(end), freq)


def test_the_last_interval_is_cut_at_the_end():
    assert Grid.of(at(0), at(1500), "10min").seconds.tolist() == [600.0, 600.0, 300.0]


@pytest.mark.parametrize(
    ("node", "device", "kind", "parent"),
    [
        ("n", "", "node", ""), ("", "", "site", ""), ("n", "gpu3", "gpu", ""), ("n", "gpu3/mig1", "mig", "gpu3"), ("n", "cpu0", "cpu", ""),
        ("n", "cpu0/dram", "memory", ""), ("n", "cpu0/core", "zone", ""), ("n", "package-1", "cpu", ""), ("n", "psys", "psys", ""),
        ("n", "psu1", "psu", ""), ("n", "pdu/a/7", "outlet", "pdu/a"), ("", "pdu/a", "pdu", ""), ("n", "fan1", "other", ""),
    ],
)  # fmt: skip
def test_device_names_say_what_they_measure(node, device, kind, parent):
    assert (place_of(node, device).kind, place_of(node, device).parent) == (kind, parent)

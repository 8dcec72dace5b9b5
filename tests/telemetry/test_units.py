"""Units and metrics: every conversion goes there and back, unknown units are refused, every metric is described."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.cleaning import clean_samples
from telemetry.errors import InputError
from telemetry.inventory import Inventory
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples
from telemetry.readers.otlp_points import request_points
from telemetry.schema import validate
from telemetry.units import CONVERSIONS, METRICS, OFFSETS, SAMPLE_METRICS, convert, factor, offset

PAIRS = [(unit, target) for target, known in CONVERSIONS.items() for unit in known]
KNOWN = {
    ("kW", "W"): (1.5, 1500.0),
    ("mW", "W"): (1500.0, 1.5), ("kWh", "J"): (1.0, 3.6e6), ("W.h", "J"): (2.0, 7200.0), ("mJ", "J"): (1e6, 1e3),
    ("%", "1"): (55.0, 0.55), ("MiBy", "By"): (1.0, 1048576.0), ("GBy", "By"): (1.0, 1e9), ("[degF]", "Cel"): (212.0, 100.0),
    ("F", "Cel"): (-40.0, -40.0), ("K", "Cel"): (0.0, -273.15), ("GHz", "Hz"): (1.4, 1.4e9), ("h", "s"): (0.5, 1800.0),
    ("ms", "s"): (250.0, 0.25), ("mV", "V"): (12_000.0, 12.0), ("Hz", "rpm"): (50.0, 3000.0), ("m{cpu}", "{cpu}"): (1500.0, 1.5),
}  # fmt: skip


@pytest.mark.parametrize(("pair", "values"), KNOWN.items(), ids=lambda v: str(v))
def test_conversions_by_hand(pair, values):
    assert convert(values[0], *pair, where="here") == pytest.approx(values[1], abs=1e-9)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(PAIRS), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_conversions_are_straight_lines_that_rise_and_can_be_undone(pair, one, two):
    first, second = (convert(value, *pair, where="here") for value in (one, two))
    scale = factor(*pair, where="here")
    assert scale > 0
    assert first - second == pytest.approx((one - two) * scale, rel=1e-9, abs=1e-6 * max(scale, 1))
    assert (first - offset(*pair)) / scale == pytest.approx(one, rel=1e-9, abs=1e-6 / scale)


@pytest.mark.parametrize("target", sorted(CONVERSIONS))
def test_a_unit_is_itself_and_another_quantity_is_refused(target):
    assert convert(7.25, target, target, where="here") == 7.25
    with pytest.raises(
        InputError, match=rf"here: unit 'furlong'; allowed: .*remedy: export it in {target.replace('{', '.').replace('}', '.')}"
    ):
        factor("furlong", target, where="here")


def test_offsets_belong_to_units_that_are_converted():
    assert all(unit in CONVERSIONS[target] for unit, target in OFFSETS)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_says_what_it_is(name):
    metric = METRICS[name]
    assert metric.unit in CONVERSIONS
    assert metric.description
    assert metric.low < metric.high
    assert metric.kind == ("counter" if metric.rate else "gauge")
    assert (metric.rate != "") == (metric.rate_unit != "") == metric.counter
    assert (metric.rate or name) in SAMPLE_METRICS


def test_rates_have_names_of_their_own():
    rates = {metric.rate: metric.rate_unit for metric in METRICS.values() if metric.rate}
    assert len(rates) == sum(metric.counter for metric in METRICS.values())
    told = {name: METRICS[name].unit for name in rates if name in METRICS}  # exported as a rate by some, as a counter by others
    assert told == {name: rates[name] for name in told}


@pytest.mark.parametrize(
    "name", sorted(n for n, m in METRICS.items() if not m.counter and m.unit != "W" and (m.low > -math.inf or m.high < math.inf))
)
def test_values_outside_the_bounds_of_a_metric_are_counted_and_dropped(name):
    metric = METRICS[name]
    inside, high = (0.5, 1.0) if metric.unit == "1" else (20.0, metric.high)
    outside = [value for value in (metric.low - 2.5, high + 2.5) if math.isfinite(value)]
    raw, quality = RawSamples("s"), QualityReport()
    for k, value in enumerate([inside, *outside]):
        raw.add(Labels(name, node="n0", device="d", pod="p", unit=metric.unit), 1_767_571_200 + 60 * k, value)
    frame = clean_samples(raw, Inventory(), quality, where="file")
    validate("samples", frame, where="file")
    assert frame["value"].tolist() == [inside]
    assert sum(quality.total().values()) == len(outside) > 0
    assert set(quality.total()) <= {"unparseable", "utilization_above_one"}


def test_fahrenheit_and_kelvin_are_converted_and_counted():
    raw, quality = RawSamples("s"), QualityReport()
    for k, (unit, value) in enumerate((("Cel", 30.0), ("[degF]", 86.0), ("K", 303.15))):
        raw.add(Labels("hw.temperature", node="n0", device="gpu0", unit=unit), 1_767_571_200 + 60 * k, value)
    frame = clean_samples(raw, Inventory(), quality, where="file")
    assert frame["value"].tolist() == pytest.approx([30.0] * 3)
    assert set(frame["unit"]) == {"Cel"}
    assert quality.total() == {"unit_converted": 2}


def test_of_a_metric_that_is_split_one_part_is_read_and_the_others_are_told():
    def point(**attributes: str) -> dict:
        keys = [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in attributes.items()]
        return {"attributes": keys, "timeUnixNano": "1767571200000000000", "asDouble": 0.5}

    def read(name: str, *points: dict) -> tuple[int, list[str]]:
        metric = {"name": name, "unit": METRICS[name].unit, "gauge": {"dataPoints": list(points)}}
        found = request_points({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]})
        return len(found.points), found.unread

    memory = read("system.memory.usage", point(system__memory__state="used"), point(system__memory__state="free"), point(state="cached"))
    assert memory == (1, ["points of system.memory.usage with another system.memory.state than used, which are not read"] * 2)
    assert read("hw.gpu.utilization", point(), point(hw__gpu__task="encoder"))[0] == 1
    assert read("hw.power", point(state="free")) == (1, [])

"""What holds whatever points come: their order does not matter, cleaning twice is cleaning once, nothing is lost and nothing crashes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.cleaning import clean_samples
from telemetry.counters import counter_rates
from telemetry.errors import InputError
from telemetry.inventory import Inventory
from telemetry.policy import FILLS, POLICIES, QualityPolicy
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples
from telemetry.schema import validate
from telemetry.units import METRICS

T0, STEP = 1_767_571_200, 60
GAUGES = ("hw.power", "hw.gpu.utilization", "hw.temperature")
ODD = st.sampled_from(
    [-1, "-1", "", "NaN", "na", None, "x", float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 65_535, 1e400, True, [], {}]
)
NUMBER = st.one_of(st.integers(0, 400), st.floats(0, 400), ODD)
GAUGE_POINT = st.tuples(st.sampled_from(GAUGES), st.integers(0, 2), st.integers(0, 30), NUMBER)
POINT = st.one_of(GAUGE_POINT, st.tuples(st.just("hw.energy"), st.integers(0, 2), st.integers(0, 30), NUMBER))
CHOICE = st.fixed_dictionaries({flaw: st.sampled_from(allowed) for flaw, allowed in POLICIES.items()})
FAST = settings(max_examples=60, deadline=None, derandomize=True)


def clean(points: list[tuple], policy: QualityPolicy) -> tuple[pd.DataFrame, QualityReport]:
    raw, quality = RawSamples("s"), QualityReport()
    for metric, node, step, value in points:
        unit = METRICS[metric].unit
        raw.add(Labels(metric, node=f"n{node}", device="gpu0", pod="p", unit=unit, native_unit=unit), T0 + STEP * step, value)
    return clean_samples(raw, Inventory(), quality, where="file", policy=policy, now=pd.Timestamp(T0 + 1500, unit="s", tz="UTC")), quality


@FAST
@given(st.lists(POINT, min_size=1, max_size=60), CHOICE)
def test_any_points_and_policies_give_a_valid_table(points, choice):
    policy = QualityPolicy(**choice)
    frame, quality = clean(points, policy)
    validate("samples", frame, where="test")
    assert np.isfinite(frame["value"]).all()
    assert not frame.duplicated(["metric", "node", "device", "time"]).any()
    assert QualityReport.from_dict(quality.to_dict()) == quality


@FAST
@given(st.lists(GAUGE_POINT, min_size=1, max_size=60), CHOICE)
def test_every_point_is_kept_or_counted_as_dropped(points, choice):
    policy = QualityPolicy(**choice)
    frame, quality = clean(points, policy)
    dropped = sum(n for flaw, n in quality.total().items() if flaw == "duplicate" or (flaw in POLICIES and policy.of(flaw) == "drop"))
    assert (frame["filled"] == "").sum() + dropped == len(points)
    assert (frame["filled"] != "").sum() == sum(quality.notes.get("s", {}).get(f"samples filled in gaps ({fill})", 0) for fill in FILLS)


@FAST
@given(st.data())
def test_the_order_of_rows_in_the_file_does_not_matter(data):
    """But for the count of rows that come late."""
    points = data.draw(st.lists(POINT, min_size=2, max_size=60, unique_by=lambda point: point[:3]))
    policy = QualityPolicy(**data.draw(CHOICE))
    (one, first), (two, second) = clean(points, policy), clean(data.draw(st.permutations(points)), policy)
    pd.testing.assert_frame_equal(one, two)
    flaws = [{**report.to_dict()["sources"]["s"]} for report in (first, second)]
    for told in flaws:
        told["total"].pop("out_of_order", None)
        for part in ("devices", "when"):
            told[part] = {
                device: left for device, own in told[part].items() if (left := {k: v for k, v in own.items() if k != "out_of_order"})
            }
    assert flaws[0] == flaws[1]


@FAST
@given(st.data())
def test_the_mean_of_duplicates_does_not_ask_which_is_last(data):
    points = data.draw(st.lists(GAUGE_POINT, min_size=2, max_size=60))
    policy = QualityPolicy(duplicate="repair")
    (one, first), (two, second) = clean(points, policy), clean(data.draw(st.permutations(points)), policy)
    pd.testing.assert_frame_equal(one, two)
    assert first.total().get("duplicate") == second.total().get("duplicate")


@FAST
@given(st.lists(GAUGE_POINT, min_size=1, max_size=60), CHOICE)
def test_cleaning_twice_is_cleaning_once(points, choice):
    """Where nothing stays that a policy keeps or fills, the second cleaning finds no flaw and changes nothing."""
    policy = QualityPolicy(**choice | {"unit_suspected": "drop"})
    frame, _ = clean(points, policy)
    again = [
        (str(m), int(str(n)[1:]), round((t.timestamp() - T0) / STEP), v)
        for m, n, t, v in zip(frame["metric"], frame["node"], frame["time"], frame["value"], strict=True)
    ]
    if not again:
        return
    second, quality = clean(again, QualityPolicy(implausible_power=policy.of("implausible_power"), stuck_value="keep"))
    pd.testing.assert_frame_equal(frame.drop(columns="filled"), second.drop(columns="filled"), check_categorical=False)
    left = {flaw for flaw in POLICIES if policy.of(flaw) == "keep"} | {
        "scrape_gap_samples",
        "unit_suspected",
        "scrape_gap",
        "unsupported_zero",
    }
    assert set(quality.total()) <= left


@FAST
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1e6)), min_size=2, max_size=40),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_rates_of_a_counter_give_its_increase(steps, start, wraps):
    """Gaps, and wraps that are not taken for restarts, lose nothing: rates times intervals sum to what was counted."""
    seconds = np.cumsum([step for step, _ in steps])
    total = np.cumsum([increase for _, increase in steps])
    value = (start + total) % 2**32 if wraps else total
    rates = counter_rates(
        np.zeros(len(value), dtype=int), seconds * 10**9, value.astype(float), modulus=np.full(len(value), 2.0**32) if wraps else None
    )
    counted = (rates.per_s * np.diff(seconds)).sum()
    assert (rates.per_s >= 0).all()
    if not len(rates.resets):
        assert counted == pytest.approx(total[-1] - total[0], rel=1e-6, abs=1e-3)
    else:
        assert wraps, "a counter that only grows has no reset"
        assert counted <= total[-1] - total[0] + 1e-3


@pytest.mark.parametrize("time", [None, "", "soon", float("nan"), float("inf"), -1, 1e18, 0])
def test_a_time_that_is_none_is_dropped_or_refused(time):
    raw, quality = RawSamples("s"), QualityReport()
    raw.add(Labels("hw.power", node="n0", unit="W"), time, 100)
    with pytest.raises(InputError, match="no point has a time"):
        clean_samples(raw, Inventory(), quality, where="file")
    raw.add(Labels("hw.power", node="n0", unit="W"), T0, 100)
    quality = QualityReport()
    assert len(clean_samples(raw, Inventory(), quality, where="file")) == 1
    assert quality.total() == {"unparseable": 1}


def test_no_points_give_an_empty_table():
    frame, quality = clean([], QualityPolicy(scrape_gap="repair"))
    assert frame.empty
    assert quality.total() == {}

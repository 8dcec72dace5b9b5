"""ipmitool text of many BMCs: which row is the node's watts, and any line anywhere counted or refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.errors import InputError
from telemetry.readers import READERS
from telemetry.readers.ipmi import reading, sensor_rows
from telemetry.schema import validate


@pytest.mark.parametrize(
    ("rows", "watts"),
    [
        (["Pwr Consumption  | 77h | ok  |  7.1 | 350 Watts", "Current 1 | 6Ah | ok | 10.1 | 1.40 Amps"], "350"),
        (["Sys Power Cap | 800 Watts | ok", "Sys Power | 412 Watts | ok"], "412"),
        (["PS1 Input Power | 200.000 | Watts | ok", "PS1 Output Power | 180 | Watts | ok", "PS2 Input Power | 10 | Watts | ok"], "210.0"),
        (["PSU1_POUT | 90 Watts | ok", "PSU2_POUT | 95 Watts | ok"], "185.0"),
        (["PS1 Input Power | 200 Watts | ok", "PS2 Input Power | no reading | ns"], "na"),
        (["PS1 Status | 0x01 | ok", "PS1 Input Power | 200 Watts | ok"], "200.0"),
        (["Power Meter | disabled | ns"], "disabled"),
        (["CPU1 Power | 90 Watts | ok"], "no power reading in the block"),
        (["Error: Unable to establish IPMI v2 / RMCP+ session"], "no power reading in the block"),
        (["    Instantaneous power reading: 9 Watts", "    Power reading state is: deactivated"], "disabled"),
    ],
)  # fmt: skip
def test_watts_of_a_block(rows, watts):
    assert reading(rows) == (watts, "W")


def test_rows_of_three_layouts():
    rows = ["A | 1.5 | Volts | ok | na | na", "B | 2 Amps | ok", "C | 0Ah | ok | 1.1 | 3 Watts", "D | no reading | ns", "nothing"]
    assert sensor_rows(rows) == [("A", "1.5", "Volts"), ("B", "2", "Amps"), ("C", "3", "Watts"), ("D", "no reading", "")]


LINES = st.one_of(
    st.sampled_from(
        ["=== n1 2026-01-05T00:00:00Z", "=== n1 soon", "===", "=== n1 0001-01-01",
         "Pwr Consumption | 9e999 Watts | ok", "a | b | Watts | c",
         "Average power reading over sample period: nan Watts", "Instantaneous power reading: -5 kW", "PS1 Power | . | Watts | ok",
         "PS1 Power | 1.2.3 | Watts | ok", "||||", "Sys Power | - | Watts"]
    ),
    st.text(max_size=20),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=8))
def test_any_line_is_counted_or_refused_by_name(lines, tmp_path, context):
    path = tmp_path / "odd.txt"
    path.write_text("=== n0 2026-01-05T00:00:00Z\nPwr Consumption | 9 Watts | ok\n" + "\n".join(lines))
    try:
        result = READERS["ipmi"].read(path, context)
    except InputError as error:
        assert "odd.txt" in str(error)  # noqa: PT017
    else:
        validate("samples", result.tables["samples"], where="test")

"""Times of every spelling become the same UTC instants."""

from __future__ import annotations

import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.times import parse_time_s, utc_column, utc_times


def test_mixed_zones_do_not_colour_each_other():
    texts = ["2026-01-05T02:00:00+02:00", "2026-01-05T00:00:00", "2026-01-04T19:00:00-0500", "2026-01-05", "2026-01-05 00:00:00.000Z"]
    times, wrong = utc_times(texts)
    assert times.tolist() == [pd.Timestamp("2026-01-05", tz="UTC")] * 5
    assert not wrong.any()
    assert {parse_time_s(text) for text in texts} == {pd.Timestamp("2026-01-05", tz="UTC").timestamp()}


def test_blank_is_no_time_and_nonsense_is_wrong():
    times, wrong = utc_times([None, "Unknown", "", "noon", "2026-13-01"])
    assert times.isna().all()
    assert wrong.tolist() == [False, False, False, True, True]
    assert utc_times([])[0].dtype == times.dtype
    assert parse_time_s("noon") is None


def test_columns_of_times_and_numbers():
    naive = pd.Series(pd.to_datetime(["2026-01-05"]), name="t")
    zoned = naive.dt.tz_localize("Europe/Berlin")
    assert utc_column(naive, where="x")[0] == pd.Timestamp("2026-01-05", tz="UTC")
    assert utc_column(zoned, where="x")[0] == pd.Timestamp("2026-01-04T23:00Z")
    with pytest.raises(InputError, match="holds numbers"):
        utc_column(pd.Series([1.0], name="t"), where="x")
    with pytest.raises(InputError, match="column 't', row 1: 'soon' is no time"):
        utc_column(pd.Series(["2026-01-05", "soon"], name="t"), where="x")

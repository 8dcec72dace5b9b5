"""Readers of public traces on small tables: options, damaged columns, and what becomes of each row."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.raw import GOOD, SENTINEL, UNPARSEABLE, ColumnSamples, Labels, RawSamples
from telemetry.readers import READERS, ReadContext
from telemetry.readers.trace_requests import histogram_mean
from telemetry.schema import TIME_COLUMN, validate
from telemetry.units import METRICS

NAMES = sorted(name for name, reader in READERS.items() if reader.__class__.__module__.rpartition(".")[2].startswith("trace_"))
ODD = {
    "nan": np.nan, "none": None, "minus one": -1, "negative": -5.25, "infinite": np.inf, "minus infinite": -np.inf, "huge": 1e300,
    "tiny": 5e-324, "text": "n/a", "word": "hello", "list": [1, 2], "truth": True, "day": datetime.date(2026, 1, 5), "comma": "1,5",
    "long": "9" * 400,
}  # fmt: skip

CLEAN_ROWS: dict[str, dict[str, int]] = {}


@pytest.fixture
def read(tmp_path, traces, as_file):
    """A table read by a reader, with its own options or others."""

    def run(reader: str, frame: pd.DataFrame, kind: str = "parquet", name: str = "t_A", **options: object):
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes(as_file(frame, kind))
        return READERS[reader].read(path, ReadContext("src", options={**traces[reader][1], **options}))

    return run


def as_column(values: list) -> pd.Series:
    """Values as the kind of column that a file can hold."""
    try:
        frame = pd.DataFrame({"c": values})
        frame.to_parquet(None)
        return frame["c"]
    except Exception:  # mixed kinds have no Parquet type
        return pd.Series([None if v is None else str(v) for v in values], dtype=object)


@pytest.mark.parametrize("reader", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_column_is_counted_or_refused(reader, data, read, traces):
    """Never another exception, never a table that does not fit, never more rows than there were."""
    frame = traces[reader][0].copy()
    column = data.draw(st.sampled_from(list(frame.columns)))
    damage = data.draw(st.sampled_from(["missing", "twice in the file", "cells", "whole column", "times", "empty"]))
    if damage == "missing":
        frame = frame.drop(columns=column)
    elif damage == "twice in the file":
        frame = pd.concat([frame, frame], ignore_index=True)
    elif damage == "empty":
        frame = frame.iloc[:0]
    elif damage == "times":
        frame[column] = pd.Timestamp("2026-01-05", tz=data.draw(st.sampled_from([None, "UTC", "Asia/Tokyo"])))
    else:
        at = data.draw(st.sets(st.integers(0, len(frame) - 1), min_size=1)) if damage == "cells" else set(range(len(frame)))
        odd = ODD[data.draw(st.sampled_from(sorted(ODD)))]
        frame[column] = as_column([odd if row in at else value for row, value in enumerate(frame[column].tolist())])
    kind = data.draw(st.sampled_from(["csv", "parquet"]))
    try:
        result = read(reader, frame, kind)
    except InputError as error:
        assert f"t_A.{kind}" in str(error)  # noqa: PT017
        return
    if reader not in CLEAN_ROWS:
        CLEAN_ROWS[reader] = {table: len(rows) for table, rows in read(reader, traces[reader][0]).tables.items()}
    clean = CLEAN_ROWS[reader]
    assert set(result.tables) == set(clean)
    for table, rows in result.tables.items():
        validate(table, rows, where=reader)
        limit = 2 if damage == "twice in the file" else 1
        if reader not in ("azure_llm", "mooncake", "burstgpt"):  # their rows are windows
            assert len(rows) <= limit * clean[table]


@pytest.mark.parametrize("reader", NAMES)
def test_a_missing_column_of_values_is_named(reader, read, traces):
    frame = traces[reader][0]
    needed = 0
    for column in frame.columns:
        try:
            read(reader, frame.drop(columns=column))
        except InputError as error:
            needed += column in str(error)
    assert needed >= 1


@pytest.mark.parametrize("reader", [name for name in NAMES if "start" in getattr(READERS[name], "options", {})])
def test_a_trace_without_a_calendar_needs_its_start(reader, read, traces, tmp_path, as_file):
    frame = traces[reader][0]
    path = tmp_path / "t.parquet"
    path.write_bytes(as_file(frame, "parquet"))
    with pytest.raises(InputError, match=r"option 'start' is missing.*second 0"):
        READERS[reader].read(path, ReadContext("src"))
    for wrong in ("soon", 5, "1969-01-01"):
        with pytest.raises(InputError, match=r"option 'start' is .*between 2000 and 2100"):
            read(reader, frame, start=wrong)
    (table,) = read(reader, frame).tables
    early = read(reader, frame, start="2026-01-05").tables[table][TIME_COLUMN[table]]
    late = read(reader, frame, start="2026-01-06T01:00").tables[table][TIME_COLUMN[table]]
    assert set(late - early) == {pd.Timedelta(hours=25)}


def test_an_unknown_option_is_refused_with_those_that_there_are(read, traces, tmp_path, as_file):
    with pytest.raises(InputError, match=r"unknown option 'begin' of reader 'openb'.*start: .*duration: "):
        read("openb", traces["openb"][0], begin="2026-01-05")
    path = tmp_path / "jobs.csv"
    path.write_text("job_id,submit_time,duration_s,gpus,workers\na,2026-01-05T00:00:00Z,1,1,1\n")
    with pytest.raises(InputError, match=r"source 'jobs.csv': unknown option 'start' of reader 'jobs_table'.*none"):
        ingest_sources(Lake(tmp_path / "lake"), [SourceSpec(path, "jobs_table", options={"start": "2026-01-05"})])


def test_options_and_companions_are_part_of_what_makes_a_source_changed(tmp_path, traces, as_file):
    jobs, speeds = tmp_path / "jobs.parquet", tmp_path / "speeds.csv"
    jobs.write_bytes(as_file(traces["philly_gavel"][0], "parquet"))
    speeds.write_text("worker_type,job_type,scale_factor,throughput\nv100,LM (batch size 80),1,10\nk80,LM (batch size 80),1,1\n")
    lake = Lake(tmp_path / "lake")
    spec = SourceSpec(jobs, "philly_gavel", options={"start": "2026-01-05", "throughputs": str(speeds)})
    assert ingest_sources(lake, [spec]).status == {"jobs.parquet": "ingested"}
    assert ingest_sources(lake, [spec]).status == {"jobs.parquet": "unchanged"}
    # Steps over the speed of one V100; the gang of 12 is 2 workers of 4 or 3 of 4: the greatest common divisor with 8.
    table = lake.table("jobs").set_index("job_id")
    assert table["duration_s"].tolist() == [10.0, 20.0, 30.0]
    assert table.loc["b-00000", ["gpus", "workers"]].tolist() == [4.0, 3.0]
    speeds.write_text(speeds.read_text().replace(",10\n", ",20\n"))
    assert ingest_sources(lake, [spec]).status == {"jobs.parquet": "ingested"}
    assert sorted(lake.table("jobs")["duration_s"]) == [5.0, 10.0, 15.0]
    other = SourceSpec(jobs, "philly_gavel", options={"start": "2026-01-06", "throughputs": str(speeds)})
    assert ingest_sources(lake, [other]).status == {"jobs.parquet": "ingested"}
    speeds.unlink()
    with pytest.raises(InputError, match=r"speeds\.csv: cannot be opened"):
        ingest_sources(lake, [other])


def test_zones_become_sites_and_the_others_are_noted(read, traces):
    frame = traces["electricitymaps"][0]
    result = read("electricitymaps", frame, zones={"A": "west"})
    samples = result.tables["samples"]
    assert set(samples["site"]) == {"west"}
    assert set(samples["service"]) == {"A"}
    assert len(samples) == 12 * 4
    assert result.quality.notes["src"]["rows of zones that were not asked for"] == 12
    with pytest.raises(InputError, match=r"unknown zone 'C'.*A, B"):
        read("electricitymaps", frame, zones={"C": "west"})
    with pytest.raises(InputError, match="option 'zones' is 'A'"):
        read("electricitymaps", frame, zones="A")


def test_minus_one_is_a_value_where_values_can_be_negative_and_no_value_elsewhere(read, traces):
    weather = traces["openmeteo"][0].assign(temperature_2m=-1.0, windspeed_10m=-1.0)
    result = read("openmeteo", weather)
    samples = result.tables["samples"]
    assert (samples[samples["metric"] == "weather.temperature"]["value"] == -1.0).sum() == len(weather)
    assert "weather.wind_speed" not in set(samples["metric"])
    assert result.quality.total() == {"sentinel": len(weather)}
    prices = read("iso_price", traces["iso_price"][0]).tables["samples"]["value"]
    assert prices.min() == pytest.approx(-0.006)
    assert -0.001 in prices.round(9).to_list()  # -1 USD/MWh


def test_requests_are_counted_once_in_whole_windows(read, traces):
    # 18:00 and 18:03 are the first and the last, partial minute of a clock that does not begin with the trace.
    result = read("azure_llm", traces["azure_llm"][0], name="trace_code")
    samples = result.tables["samples"]
    rates = samples[samples["metric"] == "http.server.request.rate"]
    assert rates["time"].tolist() == [pd.Timestamp("2026-01-05T18:02Z"), pd.Timestamp("2026-01-05T18:03Z")]
    assert (rates["value"] * 60).round(9).tolist() == [2.0, 2.0]
    assert set(rates["service"]) == {"code"}
    tokens = samples[samples["metric"] == "gen_ai.input_tokens.rate"]["value"] * 60
    assert tokens.round(9).tolist() == [2 + 3, 4 + 5]
    assert result.quality.notes["src"]["requests in a first or last window that is not whole"] == 4
    burst = read("burstgpt", traces["burstgpt"][0], step_s=100)
    assert burst.quality.notes["src"]["requests that failed (no response token), kept"] == 1
    rates = burst.tables["samples"].query("metric == 'http.server.request.rate'").set_index(["service", "time"])["value"] * 100
    first, second = pd.Timestamp("2026-01-05T00:01:40Z"), pd.Timestamp("2026-01-05T00:03:20Z")
    assert rates["ChatGPT/Conversation log"].round(9).to_dict() == {first: 1.0, second: 1.0}
    assert rates["GPT-4/Conversation log"].round(9).to_dict() == {first: 1.0, second: 0.0}
    with pytest.raises(InputError, match="not one whole window of 3600 s"):
        read("burstgpt", traces["burstgpt"][0], step_s=3600)
    with pytest.raises(InputError, match=r"option 'step_s' is 0\.5.*whole number"):
        read("burstgpt", traces["burstgpt"][0], step_s=0.5)
    with pytest.raises(InputError, match="windows of 1 s"):
        read("burstgpt", traces["burstgpt"][0].assign(Timestamp=[0, 1, 2, 9e8]), step_s=1)


def test_token_histograms_become_means():
    assert histogram_mean("{13: 0.25, 15: 0.75}") == 14.5
    assert histogram_mean("{1: 2e-05, 3: 2e-05}") == pytest.approx(2.0)
    assert np.isnan(histogram_mean("{}"))  # a window without a request
    for odd in ("", "{13: }", "__import__('os')", "{1: 0.0}", "{1: 0.5, 2}", "{1: ...}"):
        assert isinstance(histogram_mean(odd), str)


def test_clients_of_several_models_are_told_apart(read, traces):
    samples = read("servegen", traces["servegen"][0], model="m-small").tables["samples"]
    assert set(samples["service"]) == {"m-small/client-00", "m-small/client-01"}


def test_token_histograms_are_read_by_their_columns(read):
    frame = pd.DataFrame(
        {
            "chunk": 3, "timestamp": [0, 0, 21600, 21600], "field": ["input_tokens", "output_tokens"] * 2,
            "histogram": ["{10: 1.0}", "{1: 0.5, 3: 0.5}", "{20: 1.0}", "oops"],
        }
    )  # fmt: skip
    result = read("servegen", frame)
    samples = result.tables["samples"].set_index(["metric", "time"])["value"]
    assert samples["gen_ai.input_tokens.mean"].tolist() == [10.0, 20.0]
    assert samples["gen_ai.output_tokens.mean"].tolist() == [2.0]
    assert samples.index.get_level_values("time").min() == pd.Timestamp("2026-01-05T06:00Z")
    assert result.quality.total() == {"unparseable": 1}


def test_a_run_is_a_series_and_estimates_of_another_clock_are_left_out(read):
    frame = pd.DataFrame(
        {
            "system": "s", "benchmark": "bert", "run": ["r1"] * 4 + ["r2"] * 4, "node": "node_0", "key": "power_reading",
            "time_ms": [1_767_571_200_000 + 2_000 * k for k in (0, 1, 2, 2, 900, 901, 902, 905)],
            "value": [100.0, -1.0, -43.0, 7.0, 1.0, 2.0, 3.0, 4.0],
        }
    )  # fmt: skip
    switch = frame.iloc[:1].assign(node="sw_0", key="interconnect_power_est", time_ms=1_652_749_794_206)
    start = frame.iloc[:1].assign(key="power_measurement_start", value=np.nan)
    result = read("mlperf_power", pd.concat([start, frame, switch], ignore_index=True))
    samples = result.tables["samples"]
    assert samples["value"].tolist() == [100.0, 7.0, 1.0, 2.0, 3.0, 4.0]
    assert set(samples["service"]) == {"bert/r1", "bert/r2"}
    # The half hour between the runs is no gap; the two scrapes lost in the second run are one.
    assert result.quality.total() == {"scrape_gap": 1, "scrape_gap_samples": 2, "duplicate": 1, "sentinel": 1}
    assert result.quality.notes["src"]["log lines that are no reading"] == 1
    assert result.quality.notes["src"]["estimates of the switches' power, with a clock of 2022, left out"] == 1


def test_rows_of_too_many_fields_are_counted_and_the_others_read(tmp_path):
    path = tmp_path / "factors.csv"
    path.write_text("Region,Location,NERC Region,CO2e (metric ton/kWh),Source\nEast,A,,0.0004,E\nNorth,B,,000077,E,\nWest,C,,000402,E\n")
    result = READERS["ccf"].read(path, ReadContext("src"))
    assert result.tables["reference"]["item"].tolist() == ["Region=East"]
    assert result.quality.total() == {"unparseable": 2}


def test_items_of_reference_can_be_taken_apart_again(read, traces):
    frame = traces["zeus"][0].assign(network=["a,b=c%", "d"])
    items = read("zeus", frame).tables["reference"]["item"].unique()
    assert items.tolist() == [
        "dataset=cifar100,network=a%2Cb%3Dc%25,batch_size=1024,optimizer=adam,power_limit=100",
        "dataset=cifar100,network=d,batch_size=1024,optimizer=adam,power_limit=125",
    ]


def test_reference_is_stored_and_asked_like_any_table(tmp_path, traces, as_file):
    path = tmp_path / "sweep.csv"
    path.write_bytes(as_file(traces["zeus"][0], "csv"))
    lake = Lake(tmp_path / "lake")
    result = ingest_sources(lake, [SourceSpec(path, "zeus")])
    assert result.rows["reference"] == 4
    assert len(lake.table("reference", start="2026-01-05")) == 4  # it has no time to be asked for
    found = lake.query("SELECT max(value) AS w FROM reference WHERE quantity = 'average_power'")
    assert found["w"].tolist() == [91.0]
    validate("reference", lake.table("reference"), where="lake")


def test_original_json_lines_are_read_too(tmp_path, traces):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row | {"hash_ids": [1, 2]}) for row in traces["mooncake"][0].to_dict("records")))
    samples = READERS["mooncake"].read(path, ReadContext("src", options={"start": "2026-01-05"})).tables["samples"]
    rates = samples[samples["metric"] == "http.server.request.rate"]["value"] * 60
    assert rates.round(9).tolist() == [2.0, 1.0, 0.0]


def test_columns_and_single_points_come_to_the_same_arrays():
    values = ["1.5", "-1", "", "oops", None, "inf", "-3"]
    for metric in ("weather.temperature", "hw.power"):
        labels = Labels(metric=metric, node="n", unit=METRICS[metric].unit)
        single, columns = RawSamples("src"), ColumnSamples("src")
        for index, item in enumerate(values):
            single.add(labels, 1_767_571_200 + index, item)
        times = pd.Series(pd.date_range("2026-01-05", periods=len(values), freq="s", tz="UTC"))
        columns.add([labels], np.zeros(len(values), dtype=int), times, pd.Series(values, dtype=object))
        one, other = single.points(where="here"), columns.points(where="here")
        for name in ("group", "stream", "time_ns", "bad_time", "value", "state", "scale", "shift"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        signed = metric == "weather.temperature"
        assert one.state.tolist() == [GOOD, GOOD if signed else SENTINEL, SENTINEL, UNPARSEABLE, SENTINEL, UNPARSEABLE, GOOD]


def test_a_gap_of_a_century_is_counted_without_being_laid_out(read, traces):
    frame = traces["kepler_models"][0].copy()
    frame.loc[11, "timestamp"] = 4_102_444_000  # 2099
    found = read("kepler_models", frame).quality.total()
    assert found["scrape_gap"] == 1
    assert found["scrape_gap_samples"] > 700_000_000

"""Any CSV by a mapping: forms, zones, decimals, units and counters by value; every wrong key told; odd mappings and tables refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_json import spoiled

from pipelines import ingest as command
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.inventory import Inventory
from telemetry.lake import Lake
from telemetry.readers import READERS, ReadContext
from telemetry.readers.csv_mapping import checked, load_mapping
from telemetry.schema import validate

NAB = Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")) / "e_cloud" / "NAB"
WATTS = {"metric": "hw.power", "unit": "W"}


@pytest.fixture
def read(tmp_path):
    def run(text, mapping, name="table.csv"):
        if isinstance(text, str):
            (tmp_path / name).write_text(text)
        else:
            text.to_parquet(tmp_path / name)
        result = READERS["csv"].read(tmp_path / name, ReadContext("src", Inventory(), options={"mapping": mapping}))
        return next(iter(result.tables.values())), result.quality

    return run


def wide(**change):
    return {"time": {"column": "t", "zone": "UTC"}, "labels": {"node": "host"}, "values": {"w": WATTS}} | change


def test_wide_form_with_decimal_comma_units_and_missing_texts(read):
    text = "t;host;kw;kwh;note\n05.01.2026 00:00;a;1.234,5;10,0;x\n05.01.2026 01:00;a;k.A.;11,5;x\n05.01.2026 02:00;a;zwei;-;x\n"
    mapping = {
        "delimiter": ";", "decimal": ",", "thousands": ".", "missing": ["k.A.", "-"],
        "time": {"column": "t", "format": "%d.%m.%Y %H:%M", "zone": "Europe/Berlin"},
        "labels": {"node": "host"}, "constants": {"site": "berlin"},
        "values": {"kw": {"metric": "hw.power", "unit": "W"}, "kwh": {"metric": "hw.energy", "unit": "kWh", "counter": True}},
    }  # fmt: skip
    frame, quality = read(text, mapping)
    power = frame[frame["metric"] == "hw.power"]
    assert power[["value", "node", "site"]].to_numpy().tolist() == [[1234.5, "a", "berlin"]]
    assert power["time"].tolist() == [pd.Timestamp("2026-01-04T23:00Z")]
    assert frame[frame["metric"] == "hw.energy.rate"]["value"].tolist() == [1500.0]
    assert quality.total() == {"sentinel": 2, "unparseable": 1, "unit_converted": 3}
    assert quality.notes["src"]["column 'note', which the mapping does not name"] == 1


def test_long_form_takes_the_unit_of_the_row(read):
    text = "ts,what,v,u,dev\n1767571200000,P,0.2,kW,gpu0\n1767571260000,P,300,W,gpu0\n1767571200000,U,50,%,gpu0\n1767571200000,X,1,,gpu0\n"
    mapping = {
        "time": {"column": "ts", "format": "unix_ms"}, "labels": {"device": "dev"}, "constants": {"node": "n1", "pod": "p"},
        "long": {"metric": "what", "value": "v", "unit": "u"},
        "metrics": {"P": WATTS, "U": {"metric": "hw.gpu.utilization"}},
    }  # fmt: skip
    frame, quality = read(text, mapping)
    assert frame[frame["metric"] == "hw.power"]["value"].tolist() == [200.0, 300.0]
    assert frame[frame["metric"] == "hw.gpu.utilization"]["value"].tolist() == [0.5]
    assert set(frame["pod_uid"]) == {"p"}
    assert quality.notes["src"]["rows of 'X', which the mapping does not name"] == 1
    with pytest.raises(InputError, match="unit 'V'"):
        read(text.replace("kW", "V"), mapping)


def test_counters_that_tell_increases(read):
    text = "t,host,w\n" + "".join(f"2026-01-05T00:0{k}:00Z,a,{60 * k}\n" for k in range(3))
    energy = {"w": {"metric": "hw.energy", "unit": "J"}}
    assert read(text, wide(values=energy))[0]["value"].tolist() == [1.0, 1.0]
    energy["w"]["counter"] = False
    assert read(text, wide(values=energy))[0]["value"].tolist() == [1.0, 2.0]


def autumn(zone="Europe/Berlin", **change):
    return wide(time={"column": "t", "zone": zone} | change, labels={}, constants={"node": "a"})


def test_hours_that_a_change_of_the_clocks_repeats(read):
    hours = ["01:30", "02:00", "02:30", "02:00", "02:30", "03:00"]
    text = "t,w\n" + "".join(f"2026-10-25 {hour}:00,{k}\n" for k, hour in enumerate(hours))
    with pytest.raises(InputError, match=r"column 't' is not one time in Europe/Berlin.*time\.ambiguous"):
        read(text, autumn())
    frame, quality = read(text, autumn(ambiguous="order"))
    assert frame["time"].dt.strftime("%H:%M").tolist() == ["23:30", "00:00", "00:30", "01:00", "01:30", "02:00"]
    assert quality.total() == {}
    once = "t,w\n2026-10-25 02:30:00,1\n"
    assert read(once, autumn(ambiguous="earlier"))[0]["time"].tolist() == [pd.Timestamp("2026-10-25T00:30Z")]
    assert read(once, autumn(ambiguous="later"))[0]["time"].tolist() == [pd.Timestamp("2026-10-25T01:30Z")]
    with pytest.raises(InputError, match="not one time"):
        read("t,w\n2026-03-29 02:30:00,1\n", autumn())


def test_zones(read):
    text = "t,host,w\n2026-01-05 00:00:00,a,1\n"
    with pytest.raises(InputError, match=r"have no zone \(first '2026-01-05 00:00:00'\).*time: \{zone:"):
        read(text, wide(time={"column": "t"}))
    zoned = "t,host,w\n2026-01-05T00:00:00+02:00,a,1\nyesterday,a,2\n"
    frame, quality = read(zoned, wide(time={"column": "t"}))
    assert frame["time"].tolist() == [pd.Timestamp("2026-01-04T22:00Z")]
    assert quality.total() == {"unparseable": 1}
    with pytest.raises(InputError, match="some times of column 't' have a zone"):
        read(text + "2026-01-05T01:00:00Z,a,2\n", wide())


def test_parquet_with_times_of_its_own(read):
    table = pd.DataFrame({"t": pd.date_range("2026-01-05", periods=3, freq="1h"), "host": ["a", "b", None], "w": [1.0, None, 3.0]})
    frame, quality = read(table, wide(), "table.parquet")
    assert frame["value"].tolist() == [3.0, 1.0]
    assert frame["node"].tolist() == ["", "a"]
    assert quality.total() == {"sentinel": 1}


def test_jobs_and_grid(read):
    mapping = {
        "table": "jobs",
        "time": {"zone": "America/New_York"},
        "constants": {"pool": "a100", "workload_class": "training"},
        "fields": {"job_id": "id", "submit_time": "sub", "gpus": "g", "duration_s": {"column": "hours", "factor": 3600}},
    }
    jobs, quality = read("id,sub,g,hours\na,2026-01-05 00:00:00,4,1.5\nb,2026-01-05 00:00:00,0,1\nc,2026-01-05 01:00:00,1,soon\n", mapping)
    assert jobs["job_id"].tolist() == ["a", "c"]
    assert jobs["duration_s"].tolist()[0] == 5400.0
    assert jobs["submit_time"].tolist()[0] == pd.Timestamp("2026-01-05T05:00Z")
    assert set(jobs["pool"]) == {"a100"}
    assert quality.total() == {"unparseable": 1}
    assert quality.notes["src"]["jobs without a GPU, left out"] == 1
    prices = {
        "table": "grid", "time": {"zone": "UTC"}, "constants": {"site": "west"},
        "fields": {"time": "t", "price_usd_per_kwh": {"column": "usd_mwh", "factor": 0.001}, "carbon_g_per_kwh": "co2"},
    }  # fmt: skip
    grid, _ = read("t,usd_mwh,co2\n2026-01-05 00:00,50,200\n2026-01-05 01:00,-10,210\n2026-01-05 02:00,60,220\n", prices)
    assert grid["price_usd_per_kwh"].tolist() == pytest.approx([0.05, -0.01, 0.06])
    assert set(grid["site"]) == {"west"}
    with pytest.raises(InputError, match="no field carbon_g_per_kwh"):
        read("t,usd_mwh\n2026-01-05 00:00,50\n", {**prices, "fields": {"time": "t", "price_usd_per_kwh": "usd_mwh"}})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vales": {}}, r"unknown key 'vales'.*perhaps values"),
        ({"values": {}}, "no column"),
        ({"values": {"w": {"metric": "hw.powr", "unit": "W"}}}, r"metric 'hw.powr'.*perhaps hw.power"),
        ({"values": {"w": {"metric": "hw.power"}}}, r"values.w: no unit.*W"),
        ({"values": {"w": {"metric": "hw.power", "unit": "V"}}}, "unit 'V'"),
        ({"values": {"w": WATTS | {"counter": True}}}, "counter True of hw.power"),
        ({"long": {"metric": "m", "value": "v"}}, "one of them"),
        ({"labels": {"nod": "host"}}, r"unknown key 'nod'.*perhaps node"),
        ({"labels": {"node": "hots"}}, r"no column 'hots'.*perhaps host"),
        ({"time": {"column": "t", "zone": "Europe/Berln"}}, r"zone 'Europe/Berln'.*Europe/Berlin"),
        ({"time": {"column": "t", "zone": "../../etc/passwd"}}, "zone"),
        ({"time": {"column": "t", "format": "german"}}, "format 'german'"),
        ({"time": {"column": "t", "ambiguous": "guess"}}, "ambiguous 'guess'"),
        ({"time": {}}, "needed there"),
        ({"decimal": ";"}, "decimal . or ,"),
        ({"missing": "x"}, "a list of texts"),
        ({"table": "power"}, "samples, jobs, grid"),
    ],
)
def test_a_wrong_mapping_is_told_by_key(read, change, told):
    with pytest.raises(InputError, match=told):
        read("t,host,w\n2026-01-05T00:00:00,a,1\n", wide(**change))


def test_the_mapping_is_part_of_what_is_ingested(tmp_path):
    (tmp_path / "t.csv").write_text("t,host,w\n2026-01-05T00:00:00,a,1\n")
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(wide()))
    told = {"mapping": str(tmp_path / "map.yaml")}
    lake, spec = Lake(tmp_path / "lake"), SourceSpec(tmp_path / "t.csv", "csv", options=told)
    assert ingest_sources(lake, [spec]).status == {"t.csv": "ingested"}
    assert ingest_sources(lake, [spec]).status == {"t.csv": "unchanged"}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(wide(values={"w": {"metric": "hw.power", "unit": "kW"}})))
    assert ingest_sources(lake, [spec]).status == {"t.csv": "ingested"}
    assert lake.table("samples", columns=["value"])["value"].tolist() == [1000.0]
    with pytest.raises(InputError, match="unknown option 'mapping' of reader 'otlp'"):
        ingest_sources(lake, [SourceSpec(tmp_path / "t.csv", "otlp", options=told)])
    with pytest.raises(InputError, match=r"no mapping.*mapping: FILE"):
        ingest_sources(lake, [SourceSpec(tmp_path / "t.csv", "csv")])
    for text, problem in (("[1, 2]", "list and no mapping"), ("a: [", "no valid YAML")):
        (tmp_path / "map.yaml").write_text(text)
        with pytest.raises(InputError, match=problem):
            load_mapping(tmp_path / "map.yaml")
    (tmp_path / "map.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(InputError, match="no valid YAML"):
        load_mapping(tmp_path / "map.yaml")


def test_the_command_takes_a_mapping(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("t,host,w\n2026-01-05T00:00:00,a,1\n")
    Path("map.json").write_text(json.dumps(wide()))
    files = "source.files=[{path: t.csv, reader: csv, options: {mapping: map.json}}]"
    monkeypatch.setattr(sys, "argv", ["ingest", "source=files", files, "lake.root=lake"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    assert "samples 1 rows" in capsys.readouterr().out


@pytest.mark.skipif(not NAB.is_dir(), reason="the traces are not here: python -m pipelines.fetch_traces, JOULEWISE_TRACES")
def test_a_cloudwatch_series_of_nab(tmp_path):
    path = NAB / "realAWSCloudwatch" / "ec2_cpu_utilization_24ae8d.csv"
    mapping = {
        "time": {"column": "timestamp", "format": "%Y-%m-%d %H:%M:%S", "zone": "UTC"},
        "constants": {"node": "i-24ae8d"},
        "values": {"value": {"metric": "system.cpu.utilization", "unit": "%"}},
    }
    result = READERS["csv"].read(path, ReadContext("nab", Inventory(), options={"mapping": mapping}))
    frame, own = result.tables["samples"], pd.read_csv(path)
    assert len(frame) == len(own) == 4032
    assert frame["value"].to_numpy() == pytest.approx(own["value"].to_numpy() / 100)
    assert frame["time"].iloc[0] == pd.Timestamp("2014-02-14T14:30Z")


CELLS = st.sampled_from(
    ["", "1", "-1", "1e400", "nan", "a", "1,5", "1.5", "2026-01-05 00:00:00", "2026-10-25 02:30:00", '"', "0001-01-01", "9" * 30]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_mappings_and_tables_are_counted_or_refused_by_name(data, tmp_path):
    whole = [
        wide(decimal=",", missing=["x"], constants={"site": "s"}),
        {"time": {"column": "t", "format": "unix_s"}, "long": {"metric": "host", "value": "w"}, "metrics": {"a": WATTS}},
        {"table": "jobs", "time": {"zone": "UTC"}, "fields": {"job_id": "host", "submit_time": "t", "gpus": "w", "priority": "w"}},
        {"table": "grid", "time": {"zone": "UTC"}, "fields": {"time": "t", "price_usd_per_kwh": "w", "carbon_g_per_kwh": "w"}},
    ]
    mapping = data.draw(st.sampled_from(whole))
    if data.draw(st.booleans()):
        mapping = data.draw(spoiled(mapping))
    rows = data.draw(st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=5))
    path = tmp_path / "odd.csv"
    path.write_text("t,host,w\n2026-01-05 00:00:00,a,1\n" + "\n".join(map(",".join, rows)))
    if not isinstance(mapping, dict):
        return
    try:
        result = READERS["csv"].read(path, ReadContext("src", options={"mapping": mapping}))
    except InputError as error:
        assert "odd.csv" in str(error)  # noqa: PT017
    else:
        for table, frame in result.tables.items():
            validate(table, frame, where="test")


def test_a_checked_mapping_names_its_columns():
    assert checked(wide(), "map.yaml").columns() == ["t", "host", "w"]

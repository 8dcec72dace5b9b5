"""Samples in columns: the same cleaning as every other format, whatever the size of the pieces."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.readers import READERS
from telemetry.readers.samples_table import SamplesTableReader
from telemetry.schema import validate

NODES, STEPS, STEP = 7, 120, 30
T0 = 1_767_571_200


def flawed(seed: int, nodes: int = NODES) -> pd.DataFrame:
    """Scrapes of a few nodes with every flaw in them: lost, twice, late, off-clock, no reading, resets, pods that come and go."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(STEPS):
        for n in range(nodes):
            time = T0 + STEP * k + (11 if n == 3 else 0)
            if 40 < k < 46 and n == 2:
                continue
            pod = "" if rng.random() < 0.1 else f"p{k // 50}"
            energy = float(1e6 * (k - 70 if n == 1 and k >= 70 else k + 5))
            for metric, value in (
                ("DCGM_FI_DEV_POWER_USAGE", float(rng.integers(90, 120))),
                ("DCGM_FI_DEV_GPU_UTIL", float(rng.integers(0, 3))),
                ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", energy),
            ):
                if rng.random() < 0.02:
                    value = float(rng.choice([-1, np.nan, np.inf, -20, 90_000]))
                if rng.random() > 0.01:
                    rows.append((time if rng.random() > 0.003 else 5, metric, f"n{n}", "0", value, pod, "ns"))
                if rng.random() < 0.01:
                    rows.append((time, metric, f"n{n}", "0", value + 1, pod, "ns"))
    late = rng.integers(0, len(rows), 20)
    for at in late:
        rows.insert(int(rng.integers(0, len(rows))), rows.pop(int(at)))
    return pd.DataFrame(rows, columns=["timestamp", "__name__", "Hostname", "gpu", "value", "pod", "namespace"])


def write(frame: pd.DataFrame, path, files: int = 1):
    """As Parquet: one file, or a folder of them, in order."""
    if files == 1:
        frame.to_parquet(path, index=False)
        return path
    path.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(frame)), files)):
        frame.iloc[part].to_parquet(path / f"part-{number:03d}.parquet", index=False)
    return path


def as_prometheus(frame: pd.DataFrame) -> bytes:
    """The same points as an answer of a query, one result a series: their order in the file is that within the series."""
    result = []
    for labels, own in frame.groupby(["__name__", "Hostname", "gpu", "pod", "namespace"], sort=False):
        metric = dict(zip(["__name__", "Hostname", "gpu", "pod", "namespace"], labels, strict=True))
        values = [[t, None if np.isnan(v) else ("+Inf" if np.isinf(v) else v)] for t, v in zip(own["timestamp"], own["value"], strict=True)]
        result.append({"metric": metric, "values": values})
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()


def pieces(path, context, rows: int) -> tuple[pd.DataFrame, dict, int]:
    found = SamplesTableReader().read_pieces(path, context, rows)
    tables = [table for _, table in found.tables]
    frame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    text = [name for name in frame if name not in ("time", "value")]
    frame = frame.astype(dict.fromkeys(text, str)).astype({"time": "datetime64[ns, UTC]"})
    return frame.sort_values(["metric", "node", "device", "time"], ignore_index=True), found.quality.to_dict(), len(tables)


@pytest.mark.parametrize("seed", range(4))
def test_rows_and_counts_do_not_depend_on_the_pieces(tmp_path, context, seed):
    path = write(flawed(seed), tmp_path / "in", files=5)
    whole = READERS["samples_table"].read(path, context)
    frame = whole.tables["samples"]
    validate("samples", frame, where="test")
    frame = frame.astype({name: str for name in frame if name not in ("time", "value")})
    frame = frame.sort_values(["metric", "node", "device", "time"], ignore_index=True)
    assert {"clock_skew", "duplicate", "out_of_order", "scrape_gap", "counter_reset", "sentinel", "unparseable"} <= set(
        whole.quality.total()
    )
    for rows in (1, 400, 1000, 10**9):
        parts, quality, count = pieces(path, context, rows)
        pd.testing.assert_frame_equal(parts, frame, check_exact=True)
        assert quality == whole.quality.to_dict()
        assert count == (3 * NODES if rows == 1 else count)


@pytest.mark.parametrize("seed", range(2))
def test_the_same_rules_as_the_prometheus_reader(tmp_path, context, seed):
    """But for the order: an answer has one list a label set, so points that changed their pod are not late in it."""
    frame = flawed(seed)
    frame["pod"] = "p"
    (tmp_path / "answer.json").write_bytes(as_prometheus(frame))
    other = READERS["prometheus"].read(tmp_path / "answer.json", context)
    own = READERS["samples_table"].read(write(frame, tmp_path / "in.parquet"), context)
    pd.testing.assert_frame_equal(own.tables["samples"], other.tables["samples"])
    assert own.quality.to_dict() == other.quality.to_dict()


def test_a_bucket_of_other_steps_is_told_those_of_the_whole(tmp_path, context):
    """One node is scraped twice as often: its gaps are still counted by the step that is most common in the whole file."""
    frame = flawed(0)
    odd = frame["Hostname"] == "n5"
    frame.loc[odd, "timestamp"] = T0 + (frame.loc[odd, "timestamp"] - T0) * 4
    path = write(frame, tmp_path / "in.parquet")
    _, few, _ = pieces(path, context, 1)
    _, one, _ = pieces(path, context, 10**9)
    assert few == one
    assert one["sources"]["src"]["devices"]["n5/gpu0"]["scrape_gap"] > 100


def test_ingest_stores_pieces_as_the_whole(tmp_path, context, monkeypatch):
    path = write(flawed(1), tmp_path / "in", files=3)
    lakes = []
    for name, rows in (("few", 500), ("one", 10**9)):
        monkeypatch.setattr("telemetry.readers.samples_table.PIECE_ROWS", rows)
        lake = Lake(tmp_path / name)
        result = ingest_sources(lake, [SourceSpec(path, "samples_table", "src")], context.inventory)
        assert result.status == {"src": "ingested"}
        assert ingest_sources(lake, [SourceSpec(path, "samples_table", "src")], context.inventory).status == {"src": "unchanged"}
        lakes.append(lake)
    few, one = (lake.table("samples") for lake in lakes)
    assert len(few) > 1000
    by = ["time", "metric", "node", "device"]
    pd.testing.assert_frame_equal(
        few.astype({"metric": str, "node": str}).sort_values(by, ignore_index=True),
        one.astype({"metric": str, "node": str}).sort_values(by, ignore_index=True),
        check_categorical=False,
    )
    assert lakes[0].quality() == lakes[1].quality()
    assert lakes[0].rows() == lakes[1].rows() == {"samples": len(few), "jobs": 0, "grid": 0}
    power = lakes[0].table("samples", where={"metric": "hw.power", "node": ["n1", "n2"]}, columns=["time", "node", "value"])
    expected = few[(few["metric"] == "hw.power") & few["node"].isin(["n1", "n2"])]
    assert len(power) == len(expected) > 100
    assert power["value"].sum() == expected["value"].sum()
    assert not list(tmp_path.rglob(".staging*"))
    (path / "part-009.parquet").write_bytes((path / "part-000.parquet").read_bytes())
    assert ingest_sources(lakes[0], [SourceSpec(path, "samples_table", "src")], context.inventory).status == {"src": "ingested"}
    assert lakes[0].quality().total()["duplicate"] > few.shape[0] / 4


@pytest.mark.parametrize("kind", ["seconds", "floats", "time_ms", "us", "text values", "ipc", "hive", "canonical"])
def test_layouts_that_pipelines_write(tmp_path, context, kind):
    frame = flawed(2)
    frame = frame[frame["timestamp"] != 5]
    frame.loc[~np.isfinite(frame["value"]), "value"] = -1
    expected = READERS["samples_table"].read(write(frame, tmp_path / "plain.parquet"), context)
    path = tmp_path / "in.parquet"
    if kind == "floats":
        frame["timestamp"] = frame["timestamp"].astype(float)
    elif kind == "time_ms":
        frame = frame.assign(time_ms=frame.pop("timestamp") * 1000)
    elif kind == "us":
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="s").astype("datetime64[us]")
    elif kind == "text values":
        frame["value"] = [str(v) if v != -1 else "No reading" for v in frame["value"]]
    elif kind == "canonical":
        names = {"timestamp": "time", "__name__": "metric", "Hostname": "node", "gpu": "device", "pod": "pod_uid"}
        frame = frame.rename(columns=names).assign(device="gpu0")
    if kind == "ipc":
        path = tmp_path / "in.arrow"
        table = pa.Table.from_pandas(frame, preserve_index=False)
        with ipc.new_file(path, table.schema) as sink:
            sink.write_table(table, max_chunksize=100)
    elif kind == "hive":
        path = tmp_path / "in"
        for namespace, own in frame.groupby("namespace"):
            folder = path / f"namespace={namespace}"
            folder.mkdir(parents=True)
            own.drop(columns="namespace").to_parquet(folder / "part.parquet", index=False)
        (path / "_SUCCESS").touch()
    else:
        frame.to_parquet(path, index=False)
    found = READERS["samples_table"].read(path, context)
    pd.testing.assert_frame_equal(found.tables["samples"], expected.tables["samples"])
    assert found.quality.to_dict() == expected.quality.to_dict()


def test_units_and_unknown_metrics_are_told(tmp_path, context):
    frame = pd.DataFrame(
        {
            "time": [T0, T0 + 30, T0, T0], "metric": ["hw.power", "hw.power", "hw.humidity", "hw.gpu.utilization"],
            "unit": ["kW", "kW", "%", "%"], "node": "n0", "device": ["", "", "", "gpu0"], "value": [1.5, 2.0, 40.0, 50.0],
        }
    )  # fmt: skip
    frame.to_parquet(tmp_path / "in.parquet", index=False)
    result = READERS["samples_table"].read(tmp_path / "in.parquet", context)
    assert result.tables["samples"]["value"].tolist() == [0.5, 1500.0, 2000.0]
    assert result.quality.total() == {"missing_pod_label": 1, "unit_converted": 3}
    assert result.quality.notes["src"] == {"series of metric hw.humidity, which is not read": 1}
    frame["unit"] = "furlong"
    frame.to_parquet(tmp_path / "in.parquet", index=False)
    with pytest.raises(InputError, match=r"unit 'furlong'.*allowed"):
        READERS["samples_table"].read(tmp_path / "in.parquet", context)


def test_refusals_name_file_and_column(tmp_path, context):
    read = READERS["samples_table"].read
    frame = flawed(0)
    frame.drop(columns="value").to_parquet(tmp_path / "in.parquet", index=False)
    with pytest.raises(InputError, match=r"in\.parquet: missing column 'value'"):
        read(tmp_path / "in.parquet", context)
    frame.assign(timestamp="yesterday").to_parquet(tmp_path / "in.parquet", index=False)
    with pytest.raises(InputError, match=r"column 'timestamp' is"):
        read(tmp_path / "in.parquet", context)
    frame.assign(timestamp=3).to_parquet(tmp_path / "in.parquet", index=False)
    with pytest.raises(InputError, match="no point has a time between 2000 and 2100"):
        read(tmp_path / "in.parquet", context)
    for rows in (1, 10**9):
        with pytest.raises(InputError, match="no point has a time between 2000 and 2100"):
            pieces(tmp_path / "in.parquet", context, rows)
    frame.assign(__name__="up").to_parquet(tmp_path / "in.parquet", index=False)
    with pytest.raises(InputError, match="no samples of a known metric"):
        read(tmp_path / "in.parquet", context)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="no file to read in the folder"):
        read(tmp_path / "folder", context)

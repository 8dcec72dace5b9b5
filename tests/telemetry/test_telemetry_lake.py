"""The lake: idempotent by content, all or nothing, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from telemetry import ingest as ingest_module
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources, load_inventory
from telemetry.inventory import Inventory
from telemetry.lake import Lake, SourceTables
from telemetry.quality import QualityReport
from telemetry.schema import SCHEMAS, empty, validate

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def specs(clean, tmp_path) -> list[SourceSpec]:
    """Files of four kinds; jobs of different ids."""
    found = []
    for reader in ("prometheus", "ipmi", "slurm", "grid"):
        name, data = clean[reader]
        (tmp_path / name).write_bytes(data)
        found.append(SourceSpec(tmp_path / name, reader))
    return found


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path / "lake")


def files_of(lake: Lake) -> dict[str, bytes]:
    return {str(p.relative_to(lake.root)): p.read_bytes() for p in sorted(lake.root.rglob("*")) if p.is_file() and p.name != ".lock"}


def test_ingest_stores_queries_and_reports(lake, specs, context):
    result = ingest_sources(lake, specs, context.inventory)
    assert set(result.status.values()) == {"ingested"}
    assert result.rows == {"samples": 36 + 36 + 33 + 36, "jobs": 2, "grid": 48}
    answer = lake.query("SELECT node, avg(value) AS w FROM samples WHERE metric = 'hw.power' AND device = '' GROUP BY node ORDER BY node")
    assert answer["node"].tolist() == ["n0", "n1", "n2"]
    assert answer["w"].tolist() == [500.0] * 3
    assert lake.query("SELECT max(time) AS t FROM grid")["t"][0] == pd.Timestamp("2026-01-06T23:00Z")
    for table in SCHEMAS:
        validate(table, lake.table(table), where="lake")
    report = json.loads((lake.root / "quality" / "report.json").read_text())
    assert report == result.quality.to_dict()
    assert "<h1>" in (lake.root / "quality" / "report.html").read_text()


def test_partitions_by_table_source_and_date(lake, specs):
    ingest_sources(lake, specs)
    paths = sorted(str(p.relative_to(lake.root)) for p in lake.root.rglob("*.parquet"))
    assert any(p.startswith("tables/grid/source=grid.csv/version=") and p.endswith("/date=2026-01-06/part.parquet") for p in paths)
    dates = {p.split("date=")[1][:10] for p in paths if "grid" in p}
    assert dates == {"2026-01-05", "2026-01-06"}


def test_a_lake_of_before_a_column_was_known_has_it_blank(lake, specs):
    """Its files are as they were written then; new columns are blank and of their kind, also beside files that have them."""
    ingest_sources(lake, specs)
    added = ["workload", "checkpoint_s", "restart_s", "data_gib", "data_site"]
    jobs = lake.table("jobs")
    for path in lake.root.glob("tables/jobs/**/part.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(added), path)
    old = lake.table("jobs")
    validate("jobs", old, where="lake")
    pd.testing.assert_frame_equal(old, jobs)
    assert lake.table("jobs", columns=["job_id", "workload"])["workload"].tolist() == [None, None]
    fresh = jobs.assign(job_id=jobs["job_id"] + "-new", workload="A3C", data_gib=1.5)
    lake.ingest(SourceTables("new", "1" * 64, {"jobs": fresh}, QualityReport()))
    both = lake.table("jobs")
    validate("jobs", both, where="lake")
    assert both["workload"].notna().sum() == both["data_gib"].notna().sum() == 2
    assert lake.query("SELECT count(workload) AS n FROM jobs")["n"][0] == 2


def test_table_takes_a_half_open_span_in_utc(lake, specs):
    ingest_sources(lake, specs)
    part = lake.table("grid", "2026-01-05T22:00", pd.Timestamp("2026-01-06T03:00+02:00"))
    assert part["time"].dt.hour.tolist() == [22, 23, 0]
    assert lake.table("grid", start="2027-01-01").empty
    assert list(lake.table("jobs", columns=["job_id", "gpus"]).columns) == ["job_id", "gpus"]


def test_unchanged_sources_are_not_read_again(lake, specs, monkeypatch):
    first = ingest_sources(lake, specs)
    before = files_of(lake)
    monkeypatch.setattr(ingest_module, "reader_named", lambda name: lambda: None)  # has no read()
    second = ingest_sources(lake, specs)
    assert set(second.status.values()) == {"unchanged"}
    assert files_of(lake) == before
    assert (second.data_hash, second.rows, second.quality) == (first.data_hash, first.rows, first.quality)


def test_changed_content_replaces_its_source_alone(lake, specs):
    ingest_sources(lake, specs)
    old, hashed = lake.sources(), lake.data_hash()
    specs[3].path.write_text("\n".join(specs[3].path.read_text().splitlines()[:25]) + "\n")
    result = ingest_sources(lake, specs)
    assert [s for s, status in result.status.items() if status == "ingested"] == ["grid.csv"]
    assert result.rows["grid"] == 24
    assert {s for s, d in lake.sources().items() if d != old[s]} == {"grid.csv"}
    assert lake.data_hash() != hashed
    assert len(list(lake.root.glob("tables/grid/*/version=*"))) == 1


def test_data_hash_depends_on_content_not_on_order_or_place(lake, specs, tmp_path, context):
    ingest_sources(lake, specs)
    other = Lake(tmp_path / "other")
    for spec in reversed(specs):
        ingest_sources(other, [spec])
    assert other.data_hash() == lake.data_hash()
    assert other.rows() == lake.rows()
    ingest_sources(other, specs, context.inventory)
    assert other.data_hash() != lake.data_hash()


def test_replace_forgets_other_sources(lake, specs):
    ingest_sources(lake, specs)
    result = ingest_sources(lake, specs[3:], replace=True)
    assert result.rows == {"samples": 0, "jobs": 0, "grid": 48}
    assert lake.query("SELECT count(*) AS n FROM samples")["n"][0] == 0
    assert sorted(p.name for p in (lake.root / "tables").glob("*/*")) == ["source=grid.csv"]


def test_one_bad_file_stores_nothing(lake, specs):
    specs[3].path.write_text("time,site\n")
    with pytest.raises(InputError, match="missing column"):
        ingest_sources(lake, specs)
    assert lake.sources() == {}
    assert not list(lake.root.rglob("*.parquet"))


def test_refusals_name_what_is_wrong(lake, specs, tmp_path):
    with pytest.raises(InputError, match=r"no files.*prometheus"):
        ingest_sources(lake, [])
    with pytest.raises(InputError, match=r"unknown reader 'excel'.*allowed"):
        ingest_sources(lake, [SourceSpec(specs[0].path, "excel")])
    with pytest.raises(InputError, match=r"two files are named 'grid.csv'"):
        ingest_sources(lake, [specs[3], specs[3]])
    with pytest.raises(InputError, match=r"gone\.json: cannot be opened: No such file"):
        ingest_sources(lake, [SourceSpec(tmp_path / "gone.json", "prometheus")])
    with pytest.raises(InputError, match=r"unknown table 'watts'.*samples"):
        lake.table("watts")
    with pytest.raises(InputError, match="unknown column colour"):
        lake.table("grid", columns=["colour"])
    with pytest.raises(InputError, match="query"):
        lake.query("SELECT nothing FROM nowhere")


def test_a_job_in_two_sources_is_refused(lake, specs, tmp_path):
    ingest_sources(lake, specs)
    copy = tmp_path / "again.txt"
    copy.write_bytes(specs[2].path.read_bytes())
    with pytest.raises(InputError, match=r"job '1' is also in source 'sacct.txt'"):
        ingest_sources(lake, [SourceSpec(copy, "slurm")])
    ingest_sources(lake, [SourceSpec(copy, "slurm")], replace=True)
    assert list(lake.sources()) == ["again.txt"]


@pytest.mark.parametrize("broken", ["parquet", "rename", "manifest"])
def test_full_disk_leaves_the_lake_intact(lake, specs, monkeypatch, broken):
    ingest_sources(lake, specs[:3])
    before, grid = files_of(lake), lake.rows()["grid"]

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    calls = {"n": 0}
    real = {"write_table": pq.ParquetWriter.write_table}

    def after_one(name: str):
        def call(*args: object, **options: object) -> None:
            calls["n"] += 1
            if calls["n"] > 1:
                full()
            real[name](*args, **options)

        return call

    if broken == "parquet":
        monkeypatch.setattr(pq.ParquetWriter, "write_table", after_one("write_table"))
    elif broken == "rename":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ingest_sources(lake, specs)
    monkeypatch.undo()
    assert files_of(lake) == before
    assert lake.rows()["grid"] == grid == 0
    assert ingest_sources(lake, specs).rows["grid"] == 48


KILLED = """
import os, signal, sys
from pathlib import Path
import telemetry.lake as module
import telemetry.storage as storage
import pyarrow.parquet as pq
from telemetry.ingest import SourceSpec, ingest_sources
stop = sys.argv[1]
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
if stop == "staging": pq.ParquetWriter.write_table = die
if stop == "moved": storage.LocalStorage.replace = die
if stop == "committed": module.Lake._report = die
ingest_sources(module.Lake(sys.argv[2]), [SourceSpec(Path(sys.argv[3]), "grid")])
"""


@pytest.mark.parametrize("stop", ["staging", "moved", "committed"])
def test_killed_ingest_leaves_a_good_state_and_the_next_one_cleans_up(lake, specs, stop):
    ingest_sources(lake, specs)
    old = lake.table("grid")
    specs[3].path.write_text("\n".join(specs[3].path.read_text().splitlines()[:25]) + "\n")
    command = [sys.executable, "-c", KILLED, stop, str(lake.root), str(specs[3].path)]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    seen = lake.table("grid")
    if stop == "committed":
        assert len(seen) == 24
    else:
        pd.testing.assert_frame_equal(seen, old)
    assert lake.rows()["samples"] > 0
    assert ingest_sources(lake, specs).rows["grid"] == 24
    fresh = Lake(lake.root.parent / "fresh")
    ingest_sources(fresh, specs)
    assert sorted(files_of(lake)) == sorted(files_of(fresh))
    assert json.loads(files_of(lake)["quality/report.json"]) == json.loads(files_of(fresh)["quality/report.json"])


def test_two_ingests_at_once_are_refused(lake, specs):
    with lake.lock(), pytest.raises(InputError, match="another ingest is running"):
        ingest_sources(lake, specs)


def test_damaged_lake_is_named(lake, specs):
    ingest_sources(lake, specs)
    next(lake.root.rglob("tables/grid/**/*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="file of the lake cannot be read"):
        lake.table("grid")
    (lake.root / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        lake.rows()
    (lake.root / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        lake.rows()


def test_a_table_that_does_not_fit_its_schema_is_refused(lake):
    bad = empty("grid").reindex([0])
    bad["time"] = pd.Timestamp("2026-01-05", tz="UTC")
    bad["site"], bad["source"], bad["price_usd_per_kwh"], bad["carbon_g_per_kwh"] = "w", "s", 0.1, -1.0
    bad["time"] = bad["time"].astype("datetime64[ns, UTC]")
    with pytest.raises(InputError, match="column 'carbon_g_per_kwh', row 0: -1"):
        lake.ingest(SourceTables("s", "0" * 64, {"grid": bad}, QualityReport()))
    assert lake.sources() == {}


def test_odd_source_names_stay_inside_the_lake(lake, specs, tmp_path):
    ingest_sources(lake, [SourceSpec(specs[3].path, "grid", "../../it's out"), SourceSpec(specs[1].path, "ipmi", "../../it_s out")])
    assert all(lake.root in p.parents for p in tmp_path.rglob("*.parquet"))
    assert lake.query("SELECT DISTINCT source FROM grid")["source"].tolist() == ["../../it's out"]


def test_inventory_files(tmp_path):
    path = tmp_path / "nodes.json"
    path.write_text('{"nodes": {"n1": {"site": "w", "pool": "p"}}}')
    assert load_inventory(path).nodes["n1"].pool == "p"
    assert Inventory().shards_per_gpu == load_inventory(path).shards_per_gpu == 4
    path.write_text('{"nodes": {"n1": {"site": "w"}}}')
    with pytest.raises(InputError, match=r"node 'n1'.*'pool'"):
        load_inventory(path)

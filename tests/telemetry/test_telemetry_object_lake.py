"""A lake in a bucket: the same verbs, a conditional commit, two writers at once."""

from __future__ import annotations

import threading

import pandas as pd
import pytest

from pipelines.compact import compact_lake
from pipelines.ingest import ingest as ingest_command
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake, SourceTables
from telemetry.lake.compaction import Retention
from telemetry.quality import QualityReport
from telemetry.storage import MISSING, Changed, LocalStorage, storage_of

boto3 = pytest.importorskip("boto3", reason="the extra cloud is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto, a stand-in for S3, is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of moto and botocore
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def endpoint():
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def url(endpoint, monkeypatch, request) -> str:
    """A bucket of its own for the test."""
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    bucket = "lake-" + str(abs(hash(request.node.name)) % 10**9)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/where"


@pytest.fixture
def lake(url, endpoint) -> Lake:
    return Lake(url, storage_of(url, endpoint_url=endpoint))


@pytest.fixture
def specs(clean, tmp_path) -> list[SourceSpec]:
    found = []
    for reader in ("prometheus", "slurm", "grid", "samples_table"):
        name, data = clean[reader]
        (tmp_path / name).write_bytes(data)
        found.append(SourceSpec(tmp_path / name, reader))
    return found


def keys(lake: Lake) -> set[str]:
    return set(lake.storage.keys(""))


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_every_storage_has_the_same_verbs(kind, request, tmp_path):
    storage = LocalStorage(tmp_path / "root") if kind == "folder" else request.getfixturevalue("lake").storage
    with storage.lock():
        assert storage.read("m.json") == (b"", MISSING)
        storage.replace("m.json", b"1", MISSING)
        data, tag = storage.read("m.json")
        assert data == b"1"
        with pytest.raises(Changed):
            storage.replace("m.json", b"2", MISSING)
        storage.replace("m.json", b"3", tag)
        with pytest.raises(Changed):
            storage.replace("m.json", b"4", tag)
        storage.replace("m.json", b"5")
        assert storage.read("m.json")[0] == b"5"
        folder = storage.scratch()
        (folder / "a").write_bytes(b"aa")
        storage.put({"tables/t/x/a": folder / "a"})
        assert list(storage.keys("tables/t/")) == ["tables/t/x/a"]
        filesystem, path = storage.arrow("tables/t/x/a")
        read = open(path, "rb") if filesystem is None else filesystem.open_input_file(path)  # noqa: SIM115
        with read:
            assert read.read() == b"aa"
        storage.delete(["tables/t/x/a", "tables/t/x/gone"])
        assert list(storage.keys("tables/")) == []
        assert storage.place("m.json").endswith("m.json")


def test_a_bucket_holds_what_a_folder_holds(lake, specs, tmp_path, context):
    local = Lake(tmp_path / "local")
    ours, theirs = ingest_sources(lake, specs, context.inventory), ingest_sources(local, specs, context.inventory)
    assert (ours.rows, ours.data_hash, ours.quality) == (theirs.rows, theirs.data_hash, theirs.quality)
    for table in ("samples", "jobs", "grid"):
        pd.testing.assert_frame_equal(lake.table(table), local.table(table))
    where = {"metric": "hw.power", "node": "n1"}
    pd.testing.assert_frame_equal(lake.table("samples", where=where), local.table("samples", where=where))
    sql = "SELECT metric, sum(value) AS v FROM samples WHERE node <> 'n0' GROUP BY metric ORDER BY metric"
    pd.testing.assert_frame_equal(lake.query(sql), local.query(sql))
    assert lake.query("SELECT count(*) AS n FROM forecasts")["n"][0] == 0
    assert set(ingest_sources(lake, specs, context.inventory).status.values()) == {"unchanged"}


def test_changed_sources_replace_their_objects(lake, specs):
    ingest_sources(lake, specs)
    before = keys(lake)
    grid = specs[2].path
    grid.write_text("\n".join(grid.read_text().splitlines()[:25]) + "\n")
    assert ingest_sources(lake, specs).rows["grid"] == 24
    gone, new = before - keys(lake), keys(lake) - before
    assert len(new) == 1
    assert len(gone) == 2  # two days before, one now
    assert all("tables/grid/" in key for key in gone | new)
    ingest_sources(lake, specs[2:3], replace=True)
    assert {key.split("/")[1] for key in keys(lake) if key.startswith("tables/")} == {"grid"}


def test_commands_take_a_bucket(url, endpoint, specs):
    place = {"root": url, "endpoint_url": endpoint}
    files = [{"path": str(spec.path), "reader": spec.reader} for spec in specs]
    lake, result = ingest_command({"files": files}, place)
    assert result.rows["grid"] == 48
    lake, done = compact_lake(place, Retention(1, 90), newest="2026-02-01")
    assert lake.rows()["samples"] == 0
    assert done.written["samples_10min"] > 0
    energy = lake.query("SELECT sum(mean * seconds) AS j FROM samples_10min WHERE metric = 'hw.power'")["j"][0]
    # Two sources of three nodes with 100, 101 ... 111 W for 600 s each
    assert energy == pytest.approx(2 * 3 * 600 * sum(range(100, 112)), rel=1e-9)


def test_the_second_of_two_writers_is_refused_and_has_changed_nothing(lake, url, endpoint, specs):
    """Both read the same manifest; one commits while the other is still reading its source."""
    other = Lake(url, storage_of(url, endpoint_url=endpoint))
    ingest_sources(lake, specs[:1])
    frame = lake.table("samples")
    real, raced = lake.storage.put, []

    def slow(files):
        if not raced:
            raced.append(1)
            ingest_sources(other, specs[1:2])
        real(files)

    lake.storage.put = slow
    with pytest.raises(InputError, match="committed meanwhile"):
        lake.ingest(SourceTables("new", "1" * 64, {"samples": frame}, QualityReport()))
    assert set(lake.sources()) == {"answer.json", "sacct.txt"}
    named = {part["path"] for entry in lake.manifest()["sources"].values() for parts in entry["tables"].values() for part in parts}
    assert {key for key in keys(lake) if key.startswith("tables/")} == named
    lake.ingest(SourceTables("new", "1" * 64, {"samples": frame}, QualityReport()))
    assert len(lake.table("samples")) == 2 * len(frame)


def test_many_writers_at_once_never_corrupt(url, endpoint, specs):
    seed = Lake(url, storage_of(url, endpoint_url=endpoint))
    ingest_sources(seed, specs[2:3])
    grid, stored, refused = seed.table("grid"), [], []

    def write(number: int) -> None:
        lake = Lake(url, storage_of(url, endpoint_url=endpoint))
        own = grid.assign(site=f"s{number}", source=f"s{number}")
        for _ in range(20):
            try:
                lake.ingest(SourceTables(f"s{number}", str(number) * 64, {"grid": own}, QualityReport()))
                stored.append(number)
                return
            except InputError as error:
                assert "committed meanwhile" in str(error)  # noqa: PT017
                refused.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stored) == [0, 1, 2, 3]
    table = seed.table("grid")
    assert table.groupby("source", observed=True).size().to_dict() == {"grid.csv": 48, "s0": 48, "s1": 48, "s2": 48, "s3": 48}


def test_a_commit_whose_answer_was_lost_stands(lake, specs):
    """The client tries again and is refused by its own first try."""
    storage, real = lake.storage, lake.storage._client.put_object
    lost = []

    def put(**options):
        answer = real(**options)
        if "IfNoneMatch" in options and not lost:
            lost.append(1)
            return real(**options)
        return answer

    storage._client.put_object = put
    ingest_sources(lake, specs[2:3])
    assert lost
    assert lake.rows()["grid"] == 48


def test_what_a_killed_writer_left_goes_when_it_is_a_day_old(lake, specs, monkeypatch, tmp_path):
    ingest_sources(lake, specs)
    (tmp_path / "left").write_bytes(b"x")
    lake.storage.put({"tables/grid/source=s/version=1/date=2026-01-01/part.parquet": tmp_path / "left"})
    lake.tidy()
    assert any("version=1/" in key for key in keys(lake))
    monkeypatch.setattr("telemetry.lake.store.ORPHANED_S", 0.0)
    lake.tidy()
    assert not any("version=1/" in key for key in keys(lake))
    assert lake.rows()["grid"] == 48


def test_refusals(endpoint, url, monkeypatch):
    with pytest.raises(InputError, match=r"'s3://'.*s3://bucket/prefix"):
        storage_of("s3://")
    with pytest.raises(InputError, match=r"ftp://x.*allowed: a folder, or s3://"):
        storage_of("ftp://x")
    nowhere = Lake("s3://not-there-at-all/x", storage_of("s3://not-there-at-all/x", endpoint_url=endpoint))
    with pytest.raises(InputError, match="NoSuchBucket"):
        nowhere.rows()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(InputError, match=r"no credentials.*vendor's chain"):
        Lake(url, storage_of(url, endpoint_url=endpoint)).rows()

"""Retention: coarser rows hold the energy of every day, and nothing is lost on the way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.lake import Lake, SourceTables
from telemetry.lake.compaction import Retention, compact, sample_seconds, stands_for
from telemetry.quality import QualityReport
from telemetry.schema import BIN_COLUMNS, SAMPLE_COLUMNS, SAMPLE_TEXT

DAYS = 5


def samples(seed: int = 0, days: int = DAYS, start: str = "2026-01-05") -> pd.DataFrame:
    """Watts and their rate every 30 s to 5 min, with gaps, and a pod that comes and goes."""
    rng = np.random.default_rng(seed)
    frames = []
    for node, metric, step in (
        ("n0", "hw.power", 60),
        ("n1", "hw.power", 300),
        ("n0", "hw.energy.rate", 30),
        ("n1", "hw.gpu.utilization", 900),
    ):
        seconds = np.arange(0, days * 86_400, step)
        seconds = np.sort(rng.choice(seconds, int(0.9 * len(seconds)), replace=False))
        seconds = seconds[(seconds < 40_000) | (seconds > 60_000)]
        text = dict.fromkeys(SAMPLE_TEXT, "") | {"metric": metric, "unit": "W", "node": node, "device": "gpu0", "source": "s", "pool": "p"}
        time = pd.Timestamp(start, tz="UTC") + pd.to_timedelta(seconds + rng.integers(0, 1000, len(seconds)) / 1000, unit="s")
        value = rng.random(len(seconds)) * 700 if metric != "hw.gpu.utilization" else rng.random(len(seconds))
        frame = pd.DataFrame({"time": time.astype("datetime64[ns, UTC]"), "value": value, **text})
        frame["pod_uid"] = np.where(rng.random(len(frame)) < 0.3, "", "p")
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)[list(SAMPLE_COLUMNS)]


def store(lake: Lake, frame: pd.DataFrame, name: str = "s", digest: str = "1") -> None:
    lake.ingest(SourceTables(name, digest * 64, {"samples": frame}, QualityReport()))


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path / "lake")


def energy(frame: pd.DataFrame, seconds: np.ndarray, value: str) -> pd.Series:
    joules = frame.assign(joules=frame[value] * seconds, day=frame["time"].dt.floor("D"))
    return joules.groupby(["day", "metric", "node", "pod_uid"], observed=True)["joules"].sum()


def levels(lake: Lake) -> tuple[pd.Series, dict[str, pd.DataFrame]]:
    """Energy of all that the lake holds, whatever the level of its days."""
    raw = lake.table("samples").astype({"metric": str, "node": str, "pod_uid": str})
    frames = {name: lake.table(name).astype({"metric": str, "node": str, "pod_uid": str}) for name in ("samples_10min", "samples_1h")}
    parts = [energy(raw, sample_seconds(raw), "value"), *(energy(f, f["seconds"].to_numpy(), "mean") for f in frames.values())]
    return pd.concat([part for part in parts if len(part)]).sort_index(), frames | {"samples": raw}


def test_energy_of_each_day_is_the_same_at_every_level(lake):
    store(lake, samples())
    raw, before = levels(lake)
    assert len(raw) > 30
    done = compact(lake, Retention(2, 3))
    found, after = levels(lake)
    assert done.days == 5  # three days to 10 min, two of them on to 1 h
    assert {str(d.date()) for d in after["samples_1h"]["time"]} == {"2026-01-05", "2026-01-06"}
    assert {str(d.date()) for d in after["samples_10min"]["time"]} == {"2026-01-07"}
    assert {str(d.date()) for d in after["samples"]["time"]} == {"2026-01-08", "2026-01-09"}
    pd.testing.assert_series_equal(found, raw, rtol=1e-12, atol=0)
    assert sum(after[t]["count"].sum() for t in ("samples_10min", "samples_1h")) + len(after["samples"]) == len(before["samples"])
    assert list(lake.table("samples_1h").columns) == list(BIN_COLUMNS)
    answer = lake.query("SELECT metric, sum(mean * seconds) AS j FROM samples_1h GROUP BY metric")
    assert len(answer) == 3


def test_bins_by_hand(lake):
    """10, 20, 60 W at 0, 60 and 300 s: the last stands for the median of 60 and 240 times three at most, the first for that median."""
    frame = samples().iloc[:3].reset_index(drop=True)
    frame["time"] = pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta([0, 60, 660], unit="s")
    frame["value"], frame["pod_uid"], frame["metric"], frame["node"] = [10.0, 20.0, 60.0], "", "hw.power", "n0"
    newest = frame.iloc[:1].assign(time=pd.Timestamp("2026-01-09", tz="UTC"))
    store(lake, pd.concat([frame, newest]))
    compact(lake, Retention(1, 90))
    bins = lake.table("samples_10min")
    assert bins["count"].tolist() == [2, 1]
    assert bins["seconds"].tolist() == [330.0 + 60.0, 600.0]
    assert bins["mean"].tolist() == pytest.approx([(10 * 330 + 20 * 60) / 390, 60.0])
    assert (bins["min"].tolist(), bins["max"].tolist(), bins["last"].tolist()) == ([10.0, 60.0], [20.0, 60.0], [20.0, 60.0])
    assert (bins["time"].dt.minute).tolist() == [0, 10]
    seconds = stands_for(np.zeros(4, dtype=int), np.array([0, 10, 20, 1000]) * 10**6, np.zeros(4, dtype=bool))
    assert seconds.tolist() == [10, 10, 10, 30]
    seconds = stands_for(np.zeros(4, dtype=int), np.array([0, 10, 20, 1000]) * 10**6, np.ones(4, dtype=bool))
    assert seconds.tolist() == [10, 10, 10, 980]
    assert stands_for(np.array([0, 1]), np.array([0, 0]), np.zeros(2, dtype=bool)).tolist() == [0, 0]


def test_twice_changes_nothing_and_raw_files_are_gone(lake):
    store(lake, samples())
    compact(lake, Retention(1, 2))
    files = {str(p.relative_to(lake.root)): p.read_bytes() for p in lake.root.rglob("*") if p.is_file()}
    hashed = lake.data_hash()
    done = compact(lake, Retention(1, 2))
    assert done.days == 0
    assert {str(p.relative_to(lake.root)): p.read_bytes() for p in lake.root.rglob("*") if p.is_file()} == files
    assert len(list(lake.root.glob("tables/samples/**/*.parquet"))) == 1
    assert lake.data_hash() == hashed
    lake.tidy()
    assert len(list(lake.root.glob("tables/samples_1h/**/*.parquet"))) == DAYS - 2


def test_late_data_of_a_compacted_day_come_back_and_are_made_coarser_again(lake):
    store(lake, samples())
    compact(lake, Retention(1, 90))
    late = samples(seed=1)
    store(lake, late, digest="2")
    assert lake.table("samples_10min").empty
    assert lake.rows()["samples"] == len(late)
    raw, _ = levels(lake)
    compact(lake, Retention(1, 90))
    found, _ = levels(lake)
    pd.testing.assert_series_equal(found, raw, rtol=1e-12, atol=0)
    other = samples(seed=2, days=1).assign(source="late")
    store(lake, other, "late", "3")
    compact(lake, Retention(1, 90))
    assert set(lake.table("samples_10min", where={"source": "late"})["time"].dt.day) == {5}


def test_series_over_several_row_groups_are_whole(lake, monkeypatch):
    """The same bins when a day's file has many row groups as when it has one."""
    store(lake, samples())
    compact(lake, Retention(1, 90))
    once = lake.table("samples_10min")
    other = Lake(lake.root.parent / "other")
    import pyarrow.parquet as pq

    real = pq.ParquetWriter.write_table
    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda self, table, row_group_size=None: real(self, table, 333))
    store(other, samples())
    monkeypatch.undo()
    assert pq.ParquetFile(next(other.root.glob("tables/samples/**/*.parquet"))).num_row_groups > 5
    compact(other, Retention(1, 90))
    again = other.table("samples_10min")
    assert len(once) > 500
    text = [name for name in once if once[name].dtype == "category"]
    pd.testing.assert_frame_equal(once.astype(dict.fromkeys(text, str)), again.astype(dict.fromkeys(text, str)))


def test_refusals(lake):
    with pytest.raises(InputError, match="raw_days 5, ten_min_days 2"):
        Retention(5, 2)
    assert compact(lake, Retention()).days == 0
    store(lake, samples())
    with pytest.raises(InputError, match="no day"):
        compact(lake, Retention(), newest="soon")
    assert compact(lake, Retention(1, 90), newest="2026-01-05").days == 0
    assert compact(lake, Retention(1, 90), newest="2026-01-06").days == 1

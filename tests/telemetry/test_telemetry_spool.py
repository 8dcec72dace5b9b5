"""Fetched windows: each fetched once, a kill loses none, and the lake holds what one export of the whole time would give."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from telemetry.collectors import collect
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.readers import READERS
from telemetry.spool import Spool, windows_between

START = pd.Timestamp("2026-01-05T00:00:00Z")
HOUR = pd.Timedelta("1h")


class Answering:
    """A Prometheus that knows the answer of the test kit; ``fails_at`` is the call that breaks off."""

    reader, suffix = "prometheus", "json"

    def __init__(self, answer: dict, fails_at: int = -1) -> None:
        self.answer, self.fails_at, self.asked = answer, fails_at, []

    def fetch(self, start, end):
        if len(self.asked) == self.fails_at:
            raise InputError("unreachable", where="test")
        self.asked.append((start, end))
        cut = json.loads(json.dumps(self.answer))
        for entry in cut["data"]["result"]:
            entry["values"] = [v for v in entry["values"] if start.timestamp() <= v[0] < end.timestamp()]
        cut["data"]["result"] = [entry for entry in cut["data"]["result"] if entry["values"]]
        return json.dumps(cut).encode()


def fetch(collector, root, end="2026-01-05T02:10:00Z"):
    return collect(collector, Spool(root), START, pd.Timestamp(end), chunk=HOUR, lookback=pd.Timedelta("10min"))


def test_windows_lie_on_one_grid_wherever_they_start():
    found = list(windows_between(START + pd.Timedelta("20min"), START + pd.Timedelta("130min"), HOUR))
    assert [w.stem for w in found] == [
        "20260105T002000Z_20260105T010000Z", "20260105T010000Z_20260105T020000Z", "20260105T020000Z_20260105T021000Z",
    ]  # fmt: skip


def test_what_is_there_is_not_fetched_again_and_a_broken_run_goes_on(make, tmp_path):
    first = Answering(make["prometheus"](), fails_at=1)
    with pytest.raises(InputError, match="unreachable"):
        fetch(first, tmp_path / "spool")
    second = Answering(make["prometheus"]())
    assert len(fetch(second, tmp_path / "spool")) == 2
    assert second.asked[0] == (START + pd.Timedelta("50min"), START + 2 * HOUR)
    assert fetch(second, tmp_path / "spool") == []


def test_windows_give_the_rows_of_one_export(make, tmp_path, context):
    answer = make["prometheus"]()
    fetch(Answering(answer), tmp_path / "dcgm")
    lake = Lake(tmp_path / "lake")
    result = ingest_sources(lake, [SourceSpec(tmp_path / "dcgm", "prometheus")], context.inventory)
    whole = tmp_path / "answer.json"
    whole.write_text(json.dumps(answer))
    other = Lake(tmp_path / "other")
    ingest_sources(other, [SourceSpec(whole, "prometheus", "dcgm")], context.inventory)
    columns = ["time", "metric", "node", "device", "value", "source"]
    frames = [
        held.table("samples", columns=columns).sort_values(columns[:4], ignore_index=True).astype({"metric": str}) for held in (lake, other)
    ]
    pd.testing.assert_frame_equal(*frames, check_categorical=False)
    assert result.status == {"dcgm": "ingested"}
    assert result.quality.rows == {"dcgm": {"samples": len(frames[0])}}


def test_only_new_windows_are_read(make, tmp_path, context, monkeypatch):
    answer = make["prometheus"]()
    specs = [SourceSpec(tmp_path / "dcgm", "prometheus")]
    fetch(Answering(answer), tmp_path / "dcgm", "2026-01-05T01:00:00Z")
    lake = Lake(tmp_path / "lake")
    ingest_sources(lake, specs, context.inventory)
    fetch(Answering(answer), tmp_path / "dcgm")
    read, reader = [], READERS["prometheus"]

    class Counting:
        def read(self, path, told):
            read.append(path.name)
            return reader.read(path, told)

    monkeypatch.setitem(READERS, "prometheus", Counting())
    assert ingest_sources(lake, specs, context.inventory).status == {"dcgm": "ingested"}
    assert read == ["20260105T010000Z_20260105T020000Z.json.gz", "20260105T020000Z_20260105T021000Z.json.gz"]
    assert ingest_sources(lake, specs, context.inventory).status == {"dcgm": "unchanged"}
    assert len(read) == 2


def test_a_window_in_which_the_system_was_down_is_no_error_and_told(make, tmp_path, context):
    answer = make["prometheus"]()
    for entry in answer["data"]["result"]:
        entry["values"] = [v for v in entry["values"] if not 3600 <= v[0] - START.timestamp() < 7200]
    collect(Answering(answer), Spool(tmp_path / "dcgm"), START, START + 2 * HOUR, chunk=HOUR, lookback=pd.Timedelta(0))
    result = ingest_sources(Lake(tmp_path / "lake"), [SourceSpec(tmp_path / "dcgm", "prometheus")], context.inventory)
    assert result.quality.notes["dcgm"]["fetched windows without a point of a known metric"] == 1
    assert result.quality.rows["dcgm"]["samples"] > 0
    alone = next((tmp_path / "dcgm").glob("20260105T01*"))
    with pytest.raises(InputError, match="empty export"):
        ingest_sources(Lake(tmp_path / "lake"), [SourceSpec(alone, "prometheus")], context.inventory)


def test_a_foreign_file_an_overlap_and_an_empty_folder_are_refused(tmp_path, context):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="empty folder"):
        ingest_sources(Lake(tmp_path / "lake"), [SourceSpec(tmp_path / "none", "prometheus")], context.inventory)
    root = tmp_path / "spool"
    root.mkdir()
    (root / "20260105T000000Z_20260105T010000Z.json.gz").touch()
    (root / ".new-killed").touch()
    assert len(Spool(root).files()) == 1
    (root / "20260105T003000Z_20260105T020000Z.json.gz").touch()
    with pytest.raises(InputError, match="overlap"):
        Spool(root).files()
    (root / "20260105T003000Z_20260105T020000Z.json.gz").rename(root / "notes.txt")
    with pytest.raises(InputError, match=r"notes\.txt"):
        Spool(root).files()

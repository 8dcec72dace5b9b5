"""The log of decisions: round trips, rotation, torn and broken lines, outcomes, many writers and killed ones."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from registry.decision_log import DecisionLog, DecisionRecord, Outcome, read_log
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def record(job="j1", **change):
    content = {
        "time": "2026-02-10T08:00:00+00:00",
        "job_id": job,
        "pools": 1,
        "levels": 2,
        "observation": (0.5, -1.25, 3.0),
        "allowed": (0, 2),
        "propensities": (0.1, 0.0, 0.9),
        "action": 2,
        "policy": "lookahead",
        "version": "3",
        "team": "nlp",
        "shadow": ({"name": "planner", "version": "", "action": 0, "seconds": 0.01, "error": None},),
    }
    return DecisionRecord(**(content | change))


def test_what_was_written_is_read_with_its_outcome(tmp_path):
    log = DecisionLog(tmp_path / "log")
    one, two = record("j1"), record("j2", time="2026-02-10T09:30:00+01:00")
    for item in (one, two, record("j2", action=0, time="2026-02-10T10:00:00+00:00")):
        log.append(item)
    log.append(Outcome("2026-02-10T12:00:00+00:00", 1.5, job_id="j2", penalty_usd=0.5, sla_violated=True))
    log.append(Outcome("2026-02-10T12:00:00+00:00", 9.0, decision_id=one.decision_id))
    log.append(Outcome("2026-02-10T13:00:00+00:00", 2.5, decision_id=one.decision_id, sla_violated=False))
    log.append(Outcome("2026-02-10T13:00:00+00:00", 2.5, job_id="nobody"))
    read = read_log(tmp_path / "log")
    assert read.counts == {"decisions": 3, "outcomes": 4, "unreadable": 0, "duplicates": 0, "orphans": 1, "without_outcome": 0}
    frame = read.decisions.set_index("job_id")
    assert frame.loc["j1", "objective_usd"] == 2.5
    assert frame["sla_violated"].tolist() == [False, True, True]
    assert frame.loc["j2", "objective_usd"].tolist() == [1.5, 1.5]
    assert frame.loc["j1", "propensities"] == (0.1, 0.0, 0.9)
    assert frame.loc["j1", "shadow"][0]["name"] == "planner"
    assert frame["block"].unique().tolist() == ["2026-02-10"]
    assert read.decisions["time"].is_monotonic_increasing


def test_decisions_without_outcome_are_counted(tmp_path):
    DecisionLog(tmp_path).append(record())
    read = read_log(tmp_path)
    assert read.counts["without_outcome"] == 1
    assert math.isnan(read.decisions["objective_usd"][0])


def test_parts_are_closed_at_their_size_and_never_touched_again(tmp_path):
    log = DecisionLog(tmp_path, part_bytes=1000)
    log.append(record("first"))
    first = tmp_path / "decisions-000001.jsonl"
    while not (tmp_path / "decisions-000003.jsonl").exists():
        log.append(record("more"))
        if (tmp_path / "decisions-000002.jsonl").exists():
            closed = first.read_bytes()
    assert first.read_bytes() == closed
    assert first.stat().st_size >= 1000
    assert read_log(tmp_path).decisions["job_id"][0] in ("first", "more")
    assert read_log(tmp_path).counts["decisions"] == sum(len(p.read_text().splitlines()) for p in tmp_path.glob("decisions-*.jsonl"))


@pytest.mark.parametrize("kept", [0, 1, 37, -2, -1])
def test_a_torn_last_line_is_skipped_and_then_cut(tmp_path, kept):
    log = DecisionLog(tmp_path)
    log.append(record("whole"))
    path = tmp_path / "decisions-000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    assert read_log(tmp_path).decisions["job_id"].tolist() == ["whole"]
    log.append(record("next"))
    assert sorted(read_log(tmp_path).decisions["job_id"]) == ["next", "whole"]
    assert read_log(tmp_path).counts["unreadable"] == 0


def test_a_long_torn_line_is_cut_to_the_last_whole_one(tmp_path):
    path = tmp_path / "decisions-000001.jsonl"
    path.write_bytes(b"x" * 10_000)
    DecisionLog(tmp_path).append(record())
    assert read_log(tmp_path).counts["decisions"] == 1
    assert path.read_bytes().count(b"\n") == 1


def test_broken_and_repeated_lines_are_counted_and_named(tmp_path):
    log = DecisionLog(tmp_path)
    log.append(record())
    path = tmp_path / "decisions-000001.jsonl"
    line = path.read_bytes()
    later = json.loads(line) | {"schema": 2}
    unknown = json.loads(line) | {"extra": 1}
    path.write_bytes(line + b"{nonsense\n" + json.dumps(later).encode() + b"\n" + json.dumps(unknown).encode() + b"\n[1]\n" + line)
    read = read_log(tmp_path)
    assert read.counts["unreadable"] == 4
    assert read.counts["duplicates"] == 1
    assert read.counts["decisions"] == 1
    assert "line 2" in read.first_unreadable


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"propensities": (0.5, 0.0, 0.6)}, "sum 1"),
        ({"propensities": (0.5, 0.5)}, "3 numbers"),
        ({"propensities": (-0.1, 0.0, 1.1)}, "from 0"),
        ({"propensities": (math.nan, 0.0, 1.0)}, "sum 1"),
        ({"action": 1}, "action 1"),
        ({"action": 7}, "action 7"),
        ({"allowed": (2,)}, "allowed answers"),
        ({"observation": (math.nan,)}, "not finite"),
        ({"arm": "third"}, "champion, challenger, outside"),
        ({"arm_propensity": 0.0}, "above 0"),
        ({"time": "yesterday"}, "ISO 8601"),
        ({"time": "2026-02-10T08:00:00"}, "without a zone"),
    ],
)
def test_what_is_no_decision_is_never_logged(change, said):
    with pytest.raises(InputError, match=said):
        record(**change)


@pytest.mark.parametrize("change", [{"decision_id": "a", "job_id": "b"}, {}, {"job_id": "a", "objective_usd": math.inf}])
def test_what_is_no_outcome_is_never_logged(change):
    with pytest.raises(InputError):
        Outcome(**({"time": "2026-02-10T08:00:00+00:00", "objective_usd": 1.0} | change))


def test_no_log_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no decision log"):
        read_log(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="remedy: a folder where files can be written"):
        DecisionLog(tmp_path / "file" / "log").append(record())


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from registry.decision_log import DecisionLog, DecisionRecord
log = DecisionLog(Path(sys.argv[1]), part_bytes=20_000)
for k in range(int(sys.argv[4])):
    log.append(DecisionRecord(time="2026-02-10T08:00:00+00:00", job_id=f"{sys.argv[2]}-{k}", pools=1, levels=1, observation=(1.0,) * 50,
                              allowed=(0, 1), propensities=(0.5, 0.5), action=1, policy="p"))
    print(k, flush=True)
"""


def start(folder, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(ROOT), str(count)], stdout=subprocess.PIPE, text=True, cwd=folder
    )


def test_writers_race_and_one_is_killed_without_a_lost_or_torn_decision(tmp_path):
    writers = [start(tmp_path, name, 60) for name in "ab"]
    doomed = start(tmp_path, "c", 100_000)
    confirmed = 0
    while confirmed < 30:
        confirmed = int(doomed.stdout.readline()) + 1
    doomed.send_signal(signal.SIGKILL)
    confirmed = max([confirmed, *(int(line) + 1 for line in doomed.stdout.read().split("\n")[:-1])])
    doomed.stdout.close()
    doomed.wait()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    DecisionLog(tmp_path).append(record("after"))
    read = read_log(tmp_path)
    jobs = set(read.decisions["job_id"])
    assert read.counts["unreadable"] == read.counts["duplicates"] == 0
    assert {f"{name}-{k}" for name in "ab" for k in range(60)} <= jobs
    assert {f"c-{k}" for k in range(confirmed)} <= jobs
    assert len(list(tmp_path.glob("decisions-*.jsonl"))) > 1

"""The benchmark of the simulator runs at small sizes, writes stable keys, and compares like with like. Nothing here looks at a clock."""

import json
import sys

import numpy as np
import pytest

from benchmarks import simulator, simulator_batch, simulator_peer_runs, simulator_reference, simulator_scale
from benchmarks.simulator_table import lines_of
from benchmarks.simulator_worlds import FEATURES, synthetic_world
from envs.heuristics import JUDGES
from telemetry.errors import InputError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["simulator", *map(str, arguments)])
    return simulator.main()


def test_parts_replace_themselves_and_keep_the_others(monkeypatch, tmp_path, capsys):
    out = tmp_path / "deep" / "simulator.json"
    small = ("--clusters", 2, "--nodes", 4, "--jobs", 30, "--windows", 2, "--threads", 1, "--patience-s", 0.1, "--out", out)
    monkeypatch.setattr(simulator_reference, "CASES", {"tiny": (4, 20, frozenset(FEATURES))})
    monkeypatch.setattr(simulator_peer_runs.importlib.util, "find_spec", lambda module: None)
    assert run(monkeypatch, "--only", "reference", "peers", *small) == 0
    assert run(monkeypatch, "--only", "batch", *small) == 0
    record = json.loads(out.read_text())
    assert set(record) == {"parts", "machine"}
    assert set(record["parts"]) == {"reference", "peers", "batch"}
    for part in record["parts"].values():
        assert set(part) == {"about", "result"}
        assert set(part["about"]) == {"load_average_before", "seconds", "kernel", "options"}
    rows = record["parts"]["batch"]["result"]["decisions_per_s"]["threads=1"]
    assert set(rows) == {*(f"bare, {name}" for name in JUDGES), *simulator_batch.OBSERVED_ROWS}
    assert all(value > 0 for value in rows.values())
    peers = record["parts"]["peers"]["result"]["peers"]
    assert {row["not_installed"] for row in peers.values()} == {f"pip install {name}" for name in ("accasim", "hpcsim", "gpu-choochoo")}
    assert "not installed: pip install hpcsim" in capsys.readouterr().out


def test_reference_and_kernel_must_agree(monkeypatch):
    monkeypatch.setattr(simulator_reference, "CASES", {"tiny": (4, 20, frozenset(FEATURES))})
    row = simulator_reference.reference_part()["tiny"]
    assert row["kwh"] == pytest.approx(row["kwh_reference"], rel=1e-9)
    original = simulator_reference._reference_of

    def other(world):
        reference = original(world)
        choose = reference.choose
        reference.choose = lambda job, allowed: max(choose(job, allowed), allowed[-1])
        return reference

    monkeypatch.setattr(simulator_reference, "_reference_of", other)
    with pytest.raises(RuntimeError, match="part ways"):
        simulator_reference.reference_part()


def test_peer_jobs_wait_as_a_plain_fifo_queue_says():
    """Jobs in order of submission, each as soon as enough of 32 GPUs are free and no earlier job waits."""
    workload = simulator_peer_runs.flat_workload(4, 120, 1.0)
    ours = simulator_peer_runs._ours(workload)["jobs, fifo strict"]
    ends, free, last, waits = [], 32, 0, []
    for job in workload["jobs"]:
        now = max(last, job["submit_s"])
        free += sum(gpus for end, gpus in ends if end <= now)
        ends = sorted((end, gpus) for end, gpus in ends if end > now)
        while free < job["gpus"]:
            now, gpus = ends.pop(0)
            free += gpus
        last = now
        waits.append(now - job["submit_s"])
        free -= job["gpus"]
        ends.append((now + job["duration_s"], job["gpus"]))
    assert max(waits) > 0
    assert ours["mean_wait_s"] == pytest.approx(np.mean(waits), abs=1e-6)


def test_scale_parts_at_small_sizes(monkeypatch):
    monkeypatch.setattr(simulator_scale, "LOADS", (1.1,))
    monkeypatch.setattr(simulator_scale, "MONTH_DAYS", 3)
    month = simulator_scale.month_part(4, 200, 5.0)
    assert set(month["load=1.1"]) == {*JUDGES, *(f"{order}, {rule}" for order in ("f1", "wfp3", "unicep") for rule in ("free", "easy"))}
    assert all(row["finished"] for row in month["load=1.1"].values())
    flat = simulator_scale.flat_part(8, 400, (100, 300), 0.01)
    assert set(flat["by_waiting"]["waiting"]) == {"100", "300"}
    assert lines_of("month", month)
    assert lines_of("flatness", flat)


def test_features_are_in_the_world():
    world = synthetic_world(64, 60, 1, features=frozenset(FEATURES))
    assert (world.jobs.until_s >= 0).any()
    assert len(world.outages[0])
    assert (world.jobs.cpu_milli > 0).any()
    assert world.jobs.preemptible.any()
    assert (world.static.site_budget_w > 0).all()
    assert (world.jobs.data_gib > 0).any()
    assert not synthetic_world(8, 60, 1).jobs.preemptible.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--nodes", 3), "at least 4"), (("--peer-python", "slurm=/bin/true"), "slurm"), (("--peer-python", "/no/python"), "/no/python")],
)
def test_wrong_options_are_named(monkeypatch, capsys, tmp_path, arguments, words):
    assert run(monkeypatch, "--out", tmp_path / "x.json", *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_broken_record_is_not_overwritten(tmp_path):
    path = tmp_path / "simulator.json"
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        simulator.load_record(path)

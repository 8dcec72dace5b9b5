"""Killed at every step and at random times, and two at once: the lake is as before or as after, never between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from telemetry.storage import LocalStorage

REPOSITORY = Path(__file__).resolve().parents[2]
RANDOM_KILLS = 4


def write_samples(folder: Path, seed: int) -> None:
    """Two files of watts of three nodes over two days."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for part in range(2):
        time = pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta(np.arange(48) * 1800 + part * 86_400, unit="s")
        frame = pd.DataFrame({"time": np.repeat(time, 3), "node": np.tile([f"n{n}" for n in range(3)], 48)})
        frame = frame.assign(metric="hw.power", device="", value=rng.integers(200, 400, len(frame)).astype(float))
        frame.to_parquet(folder / f"part-{part}.parquet", index=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What the worker found; see crash_worker.py."""
    folder = tmp_path_factory.mktemp("crash")
    for name, seed in (("in", 0), ("more", 1)):
        write_samples(folder / name, seed)
    for name in ("a", "b"):
        (folder / name).mkdir()
    command = [sys.executable, str(REPOSITORY / "tests/telemetry/crash_worker.py"), str(folder), str(RANDOM_KILLS)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("work", ["ingest", "compact"])
def test_a_kill_at_any_step_leaves_the_lake_as_before_or_after(found, work):
    """Steps are all renames, syncs, removals, new folders and Parquet writes; some kills come before the commit and some after it."""
    assert found[work]["steps"] > 20
    assert found[work]["old"] > 10
    assert found[work]["new"] > 3


def test_ingests_at_once_are_stored_or_refused(found):
    assert found["at_once"]["stored"] >= 3
    assert found["at_once"]["stored"] + found["at_once"]["refused"] == 12


def test_ingests_that_wait_are_all_stored(found):
    assert found["waiting"] == {"stored": 4, "refused": 0}


def test_files_and_folders_are_synced_before_the_manifest_is_replaced(tmp_path, monkeypatch):
    """What a loss of power may not reorder: contents, then their names, then the manifest's contents, then its name."""
    told: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        told.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).relative_to(tmp_path)}")
        real_fsync(handle)

    def replace(source: object, target: object) -> None:
        told.append(f"name {Path(str(target)).relative_to(tmp_path)}")
        real_replace(source, target)

    storage = LocalStorage(tmp_path / "lake")
    folder = storage.scratch()
    (folder / "a").write_bytes(b"a")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    storage.put({"tables/t/a": folder / "a"})
    storage.replace("manifest.json", b"{}")
    assert told[0] == f"sync lake/{folder.name}/a"
    assert told[1:5] == ["name lake/tables/t/a", "sync lake/tables/t", "sync lake/tables", "sync lake"]
    assert told[5].startswith("sync lake/.manifest.json.")
    assert told[6:] == ["name lake/manifest.json", "sync lake"]

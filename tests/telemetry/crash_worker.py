"""Run by test_telemetry_lake_crash.py: kills ingests and compactions in forks of itself, and says what was found in the lake after each.

A fork starts in milliseconds where a command takes seconds, and is killed as hard: SIGKILL, nothing is flushed, nothing is cleaned up.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.lake.compaction import Retention, compact
from telemetry.storage import LocalStorage

STEPS = (
    (os, "replace"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "mkdir"),
    (pq.ParquetWriter, "write_table"),
    (pq.ParquetWriter, "close"),
)


def state(root: Path) -> str:
    """Digest of all that readers see: rows of every table, and the quality."""
    lake, digest = Lake(root), hashlib.sha256()
    for table in ("samples", "samples_10min", "samples_1h"):
        frame = lake.table(table)
        text = [name for name in frame if frame[name].dtype == "category"]
        rows = frame.astype(dict.fromkeys(text, str)).sort_values(list(frame.columns), ignore_index=True)
        digest.update(rows.to_csv().encode())
    digest.update(json.dumps(lake.quality().to_dict(), sort_keys=True).encode())
    return digest.hexdigest()


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != ".lock")


def in_fork(work: Callable[[], object], *, at: int | None = None, after_s: float | None = None) -> int | None:
    """Exit code of ``work``; None where it was killed: before its step number ``at``, or some time after its start."""
    child = os.fork()
    if child == 0:
        try:
            if at is not None:
                count = [0]
                for owner, name in STEPS:
                    setattr(owner, name, _killing(getattr(owner, name), count, at))
            work()
            os._exit(0)
        except InputError:
            os._exit(2)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def _killing(real: Callable, count: list[int], at: int) -> Callable:
    def call(*args: object, **options: object) -> object:
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        return real(*args, **options)

    return call


def kill_everywhere(folder: Path, before: Path, work: Callable[[Path], object], randomly: int) -> dict[str, object]:
    """Kill ``work`` at each of its steps, then at random times; the lake must be as before or after it, and good for another run."""
    after = folder / "after"
    shutil.copytree(before, after)
    began = time.monotonic()
    assert in_fork(lambda: work(after)) == 0
    took, old, new = time.monotonic() - began, state(before), state(after)
    assert old != new
    seen = {old: 0, new: 0}
    killed = steps = 0
    rng = random.Random(0)
    while True:
        root = folder / "killed"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(before, root)
        if killed == steps:
            code = in_fork(lambda root=root: work(root), at=steps)
            if code is None:
                steps += 1
                killed += 1
        else:
            code = in_fork(lambda root=root: work(root), after_s=rng.random() * took * 1.2)
            killed += code is None
            randomly -= 1
        found = state(root)
        assert found in seen, "the lake is neither as before nor as after"
        seen[found] += 1
        assert in_fork(lambda root=root: work(root)) == 0
        assert state(root) == new, "the run after a kill does not end as one that was not killed"
        assert names(root) == names(after), "something was left behind"
        if code == 0 and killed == steps:
            steps = -1  # every step was killed once: from here on at random
        if randomly <= 0:
            return {"steps": killed, "old": seen[old], "new": seen[new]}


def at_once(folder: Path, before: Path, specs: list[SourceSpec], wait_s: float) -> dict[str, int]:
    """Ingests of different sources at the same time: how many were stored and refused."""
    root = folder / "together"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(before, root)
    children = []
    for spec in specs:
        child = os.fork()
        if child == 0:
            try:
                ingest_sources(Lake(root, LocalStorage(root, wait_s)), [spec])
                os._exit(0)
            except InputError as error:
                os._exit(2 if "another ingest is running" in str(error) else 1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    held = set(Lake(root).sources())
    assert all((code == 0) == (spec.source in held) for code, spec in zip(codes, specs, strict=True)), (codes, held)
    state(root)
    return {"stored": codes.count(0), "refused": codes.count(2)}


def main(folder: Path, randomly: int) -> None:
    """Print what was found, as JSON."""
    import telemetry.readers.samples_table as module

    module.PIECE_ROWS = 100
    before = folder / "before"
    ingest_sources(Lake(before), [SourceSpec(folder / "in", "samples_table")])
    second = [SourceSpec(folder / "more", "samples_table", "in")]
    found = {"ingest": kill_everywhere(folder / "a", before, lambda root: ingest_sources(Lake(root), second), randomly)}
    retention = Retention(1, 2)
    found["compact"] = kill_everywhere(folder / "b", before, lambda root: compact(Lake(root), retention, "2026-01-06"), randomly)
    apart = [SourceSpec(folder / "more", "samples_table", f"s{n}") for n in range(4)]
    tries = [at_once(folder, before, apart, 0.0) for _ in range(3)]
    found["at_once"] = {"stored": sum(t["stored"] for t in tries), "refused": sum(t["refused"] for t in tries)}
    found["waiting"] = at_once(folder, before, apart, 120.0)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

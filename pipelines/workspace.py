"""The folder a training run works in: one sub-folder per stage, written atomically, reused when a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGES: tuple[str, ...] = ("ingest", "features", "forecasters", "agent", "evaluate", "promote")


def fingerprint(value: Any) -> str:
    """Hex digest of a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value, indent=2, default=float) + "\n")
    os.replace(fresh, path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


class Workspace:
    """Stage outputs under ``root``.

    A stage is *done* when its folder holds ``stage.json`` with the fingerprint of its configuration and inputs; the file is written last.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str) -> Path:
        return self.root / stage

    def scratch(self, stage: str, key: str = "") -> Path:
        """Where a stage keeps checkpoints that survive a kill, apart for each fingerprint; all removed when the stage is done."""
        folder = self.root / f".{stage}.partial"
        return folder / key[:16] if key else folder

    def forget(self, stages: Iterable[str]) -> None:
        """Remove what killed runs of these stages left to resume from."""
        for stage in stages:
            shutil.rmtree(self.scratch(stage), ignore_errors=True)

    def done(self, stage: str, key: str) -> bool:
        """Whether the stage is done under exactly this fingerprint."""
        mark = self.folder(stage) / "stage.json"
        return mark.exists() and read_json(mark)["fingerprint"] == key

    def mark(self, stage: str) -> str:
        """Digest of a finished stage: what the next stages depend on."""
        return str(read_json(self.folder(stage) / "stage.json")["fingerprint"])

    @contextmanager
    def writing(self, stage: str, key: str) -> Iterator[Path]:
        """A fresh folder that replaces the stage's folder only when the block succeeds.

        Its name is the process's own: a worker that outlives a killed run writes into a folder that nobody reads.
        """
        for left in self.root.glob(f".{stage}.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        fresh = self.root / f".{stage}.new-{os.getpid()}"
        fresh.mkdir(parents=True)
        yield fresh
        write_json(fresh / "stage.json", {"stage": stage, "fingerprint": key})
        target = self.folder(stage)
        stale = self.root / f".{stage}.old"
        shutil.rmtree(stale, ignore_errors=True)
        if target.exists():
            os.replace(target, stale)
        os.replace(fresh, target)
        shutil.rmtree(stale, ignore_errors=True)
        shutil.rmtree(self.scratch(stage), ignore_errors=True)

    def begin(self, key: str, meta: Mapping[str, Any], *, resume: bool) -> bool:
        """Start a whole run; True when it continues an unfinished one with the same fingerprint."""
        path = self.root / "run.json"
        if resume and path.exists():
            previous = read_json(path)
            if previous["status"] == "running" and previous["fingerprint"] == key:
                return True
        self.forget(STAGES)
        write_json(path, {"status": "running", "fingerprint": key, **meta})
        return False

    def finish(self) -> None:
        """Mark the run complete: the next one starts anew."""
        path = self.root / "run.json"
        write_json(path, {**read_json(path), "status": "complete"})

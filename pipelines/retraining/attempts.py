"""What retraining remembers between processes: the attempt of each model that is not finished, and the history of those that are.

``STATE/MODEL/attempt.json`` exists from the beginning of an attempt to its end; whoever holds ``STATE/MODEL/.lock`` owns it, so that an
attempt found there belongs to a process that was killed, and is gone on with. ``STATE/MODEL/ID/`` is its workspace.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.workspace import read_json, write_json
from registry.locks import exclusive

HISTORY = "history.jsonl"
ATTEMPT = "attempt.json"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        action: ``promoted``, ``refused``, ``no new data``, ``too little fresh data``, ``failed`` or ``abandoned``.
        reason: a sentence.
        version: of the challenger, where one was registered.
        champion: version that serves afterwards.
        started: ``warm from version N`` or ``cold``, for each learner where they differ.
        run_id: MLflow run.
    """

    action: str
    reason: str
    version: str | None = None
    champion: str | None = None
    started: str | None = None
    run_id: str | None = None

    @property
    def closes_triggers(self) -> bool:
        """Whether the triggers have had their answer; the others wait for the next run."""
        return self.action in ("promoted", "refused", "no new data")


@dataclass(frozen=True)
class Attempt:
    """One retraining of one model: its triggers by id (none for a scheduled one), why, and the configuration it was begun with."""

    id: str
    model: str
    triggers: tuple[str, ...]
    why: str
    fingerprint: str
    begun: str
    outcome: Outcome | None = None


class ModelState:
    """The folder of one model; use it under :meth:`locked`."""

    def __init__(self, state: Path, model: str) -> None:
        self.state, self.model, self.folder = state, model, state / model

    @contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """Alone on this model.

        Raises:
            InputError: another process retrains it.
        """
        with exclusive(self.folder / ".lock", timeout_s):
            yield

    def open(self) -> Attempt | None:
        """The attempt that a killed process left."""
        path = self.folder / ATTEMPT
        if not path.exists():
            return None
        content = read_json(path)
        outcome = None if content["outcome"] is None else Outcome(**content["outcome"])
        return Attempt(**{**content, "triggers": tuple(content["triggers"]), "outcome": outcome})

    def begin(self, triggers: tuple[str, ...], why: str, fingerprint: str) -> Attempt:
        """Start an attempt; on disk before anything is claimed or computed."""
        now = datetime.now(UTC)
        attempt = Attempt(
            f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}", self.model, triggers, why, fingerprint, now.isoformat(timespec="seconds")
        )
        write_json(self.folder / ATTEMPT, asdict(attempt))
        return attempt

    def settle(self, attempt: Attempt, outcome: Outcome) -> Attempt:
        """Keep the outcome, so that what is left to do after it can be done again."""
        settled = replace(attempt, outcome=outcome)
        write_json(self.folder / ATTEMPT, asdict(settled))
        return settled

    def end(self, keep: int) -> None:
        """Close the attempt and prune old workspaces down to the newest ``keep``."""
        (self.folder / ATTEMPT).unlink(missing_ok=True)
        workspaces = sorted(path for path in self.folder.iterdir() if path.is_dir())
        for path in workspaces[: max(0, len(workspaces) - keep)]:
            shutil.rmtree(path, ignore_errors=True)

    def workspace(self, attempt: Attempt) -> Path:
        return self.folder / attempt.id


def record(state: Path, entry: dict[str, Any]) -> None:
    """Append a line to the history, once for each ``id``; on disk before this returns.

    A last line without its end (its writer was killed) is cut off first.
    """
    path = state / HISTORY
    with exclusive(state / ".history.lock"):
        if path.exists():
            content = path.read_bytes()
            if (whole := content.rfind(b"\n") + 1) < len(content):
                os.truncate(path, whole)
        if any(line["id"] == entry["id"] for line in read_history(state)):
            return
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry, sort_keys=True) + "\n")
            handle.flush()
            os.fsync(handle.fileno())


def read_history(state: Path) -> list[dict[str, Any]]:
    """Finished attempts, oldest first."""
    path = state / HISTORY
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]

"""Triggers of retraining: offered by whoever watches, claimed and finished by whoever retrains.

A log of JSON lines, appended under a lock and on disk before a call returns; a last line without its end (its writer was killed) is left
out.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry.locks import exclusive
from telemetry.errors import InputError


@dataclass(frozen=True)
class Trigger:
    """A reason to retrain ``model``.

    Attributes:
        model: registered name.
        rule: the rule that found it.
        reason: a sentence.
        evidence: numbers that the rule saw.
        data_sha256: of the data it saw; the same rule on the same data is the same trigger.
        at: ISO 8601 with offset.
    """

    model: str
    rule: str
    reason: str
    evidence: dict[str, Any]
    data_sha256: str
    at: str

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 over model, rule and data."""
        return hashlib.sha256(json.dumps([self.model, self.rule, self.data_sha256]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Offered:
    """Whether a trigger was taken into the log, and why or why not."""

    accepted: bool
    why: str


@dataclass(frozen=True)
class TriggerLog:
    """The log at ``path``; a model is left alone for ``cooldown_s`` seconds after its last trigger."""

    path: Path
    cooldown_s: float = 0.0

    def offer(self, trigger: Trigger) -> Offered:
        """Append the trigger unless it is known or its model is in cool-down."""
        with self._locked():
            known = [entry for entry in self._entries() if entry["event"] == "offered"]
            if any(entry["id"] == trigger.id for entry in known):
                return Offered(False, f"trigger {trigger.id} is known: the same rule saw the same data before")
            own = [entry["trigger"]["at"] for entry in known if entry["trigger"]["model"] == trigger.model]
            if own:
                since_s = (_moment(trigger.at) - max(map(_moment, own))).total_seconds()
                if since_s < self.cooldown_s:
                    return Offered(False, f"{trigger.model} is in cool-down: {since_s:,.0f} of {self.cooldown_s:,.0f} s have passed")
            self._append({"event": "offered", "id": trigger.id, "trigger": asdict(trigger)})
        return Offered(True, "new")

    def open(self) -> list[Trigger]:
        """Triggers that were not finished, oldest first."""
        entries = self._entries()
        finished = {entry["id"] for entry in entries if entry["event"] == "finished"}
        return [Trigger(**entry["trigger"]) for entry in entries if entry["event"] == "offered" and entry["id"] not in finished]

    def claim(self, id: str) -> bool:
        """Take an open trigger for this process; False when it is not open, or a process that still runs has it."""
        with self._locked():
            if id not in {trigger.id for trigger in self.open()}:
                return False
            claims = [entry for entry in self._entries() if entry["event"] == "claimed" and entry["id"] == id]
            if claims and _runs(claims[-1]):
                return False
            self._append({"event": "claimed", "id": id, "host": socket.gethostname(), "pid": os.getpid()})
        return True

    def finish(self, id: str, outcome: str) -> None:
        """Close a trigger; once."""
        with self._locked():
            if id in {trigger.id for trigger in self.open()}:
                self._append({"event": "finished", "id": id, "outcome": outcome})

    def _locked(self) -> Any:
        return exclusive(self.path.with_name(self.path.name + ".lock"))

    def _entries(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        entries = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError("not a trigger record", where=f"{self.path}, line {number}", remedy="restore the file") from error
        return entries

    def _append(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            content = self.path.read_bytes()
            if (whole := content.rfind(b"\n") + 1) < len(content):
                os.truncate(self.path, whole)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **entry}, sort_keys=True) + "\n")
            handle.flush()
            os.fsync(handle.fileno())


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _runs(claim: dict[str, Any]) -> bool:
    """Whether the claimant still runs; a process of another machine is taken to."""
    if claim["host"] != socket.gethostname():
        return True
    if claim["pid"] == os.getpid():
        return False
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

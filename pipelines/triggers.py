"""Why a model should be retrained, written down once: what ``pipelines.watch`` found and ``pipelines.retrain`` takes up.

A trigger is known by its model, its rule and the data that it was found in: found again in the same data it is the same trigger, and a
model has one trigger a cool-down. The log is JSON lines, appended under a lock and synced; a line that a kill left half written
is no line, and the next append begins a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry.locks import exclusive
from telemetry.errors import InputError

OFFERED, CLAIMED, FINISHED = "offered", "claimed", "finished"
TEXTS = ("model", "rule", "reason", "data_sha256", "at")
_ID_LENGTH = 16


@dataclass(frozen=True)
class Trigger:
    """One reason to retrain.

    Attributes:
        model: registered name.
        rule: that fired.
        reason: one readable line.
        evidence: JSON-serialisable numbers behind it.
        data_sha256: of the data in which it was found.
        at: ISO 8601 with offset, of the time up to which the data reach.
    """

    model: str
    rule: str
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    data_sha256: str = ""
    at: str = ""

    @property
    def id(self) -> str:
        text = json.dumps([self.model, self.rule, self.data_sha256])
        return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


@dataclass(frozen=True)
class Offered:
    """Whether a trigger was taken into the log, and why (not)."""

    accepted: bool
    why: str


@dataclass(frozen=True)
class TriggerLog:
    """Triggers and what became of them.

    Args:
        path: of the JSON lines; made on the first offer.
        cooldown_s: seconds after a model's last accepted trigger (by ``at``) in which no other of that model is accepted.
    """

    path: Path
    cooldown_s: float = 0.0

    def offer(self, trigger: Trigger) -> Offered:
        """Take a trigger in, unless it is known or its model is in cool-down.

        Raises:
            InputError: ``at`` is no time with an offset, or the log cannot be read.
        """
        at = _moment(trigger.at, "trigger.at")
        with self._locked():
            events = self._events()
            known = [Trigger(**event["trigger"]) for event in events if event["event"] == OFFERED]
            if trigger.id in {one.id for one in known}:
                return Offered(False, f"trigger {trigger.id} is known")
            for one in known:
                apart = abs((at - _moment(one.at, str(self.path))).total_seconds())
                if one.model == trigger.model and apart < self.cooldown_s:
                    told = f"{apart / 3600:.1f} h from trigger {one.id} ({one.rule}), {self.cooldown_s / 3600:g} h are asked"
                    return Offered(False, f"{trigger.model} is in cool-down: {told}")
            self._append({"event": OFFERED, "id": trigger.id, "trigger": asdict(trigger)})
        return Offered(True, f"trigger {trigger.id}")

    def open(self) -> list[Trigger]:
        """Triggers that are not finished, oldest first; claimed ones among them, for who claimed them may have been killed."""
        return _unfinished(self._read())

    def claim(self, trigger_id: str) -> bool:
        """Note that work on an open trigger begins; False when it is unknown or finished.

        A claim is no lock: one whose holder was killed must be claimable again. Whoever works holds a lock of its own.
        """
        with self._locked():
            if trigger_id not in {one.id for one in _unfinished(self._events())}:
                return False
            self._append({"event": CLAIMED, "id": trigger_id, "at": _now()})
        return True

    def finish(self, trigger_id: str, outcome: str) -> None:
        """Note what became of a trigger; a second time changes nothing.

        Raises:
            InputError: no such trigger.
        """
        with self._locked():
            events = self._events()
            if trigger_id not in {event["id"] for event in events if event["event"] == OFFERED}:
                raise InputError(f"no trigger '{trigger_id}'", where=str(self.path))
            if not any(event["event"] == FINISHED and event["id"] == trigger_id for event in events):
                self._append({"event": FINISHED, "id": trigger_id, "outcome": outcome, "at": _now()})

    def outcomes(self) -> dict[str, str]:
        """What became of each finished trigger, by id."""
        return {event["id"]: event["outcome"] for event in self._read() if event["event"] == FINISHED}

    # --- the file -----------------------------------------------------------------------------------------------------------------------

    def _locked(self) -> Any:
        return exclusive(self.path.with_name(self.path.name + ".lock"))

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self._locked():
            return self._events()

    def _events(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        # A killed writer leaves at most a last line without its end; the next append closes it, and it stays unreadable.
        lines = self.path.read_bytes().split(b"\n")
        return [event for number, line in enumerate(lines, 1) if (event := self._event(line, number)) is not None]

    def _event(self, line: bytes, number: int) -> dict[str, Any] | None:
        try:
            event = json.loads(line)
        except ValueError:
            return None
        kind = event.get("event") if isinstance(event, Mapping) else None
        whole = kind in (OFFERED, CLAIMED, FINISHED) and isinstance(event.get("id"), str)
        if whole and kind == OFFERED:
            given = event.get("trigger")
            whole = isinstance(given, Mapping) and set(given) == {*TEXTS, "evidence"} and all(isinstance(given[k], str) for k in TEXTS)
        if whole and kind == FINISHED:
            whole = isinstance(event.get("outcome"), str)
        if not whole:
            raise InputError("no event of a trigger", where=f"{self.path}, line {number}", remedy="restore the file, or move it away")
        return dict(event)

    def _append(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, sort_keys=True, default=float) + "\n"
        fresh = not self.path.exists()
        with self.path.open("ab+") as handle:
            if handle.tell() > 0:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    line = "\n" + line
            handle.write(line.encode())
            handle.flush()
            os.fsync(handle.fileno())
        if fresh:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _unfinished(events: list[dict[str, Any]]) -> list[Trigger]:
    finished = {event["id"] for event in events if event["event"] == FINISHED}
    return [Trigger(**event["trigger"]) for event in events if event["event"] == OFFERED and event["id"] not in finished]


def _moment(text: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r}", where=where, allowed="ISO 8601 with offset, such as 2026-01-05T12:00:00+00:00") from error
    if moment.tzinfo is None:
        raise InputError(f"{text!r}", where=where, allowed="a time with its offset, such as 2026-01-05T12:00:00+00:00")
    return moment


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""An append-only record of promotions: JSON lines, each holding the hash of the line before it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from telemetry.errors import InputError

GENESIS = "0" * 64


class Audit(Protocol):
    """A record that is open for one change, under a lock: what is in it, and a way to append."""

    records: list[dict[str, Any]]

    def append(self, record: dict[str, Any]) -> dict[str, Any]: ...

    def still_held(self) -> None: ...


class FileAudit:
    """A file's record, read and checked once; open it under a lock to append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read(path)

    def append(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append ``record`` with ``previous_hash`` and ``hash``; on disk before this returns.

        A last line without its end (the writer was killed in it) was never confirmed and is cut off first.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_unfinished(self.path)
        entry = {**record, "previous_hash": self.records[-1]["hash"] if self.records else GENESIS}
        entry["hash"] = hash_of(entry)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry, sort_keys=True) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        self.records.append(entry)
        return entry

    def still_held(self) -> None:
        """A file's lock ends only with its holder."""


def append(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Append one record to a file whose chain is checked first. Call under a lock."""
    return FileAudit(path).append(record)


def read(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first, after checking the chain; a last line without its end is left out.

    Raises:
        InputError: a line was changed, removed or put in, with its number.
    """
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            entries.append((entry, entry.pop("hash")))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise InputError("not an audit record", where=f"{path}, line {number}", remedy="restore the file from a backup") from error
    return checked(entries, f"{path}, line")


def checked(entries: Iterable[tuple[dict[str, Any], str]], where: str) -> list[dict[str, Any]]:
    """Records with their ``hash``, after checking each against the one before. Raises InputError with the number of the first wrong one."""
    records: list[dict[str, Any]] = []
    expected = GENESIS
    for number, (entry, stated) in enumerate(entries, start=1):
        if entry.get("previous_hash") != expected or hash_of(entry) != stated:
            raise InputError(
                "the chain of hashes is broken",
                where=f"{where} {number}",
                remedy="a record was changed or removed; restore from a backup",
            )
        expected = stated
        records.append({**entry, "hash": stated})
    return records


def hash_of(entry: dict[str, Any]) -> str:
    """SHA-256 of a record without its own hash."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _cut_unfinished(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)

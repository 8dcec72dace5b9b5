"""An append-only record of promotions: JSON lines, each holding the hash of the line before it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from telemetry.errors import InputError

GENESIS = "0" * 64


def append(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Append ``record`` with ``previous_hash`` and ``hash``; on disk before this returns. Call under a lock.

    A last line without its end (the writer was killed in it) was never confirmed and is cut off first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_unfinished(path)
    records = read(path)
    entry = {**record, "previous_hash": records[-1]["hash"] if records else GENESIS}
    entry["hash"] = _hash(entry)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(entry, sort_keys=True) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    return entry


def read(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first, after checking the chain; a last line without its end is left out.

    Raises:
        InputError: a line was changed, removed or put in, with its number.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    records: list[dict[str, Any]] = []
    expected = GENESIS
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
            stated = entry.pop("hash")
        except (json.JSONDecodeError, AttributeError, KeyError) as error:
            raise InputError("not an audit record", where=where, remedy="restore the file from a backup") from error
        if entry.get("previous_hash") != expected or _hash(entry) != stated:
            raise InputError("the chain of hashes is broken", where=where, remedy="a record was changed or removed; restore from a backup")
        expected = stated
        records.append({**entry, "hash": stated})
    return records


def _hash(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _cut_unfinished(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)

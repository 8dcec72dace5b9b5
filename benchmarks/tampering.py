"""Tampers with a promoted version in every way that the loader must refuse, and counts what was loaded nevertheless.

usage: python -m benchmarks.tampering [OUT.json]

Each file of the stored version in turn: a bit flipped in its first, middle and last byte, truncated by a byte, emptied, grown, deleted,
replaced by a pickle, by a symbolic link, by the same file of another promoted version; and in each folder a file added. Then the rows of
the database: every column that says what a version is, every signed tag (changed, emptied, removed, taken from another version), tags
added, all at once, and the alias. Each try starts from the untouched version, which must load at the end, or the refusals proved nothing.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.live_registry import demand_series, promote_forecaster
from models.catalog import FORECASTERS
from registry.loading import VerificationError, load_forecaster
from registry.mlflow_client import sqlite_path
from registry.signing import RECORD_TAG
from registry.tracking import Tracking, open_tracking

NAME = "workload-forecaster"
Try = tuple[str, str, Callable[[], None]]  # kind, what, how


@dataclass
class Tally:
    """Tries and loads by kind of tampering; ``loaded`` names what got through."""

    tries: dict[str, int]
    loaded: list[str]

    @property
    def total(self) -> int:
        return sum(self.tries.values())


def file_tries(folder: Path, other: Path, every: int = 1) -> Iterator[Try]:
    """Tamperings of each ``every``-th file under ``folder``; ``other`` is another version's folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files[::every]:
        content, name = path.read_bytes(), path.relative_to(folder).as_posix()
        for place in sorted({0, len(content) // 2, len(content) - 1}):
            flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            yield "bit flipped", f"{name}@{place}", lambda p=path, c=flipped: p.write_bytes(c)
        yield "truncated", name, lambda p=path, c=content: p.write_bytes(c[:-1])
        yield "emptied", name, lambda p=path: p.write_bytes(b"")
        yield "grown", name, lambda p=path, c=content: p.write_bytes(c + b"\n")
        yield "deleted", name, lambda p=path: p.unlink()
        yield "pickle", name, lambda p=path: p.write_bytes(pickle.dumps({"a": 1}))
        yield "link", name, lambda p=path, c=content: _link(p, c)
        twin = other / name
        if twin.is_file() and twin.read_bytes() != content:
            yield "of another version", name, lambda p=path, t=twin: p.write_bytes(t.read_bytes())
    for place in sorted({path.parent for path in files}):
        yield "file added", (place / "extra.json").relative_to(folder).as_posix(), lambda p=place: (p / "extra.json").write_text("{}")


def _link(path: Path, content: bytes) -> None:
    target = path.parent.parent.parent / f"elsewhere-{path.name}"
    target.write_bytes(content)
    path.unlink()
    os.symlink(target, path)


def row_tries(database: Path, version: str, other: str) -> Iterator[Try]:
    """Tamperings of the database row of ``version``; ``other`` is another version of the same model."""

    def run(statement: str, *values: str) -> Callable[[], None]:
        def change() -> None:
            with closing(sqlite3.connect(database)) as connection, connection:
                connection.execute(statement, values)

        return change

    def column(name: str, number: str) -> str:
        with closing(sqlite3.connect(database)) as connection:
            found = connection.execute(f"SELECT {name} FROM model_versions WHERE name=? AND version=?", (NAME, number)).fetchone()
        return str(found[0])

    where = "WHERE name=? AND version=?"
    for name in ("source", "storage_location", "run_id"):
        yield "column", f"{name} of another", run(f"UPDATE model_versions SET {name}=? {where}", column(name, other), NAME, version)
        yield "column", f"{name} invented", run(f"UPDATE model_versions SET {name}='x' {where}", NAME, version)
    yield "column", "status", run(f"UPDATE model_versions SET status='FAILED_REGISTRATION' {where}", NAME, version)
    tags = _tags(database, version)
    others = _tags(database, other)
    for key, value in tags.items():
        yield "tag changed", key, run(f"UPDATE model_version_tags SET value=? {where} AND key=?", value + " ", NAME, version, key)
        yield "tag emptied", key, run(f"UPDATE model_version_tags SET value='' {where} AND key=?", NAME, version, key)
        yield "tag removed", key, run(f"DELETE FROM model_version_tags {where} AND key=?", NAME, version, key)
        if others.get(key, value) != value:
            yield "tag of another", key, run(f"UPDATE model_version_tags SET value=? {where} AND key=?", others[key], NAME, version, key)
    insert = "INSERT INTO model_version_tags (name, version, key, value) VALUES (?, ?, ?, ?)"
    for key in ("gate.invented", "package.extra", "signature.extra"):
        yield "tag added", key, run(insert, NAME, version, key, "passed: yes")
    yield "tag added", "all tags and the source of another", lambda: _become(database, version, other)
    moved = "UPDATE registered_model_aliases SET version=? WHERE name=? AND alias='champion'"
    yield "alias", "moved to the previous version", run(moved, other, NAME)


def _tags(database: Path, version: str) -> dict[str, str]:
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT key, value FROM model_version_tags WHERE name=? AND version=?", (NAME, version))
        return {str(key): str(value) for key, value in rows}


def _become(database: Path, version: str, other: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for column in ("source", "storage_location", "run_id"):
            statement = f"UPDATE model_versions SET {column}=(SELECT {column} FROM model_versions WHERE name=? AND version=?)"
            connection.execute(f"{statement} WHERE name=? AND version=?", (NAME, other, NAME, version))
        for key, value in _tags(database, other).items():
            connection.execute("UPDATE model_version_tags SET value=? WHERE name=? AND version=? AND key=?", (value, NAME, version, key))


def folder_of(tracking: Tracking, version: str) -> Path:
    """Where the files of a version are stored."""
    return Path(tracking.client.get_model_version_download_uri(NAME, version).removeprefix("file://"))


def tamper(tracking: Tracking, version: str, other: str, every: int = 1) -> Tally:
    """Do every try, each on the untouched version, and count; raises VerificationError when the untouched version does not load."""
    database, folder = sqlite_path(tracking.tracking_uri), folder_of(tracking, version)
    assert database is not None
    tally = Tally({}, [])
    with tempfile.TemporaryDirectory(prefix="joulewise-tamper-") as scratch:
        saved = Path(scratch) / "folder"
        shutil.copytree(folder, saved)
        rows = Path(scratch) / "rows.db"
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(rows)) as target:
            source.backup(target)
        for kind, what, change in [*file_tries(folder, folder_of(tracking, other), every), *row_tries(database, version, other)]:
            change()
            tally.tries[kind] = tally.tries.get(kind, 0) + 1
            try:
                load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
                tally.loaded.append(f"{kind}: {what}")
            except VerificationError:
                pass
            shutil.rmtree(folder)
            shutil.copytree(saved, folder)
            with closing(sqlite3.connect(rows)) as source, closing(sqlite3.connect(database)) as target:
                source.backup(target)
        load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
    assert RECORD_TAG in _tags(database, version)
    return tally


def main() -> None:
    """Promote two versions in a temporary registry, tamper with the champion, print the counts."""
    with tempfile.TemporaryDirectory(prefix="joulewise-tampering-") as place:
        root = Path(place)
        tracking = open_tracking(f"sqlite:///{root}/mlflow.db")
        versions = []
        for seed in (0, 1):
            forecaster = FORECASTERS["persistence"](freq="10min", horizon=6, season_length=24).fit(
                demand_series(4, 200, season=24, seed=seed)
            )
            versions.append(promote_forecaster(tracking, forecaster, NAME, root / f"made-{seed}"))
        tally = tamper(tracking, versions[1], versions[0])
    for kind, tries in tally.tries.items():
        print(f"{kind:20} {tries:5} tries  {sum(line.startswith(kind + ':') for line in tally.loaded):3} loaded")
    print(f"{'all':20} {tally.total:5} tries  {len(tally.loaded):3} loaded")
    for line in tally.loaded:
        print(f"  LOADED {line}")
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/tampering.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"tries": tally.tries, "total": tally.total, "loaded": tally.loaded}, indent=2) + "\n")
    raise SystemExit(1 if tally.loaded else 0)


if __name__ == "__main__":
    main()

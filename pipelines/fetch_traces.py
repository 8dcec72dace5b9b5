"""``python -m pipelines.fetch_traces``: every public trace from its origin, in the layout that ``conf/trace`` expects."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from pipelines.cli import build, hydra_command
from pipelines.download import SCHEMES, DownloadError, Limits, Progress, download, sha256_of
from pipelines.origins import COPY, FetchFile, TraceInfo, chosen_traces, trace_infos
from pipelines.workspace import read_json, write_json
from telemetry.errors import InputError
from telemetry.originals import convert, table_digest

LEDGER = "fetched.json"
FORMAT = 1
ORIGINALS = ".originals"
WRITE_BITS = 0o222
FETCHED, PRESENT, FAILED = "fetched", "already there", "failed"
STRICT, ACCEPT = "strict", "accept"
# Where the public code host serves a file of a commit; the second answers for the web site and knows shortened commits for certain.
PUBLIC = ("https://raw.githubusercontent.com/{repository}/{commit}/{path}", "https://github.com/{repository}/raw/{commit}/{path}")


@dataclass(frozen=True)
class FetchConfig:
    """What the command is told (``conf/fetch_traces.yaml``).

    Attributes:
        base: a mirror's address; originals lie at ``base/repository/commit/path``. Empty = the public code host.
    """

    traces: tuple[str, ...]
    out: Path
    limits: Limits
    base: str = ""
    checksums: str = STRICT
    keep_originals: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.checksums not in (STRICT, ACCEPT):
            raise InputError(f"{self.checksums!r}", where="checksums", allowed=f"{STRICT}, {ACCEPT}")
        if self.base and urlsplit(self.base).scheme not in SCHEMES:
            raise InputError(f"{self.base!r}", where="origin.base", allowed=f"an address of {', '.join(SCHEMES)}")

    def addresses(self, place: Mapping[str, str]) -> list[str]:
        """Addresses of an original, to be tried in order when it is missing."""
        values = {key: quote(value, safe="/=") for key, value in place.items()}
        if self.base:
            return ["/".join([self.base.rstrip("/"), *values.values()])]
        return [template.format(**values) for template in PUBLIC]


@dataclass(frozen=True)
class Outcome:
    """What became of one file; ``told`` says what was verified, or why it failed."""

    trace: TraceInfo
    file: FetchFile
    status: str
    told: str
    size: int = 0


class Ledger:
    """``fetched.json``: what was brought when, from where, with which checksums; written after every file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files: dict[str, Any] = {}
        if path.exists():
            try:
                held = read_json(path)
                self.files = dict(held["files"]) if held["format"] == FORMAT else {}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    "not a record of fetched files", where=str(path), remedy="move it away; files are then verified anew"
                ) from error

    def record(self, name: str, entry: Mapping[str, Any]) -> None:
        self.files[name] = dict(entry)
        write_json(self._path, {"format": FORMAT, "files": dict(sorted(self.files.items()))})

    def original_digest(self, origin: Mapping[str, str], path: str) -> str:
        """SHA-256 of an original when it was first fetched; empty = never."""
        for entry in self.files.values():
            for original in entry.get("originals", ()):
                if all(original[key] == value for key, value in _place(origin, path).items()):
                    return str(original["sha256"])
        return ""


def _place(origin: Mapping[str, str], path: str) -> dict[str, str]:
    return {"repository": origin["repository"], "commit": origin["commit"], "path": path}


@dataclass
class Fetcher:
    """Brings files one after another."""

    config: FetchConfig
    ledger: Ledger
    say: Callable[[str], None] = field(default=lambda text: None)

    def bring(self, trace: TraceInfo, file: FetchFile) -> Outcome:
        """One file: left alone when it is there and whole, else fetched, verified, converted, verified, and put in place."""
        target = self.config.out / file.file
        try:
            _below(target, self.config.out)
            whole = self._present(trace, file, target)
            if whole:
                return Outcome(trace, file, PRESENT, whole, target.stat().st_size)
            told, size = self._fetch(trace, file, target)
            return Outcome(trace, file, FETCHED, told, size)
        except (DownloadError, InputError) as error:
            return Outcome(trace, file, FAILED, str(error))
        except OSError as error:
            return Outcome(trace, file, FAILED, f"{error.filename or target}: {error.strerror or error}")

    def _present(self, trace: TraceInfo, file: FetchFile, target: Path) -> str:
        """How the file that is there was found whole; empty = it has to be fetched."""
        if not target.is_file():
            return ""
        entry, digest = self.ledger.files.get(file.file, {}), sha256_of(target)
        pinned = file.sha256 or file.content_sha256
        if entry.get("sha256") == digest and entry["pinned"] == pinned and entry["commit"] == trace.origin["commit"]:
            return str(entry["verified"])
        if pinned and pinned == (digest if file.sha256 else _content_of(target)):
            verified = "as stated in conf/trace"
            self.ledger.record(file.file, self._entry(trace, file, digest, target.stat().st_size, [], verified))
            return verified
        self.say(f"{file.file}: is not what it should be, fetched again")
        return ""

    def _fetch(self, trace: TraceInfo, file: FetchFile, target: Path) -> tuple[str, int]:
        with self._bar(file.file) as show:
            held = [(label, *self._original(trace, path, show)) for label, path in file.originals()]
        known = [self.ledger.original_digest(trace.origin, path) for _, path in file.originals()]
        for (_, path, digest), first in zip(held, known, strict=True):
            if first and first != digest:
                self._differs(path.name, "is not the original that was fetched first", first, digest, [path])
        fresh = target.with_name(target.name + ".new")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = self._write(file, [(label, path) for label, path, _ in held], fresh)
            pinned = file.sha256 or file.content_sha256
            if pinned and pinned != found:
                self._differs(file.file, "is not as stated in conf/trace", pinned, found, [path for _, path, _ in held])
            verified = _verified(pinned, found, all(known))
            size, digest = fresh.stat().st_size, sha256_of(fresh)
            os.replace(fresh, target)
        finally:
            fresh.unlink(missing_ok=True)
        originals = [
            {**_place(trace.origin, path), "sha256": held_digest, "bytes": held_path.stat().st_size}
            for (_, path), (_, held_path, held_digest) in zip(file.originals(), held, strict=True)
        ]
        self.ledger.record(file.file, self._entry(trace, file, digest, size, originals, verified))
        if not self.config.keep_originals:
            for _, path, _ in held:
                _remove(path, self.config.out)
        return verified, size

    def _original(self, trace: TraceInfo, path: str, show: Progress) -> tuple[Path, str]:
        """The original's place and digest; one that an earlier run brought is taken as it is."""
        place = self.config.out / ORIGINALS / trace.origin["repository"] / trace.origin["commit"] / path
        _below(place, self.config.out)
        if place.is_file():
            return place, sha256_of(place)
        missing: list[str] = []
        for address in self.config.addresses(_place(trace.origin, path)):
            try:
                return place, download(address, place, self.config.limits, show)
            except DownloadError as error:
                missing.append(f"{address}: {error}")
                if not error.missing:
                    break
        raise DownloadError("; ".join(missing))

    def _differs(self, name: str, what: str, expected: str, found: str, originals: Sequence[Path]) -> None:
        if self.config.checksums == ACCEPT:
            self.say(f"{name}: {what}, taken all the same (checksums={ACCEPT})")
            return
        for path in originals:
            path.unlink(missing_ok=True)
        raise DownloadError(f"{name} {what}: {found[:16]} instead of {expected[:16]}; nothing replaced")

    @staticmethod
    def _write(file: FetchFile, originals: list[tuple[str, Path]], fresh: Path) -> str:
        """Write the file as our readers take it; its digest (of a table: of what it says)."""
        if file.conversion == COPY:
            shutil.copyfile(originals[0][1], fresh)
            return sha256_of(fresh)
        try:
            table = convert(file.conversion, originals, file.label)
        except InputError:
            for _, path in originals:
                path.unlink(missing_ok=True)
            raise
        table.to_parquet(fresh, index=False, compression="zstd")
        return table_digest(table)

    def _entry(
        self, trace: TraceInfo, file: FetchFile, digest: str, size: int, originals: list[dict[str, Any]], verified: str
    ) -> dict[str, Any]:
        return {
            "trace": trace.name,
            "commit": trace.origin["commit"],
            "pinned": file.sha256 or file.content_sha256,
            "sha256": digest,
            "bytes": size,
            "conversion": file.conversion,
            "licence": trace.origin["licence"],
            "attribution": trace.origin["attribution"],
            "verified": verified,
            "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
            "originals": originals,
        }

    @contextmanager
    def _bar(self, name: str) -> Iterator[Progress]:
        with tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=not self.config.progress, dynamic_ncols=True) as bar:
            before = last = 0

            def show(done: int, total: int) -> None:
                nonlocal before, last
                if done < last:  # the next original, or one that is brought anew
                    before += last
                last = done
                bar.total = before + total if total else None
                bar.n = before + done
                bar.update(0)

            yield show


def _verified(pinned: str, found: str, known: bool) -> str:
    if pinned:
        return "as stated in conf/trace" if pinned == found else f"other than stated in conf/trace ({found[:16]})"
    return "as fetched first" if known else "on first use: nothing to compare with"


def _content_of(path: Path) -> str:
    try:
        return table_digest(pd.read_parquet(path))
    except (OSError, ValueError):
        return ""


def _remove(path: Path, folder: Path) -> None:
    """A file, and the folders that are empty without it."""
    path.unlink(missing_ok=True)
    while (path := path.parent) != folder and not any(path.iterdir()):
        path.rmdir()


def _below(path: Path, folder: Path) -> None:
    """Refuse a path that leaves the folder, by a link on the way for instance."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"'{path}' leads out of the folder", where=str(folder), remedy="remove the link")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one run at a time writes to the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not folder.stat().st_mode & WRITE_BITS:
            # Root could write all the same: the mark says that somebody keeps this folder as it is.
            raise InputError("the folder is write-protected", where=str(folder), remedy="out=FOLDER of your own")
        lock = (folder / ".fetch.lock").open("w")
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(folder), remedy="out=FOLDER where files can be written") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError("another run is writing here", where=str(folder), remedy="wait for it, or choose another out=") from error
        yield


def fetch(config: FetchConfig, infos: Sequence[TraceInfo] | None = None, say: Callable[[str], None] = print) -> list[Outcome]:
    """Bring the traces that the configuration names.

    Raises:
        InputError: an unknown trace, a folder that cannot be written, or another run at work in it.
    """
    traces = chosen_traces(config.traces, infos if infos is not None else trace_infos())
    with _alone(config.out):
        fetcher = Fetcher(config, Ledger(config.out / LEDGER), say)
        return [fetcher.bring(trace, file) for trace in traces for file in trace.fetch]


def render(outcomes: Sequence[Outcome]) -> str:
    """The table at the end, and what failed with its reason."""
    rows = [("file", "bytes", "origin", "licence", "result", "verified")]
    for one in outcomes:
        origin = one.trace.origin
        count = len(one.file.originals())
        source = f"{origin['repository']} @ {origin['commit']}" + (f" ({count} files)" if count > 1 else "")
        told = "" if one.status == FAILED else one.told
        rows.append((one.file.file, f"{one.size:,}" if one.size else "-", source, origin["licence"], one.status, told))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip() for row in rows]
    lines += [f"failed: {one.file.file}: {one.told}" for one in outcomes if one.status == FAILED]
    return "\n".join(lines)


def fetch_config(cfg: DictConfig) -> FetchConfig:
    """Check and convert the composed configuration."""
    try:
        raw: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0], where="config") from error
    if not raw["out"]:
        raise InputError("no folder given", where="out", allowed="out=FOLDER")
    names = raw["traces"] if isinstance(raw["traces"], list) else [raw["traces"]]
    limits = {key: raw[key] for key in ("timeout_s", "file_timeout_s", "tries", "pause_s")}
    if isinstance(raw["max_mib"], bool) or not isinstance(raw["max_mib"], int | float):
        raise InputError(f"{raw['max_mib']!r}", where="max_mib", allowed="a number above 0")
    values = {
        "traces": [str(name) for name in names],
        "out": Path(str(raw["out"])),
        "base": str(raw["origin"]["base"] or ""),
        "limits": build(Limits, {**limits, "max_bytes": int(raw["max_mib"] * 2**20)}, "limits"),
        **{key: raw[key] for key in ("checksums", "keep_originals", "progress")},
    }
    return build(FetchConfig, values, "fetch_traces")


@hydra_command("fetch_traces")
def main(cfg: DictConfig) -> int:
    """Fetch, tell, and answer 1 when something failed."""
    config = fetch_config(cfg)
    outcomes = fetch(config, say=lambda text: print(text, file=sys.stderr))
    print(render(outcomes))
    failed = sum(one.status == FAILED for one in outcomes)
    print(f"\n{len(outcomes) - failed} of {len(outcomes)} files in {config.out}; record: {config.out / LEDGER}")
    if failed:
        return 1
    print(f"use them: export JOULEWISE_TRACES={config.out.resolve()}")
    return 0


if __name__ == "__main__":
    main()

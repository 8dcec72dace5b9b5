"""Where a lake's files lie: a few verbs, for a folder and (``telemetry/object_storage.py``) for a bucket.

Keys are relative paths with ``/``. What has a name is never changed in place, but for the few files that are replaced whole; one of them is
the commit point, and ``replace`` with a tag refuses when somebody else has replaced it since it was read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pyarrow import fs

from telemetry.errors import InputError

MISSING = ""  # the tag of what is not there


class Changed(Exception):  # noqa: N818 - no error of its own: the caller says what was in the way
    """The file is no longer the one that was read."""


class Storage(Protocol):
    """A lake's files by key.

    Attributes:
        lasting: whether what an ingest left behind may be removed at once: nobody else can be writing.
    """

    lasting: bool

    def place(self, key: str) -> str:
        """The key as a user names it."""

    def read(self, key: str) -> tuple[bytes, str]:
        """Content and tag; nothing and ``MISSING`` where there is no such file."""

    def replace(self, key: str, data: bytes, tag: str | None = None) -> None:
        """Replace a file whole; with a tag only while it is the one that was read.

        Raises:
            Changed: it is another one.
            OSError: not written; it is as before.
        """

    def put(self, files: Mapping[str, Path]) -> None:
        """Move written files into place, all of them safe from a loss of power when this returns."""

    def keys(self, prefix: str, older_than_s: float = 0.0) -> Iterator[str]:
        """Keys below a prefix that ends in ``/``."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files; one that is gone is no error."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other writers out, where the storage can.

        Raises:
            InputError: another one is writing.
        """

    def version(self, digest: str) -> str:
        """Name of a version's folder that no other writer uses."""

    def scratch(self) -> Path:
        """A fresh local folder to write files in."""

    def arrow(self, key: str) -> tuple[fs.FileSystem | None, str]:
        """Filesystem (None = local) and path for Arrow to read from."""


def storage_of(root: Path | str, *, endpoint_url: str | None = None, anon: bool = False, wait_s: float = 0.0) -> Storage:
    """The storage of a lake's root: a folder, or ``s3://bucket/prefix``.

    Args:
        endpoint_url: of an S3 that is not Amazon's.
        anon: read without credentials.
        wait_s: how long a writer waits for another one on a local lake.

    Raises:
        InputError: another kind of address, or the extra ``cloud`` is not installed.
    """
    text = str(root)
    if text.startswith("s3:/"):
        from telemetry.object_storage import ObjectStorage

        return ObjectStorage.of_url(text, endpoint_url=endpoint_url, anon=anon)
    if "://" in text:
        raise InputError(f"'{text}'", where="lake.root", allowed="a folder, or s3://bucket/prefix")
    return LocalStorage(Path(root), wait_s)


class LocalStorage:
    """A folder. One writer at a time (``flock``), commits by ``os.replace``, files and folders synced before."""

    lasting = False

    def __init__(self, root: Path, wait_s: float = 0.0) -> None:
        self.root, self.wait_s = root, wait_s

    def place(self, key: str) -> str:
        return str(self.root / key)

    def read(self, key: str) -> tuple[bytes, str]:
        try:
            data = (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b"", MISSING
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, key: str, data: bytes, tag: str | None = None) -> None:
        if tag is not None and self.read(key)[1] != tag:
            raise Changed(key)
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with fresh.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def put(self, files: Mapping[str, Path]) -> None:
        folders: set[Path] = set()
        for key, path in files.items():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            target = self.root / key
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            folders.update(folder for folder in target.parents if folder == self.root or self.root in folder.parents)
        for folder in sorted(folders, key=lambda f: -len(f.parts)):
            _sync_folder(folder)

    def keys(self, prefix: str, older_than_s: float = 0.0) -> Iterator[str]:
        for path in sorted((self.root / prefix).rglob("*")):
            if path.is_file():
                yield path.relative_to(self.root).as_posix()

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self.root / key
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for folder in path.parents[: len(Path(key).parts) - 1]:
                    folder.rmdir()  # only when it is empty

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as handle:
            if not _locked(handle.fileno(), self.wait_s):
                raise InputError("another ingest is running", where=str(self.root), remedy="wait for it, or use another lake.root")
            for left in self.root.glob(".staging-*"):
                shutil.rmtree(left, ignore_errors=True)
            for left in (*self.root.glob(".*.new"), *self.root.glob("quality/.*.new")):
                left.unlink(missing_ok=True)
            self._drop_empty()
            yield

    def _drop_empty(self) -> None:
        """Folders that a killed writer made for files that never came; those of forecasts are another writer's."""
        for table in self.root.glob("tables/*"):
            for folder, _, _ in os.walk(table, topdown=False) if table.name != "forecasts" else ():
                with contextlib.suppress(OSError):
                    os.rmdir(folder)  # only when it is empty

    def version(self, digest: str) -> str:
        return digest[:16]

    def scratch(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".staging-", dir=self.root))

    def arrow(self, key: str) -> tuple[fs.FileSystem | None, str]:
        return None, str(self.root / key)


def _locked(handle: int, wait_s: float) -> bool:
    """Whether the lock was got; waits for at most ``wait_s``."""

    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder safe from a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

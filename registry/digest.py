"""Digests of files and folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_digests(folder: Path, exclude: frozenset[str] = frozenset()) -> dict[str, str]:
    """``{relative POSIX path: sha256}`` of every file under ``folder`` but those in ``exclude``.

    Raises:
        ValueError: a symbolic link or something that is neither file nor folder (its content could change unseen).
    """
    digests: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{name} is not a plain file")
        if path.is_file() and name not in exclude:
            digests[name] = sha256_file(path)
    return digests


def tree_digest(digests: dict[str, str]) -> str:
    """One SHA-256 over names and digests."""
    return hashlib.sha256("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What distinguishes two inventories, one line each; empty when they agree."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} was added" for name in sorted(found.keys() - expected.keys())]
    lines += [f"{name} was changed" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    return lines

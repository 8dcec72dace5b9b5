"""Where each public trace comes from: origin, licence, known flaws and the files to fetch, read from ``conf/trace``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipelines.cli import CONF_DIR
from telemetry.errors import InputError
from telemetry.originals import CONVERSIONS

ORIGIN_KEYS = ("repository", "commit", "path", "licence", "attribution")
COPY = "copy"
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".npy", ".npz")
HEX_DIGITS = 64


@dataclass(frozen=True)
class FetchFile:
    """One file as our readers take it, and the original files that it is made from.

    Attributes:
        file: path below the folder of the traces.
        template: path in the repository; ``{0}``, ``{1}`` stand for the values of ``each``.
        conversion: ``copy``, or a name of ``telemetry.originals.CONVERSIONS``.
        each: values for the template, one original each; the first value is the original's label.
        label: column that the labels go to; empty = none (or the conversion's own).
        sha256: of a copy's bytes, known beforehand.
        content_sha256: of a converted table (``telemetry.originals.table_digest``), known beforehand.
    """

    file: str
    template: str
    conversion: str
    each: tuple[tuple[str, ...], ...] = ()
    label: str = ""
    sha256: str = ""
    content_sha256: str = ""

    def __post_init__(self) -> None:
        if self.conversion != COPY and self.conversion not in CONVERSIONS:
            raise InputError(f"conversion '{self.conversion}'", where=self.file, allowed=", ".join((COPY, *CONVERSIONS)))
        if self.conversion == COPY and len(self.each) > 1:
            raise InputError(f"{len(self.each)} originals", where=self.file, allowed="one original for a copy")
        for digest in (self.sha256, self.content_sha256):
            if digest and (len(digest) != HEX_DIGITS or set(digest) - set("0123456789abcdef")):
                raise InputError(f"checksum '{digest}'", where=self.file, allowed=f"{HEX_DIGITS} hexadecimal digits")
        for name in (self.file, *(path for _, path in self.originals())):
            check_name(name)

    def originals(self) -> list[tuple[str, str]]:
        """Label and path in the repository of each original."""
        try:
            return [(values[0] if values else "", self.template.format(*values)) for values in (self.each or ((),))]
        except (IndexError, KeyError, ValueError) as error:
            raise InputError(f"template '{self.template}'", where=self.file, allowed="{0}, {1} for the values of each") from error


def check_name(name: str) -> None:
    """A path that stays below the folder it is joined to, and is no pickle.

    Raises:
        InputError: an absolute path, one with ``..``, or a file that would run code when it is read.
    """
    path = PurePosixPath(name)
    odd = any(ord(sign) < 32 for sign in name) or "\\" in name or ":" in name
    if not name or odd or path.is_absolute() or ".." in path.parts or name != path.as_posix():
        raise InputError(f"path {name!r}", where="file to fetch", allowed="a plain path below a folder, with / and without ..")
    if path.suffix.lower() in PICKLES:
        raise InputError(f"'{name}' can run code when it is read", where="file to fetch", allowed="texts: CSV, JSON")


@dataclass(frozen=True)
class TraceInfo:
    """One public trace: its configuration's name (``group/name`` below ``conf/trace``), kind, origin, flaws and files."""

    name: str
    kind: str
    origin: dict[str, str]
    flaws: tuple[str, ...]
    fetch: tuple[FetchFile, ...] = ()


def trace_infos(folder: Path = CONF_DIR / "trace") -> list[TraceInfo]:
    """All public traces, by name; configurations without an origin (lake, table) are one's own data and left out.

    Raises:
        InputError: an origin without one of its fields, a public trace without ``flaws`` or ``fetch``, or a file that may not be fetched.
    """
    infos = []
    for path in sorted(folder.rglob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        origin = values.get("origin")
        if origin is None:
            continue
        missing = [key for key in ORIGIN_KEYS if not origin.get(key)] + [key for key in ("flaws", "fetch") if not values.get(key)]
        if missing:
            raise InputError(f"missing {', '.join(missing)}", where=str(path), allowed=", ".join((*ORIGIN_KEYS, "flaws", "fetch")))
        name = path.relative_to(folder).with_suffix("").as_posix()
        files = tuple(_fetch_file(entry, str(path)) for entry in values["fetch"])
        infos.append(TraceInfo(name, values["kind"], {key: str(origin[key]) for key in ORIGIN_KEYS}, tuple(values["flaws"]), files))
    return infos


def _fetch_file(entry: Mapping[str, Any], where: str) -> FetchFile:
    known = {"from": "template", **{field.name: field.name for field in fields(FetchFile) if field.name != "template"}}
    unknown = sorted(set(entry) - set(known))
    if unknown or not {"file", "from", "conversion"} <= set(entry):
        raise InputError(f"keys {', '.join(entry)}", where=f"{where}, fetch", allowed=", ".join(known))
    values = {known[key]: value for key, value in entry.items()}
    each = tuple(tuple(map(str, item)) if isinstance(item, list) else (str(item),) for item in values.pop("each", ()))
    return FetchFile(**{key: str(value) for key, value in values.items()}, each=each)


def chosen_traces(names: Sequence[str], infos: Sequence[TraceInfo]) -> list[TraceInfo]:
    """The traces named, in the order of ``infos``: full names (``demand/helios``), last parts (``helios``), folders (``grid``), or ``all``.

    Raises:
        InputError: an unknown name, or none.
    """
    wanted: set[str] = set()
    for name in names:
        found = {i.name for i in infos if name in ("all", i.name, i.name.split("/")[-1], i.name.rpartition("/")[0])}
        if not found:
            every = [info.name for info in infos]
            near = difflib.get_close_matches(name, [*every, *(n.split("/")[-1] for n in every)], n=1)
            raise InputError(
                f"unknown trace '{name}'",
                where="traces",
                allowed=", ".join(("all", *every)),
                remedy=f"traces=[{near[0]}]?" if near else "",
            )
        wanted |= found
    if not wanted:
        raise InputError("no trace named", where="traces", allowed=", ".join(("all", *(info.name for info in infos))))
    return [info for info in infos if info.name in wanted]

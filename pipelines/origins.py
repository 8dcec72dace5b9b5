"""Where each public trace comes from: origin, licence and known flaws, read from ``conf/trace``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pipelines.cli import CONF_DIR
from telemetry.errors import InputError

ORIGIN_KEYS = ("repository", "commit", "path", "licence", "attribution")
HEADER = "| name | kind | origin | licence | attribution | known flaws |\n|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class TraceInfo:
    """One public trace: its configuration's name (``group/name`` below ``conf/trace``), kind, origin and flaws."""

    name: str
    kind: str
    origin: dict[str, str]
    flaws: tuple[str, ...]


def trace_infos(folder: Path = CONF_DIR / "trace") -> list[TraceInfo]:
    """All public traces, by name; configurations without an origin (lake, table) are one's own data and left out.

    Raises:
        InputError: an origin without one of its fields, or a public trace without ``flaws``.
    """
    infos = []
    for path in sorted(folder.rglob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        origin = values.get("origin")
        if origin is None:
            continue
        missing = [key for key in ORIGIN_KEYS if not origin.get(key)]
        if missing or not values.get("flaws"):
            raise InputError(f"missing {', '.join(missing) or 'flaws'}", where=str(path), allowed=", ".join((*ORIGIN_KEYS, "flaws")))
        name = path.relative_to(folder).with_suffix("").as_posix()
        infos.append(TraceInfo(name, values["kind"], {key: str(origin[key]) for key in ORIGIN_KEYS}, tuple(values["flaws"])))
    return infos


def traces_table() -> str:
    """The table of ``docs/traces.md``."""
    rows = []
    for info in trace_infos():
        origin = info.origin
        source = f"{origin['repository']} @ {origin['commit']}: `{origin['path']}`"
        rows.append(f"| {info.name} | {info.kind} | {source} | {origin['licence']} | {origin['attribution']} | {'; '.join(info.flaws)} |\n")
    return HEADER + "".join(rows)

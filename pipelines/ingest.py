"""``python -m pipelines.ingest``: telemetry exports into the lake, with a report of every flaw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from pipelines.cli import build, hydra_command
from telemetry.errors import InputError
from telemetry.ingest import IngestResult, SourceSpec, ingest_sources, load_inventory
from telemetry.lake import Lake
from telemetry.quality import FLAWS


@dataclass(frozen=True)
class FileConfig:
    """One export: where it is and who reads it; ``name`` is needed when two files have the same; ``options`` are the reader's own."""

    path: str
    reader: str
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise InputError(f"{self.options!r}", where=f"source.files, options of {self.path}", allowed="{name: value, ...}")


@dataclass(frozen=True)
class SourceConfig:
    """Config group ``source``.

    Attributes:
        files: the exports.
        inventory: JSON file of nodes with site and pool; None = what the exports say.
        max_grid_gap_h: longest gap of a price series that is filled, hours.
        root: folder that the paths of ``files`` may start with, as ``${source.root}``.
    """

    files: tuple[FileConfig, ...]
    inventory: str | None = None
    max_grid_gap_h: float = 24.0
    root: str = ""

    def __post_init__(self) -> None:
        if not self.max_grid_gap_h >= 0:
            raise InputError(f"{self.max_grid_gap_h}", where="source.max_grid_gap_h", allowed="0 or more hours")


@dataclass(frozen=True)
class LakeConfig:
    """Config group ``lake``: the folder that holds the lake."""

    root: str


def ingest(source: Mapping[str, Any], lake: Mapping[str, Any], *, replace: bool = False) -> tuple[Lake, IngestResult]:
    """Ingest what the config groups ``source`` and ``lake`` say.

    Raises:
        InputError: a wrong key or value, a file that cannot be read, or no room to write; the lake is as before.
    """
    chosen, place = build(SourceConfig, source, "source"), build(LakeConfig, lake, "lake")
    inventory = load_inventory(Path(chosen.inventory)) if chosen.inventory is not None else None
    specs = [SourceSpec(Path(file.path), file.reader, file.name, options=file.options) for file in chosen.files]
    target = Lake(place.root)
    with tqdm(total=len(specs), desc="ingest", unit="file", dynamic_ncols=True, leave=False) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        try:
            gap_s = int(chosen.max_grid_gap_h * 3600)
            result = ingest_sources(target, specs, inventory, max_grid_gap_s=gap_s, replace=replace, progress=progress)
        except OSError as error:
            raise InputError(
                f"cannot be written ({error.strerror or error})",
                where=place.root,
                remedy="make room or permit writing; the lake is as before",
            ) from error
    return target, result


def summary(result: IngestResult) -> str:
    """Rows per source and table, flaws per source, as text."""
    width = max([27, *map(len, result.status)]) + 1
    lines = [f"{'source':<{width}}{'table':<10}{'rows':>10}  flaws"]
    for source, status in result.status.items():
        found = result.quality.total(source)
        told = ", ".join(f"{flaw} {found[flaw]:,}" for flaw in FLAWS if flaw in found) or "none"
        for table, rows in sorted(result.quality.rows.get(source, {}).items()):
            lines.append(f"{source:<{width}}{table:<10}{rows:>10,}  {told}{' (unchanged)' if status == 'unchanged' else ''}")
    for source in result.status:
        lines += [f"note: {source}: {what}: {count:,}" for what, count in sorted(result.quality.notes.get(source, {}).items())]
    lines.append("lake: " + ", ".join(f"{table} {rows:,} rows" for table, rows in result.rows.items()))
    return "\n".join(lines)


@hydra_command("ingest")
def main(cfg: DictConfig) -> int:
    """Read, store, print, report."""
    if not isinstance(cfg.replace, bool):
        raise InputError(f"{cfg.replace!r}", where="replace", allowed="true, false")
    lake, result = ingest(cfg.source, cfg.lake, replace=cfg.replace)
    print(summary(result))
    print(f"data {result.data_hash[:16]} in {lake.root}; quality report: {lake.root / 'quality' / 'report.html'}")
    return 0


if __name__ == "__main__":
    main()

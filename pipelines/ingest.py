"""``python -m pipelines.ingest``: telemetry exports into the lake, with a report of every flaw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.cli import build, hydra_command
from telemetry.errors import InputError
from telemetry.ingest import IngestResult, SourceSpec, ingest_sources, load_inventory
from telemetry.lake import Lake
from telemetry.policy import QualityPolicy
from telemetry.quality import FLAWS
from telemetry.storage import storage_of

if TYPE_CHECKING:
    from registry.tracking import Run


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
    """Config group ``lake``.

    Attributes:
        root: the folder that holds the lake, or ``s3://bucket/prefix``.
        endpoint_url: of an S3 that is not Amazon's.
        anon: read a bucket without credentials.
        wait_s: how long an ingest waits for another one on a local lake before it is refused, s.
    """

    root: str
    endpoint_url: str | None = None
    anon: bool = False
    wait_s: float = 0.0

    def open(self) -> Lake:
        """The lake.

        Raises:
            InputError: another kind of address, or the extra ``cloud`` is not installed.
        """
        return Lake(self.root, storage_of(self.root, endpoint_url=self.endpoint_url, anon=self.anon, wait_s=self.wait_s))


def cannot_write(root: str, error: OSError) -> InputError:
    """What is raised where the disk is full or not writable."""
    return InputError(
        f"cannot be written ({error.strerror or error})", where=root, remedy="make room or permit writing; the lake is as before"
    )


def ingest(
    source: Mapping[str, Any], lake: Mapping[str, Any], policy: QualityPolicy | None = None, *, replace: bool = False
) -> tuple[Lake, IngestResult]:
    """Ingest what the config groups ``source`` and ``lake`` say; ``policy`` is that of the group ``quality``, None = the default.

    Raises:
        InputError: a wrong key or value, a file that cannot be read or that the policy refuses, or no room to write; the lake is as before.
    """
    chosen, place = build(SourceConfig, source, "source"), build(LakeConfig, lake, "lake")
    inventory = load_inventory(Path(chosen.inventory)) if chosen.inventory is not None else None
    specs = [SourceSpec(Path(file.path), file.reader, file.name, options=file.options) for file in chosen.files]
    target = place.open()
    with tqdm(total=len(specs), desc="ingest", unit="file", dynamic_ncols=True, leave=False) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        def rows(doing: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{doing} {done:,} of {total:,} rows")

        try:
            gap_s = int(chosen.max_grid_gap_h * 3600)
            result = ingest_sources(
                target, specs, inventory, max_grid_gap_s=gap_s, policy=policy, replace=replace, progress=progress, rows=rows
            )
        except OSError as error:
            raise cannot_write(place.root, error) from error
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


def log_quality(run: Run, result: IngestResult) -> None:
    """The report as ``quality.html``, ``quality.json`` and ``quality.txt``, the flaws and rows as metrics."""
    run.set_tags({"data.hash": result.data_hash})
    run.log_text(result.quality.to_html(), "quality.html")
    run.log_text(json.dumps(result.quality.to_dict(), indent=1) + "\n", "quality.json")
    run.log_text(summary(result), "quality.txt")
    total = result.quality.total()
    run.log_metrics({f"rows/{table}": rows for table, rows in result.rows.items()} | {f"flaws/{flaw}": n for flaw, n in total.items()})


def track(cfg: DictConfig, policy: QualityPolicy, result: IngestResult) -> str:
    """Log an ingest as a run of its own, in the store of the config group ``registry``; the run's id."""
    from pipelines.config import RegistryConfig  # with MLflow, which an ingest that is not logged need not load
    from registry.tracking import open_tracking

    place = build(RegistryConfig, cfg.registry, "registry")
    with open_tracking(place.tracking_uri, place.artifact_root, place.experiment).run(
        "ingest", tags={"command": "pipelines.ingest"}
    ) as run:
        told = OmegaConf.to_container(cfg, resolve=True)
        run.log_config({key: told[key] for key in ("source", "lake", "replace")} | {"quality": asdict(policy)})  # type: ignore[index, call-overload]
        run.log_provenance({"hash": result.data_hash})
        log_quality(run, result)
    return run.run_id


@hydra_command("ingest")
def main(cfg: DictConfig) -> int:
    """Read, store, print, report."""
    for key in ("replace", "track"):
        if not isinstance(cfg[key], bool):
            raise InputError(f"{cfg[key]!r}", where=key, allowed="true, false")
    policy = build(QualityPolicy, cfg.quality, "quality")
    lake, result = ingest(cfg.source, cfg.lake, policy, replace=cfg.replace)
    print(summary(result))
    if cfg.track:
        print(f"logged as run {track(cfg, policy, result)} in {cfg.registry.tracking_uri}")
    print(f"data {result.data_hash[:16]} in {lake.root}; quality report: {lake.place('quality/report.html')}")
    return 0


if __name__ == "__main__":
    main()

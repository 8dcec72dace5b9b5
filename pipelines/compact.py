"""``python -m pipelines.compact``: old samples of the lake made coarser, their energy kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from pipelines.cli import build, hydra_command
from pipelines.ingest import LakeConfig, cannot_write
from telemetry.lake import Lake
from telemetry.lake.compaction import Compacted, Retention, compact


def compact_lake(lake: Mapping[str, Any], retention: Retention, newest: str | None = None) -> tuple[Lake, Compacted]:
    """Compact what the config group ``lake`` says.

    Raises:
        InputError: a wrong value, another writer, or no room to write; the lake is as after the last commit.
    """
    place = build(LakeConfig, lake, "lake")
    target = place.open()
    with tqdm(desc="compact", unit="row", unit_scale=True, dynamic_ncols=True, leave=False) as bar:

        def progress(table: str, done: int, total: int) -> None:
            bar.set_description_str(table, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        try:
            return target, compact(target, retention, newest, progress)
        except OSError as error:
            raise cannot_write(place.root, error) from error


@hydra_command("compact")
def main(cfg: DictConfig) -> int:
    """Compact and tell what was done."""
    retention = build(Retention, {"raw_days": cfg.raw_days, "ten_min_days": cfg.ten_min_days}, "compact")
    lake, done = compact_lake(cfg.lake, retention, None if cfg.newest is None else str(cfg.newest))
    for table, rows in done.read.items():
        print(f"{table}: {done.written[table]:,} rows of {rows:,}")
    print("lake: " + ", ".join(f"{table} {rows:,} rows" for table, rows in lake.rows().items()))
    return 0


if __name__ == "__main__":
    main()

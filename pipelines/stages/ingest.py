"""Stage ``ingest``: the configured exports into the lake, with the quality report."""

from __future__ import annotations

from pathlib import Path

from pipelines.cli import build
from pipelines.config import TrainConfig
from pipelines.ingest import LakeConfig, ingest, log_quality
from pipelines.stages.context import StageContext
from pipelines.workspace import write_json
from telemetry.lake import Lake


def open_lake(config: TrainConfig) -> Lake:
    """The lake of this configuration."""
    return build(LakeConfig, config.lake, "lake").open()


def run_ingest(context: StageContext, out: Path) -> None:
    """Write ``ingest.json`` (rows, data hash, flaws) and ``quality.html``; the tables themselves are in the lake.

    Without source files nothing is read: the other stages then get their data elsewhere (``target.kind``, ``trace.kind``, ``grid.kind``).
    """
    config = context.config
    if not config.source["files"]:
        write_json(out / "ingest.json", {"data_hash": None, "rows": {}, "quality": {}})
        return
    _, result = ingest(config.source, config.lake, config.quality, replace=True)
    write_json(out / "ingest.json", {"data_hash": result.data_hash, "rows": result.rows, "quality": result.quality.to_dict()})
    (out / "quality.html").write_text(result.quality.to_html())
    log_quality(context.run, result)

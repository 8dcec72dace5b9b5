"""What a stage gets: configuration, workspace, its MLflow run, and the fingerprint that says whether it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import TrainConfig
from pipelines.workspace import STAGES, Workspace, fingerprint
from registry.tracking import Run, Tracking
from telemetry.errors import InputError

# Config groups and earlier stages that each stage depends on; the stages of dvc.yaml say the same.
DEPENDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ingest": (("source", "lake", "quality"), ()),
    "features": (("target", "trace", "grid", "cluster"), ("ingest",)),
    "forecasters": (("target", "forecaster", "power", "backtest", "cluster", "reserve", "seed"), ("features",)),
    "agent": (("agent", "reward", "cluster", "trace", "seed"), ("features",)),
    "evaluate": (
        ("target", "reward", "reserve", "cluster", "trace", "seed", "registry", "evaluation"),
        ("features", "forecasters", "agent"),
    ),
    "promote": (("registry", "reserve", "target"), ("features", "forecasters", "agent", "evaluate")),
}


@dataclass(frozen=True)
class StageContext:
    """Handed to every stage function."""

    config: TrainConfig
    workspace: Workspace
    tracking: Tracking
    run: Run
    stages: tuple[str, ...] = STAGES  # of the whole run: a run without an agent has stages that depend on none
    warm_policy: Path | None = None  # folder of an earlier agent that training starts from

    def folder(self, stage: str) -> Path:
        """Folder of a finished stage, see :func:`finished_folder`."""
        return finished_folder(self.workspace, stage)

    def key(self, stage: str) -> str:
        """Fingerprint of a stage, see :func:`stage_key`."""
        return stage_key(self.config, self.workspace, stage, self.stages)


def finished_folder(workspace: Workspace, stage: str) -> Path:
    """Folder of a finished stage.

    Raises:
        InputError: the stage has not run in this workspace.
    """
    folder = workspace.folder(stage)
    if not (folder / "stage.json").exists():
        raise InputError(f"stage '{stage}' has not run", where=str(workspace.root), remedy=f"run stages=[{stage}] first, or all stages")
    return folder


def stage_key(config: TrainConfig, workspace: Workspace, stage: str, stages: Sequence[str] = STAGES) -> str:
    """Fingerprint of the configuration and of those of the run's ``stages`` that ``stage`` depends on."""
    groups, earlier = DEPENDS[stage]
    values: dict[str, Any] = {group: config.raw[group] for group in groups}
    for name in (name for name in earlier if name in stages):
        finished_folder(workspace, name)
        values[f"stage:{name}"] = workspace.mark(name)
    return fingerprint(values)

"""The main job: telemetry in, reviewed forecasters and a scheduling policy out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from pipelines.cli import hydra_command
from pipelines.config import TrainConfig, train_config
from pipelines.report import closing_lines
from pipelines.run_description import NOT_COMPARED, describe_run
from pipelines.stages.agent import run_agent
from pipelines.stages.context import StageContext
from pipelines.stages.evaluate import run_evaluate
from pipelines.stages.features import run_features
from pipelines.stages.forecasters import run_forecasters
from pipelines.stages.ingest import run_ingest
from pipelines.stages.promote import run_promote
from pipelines.workspace import STAGES, Workspace, fingerprint
from registry.manifest import REGISTERED_NAMES
from registry.promotion import champion_version
from registry.tracking import open_tracking

Runner = Callable[[StageContext, Path], None]
RUNNERS: dict[str, Runner] = {
    "ingest": run_ingest,
    "features": run_features,
    "forecasters": run_forecasters,
    "agent": run_agent,
    "evaluate": run_evaluate,
    "promote": run_promote,
}


def run_each(context: StageContext, stages: Sequence[str], runners: Mapping[str, Runner], *, resuming: bool) -> None:
    """Run ``stages`` in order; when ``resuming``, those that are done under the same fingerprint are kept."""
    with tqdm(stages, desc="stages", unit="stage", dynamic_ncols=True) as bar:
        for stage in bar:
            bar.set_postfix_str(stage)
            key = context.key(stage)
            if resuming and context.workspace.done(stage, key):
                continue
            begun = time.perf_counter()
            with context.workspace.writing(stage, key) as out:
                runners[stage](context, out)
            context.run.log_metrics({f"seconds/{stage}": time.perf_counter() - begun})


def run_stages(config: TrainConfig) -> Workspace:
    """Run the configured stages in order under one parent run; returns the workspace with their results.

    A whole run that was killed is resumed by the next one of the same configuration: finished stages are kept, the agent continues from its
    checkpoint. A run of single stages always runs them.
    """
    workspace = Workspace(config.output_dir)
    whole = config.stages == STAGES
    resuming = whole and workspace.begin(fingerprint(config.raw), {"stages": list(config.stages)}, resume=config.resume)
    if not config.resume:
        workspace.forget(config.stages)
    if resuming:
        print(f"resuming the unfinished run in {config.output_dir}")
    registry = config.registry
    tracking = open_tracking(registry.tracking_uri, registry.artifact_root, registry.experiment)
    name = "train" if whole else "train: " + ", ".join(config.stages)
    tags = {"command": "pipelines.train", "resumed": str(bool(resuming)).lower(), "mlflow.source.name": "python -m pipelines.train"}
    with tracking.run(name, tags=tags) as run:
        before = {model: champion_version(tracking.client, model) for model in REGISTERED_NAMES}
        run.log_config(config.raw, NOT_COMPARED)
        run.log_provenance()
        context = StageContext(config, workspace, tracking, run)
        run_each(context, config.stages, RUNNERS, resuming=resuming)
        describe_run(run, config, workspace, before)
    if whole:
        workspace.finish()
    return workspace


@hydra_command("train")
def main(cfg: DictConfig) -> int:
    """Run the main job and name the champions."""
    config = train_config(cfg)
    begun = time.perf_counter()
    workspace = run_stages(config)
    for line in closing_lines(config, workspace, time.perf_counter() - begun):
        print(line)
    return 0


if __name__ == "__main__":
    main()

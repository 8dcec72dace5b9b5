"""``python -m pipelines.sweep``: hyper-parameters by search on validation windows; the best go the way of every training run.

A trial sees the history up to the first test window, and nothing later. What was best is then handed to ``pipelines.train`` as a
configuration: fitted, judged on the test windows and promoted, or not, by the same stages and gates.

Akiba et al., "Optuna" (KDD 2019); Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NIPS 2011); Li et al., "Hyperband"
(JMLR 2018).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from pipelines.cli import build, hydra_command, quiet_libraries
from pipelines.config import TrainConfig, train_config
from pipelines.report import closing_lines
from pipelines.stages.context import stage_key
from pipelines.sweeping.record import best_table, log_study, log_trials, parent_run
from pipelines.sweeping.scoring import Question, asked, question_of, run_trial, trial_config
from pipelines.sweeping.space import Space, Values, current, space_of
from pipelines.sweeping.study import TrialStore, open_storage, storage_url
from pipelines.train import run_stages
from pipelines.workspace import Workspace
from registry.locks import exclusive
from registry.tracking import open_tracking
from telemetry.errors import InputError

FIRST_STAGES = ("ingest", "features")
OWN_KEYS = ("sweep", "sweep_space", "show")
LOCK_WAIT_S = 2.0


@dataclass(frozen=True)
class SweepConfig:
    """How a space is searched; ``conf/sweep.yaml`` says what each means."""

    study: str | None
    trials: int
    time_budget_s: float | None
    parallel: int
    pruner: str
    storage: str | None
    storage_file: str | None
    finish: bool
    take_over: bool

    def __post_init__(self) -> None:
        for key in ("trials", "parallel"):
            if getattr(self, key) < 1:
                raise InputError(f"{getattr(self, key)}", where=f"sweep.{key}", allowed="a whole number from 1")
        budget = self.time_budget_s
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or budget <= 0):
            raise InputError(f"{budget!r}", where="sweep.time_budget_s", allowed="seconds above 0, or null")


@dataclass(frozen=True)
class Sweep:
    """A sweep as configured; ``raw`` is the main job's configuration as plain types."""

    settings: SweepConfig
    space: Space
    config: TrainConfig
    raw: Mapping[str, Any]

    @property
    def study(self) -> str:
        """Name of the study."""
        return self.settings.study or self.space.name

    def storage(self) -> Any:
        """Optuna's storage."""
        settings, registry = self.settings, self.config.registry
        return open_storage(storage_url(registry.tracking_uri, settings.storage, settings.storage_file, self.config.output_dir))


def sweep_of(cfg: DictConfig) -> Sweep:
    """Check and convert the composed configuration.

    Raises:
        InputError: an unknown key, or a value outside its range.
    """
    try:
        raw = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0], where="config", remedy="give it on the command line: key=value") from error
    settings, space = build(SweepConfig, raw["sweep"], "sweep"), space_of(cfg)
    raw = {key: value for key, value in raw.items() if key not in OWN_KEYS}
    current(raw, space)  # names a key that is not there
    return Sweep(settings, space, train_config(OmegaConf.create(raw)), raw)


def run_sweep(sweep: Sweep, *, progress: bool = True) -> TrialStore:
    """Run trials until there are enough or time is up; returns the study.

    Raises:
        InputError: another process runs this study, it was begun with another question, or no trial was complete.
    """
    config = sweep.config
    folder = features_folder(config)
    question = question_of(config, sweep.space, folder, sweep.raw)
    storage = sweep.storage()
    with exclusive(config.output_dir / f".{sweep.study}.lock", timeout_s=LOCK_WAIT_S):
        store = _store(sweep, storage, question)
        registry = config.registry
        tracking = open_tracking(registry.tracking_uri, registry.artifact_root, registry.experiment)
        with parent_run(tracking, store, f"sweep {sweep.study}", config.raw) as run:
            if store.lost:
                print(f"{store.lost} trials were cut short in an earlier run and run again")
            try:
                _run_batches(sweep, store, question, lambda: log_trials(run, store), progress)
            finally:
                log_study(run, store)
            if (best := store.best()) is not None:
                run.set_tags({f"best.{key}": str(value) for key, value in sweep.space.read(best.params).items()})
    return store


def features_folder(config: TrainConfig) -> Path:
    """The series and tables that trials read: made by the main job's first stages, unless they are there."""
    workspace = Workspace(config.output_dir)
    ingest = stage_key(config, workspace, "ingest")
    if not (workspace.done("ingest", ingest) and workspace.done("features", stage_key(config, workspace, "features"))):
        run_stages(replace(config, stages=FIRST_STAGES))
    return workspace.folder("features")


def _store(sweep: Sweep, storage: Any, question: Question) -> TrialStore:
    settings = sweep.settings
    options = {"seed": sweep.config.seed, "pruner": settings.pruner, "take_over": settings.take_over}
    told = {**asked(question, sweep.config), "parallel": settings.parallel}
    return TrialStore(storage, sweep.study, sweep.space, told, owner=socket.gethostname(), **options)


def _run_batches(sweep: Sweep, store: TrialStore, question: Question, log: Any, progress: bool) -> None:
    settings, begun = sweep.settings, time.monotonic()
    first = current(sweep.raw, sweep.space)
    log()  # what a killed process had told the study, but not yet MLflow
    with (
        replace(sweep.config.engine, workers=min(sweep.config.engine.workers, settings.parallel)).start(quiet_libraries) as engine,
        tqdm(total=settings.trials, desc="sweep", unit="trial", dynamic_ncols=True, disable=not progress) as bar,
    ):
        bar.update(min(len(store.finished()), settings.trials))
        while batch := store.propose(settings.parallel, settings.trials, first, question.steps):
            if settings.time_budget_s is not None and time.monotonic() - begun > settings.time_budget_s:
                print(f"time is up after {len(store.finished())} of {settings.trials} trials; the same command goes on")
                store.release(batch)
                break
            for place, outcome in engine.map(run_trial, [task for _, task in batch], question):
                store.tell(batch[place][0], outcome)
                log()
                bar.update()
                if (best := store.best()) is not None:
                    bar.set_postfix_str(f"best {best.value:.5f}")
    if store.best() is None and store.finished():
        errors = {str(trial.user_attrs["error"]) for trial in store.finished() if "error" in trial.user_attrs}
        raise InputError(f"no trial was complete: {'; '.join(sorted(errors)) or 'none'}", where=f"study {sweep.study}")


def finish(sweep: Sweep, values: Values) -> list[str]:
    """Run the main job with the best values and return its closing lines; nothing else promotes them."""
    config = trial_config(sweep.raw, values)
    begun = time.perf_counter()
    return closing_lines(config, run_stages(config), time.perf_counter() - begun)


def train_command(sweep: Sweep, values: Values) -> str:
    """What trains with these values; with one chosen forecaster its keys stand in the group itself."""
    group = f"forecaster.{sweep.space.member}." if "name" in sweep.raw["forecaster"] else ""
    before = current(sweep.raw, sweep.space)
    changed = {key: value for key, value in values.items() if before[key] != value}
    shown = {f"forecaster.{key.removeprefix(group)}" if group else key: value for key, value in changed.items()}
    return " ".join(["python -m pipelines.train", *(f"{key}={value}".replace(" ", "") for key, value in shown.items())])


@hydra_command("sweep")
def main(cfg: DictConfig) -> int:
    """Search, print the best, and hand them to the main job."""
    sweep = sweep_of(cfg)
    if cfg.show:
        print(show(sweep))
        return 0
    store = run_sweep(sweep)
    print(best_table(store))
    best = store.best()
    if best is None:
        return 1
    values = sweep.space.read(best.params)
    print(f"best: {train_command(sweep, values)}")
    if sweep.settings.finish:
        for line in finish(sweep, values):
            print(line)
    return 0


def show(sweep: Sweep) -> str:
    """The table of the study as it is, read alone.

    Raises:
        InputError: there is none of that name.
    """
    storage = sweep.storage()
    names = sorted(study.study_name for study in storage.get_all_studies())
    if sweep.study not in names:
        raise InputError(f"no study '{sweep.study}'", where="sweep.study", allowed=", ".join(names) or "none was begun yet")
    return best_table(TrialStore.opened(storage, sweep.study, sweep.space))


if __name__ == "__main__":
    main()

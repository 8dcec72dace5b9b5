"""``python -m pipelines.tune_judges``: parameters of the judges by search on training windows, the same budget for each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import yaml
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from envs.evaluate import evaluate
from envs.heuristics import JUDGES, Judge
from envs.reward import RewardSpec
from envs.world import World, build_world
from pipelines.cli import build, hydra_command, name_sources
from pipelines.equipment import equipped
from pipelines.sweeping.study import optuna_module
from pipelines.trials import Trial, table_trial, whole_number
from pipelines.workspace import fingerprint
from telemetry.errors import InputError

Values = dict[str, float]


@dataclass(frozen=True)
class Scored:
    """Values of a judge's parameters and their means over the windows."""

    values: Values
    objective_usd: float
    missed_deadlines: float


class Search(Protocol):
    """Where trials come from and are kept; one search for each judge."""

    def finished(self) -> list[Scored]:
        """Trials made so far, those of an earlier run included, the first first."""
        ...

    def run(self, score: Callable[[Values], tuple[float, float]]) -> Scored:
        """Propose values, have them scored (mean objective in USD, mean missed deadlines) and keep the trial."""
        ...


class OptunaSearch:
    """A study of Optuna in a journal file: its tree-structured Parzen estimator, the judge's defaults first.

    Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NIPS 2011); Akiba et al., "Optuna" (KDD 2019). A run that goes on from
    an earlier one proposes from the same trials, but draws anew.

    Raises:
        InputError: Optuna is not installed.
    """

    def __init__(self, judge: Judge, key: str, seed: int, storage: Path) -> None:
        optuna = optuna_module("tune_judges")
        from optuna.storages.journal import JournalFileBackend

        storage.parent.mkdir(parents=True, exist_ok=True)
        self._judge, self._complete = judge, (optuna.trial.TrialState.COMPLETE,)
        waiting = (optuna.trial.TrialState.WAITING,)
        self._study = optuna.create_study(
            study_name=f"{judge.name}-{key}",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(storage))),
            sampler=optuna.samplers.TPESampler(seed=seed),
            load_if_exists=True,
        )
        defaults = default_values(judge)
        if not self._study.get_trials(deepcopy=False, states=waiting) and defaults not in [trial.values for trial in self.finished()]:
            self._study.enqueue_trial(defaults)  # the first of all, or cut short in an earlier run

    def finished(self) -> list[Scored]:
        trials = self._study.get_trials(deepcopy=False, states=self._complete)
        return [Scored(dict(trial.params), float(trial.value or 0.0), float(trial.user_attrs["missed_deadlines"])) for trial in trials]

    def run(self, score: Callable[[Values], tuple[float, float]]) -> Scored:
        trial = self._study.ask()
        values: Values = {}
        for p in self._judge.space:
            suggest = trial.suggest_int if p.whole else trial.suggest_float
            values[p.name] = suggest(p.name, p.low, p.high, log=p.log)
        objective_usd, missed = score(values)
        trial.set_user_attr("missed_deadlines", missed)
        self._study.tell(trial, objective_usd)
        return Scored(values, objective_usd, missed)


def default_values(judge: Judge) -> Values:
    """The judge's own values of its parameters."""
    return {parameter.name: getattr(judge.settings, parameter.name) for parameter in judge.space}


def best_of(trials: Sequence[Scored], tie: float) -> Scored:
    """Of the trials within ``tie`` of the least objective, relative, that of fewest missed deadlines, then of least objective."""
    least = min(trial.objective_usd for trial in trials)
    near = [trial for trial in trials if trial.objective_usd <= least + tie * abs(least)]
    return min(near, key=lambda trial: (trial.missed_deadlines, trial.objective_usd))


def tune(
    world: World,
    judges: Mapping[str, Judge],
    search: Callable[[Judge], Search],
    trials: int,
    *,
    reward: RewardSpec,
    tie: float = 0.001,
    progress: bool = False,
) -> dict[str, tuple[Scored, Scored]]:
    """Search each judge's parameters on the windows of ``world``.

    Args:
        judges: with parameters.
        search: makes the search of a judge; its first trial is the judge's defaults.
        trials: of each judge, those that the search has already included.

    Returns:
        Best trial and that of the defaults by judge.
    """
    found: dict[str, tuple[Scored, Scored]] = {}
    with tqdm(total=trials * len(judges), desc="tune", unit="trial", disable=not progress, dynamic_ncols=True) as bar:
        for name, judge in judges.items():

            def score(values: Values, judge: Judge = judge) -> tuple[float, float]:
                frame = evaluate(world, {judge.name: judge.tuned(values)}, reward=reward)
                return float(frame["objective_usd"].mean()), float(frame["missed_deadlines"].mean())

            study = search(judge)
            done = study.finished()[:trials]
            bar.update(len(done))
            while len(done) < trials:
                done.append(study.run(score))
                bar.update()
                bar.set_postfix_str(f"{name}: {best_of(done, tie).objective_usd:.2f} USD a window")
            defaults = default_values(judge)
            found[name] = (best_of(done, tie), next((trial for trial in done if trial.values == defaults), done[0]))
    return found


def _chosen(cfg: DictConfig) -> dict[str, Judge]:
    if cfg.judges is not None and not (OmegaConf.is_list(cfg.judges) and len(cfg.judges)):
        raise InputError(f"judges={cfg.judges}", where="judges", allowed="a list: judges=[easy,lookahead]")
    tunable = {name: judge for name, judge in JUDGES.items() if judge.space}
    names = [str(name) for name in (cfg.judges or tunable)]
    unknown = [name for name in names if name not in tunable]
    if unknown:
        raise InputError(f"judge '{unknown[0]}'", where="judges", allowed=", ".join(tunable))
    return {name: tunable[name] for name in names}


def study_key(world: World, reward: RewardSpec, judge: Judge, seed: int) -> str:
    """Digest of all that the score of a trial depends on, and of what is searched."""
    digest = hashlib.sha256()
    for arrays in (world.static, world.jobs, world.grid, world.outages):
        for array in arrays:
            digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    told = {"settings": asdict(judge.settings), "space": [asdict(parameter) for parameter in judge.space], "reward": asdict(reward)}
    return fingerprint({**told, "chooser": judge.chooser, "world": digest.hexdigest(), "seed": seed})[:16]


def _content(cfg: DictConfig, trial: Trial, reward: RewardSpec, found: Mapping[str, tuple[Scored, Scored]]) -> dict[str, Any]:
    ends = [window.start + pd.Timedelta(seconds=window.length_s) for window in trial.windows[cfg.seed]]
    about = {
        **trial.description,
        "part": str(cfg.part),
        "trained_until": max(ends).isoformat(),
        "trials": int(cfg.trials),
        "seed": int(cfg.seed),
        "reward": asdict(reward),
        "notes": list(trial.notes),
    }
    judges = {
        name: {
            "settings": best.values,
            "objective_usd": best.objective_usd,
            "missed_deadlines": best.missed_deadlines,
            "default_objective_usd": first.objective_usd,
            "default_missed_deadlines": first.missed_deadlines,
        }
        for name, (best, first) in found.items()
    }
    return {"about": about, "judges": judges}


def render(content: Mapping[str, Any]) -> str:
    """A line for each judge: objective of its defaults and of the best trial, and its parameters."""
    lines = [f"{'judge':<16} {'default USD':>12} {'tuned USD':>12} {'missed':>8}  parameters"]
    for name, entry in content["judges"].items():
        values = ", ".join(f"{key} {value:.4g}" for key, value in entry["settings"].items())
        objective = f"{entry['default_objective_usd']:>12.3f} {entry['objective_usd']:>12.3f}"
        lines.append(f"{name:<16} {objective} {entry['missed_deadlines']:>8.2f}  {values}")
    return "\n".join(lines)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Everything but printing and writing."""
    if not cfg.jobs:
        raise InputError("no jobs given", where="jobs", allowed="jobs=FILE.csv or FILE.parquet", remedy="see --help")
    judges, trials = _chosen(cfg), whole_number(cfg.trials, "trials")
    reward = build(RewardSpec, cfg.reward, "reward")
    if isinstance(cfg.tie, bool) or not isinstance(cfg.tie, int | float) or cfg.tie < 0:
        raise InputError(f"tie={cfg.tie}", where="tie", allowed="a share from 0")
    seed = whole_number(cfg.seed, "seed", low=0)
    trial, _ = equipped(cfg, table_trial(cfg, (seed,)))
    world = build_world(trial.cluster, trial.windows[seed])

    def search(judge: Judge) -> Search:
        return OptunaSearch(judge, study_key(world, reward, judge, seed), seed, Path(str(cfg.storage)))

    found = tune(world, judges, search, trials, reward=reward, tie=float(cfg.tie), progress=bool(cfg.progress))
    return _content(cfg, trial, reward, found)


@hydra_command("tune_judges")
def _command(cfg: DictConfig) -> int:
    content = run(cfg)
    out = Path(str(cfg.out))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(yaml.safe_dump(content, sort_keys=False))
    for note in content["about"]["notes"]:
        print(f"note: {note}")
    print(render(content))
    print(f"\nwritten: {out}; evaluate with judges={out} part=test")
    return 0


def main() -> None:
    """Entry point."""
    name_sources()
    _command()


if __name__ == "__main__":
    main()

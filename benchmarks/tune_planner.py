"""Search for the planner's default settings on drawn populations of jobs, confirmed on populations that the search has not seen.

python -m benchmarks.tune_planner [--populations 70] [--windows 2] [--trials 150] [--seed 9] [--confirm 60] [--confirm-seed 8] [--top 5]
                                  [--storage outputs/tune_planner.db] [--traces DIR] [--out outputs/tune_planner.json]

Populations: ``benchmarks/populations.py``. The score of a trial is relative to today's defaults: half of it the mean ratio of the objective
over the populations with less energy than the median, a quarter the mean ratio over the others (each at most 3), a quarter the ratio of
their sums, which a few overloaded windows decide. Optuna's tree-structured Parzen estimator proposes; a run goes on where one of the same
storage, populations and seed was left. The best ``--top`` trials and today's defaults are then played on the populations to confirm on:
settings are chosen there, by whoever changes the defaults, and judged at last on held-out weeks with ``benchmarks/agent.py``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from tqdm import tqdm

from benchmarks.agent_data import CLUSTER
from benchmarks.forecast_data import traces_root
from benchmarks.populations import populations
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES, Judge
from envs.kernel import Simulator
from envs.reward import RewardSpec
from envs.world import World
from pipelines.cli import CONF_DIR
from pipelines.evaluation_report import plain
from pipelines.tune_judges import Values, default_values
from pipelines.workspace import write_json

LEAST_USD, MOST_RATIO, DRAWS = 1.0, 3.0, 2000


@dataclass(frozen=True)
class Played:
    """Sums of each population's windows, ``[P]``."""

    objective_usd: np.ndarray
    penalty_usd: np.ndarray
    energy_kwh: np.ndarray


def played(world: World, judge: Judge, windows: int) -> Played:
    """All windows of ``world``, ``windows`` a population, by ``judge``."""
    every = np.arange(world.n_windows)
    simulator = Simulator(world, len(every), judge.settings, RewardSpec())
    simulator.reset(every)
    simulator.play(judge.chooser)
    totals = simulator.totals()
    values = (simulator.state.objective_usd, totals.penalty_usd.sum(axis=1), totals.energy_kwh.sum(axis=1))
    return Played(*(value.reshape(-1, windows).sum(axis=1) for value in values))


@dataclass(frozen=True)
class Yardstick:
    """Today's defaults on some populations; those without work do not count."""

    base: Played

    @property
    def worked(self) -> np.ndarray:
        return self.base.objective_usd > LEAST_USD

    @property
    def light(self) -> np.ndarray:
        return self.worked & (self.base.energy_kwh < np.median(self.base.energy_kwh[self.worked]))

    @property
    def heavy(self) -> np.ndarray:
        return self.worked & ~self.light

    def parts(self, other: Played) -> tuple[float, float, float]:
        """Mean ratio under light load, mean ratio and ratio of the sums under heavy load."""
        ours, theirs = other.objective_usd, self.base.objective_usd
        light, heavy = ours[self.light] / theirs[self.light], ours[self.heavy] / theirs[self.heavy]
        return float(light.mean()), float(np.minimum(heavy, MOST_RATIO).mean()), float(ours[self.heavy].sum() / theirs[self.heavy].sum())

    def score(self, other: Played) -> float:
        light, heavy, total = self.parts(other)
        return 0.5 * light + 0.25 * heavy + 0.25 * total

    def interval(self, other: Played, which: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
        """Ratio of the sums over populations ``which`` with its 95 % bootstrap interval."""
        rows = np.flatnonzero(which)
        drawn = rows[np.random.default_rng(seed).integers(0, len(rows), (DRAWS, len(rows)))]
        ratios = other.objective_usd[drawn].sum(axis=1) / self.base.objective_usd[drawn].sum(axis=1)
        return float(other.objective_usd[rows].sum() / self.base.objective_usd[rows].sum()), *map(
            float, np.quantile(ratios, (0.025, 0.975))
        )


def proposed(trial: optuna.Trial, judge: Judge) -> Values:
    """Values of the judge's parameters that a trial proposes."""
    values: Values = {}
    for p in judge.space:
        suggest = trial.suggest_int if p.whole else trial.suggest_float
        values[p.name] = suggest(p.name, p.low, p.high, log=p.log)
    return values


def search(options: argparse.Namespace, root: Path, judge: Judge) -> list[optuna.trial.FrozenTrial]:
    """Finished trials, best first."""
    world = populations(root, load_cluster(CLUSTER, CONF_DIR), options.populations, options.windows, options.seed)
    yardstick = Yardstick(played(world, judge, options.windows))
    options.storage.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=f"planner-{options.populations}x{options.windows}-{options.seed}",
        storage=f"sqlite:///{options.storage}",
        sampler=optuna.samplers.TPESampler(seed=options.seed, multivariate=True),
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial(default_values(judge))
    with tqdm(total=options.trials, initial=min(len(study.trials), options.trials), desc="tune", unit="trial") as bar:
        while sum(trial.state.is_finished() for trial in study.trials) < options.trials:
            trial = study.ask()
            values = {
                p.name: (trial.suggest_int if p.whole else trial.suggest_float)(p.name, p.low, p.high, log=p.log) for p in judge.space
            }
            found = played(world, judge.tuned(values), options.windows)
            trial.set_user_attr("parts", yardstick.parts(found))
            study.tell(trial, yardstick.score(found))
            bar.update()
            bar.set_postfix_str(f"best {study.best_value:.4f}")
    return sorted(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)), key=lambda trial: trial.value or 0.0)


def confirmed(options: argparse.Namespace, root: Path, judge: Judge, trials: list[optuna.trial.FrozenTrial]) -> list[dict[str, Any]]:
    """The defaults and the best trials on populations that the search has not seen."""
    world = populations(root, load_cluster(CLUSTER, CONF_DIR), options.confirm, options.windows, options.confirm_seed)
    yardstick = Yardstick(played(world, judge, options.windows))
    rows = []
    for name, values in [("defaults", default_values(judge)), *((str(trial.number), trial.params) for trial in trials[: options.top])]:
        found = played(world, judge.tuned(values), options.windows)
        row: dict[str, Any] = {"trial": name, "settings": values, "score": yardstick.score(found)}
        for part, which in (("light", yardstick.light), ("heavy", yardstick.heavy)):
            row[part] = yardstick.interval(found, which)
            row[f"{part}_penalty_usd"] = float(found.penalty_usd[which].mean()) / options.windows
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the best trials as confirmed, and write all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune_planner", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    numbers = (("populations", 70), ("windows", 2), ("trials", 150), ("seed", 9), ("confirm", 60), ("confirm-seed", 8), ("top", 5))
    for name, default in numbers:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--storage", type=Path, default=Path("outputs/tune_planner.db"))
    parser.add_argument("--traces", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("outputs/tune_planner.json"))
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    root, judge = options.traces or traces_root(), JUDGES["planner"]
    trials = search(options, root, judge)
    rows = confirmed(options, root, judge, trials)
    print(f"{'trial':<10} {'score':>7}  {'light, ratio to the defaults':<28} {'heavy':<28} penalty USD a window (light, heavy)")
    for row in rows:
        light, heavy = (f"{row[part][0]:.3f} [{row[part][1]:.3f}, {row[part][2]:.3f}]" for part in ("light", "heavy"))
        late = f"{row['light_penalty_usd']:.2f} {row['heavy_penalty_usd']:.2f}"
        print(f"{row['trial']:<10} {row['score']:>7.4f}  {light:<28} {heavy:<28} {late}")
        print(" " * 11 + ", ".join(f"{key} {value:.4g}" for key, value in row["settings"].items()))
    about = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name, _ in numbers}
    write_json(options.out, plain({"about": about, "confirmed": rows, "trials": [[trial.value, trial.params] for trial in trials]}))
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

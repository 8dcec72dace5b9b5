"""How much a single decision of the planner decides: advantages by counterfactual rollouts, and what of them features foretell.

python -m benchmarks.rollouts [--populations 40] [--windows 2] [--points 8] [--seed 1] [--traces DIR] [--out outputs/rollouts.json]

Populations: ``benchmarks/populations.py``. At random decisions the planner's choice and up to three
alternatives are played to the window's end under the same future (``envs/rollouts.py``). LightGBM then learns the advantage, clipped to
1 USD, from the observation, and is judged on populations that it has not seen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.agent_data import CLUSTER
from benchmarks.forecast_data import traces_root
from benchmarks.populations import populations
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from envs.observation import ObservationLayout
from envs.reward import RewardSpec
from envs.rollouts import Labels, rollout_labels
from pipelines.cli import CONF_DIR
from pipelines.evaluation_report import plain
from pipelines.workspace import write_json

CLIP_USD, FOLDS = 1.0, 5


def features(labels: Labels, layout: ObservationLayout) -> np.ndarray:
    """The alternative, the planner's choice, their difference, and job, queue and time."""
    candidates, rows = layout.candidates(labels.observations), np.arange(len(labels.action))
    other, judged = candidates[rows, labels.action], candidates[rows, labels.judged]
    split = layout.n_candidates * layout.n_candidate_features
    return np.column_stack([other, judged, other - judged, labels.observations[:, split:]])


def foretold(x: np.ndarray, y: np.ndarray, group: np.ndarray, question: np.ndarray, most: int, seed: int) -> dict[str, float]:
    """What a model of at most ``most`` labels foretells on other groups: R2, and the mean gain where it would deviate from the planner."""
    import lightgbm

    rng, said = np.random.default_rng(seed), np.zeros(len(y))
    for held in np.array_split(rng.permutation(np.unique(group)), FOLDS):
        test = np.isin(group, held)
        train = rng.permutation(np.flatnonzero(~test))[:most]
        model = lightgbm.LGBMRegressor(
            n_estimators=150, learning_rate=0.03, num_leaves=7, min_child_samples=40, subsample=0.7, subsample_freq=1,
            colsample_bytree=0.3, objective="huber", alpha=0.2, n_jobs=1, random_state=seed, verbose=-1,
        )  # fmt: skip
        said[test] = model.fit(x[train], y[train]).predict(x[test])
    best = pd.DataFrame({"question": question, "said": said, "y": y}).sort_values("said", kind="stable").groupby("question").head(1)
    chosen = best[best["said"] < 0]["y"]
    spread = float(chosen.std() / np.sqrt(max(len(chosen), 1)))
    r2 = 1 - ((y - said) ** 2).mean() / y.var()
    return {"labels": most, "r2": float(r2), "deviates": len(chosen) / len(best), "usd": float(chosen.mean()), "usd_se": spread}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Labels of all populations and what they show."""
    root, cluster, reward, judge = options.traces or traces_root(), load_cluster(CLUSTER, CONF_DIR), RewardSpec(), JUDGES["planner"]
    world = populations(root, cluster, options.populations, options.windows, options.seed)
    began = time.process_time()
    labels = rollout_labels(world, judge, reward, points=options.points, seed=options.seed)
    spent = time.process_time() - began
    usd, n = labels.advantage_usd, len(labels.advantage_usd)
    clipped = np.clip(usd, -CLIP_USD, CLIP_USD)
    question = labels.window * (1 + int(labels.decisions.max())) + labels.decision
    best = pd.Series(usd).groupby(question).min().clip(upper=0.0)
    layout = ObservationLayout(world.static.speed.shape[0], world.static.speed.shape[1])
    x, sizes = features(labels, layout), [size for size in (500, 1000, 2000, 4000, 8000) if size < 0.8 * n]
    return {
        "labels": n,
        "questions": len(best),
        "cpu_s_per_label": spent / n,
        "judge_usd_per_decision": float(labels.judge_usd.sum() / labels.decisions.sum()),
        "advantage_usd": {"mean": float(usd.mean()), "sd": float(usd.std()), "sd_clipped": float(clipped.std())},
        "quantiles_usd": {str(q): float(np.quantile(usd, q)) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)},
        "better_share": float((usd < 0).mean()),
        "oracle_usd_per_question": float(best.mean()),
        "foretold": [foretold(x, clipped, labels.window // options.windows, question, size, options.seed) for size in (*sizes, n)],
    }


def main(arguments: list[str] | None = None) -> int:
    """Print and write what was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollouts", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in (("populations", 40), ("windows", 2), ("points", 8), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--traces", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("outputs/rollouts.json"))
    options = parser.parse_args(arguments)
    found = measure(options)
    for name, value in found.items():
        if name != "foretold":
            print(f"{name:<24} {value}")
    print(pd.DataFrame(found["foretold"]).to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    write_json(options.out, plain(found))
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""How much a single decision of the planner decides: advantages by counterfactual rollouts, and what of them features foretell.

python -m benchmarks.rollouts [--populations 40] [--windows 2] [--points 8] [--seed 1] [--traces DIR] [--out outputs/rollouts.json]

A population: jobs of Philly's first three weeks from some of its large virtual clusters, run times stretched, thinned or copied to a load
between 0.12 and 1.0, moved by hours, under prices and intensities of 2021. At random decisions the planner's choice and up to three
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

from benchmarks.agent import CLUSTER
from benchmarks.agent_data import WEEK, grid_of
from benchmarks.forecast_data import traces_root
from benchmarks.simulator_worlds import capacity
from envs.cluster import ClusterSpec
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from envs.observation import ObservationLayout
from envs.reward import RewardSpec
from envs.rollouts import Labels, rollout_labels
from envs.windows import WindowTables, cut_windows, prepare_jobs
from envs.world import build_world
from envs.worlds.transform import scale_load
from pipelines.cli import CONF_DIR
from pipelines.evaluation_report import plain
from pipelines.stages.real_traces import LONGEST_JOB_S, PHILLY, PHILLY_START, REQUEST_SEED, THROUGHPUTS
from pipelines.workspace import write_json
from telemetry.readers.public_traces import read_philly_gavel

START = pd.Timestamp(PHILLY_START, tz="UTC")
WEEKS, LEAST_JOBS, LOADS, STRETCH = 3, 100, (0.12, 1.0), 0.5
GRID_NAMES, WEEKS_BACK = ("CAISO", "NYIS", "CAISO+NYIS"), (14, 60)
WINDOW_S, CLIP_USD, FOLDS = 48 * 3600, 1.0, 5


def population(jobs: pd.DataFrame, grids: dict[str, pd.DataFrame], cluster: ClusterSpec, count: int, seed: int) -> list[WindowTables]:
    """``count`` windows of one population."""
    rng = np.random.default_rng(seed)
    sizes = jobs["team"].value_counts()
    teams = sorted(sizes[sizes >= LEAST_JOBS].index)
    some = jobs[jobs["team"].isin(rng.choice(teams, int(rng.integers(1, len(teams) + 1)), replace=False))]
    stretch, moved = float(np.exp(rng.uniform(-STRETCH, STRETCH))), pd.Timedelta(hours=int(rng.integers(24)))
    into = (some["submit_time"] - START + moved) % pd.Timedelta(weeks=WEEKS)
    some = some.assign(
        duration_s=np.minimum(some["duration_s"] * stretch, LONGEST_JOB_S),
        requested_duration_s=some["requested_duration_s"] * stretch,
        submit_time=START + into,
    ).sort_values(["submit_time", "job_id"], ignore_index=True)
    load = float(np.exp(rng.uniform(*np.log(LOADS))))
    offered = (some["duration_s"] * some["gpus"] * some["workers"]).sum() / 3600 / (WEEKS * 7 * 24 * capacity(cluster))
    some = scale_load(some, load / offered, seed)
    grid, back = grids[str(rng.choice(list(grids)))], WEEK * int(rng.integers(*WEEKS_BACK))
    grid = grid.assign(time=grid["time"] + back)
    grid = grid[(grid["time"] >= START - 2 * WEEK) & (grid["time"] < START + (WEEKS + 2) * WEEK)].reset_index(drop=True)
    return cut_windows(prepare_jobs(some, cluster), grid, WINDOW_S, count, seed, START, START + WEEKS * WEEK)


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
    jobs, _ = read_philly_gavel(
        root / PHILLY, root / THROUGHPUTS, start=PHILLY_START, max_duration_s=LONGEST_JOB_S, request_seed=REQUEST_SEED
    )
    jobs["workload_class"] = np.where(jobs["gpus"] * jobs["workers"] <= 1, "fine_tuning", "training")
    jobs = jobs[jobs["submit_time"] < START + WEEKS * WEEK].reset_index(drop=True)
    grids = {name: grid_of(root, name, tuple(site.name for site in cluster.sites))[0] for name in GRID_NAMES}
    seeds = [1000 * options.seed + k for k in range(options.populations)]
    world = build_world(cluster, [window for seed in seeds for window in population(jobs, grids, cluster, options.windows, seed)])
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

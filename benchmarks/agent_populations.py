"""An agent trained on drawn populations of jobs instead of one trace: for clusters that nobody has seen.

python -m benchmarks.agent_populations FOLDER [--populations 96] [--windows 2] [--validation 60] [--steps 4000000] [--seed 1] [--traces DIR]

Populations (``benchmarks/populations.py``) are sorted by what one of the planner's decisions answers for, and make ``BANDS`` worlds, whose
rewards are scaled to weigh the same. Validation windows are of other populations, half of them to choose weights on and half to confirm
on, each as a ratio to the planner's objective in it, so that quiet and busy ones count the same. Checkpoints lie in FOLDER/checkpoint: the
same command goes on from there. FOLDER/policy is the exported agent, for ``python -m benchmarks.agent --agent FOLDER/policy``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.agent_data import CLUSTER
from benchmarks.forecast_data import traces_root
from benchmarks.populations import drawn
from envs.agent.config import AgentConfig
from envs.agent.train import TrainingResult, train_agent
from envs.cluster import ClusterSpec
from envs.cluster_io import load_cluster
from envs.evaluate import evaluate
from envs.heuristics import JUDGES, Judge
from envs.kernel import run_policy
from envs.multi_world import MultiWorldVecEnv, objective_per_decision, split_envs
from envs.reward import RewardSpec
from envs.state import Policy
from envs.vec_env import ClusterVecEnv
from envs.windows import WindowTables
from envs.world import World, build_world
from pipelines.cli import CONF_DIR
from pipelines.evaluation_report import plain
from pipelines.stages.agent_worlds import REWARD_MODE
from pipelines.workspace import write_json

BANDS, LEAST_USD = 4, 1.0
CONFIG = AgentConfig(num_envs=256, n_steps=64, gamma=1.0, value_warmup=2, validate_every=16, patience=6, threads=2)


def banded(cluster: ClusterSpec, populations: list[list[WindowTables]], judge: Judge) -> list[World]:
    """Worlds of populations in which a decision answers for about as much."""
    totals = run_policy(build_world(cluster, [window for one in populations for window in one]), judge, RewardSpec())
    usd = totals.objective_usd.reshape(len(populations), -1).sum(axis=1)
    decisions = totals.decisions.reshape(len(populations), -1).sum(axis=1)
    order = np.argsort(np.abs(usd) / np.maximum(decisions, 1))
    return [build_world(cluster, [window for place in part for window in populations[place]]) for part in np.array_split(order, BANDS)]


def training_envs(worlds: list[World], judge: Judge, seed: int) -> MultiWorldVecEnv:
    """As many environments of each world, their rewards scaled by what a decision of the judge answers for."""
    reward, envs = RewardSpec(), []
    for place, (world, count) in enumerate(zip(worlds, split_envs(CONFIG.num_envs, [1.0] * len(worlds)), strict=True)):
        scaled = replace(reward, scale_usd=objective_per_decision(world, judge, reward))
        envs.append(ClusterVecEnv(world, count, scaled, judge.settings, seed + place, reward_mode=REWARD_MODE, threads=CONFIG.threads))
    return MultiWorldVecEnv(envs)


class Validation:
    """Objectives of a policy in the validation windows, each over the judge's."""

    def __init__(self, world: World, judge: Judge) -> None:
        self.world = world
        self.judge_usd = self._usd(judge)
        self.kept = self.judge_usd > LEAST_USD

    def __call__(self, policy: Policy) -> np.ndarray:
        return self._usd(policy)[self.kept] / self.judge_usd[self.kept]

    def _usd(self, policy: Policy) -> np.ndarray:
        return evaluate(self.world, {"policy": policy}, threads=CONFIG.threads)["objective_usd"].to_numpy()


def trained(options: argparse.Namespace) -> TrainingResult:
    """The result of the training that the options describe."""
    root, cluster, judge = options.traces or traces_root(), load_cluster(CLUSTER, CONF_DIR), JUDGES["planner"]
    worlds = banded(cluster, drawn(root, cluster, options.populations, options.windows, options.seed), judge)
    unseen = drawn(root, cluster, options.validation, 1, options.seed + 500)
    validation = Validation(build_world(cluster, [window for one in unseen for window in one]), judge)
    checkpoint = options.folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    with tqdm(total=options.steps, desc="agent", unit="decision", unit_scale=True) as bar:

        def report(step: int, metrics: dict[str, float]) -> None:
            bar.update(step - bar.n)
            if "validation/objective_usd" in metrics:
                chosen, held = metrics["validation/objective_usd"], metrics.get("validation/confirmation_usd", np.nan)
                bar.write(f"{step:,} decisions: {chosen:.4f} of the planner's objective, {held:.4f} on windows held back")

        return train_agent(
            training_envs(worlds, judge, options.seed),
            judge.settings,
            replace(CONFIG, total_steps=options.steps),
            validation,
            seed=options.seed,
            judge=np.ones(int(validation.kept.sum())),
            checkpoint=checkpoint,
            report=report,
        )


def main(arguments: list[str] | None = None) -> int:
    """Train, export and say how the agent compares."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agent_populations", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    for name, default in (("populations", 96), ("windows", 2), ("validation", 60), ("steps", 4_000_000), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--traces", type=Path, default=None)
    options = parser.parse_args(arguments)
    result = trained(options)
    result.policy.save(options.folder / "policy")
    described: dict[str, Any] | None = result.verdict.described() if result.verdict is not None else None
    about = {name: getattr(options, name) for name in ("populations", "windows", "validation", "steps", "seed")}
    write_json(options.folder / "result.json", plain({"about": about, "verdict": described, "validation": result.validation}))
    print(f"improved: {result.improved}, verdict {described}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Stage ``agent``: training and validation windows, PPO, the exported policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from envs.agent.policy import AgentPolicy
from envs.agent.train import TrainingResult, train_agent
from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.outages import with_outages
from envs.state import PolicySettings
from envs.vec_env import ClusterVecEnv
from envs.windows import WindowTables, cut_windows, prepare_jobs
from envs.world import World, build_world
from pipelines.config import TrainConfig
from pipelines.spans import split_spans
from pipelines.stages.context import StageContext
from pipelines.stages.policy_plots import learning_figure
from pipelines.workspace import write_json
from registry.tracking import Run


def part_windows(config: TrainConfig, features: Path, part: str, count: int, seed: int) -> list[WindowTables]:
    """Windows of one part of the time line, from the tables of stage ``features``."""
    jobs, grid = pd.read_parquet(features / "jobs.parquet"), pd.read_parquet(features / "grid.parquet")
    start, end = split_spans(jobs, config.trace.split)[part]
    prepared = prepare_jobs(jobs, config.cluster)
    windows = cut_windows(prepared, grid, int(config.trace.window_hours * 3600), count, seed, start=start, end=end)
    return with_outages(windows, config.cluster, seed)


def part_world(config: TrainConfig, features: Path, part: str, count: int, seed: int) -> World:
    """:func:`part_windows` as a world."""
    return build_world(config.cluster, part_windows(config, features, part, count, seed))


def agent_settings() -> PolicySettings:
    """The agent decides under the same node rule, queue and sleep settings as the judge that it starts from."""
    return JUDGES["lookahead"].settings


def _train(config: TrainConfig, features: Path, checkpoint: Path, run: Run) -> tuple[TrainingResult, np.ndarray]:
    """Result of training and a few observations as an input example, float32 ``[4, D]``."""
    trace = config.trace
    train_world = part_world(config, features, "train", trace.train_windows, config.seed)
    validation_world = part_world(config, features, "validation", trace.validation_windows, config.seed + 1)
    settings = agent_settings()
    env = ClusterVecEnv(train_world, config.agent.num_envs, config.reward, settings, seed=config.seed, reward_mode="regret")

    def validate(policy: AgentPolicy) -> float:
        frame = evaluate(validation_world, {"agent": policy}, reward=config.reward)
        return float(frame["objective_usd"].mean())

    with tqdm(total=config.agent.total_steps, desc="agent", unit="decision", unit_scale=True, dynamic_ncols=True) as bar:

        def report(step: int, metrics: dict[str, float]) -> None:
            bar.update(min(step, bar.total) - bar.n)
            if "validation/objective_usd" in metrics:
                bar.set_postfix_str(f"validation {metrics['validation/objective_usd']:.2f} USD a window")
            run.log_metrics(metrics, step=step)

        result = train_agent(env, settings, config.agent, validate, seed=config.seed, checkpoint=checkpoint, report=report)
    return result, env.reset()[:4]


def run_agent(context: StageContext, out: Path) -> None:
    """Train the agent and write ``policy/``, ``curve.parquet``, ``validation.parquet``, ``observation_example.npy`` and ``result.json``."""
    features = context.folder("features")
    checkpoint = context.workspace.scratch("agent", context.key("agent")) / "checkpoint"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    result, example = _train(context.config, features, checkpoint, context.run)
    np.save(out / "observation_example.npy", example)
    result.policy.save(out / "policy")
    curve = pd.DataFrame([{"step": step, **metrics} for step, metrics in result.curve])
    validation = pd.DataFrame(result.validation, columns=["step", "objective_usd"])
    curve.to_parquet(out / "curve.parquet")
    validation.to_parquet(out / "validation.parquet")
    write_json(out / "result.json", {"best_step": result.best_step, "best_objective_usd": result.best_objective})
    context.run.log_figure(learning_figure(out), "learning")

"""The worlds that the agent learns in: the training part of the trace under other loads, clusters and hours of the grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from envs.agent.config import WorldChoice
from envs.cluster import ClusterSpec
from envs.cluster_io import cluster_from_mapping
from envs.heuristics import Judge
from envs.multi_world import MultiWorldVecEnv, objective_per_decision, split_envs
from envs.outages import with_outages
from envs.vec_env import ClusterVecEnv
from envs.windows import cut_windows, prepare_jobs
from envs.world import World, build_world
from envs.worlds.transform import scale_load, shift_grid
from pipelines.cli import CONF_DIR, group_choices
from pipelines.config import TrainConfig
from telemetry.errors import InputError

REWARD_MODE = "regret"


def named_cluster(name: str) -> ClusterSpec:
    """A cluster of ``conf/cluster`` by its name."""
    path = CONF_DIR / "cluster" / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"cluster '{name}'", where="agent.worlds", allowed=", ".join(group_choices("cluster")))
    return cluster_from_mapping(OmegaConf.to_container(OmegaConf.load(path), resolve=True), f"agent.worlds, {name}")


def chosen_world(config: TrainConfig, features: Path, choice: WorldChoice, span: tuple[pd.Timestamp, pd.Timestamp], seed: int) -> World:
    """One world of the span ``[start, end)``; neither copies of jobs nor shifted prices come from beyond it."""
    start, end = span
    jobs, grid = pd.read_parquet(features / "jobs.parquet"), pd.read_parquet(features / "grid.parquet")
    cluster = config.cluster if choice.cluster is None else named_cluster(choice.cluster)
    missing = sorted({site.name for site in cluster.sites} - set(grid["site"]))
    if missing:
        raise InputError(
            f"cluster '{choice.cluster}' has site '{missing[0]}'", where="agent.worlds", allowed=", ".join(sorted(set(grid["site"])))
        )
    inside = jobs[(jobs["submit_time"] >= start) & (jobs["submit_time"] < end)]
    if choice.load != 1.0:
        inside = scale_load(inside.reset_index(drop=True), choice.load, seed)
    if choice.grid_shift_hours:
        known = grid["time"] < end
        grid = pd.concat([shift_grid(grid[known], choice.grid_shift_hours), grid[~known]], ignore_index=True)
    prepared = prepare_jobs(inside, cluster)
    windows = cut_windows(prepared, grid, int(config.trace.window_hours * 3600), config.trace.train_windows, seed, start=start, end=end)
    return build_world(cluster, with_outages(windows, cluster, seed))


def training_envs(
    config: TrainConfig, features: Path, span: tuple[pd.Timestamp, pd.Timestamp], judge: Judge, *, world_seed: int, seed: int
) -> ClusterVecEnv | MultiWorldVecEnv:
    """Training environments, ``config.agent.num_envs`` in all.

    With several worlds each has its reward scaled so that one of the judge's decisions answers for as much as in the first: else the
    largest cluster would be all that the agent learns.
    """
    agent, choices = config.agent, config.agent.worlds or (WorldChoice(),)
    worlds = [chosen_world(config, features, choice, span, world_seed) for choice in choices]
    sizes = [objective_per_decision(world, judge, config.reward) for world in worlds] if len(worlds) > 1 else [1.0]
    envs = []
    for place, (world, count, size) in enumerate(zip(worlds, split_envs(agent.num_envs, [c.share for c in choices]), sizes, strict=True)):
        reward = replace(config.reward, scale_usd=config.reward.scale_usd * (size / sizes[0] if sizes[0] > 0 and size > 0 else 1.0))
        options = {
            "preferences": {one.weight: (one.low, one.high) for one in agent.preferences},
            "reward_mode": REWARD_MODE,
            "threads": agent.threads,
        }
        envs.append(ClusterVecEnv(world, count, reward, judge.settings, seed + place, **options))
    return envs[0] if len(envs) == 1 else MultiWorldVecEnv(envs)

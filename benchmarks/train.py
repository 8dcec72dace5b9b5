"""Speed of the agent's training: env steps/s from end to end on committed clusters, and where the time goes. Prints a table, writes JSON.

Ways, taken in turns within one run, so that other load on the machine hits all of them alike:

agent            ``train_agent``'s own loop at the default configuration: PPO of stable-baselines3 with compiled rollouts and updates
stock, same net  stable-baselines3's own loop around the same network in torch
stock, 64 units  the same with the network that the agent had before (64 hidden units)
peer             stable-baselines3's own loop with its MlpPolicy of 64x64. It knows no masks: a masked action is replaced by an allowed one
                 outside the timed parts' interest, so its speed can be compared, its learning not

Parts: environment (the VecEnv's step), forward (sampling and values), buffer (the rest of a rollout: storing, returns, callbacks), update.
The last row of a cluster is the whole of ``train_agent`` from its call to its result: first reset, validations and export included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnvWrapper

from benchmarks.simulator import machine
from benchmarks.simulator_worlds import synthetic_world
from envs.agent.config import AgentConfig
from envs.agent.network import CandidatePolicy
from envs.agent.train import make_model, train_agent
from envs.cluster import ClusterSpec
from envs.cluster_io import cluster_from_mapping
from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv
from envs.world import World
from telemetry.errors import InputError

CLUSTERS = Path(__file__).parents[1] / "conf" / "cluster"
JOBS_PER_NODE = 20
WINDOWS, HELD_OUT = 8, 4
BEFORE_HIDDEN = 64
PARTS: tuple[str, ...] = ("environment", "forward", "buffer", "update")


class AllowedActions(VecEnvWrapper):
    """Replaces a masked action by the first allowed one."""

    def step_async(self, actions: np.ndarray) -> None:
        mask = self.venv.action_masks()
        allowed = mask[np.arange(len(actions)), actions]
        self.venv.step_async(np.where(allowed, actions, mask.argmax(axis=1)))

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def reset(self) -> np.ndarray:
        return self.venv.reset()


class Stopwatch:
    """Seconds spent in wrapped methods, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: object, method: str, part: str) -> None:
        """Time every call of ``owner.method``."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begin

        setattr(owner, method, timed)


def committed_cluster(name: str) -> ClusterSpec:
    """A cluster of ``conf/cluster``."""
    path = CLUSTERS / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"cluster '{name}'", where="--clusters", allowed=", ".join(sorted(file.stem for file in CLUSTERS.glob("*.yaml"))))
    return cluster_from_mapping(OmegaConf.to_container(OmegaConf.load(path)), name)


def training_world(cluster: ClusterSpec, windows: int, seed: int) -> World:
    """Two days of synthetic jobs a window at a load of 0.7 of what the cluster gets done."""
    nodes = sum(pool.nodes for pool in cluster.pools)
    return synthetic_world(nodes, max(200, JOBS_PER_NODE * nodes), windows, cluster=cluster, by_speed=True, seed=seed)


def environments(world: World, config: AgentConfig) -> ClusterVecEnv:
    """Training environments as the pipeline makes them."""
    settings = JUDGES["lookahead"].settings
    return ClusterVecEnv(world, config.num_envs, RewardSpec(), settings, 0, reward_mode="regret", threads=config.threads)


def stock(policy: Any, env: Any, config: AgentConfig, policy_kwargs: dict[str, Any]) -> PPO:
    """Stable-Baselines3 as it comes, at the agent's hyperparameters."""
    names = (
        "n_steps",
        "batch_size",
        "n_epochs",
        "learning_rate",
        "gamma",
        "gae_lambda",
        "clip_range",
        "ent_coef",
        "vf_coef",
        "max_grad_norm",
    )
    options = {name: getattr(config, name) for name in names}
    return PPO(policy, env, **options, policy_kwargs=policy_kwargs, device="cpu", seed=0)


def ways(world: World, config: AgentConfig) -> dict[str, PPO]:
    """One model for each way, each in environments of its own."""

    def scorer(hidden: int) -> PPO:
        env = environments(world, config)
        return stock(CandidatePolicy, env, config, {"layout": env.layout, "hidden": hidden, "kappa": config.kappa})

    return {
        "agent": make_model(environments(world, config), JUDGES["planner"].settings, replace(config, target_kl=1e9), 0),
        "stock, same net": scorer(config.hidden),
        "stock, 64 units": scorer(BEFORE_HIDDEN),
        "peer": stock("MlpPolicy", AllowedActions(environments(world, config)), config, {"net_arch": [64, 64]}),
    }


def watched(model: PPO) -> Stopwatch:
    """A stopwatch on the parts of a model's loop."""
    watch = Stopwatch()
    env = model.get_env()
    fast = hasattr(model, "_forward")
    watch.watch(env, "step_into" if fast else "step", "environment")
    if fast:
        watch.watch(model, "_forward", "forward")
    else:
        watch.watch(model.policy, "forward", "forward")
        watch.watch(model.policy, "predict_values", "forward")
    watch.watch(model, "collect_rollouts", "rollout")
    watch.watch(model, "train", "update")
    return watch


def one_turn(model: PPO, watch: Stopwatch, steps: int) -> dict[str, float]:
    """Env steps/s of one turn and microseconds per env step of its parts."""
    watch.seconds.clear()
    begin = time.perf_counter()
    before = model.num_timesteps
    model.learn(steps, reset_num_timesteps=False)
    total, done = time.perf_counter() - begin, model.num_timesteps - before
    seconds = watch.seconds
    seconds["buffer"] = seconds["rollout"] - seconds["environment"] - seconds["forward"]
    return {"steps_per_s": done / total, **{f"{part}_us": 1e6 * seconds[part] / done for part in PARTS}}


def cluster_part(name: str, config: AgentConfig, turns: int, rollouts: int) -> dict[str, Any]:
    """All ways on one cluster: medians over the turns, and the best turn."""
    world = training_world(committed_cluster(name), WINDOWS, 0)
    models = ways(world, config)
    steps = rollouts * config.num_envs * config.n_steps
    watches = {}
    for way, model in models.items():
        model.set_logger(Logger(folder=None, output_formats=[]))
        model.learn(config.num_envs * config.n_steps)
        watches[way] = watched(model)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in models}
    loads = []
    for _ in range(turns):
        for way, model in models.items():
            rows[way].append(one_turn(model, watches[way], steps))
        loads.append(os.getloadavg()[0])
    result = {
        way: {key: median(turn[key] for turn in taken) for key in taken[0]}
        | {"best_steps_per_s": max(turn["steps_per_s"] for turn in taken)}
        for way, taken in rows.items()
    }
    result["train_agent"] = whole_training(world, training_world(committed_cluster(name), HELD_OUT, 1), config, 16 * steps)
    layout = models["agent"].get_env().layout
    about = {"candidates": layout.n_candidates, "observation": layout.size, "steps_a_turn": steps, "turns": turns, "load_average": loads}
    return {"about": about, "ways": result}


def whole_training(world: World, held_out: World, config: AgentConfig, steps: int) -> dict[str, float]:
    """``train_agent`` with its validations, as the pipeline's stage calls it."""

    def validate(policy: Any) -> float:
        return float(evaluate(held_out, {"agent": policy})["objective_usd"].mean())

    begin = time.perf_counter()
    result = train_agent(environments(world, config), JUDGES["lookahead"].settings, replace(config, total_steps=steps), validate, seed=0)
    seconds = time.perf_counter() - begin
    return {"steps_per_s": result.curve[-1][0] / seconds, "seconds": seconds, "validations": len(result.validation)}


def lines_of(name: str, part: dict[str, Any]) -> list[str]:
    """The printed table of one cluster."""
    about, rows = part["about"], part["ways"]
    loads = about["load_average"]
    lines = [
        f"\n{name}: {about['candidates']} candidates, {about['observation']} values; {about['turns']} turns of {about['steps_a_turn']:,} "
        f"steps; load average {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores",
        f"{'':<18}{'steps/s':>9}{'best':>9}{'against peer':>14}" + "".join(f"{part + ', us':>17}" for part in PARTS),
    ]
    for way in ("agent", "stock, same net", "stock, 64 units", "peer"):
        row = rows[way]
        ratio = row["steps_per_s"] / rows["peer"]["steps_per_s"]
        parts = "".join(f"{row[f'{part}_us']:>17.1f}" for part in PARTS)
        lines.append(f"{way:<18}{row['steps_per_s']:>9,.0f}{row['best_steps_per_s']:>9,.0f}{ratio:>13.2f}x{parts}")
    whole = rows["train_agent"]
    lines.append(f"train_agent       {whole['steps_per_s']:>9,.0f}   {whole['seconds']:.1f} s with {whole['validations']} validations")
    lines.append(f"agent against the network and loop before: {rows['agent']['steps_per_s'] / rows['stock, 64 units']['steps_per_s']:.1f}x")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clusters", nargs="+", default=["sample", "gen128"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=4, help="rollouts a turn")
    parser.add_argument("--threads", type=int, default=AgentConfig().threads, help="of the agent, of the simulator and of torch")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/train.json"))
    options = parser.parse_args()
    config = AgentConfig(threads=options.threads)
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {"machine": machine(), "threads": options.threads, "clusters": {}}

    try:
        for name in options.clusters:
            committed_cluster(name)
        for name in options.clusters:
            record["clusters"][name] = cluster_part(name, config, options.turns, options.rollouts)
            print("\n".join(lines_of(name, record["clusters"][name])), flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Decisions per second of the compiled simulator: bare, with observations, and through the VecEnv. Prints a table, writes JSON.

python -m benchmarks.simulator [--clusters 64] [--nodes 128] [--jobs 2000] [--threads 2] [--out outputs/benchmarks/simulator.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.packed import state_bytes
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv
from envs.windows import WindowTables, prepare_jobs
from envs.world import World, build_world
from telemetry.classes import WORKLOAD_CLASSES

START = pd.Timestamp("2024-01-08", tz="UTC")
LENGTH_S = 2 * 86_400
LOAD = 0.7


def synthetic_world(nodes: int, jobs: int, windows: int, seed: int = 0) -> World:
    """Four pools of 8-GPU nodes at two sites, hourly prices with a daily rhythm, work for about 70 % of the GPUs."""
    models = ("V100", "A100", "A40", "H100")
    pools = tuple(PoolSpec(f"pool{i}", ("east", "west")[i % 2], model, nodes // 4, 8) for i, model in enumerate(models))
    cluster = ClusterSpec("benchmark", (SiteSpec("east"), SiteSpec("west")), pools)
    times = pd.date_range(START - pd.Timedelta(days=2), START + pd.Timedelta(days=9), freq="1h")
    tables = []
    for window in range(windows):
        rng = np.random.default_rng([seed, window])
        gpus = rng.choice([0.5, 1, 2, 4, 8], jobs, p=[0.2, 0.4, 0.2, 0.1, 0.1])
        shape = rng.lognormal(0.0, 1.2, jobs)
        duration_s = np.maximum(60, shape / (shape * gpus).sum() * LOAD * cluster.total_gpus * LENGTH_S).round()
        frame = pd.DataFrame(
            {
                "job_id": [f"j{i:06d}" for i in range(jobs)],
                "submit_time": START + pd.to_timedelta(np.sort(rng.integers(0, LENGTH_S, jobs)), unit="s"),
                "duration_s": duration_s,
                "requested_duration_s": duration_s * rng.uniform(0.8, 2.0, jobs),
                "gpus": gpus,
                "workers": rng.choice([1, 2], jobs, p=[0.95, 0.05]),
                "workload_class": rng.choice(WORKLOAD_CLASSES, jobs),
            }
        )
        hour = times.hour.to_numpy()
        rows = [
            pd.DataFrame(
                {
                    "time": times,
                    "site": site,
                    "price_usd_per_kwh": 0.1 + 0.06 * np.sin((hour + 5 * k) / 24 * 2 * np.pi) + rng.normal(0, 0.01, len(times)),
                    "carbon_g_per_kwh": 300 + 150 * np.cos((hour + 3 * k) / 24 * 2 * np.pi),
                    "temperature_c": 18.0,
                }
            )
            for k, site in enumerate(("east", "west"))
        ]
        tables.append(WindowTables(START, prepare_jobs(frame, cluster), pd.concat(rows), LENGTH_S))
    return build_world(cluster, tables)


def _timed(run: Callable[[], int]) -> float:
    """Decisions per second of ``run``, which returns its decisions."""
    begin = time.perf_counter()
    decisions = run()
    return decisions / (time.perf_counter() - begin)


def measure(world: World, clusters: int, threads: int) -> dict[str, float]:
    """Decisions per second by way of running."""
    windows = np.arange(clusters) % world.n_windows
    results = {}
    for name in ("k8s_default", "most_allocated", "greedy_cost", "lookahead"):
        judge = JUDGES[name]
        simulator = Simulator(world, clusters, judge.settings, RewardSpec(), threads=threads)
        simulator.reset(windows)

        def bare(simulator: Simulator = simulator, chooser: int = judge.chooser) -> int:
            simulator.play(chooser)
            return int(simulator.state.decisions.sum())

        results[f"bare, {name}"] = _timed(bare)
    judge = JUDGES["lookahead"]
    simulator = Simulator(world, clusters, judge.settings, RewardSpec(), threads=threads)
    simulator.reset(windows)
    simulator.observe()

    def observed() -> int:
        while not simulator.done.any():
            simulator.step(judge.act(simulator.observations, simulator.layout), observe=True)
        return int(simulator.state.decisions.sum())

    results["with observation, lookahead"] = _timed(observed)
    env = ClusterVecEnv(world, clusters, RewardSpec(), judge.settings, 0, threads=threads)
    observations = env.reset()
    steps = 1000

    def stepped() -> int:
        nonlocal observations
        for _ in range(steps):
            observations = env.step(judge.act(observations, env.layout))[0]
        return steps * clusters

    results["VecEnv, lookahead"] = _timed(stepped)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=128, help="nodes of one cluster, in 4 pools")
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of one window of two days")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/simulator.json"), help="JSON file for the results")
    options = parser.parse_args()
    world = synthetic_world(options.nodes, options.jobs, options.windows)
    begin = time.perf_counter()
    probe = Simulator(world, 1, JUDGES["lookahead"].settings, RewardSpec())
    probe.reset([0])
    first_call_s = time.perf_counter() - begin
    results = measure(world, options.clusters, options.threads)
    kib = state_bytes(probe.packed_state) / 1024
    print(f"{options.clusters} clusters x {options.nodes} nodes x 8 GPUs, {options.jobs} jobs; {options.threads} threads")
    print(f"first call {first_call_s:.1f} s (compiled or cached); {kib:.0f} KiB per cluster")
    for name, value in results.items():
        print(f"{name:32s} {value:12,.0f} decisions/s")
    if options.out is not None:
        record = {
            "clusters": options.clusters,
            "nodes": options.nodes,
            "jobs": options.jobs,
            "threads": options.threads,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "first_call_s": first_call_s,
            "bytes_per_cluster": state_bytes(probe.packed_state),
            "decisions_per_s": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(temporary, options.out)


if __name__ == "__main__":
    main()

"""Benchmark parts over a batch of clusters: decisions per second by way of running, the price of each feature, and where the time goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulator_worlds import FEATURES, REVIEW_S, synthetic_world
from envs import fields as fx
from envs.heuristics import JUDGES, Judge
from envs.kernel import Simulator
from envs.packed import state_bytes
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv
from envs.world import World

RUNS = 3
WARM_DECISIONS = 50
OBSERVED_ROWS = ("observation, lookahead", "observation, greedy_cost", "VecEnv, lookahead")
FIRST_CALL = """
import json, time
begin = time.perf_counter()
from benchmarks.simulator_worlds import synthetic_world
from envs import fields as fx
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.reward import RewardSpec
imported = time.perf_counter() - begin
world = synthetic_world(4, 10, 1)
simulator = Simulator(world, 1, JUDGES["lookahead"].settings, RewardSpec())
begin = time.perf_counter()
simulator.reset([0])
first_s = time.perf_counter() - begin
begin = time.perf_counter()
JUDGES["lookahead"].act(simulator.observe(), simulator.layout)
print(json.dumps({"import_s": imported, "reset_s": first_s, "observe_and_act_s": time.perf_counter() - begin}))
"""


def best_of(run: Callable[[], int], prepare: Callable[[], Any] | None = None, runs: int = RUNS) -> float:
    """Decisions per second of the fastest of ``runs`` runs; ``run`` returns its decisions, ``prepare`` is not timed."""
    best = 0.0
    for _ in range(runs):
        if prepare is not None:
            prepare()
        begin = time.perf_counter()
        decisions = run()
        best = max(best, decisions / (time.perf_counter() - begin))
    return best


def play_speed(world: World, judge: Judge, clusters: int, threads: int = 1) -> float:
    """Decisions per second of whole windows without an observation."""
    simulator = Simulator(world, clusters, judge.settings, RewardSpec(), threads=threads)
    windows = np.arange(clusters) % world.n_windows
    simulator.reset(windows)
    simulator.play(judge.chooser, np.full(clusters, WARM_DECISIONS))

    def run() -> int:
        simulator.play(judge.chooser)
        return int(simulator.state.decisions.sum())

    return best_of(run, lambda: simulator.reset(windows))


def observed_speed(world: World, judge: Judge, clusters: int, threads: int = 1) -> float:
    """Decisions per second when every question's observation is written and the judge decides from it in Python."""
    simulator = Simulator(world, clusters, judge.settings, RewardSpec(), threads=threads)
    windows = np.arange(clusters) % world.n_windows

    def prepare() -> None:
        simulator.reset(windows)
        simulator.observe()
        for _ in range(min(WARM_DECISIONS, int(world.jobs.count.min()) // 4)):
            simulator.step(judge.act(simulator.observations, simulator.layout), observe=True)

    def run() -> int:
        before = int(simulator.state.decisions.sum())
        while not simulator.done.any():
            simulator.step(judge.act(simulator.observations, simulator.layout), observe=True)
        return int(simulator.state.decisions.sum()) - before

    return best_of(run, prepare)


def vec_env_speed(world: World, judge: Judge, clusters: int, threads: int = 1, steps: int = 1000) -> float:
    """Environment steps per second through the stable-baselines3 VecEnv, restarts of finished windows included."""
    env = ClusterVecEnv(world, clusters, RewardSpec(), judge.settings, 0, threads=threads)
    observations = env.reset()

    def run(count: int = steps) -> int:
        nonlocal observations
        for _ in range(count):
            observations = env.step(judge.act(observations, env.layout))[0]
        return count * clusters

    run(WARM_DECISIONS)
    return best_of(run)


# ---------------------------------------------------------------- parts


def first_calls() -> dict[str, dict[str, float]]:
    """Seconds of the first call in a new process: with an empty cache of compiled code, then with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        results = {}
        for name in ("cold", "warm"):
            done = subprocess.run([sys.executable, "-c", FIRST_CALL], env=environment, capture_output=True, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
        results["cache_mib"] = {"compiled": sum(f.stat().st_size for f in Path(folder).rglob("*.nb*")) / 2**20}
    return results


def batch_part(clusters: int, nodes: int, jobs: int, windows: int, threads: int) -> dict[str, Any]:
    """The batch of training size: bare by judge, with the observation, through the VecEnv; memory of a cluster."""
    world = synthetic_world(nodes, jobs, windows)
    probe = Simulator(world, 1, JUDGES["lookahead"].settings, RewardSpec())
    shared = sum(array.nbytes for array in probe.packed_world)
    speeds: dict[str, dict[str, float]] = {}
    for count in sorted({1, threads}):
        rows = {f"bare, {name}": play_speed(world, judge, clusters, count) for name, judge in JUDGES.items()}
        for name in ("lookahead", "greedy_cost"):
            rows[f"observation, {name}"] = observed_speed(world, JUDGES[name], clusters, count)
        rows["VecEnv, lookahead"] = vec_env_speed(world, JUDGES["lookahead"], clusters, count)
        speeds[f"threads={count}"] = rows
    return {
        "decisions_per_s": speeds,
        "observation_values": probe.layout.size,
        "bytes_per_cluster": state_bytes(probe.packed_state),
        "bytes_per_cluster_with_event_log": _log_bytes(world),
        "bytes_shared_world": shared,
        "bytes_shared_world_per_window": shared // world.n_windows,
    }


def _log_bytes(world: World) -> int:
    logged = Simulator(world, 1, JUDGES["lookahead"].settings, RewardSpec(), event_log=True)
    return state_bytes(logged.packed_state) + logged._log.nbytes


def features_part(clusters: int, nodes: int, jobs: int, windows: int, threads: int) -> dict[str, Any]:
    """The same batch with each feature alone and with all of them, reviews every half hour among them."""
    cases: dict[str, tuple[frozenset[str], int]] = {"plain": (frozenset(), 0)}
    cases |= {name: (frozenset({name}), 0) for name in FEATURES if name != "checkpoints"}
    cases["reviews, checkpoints"] = (frozenset({"checkpoints"}), REVIEW_S)
    cases["all but reviews"] = (frozenset(FEATURES), 0)
    cases["all"] = (frozenset(FEATURES), REVIEW_S)
    rows: dict[str, dict[str, float]] = {}
    for case, (features, review_s) in cases.items():
        world = synthetic_world(nodes, jobs, windows, features=features)
        row: dict[str, float] = {}
        for name in ("k8s_default", "greedy_cost", "lookahead"):
            judge = JUDGES[name]
            judge = replace(judge, settings=replace(judge.settings, review_s=review_s))
            row[f"bare, {name}"] = play_speed(world, judge, clusters, threads)
        row["observation, lookahead"] = observed_speed(world, judge, clusters, threads)
        probe = Simulator(world, 1, judge.settings, RewardSpec())
        probe.reset([0])
        probe.play(judge.chooser)
        row["decisions_per_window, lookahead"] = int(probe.state.decisions[0])
        row["shapes"] = world_shapes(probe)
        row["bytes_per_cluster"] = state_bytes(probe.packed_state)
        rows[case] = row
    return {"decisions_per_s": rows}


def world_shapes(simulator: Simulator) -> int:
    """Kinds of jobs that need the same room, in the window that has most."""
    return int(simulator.packed_world.o[fx.N_SHAPES])


def profile_part(clusters: int, nodes: int, jobs: int, windows: int) -> dict[str, Any]:
    """Nanoseconds per decision of each stage on one thread, by elimination, and of whole windows by the number of clusters."""
    world = synthetic_world(nodes, jobs, windows)
    judge = JUDGES["lookahead"]
    simulator = Simulator(world, clusters, judge.settings, RewardSpec())
    starts = np.arange(clusters) % world.n_windows
    actions = _record(simulator, judge, starts)

    def repeated(call: Callable[[], Any], count: int = 300) -> float:
        """Nanoseconds per cluster of one call."""
        return 1e9 / best_of(lambda: [call() for _ in range(count)] and count * clusters)

    def replay(observe: bool) -> float:
        def run() -> int:
            for row in actions:
                simulator.step(row, observe=observe)
            return len(actions) * clusters

        return 1e9 / best_of(run, lambda: simulator.reset(starts))

    stages = {"step, no observation": replay(False), "step, score and write the observation": replay(True)}
    simulator.reset(starts)
    for row in actions[: len(actions) // 2]:
        simulator.step(row)
    simulator.observe()
    stages["write the observation again (scored already)"] = repeated(simulator.observe)

    def score() -> None:
        simulator.state.scored[:] = 0
        simulator.observe()

    stages["score with details and write"] = repeated(score)
    nothing = np.full(clusters, -1, dtype=np.int64)
    stages["call that does nothing"] = repeated(lambda: simulator._drive(actions=nothing))
    stages["check of the actions against the mask"] = repeated(lambda: simulator._check(actions[len(actions) // 2]))
    stages["choice from the observation"] = repeated(lambda: judge.act(simulator.observations, simulator.layout))
    stages["play, no scores (k8s_default)"] = 1e9 / play_speed(world, JUDGES["k8s_default"], clusters)
    stages["play, scores without details (greedy_cost)"] = 1e9 / play_speed(world, JUDGES["greedy_cost"], clusters)
    by_batch = {str(count): 1e9 / play_speed(world, JUDGES["k8s_default"], count) for count in (1, 4, 16, 64, 256)}
    return {"ns_per_decision": stages, "ns_per_decision_by_clusters": by_batch}


def _record(simulator: Simulator, judge: Judge, starts: np.ndarray) -> list[np.ndarray]:
    """The judge's actions until the first window ends."""
    simulator.reset(starts)
    simulator.observe()
    actions = []
    while not simulator.done.any():
        actions.append(judge.act(simulator.observations, simulator.layout))
        simulator.step(actions[-1], observe=True)
    return actions[:-1]

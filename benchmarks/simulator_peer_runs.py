"""Benchmark part against public peers: the same jobs through each peer that is installed and through this project's simulator."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.simulator_batch import vec_env_speed
from benchmarks.simulator_peers import PEERS
from benchmarks.simulator_worlds import DAY_S, START, flat_cluster, synthetic_grid
from envs.gym_env import ClusterEnv
from envs.heuristics import JUDGES, Judge
from envs.kernel import Simulator
from envs.reward import RewardSpec
from envs.windows import WindowTables, prepare_jobs
from envs.world import World, build_world
from telemetry.errors import InputError

LENGTH_S, LOAD = 2 * DAY_S, 1.3
BATCHED = "env steps, VecEnv of 64, one thread"
# which of our rows a peer's is held against
AGAINST = {
    "accasim, fifo": "jobs, fifo strict",
    "accasim, easy": "jobs, easy",
    "hpcsim": "jobs, fifo passing",
    "hpcsim_env": "env steps, Gymnasium",
    "gpu_choochoo": "env steps, Gymnasium",
}


def flat_workload(nodes: int, jobs: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Whole-GPU jobs of one node at most, for a flat cluster, more than it gets done in time, so that a queue forms."""
    rng = np.random.default_rng(seed)
    gpus = rng.choice([1, 2, 4, 8], jobs, p=[0.5, 0.25, 0.15, 0.1])
    shape = rng.lognormal(0.0, 1.2, jobs)
    duration_s = np.maximum(60, shape / (shape * gpus).sum() * LOAD * nodes * 8 * LENGTH_S).astype(int)
    estimate_s = (duration_s * rng.uniform(1.0, 2.0, jobs)).astype(int)
    submit_s = np.sort(rng.integers(0, LENGTH_S, jobs))
    columns = {"submit_s": submit_s, "duration_s": duration_s, "estimate_s": estimate_s, "gpus": gpus}
    rows = pd.DataFrame(columns).to_dict("records")
    return {"nodes": nodes, "gpus_per_node": 8, "discipline": "fifo", "seconds": seconds, "jobs": rows}


def flat_world(workload: dict[str, Any], *, spread: bool) -> World:
    """The same jobs in this project's terms, each on one node or, with ``spread``, a gang of one-GPU workers on any nodes."""
    cluster = flat_cluster(workload["nodes"])
    jobs = pd.DataFrame(workload["jobs"])
    frame = pd.DataFrame(
        {
            "job_id": [f"j{k:06d}" for k in range(len(jobs))],
            "submit_time": START + pd.to_timedelta(jobs["submit_s"], unit="s"),
            "duration_s": jobs["duration_s"],
            "requested_duration_s": jobs["estimate_s"],
            "gpus": 1 if spread else jobs["gpus"],
            "workers": jobs["gpus"] if spread else 1,
            "workload_class": "training",
        }
    )
    grid = synthetic_grid(np.random.default_rng(0), 10)
    return build_world(cluster, [WindowTables(START, prepare_jobs(frame, cluster), grid[grid["site"] == "east"], LENGTH_S)])


def peers_part(nodes: int, jobs: int, seconds: float, interpreters: dict[str, str]) -> dict[str, Any]:
    """Units per second of every peer that an interpreter has, ours on the same jobs, and the ratio."""
    workload = flat_workload(nodes, jobs, seconds)
    ours = _ours(workload)
    peers: dict[str, Any] = {}
    for name, peer in PEERS.items():
        runs = {f"{name}, {rule}": rule for rule in ("fifo", "easy")} if name == "accasim" else {name: "fifo"}
        python = _interpreter(peer.module, interpreters)
        for label, discipline in runs.items():
            about = {"counts": peer.counts, "models": peer.models}
            if python is None:
                peers[label] = about | {"not_installed": f"pip install {peer.package}"}
                continue
            row = _run(python, name, workload | {"discipline": discipline})
            if "failed" not in row:
                mine = ours[AGAINST[label]]
                row["units_per_s"] = row["units"] / row["seconds"]
                row |= {"against": AGAINST[label], "ratio": mine["units_per_s"] / row["units_per_s"]}
                if "env steps" in AGAINST[label]:
                    row["ratio_batched"] = ours[BATCHED]["units_per_s"] / row["units_per_s"]
            peers[label] = about | row
    return {"ours": ours, "peers": peers}


def parse_interpreters(values: list[str]) -> dict[str, str]:
    """``module=python`` pairs; a bare path holds for every peer."""
    modules = {peer.module for peer in PEERS.values()}
    pairs: dict[str, str] = {}
    for value in values:
        name, _, path = value.rpartition("=")
        if name and name not in modules:
            raise InputError(f"peer '{name}'", where="--peer-python", allowed=", ".join(sorted(modules)))
        if not Path(path).is_file():
            raise InputError(f"no interpreter at {path}", where="--peer-python", remedy="give the python of an environment with the peer")
        pairs |= {name: path} if name else dict.fromkeys(modules, path)
    return pairs


def _interpreter(module: str, interpreters: dict[str, str]) -> str | None:
    if module in interpreters:
        return interpreters[module]
    return sys.executable if importlib.util.find_spec(module) else None


def _run(python: str, name: str, workload: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workload.json"
        path.write_text(json.dumps(workload))
        script = Path(__file__).with_name("simulator_peers.py")
        done = subprocess.run([python, str(script), name, str(path)], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _ours(workload: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    world = flat_world(workload, spread=True)
    build_s = time.perf_counter() - begin
    # no peer lets nodes sleep
    awake = replace(JUDGES["fifo"].settings, sleep_after_s=-1)
    rules = {"jobs, fifo strict": "strict", "jobs, fifo passing": "free", "jobs, easy": "easy"}
    judges = {name: replace(JUDGES["fifo"], settings=replace(awake, discipline=rule)) for name, rule in rules.items()}
    rows: dict[str, Any] = {name: _jobs_row(world, judge, build_s) for name, judge in judges.items()}
    passing, one_node = judges["jobs, fifo passing"], flat_world(workload, spread=False)
    rows["env steps, Gymnasium"] = {"units_per_s": _gym_speed(one_node, passing)}
    rows[BATCHED] = {"units_per_s": vec_env_speed(one_node, passing, 64, steps=300)}
    return rows


def _jobs_row(world: World, judge: Judge, build_s: float) -> dict[str, float]:
    """Jobs per second of one window, its beginning included; the time to turn the table into a world stands beside it."""
    simulator = Simulator(world, 1, judge.settings, RewardSpec())
    best = np.inf
    for _ in range(4):
        begin = time.perf_counter()
        simulator.reset([0])
        simulator.play(judge.chooser)
        best = min(best, time.perf_counter() - begin)
    totals, count = simulator.totals(), int(world.jobs.count[0])
    wait = totals.job_start_s[0, :count] - world.jobs.submit_s[0, :count]
    return {
        "units_per_s": count / best,
        "units_per_s_with_build": count / (best + build_s),
        "units": count,
        "mean_wait_s": float(wait.mean()),
    }


def _gym_speed(world: World, judge: Judge, steps: int = 3000) -> float:
    """Steps per second of the Gymnasium environment, one cluster, observation and mask in every step."""
    env = ClusterEnv(world, settings=judge.settings)
    best = 0.0
    for _ in range(3):
        env.reset(seed=0)
        begin = time.perf_counter()
        for _ in range(steps):
            _, _, ended, _, _ = env.step(_first_run(env))
            if ended:
                env.reset()
        best = max(best, steps / (time.perf_counter() - begin))
    return best


def _first_run(env: ClusterEnv) -> int:
    """The first allowed run of the pending question."""
    return 1 + int(np.argmax(env.simulator.mask[0, 1:]))

"""Public peers on the benchmark's own jobs, each driven through its documented interface, and this project's simulator beside them.

python -m benchmarks.simulator_peers PEER WORKLOAD.json    (prints JSON; any interpreter that has the peer will do)

The workload is a flat cluster of 8-GPU nodes with whole-GPU jobs, first come first served. What each peer counts and
models is told by ``PEERS``. This file imports nothing but the standard library at its top, so that a peer's own environment can run it.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A public simulator: its distribution and import name, what one counted unit is, and what it leaves out."""

    package: str
    module: str
    counts: str
    models: str


PEERS: dict[str, Peer] = {
    "accasim": Peer(
        "accasim",
        "accasim",
        "jobs through the replay of an SWF file, by its own clock (starting, logging and closing its files not counted)",
        "nodes with cores, a job spread over any of them, FIFO that stops at the first job without room, or its own reading of EASY; "
        "no power, price, wake, outage or action",
    ),
    "hpcsim": Peer(
        "hpcsim",
        "hpcsim",
        "jobs through its event engine, with the minute-by-minute metric samples that it always takes",
        "GPUs and nodes, one node if it can, FIFO that passes blocked jobs by, GPU watts by sample, a renewable supply; "
        "no wake, price, outage or power level",
    ),
    "hpcsim_env": Peer(
        "hpcsim",
        "hpcsim",
        "env steps of its HPCGreenEnv (one job chosen from the queue), observation of 121 x 12 values, its own generated jobs",
        "GPUs as one count (no nodes), GPU watts, a renewable supply; no wake, price, outage or power level",
    ),
    "gpu_choochoo": Peer(
        "gpu-choochoo",
        "gpu_choochoo",
        "env steps (start the first waiting job, or wait a minute), observation of 128 nodes, 10 waiting and 2,048 running jobs",
        "nodes with GPUs and GPU memory, best fit within a node; no power, price, wake, outage or power level",
    ),
}


def run_peer(name: str, workload: dict[str, Any]) -> dict[str, Any]:
    """Drive one peer; ``seconds``, ``units``, ``mean_wait_s`` where it tells it."""
    runner: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "accasim": _accasim,
        "hpcsim": _hpcsim,
        "hpcsim_env": _hpcsim_env,
        "gpu_choochoo": _gpu_choochoo,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        return runner[name](workload)


# ---------------------------------------------------------------- accasim


def _accasim(workload: dict[str, Any]) -> dict[str, Any]:
    # its last release imports a name that Python 3.10 moved
    collections.Mapping = collections.abc.Mapping  # type: ignore[attr-defined]
    from accasim.base.allocator_class import FirstFit
    from accasim.base.scheduler_class import EASYBackfilling, FirstInFirstOut
    from accasim.base.simulator_class import Simulator

    logging.getLogger("accasim").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        swf, system = Path(folder) / "jobs.swf", Path(folder) / "system.json"
        rows = [
            f"{k} {job['submit_s']} -1 {job['duration_s']} {job['gpus']} -1 -1 {job['gpus']} {job['estimate_s']} -1 1 1 1 1 1 1 -1 -1"
            for k, job in enumerate(workload["jobs"], 1)
        ]
        swf.write_text("; UnixStartTime: 0\n" + "\n".join(rows) + "\n")
        groups = {"g0": {"core": workload["gpus_per_node"]}}
        system.write_text(
            json.dumps(
                {
                    "groups": groups,
                    "resources": {"g0": workload["nodes"]},
                    "equivalence": {"processor": {"core": 1}},
                    "start_time": 0,
                }
            )
        )
        dispatcher = (EASYBackfilling if workload["discipline"] == "easy" else FirstInFirstOut)(FirstFit())
        begin = time.perf_counter()
        simulator = Simulator(
            str(swf), str(system), dispatcher, RESULTS_FOLDER_PATH=folder, statistics_output=True, show_statistics=False, LOG_LEVEL="ERROR"
        )
        simulator.start_simulation()
        seconds = time.perf_counter() - begin
        told = dict(line.split(": ", 1) for line in (Path(folder) / "stats-jobs.swf").read_text().splitlines() if ": " in line)
        return {
            "seconds": float(told["Simulation time"].split()[0]),
            "seconds_with_files": seconds,
            "units": simulator.dispatched_jobs,
            "mean_wait_s": float(told["Avg. waiting times"]),
        }


# ---------------------------------------------------------------- hpcsim


def _hpcsim(workload: dict[str, Any]) -> dict[str, Any]:
    from hpcsim import Cluster, GPUType, SimulationEngine, TrainingJob, create_scheduler
    from hpcsim.cluster.cluster import ClusterConfig, NodeSpec

    node = NodeSpec(gpu_type=GPUType.V100, num_nodes=workload["nodes"], gpus_per_node=workload["gpus_per_node"])
    cluster = Cluster(ClusterConfig("flat", nodes=[node]))
    jobs = []
    for k, job in enumerate(workload["jobs"]):
        # without an architecture k GPUs do k iterations per second
        work = job["duration_s"] * job["gpus"]
        jobs.append(
            TrainingJob(job_id=f"j{k}", submit_time=float(job["submit_s"]), arch=None, num_iterations=work, num_gpus_requested=job["gpus"])
        )
    last = max(job["submit_s"] for job in workload["jobs"]) + 40 * max(job["duration_s"] for job in workload["jobs"])
    engine = SimulationEngine(cluster, create_scheduler("fifo", cluster), jobs, max_sim_time=last)
    # its clock goes on sampling until max_sim_time: stop it when the last job has ended
    complete = engine._on_complete

    def on_complete(event: Any) -> bool:
        freed = complete(event)
        if len(engine._completed) == len(jobs):
            engine.max_time = event.time
        return freed

    engine._on_complete = on_complete
    begin = time.perf_counter()
    result = engine.run()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "units": len(result.completed_jobs), "mean_wait_s": result.avg_queue_time()}


def _hpcsim_env(workload: dict[str, Any]) -> dict[str, Any]:
    from hpcsim.rl.env import EnvConfig, HPCGreenEnv

    env = HPCGreenEnv(EnvConfig(seed=1, seq_len=10**9))
    env.reset()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < workload["seconds"]:
        done = env.step(int(env.action_mask1().argmax()))[2]
        steps += 1
        if done:
            env.reset()
    return {"seconds": time.perf_counter() - begin, "units": steps}


# ---------------------------------------------------------------- gpu-choochoo


def _gpu_choochoo(workload: dict[str, Any]) -> dict[str, Any]:
    from gpu_choochoo.envs.scheduler_env import GPUSchedulerEnv

    size = workload["gpus_per_node"]
    nodes = [{"node_id": f"n{k}", "gpu_type": "V100", "total_gpus": size, "total_vram_gb": 32.0 * size} for k in range(workload["nodes"])]
    jobs = [
        {
            "job_id": f"j{k}",
            "arrival_time": job["submit_s"],
            "gpus_required": job["gpus"],
            "duration_sec": job["duration_s"],
            "vram_required_gb": 1.0,
        }
        for k, job in enumerate(workload["jobs"])
    ]
    env = GPUSchedulerEnv(nodes, jobs, max_nodes=workload["nodes"], reward_type="utilization", max_steps=10**9)
    env.reset()
    begin, steps, ended = time.perf_counter(), 0, False
    while not ended and time.perf_counter() - begin < workload["seconds"]:
        ended = env.step(1 if env.cluster.pending_queue else 0)[2]
        steps += 1
    seconds = time.perf_counter() - begin
    started = len(env.cluster.completed_jobs) + sum(len(node.running_jobs) for node in env.cluster.nodes.values())
    return {"seconds": seconds, "units": steps, "jobs_started": started, "finished": ended}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(run_peer(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))))

"""Benchmark parts of scale: a month of 100,000 jobs under every heuristic, flatness of the cost per decision, a million jobs at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.simulator_worlds import DAY_S, synthetic_cluster, synthetic_world
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES, Judge
from envs.kernel import Simulator
from envs.packed import pack_world, state_bytes
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.world import World

MONTH_DAYS = 30
LOADS = (0.7, 1.1)
ORDERS = ("f1", "wfp3", "unicep")
WAITING = (100, 1_000, 10_000, 100_000)
CHUNK, MOST_CHUNKS = 16, 1000
MILLION = """
import sys
from benchmarks.simulator_scale import million_child
million_child(int(sys.argv[1]), sys.argv[2].split(","))
"""


def _judge_with(order: str, discipline: str) -> Judge:
    base = JUDGES["easy"]
    return replace(base, name=f"{order}, {discipline}", settings=replace(base.settings, queue_order=order, discipline=discipline))


def _simulator(world: World, judge: Judge) -> Simulator:
    simulator = Simulator(world, 1, judge.settings, RewardSpec())
    simulator.reset([0])
    return simulator


# ---------------------------------------------------------------- a month


def month_part(nodes: int, jobs: int, patience_s: float) -> dict[str, Any]:
    """Seconds of a month under every judge and under the orders of the archives' literature; one window, hence one thread."""
    result: dict[str, Any] = {}
    for load in LOADS:
        world = synthetic_world(nodes, jobs, 1, length_s=MONTH_DAYS * DAY_S, load=load, by_speed=True)
        judges = [*JUDGES.values(), *(_judge_with(order, discipline) for order in ORDERS for discipline in ("free", "easy"))]
        result[f"load={load}"] = {judge.name: _month(world, judge, nodes, patience_s) for judge in judges}
    return result


def _month(world: World, judge: Judge, nodes: int, patience_s: float) -> dict[str, Any]:
    begin = time.perf_counter()
    simulator = _simulator(world, judge)
    reset_s = time.perf_counter() - begin
    longest, decisions, limit = 0, 0, 0
    while not simulator.done.all() and time.perf_counter() - begin < patience_s:
        limit += 5_000
        simulator.play(judge.chooser, np.array([limit]))
        longest = max(longest, int(simulator.state.waiting[0]))
    seconds = time.perf_counter() - begin
    decisions = int(simulator.state.decisions[0])
    totals = simulator.totals()
    done = bool(simulator.done.all())
    gpus = nodes * 8
    return {
        "seconds": seconds,
        "finished": done,
        "reset_s": reset_s,
        "decisions": decisions,
        "decisions_per_s": decisions / seconds,
        "most_waiting_seen": longest,
        "busy_share": float(totals.busy_gpu_s[0]) / (gpus * float(totals.end_s[0])),
        "end_day": float(totals.end_s[0]) / DAY_S,
    }


# ---------------------------------------------------------------- flatness


def flat_part(nodes: int, jobs: int, waiting: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Nanoseconds per decision by the share of finished jobs, and by the number of waiting ones."""
    return {"by_finished": _by_finished(nodes, jobs), "by_waiting": _by_waiting(nodes, waiting, seconds)}


def _by_finished(nodes: int, jobs: int) -> dict[str, Any]:
    """Cost of each tenth of the decisions of one long window at a load of 0.7, whose queue is as long at its end as at its beginning."""
    world = synthetic_world(nodes, jobs, 1, length_s=MONTH_DAYS * DAY_S, load=0.7, by_speed=True)
    result: dict[str, Any] = {}
    for name in ("k8s_default", "easy", "lookahead"):
        judge = JUDGES[name]
        whole = _simulator(world, judge)
        whole.play(judge.chooser)
        edges = np.linspace(0, int(whole.state.decisions[0]), 11).astype(int)[1:]
        best = np.full(10, np.inf)
        for _ in range(3):
            simulator = _simulator(world, judge)
            for tenth, edge in enumerate(edges):
                before, begin = int(simulator.state.decisions[0]), time.perf_counter()
                simulator.play(judge.chooser, np.array([edge]))
                best[tenth] = min(best[tenth], 1e9 * (time.perf_counter() - begin) / (int(simulator.state.decisions[0]) - before))
        result[name] = {"ns_per_decision_by_tenth": best.round(1).tolist(), "last_over_second": float(best[-1] / best[1])}
    return result


def _by_waiting(nodes: int, waiting: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """A cluster that is full, ``w`` jobs that wait, and as much new work as it gets done."""
    result: dict[str, Any] = {}
    for count in waiting:
        world = _crowd(nodes, count)
        rows: dict[str, Any] = {}
        for discipline in ("free", "strict", "easy"):
            for order in ("priority", "sjf", "wfp3"):
                rows[f"{discipline}, {order}"] = _crowd_cost(world, _judge_with(order, discipline), count, seconds)
        result[str(count)] = rows
    names = list(result[str(waiting[0])])
    decades = np.log10(waiting[-1] / waiting[0])
    growth = {
        name: float(
            np.log10(result[str(waiting[-1])][name]["ns_per_decision"] / result[str(waiting[0])][name]["ns_per_decision"]) / decades
        )
        for name in names
        if decades > 0
    }
    return {"waiting": result, "exponent": growth}


def _crowd(nodes: int, count: int) -> World:
    """``count`` jobs and what fills the cluster at second 0, then an even stream at a load of 1 for as long as it takes."""
    from benchmarks.simulator_worlds import START, capacity, synthetic_grid, synthetic_jobs
    from envs.windows import WindowTables, prepare_jobs
    from envs.world import build_world

    cluster = synthetic_cluster(nodes)
    stream = 20_000
    fill = int(cluster.total_gpus / 2.2)
    total = count + fill + stream
    rng = np.random.default_rng(count)
    mean_s = 4 * 3600
    frame = synthetic_jobs(cluster, rng, total, DAY_S, mean_s * 2.1 * total)
    rate = capacity(cluster) / (mean_s * 2.1 * 1.05)
    submit_s = np.concatenate([np.zeros(count + fill), np.arange(stream) / rate]).astype(np.int64)
    frame["submit_time"] = START + np.array(submit_s, dtype="timedelta64[s]")
    frame["preemptible"] = 0.0
    days = int(submit_s[-1] // DAY_S) + 7
    return build_world(cluster, [WindowTables(START, prepare_jobs(frame, cluster), synthetic_grid(rng, days), int(submit_s[-1]) + 1)])


def _crowd_cost(world: World, judge: Judge, count: int, seconds: float) -> dict[str, float]:
    """Median nanoseconds per decision of chunks made while between half and twice ``count`` jobs wait, over at least ``seconds``."""
    costs: list[float] = []
    low, high, begin = 1 << 62, 0, time.perf_counter()
    while not costs or (time.perf_counter() - begin < seconds and len(costs) < MOST_CHUNKS):
        simulator = _simulator(world, judge)
        while int(simulator.state.waiting[0]) > count:
            simulator.play(judge.chooser, simulator.state.decisions + CHUNK)
        while len(costs) < MOST_CHUNKS and (not costs or time.perf_counter() - begin < seconds):
            before, start = int(simulator.state.decisions[0]), time.perf_counter()
            simulator.play(judge.chooser, simulator.state.decisions + CHUNK)
            made, now = int(simulator.state.decisions[0]) - before, int(simulator.state.waiting[0])
            if made < CHUNK or not count / 2 <= now <= count * 2:
                break
            costs.append(1e9 * (time.perf_counter() - start) / made)
            low, high = min(low, now), max(high, now)
        if high == 0 and time.perf_counter() - begin > seconds:
            return {"ns_per_decision": float("nan"), "decisions": 0, "least_waiting": 0, "most_waiting": 0}
    return {"ns_per_decision": float(np.median(costs)), "decisions": len(costs) * CHUNK, "least_waiting": low, "most_waiting": high}


# ---------------------------------------------------------------- a million jobs at one second


def million_part(jobs: int, names: tuple[str, ...] = ("k8s_default", "fifo", "easy", "sjf", "lookahead")) -> dict[str, Any]:
    """A million jobs that are all submitted at second 0 of gen1000, in a process of its own for its memory."""
    done = subprocess.run([sys.executable, "-c", MILLION, str(jobs), ",".join(names)], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def million_child(jobs: int, names: list[str]) -> None:
    """Print the result as JSON."""
    begin = time.perf_counter()
    cluster = load_cluster("gen1000")
    world = synthetic_world(0, jobs, 1, length_s=MONTH_DAYS * DAY_S, load=1.0, by_speed=True, span_s=0, cluster=cluster)
    built_s = time.perf_counter() - begin
    probe = Simulator(world, 1, PolicySettings(), RewardSpec())
    result: dict[str, Any] = {
        "jobs": jobs,
        "build_s": built_s,
        "state_gb": state_bytes(probe.packed_state) / 1e9,
        "packed_world_gb": sum(array.nbytes for array in pack_world(world)) / 1e9,
        "runs": {},
    }
    for name in names:
        judge = JUDGES[name]
        begin = time.perf_counter()
        simulator = _simulator(world, judge)
        reset_s = time.perf_counter() - begin
        simulator.play(judge.chooser)
        totals = simulator.totals()
        result["runs"][name] = {
            "seconds": time.perf_counter() - begin,
            "reset_s": reset_s,
            "decisions": int(totals.decisions[0]),
            "end_day": float(totals.end_s[0]) / DAY_S,
            "jobs_ended": int((totals.job_end_s[0] >= 0).sum()),
        }
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(result))

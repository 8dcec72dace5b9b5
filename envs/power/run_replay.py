"""A measured training run as a job of the simulator: one pool, one gang, the run's own duration, and idle nodes around it.

The world has PUE 1, so the site's energy is that of the nodes, as a node meter has it. The job is a gang of one whole node per worker. A
one-second job that uses nothing (``gpu_utilization`` 0) marks the end of the window, since a window ends with its last job.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.power.curves import CurvePoint, curve_table, levels_for, points_of
from envs.power.runs import JOULES_PER_KWH, NodePower, RunLog, startup_s
from envs.reward import RewardSpec
from envs.state import EpisodeTotals
from envs.windows import WindowTables, constant_grid, prepare_jobs
from envs.world import build_world
from telemetry.classes import CLASS_INDEX
from telemetry.errors import InputError

START = pd.Timestamp("2024-01-01", tz="UTC")
MODEL = "measured node"
SITE = "site"


@dataclass(frozen=True)
class Replay:
    """What the simulator says of a run.

    Attributes:
        window_kwh: energy of the site over the measured window.
        timed_kwh: the part of it while the timed job ran.
        seconds: length of the window.
        job_s: begin and end of the timed job.
        startup_begin_s: when the start-up job began; None without one.
    """

    window_kwh: float
    timed_kwh: float
    seconds: int
    job_s: tuple[int, int]
    startup_begin_s: int | None


def replay(run: RunLog, power: NodePower, *, gpu_idle_w: float, with_startup: bool = False) -> Replay:
    """Run the measured run as a job on nodes of ``power``.

    Args:
        gpu_idle_w: see `NodePower.pool`; the result does not depend on it.
        with_startup: the start-up is a job of its own, at ``power.startup_w``; else nodes idle until the timed part.
    """
    pool = power.pool("pool", SITE, MODEL, len(run.nodes), gpu_idle_w)
    curves = points_of(power.curves(MODEL, gpu_idle_w), "fitted curves")
    return replay_on(run, pool, power.startup_utilization if with_startup else None, curves=curves)


def replay_on(
    run: RunLog,
    pool: PoolSpec,
    startup_utilization: float | None = None,
    workload_class: str = "training",
    curves: tuple[CurvePoint, ...] = (),
) -> Replay:
    """Run the measured run as a job on a pool of its size, by ``curves`` of one's own or the committed ones."""
    if pool.nodes != len(run.nodes):
        raise InputError(f"a pool of {pool.nodes} nodes", where=f"replay of {run.run}", allowed=f"the run's {len(run.nodes)} nodes")
    seconds, job, startup = _schedule(run, startup_utilization is not None)
    jobs = [(0, "run", job, 1.0)]
    if startup is not None:
        jobs.append((0, "startup", (startup, job[0]), startup_utilization))
    if job[1] < seconds:
        jobs.append((1, "end", (seconds - 1, seconds), 0.0))
    speed = float(
        levels_for(pool.gpu_model, (1.0,), curve_table(curves) if curves else None)[0][0, CLASS_INDEX[workload_class]]
    )  # durations are on the reference GPU
    table = pd.DataFrame(
        {
            "job_id": [name for _, name, _, _ in jobs],
            "submit_time": [START + pd.Timedelta(seconds=begin) for _, _, (begin, _), _ in jobs],
            "duration_s": [max(1, floor((end - begin) * speed + 1e-9)) for _, _, (begin, end), _ in jobs],
            "gpus": [1 if marker else pool.gpus_per_node for marker, _, _, _ in jobs],
            "workers": [1 if marker else pool.nodes for marker, _, _, _ in jobs],
            "workload_class": workload_class,
            "gpu_utilization": [use for _, _, _, use in jobs],
        }
    )
    totals, ids = _run(table, pool, seconds, curves)
    row = ids.index("run")
    began, ended = int(totals.job_start_s[0, row]), int(totals.job_end_s[0, row])
    if (began, ended) != job or int(totals.end_s[0]) != seconds:
        raise InputError(
            f"ran {began} .. {ended} s instead of {job[0]} .. {job[1]} s",
            where=f"replay of {run.run}",
            allowed="a speed of 1 or more for the model and class",
        )
    return Replay(float(totals.energy_kwh[0, 0]), float(totals.job_energy_kwh[0, row]), seconds, job, startup)


def _schedule(run: RunLog, with_startup: bool) -> tuple[int, tuple[int, int], int | None]:
    """Whole seconds of the window, the timed job and the start-up's begin."""
    (begin, end), (start, stop) = run.window_s, run.timed_s
    seconds, first = round(end - begin), round(start - begin)
    last = min(seconds, first + max(1, round(stop - start)))
    if last == seconds - 1:  # the marker needs the second before the end for itself
        last = seconds
    opened = round(startup_s(run)[0] - begin)
    return seconds, (first, last), opened if with_startup and opened < first else None


def _run(jobs: pd.DataFrame, pool: PoolSpec, seconds: int, curves: tuple[CurvePoint, ...]) -> tuple[EpisodeTotals, list[str]]:
    site = SiteSpec(SITE, pue_base=1.0, pue_per_c=0.0)
    cluster = ClusterSpec("replay", (site,), (pool,), level_fractions=(1.0,), curves=curves)
    grid = constant_grid([SITE], START, START + pd.Timedelta(seconds=seconds + 7200))
    world = build_world(cluster, [WindowTables(START, prepare_jobs(jobs, cluster), grid, seconds)])
    totals = run_policy(world, JUDGES["k8s_default"], RewardSpec())  # runs a job at once and lets no node sleep
    return totals, list(world.job_ids[0])


def replayed_watts(run: RunLog, power: NodePower, result: Replay) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the replay for a plot: seconds of the window ``[N + 1]`` and node watts ``[N]`` between them."""
    startup_w = power.idle_w + power.startup_utilization * (power.active_w - power.idle_w)
    steps = [(result.job_s[0], power.idle_w), (result.job_s[1], power.active_w)]
    if result.startup_begin_s is not None:
        steps = [(result.startup_begin_s, power.idle_w), (result.job_s[0], startup_w), steps[1]]
    edges, watts = [0], []
    for until, level in [*steps, (result.seconds, power.idle_w)]:
        if until > edges[-1]:
            edges.append(until)
            watts.append(level)
    total = sum(w * (b - a) for w, a, b in zip(watts, edges[:-1], edges[1:], strict=True)) * len(run.nodes) / JOULES_PER_KWH
    assert abs(total - result.window_kwh) < 1e-6 * max(1.0, total), "the plotted steps are what was simulated"
    return np.array(edges, dtype=float), np.array(watts, dtype=float)

"""Drawn populations of jobs: what a policy for clusters that nobody has seen is trained and tuned on.

A population: jobs of Philly's first three weeks from some of its large virtual clusters, run times stretched, thinned or copied to a load
between 0.12 and 1.0, moved by hours, under prices and intensities of 2021. Nothing of it is in the held-out weeks of ``agent_data``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.agent_data import WEEK, grid_of
from benchmarks.simulator_worlds import capacity
from envs.cluster import ClusterSpec
from envs.windows import WindowTables, cut_windows, prepare_jobs
from envs.world import World, build_world
from envs.worlds.transform import scale_load
from pipelines.stages.real_traces import LONGEST_JOB_S, PHILLY, PHILLY_START, REQUEST_SEED, THROUGHPUTS
from telemetry.readers.public_traces import read_philly_gavel

START = pd.Timestamp(PHILLY_START, tz="UTC")
WEEKS, LEAST_JOBS, LOADS, STRETCH = 3, 100, (0.12, 1.0), 0.5
GRID_NAMES, WEEKS_BACK = ("CAISO", "NYIS", "CAISO+NYIS"), (14, 60)
WINDOW_S = 48 * 3600


def populations(
    root: Path,
    cluster: ClusterSpec,
    count: int,
    windows: int,
    seed: int,
    requests: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> World:
    """One world of all windows of :func:`drawn`, those of one population together."""
    return build_world(cluster, [window for one in drawn(root, cluster, count, windows, seed, requests) for window in one])


def drawn(
    root: Path,
    cluster: ClusterSpec,
    count: int,
    windows: int,
    seed: int,
    requests: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> list[list[WindowTables]]:
    """``windows`` windows of each of ``count`` populations; ``requests`` may give the jobs other requested times before they are drawn."""
    jobs, _ = read_philly_gavel(
        root / PHILLY, root / THROUGHPUTS, start=PHILLY_START, max_duration_s=LONGEST_JOB_S, request_seed=REQUEST_SEED
    )
    jobs["workload_class"] = np.where(jobs["gpus"] * jobs["workers"] <= 1, "fine_tuning", "training")
    jobs = jobs[jobs["submit_time"] < START + WEEKS * WEEK].reset_index(drop=True)
    jobs = jobs if requests is None else requests(jobs)
    grids = {name: grid_of(root, name, tuple(site.name for site in cluster.sites))[0] for name in GRID_NAMES}
    return [population(jobs, grids, cluster, windows, 1000 * seed + k) for k in range(count)]


def population(jobs: pd.DataFrame, grids: dict[str, pd.DataFrame], cluster: ClusterSpec, count: int, seed: int) -> list[WindowTables]:
    """``count`` windows of one population."""
    rng = np.random.default_rng(seed)
    sizes = jobs["team"].value_counts()
    teams = sorted(sizes[sizes >= LEAST_JOBS].index)
    some = jobs[jobs["team"].isin(rng.choice(teams, int(rng.integers(1, len(teams) + 1)), replace=False))]
    stretch, moved = float(np.exp(rng.uniform(-STRETCH, STRETCH))), pd.Timedelta(hours=int(rng.integers(24)))
    into = (some["submit_time"] - START + moved) % pd.Timedelta(weeks=WEEKS)
    some = some.assign(
        duration_s=np.minimum(some["duration_s"] * stretch, LONGEST_JOB_S),
        requested_duration_s=some["requested_duration_s"] * stretch,
        submit_time=START + into,
    ).sort_values(["submit_time", "job_id"], ignore_index=True)
    load = float(np.exp(rng.uniform(*np.log(LOADS))))
    offered = (some["duration_s"] * some["gpus"] * some["workers"]).sum() / 3600 / (WEEKS * 7 * 24 * capacity(cluster))
    some = scale_load(some, load / offered, seed)
    grid, back = grids[str(rng.choice(list(grids)))], WEEK * int(rng.integers(*WEEKS_BACK))
    grid = grid.assign(time=grid["time"] + back)
    grid = grid[(grid["time"] >= START - 2 * WEEK) & (grid["time"] < START + (WEEKS + 2) * WEEK)].reset_index(drop=True)
    return cut_windows(prepare_jobs(some, cluster), grid, WINDOW_S, count, seed, START, START + WEEKS * WEEK)

"""Power of a public job trace at every level, replayed: real arrivals and GPU counts, measured curves, our simulator's placement.

Nobody measured these watts. Jobs of four Philly virtual clusters (``public_traces.read_philly_gavel``, whose flaws hold here too) run in
the compiled simulator, each virtual cluster in a pool of its own with 8-GPU V100 nodes, first come first served as far as they fit, at
full power, on nodes that never sleep; a job draws what the committed curves measured for its class. What the watts do over time is thus
what jobs do; noise of boards, of utilisation and of meters is not in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.events import events_frame
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.power.curves import levels_for
from envs.replay.facts import Facts, facts_of
from envs.replay.levels import LevelPower, level_power
from envs.reward import RewardSpec
from envs.windows import WindowTables, constant_grid, prepare_jobs
from envs.world import build_world
from models.power import PowerCurve
from pipelines.stages.real_traces import LONGEST_JOB_S, PHILLY, PHILLY_START, SPAN_DAYS, THROUGHPUTS
from telemetry.classes import CLASS_INDEX
from telemetry.readers.public_traces import read_philly_gavel
from telemetry.series import SeriesConfig, gpu_demand

DAY_S = 86_400
POLICY = "k8s_default"
# Virtual cluster -> site and nodes; room for 1.3 times its mean demand or its largest gang, whichever is more.
VIRTUAL_CLUSTERS: dict[str, tuple[str, int]] = {
    "0e4a51": ("south", 4),
    "103959": ("south", 2),
    "b436b2": ("north", 7),
    "ed69ec": ("north", 2),
}


def replayed_pool(vc: str) -> PoolSpec:
    """The pool that stands for a virtual cluster."""
    site, nodes = VIRTUAL_CLUSTERS[vc]
    return PoolSpec(f"philly-{vc}", site, "V100", nodes, 8, node_idle_w=250.0, gpu_idle_w=30.0, cpu_w_per_gpu=20.0)


def replayed_levels(root: Path, freq: str) -> tuple[LevelPower, pd.DataFrame]:
    """Power at all levels (``envs.replay.levels``) and ``gpu_demand/<pool>`` (running plus waiting), from the same replay."""
    jobs, _ = read_philly_gavel(
        root / PHILLY, root / THROUGHPUTS, start=PHILLY_START, vcs=tuple(VIRTUAL_CLUSTERS), max_duration_s=LONGEST_JOB_S, request_seed=0
    )
    start = pd.Timestamp(PHILLY_START, tz="UTC")
    jobs = jobs[jobs["submit_time"] < start + pd.Timedelta(days=SPAN_DAYS)]
    jobs["workload_class"] = np.where(jobs["gpus"] * jobs["workers"] <= 1, "fine_tuning", "training")
    power, demand, parents = [], [], {}
    for vc in VIRTUAL_CLUSTERS:
        events, facts = _replay(jobs[jobs["team"] == vc], replayed_pool(vc), start)
        levels = level_power(events, facts, freq)
        power.append(levels.frame)
        parents |= levels.parents
        demand.append(_demand(events, facts, freq))
    frame = pd.concat(power, ignore_index=True)
    end = start.tz_localize(None) + pd.Timedelta(days=SPAN_DAYS)
    frame = frame[frame["ds"] <= end].groupby(["unique_id", "ds"], as_index=False)["y"].sum()  # sites have pools of several replays
    loads = pd.concat(demand, ignore_index=True)
    return LevelPower(frame, parents), loads[loads["ds"] <= end].reset_index(drop=True)


def _replay(jobs: pd.DataFrame, pool: PoolSpec, start: pd.Timestamp) -> tuple[pd.DataFrame, Facts]:
    """Event log and facts of one pool's jobs."""
    cluster = ClusterSpec("replayed", (SiteSpec(pool.site, pue_base=1.0, pue_per_c=0.0),), (pool,), level_fractions=(1.0,))
    grid = constant_grid([pool.site], start, start + pd.Timedelta(days=2 * SPAN_DAYS))
    world = build_world(cluster, [WindowTables(start, prepare_jobs(jobs, cluster), grid, SPAN_DAYS * DAY_S)])
    policy, reward = JUDGES[POLICY], RewardSpec()
    totals = run_policy(world, policy, reward, event_log=True)
    return events_frame(world, 0, totals.events[0]), facts_of(world, 0, POLICY, policy.settings, reward)


def _demand(events: pd.DataFrame, facts: Facts, freq: str) -> pd.DataFrame:
    """GPUs wanted, as ``telemetry.series.gpu_demand`` counts them from a jobs table."""
    ends = events[events["event"] == "end"].groupby("job")["time_s"].last()
    seconds = facts.jobs.index.to_series().map(ends)
    jobs = pd.DataFrame(
        {
            "submit_time": facts.window_start + pd.to_timedelta(facts.jobs["submit_s"], unit="s"),
            "end_time": facts.window_start + pd.to_timedelta(seconds, unit="s"),
            "gpus": facts.jobs["gpu_milli"] / 1000.0,
            "workers": facts.jobs["workers"],
            "pool": facts.pools["name"].iloc[0],
        }
    )
    end = facts.window_start + pd.Timedelta(days=SPAN_DAYS)
    return gpu_demand(jobs, SeriesConfig(freq=freq), start=facts.window_start + pd.Timedelta(freq), end=end).frame


def replayed_curves(levels: LevelPower) -> dict[str, PowerCurve]:
    """Curve of each pool, and of each node as its equal share of the pool, on the pool's demand: V100 watts of the training class."""
    active_w = float(levels_for("V100", (1.0,))[1][0][CLASS_INDEX["training"]])
    curves = {}
    for vc in VIRTUAL_CLUSTERS:
        pool = replayed_pool(vc)
        idle_w = pool.node_idle_w + pool.gpus_per_node * pool.gpu_idle_w
        per_gpu_w = active_w - pool.gpu_idle_w + pool.cpu_w_per_gpu
        load, gpus = f"gpu_demand/{pool.name}", float(pool.nodes * pool.gpus_per_node)
        curves[f"power/pool/{pool.name}"] = PowerCurve(load, pool.nodes * idle_w, per_gpu_w, gpus)
        for child, parent in levels.parents.items():
            if parent == f"power/pool/{pool.name}":
                curves[child] = PowerCurve(load, idle_w, per_gpu_w / pool.nodes, gpus)
    return curves


def replayed_bounds(levels: LevelPower) -> dict[str, tuple[float, float]]:
    """Watts that no series can leave: nodes idle (they never sleep), and every GPU at the strongest class."""
    most_w = float(levels_for("V100", (1.0,))[1][0].max())
    bounds: dict[str, tuple[float, float]] = {}
    pools = {f"power/pool/{pool.name}": pool for pool in map(replayed_pool, VIRTUAL_CLUSTERS)}
    for uid in sorted(levels.parents):
        if not uid.startswith(("power/gpu/", "power/host/")):
            continue
        node = levels.parents[uid]
        above = [node, levels.parents[node], levels.parents[levels.parents[node]]]
        pool = pools[above[1]]
        pair = (
            (pool.gpu_idle_w, most_w) if "/gpu/" in uid else (pool.node_idle_w, pool.node_idle_w + pool.gpus_per_node * pool.cpu_w_per_gpu)
        )
        for name in (uid, *above):
            low, high = bounds.get(name, (0.0, 0.0))
            bounds[name] = (low + pair[0], high + pair[1])
    return bounds

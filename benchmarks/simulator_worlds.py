"""Synthetic worlds of the simulator's benchmark: a plain one, one for each feature of docs/simulator.md, and all features at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.power.curves import levels_for
from envs.windows import WindowTables, prepare_jobs
from envs.world import World, build_world
from telemetry.classes import WORKLOAD_CLASSES

START = pd.Timestamp("2024-01-08", tz="UTC")
DAY_S = 86_400
MODELS = ("V100", "A100", "A40", "H100")
SITES = ("east", "west")
FEATURES: tuple[str, ...] = ("cpus", "slices", "budgets", "outages", "checkpoints", "data", "leases")
REVIEW_S = 1800
CPUS_PER_NODE, MEMORY_GIB_PER_NODE = 96.0, 1024.0
NODE_MTBF_S, REPAIR_S = 10 * DAY_S, 4 * 3600
SERVICES, LEASE_SHARE = 4, 0.2


def synthetic_cluster(nodes: int, features: frozenset[str] = frozenset()) -> ClusterSpec:
    """Four pools of 8-GPU nodes at two sites; with ``budgets`` racks, pools and sites may commit 80 to 90 % of their highest watts."""
    pools = []
    for i, model in enumerate(MODELS):
        pool = PoolSpec(f"pool{i}", SITES[i % 2], model, nodes // 4, 8)
        if "cpus" in features:
            pool = replace(pool, cpus_per_node=CPUS_PER_NODE, memory_gib_per_node=MEMORY_GIB_PER_NODE, cpu_w_per_cpu=2.0)
        if "slices" in features:
            pool = replace(pool, mig_slices=7 if model in ("A100", "H100") else 0, gpu_context_w=25.0)
        if "budgets" in features:
            full = _full_node_w(pool)
            pool = replace(pool, nodes_per_rack=4, rack_budget_w=4 * full * 0.9, budget_w=pool.nodes * full * 0.85)
        pools.append(pool)
    sites = []
    for name in SITES:
        here = sum(pool.nodes * _full_node_w(pool) for pool in pools if pool.site == name)
        sites.append(SiteSpec(name, budget_w=0.8 * here if "budgets" in features else 0.0))
    return ClusterSpec("benchmark", tuple(sites), tuple(pools))


def flat_cluster(nodes: int) -> ClusterSpec:
    """One pool of 8-GPU nodes at one level, the cluster that the public peers model."""
    pool = PoolSpec("pool0", "east", "V100", nodes, 8)
    return ClusterSpec("flat", (SiteSpec("east"),), (pool,), level_fractions=(1.0,))


def _full_node_w(pool: PoolSpec) -> float:
    _, power = levels_for(pool.gpu_model, (1.0,))
    return pool.node_idle_w + pool.gpus_per_node * (float(np.max(power)) + pool.cpu_w_per_gpu)


def capacity(cluster: ClusterSpec) -> float:
    """Reference GPUs that the cluster is worth at full power, on average over the workload classes."""
    return sum(pool.nodes * pool.gpus_per_node * float(np.mean(levels_for(pool.gpu_model, (1.0,))[0])) for pool in cluster.pools)


def synthetic_jobs(
    cluster: ClusterSpec,
    rng: np.random.Generator,
    count: int,
    length_s: int,
    gpu_seconds: float,
    features: frozenset[str] = frozenset(),
    span_s: int | None = None,
) -> pd.DataFrame:
    """Jobs of lognormal length, a fifth of them below one GPU and one in twenty a gang of two.

    Args:
        gpu_seconds: reference GPU seconds that one worker of every job asks for, together.
        span_s: submissions fall in ``[0, span_s)``; the whole window by default, all at second 0 with 0.
    """
    gpus = rng.choice([0.5, 1, 2, 4, 8], count, p=[0.2, 0.4, 0.2, 0.1, 0.1])
    shape = rng.lognormal(0.0, 1.2, count)
    duration_s = np.maximum(60, shape / (shape * gpus).sum() * gpu_seconds).round()
    span = length_s if span_s is None else span_s
    submit_s = np.sort(rng.integers(0, max(1, span), count))
    frame = pd.DataFrame(
        {
            "job_id": [f"j{i:07d}" for i in range(count)],
            "submit_time": START + pd.to_timedelta(submit_s, unit="s"),
            "duration_s": duration_s,
            "requested_duration_s": duration_s * rng.uniform(0.8, 2.0, count),
            "gpus": gpus,
            "workers": rng.choice([1, 2], count, p=[0.95, 0.05]),
            "workload_class": rng.choice(WORKLOAD_CLASSES, count),
        }
    )
    if "cpus" in features:
        frame["cpus"] = np.maximum(1, gpus * rng.choice([4, 8, 12], count))
        frame["memory_gib"] = np.maximum(8, gpus * rng.choice([32, 96, 128], count))
    if "slices" in features:
        frame["gpus"] = np.where(gpus < 1, rng.choice([0.1, 0.25, 0.4, 0.5], count), gpus)
        frame["gpu_utilization"] = rng.choice([0.4, 0.7, 1.0], count)
    if "data" in features:
        frame["data_gib"] = np.where(rng.random(count) < 0.5, rng.lognormal(3.0, 1.5, count), 0.0)
        frame["data_site"] = rng.choice(SITES, count)
    return frame


def synthetic_grid(rng: np.random.Generator, days: int) -> pd.DataFrame:
    """Hourly prices and carbon with a daily rhythm at both sites, from two days before the window on."""
    times = pd.date_range(START - pd.Timedelta(days=2), START + pd.Timedelta(days=days), freq="1h")
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
        for k, site in enumerate(SITES)
    ]
    return pd.concat(rows)


def synthetic_outages(cluster: ClusterSpec, rng: np.random.Generator, length_s: int) -> pd.DataFrame:
    """Failures of each node: exponential times between them and to repair."""
    rows = []
    for name in cluster.node_names:
        at = float(rng.exponential(NODE_MTBF_S))
        while at < length_s:
            end = at + 60 + float(rng.exponential(REPAIR_S))
            rows.append((name, START + pd.Timedelta(seconds=int(at)), START + pd.Timedelta(seconds=int(end))))
            at = end + float(rng.exponential(NODE_MTBF_S))
    return pd.DataFrame(rows, columns=["node", "begin", "end"])


def synthetic_leases(cluster: ClusterSpec, rng: np.random.Generator, length_s: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Replicas of services whose number follows a daily rhythm, as leases, and the services' loads; about a fifth of the GPUs."""
    hours = length_s // 3600
    peak = max(2, int(cluster.total_gpus * LEASE_SHARE / SERVICES))
    leases, loads = [], []
    for k in range(SERVICES):
        wave = 0.6 + 0.4 * np.sin((np.arange(hours) + 6 * k) / 24 * 2 * np.pi) + rng.normal(0, 0.03, hours)
        wanted = np.clip(np.round(peak * wave), 1, peak).astype(int)
        for replica in range(peak):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], (wanted > replica).astype(int), [0]])))
            leases += [(f"l{k}-{replica:04d}-{low:03d}", f"s{k}", low * 3600, high * 3600) for low, high in edges.reshape(-1, 2)]
        times = START + pd.to_timedelta(np.arange(hours) * 3600, unit="s")
        loads.append(pd.DataFrame({"time": times, "service": f"s{k}", "load": np.clip(0.5 * wave, 0, 0.9)}))
    table = pd.DataFrame(leases, columns=["job_id", "service", "begin_s", "end_s"])
    begin, end = (START + pd.to_timedelta(table[name], unit="s") for name in ("begin_s", "end_s"))
    frame = pd.DataFrame(
        {
            "job_id": table["job_id"],
            "submit_time": begin,
            "until": end,
            "service": table["service"],
            "duration_s": table["end_s"] - table["begin_s"],
            "requested_duration_s": table["end_s"] - table["begin_s"],
            "gpus": 1.0,
            "workers": 1,
            "workload_class": "realtime_inference",
            "peak_load": 0.5,
        }
    )
    return frame, pd.concat(loads, ignore_index=True)


def synthetic_world(
    nodes: int,
    jobs: int,
    windows: int,
    *,
    length_s: int = 2 * DAY_S,
    load: float = 0.7,
    by_speed: bool = False,
    features: frozenset[str] = frozenset(),
    span_s: int | None = None,
    cluster: ClusterSpec | None = None,
    seed: int = 0,
) -> World:
    """Windows of the synthetic cluster.

    Args:
        load: reference GPU seconds asked for over the window, as a share of its GPUs (which are faster than the reference GPU), or, with
            ``by_speed``, of what all its GPUs get done; gangs counted with the latter only.
        features: of ``FEATURES``.
    """
    spec = synthetic_cluster(nodes, features) if cluster is None else cluster
    tables = []
    for window in range(windows):
        rng = np.random.default_rng([seed, window])
        worth = capacity(spec) / 1.05 if by_speed else spec.total_gpus
        frame = synthetic_jobs(spec, rng, jobs, length_s, load * worth * length_s, features, span_s)
        grid = synthetic_grid(rng, length_s // DAY_S + 7)
        services = outages = None
        if "leases" in features:
            leases, services = synthetic_leases(spec, rng, length_s)
            frame = pd.concat([frame, leases], ignore_index=True)
        if "outages" in features:
            outages = synthetic_outages(spec, rng, length_s)
        if "checkpoints" not in features:
            frame["preemptible"] = 0.0
        tables.append(WindowTables(START, prepare_jobs(frame, spec), grid, length_s, outages, services))
    return build_world(spec, tables)

"""A world: one cluster and the windows of work and grid data that it lives through, as arrays for the compiled simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.power.curves import levels_for
from envs.power.networks import with_networks
from envs.windows import WindowTables, prepare_jobs
from envs.world_arrays import Grid, Jobs, Static
from envs.world_grid import build_grid, outage_events
from envs.world_jobs import build_jobs
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

LARGEST_GPUS_PER_NODE = 62


@dataclass(frozen=True)
class World:
    """Everything that a simulation needs; read-only and shared by all environments.

    Attributes:
        window_start: second 0 of each window.
        job_ids: per window, job ids in index order.
        outages: per window, int64 ``[X, 4]`` rows (second, 1 = begins or 0 = ends, node, second at which it ends) in the order of events.
        services: per window, names of its services.
        networks: (class, network) of each curve after those of the classes.
    """

    cluster: ClusterSpec
    static: Static
    jobs: Jobs
    grid: Grid
    window_start: tuple[pd.Timestamp, ...]
    job_ids: tuple[tuple[str, ...], ...]
    outages: tuple[np.ndarray, ...] = ()
    services: tuple[tuple[str, ...], ...] = ()
    networks: tuple[tuple[str, str], ...] = ()

    @property
    def n_windows(self) -> int:
        return len(self.window_start)

    @property
    def n_actions(self) -> int:
        pools, levels, _ = self.static.speed.shape
        return 1 + pools * levels


def build_world(cluster: ClusterSpec, windows: Sequence[WindowTables], *, warm_reserve: np.ndarray | None = None) -> World:
    """Turn a cluster and its windows into arrays.

    Args:
        windows: from ``envs.windows.cut_windows``; ``jobs`` prepared (else they are prepared here).
        warm_reserve: idle nodes that stay awake, ``[P]``, ``[M, P]`` or ``[M, P, T]`` with T as in ``Grid``; none by default.

    Raises:
        InputError: no window, a site without grid data, irregular steps, impossible jobs or nodes.
    """
    if not windows:
        raise InputError("no windows", where="world", allowed="at least one")
    services = tuple(
        tuple(sorted(table.services["service"].astype(str).unique())) if table.services is not None else () for table in windows
    )
    grid = build_grid(cluster, windows, warm_reserve, services)
    tables = [table.jobs if "estimate_s" in table.jobs else prepare_jobs(table.jobs, cluster) for table in windows]
    tables = [table.sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True) for table in tables]
    networks = _networks(tables)
    static = build_static(cluster, networks)
    jobs = build_jobs(cluster, static, windows, tables, services, networks)
    ids = tuple(tuple(table["job_id"].astype(str)) for table in tables)
    outages = tuple(outage_events(cluster, table.start, table.outages) for table in windows)
    return World(cluster, static, jobs, grid, tuple(table.start for table in windows), ids, outages, services, networks)


def _networks(tables: Sequence[pd.DataFrame]) -> tuple[tuple[str, str], ...]:
    """(class, network) pairs that prepared jobs name, in order."""
    pairs = [table.loc[table["workload"].notna(), ["workload_class", "workload"]] for table in tables if "workload" in table]
    return tuple(sorted({pair for rows in pairs for pair in rows.drop_duplicates().itertuples(index=False, name=None)}))


def build_static(cluster: ClusterSpec, networks: Sequence[tuple[str, str]] = ()) -> Static:
    """Arrays of the cluster, with curves for ``networks`` ((class, network) pairs) after those of the classes."""
    pools = cluster.pools
    for pool in pools:
        where = f"cluster '{cluster.name}', pool '{pool.name}'"
        if pool.gpus_per_node > LARGEST_GPUS_PER_NODE:
            raise InputError(f"{pool.gpus_per_node} GPUs per node", where=where, allowed=f"at most {LARGEST_GPUS_PER_NODE}")
        if pool.wake_latency_s < 1:
            raise InputError(f"wake_latency_s {pool.wake_latency_s}", where=where, allowed="at least 1 second")
    measured = [levels_for(pool.gpu_model, cluster.level_fractions, cluster.curve_table) for pool in pools]
    curves = [with_networks(pool.gpu_model, *levels, networks) for pool, levels in zip(pools, measured, strict=True)]
    for pool, (_, power_w) in zip(pools, measured, strict=True):
        if pool.gpu_idle_w > power_w[-1].max():
            raise InputError(
                f"gpu_idle_w {pool.gpu_idle_w:g}",
                where=f"cluster '{cluster.name}', pool '{pool.name}'",
                allowed=f"at most {power_w[-1].max():g} W, the most that a busy {pool.gpu_model} draws at the lowest level",
            )
    nodes = np.array([pool.nodes for pool in pools], dtype=np.int64)
    gpus = np.array([pool.gpus_per_node for pool in pools], dtype=np.int64)
    node_pool = np.repeat(np.arange(len(pools), dtype=np.int64), nodes)
    node_gpus = gpus[node_pool]
    objectives = [cluster.objectives[name] for name in WORKLOAD_CLASSES]

    def column(name: str, kind: type) -> np.ndarray:
        return np.array([getattr(pool, name) for pool in pools], dtype=kind)

    return Static(
        pool_site=cluster.pool_site_index(),
        pool_first_node=np.concatenate([[0], np.cumsum(nodes)[:-1]]).astype(np.int64),
        pool_nodes=nodes,
        pool_gpus=gpus,
        node_pool=node_pool,
        node_first_gpu=(np.cumsum(node_gpus) - node_gpus).astype(np.int64),
        speed=np.ascontiguousarray(np.stack([speed for speed, _ in curves]), dtype=np.float64),
        gpu_power_w=np.ascontiguousarray(np.stack([power for _, power in curves]), dtype=np.float64),
        gpu_idle_w=column("gpu_idle_w", np.float64),
        node_idle_w=column("node_idle_w", np.float64),
        cpu_w_per_gpu=column("cpu_w_per_gpu", np.float64),
        node_sleep_w=column("node_sleep_w", np.float64),
        wake_latency_s=column("wake_latency_s", np.int64),
        wake_power_w=column("wake_power_w", np.float64),
        gpu_context_w=column("gpu_context_w", np.float64),
        cpu_w_per_cpu=column("cpu_w_per_cpu", np.float64),
        cpu_milli=np.array([round(pool.cpus_per_node * 1000) for pool in pools], dtype=np.int64),
        memory_mib=np.array([round(pool.memory_gib_per_node * 1024) for pool in pools], dtype=np.int64),
        mig_slices=column("mig_slices", np.int64),
        nodes_per_rack=column("nodes_per_rack", np.int64),
        rack_budget_w=column("rack_budget_w", np.float64),
        pool_budget_w=column("budget_w", np.float64),
        site_budget_w=np.array([site.budget_w for site in cluster.sites], dtype=np.float64),
        level_fraction=np.array(cluster.level_fractions, dtype=np.float64),
        deferrable=np.array([objective.deferrable for objective in objectives], dtype=np.bool_),
        start_bound=np.array([objective.start_bound for objective in objectives], dtype=np.bool_),
    )

"""A world: one cluster and the windows of work and grid data that it lives through, as arrays for the compiled simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.power.curves import levels_for
from envs.power.networks import with_networks
from envs.windows import DAY_S, WindowTables, check_grid, prepare_jobs
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

NO_GPU_MODEL, TOO_LARGE, MAX_WATTS, TOO_SLOW, STRANDED = 1, 2, 3, 4, 5
REJECT_REASONS: dict[int, str] = {
    NO_GPU_MODEL: "no_gpu_model",
    TOO_LARGE: "too_large",
    MAX_WATTS: "max_watts",
    TOO_SLOW: "too_slow",
    STRANDED: "stranded",
}
MIG_PROFILES: tuple[int, ...] = (1, 2, 3, 4, 7)  # slices that a GPU of seven can be cut into (NVIDIA MIG user guide, A100 and H100)
STATIC_ORDERS: tuple[str, ...] = ("priority", "fcfs", "sjf", "f1")
# Time changes the last two: the queue is sorted anew for every scan.
QUEUE_ORDERS: tuple[str, ...] = (*STATIC_ORDERS, "wfp3", "unicep")
DEFAULT_STEP_S = 3600
LARGEST_GPUS_PER_NODE = 62
LARGEST_JOBS = 1 << 24


class Static(NamedTuple):
    """The cluster. P pools, N nodes, L power levels, K workload classes, S sites; GPUs of a node are consecutive.

    The first K of the C curves are those of the classes, in order; the others are those of the networks that jobs name.
    """

    pool_site: np.ndarray  # int64 [P]
    pool_first_node: np.ndarray  # int64 [P]
    pool_nodes: np.ndarray  # int64 [P]
    pool_gpus: np.ndarray  # int64 [P], GPUs of one node
    node_pool: np.ndarray  # int64 [N]
    node_first_gpu: np.ndarray  # int64 [N]
    speed: np.ndarray  # float64 [P, L, C], relative to the reference GPU
    gpu_power_w: np.ndarray  # float64 [P, L, C]
    gpu_idle_w: np.ndarray  # float64 [P]
    node_idle_w: np.ndarray  # float64 [P], without GPUs
    cpu_w_per_gpu: np.ndarray  # float64 [P]
    node_sleep_w: np.ndarray  # float64 [P]
    wake_latency_s: np.ndarray  # int64 [P]
    wake_power_w: np.ndarray  # float64 [P]
    gpu_context_w: np.ndarray  # float64 [P]
    cpu_w_per_cpu: np.ndarray  # float64 [P]
    cpu_milli: np.ndarray  # int64 [P], of one node; 0 = no limit
    memory_mib: np.ndarray  # int64 [P], of one node; 0 = no limit
    mig_slices: np.ndarray  # int64 [P]
    nodes_per_rack: np.ndarray  # int64 [P]; 0 = no racks
    rack_budget_w: np.ndarray  # float64 [P]; 0 = none
    pool_budget_w: np.ndarray  # float64 [P]; 0 = none
    site_budget_w: np.ndarray  # float64 [S]; 0 = none
    level_fraction: np.ndarray  # float64 [L]
    deferrable: np.ndarray  # bool [K]
    start_bound: np.ndarray  # bool [K]


class Jobs(NamedTuple):
    """Jobs of M windows, padded to J; a job's index is its place by (submit time, id). Times are seconds from the window's start."""

    count: np.ndarray  # int64 [M]
    submit_s: np.ndarray  # int64 [M, J]
    duration_s: np.ndarray  # int64 [M, J], true run time on the reference GPU at full power
    estimate_s: np.ndarray  # int64 [M, J]
    gpu_milli: np.ndarray  # int64 [M, J], thousandths of a GPU of one worker
    workers: np.ndarray  # int64 [M, J]
    kind: np.ndarray  # int64 [M, J], index in WORKLOAD_CLASSES
    curve: np.ndarray  # int64 [M, J], whose speed and power it has: its kind, or K + its place in World.networks
    priority: np.ndarray  # int64 [M, J]
    latest_start_s: np.ndarray  # int64 [M, J]
    deadline_s: np.ndarray  # int64 [M, J]
    max_watts: np.ndarray  # float64 [M, J], inf = none
    utilization: np.ndarray  # float64 [M, J]
    cpu_milli: np.ndarray  # int64 [M, J], of one worker
    memory_mib: np.ndarray  # int64 [M, J], of one worker
    preemptible: np.ndarray  # bool [M, J]
    checkpoint_s: np.ndarray  # int64 [M, J], between periodic checkpoints; 0 = none
    restart_s: np.ndarray  # int64 [M, J], to load one
    data_site: np.ndarray  # int64 [M, J], -1 = no data to move
    data_gib: np.ndarray  # float64 [M, J]
    until_s: np.ndarray  # int64 [M, J], end of a replica's lease; -1 = a job
    service: np.ndarray  # int64 [M, J], index in the window's services; -1 = a job
    pool_mask: np.ndarray  # bool [M, J, P], GPU model constraint
    allowed_levels: np.ndarray  # int64 [M, J, P], bit l: the empty pool could run the job at level l (model, size, watts)
    reject: np.ndarray  # int64 [M, J], 0 or one of REJECT_REASONS
    rank: np.ndarray  # int32 [M, len(STATIC_ORDERS), J], place in each queue order that time does not change
    by_rank: np.ndarray  # int32 [M, len(STATIC_ORDERS), J], the inverse


class Grid(NamedTuple):
    """Grid values of M windows: S sites, T steps. Column ``history_steps`` begins at second 0; the last column is held after the end.

    ``cum_*`` are sums from column 0 of value x PUE (x 1 for ``cum_pue``), so that an integral over time is a difference.
    """

    step_s: np.ndarray  # int64 [M]
    history_steps: np.ndarray  # int64 [M], at least one day
    start_s: np.ndarray  # int64 [M], window start as UTC seconds of the week, Monday 0
    price: np.ndarray  # float64 [M, S, T], USD per kWh
    carbon: np.ndarray  # float64 [M, S, T], kg per kWh
    renewable: np.ndarray  # float64 [M, S, T]
    pue: np.ndarray  # float64 [M, S, T]
    cum_price: np.ndarray  # float64 [M, S, T + 1]
    cum_carbon: np.ndarray  # float64 [M, S, T + 1]
    cum_pue: np.ndarray  # float64 [M, S, T + 1]
    warm_reserve: np.ndarray  # int64 [M, P, T], idle nodes that stay awake
    keep_awake: np.ndarray  # int64 [M, P, T], nodes that shall be awake, with or without jobs
    load: np.ndarray  # float64 [M, V, T], of one replica of each service, in units of the reference GPU


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
    grid = _build_grid(cluster, windows, warm_reserve, services)
    tables = [table.jobs if "estimate_s" in table.jobs else prepare_jobs(table.jobs, cluster) for table in windows]
    tables = [table.sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True) for table in tables]
    networks = _networks(tables)
    static = build_static(cluster, networks)
    jobs = _build_jobs(cluster, static, windows, tables, services, networks)
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


# ---------------------------------------------------------------- jobs


def _seconds(times: pd.Series, start: pd.Timestamp) -> np.ndarray:
    return ((times - start) // pd.Timedelta(seconds=1)).to_numpy(dtype=np.int64)


def _build_jobs(
    cluster: ClusterSpec,
    static: Static,
    windows: Sequence[WindowTables],
    tables: list[pd.DataFrame],
    services: tuple[tuple[str, ...], ...],
    networks: tuple[tuple[str, str], ...],
) -> Jobs:
    count = np.array([len(table) for table in tables], dtype=np.int64)
    width = max(1, int(count.max()))
    if width > LARGEST_JOBS:
        raise InputError(f"{width} jobs in one window", where="world", allowed=f"at most {LARGEST_JOBS}", remedy="cut shorter windows")
    shape = (len(tables), width)
    pools = len(cluster.pools)

    def table_of(name: str) -> np.ndarray:
        real = name in ("max_watts", "gpu_utilization", "archive_submit_s", "data_gib", "peak_load")
        values = np.zeros(shape, dtype=np.float64 if real else np.int64)
        for row, table in enumerate(tables):
            values[row, : len(table)] = table[name].to_numpy()
        return values

    def times_of(name: str) -> np.ndarray:
        values = np.full(shape, -1 if name == "until" else 0, dtype=np.int64)
        for row, (window, table) in enumerate(zip(windows, tables, strict=True)):
            known = table[name].notna().to_numpy()
            values[row, : len(table)][known] = _seconds(table.loc[known, name], window.start)
        return values

    def places_of(name: str, known: Sequence[Sequence[str]]) -> np.ndarray:
        values = np.full(shape, -1, dtype=np.int64)
        for row, table in enumerate(tables):
            given = table[name].notna().to_numpy()
            places = {text: place for place, text in enumerate(known[row])}
            unknown = sorted(set(table.loc[given, name].astype(str)) - set(places))
            if unknown:
                raise InputError(
                    f"{name} '{unknown[0]}'", where=f"window {row}, jobs", allowed=", ".join(known[row]) or f"no {name} is given"
                )
            values[row, : len(table)][given] = table.loc[given, name].astype(str).map(places)
        return values

    pool_mask = np.zeros((*shape, pools), dtype=np.bool_)
    models = np.array([pool.gpu_model.casefold() for pool in cluster.pools], dtype=object)
    for row, table in enumerate(tables):
        wanted = table["gpu_model"].astype(object)
        for p in range(pools):
            pool_mask[row, : len(table), p] = (wanted.isna() | (wanted.astype(str).str.casefold() == models[p])).to_numpy()
    names = ("duration_s", "estimate_s", "gpu_milli", "workers", "kind", "priority", "cpu_milli", "memory_mib", "checkpoint_s", "restart_s")
    values = {name: table_of(name) for name in names}
    values |= {name: times_of(name) for name in ("submit_time", "latest_start", "deadline", "until")}
    values |= {"max_watts": table_of("max_watts"), "peak_load": table_of("peak_load")}
    live = np.arange(width)[None, :] < count[:, None]
    _check_jobs(values, live, tables)
    values["curve"] = _curves(values["kind"], tables, networks)
    allowed, reject = _feasible(static, values, pool_mask, live)
    data_gib = table_of("data_gib")
    data_site = places_of("data_site", [[site.name for site in cluster.sites]] * len(tables))
    archive = table_of("archive_submit_s") if all("archive_submit_s" in table for table in tables) else values["submit_time"]
    rank, by_rank = _ranks(values, archive, count)
    return Jobs(
        count=count,
        submit_s=values["submit_time"],
        duration_s=values["duration_s"],
        estimate_s=values["estimate_s"],
        gpu_milli=values["gpu_milli"],
        workers=values["workers"],
        kind=values["kind"],
        curve=values["curve"],
        priority=values["priority"],
        latest_start_s=values["latest_start"],
        deadline_s=values["deadline"],
        max_watts=values["max_watts"],
        utilization=table_of("gpu_utilization"),
        cpu_milli=values["cpu_milli"],
        memory_mib=values["memory_mib"],
        preemptible=table_of("preemptible").astype(np.bool_) & (values["until"] < 0),
        checkpoint_s=values["checkpoint_s"],
        restart_s=values["restart_s"],
        data_site=np.where(data_gib > 0, data_site, -1),
        data_gib=data_gib,
        until_s=values["until"],
        service=places_of("service", services),
        pool_mask=pool_mask,
        allowed_levels=allowed,
        reject=reject,
        rank=rank,
        by_rank=by_rank,
    )


def _curves(kind: np.ndarray, tables: list[pd.DataFrame], networks: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Curve of each job, int64 [M, J]."""
    curve = kind.copy()
    places = {pair: len(WORKLOAD_CLASSES) + index for index, pair in enumerate(networks)}
    for row, table in enumerate(tables):
        if "workload" in table and networks:
            given = table["workload"].notna().to_numpy()
            pairs = zip(table.loc[given, "workload_class"], table.loc[given, "workload"], strict=True)
            curve[row, : len(table)][given] = [places[pair] for pair in pairs]
    return curve


def _check_jobs(values: dict[str, np.ndarray], live: np.ndarray, tables: list[pd.DataFrame]) -> None:
    milli = values["gpu_milli"]
    checks = (
        ("submit_time before the window's start", values["submit_time"] < 0),
        ("duration_s below 1", values["duration_s"] < 1),
        ("estimate_s below 1", values["estimate_s"] < 1),
        ("workers below 1", values["workers"] < 1),
        ("gpu_milli neither a share below 1000 nor whole GPUs", (milli < 0) | ((milli > 1000) & (milli % 1000 != 0))),
        ("neither GPUs nor CPUs", (milli == 0) & (values["cpu_milli"] == 0)),
        ("a negative amount", np.minimum.reduce([values[name] for name in ("cpu_milli", "memory_mib", "checkpoint_s", "restart_s")]) < 0),
        ("until not after submit_time", (values["until"] >= 0) & (values["until"] <= values["submit_time"])),
        ("workload class outside the list", (values["kind"] < 0) | (values["kind"] >= len(WORKLOAD_CLASSES))),
    )
    for words, bad in checks:
        rows, columns = np.nonzero(bad & live)
        if len(rows):
            raise InputError(
                words, where=f"window {rows[0]}, job '{tables[rows[0]]['job_id'].iloc[columns[0]]}'", remedy="see prepare_jobs"
            )


def held_milli(gpu_milli: np.ndarray, mig_slices: int) -> np.ndarray:
    """Thousandths of a GPU that workers hold where GPUs are cut into slices: the least profile that is large enough; any shape."""
    if mig_slices == 0:
        return gpu_milli
    profiles = MIG_PROFILES if mig_slices == 7 else tuple(range(1, mig_slices + 1))
    enough = np.array([-(-1000 * k // mig_slices) for k in profiles])
    taken = np.array([1000 * k // mig_slices for k in profiles], dtype=np.int64)
    share = (gpu_milli > 0) & (gpu_milli < 1000)
    return np.where(share, taken[np.minimum(np.searchsorted(enough, gpu_milli), len(profiles) - 1)], gpu_milli)


def _per_node(static: Static, p: int, held: np.ndarray, cpu_milli: np.ndarray, memory_mib: np.ndarray) -> np.ndarray:
    """Workers that an empty node of pool p takes."""
    unbounded = np.iinfo(np.int64).max // (1 << 32)
    gpus = int(static.pool_gpus[p])
    most = np.where(held < 1000, gpus * (1000 // np.maximum(held, 1)), gpus // np.maximum(held // 1000, 1))
    most = np.where(held == 0, unbounded, most)
    for asked, there in ((cpu_milli, static.cpu_milli[p]), (memory_mib, static.memory_mib[p])):
        if there > 0:
            most = np.minimum(most, np.where(asked > 0, there // np.maximum(asked, 1), unbounded))
    return most


def _feasible(static: Static, values: dict[str, np.ndarray], pool_mask: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels that an empty pool could run each job at, as bits, and the reason of rejection."""
    workers, curve, lease = values["workers"], values["curve"], values["until"] >= 0
    pools, levels, _ = static.speed.shape
    fits = np.zeros(pool_mask.shape, dtype=np.bool_)
    cool = np.zeros(pool_mask.shape, dtype=np.int64)
    quick = np.zeros(pool_mask.shape, dtype=np.int64)
    for p in range(pools):
        held = held_milli(values["gpu_milli"], int(static.mig_slices[p]))
        fits[..., p] = _per_node(static, p, held, values["cpu_milli"], values["memory_mib"]) * static.pool_nodes[p] >= workers
        for level in range(levels):
            watts = workers * held / 1000.0 * static.gpu_power_w[p, level][curve]
            cool[..., p] |= np.where(watts <= values["max_watts"], 1 << level, 0)
            quick[..., p] |= np.where(~lease | (static.speed[p, level][curve] >= values["peak_load"]), 1 << level, 0)
    cool = np.where(pool_mask & fits & live[..., None], cool, 0)
    allowed = cool & quick
    reject = np.where(allowed.any(axis=-1), 0, TOO_SLOW)
    reject = np.where(cool.any(axis=-1), reject, MAX_WATTS)
    reject = np.where((pool_mask & fits).any(axis=-1), reject, TOO_LARGE)
    reject = np.where(pool_mask.any(axis=-1), reject, NO_GPU_MODEL)
    return allowed, np.where(live, reject, 0).astype(np.int64)


def _ranks(values: dict[str, np.ndarray], archive_submit_s: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, width = values["kind"].shape
    rank = np.zeros((rows, len(STATIC_ORDERS), width), dtype=np.int32)
    by_rank = np.zeros_like(rank)
    for row in range(rows):
        n = int(count[row])
        index = np.arange(n)
        submit, estimate = values["submit_time"][row, :n], values["estimate_s"][row, :n]
        gpus = values["workers"][row, :n] * values["gpu_milli"][row, :n] / 1000.0
        f1 = np.log10(estimate.astype(float)) * gpus + 870.0 * np.log10(np.maximum(archive_submit_s[row, :n].astype(float), 1.0))
        orders = (
            np.lexsort((index, values["latest_start"][row, :n], -values["priority"][row, :n])),
            np.lexsort((index, submit)),
            np.lexsort((index, submit, estimate)),
            np.lexsort((index, f1)),
        )
        for which, order in enumerate(orders):
            by_rank[row, which, :n] = order
            rank[row, which, order] = index
    return rank, by_rank


# ---------------------------------------------------------------- grid


def outage_events(cluster: ClusterSpec, start: pd.Timestamp, outages: pd.DataFrame | None) -> np.ndarray:
    """Outages as events: int64 ``[X, 4]``, overlapping and touching ones merged, those of before ``start`` left out or cut.

    Raises:
        InputError: an unknown node, or an outage that ends before it begins.
    """
    if outages is None or not len(outages):
        return np.zeros((0, 4), dtype=np.int64)
    places = {name: index for index, name in enumerate(cluster.node_names)}
    unknown = sorted(set(outages["node"].astype(str)) - set(places))
    if unknown:
        raise InputError(f"node '{unknown[0]}'", where="outages", allowed=f"nodes of cluster '{cluster.name}'")
    begin = np.maximum(_seconds(pd.to_datetime(outages["begin"], utc=True), start), 0)
    end = _seconds(pd.to_datetime(outages["end"], utc=True), start)
    wrong = pd.to_datetime(outages["end"], utc=True) <= pd.to_datetime(outages["begin"], utc=True)
    if wrong.any():
        raise InputError(
            f"end {outages['end'][wrong].iloc[0]}", where=f"outages, node '{outages['node'][wrong].iloc[0]}'", allowed="after its begin"
        )
    node = outages["node"].astype(str).map(places).to_numpy(dtype=np.int64)
    merged: list[list[int]] = []
    for n, first, last in sorted(zip(node.tolist(), begin.tolist(), end.tolist(), strict=True)):
        if last <= first:
            continue
        if merged and merged[-1][0] == n and first <= merged[-1][2]:
            merged[-1][2] = max(merged[-1][2], last)
        else:
            merged.append([n, first, last])
    events = [(first, 1, n, last) for n, first, last in merged] + [(last, 0, n, last) for n, first, last in merged]
    return np.array(sorted(events, key=lambda event: event[:3]), dtype=np.int64).reshape(-1, 4)


def _build_grid(
    cluster: ClusterSpec, windows: Sequence[WindowTables], warm_reserve: np.ndarray | None, services: tuple[tuple[str, ...], ...]
) -> Grid:
    parts = [_window_grid(cluster, window, row) for row, window in enumerate(windows)]
    width = max(part["price"].shape[1] for part in parts)

    def stacked(name: str) -> np.ndarray:
        rows = [np.pad(part[name], ((0, 0), (0, width - part[name].shape[1])), mode="edge") for part in parts]
        return np.ascontiguousarray(np.stack(rows))

    price, carbon, renewable, pue = (stacked(name) for name in ("price", "carbon", "renewable", "pue"))

    def summed(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((*values.shape[:2], values.shape[2] + 1))
        np.cumsum(values, axis=2, out=sums[..., 1:])
        return sums

    monday = pd.Timestamp("1970-01-05", tz="UTC")
    return Grid(
        step_s=np.array([part["step_s"] for part in parts], dtype=np.int64),
        history_steps=np.array([part["history"] for part in parts], dtype=np.int64),
        start_s=np.array([int((window.start - monday).total_seconds()) % (7 * DAY_S) for window in windows], dtype=np.int64),
        price=price,
        carbon=carbon,
        renewable=renewable,
        pue=pue,
        cum_price=summed(price * pue),
        cum_carbon=summed(carbon * pue),
        cum_pue=summed(pue),
        warm_reserve=_reserve(warm_reserve, len(windows), len(cluster.pools), width),
        keep_awake=np.zeros((len(windows), len(cluster.pools), width), dtype=np.int64),
        load=_loads(windows, parts, services, width),
    )


def _loads(windows: Sequence[WindowTables], parts: list[dict], services: tuple[tuple[str, ...], ...], width: int) -> np.ndarray:
    """Load of one replica of each service on the grid's columns, [M, V, T]; held between and after its rows, 0 before them."""
    load = np.zeros((len(windows), max((len(names) for names in services), default=0), width))
    for row, (window, part) in enumerate(zip(windows, parts, strict=True)):
        if window.services is None:
            continue
        columns = np.arange(width) * part["step_s"] - part["history"] * part["step_s"]
        for place, name in enumerate(services[row]):
            table = window.services[window.services["service"].astype(str) == name].sort_values("time")
            values = table["load"].to_numpy(dtype=np.float64)
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise InputError("a load that is negative or missing", where=f"window {row}, service '{name}'", allowed="0 or more")
            at = np.searchsorted(_seconds(pd.to_datetime(table["time"], utc=True), window.start), columns, side="right") - 1
            load[row, place] = np.where(at >= 0, values[np.maximum(at, 0)], 0.0)
    return load


def _reserve(given: np.ndarray | None, windows: int, pools: int, width: int) -> np.ndarray:
    if given is None:
        return np.zeros((windows, pools, width), dtype=np.int64)
    values = np.asarray(given)
    axes = {1: (0, 2), 2: (2,), 3: ()}.get(values.ndim)
    wide = values if axes is None else np.expand_dims(values, axes)
    fits = axes is not None and all(have in (1, want) for have, want in zip(wide.shape, (windows, pools, width), strict=True))
    if not fits:
        raise InputError(
            f"shape {values.shape}", where="warm_reserve", allowed=f"({pools},), ({windows}, {pools}) or ({windows}, {pools}, {width})"
        )
    if (wide < 0).any():
        raise InputError("a negative reserve", where="warm_reserve", allowed="0 or more nodes")
    return np.ascontiguousarray(np.broadcast_to(wide, (windows, pools, width)), dtype=np.int64)


def _window_grid(cluster: ClusterSpec, window: WindowTables, row: int) -> dict:
    """Arrays [S, T] of one window, history extended backwards to a full day by the earliest value."""
    table = check_grid(window.grid)
    where = f"window {row}, grid"
    names = [site.name for site in cluster.sites]
    missing = sorted(set(names) - set(table["site"]))
    if missing:
        raise InputError(f"no rows of site '{missing[0]}'", where=where, allowed=f"sites of cluster '{cluster.name}': {', '.join(names)}")
    wide = {name: table.pivot_table(index="time", columns="site", values=name, dropna=False) for name in _grid_columns(table)}
    times = pd.DatetimeIndex(wide["price_usd_per_kwh"].index)
    step_s = int((times[1] - times[0]).total_seconds()) if len(times) > 1 else DEFAULT_STEP_S
    if step_s < 1 or DAY_S % step_s:
        raise InputError(f"steps of {step_s} s", where=where, allowed="whole seconds that divide a day")
    offset_s = (window.start - times[0]).total_seconds()
    if offset_s < 0 or offset_s % step_s:
        raise InputError(
            f"window start {window.start.isoformat()}",
            where=where,
            allowed=f"a whole step of {step_s} s at or after {times[0].isoformat()}",
        )
    before = int(offset_s) // step_s
    extra = max(0, DAY_S // step_s - before)

    def values(name: str, missing_value: float) -> np.ndarray:
        if name not in wide:
            return np.full((len(names), len(times) + extra), missing_value)
        array = np.nan_to_num(wide[name][names].to_numpy(dtype=np.float64).T, nan=missing_value)
        array = np.pad(array, ((0, 0), (extra, 0)), mode="edge")
        short = before + extra + 1 - array.shape[1]
        return np.pad(array, ((0, 0), (0, max(0, short))), mode="edge")

    temperature = values("temperature_c", -np.inf)
    base, slope, free = (np.array([[getattr(s, key)] for s in cluster.sites]) for key in ("pue_base", "pue_per_c", "pue_free_cooling_c"))
    return {
        "step_s": step_s,
        "history": before + extra,
        "price": values("price_usd_per_kwh", 0.0),
        "carbon": values("carbon_g_per_kwh", 0.0) / 1000.0,
        "renewable": values("renewable_fraction", 0.0),
        "pue": base + slope * np.maximum(0.0, temperature - free),
    }


def _grid_columns(table: pd.DataFrame) -> list[str]:
    return [n for n in ("price_usd_per_kwh", "carbon_g_per_kwh", "renewable_fraction", "temperature_c") if n in table]

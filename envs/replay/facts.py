"""What an event log does not say and every total depends on: the cluster, the jobs and the grid of one window, as plain tables."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.world import World
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

FORMAT = 1
META_KEY = b"joulewise"
TABLES = ("pools", "curves", "jobs", "grid", "loads")
POOL_WATTS = ("node_idle_w", "gpu_idle_w", "gpu_context_w", "cpu_w_per_gpu", "cpu_w_per_cpu", "node_sleep_w", "wake_power_w")
POOL_LIMITS = ("mig_slices", "cpus_per_node", "memory_gib_per_node", "nodes_per_rack", "rack_budget_w")


@dataclass(frozen=True)
class Facts:
    """One window; places (pool, level, curve, site, service) are indices, times are seconds from the window's start.

    Attributes:
        window_start: second 0, UTC.
        step_s: seconds of a grid step; step 0 begins at second 0, the last step is held after the end.
        level_fractions: power limit of each level as a fraction of the board limit.
        pools: ``name, gpu_model, site, nodes, gpus_per_node, wake_latency_s``, watts and limits of one node (``envs.cluster.PoolSpec``).
        curves: ``pool, level, curve, speed, gpu_power_w``; a job's watts and speed are those of its ``curve``.
        jobs: by job index: ``job_id, workload_class, curve, submit_s, duration_s, estimate_s, gpu_milli, cpu_milli, memory_mib, workers,
            utilization, latest_start_s, deadline_s, start_bound, data_site, transfer_kwh, until_s, service``; -1 where there is none;
            ``max_watts`` (inf = none), ``levels``: for each pool the levels that it could run the job at when empty, as bits.
        grid: ``site, step, price_usd_per_kwh, carbon_kg_per_kwh, renewable_fraction, pue``.
        loads: ``service, step, load``, in replicas of the reference GPU at full power.
    """

    cluster: str
    policy: str
    window_start: pd.Timestamp
    step_s: int
    sites: tuple[str, ...]
    level_fractions: tuple[float, ...]
    reward: RewardSpec
    settings: PolicySettings
    pools: pd.DataFrame
    curves: pd.DataFrame
    jobs: pd.DataFrame
    grid: pd.DataFrame
    loads: pd.DataFrame

    @property
    def node_pool(self) -> np.ndarray:
        """Pool of every node, int64 ``[N]``."""
        return np.repeat(np.arange(len(self.pools)), self.pools["nodes"])

    @property
    def node_names(self) -> list[str]:
        return [
            f"{name}-{index:04d}" for name, nodes in zip(self.pools["name"], self.pools["nodes"], strict=True) for index in range(nodes)
        ]


def facts_of(world: World, window: int, policy: str, settings: PolicySettings, reward: RewardSpec) -> Facts:
    """The facts of one window of a world.

    Raises:
        InputError: no such window.
    """
    if not 0 <= window < world.n_windows:
        raise InputError(f"window {window}", where="replay", allowed=f"0 to {world.n_windows - 1}")
    cluster = world.cluster
    return Facts(
        cluster=cluster.name,
        policy=policy,
        window_start=world.window_start[window],
        step_s=int(world.grid.step_s[window]),
        sites=tuple(site.name for site in cluster.sites),
        level_fractions=tuple(float(value) for value in cluster.level_fractions),
        reward=reward,
        settings=settings,
        pools=_pools(world),
        curves=_curves(world),
        jobs=_jobs(world, window),
        grid=_grid(world, window),
        loads=_loads(world, window),
    )


def _pools(world: World) -> pd.DataFrame:
    pools = world.cluster.pools
    table = pd.DataFrame({"name": [pool.name for pool in pools], "gpu_model": [pool.gpu_model for pool in pools]})
    table["site"] = world.static.pool_site
    for name in ("nodes", "gpus_per_node", "wake_latency_s"):
        table[name] = np.array([getattr(pool, name) for pool in pools], dtype=np.int64)
    for name in (*POOL_WATTS, *POOL_LIMITS):  # 0 = no such part or limit, also for a cluster that does not know it
        table[name] = np.array([getattr(pool, name, 0.0) for pool in pools], dtype=np.float64)
    return table


def _curves(world: World) -> pd.DataFrame:
    pools, levels, curves = world.static.speed.shape
    places = np.indices((pools, levels, curves)).reshape(3, -1)
    table = pd.DataFrame({"pool": places[0], "level": places[1], "curve": places[2]})
    return table.assign(speed=world.static.speed.ravel(), gpu_power_w=world.static.gpu_power_w.ravel())


def _jobs(world: World, window: int) -> pd.DataFrame:
    jobs, n = world.jobs, int(world.jobs.count[window])

    def column(name: str, default: float = 0) -> np.ndarray:
        values = getattr(jobs, name, None)
        return np.full(n, default) if values is None else values[window, :n].copy()

    kind = column("kind")
    table = pd.DataFrame({"job_id": list(world.job_ids[window]), "workload_class": [WORKLOAD_CLASSES[k] for k in kind]})
    table["curve"] = column("curve")
    for name in ("submit_s", "duration_s", "estimate_s", "gpu_milli", "cpu_milli", "memory_mib", "workers", "utilization"):
        table[name] = column(name)
    for name in ("latest_start_s", "deadline_s"):
        table[name] = column(name)
    table["start_bound"] = world.static.start_bound[kind]
    table["transfer_kwh"] = column("transfer_kwh", 0.0)
    for name in ("data_site", "until_s", "service"):
        table[name] = column(name, -1)
    table["max_watts"] = column("max_watts", np.inf)
    table["levels"] = list(jobs.allowed_levels[window, :n])
    return table


def _grid(world: World, window: int) -> pd.DataFrame:
    grid, first = world.grid, int(world.grid.history_steps[window])
    sites, steps = grid.price.shape[1], grid.price.shape[2] - first
    columns = {"price_usd_per_kwh": grid.price, "carbon_kg_per_kwh": grid.carbon, "renewable_fraction": grid.renewable, "pue": grid.pue}
    table = pd.DataFrame({"site": np.repeat(np.arange(sites), steps), "step": np.tile(np.arange(steps), sites)})
    return table.assign(**{name: values[window, :, first:].ravel() for name, values in columns.items()})


def _loads(world: World, window: int) -> pd.DataFrame:
    load = getattr(world.grid, "load", None)
    if load is None or not load.shape[1]:
        return pd.DataFrame({"service": np.zeros(0, np.int64), "step": np.zeros(0, np.int64), "load": np.zeros(0)})
    first = int(world.grid.history_steps[window])
    services, steps = load.shape[1], load.shape[2] - first
    places = {"service": np.repeat(np.arange(services), steps), "step": np.tile(np.arange(steps), services)}
    return pd.DataFrame(places).assign(load=load[window, :, first:].ravel())


# ---------------------------------------------------------------- files


def to_files(events: pd.DataFrame, facts: Facts) -> dict[str, bytes]:
    """File name -> content: ``events.parquet``, whose metadata hold the scalars, and one table for each of ``TABLES``."""
    scalars: dict[str, Any] = {
        "format": FORMAT,
        "cluster": facts.cluster,
        "policy": facts.policy,
        "window_start": facts.window_start.isoformat(),
        "step_s": facts.step_s,
        "sites": list(facts.sites),
        "level_fractions": list(facts.level_fractions),
        "reward": asdict(facts.reward),
        "settings": asdict(facts.settings),
    }
    files = {"events.parquet": _parquet(events, {META_KEY: json.dumps(scalars).encode()})}
    return files | {f"{name}.parquet": _parquet(getattr(facts, name), {}) for name in TABLES}


def _parquet(frame: pd.DataFrame, metadata: dict[bytes, bytes]) -> bytes:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_files(folder: Path) -> tuple[pd.DataFrame, Facts]:
    """Events and facts that :func:`to_files` wrote.

    Raises:
        InputError: a file is missing, or the log is not one of this format.
    """
    try:
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in ("events", *TABLES)}
    except (OSError, pa.ArrowException) as error:
        raise InputError(str(error).splitlines()[0], where=str(folder), remedy="give a folder written by pipelines.replay") from error
    raw = (tables["events"].schema.metadata or {}).get(META_KEY)
    scalars = json.loads(raw) if raw else {}
    if scalars.get("format") != FORMAT:
        raise InputError(f"format {scalars.get('format')}", where=str(folder / "events.parquet"), allowed=str(FORMAT))
    frames = {name: table.to_pandas() for name, table in tables.items()}
    known = {field.name for field in fields(PolicySettings)}
    settings = {name: value for name, value in scalars["settings"].items() if name in known}
    facts = Facts(
        cluster=scalars["cluster"],
        policy=scalars["policy"],
        window_start=pd.Timestamp(scalars["window_start"]),
        step_s=scalars["step_s"],
        sites=tuple(scalars["sites"]),
        level_fractions=tuple(scalars["level_fractions"]),
        reward=RewardSpec(**scalars["reward"]),
        settings=PolicySettings(**settings),
        **{name: frames[name] for name in TABLES},
    )
    return frames["events"], facts

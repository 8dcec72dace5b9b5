"""Stage ``features``: series per target, and jobs and grid tables for the simulator, cut from the lake or from public traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.power.curves import levels_for
from envs.power.networks import network_named, network_speed
from pipelines.config import PUBLIC_JOBS, TrainConfig
from pipelines.stages.context import StageContext
from pipelines.stages.forecasters import BOUNDS_FILE, series_path
from pipelines.stages.ingest import open_lake
from pipelines.stages.power_levels import PARTS_FILE, lake_power_facts, part_bounds, write_power_facts
from pipelines.stages.real_traces import HELIOS, load_trace, public_grid, public_series, replayed_power_curves, replayed_power_parents
from pipelines.workspace import write_json
from registry.provenance import frame_hash
from telemetry.classes import CLASS_INDEX
from telemetry.errors import InputError
from telemetry.lake import Lake
from telemetry.readers import ReadContext, reader_named
from telemetry.series import METRICS_NEEDED, SeriesConfig, cut_series, power_parts

SIMULATED_STATES = ("completed", "failed", "timeout", "cancelled")


def ended_jobs(jobs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Jobs that have ended after holding GPUs, and counts of what was left out: without an end there is no duration to replay."""
    state = jobs["state"] if "state" in jobs else pd.Series(None, index=jobs.index, dtype=object)
    ended = state.isna() | state.isin(SIMULATED_STATES)
    usable = ended & jobs["duration_s"].notna() & (jobs["duration_s"] > 0) & (jobs["gpus"] > 0)
    counts = {"jobs": len(jobs), "not_ended": int((~ended).sum()), "without_duration_or_gpus": int((ended & ~usable).sum())}
    return jobs[usable].reset_index(drop=True), counts


def to_reference_gpu(jobs: pd.DataFrame, cluster: ClusterSpec) -> tuple[pd.DataFrame, dict[str, int]]:
    """Ended jobs with durations on the reference GPU, as the simulator wants them, and the counts of :func:`ended_jobs`.

    An export tells how long a job ran on the GPU it got: ``duration_s`` and ``requested_duration_s`` are multiplied by that GPU's speed for
    the job's network, else its class (V100 at full power = 1). A pool that the cluster does not have leaves them as they are.
    """
    kept, counts = ended_jobs(jobs)
    models = {pool.name: pool.gpu_model for pool in cluster.pools}
    speeds = {pool.name: levels_for(pool.gpu_model, (1.0,), cluster.curve_table)[0][0] for pool in cluster.pools}
    kind = kept["workload_class"].map(CLASS_INDEX)
    unknown = pd.Series(None, index=kept.index, dtype=object)
    pools, networks = (kept.get(name, unknown) for name in ("pool", "workload"))

    def speed_of(pool: object, kind: float, network: object) -> float:
        if pool not in models:
            return 1.0
        named = network_named(network, "jobs table") if isinstance(network, str) and network.strip() else None
        measured = network_speed(named, models[pool]) if named else None
        return measured if measured is not None else float(speeds[pool][int(kind)]) if pd.notna(kind) else 1.0

    speed = np.array([speed_of(*row) for row in zip(pools, kind, networks, strict=True)], dtype=float)
    for name in ("duration_s", "requested_duration_s"):
        if name in kept:
            kept[name] = kept[name].astype(float) * speed
    return kept, counts


def _table(kind: str, path: str) -> pd.DataFrame:
    """A canonical table of the user's own."""
    result = reader_named(kind).read(Path(path), ReadContext(source=Path(path).name))
    return result.tables["grid" if kind == "grid" else "jobs"]


def _jobs(config: TrainConfig, lake: Lake) -> tuple[pd.DataFrame, dict[str, int]]:
    trace = config.trace
    if trace.kind in PUBLIC_JOBS:
        return load_trace(trace.kind, Path(str(trace.path)), trace.options)
    if trace.kind == "table":
        return ended_jobs(_table("jobs_table", str(trace.path)))  # canonical durations are on the reference GPU already
    return to_reference_gpu(lake.table("jobs"), config.cluster)


def _grid(config: TrainConfig, lake: Lake) -> pd.DataFrame:
    grid = config.grid
    if grid.kind == "public":
        return public_grid(Path(str(grid.path)), grid.zones)
    table = _table("grid", str(grid.path)) if grid.kind == "table" else lake.table("grid")
    sites = [site.name for site in config.cluster.sites]
    missing = sorted(set(sites) - set(table["site"].unique()))
    if missing:
        raise InputError(
            f"no price and carbon for site {', '.join(missing)}",
            where="grid table",
            allowed=f"rows for every site of cluster '{config.cluster.name}': {', '.join(sites)}",
        )
    return table[table["site"].isin(sites)].reset_index(drop=True)


def power_bounds(series: pd.DataFrame, cluster: ClusterSpec) -> dict[str, list[float]]:
    """Physical bounds in W of power series named after nodes, pools and sites of the cluster: asleep, and every GPU at its limit."""
    bounds: dict[str, list[float]] = {}
    by_site: dict[str, list[float]] = {}
    for pool in cluster.pools:
        most = float(levels_for(pool.gpu_model, (1.0,), cluster.curve_table)[1].max())
        low = pool.node_sleep_w
        high = pool.node_idle_w + pool.gpus_per_node * (most + pool.cpu_w_per_gpu)
        for index in range(pool.nodes):
            bounds[f"power/node/{pool.name}-{index:04d}"] = [low, high]
        bounds[f"power/pool/{pool.name}"] = [low * pool.nodes, high * pool.nodes]
        site = by_site.setdefault(pool.site, [0.0, 0.0])
        site[0], site[1] = site[0] + low * pool.nodes, site[1] + high * pool.nodes
    bounds |= {f"power/site/{name}": pair for name, pair in by_site.items()}
    return {uid: bounds[uid] for uid in series["unique_id"].unique() if uid in bounds}


def _power_facts(config: TrainConfig, lake: Lake, series: pd.DataFrame, out: Path) -> dict[str, Sequence[float]]:
    """Write what belongs to what and the power curves; returns the physical bounds."""
    if config.target.kind == "public":
        curves, bounds = replayed_power_curves(Path(str(config.target.path)) / HELIOS)
        write_power_facts(out, replayed_power_parents(series), curves)
        return dict(bounds)
    samples = lake.table("samples")
    parts = power_parts(samples[samples["metric"] == METRICS_NEEDED["power"]], series, SeriesConfig(freq=config.target.freq)).frame
    parts.to_parquet(out / PARTS_FILE)
    write_power_facts(out, *lake_power_facts(samples, config.cluster, pd.concat([series, parts], ignore_index=True)))
    return {**power_bounds(series, config.cluster), **part_bounds(parts, config.cluster)}


def _series(config: TrainConfig, lake: Lake, target: str) -> tuple[pd.DataFrame, dict[str, int]]:
    if config.target.kind == "public":
        return public_series(Path(str(config.target.path)), target, config.target.freq)
    cut = cut_series([target], lake.table("samples"), lake.table("jobs"), SeriesConfig(freq=config.target.freq))
    return cut.frame, {name: int(cut.counts[name].sum()) for name in ("filled", "missing")}


def run_features(context: StageContext, out: Path) -> None:
    """Write ``series_<target>.parquet``, ``bounds.json``, ``power.json``,
    ``jobs.parquet``, ``grid.parquet`` and ``features.json`` (counts, hashes)."""
    config = context.config
    lake = open_lake(config)
    facts: dict[str, object] = {}
    bounds: dict[str, dict[str, Sequence[float]]] = {}
    for target in config.target.names:
        series, counts = _series(config, lake, target)
        series.to_parquet(series_path(out, target))
        bounds[target] = _power_facts(config, lake, series, out) if target == "power" else {}
        facts[target] = {"series": int(series["unique_id"].nunique()), "rows": len(series), "sha256": frame_hash(series), **counts}
    jobs, counts = _jobs(config, lake)
    jobs.to_parquet(out / "jobs.parquet")
    grid = _grid(config, lake)
    grid.to_parquet(out / "grid.parquet")
    facts["jobs"] = {"rows": len(jobs), "sha256": frame_hash(jobs), **counts}
    facts["grid"] = {"rows": len(grid), "sha256": frame_hash(grid)}
    write_json(out / BOUNDS_FILE, bounds)
    write_json(out / "features.json", facts)
    context.run.log_text((out / "features.json").read_text(), "features.json")

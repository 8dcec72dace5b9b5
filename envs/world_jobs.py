"""Jobs of all windows as arrays, with what each pool could run and why a job is rejected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.windows import WindowTables
from envs.world_arrays import MAX_WATTS, NO_GPU_MODEL, STATIC_ORDERS, TOO_LARGE, TOO_SLOW, Jobs, Static, seconds_after
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

MIG_PROFILES: tuple[int, ...] = (1, 2, 3, 4, 7)  # slices that a GPU of seven can be cut into (NVIDIA MIG user guide, A100 and H100)
LARGEST_JOBS = 1 << 24


def build_jobs(
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
            values[row, : len(table)][known] = seconds_after(table.loc[known, name], window.start)
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

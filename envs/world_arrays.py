"""The arrays of a world, each with its axes and units, and what the numbers in them stand for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

NO_GPU_MODEL, TOO_LARGE, MAX_WATTS, TOO_SLOW, STRANDED = 1, 2, 3, 4, 5
REJECT_REASONS: dict[int, str] = {
    NO_GPU_MODEL: "no_gpu_model",
    TOO_LARGE: "too_large",
    MAX_WATTS: "max_watts",
    TOO_SLOW: "too_slow",
    STRANDED: "stranded",
}
STATIC_ORDERS: tuple[str, ...] = ("priority", "fcfs", "sjf", "f1")
# Time changes the last two: the queue is sorted anew for every scan.
QUEUE_ORDERS: tuple[str, ...] = (*STATIC_ORDERS, "wfp3", "unicep")


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


def seconds_after(times: pd.Series, start: pd.Timestamp) -> np.ndarray:
    """Whole seconds from ``start`` to each time, int64 [N]."""
    return ((times - start) // pd.Timedelta(seconds=1)).to_numpy(dtype=np.int64)

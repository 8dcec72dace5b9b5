"""Static description of a cluster: sites -> pools (identical nodes) -> nodes -> GPUs, with power levels and service objectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd

from envs.power.curves import CurvePoint, curve_table
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

LARGEST_SLICES = 16


# field: least, most, whether it must be whole
POOL_FIGURES: dict[str, tuple[float, float, bool]] = {
    "nodes": (1, 10_000_000, True),
    "gpus_per_node": (1, 10_000, True),
    "node_idle_w": (0, 1e6, False),
    "gpu_idle_w": (0, 1e5, False),
    "cpu_w_per_gpu": (0, 1e5, False),
    "node_sleep_w": (0, 1e6, False),
    "wake_latency_s": (0, 7 * 86_400, True),
    "wake_power_w": (0, 1e6, False),
    "cpus_per_node": (0, 1e6, False),
    "memory_gib_per_node": (0, 1e7, False),
    "cpu_w_per_cpu": (0, 1e4, False),
    "gpu_context_w": (0, 1e5, False),
    "mig_slices": (0, LARGEST_SLICES, True),
    "nodes_per_rack": (0, 1_000_000, True),
    "rack_budget_w": (0, 1e9, False),
    "budget_w": (0, 1e9, False),
    "mtbf_hours": (0, 1e9, False),
    "repair_hours": (0, 1e6, False),
}
SITE_FIGURES: dict[str, tuple[float, float, bool]] = {
    "pue_base": (1, 10, False),
    "pue_per_c": (0, 1, False),
    "pue_free_cooling_c": (-100, 100, False),
    "budget_w": (0, 1e9, False),
}
OBJECTIVE_FIGURES: dict[str, tuple[float, float, bool]] = {
    "max_wait_s": (0, 36_525 * 86_400, True),
    "deadline_stretch": (0, 1000, False),
    "checkpoint_s": (0, 36_525 * 86_400, True),
    "restart_s": (0, 36_525 * 86_400, True),
}


def _check_figures(spec: object, figures: dict[str, tuple[float, float, bool]], where: str) -> None:
    for name, (least, most, whole) in figures.items():
        value = getattr(spec, name)
        if not (least <= value <= most) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise InputError(f"{name} {value}", where=where, allowed=f"{kind} from {least:,} to {most:,}")


@dataclass(frozen=True)
class SiteSpec:
    """One site. PUE(T) = ``pue_base`` + ``pue_per_c`` x max(0, T - ``pue_free_cooling_c``); ``budget_w`` bounds its IT watts, 0 = none."""

    name: str
    pue_base: float = 1.15
    pue_per_c: float = 0.008
    pue_free_cooling_c: float = 15.0
    budget_w: float = 0.0


@dataclass(frozen=True)
class PoolSpec:
    """Identical nodes at one site.

    Node watts: awake = ``node_idle_w`` + ``gpus_per_node`` x ``gpu_idle_w``, plus per running job its GPUs' active power above idle and
    ``cpu_w_per_gpu``; sleeping = ``node_sleep_w``; waking = ``wake_power_w`` during ``wake_latency_s``.

    Attributes:
        cpus_per_node, memory_gib_per_node: what workers may ask for; 0 = not modelled, no limit.
        cpu_w_per_cpu: watts of a CPU that a job asked for, beside ``cpu_w_per_gpu``.
        gpu_context_w: watts that an allocated GPU draws above idle even when it computes nothing.
        mig_slices: equal slices of a GPU that shares are rounded up to; 0 = any thousandth.
        nodes_per_rack, rack_budget_w, budget_w: bounds of committed IT watts per rack and for the pool; 0 = none.
        mtbf_hours, repair_hours: mean time between failures of one node (0 = never) and mean time to repair.
    """

    name: str
    site: str
    gpu_model: str
    nodes: int
    gpus_per_node: int
    node_idle_w: float = 250.0
    gpu_idle_w: float = 30.0
    cpu_w_per_gpu: float = 20.0
    node_sleep_w: float = 15.0
    wake_latency_s: int = 180
    wake_power_w: float = 400.0
    cpus_per_node: float = 0.0
    memory_gib_per_node: float = 0.0
    cpu_w_per_cpu: float = 0.0
    gpu_context_w: float = 0.0
    mig_slices: int = 0
    nodes_per_rack: int = 0
    rack_budget_w: float = 0.0
    budget_w: float = 0.0
    mtbf_hours: float = 0.0
    repair_hours: float = 4.0


@dataclass(frozen=True)
class Maintenance:
    """Nodes ``first_node`` to ``first_node + nodes - 1`` of a pool are down from ``begin`` to ``end`` (ISO 8601, UTC without a zone)."""

    pool: str
    begin: str
    end: str
    first_node: int = 0
    nodes: int = 1


@dataclass(frozen=True)
class ClassObjective:
    """Service objective of one workload class.

    A job without a ``deadline`` gets ``submit + max_wait_s + deadline_stretch x estimated duration``. ``max_wait_s`` is the start-time
    objective: latest start = submit + max_wait_s, or, for a job with its own deadline, the smaller of that and deadline - estimate when
    ``start_bound`` is set, else deadline - estimate. ``preemptible``, ``checkpoint_s`` (seconds between checkpoints, 0 = none) and
    ``restart_s`` (seconds to load one) hold for jobs that do not say otherwise.
    """

    max_wait_s: int
    deadline_stretch: float
    deferrable: bool
    start_bound: bool
    preemptible: bool = False
    checkpoint_s: int = 0
    restart_s: int = 0


DEFAULT_OBJECTIVES: dict[str, ClassObjective] = {
    "training": ClassObjective(
        max_wait_s=12 * 3600, deadline_stretch=2.0, deferrable=True, start_bound=False, preemptible=True, checkpoint_s=1800, restart_s=180
    ),
    "fine_tuning": ClassObjective(
        max_wait_s=6 * 3600, deadline_stretch=2.0, deferrable=True, start_bound=False, preemptible=True, checkpoint_s=1800, restart_s=90
    ),
    "batch_inference": ClassObjective(
        max_wait_s=6 * 3600, deadline_stretch=2.0, deferrable=True, start_bound=False, preemptible=True, checkpoint_s=600, restart_s=60
    ),
    "realtime_inference": ClassObjective(max_wait_s=300, deadline_stretch=1.5, deferrable=False, start_bound=True),
    "interactive": ClassObjective(max_wait_s=600, deadline_stretch=1.5, deferrable=False, start_bound=True),
}


@dataclass(frozen=True)
class ClusterSpec:
    """A whole cluster.

    Attributes:
        level_fractions: power limits as fractions of the board limit, index 0 = full power, strictly falling.
        transfer_gbps, transfer_kwh_per_gib: what sends a job's data from one site to another (default: 10 Gbit/s, and the 0.06 kWh/GB of
            Aslan et al. 2018 for 2015, halved every two years, in 2023).
        curves: measured speed and power of one's own (`envs.power.curves.read_curves`), in place of the committed ones of the same GPU
            model and class, and beside the others.
    """

    name: str
    sites: tuple[SiteSpec, ...]
    pools: tuple[PoolSpec, ...]
    level_fractions: tuple[float, ...] = (1.0, 0.75, 0.55)
    objectives: dict[str, ClassObjective] = field(default_factory=lambda: dict(DEFAULT_OBJECTIVES))
    transfer_gbps: float = 10.0
    transfer_kwh_per_gib: float = 0.004
    maintenance: tuple[Maintenance, ...] = ()
    curves: tuple[CurvePoint, ...] = ()

    def __post_init__(self) -> None:
        where = f"cluster '{self.name}'"
        if not self.sites or not self.pools:
            raise InputError(f"{len(self.sites)} sites and {len(self.pools)} pools", where=where, allowed="at least one of each")
        site_names = [site.name for site in self.sites]
        pool_names = [pool.name for pool in self.pools]
        for label, names in (("site", site_names), ("pool", pool_names)):
            if len(set(names)) != len(names):
                raise InputError(f"duplicate {label} names in {names}", where=where)
        for pool in self.pools:
            if pool.site not in site_names:
                raise InputError(f"unknown site '{pool.site}'", where=f"{where}, pool '{pool.name}'", allowed=", ".join(site_names))
            if pool.nodes < 1 or pool.gpus_per_node < 1:
                raise InputError(
                    f"{pool.nodes} nodes of {pool.gpus_per_node} GPUs", where=f"{where}, pool '{pool.name}'", allowed="at least 1 x 1"
                )
            self._check_pool(pool, f"{where}, pool '{pool.name}'")
        for site in self.sites:
            _check_figures(site, SITE_FIGURES, f"{where}, site '{site.name}'")
        for name, objective in self.objectives.items():
            _check_figures(objective, OBJECTIVE_FIGURES, f"{where}, objective of '{name}'")
        if not 0 < self.transfer_gbps < float("inf"):
            raise InputError(f"transfer_gbps {self.transfer_gbps}", where=where, allowed="a finite number above 0")
        self._check_maintenance(where)
        fractions = self.level_fractions
        if not fractions or fractions[0] != 1.0 or not all(0 < b < a for a, b in pairwise(fractions)):
            raise InputError(f"level_fractions {fractions}", where=where, allowed="1.0 first, then strictly falling, above 0")
        missing = sorted(set(WORKLOAD_CLASSES) - set(self.objectives))
        if missing:
            raise InputError(f"no objective for {', '.join(missing)}", where=where, allowed="one per workload class")

    @staticmethod
    def _check_pool(pool: PoolSpec, where: str) -> None:
        _check_figures(pool, POOL_FIGURES, where)
        if pool.rack_budget_w > 0 and pool.nodes_per_rack < 1:
            raise InputError(f"rack_budget_w {pool.rack_budget_w:g} without racks", where=where, remedy="give nodes_per_rack")

    def _check_maintenance(self, where: str) -> None:
        nodes = {pool.name: pool.nodes for pool in self.pools}
        for item in self.maintenance:
            at = f"{where}, maintenance of '{item.pool}'"
            if item.pool not in nodes:
                raise InputError(f"unknown pool '{item.pool}'", where=at, allowed=", ".join(nodes))
            if item.nodes < 1 or item.first_node < 0 or item.first_node + item.nodes > nodes[item.pool]:
                raise InputError(
                    f"nodes {item.first_node} to {item.first_node + item.nodes - 1}", where=at, allowed=f"0 to {nodes[item.pool] - 1}"
                )

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of all nodes, grouped by pool in order; a node's index is its position here."""
        return tuple(f"{pool.name}-{index:04d}" for pool in self.pools for index in range(pool.nodes))

    @property
    def curve_table(self) -> pd.DataFrame | None:
        """All curves of the cluster's GPUs for `envs.power.curves.levels_for`; None = the committed ones."""
        return curve_table(self.curves) if self.curves else None

    @property
    def total_gpus(self) -> int:
        return sum(pool.nodes * pool.gpus_per_node for pool in self.pools)

    def pool_site_index(self) -> np.ndarray:
        """Index of each pool's site, int64 ``[P]``."""
        order = {site.name: index for index, site in enumerate(self.sites)}
        return np.array([order[pool.site] for pool in self.pools], dtype=np.int64)

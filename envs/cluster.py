"""Static description of a cluster: sites -> pools (identical nodes) -> nodes -> GPUs, with power levels and service objectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError


@dataclass(frozen=True)
class SiteSpec:
    """One site. PUE(T) = ``pue_base`` + ``pue_per_c`` x max(0, T - ``pue_free_cooling_c``)."""

    name: str
    pue_base: float = 1.15
    pue_per_c: float = 0.008
    pue_free_cooling_c: float = 15.0


@dataclass(frozen=True)
class PoolSpec:
    """Identical nodes at one site.

    Node watts: awake = ``node_idle_w`` + ``gpus_per_node`` x ``gpu_idle_w``, plus per running job its GPUs' active power above idle and
    ``cpu_w_per_gpu``; sleeping = ``node_sleep_w``; waking = ``wake_power_w`` during ``wake_latency_s``.
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


@dataclass(frozen=True)
class ClassObjective:
    """Service objective of one workload class.

    A job without a ``deadline`` gets ``submit + max_wait_s + deadline_stretch x estimated duration``. ``max_wait_s`` is the start-time
    objective: latest start = submit + max_wait_s, or, for a job with its own deadline, the smaller of that and deadline - estimate when
    ``start_bound`` is set, else deadline - estimate.
    """

    max_wait_s: int
    deadline_stretch: float
    deferrable: bool
    start_bound: bool


DEFAULT_OBJECTIVES: dict[str, ClassObjective] = {
    "training": ClassObjective(max_wait_s=12 * 3600, deadline_stretch=2.0, deferrable=True, start_bound=False),
    "fine_tuning": ClassObjective(max_wait_s=6 * 3600, deadline_stretch=2.0, deferrable=True, start_bound=False),
    "batch_inference": ClassObjective(max_wait_s=6 * 3600, deadline_stretch=2.0, deferrable=True, start_bound=False),
    "realtime_inference": ClassObjective(max_wait_s=300, deadline_stretch=1.5, deferrable=False, start_bound=True),
    "interactive": ClassObjective(max_wait_s=600, deadline_stretch=1.5, deferrable=False, start_bound=True),
}


@dataclass(frozen=True)
class ClusterSpec:
    """A whole cluster. ``level_fractions`` are power limits as fractions of the board limit, index 0 = full power, strictly falling."""

    name: str
    sites: tuple[SiteSpec, ...]
    pools: tuple[PoolSpec, ...]
    level_fractions: tuple[float, ...] = (1.0, 0.75, 0.55)
    objectives: dict[str, ClassObjective] = field(default_factory=lambda: dict(DEFAULT_OBJECTIVES))

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
        fractions = self.level_fractions
        if not fractions or fractions[0] != 1.0 or any(b >= a or b <= 0 for a, b in pairwise(fractions)):
            raise InputError(f"level_fractions {fractions}", where=where, allowed="1.0 first, then strictly falling, above 0")
        missing = sorted(set(WORKLOAD_CLASSES) - set(self.objectives))
        if missing:
            raise InputError(f"no objective for {', '.join(missing)}", where=where, allowed="one per workload class")

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of all nodes, grouped by pool in order; a node's index is its position here."""
        return tuple(f"{pool.name}-{index:04d}" for pool in self.pools for index in range(pool.nodes))

    @property
    def total_gpus(self) -> int:
        return sum(pool.nodes * pool.gpus_per_node for pool in self.pools)

    def pool_site_index(self) -> np.ndarray:
        """Index of each pool's site, int64 ``[P]``."""
        order = {site.name: index for index, site in enumerate(self.sites)}
        return np.array([order[pool.site] for pool in self.pools], dtype=np.int64)

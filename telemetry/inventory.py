"""What an operator knows of the nodes, beside what they export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class NodeInfo:
    """What the inventory knows of a node; ``max_power_w`` of the node and ``gpu_max_power_w`` of each of its GPUs, 0 = not told."""

    site: str = ""
    pool: str = ""
    gpu_model: str = ""
    gpus: int = 0
    max_power_w: float = 0.0
    gpu_max_power_w: float = 0.0


@dataclass(frozen=True)
class Inventory:
    """Nodes by name, and how many Slurm shards make one GPU."""

    nodes: Mapping[str, NodeInfo] = field(default_factory=dict)
    shards_per_gpu: int = 4

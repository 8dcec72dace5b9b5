"""What a board or a node can draw at most: the judgement of ``implausible_power``.

Watts of boards are the "max. TDP", "maximum power consumption" or "TBP" of the makers' product data sheets (NVIDIA product briefs and data
sheets of P100, V100, T4, RTX 6000, A2, A10, A16, A30, A40, A100, L4, L40, L40S, H100, H200 and GB200; AMD Instinct data sheets of MI210,
MI250X, MI300X, MI325X); of several variants of one name (PCIe, SXM) the largest, since an inventory rarely says which it is.
"""

from __future__ import annotations

import re
from typing import Protocol

from telemetry.raw import ALL_GPUS

# Watts of one board.
BOARD_LIMIT_W: dict[str, float] = {
    "K80": 300.0,
    "M60": 300.0,
    "P4": 75.0,
    "P40": 250.0,
    "P100": 300.0,
    "V100": 350.0,
    "T4": 70.0,
    "A2": 60.0,
    "A10": 150.0,
    "A16": 250.0,
    "A30": 165.0,
    "A40": 300.0,
    "A100": 400.0,
    "A800": 400.0,
    "L4": 72.0,
    "L40": 300.0,
    "L40S": 350.0,
    "H20": 500.0,
    "H100": 700.0,
    "H800": 700.0,
    "H200": 700.0,
    "GH200": 1000.0,
    "B200": 1000.0,
    "GB200": 1200.0,
    "MI210": 300.0,
    "MI250": 560.0,
    "MI250X": 560.0,
    "MI300X": 750.0,
    "MI325X": 1000.0,
}
# What a node draws beside its GPUs: a DGX H100 draws 10.2 kW at most with eight boards of 700 W (NVIDIA, DGX H100 user guide).
HOST_LIMIT_W = 4_600.0
# Where no limit is known: above every board and node of today; 65,535 W is what a BMC without a reading prints.
MAX_DEVICE_W = 3_000.0
MAX_NODE_W = 30_000.0
# Three phases of 125 A at 240 V are 90 kVA.
MAX_PDU_W = 100_000.0


class NodeLimits(Protocol):
    """What the inventory tells of a node's watts."""

    @property
    def gpu_model(self) -> str: ...
    @property
    def gpus(self) -> int: ...
    @property
    def max_power_w(self) -> float: ...
    @property
    def gpu_max_power_w(self) -> float: ...


# One GPU by its index or UUID (``gpu0``, ``gpu0/mig1``, ``GPU-5fd4...``), and no word that only begins like it.
ONE_GPU = re.compile(r"gpu[-_:]?[0-9a-f]", re.IGNORECASE)


def is_gpu(device: str) -> bool:
    """Whether a device is one GPU."""
    return ONE_GPU.match(device) is not None


def board_limit_w(gpu_model: str) -> float | None:
    """Most watts of a board by the words of its name (``NVIDIA A100-SXM4-80GB``, ``a100_80gb``); None = not in the table."""
    words = re.split(r"[^A-Z0-9]+", gpu_model.upper())
    return next((BOARD_LIMIT_W[word] for word in words if word in BOARD_LIMIT_W), None)


def device_limit_w(gpu_model: str, told_w: float, margin: float) -> float:
    """Watts above which a GPU's reading cannot be true.

    Args:
        gpu_model: name of the board, '' = unknown.
        told_w: limit that the inventory tells, taken as it is; 0 = none.
        margin: how far a reading may lie above the data sheet's limit: boards overshoot it for milliseconds, and old firmware reads high.
    """
    if told_w > 0:
        return told_w
    limit = board_limit_w(gpu_model)
    return MAX_DEVICE_W if limit is None else limit * margin


def node_limit_w(gpu_model: str, gpus: int, told_w: float, gpu_told_w: float, margin: float) -> float:
    """Watts above which a node's reading cannot be true; arguments as :func:`device_limit_w`, ``told_w`` of the whole node."""
    if told_w > 0:
        return told_w
    if not gpus or (gpu_told_w <= 0 and board_limit_w(gpu_model) is None):
        return MAX_NODE_W
    return gpus * device_limit_w(gpu_model, gpu_told_w, margin) + HOST_LIMIT_W * margin


def limit_w(device: str, node: NodeLimits, margin: float) -> float:
    """Watts above which a reading of a node's ``device`` cannot be true; names as in ``telemetry/readers/prometheus_metrics.py``."""
    if device.startswith(("pdu/", "feed/")):
        return MAX_PDU_W
    if device in ("", ALL_GPUS) or device.startswith("psu"):
        return node_limit_w(node.gpu_model, node.gpus, node.max_power_w, node.gpu_max_power_w, margin)
    if not is_gpu(device):
        return MAX_DEVICE_W
    return device_limit_w(node.gpu_model, node.gpu_max_power_w, margin)

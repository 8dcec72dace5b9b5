"""What a node draws beside its GPUs, from its own meter: idle watts, CPU watts per GPU in use, and losses of the power supply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.power.shape import fit_free

IN_USE = 1.15  # a GPU that draws so much more than an idle one with a context is in use
LEAST_ROWS = 30


@dataclass(frozen=True)
class NodeFit:
    """A pool's nodes: ``node = node_idle + sum of GPU watts x (1 + loss) + cpu_w_per_gpu x GPUs in use``.

    Attributes:
        loss: watts lost per GPU watt; 0 where the meter shows none.
        mape: mean absolute percentage error of node watts on every other block of time, fitted on the rest.
    """

    node_idle_w: float
    cpu_w_per_gpu: float
    loss: float
    rows: int
    nodes: int
    mape: float


def fit_nodes(table: pd.DataFrame, base_w: float) -> NodeFit | None:
    """Fit the nodes of one pool; None with fewer than ``LEAST_ROWS`` rows.

    Args:
        table: `telemetry.power_pairs.node_pairs` of nodes that are alike.
        base_w: watts of an idle GPU with a context.
    """
    if len(table) < LEAST_ROWS:
        return None
    devices = table[[name for name in table.columns if name.startswith("d") and name[1:].isdigit()]].to_numpy(dtype=np.float64)
    in_use = (devices > IN_USE * base_w).sum(axis=1)
    gpu_w, node_w = table["gpu_w"].to_numpy(dtype=np.float64), table["node_w"].to_numpy(dtype=np.float64)
    rows = np.column_stack([np.ones(len(table)), in_use, gpu_w])
    order = np.argsort(table["time"].to_numpy(), kind="stable")
    half = np.zeros(len(table), dtype=bool)
    half[order] = (np.arange(len(table)) * 20 // len(table)) % 2 == 0
    wrong = []
    for seen in (half, ~half):
        predicted = rows[~seen] @ _solve(rows[seen], node_w[seen], gpu_w[seen]) + gpu_w[~seen]
        wrong.append(np.abs(predicted / node_w[~seen] - 1.0))
    found = _solve(rows, node_w, gpu_w)
    return NodeFit(
        float(found[0]),
        float(found[1]),
        float(found[2]),
        len(table),
        int(table["node"].nunique()),
        float(100 * np.concatenate(wrong).mean()),
    )


def _solve(rows: np.ndarray, node_w: np.ndarray, gpu_w: np.ndarray) -> np.ndarray:
    scale = float(np.max(node_w))
    return fit_free(rows, node_w - gpu_w, scale) * scale

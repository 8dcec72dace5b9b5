"""Attribution of node energy to the jobs on the node, in plain numpy: the simulator's rules for measured intervals (FinOps).

A job is charged its own dynamic watts and, for each of its GPUs, an equal part of its node's idle watts; what the GPUs in use do not
account for is the idle remainder. Parts sum to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from telemetry.errors import InputError

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class NodeShares:
    """Energy of one node interval, kWh: ``jobs`` float64 ``[J]`` and the ``idle`` remainder."""

    jobs: np.ndarray
    idle: float

    @property
    def total(self) -> float:
        return float(self.jobs.sum()) + self.idle


def dynamic_w(gpus, active_w, gpu_idle_w, utilization, cpu_w_per_gpu, context_w=0.0):
    """Watts that a running job adds to its awake nodes; scalars or arrays that broadcast.

    Args:
        gpus: GPUs of the job, fractions included.
        active_w: watts of one busy GPU at the job's power level.
        gpu_idle_w: watts of one idle GPU.
        utilization: 0 to 1.
        cpu_w_per_gpu: CPU watts that go with one GPU.
        context_w: watts above idle of an allocated GPU that computes nothing, counted up to its active watts.
    """
    context = np.minimum(context_w, active_w - gpu_idle_w)
    return gpus * (context + (active_w - gpu_idle_w - context) * utilization) + gpus * cpu_w_per_gpu


def idle_share_w(gpus, node_idle_w, gpu_idle_w, gpus_per_node):
    """Part of the nodes' idle watts that a job with ``gpus`` GPUs stands for."""
    return gpus * (node_idle_w + gpus_per_node * gpu_idle_w) / gpus_per_node


def attributed_w(gpus, active_w, gpu_idle_w, utilization, cpu_w_per_gpu, node_idle_w, gpus_per_node):
    """Watts charged to a running job, before PUE."""
    return dynamic_w(gpus, active_w, gpu_idle_w, utilization, cpu_w_per_gpu) + idle_share_w(gpus, node_idle_w, gpu_idle_w, gpus_per_node)


def kwh(watts, seconds, pue=1.0):
    """Energy of constant ``watts`` of IT load over ``seconds``."""
    return watts * pue * seconds / SECONDS_PER_HOUR / 1000.0


def attribute_node(
    node_kwh: float, idle_kwh: float, gpus: np.ndarray, gpus_per_node: float, dynamic_weight: np.ndarray | None = None
) -> NodeShares:
    """Split the measured energy of one node interval over the jobs on it.

    Args:
        node_kwh: measured energy of the interval.
        idle_kwh: what the node would have used without any job; at most ``node_kwh`` of it counts.
        gpus: GPU share of each job, float64 ``[J]``.
        gpus_per_node: GPUs of the node.
        dynamic_weight: measured or modelled dynamic energy of each job; the energy above idle is split in its proportion, by ``gpus`` when
            it is not known. Without any job the whole is idle.

    Raises:
        InputError: negative energy or shares, or more GPUs than the node has.
    """
    gpus = np.asarray(gpus, dtype=np.float64)
    weight = gpus if dynamic_weight is None else np.asarray(dynamic_weight, dtype=np.float64)
    if not np.isfinite([node_kwh, idle_kwh]).all() or node_kwh < 0 or idle_kwh < 0:
        raise InputError(f"node energy {node_kwh} kWh, idle {idle_kwh} kWh", where="attribution", allowed="finite, 0 or more")
    if weight.shape != gpus.shape or (gpus < 0).any() or (weight < 0).any() or not np.isfinite(gpus).all() or not np.isfinite(weight).all():
        raise InputError("a negative or missing share", where="attribution", allowed="finite shares from 0, one per job")
    if gpus_per_node <= 0 or gpus.sum() > gpus_per_node * (1 + 1e-9):
        raise InputError(f"{gpus.sum():g} GPUs in use", where="attribution", allowed=f"at most the node's {gpus_per_node:g}")
    if not len(gpus):
        return NodeShares(np.zeros(0), float(node_kwh))
    base = min(idle_kwh, node_kwh)
    if weight.sum() <= 0:
        weight = gpus if gpus.sum() > 0 else np.ones_like(gpus)
    jobs = base * gpus / gpus_per_node + (node_kwh - base) * (weight / weight.sum())
    return NodeShares(jobs, float(max(node_kwh - jobs.sum(), 0.0)))

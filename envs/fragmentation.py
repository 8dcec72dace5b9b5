"""Typical workers: the table against which the fragmentation of a node's free GPUs is measured (docs/fragmentation.md).

After Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent" (USENIX ATC'23).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from telemetry.errors import InputError

WHOLE_MILLI = 1000
TOP_SCORE = 100
SCALE_MILLI = 1000.0
ALL_MODELS = -1


class FragmentTable(NamedTuple):
    """T typical kinds of GPU workers, grouped by the thousandths that each asks of one GPU (V levels, rising).

    Counts are kept as whole numbers, so that fragmentation is exact: *parts* are thousandths of a GPU times the counted workers.
    """

    level_milli: np.ndarray  # int64 [V], 1..1000
    level_first: np.ndarray  # int64 [V + 1], first kind of each level
    gpus: np.ndarray  # int64 [T], GPUs of one node, each with the level's thousandths
    cpu_milli: np.ndarray  # int64 [T]
    models: np.ndarray  # int64 [T], bit m set = may use GPU model m; -1 = all
    count: np.ndarray  # int64 [T]
    no_gpu_count: np.ndarray  # int64 [1], typical workers without GPUs: to them every free GPU is a fragment
    score_parts: np.ndarray  # int64 [99], least fall of a node's parts for the scores 1..99


def typical_kinds(kinds: np.ndarray, share: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent kinds of workers, as few as make up ``share`` of all.

    Args:
        kinds: int64 ``[W, 3]``, one row per worker: CPU thousandths, GPU thousandths, model bits. Among kinds that are equally frequent
            the one with the larger row comes first.
        share: 0 < share <= 1.

    Returns:
        Rows int64 ``[T, 3]``, the most frequent first, and their counts int64 ``[T]``.

    Raises:
        InputError: no workers, or a share outside (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"share {share}", where="typical workers", allowed="0 < share <= 1")
    if len(kinds) == 0:
        raise InputError("no workers", where="typical workers", remedy="give the jobs from which the typical workers are counted")
    rows, counts = np.unique(kinds, axis=0, return_counts=True)
    order = np.lexsort((*rows.T[::-1], counts))[::-1]
    kept = int(np.searchsorted(np.cumsum(counts[order]), share * len(kinds) * (1.0 - 1e-12))) + 1
    return rows[order[:kept]], counts[order[:kept]]


def fragment_table(cpu_milli: np.ndarray, gpu_milli: np.ndarray, count: np.ndarray, models: np.ndarray | None = None) -> FragmentTable:
    """The table of typical workers.

    Args:
        cpu_milli: int64 ``[T]``, thousandths of a CPU per worker.
        gpu_milli: int64 ``[T]``, thousandths of a GPU per worker: 0, a share below 1000, or a multiple of 1000.
        count: int64 ``[T]``, how often the kind occurs, from 1.
        models: int64 ``[T]`` bits of the allowed GPU models, -1 = all; None = all for every kind.

    Raises:
        InputError: a worker that is none of these, or no kinds at all.
    """
    cpu_milli, gpu_milli, count = (np.asarray(values, dtype=np.int64) for values in (cpu_milli, gpu_milli, count))
    models = np.full(len(count), ALL_MODELS, dtype=np.int64) if models is None else np.asarray(models, dtype=np.int64)
    bad = (gpu_milli < 0) | ((gpu_milli > WHOLE_MILLI) & (gpu_milli % WHOLE_MILLI != 0)) | (cpu_milli < 0) | (count < 1)
    if len(count) == 0 or bad.any():
        problem = f"worker {int(np.argmax(bad))} of {len(count)}" if len(count) else "no workers"
        allowed = "CPU thousandths from 0; GPU thousandths 0, below 1000 or a multiple of 1000; counts from 1"
        raise InputError(problem, where="typical workers", allowed=allowed)
    with_gpu = gpu_milli > 0
    gpus = np.maximum(gpu_milli // WHOLE_MILLI, 1)
    each = np.minimum(gpu_milli, WHOLE_MILLI)
    order = np.lexsort((models, cpu_milli, gpus, each))
    order = order[with_gpu[order]]
    levels, first = np.unique(each[order], return_index=True)
    parts_per_milli = int(count.sum())
    ratio = np.arange(1, TOP_SCORE) / np.arange(TOP_SCORE - 1, 0, -1)
    return FragmentTable(
        level_milli=levels,
        level_first=np.append(first, len(order)).astype(np.int64),
        gpus=gpus[order],
        cpu_milli=cpu_milli[order],
        models=models[order],
        count=count[order],
        no_gpu_count=np.array([count[~with_gpu].sum()], dtype=np.int64),
        score_parts=np.array([math.ceil(SCALE_MILLI * parts_per_milli * math.log(value)) for value in ratio], dtype=np.int64),
    )


def fragmentation_milli(table: FragmentTable, parts: np.ndarray) -> np.ndarray:
    """Parts as expected thousandths of a GPU that a typical worker could not use."""
    return parts / float(table.count.sum() + table.no_gpu_count[0])

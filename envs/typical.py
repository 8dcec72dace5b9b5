"""The kinds of workers of a world, from which the simulator counts the typical ones (docs/fragmentation.md)."""

from __future__ import annotations

import numpy as np

from envs import fields as fx
from envs.fragmentation import SCALE_MILLI, TOP_SCORE, WHOLE_MILLI
from envs.world import World

# fall of the fragmentation, thousandths of a GPU, from which on the score is 1 to 99
FALL_OF_SCORE = SCALE_MILLI * np.log(np.arange(1, TOP_SCORE) / np.arange(TOP_SCORE - 1, 0, -1))


def typical_tables(world: World, shape: np.ndarray, firsts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of each window, and the kind of each shape of jobs.

    A kind is what one worker asks for: GPU thousandths, CPU thousandths and the pools that the job may ever run in, which stand for the
    published GPU models. Nothing is counted here: which kinds are typical depends on the jobs that have arrived.

    Args:
        shape: int64 ``[M, J]`` and ``firsts``, the first job of each shape, from ``envs.packed``.

    Returns:
        int64 ``[M, K, TYPICAL_WIDTH]`` and int64 ``[M, S]``.
    """
    jobs = world.jobs
    pools = (1 << np.arange(jobs.allowed_levels.shape[2], dtype=np.int64)) * (jobs.allowed_levels > 0)
    asks = np.stack([jobs.cpu_milli, jobs.gpu_milli, pools.sum(axis=2)], axis=2)
    found = [np.unique(asks[row, first], axis=0, return_inverse=True) for row, first in enumerate(firsts)]
    kinds = np.zeros((len(firsts), max(len(rows) for rows, _ in found), fx.TYPICAL_WIDTH), dtype=np.int64)
    kind_of = np.zeros((len(firsts), max(len(first) for first in firsts)), dtype=np.int64)
    for window, (rows, inverse) in enumerate(found):
        cpu, gpu, bits = rows.T
        each, gpus = np.minimum(gpu, WHOLE_MILLI), np.maximum(gpu // WHOLE_MILLI, 1)
        order = np.lexsort((bits, cpu, gpus, each))
        first = np.arange(len(rows))[::-1]  # equally frequent: the larger row first, as in envs.fragmentation
        kinds[window, : len(rows)] = np.stack([each, gpus, cpu, bits, first], axis=1)[order]
        kinds[window, len(rows) :, fx.KIND_FIRST] = np.arange(len(rows), kinds.shape[1])
        kind_of[window, : len(firsts[window])] = np.argsort(order)[inverse.ravel()]
    return kinds, kind_of

"""Queue and calendars of a state that is filled in by hand (``envs.snapshot``)."""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_queue import INDEX_BITS
from envs.packed import PackedState, PackedWorld


def mark_ready(packed: PackedWorld, state: PackedState, b: int, window: int, order: int, jobs: list[int]) -> None:
    """Make exactly ``jobs`` ready to be asked about in a cleared environment, in queue order ``order`` (``STATIC_ORDERS``)."""
    o, j, i = packed.o, packed.j[window], state.i[b]
    width, half = int(o[fx.N_JOBS]), int(o[fx.N_TREE]) >> 1
    tree = i[o[fx.I_TREE] : o[fx.I_TREE] + 2 * half]
    slots = int(o[fx.N_SHORT]) >> 1
    short = i[o[fx.I_SHORT] : o[fx.I_SHORT] + 2 * slots]
    for job in jobs:
        shape = int(j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE])
        slot, rank = (int(j[o[at] + order * width + job]) for at in (fx.J_SLOT, fx.J_RANK))
        i[o[fx.I_READY] + (slot >> 5)] |= 1 << (slot & 31)
        low = int(o[fx.I_SHAPE]) + shape * fx.SHAPE_WIDTH + fx.SHAPE_LOW
        i[low] = min(i[low], slot)
        tree[half + shape] = min(tree[half + shape], rank)
        short[slots + slot] = max(1, int(j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.ESTIMATE_S]))
    for least, size in ((tree, half), (short, slots)):
        for at in range(size - 1, 0, -1):
            least[at] = min(least[2 * at], least[2 * at + 1])


def mark_leaves(packed: PackedWorld, state: PackedState, b: int, ends: dict[int, tuple[int, int]]) -> None:
    """Fill the calendars of estimated ends, which EASY reads: ``{job: (pool, second)}`` of the placed and running jobs."""
    o, i = packed.o, state.i[b]
    jobs = int(o[fx.N_JOBS])
    for p in range(int(o[fx.N_POOLS])):
        # A sorted list is a heap.
        keys = sorted((second << INDEX_BITS) | job for job, (pool, second) in ends.items() if pool == p)
        at = int(o[fx.I_LEAVES]) + p * jobs
        i[at : at + len(keys)] = keys
        i[o[fx.I_N_LEAVES] + p] = len(keys)
        for place, key in enumerate(keys):
            i[o[fx.I_LEAVES_AT] + (key & ((1 << INDEX_BITS) - 1))] = place + 1

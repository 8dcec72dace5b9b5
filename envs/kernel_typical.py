"""Compiled table of typical workers, kept up to date with the jobs that have arrived, and the node rules that score nodes by it.

Counted are the workers of all jobs of the window submitted until now, rejected ones left out: what a scheduler has seen. Nothing is known
of later jobs. Definition and sources: docs/fragmentation.md.
"""

from __future__ import annotations

import math

from envs import fields as fx
from envs.fragmentation import FragmentTable
from envs.kernel_compile import compiled, view
from envs.kernel_fgd import (
    GPU_FULL_MW,
    GPU_IDLE_MW,
    NO_GPU,
    SOCKET_CORES,
    SOCKET_FULL_MW,
    SOCKET_IDLE_MW,
    WATTS_FIELDS,
    added_mw,
    fgd_score,
    fragmentation,
)
from envs.kernel_power import held_milli, state_nw
from envs.state import AWAKE, SLEEPING

SHARE_PERCENT = 95
SCORES = 99
UNLIMITED = 1 << 60
NW_PER_MW = 1_000_000
MW_PER_W = 1000
# Lettich et al. (2025): sockets of 16 cores, 15 W idle and 120 W in use
CORES, IDLE_SOCKET_MW, FULL_SOCKET_MW = 16, 15_000, 120_000


def typical_size(kinds: int) -> int:
    """Values of the state that the table of ``kinds`` kinds takes."""
    return 9 * kinds + SCORES + 4


@compiled
def forget_typical(c):
    """Nobody has arrived."""
    kinds, base = c.o[fx.N_TYPICAL], c.o[fx.I_TYPICAL]
    for kind in range(kinds):
        c.i[base + kind] = 0
        c.i[base + kinds + c.j[c.o[fx.J_TYPICAL] + kind * fx.TYPICAL_WIDTH + fx.KIND_FIRST]] = kind


@compiled
def count_arrivals(c):
    """Bring the table up to the jobs that have arrived."""
    o, i, j = c.o, c.i, c.j
    if i[fx.TYPICAL_SEEN] == i[fx.ARRIVED]:
        return
    for job in range(i[fx.TYPICAL_SEEN], i[fx.ARRIVED]):
        b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
        if j[b + fx.REJECT] == 0:
            i[o[fx.I_TYPICAL] + j[o[fx.J_TYPICAL_OF] + j[b + fx.SHAPE]]] += j[b + fx.WORKERS]
    i[fx.TYPICAL_SEEN] = i[fx.ARRIVED]
    _rank_kinds(c)
    _fill_table(c)


@compiled
def _rank_kinds(c):
    """Most frequent kinds first; the order changes little, so they are inserted one by one."""
    o, i, j = c.o, c.i, c.j
    count, order = o[fx.I_TYPICAL], o[fx.I_TYPICAL] + o[fx.N_TYPICAL]
    first = o[fx.J_TYPICAL] + fx.KIND_FIRST
    for k in range(1, o[fx.N_TYPICAL]):
        kind = i[order + k]
        at = k
        while at > 0:
            other = i[order + at - 1]
            if i[count + other] > i[count + kind]:
                break
            if i[count + other] == i[count + kind] and j[first + other * fx.TYPICAL_WIDTH] < j[first + kind * fx.TYPICAL_WIDTH]:
                break
            i[order + at] = other
            at -= 1
        i[order + at] = kind


@compiled
def _fill_table(c):
    """The table of the kinds that make up 95 % (``envs.fragmentation.FragmentTable``)."""
    o, i, j = c.o, c.i, c.j
    kinds, base = o[fx.N_TYPICAL], o[fx.I_TYPICAL]
    total = 0
    for kind in range(kinds):
        total += i[base + kind]
    kept, chosen = 0, base + 8 * kinds + SCORES + 4
    for kind in range(kinds):
        i[chosen + kind] = 0
    for k in range(kinds):
        if 100 * kept < SHARE_PERCENT * total:
            kind = i[base + kinds + k]
            kept += i[base + kind]
            i[chosen + kind] = 1
    rows, levels, without = 0, 0, 0
    for kind in range(kinds):
        if i[chosen + kind] == 0:
            continue
        a = o[fx.J_TYPICAL] + kind * fx.TYPICAL_WIDTH
        each = j[a + fx.KIND_EACH_MILLI]
        if each == 0:
            without += i[base + kind]
            continue
        if levels == 0 or i[base + 2 * kinds + levels - 1] != each:
            i[base + 2 * kinds + levels] = each
            i[base + 3 * kinds + levels] = rows
            levels += 1
        i[base + 4 * kinds + 1 + rows] = j[a + fx.KIND_GPUS]
        i[base + 5 * kinds + 1 + rows] = j[a + fx.KIND_CPU_MILLI]
        i[base + 6 * kinds + 1 + rows] = j[a + fx.KIND_POOLS]
        i[base + 7 * kinds + 1 + rows] = i[base + kind]
        rows += 1
    i[base + 3 * kinds + levels] = rows
    tail = base + 8 * kinds + 1
    i[tail] = without
    for score in range(SCORES):
        i[tail + 1 + score] = math.ceil(kept * c.kf[o[fx.KF_LOGIT] + score])
    i[tail + 1 + SCORES] = levels
    i[tail + 2 + SCORES] = rows


@compiled
def score_on(c, job, p, node):
    """Fragmentation score of a node of pool p that can take a worker of the job, and the GPU that a share would take (-1 for others)."""
    o, i = c.o, c.i
    kinds, base = o[fx.N_TYPICAL], o[fx.I_TYPICAL]
    tail = base + 8 * kinds + 1
    levels, rows = i[tail + 1 + SCORES], i[tail + 2 + SCORES]
    table = FragmentTable(
        view(i, base + 2 * kinds, levels),
        view(i, base + 3 * kinds, levels + 1),
        view(i, base + 4 * kinds + 1, rows),
        view(i, base + 5 * kinds + 1, rows),
        view(i, base + 6 * kinds + 1, rows),
        view(i, base + 7 * kinds + 1, rows),
        view(i, tail, 1),
        view(i, tail + 1, SCORES),
    )
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    gpus = view(i, o[fx.I_GPU] + c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU], c.k[k + fx.POOL_GPUS])
    bound = c.k[k + fx.POOL_CPU_MILLI] > 0
    free = i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.CPU_FREE] if bound else UNLIMITED
    asked = asked_cpu_milli(c, job) if bound else 0
    before = fragmentation(table, gpus, free, p, NO_GPU, 0, 0)
    return fgd_score(table, gpus, free, p, before, held_milli(c, job, p), asked)


@compiled
def asked_cpu_milli(c, job):
    shape = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE]
    return c.j[c.o[fx.J_SHAPE] + shape * fx.SHAPE_CONSTANTS_WIDTH + fx.SHAPE_CPU_MILLI]


@compiled
def alike(c, p, node, other):
    """Whether two nodes of pool p have the same GPUs and CPUs free."""
    o, i = c.o, c.i
    if i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.CPU_FREE] != i[o[fx.I_NODE] + other * fx.NODE_WIDTH + fx.CPU_FREE]:
        return False
    a = o[fx.I_GPU] + c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU]
    b = o[fx.I_GPU] + c.k[o[fx.K_NODE] + other * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU]
    same = True
    for g in range(c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_GPUS]):
        same &= i[a + g] == i[b + g]
    return same


@compiled
def added_on(c, job, p, node):
    """Milliwatts that a worker adds to a node of pool p, at full power: by the published model, and its waking when it sleeps."""
    o, i = c.o, c.i
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    curve = c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.CURVE]
    at = o[fx.I_WATTS]
    i[at + GPU_IDLE_MW] = math.floor(c.kf[o[fx.KF_POOL] + p * fx.POOL_WATTS_WIDTH + fx.GPU_IDLE_W] * MW_PER_W + 0.5)
    i[at + GPU_FULL_MW] = math.floor(c.kf[o[fx.KF_POWER] + p * o[fx.N_LEVELS] * o[fx.N_CURVES] + curve] * MW_PER_W + 0.5)
    i[at + SOCKET_IDLE_MW], i[at + SOCKET_FULL_MW], i[at + SOCKET_CORES] = IDLE_SOCKET_MW, FULL_SOCKET_MW, CORES
    gpus = view(i, o[fx.I_GPU] + c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU], c.k[k + fx.POOL_GPUS])
    a = o[fx.I_NODE] + node * fx.NODE_WIDTH
    capacity = c.k[k + fx.POOL_CPU_MILLI]
    free, asked = (i[a + fx.CPU_FREE], asked_cpu_milli(c, job)) if capacity > 0 else (0, 0)
    added = added_mw(view(i, at, WATTS_FIELDS), gpus, free, capacity, held_milli(c, job, p), asked)
    if i[a + fx.NODE_STATE] == SLEEPING:
        added += (state_nw(c, p, AWAKE) - state_nw(c, p, SLEEPING)) // NW_PER_MW
    return added

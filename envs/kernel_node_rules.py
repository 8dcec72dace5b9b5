"""Compiled choice of a node by the rules that score nodes, ``fgd`` and ``pwr_fgd``: in one pool, or over all that are offered."""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_fgd import pwr_score
from envs.kernel_power import WHOLE, committed_state_nw, held_milli, rack_of, worker_nw
from envs.kernel_typical import added_on, alike, count_arrivals, score_on
from envs.state import DOWN, PWR_FGD, SLEEPING, WAKING

THOUSAND = 1000


@compiled
def has_share(c, p, node, milli):
    """Whether one GPU of a node of pool p has ``milli`` thousandths free."""
    a = c.o[fx.I_NODE] + node * fx.NODE_WIDTH
    if c.i[a + fx.NODE_WHOLE] > 0:
        return True
    gpu = c.o[fx.I_GPU] + c.k[c.o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU]
    found = False
    for g in range(gpu, gpu + c.k[c.o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_GPUS]):
        found |= c.i[g] >= milli
    return found


@compiled
def _can_take(c, job, p, node, nw, wake_nw):
    """Whether a node of pool p can take one worker now."""
    o, i = c.o, c.i
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    s = o[fx.J_SHAPE] + c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE] * fx.SHAPE_CONSTANTS_WIDTH
    a = o[fx.I_NODE] + node * fx.NODE_WIDTH
    milli = held_milli(c, job, p)
    if i[a + fx.NODE_STATE] == DOWN or i[a + fx.NODE_FREE] < milli or i[a + fx.NODE_WHOLE] < milli // WHOLE:
        return False
    if 0 < milli < WHOLE and not has_share(c, p, node, milli):
        return False
    if c.k[k + fx.POOL_CPU_MILLI] > 0 and i[a + fx.CPU_FREE] < c.j[s + fx.SHAPE_CPU_MILLI]:
        return False
    if c.k[k + fx.POOL_MEMORY_MIB] > 0 and i[a + fx.MEMORY_FREE] < c.j[s + fx.SHAPE_MEMORY_MIB]:
        return False
    budget = c.k[k + fx.RACK_BUDGET_NW]
    waking = wake_nw if i[a + fx.NODE_STATE] == SLEEPING else 0
    return budget == 0 or i[o[fx.I_RACK] + rack_of(c, p, node)] + nw + waking <= budget


@compiled
def best_scored(c, job, low, high, nw, wake_nw):
    """Node of the pools ``low <= p < high`` that ``fgd`` or ``pwr_fgd`` gives one worker, or -1: awake before waking before sleeping,
    then the highest score, then the lowest index.

    With several pools only those where the question offers a run are looked at, and what a worker commits is that of the pool.
    """
    o, i = c.o, c.i
    count_arrivals(c)
    weight = c.q[fx.PWR_WEIGHT_MILLI] if c.q[fx.NODE_RULE] == PWR_FGD else 0
    state, least, most = DOWN, 0, 0
    for p in range(low, high):
        level = 0 if high == low + 1 else lowest_offered(c, p)
        if level < 0:
            continue
        if high > low + 1:
            nw, wake_nw = worker_nw(c, job, p, level, True), committed_state_nw(c, p, WAKING) - committed_state_nw(c, p, SLEEPING)
        first = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_FIRST_NODE]
        for node in range(first, first + c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_NODES]):
            mode = i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.NODE_STATE]
            if mode > state or not _can_take(c, job, p, node, nw, wake_nw):
                continue
            added = added_on(c, job, p, node) if weight > 0 else 0
            if mode < state:
                state, least, most = mode, added, added
            least, most = min(least, added), max(most, added)
    best, best_score = -1, -1
    for p in range(low, high):
        level = 0 if high == low + 1 else lowest_offered(c, p)
        if level < 0:
            continue
        if high > low + 1:
            nw, wake_nw = worker_nw(c, job, p, level, True), committed_state_nw(c, p, WAKING) - committed_state_nw(c, p, SLEEPING)
        first = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_FIRST_NODE]
        last, score = -1, 0
        for node in range(first, first + c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_NODES]):
            mode = i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.NODE_STATE]
            if mode != state or not _can_take(c, job, p, node, nw, wake_nw):
                continue
            if last >= 0 and alike(c, p, node, last):
                continue  # the same score as an earlier node
            last, score = node, score_on(c, job, p, node)[0]
            if weight > 0:
                score = weight * pwr_score(added_on(c, job, p, node), least, most) + (THOUSAND - weight) * score
            if score > best_score:
                best, best_score = node, score
    return best


@compiled
def lowest_offered(c, p):
    """Lowest level at which the question offers a run in pool p, that of most power; -1 when none is."""
    for level in range(c.o[fx.N_LEVELS]):
        if c.i[c.o[fx.I_ACTION] + (1 + p * c.o[fx.N_LEVELS] + level) * fx.ACTION_WIDTH + fx.MASK]:
            return level
    return -1


@compiled
def preferred_pool(c):
    """Pool of the node that ``fgd`` or ``pwr_fgd`` gives the first worker of the job in question, or -1."""
    node = best_scored(c, c.i[fx.ASKING], 0, c.o[fx.N_POOLS], 0, 0)
    return c.k[c.o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_POOL] if node >= 0 else -1

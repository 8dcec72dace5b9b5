"""Compiled placement: does a gang fit a pool, which nodes and GPUs does it take, and what happens when it leaves."""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_node_rules import best_scored, has_share
from envs.kernel_nodes import become_idle, leave_idle, wake
from envs.kernel_power import (
    WHOLE,
    commit,
    committed_state_nw,
    held_milli,
    rack_of,
    whole_row,
    worker_nw,
)
from envs.kernel_typical import count_arrivals, score_on
from envs.state import AWAKE, BEST_FIT, DOWN, FGD, SLEEPING, WAKING


@compiled
def capacity(c, p, milli, mode, enough):
    """Workers of ``milli`` thousandths that fit on the awake or waking nodes (``mode``) of pool p; may stop counting at ``enough``."""
    o, i = c.o, c.i
    gpus = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_GPUS]
    counts = whole_row(c, p, mode)
    total = 0
    if milli >= WHOLE:
        need = milli // WHOLE
        for whole in range(need, gpus + 1):
            if i[counts + whole] > 0:
                total += i[counts + whole] * (whole // need)
        return total
    shares = WHOLE // milli
    for whole in range(1, gpus + 1):
        total += i[counts + whole] * whole * shares
    if total >= enough or i[o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.POOL_PARTIAL] == 0:
        return total
    first = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_FIRST_NODE]
    for node in range(first, first + c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_NODES]):
        a = o[fx.I_NODE] + node * fx.NODE_WIDTH
        if i[a + fx.NODE_STATE] == mode and i[a + fx.NODE_FREE] > i[a + fx.NODE_WHOLE] * WHOLE:
            gpu = o[fx.I_GPU] + c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU]
            for g in range(gpu, gpu + gpus):
                free = i[g]
                if free < WHOLE:
                    total += free // milli
            if total >= enough:
                return total
    return total


@compiled
def only_gpus_bind(c, job, p):
    """Whether GPUs alone decide if the job fits pool p."""
    o = c.o
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    s = o[fx.J_SHAPE] + c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE] * fx.SHAPE_CONSTANTS_WIDTH
    cpu = c.j[s + fx.SHAPE_CPU_MILLI] > 0 and c.k[k + fx.POOL_CPU_MILLI] > 0
    memory = c.j[s + fx.SHAPE_MEMORY_MIB] > 0 and c.k[k + fx.POOL_MEMORY_MIB] > 0
    return not (cpu or memory or held_milli(c, job, p) == 0 or c.k[k + fx.RACK_BUDGET_NW] > 0)


@compiled
def fits(c, job, p, level):
    """Whether the gang can be placed now; if so also its start delay and the number of nodes it wakes.

    A sleeping node, once taken, is waking and so preferred to the next sleeping one: they fill one after the other under both rules.
    """
    o, i = c.o, c.i
    workers = c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    milli = held_milli(c, job, p)
    pool = o[fx.I_POOL] + p * fx.POOL_WIDTH
    if i[pool + fx.POOL_FREE] < milli * workers:
        return False, 0, 0
    if not only_gpus_bind(c, job, p):
        return try_out(c, job, p, level)
    awake = capacity(c, p, milli, AWAKE, workers)
    if awake >= workers:
        return True, 0, 0
    waking = capacity(c, p, milli, WAKING, workers - awake) if i[pool + fx.STATE_COUNT + WAKING] > 0 else 0
    left = workers - awake - waking
    if left <= 0:
        return try_out(c, job, p, level)
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    gpus = c.k[k + fx.POOL_GPUS]
    per_node = gpus // (milli // WHOLE) if milli >= WHOLE else gpus * (WHOLE // milli)
    if per_node == 0 or per_node * i[pool + fx.STATE_COUNT + SLEEPING] < left:
        return False, 0, 0
    return True, c.k[k + fx.WAKE_LATENCY_S], (left + per_node - 1) // per_node


@compiled
def try_out(c, job, p, level):
    """``fits`` by placing the gang and taking it back."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + o[fx.N_JOBS] * fx.JOB_WIDTH
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    racks = o[fx.HAS_BUDGET] > 0 and c.k[k + fx.NODES_PER_RACK] > 0
    nw = worker_nw(c, job, p, level, True) if racks else 0
    wake_nw = committed_state_nw(c, p, WAKING) - committed_state_nw(c, p, SLEEPING)
    i[a + fx.RECORD_HEAD] = -1
    latest, woken, placed = i[fx.TIME_S], 0, True
    for _ in range(c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]):
        node = _choose_node(c, job, p, nw, wake_nw)
        if node < 0:
            placed = False
            break
        n = o[fx.I_NODE] + node * fx.NODE_WIDTH
        woke = i[n + fx.NODE_STATE] == SLEEPING
        if woke:
            i[n + fx.NODE_STATE] = WAKING
            i[n + fx.WAKE_END_S] = i[fx.TIME_S] + c.k[k + fx.WAKE_LATENCY_S]
            woken += 1
        if i[n + fx.NODE_STATE] == WAKING and i[n + fx.WAKE_END_S] > latest:
            latest = i[n + fx.WAKE_END_S]
        _occupy(c, a, job, p, node)
        i[o[fx.I_RECORD] + i[a + fx.RECORD_HEAD] * fx.RECORD_WIDTH + fx.RECORD_WOKE] = 1 if woke else 0
        if racks:
            i[o[fx.I_RACK] + rack_of(c, p, node)] += nw + (wake_nw if woke else 0)
    record = i[a + fx.RECORD_HEAD]
    while record >= 0:
        r = o[fx.I_RECORD] + record * fx.RECORD_WIDTH
        node = i[r + fx.RECORD_NODE]
        _vacate(c, job, p, r)
        if i[r + fx.RECORD_WOKE]:
            i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.NODE_STATE] = SLEEPING
        if racks:
            i[o[fx.I_RACK] + rack_of(c, p, node)] -= nw + (wake_nw if i[r + fx.RECORD_WOKE] else 0)
        record = _drop_record(c, record)
    return placed, latest - i[fx.TIME_S], woken


@compiled
def _choose_node(c, job, p, nw, wake_nw):
    """Best node of pool p for one worker, or -1; ``nw`` is what it would commit in a rack, 0 when racks have no budget."""
    if c.q[fx.NODE_RULE] >= FGD:
        return best_scored(c, job, p, p + 1, nw, wake_nw)
    o, i = c.o, c.i
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    s = o[fx.J_SHAPE] + c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE] * fx.SHAPE_CONSTANTS_WIDTH
    milli = held_milli(c, job, p)
    need = milli // WHOLE
    cpu = c.j[s + fx.SHAPE_CPU_MILLI] if c.k[k + fx.POOL_CPU_MILLI] > 0 else 0
    memory = c.j[s + fx.SHAPE_MEMORY_MIB] if c.k[k + fx.POOL_MEMORY_MIB] > 0 else 0
    budget = c.k[k + fx.RACK_BUDGET_NW]
    tightest = c.q[fx.NODE_RULE] == BEST_FIT
    best, best_state, best_free = -1, DOWN, 0
    first = c.k[k + fx.POOL_FIRST_NODE]
    a = o[fx.I_NODE] + first * fx.NODE_WIDTH
    for node in range(first, first + c.k[k + fx.POOL_NODES]):
        at = a
        a += fx.NODE_WIDTH
        mode = i[at + fx.NODE_STATE]
        free = i[at + fx.NODE_FREE]
        if mode > best_state or free < milli or mode == DOWN:
            continue
        if mode == best_state and ((free >= best_free) if tightest else (free <= best_free)):
            continue
        if milli >= WHOLE:
            if i[at + fx.NODE_WHOLE] < need:
                continue
        elif milli > 0 and not has_share(c, p, node, milli):
            continue
        if (cpu > 0 and i[at + fx.CPU_FREE] < cpu) or (memory > 0 and i[at + fx.MEMORY_FREE] < memory):
            continue
        if budget > 0 and i[o[fx.I_RACK] + rack_of(c, p, node)] + nw + (wake_nw if mode == SLEEPING else 0) > budget:
            continue
        best, best_state, best_free = node, mode, free
    return best


@compiled
def _count_node(c, p, a, whole, free):
    """Give the node at ``a`` ``whole`` wholly free GPUs and ``free`` thousandths, in all counters."""
    i = c.i
    mode = i[a + fx.NODE_STATE]
    if mode <= WAKING:
        counts = whole_row(c, p, mode)
        i[counts + i[a + fx.NODE_WHOLE]] -= 1
        i[counts + whole] += 1
    if mode != DOWN:
        i[c.o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.POOL_FREE] += free - i[a + fx.NODE_FREE]
    i[a + fx.NODE_WHOLE] = whole
    i[a + fx.NODE_FREE] = free


@compiled
def _occupy(c, holder, job, p, node):
    """Take one worker's GPUs, CPUs and memory on ``node`` and note them for the job at ``holder``."""
    o, i = c.o, c.i
    record = i[fx.FREE_RECORD]
    r = o[fx.I_RECORD] + record * fx.RECORD_WIDTH
    i[fx.FREE_RECORD] = i[r + fx.RECORD_NEXT]
    i[r + fx.RECORD_NEXT] = i[holder + fx.RECORD_HEAD]
    i[holder + fx.RECORD_HEAD] = record
    i[r + fx.RECORD_NODE] = node
    i[r + fx.RECORD_GPU] = -1
    i[r + fx.RECORD_BITS] = 0
    i[r + fx.RECORD_WOKE] = 0
    a = o[fx.I_NODE] + node * fx.NODE_WIDTH
    s = o[fx.J_SHAPE] + c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE] * fx.SHAPE_CONSTANTS_WIDTH
    i[a + fx.NODE_JOBS] += 1
    i[a + fx.CPU_FREE] -= c.j[s + fx.SHAPE_CPU_MILLI]
    i[a + fx.MEMORY_FREE] -= c.j[s + fx.SHAPE_MEMORY_MIB]
    milli = held_milli(c, job, p)
    gpus = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_GPUS]
    first = o[fx.I_GPU] + c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU]
    if milli >= WHOLE:
        left, bits = milli // WHOLE, 0
        for g in range(gpus):
            if left > 0 and i[first + g] == WHOLE:
                i[first + g] = 0
                bits |= 1 << g
                left -= 1
        i[r + fx.RECORD_BITS] = bits
        _count_node(c, p, a, i[a + fx.NODE_WHOLE] - milli // WHOLE, i[a + fx.NODE_FREE] - milli)
    elif milli > 0:
        tightest = c.q[fx.NODE_RULE] == BEST_FIT
        best = -1
        if c.q[fx.NODE_RULE] >= FGD:
            count_arrivals(c)
            best = first + score_on(c, job, p, node)[1]
        else:
            for g in range(first, first + gpus):
                free = i[g]
                if free >= milli and (best < 0 or ((free < i[best]) if tightest else (free > i[best]))):
                    best = g
        i[r + fx.RECORD_GPU] = best
        _set_share(c, p, a, best, i[best] - milli)


@compiled
def _set_share(c, p, a, gpu, free):
    i = c.i
    before = i[gpu]
    i[gpu] = free
    was_partial = 0 < before < WHOLE
    is_partial = 0 < free < WHOLE
    if is_partial != was_partial:
        i[c.o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.POOL_PARTIAL] += 1 if is_partial else -1
    whole = i[a + fx.NODE_WHOLE] + (1 if free == WHOLE else 0) - (1 if before == WHOLE else 0)
    _count_node(c, p, a, whole, i[a + fx.NODE_FREE] + free - before)


@compiled
def _vacate(c, job, p, r):
    """Give back what the record at ``r`` holds."""
    o, i = c.o, c.i
    node = i[r + fx.RECORD_NODE]
    a = o[fx.I_NODE] + node * fx.NODE_WIDTH
    s = o[fx.J_SHAPE] + c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE] * fx.SHAPE_CONSTANTS_WIDTH
    i[a + fx.NODE_JOBS] -= 1
    i[a + fx.CPU_FREE] += c.j[s + fx.SHAPE_CPU_MILLI]
    i[a + fx.MEMORY_FREE] += c.j[s + fx.SHAPE_MEMORY_MIB]
    milli = held_milli(c, job, p)
    gpu, bits = i[r + fx.RECORD_GPU], i[r + fx.RECORD_BITS]
    if gpu >= 0:
        _set_share(c, p, a, gpu, i[gpu] + milli)
    elif bits:
        first = o[fx.I_GPU] + c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_FIRST_GPU]
        for g in range(c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_GPUS]):
            if bits >> g & 1:
                i[first + g] = WHOLE
        _count_node(c, p, a, i[a + fx.NODE_WHOLE] + milli // WHOLE, i[a + fx.NODE_FREE] + milli)


@compiled
def _drop_record(c, record):
    """Return the record to the free list; the next record of its job."""
    r = c.o[fx.I_RECORD] + record * fx.RECORD_WIDTH
    following = c.i[r + fx.RECORD_NEXT]
    c.i[r + fx.RECORD_NEXT] = c.i[fx.FREE_RECORD]
    c.i[fx.FREE_RECORD] = record
    return following


@compiled
def place(c, job, p, level):
    """Place the gang (which fits) and wake the nodes that it needs; the second at which all are awake."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    start = i[fx.TIME_S]
    nw = worker_nw(c, job, p, level, True) if o[fx.HAS_BUDGET] else 0
    wake_nw = committed_state_nw(c, p, WAKING) - committed_state_nw(c, p, SLEEPING)
    i[a + fx.RECORD_HEAD] = -1
    for _ in range(c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]):
        node = _choose_node(c, job, p, nw, wake_nw)
        n = o[fx.I_NODE] + node * fx.NODE_WIDTH
        if i[n + fx.NODE_STATE] == SLEEPING:
            wake(c, p, node)
        elif i[n + fx.NODE_STATE] == AWAKE and i[n + fx.NODE_JOBS] == 0:
            leave_idle(c, p, node)
        if i[n + fx.NODE_STATE] == WAKING and i[n + fx.WAKE_END_S] > start:
            start = i[n + fx.WAKE_END_S]
        _occupy(c, a, job, p, node)
        commit(c, p, node, nw)
    return start


@compiled
def release(c, job, level):
    """The job leaves its GPUs in its pool, where it was at ``level``; awake nodes without jobs become idle."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    p = i[a + fx.POOL]
    nw = worker_nw(c, job, p, level, True) if o[fx.HAS_BUDGET] else 0
    record = i[a + fx.RECORD_HEAD]
    while record >= 0:
        r = o[fx.I_RECORD] + record * fx.RECORD_WIDTH
        node = i[r + fx.RECORD_NODE]
        n = o[fx.I_NODE] + node * fx.NODE_WIDTH
        _vacate(c, job, p, r)
        commit(c, p, node, -nw)
        if i[n + fx.NODE_JOBS] == 0 and i[n + fx.NODE_STATE] == AWAKE:
            become_idle(c, p, node)
        record = _drop_record(c, record)
    i[a + fx.RECORD_HEAD] = -1
    i[fx.RELEASED] = 1

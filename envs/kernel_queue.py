"""Compiled calendars and queues: indexed heaps of (time, index), the bit set of jobs that may be asked about, the tree of shapes.

Waiting jobs are grouped by *shape*, all that decides whether there is room. Jobs of one shape are consecutive *slots* in queue order; a
tree over the shapes holds the least rank of each shape's ready jobs. A shape without room leaves the tree until something is released, so
that a scan costs the number of shapes at most, whatever the number of waiting jobs. A second tree holds the least estimate of the ready
jobs, by slots: EASY finds the next one short enough to be backfilled, and the orders that time changes find the job of least score, without
looking at most of the others.
"""

from __future__ import annotations

import math

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.state import EASY

INDEX_BITS = 24
INDEX_MASK = (1 << INDEX_BITS) - 1
NEVER = 1 << 62
WFP3 = 4
WORD = 32  # bits used of a word: a signed one stays positive


# ---------------------------------------------------------------- heaps


@compiled
def heap_put(i, heap, places, n, time_s, index):
    """Put (time, index) into the heap at ``heap`` whose size is ``i[n]``; ``places`` holds where each index is, less 1."""
    key = (time_s << INDEX_BITS) | index
    at = i[n]
    i[n] = at + 1
    _rise(i, heap, places, at, key)


@compiled
def _rise(i, heap, places, at, key):
    while at > 0:
        parent = (at - 1) >> 1
        above = i[heap + parent]
        if above <= key:
            break
        i[heap + at] = above
        i[places + (above & INDEX_MASK)] = at + 1
        at = parent
    i[heap + at] = key
    i[places + (key & INDEX_MASK)] = at + 1


@compiled
def _sink(i, heap, places, size, at, key):
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and i[heap + child + 1] < i[heap + child]:
            child += 1
        below = i[heap + child]
        if below >= key:
            break
        i[heap + at] = below
        i[places + (below & INDEX_MASK)] = at + 1
        at = child
    i[heap + at] = key
    i[places + (key & INDEX_MASK)] = at + 1


@compiled
def heap_drop(i, heap, places, n, index):
    """Take ``index`` out of the heap, if it is in it."""
    at = i[places + index] - 1
    if at < 0:
        return
    i[places + index] = 0
    size = i[n] - 1
    i[n] = size
    if at == size:
        return
    last = i[heap + size]
    if at > 0 and i[heap + ((at - 1) >> 1)] > last:
        _rise(i, heap, places, at, last)
    else:
        _sink(i, heap, places, size, at, last)


@compiled
def heap_time(i, heap, n):
    return i[heap] >> INDEX_BITS if i[n] > 0 else NEVER


@compiled
def heap_take(i, heap, places, n, time_s):
    """Index of the next entry due at or before ``time_s``, taken out, or -1."""
    if i[n] == 0 or (i[heap] >> INDEX_BITS) > time_s:
        return -1
    index = i[heap] & INDEX_MASK
    heap_drop(i, heap, places, n, index)
    return index


# ---------------------------------------------------------------- ready jobs


@compiled
def _first_bit(i, words, start, end):
    """Least set bit from ``start`` on and below ``end``, or -1."""
    if start >= end:
        return -1
    at = start
    word = i[words + (at >> 5)] >> (at & 31)
    while word == 0:
        at = ((at >> 5) + 1) << 5
        if at >= end:
            return -1
        word = i[words + (at >> 5)]
    while word & 0xFF == 0:
        word >>= 8
        at += 8
    while word & 1 == 0:
        word >>= 1
        at += 1
    return at if at < end else -1


@compiled
def static_order(c):
    """Row of the queue tables; orders that time changes are kept by submit time and sorted when they are scanned."""
    order = c.q[fx.QUEUE_ORDER]
    return 1 if order >= WFP3 else order


@compiled
def _by_estimate(c):
    """Whether the tree of least estimates is kept: EASY reads it, and the search for the least score."""
    return c.q[fx.DISCIPLINE] == EASY or c.q[fx.QUEUE_ORDER] >= WFP3


@compiled
def _set_least(i, tree, at, value):
    """Set a leaf (its place in the tree) and the least values above it."""
    i[tree + at] = value
    while at > 1:
        at >>= 1
        least = min(i[tree + 2 * at], i[tree + 2 * at + 1])
        if i[tree + at] == least:
            break
        i[tree + at] = least


@compiled
def _set_leaf(c, shape, rank):
    _set_least(c.i, c.o[fx.I_TREE], (c.o[fx.N_TREE] >> 1) + shape, rank)


@compiled
def _set_short(c, slot, seconds):
    """Estimate of the ready job at a slot, in the tree of least estimates; NEVER when it is not ready."""
    _set_least(c.i, c.o[fx.I_SHORT], (c.o[fx.N_SHORT] >> 1) + slot, seconds)


@compiled
def _first_short(c, start, end, limit_s):
    """Least slot from ``start`` on and below ``end`` whose ready job has an estimate of at most ``limit_s``, or -1."""
    i, tree, half = c.i, c.o[fx.I_SHORT], c.o[fx.N_SHORT] >> 1
    at = half + start
    while i[tree + at] > limit_s:
        while at & 1 and at > 1:
            at >>= 1
        if at <= 1:
            return -1
        at += 1
    while at < half:
        at = 2 * at if i[tree + 2 * at] <= limit_s else 2 * at + 1
    return at - half if at - half < end else -1


@compiled
def limit_shape(c, shape, limit_s):
    """For the rest of this scan only jobs of the shape with estimates up to ``limit_s`` can be offered a run."""
    i = c.i
    a = c.o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH
    if i[a + fx.SHAPE_LIMIT_S] == NEVER:
        i[c.o[fx.I_BLOCKED] + i[fx.N_BLOCKED]] = shape
        i[fx.N_BLOCKED] += 1
    i[a + fx.SHAPE_LIMIT_S] = limit_s
    _refresh(c, shape)


@compiled
def _refresh(c, shape):
    """Leaf of a shape from its ready jobs."""
    o, i, j = c.o, c.i, c.j
    a = o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH
    s = o[fx.J_SHAPE] + shape * fx.SHAPE_CONSTANTS_WIDTH
    if _by_estimate(c):
        slot = _first_short(c, j[s + fx.SHAPE_FIRST], j[s + fx.SHAPE_END], min(i[a + fx.SHAPE_LIMIT_S], NEVER - 1))
    else:
        slot = _first_bit(i, o[fx.I_READY], i[a + fx.SHAPE_LOW], j[s + fx.SHAPE_END])
    if slot < 0:
        i[a + fx.SHAPE_LOW] = j[s + fx.SHAPE_END]
        _set_leaf(c, shape, NEVER)
        return
    i[a + fx.SHAPE_LOW] = slot
    order = static_order(c) * o[fx.N_JOBS]
    _set_leaf(c, shape, j[o[fx.J_RANK] + order + j[o[fx.J_AT_SLOT] + order + slot]])


@compiled
def set_ready(c, job):
    o, i, j = c.o, c.i, c.j
    shape = j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE]
    slot = j[o[fx.J_SLOT] + static_order(c) * o[fx.N_JOBS] + job]
    i[o[fx.I_READY] + (slot >> 5)] |= 1 << (slot & 31)
    if _by_estimate(c):
        done = i[o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.DONE_S]
        _set_short(c, slot, max(1, j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.ESTIMATE_S] - done))
    a = o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH
    if slot < i[a + fx.SHAPE_LOW]:
        i[a + fx.SHAPE_LOW] = slot
        if not i[a + fx.SHAPE_BLOCKED]:
            _set_leaf(c, shape, j[o[fx.J_RANK] + static_order(c) * o[fx.N_JOBS] + job])


@compiled
def clear_ready(c, job):
    o, i, j = c.o, c.i, c.j
    shape = j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE]
    slot = j[o[fx.J_SLOT] + static_order(c) * o[fx.N_JOBS] + job]
    i[o[fx.I_READY] + (slot >> 5)] &= ~(1 << (slot & 31))
    if _by_estimate(c):
        _set_short(c, slot, NEVER)
    a = o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH
    if slot == i[a + fx.SHAPE_LOW] and not i[a + fx.SHAPE_BLOCKED]:
        _refresh(c, shape)


@compiled
def block_shape(c, job):
    """No room for jobs of this shape until something is released."""
    o, i = c.o, c.i
    shape = c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE]
    a = o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH
    if i[a + fx.SHAPE_BLOCKED]:
        return
    i[a + fx.SHAPE_BLOCKED] = 1
    if i[a + fx.SHAPE_LIMIT_S] == NEVER:
        i[o[fx.I_BLOCKED] + i[fx.N_BLOCKED]] = shape
        i[fx.N_BLOCKED] += 1
    _set_leaf(c, shape, NEVER)


@compiled
def unblock_shapes(c):
    o, i = c.o, c.i
    for at in range(i[fx.N_BLOCKED]):
        shape = i[o[fx.I_BLOCKED] + at]
        i[o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH + fx.SHAPE_BLOCKED] = 0
        i[o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH + fx.SHAPE_LIMIT_S] = NEVER
        _refresh(c, shape)
    i[fx.N_BLOCKED] = 0
    i[fx.RELEASED] = 0


@compiled
def skip_job(c, job):
    """Leave one job out of the rest of this scan."""
    clear_ready(c, job)
    c.i[c.o[fx.I_SKIPPED] + c.i[fx.N_SKIPPED]] = job
    c.i[fx.N_SKIPPED] += 1


@compiled
def restore_skipped(c):
    for at in range(c.i[fx.N_SKIPPED]):
        set_ready(c, c.i[c.o[fx.I_SKIPPED] + at])
    c.i[fx.N_SKIPPED] = 0


@compiled
def first_ready(c):
    """Job of least rank among the ready jobs of shapes that may have room, or -1."""
    o = c.o
    rank = c.i[o[fx.I_TREE] + 1]
    if rank == NEVER:
        return -1
    shape = 1
    half = o[fx.N_TREE] >> 1
    while shape < half:
        shape = 2 * shape if c.i[o[fx.I_TREE] + 2 * shape] == rank else 2 * shape + 1
    slot = c.i[o[fx.I_SHAPE] + (shape - half) * fx.SHAPE_WIDTH + fx.SHAPE_LOW]
    return c.j[o[fx.J_AT_SLOT] + static_order(c) * o[fx.N_JOBS] + slot]


# ---------------------------------------------------------------- orders that time changes


UNKNOWN, NONE = -2, -1


@compiled
def _score(c, wait_s, gpus, estimate_s):
    """WFP3 and UNICEP (Tang et al. 2009), smallest first; neither rises with the wait nor falls with the estimate, rounding included."""
    if c.q[fx.QUEUE_ORDER] == WFP3:
        relative = wait_s / estimate_s
        return -(relative * relative * relative) * gpus
    return -wait_s / (math.log2(max(2.0, gpus)) * estimate_s)


@compiled
def _score_at_slot(c, slot, estimate_s):
    """Score of the job at a slot, with another estimate where one is given (above 0)."""
    j = c.j
    job = j[c.o[fx.J_AT_SLOT] + c.o[fx.N_JOBS] + slot]
    a = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    wait_s = float(c.i[fx.TIME_S] - j[a + fx.SUBMIT_S])
    return _score(c, wait_s, j[a + fx.ASKED_MILLI] / 1000.0, estimate_s if estimate_s > 0 else j[a + fx.ESTIMATE_S])


@compiled
def begin_sorted(c):
    """Forget the best job of each shape: time has changed them."""
    for shape in range(c.j[fx.SHAPE_COUNT]):
        c.i[c.o[fx.I_SCAN] + shape] = UNKNOWN


@compiled
def _best_of_shape(c, shape):
    """Slot of least score among the shape's ready jobs, lowest on ties, or NONE; its score is left in ``F_SCORE``.

    Slots of a shape are in order of submission. A subtree's first wait and least remaining estimate bound its scores, so that most of them
    need not be looked into.
    """
    o, i, f, j = c.o, c.i, c.f, c.j
    tree, half = o[fx.I_SHORT], o[fx.N_SHORT] >> 1
    s = o[fx.J_SHAPE] + shape * fx.SHAPE_CONSTANTS_WIDTH
    limit = min(i[o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH + fx.SHAPE_LIMIT_S], NEVER - 1)
    best, least = NONE, 0.0
    first, end = j[s + fx.SHAPE_FIRST], j[s + fx.SHAPE_END]
    while first < end:
        # the largest subtree that begins here and ends in time
        root, shift = half + first, 0
        while root & 1 == 0 and first + (2 << shift) <= end:
            root >>= 1
            shift += 1
        first += 1 << shift
        at = root
        while True:
            short = i[tree + at]
            if short <= limit:
                slot = (at << shift) - half
                bound = _score_at_slot(c, slot, 0 if shift == 0 else short)
                if best < 0 or bound < least:
                    if shift == 0:
                        best, least = slot, bound
                    else:
                        at *= 2
                        shift -= 1
                        continue
            while at != root and at & 1:
                at >>= 1
                shift += 1
            if at == root:
                break
            at += 1
    f[o[fx.F_SCORE] + shape] = least
    return best


@compiled
def next_sorted(c):
    """Ready job of least score and index among the shapes that may have room, or -1; it leaves the ready ones, or its shape the scan."""
    o, i, f, j = c.o, c.i, c.f, c.j
    order, best, best_shape, least = o[fx.J_AT_SLOT] + o[fx.N_JOBS], -1, -1, 0.0
    for shape in range(j[fx.SHAPE_COUNT]):
        if i[o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH + fx.SHAPE_BLOCKED]:
            continue
        slot = i[o[fx.I_SCAN] + shape]
        if slot == UNKNOWN:
            slot = _best_of_shape(c, shape)
            i[o[fx.I_SCAN] + shape] = slot
        if slot < 0:
            continue
        job, score = j[order + slot], f[o[fx.F_SCORE] + shape]
        if best < 0 or score < least or (score == least and job < best):
            best, best_shape, least = job, shape, score
    if best_shape >= 0:
        i[o[fx.I_SCAN] + best_shape] = UNKNOWN
    return best


# ---------------------------------------------------------------- idle nodes, event log


@compiled
def idle_append(c, node):
    o, i = c.o, c.i
    nodes = o[fx.I_NODE]
    head = nodes + o[fx.N_NODES] * fx.NODE_WIDTH
    last = i[head + fx.IDLE_PREV]
    i[nodes + last * fx.NODE_WIDTH + fx.IDLE_NEXT] = node
    i[nodes + node * fx.NODE_WIDTH + fx.IDLE_PREV] = last
    i[nodes + node * fx.NODE_WIDTH + fx.IDLE_NEXT] = o[fx.N_NODES]
    i[head + fx.IDLE_PREV] = node


@compiled
def idle_remove(c, node):
    i, nodes = c.i, c.o[fx.I_NODE]
    a = nodes + node * fx.NODE_WIDTH
    before, after = i[a + fx.IDLE_PREV], i[a + fx.IDLE_NEXT]
    i[nodes + before * fx.NODE_WIDTH + fx.IDLE_NEXT] = after
    i[nodes + after * fx.NODE_WIDTH + fx.IDLE_PREV] = before


@compiled
def log_event(c, kind, job, pool, level, node, extra):
    """Append to the event log where there is one; it is drained between instants, never within one."""
    if c.o[fx.N_LOG] == 0:
        return
    log, at = c.log, 7 * c.i[fx.LOG_COUNT]
    log[at], log[at + 1], log[at + 2], log[at + 3] = c.i[fx.TIME_S], kind, job, pool
    log[at + 4], log[at + 5], log[at + 6] = level, node, extra
    c.i[fx.LOG_COUNT] += 1

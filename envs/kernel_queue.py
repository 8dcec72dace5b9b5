"""Compiled calendars and queues: binary heaps of (time, index), the bit set of jobs that may be asked about, queue orders, idle nodes."""

from __future__ import annotations

import math

import numpy as np

from envs import fields as fx
from envs.kernel_compile import compiled

INDEX_BITS = 24
INDEX_MASK = (1 << INDEX_BITS) - 1
NEVER = 1 << 62
ENDS, STARTS, HOLDS, WAKES = 0, 1, 2, 3
WFP3 = 4


@compiled
def heap_push(heap, size, key):
    """Put ``key`` into ``heap[:size]``; the caller counts."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= key:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = key


@compiled
def heap_pop(heap, size):
    """Take the least key out of ``heap[:size]``; the caller counts."""
    least = heap[0]
    last = heap[size - 1]
    end = size - 1
    at = 0
    while True:
        child = 2 * at + 1
        if child >= end:
            break
        if child + 1 < end and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= last:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    return least


@compiled
def add(heap, sizes, which, time_s, index):
    heap_push(heap, sizes[which], (time_s << INDEX_BITS) | index)
    sizes[which] += 1


@compiled
def first_time(heap, size):
    return heap[0] >> INDEX_BITS if size > 0 else NEVER


@compiled
def take_due(heap, sizes, which, time_s):
    """Index of the next entry due at or before ``time_s``, taken out, or -1."""
    if sizes[which] == 0 or (heap[0] >> INDEX_BITS) > time_s:
        return -1
    key = heap_pop(heap, sizes[which])
    sizes[which] -= 1
    return key & INDEX_MASK


@compiled
def set_bit(words, at):
    words[at >> 6] |= np.uint64(1) << np.uint64(at & 63)


@compiled
def clear_bit(words, at):
    words[at >> 6] &= ~(np.uint64(1) << np.uint64(at & 63))


@compiled
def next_bit(words, start, limit):
    """Least set bit from ``start`` on and below ``limit``, or -1."""
    if start >= limit:
        return -1
    index = start >> 6
    word = words[index] >> np.uint64(start & 63)
    at = start
    while word == 0:
        index += 1
        at = index << 6
        if at >= limit:
            return -1
        word = words[index]
    while word & np.uint64(0xFF) == 0:
        word >>= np.uint64(8)
        at += 8
    while word & np.uint64(1) == 0:
        word >>= np.uint64(1)
        at += 1
    return at if at < limit else -1


@compiled
def static_order(params, b):
    """Row of the queue tables; orders that time changes are kept by submit time and sorted when they are scanned."""
    order = params.ints[b, fx.QUEUE_ORDER]
    return 1 if order >= WFP3 else order


@compiled
def _score(jobs, state, b, order, job):
    """WFP3 and UNICEP (Tang et al. 2009), smallest first."""
    work = jobs.work_i[state.env_i[b, fx.WINDOW]]
    wait_s = float(state.env_i[b, fx.TIME_S] - work[fx.SUBMIT_S, job])
    gpus = work[fx.WORKERS, job] * work[fx.GPU_MILLI, job] / 1000.0
    if order == WFP3:
        relative = wait_s / work[fx.ESTIMATE_S, job]
        return -(relative * relative * relative) * gpus
    return -wait_s / (math.log2(max(2.0, gpus)) * work[fx.ESTIMATE_S, job])


@compiled
def _sorts_before(scores, first, second):
    return scores[first] < scores[second] or (scores[first] == scores[second] and first < second)


@compiled
def sort_ready(jobs, params, state, b):
    """Heap of the ready jobs by score and index, for one scan."""
    window = state.env_i[b, fx.WINDOW]
    order = params.ints[b, fx.QUEUE_ORDER]
    by_rank = jobs.work_i[window, fx.BY_RANK + static_order(params, b)]
    heap, scores = state.scan[b], state.score[b]
    size = 0
    rank = next_bit(state.ready[b], 0, jobs.count[window])
    while rank >= 0:
        job = by_rank[rank]
        scores[job] = _score(jobs, state, b, order, job)
        at = size
        while at > 0 and _sorts_before(scores, job, heap[(at - 1) >> 1]):
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        heap[at] = job
        size += 1
        rank = next_bit(state.ready[b], rank + 1, jobs.count[window])
    state.env_i[b, fx.N_SCAN] = size


@compiled
def next_sorted(state, b):
    """The next job of the sorted scan, or -1."""
    heap, scores = state.scan[b], state.score[b]
    size = state.env_i[b, fx.N_SCAN]
    if size == 0:
        return -1
    job = heap[0]
    last = heap[size - 1]
    size -= 1
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _sorts_before(scores, heap[child + 1], heap[child]):
            child += 1
        if not _sorts_before(scores, heap[child], last):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    state.env_i[b, fx.N_SCAN] = size
    return job


@compiled
def idle_append(state, b, node):
    head = state.node_i.shape[2] - 1
    last = state.node_i[b, fx.IDLE_PREV, head]
    state.node_i[b, fx.IDLE_NEXT, last] = node
    state.node_i[b, fx.IDLE_PREV, node] = last
    state.node_i[b, fx.IDLE_NEXT, node] = head
    state.node_i[b, fx.IDLE_PREV, head] = node


@compiled
def idle_remove(state, b, node):
    before, after = state.node_i[b, fx.IDLE_PREV, node], state.node_i[b, fx.IDLE_NEXT, node]
    state.node_i[b, fx.IDLE_NEXT, before] = after
    state.node_i[b, fx.IDLE_PREV, after] = before
    state.node_i[b, fx.IDLE_NEXT, node] = -1


@compiled
def log_event(state, b, kind, job, pool, level, node, extra):
    """Append to the event log where there is one; the arrays are drained between instants, never within one."""
    if state.log.shape[1] == 1:
        return
    at = state.env_i[b, fx.LOG_COUNT]
    row = state.log[b, at]
    row[0], row[1], row[2], row[3], row[4], row[5], row[6] = state.env_i[b, fx.TIME_S], kind, job, pool, level, node, extra
    state.env_i[b, fx.LOG_COUNT] = at + 1

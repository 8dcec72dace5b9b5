"""Compiled calendars and queues: binary heaps of (time, index), the bit set of jobs that may be asked about, the list of idle nodes."""

from __future__ import annotations

import numpy as np

from envs import fields as fx
from envs.kernel_compile import compiled

INDEX_BITS = 24
INDEX_MASK = (1 << INDEX_BITS) - 1
NEVER = 1 << 62
ENDS, STARTS, HOLDS, WAKES = 0, 1, 2, 3


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

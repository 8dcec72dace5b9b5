"""Compiled placement: does a gang fit a pool, which nodes and GPUs does it take, and what happens when it leaves."""

from __future__ import annotations

from envs import events
from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_queue import WAKES, add, idle_append, idle_remove, log_event
from envs.state import AWAKE, BEST_FIT, SLEEPING, WAKING

WHOLE = 1000


@compiled
def capacity(static, state, b, p, milli, which, enough):
    """Workers of ``milli`` thousandths that fit on the awake or waking nodes (``which``) of pool p; may stop counting at ``enough``."""
    gpus = static.pool_i[fx.POOL_GPUS, p]
    total = 0
    counts = state.whole_count[b, p, which]
    if milli >= WHOLE:
        need = milli // WHOLE
        for whole in range(need, gpus + 1):
            if counts[whole] > 0:
                total += counts[whole] * (whole // need)
        return total
    shares = WHOLE // milli
    for whole in range(1, gpus + 1):
        total += counts[whole] * whole * shares
    if total >= enough or state.pool_i[b, fx.POOL_PARTIAL, p] == 0:
        return total
    first = static.pool_i[fx.POOL_FIRST_NODE, p]
    for node in range(first, first + static.pool_i[fx.POOL_NODES, p]):
        if state.node_i[b, fx.NODE_STATE, node] == which and state.node_i[b, fx.NODE_FREE, node] > 0:
            gpu = static.node_i[fx.NODE_FIRST_GPU, node]
            for g in range(gpu, gpu + gpus):
                free = state.gpu_free[b, g]
                if free < WHOLE:
                    total += free // milli
            if total >= enough:
                return total
    return total


@compiled
def fits(static, state, params, b, p, milli, workers):
    """Whether the gang can be placed now; if so also its start delay and the number of nodes it wakes.

    A sleeping node, once taken, is waking and so preferred to the next sleeping one: they fill one after the other under both rules.
    """
    if state.pool_i[b, fx.POOL_FREE, p] < milli * workers:
        return False, 0, 0
    awake = capacity(static, state, b, p, milli, AWAKE, workers)
    if awake >= workers:
        return True, 0, 0
    waking = capacity(static, state, b, p, milli, WAKING, workers - awake) if state.pool_i[b, fx.STATE_COUNT + WAKING, p] > 0 else 0
    left = workers - awake - waking
    if left <= 0:
        return True, _waking_delay(static, state, params, b, p, milli, workers), 0
    gpus = static.pool_i[fx.POOL_GPUS, p]
    per_node = gpus // (milli // WHOLE) if milli >= WHOLE else gpus * (WHOLE // milli)
    if per_node == 0 or per_node * state.pool_i[b, fx.STATE_COUNT + SLEEPING, p] < left:
        return False, 0, 0
    return True, static.pool_i[fx.WAKE_LATENCY_S, p], (left + per_node - 1) // per_node


@compiled
def _waking_delay(static, state, params, b, p, milli, workers):
    """Latest wake end of the nodes that the gang would take, less now: placed and taken back, without a sleeping node."""
    job = state.job_i.shape[2] - 2
    saved = state.job_i[b, fx.RECORD_HEAD, job]
    state.job_i[b, fx.RECORD_HEAD, job] = -1
    latest = state.env_i[b, fx.TIME_S]
    rule = params.ints[b, fx.NODE_RULE]
    for _ in range(workers):
        node = _choose_node(static, state, b, p, milli, rule)
        if state.node_i[b, fx.NODE_STATE, node] == WAKING and state.node_i[b, fx.WAKE_END_S, node] > latest:
            latest = state.node_i[b, fx.WAKE_END_S, node]
        _occupy(static, state, b, job, p, node, milli, rule)
    record = state.job_i[b, fx.RECORD_HEAD, job]
    while record >= 0:
        _vacate(static, state, b, p, record, milli)
        record = _drop_record(state, b, record)
    state.job_i[b, fx.RECORD_HEAD, job] = saved
    return latest - state.env_i[b, fx.TIME_S]


@compiled
def _has_share(static, state, b, p, node, milli):
    if state.node_i[b, fx.NODE_WHOLE, node] > 0:
        return True
    gpu = static.node_i[fx.NODE_FIRST_GPU, node]
    found = False
    for g in range(gpu, gpu + static.pool_i[fx.POOL_GPUS, p]):
        found |= state.gpu_free[b, g] >= milli
    return found


@compiled
def _choose_node(static, state, b, p, milli, rule):
    """Best node of pool p for one worker, or -1."""
    best = -1
    best_state = 9
    best_free = 0
    first = static.pool_i[fx.POOL_FIRST_NODE, p]
    need = milli // WHOLE
    for node in range(first, first + static.pool_i[fx.POOL_NODES, p]):
        mode = state.node_i[b, fx.NODE_STATE, node]
        if mode > best_state:
            continue
        free = state.node_i[b, fx.NODE_FREE, node]
        if free < milli:
            continue
        if mode == best_state and ((free >= best_free) if rule == BEST_FIT else (free <= best_free)):
            continue
        if milli >= WHOLE:
            if state.node_i[b, fx.NODE_WHOLE, node] < need:
                continue
        elif not _has_share(static, state, b, p, node, milli):
            continue
        best, best_state, best_free = node, mode, free
    return best


@compiled
def _count_node(state, b, p, node, whole, free):
    """Give the node ``whole`` wholly free GPUs and ``free`` thousandths, in all counters."""
    mode = state.node_i[b, fx.NODE_STATE, node]
    if mode != SLEEPING:
        counts = state.whole_count[b, p, mode]
        counts[state.node_i[b, fx.NODE_WHOLE, node]] -= 1
        counts[whole] += 1
    state.pool_i[b, fx.POOL_FREE, p] += free - state.node_i[b, fx.NODE_FREE, node]
    state.node_i[b, fx.NODE_WHOLE, node] = whole
    state.node_i[b, fx.NODE_FREE, node] = free


@compiled
def _occupy(static, state, b, job, p, node, milli, rule):
    """Take one worker's GPUs on ``node`` and note them for ``job``."""
    spare = state.job_i.shape[2] - 1
    record = state.job_i[b, fx.RECORD_HEAD, spare]
    state.job_i[b, fx.RECORD_HEAD, spare] = state.record_i[b, fx.RECORD_NEXT, record]
    state.record_i[b, fx.RECORD_NEXT, record] = state.job_i[b, fx.RECORD_HEAD, job]
    state.job_i[b, fx.RECORD_HEAD, job] = record
    state.record_i[b, fx.RECORD_NODE, record] = node
    first = static.node_i[fx.NODE_FIRST_GPU, node]
    gpus = static.pool_i[fx.POOL_GPUS, p]
    if milli >= WHOLE:
        need = milli // WHOLE
        bits = 0
        left = need
        for g in range(gpus):
            if left > 0 and state.gpu_free[b, first + g] == WHOLE:
                state.gpu_free[b, first + g] = 0
                bits |= 1 << g
                left -= 1
        state.record_i[b, fx.RECORD_GPU, record] = -1
        state.record_i[b, fx.RECORD_BITS, record] = bits
        _count_node(state, b, p, node, state.node_i[b, fx.NODE_WHOLE, node] - need, state.node_i[b, fx.NODE_FREE, node] - milli)
        return
    best = -1
    for g in range(first, first + gpus):
        free = state.gpu_free[b, g]
        if free < milli:
            continue
        if best < 0 or ((free < state.gpu_free[b, best]) if rule == BEST_FIT else (free > state.gpu_free[b, best])):
            best = g
    _set_share(state, b, p, node, best, state.gpu_free[b, best] - milli)
    state.record_i[b, fx.RECORD_GPU, record] = best
    state.record_i[b, fx.RECORD_BITS, record] = 0


@compiled
def _set_share(state, b, p, node, gpu, free):
    before = state.gpu_free[b, gpu]
    state.gpu_free[b, gpu] = free
    was_partial = 0 < before < WHOLE
    is_partial = 0 < free < WHOLE
    if is_partial != was_partial:
        state.pool_i[b, fx.POOL_PARTIAL, p] += 1 if is_partial else -1
    whole = state.node_i[b, fx.NODE_WHOLE, node]
    if before == WHOLE:
        whole -= 1
    if free == WHOLE:
        whole += 1
    _count_node(state, b, p, node, whole, state.node_i[b, fx.NODE_FREE, node] + free - before)


@compiled
def _vacate(static, state, b, p, record, milli):
    """Give one worker's GPUs back."""
    node = state.record_i[b, fx.RECORD_NODE, record]
    gpu = state.record_i[b, fx.RECORD_GPU, record]
    if gpu >= 0:
        _set_share(state, b, p, node, gpu, state.gpu_free[b, gpu] + milli)
        return
    first = static.node_i[fx.NODE_FIRST_GPU, node]
    bits = state.record_i[b, fx.RECORD_BITS, record]
    for g in range(static.pool_i[fx.POOL_GPUS, p]):
        if bits >> g & 1:
            state.gpu_free[b, first + g] = WHOLE
    _count_node(state, b, p, node, state.node_i[b, fx.NODE_WHOLE, node] + milli // WHOLE, state.node_i[b, fx.NODE_FREE, node] + milli)


@compiled
def _drop_record(state, b, record):
    """Return the record to the free list; the next record of its job."""
    spare = state.job_i.shape[2] - 1
    following = state.record_i[b, fx.RECORD_NEXT, record]
    state.record_i[b, fx.RECORD_NEXT, record] = state.job_i[b, fx.RECORD_HEAD, spare]
    state.job_i[b, fx.RECORD_HEAD, spare] = record
    return following


@compiled
def place(static, state, params, b, job, p, milli, workers):
    """Place the gang (which fits) and wake the nodes that it needs; its start second."""
    now = state.env_i[b, fx.TIME_S]
    start = now
    rule = params.ints[b, fx.NODE_RULE]
    full = static.pool_i[fx.POOL_GPUS, p] * WHOLE
    state.job_i[b, fx.RECORD_HEAD, job] = -1
    for _ in range(workers):
        node = _choose_node(static, state, b, p, milli, rule)
        mode = state.node_i[b, fx.NODE_STATE, node]
        if mode == SLEEPING:
            _wake(static, state, b, p, node)
        elif mode == AWAKE and state.node_i[b, fx.NODE_FREE, node] == full:
            _leave_idle(state, b, p, node)
        if state.node_i[b, fx.NODE_STATE, node] == WAKING and state.node_i[b, fx.WAKE_END_S, node] > start:
            start = state.node_i[b, fx.WAKE_END_S, node]
        _occupy(static, state, b, job, p, node, milli, rule)
    return start


@compiled
def _leave_idle(state, b, p, node):
    state.pool_i[b, fx.IDLE_AWAKE, p] -= 1
    if state.node_i[b, fx.TIRED, node]:
        state.node_i[b, fx.TIRED, node] = False
        state.pool_i[b, fx.TIRED_COUNT, p] -= 1
    else:
        idle_remove(state, b, node)


@compiled
def _wake(static, state, b, p, node):
    state.node_i[b, fx.NODE_STATE, node] = WAKING
    state.pool_i[b, fx.STATE_COUNT + SLEEPING, p] -= 1
    state.pool_i[b, fx.STATE_COUNT + WAKING, p] += 1
    state.whole_count[b, p, WAKING, state.node_i[b, fx.NODE_WHOLE, node]] += 1
    state.node_i[b, fx.WAKE_END_S, node] = state.env_i[b, fx.TIME_S] + static.pool_i[fx.WAKE_LATENCY_S, p]
    add(state.node_i[b, fx.WAKE_HEAP], state.heap_size[b], WAKES, state.node_i[b, fx.WAKE_END_S, node], node)
    log_event(state, b, events.WAKE, -1, p, -1, node, state.node_i[b, fx.WAKE_END_S, node])


@compiled
def wake_done(static, state, b, node):
    p = static.node_i[fx.NODE_POOL, node]
    state.node_i[b, fx.NODE_STATE, node] = AWAKE
    state.pool_i[b, fx.STATE_COUNT + WAKING, p] -= 1
    state.pool_i[b, fx.STATE_COUNT + AWAKE, p] += 1
    whole = state.node_i[b, fx.NODE_WHOLE, node]
    state.whole_count[b, p, WAKING, whole] -= 1
    state.whole_count[b, p, AWAKE, whole] += 1
    log_event(state, b, events.WAKE_DONE, -1, p, -1, node, -1)


@compiled
def release(static, state, b, job, p, milli):
    """The job leaves its GPUs; nodes without jobs become idle."""
    full = static.pool_i[fx.POOL_GPUS, p] * WHOLE
    record = state.job_i[b, fx.RECORD_HEAD, job]
    while record >= 0:
        node = state.record_i[b, fx.RECORD_NODE, record]
        _vacate(static, state, b, p, record, milli)
        if state.node_i[b, fx.NODE_FREE, node] == full:
            state.node_i[b, fx.IDLE_SINCE_S, node] = state.env_i[b, fx.TIME_S]
            state.pool_i[b, fx.IDLE_AWAKE, p] += 1
            idle_append(state, b, node)
        record = _drop_record(state, b, record)
    state.job_i[b, fx.RECORD_HEAD, job] = -1


@compiled
def fall_asleep(static, grid, params, state, b, column):
    """Step 6 of an instant: idle nodes that have waited long enough sleep, as far as the warm reserve allows."""
    after = params.ints[b, fx.SLEEP_AFTER_S]
    if after < 0:
        return
    now = state.env_i[b, fx.TIME_S]
    head = state.node_i.shape[2] - 1
    node = state.node_i[b, fx.IDLE_NEXT, head]
    while node != head and state.node_i[b, fx.IDLE_SINCE_S, node] + after <= now:
        idle_remove(state, b, node)
        state.node_i[b, fx.TIRED, node] = True
        state.pool_i[b, fx.TIRED_COUNT, static.node_i[fx.NODE_POOL, node]] += 1
        node = state.node_i[b, fx.IDLE_NEXT, head]
    window = state.env_i[b, fx.WINDOW]
    for p in range(static.pool_i.shape[1]):
        reserve = grid.reserve[window, p, column]
        if state.pool_i[b, fx.TIRED_COUNT, p] == 0 or state.pool_i[b, fx.IDLE_AWAKE, p] <= reserve:
            continue
        node = static.pool_i[fx.POOL_FIRST_NODE, p] + static.pool_i[fx.POOL_NODES, p] - 1
        while state.pool_i[b, fx.TIRED_COUNT, p] > 0 and state.pool_i[b, fx.IDLE_AWAKE, p] > reserve:
            if state.node_i[b, fx.TIRED, node]:
                state.node_i[b, fx.TIRED, node] = False
                state.pool_i[b, fx.TIRED_COUNT, p] -= 1
                state.pool_i[b, fx.IDLE_AWAKE, p] -= 1
                state.node_i[b, fx.NODE_STATE, node] = SLEEPING
                state.pool_i[b, fx.STATE_COUNT + AWAKE, p] -= 1
                state.pool_i[b, fx.STATE_COUNT + SLEEPING, p] += 1
                state.whole_count[b, p, AWAKE, state.node_i[b, fx.NODE_WHOLE, node]] -= 1
                log_event(state, b, events.SLEEP, -1, p, -1, node, -1)
            node -= 1

"""Compiled decisions: the scan of the queue, masks, the EASY reservation, and the effect of an action."""

from __future__ import annotations

from envs import events
from envs.kernel_accrual import start_charging
from envs.kernel_compile import compiled
from envs.kernel_placement import fits, place
from envs.kernel_queue import ENDS, HOLDS, INDEX_BITS, INDEX_MASK, NEVER, STARTS, add, clear_bit, heap_pop, heap_push, log_event, next_bit
from envs.kernel_scores import runtime_s
from envs.state import EASY, PLACED, RUNNING, STRICT


@compiled
def next_question(static, jobs, params, state, b):
    """Go on with the scan to the next job to ask about; False when the scan is over."""
    window = state.window[b]
    order = params.queue_order[b]
    limit = jobs.count[window]
    rank = state.cursor[b]
    while True:
        rank = next_bit(state.ready[b], rank, limit)
        if rank < 0:
            return False
        job = jobs.by_rank[window, order, rank]
        rank += 1
        if fill_mask(static, jobs, params, state, b, job):
            state.asking[b] = job
            state.cursor[b] = rank
            state.scored[b] = False
            return True
        if params.discipline[b] == STRICT:
            return False
        if params.discipline[b] == EASY and state.reserved_pool[b] < 0:
            _reserve(static, jobs, state, b, job)


@compiled
def fill_mask(static, jobs, params, state, b, job):
    """Mask of the job's actions now; False when no run is allowed."""
    window = state.window[b]
    levels = static.speed.shape[1]
    milli, workers, kind = jobs.gpu_milli[window, job], jobs.workers[window, job], jobs.kind[window, job]
    mask = state.mask[b]
    runnable = False
    for p in range(len(static.pool_site)):
        first = 1 + p * levels
        for level in range(levels):
            mask[first + level] = False
        bits = jobs.allowed_levels[window, job, p]
        if bits == 0:
            continue
        room, delay, woken = fits(static, state, params, b, p, milli, workers)
        if not room:
            continue
        state.start_delay_s[b, p] = delay
        state.nodes_woken[b, p] = woken
        for level in range(levels):
            if bits >> level & 1 == 0:
                continue
            if p == state.reserved_pool[b] and milli * workers > state.reserved_extra[b]:
                end = state.time_s[b] + delay + runtime_s(static, jobs.estimate_s[window, job], p, level, kind)
                if end > state.reserved_shadow_s[b]:
                    continue
            mask[first + level] = True
            runnable = True
    mask[0] = runnable and static.deferrable[kind] and state.time_s[b] < jobs.latest_start_s[window, job]
    return runnable


@compiled
def _reserve(static, jobs, state, b, job):
    """Reserve the pool in which the head fits earliest by estimated ends."""
    window = state.window[b]
    need = jobs.workers[window, job] * jobs.gpu_milli[window, job]
    best_shadow = NEVER
    for p in range(len(static.pool_site)):
        if jobs.allowed_levels[window, job, p] == 0:
            continue
        shadow, extra = _shadow(static, jobs, state, b, p, need)
        if shadow < best_shadow:
            best_shadow = shadow
            state.reserved_pool[b] = p
            state.reserved_shadow_s[b] = shadow
            state.reserved_extra[b] = extra


@compiled
def _shadow(static, jobs, state, b, p, need):
    """Earliest time at which ``need`` thousandths are free in pool p by estimated ends, and what is free beyond them then."""
    window = state.window[b]
    now = state.time_s[b]
    free = state.pool_free[b, p]
    if free >= need:
        return now, free - need
    calendar = state.scratch[b]
    size = 0
    for at in range(state.n_running[b]):
        other = state.running[b, at]
        if state.pool[b, other] != p:
            continue
        run = runtime_s(static, jobs.estimate_s[window, other], p, state.level[b, other], jobs.kind[window, other])
        heap_push(calendar, size, (max(state.start_s[b, other] + run, now + 1) << INDEX_BITS) | other)
        size += 1
    shadow = now
    while size > 0 and (free < need or calendar[0] >> INDEX_BITS == shadow):
        key = heap_pop(calendar, size)
        size -= 1
        shadow = key >> INDEX_BITS
        other = key & INDEX_MASK
        free += jobs.workers[window, other] * jobs.gpu_milli[window, other]
    return shadow, free - need


@compiled
def start_job(static, jobs, params, state, b, job):
    """The placed job starts now; its end goes into the calendar."""
    state.status[b, job] = RUNNING
    add(state.end_heap[b], state.heap_size[b], ENDS, state.due_s[b, job], job)
    start_charging(static, jobs, params, state, b, job)
    log_event(state, b, events.START, job, state.pool[b, job], state.level[b, job], -1, -1)


@compiled
def apply_action(static, jobs, params, state, b, action):
    """Carry out an allowed action on the job in question."""
    window = state.window[b]
    job = state.asking[b]
    now = state.time_s[b]
    state.asking[b] = -1
    state.decisions[b] += 1
    state.last_decision_s[b] = now
    clear_bit(state.ready[b], jobs.rank[window, params.queue_order[b], job])
    if params.plan_regret[b]:
        state.regret_usd[b] += state.expected_usd[b, action] - state.planned_usd[b, job]
        state.planned_usd[b, job] = state.expected_usd[b, action]
        state.expected_penalty[b, job] = state.expected_late[b, action]
    if action == 0:
        ask = min(now + params.hold_s[b], jobs.latest_start_s[window, job])
        add(state.hold_heap[b], state.heap_size[b], HOLDS, ask, job)
        log_event(state, b, events.HOLD, job, -1, -1, -1, ask)
        return
    levels = static.speed.shape[1]
    p = (action - 1) // levels
    level = (action - 1) % levels
    milli, workers, kind = jobs.gpu_milli[window, job], jobs.workers[window, job], jobs.kind[window, job]
    if p == state.reserved_pool[b]:
        end = now + state.start_delay_s[b, p] + runtime_s(static, jobs.estimate_s[window, job], p, level, kind)
        if end > state.reserved_shadow_s[b]:
            state.reserved_extra[b] -= milli * workers
    state.waiting[b] -= 1
    state.waiting_milli[b] -= milli * workers
    state.pool[b, job] = p
    state.level[b, job] = level
    state.status[b, job] = PLACED
    at = state.n_running[b]
    state.running[b, at] = job
    state.running_at[b, job] = at
    state.n_running[b] = at + 1
    log_event(state, b, events.RUN, job, p, level, -1, now + state.start_delay_s[b, p])
    start = place(static, state, params, b, job, p, milli, workers)
    state.start_s[b, job] = start
    state.due_s[b, job] = start + runtime_s(static, jobs.duration_s[window, job], p, level, kind)
    if start == now:
        start_job(static, jobs, params, state, b, job)
    else:
        add(state.start_heap[b], state.heap_size[b], STARTS, start, job)

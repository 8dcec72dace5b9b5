"""Compiled decisions: the scan of the queue, masks, the EASY reservation, and the effect of an action."""

from __future__ import annotations

from envs import events
from envs import fields as fx
from envs.kernel_accrual import start_charging
from envs.kernel_compile import compiled
from envs.kernel_placement import fits, place
from envs.kernel_queue import (
    ENDS,
    HOLDS,
    INDEX_BITS,
    INDEX_MASK,
    NEVER,
    STARTS,
    WFP3,
    add,
    clear_bit,
    heap_pop,
    heap_push,
    log_event,
    next_bit,
    next_sorted,
    static_order,
)
from envs.kernel_scores import OFFSET_S, best_later, realised_objective, runtime_s
from envs.state import EASY, PLACED, RUNNING, STRICT


@compiled
def next_question(static, jobs, params, state, b):
    """Go on with the scan to the next job to ask about; False when the scan is over."""
    window = state.env_i[b, fx.WINDOW]
    timely = params.ints[b, fx.QUEUE_ORDER] >= WFP3
    by_rank = jobs.work_i[window, fx.BY_RANK + static_order(params, b)]
    limit = jobs.count[window]
    rank = state.env_i[b, fx.CURSOR]
    while True:
        if timely:
            job = next_sorted(state, b)
        else:
            rank = next_bit(state.ready[b], rank, limit)
            job = by_rank[rank] if rank >= 0 else -1
            rank += 1
        if job < 0:
            return False
        if fill_mask(static, jobs, params, state, b, job):
            state.env_i[b, fx.ASKING] = job
            state.env_i[b, fx.CURSOR] = rank
            state.env_i[b, fx.SCORED] = False
            return True
        if params.ints[b, fx.DISCIPLINE] == STRICT:
            return False
        if params.ints[b, fx.DISCIPLINE] == EASY and state.env_i[b, fx.RESERVED_POOL] < 0:
            _reserve(static, jobs, state, b, job)


@compiled
def fill_mask(static, jobs, params, state, b, job):
    """Mask of the job's actions now; False when no run is allowed."""
    window = state.env_i[b, fx.WINDOW]
    levels = static.curve.shape[2]
    milli, workers, kind = jobs.work_i[window, fx.GPU_MILLI, job], jobs.work_i[window, fx.WORKERS, job], jobs.work_i[window, fx.KIND, job]
    mask = state.action_i[b, fx.MASK]
    runnable = False
    for p in range(static.pool_i.shape[1]):
        first = 1 + p * levels
        for level in range(levels):
            mask[first + level] = False
        bits = jobs.allowed[window, job, p]
        if bits == 0:
            continue
        room, delay, woken = fits(static, state, params, b, p, milli, workers)
        if not room:
            continue
        state.pool_i[b, fx.START_DELAY_S, p] = delay
        state.pool_i[b, fx.NODES_WOKEN, p] = woken
        for level in range(levels):
            if bits >> level & 1 == 0:
                continue
            if p == state.env_i[b, fx.RESERVED_POOL] and milli * workers > state.env_i[b, fx.RESERVED_EXTRA]:
                end = state.env_i[b, fx.TIME_S] + delay + runtime_s(static, jobs.work_i[window, fx.ESTIMATE_S, job], p, level, kind)
                if end > state.env_i[b, fx.RESERVED_SHADOW_S]:
                    continue
            mask[first + level] = True
            runnable = True
    mask[0] = runnable and static.kind_i[fx.DEFERRABLE, kind] and state.env_i[b, fx.TIME_S] < jobs.work_i[window, fx.LATEST_START_S, job]
    return runnable


@compiled
def _reserve(static, jobs, state, b, job):
    """Reserve the pool in which the head fits earliest by estimated ends."""
    window = state.env_i[b, fx.WINDOW]
    need = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job]
    best_shadow = NEVER
    for p in range(static.pool_i.shape[1]):
        if jobs.allowed[window, job, p] == 0:
            continue
        shadow, extra = _shadow(static, jobs, state, b, p, need)
        if shadow < best_shadow:
            best_shadow = shadow
            state.env_i[b, fx.RESERVED_POOL] = p
            state.env_i[b, fx.RESERVED_SHADOW_S] = shadow
            state.env_i[b, fx.RESERVED_EXTRA] = extra


@compiled
def _shadow(static, jobs, state, b, p, need):
    """Earliest time at which ``need`` thousandths are free in pool p by estimated ends, and what is free beyond them then."""
    window = state.env_i[b, fx.WINDOW]
    now = state.env_i[b, fx.TIME_S]
    free = state.pool_i[b, fx.POOL_FREE, p]
    if free >= need:
        return now, free - need
    calendar = state.job_i[b, fx.SCRATCH]
    size = 0
    for at in range(state.env_i[b, fx.N_RUNNING]):
        other = state.job_i[b, fx.RUNNING_LIST, at]
        if state.job_i[b, fx.POOL, other] != p:
            continue
        run = runtime_s(
            static, jobs.work_i[window, fx.ESTIMATE_S, other], p, state.job_i[b, fx.LEVEL, other], jobs.work_i[window, fx.KIND, other]
        )
        heap_push(calendar, size, (max(state.job_i[b, fx.START_S, other] + run, now + 1) << INDEX_BITS) | other)
        size += 1
    shadow = now
    while size > 0 and (free < need or calendar[0] >> INDEX_BITS == shadow):
        key = heap_pop(calendar, size)
        size -= 1
        shadow = key >> INDEX_BITS
        other = key & INDEX_MASK
        free += jobs.work_i[window, fx.WORKERS, other] * jobs.work_i[window, fx.GPU_MILLI, other]
    return shadow, free - need


@compiled
def start_job(static, jobs, params, state, b, job):
    """The placed job starts now; its end goes into the calendar."""
    state.job_i[b, fx.STATUS, job] = RUNNING
    add(state.job_i[b, fx.END_HEAP], state.heap_size[b], ENDS, state.job_i[b, fx.DUE_S, job], job)
    start_charging(static, jobs, params, state, b, job)
    log_event(state, b, events.START, job, state.job_i[b, fx.POOL, job], state.job_i[b, fx.LEVEL, job], -1, -1)


@compiled
def charge_regret(params, state, b, job, realised_usd):
    """What the job's new plan costs beyond the last one; the new plan is remembered."""
    state.env_f[b, fx.REGRET_USD] += realised_usd - state.job_f[b, fx.PLANNED_USD, job]
    state.job_f[b, fx.PLANNED_USD, job] = realised_usd


@compiled
def apply_action(static, jobs, grid, params, state, b, action):
    """Carry out an allowed action on the job in question."""
    window = state.env_i[b, fx.WINDOW]
    job = state.env_i[b, fx.ASKING]
    now = state.env_i[b, fx.TIME_S]
    state.env_i[b, fx.DECISIONS] += 1
    state.env_i[b, fx.LAST_DECISION_S] = now
    clear_bit(state.ready[b], jobs.work_i[window, fx.RANK + static_order(params, b), job])
    state.env_i[b, fx.ASKING] = -1
    if action == 0:
        if params.ints[b, fx.PLAN_REGRET]:
            _, start, _, p, level = best_later(static, jobs, grid, params, state, b, job, OFFSET_S)
            charge_regret(params, state, b, job, realised_objective(static, jobs, grid, params, state, b, job, p, level, start))
        ask = min(now + params.ints[b, fx.HOLD_S], jobs.work_i[window, fx.LATEST_START_S, job])
        add(state.job_i[b, fx.HOLD_HEAP], state.heap_size[b], HOLDS, ask, job)
        log_event(state, b, events.HOLD, job, -1, -1, -1, ask)
        return
    levels = static.curve.shape[2]
    p = (action - 1) // levels
    level = (action - 1) % levels
    milli, workers, kind = jobs.work_i[window, fx.GPU_MILLI, job], jobs.work_i[window, fx.WORKERS, job], jobs.work_i[window, fx.KIND, job]
    if p == state.env_i[b, fx.RESERVED_POOL]:
        end = now + state.pool_i[b, fx.START_DELAY_S, p] + runtime_s(static, jobs.work_i[window, fx.ESTIMATE_S, job], p, level, kind)
        if end > state.env_i[b, fx.RESERVED_SHADOW_S]:
            state.env_i[b, fx.RESERVED_EXTRA] -= milli * workers
    state.env_i[b, fx.N_WAITING] -= 1
    state.env_i[b, fx.WAITING_MILLI] -= milli * workers
    state.job_i[b, fx.POOL, job] = p
    state.job_i[b, fx.LEVEL, job] = level
    state.job_i[b, fx.STATUS, job] = PLACED
    at = state.env_i[b, fx.N_RUNNING]
    state.job_i[b, fx.RUNNING_LIST, at] = job
    state.job_i[b, fx.RUNNING_AT, job] = at
    state.env_i[b, fx.N_RUNNING] = at + 1
    log_event(state, b, events.RUN, job, p, level, -1, now + state.pool_i[b, fx.START_DELAY_S, p])
    start = place(static, state, params, b, job, p, milli, workers)
    state.job_i[b, fx.START_S, job] = start
    state.job_i[b, fx.DUE_S, job] = start + runtime_s(static, jobs.work_i[window, fx.DURATION_S, job], p, level, kind)
    if params.ints[b, fx.PLAN_REGRET]:
        charge_regret(params, state, b, job, realised_objective(static, jobs, grid, params, state, b, job, p, level, start))
    if start == now:
        start_job(static, jobs, params, state, b, job)
    else:
        add(state.job_i[b, fx.START_HEAP], state.heap_size[b], STARTS, start, job)

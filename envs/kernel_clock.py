"""Compiled clock: the start of a window, what happens at an instant, and the way from one question to the next."""

from __future__ import annotations

from envs import events
from envs import fields as fx
from envs.kernel_accrual import accrue, column_of, stop_charging
from envs.kernel_compile import compiled
from envs.kernel_decisions import next_question, start_job
from envs.kernel_placement import WHOLE, fall_asleep, release, wake_done
from envs.kernel_queue import ENDS, HOLDS, STARTS, WAKES, WFP3, first_time, log_event, set_bit, sort_ready, static_order, take_due
from envs.kernel_scores import best_later, fill_rate, realised_objective
from envs.state import ABSENT, AWAKE, ENDED, REJECTED, VIOLATED_BY_REJECTION, WAITING


@compiled
def reset_one(static, jobs, grid, params, state, b, window):
    """Environment ``b`` begins ``window`` and goes on to its first question or, without one, to its end."""
    state.env_i[b, fx.WINDOW] = window
    state.env_i[b, fx.TIME_S] = 0
    state.env_i[b, fx.DONE] = False
    state.env_i[b, fx.ASKING] = -1
    state.env_i[b, fx.ARRIVED] = 0
    state.env_i[b, fx.UNFINISHED] = jobs.count[window]
    state.env_i[b, fx.DECISIONS] = 0
    state.env_i[b, fx.LAST_DECISION_S] = 0
    state.env_f[b, fx.OBJECTIVE_USD] = 0.0
    state.env_f[b, fx.REGRET_USD] = 0.0
    state.env_f[b, fx.MARKED_USD] = 0.0
    state.env_f[b, fx.MARKED_REGRET] = 0.0
    state.env_f[b, fx.BUSY_GPU_S] = 0.0
    state.env_i[b, fx.N_WAITING] = 0
    state.env_i[b, fx.WAITING_MILLI] = 0
    state.env_i[b, fx.N_RUNNING] = 0
    state.env_i[b, fx.LOG_COUNT] = 0
    state.env_i[b, fx.SCORED] = False
    _reset_jobs(state, b)
    _reset_cluster(static, state, b)
    fill_rate(grid, params, state, b)
    _instant(static, jobs, grid, params, state, b)
    advance(static, jobs, grid, params, state, b)


@compiled
def _reset_jobs(state, b):
    state.job_i[b, fx.STATUS] = ABSENT
    state.job_i[b, fx.START_S] = -1
    state.job_i[b, fx.END_S] = -1
    state.job_i[b, fx.DUE_S] = -1
    state.job_i[b, fx.POOL] = -1
    state.job_i[b, fx.LEVEL] = -1
    state.job_f[b, fx.JOB_KWH] = 0.0
    state.job_f[b, fx.JOB_USD] = 0.0
    state.job_f[b, fx.JOB_KG] = 0.0
    state.job_f[b, fx.JOB_PENALTY] = 0.0
    state.job_i[b, fx.VIOLATION] = 0
    state.job_f[b, fx.PLANNED_USD] = 0.0
    state.heap_size[b] = 0
    state.ready[b] = 0


@compiled
def _reset_cluster(static, state, b):
    pools = static.pool_i.shape[1]
    nodes = static.node_i.shape[1]
    state.gpu_free[b] = WHOLE
    state.whole_count[b] = 0
    state.pool_i[b] = 0
    state.node_i[b, fx.TIRED] = False
    state.node_i[b, fx.NODE_STATE] = AWAKE
    state.node_i[b, fx.WAKE_END_S] = -1
    state.node_i[b, fx.IDLE_SINCE_S] = 0
    for p in range(pools):
        count, gpus = static.pool_i[fx.POOL_NODES, p], static.pool_i[fx.POOL_GPUS, p]
        state.whole_count[b, p, AWAKE, gpus] = count
        state.pool_i[b, fx.STATE_COUNT + AWAKE, p] = count
        state.pool_i[b, fx.IDLE_AWAKE, p] = count
        state.pool_i[b, fx.POOL_FREE, p] = count * gpus * WHOLE
    for node in range(nodes):
        gpus = static.pool_i[fx.POOL_GPUS, static.node_i[fx.NODE_POOL, node]]
        state.node_i[b, fx.NODE_WHOLE, node] = gpus
        state.node_i[b, fx.NODE_FREE, node] = gpus * WHOLE
        state.node_i[b, fx.IDLE_NEXT, node] = node + 1
        state.node_i[b, fx.IDLE_PREV, node + 1] = node
    state.node_i[b, fx.IDLE_NEXT, nodes] = 0
    state.node_i[b, fx.IDLE_PREV, 0] = nodes
    records = state.record_i.shape[2]
    state.job_i[b, fx.RECORD_HEAD] = -1
    state.job_i[b, fx.RECORD_HEAD, state.job_i.shape[2] - 1] = 0
    for record in range(records):
        state.record_i[b, fx.RECORD_NEXT, record] = record + 1 if record + 1 < records else -1
    state.site_f[b, fx.DYNAMIC_W] = 0.0
    state.site_f[b, fx.SITE_RUNNING] = 0
    state.site_totals[b] = 0.0
    state.idle_totals[b] = 0.0


@compiled
def _instant(static, jobs, grid, params, state, b):
    """Steps 1 to 4 at the current time; the scan of step 5 may then begin."""
    now = state.env_i[b, fx.TIME_S]
    window = state.env_i[b, fx.WINDOW]
    sizes = state.heap_size[b]
    job = take_due(state.job_i[b, fx.END_HEAP], sizes, ENDS, now)
    while job >= 0:
        _end_job(static, jobs, grid, params, state, b, job)
        job = take_due(state.job_i[b, fx.END_HEAP], sizes, ENDS, now)
    node = take_due(state.node_i[b, fx.WAKE_HEAP], sizes, WAKES, now)
    while node >= 0:
        wake_done(static, state, b, node)
        node = take_due(state.node_i[b, fx.WAKE_HEAP], sizes, WAKES, now)
    job = take_due(state.job_i[b, fx.START_HEAP], sizes, STARTS, now)
    while job >= 0:
        start_job(static, jobs, params, state, b, job)
        job = take_due(state.job_i[b, fx.START_HEAP], sizes, STARTS, now)
    if now > 0 and now % grid.window_i[window, fx.STEP_S] == 0:
        log_event(state, b, events.GRID, -1, -1, -1, -1, column_of(grid, window, now))
    while state.env_i[b, fx.ARRIVED] < jobs.count[window] and jobs.work_i[window, fx.SUBMIT_S, state.env_i[b, fx.ARRIVED]] == now:
        _arrive(static, jobs, grid, params, state, b, state.env_i[b, fx.ARRIVED])
        state.env_i[b, fx.ARRIVED] += 1
    order = static_order(params, b)
    job = take_due(state.job_i[b, fx.HOLD_HEAP], sizes, HOLDS, now)
    while job >= 0:
        set_bit(state.ready[b], jobs.work_i[window, fx.RANK + order, job])
        job = take_due(state.job_i[b, fx.HOLD_HEAP], sizes, HOLDS, now)
    state.env_i[b, fx.IN_SCAN] = True
    state.env_i[b, fx.CURSOR] = 0
    state.env_i[b, fx.RESERVED_POOL] = -1
    if params.ints[b, fx.QUEUE_ORDER] >= WFP3:
        sort_ready(jobs, params, state, b)


@compiled
def _arrive(static, jobs, grid, params, state, b, job):
    window = state.env_i[b, fx.WINDOW]
    reason = jobs.work_i[window, fx.REJECT, job]
    if reason > 0:
        state.job_i[b, fx.STATUS, job] = REJECTED
        state.job_i[b, fx.VIOLATION, job] = VIOLATED_BY_REJECTION
        state.env_i[b, fx.UNFINISHED] -= 1
        log_event(state, b, events.REJECT, job, -1, -1, -1, reason)
        return
    state.job_i[b, fx.STATUS, job] = WAITING
    state.env_i[b, fx.N_WAITING] += 1
    state.env_i[b, fx.WAITING_MILLI] += jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job]
    set_bit(state.ready[b], jobs.work_i[window, fx.RANK + static_order(params, b), job])
    if params.ints[b, fx.PLAN_REGRET]:
        _, start, _, p, level = best_later(static, jobs, grid, params, state, b, job, 0)
        state.job_f[b, fx.PLANNED_USD, job] = realised_objective(static, jobs, grid, params, state, b, job, p, level, start)
    log_event(state, b, events.ARRIVE, job, -1, -1, -1, -1)


@compiled
def _end_job(static, jobs, grid, params, state, b, job):
    window = state.env_i[b, fx.WINDOW]
    p = state.job_i[b, fx.POOL, job]
    state.job_i[b, fx.STATUS, job] = ENDED
    state.job_i[b, fx.END_S, job] = state.env_i[b, fx.TIME_S]
    state.env_i[b, fx.UNFINISHED] -= 1
    last = state.job_i[b, fx.RUNNING_LIST, state.env_i[b, fx.N_RUNNING] - 1]
    at = state.job_i[b, fx.RUNNING_AT, job]
    state.job_i[b, fx.RUNNING_LIST, at] = last
    state.job_i[b, fx.RUNNING_AT, last] = at
    state.env_i[b, fx.N_RUNNING] -= 1
    stop_charging(static, jobs, grid, params, state, b, job)
    release(static, state, b, job, p, jobs.work_i[window, fx.GPU_MILLI, job])
    log_event(state, b, events.END, job, p, state.job_i[b, fx.LEVEL, job], -1, -1)


@compiled
def _next_time(jobs, grid, params, state, b):
    """The next instant."""
    window = state.env_i[b, fx.WINDOW]
    step_s = grid.window_i[window, fx.STEP_S]
    sizes = state.heap_size[b]
    after = (state.env_i[b, fx.TIME_S] // step_s + 1) * step_s
    after = min(after, first_time(state.job_i[b, fx.END_HEAP], sizes[ENDS]))
    after = min(after, first_time(state.node_i[b, fx.WAKE_HEAP], sizes[WAKES]))
    after = min(after, first_time(state.job_i[b, fx.HOLD_HEAP], sizes[HOLDS]))
    if state.env_i[b, fx.ARRIVED] < jobs.count[window]:
        after = min(after, jobs.work_i[window, fx.SUBMIT_S, state.env_i[b, fx.ARRIVED]])
    head = state.node_i.shape[2] - 1
    node = state.node_i[b, fx.IDLE_NEXT, head]
    if params.ints[b, fx.SLEEP_AFTER_S] >= 0 and node != head:
        after = min(after, state.node_i[b, fx.IDLE_SINCE_S, node] + params.ints[b, fx.SLEEP_AFTER_S])
    return after


@compiled
def log_is_full(jobs, state, b):
    """Whether one more instant might not fit in the event log."""
    if state.log.shape[1] == 1:
        return False
    most = 5 * jobs.work_i.shape[2] + 3 * state.node_i.shape[2] + 2
    return state.env_i[b, fx.LOG_COUNT] + most > state.log.shape[1]


@compiled
def advance(static, jobs, grid, params, state, b):
    """Go on to the next question or the end of the window; with a full event log, stop between two instants to have it drained."""
    while not state.env_i[b, fx.DONE]:
        if state.env_i[b, fx.IN_SCAN]:
            if next_question(static, jobs, params, state, b):
                return
            state.env_i[b, fx.IN_SCAN] = False
            fall_asleep(static, grid, params, state, b, column_of(grid, state.env_i[b, fx.WINDOW], state.env_i[b, fx.TIME_S]))
            if state.env_i[b, fx.UNFINISHED] == 0:
                state.env_i[b, fx.DONE] = True
                return
        if log_is_full(jobs, state, b):
            return
        until = _next_time(jobs, grid, params, state, b)
        accrue(static, grid, params, state, b, until)
        state.env_i[b, fx.TIME_S] = until
        _instant(static, jobs, grid, params, state, b)


@compiled
def reward_since_mark(params, state, b):
    """Reward since the last question, exact and by regret; the question now becomes the mark."""
    exact = -(state.env_f[b, fx.OBJECTIVE_USD] - state.env_f[b, fx.MARKED_USD]) / params.floats[b, fx.SCALE_USD]
    regret = -(state.env_f[b, fx.REGRET_USD] - state.env_f[b, fx.MARKED_REGRET]) / params.floats[b, fx.SCALE_USD]
    state.env_f[b, fx.MARKED_USD] = state.env_f[b, fx.OBJECTIVE_USD]
    state.env_f[b, fx.MARKED_REGRET] = state.env_f[b, fx.REGRET_USD]
    return exact, regret

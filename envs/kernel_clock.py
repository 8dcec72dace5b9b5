"""Compiled clock: the start of a window, what happens at an instant, and the way from one question to the next."""

from __future__ import annotations

from envs import events
from envs.kernel_accrual import accrue, column_of, stop_charging
from envs.kernel_compile import compiled
from envs.kernel_decisions import next_question, start_job
from envs.kernel_placement import WHOLE, fall_asleep, release, wake_done
from envs.kernel_queue import ENDS, HOLDS, STARTS, WAKES, first_time, log_event, set_bit, take_due
from envs.kernel_scores import best_later
from envs.state import ABSENT, AWAKE, ENDED, REJECTED, VIOLATED_BY_REJECTION, WAITING


@compiled
def reset_one(static, jobs, grid, params, state, b, window):
    """Environment ``b`` begins ``window`` and goes on to its first question or, without one, to its end."""
    state.window[b] = window
    state.time_s[b] = 0
    state.done[b] = False
    state.asking[b] = -1
    state.arrived[b] = 0
    state.unfinished[b] = jobs.count[window]
    state.decisions[b] = 0
    state.last_decision_s[b] = 0
    state.objective_usd[b] = 0.0
    state.regret_usd[b] = 0.0
    state.marked_usd[b] = 0.0
    state.busy_gpu_s[b] = 0.0
    state.waiting[b] = 0
    state.waiting_milli[b] = 0
    state.n_running[b] = 0
    state.log_count[b] = 0
    state.scored[b] = False
    _reset_jobs(state, b)
    _reset_cluster(static, state, b)
    _instant(static, jobs, grid, params, state, b)
    advance(static, jobs, grid, params, state, b)


@compiled
def _reset_jobs(state, b):
    state.status[b] = ABSENT
    state.start_s[b] = -1
    state.end_s[b] = -1
    state.due_s[b] = -1
    state.pool[b] = -1
    state.level[b] = -1
    state.job_kwh[b] = 0.0
    state.job_usd[b] = 0.0
    state.job_kg[b] = 0.0
    state.job_penalty[b] = 0.0
    state.violation[b] = 0
    state.expected_penalty[b] = 0.0
    state.planned_usd[b] = 0.0
    state.heap_size[b] = 0
    state.ready[b] = 0


@compiled
def _reset_cluster(static, state, b):
    pools = len(static.pool_site)
    nodes = len(static.node_pool)
    state.gpu_free[b] = WHOLE
    state.whole_count[b] = 0
    state.state_count[b] = 0
    state.tired[b] = False
    state.tired_count[b] = 0
    state.pool_partial[b] = 0
    state.pool_running[b] = 0
    state.node_state[b] = AWAKE
    state.wake_end_s[b] = -1
    state.idle_since_s[b] = 0
    for p in range(pools):
        count, gpus = static.pool_nodes[p], static.pool_gpus[p]
        state.whole_count[b, p, AWAKE, gpus] = count
        state.state_count[b, p, AWAKE] = count
        state.idle_awake[b, p] = count
        state.pool_free[b, p] = count * gpus * WHOLE
    for node in range(nodes):
        gpus = static.pool_gpus[static.node_pool[node]]
        state.node_whole[b, node] = gpus
        state.node_free[b, node] = gpus * WHOLE
        state.idle_next[b, node] = node + 1
        state.idle_prev[b, node + 1] = node
    state.idle_next[b, nodes] = 0
    state.idle_prev[b, 0] = nodes
    records = state.record_next.shape[1]
    state.record_head[b] = -1
    state.record_head[b, state.record_head.shape[1] - 1] = 0
    for record in range(records):
        state.record_next[b, record] = record + 1 if record + 1 < records else -1
    state.dynamic_w[b] = 0.0
    state.site_running[b] = 0
    state.site_totals[b] = 0.0
    state.idle_totals[b] = 0.0


@compiled
def _instant(static, jobs, grid, params, state, b):
    """Steps 1 to 4 at the current time; the scan of step 5 may then begin."""
    now = state.time_s[b]
    window = state.window[b]
    sizes = state.heap_size[b]
    job = take_due(state.end_heap[b], sizes, ENDS, now)
    while job >= 0:
        _end_job(static, jobs, grid, params, state, b, job)
        job = take_due(state.end_heap[b], sizes, ENDS, now)
    node = take_due(state.wake_heap[b], sizes, WAKES, now)
    while node >= 0:
        wake_done(static, state, b, node)
        node = take_due(state.wake_heap[b], sizes, WAKES, now)
    job = take_due(state.start_heap[b], sizes, STARTS, now)
    while job >= 0:
        start_job(static, jobs, params, state, b, job)
        job = take_due(state.start_heap[b], sizes, STARTS, now)
    if now > 0 and now % grid.step_s[window] == 0:
        log_event(state, b, events.GRID, -1, -1, -1, -1, column_of(grid, window, now))
    while state.arrived[b] < jobs.count[window] and jobs.submit_s[window, state.arrived[b]] == now:
        _arrive(static, jobs, grid, params, state, b, state.arrived[b])
        state.arrived[b] += 1
    order = params.queue_order[b]
    job = take_due(state.hold_heap[b], sizes, HOLDS, now)
    while job >= 0:
        set_bit(state.ready[b], jobs.rank[window, order, job])
        job = take_due(state.hold_heap[b], sizes, HOLDS, now)
    state.in_scan[b] = True
    state.cursor[b] = 0
    state.reserved_pool[b] = -1


@compiled
def _arrive(static, jobs, grid, params, state, b, job):
    window = state.window[b]
    reason = jobs.reject[window, job]
    if reason > 0:
        state.status[b, job] = REJECTED
        state.violation[b, job] = VIOLATED_BY_REJECTION
        state.unfinished[b] -= 1
        log_event(state, b, events.REJECT, job, -1, -1, -1, reason)
        return
    state.status[b, job] = WAITING
    state.waiting[b] += 1
    state.waiting_milli[b] += jobs.workers[window, job] * jobs.gpu_milli[window, job]
    set_bit(state.ready[b], jobs.rank[window, params.queue_order[b], job])
    if params.plan_regret[b]:
        state.planned_usd[b, job] = best_later(static, jobs, grid, params, state, b, job, 0)[0]
    log_event(state, b, events.ARRIVE, job, -1, -1, -1, -1)


@compiled
def _end_job(static, jobs, grid, params, state, b, job):
    window = state.window[b]
    p = state.pool[b, job]
    state.status[b, job] = ENDED
    state.end_s[b, job] = state.time_s[b]
    state.unfinished[b] -= 1
    last = state.running[b, state.n_running[b] - 1]
    at = state.running_at[b, job]
    state.running[b, at] = last
    state.running_at[b, last] = at
    state.n_running[b] -= 1
    stop_charging(static, jobs, grid, params, state, b, job)
    release(static, state, b, job, p, jobs.gpu_milli[window, job])
    log_event(state, b, events.END, job, p, state.level[b, job], -1, -1)


@compiled
def _next_time(jobs, grid, params, state, b):
    """The next instant."""
    window = state.window[b]
    step_s = grid.step_s[window]
    sizes = state.heap_size[b]
    after = (state.time_s[b] // step_s + 1) * step_s
    after = min(after, first_time(state.end_heap[b], sizes[ENDS]))
    after = min(after, first_time(state.wake_heap[b], sizes[WAKES]))
    after = min(after, first_time(state.hold_heap[b], sizes[HOLDS]))
    if state.arrived[b] < jobs.count[window]:
        after = min(after, jobs.submit_s[window, state.arrived[b]])
    head = state.idle_next.shape[1] - 1
    node = state.idle_next[b, head]
    if params.sleep_after_s[b] >= 0 and node != head:
        after = min(after, state.idle_since_s[b, node] + params.sleep_after_s[b])
    return after


@compiled
def log_is_full(jobs, state, b):
    """Whether one more instant might not fit in the event log."""
    if state.log.shape[1] == 1:
        return False
    most = 5 * jobs.submit_s.shape[1] + 3 * state.node_state.shape[1] + 2
    return state.log_count[b] + most > state.log.shape[1]


@compiled
def advance(static, jobs, grid, params, state, b):
    """Go on to the next question or the end of the window; with a full event log, stop between two instants to have it drained."""
    while not state.done[b]:
        if state.in_scan[b]:
            if next_question(static, jobs, params, state, b):
                return
            state.in_scan[b] = False
            fall_asleep(static, grid, params, state, b, column_of(grid, state.window[b], state.time_s[b]))
            if state.unfinished[b] == 0:
                state.done[b] = True
                return
        if log_is_full(jobs, state, b):
            return
        until = _next_time(jobs, grid, params, state, b)
        accrue(static, grid, params, state, b, until)
        state.time_s[b] = until
        _instant(static, jobs, grid, params, state, b)


@compiled
def reward_since_mark(params, state, b):
    """Reward since the last question, exact and by regret; the question now becomes the mark."""
    exact = -(state.objective_usd[b] - state.marked_usd[b, 0]) / params.scale_usd[b]
    regret = -(state.regret_usd[b] - state.marked_usd[b, 1]) / params.scale_usd[b]
    state.marked_usd[b, 0] = state.objective_usd[b]
    state.marked_usd[b, 1] = state.regret_usd[b]
    return exact, regret

"""Compiled time: the beginning of a window, one instant, and the way to the next question."""

from __future__ import annotations

from envs import events
from envs import fields as fx
from envs.kernel_ces import follow_demand, next_check, rules_itself
from envs.kernel_compile import compiled
from envs.kernel_decisions import NOTHING, begin_decisions, next_question, plan_job
from envs.kernel_nodes import fall_asleep, node_up, wake_ahead, wake_done
from envs.kernel_power import WHOLE, charge_sites, column_at, commit, committed_state_nw, whole_row
from envs.kernel_queue import NEVER, clear_ready, heap_take, heap_time, log_event, set_ready
from envs.kernel_runs import end_job, fail_node, follow_load, reject_job, start_job, wait_again
from envs.kernel_scores import fill_rate
from envs.kernel_typical import forget_typical
from envs.state import ABSENT, AWAKE, PLACED, RUNNING, WAITING

STRANDED = 5


# ---------------------------------------------------------------- beginning


@compiled
def clear_one(c, window):
    """Lay out a window: second 0, no job there yet, all nodes awake and idle."""
    _reset_totals(c, window)
    _reset_jobs(c)
    _reset_nodes(c)
    forget_typical(c)
    fill_rate(c)


@compiled
def begin_one(c):
    """Go on from a cleared window to its first question."""
    _instant(c)
    advance(c)


@compiled
def _reset_totals(c, window):
    o, i, f = c.o, c.i, c.f
    for at in range(fx.WINDOW, fx.N_WAKES + 1):
        i[at] = 0
    for at in range(fx.BUSY_GPU_S + 1):
        f[at] = 0.0
    i[fx.TIME_S] = 0
    i[fx.WINDOW] = window
    i[fx.ASKING] = -1
    i[fx.RESERVED_POOL] = -1
    i[fx.COLUMN] = column_at(c, 0)
    i[fx.UNFINISHED] = c.j[fx.JOB_COUNT]
    for site in range(o[fx.N_SITES]):
        for at in range(fx.SITE_WIDTH):
            i[o[fx.I_SITE] + site * fx.SITE_WIDTH + at] = 0
        for at in range(4):
            f[o[fx.F_SITE] + site * 4 + at] = 0.0
        for at in range(9):
            f[o[fx.F_IDLE] + site * 9 + at] = 0.0


@compiled
def _reset_jobs(c):
    o, i, f = c.o, c.i, c.f
    for job in range(o[fx.N_JOBS] + 1):
        a = o[fx.I_JOB] + job * fx.JOB_WIDTH
        for at in range(fx.JOB_WIDTH):
            i[a + at] = -1
        i[a + fx.STATUS], i[a + fx.VIOLATION], i[a + fx.DONE_S] = ABSENT, 0, 0
        i[a + fx.WATTS_NW], i[a + fx.SHARE_NW], i[a + fx.LOADING_S] = 0, 0, 0
    for job in range(o[fx.N_JOBS]):
        i[o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.LIES_AT] = c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.DATA_SITE]
        i[o[fx.I_ENDS_AT] + job] = 0
        i[o[fx.I_TIMERS_AT] + job] = 0
        i[o[fx.I_LEAVES_AT] + job] = 0
        for at in range(fx.JOB_F_WIDTH):
            f[o[fx.F_JOB] + job * fx.JOB_F_WIDTH + at] = 0.0
    for at in range((o[fx.N_JOBS] >> 5) + 1):
        i[o[fx.I_READY] + at] = 0
    for at in range(o[fx.N_TREE]):
        i[o[fx.I_TREE] + at] = NEVER
    for at in range(o[fx.N_SHORT]):
        i[o[fx.I_SHORT] + at] = NEVER
    for shape in range(o[fx.N_SHAPES]):
        i[o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH + fx.SHAPE_LOW] = c.j[o[fx.J_SHAPE] + shape * fx.SHAPE_CONSTANTS_WIDTH + fx.SHAPE_END]
        i[o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH + fx.SHAPE_BLOCKED] = 0
        i[o[fx.I_SHAPE] + shape * fx.SHAPE_WIDTH + fx.SHAPE_LIMIT_S] = NEVER


@compiled
def _reset_nodes(c):
    o, i, k = c.o, c.i, c.k
    for p in range(o[fx.N_POOLS]):
        const = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
        pool = o[fx.I_POOL] + p * fx.POOL_WIDTH
        i[o[fx.I_N_LEAVES] + p] = 0
        for at in range(fx.POOL_WIDTH):
            i[pool + at] = 0
        nodes, gpus = k[const + fx.POOL_NODES], k[const + fx.POOL_GPUS]
        i[pool + fx.IDLE_AWAKE] = nodes
        i[pool + fx.STATE_COUNT + AWAKE] = nodes
        i[pool + fx.POOL_FREE] = nodes * gpus * WHOLE
        for at in range(128):
            i[whole_row(c, p, AWAKE) + at] = 0
        i[whole_row(c, p, AWAKE) + gpus] = nodes
        i[o[fx.I_SITE] + k[const + fx.POOL_SITE] * fx.SITE_WIDTH + fx.AWAKE_SITE_NW] += nodes * k[const + fx.AWAKE_NW]
    for rack in range(o[fx.N_RACKS]):
        i[o[fx.I_RACK] + rack] = 0
    for gpu in range(o[fx.N_GPUS]):
        i[o[fx.I_GPU] + gpu] = WHOLE
    head = o[fx.N_NODES]
    for node in range(head + 1):
        a = o[fx.I_NODE] + node * fx.NODE_WIDTH
        for at in range(fx.NODE_WIDTH):
            i[a + at] = 0
        i[a + fx.IDLE_NEXT] = node + 1 if node < head else 0
        i[a + fx.IDLE_PREV] = node - 1 if node > 0 else head
        if node == head:
            continue
        i[o[fx.I_WAKES_AT] + node] = 0
        p = k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_POOL]
        const = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
        i[a + fx.NODE_STATE] = AWAKE
        i[a + fx.NODE_WHOLE] = k[const + fx.POOL_GPUS]
        i[a + fx.NODE_FREE] = k[const + fx.POOL_GPUS] * WHOLE
        i[a + fx.CPU_FREE] = k[const + fx.POOL_CPU_MILLI]
        i[a + fx.MEMORY_FREE] = k[const + fx.POOL_MEMORY_MIB]
        commit(c, p, node, committed_state_nw(c, p, AWAKE))
    for record in range(o[fx.N_RECORDS]):
        last = record + 1 == o[fx.N_RECORDS]
        i[o[fx.I_RECORD] + record * fx.RECORD_WIDTH + fx.RECORD_NEXT] = -1 if last else record + 1
    i[fx.FREE_RECORD] = 0


# ---------------------------------------------------------------- instants


@compiled
def _instant(c):
    """Steps 1 to 4 at the current time; the decisions of step 5 may then begin."""
    o, i, j = c.o, c.i, c.j
    now = i[fx.TIME_S]
    job = heap_take(i, o[fx.I_ENDS], o[fx.I_ENDS_AT], fx.N_ENDS, now)
    while job >= 0:
        end_job(c, job)
        job = heap_take(i, o[fx.I_ENDS], o[fx.I_ENDS_AT], fx.N_ENDS, now)
    _outages(c)
    node = heap_take(i, o[fx.I_WAKES], o[fx.I_WAKES_AT], fx.N_WAKES, now)
    while node >= 0:
        wake_done(c, node)
        node = heap_take(i, o[fx.I_WAKES], o[fx.I_WAKES_AT], fx.N_WAKES, now)
    job = heap_take(i, o[fx.I_TIMERS], o[fx.I_TIMERS_AT], fx.N_TIMERS, now)
    while job >= 0:
        _timer(c, job)
        job = heap_take(i, o[fx.I_TIMERS], o[fx.I_TIMERS_AT], fx.N_TIMERS, now)
    if now > 0 and now % c.g[fx.STEP_S] == 0:
        i[fx.COLUMN] = column_at(c, now)
        follow_load(c)
        log_event(c, events.GRID, -1, -1, -1, -1, i[fx.COLUMN])
    while i[fx.ARRIVED] < j[fx.JOB_COUNT] and j[o[fx.J_JOB] + i[fx.ARRIVED] * fx.JOB_CONSTANTS_WIDTH + fx.SUBMIT_S] == now:
        _arrive(c, i[fx.ARRIVED])
        i[fx.ARRIVED] += 1
    begin_decisions(c)


@compiled
def _timer(c, job):
    """A placed job starts, a held one may be asked about again, a running one is due for review."""
    i = c.i
    status = i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.STATUS]
    if status == PLACED:
        start_job(c, job)
    elif status == WAITING:
        set_ready(c, job)
    elif status == RUNNING:
        i[c.o[fx.I_SCRATCH] + i[fx.N_REVIEWS]] = job
        i[fx.N_REVIEWS] += 1


@compiled
def _outages(c):
    """Outages that end or begin now; the table is sorted by time, ends first, then by node."""
    g, i = c.g, c.i
    while i[fx.NEXT_OUTAGE] < g[fx.OUTAGE_COUNT]:
        a = c.o[fx.G_OUTAGE] + i[fx.NEXT_OUTAGE] * fx.OUTAGE_WIDTH
        if g[a + fx.OUTAGE_TIME_S] > i[fx.TIME_S]:
            return
        if g[a + fx.OUTAGE_BEGINS]:
            fail_node(c, g[a + fx.OUTAGE_NODE], g[a + fx.OUTAGE_UNTIL_S])
        else:
            node_up(c, g[a + fx.OUTAGE_NODE])
        i[fx.NEXT_OUTAGE] += 1


@compiled
def _arrive(c, job):
    o = c.o
    reason = c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.REJECT]
    if reason > 0:
        reject_job(c, job, reason)
        return
    wait_again(c, job)
    set_ready(c, job)
    if c.q[fx.PLAN_REGRET]:
        c.f[o[fx.F_JOB] + job * fx.JOB_F_WIDTH + fx.PLANNED_USD] = plan_job(c, job, 0)
    log_event(c, events.ARRIVE, job, -1, -1, -1, -1)


@compiled
def _next_event(c):
    """The next instant that is not just a grid step."""
    o, i = c.o, c.i
    after = min(heap_time(i, o[fx.I_ENDS], fx.N_ENDS), heap_time(i, o[fx.I_TIMERS], fx.N_TIMERS))
    after = min(after, heap_time(i, o[fx.I_WAKES], fx.N_WAKES))
    if i[fx.ARRIVED] < c.j[fx.JOB_COUNT]:
        after = min(after, c.j[o[fx.J_JOB] + i[fx.ARRIVED] * fx.JOB_CONSTANTS_WIDTH + fx.SUBMIT_S])
    if i[fx.NEXT_OUTAGE] < c.g[fx.OUTAGE_COUNT]:
        after = min(after, c.g[o[fx.G_OUTAGE] + i[fx.NEXT_OUTAGE] * fx.OUTAGE_WIDTH + fx.OUTAGE_TIME_S])
    node = i[o[fx.I_NODE] + o[fx.N_NODES] * fx.NODE_WIDTH + fx.IDLE_NEXT]
    if c.q[fx.SLEEP_AFTER_S] >= 0 and node != o[fx.N_NODES]:
        after = min(after, i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.IDLE_SINCE_S] + c.q[fx.SLEEP_AFTER_S])
    return after


@compiled
def _reject_stranded(c):
    """Step 7: nothing lies ahead that could make room."""
    for job in range(c.j[fx.JOB_COUNT]):
        if c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.STATUS] == WAITING:
            clear_ready(c, job)
            c.i[fx.N_WAITING] -= 1
            c.i[fx.WAITING_MILLI] -= c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.ASKED_MILLI]
            reject_job(c, job, STRANDED)


@compiled
def log_is_full(c):
    """Whether one more instant might not fit in the event log."""
    most = 8 * c.o[fx.N_JOBS] + 6 * c.o[fx.N_NODES] + 4
    return c.o[fx.N_LOG] > 0 and c.i[fx.LOG_COUNT] + most > c.o[fx.N_LOG]


@compiled
def advance(c):
    """Go on to the next question or the end of the window; with a full event log, stop between two instants to have it drained."""
    i, by_demand = c.i, rules_itself(c)
    while not i[fx.DONE]:
        if i[fx.PHASE] != NOTHING:
            if next_question(c):
                return
            if by_demand:
                follow_demand(c)
            fall_asleep(c)
            wake_ahead(c)
            if i[fx.UNFINISHED] > 0 and i[fx.COLUMN] == c.o[fx.N_COLUMNS] - 1 and _next_event(c) == NEVER:
                _reject_stranded(c)
            if i[fx.UNFINISHED] == 0:
                i[fx.DONE] = 1
                return
        if log_is_full(c):
            return
        step_s = c.g[fx.STEP_S]
        until = min((i[fx.TIME_S] // step_s + 1) * step_s, _next_event(c))
        if by_demand:
            until = min(until, next_check(c))
        charge_sites(c, until - i[fx.TIME_S])
        i[fx.TIME_S] = until
        _instant(c)


@compiled
def reward_since_mark(c):
    """Reward since the last question, exact and by regret; the question now becomes the mark."""
    f = c.f
    exact = -(f[fx.OBJECTIVE_USD] - f[fx.MARKED_USD]) / c.qf[fx.SCALE_USD]
    regret = -(f[fx.REGRET_USD] - f[fx.MARKED_REGRET]) / c.qf[fx.SCALE_USD]
    f[fx.MARKED_USD] = f[fx.OBJECTIVE_USD]
    f[fx.MARKED_REGRET] = f[fx.REGRET_USD]
    return exact, regret

"""Compiled runs: a job's segments from start to end, pause, change of level, migration or interruption."""

from __future__ import annotations

import math

from envs import events
from envs import fields as fx
from envs.kernel_bookings import unbook
from envs.kernel_compile import compiled
from envs.kernel_nodes import node_down
from envs.kernel_placement import place, release
from envs.kernel_power import (
    charge_transfer,
    commit,
    held_milli,
    objective_of,
    penalise_end,
    penalise_start,
    set_job_watts,
    share_nw,
    speed_of,
    worker_nw,
)
from envs.kernel_queue import clear_ready, heap_drop, heap_put, log_event, set_ready
from envs.state import EASY, ENDED, PLACED, REJECTED, RUNNING, VIOLATED_BY_REJECTION, WAITING, WITHDRAWN


@compiled
def site_of(c, p):
    return c.k[c.o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_SITE]


@compiled
def worked_s(c, job):
    """Seconds of the running segment in which the job has worked, not loaded."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    return max(0, c.i[fx.TIME_S] - c.i[a + fx.BEGIN_S] - c.i[a + fx.LOADING_S])


@compiled
def done_after(c, job, seconds):
    """Finished reference seconds after ``seconds`` of work in the running segment, of what is there to do."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    done = c.i[a + fx.DONE_S]
    if c.j[b + fx.UNTIL_S] >= 0:
        return done
    work = math.floor(seconds * speed_of(c, c.i[a + fx.POOL], c.i[a + fx.LEVEL], c.j[b + fx.CURVE]))
    return done + min(int(work), c.j[b + fx.DURATION_S] - done - 1)


@compiled
def checkpointed(c, job):
    """Finished reference seconds at the last periodic checkpoint."""
    every = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.CHECKPOINT_S]
    if every == 0:
        return c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.DONE_S]
    return done_after(c, job, worked_s(c, job) // every * every)


@compiled
def estimated_end(c, job):
    """When a placed or running job ends by its estimate."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    if c.j[b + fx.UNTIL_S] >= 0:
        return c.j[b + fx.UNTIL_S]
    left = max(1, c.j[b + fx.ESTIMATE_S] - c.i[a + fx.DONE_S])
    speed = speed_of(c, c.i[a + fx.POOL], c.i[a + fx.LEVEL], c.j[b + fx.CURVE])
    return c.i[a + fx.BEGIN_S] + c.i[a + fx.LOADING_S] + math.ceil(left / speed)


@compiled
def _plan_end(c, job):
    """Put the running segment's true end into the calendar."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    if c.j[b + fx.UNTIL_S] >= 0:
        i[a + fx.DUE_S] = c.j[b + fx.UNTIL_S]
    else:
        speed = speed_of(c, i[a + fx.POOL], i[a + fx.LEVEL], c.j[b + fx.CURVE])
        work = math.ceil((c.j[b + fx.DURATION_S] - i[a + fx.DONE_S]) / speed)
        i[a + fx.DUE_S] = i[a + fx.BEGIN_S] + i[a + fx.LOADING_S] + work
    heap_put(i, o[fx.I_ENDS], o[fx.I_ENDS_AT], fx.N_ENDS, i[a + fx.DUE_S], job)


@compiled
def _expect_leave(c, job):
    """Put the placed job's estimated end into its pool's calendar, which only EASY reads."""
    if c.q[fx.DISCIPLINE] == EASY:
        p = c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.POOL]
        heap_put(c.i, c.o[fx.I_LEAVES] + p * c.o[fx.N_JOBS], c.o[fx.I_LEAVES_AT], c.o[fx.I_N_LEAVES] + p, estimated_end(c, job), job)


@compiled
def _forget_leave(c, job):
    if c.q[fx.DISCIPLINE] == EASY:
        p = c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.POOL]
        heap_drop(c.i, c.o[fx.I_LEAVES] + p * c.o[fx.N_JOBS], c.o[fx.I_LEAVES_AT], c.o[fx.I_N_LEAVES] + p, job)


@compiled
def plan_review(c, job):
    if c.q[fx.REVIEW_S] > 0 and c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.PREEMPTIBLE]:
        heap_put(c.i, c.o[fx.I_TIMERS], c.o[fx.I_TIMERS_AT], fx.N_TIMERS, c.i[fx.TIME_S] + c.q[fx.REVIEW_S], job)


@compiled
def set_watts(c, job):
    """Charge the running job by its pool, level and load of now."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    p = c.i[a + fx.POOL]
    workers = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    set_job_watts(c, job, workers * worker_nw(c, job, p, c.i[a + fx.LEVEL], False), workers * share_nw(c, job, p))


@compiled
def _occupied_milli(c, job):
    p = c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.POOL]
    return c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS] * held_milli(c, job, p)


@compiled
def start_job(c, job):
    """The placed job starts now."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    p = i[a + fx.POOL]
    site = site_of(c, p)
    i[a + fx.STATUS] = RUNNING
    i[a + fx.MARKED_S] = i[fx.TIME_S]
    set_watts(c, job)
    i[o[fx.I_SITE] + site * fx.SITE_WIDTH + fx.RUNNING_MILLI] += _occupied_milli(c, job)
    if i[a + fx.START_S] < 0:
        i[a + fx.START_S] = i[fx.TIME_S]
        penalise_start(c, job, site, False)
    if c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.UNTIL_S] >= 0:
        i[fx.N_LEASES] += 1
    _plan_end(c, job)
    plan_review(c, job)
    log_event(c, events.START, job, p, i[a + fx.LEVEL], -1, -1)


@compiled
def run_job(c, job, p, level, delay_s):
    """Place the job, which waits or has just left its place, in pool p at ``level``."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    i[a + fx.POOL] = p
    i[a + fx.LEVEL] = level
    i[a + fx.STATUS] = PLACED
    i[a + fx.LOADING_S] = c.j[b + fx.RESTART_S] if i[a + fx.START_S] >= 0 and c.j[b + fx.UNTIL_S] < 0 else 0
    i[a + fx.BEGIN_S] = i[fx.TIME_S] + delay_s
    i[o[fx.I_RUNNING] + i[fx.N_RUNNING]] = job
    i[a + fx.RUNNING_AT] = i[fx.N_RUNNING]
    i[fx.N_RUNNING] += 1
    _expect_leave(c, job)
    place(c, job, p, level)
    site = site_of(c, p)
    if i[a + fx.LIES_AT] >= 0 and i[a + fx.LIES_AT] != site:
        charge_transfer(c, job, site)
        i[a + fx.LIES_AT] = site
    if delay_s == 0:
        start_job(c, job)
    else:
        heap_put(i, o[fx.I_TIMERS], o[fx.I_TIMERS_AT], fx.N_TIMERS, i[a + fx.BEGIN_S], job)


@compiled
def _leave(c, job):
    """The placed or running job gives up its place."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    if i[a + fx.STATUS] == RUNNING:
        site = site_of(c, i[a + fx.POOL])
        set_job_watts(c, job, 0, 0)
        i[o[fx.I_SITE] + site * fx.SITE_WIDTH + fx.RUNNING_MILLI] -= _occupied_milli(c, job)
        heap_drop(i, o[fx.I_ENDS], o[fx.I_ENDS_AT], fx.N_ENDS, job)
        if c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.UNTIL_S] >= 0:
            i[fx.N_LEASES] -= 1
    heap_drop(i, o[fx.I_TIMERS], o[fx.I_TIMERS_AT], fx.N_TIMERS, job)
    _forget_leave(c, job)
    unbook(c, job)
    release(c, job, i[a + fx.LEVEL])
    last = i[o[fx.I_RUNNING] + i[fx.N_RUNNING] - 1]
    i[o[fx.I_RUNNING] + i[a + fx.RUNNING_AT]] = last
    i[o[fx.I_JOB] + last * fx.JOB_WIDTH + fx.RUNNING_AT] = i[a + fx.RUNNING_AT]
    i[fx.N_RUNNING] -= 1


@compiled
def wait_again(c, job):
    """The job joins the queue (again)."""
    o, i = c.o, c.i
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    i[o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.STATUS] = WAITING
    i[fx.N_WAITING] += 1
    i[fx.WAITING_MILLI] += c.j[b + fx.ASKED_MILLI]
    if c.j[b + fx.UNTIL_S] >= 0:
        heap_put(i, o[fx.I_ENDS], o[fx.I_ENDS_AT], fx.N_ENDS, c.j[b + fx.UNTIL_S], job)


@compiled
def wait_no_more(c, job):
    """The job leaves the queue."""
    o, i = c.o, c.i
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    clear_ready(c, job)
    unbook(c, job)
    heap_drop(i, o[fx.I_TIMERS], o[fx.I_TIMERS_AT], fx.N_TIMERS, job)
    i[fx.N_WAITING] -= 1
    i[fx.WAITING_MILLI] -= c.j[b + fx.ASKED_MILLI]
    if c.j[b + fx.UNTIL_S] >= 0:
        heap_drop(i, o[fx.I_ENDS], o[fx.I_ENDS_AT], fx.N_ENDS, job)


@compiled
def _close_regret(c, job):
    """What the job cost beyond its last plan."""
    f = c.f
    a = c.o[fx.F_JOB] + job * fx.JOB_F_WIDTH
    if c.q[fx.PLAN_REGRET]:
        cost = objective_of(c, f[a + fx.JOB_USD], f[a + fx.JOB_KG], f[a + fx.JOB_KWH]) + c.qf[fx.W_SLA] * f[a + fx.JOB_PENALTY]
        f[fx.REGRET_USD] += cost - f[a + fx.PLANNED_USD]
        f[a + fx.PLANNED_USD] = cost


@compiled
def end_job(c, job):
    """A running job is finished; a waiting lease is withdrawn."""
    i = c.i
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    i[fx.UNFINISHED] -= 1
    if i[a + fx.STATUS] == WAITING:
        wait_no_more(c, job)
        i[a + fx.STATUS] = WITHDRAWN
        if i[a + fx.START_S] < 0:
            penalise_start(c, job, site_of(c, _first_pool(c, job)), True)
        log_event(c, events.WITHDRAW, job, -1, -1, -1, -1)
    else:
        p = i[a + fx.POOL]
        _leave(c, job)
        i[a + fx.STATUS] = ENDED
        i[a + fx.END_S] = i[fx.TIME_S]
        penalise_end(c, job, site_of(c, p))
        log_event(c, events.END, job, p, i[a + fx.LEVEL], -1, -1)
    _close_regret(c, job)


@compiled
def _first_pool(c, job):
    for p in range(c.o[fx.N_POOLS]):
        if c.j[c.o[fx.J_ALLOWED] + job * c.o[fx.N_POOLS] + p] != 0:
            return p
    return 0


@compiled
def reject_job(c, job, reason):
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    c.i[a + fx.STATUS] = REJECTED
    c.i[a + fx.VIOLATION] |= VIOLATED_BY_REJECTION
    c.i[fx.UNFINISHED] -= 1
    log_event(c, events.REJECT, job, -1, -1, -1, reason)


@compiled
def pause_job(c, job):
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    ask = i[fx.TIME_S] + c.q[fx.HOLD_S]
    done = done_after(c, job, worked_s(c, job))
    _leave(c, job)
    i[a + fx.DONE_S] = done
    wait_again(c, job)
    heap_put(i, o[fx.I_TIMERS], o[fx.I_TIMERS_AT], fx.N_TIMERS, ask, job)
    log_event(c, events.PAUSE, job, i[a + fx.POOL], i[a + fx.LEVEL], -1, ask)


@compiled
def migrate_job(c, job, p, level, delay_s):
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    done = done_after(c, job, worked_s(c, job))
    _leave(c, job)
    c.i[a + fx.DONE_S] = done
    log_event(c, events.MIGRATE, job, p, level, -1, c.i[fx.TIME_S] + delay_s)
    run_job(c, job, p, level, delay_s)


@compiled
def change_level(c, job, level):
    """A new segment begins at once at another level of the same place."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    p = i[a + fx.POOL]
    done = done_after(c, job, worked_s(c, job))
    i[a + fx.LOADING_S] = max(0, i[a + fx.LOADING_S] - (i[fx.TIME_S] - i[a + fx.BEGIN_S]))
    i[a + fx.BEGIN_S] = i[fx.TIME_S]
    i[a + fx.DONE_S] = done
    if o[fx.HAS_BUDGET]:
        more = worker_nw(c, job, p, level, True) - worker_nw(c, job, p, i[a + fx.LEVEL], True)
        record = i[a + fx.RECORD_HEAD]
        while record >= 0:
            r = o[fx.I_RECORD] + record * fx.RECORD_WIDTH
            commit(c, p, i[r + fx.RECORD_NODE], more)
            record = i[r + fx.RECORD_NEXT]
        i[fx.RELEASED] = 1
    i[a + fx.LEVEL] = level
    heap_drop(i, o[fx.I_ENDS], o[fx.I_ENDS_AT], fx.N_ENDS, job)
    _plan_end(c, job)
    _forget_leave(c, job)
    _expect_leave(c, job)
    set_watts(c, job)
    log_event(c, events.LEVEL, job, p, level, -1, -1)


@compiled
def _is_on(c, job, node):
    record = c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.RECORD_HEAD]
    while record >= 0:
        r = c.o[fx.I_RECORD] + record * fx.RECORD_WIDTH
        if c.i[r + fx.RECORD_NODE] == node:
            return True
        record = c.i[r + fx.RECORD_NEXT]
    return False


@compiled
def _next_on(c, node, after):
    """Least index above ``after`` of the jobs on a node, or -1."""
    best = -1
    for at in range(c.i[fx.N_RUNNING]):
        job = c.i[c.o[fx.I_RUNNING] + at]
        if job > after and (best < 0 or job < best) and _is_on(c, job, node):
            best = job
    return best


@compiled
def fail_node(c, node, until_s):
    """An outage begins: the node's jobs are interrupted as a whole and wait again."""
    i = c.i
    log_event(c, events.NODE_DOWN, -1, c.k[c.o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_POOL], -1, node, until_s)
    job = _next_on(c, node, -1)
    while job >= 0:
        a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
        done = checkpointed(c, job) if i[a + fx.STATUS] == RUNNING else i[a + fx.DONE_S]
        _leave(c, job)
        i[a + fx.DONE_S] = done
        wait_again(c, job)
        set_ready(c, job)
        log_event(c, events.INTERRUPT, job, i[a + fx.POOL], i[a + fx.LEVEL], node, -1)
        job = _next_on(c, node, job)
    node_down(c, node, until_s)


@compiled
def follow_load(c):
    """A grid step has begun: replicas draw by its load."""
    if c.i[fx.N_LEASES] == 0:
        return
    for at in range(c.i[fx.N_RUNNING]):
        job = c.i[c.o[fx.I_RUNNING] + at]
        lease = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.UNTIL_S] >= 0
        if lease and c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.STATUS] == RUNNING:
            set_watts(c, job)

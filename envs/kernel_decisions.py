"""Compiled decisions: reviews, the scan of the queue, masks, the EASY reservation, and the effect of an action."""

from __future__ import annotations

from envs import events
from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_hindsight import hindsight_usd
from envs.kernel_placement import fits
from envs.kernel_planner import book_plan, plan_question, plan_run
from envs.kernel_power import committed_state_nw, held_milli, pool_and_site_allow, rack_of, speed_of, worker_nw
from envs.kernel_queue import (
    INDEX_BITS,
    INDEX_MASK,
    NEVER,
    WFP3,
    begin_sorted,
    block_shape,
    clear_ready,
    first_ready,
    heap_put,
    limit_shape,
    log_event,
    next_sorted,
    restore_skipped,
    skip_job,
    unblock_shapes,
)
from envs.kernel_runs import change_level, migrate_job, pause_job, plan_review, run_job, site_of, wait_no_more
from envs.kernel_scores import best_later, end_of, hold_until_s, loading_s, realised_objective, remaining_s
from envs.state import EASY, RUNNING, SLEEPING, STRICT, WAKING

NOTHING, REVIEWS, SCAN = 0, 1, 2
NO_ROOM, EXCLUDED, OFFERED = 0, 1, 2


# ---------------------------------------------------------------- questions


@compiled
def begin_decisions(c):
    c.i[fx.PHASE] = REVIEWS if c.i[fx.N_REVIEWS] > 0 else SCAN
    c.i[fx.NEXT_REVIEW] = 0
    c.i[fx.RESERVED_POOL] = -1
    if c.i[fx.PHASE] == SCAN:
        _begin_scan(c)


@compiled
def _begin_scan(c):
    if c.i[fx.N_BLOCKED] > 0 and (c.i[fx.RELEASED] or c.q[fx.DISCIPLINE] == EASY):
        unblock_shapes(c)
    c.i[fx.RELEASED] = 0
    if c.q[fx.QUEUE_ORDER] >= WFP3:
        begin_sorted(c)


@compiled
def next_question(c):
    """Go on to the next job to ask about; False when this instant's decisions are over."""
    i = c.i
    while i[fx.PHASE] == REVIEWS:
        if i[fx.NEXT_REVIEW] >= i[fx.N_REVIEWS]:
            i[fx.N_REVIEWS] = 0
            i[fx.PHASE] = SCAN
            _begin_scan(c)
            break
        job = i[c.o[fx.I_SCRATCH] + i[fx.NEXT_REVIEW]]
        i[fx.NEXT_REVIEW] += 1
        if i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.STATUS] == RUNNING:
            fill_mask(c, job, True)
            _ask(c, job, 1)
            return True
    timely = c.q[fx.QUEUE_ORDER] >= WFP3
    while True:
        job = next_sorted(c) if timely else first_ready(c)
        if job < 0:
            break
        verdict = fill_mask(c, job, False)
        if verdict == OFFERED:
            _ask(c, job, 0)
            return True
        if c.q[fx.DISCIPLINE] == STRICT:
            break
        if c.q[fx.DISCIPLINE] == EASY and i[fx.RESERVED_POOL] < 0:
            _reserve(c, job)
        if verdict == NO_ROOM:
            block_shape(c, job)
        else:
            skip_job(c, job)
            if i[fx.RESERVED_POOL] >= 0 and c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.UNTIL_S] < 0:
                _limit(c, job)
    restore_skipped(c)
    i[fx.PHASE] = NOTHING
    return False


@compiled
def _ask(c, job, reviewing):
    c.i[fx.ASKING] = job
    c.i[fx.REVIEWING] = reviewing
    c.i[fx.SCORED] = 0
    c.i[fx.PLANNED] = 0


@compiled
def fill_mask(c, job, review):
    """Mask of the job's actions now, with the start delay of each run and the nodes that it wakes; whether a run is offered."""
    o, i, j = c.o, c.i, c.j
    levels, actions = o[fx.N_LEVELS], o[fx.I_ACTION]
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    verdict = NO_ROOM
    for p in range(o[fx.N_POOLS]):
        first = actions + (1 + p * levels) * fx.ACTION_WIDTH
        for level in range(levels):
            i[first + level * fx.ACTION_WIDTH + fx.MASK] = 0
        bits = j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p]
        if bits == 0:
            continue
        if review and p == i[a + fx.POOL]:
            _offer_levels(c, job, bits)
            continue
        by_level = o[fx.HAS_BUDGET] > 0 and c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.RACK_BUDGET_NW] > 0
        room, delay, woken = (True, 0, 0) if by_level else fits(c, job, p, 0)
        if not room:
            continue
        transfer = j[b + fx.TRANSFER_S] if i[a + fx.LIES_AT] >= 0 and i[a + fx.LIES_AT] != site_of(c, p) else 0
        for level in range(levels):
            if bits >> level & 1 == 0:
                continue
            if by_level:
                room, delay, woken = fits(c, job, p, level)
            if not room or not _within_budget(c, job, p, level, woken):
                continue
            starts_after = max(delay, transfer)
            if _excluded(c, job, p, level, starts_after):
                verdict = max(verdict, EXCLUDED)
                continue
            at = first + level * fx.ACTION_WIDTH
            i[at + fx.MASK] = 1
            i[at + fx.START_DELAY_S] = starts_after
            i[at + fx.NODES_WOKEN] = woken
            verdict = OFFERED
    deferrable = c.k[o[fx.K_KIND] + j[b + fx.KIND] * fx.KIND_CONSTANTS_WIDTH + fx.DEFERRABLE]
    hold = verdict == OFFERED and deferrable and i[fx.TIME_S] < hold_until_s(c, job)
    i[actions + fx.MASK] = 1 if review or hold else 0
    i[actions + fx.START_DELAY_S] = 0
    i[actions + fx.NODES_WOKEN] = 0
    return verdict


@compiled
def _offer_levels(c, job, bits):
    """In a review: staying, and other levels of the same place as far as the budgets allow."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    p, own = i[a + fx.POOL], i[a + fx.LEVEL]
    for level in range(o[fx.N_LEVELS]):
        at = o[fx.I_ACTION] + (1 + p * o[fx.N_LEVELS] + level) * fx.ACTION_WIDTH
        if level == own or (bits >> level & 1 and _level_within_budget(c, job, p, level, own)):
            i[at + fx.MASK] = 1
            i[at + fx.START_DELAY_S] = 0
            i[at + fx.NODES_WOKEN] = 0


@compiled
def _level_within_budget(c, job, p, level, own):
    """Whether another level lowers the job's watts, or its rise leaves racks, pool and site within their budgets."""
    o, i = c.o, c.i
    if not o[fx.HAS_BUDGET]:
        return True
    more = worker_nw(c, job, p, level, True) - worker_nw(c, job, p, own, True)
    if more <= 0:
        return True
    workers = c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    if not pool_and_site_allow(c, p, workers * more):
        return False
    budget = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.RACK_BUDGET_NW]
    if budget == 0:
        return True
    # Each rack gets its workers' rises one after the other, and gives them back: a gang may have several workers in one rack.
    record, within = i[o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.RECORD_HEAD], True
    while record >= 0:
        r = o[fx.I_RECORD] + record * fx.RECORD_WIDTH
        rack = o[fx.I_RACK] + rack_of(c, p, i[r + fx.RECORD_NODE])
        i[rack] += more
        within = within and i[rack] <= budget
        record = i[r + fx.RECORD_NEXT]
    record = i[o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.RECORD_HEAD]
    while record >= 0:
        r = o[fx.I_RECORD] + record * fx.RECORD_WIDTH
        i[o[fx.I_RACK] + rack_of(c, p, i[r + fx.RECORD_NODE])] -= more
        record = i[r + fx.RECORD_NEXT]
    return within


@compiled
def _within_budget(c, job, p, level, woken):
    """Whether a run that wakes ``woken`` nodes leaves pool and site within their budgets."""
    if not c.o[fx.HAS_BUDGET]:
        return True
    workers = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    wake_nw = committed_state_nw(c, p, WAKING) - committed_state_nw(c, p, SLEEPING)
    return pool_and_site_allow(c, p, workers * worker_nw(c, job, p, level, True) + woken * wake_nw)


@compiled
def _excluded(c, job, p, level, delay_s):
    """Whether a run for which there is room is kept from this job: it would delay the reserved head, or the lease is over by then."""
    o, i, j = c.o, c.i, c.j
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    if j[b + fx.UNTIL_S] >= 0 and i[fx.TIME_S] + delay_s >= j[b + fx.UNTIL_S]:
        return True
    if p != i[fx.RESERVED_POOL] or held_milli(c, job, p) * j[b + fx.WORKERS] <= i[fx.RESERVED_EXTRA]:
        return False
    return end_of(c, job, p, level, i[fx.TIME_S] + delay_s, remaining_s(c, job), loading_s(c, job)) > i[fx.RESERVED_SHADOW_S]


# ---------------------------------------------------------------- EASY


@compiled
def _limit(c, job):
    """A job of this shape would delay the head, and has no room elsewhere: longer ones need not be asked about in this scan.

    The bound is a loose one, an immediate start at the highest speed: what passes it is looked at one by one.
    """
    o, i = c.o, c.i
    p = i[fx.RESERVED_POOL]
    bits = c.j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p]
    fastest = 0.0
    for level in range(o[fx.N_LEVELS]):
        for curve in range(o[fx.N_CURVES]):
            if bits >> level & 1:
                fastest = max(fastest, speed_of(c, p, level, curve))
    limit = int((i[fx.RESERVED_SHADOW_S] - i[fx.TIME_S]) * fastest) + 1
    limit_shape(c, c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE], limit)


@compiled
def _reserve(c, job):
    """Reserve the pool in which the head fits earliest by estimated ends."""
    i = c.i
    best_shadow = NEVER
    for p in range(c.o[fx.N_POOLS]):
        if c.j[c.o[fx.J_ALLOWED] + job * c.o[fx.N_POOLS] + p] == 0:
            continue
        shadow, extra = _shadow(c, p, held_milli(c, job, p) * c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS])
        if shadow < best_shadow:
            best_shadow = shadow
            i[fx.RESERVED_POOL] = p
            i[fx.RESERVED_SHADOW_S] = shadow
            i[fx.RESERVED_EXTRA] = extra


@compiled
def _shadow(c, p, need):
    """Earliest time at which ``need`` thousandths are free in pool p by estimated ends, and what is free beyond them then."""
    o, i = c.o, c.i
    free = i[o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.POOL_FREE]
    if free >= need:
        return i[fx.TIME_S], free - need
    # The least entries of the pool's calendar in order, by a heap of those whose parents have been seen.
    leaves, size = o[fx.I_LEAVES] + p * o[fx.N_JOBS], i[o[fx.I_N_LEAVES] + p]
    seen, count = o[fx.I_SCRATCH], 0
    if size > 0:
        count = _calendar_put(i, seen, 0, i[leaves])
    shadow = i[fx.TIME_S]
    while count > 0 and (free < need or max(i[seen] >> INDEX_BITS, i[fx.TIME_S] + 1) == shadow):
        key = _calendar_take(i, seen, count)
        count -= 1
        other = key & INDEX_MASK
        shadow = max(key >> INDEX_BITS, i[fx.TIME_S] + 1)
        free += held_milli(c, other, p) * c.j[o[fx.J_JOB] + other * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
        child = 2 * (i[o[fx.I_LEAVES_AT] + other] - 1) + 1
        if child < size:
            count = _calendar_put(i, seen, count, i[leaves + child])
        if child + 1 < size:
            count = _calendar_put(i, seen, count, i[leaves + child + 1])
    return shadow, max(0, free - need)


@compiled
def _calendar_put(i, heap, size, key):
    at = size
    while at > 0 and i[heap + ((at - 1) >> 1)] > key:
        i[heap + at] = i[heap + ((at - 1) >> 1)]
        at = (at - 1) >> 1
    i[heap + at] = key
    return size + 1


@compiled
def _calendar_take(i, heap, size):
    least, last = i[heap], i[heap + size - 1]
    end, at = size - 1, 0
    while True:
        child = 2 * at + 1
        if child >= end:
            break
        if child + 1 < end and i[heap + child + 1] < i[heap + child]:
            child += 1
        if i[heap + child] >= last:
            break
        i[heap + at] = i[heap + child]
        at = child
    i[heap + at] = last
    return least


# ---------------------------------------------------------------- actions


@compiled
def charge_regret(c, job, realised_usd):
    """What the job's new plan costs beyond the last one; the new plan is remembered."""
    a = c.o[fx.F_JOB] + job * fx.JOB_F_WIDTH
    c.f[fx.REGRET_USD] += realised_usd - c.f[a + fx.PLANNED_USD]
    c.f[a + fx.PLANNED_USD] = realised_usd


@compiled
def plan_job(c, job, first):
    """Cheapest expected start from ``first`` offsets on, at what it would really cost."""
    _, start, _, p, level = best_later(c, job, first)
    return realised_objective(c, job, p, level, start)


@compiled
def apply_action(c, action):
    """Carry out an allowed action on the job in question."""
    i = c.i
    job, reviewing = i[fx.ASKING], i[fx.REVIEWING]
    if action == 0 and c.q[fx.PLANS]:
        plan_question(c)
    if c.q[fx.PLAN_REGRET] and c.q[fx.PLANS]:
        charge_regret(c, job, hindsight_usd(c, job, action))
    i[fx.DECISIONS] += 1
    i[fx.LAST_DECISION_S] = i[fx.TIME_S]
    i[fx.ASKING] = -1
    if reviewing:
        _apply_review(c, job, action)
    elif action == 0:
        _hold(c, job)
    else:
        _run(c, job, action)


@compiled
def _hold(c, job):
    o, i = c.o, c.i
    if c.q[fx.PLAN_REGRET] and not c.q[fx.PLANS]:
        charge_regret(c, job, plan_job(c, job, 1))
    if c.q[fx.PLANS]:
        book_plan(c, job)
    clear_ready(c, job)
    ask = min(i[fx.TIME_S] + c.q[fx.HOLD_S], hold_until_s(c, job))
    heap_put(i, o[fx.I_TIMERS], o[fx.I_TIMERS_AT], fx.N_TIMERS, ask, job)
    log_event(c, events.HOLD, job, -1, -1, -1, ask)


@compiled
def _run(c, job, action):
    o, i = c.o, c.i
    p, level = (action - 1) // o[fx.N_LEVELS], (action - 1) % o[fx.N_LEVELS]
    delay = i[o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.START_DELAY_S]
    start = i[fx.TIME_S] + delay
    if p == i[fx.RESERVED_POOL] and end_of(c, job, p, level, start, remaining_s(c, job), loading_s(c, job)) > i[fx.RESERVED_SHADOW_S]:
        i[fx.RESERVED_EXTRA] -= held_milli(c, job, p) * c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    wait_no_more(c, job)
    if c.q[fx.PLAN_REGRET] and not c.q[fx.PLANS]:
        charge_regret(c, job, realised_objective(c, job, p, level, start))
    if c.q[fx.PLANS]:
        plan_run(c, job, p, level, delay)
    log_event(c, events.RUN, job, p, level, -1, start)
    run_job(c, job, p, level, delay)
    if c.q[fx.PLANS]:
        book_plan(c, job)


@compiled
def _apply_review(c, job, action):
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    if action == 0:
        pause_job(c, job)
        if c.q[fx.PLANS]:
            book_plan(c, job)
        return
    p, level = (action - 1) // o[fx.N_LEVELS], (action - 1) % o[fx.N_LEVELS]
    delay = i[o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.START_DELAY_S]
    if c.q[fx.PLANS]:
        plan_run(c, job, p, level, delay)
    if p != i[a + fx.POOL]:
        migrate_job(c, job, p, level, delay)
    else:
        if level != i[a + fx.LEVEL]:
            change_level(c, job, level)
        plan_review(c, job)
    if c.q[fx.PLANS]:
        book_plan(c, job)

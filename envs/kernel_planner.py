"""Compiled capacity-booking planner: a calendar of what is running and booked, and each job's cheapest start, pool and level in it.

The calendar has ``N_SLOTS`` slots of ``SLOT_S`` from now on for each pool: thousandths of GPUs that running jobs hold until their expected
end, and that jobs have booked. A run is priced by what it adds to the cluster's bill, not by what it is charged:

- its own (dynamic) watts over the expected duration, by the forecast of price, carbon and PUE;
- the idle watts of the nodes that it keeps awake: nodes needed with it less nodes needed without it, slot by slot;
- GPU time that is taken already, at ``overbooked_usd_per_gpu_hour``;
- waking, data transfer, and the penalty of the expected start and end.

Nobody sees true durations: a job is expected to take ``expected_share`` of its estimate, is booked and judged late by ``padded_share``
of it, and one that has outlived its expectation goes on for half as long as it has run.
"""

from __future__ import annotations

import math

import numpy as np

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_power import (
    HOUR_S,
    KWH_PER_NW_S,
    held_milli,
    objective_of,
    settle_job,
    share_nw,
    speed_of,
    state_nw,
    sum_at,
    worker_nw,
)
from envs.kernel_queue import book, unbook
from envs.kernel_runs import done_after, site_of, worked_s
from envs.kernel_scores import (
    DAY_S,
    expected_penalty,
    forecast_sum,
    hold_until_s,
    loading_s,
    rate_row,
    transfer_objective,
    wake_objective,
)
from envs.state import AWAKE, RUNNING, SLEEPING

WIDTH = fx.N_SLOTS + 1
MOST_LATER_SLOTS = DAY_S // fx.SLOT_S
GPU_HOURS = fx.SLOT_S / HOUR_S / 1000.0  # of a thousandth over a slot
SHORTEST_LEFT_S = 60
LEAST_UNIT_USD = 1e-6
HALF = fx.N_SLOTS // 2  # slots in one word of a booking
UNIT, WORK = 3 * WIDTH, 4 * WIDTH  # rows of the scratch


# ---------------------------------------------------------------- what is expected


@compiled
def left_s(c, job, share):
    """Reference seconds of work that a job is expected to have left when it takes ``share`` of its estimate."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    estimate = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.ESTIMATE_S]
    done = c.i[a + fx.DONE_S]
    if c.i[fx.HINDSIGHT]:
        worked = worked_s(c, job) if c.i[a + fx.STATUS] == RUNNING else 0
        return max(1.0, c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.DURATION_S] - done_after(c, job, worked) * 1.0)
    if c.i[a + fx.STATUS] == RUNNING:
        done = done_after(c, job, worked_s(c, job))
    outlived = min(max(estimate - done, SHORTEST_LEFT_S), 0.5 * done)
    return max(share * estimate - done, outlived, 1.0)


@compiled
def _ends_s(c, job, p, level, start_s, left, loading):
    """When a run of ``left`` reference seconds ends; a lease whenever it was wanted to."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    if c.j[b + fx.UNTIL_S] >= 0:
        return max(start_s, c.j[b + fx.UNTIL_S])
    return start_s + loading + math.ceil(left / speed_of(c, p, level, c.j[b + fx.CURVE]))


# ---------------------------------------------------------------- calendar


@compiled
def _slot_row(c, site):
    return (c.o[fx.F_TRUE] if c.i[fx.HINDSIGHT] else c.o[fx.F_SLOT]) + site * WIDTH


@compiled
def _fill_rates(c):
    """Running sums over the slots of the objective of 1 kW at each site, in USD."""
    now = c.i[fx.TIME_S]
    if c.i[fx.SLOTS_S] == now:
        return
    c.i[fx.SLOTS_S] = now
    hours = c.g[fx.STEP_S] / HOUR_S
    for site in range(c.o[fx.N_SITES]):
        row, to = rate_row(c, site), _slot_row(c, site)
        for k in range(WIDTH):
            c.f[to + k] = hours * forecast_sum(c, c.f, row, now + k * fx.SLOT_S)


@compiled
def _take(c, p, milli, start_s, end_s):
    """Enter ``milli`` thousandths over a time into the calendar's differences."""
    now, at = c.i[fx.TIME_S], c.o[fx.I_CALENDAR] + p * WIDTH
    first = max(0, (start_s - now) // fx.SLOT_S)
    last = max(first + 1, (end_s - now + fx.SLOT_S - 1) // fx.SLOT_S)
    if first < fx.N_SLOTS:
        c.i[at + first] += milli
        c.i[at + min(last, fx.N_SLOTS)] -= milli


@compiled
def _take_slots(c, p, milli, booking):
    """Enter ``milli`` thousandths over the booked slots that still lie ahead."""
    i = c.i
    at = c.o[fx.I_CALENDAR] + p * WIDTH
    past = (i[fx.TIME_S] - i[booking + fx.BOOKED_START_S] + fx.SLOT_S // 2) // fx.SLOT_S
    if past >= fx.N_SLOTS:
        return
    low, high = i[booking + fx.BOOKED_LOW], i[booking + fx.BOOKED_HIGH]
    if past >= HALF:
        low, high = high >> (past - HALF), 0
    else:
        low, high = (low >> past) | ((high & ((1 << past) - 1)) << (HALF - past)), high >> past
    before = 0
    for k in range(fx.N_SLOTS - past):
        bit = (low >> k if k < HALF else high >> (k - HALF)) & 1
        if bit != before:
            i[at + k] += milli if bit else -milli
            before = bit
    if before:
        i[at + fx.N_SLOTS - past] -= milli


@compiled
def _fill_calendar(c, job):
    """Thousandths taken in each slot of each pool by everything but ``job``."""
    o, i, now = c.o, c.i, c.i[fx.TIME_S]
    for at in range(o[fx.I_CALENDAR], o[fx.I_CALENDAR] + o[fx.N_POOLS] * WIDTH):
        i[at] = 0
    for at in range(i[fx.N_RUNNING]):
        other = i[o[fx.I_RUNNING] + at]
        if other != job and i[o[fx.I_BOOKING] + other * fx.BOOKING_WIDTH + fx.BOOKED_POOL] < 0:
            a = o[fx.I_JOB] + other * fx.JOB_WIDTH
            p = i[a + fx.POOL]
            loading = max(0, i[a + fx.LOADING_S] - max(0, now - i[a + fx.BEGIN_S]))
            end = _ends_s(c, other, p, i[a + fx.LEVEL], max(now, i[a + fx.BEGIN_S]), left_s(c, other, c.qf[fx.PADDED_SHARE]), loading)
            _take(c, p, _milli(c, other, p), now, end)
    for at in range(i[fx.N_BOOKED]):
        other = i[o[fx.I_BOOKED] + at]
        if other != job:
            a = o[fx.I_BOOKING] + other * fx.BOOKING_WIDTH
            p = i[a + fx.BOOKED_POOL]
            if i[a + fx.BOOKED_END_S] < 0:
                _take_slots(c, p, _milli(c, other, p), a)
            else:
                start = max(now, i[a + fx.BOOKED_START_S])
                _take(c, p, _milli(c, other, p), start, i[a + fx.BOOKED_END_S] + start - i[a + fx.BOOKED_START_S])
    for p in range(o[fx.N_POOLS]):
        at, taken = o[fx.I_CALENDAR] + p * WIDTH, 0
        for k in range(fx.N_SLOTS):
            taken += i[at + k]
            i[at + k] = taken


@compiled
def _milli(c, job, p):
    return c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS] * held_milli(c, job, p)


@compiled
def _fill_pool(c, job, p):
    """Running sums over the slots of what holding the job's GPUs in pool p costs beyond its own watts, USD.

    Row 0 of the scratch: nodes kept awake; row 1: GPU time that is taken already; row 2: nodes added in each slot.
    """
    o, i, f = c.o, c.i, c.f
    k_pool = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    node_milli = c.k[k_pool + fx.POOL_GPUS] * 1000
    capacity = c.k[k_pool + fx.POOL_NODES] * node_milli
    kw = (0.0 if i[fx.HINDSIGHT] else c.qf[fx.NODE_WEIGHT]) * (state_nw(c, p, AWAKE) - state_nw(c, p, SLEEPING)) * (KWH_PER_NW_S * HOUR_S)
    need, rates, at = _milli(c, job, p), _slot_row(c, site_of(c, p)), o[fx.I_CALENDAR] + p * WIDTH
    price = c.qf[fx.OVERBOOKED_USD_PER_GPU_HOUR] * GPU_HOURS
    nodes, taken_usd = 0.0, 0.0
    to = o[fx.F_PLAN]
    for k in range(fx.N_SLOTS):
        f[to + k], f[to + WIDTH + k] = nodes, taken_usd
        taken = min(i[at + k], capacity)
        before = (taken + node_milli - 1) // node_milli
        after = (min(taken + need, capacity) + node_milli - 1) // node_milli
        f[to + 2 * WIDTH + k] = after - before
        nodes += (after - before) * kw * (f[rates + k + 1] - f[rates + k])
        taken_usd += price * max(0, min(need, i[at + k] + need - capacity))
    f[to + fx.N_SLOTS], f[to + WIDTH + fx.N_SLOTS] = nodes, taken_usd


@compiled
def _until(c, row, seconds):
    """Running sum at so many seconds from now; beyond the calendar its last day's mean goes on."""
    x = seconds / fx.SLOT_S
    k = int(x)
    if k >= fx.N_SLOTS:
        last = row + fx.N_SLOTS
        return c.f[last] + (x - fx.N_SLOTS) * (c.f[last] - c.f[last - MOST_LATER_SLOTS]) / MOST_LATER_SLOTS
    return c.f[row + k] + (x - k) * (c.f[row + k + 1] - c.f[row + k])


# ---------------------------------------------------------------- slots of a job that can be interrupted


@compiled
def splits(c, job):
    """Whether the job may be run in pieces: it is asked about while it runs, and keeps what it has done."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    return c.q[fx.REVIEW_S] > 0 and c.j[b + fx.PREEMPTIBLE] and c.j[b + fx.UNTIL_S] < 0


@compiled
def _fill_units(c, job, p):
    """Price of a reference second of work in each slot of pool p at the level that is cheapest there, and the seconds done in it."""
    o, f, i = c.o, c.f, c.i
    bits, curve = c.j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p], c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.CURVE]
    rates, to, order = _slot_row(c, site_of(c, p)), o[fx.F_PLAN], o[fx.I_ORDER] + p * fx.N_SLOTS
    for k in range(fx.N_SLOTS):
        f[to + UNIT + k] = np.inf
    for level in range(o[fx.N_LEVELS]):
        if bits >> level & 1 == 0:
            continue
        work = speed_of(c, p, level, curve) * fx.SLOT_S
        kw, share = _own_kw(c, job, p, level) / work, 1.0 / work
        for k in range(fx.N_SLOTS):
            held = f[to + k + 1] - f[to + k] + f[to + WIDTH + k + 1] - f[to + WIDTH + k]
            usd = kw * (f[rates + k + 1] - f[rates + k]) + share * held
            if usd < f[to + UNIT + k]:
                f[to + UNIT + k], f[to + WORK + k] = usd, work
    # The order of the pool's last question is nearly right.
    for n in range(1, fx.N_SLOTS):
        slot = i[order + n]
        usd, m = f[to + UNIT + slot], n
        while m > 0 and f[to + UNIT + i[order + m - 1]] > usd:
            i[order + m] = i[order + m - 1]
            m -= 1
        i[order + m] = slot


@compiled
def _cheapest_work(c, job, p, work):
    """Price of so much work in the cheapest slots of pool p after this one and before the deadline; more than fits at its mean price.

    The slots become the plan's bits.
    """
    i, f = c.i, c.f
    to, order = c.o[fx.F_PLAN], c.o[fx.I_ORDER] + p * fx.N_SLOTS
    ahead = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.DEADLINE_S] - i[fx.TIME_S]
    until = ahead // fx.SLOT_S if ahead > 0 else fx.N_SLOTS
    # Work whose deadline lies beyond the calendar is spread evenly: its part of the calendar's time is done in the calendar.
    beyond = max(1.0, ahead / (fx.N_SLOTS * fx.SLOT_S))
    work /= beyond
    usd, done, low, high = 0.0, 0.0, 0, 0
    for n in range(fx.N_SLOTS):
        slot = i[order + n]
        if slot == 0 or slot >= until:
            continue
        part = min(work - done, f[to + WORK + slot])
        if part <= 0.0:
            break
        usd += part * f[to + UNIT + slot]
        done += part
        if slot < HALF:
            low |= 1 << slot
        else:
            high |= 1 << (slot - HALF)
    i[fx.PLAN_LOW], i[fx.PLAN_HIGH] = low, high
    if work > done:
        mean = usd / done if done > 0.0 else f[to + UNIT + i[order + fx.N_SLOTS // 2]]
        usd += (work - done) * mean
    return usd * beyond


@compiled
def _fastest(c, job, p):
    best = 0.0
    bits, curve = c.j[c.o[fx.J_ALLOWED] + job * c.o[fx.N_POOLS] + p], c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.CURVE]
    for level in range(c.o[fx.N_LEVELS]):
        if bits >> level & 1:
            best = max(best, speed_of(c, p, level, curve))
    return best


@compiled
def _late_usd(c, job, p, start_s, padded):
    """Penalty when ``padded`` reference seconds are left after this slot and are then done at full speed."""
    end = c.i[fx.TIME_S] + fx.SLOT_S + max(padded, 0.0) / _fastest(c, job, p)
    return c.qf[fx.W_SLA] * expected_penalty(c, job, start_s, end)


@compiled
def _price_slot(c, job, p, level, delay, loading, expected, padded, moving):
    """Price of working in pool p until the next question, and of the rest in its cheapest slots; whose bits become the plan's."""
    o = c.o
    speed = speed_of(c, p, level, c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.CURVE])
    works = min(max(0.0, fx.SLOT_S - delay - loading), expected / speed)
    rates = _slot_row(c, site_of(c, p))
    until = min(delay + loading + works, fx.SLOT_S * 1.0)
    own = _own_kw(c, job, p, level) * (_until(c, rates, until) - _until(c, rates, min(delay, fx.SLOT_S)))
    node_usd, taken_usd = _until(c, o[fx.F_PLAN], until), _until(c, o[fx.F_PLAN] + WIDTH, until)
    done = works * speed
    rest = _cheapest_work(c, job, p, expected - done) if expected - done > 1.0 else 0.0
    if expected - done <= 1.0:
        c.i[fx.PLAN_LOW], c.i[fx.PLAN_HIGH] = 0, 0
    c.i[fx.PLAN_LOW] |= 1
    late = _late_usd(c, job, p, c.i[fx.TIME_S] + delay, padded - max(0.0, fx.SLOT_S - delay - loading) * speed)
    return own, own + rest + late + moving, node_usd, taken_usd


@compiled
def _plan_pieces(c, job, p, loading, expected, padded, best, hold):
    """Price the runs that the question offers in pool p, and working in its later slots only; the plan of the cheapest pool stays."""
    o, i, now = c.o, c.i, c.i[fx.TIME_S]
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    if hold:
        rest = _cheapest_work(c, job, p, expected)
        level = 0
        resume = _own_kw(c, job, p, level) * c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.RESTART_S] / HOUR_S
        rates = _slot_row(c, site_of(c, p))
        resume *= (c.f[rates + fx.N_SLOTS] - c.f[rates]) / (fx.N_SLOTS * fx.SLOT_S / HOUR_S)
        usd = rest + _late_usd(c, job, p, now + fx.SLOT_S, padded) + transfer_objective(c, job, p)
        if i[a + fx.START_S] >= 0:
            usd += resume
        now_usd = _own_kw(c, job, p, level) * (_until(c, rates, fx.SLOT_S) - _until(c, rates, 0))
        usd += (c.qf[fx.MOVE_MARGIN] if i[fx.REVIEWING] else c.qf[fx.HOLD_MARGIN]) * abs(now_usd)
        if hold_until_s(c, job) <= now:  # it would be asked to run again at once
            usd += abs(usd)
        if usd < best:
            best = usd
            _enter(c, 0, usd, 0.0, 0.0)
            i[fx.PLAN_POOL], i[fx.PLAN_START_S], i[fx.PLAN_END_S] = p, now, -1
            i[fx.BEST_LOW], i[fx.BEST_HIGH] = i[fx.PLAN_LOW], i[fx.PLAN_HIGH]
    for level in range(o[fx.N_LEVELS]):
        action = 1 + p * o[fx.N_LEVELS] + level
        at = o[fx.I_ACTION] + action * fx.ACTION_WIDTH
        if not i[at + fx.MASK]:
            continue
        stays = i[fx.REVIEWING] and p == i[a + fx.POOL]
        load, moving = loading, 0.0
        if stays:
            load = max(0, i[a + fx.LOADING_S] - (now - i[a + fx.BEGIN_S]))
        else:
            moving = wake_objective(c, p, i[at + fx.NODES_WOKEN]) + transfer_objective(c, job, p)
        own, usd, node_usd, taken_usd = _price_slot(c, job, p, level, i[at + fx.START_DELAY_S], load, expected, padded, moving)
        if i[fx.REVIEWING] and not (stays and level == i[a + fx.LEVEL]):
            usd += c.qf[fx.MOVE_MARGIN] * abs(own)
        _enter(c, action, usd, node_usd, taken_usd)
        if own > 0.0:
            c.f[fx.PLAN_UNIT_USD] = min(c.f[fx.PLAN_UNIT_USD], own)
    return best


@compiled
def _margin(c, action, stays):
    """A running job stays as it is unless something else is better by the margin."""
    if c.i[fx.REVIEWING] and not stays:
        to = c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.PLANNED_ACTION_USD
        c.f[to] += c.qf[fx.MOVE_MARGIN] * abs(c.f[to])


# ---------------------------------------------------------------- runs from start to end


@compiled
def _own_kw(c, job, p, level):
    """Kilowatts that the job's workers add to awake nodes and, by ``share_weight``, are charged of their idle watts, before PUE."""
    workers = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    weight = 1.0 if c.i[fx.HINDSIGHT] else c.qf[fx.SHARE_WEIGHT]
    nw = worker_nw(c, job, p, level, False) + weight * share_nw(c, job, p)
    return workers * nw * (KWH_PER_NW_S * HOUR_S)


@compiled
def _plan_runs(c, job, p, loading):
    """Price the runs in pool p that the question offers."""
    o, i, now = c.o, c.i, c.i[fx.TIME_S]
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    rates = _slot_row(c, site_of(c, p))
    expected, padded = left_s(c, job, c.qf[fx.EXPECTED_SHARE]), left_s(c, job, c.qf[fx.PADDED_SHARE])
    for level in range(o[fx.N_LEVELS]):
        action = 1 + p * o[fx.N_LEVELS] + level
        at = o[fx.I_ACTION] + action * fx.ACTION_WIDTH
        if not i[at + fx.MASK]:
            continue
        start, load = now + i[at + fx.START_DELAY_S], loading
        stays = i[fx.REVIEWING] and p == i[a + fx.POOL]
        if stays:
            load = max(0, i[a + fx.LOADING_S] - (now - i[a + fx.BEGIN_S]))
        end = _ends_s(c, job, p, level, start, expected, load)
        late_end = _ends_s(c, job, p, level, start, padded, load)
        usd = _own_kw(c, job, p, level) * (_until(c, rates, end - now) - _until(c, rates, start - now))
        usd += c.qf[fx.W_SLA] * expected_penalty(c, job, start, late_end)
        node_usd = _until(c, o[fx.F_PLAN], end - now)
        taken_usd = _until(c, o[fx.F_PLAN] + WIDTH, late_end - now)
        if not stays:
            usd += wake_objective(c, p, i[at + fx.NODES_WOKEN]) + transfer_objective(c, job, p)
        _enter(c, action, usd, node_usd, taken_usd)
        _margin(c, action, stays and level == i[a + fx.LEVEL])


@compiled
def _enter(c, action, usd, node_usd, taken_usd):
    to = c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH
    c.f[to + fx.PLANNED_ACTION_USD] = usd + node_usd + taken_usd
    c.f[to + fx.PLANNED_NODE_USD] = node_usd
    c.f[to + fx.PLANNED_OVERBOOKED_USD] = taken_usd


@compiled
def _plan_later(c, job, p, first, last, loading, best_usd):
    """Price later starts in pool p, slot by slot up to the last possible one; the cheapest below ``best_usd`` becomes the plan."""
    o, f, j, now = c.o, c.f, c.j, c.i[fx.TIME_S]
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    bits, deadline, latest = j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p], j[b + fx.DEADLINE_S], j[b + fx.LATEST_START_S]
    rates, nodes = _slot_row(c, site_of(c, p)), o[fx.F_PLAN]
    expected, padded = left_s(c, job, c.qf[fx.EXPECTED_SHARE]), left_s(c, job, c.qf[fx.PADDED_SHARE])
    transfer, wake = transfer_objective(c, job, p), wake_objective(c, p, 1)
    for level in range(o[fx.N_LEVELS]):
        if bits >> level & 1 == 0:
            continue
        kw = _own_kw(c, job, p, level)
        for k in range(first, MOST_LATER_SLOTS + 1):
            begin = min(k * fx.SLOT_S, last)
            end = _ends_s(c, job, p, level, now + begin, expected, loading) - now
            late_end = _ends_s(c, job, p, level, now + begin, padded, loading) - now
            usd = kw * (_until(c, rates, end) - _until(c, rates, begin)) + transfer
            node_usd = _until(c, nodes, end) - _until(c, nodes, begin)
            taken_usd = _until(c, nodes + WIDTH, late_end) - _until(c, nodes + WIDTH, begin)
            usd += wake * f[nodes + 2 * WIDTH + begin // fx.SLOT_S]
            if now + late_end > deadline or now + begin > latest:
                usd += c.qf[fx.W_SLA] * expected_penalty(c, job, now + begin, now + late_end)
            if usd + node_usd + taken_usd < best_usd:
                best_usd = usd + node_usd + taken_usd
                _enter(c, 0, usd, node_usd, taken_usd)
                c.i[fx.PLAN_POOL], c.i[fx.PLAN_START_S], c.i[fx.PLAN_END_S] = p, now + begin, now + late_end
            if begin == last:
                break
    return best_usd


@compiled
def _plan(c, job, first, last, runs):
    """Price later starts from slot ``first`` on (action 0), and with ``runs`` the runs that the question offers."""
    o = c.o
    _fill_rates(c)
    _fill_calendar(c, job)
    c.i[fx.PLAN_POOL] = -1
    c.f[fx.PLAN_UNIT_USD] = np.inf
    loading, best, pieces = loading_s(c, job), np.inf, splits(c, job)
    expected, padded = left_s(c, job, c.qf[fx.EXPECTED_SHARE]), left_s(c, job, c.qf[fx.PADDED_SHARE])
    if c.i[o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.STATUS] == RUNNING:
        loading = c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.RESTART_S]
    for p in range(o[fx.N_POOLS]):
        if c.j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p] == 0:
            continue
        _fill_pool(c, job, p)
        if pieces:
            _fill_units(c, job, p)
            best = _plan_pieces(c, job, p, loading, expected, padded, best, last >= 0)
            continue
        if runs:
            _plan_runs(c, job, p, loading)
        if last >= 0:
            best = _plan_later(c, job, p, first, last, loading, best)
    c.i[fx.PLAN_LOW], c.i[fx.PLAN_HIGH] = c.i[fx.BEST_LOW], c.i[fx.BEST_HIGH]


@compiled
def _last_start(c, job):
    """Seconds from now to the last start that hold can reach, within a day."""
    return min(max(hold_until_s(c, job) - c.i[fx.TIME_S], 0), DAY_S)


@compiled
def plan_question(c):
    """Price every allowed action of the question, once."""
    if c.i[fx.PLANNED]:
        return
    c.i[fx.PLANNED] = 1
    job, hold = c.i[fx.ASKING], c.o[fx.I_ACTION] + fx.MASK
    last = _last_start(c, job) if c.i[hold] else -1
    _plan(c, job, 1, last, True)
    if c.i[hold] and not splits(c, job):
        to = c.o[fx.F_ACTION] + fx.PLANNED_ACTION_USD
        c.f[to] += c.qf[fx.HOLD_MARGIN] * abs(c.f[to])
    if c.f[fx.PLAN_UNIT_USD] == np.inf:
        c.f[fx.PLAN_UNIT_USD] = abs(best_planned(c))


@compiled
def plan_arrival(c, job):
    """Book the cheapest start of a job that has just come, for it may not be asked about before there is room."""
    for action in range(c.o[fx.N_ACTIONS]):
        c.i[c.o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK] = 0
    _plan(c, job, 0, _last_start(c, job), False)
    book_plan(c, job)


@compiled
def plan_run(c, job, p, level, delay):
    """The plan of a run that has been chosen: a job that can be interrupted books this slot and the cheapest later ones of the pool."""
    c.i[fx.PLAN_POOL] = -1
    if not splits(c, job):
        return
    loading = _loading_now(c, job, p)
    _fill_rates(c)
    _fill_calendar(c, job)
    _fill_pool(c, job, p)
    _fill_units(c, job, p)
    _price_slot(c, job, p, level, delay, loading, left_s(c, job, c.qf[fx.EXPECTED_SHARE]), 0.0, 0.0)
    c.i[fx.PLAN_POOL], c.i[fx.PLAN_START_S], c.i[fx.PLAN_END_S] = p, c.i[fx.TIME_S], -1


@compiled
def book_plan(c, job):
    """The plan of the last question becomes the job's booking."""
    unbook(c, job)
    if c.i[fx.PLAN_POOL] >= 0:
        book(c, job, c.i[fx.PLAN_POOL], c.i[fx.PLAN_START_S], c.i[fx.PLAN_END_S], c.i[fx.PLAN_LOW], c.i[fx.PLAN_HIGH])


@compiled
def planned_regret(c, action, best):
    """Price of an action above the best one's, in units of a slot's work for a job that may be interrupted, of the best price for others."""
    usd = c.f[c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.PLANNED_ACTION_USD]
    return np.float32((usd - best) / max(c.f[fx.PLAN_UNIT_USD], LEAST_UNIT_USD))


@compiled
def best_planned(c):
    """Least price of the allowed actions."""
    best = np.inf
    for action in range(c.o[fx.N_ACTIONS]):
        if c.i[c.o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK]:
            best = min(best, c.f[c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.PLANNED_ACTION_USD])
    return best


# ---------------------------------------------------------------- hindsight, for rewards only


@compiled
def _fill_true_rates(c):
    """Running sums over the slots of the objective of 1 kW, at the prices and intensities that come."""
    step_s, last = c.g[fx.STEP_S], c.o[fx.N_COLUMNS]
    for site in range(c.o[fx.N_SITES]):
        row, to = rate_row(c, site), c.o[fx.F_TRUE] + site * WIDTH
        for k in range(WIDTH):
            at = c.g[fx.HISTORY_STEPS] + (c.i[fx.TIME_S] + k * fx.SLOT_S) / step_s
            c.f[to + k] = step_s / HOUR_S * sum_at(c.f, row, last, at)


@compiled
def _accrued_usd(c, job):
    """Objective that a job has been charged until now."""
    if c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.STATUS] == RUNNING:
        settle_job(c, job, site_of(c, c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.POOL]))
    b = c.o[fx.F_JOB] + job * fx.JOB_F_WIDTH
    return objective_of(c, c.f[b + fx.JOB_USD], c.f[b + fx.JOB_KG], c.f[b + fx.JOB_KWH]) + c.qf[fx.W_SLA] * c.f[b + fx.JOB_PENALTY]


@compiled
def hindsight_usd(c, job, action):
    """What a job costs in all when ``action`` is taken now and the rest goes as planned: true duration, prices and intensities.

    Depends on nothing that other jobs will do, save their bookings. For rewards, never for features.
    """
    o, i = c.o, c.i
    low, high, pool, start, end = i[fx.PLAN_LOW], i[fx.PLAN_HIGH], i[fx.PLAN_POOL], i[fx.PLAN_START_S], i[fx.PLAN_END_S]
    i[fx.HINDSIGHT] = 1
    _fill_true_rates(c)
    _fill_calendar(c, job)
    usd = _accrued_usd(c, job)
    left = left_s(c, job, 1.0)
    if action > 0:
        p, level = (action - 1) // o[fx.N_LEVELS], (action - 1) % o[fx.N_LEVELS]
        _fill_pool(c, job, p)
        usd += _run_usd(c, job, p, level, i[o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.START_DELAY_S], left)
    else:
        best = np.inf
        for p in range(o[fx.N_POOLS]):
            if c.j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p] != 0:
                _fill_pool(c, job, p)
                best = min(best, _later_usd(c, job, p, left))
        usd += best if best < np.inf else 0.0
    i[fx.HINDSIGHT] = 0
    i[fx.PLAN_LOW], i[fx.PLAN_HIGH], i[fx.PLAN_POOL], i[fx.PLAN_START_S], i[fx.PLAN_END_S] = low, high, pool, start, end
    return usd


@compiled
def _loading_now(c, job, p):
    """Seconds of loading that lie ahead of a run in pool p that begins, or goes on, now."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    if c.i[a + fx.STATUS] != RUNNING:
        return loading_s(c, job)
    if p == c.i[a + fx.POOL]:
        return max(0, c.i[a + fx.LOADING_S] - (c.i[fx.TIME_S] - c.i[a + fx.BEGIN_S]))
    return c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.RESTART_S]


@compiled
def _run_usd(c, job, p, level, delay, left):
    loading, moving = _loading_now(c, job, p), transfer_objective(c, job, p)
    if splits(c, job):
        _fill_units(c, job, p)
        _, usd, _, taken_usd = _price_slot(c, job, p, level, delay, loading, left, left, moving)
        return usd + taken_usd
    now = c.i[fx.TIME_S]
    end = _ends_s(c, job, p, level, now + delay, left, loading)
    rates = _slot_row(c, site_of(c, p))
    usd = _own_kw(c, job, p, level) * (_until(c, rates, end - now) - _until(c, rates, delay))
    return usd + moving + c.qf[fx.W_SLA] * expected_penalty(c, job, now + delay, end) + _until(c, c.o[fx.F_PLAN] + WIDTH, end - now)


@compiled
def _later_usd(c, job, p, left):
    if splits(c, job):
        _fill_units(c, job, p)
        return _cheapest_work(c, job, p, left) + _late_usd(c, job, p, c.i[fx.TIME_S] + fx.SLOT_S, left)
    node, taken = c.f[c.o[fx.F_ACTION] + fx.PLANNED_NODE_USD], c.f[c.o[fx.F_ACTION] + fx.PLANNED_OVERBOOKED_USD]
    planned = c.f[c.o[fx.F_ACTION] + fx.PLANNED_ACTION_USD]
    usd = _plan_later(c, job, p, 1, _last_start(c, job), loading_s(c, job), np.inf)
    to = c.o[fx.F_ACTION]
    c.f[to + fx.PLANNED_NODE_USD], c.f[to + fx.PLANNED_OVERBOOKED_USD], c.f[to + fx.PLANNED_ACTION_USD] = node, taken, planned
    return usd

"""Compiled calendar of the planner: what runs and what is booked in each pool and slot from now on, and what holding GPUs costs there."""

from __future__ import annotations

import math

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_power import HOUR_S, KWH_PER_NW_S, held_milli, share_nw, speed_of, state_nw, worker_nw
from envs.kernel_runs import done_after, site_of, worked_s
from envs.kernel_scores import DAY_S, forecast_sum, hold_until_s, loading_s, rate_row
from envs.kernel_week import fill_week_rates
from envs.state import AWAKE, LAST_WEEK, RUNNING, SLEEPING

WIDTH = fx.N_SLOTS + 1
MOST_LATER_SLOTS = DAY_S // fx.SLOT_S
GPU_HOURS = fx.SLOT_S / HOUR_S / 1000.0  # of a thousandth over a slot
SHORTEST_LEFT_S = 60
HALF = fx.N_SLOTS // 2  # slots in one word of a booking


# ---------------------------------------------------------------- what is expected


@compiled
def left_s(c, job, share):
    """Reference seconds of work that a job is expected to have left when it takes ``share`` of its estimate."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    estimate = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.ESTIMATE_S]
    done = done_after(c, job, worked_s(c, job)) if c.i[a + fx.STATUS] == RUNNING else c.i[a + fx.DONE_S]
    if c.i[fx.HINDSIGHT]:
        return max(1.0, c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.DURATION_S] - done * 1.0)
    outlived = min(max(estimate - done, SHORTEST_LEFT_S), 0.5 * done)
    return max(share * estimate - done, outlived, 1.0)


@compiled
def run_end_s(c, job, p, level, start_s, left, loading):
    """When a run of ``left`` reference seconds ends; a lease whenever it was wanted to."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    if c.j[b + fx.UNTIL_S] >= 0:
        return max(start_s, c.j[b + fx.UNTIL_S])
    return start_s + loading + math.ceil(left / speed_of(c, p, level, c.j[b + fx.CURVE]))


# ---------------------------------------------------------------- calendar


@compiled
def slot_row(c, site):
    return (c.o[fx.F_TRUE] if c.i[fx.HINDSIGHT] else c.o[fx.F_SLOT]) + site * WIDTH


@compiled
def fill_rates(c):
    """Running sums over the slots of the objective of 1 kW at each site, in USD."""
    now = c.i[fx.TIME_S]
    if c.i[fx.SLOTS_S] == now:
        return
    c.i[fx.SLOTS_S] = now
    hours = c.g[fx.STEP_S] / HOUR_S
    for site in range(c.o[fx.N_SITES]):
        row, to = rate_row(c, site), slot_row(c, site)
        if c.q[fx.PRICE_FORECAST] == LAST_WEEK:
            fill_week_rates(c, row, to)
            continue
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
def fill_calendar(c, job):
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
            end = run_end_s(c, other, p, i[a + fx.LEVEL], max(now, i[a + fx.BEGIN_S]), left_s(c, other, c.qf[fx.PADDED_SHARE]), loading)
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
def fill_pool(c, job, p):
    """Running sums over the slots of what holding the job's GPUs in pool p costs beyond its own watts, USD.

    Row 0 of the scratch: nodes kept awake; row 1: GPU time that is taken already; row 2: nodes added in each slot.
    """
    o, i, f = c.o, c.i, c.f
    k_pool = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    node_milli = c.k[k_pool + fx.POOL_GPUS] * 1000
    capacity = c.k[k_pool + fx.POOL_NODES] * node_milli
    kw = (0.0 if i[fx.HINDSIGHT] else c.qf[fx.NODE_WEIGHT]) * (state_nw(c, p, AWAKE) - state_nw(c, p, SLEEPING)) * (KWH_PER_NW_S * HOUR_S)
    need, rates, at = _milli(c, job, p), slot_row(c, site_of(c, p)), o[fx.I_CALENDAR] + p * WIDTH
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
def sum_until(c, row, seconds):
    """Running sum at so many seconds from now; beyond the calendar its last day's mean goes on."""
    x = seconds / fx.SLOT_S
    k = int(x)
    if k >= fx.N_SLOTS:
        last = row + fx.N_SLOTS
        return c.f[last] + (x - fx.N_SLOTS) * (c.f[last] - c.f[last - MOST_LATER_SLOTS]) / MOST_LATER_SLOTS
    return c.f[row + k] + (x - k) * (c.f[row + k + 1] - c.f[row + k])


@compiled
def own_kw(c, job, p, level):
    """Kilowatts that the job's workers add to awake nodes and, by ``share_weight``, are charged of their idle watts, before PUE."""
    workers = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    weight = 1.0 if c.i[fx.HINDSIGHT] else c.qf[fx.SHARE_WEIGHT]
    nw = worker_nw(c, job, p, level, False) + weight * share_nw(c, job, p)
    return workers * nw * (KWH_PER_NW_S * HOUR_S)


@compiled
def enter_price(c, action, usd, node_usd, taken_usd):
    to = c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH
    c.f[to + fx.PLANNED_ACTION_USD] = usd + node_usd + taken_usd
    c.f[to + fx.PLANNED_NODE_USD] = node_usd
    c.f[to + fx.PLANNED_OVERBOOKED_USD] = taken_usd


@compiled
def last_start_s(c, job):
    """Seconds from now to the last start that hold can reach, within a day."""
    return min(max(hold_until_s(c, job) - c.i[fx.TIME_S], 0), DAY_S)


@compiled
def loading_now_s(c, job, p):
    """Seconds of loading that lie ahead of a run in pool p that begins, or goes on, now."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    if c.i[a + fx.STATUS] != RUNNING:
        return loading_s(c, job)
    if p == c.i[a + fx.POOL]:
        return max(0, c.i[a + fx.LOADING_S] - (c.i[fx.TIME_S] - c.i[a + fx.BEGIN_S]))
    return c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.RESTART_S]

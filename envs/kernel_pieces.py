"""Compiled prices of jobs that may be run in pieces: this slot, and the rest of the work in the cheapest slots before the deadline.

A review may pause a preemptible job, so that its work need not be done in one stretch. The price of an action is that of the slot that
begins now (nothing, for hold) and of the rest in the cheapest later slots of the pool: in effect a job runs when the slot is cheaper than
the dearest one that its plan needs. What is planned is booked slot by slot.
"""

from __future__ import annotations

import numpy as np

from envs import fields as fx
from envs.kernel_calendar import (
    HALF,
    WIDTH,
    enter_price,
    loading_now_s,
    own_kw,
    slot_row,
    sum_until,
)
from envs.kernel_compile import compiled
from envs.kernel_power import speed_of
from envs.kernel_runs import site_of
from envs.kernel_scores import expected_penalty, hold_until_s, transfer_objective, wake_objective

UNIT, WORK = 3 * WIDTH, 4 * WIDTH  # rows of the scratch


@compiled
def splits(c, job):
    """Whether the job may be run in pieces: it is asked about while it runs, and keeps what it has done."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    return c.q[fx.REVIEW_S] > 0 and c.j[b + fx.PREEMPTIBLE] and c.j[b + fx.UNTIL_S] < 0


@compiled
def fill_units(c, job, p):
    """Price of a reference second of work in each slot of pool p at the level that is cheapest there, and the seconds done in it."""
    o, f, i = c.o, c.f, c.i
    bits, curve = c.j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p], c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.CURVE]
    rates, to, order = slot_row(c, site_of(c, p)), o[fx.F_PLAN], o[fx.I_ORDER] + p * fx.N_SLOTS
    for k in range(fx.N_SLOTS):
        f[to + UNIT + k] = np.inf
    for level in range(o[fx.N_LEVELS]):
        if bits >> level & 1 == 0:
            continue
        work = speed_of(c, p, level, curve) * fx.SLOT_S
        kw, share = own_kw(c, job, p, level) / work, 1.0 / work
        for k in range(fx.N_SLOTS):
            held = f[to + k + 1] - f[to + k] + f[to + WIDTH + k + 1] - f[to + WIDTH + k]
            usd = kw * (f[rates + k + 1] - f[rates + k]) + share * held
            if usd < f[to + UNIT + k]:
                f[to + UNIT + k], f[to + WORK + k] = usd, work
    # The order of the pool's last question is nearly right. Equal prices go by the slot, so that nothing of that question stays.
    for n in range(1, fx.N_SLOTS):
        slot = i[order + n]
        m = n
        while m > 0 and _dearer(c, i[order + m - 1], slot):
            i[order + m] = i[order + m - 1]
            m -= 1
        i[order + m] = slot


@compiled
def _dearer(c, slot, other):
    usd, other_usd = c.f[c.o[fx.F_PLAN] + UNIT + slot], c.f[c.o[fx.F_PLAN] + UNIT + other]
    return usd > other_usd or (usd == other_usd and slot > other)


@compiled
def cheapest_work(c, job, p, work):
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
def late_usd(c, job, p, start_s, padded):
    """Penalty when ``padded`` reference seconds are left after this slot and are then done at full speed."""
    end = c.i[fx.TIME_S] + fx.SLOT_S + max(padded, 0.0) / _fastest(c, job, p)
    return c.qf[fx.W_SLA] * expected_penalty(c, job, start_s, end)


@compiled
def price_slot(c, job, p, level, delay, loading, expected, padded, moving):
    """Price of working in pool p until the next question, and of the rest in its cheapest slots; whose bits become the plan's."""
    o = c.o
    speed = speed_of(c, p, level, c.j[o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.CURVE])
    works = min(max(0.0, fx.SLOT_S - delay - loading), expected / speed)
    rates = slot_row(c, site_of(c, p))
    until = min(delay + loading + works, fx.SLOT_S * 1.0)
    own = own_kw(c, job, p, level) * (sum_until(c, rates, until) - sum_until(c, rates, min(delay, fx.SLOT_S)))
    node_usd, taken_usd = sum_until(c, o[fx.F_PLAN], until), sum_until(c, o[fx.F_PLAN] + WIDTH, until)
    done = works * speed
    rest = cheapest_work(c, job, p, expected - done) if expected - done > 1.0 else 0.0
    if expected - done <= 1.0:
        c.i[fx.PLAN_LOW], c.i[fx.PLAN_HIGH] = 0, 0
    c.i[fx.PLAN_LOW] |= 1
    late = late_usd(c, job, p, c.i[fx.TIME_S] + delay, padded - max(0.0, fx.SLOT_S - delay - loading) * speed)
    return own, own + rest + late + moving, node_usd, taken_usd


@compiled
def _price_hold(c, job, p, expected, padded):
    """Price of all the work in later slots of pool p, whose bits become the plan's."""
    i, now, rates = c.i, c.i[fx.TIME_S], slot_row(c, site_of(c, p))
    usd = cheapest_work(c, job, p, expected) + late_usd(c, job, p, now + fx.SLOT_S, padded) + transfer_objective(c, job, p)
    # It will have to be begun: the node of its cheapest slot is woken as one of now would be.
    usd += wake_objective(c, p, 1) * c.f[c.o[fx.F_PLAN] + 2 * WIDTH + i[c.o[fx.I_ORDER] + p * fx.N_SLOTS]]
    kw = own_kw(c, job, p, 0)
    if i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.START_S] >= 0:  # and its checkpoint loaded
        restart_s = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.RESTART_S]
        usd += kw * (c.f[rates + fx.N_SLOTS] - c.f[rates]) * restart_s / (fx.N_SLOTS * fx.SLOT_S)
    margin = c.qf[fx.MOVE_MARGIN] if i[fx.REVIEWING] else c.qf[fx.HOLD_MARGIN]
    usd += margin * abs(kw * (c.f[rates + 1] - c.f[rates]))
    return usd + abs(usd) if hold_until_s(c, job) <= now else usd  # it would be asked to run again at once


@compiled
def plan_pieces(c, job, p, expected, padded, best, hold):
    """Price the runs that the question offers in pool p, and working in its later slots only; the plan of the cheapest pool stays."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    if hold:
        usd = _price_hold(c, job, p, expected, padded)
        if usd < best:
            best = usd
            enter_price(c, 0, usd, 0.0, 0.0)
            i[fx.PLAN_POOL], i[fx.PLAN_START_S], i[fx.PLAN_END_S] = p, i[fx.TIME_S], -1
            i[fx.BEST_LOW], i[fx.BEST_HIGH] = i[fx.PLAN_LOW], i[fx.PLAN_HIGH]
    loading = loading_now_s(c, job, p)
    for level in range(o[fx.N_LEVELS]):
        action = 1 + p * o[fx.N_LEVELS] + level
        at = o[fx.I_ACTION] + action * fx.ACTION_WIDTH
        if not i[at + fx.MASK]:
            continue
        stays = i[fx.REVIEWING] and p == i[a + fx.POOL]
        moving = 0.0 if stays else wake_objective(c, p, i[at + fx.NODES_WOKEN]) + transfer_objective(c, job, p)
        own, usd, node_usd, taken_usd = price_slot(c, job, p, level, i[at + fx.START_DELAY_S], loading, expected, padded, moving)
        if i[fx.REVIEWING] and not (stays and level == i[a + fx.LEVEL]):
            usd += c.qf[fx.MOVE_MARGIN] * abs(own)
        enter_price(c, action, usd, node_usd, taken_usd)
        if own > 0.0:
            c.f[fx.PLAN_UNIT_USD] = min(c.f[fx.PLAN_UNIT_USD], own)
    return best

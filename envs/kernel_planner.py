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

import numpy as np

from envs import fields as fx
from envs.kernel_bookings import book, unbook
from envs.kernel_calendar import (
    MOST_LATER_SLOTS,
    WIDTH,
    enter_price,
    fill_calendar,
    fill_pool,
    fill_rates,
    last_start_s,
    left_s,
    loading_now_s,
    own_kw,
    run_end_s,
    slot_row,
    sum_until,
)
from envs.kernel_compile import compiled
from envs.kernel_pieces import fill_units, plan_pieces, price_slot, splits
from envs.kernel_runs import site_of
from envs.kernel_scores import expected_penalty, loading_s, transfer_objective, wake_objective

LEAST_UNIT_USD = 1e-6


@compiled
def _plan_runs(c, job, p):
    """Price the runs in pool p that the question offers to a job that is not interrupted (and hence never reviewed)."""
    o, i, now = c.o, c.i, c.i[fx.TIME_S]
    rates, loading = slot_row(c, site_of(c, p)), loading_s(c, job)
    expected, padded = left_s(c, job, c.qf[fx.EXPECTED_SHARE]), left_s(c, job, c.qf[fx.PADDED_SHARE])
    for level in range(o[fx.N_LEVELS]):
        action = 1 + p * o[fx.N_LEVELS] + level
        at = o[fx.I_ACTION] + action * fx.ACTION_WIDTH
        if not i[at + fx.MASK]:
            continue
        start = now + i[at + fx.START_DELAY_S]
        end = run_end_s(c, job, p, level, start, expected, loading)
        late_end = run_end_s(c, job, p, level, start, padded, loading)
        usd = own_kw(c, job, p, level) * (sum_until(c, rates, end - now) - sum_until(c, rates, start - now))
        usd += c.qf[fx.W_SLA] * expected_penalty(c, job, start, late_end)
        usd += wake_objective(c, p, i[at + fx.NODES_WOKEN]) + transfer_objective(c, job, p)
        enter_price(c, action, usd, sum_until(c, o[fx.F_PLAN], end - now), sum_until(c, o[fx.F_PLAN] + WIDTH, late_end - now))


@compiled
def plan_later(c, job, p, first, last, best_usd):
    """Price later starts in pool p, slot by slot up to the last possible one; the cheapest below ``best_usd`` becomes the plan."""
    o, f, j, now = c.o, c.f, c.j, c.i[fx.TIME_S]
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    bits, deadline, latest = j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p], j[b + fx.DEADLINE_S], j[b + fx.LATEST_START_S]
    rates, nodes = slot_row(c, site_of(c, p)), o[fx.F_PLAN]
    expected, padded = left_s(c, job, c.qf[fx.EXPECTED_SHARE]), left_s(c, job, c.qf[fx.PADDED_SHARE])
    transfer, wake, loading = transfer_objective(c, job, p), wake_objective(c, p, 1), loading_s(c, job)
    for level in range(o[fx.N_LEVELS]):
        if bits >> level & 1 == 0:
            continue
        kw = own_kw(c, job, p, level)
        for k in range(first, MOST_LATER_SLOTS + 1):
            begin = min(k * fx.SLOT_S, last)
            end = run_end_s(c, job, p, level, now + begin, expected, loading) - now
            late_end = run_end_s(c, job, p, level, now + begin, padded, loading) - now
            usd = kw * (sum_until(c, rates, end) - sum_until(c, rates, begin)) + transfer
            node_usd = sum_until(c, nodes, end) - sum_until(c, nodes, begin)
            taken_usd = sum_until(c, nodes + WIDTH, late_end) - sum_until(c, nodes + WIDTH, begin)
            usd += wake * f[nodes + 2 * WIDTH + begin // fx.SLOT_S]
            if now + late_end > deadline or now + begin > latest:
                usd += c.qf[fx.W_SLA] * expected_penalty(c, job, now + begin, now + late_end)
            if usd + node_usd + taken_usd < best_usd:
                best_usd = usd + node_usd + taken_usd
                enter_price(c, 0, usd, node_usd, taken_usd)
                c.i[fx.PLAN_POOL], c.i[fx.PLAN_START_S], c.i[fx.PLAN_END_S] = p, now + begin, now + late_end
            if begin == last:
                break
    return best_usd


@compiled
def _plan(c, job, first, last, runs):
    """Price later starts from slot ``first`` on (action 0), and with ``runs`` the runs that the question offers."""
    o = c.o
    fill_rates(c)
    fill_calendar(c, job)
    c.i[fx.PLAN_POOL] = -1
    c.f[fx.PLAN_UNIT_USD] = np.inf
    best, pieces = np.inf, splits(c, job)
    expected, padded = left_s(c, job, c.qf[fx.EXPECTED_SHARE]), left_s(c, job, c.qf[fx.PADDED_SHARE])
    for p in range(o[fx.N_POOLS]):
        if c.j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p] == 0:
            continue
        fill_pool(c, job, p)
        if pieces:
            fill_units(c, job, p)
            best = plan_pieces(c, job, p, expected, padded, best, last >= 0)
            continue
        if runs:
            _plan_runs(c, job, p)
        if last >= 0:
            best = plan_later(c, job, p, first, last, best)
    c.i[fx.PLAN_LOW], c.i[fx.PLAN_HIGH] = c.i[fx.BEST_LOW], c.i[fx.BEST_HIGH]


@compiled
def plan_question(c):
    """Price every allowed action of the question, once."""
    if c.i[fx.PLANNED]:
        return
    c.i[fx.PLANNED] = 1
    job, hold = c.i[fx.ASKING], c.o[fx.I_ACTION] + fx.MASK
    last = last_start_s(c, job) if c.i[hold] else -1
    _plan(c, job, 1, last, True)
    if c.i[hold] and not splits(c, job):
        to = c.o[fx.F_ACTION] + fx.PLANNED_ACTION_USD
        c.f[to] += c.qf[fx.HOLD_MARGIN] * abs(c.f[to])
    if c.f[fx.PLAN_UNIT_USD] == np.inf:
        c.f[fx.PLAN_UNIT_USD] = abs(best_planned(c))


@compiled
def plan_arrival(c, job):
    """Book the cheapest start of a job that has just come, for it may not be asked about before there is room."""
    c.i[fx.REVIEWING] = 0
    for action in range(c.o[fx.N_ACTIONS]):
        c.i[c.o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK] = 0
    _plan(c, job, 0, last_start_s(c, job), False)
    book_plan(c, job)


@compiled
def plan_run(c, job, p, level, delay):
    """The plan of a run that has been chosen: a job that can be interrupted books this slot and the cheapest later ones of the pool."""
    c.i[fx.PLAN_POOL] = -1
    if not splits(c, job):
        return
    loading = loading_now_s(c, job, p)
    fill_rates(c)
    fill_calendar(c, job)
    fill_pool(c, job, p)
    fill_units(c, job, p)
    price_slot(c, job, p, level, delay, loading, left_s(c, job, c.qf[fx.EXPECTED_SHARE]), 0.0, 0.0)
    c.i[fx.PLAN_POOL], c.i[fx.PLAN_START_S], c.i[fx.PLAN_END_S] = p, c.i[fx.TIME_S], -1


@compiled
def book_plan(c, job):
    """The plan of the last question becomes the job's booking."""
    unbook(c, job)
    if c.i[fx.PLAN_POOL] >= 0:
        book(c, job, c.i[fx.PLAN_POOL], c.i[fx.PLAN_START_S], c.i[fx.PLAN_END_S], c.i[fx.PLAN_LOW], c.i[fx.PLAN_HIGH])


@compiled
def planned_regret(c, action, best):
    """Price of an action above the best one's, in units of a slot's work where the job may be interrupted, else of the best price."""
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

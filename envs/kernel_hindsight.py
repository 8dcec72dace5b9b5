"""Compiled hindsight: what a job's plan costs at the duration, prices and intensities that come. For rewards only, never for features."""

from __future__ import annotations

import numpy as np

from envs import fields as fx
from envs.kernel_calendar import (
    WIDTH,
    fill_calendar,
    fill_pool,
    last_start_s,
    left_s,
    loading_now_s,
    own_kw,
    run_end_s,
    slot_row,
    sum_until,
)
from envs.kernel_compile import compiled
from envs.kernel_pieces import cheapest_work, fill_units, late_usd, price_slot, splits
from envs.kernel_planner import plan_later
from envs.kernel_power import HOUR_S, objective_of, settle_job, sum_at
from envs.kernel_runs import site_of
from envs.kernel_scores import expected_penalty, rate_row, transfer_objective
from envs.state import RUNNING


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
    fill_calendar(c, job)
    usd = _accrued_usd(c, job)
    left = left_s(c, job, 1.0)
    if action > 0:
        p, level = (action - 1) // o[fx.N_LEVELS], (action - 1) % o[fx.N_LEVELS]
        fill_pool(c, job, p)
        usd += _run_usd(c, job, p, level, i[o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.START_DELAY_S], left)
    else:
        best = np.inf
        for p in range(o[fx.N_POOLS]):
            if c.j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p] != 0:
                fill_pool(c, job, p)
                best = min(best, _later_usd(c, job, p, left))
        usd += best if best < np.inf else 0.0
    i[fx.HINDSIGHT] = 0
    i[fx.PLAN_LOW], i[fx.PLAN_HIGH], i[fx.PLAN_POOL], i[fx.PLAN_START_S], i[fx.PLAN_END_S] = low, high, pool, start, end
    return usd


@compiled
def _run_usd(c, job, p, level, delay, left):
    loading, moving = loading_now_s(c, job, p), transfer_objective(c, job, p)
    if splits(c, job):
        fill_units(c, job, p)
        _, usd, _, taken_usd = price_slot(c, job, p, level, delay, loading, left, left, moving)
        return usd + taken_usd
    now = c.i[fx.TIME_S]
    end = run_end_s(c, job, p, level, now + delay, left, loading)
    rates = slot_row(c, site_of(c, p))
    usd = own_kw(c, job, p, level) * (sum_until(c, rates, end - now) - sum_until(c, rates, delay))
    return usd + moving + c.qf[fx.W_SLA] * expected_penalty(c, job, now + delay, end) + sum_until(c, c.o[fx.F_PLAN] + WIDTH, end - now)


@compiled
def _later_usd(c, job, p, left):
    if splits(c, job):
        fill_units(c, job, p)
        return cheapest_work(c, job, p, left) + late_usd(c, job, p, c.i[fx.TIME_S] + fx.SLOT_S, left)
    return plan_later(c, job, p, 1, last_start_s(c, job), np.inf)

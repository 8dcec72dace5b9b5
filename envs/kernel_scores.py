"""Compiled expectations: what each candidate action should cost by estimates and by the forecast of price, carbon and PUE.

The forecast of a future grid step is the last known value at the same time of day. It is therefore periodic: known columns, then the last day
again and again, and an integral over it is a difference of running sums, however far it reaches.
"""

from __future__ import annotations

import math

import numpy as np

from envs.kernel_accrual import HOUR_S, column_of, dynamic_watts, objective_of, penalty_usd, share_watts, sum_at
from envs.kernel_compile import compiled
from envs.state import CARBON, COST, ENERGY, PENALTY

DAY_S = 86_400
OFFSET_S = 3600


@compiled
def runtime_s(static, seconds, p, level, kind):
    return int(math.ceil(seconds / static.speed[p, level, kind]))


@compiled
def forecast_sum(sums, at, known, day):
    """Running sum at column ``at`` when columns below ``known`` are known and the rest repeat the ``day`` columns before ``known``."""
    if at <= known:
        return sum_at(sums, at)
    beyond = at - known
    days = math.floor(beyond / day)
    base = known - day
    start = sum_at(sums, base)
    end = sum_at(sums, known)
    return end + days * (end - start) + sum_at(sums, base + beyond - days * day) - start


@compiled
def forecast_rate(grid, params, b, window, site, at, known, day):
    """Objective of 1 kW from column 0 to column ``at``, in USD x steps per hour."""
    w = params.weights[b]
    total = 0.0
    if w[COST] != 0.0:
        total += w[COST] * forecast_sum(grid.cum_price[window, site], at, known, day)
    if w[CARBON] != 0.0:
        total += w[CARBON] * params.carbon_usd_per_kg[b] * forecast_sum(grid.cum_carbon[window, site], at, known, day)
    if w[ENERGY] != 0.0:
        total += w[ENERGY] * params.energy_usd_per_kwh[b] * forecast_sum(grid.cum_pue[window, site], at, known, day)
    return total


@compiled
def expected_penalty(static, jobs, params, b, window, job, start_s, end_s):
    """Penalty of starting and ending then, USD."""
    gpus = jobs.workers[window, job] * jobs.gpu_milli[window, job] / 1000.0
    usd = 0.0
    late_s = start_s - jobs.latest_start_s[window, job]
    if static.start_bound[jobs.kind[window, job]] and late_s > 0:
        usd += penalty_usd(params, b, gpus, late_s)
    late_s = end_s - jobs.deadline_s[window, job]
    if late_s > 0:
        usd += penalty_usd(params, b, gpus, late_s)
    return usd


@compiled
def best_later(static, jobs, grid, params, state, b, job, first_offset_s):
    """Cheapest expected start of ``job`` in any pool that may run it, from ``first_offset_s`` on in steps of an hour up to its latest start.

    Offsets end at 24 h, where the forecast repeats, and the latest start itself is offered. Returns objective, start, end, pool, level.
    """
    window = state.window[b]
    now = state.time_s[b]
    step_s = grid.step_s[window]
    day = DAY_S // step_s
    known = column_of(grid, window, now) + 1
    room = min(max(jobs.latest_start_s[window, job] - now, 0), DAY_S)
    best, best_start, best_end, best_pool, best_level = np.inf, now, now, -1, 0
    levels = static.speed.shape[1]
    kind = jobs.kind[window, job]
    gpus = jobs.workers[window, job] * jobs.gpu_milli[window, job] / 1000.0
    for p in range(len(static.pool_site)):
        bits = jobs.allowed_levels[window, job, p]
        if bits == 0:
            continue
        site = static.pool_site[p]
        share = share_watts(static, p, gpus)
        offset = first_offset_s
        while True:
            offset = min(offset, room)
            begin = now + offset
            begin_at = grid.history_steps[window] + begin / step_s
            rate = forecast_rate(grid, params, b, window, site, begin_at, known, day)
            for level in range(levels):
                if bits >> level & 1 == 0:
                    continue
                run = runtime_s(static, jobs.estimate_s[window, job], p, level, kind)
                watts = dynamic_watts(static, jobs, window, job, p, level) + share
                usd = watts / 1000.0 * step_s / HOUR_S
                usd *= forecast_rate(grid, params, b, window, site, begin_at + run / step_s, known, day) - rate
                usd += params.weights[b, PENALTY] * expected_penalty(static, jobs, params, b, window, job, begin, begin + run)
                if usd < best:
                    best, best_start, best_end, best_pool, best_level = usd, begin, begin + run, p, level
            if offset >= room:
                break
            offset += OFFSET_S
    return best, best_start, best_end, best_pool, best_level


@compiled
def energy_of(static, jobs, grid, state, b, job, p, level, start_s, end_s):
    """Expected kWh charged to the job, PUE included."""
    window = state.window[b]
    step_s = grid.step_s[window]
    known = column_of(grid, window, state.time_s[b]) + 1
    day = DAY_S // step_s
    site = static.pool_site[p]
    gpus = jobs.workers[window, job] * jobs.gpu_milli[window, job] / 1000.0
    kilowatts = (dynamic_watts(static, jobs, window, job, p, level) + share_watts(static, p, gpus)) / 1000.0
    begin = grid.history_steps[window] + start_s / step_s
    end = grid.history_steps[window] + end_s / step_s
    sums = grid.cum_pue[window, site]
    return kilowatts * step_s / HOUR_S * (forecast_sum(sums, end, known, day) - forecast_sum(sums, begin, known, day))


@compiled
def score_question(static, jobs, grid, params, state, b):
    """Expected objective, energy, penalty and end of every allowed action of the question, into ``state.expected_*``."""
    window = state.window[b]
    job = state.asking[b]
    now = state.time_s[b]
    levels = static.speed.shape[1]
    kind = jobs.kind[window, job]
    if state.mask[b, 0]:
        usd, start, end, p, level = best_later(static, jobs, grid, params, state, b, job, OFFSET_S)
        state.expected_usd[b, 0] = usd + params.hold_margin[b] * abs(usd)
        state.expected_kwh[b, 0] = energy_of(static, jobs, grid, state, b, job, p, level, start, end)
        state.expected_late[b, 0] = expected_penalty(static, jobs, params, b, window, job, start, end)
        state.expected_start_s[b, 0] = start
        state.expected_end_s[b, 0] = end
    for p in range(len(static.pool_site)):
        first = 1 + p * levels
        wake_known = False
        wake_usd = 0.0
        for level in range(levels):
            action = first + level
            if not state.mask[b, action]:
                continue
            if not wake_known:
                wake_known = True
                wake_usd = _wake_objective(static, grid, params, state, b, p)
            start = now + state.start_delay_s[b, p]
            end = start + runtime_s(static, jobs.estimate_s[window, job], p, level, kind)
            late = expected_penalty(static, jobs, params, b, window, job, start, end)
            state.expected_usd[b, action] = (
                _run_objective(static, jobs, grid, params, state, b, job, p, level, start, end)
                + wake_usd
                + params.weights[b, PENALTY] * late
            )
            state.expected_kwh[b, action] = energy_of(static, jobs, grid, state, b, job, p, level, start, end)
            state.expected_late[b, action] = late
            state.expected_start_s[b, action] = start
            state.expected_end_s[b, action] = end
    if params.plan_regret[b]:
        best = np.inf
        for action in range(state.mask.shape[1]):
            if state.mask[b, action] and state.expected_usd[b, action] < best:
                best = state.expected_usd[b, action]
        state.regret_usd[b] += best - state.planned_usd[b, job]
        state.planned_usd[b, job] = best
    state.scored[b] = True


@compiled
def _run_objective(static, jobs, grid, params, state, b, job, p, level, start_s, end_s):
    window = state.window[b]
    step_s = grid.step_s[window]
    known = column_of(grid, window, state.time_s[b]) + 1
    day = DAY_S // step_s
    site = static.pool_site[p]
    gpus = jobs.workers[window, job] * jobs.gpu_milli[window, job] / 1000.0
    kilowatts = (dynamic_watts(static, jobs, window, job, p, level) + share_watts(static, p, gpus)) / 1000.0
    begin = grid.history_steps[window] + start_s / step_s
    end = grid.history_steps[window] + end_s / step_s
    rate = forecast_rate(grid, params, b, window, site, end, known, day) - forecast_rate(grid, params, b, window, site, begin, known, day)
    return kilowatts * step_s / HOUR_S * rate


@compiled
def _wake_objective(static, grid, params, state, b, p):
    """Objective of waking the nodes that a run in pool p would wake, at the values of now."""
    woken = state.nodes_woken[b, p]
    if woken == 0:
        return 0.0
    window = state.window[b]
    site = static.pool_site[p]
    column = column_of(grid, window, state.time_s[b])
    kwh = woken * static.wake_power_w[p] / 1000.0 * static.wake_latency_s[p] / HOUR_S * grid.pue[window, site, column]
    usd = objective_of(params, b, kwh * grid.price[window, site, column], kwh * grid.carbon[window, site, column], kwh)
    return usd

"""Compiled expectations: what each candidate action should cost by estimates and by the forecast of price, carbon and PUE.

The forecast of a future grid step is the last known value at the same time of day. It is therefore periodic: known columns, then the last
day again and again, and an integral over it is a difference of running sums, however far it reaches.
"""

from __future__ import annotations

import math

import numpy as np

from envs import fields as fx
from envs.kernel_accrual import HOUR_S, column_of, dynamic_watts, objective_of, penalty_usd, share_watts, sum_at
from envs.kernel_compile import compiled
from envs.state import CARBON, COST, ENERGY, PENALTY

DAY_S = 86_400
OFFSET_S = 3600


@compiled
def runtime_s(static, seconds, p, level, kind):
    return math.ceil(seconds / static.curve[fx.SPEED, p, level, kind])


@compiled
def forecast_sum(sums, at, known, day):
    """Running sum at column ``at`` when columns below ``known`` are known and the rest repeat the ``day`` columns before ``known``."""
    if at <= known:
        return sum_at(sums, at)
    beyond = at - known
    base = known - day
    if beyond <= day:
        return sums[known] - sums[base] + sum_at(sums, base + beyond)
    days = math.floor(beyond / day)
    return sums[known] + days * (sums[known] - sums[base]) + sum_at(sums, base + beyond - days * day) - sums[base]


@compiled
def fill_rate(grid, params, state, b):
    """Running sums of the objective of 1 kW at each site, in USD x steps per hour; weights are those at the window's start."""
    w = params.floats[b]
    values = grid.values[state.env_i[b, fx.WINDOW]]
    cost = w[fx.WEIGHTS + COST]
    carbon = w[fx.WEIGHTS + CARBON] * w[fx.CARBON_USD_PER_KG]
    energy = w[fx.WEIGHTS + ENERGY] * w[fx.ENERGY_USD_PER_KWH]
    for site in range(values.shape[1]):
        for k in range(values.shape[2]):
            state.rate[b, site, k] = (
                cost * values[fx.CUM_PRICE, site, k] + carbon * values[fx.CUM_CARBON, site, k] + energy * values[fx.CUM_PUE, site, k]
            )


@compiled
def expected_penalty(static, jobs, params, b, window, job, start_s, end_s):
    """Penalty of starting and ending then, USD."""
    gpus = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job] / 1000.0
    usd = 0.0
    late_s = start_s - jobs.work_i[window, fx.LATEST_START_S, job]
    if static.kind_i[fx.START_BOUND, jobs.work_i[window, fx.KIND, job]] and late_s > 0:
        usd += penalty_usd(params, b, gpus, late_s)
    late_s = end_s - jobs.work_i[window, fx.DEADLINE_S, job]
    if late_s > 0:
        usd += penalty_usd(params, b, gpus, late_s)
    return usd


@compiled
def best_later(static, jobs, grid, params, state, b, job, first_offset_s):
    """Cheapest expected start of ``job`` in any pool that may run it, from ``first_offset_s`` on, hourly, up to its latest start.

    Offsets end at 24 h, where the forecast repeats, and the latest start itself is offered. Returns objective, start, end, pool, level.
    """
    window = state.env_i[b, fx.WINDOW]
    now = state.env_i[b, fx.TIME_S]
    step_s = grid.window_i[window, fx.STEP_S]
    day = DAY_S // step_s
    known = column_of(grid, window, now) + 1
    latest = jobs.work_i[window, fx.LATEST_START_S, job]
    deadline = jobs.work_i[window, fx.DEADLINE_S, job]
    room = min(max(latest - now, 0), DAY_S)
    best, best_start, best_end, best_pool, best_level = np.inf, now, now, -1, 0
    levels = static.curve.shape[2]
    kind = jobs.work_i[window, fx.KIND, job]
    gpus = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job] / 1000.0
    for p in range(static.pool_i.shape[1]):
        bits = jobs.allowed[window, job, p]
        if bits == 0:
            continue
        sums = state.rate[b, static.pool_i[fx.POOL_SITE, p]]
        share = share_watts(static, p, gpus)
        for level in range(levels):
            if bits >> level & 1 == 0:
                continue
            run = runtime_s(static, jobs.work_i[window, fx.ESTIMATE_S, job], p, level, kind)
            scale = (dynamic_watts(static, jobs, window, job, p, level) + share) / 1000.0 * step_s / HOUR_S
            offset = first_offset_s
            while True:
                offset = min(offset, room)
                begin = now + offset
                begin_at = grid.window_i[window, fx.HISTORY_STEPS] + begin / step_s
                usd = forecast_sum(sums, begin_at + run / step_s, known, day) - forecast_sum(sums, begin_at, known, day)
                usd *= scale
                if begin > latest or begin + run > deadline:
                    usd += params.floats[b, fx.WEIGHTS + PENALTY] * expected_penalty(
                        static, jobs, params, b, window, job, begin, begin + run
                    )
                if usd < best:
                    best, best_start, best_end, best_pool, best_level = usd, begin, begin + run, p, level
                if offset >= room:
                    break
                offset += OFFSET_S
    return best, best_start, best_end, best_pool, best_level


@compiled
def realised_objective(static, jobs, grid, params, state, b, job, p, level, start_s):
    """Objective of the job's own watts and penalties when it starts then, by true duration and grid: for rewards, never for features."""
    window = state.env_i[b, fx.WINDOW]
    step_s = grid.window_i[window, fx.STEP_S]
    end_s = start_s + runtime_s(static, jobs.work_i[window, fx.DURATION_S, job], p, level, jobs.work_i[window, fx.KIND, job])
    gpus = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job] / 1000.0
    kilowatts = (dynamic_watts(static, jobs, window, job, p, level) + share_watts(static, p, gpus)) / 1000.0
    begin = grid.window_i[window, fx.HISTORY_STEPS] + start_s / step_s
    end = grid.window_i[window, fx.HISTORY_STEPS] + end_s / step_s
    sums = state.rate[b, static.pool_i[fx.POOL_SITE, p]]
    usd = kilowatts * step_s / HOUR_S * (sum_at(sums, end) - sum_at(sums, begin))
    late = expected_penalty(static, jobs, params, b, window, job, start_s, end_s)
    return usd + params.floats[b, fx.WEIGHTS + PENALTY] * late


@compiled
def energy_of(static, jobs, grid, state, b, job, p, level, start_s, end_s):
    """Expected kWh charged to the job, PUE included."""
    window = state.env_i[b, fx.WINDOW]
    step_s = grid.window_i[window, fx.STEP_S]
    known = column_of(grid, window, state.env_i[b, fx.TIME_S]) + 1
    day = DAY_S // step_s
    site = static.pool_i[fx.POOL_SITE, p]
    gpus = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job] / 1000.0
    kilowatts = (dynamic_watts(static, jobs, window, job, p, level) + share_watts(static, p, gpus)) / 1000.0
    begin = grid.window_i[window, fx.HISTORY_STEPS] + start_s / step_s
    end = grid.window_i[window, fx.HISTORY_STEPS] + end_s / step_s
    sums = grid.values[window, fx.CUM_PUE, site]
    return kilowatts * step_s / HOUR_S * (forecast_sum(sums, end, known, day) - forecast_sum(sums, begin, known, day))


@compiled
def score_question(static, jobs, grid, params, state, b):
    """Expected objective, energy, penalty and end of every allowed action of the question, into ``state.expected_*``."""
    window = state.env_i[b, fx.WINDOW]
    job = state.env_i[b, fx.ASKING]
    now = state.env_i[b, fx.TIME_S]
    levels = static.curve.shape[2]
    kind = jobs.work_i[window, fx.KIND, job]
    if state.action_i[b, fx.MASK, 0]:
        usd, start, end, p, level = best_later(static, jobs, grid, params, state, b, job, OFFSET_S)
        state.action_f[b, fx.EXPECTED_USD, 0] = usd + params.floats[b, fx.HOLD_MARGIN] * abs(usd)
        state.action_f[b, fx.EXPECTED_KWH, 0] = energy_of(static, jobs, grid, state, b, job, p, level, start, end)
        state.action_f[b, fx.EXPECTED_LATE, 0] = expected_penalty(static, jobs, params, b, window, job, start, end)
        state.action_i[b, fx.EXPECTED_START_S, 0] = start
        state.action_i[b, fx.EXPECTED_END_S, 0] = end
    for p in range(static.pool_i.shape[1]):
        first = 1 + p * levels
        wake_known = False
        wake_usd = 0.0
        for level in range(levels):
            action = first + level
            if not state.action_i[b, fx.MASK, action]:
                continue
            if not wake_known:
                wake_known = True
                wake_usd = _wake_objective(static, grid, params, state, b, p)
            start = now + state.pool_i[b, fx.START_DELAY_S, p]
            end = start + runtime_s(static, jobs.work_i[window, fx.ESTIMATE_S, job], p, level, kind)
            late = expected_penalty(static, jobs, params, b, window, job, start, end)
            state.action_f[b, fx.EXPECTED_USD, action] = (
                _run_objective(static, jobs, grid, params, state, b, job, p, level, start, end)
                + wake_usd
                + params.floats[b, fx.WEIGHTS + PENALTY] * late
            )
            state.action_f[b, fx.EXPECTED_KWH, action] = energy_of(static, jobs, grid, state, b, job, p, level, start, end)
            state.action_f[b, fx.EXPECTED_LATE, action] = late
            state.action_i[b, fx.EXPECTED_START_S, action] = start
            state.action_i[b, fx.EXPECTED_END_S, action] = end
    state.env_i[b, fx.SCORED] = True


@compiled
def _run_objective(static, jobs, grid, params, state, b, job, p, level, start_s, end_s):
    window = state.env_i[b, fx.WINDOW]
    step_s = grid.window_i[window, fx.STEP_S]
    known = column_of(grid, window, state.env_i[b, fx.TIME_S]) + 1
    day = DAY_S // step_s
    site = static.pool_i[fx.POOL_SITE, p]
    gpus = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job] / 1000.0
    kilowatts = (dynamic_watts(static, jobs, window, job, p, level) + share_watts(static, p, gpus)) / 1000.0
    begin = grid.window_i[window, fx.HISTORY_STEPS] + start_s / step_s
    end = grid.window_i[window, fx.HISTORY_STEPS] + end_s / step_s
    rate = forecast_sum(state.rate[b, site], end, known, day) - forecast_sum(state.rate[b, site], begin, known, day)
    return kilowatts * step_s / HOUR_S * rate


@compiled
def _wake_objective(static, grid, params, state, b, p):
    """Objective of waking the nodes that a run in pool p would wake, at the values of now."""
    woken = state.pool_i[b, fx.NODES_WOKEN, p]
    if woken == 0:
        return 0.0
    window = state.env_i[b, fx.WINDOW]
    site = static.pool_i[fx.POOL_SITE, p]
    column = column_of(grid, window, state.env_i[b, fx.TIME_S])
    kwh = (
        woken
        * static.pool_f[fx.WAKE_POWER_W, p]
        / 1000.0
        * static.pool_i[fx.WAKE_LATENCY_S, p]
        / HOUR_S
        * grid.values[window, fx.PUE, site, column]
    )
    usd = objective_of(
        params, b, kwh * grid.values[window, fx.PRICE, site, column], kwh * grid.values[window, fx.CARBON_KG, site, column], kwh
    )
    return usd

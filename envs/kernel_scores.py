"""Compiled expectations: what each candidate action should cost by estimates and by the forecast of price, carbon and PUE.

The forecast of a future grid step is the last known value at the same time of day (``last_day``; ``none`` repeats the last value,
``perfect`` knows the table). It is therefore periodic: known columns, then the last day again and again, and an integral over it is a
difference of running sums, however far it reaches.
"""

from __future__ import annotations

import math

import numpy as np

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_power import (
    HOUR_S,
    KWH_PER_NW_S,
    asked_gpus,
    grid_row,
    objective_of,
    penalty_usd,
    share_nw,
    speed_of,
    state_nw,
    sum_at,
    worker_nw,
)
from envs.kernel_runs import done_after, site_of, worked_s
from envs.state import NO_FORECAST, PERFECT, RUNNING, WAKING

DAY_S = 86_400
MOST_OFFSETS = 26


@compiled
def offset_steps(c):
    """Grid steps between two later starts that are weighed: as many as make at least an hour."""
    return (3600 + c.g[fx.STEP_S] - 1) // c.g[fx.STEP_S]


@compiled
def known_columns(c):
    """Columns of the grid that the forecast takes as they are."""
    return c.o[fx.N_COLUMNS] if c.q[fx.PRICE_FORECAST] == PERFECT else c.i[fx.COLUMN] + 1


@compiled
def repeated_columns(c):
    """How many of the last known columns the forecast repeats."""
    return 1 if c.q[fx.PRICE_FORECAST] == NO_FORECAST else DAY_S // c.g[fx.STEP_S]


@compiled
def sum_of_day(values, row, at, known, day):
    """Running sum at a whole column when columns below ``known`` are known and the ``day`` columns before it repeat for ever."""
    if at <= known:
        return values[row + at]
    days = (at - known) // day
    rest = at - known - days * day
    base = row + known - day
    return values[row + known] + days * (values[row + known] - values[base]) + values[base + rest] - values[base]


@compiled
def forecast_sum(c, values, row, time_s):
    """Running sum at a second of the window by forecast."""
    step_s = c.g[fx.STEP_S]
    k = time_s // step_s
    part = (time_s - k * step_s) / step_s
    at, known, day = c.g[fx.HISTORY_STEPS] + k, known_columns(c), repeated_columns(c)
    below = sum_of_day(values, row, at, known, day)
    return below if part == 0.0 else below + part * (sum_of_day(values, row, at + 1, known, day) - below)


@compiled
def forecast_place(c, time_s):
    """Where a second of the window lies in any row of running sums: column, part of it, whole days repeated and column of the day.

    Days are -1 where the column is known. For several rows at one time: the divisions are what costs.
    """
    step_s = c.g[fx.STEP_S]
    k = time_s // step_s
    at, known = c.g[fx.HISTORY_STEPS] + k, known_columns(c)
    part = (time_s - k * step_s) / step_s
    if at < known:
        return at, part, -1, 0
    day = repeated_columns(c)
    days = (at - known) // day
    return known - day, part, days, at - known - days * day


@compiled
def value_at_place(c, values, row, place):
    """Running sum of a row at a place."""
    at, part, days, rest = place
    if days < 0:
        return values[row + at] + part * (values[row + at + 1] - values[row + at])
    top, base = values[row + known_columns(c)], values[row + at]
    low, high = values[row + at + rest], values[row + at + rest + 1]
    return top + days * (top - base) + (low + part * (high - low) - base)


@compiled
def rate_row(c, site):
    return c.o[fx.F_RATE] + site * (c.o[fx.N_COLUMNS] + 1)


@compiled
def fill_rate(c):
    """Running sums of the objective of 1 kW at each site, in USD x steps per hour; weights are those at the window's start."""
    w, gf = c.qf, c.gf
    carbon = w[fx.W_CARBON] * w[fx.CARBON_USD_PER_KG]
    energy = w[fx.W_ENERGY] * w[fx.ENERGY_USD_PER_KWH]
    for site in range(c.o[fx.N_SITES]):
        price, kg, pue = grid_row(c, fx.CUM_PRICE, site), grid_row(c, fx.CUM_CARBON, site), grid_row(c, fx.CUM_PUE, site)
        for k in range(c.o[fx.N_COLUMNS] + 1):
            c.f[rate_row(c, site) + k] = w[fx.W_COST] * gf[price + k] + carbon * gf[kg + k] + energy * gf[pue + k]


@compiled
def remaining_s(c, job):
    """Estimated work left, in reference seconds."""
    a = c.o[fx.I_JOB] + job * fx.JOB_WIDTH
    done = c.i[a + fx.DONE_S]
    if c.i[a + fx.STATUS] == RUNNING:
        done = done_after(c, job, worked_s(c, job))
    return max(1, c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.ESTIMATE_S] - done)


@compiled
def loading_s(c, job):
    """Seconds that the next start would spend loading a checkpoint."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    started = c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.START_S] >= 0
    return c.j[b + fx.RESTART_S] if started and c.j[b + fx.UNTIL_S] < 0 else 0


@compiled
def hold_until_s(c, job):
    """When a waiting job is to be run at once: at its latest start; one that has started before, when its deadline asks for it."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    latest = c.j[b + fx.LATEST_START_S]
    if c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.START_S] < 0 or c.j[b + fx.UNTIL_S] >= 0:
        return latest
    return max(latest, c.j[b + fx.DEADLINE_S] - remaining_s(c, job))


@compiled
def end_of(c, job, p, level, start_s, left_s, loading):
    """When a run ends by estimate."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    if c.j[b + fx.UNTIL_S] >= 0:
        return max(start_s, c.j[b + fx.UNTIL_S])
    return start_s + loading + math.ceil(left_s / speed_of(c, p, level, c.j[b + fx.CURVE]))


@compiled
def charged_kw(c, job, p, level):
    """Kilowatts that a job is charged, before PUE."""
    workers = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.WORKERS]
    return workers * (worker_nw(c, job, p, level, False) + share_nw(c, job, p)) * (KWH_PER_NW_S * HOUR_S)


@compiled
def expected_penalty(c, job, start_s, end_s):
    """Penalty of starting and ending then, USD; a first start that lies behind is no longer at stake."""
    a = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    usd = 0.0
    late_s = start_s - c.j[a + fx.LATEST_START_S]
    bound = c.k[c.o[fx.K_KIND] + c.j[a + fx.KIND] * fx.KIND_CONSTANTS_WIDTH + fx.START_BOUND]
    if late_s > 0 and bound and c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.START_S] < 0:
        usd += penalty_usd(c, asked_gpus(c, job), late_s)
    late_s = end_s - c.j[a + fx.DEADLINE_S]
    if late_s > 0 and c.j[a + fx.UNTIL_S] < 0:
        usd += penalty_usd(c, asked_gpus(c, job), late_s)
    return usd


@compiled
def _fill_begins(c, site, count, unit):
    """Running sums of the objective at the later starts of one site."""
    row, to = rate_row(c, site), c.o[fx.F_BEGIN] + site * MOST_OFFSETS
    for k in range(count):
        c.f[to + k] = forecast_sum(c, c.f, row, c.i[fx.TIME_S] + k * unit)


@compiled
def best_later(c, job, first):
    """Cheapest expected start of ``job`` in any pool that may run it, ``first`` or more offsets from now, as long as it may be held.

    Offsets end at 24 h, where the forecast repeats, and the latest start itself is offered. Returns objective, start, end, pool, level.
    """
    o, f, j = c.o, c.f, c.j
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    now, step_s = c.i[fx.TIME_S], c.g[fx.STEP_S]
    latest, deadline, lease = j[b + fx.LATEST_START_S], j[b + fx.DEADLINE_S], j[b + fx.UNTIL_S] >= 0
    room = min(max(hold_until_s(c, job) - now, 0), DAY_S)
    columns = offset_steps(c)
    unit = columns * step_s
    count = (room + unit - 1) // unit  # whole offsets below room; room itself comes last
    known, day = known_columns(c), repeated_columns(c)
    left, loading = remaining_s(c, job), loading_s(c, job)
    for site in range(o[fx.N_SITES]):
        _fill_begins(c, site, count, unit)
    best, best_start, best_end, best_pool, best_level = np.inf, now, now, -1, 0
    for p in range(o[fx.N_POOLS]):
        bits = j[o[fx.J_ALLOWED] + job * o[fx.N_POOLS] + p]
        if bits == 0:
            continue
        row = rate_row(c, site_of(c, p))
        begins = o[fx.F_BEGIN] + site_of(c, p) * MOST_OFFSETS
        base, top = row + known - day, f[row + known]
        whole = top - f[base]
        for level in range(o[fx.N_LEVELS]):
            if bits >> level & 1 == 0:
                continue
            scale = charged_kw(c, job, p, level) * step_s / HOUR_S
            run = end_of(c, job, p, level, now, left, loading) - now
            # room itself; an equal earlier start wins
            begin = now + room
            end = end_of(c, job, p, level, begin, left, loading)
            usd = scale * (forecast_sum(c, f, row, end) - forecast_sum(c, f, row, begin))
            if begin > latest or end > deadline:
                usd += c.qf[fx.W_SLA] * expected_penalty(c, job, begin, end)
            last_usd = usd
            at = (now + run) // step_s
            part = (now + run - at * step_s) / step_s
            at += c.g[fx.HISTORY_STEPS] + first * columns
            days = (at - known) // day if at > known else 0
            rest = at - known - days * day
            for k in range(first, count):
                if lease:
                    value = forecast_sum(c, f, row, j[b + fx.UNTIL_S])
                    end = j[b + fx.UNTIL_S]
                else:
                    if rest < 0:
                        low, high = f[row + at], f[row + at + 1]
                    else:
                        while rest >= day:
                            rest -= day
                            days += 1
                        low = top + days * whole + f[base + rest] - f[base]
                        high = top + days * whole + f[base + rest + 1] - f[base]
                    value = low + part * (high - low)
                    at += columns
                    rest += columns
                    end = now + k * unit + run
                usd = scale * (value - f[begins + k])
                if end > deadline:
                    usd += c.qf[fx.W_SLA] * expected_penalty(c, job, now + k * unit, end)
                if usd < best:
                    best, best_start, best_end, best_pool, best_level = usd, now + k * unit, end, p, level
            if last_usd < best:
                best, best_start, best_pool, best_level = last_usd, begin, p, level
                best_end = end_of(c, job, p, level, begin, left, loading)
    return best, best_start, best_end, best_pool, best_level


@compiled
def realised_objective(c, job, p, level, start_s):
    """Objective of the job's own watts and penalties when it starts then, by true duration and grid: for rewards, never for features."""
    b = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    left = c.j[b + fx.DURATION_S] - c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.DONE_S]
    end_s = end_of(c, job, p, level, start_s, left, loading_s(c, job))
    step_s, last = c.g[fx.STEP_S], c.o[fx.N_COLUMNS]
    row = rate_row(c, site_of(c, p))
    begin = c.g[fx.HISTORY_STEPS] + start_s / step_s
    end = c.g[fx.HISTORY_STEPS] + end_s / step_s
    usd = charged_kw(c, job, p, level) * step_s / HOUR_S * (sum_at(c.f, row, last, end) - sum_at(c.f, row, last, begin))
    return usd + c.qf[fx.W_SLA] * expected_penalty(c, job, start_s, end_s)


@compiled
def wake_objective(c, p, woken):
    """Objective of waking ``woken`` nodes, at the values of now."""
    if woken == 0:
        return 0.0
    site = site_of(c, p)
    latency = c.k[c.o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.WAKE_LATENCY_S]
    kwh = woken * state_nw(c, p, WAKING) * KWH_PER_NW_S * latency * c.gf[grid_row(c, fx.PUE, site) + c.i[fx.COLUMN]]
    price = c.gf[grid_row(c, fx.PRICE, site) + c.i[fx.COLUMN]]
    carbon = c.gf[grid_row(c, fx.CARBON_KG, site) + c.i[fx.COLUMN]]
    return objective_of(c, kwh * price, kwh * carbon, kwh)


@compiled
def transfer_objective(c, job, p):
    """Objective of sending the job's data to pool p, at the values of now."""
    site = site_of(c, p)
    lies_at = c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.LIES_AT]
    if lies_at < 0 or lies_at == site:
        return 0.0
    kwh = c.jf[c.o[fx.JF_JOB] + job * fx.JOB_FACTORS_WIDTH + fx.TRANSFER_KWH]
    price = c.gf[grid_row(c, fx.PRICE, site) + c.i[fx.COLUMN]]
    carbon = c.gf[grid_row(c, fx.CARBON_KG, site) + c.i[fx.COLUMN]]
    return objective_of(c, kwh * price, kwh * carbon, kwh)


@compiled
def _score_hold(c, job, detail):
    o, i, f = c.o, c.i, c.f
    usd, start, end, p, level = best_later(c, job, 1)
    f[o[fx.F_ACTION] + fx.EXPECTED_USD] = usd + c.qf[fx.HOLD_MARGIN] * abs(usd)
    i[o[fx.I_ACTION] + fx.EXPECTED_START_S] = start
    i[o[fx.I_ACTION] + fx.EXPECTED_END_S] = end
    if detail:
        penalty = expected_penalty(c, job, start, end)
        _detail(c, 0, p, charged_kw(c, job, p, level), forecast_place(c, start), forecast_place(c, end), penalty)


@compiled
def _detail(c, action, p, kw, begins, ends, penalty):
    """Expected kWh, PUE included, and penalty of an action."""
    to = c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH
    row = grid_row(c, fx.CUM_PUE, site_of(c, p))
    hours = (value_at_place(c, c.gf, row, ends) - value_at_place(c, c.gf, row, begins)) * c.g[fx.STEP_S] / HOUR_S
    c.f[to + fx.EXPECTED_KWH] = kw * hours
    c.f[to + fx.EXPECTED_LATE] = penalty


@compiled
def score_question(c, detail, hold):
    """Expected objective, start and end of every allowed action of the question; with ``detail`` also energy and penalty.

    Without ``hold`` that action is left out, for judges that never hold; the question then counts as not scored.
    """
    o, i, f = c.o, c.i, c.f
    job, now, levels = i[fx.ASKING], i[fx.TIME_S], o[fx.N_LEVELS]
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    left, loading = remaining_s(c, job), loading_s(c, job)
    scale = c.g[fx.STEP_S] / HOUR_S
    at_once = forecast_place(c, now)
    if hold and i[o[fx.I_ACTION] + fx.MASK]:
        _score_hold(c, job, detail)
    for p in range(o[fx.N_POOLS]):
        row = rate_row(c, site_of(c, p))
        more = transfer_objective(c, job, p)
        for level in range(levels):
            action = 1 + p * levels + level
            at = o[fx.I_ACTION] + action * fx.ACTION_WIDTH
            if not i[at + fx.MASK]:
                continue
            start, load = now + i[at + fx.START_DELAY_S], loading
            stays = i[fx.REVIEWING] and p == i[a + fx.POOL]
            if stays:
                load = max(0, i[a + fx.LOADING_S] - (now - i[a + fx.BEGIN_S]))
            end = end_of(c, job, p, level, start, left, load)
            begins = at_once if start == now else forecast_place(c, start)
            ends = forecast_place(c, end)
            kw, penalty = charged_kw(c, job, p, level), expected_penalty(c, job, start, end)
            usd = kw * scale * (value_at_place(c, f, row, ends) - value_at_place(c, f, row, begins)) + c.qf[fx.W_SLA] * penalty
            if not stays:
                usd += wake_objective(c, p, i[at + fx.NODES_WOKEN]) + more
            f[o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.EXPECTED_USD] = usd
            i[at + fx.EXPECTED_START_S] = start
            i[at + fx.EXPECTED_END_S] = end
            if detail:
                _detail(c, action, p, kw, begins, ends, penalty)
    i[fx.SCORED] = 0 if not hold else (2 if detail else 1)

"""Compiled accounting: energy, cost and carbon between instants, charges of jobs, penalties."""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_placement import WHOLE
from envs.state import AWAKE, CARBON, COST, ENERGY, LATE_START, MISSED_DEADLINE, PENALTY, SLEEPING, WAKING

HOUR_S = 3600.0


@compiled
def column_of(grid, window, time_s):
    """Grid column in force at ``time_s``; the last one is held."""
    return min(grid.window_i[window, fx.HISTORY_STEPS] + time_s // grid.window_i[window, fx.STEP_S], grid.reserve.shape[2] - 1)


@compiled
def sum_at(sums, at):
    """Running sum at column ``at`` (fractional), the last column held after the end."""
    last = len(sums) - 1
    k = int(at)
    if k >= last:
        return sums[last] + (at - last) * (sums[last] - sums[last - 1])
    return sums[k] + (at - k) * (sums[k + 1] - sums[k])


@compiled
def dynamic_watts(static, jobs, window, job, p, level):
    """Watts that the running job adds to its awake nodes."""
    gpus = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job] / 1000.0
    active = static.curve[fx.GPU_POWER_W, p, level, jobs.work_i[window, fx.KIND, job]] - static.pool_f[fx.GPU_IDLE_W, p]
    return gpus * active * jobs.utilization[window, job] + gpus * static.pool_f[fx.CPU_W_PER_GPU, p]


@compiled
def share_watts(static, p, gpus):
    """Part of the nodes' idle watts that ``gpus`` GPUs of pool p stand for."""
    return (
        gpus
        * (static.pool_f[fx.NODE_IDLE_W, p] + static.pool_i[fx.POOL_GPUS, p] * static.pool_f[fx.GPU_IDLE_W, p])
        / static.pool_i[fx.POOL_GPUS, p]
    )


@compiled
def objective_of(params, b, usd, kg, kwh):
    """Objective of cost, carbon and energy, USD."""
    w = params.floats[b]
    carbon = w[fx.WEIGHTS + CARBON] * w[fx.CARBON_USD_PER_KG] * kg
    return w[fx.WEIGHTS + COST] * usd + carbon + w[fx.WEIGHTS + ENERGY] * w[fx.ENERGY_USD_PER_KWH] * kwh


@compiled
def penalty_usd(params, b, gpus, late_s):
    """Penalty of one missed objective."""
    hours = min(late_s / HOUR_S, params.floats[b, fx.LATE_CAP_HOURS])
    return gpus * (params.floats[b, fx.MISS_USD_PER_GPU] + params.floats[b, fx.LATE_USD_PER_GPU_HOUR] * hours)


@compiled
def accrue(static, grid, params, state, b, until_s):
    """Charge the sites from the current time to ``until_s``, within one grid step."""
    seconds = until_s - state.env_i[b, fx.TIME_S]
    window = state.env_i[b, fx.WINDOW]
    column = column_of(grid, window, state.env_i[b, fx.TIME_S])
    for p in range(static.pool_i.shape[1]):
        site = static.pool_i[fx.POOL_SITE, p]
        awake_w = state.pool_i[b, fx.STATE_COUNT + AWAKE, p] * (
            static.pool_f[fx.NODE_IDLE_W, p] + static.pool_i[fx.POOL_GPUS, p] * static.pool_f[fx.GPU_IDLE_W, p]
        )
        share_w = share_watts(static, p, state.pool_i[b, fx.POOL_RUNNING, p] / 1000.0)
        state.env_f[b, fx.BUSY_GPU_S] += state.pool_i[b, fx.POOL_RUNNING, p] / 1000.0 * seconds
        _charge_idle(grid, params, state, b, site, column, 0, awake_w - share_w, seconds)
        _charge_idle(
            grid,
            params,
            state,
            b,
            site,
            column,
            1,
            state.pool_i[b, fx.STATE_COUNT + WAKING, p] * static.pool_f[fx.WAKE_POWER_W, p],
            seconds,
        )
        _charge_idle(
            grid,
            params,
            state,
            b,
            site,
            column,
            2,
            state.pool_i[b, fx.STATE_COUNT + SLEEPING, p] * static.pool_f[fx.NODE_SLEEP_W, p],
            seconds,
        )
        _charge(grid, params, state, b, site, column, share_w, seconds)
    for site in range(state.site_f.shape[2]):
        _charge(grid, params, state, b, site, column, state.site_f[b, fx.DYNAMIC_W, site], seconds)


@compiled
def _charge(grid, params, state, b, site, column, watts, seconds):
    window = state.env_i[b, fx.WINDOW]
    kwh = watts * grid.values[window, fx.PUE, site, column] * seconds / HOUR_S / 1000.0
    usd = kwh * grid.values[window, fx.PRICE, site, column]
    kg = kwh * grid.values[window, fx.CARBON_KG, site, column]
    totals = state.site_totals[b, site]
    totals[COST] += usd
    totals[CARBON] += kg
    totals[ENERGY] += kwh
    state.env_f[b, fx.OBJECTIVE_USD] += objective_of(params, b, usd, kg, kwh)


@compiled
def _charge_idle(grid, params, state, b, site, column, mode, watts, seconds):
    if watts == 0.0:
        return
    window = state.env_i[b, fx.WINDOW]
    kwh = watts * grid.values[window, fx.PUE, site, column] * seconds / HOUR_S / 1000.0
    totals = state.idle_totals[b, site, mode]
    usd = kwh * grid.values[window, fx.PRICE, site, column]
    kg = kwh * grid.values[window, fx.CARBON_KG, site, column]
    totals[COST] += usd
    totals[CARBON] += kg
    totals[ENERGY] += kwh
    state.env_f[b, fx.REGRET_USD] += objective_of(params, b, usd, kg, kwh)
    _charge(grid, params, state, b, site, column, watts, seconds)


@compiled
def start_charging(static, jobs, params, state, b, job):
    """The job starts now: its watts, and its penalty when late."""
    window = state.env_i[b, fx.WINDOW]
    p, level = state.job_i[b, fx.POOL, job], state.job_i[b, fx.LEVEL, job]
    site = static.pool_i[fx.POOL_SITE, p]
    milli = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job]
    state.site_f[b, fx.DYNAMIC_W, site] += dynamic_watts(static, jobs, window, job, p, level)
    state.site_f[b, fx.SITE_RUNNING, site] += 1
    state.pool_i[b, fx.POOL_RUNNING, p] += milli
    late_s = state.env_i[b, fx.TIME_S] - jobs.work_i[window, fx.LATEST_START_S, job]
    if static.kind_i[fx.START_BOUND, jobs.work_i[window, fx.KIND, job]] and late_s > 0:
        state.job_i[b, fx.VIOLATION, job] |= LATE_START
        _penalise(params, state, b, site, job, penalty_usd(params, b, milli / 1000.0, late_s))


@compiled
def stop_charging(static, jobs, grid, params, state, b, job):
    """The job ends now: its account, and its penalty when the deadline is missed."""
    window = state.env_i[b, fx.WINDOW]
    p, level = state.job_i[b, fx.POOL, job], state.job_i[b, fx.LEVEL, job]
    site = static.pool_i[fx.POOL_SITE, p]
    milli = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job]
    watts = dynamic_watts(static, jobs, window, job, p, level)
    state.site_f[b, fx.SITE_RUNNING, site] -= 1
    state.site_f[b, fx.DYNAMIC_W, site] = state.site_f[b, fx.DYNAMIC_W, site] - watts if state.site_f[b, fx.SITE_RUNNING, site] > 0 else 0.0
    state.pool_i[b, fx.POOL_RUNNING, p] -= milli
    kilowatts = (watts + share_watts(static, p, milli / WHOLE)) / 1000.0
    step_s = grid.window_i[window, fx.STEP_S]
    begin = grid.window_i[window, fx.HISTORY_STEPS] + state.job_i[b, fx.START_S, job] / step_s
    end = grid.window_i[window, fx.HISTORY_STEPS] + state.env_i[b, fx.TIME_S] / step_s
    scale = kilowatts * step_s / HOUR_S
    state.job_f[b, fx.JOB_KWH, job] = scale * (
        sum_at(grid.values[window, fx.CUM_PUE, site], end) - sum_at(grid.values[window, fx.CUM_PUE, site], begin)
    )
    state.job_f[b, fx.JOB_USD, job] = scale * (
        sum_at(grid.values[window, fx.CUM_PRICE, site], end) - sum_at(grid.values[window, fx.CUM_PRICE, site], begin)
    )
    state.job_f[b, fx.JOB_KG, job] = scale * (
        sum_at(grid.values[window, fx.CUM_CARBON, site], end) - sum_at(grid.values[window, fx.CUM_CARBON, site], begin)
    )
    late_s = state.env_i[b, fx.TIME_S] - jobs.work_i[window, fx.DEADLINE_S, job]
    if late_s > 0:
        state.job_i[b, fx.VIOLATION, job] |= MISSED_DEADLINE
        _penalise(params, state, b, site, job, penalty_usd(params, b, milli / 1000.0, late_s))


@compiled
def _penalise(params, state, b, site, job, usd):
    state.job_f[b, fx.JOB_PENALTY, job] += usd
    state.site_totals[b, site, PENALTY] += usd
    state.env_f[b, fx.OBJECTIVE_USD] += params.floats[b, fx.WEIGHTS + PENALTY] * usd

"""Compiled accounting: energy, cost and carbon between instants, charges of jobs, penalties."""

from __future__ import annotations

from envs.kernel_compile import compiled
from envs.kernel_placement import WHOLE
from envs.state import AWAKE, CARBON, COST, ENERGY, LATE_START, MISSED_DEADLINE, PENALTY, SLEEPING, WAKING

HOUR_S = 3600.0


@compiled
def column_of(grid, window, time_s):
    """Grid column in force at ``time_s``; the last one is held."""
    return min(grid.history_steps[window] + time_s // grid.step_s[window], grid.price.shape[2] - 1)


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
    gpus = jobs.workers[window, job] * jobs.gpu_milli[window, job] / 1000.0
    active = static.gpu_power_w[p, level, jobs.kind[window, job]] - static.gpu_idle_w[p]
    return gpus * active * jobs.utilization[window, job] + gpus * static.cpu_w_per_gpu[p]


@compiled
def share_watts(static, p, gpus):
    """Part of the nodes' idle watts that ``gpus`` GPUs of pool p stand for."""
    return gpus * (static.node_idle_w[p] + static.pool_gpus[p] * static.gpu_idle_w[p]) / static.pool_gpus[p]


@compiled
def objective_of(params, b, usd, kg, kwh):
    """Objective of cost, carbon and energy, USD."""
    w = params.weights[b]
    return w[COST] * usd + w[CARBON] * params.carbon_usd_per_kg[b] * kg + w[ENERGY] * params.energy_usd_per_kwh[b] * kwh


@compiled
def penalty_usd(params, b, gpus, late_s):
    """Penalty of one missed objective."""
    hours = min(late_s / HOUR_S, params.late_cap_hours[b])
    return gpus * (params.miss_usd_per_gpu[b] + params.late_usd_per_gpu_hour[b] * hours)


@compiled
def accrue(static, grid, params, state, b, until_s):
    """Charge the sites from the current time to ``until_s``, within one grid step."""
    seconds = until_s - state.time_s[b]
    window = state.window[b]
    column = column_of(grid, window, state.time_s[b])
    for p in range(len(static.pool_site)):
        site = static.pool_site[p]
        counts = state.state_count[b, p]
        awake_w = counts[AWAKE] * (static.node_idle_w[p] + static.pool_gpus[p] * static.gpu_idle_w[p])
        share_w = share_watts(static, p, state.pool_running[b, p] / 1000.0)
        state.busy_gpu_s[b] += state.pool_running[b, p] / 1000.0 * seconds
        _charge_idle(grid, params, state, b, site, column, 0, awake_w - share_w, seconds)
        _charge_idle(grid, params, state, b, site, column, 1, counts[WAKING] * static.wake_power_w[p], seconds)
        _charge_idle(grid, params, state, b, site, column, 2, counts[SLEEPING] * static.node_sleep_w[p], seconds)
        _charge(grid, params, state, b, site, column, share_w, seconds)
    for site in range(state.dynamic_w.shape[1]):
        _charge(grid, params, state, b, site, column, state.dynamic_w[b, site], seconds)


@compiled
def _charge(grid, params, state, b, site, column, watts, seconds):
    window = state.window[b]
    kwh = watts * grid.pue[window, site, column] * seconds / HOUR_S / 1000.0
    usd = kwh * grid.price[window, site, column]
    kg = kwh * grid.carbon[window, site, column]
    totals = state.site_totals[b, site]
    totals[COST] += usd
    totals[CARBON] += kg
    totals[ENERGY] += kwh
    state.objective_usd[b] += objective_of(params, b, usd, kg, kwh)


@compiled
def _charge_idle(grid, params, state, b, site, column, mode, watts, seconds):
    if watts == 0.0:
        return
    window = state.window[b]
    kwh = watts * grid.pue[window, site, column] * seconds / HOUR_S / 1000.0
    totals = state.idle_totals[b, site, mode]
    totals[COST] += kwh * grid.price[window, site, column]
    totals[CARBON] += kwh * grid.carbon[window, site, column]
    totals[ENERGY] += kwh
    _charge(grid, params, state, b, site, column, watts, seconds)


@compiled
def start_charging(static, jobs, params, state, b, job):
    """The job starts now: its watts, and its penalty when late."""
    window = state.window[b]
    p, level = state.pool[b, job], state.level[b, job]
    site = static.pool_site[p]
    milli = jobs.workers[window, job] * jobs.gpu_milli[window, job]
    state.dynamic_w[b, site] += dynamic_watts(static, jobs, window, job, p, level)
    state.site_running[b, site] += 1
    state.pool_running[b, p] += milli
    late_s = state.time_s[b] - jobs.latest_start_s[window, job]
    if static.start_bound[jobs.kind[window, job]] and late_s > 0:
        state.violation[b, job] |= LATE_START
        _penalise(params, state, b, site, job, penalty_usd(params, b, milli / 1000.0, late_s))


@compiled
def stop_charging(static, jobs, grid, params, state, b, job):
    """The job ends now: its account, and its penalty when the deadline is missed."""
    window = state.window[b]
    p, level = state.pool[b, job], state.level[b, job]
    site = static.pool_site[p]
    milli = jobs.workers[window, job] * jobs.gpu_milli[window, job]
    watts = dynamic_watts(static, jobs, window, job, p, level)
    state.site_running[b, site] -= 1
    state.dynamic_w[b, site] = state.dynamic_w[b, site] - watts if state.site_running[b, site] > 0 else 0.0
    state.pool_running[b, p] -= milli
    kilowatts = (watts + share_watts(static, p, milli / WHOLE)) / 1000.0
    step_s = grid.step_s[window]
    begin = grid.history_steps[window] + state.start_s[b, job] / step_s
    end = grid.history_steps[window] + state.time_s[b] / step_s
    scale = kilowatts * step_s / HOUR_S
    state.job_kwh[b, job] = scale * (sum_at(grid.cum_pue[window, site], end) - sum_at(grid.cum_pue[window, site], begin))
    state.job_usd[b, job] = scale * (sum_at(grid.cum_price[window, site], end) - sum_at(grid.cum_price[window, site], begin))
    state.job_kg[b, job] = scale * (sum_at(grid.cum_carbon[window, site], end) - sum_at(grid.cum_carbon[window, site], begin))
    late_s = state.time_s[b] - jobs.deadline_s[window, job]
    if late_s > 0:
        state.violation[b, job] |= MISSED_DEADLINE
        _penalise(params, state, b, site, job, penalty_usd(params, b, milli / 1000.0, late_s))
    if params.plan_regret[b]:
        state.regret_usd[b] += params.weights[b, PENALTY] * (state.job_penalty[b, job] - state.expected_penalty[b, job])


@compiled
def _penalise(params, state, b, site, job, usd):
    state.job_penalty[b, job] += usd
    state.site_totals[b, site, PENALTY] += usd
    state.objective_usd[b] += params.weights[b, PENALTY] * usd

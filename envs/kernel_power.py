"""Compiled power and accounting: watts of nodes and jobs, energy, cost and carbon of sites and jobs, penalties.

Watts are whole nanowatts, so that the sums of a site do not depend on their order and never drift. Sites are charged between any two
instants, so that totals do not depend on who drives the simulator; a job's account is settled when its own watts change.
"""

from __future__ import annotations

import math

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.state import AWAKE, DOWN, LATE_START, MISSED_DEADLINE, WAKING

HOUR_S = 3600.0
NANO = 1e9
KWH_PER_NW_S = 1.0 / (NANO * 1000.0 * HOUR_S)
WHOLE = 1000


@compiled
def rounded(value):
    return math.floor(value + 0.5)


@compiled
def column_at(c, time_s):
    """Grid column in force at ``time_s``; the last one is held."""
    return min(c.g[fx.HISTORY_STEPS] + time_s // c.g[fx.STEP_S], c.o[fx.N_COLUMNS] - 1)


@compiled
def grid_row(c, value, site):
    """Where the values of one quantity at one site begin."""
    return c.o[fx.GF_VALUES] + (value * c.o[fx.N_SITES] + site) * (c.o[fx.N_COLUMNS] + 1)


@compiled
def sum_at(values, row, last, at):
    """Running sum at column ``at`` (fractional), the last column held after the end."""
    k = int(at)
    if k >= last:
        return values[row + last] + (at - last) * (values[row + last] - values[row + last - 1])
    return values[row + k] + (at - k) * (values[row + k + 1] - values[row + k])


@compiled
def speed_of(c, p, level, curve):
    return c.kf[c.o[fx.KF_SPEED] + (p * c.o[fx.N_LEVELS] + level) * c.o[fx.N_CURVES] + curve]


@compiled
def held_milli(c, job, p):
    """Thousandths of GPUs that one worker holds in pool p."""
    shape = c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.SHAPE]
    return c.j[c.o[fx.J_HELD] + shape * c.o[fx.N_POOLS] + p]


@compiled
def load_now(c, job, p, level):
    """Share of its capacity that a replica works at in the step in force."""
    a = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    load = c.gf[c.o[fx.GF_LOAD] + c.j[a + fx.SERVICE] * c.o[fx.N_COLUMNS] + c.i[fx.COLUMN]]
    return min(1.0, load / speed_of(c, p, level, c.j[a + fx.CURVE]))


@compiled
def worker_nw(c, job, p, level, at_peak):
    """Nanowatts that one running worker adds to its awake node; of a lease by its load of now, or at its peak."""
    o, kf = c.o, c.kf
    a = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    shape = o[fx.J_SHAPE] + c.j[a + fx.SHAPE] * fx.SHAPE_CONSTANTS_WIDTH
    w = o[fx.KF_POOL] + p * fx.POOL_WATTS_WIDTH
    use = c.jf[o[fx.JF_JOB] + job * fx.JOB_FACTORS_WIDTH + fx.UTILIZATION]
    if c.j[a + fx.UNTIL_S] >= 0:
        use = 1.0 if at_peak else load_now(c, job, p, level)
    gpus = held_milli(c, job, p) / 1000.0
    above = kf[o[fx.KF_POWER] + (p * o[fx.N_LEVELS] + level) * o[fx.N_CURVES] + c.j[a + fx.CURVE]] - kf[w + fx.GPU_IDLE_W]
    context = min(kf[w + fx.GPU_CONTEXT_W], above)
    watts = gpus * (context + (above - context) * use + kf[w + fx.CPU_W_PER_GPU])
    watts += c.j[shape + fx.SHAPE_CPU_MILLI] / 1000.0 * kf[w + fx.CPU_W_PER_CPU]
    return rounded(watts * NANO)


@compiled
def share_nw(c, job, p):
    """A worker's part of its node's idle nanowatts."""
    return rounded(held_milli(c, job, p) / 1000.0 * c.kf[c.o[fx.KF_POOL] + p * fx.POOL_WATTS_WIDTH + fx.SHARE_W] * NANO)


@compiled
def objective_of(c, usd, kg, kwh):
    """Objective of cost, carbon and energy, USD."""
    w = c.qf
    return w[fx.W_COST] * usd + w[fx.W_CARBON] * w[fx.CARBON_USD_PER_KG] * kg + w[fx.W_ENERGY] * w[fx.ENERGY_USD_PER_KWH] * kwh


@compiled
def penalty_usd(c, gpus, late_s):
    """Penalty of one missed objective."""
    hours = min(late_s / HOUR_S, c.qf[fx.LATE_CAP_HOURS])
    return gpus * (c.qf[fx.MISS_USD_PER_GPU] + c.qf[fx.LATE_USD_PER_GPU_HOUR] * hours)


# ---------------------------------------------------------------- sites


@compiled
def _charge_site(c, site, seconds):
    """Charge a site for the next ``seconds``, which lie within the grid step in force."""
    o, i, f = c.o, c.i, c.f
    a = o[fx.I_SITE] + site * fx.SITE_WIDTH
    column = i[fx.COLUMN]
    scale = seconds * KWH_PER_NW_S * c.gf[grid_row(c, fx.PUE, site) + column]
    price = c.gf[grid_row(c, fx.PRICE, site) + column]
    carbon = c.gf[grid_row(c, fx.CARBON_KG, site) + column]
    idle = scale * (i[a + fx.AWAKE_SITE_NW] - i[a + fx.SHARED_NW])
    waking = scale * i[a + fx.WAKING_SITE_NW]
    sleeping = scale * i[a + fx.SLEEPING_SITE_NW]
    rest = o[fx.F_IDLE] + site * 9
    _add(f, rest, idle, price, carbon)
    _add(f, rest + 3, waking, price, carbon)
    _add(f, rest + 6, sleeping, price, carbon)
    kwh = idle + waking + sleeping
    f[fx.REGRET_USD] += objective_of(c, kwh * price, kwh * carbon, kwh)
    kwh += scale * (i[a + fx.SHARED_NW] + i[a + fx.DYNAMIC_NW])
    _add(f, o[fx.F_SITE] + site * 4, kwh, price, carbon)
    f[fx.OBJECTIVE_USD] += objective_of(c, kwh * price, kwh * carbon, kwh)
    f[fx.BUSY_GPU_S] += i[a + fx.RUNNING_MILLI] / 1000.0 * seconds


@compiled
def _add(f, at, kwh, price, carbon):
    f[at] += kwh * price
    f[at + 1] += kwh * carbon
    f[at + 2] += kwh


@compiled
def charge_sites(c, seconds):
    for site in range(c.o[fx.N_SITES]):
        _charge_site(c, site, seconds)


@compiled
def commit(c, p, node, nw):
    """Change the committed watts of a pool, its site and the node's rack."""
    o, i = c.o, c.i
    if not o[fx.HAS_BUDGET]:
        return
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    i[o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.COMMITTED_NW] += nw
    i[o[fx.I_SITE] + c.k[k + fx.POOL_SITE] * fx.SITE_WIDTH + fx.SITE_COMMITTED_NW] += nw
    if c.k[k + fx.NODES_PER_RACK] > 0:
        i[o[fx.I_RACK] + rack_of(c, p, node)] += nw


@compiled
def pool_and_site_allow(c, p, more_nw):
    """Whether pool and site have ``more_nw`` left in their budgets."""
    o, i = c.o, c.i
    site = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_SITE]
    pool_budget = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_BUDGET_NW]
    site_budget = c.k[o[fx.K_SITE] + site * fx.SITE_CONSTANTS_WIDTH + fx.SITE_BUDGET_NW]
    if pool_budget > 0 and i[o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.COMMITTED_NW] + more_nw > pool_budget:
        return False
    return not (site_budget > 0 and i[o[fx.I_SITE] + site * fx.SITE_WIDTH + fx.SITE_COMMITTED_NW] + more_nw > site_budget)


@compiled
def rack_of(c, p, node):
    k = c.o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    return c.k[k + fx.FIRST_RACK] + (node - c.k[k + fx.POOL_FIRST_NODE]) // c.k[k + fx.NODES_PER_RACK]


@compiled
def state_nw(c, p, mode):
    """Nanowatts of a node in a state."""
    return 0 if mode == DOWN else c.k[c.o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.AWAKE_NW + mode]


@compiled
def committed_state_nw(c, p, mode):
    return c.k[c.o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.COMMITTED_WAKING_NW] if mode == WAKING else state_nw(c, p, mode)


@compiled
def set_node_state(c, p, node, mode):
    """Put a node into another state, in all counters of states, watts and room."""
    o, i = c.o, c.i
    a = o[fx.I_NODE] + node * fx.NODE_WIDTH
    pool = o[fx.I_POOL] + p * fx.POOL_WIDTH
    site = c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.POOL_SITE]
    before = i[a + fx.NODE_STATE]
    s = o[fx.I_SITE] + site * fx.SITE_WIDTH
    if before != DOWN:
        i[s + fx.AWAKE_SITE_NW + before] -= state_nw(c, p, before)
    if mode != DOWN:
        i[s + fx.AWAKE_SITE_NW + mode] += state_nw(c, p, mode)
    commit(c, p, node, committed_state_nw(c, p, mode) - committed_state_nw(c, p, before))
    i[pool + fx.STATE_COUNT + before] -= 1
    i[pool + fx.STATE_COUNT + mode] += 1
    whole = i[a + fx.NODE_WHOLE]
    if before <= WAKING:
        i[whole_row(c, p, before) + whole] -= 1
    if mode <= WAKING:
        i[whole_row(c, p, mode) + whole] += 1
    if before == DOWN:
        i[pool + fx.POOL_FREE] += i[a + fx.NODE_FREE]
    if mode == DOWN:
        i[pool + fx.POOL_FREE] -= i[a + fx.NODE_FREE]
    i[a + fx.NODE_STATE] = mode


@compiled
def whole_row(c, p, mode):
    """Counts of awake or waking nodes of a pool by their wholly free GPUs."""
    return c.o[fx.I_WHOLE] + (p * 2 + mode - AWAKE) * 64


# ---------------------------------------------------------------- jobs


@compiled
def set_job_watts(c, job, nw, share):
    """Charge a running job at new watts from now on; its account is settled until now."""
    o, i = c.o, c.i
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    site = c.k[o[fx.K_POOL] + i[a + fx.POOL] * fx.POOL_CONSTANTS_WIDTH + fx.POOL_SITE]
    settle_job(c, job, site)
    s = o[fx.I_SITE] + site * fx.SITE_WIDTH
    i[s + fx.DYNAMIC_NW] += nw - i[a + fx.WATTS_NW]
    i[s + fx.SHARED_NW] += share - i[a + fx.SHARE_NW]
    i[a + fx.WATTS_NW] = nw
    i[a + fx.SHARE_NW] = share


@compiled
def settle_job(c, job, site):
    """Charge a job at its present watts from where its account stands until now."""
    o, i, f = c.o, c.i, c.f
    a = o[fx.I_JOB] + job * fx.JOB_WIDTH
    nw = i[a + fx.WATTS_NW] + i[a + fx.SHARE_NW]
    since, now = i[a + fx.MARKED_S], i[fx.TIME_S]
    i[a + fx.MARKED_S] = now
    if nw == 0 or since == now:
        return
    step_s, last = c.g[fx.STEP_S], o[fx.N_COLUMNS]
    begin = c.g[fx.HISTORY_STEPS] + since / step_s
    end = c.g[fx.HISTORY_STEPS] + now / step_s
    scale = nw * KWH_PER_NW_S * step_s
    b = o[fx.F_JOB] + job * fx.JOB_F_WIDTH
    pue, price, carbon = grid_row(c, fx.CUM_PUE, site), grid_row(c, fx.CUM_PRICE, site), grid_row(c, fx.CUM_CARBON, site)
    f[b + fx.JOB_KWH] += scale * (sum_at(c.gf, pue, last, end) - sum_at(c.gf, pue, last, begin))
    f[b + fx.JOB_USD] += scale * (sum_at(c.gf, price, last, end) - sum_at(c.gf, price, last, begin))
    f[b + fx.JOB_KG] += scale * (sum_at(c.gf, carbon, last, end) - sum_at(c.gf, carbon, last, begin))


@compiled
def asked_gpus(c, job):
    return c.j[c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH + fx.ASKED_MILLI] / 1000.0


@compiled
def penalise(c, job, site, violation, late_s):
    """Charge one missed objective."""
    usd = penalty_usd(c, asked_gpus(c, job), late_s)
    c.i[c.o[fx.I_JOB] + job * fx.JOB_WIDTH + fx.VIOLATION] |= violation
    c.f[c.o[fx.F_JOB] + job * fx.JOB_F_WIDTH + fx.JOB_PENALTY] += usd
    c.f[c.o[fx.F_SITE] + site * 4 + 3] += usd
    c.f[fx.OBJECTIVE_USD] += c.qf[fx.W_SLA] * usd


@compiled
def penalise_start(c, job, site, never):
    """Late start, for classes that are bound to one; a lease that was ``never`` served is late whatever its latest start."""
    a = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    late_s = c.i[fx.TIME_S] - c.j[a + fx.LATEST_START_S]
    if (late_s > 0 or never) and c.k[c.o[fx.K_KIND] + c.j[a + fx.KIND] * fx.KIND_CONSTANTS_WIDTH + fx.START_BOUND]:
        penalise(c, job, site, LATE_START, max(0, late_s))


@compiled
def penalise_end(c, job, site):
    a = c.o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    late_s = c.i[fx.TIME_S] - c.j[a + fx.DEADLINE_S]
    if late_s > 0 and c.j[a + fx.UNTIL_S] < 0:
        penalise(c, job, site, MISSED_DEADLINE, late_s)


@compiled
def charge_transfer(c, job, site):
    """The job's data is sent to ``site`` now; the network's energy is no load of the building (no PUE)."""
    o, f = c.o, c.f
    kwh = c.jf[o[fx.JF_JOB] + job * fx.JOB_FACTORS_WIDTH + fx.TRANSFER_KWH]
    price = c.gf[grid_row(c, fx.PRICE, site) + c.i[fx.COLUMN]]
    carbon = c.gf[grid_row(c, fx.CARBON_KG, site) + c.i[fx.COLUMN]]
    b = o[fx.F_JOB] + job * fx.JOB_F_WIDTH
    f[b + fx.JOB_KWH] += kwh
    f[b + fx.JOB_USD] += kwh * price
    f[b + fx.JOB_KG] += kwh * carbon
    _add(f, o[fx.F_SITE] + site * 4, kwh, price, carbon)
    f[fx.OBJECTIVE_USD] += objective_of(c, kwh * price, kwh * carbon, kwh)

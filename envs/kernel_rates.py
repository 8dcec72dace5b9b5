"""Compiled rank of the present rate: how dear energy is now against the last 24 h, which are also its forecast."""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_power import grid_row, objective_of
from envs.kernel_scores import DAY_S


@compiled
def rate_at(c, site, column):
    """Objective of 1 kWh of IT load at a site, PUE included, USD."""
    pue = c.gf[grid_row(c, fx.PUE, site) + column]
    price, carbon = c.gf[grid_row(c, fx.PRICE, site) + column], c.gf[grid_row(c, fx.CARBON_KG, site) + column]
    return objective_of(c, pue * price, pue * carbon, pue)


@compiled
def _fill_ranks(c):
    """Share of the last 24 h in which a kWh was cheaper than now, of each site; it holds for the grid step."""
    column, day = c.i[fx.COLUMN], DAY_S // c.g[fx.STEP_S]
    for site in range(c.o[fx.N_SITES]):
        now, cheaper = rate_at(c, site, column), 0
        for before in range(column - day + 1, column):
            cheaper += rate_at(c, site, before) < now
        c.f[c.o[fx.F_RANK] + site] = cheaper / day
    c.i[fx.RANK_COLUMN] = column + 1


@compiled
def rate_rank(c):
    """The least rank of the sites where a run is offered, 0 to 1; 1 when none is."""
    o, i = c.o, c.i
    if i[fx.RANK_COLUMN] != i[fx.COLUMN] + 1:
        _fill_ranks(c)
    least = 1.0
    for action in range(1, o[fx.N_ACTIONS]):
        if i[o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK]:
            site = c.k[o[fx.K_POOL] + (action - 1) // o[fx.N_LEVELS] * fx.POOL_CONSTANTS_WIDTH + fx.POOL_SITE]
            least = min(least, c.f[o[fx.F_RANK] + site])
    return least

"""Compiled forecast-driven sleep after the Cluster Energy Saving service of Helios, from what a pool itself has seen.

Hu et al., "Characterization and Prediction of Deep Learning Workloads in Large-Scale GPU Datacenters" (SC 2021), section 4.3.2, and its
artifact S-Lab-System-Group/HeliosArtifact (``framework/CES Service/CES_Helios.py``). Kept of it, pool by pool:

- a number of nodes is held awake; in the first hour it is the nodes in use and a buffer;
- when more nodes are in use than that, it becomes the nodes in use and the buffer, and does not fall for ``ces_keep_s``;
- every ten minutes it falls to the nodes in use and the buffer when demand has fallen (mean of the last checks less now) and is forecast
  to fall (now less the mean forecast of the next three hours), both by ``ces_trend`` nodes, and the forecast of six hours is not above
  that of three.

Not kept: the forecaster, gradient boosted trees over weeks of history. Where the window has a table that keeps nodes awake
(``envs.reserve``), that table decides in place of this rule. Else the forecast is demand at the same time yesterday, moved by the
difference of now to yesterday; in the first day it is the recent trend, which goes on as far as it came. Nodes are woken ahead as the
table would wake them. Demand is the nodes with a job on them at the check, not the most of ten minutes.
"""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.state import DOWN

CHECK_S = 600
DAY_CHECKS = 144
FIRST_CHECKS = 6
HISTORY_CHECKS = 3
FUTURE_CHECKS = 18


@compiled
def rules_itself(c):
    """Whether this rule is on and no table stands in its place."""
    return c.q[fx.CES_BUFFER] >= 0 and not c.g[fx.KEEPS_AWAKE]


@compiled
def next_check(c):
    """Second of the next check, where the rule is on."""
    return (c.i[fx.TIME_S] // CHECK_S + 1) * CHECK_S


@compiled
def follow_demand(c):
    """Step 6, before the falling asleep, where the rule is on: set how many nodes of each pool shall be awake."""
    o, i = c.o, c.i
    for p in range(o[fx.N_POOLS]):
        pool = o[fx.I_POOL] + p * fx.POOL_WIDTH
        used = nodes_used(c, p)
        wanted = used + c.q[fx.CES_BUFFER]
        if used > i[pool + fx.CES_TARGET]:
            i[pool + fx.CES_TARGET] = wanted
            i[pool + fx.CES_KEEP_UNTIL_S] = i[fx.TIME_S] + c.q[fx.CES_KEEP_S]
        if i[fx.TIME_S] % CHECK_S == 0:
            check = i[fx.TIME_S] // CHECK_S
            if check < FIRST_CHECKS or (wanted < i[pool + fx.CES_TARGET] and _may_fall(c, p, check, used)):
                i[pool + fx.CES_TARGET] = wanted
            i[o[fx.I_USED] + p * DAY_CHECKS + check % DAY_CHECKS] = used


@compiled
def nodes_used(c, p):
    """Nodes of the pool that are up and have a job."""
    o, i = c.o, c.i
    k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
    first, used = c.k[k + fx.POOL_FIRST_NODE], 0
    for node in range(first, first + c.k[k + fx.POOL_NODES]):
        a = o[fx.I_NODE] + node * fx.NODE_WIDTH
        used += i[a + fx.NODE_JOBS] > 0 and i[a + fx.NODE_STATE] != DOWN
    return used


@compiled
def _may_fall(c, p, check, used):
    i, row = c.i, c.o[fx.I_USED] + p * DAY_CHECKS
    if i[fx.TIME_S] < i[c.o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.CES_KEEP_UNTIL_S]:
        return False
    before = 0
    for k in range(check - HISTORY_CHECKS, check):
        before += i[row + k % DAY_CHECKS]
    fallen = before / HISTORY_CHECKS - used
    if fallen < c.qf[fx.CES_TREND]:
        return False
    if check < DAY_CHECKS:
        return True
    near, far = 0, 0
    for k in range(2 * FUTURE_CHECKS):
        change = i[row + (check + k) % DAY_CHECKS] - i[row + check % DAY_CHECKS]
        far += change
        near += change if k < FUTURE_CHECKS else 0
    return -near >= c.qf[fx.CES_TREND] * FUTURE_CHECKS and 2 * near >= far

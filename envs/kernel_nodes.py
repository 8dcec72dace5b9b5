"""Compiled states of nodes: who is idle, who sleeps, who wakes for a job or ahead of demand, who is down."""

from __future__ import annotations

from envs import events
from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_power import committed_state_nw, pool_and_site_allow, rack_of, set_node_state
from envs.kernel_queue import heap_drop, heap_put, idle_append, idle_remove, log_event
from envs.state import AWAKE, DOWN, SLEEPING, WAKING


@compiled
def become_idle(c, p, node):
    c.i[c.o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.IDLE_SINCE_S] = c.i[fx.TIME_S]
    c.i[c.o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.IDLE_AWAKE] += 1
    idle_append(c, node)


@compiled
def leave_idle(c, p, node):
    a = c.o[fx.I_NODE] + node * fx.NODE_WIDTH
    pool = c.o[fx.I_POOL] + p * fx.POOL_WIDTH
    c.i[pool + fx.IDLE_AWAKE] -= 1
    if c.i[a + fx.TIRED]:
        c.i[a + fx.TIRED] = 0
        c.i[pool + fx.TIRED_COUNT] -= 1
    else:
        idle_remove(c, node)


@compiled
def wake(c, p, node):
    o, i = c.o, c.i
    end = i[fx.TIME_S] + c.k[o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH + fx.WAKE_LATENCY_S]
    set_node_state(c, p, node, WAKING)
    i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.WAKE_END_S] = end
    heap_put(i, o[fx.I_WAKES], o[fx.I_WAKES_AT], fx.N_WAKES, end, node)
    log_event(c, events.WAKE, -1, p, -1, node, end)


@compiled
def wake_done(c, node):
    p = c.k[c.o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_POOL]
    set_node_state(c, p, node, AWAKE)
    if c.i[c.o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.NODE_JOBS] == 0:
        become_idle(c, p, node)
    if c.o[fx.HAS_BUDGET]:
        c.i[fx.RELEASED] = 1
    log_event(c, events.WAKE_DONE, -1, p, -1, node, -1)


@compiled
def node_down(c, node, until_s):
    """The node, whose jobs have left, goes down."""
    o, i = c.o, c.i
    p = c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_POOL]
    a = o[fx.I_NODE] + node * fx.NODE_WIDTH
    if i[a + fx.NODE_STATE] == AWAKE and i[a + fx.NODE_JOBS] == 0:
        leave_idle(c, p, node)
    elif i[a + fx.NODE_STATE] == WAKING:
        heap_drop(i, o[fx.I_WAKES], o[fx.I_WAKES_AT], fx.N_WAKES, node)
    set_node_state(c, p, node, DOWN)
    i[a + fx.DOWN_UNTIL_S] = until_s
    i[fx.RELEASED] = 1


@compiled
def node_up(c, node):
    p = c.k[c.o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_POOL]
    set_node_state(c, p, node, AWAKE)
    become_idle(c, p, node)
    c.i[fx.RELEASED] = 1
    log_event(c, events.NODE_UP, -1, p, -1, node, -1)


@compiled
def fall_asleep(c):
    """Step 6 of an instant: idle nodes that have waited long enough sleep, as far as the reserves allow."""
    o, i = c.o, c.i
    after = c.q[fx.SLEEP_AFTER_S]
    if after < 0:
        return
    nodes = o[fx.I_NODE]
    head = o[fx.N_NODES]
    node = i[nodes + head * fx.NODE_WIDTH + fx.IDLE_NEXT]
    while node != head and i[nodes + node * fx.NODE_WIDTH + fx.IDLE_SINCE_S] + after <= i[fx.TIME_S]:
        idle_remove(c, node)
        i[nodes + node * fx.NODE_WIDTH + fx.TIRED] = 1
        p = c.k[o[fx.K_NODE] + node * fx.NODE_CONSTANTS_WIDTH + fx.NODE_POOL]
        i[o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.TIRED_COUNT] += 1
        node = i[nodes + head * fx.NODE_WIDTH + fx.IDLE_NEXT]
    for p in range(o[fx.N_POOLS]):
        pool = o[fx.I_POOL] + p * fx.POOL_WIDTH
        reserve = c.g[o[fx.G_RESERVE] + p * o[fx.N_COLUMNS] + i[fx.COLUMN]]
        if i[pool + fx.TIRED_COUNT] == 0 or i[pool + fx.IDLE_AWAKE] <= reserve:
            continue
        spare = nodes_up(c, p) - kept_awake(c, p)
        k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
        node = c.k[k + fx.POOL_FIRST_NODE] + c.k[k + fx.POOL_NODES] - 1
        while spare > 0 and i[pool + fx.TIRED_COUNT] > 0 and i[pool + fx.IDLE_AWAKE] > reserve:
            if i[nodes + node * fx.NODE_WIDTH + fx.TIRED]:
                i[nodes + node * fx.NODE_WIDTH + fx.TIRED] = 0
                i[pool + fx.TIRED_COUNT] -= 1
                i[pool + fx.IDLE_AWAKE] -= 1
                spare -= 1
                set_node_state(c, p, node, SLEEPING)
                if o[fx.HAS_BUDGET]:
                    i[fx.RELEASED] = 1
                log_event(c, events.SLEEP, -1, p, -1, node, -1)
            node -= 1


@compiled
def nodes_up(c, p):
    """Awake and waking nodes of the pool."""
    counts = c.o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.STATE_COUNT
    return c.i[counts + AWAKE] + c.i[counts + WAKING]


@compiled
def kept_awake(c, p):
    """Nodes of the pool that shall be awake: by the table in the step in force, or by ``envs.kernel_ces``."""
    return max(c.g[c.o[fx.G_AWAKE] + p * c.o[fx.N_COLUMNS] + c.i[fx.COLUMN]], c.i[c.o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.CES_TARGET])


@compiled
def wake_ahead(c):
    """Step 6, after the falling asleep: sleeping nodes wake, lowest first, until as many are up as shall be, as far as budgets allow."""
    o, i = c.o, c.i
    if not o[fx.HAS_AWAKE] and c.q[fx.CES_BUFFER] < 0:
        return
    for p in range(o[fx.N_POOLS]):
        missing = kept_awake(c, p) - nodes_up(c, p)
        if missing <= 0 or i[o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.STATE_COUNT + SLEEPING] == 0:
            continue
        k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
        rack_budget = c.k[k + fx.RACK_BUDGET_NW]
        wake_nw = committed_state_nw(c, p, WAKING) - committed_state_nw(c, p, SLEEPING)
        first = c.k[k + fx.POOL_FIRST_NODE]
        for node in range(first, first + c.k[k + fx.POOL_NODES]):
            if missing <= 0 or (o[fx.HAS_BUDGET] and not pool_and_site_allow(c, p, wake_nw)):
                break
            if i[o[fx.I_NODE] + node * fx.NODE_WIDTH + fx.NODE_STATE] != SLEEPING:
                continue
            if rack_budget > 0 and i[o[fx.I_RACK] + rack_of(c, p, node)] + wake_nw > rack_budget:
                continue
            wake(c, p, node)
            missing -= 1

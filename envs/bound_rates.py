"""What a window offers to any schedule, for :mod:`envs.bound`: slots of time, weighted prices, nodes that are up, and who may be late.

Proofs of what is used here are in docs/bound.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.reward import RewardSpec
from envs.world import World
from envs.world_jobs import held_milli

SLOT_S = 3600
UNIFORM_SLOTS = 504  # three weeks of hours; what lies beyond is cut into few long slots
LONG_SLOTS = 48
WS_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Prices:
    """Weighted price of a site's IT energy over time: piecewise constant, the last value held for ever.

    Attributes:
        edges_s: float64 ``[G + 1]``, where a value begins and, last, a time after which nothing is looked up.
        usd_per_kwh: float64 ``[S, G]``, w_cost price + w_carbon price_c carbon + w_energy price_e, times PUE.
        sent_usd_per_kwh: float64 ``[S, G]``, the same without PUE, for data that is sent.
        sums: float64 ``[S, G + 1]``, USD of one watt from second 0 to each edge.
    """

    edges_s: np.ndarray
    usd_per_kwh: np.ndarray
    sent_usd_per_kwh: np.ndarray
    sums: np.ndarray

    def until(self, site: int, time_s: np.ndarray) -> np.ndarray:
        """USD of one watt at a site from second 0 to the times."""
        return np.interp(time_s, self.edges_s, self.sums[site])

    def least(self, edges_s: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Least of ``values [.., G]`` in each slot between ``edges_s [K + 1]``: ``[.., K]``."""
        first = np.searchsorted(self.edges_s, edges_s[:-1], side="right") - 1
        last = np.searchsorted(self.edges_s, edges_s[1:], side="left") - 1
        result = values[..., np.minimum(first, values.shape[-1] - 1)].copy()
        for ahead in range(1, int((last - first).max(initial=0)) + 1):
            at = np.minimum(np.minimum(first + ahead, last), values.shape[-1] - 1)
            result = np.minimum(result, values[..., at])
        return result


def window_prices(world: World, m: int, reward: RewardSpec, horizon_s: float) -> Prices:
    """Prices of window ``m`` up to at least ``horizon_s`` and the table's end."""
    grid = world.grid
    step, past = int(grid.step_s[m]), int(grid.history_steps[m])
    pue = grid.pue[m][:, past:]
    bare = reward.w_cost * grid.price[m] + reward.w_carbon * reward.carbon_usd_per_kg * grid.carbon[m]
    bare = bare[:, past:] + reward.w_energy * reward.energy_usd_per_kwh
    edges = np.arange(bare.shape[1] + 1, dtype=np.float64) * step
    edges[-1] = max(edges[-1], horizon_s) + 1.0
    value = pue * bare
    sums = np.zeros((len(value), len(edges)))
    np.cumsum(value * np.diff(edges) / WS_PER_KWH, axis=1, out=sums[:, 1:])
    return Prices(edges, value, bare, sums)


@dataclass(frozen=True)
class JobFacts:
    """Jobs of one window that are not rejected at arrival: J jobs, P pools, L levels.

    Attributes:
        index: int64 ``[J]``, in the window's table.
        submit_s, latest_s, deadline_s, until_s: float64 ``[J]``; ``latest_s`` from which on a question cannot be answered by hold.
        allowed: bool ``[J, P, L]``.
        run_s: float64 ``[J, P, L]``, seconds of one undisturbed run; of a lease the most that it may run.
        dynamic_w: float64 ``[J, P, L]``; of a lease at full use.
        share: float64 ``[J, P]``, node-equivalents of GPUs that the gang holds.
        per_node: int64 ``[J, P]``, workers that an empty node takes.
        nodes: float64 ``[J, P]``, nodes that the gang needs at least.
        delay_s: float64 ``[J, P]``, most seconds from a decision to the start; ``sent_s`` of them, at least, for data.
        sends: bool ``[J, P]``, whether the pool lies at another site than the job's data.
        gpus: float64 ``[J]``, GPUs asked for, which penalties count.
    """

    index: np.ndarray
    submit_s: np.ndarray
    latest_s: np.ndarray
    latest_start_s: np.ndarray
    deadline_s: np.ndarray
    until_s: np.ndarray
    start_bound: np.ndarray
    allowed: np.ndarray
    run_s: np.ndarray
    dynamic_w: np.ndarray
    share: np.ndarray
    held: np.ndarray
    per_node: np.ndarray
    nodes: np.ndarray
    delay_s: np.ndarray
    sent_s: np.ndarray
    sends: np.ndarray
    gpus: np.ndarray
    workers: np.ndarray

    @property
    def lease(self) -> np.ndarray:
        return self.until_s >= 0

    @property
    def shortest_s(self) -> np.ndarray:
        """Least seconds from arrival to end: data, then the fastest run; a lease is there until it ends or is withdrawn. ``[J]``"""
        run = np.where(self.allowed, self.run_s + self.sent_s[:, :, None], np.inf).min(axis=(1, 2))
        return np.where(self.lease, self.until_s - self.submit_s, run)

    @property
    def longest_s(self) -> np.ndarray:
        return np.where(self.allowed, self.run_s + self.delay_s[:, :, None], 0.0).max(axis=(1, 2))


def per_node_workers(world: World, p: int, held: np.ndarray, cpu: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Workers that an empty node of pool ``p`` takes, by GPUs, CPUs and memory; shape of ``held``."""
    static = world.static
    gpus = int(static.pool_gpus[p])
    most = np.where(held < 1000, gpus * (1000 // np.maximum(held, 1)), gpus // np.maximum(held // 1000, 1))
    most = np.where(held == 0, 1 << 30, most)
    for asked, there in ((cpu, int(static.cpu_milli[p])), (memory, int(static.memory_mib[p]))):
        if there > 0:
            most = np.where(asked > 0, np.minimum(most, there // np.maximum(asked, 1)), most)
    return most


def dynamic_watts(world: World, m: int, index: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Watts that each gang adds while it runs, ``[J, P, L]``, for a utilisation that broadcasts to it; rounded as the simulator does."""
    static, jobs = world.static, world.jobs
    workers = jobs.workers[m, index].astype(np.float64)[:, None, None]
    held = np.stack([held_milli(jobs.gpu_milli[m, index], int(slices)) for slices in static.mig_slices], axis=1) / 1000.0
    above = static.gpu_power_w[:, :, jobs.curve[m, index]].transpose(2, 0, 1) - static.gpu_idle_w[:, None]
    context = np.minimum(static.gpu_context_w[:, None], above)
    watts = held[:, :, None] * (context + (above - context) * use + static.cpu_w_per_gpu[:, None])
    watts = watts + (jobs.cpu_milli[m, index, None] / 1000.0 * static.cpu_w_per_cpu)[:, :, None]
    return np.floor(watts * 1e9 + 0.5) / 1e9 * workers


def job_facts(world: World, m: int) -> JobFacts:
    """Facts of window ``m``."""
    static, jobs = world.static, world.jobs
    count = int(jobs.count[m])
    index = np.flatnonzero(jobs.reject[m, :count] == 0)
    pools, levels, _ = static.speed.shape
    submit = jobs.submit_s[m, index].astype(np.float64)
    until = jobs.until_s[m, index].astype(np.float64)
    latest_start = jobs.latest_start_s[m, index].astype(np.float64)
    deferrable = static.deferrable[jobs.kind[m, index]]
    bits = jobs.allowed_levels[m, index]
    allowed = (bits[:, :, None] >> np.arange(levels)) & 1 > 0
    speed = static.speed[:, :, jobs.curve[m, index]].transpose(2, 0, 1)
    run = np.ceil(jobs.duration_s[m, index].astype(np.float64)[:, None, None] / speed)
    run = np.where((until >= 0)[:, None, None], (until - submit)[:, None, None], run)
    held = np.stack([held_milli(jobs.gpu_milli[m, index], int(slices)) for slices in static.mig_slices], axis=1)
    cpu, memory, workers = jobs.cpu_milli[m, index], jobs.memory_mib[m, index], jobs.workers[m, index]
    per_node = np.stack([per_node_workers(world, p, held[:, p], cpu, memory) for p in range(pools)], axis=1)
    site = jobs.data_site[m, index]
    sends = (site[:, None] >= 0) & (site[:, None] != static.pool_site[None, :])
    gib = jobs.data_gib[m, index]
    sent_s = np.where(sends, np.ceil(gib * 8.589934592 / world.cluster.transfer_gbps)[:, None], 0.0)
    use = np.where(until >= 0, 1.0, jobs.utilization[m, index])[:, None, None]
    return JobFacts(
        index=index,
        submit_s=submit,
        latest_s=np.where(deferrable, np.maximum(submit, latest_start), submit),
        latest_start_s=latest_start,
        deadline_s=jobs.deadline_s[m, index].astype(np.float64),
        until_s=until,
        start_bound=static.start_bound[jobs.kind[m, index]],
        allowed=allowed,
        run_s=run,
        dynamic_w=dynamic_watts(world, m, index, use),
        share=held * workers[:, None] / (1000.0 * static.pool_gpus),
        held=held,
        per_node=per_node,
        nodes=np.ceil(workers[:, None] / np.maximum(per_node, 1)),
        delay_s=np.maximum(sent_s, static.wake_latency_s.astype(np.float64)),
        sent_s=sent_s,
        sends=sends,
        gpus=jobs.gpu_milli[m, index] * workers / 1000.0,
        workers=workers,
    )


def slot_edges(slot_s: int, horizon_s: float, extra_s: tuple[float, ...]) -> np.ndarray:
    """Edges ``[K + 1]`` from 0 to at least ``horizon_s``: slots of ``slot_s``, long ones after ``UNIFORM_SLOTS``, cut at ``extra_s``."""
    count = int(np.ceil(max(horizon_s, 1.0) / slot_s))
    edges = np.arange(min(count, UNIFORM_SLOTS) + 1, dtype=np.float64) * slot_s
    if count > UNIFORM_SLOTS:
        long_slot = int(np.ceil((count - UNIFORM_SLOTS) / LONG_SLOTS)) * slot_s
        edges = np.concatenate([edges, edges[-1] + np.arange(1, LONG_SLOTS + 1, dtype=np.float64) * long_slot])
    return np.unique(np.concatenate([edges, [time for time in extra_s if 0 < time < edges[-1]]]))


def slot_seconds(step_s: int) -> int:
    """Seconds of a slot: an hour, or the grid step where hours do not fit it."""
    if step_s >= SLOT_S:
        return SLOT_S if step_s % SLOT_S == 0 else step_s
    return step_s if step_s * 2 >= SLOT_S else -(-SLOT_S // step_s) * step_s


def overlap_s(begin: np.ndarray, end: np.ndarray, edges_s: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """Seconds of [begin, end] within slots by number; 0 for slots that do not exist."""
    k = np.clip(slot, 0, len(edges_s) - 2)
    inside = np.minimum(end, edges_s[k + 1]) - np.maximum(begin, edges_s[k])
    return np.where((slot >= 0) & (slot < len(edges_s) - 1), np.maximum(inside, 0.0), 0.0)


def up_node_s(world: World, m: int, edges_s: np.ndarray) -> np.ndarray:
    """Node-seconds of each pool and slot outside outages, float64 ``[P, K]``."""
    static = world.static
    up = static.pool_nodes[:, None] * np.diff(edges_s)[None, :]
    for begin, opens, node, end in world.outages[m] if world.outages else ():
        if opens == 1:
            p = int(static.node_pool[node])
            up[p] -= np.maximum(0.0, np.minimum(end, edges_s[1:]) - np.maximum(begin, edges_s[:-1]))
    return up


@dataclass(frozen=True)
class Nodes:
    """What nodes cost, whatever is scheduled.

    Attributes:
        floor_usd: of all nodes with the watts that no schedule can avoid.
        on_usd: float64 ``[P, K]``, what a node that carries a running job draws beyond that for the whole of a slot; at least 0.
        up: float64 ``[P, K]``, nodes that are up, mean over the slot.
    """

    floor_usd: float
    on_usd: np.ndarray
    up: np.ndarray


def node_costs(world: World, m: int, prices: Prices, edges_s: np.ndarray, sure_s: float, last_s: float) -> Nodes:
    """Floor and cost of nodes, given that the window lasts from ``sure_s`` to ``last_s`` seconds (docs/bound.md, "Nodes").

    Where the price is at least 0 a node draws at least its least state's watts until ``sure_s``, and nothing for sure after it. Where it is
    negative it draws at most its greatest state's watts until ``last_s``.
    """
    static = world.static
    awake = static.node_idle_w + static.pool_gpus * static.gpu_idle_w
    least = np.minimum(np.minimum(awake, static.wake_power_w), static.node_sleep_w)
    most = np.maximum(np.maximum(awake, static.wake_power_w), static.node_sleep_w)
    cuts = np.unique(np.concatenate([prices.edges_s, edges_s, [sure_s], [min(last_s, prices.edges_s[-1])]]))
    cuts = cuts[(cuts >= 0) & (cuts <= prices.edges_s[-1])]
    up = up_node_s(world, m, cuts)
    value = prices.least(cuts, prices.usd_per_kwh)[static.pool_site]  # [P, pieces]: constant in each
    before, alive = cuts[:-1] < sure_s, cuts[:-1] < last_s
    idle_w = np.where(value >= 0, np.where(before, least[:, None], 0.0), np.where(alive, most[:, None], 0.0))
    floor = float((value * idle_w * up).sum()) / WS_PER_KWH
    floor += _beyond(prices, static.pool_site, most * static.pool_nodes, last_s)
    extra = value * (awake[:, None] - np.where(value >= 0, idle_w, most[:, None]))
    pieces = np.searchsorted(edges_s, cuts[:-1], side="right") - 1
    on = np.full((len(awake), len(edges_s) - 1), np.inf)
    for k in np.unique(pieces[(pieces >= 0) & (pieces < on.shape[1])]):
        on[:, k] = extra[:, pieces == k].min(axis=1)
    on = np.where(np.isfinite(on), np.maximum(on, 0.0), 0.0)
    length = np.diff(edges_s)
    return Nodes(floor, on * length / WS_PER_KWH, up_node_s(world, m, edges_s) / length)


def _beyond(prices: Prices, pool_site: np.ndarray, watts: np.ndarray, last_s: float) -> float:
    """USD after the last time looked up, where the held price is negative: the window may go on until ``last_s``."""
    value = prices.usd_per_kwh[pool_site, -1]
    seconds = max(0.0, last_s - float(prices.edges_s[-1]))
    if seconds == 0.0 or not (value < 0).any():
        return 0.0
    return float((value * watts)[value < 0].sum() * seconds) / WS_PER_KWH

"""What the requests of services met: response times, requests beyond the objective, requests shed, energy for each thousand.

The replicas that ran are taken from the event log, each at the speed of its pool and level. Between any two changes of rate or replicas
the queue is taken to be in its steady state (the pointwise stationary approximation, Green and Kolesar 1991): M/M/c with the replicas that
run, at their mean speed. Requests beyond ``admit_utilization`` of their capacity, and all while none runs, are shed; what is shed counts as
beyond the objective. Columns of :func:`service_metrics`, one row for each window and service:

| column | unit | meaning |
|---|---|---|
| ``requests, requests_shed`` | 1 | expected requests from the window's begin to its end, and those shed |
| ``shed_share`` | 0-1 | of all requests |
| ``mean_response_s, p95_response_s`` | s | waiting and service, of the requests served |
| ``beyond_share`` | 0-1 | requests that took longer than the objective, or were shed; with ``mean_response``: while the mean was above it |
| ``replicas_wanted, replicas_running`` | 1 | means over the window |
| ``idle_share`` | 0-1 | of the running replicas' time: the share of their capacity that no request used |
| ``energy_kwh`` | kWh | of the leases, as attributed to jobs (PUE and their share of idle watts included) |
| ``energy_kwh_per_1000_requests`` | kWh | the same for each thousand requests served |
| ``leases, leases_late, leases_withdrawn, leases_rejected`` | 1 | late: first start after the latest start, or withdrawn after it |
| ``interruptions`` | 1 | of running replicas, by outages |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from envs import events as ev
from envs.queueing import erlang_c, mean_response_s, response_beyond, wait_beyond
from envs.services import MEAN_RESPONSE, P95_WAIT, TAIL, ServicePlan
from envs.state import EpisodeTotals
from envs.windows import WindowTables
from envs.world import World

SERVICE_METRICS: tuple[str, ...] = (
    "requests",
    "requests_shed",
    "shed_share",
    "mean_response_s",
    "p95_response_s",
    "beyond_share",
    "replicas_wanted",
    "replicas_running",
    "idle_share",
    "energy_kwh",
    "energy_kwh_per_1000_requests",
    "leases",
    "leases_late",
    "leases_withdrawn",
    "leases_rejected",
    "interruptions",
)
BISECTIONS = 60


def replica_runs(world: World, window: int, events: np.ndarray) -> pd.DataFrame:
    """Runs of the leases of one window.

    Args:
        events: its log, int64 ``[E, 7]`` (``EpisodeTotals.events``).

    Returns:
        ``job, service`` (index in ``World.services[window]``), ``begin_s, end_s, speed`` (relative to the reference GPU), ``interrupted``.
    """
    jobs = world.jobs
    lease = jobs.until_s[window] >= 0
    kinds = np.isin(events[:, 1], (ev.START, ev.END, ev.INTERRUPT)) & (events[:, 2] >= 0)
    rows = events[kinds]
    rows = rows[lease[rows[:, 2]]]
    begun: dict[int, tuple[int, float]] = {}
    runs = []
    for time_s, kind, job, pool, level in rows[:, :5].tolist():
        if kind == ev.START:
            begun[job] = time_s, float(world.static.speed[pool, level, jobs.kind[window, job]])
        elif job in begun:  # one that was only placed has not begun
            begin_s, speed = begun.pop(job)
            runs.append((job, int(jobs.service[window, job]), begin_s, time_s, speed, kind == ev.INTERRUPT))
    assert not begun, f"window {window} was not run to its end"
    return pd.DataFrame(runs, columns=["job", "service", "begin_s", "end_s", "speed", "interrupted"])


def service_metrics(world: World, windows: Sequence[WindowTables], totals: EpisodeTotals, plans: Sequence[ServicePlan]) -> pd.DataFrame:
    """``window, service`` and ``SERVICE_METRICS`` for every window of the world and every service.

    Args:
        windows: those that the world was built of (``envs.services.add_services``).
        totals: with event logs.
    """
    assert totals.events is not None, "services are reported from event logs"
    rows = []
    for m, window in enumerate(windows):
        runs = replica_runs(world, m, totals.events[m])
        for plan in plans:
            place = world.services[m].index(plan.spec.name)
            ours = runs[runs["service"] == place]
            figures = requests_met(plan, int(window.start.timestamp()), max(window.length_s, 1), ours)
            leases = _leases(world, totals, m, place)
            served = figures["requests"] - figures["requests_shed"]
            energy = leases["energy_kwh"]
            leases["energy_kwh_per_1000_requests"] = 1000 * energy / served if served > 0 else float("nan")
            interruptions = int(ours["interrupted"].sum())
            rows.append({"window": m, "service": plan.spec.name, **figures, **leases, "interruptions": interruptions})
    return pd.DataFrame(rows)[["window", "service", *SERVICE_METRICS]]


def _leases(world: World, totals: EpisodeTotals, m: int, place: int) -> dict[str, float]:
    ours = world.jobs.service[m] == place
    return {
        "energy_kwh": float(totals.job_energy_kwh[m, ours].sum()),
        "leases": int(ours.sum()),
        "leases_late": int(totals.job_late_start[m, ours].sum()),
        "leases_withdrawn": int(totals.job_withdrawn[m, ours].sum()),
        "leases_rejected": int((totals.job_rejected[m, ours] > 0).sum()),
    }


def requests_met(plan: ServicePlan, start_s: int, length_s: int, runs: pd.DataFrame) -> dict[str, float]:
    """The metrics of one service that depend on requests.

    Args:
        start_s: UTC seconds of the window's begin.
        runs: ``begin_s, end_s`` (seconds of the window) and ``speed`` of its replicas.
    """
    spec = plan.spec
    seconds, rates, wanted, count, speed = _stretches(plan, start_s, length_s, runs)
    capacity = spec.rate(speed)  # of all replicas that run
    served = np.minimum(rates, spec.admit_utilization * capacity)
    asked, met = rates * seconds, served * seconds
    requests, shed = float(asked.sum()), float((asked - met).sum())
    busy = met > 0
    one = np.where(busy, capacity / np.maximum(count, 1), 1.0)
    waiting = erlang_c(np.where(busy, count, 1), np.where(busy, served / one, 0.0))
    queue = tuple(values[busy] for values in (count, served, one, waiting))
    weight = met[busy]
    mean = mean_response_s(*queue)
    slow = _beyond(plan, queue, mean)
    total = weight.sum()
    running_s = float((count * seconds).sum())
    offered_s = float((seconds * speed).sum())
    return {
        "requests": requests,
        "requests_shed": shed,
        "shed_share": shed / requests if requests > 0 else float("nan"),
        "mean_response_s": float((mean * weight).sum() / total) if total > 0 else float("nan"),
        "p95_response_s": _percentile(queue, weight) if total > 0 else float("nan"),
        "beyond_share": float(((slow * weight).sum() + shed) / requests) if requests > 0 else float("nan"),
        "replicas_wanted": float((wanted * seconds).sum() / length_s),
        "replicas_running": running_s / length_s,
        "idle_share": 1 - float(met.sum()) * spec.service_s / offered_s if offered_s > 0 else float("nan"),
    }


def _beyond(plan: ServicePlan, queue: tuple[np.ndarray, ...], mean: np.ndarray) -> np.ndarray:
    """Share of the served requests of each stretch that took longer than the objective."""
    spec = plan.spec
    if spec.objective == MEAN_RESPONSE:
        return (mean > spec.objective_s).astype(float)
    tail = wait_beyond if spec.objective == P95_WAIT else response_beyond
    return tail(*queue, spec.objective_s)


def _percentile(queue: tuple[np.ndarray, ...], weight: np.ndarray) -> float:
    """Seconds that ``TAIL`` of all served requests take longer than; bisection over the mixture of all stretches."""
    low, high = 0.0, float(1.0 / queue[2].min())
    share = weight / weight.sum()
    while (response_beyond(*queue, high) * share).sum() > TAIL:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if (response_beyond(*queue, middle) * share).sum() > TAIL:
            low = middle
        else:
            high = middle
    return high


def _stretches(plan: ServicePlan, start_s: int, length_s: int, runs: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """Stretches of the window without a change: seconds, rate, wanted and running replicas, and the sum of their speeds; ``[X]``."""
    steps = plan.steps(start_s, start_s + length_s)
    step_at = plan.times[steps] - start_s
    begins, ends = runs["begin_s"].to_numpy(dtype=np.int64), runs["end_s"].to_numpy(dtype=np.int64)
    edges = np.unique(np.clip(np.concatenate([[0, length_s], step_at, begins, ends]), 0, length_s))
    begin, seconds = edges[:-1], np.diff(edges)
    step = np.searchsorted(step_at, begin, side="right") - 1
    by_begin, by_end = np.sort(begins), np.sort(ends)
    count = np.searchsorted(by_begin, begin, side="right") - np.searchsorted(by_end, begin, side="right")
    speeds = runs["speed"].to_numpy(dtype=np.float64)
    begun = np.concatenate([[0.0], np.cumsum(speeds[np.argsort(begins, kind="stable")])])
    over = np.concatenate([[0.0], np.cumsum(speeds[np.argsort(ends, kind="stable")])])
    speed = begun[np.searchsorted(by_begin, begin, side="right")] - over[np.searchsorted(by_end, begin, side="right")]
    return seconds, plan.rates[steps][step], plan.replicas[steps][step], count, np.where(count > 0, speed, 0.0)

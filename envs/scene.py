"""What there is to see of one simulated cluster at a moment, as plain arrays: the facts of a picture, without any drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs import fields as fx
from envs.episodes import episode_totals, job_in_question
from envs.kernel import Simulator
from envs.state import AWAKE, CARBON, IDLE_STATES, PLACED, REJECTED, RUNNING, SLEEPING, WAITING, WAKING
from envs.windows import DAY_S
from telemetry.classes import WORKLOAD_CLASSES

WHOLE = 1000.0
ACTIVE, IDLE, WAKE, SLEEP, DOWN = range(5)
STATE_NAMES: tuple[str, ...] = ("active", "idle", "waking", "sleeping", "down")
POWER_PARTS: tuple[str, ...] = ("running jobs", *IDLE_STATES)


@dataclass(frozen=True)
class PoolScene:
    """One pool: ``mode`` int ``[N]`` of each node (``STATE_NAMES``), ``share`` float ``[N, G, K]`` of each GPU that each class holds."""

    name: str
    gpu_model: str
    site: str
    mode: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class SiteScene:
    """One site: ``watts`` ``[4]`` by ``POWER_PARTS``, PUE included; price and carbon of the last 24 h, now, and the next 24 h by forecast.

    ``usd_per_kwh`` and ``g_per_kwh`` are ``[2 D]`` with D steps a day; value D - 1 is in force now.
    """

    name: str
    watts: np.ndarray
    usd_per_kwh: np.ndarray
    g_per_kwh: np.ndarray


@dataclass(frozen=True)
class CandidateScene:
    """One allowed action; ``label`` names the pool and its power limit. Expected figures are those that the look-ahead judge sees;
    ``usd`` is None while the question is not priced.
    """

    name: str
    label: str
    usd: float | None
    kwh: float
    start_s: int
    end_s: int


@dataclass(frozen=True)
class QuestionScene:
    """The job in question; times in seconds of the window."""

    job_id: str
    workload_class: str
    gpus: float
    workers: int
    estimate_s: int
    submit_s: int
    latest_start_s: int
    deadline_s: int
    candidates: tuple[CandidateScene, ...]


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows; ``waiting`` and ``waiting_gpus`` are ``[K]`` by class."""

    window: int
    time_s: int
    time: pd.Timestamp
    step_s: int
    pools: tuple[PoolScene, ...]
    sites: tuple[SiteScene, ...]
    waiting: np.ndarray
    waiting_gpus: np.ndarray
    jobs: dict[str, int]
    totals: dict[str, float]
    question: QuestionScene | None
    done: bool


def scene_of(simulator: Simulator, b: int) -> Scene:
    """The scene of environment ``b``."""
    world, state = simulator.world, simulator.state
    window, now = int(state.window[b]), int(state.time_s[b])
    count = int(world.jobs.count[window])
    status = state.status[b, :count]
    kind = world.jobs.kind[window, :count]
    gpus = world.jobs.workers[window, :count] * world.jobs.gpu_milli[window, :count] / WHOLE
    waits = status == WAITING
    numbers = {"waiting": waits, "running": status == RUNNING, "starting": status == PLACED, "rejected": status == REJECTED}
    totals = {name: float(value) for name, value in episode_totals(simulator, b).items()}
    return Scene(
        window=window,
        time_s=now,
        time=world.window_start[window] + pd.Timedelta(seconds=now),
        step_s=int(world.grid.step_s[window]),
        pools=_pools(simulator, b),
        sites=_sites(simulator, b),
        waiting=np.bincount(kind[waits], minlength=len(WORKLOAD_CLASSES)),
        waiting_gpus=np.bincount(kind[waits], weights=gpus[waits], minlength=len(WORKLOAD_CLASSES)),
        jobs={"submitted": int(state.arrived[b]), "ended": int((state.end_s[b, :count] >= 0).sum())}
        | {name: int(which.sum()) for name, which in numbers.items()},
        totals=totals | {"carbon_kg": float(state.site_totals[b, :, CARBON].sum())},
        question=_question(simulator, b),
        done=bool(simulator.done[b]),
    )


def gpu_shares(simulator: Simulator, b: int) -> np.ndarray:
    """Share of every GPU of the cluster that jobs of each class hold, float64 ``[GPUs, K]``; placed jobs count from their placement."""
    world, state = simulator.world, simulator.state
    window = int(state.window[b])
    count = int(world.jobs.count[window])
    shares = np.zeros((state.gpu_free.shape[1], len(WORKLOAD_CLASSES)))
    job = np.flatnonzero(np.isin(state.status[b, :count], (PLACED, RUNNING)))
    record = state.record_head[b, job]
    node_of, bits_of, next_of = state.record_node[b], state.record_bits[b], state.record_next[b]
    gpu_of = state.record_gpu[b] - np.where(state.record_gpu[b] >= 0, int(simulator.packed_world.o[fx.I_GPU]), 0)
    places = np.arange(int(world.static.pool_gpus.max()))
    # a job's workers are a linked list: every round takes the next worker of all jobs that have one
    while len(record):
        kind, gpu = world.jobs.kind[window, job], gpu_of[record]
        part = gpu >= 0
        np.add.at(shares, (gpu[part], kind[part]), world.jobs.gpu_milli[window, job[part]] / WHOLE)
        taken = (bits_of[record[~part], None] >> places & 1).astype(bool)
        first = world.static.node_first_gpu[node_of[record[~part]]]
        row, place = np.nonzero(taken)
        shares[first[row] + place, kind[~part][row]] = 1.0
        record = next_of[record]
        job, record = job[record >= 0], record[record >= 0]
    return shares


def site_watts(simulator: Simulator, b: int) -> np.ndarray:
    """Watts of every site now, PUE included, float64 ``[S, 4]`` by ``POWER_PARTS`` (the parts that docs/simulator.md charges)."""
    world, state = simulator.world, simulator.state
    parts = (state.dynamic_nw + state.shared_nw, state.awake_site_nw - state.shared_nw, state.waking_site_nw, state.sleeping_site_nw)
    watts = np.stack([part[b] for part in parts], axis=1) * 1e-9
    return watts * world.grid.pue[int(state.window[b]), :, grid_column(simulator, b)][:, None]


def grid_column(simulator: Simulator, b: int) -> int:
    """Grid column in force in environment ``b``; the last one is held."""
    grid, window = simulator.world.grid, int(simulator.state.window[b])
    at = int(grid.history_steps[window]) + int(simulator.time_s[b]) // int(grid.step_s[window])
    return min(at, grid.price.shape[2] - 1)


def _pools(simulator: Simulator, b: int) -> tuple[PoolScene, ...]:
    world, static = simulator.world, simulator.world.static
    shares, node_state = gpu_shares(simulator, b), simulator.state.node_state[b]
    pools = []
    for p, spec in enumerate(world.cluster.pools):
        nodes = slice(int(static.pool_first_node[p]), int(static.pool_first_node[p]) + spec.nodes)
        gpu = int(static.node_first_gpu[nodes.start])
        share = shares[gpu : gpu + spec.nodes * spec.gpus_per_node].reshape(spec.nodes, spec.gpus_per_node, -1)
        known = node_state[nodes]
        used = share.sum(axis=(1, 2)) > 0
        mode = np.select([known == WAKING, known == SLEEPING, (known == AWAKE) & used, known == AWAKE], [WAKE, SLEEP, ACTIVE, IDLE], DOWN)
        pools.append(PoolScene(spec.name, spec.gpu_model, spec.site, mode, share))
    return tuple(pools)


def _sites(simulator: Simulator, b: int) -> tuple[SiteScene, ...]:
    world, grid = simulator.world, simulator.world.grid
    window, column = int(simulator.state.window[b]), grid_column(simulator, b)
    day = DAY_S // int(grid.step_s[window])
    known = np.arange(column + 1 - day, column + 1)
    seen = np.concatenate([known, known])  # the forecast of a policy: the last 24 h again
    watts = site_watts(simulator, b)
    return tuple(
        SiteScene(site.name, watts[s], grid.price[window, s, seen], grid.carbon[window, s, seen] * 1000.0)
        for s, site in enumerate(world.cluster.sites)
    )


def _question(simulator: Simulator, b: int) -> QuestionScene | None:
    world, state = simulator.world, simulator.state
    window, job = int(state.window[b]), int(state.asking[b])
    job_id = job_in_question(simulator, b)
    if job_id is None:
        return None
    jobs = world.jobs
    priced = bool(state.scored[b])
    candidates = tuple(
        CandidateScene(
            simulator.layout.action_name(int(a)),
            _label(simulator, int(a)),
            float(state.expected_usd[b, a]) if priced else None,
            float(state.expected_kwh[b, a]),
            int(state.expected_start_s[b, a]),
            int(state.expected_end_s[b, a]),
        )
        for a in np.flatnonzero(simulator.mask[b])
    )
    return QuestionScene(
        job_id=job_id,
        workload_class=WORKLOAD_CLASSES[int(jobs.kind[window, job])],
        gpus=float(jobs.gpu_milli[window, job]) / WHOLE,
        workers=int(jobs.workers[window, job]),
        estimate_s=int(jobs.estimate_s[window, job]),
        submit_s=int(jobs.submit_s[window, job]),
        latest_start_s=int(jobs.latest_start_s[window, job]),
        deadline_s=int(jobs.deadline_s[window, job]),
        candidates=candidates,
    )


def _label(simulator: Simulator, action: int) -> str:
    if action == 0:
        return "hold"
    cluster = simulator.world.cluster
    pool, level = divmod(action - 1, len(cluster.level_fractions))
    return f"{cluster.pools[pool].name} at {100 * cluster.level_fractions[level]:.0f} %"

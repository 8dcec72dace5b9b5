"""Why a job missed its objective: the time from submission to start or end, taken apart by what the log and the state of the cluster tell.

The parts of a job's waits add up to its wait; those of its run to what it ran longer than its estimate at its fastest place. The largest
part is the main cause. What the log does not explain is ``unknown``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.replay.capacity import Room
from envs.replay.facts import Facts
from envs.replay.history import History
from envs.replay.recompute import Recomputed, transfers_of
from envs.replay.waits import BLOCKED, HELD, PAUSED, STARTING, waits_of
from envs.world_arrays import REJECT_REASONS

CAUSES: dict[str, str] = {
    "held": "the policy held the job although a run was allowed, until its hold ended and a run was possible again",
    "blocked_after_hold": "no run was allowed when the policy's hold was over",
    "no_free_gpus": "too few GPUs were free in every pool that may run the job",
    "passed_by_later_jobs": "too few GPUs were free, and jobs submitted later had taken enough of them",
    "fragmentation": "enough GPUs were free in a pool, but not together on nodes as the job needs them",
    "queue_order": "the job would have fitted, but the queue discipline kept it behind another",
    "other_limits": "the job would have fitted by GPUs; CPUs, memory or a power budget of the pool may have refused it",
    "node_wake": "placed, and waiting for a sleeping node to wake",
    "data_transfer": "placed, and waiting for its data from another site",
    "paused": "paused by the policy",
    "lower_power_level": "ran longer than at full power in the same pool",
    "slower_pool": "ran longer than in the fastest pool that may run it",
    "interrupted": "repeated work or reloaded a checkpoint after an interruption, pause or migration",
    "underestimated_duration": "ran longer than the estimate from which the policy and the deadline were made",
    "impossible_objective": "even started at once at the fastest place, the estimated run ends after the deadline",
    "unknown": "the log does not tell",
}
REJECTIONS: dict[str, str] = {
    "no_gpu_model": "no pool has the GPU model that the job asks for",
    "too_large": "no pool, even empty, could place the gang",
    "max_watts": "no power level of any pool that could place it keeps the job within its max_watts",
}
PARTS = tuple(name for name in CAUSES if name != "impossible_objective")
RUN_PARTS = ("lower_power_level", "slower_pool", "interrupted", "underestimated_duration")
MISS_COLUMNS = ("job", "job_id", "workload_class", "miss", "at_s", "over_s", "cause", "alone", "penalty_usd", "needed_run_s")


@dataclass(frozen=True)
class _Case:
    facts: Facts
    history: History
    room: Room
    levels: np.ndarray  # int64 [J, P]
    speed: np.ndarray  # float64 [P, L, K]
    waits: dict[int, pd.DataFrame]
    moved: dict[int, int]  # job -> second of its first placement that sent data


def misses_of(events: pd.DataFrame, facts: Facts, history: History, found: Recomputed, room: Room) -> pd.DataFrame:
    """One row for each objective that a job missed: ``MISS_COLUMNS`` and seconds of each of ``PARTS`` (``<part>_s``), worst first.

    ``miss`` is ``rejected`` (``cause`` = the reason), ``late_start`` (also of a lease withdrawn unserved) or ``missed_deadline``;
    ``at_s`` the second at which the objective was lost, ``over_s`` by how much it was missed, ``alone`` whether the job would have met it
    without the named part alone, ``needed_run_s`` the run time by estimate at the fastest place.
    """
    case = _case(events, facts, history, found, room)
    rows: list[dict[str, object]] = []
    for job in np.flatnonzero(found.jobs["rejected"] > 0):
        reason = REJECT_REASONS.get(int(found.jobs["rejected"].iloc[job]), "unknown")
        rows.append(_row(case, job, "rejected", int(facts.jobs["submit_s"].iloc[job]), 0, reason, False, {}))
    for job in np.flatnonzero(found.jobs["late_start"]):
        until = int(found.jobs["start_s"].iloc[job])
        left = events.loc[(events["job"] == job) & (events["event"] == "withdraw"), "time_s"]
        until = int(left.iloc[0]) if until < 0 else until
        limit = int(facts.jobs["latest_start_s"].iloc[job])
        rows.append(_judged(case, job, "late_start", limit, until, _waiting(case, job, until)))
    for job in np.flatnonzero(found.jobs["missed_deadline"]):
        until, limit = int(found.jobs["end_s"].iloc[job]), int(facts.jobs["deadline_s"].iloc[job])
        rows.append(_judged(case, job, "missed_deadline", limit, until, _waiting(case, job, until) | _running(case, job)))
    table = pd.DataFrame(rows, columns=[*MISS_COLUMNS, *(f"{part}_s" for part in PARTS)])
    table["penalty_usd"] = found.jobs["penalty_usd"].to_numpy()[table["job"].to_numpy(dtype=np.int64)]
    return table.sort_values(["penalty_usd", "over_s", "job"], ascending=[False, False, True], kind="stable", ignore_index=True)


def _case(events: pd.DataFrame, facts: Facts, history: History, found: Recomputed, room: Room) -> _Case:
    pools, levels = len(facts.pools), len(facts.level_fractions)
    speed = facts.curves.sort_values(["pool", "level", "curve"])["speed"].to_numpy().reshape(pools, levels, -1)
    allowed = np.array([*facts.jobs["levels"]], dtype=np.int64).reshape(len(facts.jobs), pools)
    wanted = np.flatnonzero(found.jobs["late_start"] | found.jobs["missed_deadline"])
    spans = waits_of(events[events["job"].isin(wanted)])
    moved: dict[int, int] = {}
    for now, job, _site, _kwh in transfers_of(events, facts):
        moved.setdefault(job, now)
    return _Case(facts, history, room, allowed, speed, dict(iter(spans.groupby("job"))), moved)


def _row(case: _Case, job: int, miss: str, at: int, over: int, cause: str, alone: bool, parts: dict[str, float]) -> dict[str, object]:
    work = case.facts.jobs
    told = {f"{part}_s": float(parts.get(part, 0.0)) for part in PARTS}
    named = {"job": int(job), "job_id": work["job_id"].iloc[job], "workload_class": work["workload_class"].iloc[job]}
    return named | {"miss": miss, "at_s": at, "over_s": over, "cause": cause, "alone": alone, "needed_run_s": _needed(case, job)} | told


def _judged(case: _Case, job: int, miss: str, limit: int, until: int, parts: dict[str, float]) -> dict[str, object]:
    work = case.facts.jobs.iloc[job]
    over = until - limit
    needed = _needed(case, job)
    if miss == "missed_deadline" and work["submit_s"] + needed > limit:
        return _row(case, job, miss, limit, over, "impossible_objective", False, parts)
    weights = dict(parts)
    weights["held"] = weights.get("held", 0.0) + weights.get("blocked_after_hold", 0.0)  # both follow from the choice to hold
    weights.pop("blocked_after_hold", None)
    cause = max(weights, key=lambda name: weights[name]) if weights and max(weights.values()) > 0 else "unknown"
    return _row(case, job, miss, limit, over, cause, weights.get(cause, 0.0) >= over, parts)


# ---------------------------------------------------------------- waiting


def _waiting(case: _Case, job: int, until: int) -> dict[str, float]:
    """Seconds of every wait before ``until``; they add up to its waits."""
    parts: dict[str, float] = {}
    held = False
    for waiting, begin, end in case.waits.get(job, pd.DataFrame(columns=["job", "waiting", "begin_s", "end_s"])).to_numpy()[:, 1:]:
        begin, end = int(begin), min(int(end), until)
        if end <= begin:
            continue
        if waiting == BLOCKED and held:
            _add(parts, "blocked_after_hold", end - begin)
        elif waiting == BLOCKED:
            for cause, seconds in _blocked(case, job, begin, end).items():
                _add(parts, cause, seconds)
        elif waiting == STARTING:
            _starting(case, job, begin, end, parts)
        else:
            _add(parts, {HELD: "held", PAUSED: "paused"}[waiting], end - begin)
        held = waiting == HELD or (held and waiting == BLOCKED)
    return parts


def _add(parts: dict[str, float], cause: str, seconds: float) -> None:
    parts[cause] = parts.get(cause, 0.0) + float(seconds)


def _starting(case: _Case, job: int, begin: int, end: int, parts: dict[str, float]) -> None:
    """A placed job waits for nodes to wake and, when data was sent, for the data: whichever comes last."""
    if case.moved.get(job) != begin:
        _add(parts, "node_wake", end - begin)
        return
    stays = case.history.stays
    pool = int(stays.loc[(stays["job"] == job) & (stays["run_s"] == begin), "pool"].iloc[0])
    longest_wake = int(case.facts.pools["wake_latency_s"].iloc[pool])
    _add(parts, "data_transfer" if end - begin > longest_wake else "unknown", end - begin)


def _blocked(case: _Case, job: int, begin: int, end: int) -> dict[str, float]:
    """A blocked time by the state of the cluster in it."""
    room = case.room
    first, last, seconds = room.spans(begin, end)
    pools = np.flatnonzero(case.levels[job])
    workers = int(case.facts.jobs["workers"].iloc[job])
    later = _later(case, job, begin, end)
    enough, fits, without_later = (np.zeros(last - first, dtype=bool) for _ in range(3))
    for pool in pools:
        need = room.held(job, pool) * workers
        free = room.free_milli[first:last, pool]
        enough |= free >= need
        without_later |= free + later[pool] >= need
        fit = room.fits(job, pool)
        fits |= (free >= need) & (case.facts.settings.discipline != "free") if fit is None else fit[first:last]
    fitting = "queue_order" if case.facts.settings.discipline != "free" else "other_limits" if _limited(case, pools) else "unknown"
    parts = {
        fitting: seconds[fits].sum(),
        "fragmentation": seconds[~fits & enough].sum(),
        "passed_by_later_jobs": seconds[~fits & ~enough & without_later].sum(),
        "no_free_gpus": seconds[~fits & ~enough & ~without_later].sum(),
    }
    return {name: float(value) for name, value in parts.items() if value > 0}


def _later(case: _Case, job: int, begin: int, end: int) -> dict[int, np.ndarray]:
    """By pool, thousandths held in each row by jobs that were submitted later and placed while this one was blocked."""
    room, stays = case.room, case.history.stays
    first, last, _ = room.spans(begin, end)
    run = stays["run_s"].to_numpy(dtype=np.int64)
    low, high = np.searchsorted(run, [begin, end])  # the log is in order of time
    held: dict[int, np.ndarray] = {}
    job_of, pool_of, stop = (stays[name].to_numpy(dtype=np.int64)[low:high] for name in ("job", "pool", "stop_s"))
    workers = case.facts.jobs["workers"].to_numpy()
    for pool in np.flatnonzero(case.levels[job]):
        rows = np.flatnonzero((pool_of == pool) & (job_of > job))
        milli = np.array([room.held(int(other), int(pool)) * workers[other] for other in job_of[rows]], dtype=np.int64)
        change = np.zeros(last - first + 1, dtype=np.int64)
        begins = np.clip(np.searchsorted(room.times, run[low:high][rows], side="left") - first, 0, last - first)
        ends = np.clip(np.searchsorted(room.times, stop[rows], side="left") - first, 0, last - first)
        np.add.at(change, begins, milli)
        np.add.at(change, ends, -milli)
        held[int(pool)] = np.cumsum(change)[:-1]
    return held


def _limited(case: _Case, pools: np.ndarray) -> bool:
    limits = [name for name in ("cpus_per_node", "memory_gib_per_node", "rack_budget_w") if name in case.facts.pools]
    return bool((case.facts.pools[limits].to_numpy()[pools] > 0).any())


# ---------------------------------------------------------------- running


def _fastest(case: _Case, job: int) -> float:
    """Speed of the fastest place that may run the job."""
    curve = int(case.facts.jobs["curve"].iloc[job])
    bits = case.levels[job][:, None] >> np.arange(case.speed.shape[1]) & 1
    return float((case.speed[:, :, curve] * bits).max())


def _needed(case: _Case, job: int) -> float:
    best = _fastest(case, job)
    return float(case.facts.jobs["estimate_s"].iloc[job]) / best if best > 0 else float("nan")


def _running(case: _Case, job: int) -> dict[str, float]:
    """Seconds by which the job ran longer than its estimate at its fastest place."""
    work, segments = case.facts.jobs.iloc[job], case.history.segments
    of = segments[segments["job"] == job]
    seconds = (of["end_s"] - of["begin_s"]).to_numpy(dtype=float)
    pool, level, curve = of["pool"].to_numpy(dtype=int), of["level"].to_numpy(dtype=int), int(work["curve"])
    best, full = _fastest(case, job), case.speed[pool, 0, curve]
    done = seconds * case.speed[pool, level, curve]  # reference seconds
    restarted = len(case.history.stays[case.history.stays["job"] == job]) > 1
    again = max(0.0, done.sum() - float(work["duration_s"])) if restarted else 0.0
    parts = {
        "lower_power_level": float((seconds - done / full).sum()),
        "slower_pool": float((done / full - done / best).sum()),
        "interrupted": again / best,
        "underestimated_duration": max(0.0, float(done.sum()) - again - float(work["estimate_s"])) / best,
    }
    return {name: value for name, value in parts.items() if value > 0}

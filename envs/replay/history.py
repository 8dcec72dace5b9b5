"""From rows of a log to spans of time: what state each node was in, and when each job waited, held its place and ran."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.replay.facts import Facts
from telemetry.errors import InputError

AWAKE, WAKING, SLEEPING, DOWN = "awake", "waking", "sleeping", "down"
NODE_STATE_AFTER = {"sleep": SLEEPING, "wake": WAKING, "wake_done": AWAKE, "node_down": DOWN, "node_up": AWAKE}
PLACING = ("run", "migrate")
STOPPING = ("end", "pause", "interrupt", "migrate")
EVENTS = frozenset({*NODE_STATE_AFTER, *PLACING, *STOPPING, "start", "level", "arrive", "reject", "hold", "withdraw", "grid"})


@dataclass(frozen=True)
class History:
    """Spans of one window; each begins at ``begin_s`` and ends before ``end_s``.

    Attributes:
        end_s: second of the last event.
        nodes: ``node, pool, state, begin_s, end_s``, without empty spans.
        stays: one row each time a job took a place: ``job, pool, run_s, start_s`` (-1 when it was interrupted before it started),
            ``stop_s, ending`` (``end``, ``pause``, ``interrupt`` or ``migrate``), ``row`` of the log.
        segments: runs at one level: ``job, stay`` (row of ``stays``), ``pool, level, begin_s, end_s``.
        holds: ``job, begin_s, end_s``: a policy held the job.
    """

    end_s: int
    nodes: pd.DataFrame
    stays: pd.DataFrame
    segments: pd.DataFrame
    holds: pd.DataFrame


def history_of(events: pd.DataFrame, facts: Facts) -> History:
    """Read the log once.

    Raises:
        InputError: an unknown event, or one that cannot follow those before it, with its row.
    """
    unknown = sorted(set(events["event"]) - EVENTS)
    if unknown:
        raise InputError(f"unknown event '{unknown[0]}'", where="event log", allowed=", ".join(sorted(EVENTS)))
    end_s = int(events["time_s"].iloc[-1]) if len(events) else 0
    stays, segments = _runs(events)
    return History(end_s, _nodes(events, facts, end_s), stays, segments, _holds(events))


def _nodes(events: pd.DataFrame, facts: Facts, end_s: int) -> pd.DataFrame:
    """All nodes are awake at second 0, unless an event of that second says otherwise."""
    pool = facts.node_pool
    changes = events[events["event"].isin(NODE_STATE_AFTER)]
    count = len(pool)
    node = np.concatenate([np.arange(count), changes["node"].to_numpy()])
    begin = np.concatenate([np.zeros(count, dtype=np.int64), changes["time_s"].to_numpy()])
    state = np.concatenate([np.full(count, AWAKE, dtype=object), changes["event"].map(NODE_STATE_AFTER).to_numpy(dtype=object)])
    order = np.argsort(node, kind="stable")
    node, begin, state = node[order], begin[order], state[order]
    last = np.append(node[1:] != node[:-1], True)
    end = np.where(last, end_s, np.append(begin[1:], end_s))
    kept = end > begin
    return pd.DataFrame({"node": node, "pool": pool[node], "state": state, "begin_s": begin, "end_s": end})[kept].reset_index(drop=True)


def _runs(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    stays: list[dict[str, object]] = []
    segments: list[tuple[int, int, int, int, int, int]] = []
    place: dict[int, int] = {}
    level: dict[int, int] = {}
    begun: dict[int, int] = {}

    def close(job: int, now: int) -> None:
        if job in begun:
            begin = begun.pop(job)
            if now > begin:
                segments.append((job, place[job], int(stays[place[job]]["pool"]), level[job], begin, now))

    wanted = events[events["event"].isin({*PLACING, *STOPPING, "start", "level"})]
    columns = (wanted[name].to_numpy() for name in ("time_s", "event", "job", "pool", "level"))
    for row, now, event, job, pool, at_level in zip(wanted.index.to_numpy(), *columns, strict=True):
        now, job, pool, at_level = int(now), int(job), int(pool), int(at_level)
        if (job in place) == (event == "run"):
            raise InputError(f"'{event}' of job {job} at second {now}", where=f"event log, row {row}", remedy="the log is incomplete")
        if event in STOPPING:
            close(job, now)
            stays[place.pop(job)].update(stop_s=now, ending=event)
        if event in PLACING:
            place[job], level[job] = len(stays), at_level
            stays.append({"job": job, "pool": pool, "run_s": now, "start_s": -1, "stop_s": -1, "ending": "", "row": int(row)})
        elif event == "start":
            begun[job] = now
            stays[place[job]]["start_s"] = now
        elif event == "level":
            close(job, now)
            begun[job], level[job] = now, at_level
    if place:
        job = min(place)
        raise InputError(f"job {job} never ends", where="event log", remedy="replay the window to its end")
    names = ("job", "pool", "run_s", "start_s", "stop_s", "ending", "row")
    whole = {name: np.int64 for name in names if name != "ending"}  # an empty table has types too
    table = pd.DataFrame(stays, columns=list(names)).astype(whole)
    return table, pd.DataFrame(segments, columns=["job", "stay", "pool", "level", "begin_s", "end_s"]).astype(np.int64)


def _holds(events: pd.DataFrame) -> pd.DataFrame:
    holds = events[events["event"] == "hold"]
    table = pd.DataFrame({"job": holds["job"], "begin_s": holds["time_s"], "end_s": holds["extra"]})
    return table.reset_index(drop=True)

"""The cluster state file: what the runtime sees of a cluster at one moment.

One JSON object; times are ISO 8601 with zone::

    {
      "time": "2026-02-10T08:00:00Z",
      "cluster": {...},            as in conf/cluster; may be left out: then the cluster that the policy was made for
      "nodes": [                   every node, once
        {"name": "west-v100-0000", "state": "awake", "idle_since": "..."},          idle_since only without jobs, optional
        {"name": "west-v100-0001", "state": "waking", "ready_at": "..."},
        {"name": "west-v100-0002", "state": "sleeping"},
        {"name": "west-v100-0003", "state": "unavailable"}                          cordoned, failed, in maintenance
      ],
      "running": [                 canonical job fields and where each runs: one node name a worker
        {"job_id": "...", "gpus": 2, "workers": 1, "workload_class": "training", "submit_time": "...", "requested_duration_s": 7200,
         "pool": "west-v100", "level": 0, "started": "...", "nodes": ["west-v100-0000"]}
      ],
      "queue": [                   canonical jobs that wait; ask_again only for jobs that were held
        {"job_id": "...", "gpus": 1, "workload_class": "interactive", "submit_time": "...", "ask_again": "..."}
      ],
      "grid": [                    now and history, best 24 hours or more; later rows are left out
        {"time": "...", "site": "west", "price_usd_per_kwh": 0.11, "carbon_g_per_kwh": 240, "renewable_fraction": 0.4, "temperature_c": 9}
      ],
      "last_decision": "...",      optional
      "history": [                 optional: newest observations for the forecasters
        {"unique_id": "gpu_demand/west-v100", "ds": "...", "y": 11}
      ]
    }
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from envs.cluster import ClusterSpec
from envs.cluster_io import cluster_from_mapping
from envs.snapshot import NodeNow, Placement, Snapshot
from runtime.jobs import JobRefusedError, JobRequest, parse_job
from telemetry.errors import InputError

KEYS = ("time", "cluster", "nodes", "running", "queue", "grid", "last_decision", "history")
PLACE_KEYS = ("pool", "level", "started", "nodes")


@dataclass(frozen=True)
class StateFile:
    """A state file, read and checked; ``cluster`` is None when the file leaves it to the policy."""

    time: pd.Timestamp
    cluster: ClusterSpec | None
    nodes: tuple[NodeNow, ...]
    running: tuple[tuple[JobRequest, Placement], ...]
    queue: tuple[tuple[JobRequest, pd.Timestamp | None], ...]
    grid: pd.DataFrame
    last_decision: pd.Timestamp | None
    history: pd.DataFrame

    def snapshot(self, asking: JobRequest, cluster: ClusterSpec) -> Snapshot:
        """The cluster with ``asking`` in its queue; an entry of the same id in the queue gives way to it.

        Raises:
            InputError: a job of that id is running.
        """
        if any(job.job_id == asking.job_id for job, _ in self.running):
            raise InputError("is running already", where=f"job '{asking.job_id}'")
        waiting = [(job, until) for job, until in self.queue if job.job_id != asking.job_id]
        rows = [job.row(self.time) for job in (*(job for job, _ in self.running), *(job for job, _ in waiting), asking)]
        return Snapshot(
            cluster=cluster,
            time=self.time,
            nodes=self.nodes,
            jobs=pd.DataFrame(rows),
            placements={job.job_id: place for job, place in self.running},
            asleep_until={job.job_id: until for job, until in waiting if until is not None},
            grid=self.grid,
            last_decision=self.last_decision,
        )


def read_state(path: Path) -> StateFile:
    """Read a state file.

    Raises:
        InputError: unreadable, unknown or missing keys, or a value that is not what the key needs; with file and entry.
    """
    where = str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"is not JSON ({error})", where=where) from error
    _keys(content, KEYS, ("time", "nodes", "grid"), where)
    cluster = content.get("cluster")
    return StateFile(
        time=time_of(content["time"], f"{where}, time"),
        cluster=None if cluster is None else cluster_from_mapping(cluster, f"{where}, cluster"),
        nodes=tuple(_node(item, f"{where}, nodes[{i}]") for i, item in enumerate(_list(content, "nodes", where))),
        running=tuple(_running(item, f"{where}, running[{i}]") for i, item in enumerate(_list(content, "running", where))),
        queue=tuple(_waiting(item, f"{where}, queue[{i}]") for i, item in enumerate(_list(content, "queue", where))),
        grid=_grid(_list(content, "grid", where), f"{where}, grid"),
        last_decision=_optional_time(content, "last_decision", where),
        history=_history(_list(content, "history", where), f"{where}, history"),
    )


def _keys(content: Any, known: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
    if not isinstance(content, Mapping):
        raise InputError(f"{type(content).__name__}", where=where, allowed="a JSON object")
    if unknown := sorted(set(content) - set(known)):
        raise InputError(f"unknown key '{unknown[0]}'", where=where, allowed=", ".join(known))
    if missing := [key for key in needed if key not in content]:
        raise InputError(f"key '{missing[0]}' missing", where=where, allowed=", ".join(known))


def _list(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = content.get(key) or []
    if not isinstance(value, list):
        raise InputError(f"{type(value).__name__}", where=f"{where}, {key}", allowed="a list")
    return value


def time_of(value: Any, where: str) -> pd.Timestamp:
    """A time with zone, as UTC in whole seconds. Raises InputError."""
    try:
        moment = pd.Timestamp(value) if isinstance(value, str) else pd.NaT
    except ValueError:
        moment = pd.NaT
    if moment is pd.NaT or moment.tzinfo is None:
        raise InputError(f"{value!r}", where=where, allowed="a time with zone, such as 2026-02-10T08:00:00Z")
    return moment.tz_convert("UTC").floor("s")


def _optional_time(content: Mapping[str, Any], key: str, where: str) -> pd.Timestamp | None:
    return None if content.get(key) is None else time_of(content[key], f"{where}, {key}")


def _node(item: Any, where: str) -> NodeNow:
    _keys(item, ("name", "state", "idle_since", "ready_at"), ("name", "state"), where)
    if item["state"] == "waking" and item.get("ready_at") is None:
        raise InputError("a waking node without ready_at", where=where)
    return NodeNow(
        str(item["name"]), str(item["state"]), _optional_time(item, "idle_since", where), _optional_time(item, "ready_at", where)
    )


def _job(item: Mapping[str, Any], drop: tuple[str, ...], where: str) -> JobRequest:
    try:
        return parse_job({key: value for key, value in item.items() if key not in drop})
    except JobRefusedError as error:
        raise InputError(str(error), where=where) from error


def _running(item: Any, where: str) -> tuple[JobRequest, Placement]:
    if not isinstance(item, Mapping) or any(key not in item for key in PLACE_KEYS):
        raise InputError("pool, level, started and nodes are needed", where=where)
    started = time_of(item["started"], f"{where}, started")
    if isinstance(item["level"], bool) or not isinstance(item["level"], int) or not isinstance(item["nodes"], list):
        raise InputError("level is a whole number and nodes a list", where=where)
    job = _job({"submit_time": started.isoformat(), **item}, PLACE_KEYS, where)
    return job, Placement(str(item["pool"]), item["level"], started, tuple(map(str, item["nodes"])))


def _waiting(item: Any, where: str) -> tuple[JobRequest, pd.Timestamp | None]:
    if not isinstance(item, Mapping):
        raise InputError(f"{type(item).__name__}", where=where, allowed="a JSON object")
    return _job(item, ("ask_again",), where), _optional_time(item, "ask_again", where)


def _grid(rows: list[Any], where: str) -> pd.DataFrame:
    for index, row in enumerate(rows):
        known = ("time", "site", "price_usd_per_kwh", "carbon_g_per_kwh", "renewable_fraction", "temperature_c")
        _keys(row, known, known[:4], f"{where}[{index}]")
    table = pd.DataFrame(rows)
    if not table.empty:
        table["time"] = [time_of(value, f"{where}[{index}], time") for index, value in enumerate(table["time"])]
    return table


def _history(rows: list[Any], where: str) -> pd.DataFrame:
    for index, row in enumerate(rows):
        _keys(row, ("unique_id", "ds", "y"), ("unique_id", "ds", "y"), f"{where}[{index}]")
        if isinstance(row["y"], bool) or not isinstance(row["y"], (int, float)):
            raise InputError(f"y {row['y']!r}", where=f"{where}[{index}]", allowed="a number")
    table = pd.DataFrame(rows, columns=["unique_id", "ds", "y"])
    moments = [time_of(value, f"{where}[{index}], ds") for index, value in enumerate(table["ds"])]
    return table.assign(ds=pd.DatetimeIndex(moments, dtype="datetime64[ns, UTC]").tz_localize(None), y=table["y"].astype(float))

"""Power of a replayed window at every level: GPU -> node -> pool -> site, as series of mean watts whose sums agree.

============================ ==================================================================================================
series                       mean watts in the bin that ends at ``ds``
============================ ==================================================================================================
``power/gpu/NODE/DEVICE``    the board: idle while the node is awake, and what its jobs draw beyond that by their measured curves
``power/host/NODE``          the rest of the node: its own idle watts, CPUs of its jobs, all of it while it wakes or sleeps
``power/node/NODE``          host and GPUs together; ``power/pool/POOL`` and ``power/site/SITE`` are sums of nodes, without PUE
============================ ==================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.replay.facts import Facts
from envs.replay.history import AWAKE, SLEEPING, WAKING, History, history_of
from envs.replay.placement import place_workers
from envs.replay.recompute import job_gpus, job_watts
from telemetry.errors import InputError


@dataclass(frozen=True)
class LevelPower:
    """``frame``: ``unique_id, ds`` (tz-naive UTC), ``y`` in W; ``parents``: series -> the series that it is a part of."""

    frame: pd.DataFrame
    parents: dict[str, str]


@dataclass(frozen=True)
class _Bins:
    """Equal bins of ``step_s`` seconds from second 0; only whole ones."""

    step_s: int
    count: int

    def mean_watts(self, key: np.ndarray, keys: int, begin: np.ndarray, end: np.ndarray, watts: np.ndarray) -> np.ndarray:
        """Mean watts ``[keys, count]`` of spans ``[R]`` of constant watts."""
        end = np.minimum(end, self.step_s * self.count)
        kept = end > begin
        key, begin, end, watts = key[kept], begin[kept], end[kept], watts[kept]
        first = begin // self.step_s
        pieces = -(-end // self.step_s) - first
        row = np.repeat(np.arange(len(begin)), pieces)
        place = first[row] + np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        held = np.minimum(end[row], (place + 1) * self.step_s) - np.maximum(begin[row], place * self.step_s)
        sums = np.bincount(key[row] * self.count + place, watts[row] * held, keys * self.count)
        return sums.reshape(keys, self.count) / self.step_s


def level_power(events: pd.DataFrame, facts: Facts, freq: str) -> LevelPower:
    """Series of all levels from the log of one window.

    Args:
        events: the log (``envs.events.events_frame``).
        facts: of the same window.
        freq: width of a bin; the last, broken one is left out.

    Raises:
        InputError: a log that does not tell where jobs sat (a fragmentation rule), replicas of services, or a window shorter than a bin.
    """
    seats = place_workers(events, facts)
    if seats is None or (facts.jobs["service"] >= 0).any():
        raise InputError("seats of jobs are not known", where="power by level", allowed=f"the rules of {__name__}, no services")
    history = history_of(events, facts)
    bins = _Bins(int(pd.Timedelta(freq).total_seconds()), history.end_s // int(pd.Timedelta(freq).total_seconds()))
    if bins.count < 1:
        raise InputError(f"{history.end_s} s", where="power by level", allowed=f"at least one bin of {freq}")
    host, gpu = _idle(facts, history, bins)
    _add_jobs(host, gpu, facts, history, seats, bins)
    return _as_series(host, gpu, facts, facts.window_start.tz_localize(None), bins)


def _idle(facts: Facts, history: History, bins: _Bins) -> tuple[np.ndarray, np.ndarray]:
    """Watts without jobs: of the host ``[nodes, bins]``, and of each GPU by place ``[nodes, most GPUs, bins]``."""
    pools = facts.pools.iloc[facts.node_pool]
    nodes, most = len(pools), int(facts.pools["gpus_per_node"].max())
    state_w = {AWAKE: "node_idle_w", WAKING: "wake_power_w", SLEEPING: "node_sleep_w"}
    spans = history.nodes[history.nodes["state"].isin(state_w)]
    node, begin, end = (spans[name].to_numpy(dtype=np.int64) for name in ("node", "begin_s", "end_s"))
    watts = np.array([pools[state_w[state]].iloc[n] for n, state in zip(node, spans["state"], strict=True)], dtype=float)
    host = bins.mean_watts(node, nodes, begin, end, watts)
    awake = bins.mean_watts(node, nodes, begin, end, (spans["state"] == AWAKE).to_numpy(dtype=float))
    there = np.arange(most) < pools["gpus_per_node"].to_numpy()[:, None]  # [nodes, most]
    return host, awake[:, None, :] * there[:, :, None] * pools["gpu_idle_w"].to_numpy()[:, None, None]


def _add_jobs(host: np.ndarray, gpu: np.ndarray, facts: Facts, history: History, seats: pd.DataFrame, bins: _Bins) -> None:
    """What jobs draw above idle, spread over their seats by what they hold of them."""
    segments = history.segments.assign(row=history.stays["row"].to_numpy()[history.segments["stay"]])
    job, pool, level = (segments[name].to_numpy() for name in ("job", "pool", "level"))
    fixed, span, _ = job_watts(facts, job, pool, level)
    boards = job_gpus(facts, job, pool) * facts.pools["gpu_context_w"].to_numpy()[pool]
    boards = np.minimum(boards, boards + span)
    dynamic = span * facts.jobs["utilization"].to_numpy()[job]
    segments = segments.assign(board_w=boards + dynamic, host_w=fixed - boards)
    held = seats.assign(weight=seats["milli"].clip(lower=1))
    held["share"] = held["weight"] / held.groupby("row")["weight"].transform("sum")
    spread = segments[["row", "begin_s", "end_s", "board_w", "host_w"]].merge(held[["row", "node", "gpu", "share"]], on="row")
    begin, end, node = (spread[name].to_numpy(dtype=np.int64) for name in ("begin_s", "end_s", "node"))
    places = gpu.shape[1]
    on_gpu = node * places + spread["gpu"].to_numpy(dtype=np.int64)
    gpu += bins.mean_watts(on_gpu, gpu.shape[0] * places, begin, end, (spread["board_w"] * spread["share"]).to_numpy()).reshape(gpu.shape)
    host += bins.mean_watts(node, len(host), begin, end, (spread["host_w"] * spread["share"]).to_numpy())


def _as_series(host: np.ndarray, gpu: np.ndarray, facts: Facts, start: pd.Timestamp, bins: _Bins) -> LevelPower:
    values: dict[str, np.ndarray] = {}
    parents: dict[str, str] = {}
    names, pools = facts.node_names, facts.pools
    for n, name in enumerate(names):
        pool = pools.iloc[facts.node_pool[n]]
        of_pool, of_site = f"power/pool/{pool['name']}", f"power/site/{facts.sites[pool['site']]}"
        parts = {f"power/host/{name}": host[n]}
        parts |= {f"power/gpu/{name}/{device}": gpu[n, device] for device in range(pool["gpus_per_node"])}
        values |= parts
        parents |= dict.fromkeys(parts, f"power/node/{name}") | {f"power/node/{name}": of_pool, of_pool: of_site}
        values[f"power/node/{name}"] = sum(parts.values())
        for above in (of_pool, of_site):
            values[above] = values.get(above, 0.0) + values[f"power/node/{name}"]
    ends = start + pd.to_timedelta((1 + np.arange(bins.count)) * bins.step_s, unit="s")
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(np.array(sorted(values), dtype=object), bins.count),
            "ds": np.tile(ends.to_numpy().astype("datetime64[ns]"), len(values)),
            "y": np.concatenate([values[uid] for uid in sorted(values)]),
        }
    )
    return LevelPower(frame, parents)

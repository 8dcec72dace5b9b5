"""How much room the cluster had at every instant: could a gang have been placed, and if not, for want of GPUs or of a fitting shape?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from envs.replay.facts import Facts
from envs.replay.history import DOWN, History
from envs.replay.recompute import held_milli, job_gpus

LARGEST_CELLS = 30_000_000
WHOLE = 1000


@dataclass
class Room:
    """Free GPUs of every pool between instants.

    Attributes:
        times: instants, int64 ``[I]``; a row holds from its instant to the next.
        thinned: fewer instants than the log has, because the cluster is large.
        free_milli: by pool, thousandths free on nodes that are up, int64 ``[I, P]``.
        gpus: by pool, free thousandths of every GPU, int16 ``[I, nodes, GPUs]`` (0 on nodes that are down); None = placement is not known.
    """

    facts: Facts
    times: np.ndarray
    thinned: bool
    free_milli: np.ndarray
    gpus: list[np.ndarray] | None
    _fits: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict)

    def held(self, job: int, pool: int) -> int:
        """Thousandths of one worker in a pool."""
        slices = int(self.facts.pools["mig_slices"].iloc[pool])
        return int(held_milli(self.facts.jobs["gpu_milli"].to_numpy()[job : job + 1], slices)[0])

    def fits(self, job: int, pool: int) -> np.ndarray | None:
        """Whether the gang has room by whole and shared GPUs, bool ``[I]``; None when placement is not known."""
        if self.gpus is None:
            return None
        held, workers = self.held(job, pool), int(self.facts.jobs["workers"].iloc[job])
        key = (held, workers, pool)
        if key not in self._fits:
            free = self.gpus[pool]
            if held == 0:
                places = np.full(len(self.times), workers)
            elif held >= WHOLE:
                places = ((free == WHOLE).sum(axis=2) // (held // WHOLE)).sum(axis=1)
            else:
                places = (free // held).sum(axis=(1, 2))
            self._fits[key] = places >= workers
        return self._fits[key]

    def spans(self, begin_s: int, end_s: int) -> tuple[int, int, np.ndarray]:
        """Rows that meet ``[begin_s, end_s)`` as first and end, and the seconds that each meets."""
        first = max(0, int(np.searchsorted(self.times, begin_s, side="right")) - 1)
        end = int(np.searchsorted(self.times, end_s, side="left"))
        edges = np.append(np.maximum(self.times[first:end], begin_s), end_s)
        edges[0] = begin_s
        return first, end, np.diff(edges)


def room_of(events: pd.DataFrame, facts: Facts, history: History, seats: pd.DataFrame | None) -> Room:
    """Follow free GPUs through the log.

    Args:
        seats: from :func:`envs.replay.placement.place_workers`.
    """
    pools = facts.pools
    total = int((pools["nodes"] * pools["gpus_per_node"]).sum())
    times = np.unique(np.append(events["time_s"].to_numpy(), 0))
    most = max(2, LARGEST_CELLS // max(1, total if seats is not None else len(pools)))
    thinned = len(times) > most
    if thinned:
        times = times[np.linspace(0, len(times) - 1, most).astype(int)]
    if seats is None:
        return Room(facts, times, thinned, _pool_totals(facts, history, times), None)
    gpus = [_pool_gpus(facts, history, seats, p, times) for p in range(len(pools))]
    return Room(facts, times, thinned, np.stack([free.sum(axis=(1, 2), dtype=np.int64) for free in gpus], axis=1), gpus)


def _rows(times: np.ndarray, second: np.ndarray) -> np.ndarray:
    """First row from which a change at ``second`` is seen."""
    return np.searchsorted(times, second, side="left")


def _pool_gpus(facts: Facts, history: History, seats: pd.DataFrame, pool: int, times: np.ndarray) -> np.ndarray:
    first = int(facts.pools["nodes"].iloc[:pool].sum())
    nodes, each = int(facts.pools["nodes"].iloc[pool]), int(facts.pools["gpus_per_node"].iloc[pool])
    change = np.zeros((len(times) + 1, nodes, each), dtype=np.int16)
    here = seats[(seats["node"] >= first) & (seats["node"] < first + nodes) & (seats["milli"] > 0)]
    stay = here[["row", "node", "gpu", "milli"]].merge(history.stays[["row", "run_s", "stop_s"]], on="row")
    place = (stay["node"].to_numpy() - first, stay["gpu"].to_numpy())
    milli = stay["milli"].to_numpy().astype(np.int16)
    np.add.at(change, (_rows(times, stay["run_s"].to_numpy()), *place), -milli)
    np.add.at(change, (_rows(times, stay["stop_s"].to_numpy()), *place), milli)
    change[0] += WHOLE
    free = np.cumsum(change[:-1], axis=0, dtype=np.int16)
    down = history.nodes[(history.nodes["pool"] == pool) & (history.nodes["state"] == DOWN)]
    for node, begin, end in zip(down["node"], down["begin_s"], down["end_s"], strict=True):
        free[_rows(times, begin) : _rows(times, end), node - first] = 0
    return free


def _pool_totals(facts: Facts, history: History, times: np.ndarray) -> np.ndarray:
    pools, stays = facts.pools, history.stays
    change = np.zeros((len(times) + 1, len(pools)), dtype=np.int64)
    pool = stays["pool"].to_numpy(dtype=np.int64)
    milli = np.rint(1000 * job_gpus(facts, stays["job"].to_numpy(dtype=np.int64), pool)).astype(np.int64)
    np.add.at(change, (_rows(times, stays["run_s"].to_numpy(dtype=np.int64)), pool), -milli)
    np.add.at(change, (_rows(times, stays["stop_s"].to_numpy(dtype=np.int64)), pool), milli)
    down = history.nodes[history.nodes["state"] == DOWN]
    lost = (WHOLE * pools["gpus_per_node"]).to_numpy()
    for pool_of, begin, end in zip(down["pool"], down["begin_s"], down["end_s"], strict=True):
        change[_rows(times, begin), pool_of] -= lost[pool_of]
        change[_rows(times, end), pool_of] += lost[pool_of]
    change[0] += (WHOLE * pools["nodes"] * pools["gpus_per_node"]).to_numpy()
    return np.cumsum(change[:-1], axis=0)

"""Power over time: mean watts of every site by what drew them, in bins whose sums are the totals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from envs.replay.facts import Facts
from envs.replay.history import AWAKE, DOWN, SLEEPING, WAKING, History
from envs.replay.recompute import IDLE, KWH_PER_WS, UNITS, Integrals, job_watts, replica_shares, transfers_of
from telemetry.classes import WORKLOAD_CLASSES

TRANSFER = "data_transfer"
CATEGORIES = (*IDLE.values(), *WORKLOAD_CLASSES, TRANSFER)
BIN_S = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
MOST_BINS = 1000


def bin_edges(end_s: int, most: int = MOST_BINS) -> np.ndarray:
    """Edges of bins from second 0 to the end, int64 ``[B + 1]``: at most ``most`` bins of a round length; the last may be shorter."""
    length = next((length for length in BIN_S if length * most >= end_s), 0)
    if not length:
        days = -(-end_s // (most * BIN_S[-1]))
        length = days * BIN_S[-1]
    return np.append(np.arange(0, max(end_s, 1), length), max(end_s, 1))


def power_of(events: pd.DataFrame, facts: Facts, history: History, edges: np.ndarray) -> pd.DataFrame:
    """What each site drew in each bin.

    A running job is charged its own watts and its share of its node's idle watts; ``idle`` is what awake nodes draw beyond those shares.

    Returns:
        ``site, category, begin_s, end_s, it_kwh`` (without PUE), ``energy_kwh, cost_usd, carbon_kg`` (with it); one row for each site,
        category and bin. Sums over bins are the totals of the log.
    """
    sums = _Sums(facts, edges)
    _add_nodes(sums, facts, history)
    _add_runs(sums, facts, history)
    for now, job, site, kwh in transfers_of(events, facts):
        del job
        sums.add_moment(site, TRANSFER, now, kwh)
    return sums.frame()


class _Sums:
    """Amounts ``[unit, site, category, bin]``."""

    def __init__(self, facts: Facts, edges: np.ndarray) -> None:
        self.facts, self.edges, self.grid = facts, edges, Integrals(facts)
        self.units = ("it_kwh", *UNITS)
        self.values = np.zeros((len(self.units), len(facts.sites), len(CATEGORIES), len(edges) - 1))

    def add(self, site: int, category: str, begin: np.ndarray, end: np.ndarray, watts: np.ndarray, load: np.ndarray | None = None) -> None:
        """Spans ``[R]`` of constant watts, cut at the edges; ``load`` [T] scales the watts step by step."""
        keep = end > begin
        begin, end, watts = begin[keep], end[keep], watts[keep]
        if not len(begin):
            return
        first = np.searchsorted(self.edges, begin, side="right") - 1
        pieces = np.searchsorted(self.edges, end, side="left") - first
        row = np.repeat(np.arange(len(begin)), pieces)
        bins = first[row] + np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        at, until = np.maximum(begin[row], self.edges[bins]), np.minimum(end[row], self.edges[bins + 1])
        place = CATEGORIES.index(category)
        for index, unit in enumerate(self.units):
            if load is not None:
                amount = self.grid.of_load(site, unit, load, at, until)
            elif unit == "it_kwh":
                amount = (until - at) * KWH_PER_WS
            else:
                amount = self.grid.of_watt(site, unit, at, until)
            self.values[index, site, place] += np.bincount(bins, watts[row] * amount, len(self.edges) - 1)

    def add_moment(self, site: int, category: str, now: int, kwh: float) -> None:
        """Energy at one second, counted in the bin that holds it."""
        bins = min(int(np.searchsorted(self.edges, now, side="right")) - 1, len(self.edges) - 2)
        for index, unit in enumerate(self.units):
            factor = 1.0 if unit == "it_kwh" else self.grid.of_kwh(site, unit, now)
            self.values[index, site, CATEGORIES.index(category), bins] += kwh * factor

    def frame(self) -> pd.DataFrame:
        _, sites, categories, bins = self.values.shape
        table = pd.DataFrame(
            {
                "site": np.repeat(np.array(self.facts.sites, dtype=object), categories * bins),
                "category": np.tile(np.repeat(np.array(CATEGORIES, dtype=object), bins), sites),
                "begin_s": np.tile(self.edges[:-1], sites * categories),
                "end_s": np.tile(self.edges[1:], sites * categories),
            }
        )
        return table.assign(**{unit: self.values[index].ravel() for index, unit in enumerate(self.units)})


def node_counts(spans: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin, end ``[R]`` and number of nodes of the times between changes: thousands of equal nodes as a few hundred spans."""
    times, place = np.unique(np.concatenate([spans["begin_s"], spans["end_s"]]), return_inverse=True)
    change = np.bincount(place[: len(spans)], minlength=len(times)) - np.bincount(place[len(spans) :], minlength=len(times))
    return times[:-1], times[1:], np.cumsum(change)[:-1]


def _add_nodes(sums: _Sums, facts: Facts, history: History) -> None:
    pools = facts.pools
    awake_w = (pools["node_idle_w"] + pools["gpus_per_node"] * pools["gpu_idle_w"]).to_numpy()
    watts = {AWAKE: awake_w, WAKING: pools["wake_power_w"].to_numpy(), SLEEPING: pools["node_sleep_w"].to_numpy()}
    for (pool, state), spans in history.nodes[history.nodes["state"] != DOWN].groupby(["pool", "state"]):
        begin, end, count = node_counts(spans)
        sums.add(int(pools["site"].iloc[pool]), IDLE[state], begin, end, count * watts[state][pool])


def _add_runs(sums: _Sums, facts: Facts, history: History) -> None:
    segments = history.segments
    job, pool, level = (segments[name].to_numpy(dtype=np.int64) for name in ("job", "pool", "level"))
    begin, end = segments["begin_s"].to_numpy(dtype=np.int64), segments["end_s"].to_numpy(dtype=np.int64)
    if not len(job):
        return
    fixed, span, share = job_watts(facts, job, pool, level)
    site = facts.pools["site"].to_numpy()[pool]
    service = facts.jobs["service"].to_numpy()[job]
    classes = facts.jobs["workload_class"].to_numpy()[job]
    steady = fixed + np.where(service < 0, span * facts.jobs["utilization"].to_numpy()[job], 0.0)
    for at in np.unique(site):
        rows = np.flatnonzero(site == at)
        sums.add(int(at), IDLE[AWAKE], begin[rows], end[rows], -share[rows])
        for name in WORKLOAD_CLASSES:
            of = rows[classes[rows] == name]
            sums.add(int(at), name, begin[of], end[of], (steady + share)[of])
    for row, load in replica_shares(facts, job, pool, level, service).items():
        one = slice(row, row + 1)
        sums.add(int(site[row]), str(classes[row]), begin[one], end[one], span[one], load)

"""Outages of nodes: maintenance of the cluster file, failures drawn by MTBF, and tables of one's own.

All are tables ``node, begin, end`` (name as in ``ClusterSpec.node_names``, UTC, end excluded); the simulator merges what overlaps.

Failures of a node are an alternating renewal process: exponential times between failures (``mtbf_hours``), exponential repairs
(``repair_hours``). Exponential times have no memory, so that it can be drawn block by block of the calendar: failures fall as a Poisson
process, those that fall while the node is down are left out. A block's numbers depend on the seed, the node's name and the block alone:
a node fails at the same moments under every policy, in every window that covers them, and whatever the other pools look like.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec, PoolSpec
from envs.windows import TAIL_S, WindowTables
from telemetry.errors import InputError
from telemetry.times import utc_column

OUTAGE_COLUMNS: tuple[str, ...] = ("node", "begin", "end")
HOUR_S = 3600.0
BLOCK_S = 28 * 86_400
# A repair of 20 times its mean is one in half a billion: what befell a node earlier than that may be forgotten.
REPAIRS_BACK = 20.0
# Jobs may run on after a window's last submission; failures go on for so long as the longest job could take, twice.
LONGEST_TAIL_S = 180 * 86_400


def check_outages(table: pd.DataFrame, cluster: ClusterSpec, where: str = "outages") -> pd.DataFrame:
    """A table of outages with times in UTC (naive ones are UTC), sorted by begin and node.

    Raises:
        InputError: a missing column, an unknown node, a value that is no time, or an end that is not after its begin.
    """
    missing = [name for name in OUTAGE_COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=where, allowed=", ".join(OUTAGE_COLUMNS))
    checked = pd.DataFrame({"node": table["node"].astype(str), **{name: utc_column(table[name], where=where) for name in ("begin", "end")}})
    unknown = ~checked["node"].isin(cluster.node_names)
    if unknown.any():
        names = cluster.node_names
        raise InputError(
            f"unknown node '{checked.loc[unknown, 'node'].iloc[0]}', row {unknown.idxmax()}",
            where=where,
            allowed=f"nodes of cluster '{cluster.name}': {names[0]} to {names[-1]}",
        )
    wrong = checked["end"] <= checked["begin"]
    if wrong.any():
        row = checked.loc[wrong.idxmax()]
        raise InputError(
            f"end {row['end'].isoformat()} of node '{row['node']}', row {wrong.idxmax()}",
            where=where,
            allowed=f"after {row['begin'].isoformat()}",
        )
    return _sorted(checked)


def maintenance_outages(cluster: ClusterSpec) -> pd.DataFrame:
    """The maintenance of the cluster file, a row for each node.

    Raises:
        InputError: a time that is none, or an end that is not after its begin.
    """
    names = cluster.node_names
    first = {pool.name: place for pool, place in zip(cluster.pools, _first_nodes(cluster.pools), strict=True)}
    rows = [
        (names[first[item.pool] + item.first_node + index], item.begin, item.end)
        for item in cluster.maintenance
        for index in range(item.nodes)
    ]
    if not rows:
        return no_outages()
    return check_outages(pd.DataFrame(rows, columns=list(OUTAGE_COLUMNS)), cluster, f"cluster '{cluster.name}', maintenance")


def drawn_failures(cluster: ClusterSpec, begin: pd.Timestamp, end: pd.Timestamp, seed: int) -> pd.DataFrame:
    """Failures of all nodes that touch ``[begin, end)``; pools with ``mtbf_hours`` 0 never fail.

    Raises:
        InputError: failures without a time to repair.
    """
    down: list[tuple[str, int, int]] = []
    names = cluster.node_names
    for pool, place in zip(cluster.pools, _first_nodes(cluster.pools), strict=True):
        if pool.mtbf_hours <= 0:
            continue
        if pool.repair_hours <= 0:
            raise InputError(
                f"repair_hours {pool.repair_hours:g}",
                where=f"cluster '{cluster.name}', pool '{pool.name}'",
                allowed="above 0 when mtbf_hours is",
            )
        for name in names[place : place + pool.nodes]:
            down += _failures_of(name, pool, int(begin.timestamp()), math.ceil(end.timestamp()), seed)
    if not down:
        return no_outages()
    table = pd.DataFrame(down, columns=list(OUTAGE_COLUMNS))
    return _sorted(table.assign(**{name: pd.to_datetime(table[name], unit="s", utc=True) for name in ("begin", "end")}))


def _failures_of(node: str, pool: PoolSpec, begin_s: int, end_s: int, seed: int) -> list[tuple[str, int, int]]:
    """Name, begin and end (seconds since 1970) of one node's outages."""
    earliest = begin_s - REPAIRS_BACK * pool.repair_hours * HOUR_S
    found: list[tuple[str, int, int]] = []
    up_s = -math.inf
    for block in range(int(earliest // BLOCK_S) - 1, int((end_s - 1) // BLOCK_S) + 1):
        for fail_s, repair_s in _block(node, block, seed, pool.mtbf_hours, pool.repair_hours):
            if fail_s < up_s:
                continue
            up_s = fail_s + repair_s
            first = math.floor(fail_s)
            last = max(first + 1, math.ceil(up_s))
            if first < end_s and last > begin_s:
                found.append((node, first, last))
    return found


@lru_cache(maxsize=1 << 18)
def _block(node: str, block: int, seed: int, mtbf_hours: float, repair_hours: float) -> tuple[tuple[float, float], ...]:
    """Moments at which a node would fail in one block of the calendar, in order, and seconds of each repair."""
    digest = int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")
    # Blocks before 1970 have numbers of their own: seeds are not negative.
    rng = np.random.default_rng([seed, digest, 2 * block if block >= 0 else -2 * block - 1])
    count = rng.poisson(BLOCK_S / (mtbf_hours * HOUR_S))
    at = block * BLOCK_S + np.sort(rng.random(count)) * BLOCK_S
    return tuple(zip(at.tolist(), rng.exponential(repair_hours * HOUR_S, count).tolist(), strict=True))


def with_outages(windows: Sequence[WindowTables], cluster: ClusterSpec, seed: int, given: pd.DataFrame | None = None) -> list[WindowTables]:
    """Windows with the outages that befall them: those they have, maintenance, failures of ``seed``, and ``given`` ones.

    Args:
        given: as checked by :func:`check_outages`.
    """
    fixed = _joined([maintenance_outages(cluster), no_outages() if given is None else given])
    if fixed.empty and all(pool.mtbf_hours <= 0 for pool in cluster.pools):
        return list(windows)
    equipped = []
    for window in windows:
        end = window.start + pd.Timedelta(seconds=window.length_s + _tail_s(window.jobs))
        drawn = drawn_failures(cluster, window.start, end, seed)
        here = fixed[(fixed["end"] > window.start) & (fixed["begin"] < end)]
        own = no_outages() if window.outages is None else window.outages
        equipped.append(replace(window, outages=_sorted(_joined([own, here, drawn]))))
    return equipped


def no_outages() -> pd.DataFrame:
    """An empty table of outages."""
    empty = pd.Series([], dtype="datetime64[ns, UTC]")
    return pd.DataFrame({"node": pd.Series([], dtype=object), "begin": empty, "end": empty})


def down_node_hours(events: np.ndarray, end_s: int) -> float:
    """Node-hours down from second 0 to ``end_s``; ``events`` as in ``World.outages``, int64 ``[X, 4]``."""
    begins = events[events[:, 1] == 1]
    return float(np.maximum(np.minimum(begins[:, 3], end_s) - begins[:, 0], 0).sum() / HOUR_S)


def _tail_s(jobs: pd.DataFrame) -> int:
    """Seconds after the last submission in which jobs may still run."""
    longest = float(jobs["duration_s"].max()) if len(jobs) else 0.0
    return int(min(TAIL_S + 2 * longest, LONGEST_TAIL_S))


def _first_nodes(pools: Sequence[PoolSpec]) -> list[int]:
    return np.cumsum([0, *(pool.nodes for pool in pools)])[:-1].tolist()


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    full = [part[list(OUTAGE_COLUMNS)] for part in parts if len(part)]
    return pd.concat(full, ignore_index=True) if full else no_outages()


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    typed = table.astype({"begin": "datetime64[ns, UTC]", "end": "datetime64[ns, UTC]"})
    return typed.sort_values(["begin", "node"], kind="stable", ignore_index=True)

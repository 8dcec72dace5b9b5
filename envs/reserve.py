"""The warm reserve that a forecast sets: a table of how many nodes of each pool shall be awake, and when.

A reserve table has ``time`` (UTC), ``pool`` and ``nodes``: from that time on so many nodes of the pool shall be awake, with or without
jobs, until the pool's next row; none before its first row. The simulator reads it at the beginning of each grid step: no node falls
asleep below that number, and sleeping nodes are woken up to it (docs/simulator.md, step 6). More than the pool has means all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from telemetry.errors import InputError

if TYPE_CHECKING:
    from envs.world import World

RESERVE_COLUMNS = ("time", "pool", "nodes")
Placed = tuple[pd.DataFrame | None, pd.Timestamp, int, int]  # table, window start, seconds of a step, steps before the start


def keep_awake(tables: Sequence[Placed], pools: Sequence[str], width: int) -> np.ndarray:
    """Nodes that shall be awake on the columns of each window's grid, int64 ``[M, P, width]``; zeros where there is no table.

    Raises:
        InputError: a missing column, an unknown pool, or a number that is not whole and at least 0.
    """
    nodes = np.zeros((len(tables), len(pools), width), dtype=np.int64)
    for row, (table, start, step_s, history) in enumerate(tables):
        if table is None or table.empty:
            continue
        where = f"window {row}, reserve"
        _check(table, pools, where)
        begin_s = ((pd.to_datetime(table["time"], utc=True) - start) / pd.Timedelta(seconds=1)).to_numpy(dtype=np.float64)
        columns_s = (np.arange(width) - history) * step_s
        own, count = table["pool"].astype(str).to_numpy(), table["nodes"].to_numpy(dtype=np.int64)
        for p, pool in enumerate(pools):
            mine = np.flatnonzero(own == pool)
            order = mine[np.argsort(begin_s[mine], kind="stable")]
            at = np.searchsorted(begin_s[order], columns_s, side="right")
            nodes[row, p] = np.concatenate([[0], count[order]])[at]
    return nodes


def with_reserve(world: World, tables: Sequence[pd.DataFrame | None]) -> World:
    """The world with another reserve table for each window, everything else shared.

    Raises:
        InputError: not a table for each window, or what :func:`keep_awake` refuses.
    """
    if len(tables) != world.n_windows:
        raise InputError(f"{len(tables)} reserve tables", where="world", allowed=f"one for each of {world.n_windows} windows")
    grid = world.grid
    placed = [
        (table, start, int(step_s), int(history))
        for table, start, step_s, history in zip(tables, world.window_start, grid.step_s, grid.history_steps, strict=True)
    ]
    pools = [pool.name for pool in world.cluster.pools]
    return replace(world, grid=grid._replace(keep_awake=keep_awake(placed, pools, grid.price.shape[2])))


def _check(table: pd.DataFrame, pools: Sequence[str], where: str) -> None:
    missing = [name for name in RESERVE_COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=where, allowed=", ".join(RESERVE_COLUMNS))
    unknown = sorted(set(table["pool"].astype(str)) - set(pools))
    if unknown:
        raise InputError(f"pool '{unknown[0]}'", where=where, allowed=", ".join(pools))
    nodes = pd.to_numeric(table["nodes"], errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(nodes) & (nodes >= 0) & (nodes == np.floor(nodes)))
    if bad.any():
        raise InputError(f"nodes {table['nodes'][bad].iloc[0]}", where=where, allowed="whole numbers from 0")

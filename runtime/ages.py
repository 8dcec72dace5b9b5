"""How old what a decision rests on is, and prices that have stopped, carried forward so that a judge can still answer."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from envs.shielded import Ages
from envs.snapshot import Snapshot
from runtime.state_file import StateFile

DAY = pd.Timedelta(days=1)


def ages_of(seen: StateFile, now: pd.Timestamp) -> Ages:
    """Age of the state, and of the newest price at or before it, at ``now``; of several sites that of the one whose prices end first.

    Prices are what the simulator forecasts from: the last known day, repeated (docs/simulator.md).
    """
    telemetry_s = (now - seen.time).total_seconds()
    if seen.grid.empty:
        return Ages(telemetry_s, float("inf"))
    known = seen.grid[seen.grid["time"] <= seen.time]
    if known.empty or set(known["site"]) != set(seen.grid["site"]):
        return Ages(telemetry_s, float("inf"))
    newest = known.groupby("site")["time"].max().min()
    return Ages(telemetry_s, (now - newest).total_seconds())


def carried_forward(snapshot: Snapshot) -> Snapshot:
    """The snapshot with a grid that reaches its time.

    Steps that are missing at the end repeat the same time of the last day that is known, or the last row where no day is: the forecast that
    the simulator makes by itself of steps to come. A grid that is current, or has fewer than two steps, is left as it is.
    """
    grid = snapshot.grid
    if grid.empty:
        return snapshot
    known = grid[grid["time"] <= snapshot.time]
    times = pd.DatetimeIndex(sorted(known["time"].unique()))
    if len(times) < 2:
        return snapshot
    step = times[1] - times[0]
    if snapshot.time - times[-1] < 2 * step or step <= pd.Timedelta(0):
        return snapshot
    missing = pd.date_range(times[-1] + step, snapshot.time, freq=step)
    rows = []
    for moment in missing:
        source = moment - DAY * -(-(moment - times[-1]) // DAY)
        source = source if source in times else times[-1]
        rows.append(known[known["time"] == source].assign(time=moment))
    return replace(snapshot, grid=pd.concat([known, *rows], ignore_index=True))

"""What happened: event types and the event log as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from envs.world import World

(
    END,
    WAKE_DONE,
    START,
    GRID,
    ARRIVE,
    REJECT,
    HOLD,
    RUN,
    SLEEP,
    WAKE,
    INTERRUPT,
    NODE_DOWN,
    NODE_UP,
    PAUSE,
    LEVEL,
    MIGRATE,
    WITHDRAW,
) = range(1, 18)
EVENT_NAMES: dict[int, str] = {
    END: "end",
    WAKE_DONE: "wake_done",
    START: "start",
    GRID: "grid",
    ARRIVE: "arrive",
    REJECT: "reject",
    HOLD: "hold",
    RUN: "run",
    SLEEP: "sleep",
    WAKE: "wake",
    INTERRUPT: "interrupt",
    NODE_DOWN: "node_down",
    NODE_UP: "node_up",
    PAUSE: "pause",
    LEVEL: "level",
    MIGRATE: "migrate",
    WITHDRAW: "withdraw",
}
LOG_COLUMNS: tuple[str, ...] = ("time_s", "type", "job", "pool", "level", "node", "extra")


def events_frame(world: World, window: int, events: np.ndarray) -> pd.DataFrame:
    """The log of one window as a table.

    Args:
        events: int64 ``[E, 7]`` as in ``EpisodeTotals.events[window]``; -1 where a column has no meaning. ``extra`` is the reason of a
            reject, the next ``ask_at`` of a hold or pause, the start second of a run or migration, the wake end of a wake, the column of
            a grid step, the end second of an outage at ``node_down``.

    Returns:
        ``time`` (UTC), ``time_s, type, event, job, job_id, pool, pool_name, level, node, node_name, extra``.
    """
    frame = pd.DataFrame(events, columns=list(LOG_COLUMNS))
    frame.insert(0, "time", world.window_start[window] + pd.to_timedelta(frame["time_s"], unit="s"))
    frame["event"] = frame["type"].map(EVENT_NAMES)
    frame["job_id"] = _names(world.job_ids[window], frame["job"])
    frame["pool_name"] = _names([pool.name for pool in world.cluster.pools], frame["pool"])
    frame["node_name"] = _names(world.cluster.node_names, frame["node"])
    return frame


def _names(names, index: pd.Series) -> np.ndarray:
    table = np.array([*names, ""], dtype=object)
    return table[index.to_numpy()]

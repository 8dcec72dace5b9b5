"""When each job waited and what for, as far as the order of its events tells: blocked, held, paused, or placed and not started."""

from __future__ import annotations

import numpy as np
import pandas as pd

BLOCKED, HELD, PAUSED, STARTING = "blocked", "held", "paused", "starting"
# What a job does after an event. The last two hold until the second in ``extra``; then the job may be asked about again, and is blocked
# for as long as no question is put (docs/simulator.md, Queue and masks).
WAITING_AFTER = {"arrive": BLOCKED, "interrupt": BLOCKED, "run": STARTING, "migrate": STARTING, "hold": HELD, "pause": PAUSED}
ASKED_AGAIN = (HELD, PAUSED)
BREAKS = ("start", "end", "withdraw")


def waits_of(events: pd.DataFrame) -> pd.DataFrame:
    """Spans in which a job waited: ``job, waiting, begin_s, end_s``, by job and time, without empty spans.

    The spans of a job from its arrival to its first start add up to its wait.
    """
    rows = events[events["event"].isin({*WAITING_AFTER, *BREAKS})].sort_values("job", kind="stable")
    job, begin, event, extra = (rows[name].to_numpy() for name in ("job", "time_s", "event", "extra"))
    same = np.append(job[1:] == job[:-1], False)
    end = np.where(same, np.append(begin[1:], 0), begin)  # nothing follows the last event of a job
    waiting = pd.Series(event).map(WAITING_AFTER).to_numpy(dtype=object)
    known = pd.notna(waiting)
    told = pd.DataFrame({"job": job, "waiting": waiting, "begin_s": begin, "end_s": end, "until": extra})[known]
    timed = told["waiting"].isin(ASKED_AGAIN)
    limit = np.minimum(told["until"], told["end_s"]).where(timed, told["end_s"])
    first = told.assign(end_s=limit)
    rest = told.assign(begin_s=limit, waiting=BLOCKED)[timed]
    spans = pd.concat([first, rest]).drop(columns="until")
    spans = spans[spans["end_s"] > spans["begin_s"]].sort_values(["job", "begin_s"], kind="stable", ignore_index=True)
    return spans.astype({"job": np.int64, "begin_s": np.int64, "end_s": np.int64})

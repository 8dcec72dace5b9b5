"""A trace made lighter or faster, and classes for jobs that state none."""

from __future__ import annotations

import numpy as np
import pandas as pd

from envs.worlds.arrivals import restamped
from telemetry.errors import InputError

TAGGINGS = ("none", "shape")


def scale_time(jobs: pd.DataFrame, factor: float) -> pd.DataFrame:
    """Submissions ``factor`` times as far from the first one; durations stay, so 0.5 doubles the load.

    The rhythm of day and week is stretched with it: meant for load sweeps on traces without a calendar.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"time_scale {factor}", allowed="a finite number above 0")
    table = jobs.copy()
    first = table["submit_time"].min()
    table["submit_time"] = (first + (table["submit_time"] - first) * factor).dt.floor("s")
    for name in ("start_time", "end_time", "deadline"):
        if name in table and table[name].notna().any():
            raise InputError(f"the table has '{name}'", where="jobs table", remedy=f"drop column '{name}' before scaling time")
    return table.sort_values(["submit_time", "job_id"], ignore_index=True)


def thin(jobs: pd.DataFrame, keep: float, seed: int) -> pd.DataFrame:
    """Each job kept with probability ``keep``: the rate falls, its shape over time stays (independent thinning)."""
    if not 0 < keep <= 1:
        raise InputError(f"thin {keep}", allowed="a share above 0, at most 1")
    if keep == 1:
        return jobs.reset_index(drop=True)
    return jobs[np.random.default_rng(seed).random(len(jobs)) < keep].reset_index(drop=True)


def scale_load(jobs: pd.DataFrame, factor: float, seed: int, *, spread_s: int = 1800) -> pd.DataFrame:
    """``factor`` times as many jobs in the same time: thinned below 1, above it each job is copied, and copies thinned to the rest.

    A copy is submitted up to ``spread_s`` seconds before or after its original, but within the table's span, so that bursts do not simply
    double.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"load {factor}", allowed="a finite number above 0")
    if factor <= 1:
        return thin(jobs, factor, seed)
    rng = np.random.default_rng(seed)
    second = jobs["submit_time"].dt.floor("s").dt.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64)
    parts, left = [jobs], factor - 1.0
    while left > 0:
        rows = np.flatnonzero(rng.random(len(jobs)) < min(left, 1.0))
        if len(rows):
            moved = np.clip(second[rows] + rng.integers(-spread_s, spread_s + 1, len(rows)), second.min(), second.max())
            copies = restamped(jobs, rows, moved, f"copy{len(parts)}")
            parts.append(copies.reindex(columns=jobs.columns).astype(jobs.dtypes.to_dict()))
        left -= 1.0
    return pd.concat(parts, ignore_index=True).sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True)


def shift_grid(grid: pd.DataFrame, hours: float) -> pd.DataFrame:
    """Every site's values ``hours`` later, those of the end at the begin: the same prices and intensities met by other jobs."""
    table = grid.sort_values(["site", "time"], kind="stable", ignore_index=True)
    values = [name for name in table.columns if name not in ("time", "site")]
    for _, rows in table.groupby("site", sort=False):
        step_s = rows["time"].diff().min().total_seconds() if len(rows) > 1 else 3600.0
        steps = hours * 3600.0 / step_s
        if not np.isfinite(steps) or steps != round(steps):
            raise InputError(f"shift of {hours} h", where="grid table", allowed=f"whole steps of {step_s:g} s")
        for name in values:
            table.loc[rows.index, name] = np.roll(rows[name].to_numpy(), round(steps))
    return table.sort_values(["time", "site"], kind="stable", ignore_index=True)


def tag_classes(jobs: pd.DataFrame, tagging: str = "shape") -> pd.DataFrame:
    """A class for every job that states none, by what is known on submission, never by the true duration.

    ``shape``: no GPU -> ``batch_inference``; a share of one GPU -> ``interactive``; one GPU -> ``fine_tuning``; more -> ``training``.
    ``none``: classes stay as they are.
    """
    if tagging not in TAGGINGS:
        raise InputError(f"class_tagging '{tagging}'", allowed=", ".join(TAGGINGS))
    table = jobs.copy()
    if tagging == "none":
        return table
    total = table["gpus"] * table["workers"]
    guess = np.select([total == 0, table["gpus"] < 1, total <= 1], ["batch_inference", "interactive", "fine_tuning"], "training")
    guessed = pd.Series(guess, index=table.index, dtype=object)
    given = table["workload_class"] if "workload_class" in table else pd.Series(None, index=table.index, dtype=object)
    table["workload_class"] = given.where(given.notna() & (given != ""), guessed)
    return table

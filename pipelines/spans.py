"""Training, validation and test parts of a time line."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from envs.job_table import utc_times
from telemetry.errors import InputError

PARTS = ("train", "validation", "test")
SPLIT = (0.6, 0.15, 0.25)


def split_spans(jobs: pd.DataFrame, split: Sequence[float] = SPLIT) -> dict[str, tuple[pd.Timestamp, pd.Timestamp]]:
    """Consecutive, disjoint time spans of the three parts, cut at whole hours."""
    submit = utc_times(jobs["submit_time"], "submit_time")
    first, last = submit.min().floor("h"), submit.max().ceil("h")
    edges = [first]
    for share in split[:-1]:
        edges.append((edges[-1] + share * (last - first)).floor("h"))
    edges.append(last)
    return {part: (edges[i], edges[i + 1]) for i, part in enumerate(PARTS)}


def part_span(jobs: pd.DataFrame, part: str | None, split: Sequence[float] = SPLIT) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
    """Span of one part, (None, None) for the whole time line.

    Raises:
        InputError: no such part, shares that are not three above 0 that sum to 1, or no job.
    """
    if part is None:
        return None, None
    if part not in PARTS:
        raise InputError(f"part={part}", where="part", allowed=", ".join(PARTS))
    if len(split) != 3 or min(split) <= 0 or abs(sum(split) - 1) > 1e-9:
        raise InputError(f"split={list(split)}", where="split", allowed="three shares above 0 that sum to 1")
    if jobs.empty:
        raise InputError("no jobs", where="jobs table", allowed="at least one job")
    return split_spans(jobs, split)[part]

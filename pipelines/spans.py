"""Training, validation and test spans of a table of jobs: consecutive parts of its time line, so that no window mixes them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from envs.job_table import utc_times
from telemetry.errors import InputError

PARTS = ("train", "validation", "test")
Span = tuple[pd.Timestamp, pd.Timestamp]


def split_spans(jobs: pd.DataFrame, split: Sequence[float]) -> dict[str, Span]:
    """Consecutive, disjoint time spans of the three parts, cut at whole hours."""
    submit = utc_times(jobs["submit_time"], "submit_time")
    first, last = submit.min().floor("h"), submit.max().ceil("h")
    edges = [first]
    for share in split[:-1]:
        edges.append((edges[-1] + share * (last - first)).floor("h"))
    edges.append(last)
    return {part: (edges[i], edges[i + 1]) for i, part in enumerate(PARTS)}


def part_span(jobs: pd.DataFrame, part: str, split: Sequence[float]) -> Span:
    """The span of one part.

    Raises:
        InputError: an unknown part, shares that are no split, or no job.
    """
    if part not in PARTS:
        raise InputError(f"part={part}", where="part", allowed=", ".join(PARTS))
    if len(split) != len(PARTS) or min(split) <= 0 or abs(sum(split) - 1) > 1e-9:
        raise InputError(f"split={list(split)}", where="split", allowed="three shares above 0 that sum to 1")
    if jobs.empty:
        raise InputError("no jobs", where="jobs table", allowed="at least one job")
    return split_spans(jobs, split)[part]

"""Everything that a log and its tables tell about one window, and the files that hold it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.replay.capacity import Room, room_of
from envs.replay.causes import misses_of
from envs.replay.facts import Facts, read_files, to_files
from envs.replay.history import History, history_of
from envs.replay.placement import place_workers
from envs.replay.power import bin_edges, power_of
from envs.replay.recompute import Recomputed, recompute
from envs.replay.totals import SLOWDOWN_THRESHOLD_S, totals_of

STEPS = ("placement", "totals", "power", "causes")
JOB_COLUMNS = ("job_id", "workload_class", "gpu_milli", "workers", "submit_s", "duration_s", "estimate_s", "latest_start_s", "deadline_s")
DERIVED = ("outcomes", "misses", "power", "stays", "segments", "seats")


@dataclass(frozen=True)
class Episode:
    """One window, told from its log.

    Attributes:
        seats: where every worker sat (``envs.replay.placement``); None when the node rule cannot be applied again from the log.
        power: mean draw by site, category and bin (``envs.replay.power``).
        misses: missed objectives and their causes (``envs.replay.causes``).
        about: what the command adds: files read, notes, the simulator's own totals.
    """

    events: pd.DataFrame
    facts: Facts
    history: History
    seats: pd.DataFrame | None
    found: Recomputed
    room: Room
    power: pd.DataFrame
    misses: pd.DataFrame
    totals: dict[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)


def tell(
    events: pd.DataFrame,
    facts: Facts,
    *,
    about: Mapping[str, Any] | None = None,
    slowdown_threshold_s: float = SLOWDOWN_THRESHOLD_S,
    step: Callable[[str], None] = lambda name: None,
) -> Episode:
    """Derive all that there is to tell.

    Args:
        events: from ``envs.events.events_frame``.
        step: called with each of ``STEPS`` before it begins.

    Raises:
        InputError: the log is not whole.
    """
    history = history_of(events, facts)
    step("placement")
    seats = place_workers(events, facts)
    step("totals")
    found = recompute(events, facts)
    step("power")
    power = power_of(events, facts, history, bin_edges(history.end_s))
    step("causes")
    room = room_of(events, facts, history, seats)
    misses = misses_of(events, facts, history, found, room)
    totals = totals_of(found, facts, slowdown_threshold_s)
    return Episode(events, facts, history, seats, found, room, power, misses, totals, dict(about or {}))


def tell_again(folder: Path) -> Episode:
    """The episode from files that :func:`files_of` wrote.

    Raises:
        InputError: a file is missing or not of this format.
    """
    events, facts = read_files(folder)
    written = json.loads((folder / "totals.json").read_text()) if (folder / "totals.json").exists() else {}
    threshold = float(written.get("slowdown_threshold_s", SLOWDOWN_THRESHOLD_S))
    return tell(events, facts, slowdown_threshold_s=threshold, about=written.get("about"))


def files_of(episode: Episode) -> dict[str, bytes]:
    """File name -> content: the log and the plain tables from which all follows, ``totals.json``, and what was derived, for convenience."""
    derived = {
        "outcomes": pd.concat([episode.facts.jobs[list(JOB_COLUMNS)], episode.found.jobs], axis=1),
        "misses": episode.misses,
        "power": episode.power,
        "stays": episode.history.stays,
        "segments": episode.history.segments,
    }
    if episode.seats is not None:
        derived["seats"] = episode.seats
    files = to_files(episode.events, episode.facts)
    for name, table in derived.items():
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False, compression="zstd")
        files[f"{name}.parquet"] = buffer.getvalue()
    facts = episode.facts
    head = {
        "policy": facts.policy,
        "cluster": facts.cluster,
        "window_start": facts.window_start.isoformat(),
        "window_end": (facts.window_start + pd.Timedelta(seconds=episode.history.end_s)).isoformat(),
    }
    told = head | episode.totals | {"misses": miss_counts(episode.misses), "about": dict(episode.about)}
    return files | {"totals.json": (json.dumps(told, indent=2, default=_plain) + "\n").encode()}


def miss_counts(misses: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Miss -> cause -> jobs."""
    counts: dict[str, dict[str, int]] = {}
    for (miss, cause), number in misses.groupby(["miss", "cause"]).size().items():
        counts.setdefault(str(miss), {})[str(cause)] = int(number)
    return counts


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return value.isoformat() if isinstance(value, pd.Timestamp) else str(value)


def largest_difference(recomputed: Mapping[str, Any], told: Mapping[str, Any], names: Sequence[str]) -> tuple[str, float]:
    """Name and relative difference of the pair of numbers that agree least."""
    worst = ("", 0.0)
    for name in names:
        ours, theirs = recomputed.get(name), told.get(name)
        if ours is None or theirs is None or not np.isfinite(theirs):
            continue
        gap = abs(float(ours) - float(theirs)) / max(1.0, abs(float(theirs)))
        worst = max(worst, (name, gap), key=lambda pair: pair[1])
    return worst

"""Months drawn from the arrival model of a trace: fitted on its first part, compared with that part and with the held-out rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from envs.windows import split_time
from envs.worlds.arrivals import SESSION_GAP_S, ArrivalModel
from envs.worlds.compare import comparison
from telemetry.errors import InputError

FITTED, DRAWN, HELD_OUT = "fitted", "drawn", "held out"


@dataclass(frozen=True)
class DrawConfig:
    """What is drawn.

    Attributes:
        months: months of 30 days; 0 = nothing is drawn, the trace stays what it is.
        seed: another seed draws other months.
        start: first second of the months, ISO 8601; empty = the Monday after the part the model is fitted on.
        fit_share: share of the trace's span, from its beginning, that the model is fitted on; 1 holds nothing out.
        session_gap_s: longest gap within a user's session.
        shrink_weeks: weeks of data by which hour-of-week rates are shrunk towards day rhythm times weekday level.
    """

    months: float = 0.0
    seed: int = 0
    start: str = ""
    fit_share: float = 0.7
    session_gap_s: float = SESSION_GAP_S
    shrink_weeks: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.months <= 1200:
            raise InputError(f"{self.months}", where="draw.months", allowed="0 (draw nothing) to 1200")
        if not 0 < self.fit_share <= 1:
            raise InputError(f"{self.fit_share}", where="draw.fit_share", allowed="a share above 0, at most 1")
        if not self.session_gap_s >= 0:
            raise InputError(f"{self.session_gap_s}", where="draw.session_gap_s", allowed="0 or more")
        if self.seed < 0:
            raise InputError(f"{self.seed}", where="draw.seed", allowed="0 or more")


@dataclass(frozen=True)
class Drawn:
    """Months drawn, and how they compare.

    Attributes:
        jobs: canonical jobs.
        parts: ``fitted``, ``drawn`` and, where there is enough of it, ``held out``.
        figures: a row per figure, a column per part.
        distances: a row per distance (0 = alike, 1 = nothing in common), a column per pair of parts.
    """

    jobs: pd.DataFrame
    parts: dict[str, pd.DataFrame]
    figures: pd.DataFrame
    distances: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        spans = {
            name: {"jobs": len(part), "first": part["submit_time"].min().isoformat(), "last": part["submit_time"].max().isoformat()}
            for name, part in self.parts.items()
        }
        tables = {name: table.astype(object).where(table.notna(), None).to_dict() for name, table in self._tables().items()}
        return {"parts": spans, **tables, "notes": self.notes}

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"figures": self.figures, "distances": self.distances}


def draw_jobs(jobs: pd.DataFrame, config: DrawConfig, users: tuple[str, ...] = ("team",)) -> Drawn:
    """Fit on the first part, draw, compare.

    Args:
        jobs: canonical jobs of the trace.
        users: columns that together name a user.

    Raises:
        InputError: too little to fit, or a start that is no time.
    """
    first, rest = split_time(jobs, (config.fit_share, 1 - config.fit_share)) if config.fit_share < 1 else (jobs, jobs.iloc[:0])
    model = ArrivalModel.fit(first, users=users, shrink_weeks=config.shrink_weeks, session_gap_s=config.session_gap_s)
    months = model.sample(config.months, config.seed, _start(config.start))
    parts, notes = {FITTED: first, DRAWN: months}, []
    if len(rest):
        try:
            comparison({HELD_OUT: rest}, users, config.session_gap_s)
            parts[HELD_OUT] = rest
        except InputError as error:
            notes.append(f"the held-out rest is too short to compare with: {error}")
    try:
        figures, apart = comparison(parts, users, config.session_gap_s)
    except InputError as error:
        notes.append(f"too little was drawn to compare: {error}")
        figures, apart = pd.DataFrame(), pd.DataFrame()
    return Drawn(months, parts, figures, apart, notes)


def _start(text: str) -> pd.Timestamp | None:
    if not text:
        return None
    try:
        time = pd.Timestamp(text)
    except ValueError as error:
        raise InputError(f"{text!r}", where="draw.start", allowed="a time, ISO 8601") from error
    return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")


def render(drawn: Drawn) -> str:
    """The comparison as text."""
    lines = [
        f"{name}: {len(part):,} jobs, {part['submit_time'].min():%Y-%m-%d %H:%M} to {part['submit_time'].max():%Y-%m-%d %H:%M} UTC"
        for name, part in drawn.parts.items()
        if len(part)
    ]
    lines += [f"note: {note}" for note in drawn.notes]
    if len(drawn.figures):
        lines += ["", "figures", drawn.figures.map(lambda value: f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}").to_string()]
        lines += ["", "distances (0 = alike, 1 = nothing in common)", drawn.distances.to_string(float_format=lambda value: f"{value:.3f}")]
    return "\n".join(lines)

"""What is unusual in the series that a forecaster was given, and what the forecasters of this package do about it.

Everything is read from the rows given, so that a diagnosis made at an issue time knows nothing later. Findings, one row each:

================ ================================ ==================================================================================
finding          size                             told when
================ ================================ ==================================================================================
gaps             longest gap, steps               a grid point between first and last row has no value
ends_early       steps behind the latest series   the series ends before another
begins_late      steps after the earliest series  fewer than half the rows of the longest
short            known rows                       not above one season
constant         its value                        one value only (two rows or more)
stuck            rows repeated                    ``STUCK_ROWS`` or more equal rows, not 0, a few times, and hardly a repeat else
zero_inflated    share of zeros                   at least 30 % zeros, and other values
level_shift      change of level                  ``level_shifts``; the newest ``MOST_SHIFTS``
scale_change     level after over level before    a level shift by a factor of ten or more, either way
spread_change    mean step, last season/before    the mean change per step of the last season is 4 times what it was, or a quarter
spikes           largest deviation                one or two rows far from their neighbours, in at most 1 % of the rows
last_value_jump  deviation of the last row        the last row is as far off as a spike: spike or new level, nobody knows yet
counter          share of steps that rise         the series never falls, or only back towards its beginning
sentinel         number of such rows              one negative value, repeated, in a series that is positive otherwise
integer          share of rows that change        whole numbers only
fallback         -                                a forecaster used empirical persistence instead of itself
================ ================================ ==================================================================================

``size`` is in the unit of y where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import median_filter

from models.level_shifts import level_shifts
from models.series import Panel, default_season_length, freq_step_ns, validate_series

COLUMNS = ("unique_id", "finding", "where", "size", "detail", "action")
MOST_ROWS = 4320  # newest rows of a series that are looked at for shape; gaps and ends are counted over all
MOST_SHIFTS = 5
STUCK_ROWS = 12
MOST_STUCK = 3  # a series that stops more often moves in steps
LEAST_ROWS = 24  # below it nothing is said of a series' shape
SPIKE_FACTOR = 5.0  # times the 99th percentile of all deviations
SPREAD_FACTOR = 4.0
UNIT_FACTOR = 10.0
ZERO_SHARE = 0.3

ACTIONS = {
    "gaps": "left out of residuals and scores; lags carry the last value forward, nothing is interpolated",
    "ends_early": "forecast from its own last row, which is the row's issued_at",
    "begins_late": "while it is young it leans on what the other series did at its age",
    "short": "seasonal terms left out; arima and prophet need 40 rows, seasonal_naive a season: empirical persistence until then",
    "constant": "all quantiles are that value until it moves",
    "stuck": "taken as measured; check the sensor",
    "zero_inflated": "quantiles never below 0; the lower ones are 0 where zeros are that frequent",
    "level_shift": "forecasts start from the last value, so they follow at once; errors made meanwhile widen the intervals",
    "scale_change": "taken as measured; if the unit changed, convert what came before",
    "spread_change": "intervals lean on the errors of the recent past",
    "spikes": "taken as measured; inputs of the networks are squashed",
    "last_value_jump": "forecasts start from the last value; the next rows tell whether that was right",
    "counter": "taken as measured; a counter is forecast better as its rate",
    "sentinel": "taken as measured; mark missing values as missing",
    "integer": "forecast as real numbers",
    "fallback": "empirical persistence instead",
}


@dataclass(frozen=True)
class Finding:
    """One row of the table; ``where`` is the time that it begins at, or was seen at."""

    unique_id: str
    finding: str
    where: pd.Timestamp
    size: float
    detail: str
    action: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings of one set of series."""

    series: int
    rows: int
    latest: pd.Timestamp
    findings: list[Finding] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Series with at least one finding of a kind, in the order of ``ACTIONS``."""
        seen = {(f.finding, f.unique_id) for f in self.findings}
        return {kind: n for kind in ACTIONS if (n := sum(kind == found for found, _ in seen))}

    def of(self, kind: str) -> list[Finding]:
        """Findings of one kind."""
        return [f for f in self.findings if f.finding == kind]

    def table(self) -> pd.DataFrame:
        """``unique_id, finding, where, size, detail, action``."""
        return pd.DataFrame([asdict(f) for f in self.findings], columns=list(COLUMNS))

    def lines(self) -> list[str]:
        """Summary: one line of totals, then one a kind with the finding of the largest size and what is done."""
        out = [f"data: {self.series} series, {self.rows} rows to {self.latest}; " + ("findings" if self.findings else "nothing unusual")]
        for kind, count in self.counts.items():
            worst = max(self.of(kind), key=lambda f: abs(f.size) if np.isfinite(f.size) else 0.0)
            out.append(f"  {kind}: {count} series, e.g. {worst.unique_id} at {worst.where}: {worst.detail}; {worst.action}")
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain types: ``series, rows, latest, counts, summary, findings``; times in ISO 8601, a size that is not finite as None."""
        rows = [{**asdict(f), "where": f.where.isoformat(), "size": f.size if np.isfinite(f.size) else None} for f in self.findings]
        totals = {"series": self.series, "rows": self.rows, "latest": self.latest.isoformat()}
        return {**totals, "counts": self.counts, "summary": self.lines(), "findings": rows}


def diagnose(
    series: Panel | pd.DataFrame,
    freq: str,
    *,
    season_length: int | None = None,
    fallbacks: Mapping[str, Mapping[str, str]] | None = None,
) -> Diagnosis:
    """Findings of every series.

    Args:
        series: a panel, or a long frame ``unique_id, ds, y``.
        freq: step of the grid.
        season_length: steps in a season; default that of the frequency.
        fallbacks: ``{forecaster: {unique_id: reason}}`` of forecasters that could not be used, to be listed with the rest.

    Raises:
        InputError: the frame cannot be used.
    """
    panel = series if isinstance(series, Panel) else Panel.from_frame(validate_series(series, freq)[0], freq_step_ns(freq))
    season = season_length or default_season_length(freq)
    starts, ends = np.array(panel.starts_ns, dtype=np.int64), panel.ends_ns
    known = np.array([np.count_nonzero(np.isfinite(values)) for values in panel.values])
    findings: list[Finding] = []
    for i, uid in enumerate(panel.ids):
        noted = _Notes(uid, int(starts[i]), panel.step_ns, findings)
        behind, late = int((ends.max() - ends[i]) // panel.step_ns), int((starts[i] - starts.min()) // panel.step_ns)
        _extent(noted, panel.values[i], int(known[i]), behind, late if known[i] < known.max() / 2 else 0, season)
        _shape(noted, panel.values[i], season)
    where = dict(zip(panel.ids, ends, strict=True))
    for name, reasons in (fallbacks or {}).items():
        for uid, reason in reasons.items():
            if uid in where:
                findings.append(_fallback(uid, int(where[uid]), name, reason))
    return Diagnosis(len(panel), int(known.sum()), pd.Timestamp(int(ends.max())), findings)


def _fallback(uid: str, end_ns: int, name: str, reason: str) -> Finding:
    return Finding(uid, "fallback", pd.Timestamp(end_ns), float("nan"), f"{name}: {reason}", ACTIONS["fallback"])


@dataclass(frozen=True)
class _Notes:
    """Where the findings of one series go."""

    uid: str
    start_ns: int
    step_ns: int
    findings: list[Finding]

    def add(self, kind: str, row: int, size: float, detail: str) -> None:
        at = pd.Timestamp(self.start_ns + int(row) * self.step_ns)
        self.findings.append(Finding(self.uid, kind, at, float(size), detail, ACTIONS[kind]))

    def when(self, row: int) -> pd.Timestamp:
        return pd.Timestamp(self.start_ns + int(row) * self.step_ns)


def _extent(noted: _Notes, values: np.ndarray, known: int, behind: int, late: int, season: int) -> None:
    """Rows that are not there: gaps, a late beginning, an early end, too few of them."""
    if known < len(values):
        begins, lengths = _runs(np.isnan(values))
        longest = int(np.argmax(lengths))
        share = 1.0 - known / len(values)
        detail = f"{len(lengths)} gap(s), longest {lengths[longest]} steps, {share:.1%} of the rows"
        noted.add("gaps", begins[longest], lengths[longest], detail)
    if behind:
        noted.add("ends_early", len(values) - 1, behind, f"{behind} steps before the latest series")
    if late:
        noted.add("begins_late", 0, late, f"{late} steps after the earliest series")
    if known <= season:
        noted.add("short", 0, known, f"{known} row(s), a season has {season}")


def _shape(noted: _Notes, whole: np.ndarray, season: int) -> None:
    """What the newest ``MOST_ROWS`` rows look like."""
    first = max(0, len(whole) - MOST_ROWS)
    rows = first + np.flatnonzero(np.isfinite(whole[first:]))
    values = whole[rows]
    if len(values) > 1 and values.min() == values.max():
        noted.add("constant", rows[0], values[0], f"{len(values)} rows of {values[0]:.6g}")
        return
    if len(values) < LEAST_ROWS:
        return
    steps = np.diff(values)
    _zeros(noted, rows, values)
    _shifts(noted, whole[first:], first, season)
    _spikes(noted, rows, values)
    _spread(noted, rows, steps, season)
    _kinds(noted, rows, values, steps)


def _zeros(noted: _Notes, rows: np.ndarray, values: np.ndarray) -> None:
    zero = values == 0
    share = float(zero.mean())
    if share < ZERO_SHARE:
        return
    begins, lengths = _runs(zero)
    longest = int(np.argmax(lengths))
    detail = f"{share:.1%} zeros in {len(lengths)} run(s), median {np.median(lengths):.0f}, longest {lengths[longest]} rows"
    noted.add("zero_inflated", rows[begins[longest]], share, detail)


def _shifts(noted: _Notes, values: np.ndarray, first: int, season: int) -> None:
    for shift in level_shifts(values, season)[-MOST_SHIFTS:]:
        change = f"{shift.before:.6g} to {shift.after:.6g}"
        score = f"{shift.score:.1f} times what it used to do" if np.isfinite(shift.score) else "it was constant before"
        known = noted.when(first + shift.detected)
        noted.add("level_shift", first + shift.row, shift.size, f"{change}, {score}, known at {known}")
        ratio = shift.after / shift.before if shift.before else 0.0
        if ratio >= UNIT_FACTOR or 0 < ratio <= 1 / UNIT_FACTOR:
            noted.add("scale_change", first + shift.row, ratio, f"{change}: times {ratio:.3g}")


def _spikes(noted: _Notes, rows: np.ndarray, values: np.ndarray) -> None:
    """Against the median of five rows: it ignores two of them, and holds a level shift for what it is."""
    off = np.abs(values - median_filter(values, size=5, mode="nearest"))
    limit = SPIKE_FACTOR * np.quantile(off, 0.99)
    spike = np.flatnonzero(off[:-2] > limit)  # the last two rows may as well be a new level
    if spike.size and spike.size <= 0.01 * len(values):
        worst = spike[np.argmax(off[spike])]
        noted.add("spikes", rows[worst], off[worst], f"{spike.size} row(s), largest {values[worst]:.6g}")
    jump = values[-1] - np.median(values[-6:-1])
    if abs(jump) > max(limit, SPIKE_FACTOR * np.quantile(np.abs(np.diff(values[:-1])), 0.99)):
        noted.add("last_value_jump", rows[-1], jump, f"{values[-1]:.6g} after {np.median(values[-6:-1]):.6g}")


def _spread(noted: _Notes, rows: np.ndarray, steps: np.ndarray, season: int) -> None:
    if len(steps) < 3 * season:
        return
    recent, before = np.abs(steps[-season:]).mean(), np.abs(steps[:-season]).mean()
    if before > 0 and not 1 / SPREAD_FACTOR < (ratio := recent / before) < SPREAD_FACTOR:
        noted.add("spread_change", rows[-season], ratio, f"mean change per step {before:.3g} before, {recent:.3g} in the last season")


def _kinds(noted: _Notes, rows: np.ndarray, values: np.ndarray, steps: np.ndarray) -> None:
    """Stuck sensors, counters, marks for missing values, whole numbers."""
    same = steps == 0
    held = same & (values[1:] != 0)  # a row of zeros is nothing to do, not a stuck sensor
    if held.any():
        begins, lengths = _runs(held)
        stuck = lengths + 1 >= STUCK_ROWS
        moving = 1.0 - (held.sum() - lengths[stuck].sum()) / max(1, len(steps) - lengths[stuck].sum())
        if 1 <= stuck.sum() <= MOST_STUCK and moving > 0.95:
            longest = int(np.argmax(lengths))
            value = values[begins[longest]]
            noted.add("stuck", rows[begins[longest]], lengths[longest] + 1, f"{lengths[longest] + 1} rows of {value:.6g}")
    falls, rises = steps < 0, steps > 0
    resets = values[1:][falls] <= values[0] + 0.1 * (values.max() - values[0])
    if rises.mean() > 0.5 and falls.mean() < 0.02 and resets.all():
        noted.add("counter", rows[0], rises.mean(), f"rises from {values[0]:.6g} to {values.max():.6g}, {int(falls.sum())} reset(s)")
    negative = values[values < 0]
    if 1 < negative.size <= 0.2 * len(values) and negative.min() == negative.max():
        noted.add("sentinel", rows[np.argmax(values < 0)], negative.size, f"{negative.size} rows of {negative[0]:.6g}")
    if not (values % 1).any():
        noted.add("integer", rows[0], float(1.0 - same.mean()), f"whole numbers, {1.0 - same.mean():.1%} of the rows change")


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First rows and lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    return edges[::2], edges[1::2] - edges[::2]

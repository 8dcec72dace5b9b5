"""Which of two readings of the same watts is wrong: rules that each state their evidence, and a verdict that may be "undecided".

A parent (a node's meter) is compared with the sum of its children (its boards). Where they must be equal (``equal``: supplies against
DCMI, outlets against what they feed, two exporters of one board) the difference should be none; where the children are only part
(``within``: boards of a node) it is what else draws power, so it should be above zero, and rise by little when a child rises.

====================  ==============================================================================================  ==========
rule                  evidence                                                                                        points at
====================  ==============================================================================================  ==========
stuck                 one reading keeps to one value (of 8 h at least) while the other side moves                     that side
silent                a child reads 0 W throughout while it is said to be there                                       the child
scale                 one side moves by a steady multiple of the other near 1000, 3600, 10, 2 or their inverses:      the side
                      a unit, or one supply of two                                                                    that is
                                                                                                                      implausible
device                the difference jumps whenever one child jumps, and by another share than for its siblings       the child
clock                 the two sides agree better when one is shifted by whole intervals                               a clock
exceeds               the children together exceed the parent in more than a twentieth of the time                    the parent
drift                 at equal load the difference grows or shrinks (Theil and Sen's slope, 95 % clear of zero)       undecided
differs               readings that must be equal are not, and no rule says why                                       undecided
====================  ==============================================================================================  ==========
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

PARENT, CHILDREN, CLOCK, UNDECIDED, AGREES = "parent", "children", "clock", "undecided", ""
FEWEST = 12  # intervals that both sides cover, below which nothing is judged
SCALES: tuple[tuple[float, str], ...] = (
    (1000.0, "kW read as W, or W as mW"),
    (3600.0, "Wh read as J"),
    (10.0, "a factor of ten"),
    (2.0, "one supply of two, or one counted twice"),
)
SCALE_TOLERANCE = {True: 0.12, False: 0.3}  # of equal readings; of a node, whose own part moves with its boards
STUCK_SHARE = 0.95
MOVES = 0.02  # a side moves when its deviation is above this share of its mean
EXCEEDS_SHARE = 0.05
LAGS = 6
SLOPE_POINTS, DRIFT_BLOCKS = 400, 24
PLAUSIBLE_W = (5.0, 30_000.0)  # a node, a board or a supply draws between these; a PDU or a site more


@dataclass(frozen=True)
class Finding:
    """One rule that fired: ``suspect`` is ``parent``, ``children``, ``clock``, ``undecided`` or the name of a child."""

    rule: str
    suspect: str
    confidence: float
    evidence: str


@dataclass(frozen=True)
class Trend:
    """Slope of the difference, W a day, with its 95 % interval."""

    w_per_day: float
    low: float
    high: float


def trend(days: np.ndarray, residual_w: np.ndarray) -> Trend:
    """Theil and Sen's median slope (Sen 1968); long series are first averaged to 400 points."""
    if len(days) < FEWEST:
        return Trend(float("nan"), float("nan"), float("nan"))
    if len(days) > SLOPE_POINTS:
        parts = np.array_split(np.arange(len(days)), SLOPE_POINTS)
        days, residual_w = (np.array([values[p].mean() for p in parts]) for values in (days, residual_w))
    if np.ptp(residual_w) < 1e-9 * max(1.0, float(np.abs(residual_w).max())):
        return Trend(0.0, 0.0, 0.0)
    slope, _, low, high = theilslopes(residual_w, days)
    return Trend(float(slope), float(low), float(high))


def judge(
    names: tuple[str, ...], days: np.ndarray, parent: np.ndarray, children: np.ndarray, *, equal: bool, tolerance: float
) -> tuple[str, float, tuple[Finding, ...]]:
    """The suspect, how sure that is (0 to 1), and the evidence.

    Args:
        names: of the C children.
        days: float64 ``[T]``, time of each interval that all cover.
        parent: float64 ``[T]``, W; ``children`` ``[C, T]``.
        tolerance: share of the parent that readings may differ by.
    """
    if len(parent) < FEWEST:
        return UNDECIDED, 0.0, (Finding("few", UNDECIDED, 0.0, f"only {len(parent)} intervals are covered by both sides"),)
    total = children.sum(axis=0)
    found = [
        *_stuck(parent, total),
        *_silent(names, children, parent),
        *_scale(parent, total, equal),
        *_device(names, parent, children),
        *_clock(parent, total),
        *_exceeds(parent, total, tolerance),
        *_drift(days, parent, total, tolerance if equal else 2 * tolerance),  # a node's own part may change with its jobs
    ]
    differs = abs(float((parent - total).mean())) > tolerance * float(parent.mean())
    if equal and differs and not found:
        found.append(Finding("differs", UNDECIDED, 0.3, f"the readings differ by more than {100 * tolerance:.0f} %, steadily"))
    if not found:
        return AGREES, 1.0, ()
    found.sort(key=lambda one: -one.confidence)
    best = found[0]
    rivals = [f for f in found[1:] if f.suspect not in (best.suspect, UNDECIDED) and f.confidence > best.confidence - 0.15]
    if rivals:
        return UNDECIDED, best.confidence - rivals[0].confidence, tuple(found)
    return best.suspect, best.confidence, tuple(found)


def _moves(values: np.ndarray) -> bool:
    return float(values.std()) > MOVES * max(float(np.abs(values).mean()), 1.0)


def _stuck(parent: np.ndarray, total: np.ndarray) -> list[Finding]:
    found = []
    for side, values, other in ((PARENT, parent, total), (CHILDREN, total, parent)):
        levels, counts = np.unique(np.round(values, 3), return_counts=True)
        share = counts.max() / len(values)
        if share >= STUCK_SHARE and len(values) >= 4 * FEWEST and _moves(other):
            level = levels[np.argmax(counts)]
            found.append(
                Finding("stuck", side, 0.95, f"{side} reads {level:,.0f} W in {100 * share:.0f} % of the time while the other side moves")
            )
    return found


def _silent(names: tuple[str, ...], children: np.ndarray, parent: np.ndarray) -> list[Finding]:
    if parent.mean() <= 0:
        return []
    return [Finding("silent", name, 0.8, f"{name} reads 0 W throughout") for name, w in zip(names, children, strict=True) if not w.any()]


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of y over x through reduced major axis, and the correlation."""
    if x.std() <= 0 or y.std() <= 0:
        return float("nan"), 0.0
    r = float(np.corrcoef(x, y)[0, 1])
    return float(y.std() / x.std()), r


def _scale(parent: np.ndarray, total: np.ndarray, equal: bool) -> list[Finding]:
    """How far the parent moves when the children move by one; for equal readings their ratio will do when nothing moves."""
    gain, r = _slope(total, parent)
    if r < 0.9:
        if not equal or total.mean() <= 0 or parent.mean() <= 0:
            return []
        ratios = parent[total > 0] / total[total > 0]
        gain, r = float(np.median(ratios)), 1.0 - float(np.std(ratios) / np.mean(ratios))
        if r < 0.9:
            return []
    for factor, told in SCALES:
        for by in (factor, 1 / factor):
            if by == 2.0 and not equal:  # a node may well draw two watts more where its boards draw one
                continue
            if abs(gain / by - 1) < SCALE_TOLERANCE[equal]:
                return [_scaled(parent, total, by, gain, told)]
    return []


def _scaled(parent: np.ndarray, total: np.ndarray, by: float, gain: float, told: str) -> Finding:
    low, high = PLAUSIBLE_W
    wrong = [not low <= float(np.median(side)) <= high for side in (parent, total)]
    suspect = UNDECIDED if wrong[0] == wrong[1] else PARENT if wrong[0] else CHILDREN
    sure = 0.9 if suspect != UNDECIDED else 0.6
    if suspect == UNDECIDED and by == 0.5:  # half of the watts below: a meter on one of two feeds sees that
        suspect, sure = PARENT, 0.75
    return Finding("scale", suspect, sure, f"the parent moves {gain:.3g} W when the children move 1 W: near {by:g}, {told}")


def _device(names: tuple[str, ...], parent: np.ndarray, children: np.ndarray) -> list[Finding]:
    """Least squares of the difference's steps over the children's steps; a child whose share is not that of its siblings is told."""
    moving = np.flatnonzero(children.std(axis=1) > 1.0)
    steps, jump = np.diff(children[moving], axis=1).T, np.diff(parent - children.sum(axis=0))
    if len(moving) < 2 or len(jump) < 5 * len(moving) + FEWEST or jump.std() <= 0:
        return []
    share, *_ = np.linalg.lstsq(steps, jump, rcond=None)
    rest = jump - steps @ share
    noise = float(rest.std()) * np.sqrt(np.maximum(np.diag(np.linalg.pinv(steps.T @ steps)), 0.0))
    usual = np.array([np.median(np.delete(share, i)) for i in range(len(share))])
    off = np.abs(share - usual)
    worst = int(np.argmax(off))
    others = np.delete(off, worst)
    if off[worst] < 0.2 or off[worst] < 8 * noise[worst] or off[worst] < 3 * np.median(others) or rest.std() > 0.7 * jump.std():
        return []
    name = names[moving[worst]]
    text = f"the difference moves {share[worst]:+.2f} W per W of {name}, {usual[worst]:+.2f} per W of the others"
    return [Finding("device", name, 0.9 if rest.std() < 0.4 * jump.std() else 0.75, text)]


def _clock(parent: np.ndarray, total: np.ndarray) -> list[Finding]:
    a, b = np.diff(parent), np.diff(total)
    if len(a) < 4 * LAGS + FEWEST or a.std() <= 0 or b.std() <= 0:
        return []

    def match(lag: int) -> float:
        x, y = (a[lag:], b[: len(b) - lag]) if lag >= 0 else (a[:lag], b[-lag:])
        return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0

    at = {lag: match(lag) for lag in range(-LAGS, LAGS + 1)}
    best = max(at, key=lambda lag: at[lag])
    if best == 0 or at[best] < 0.5 or at[best] < at[0] + 0.15:
        return []
    when = f"{abs(best)} interval(s) {'after' if best > 0 else 'before'}"
    text = f"steps of the parent come {when} those of the children (r {at[best]:.2f}, {at[0]:.2f} unshifted)"
    return [Finding("clock", CLOCK, min(0.95, 0.5 + at[best] - at[0]), text)]


def _exceeds(parent: np.ndarray, total: np.ndarray, tolerance: float) -> list[Finding]:
    share = float((total > parent * (1 + tolerance)).mean())
    if share <= EXCEEDS_SHARE:
        return []
    excess = float((total - parent)[total > parent].mean())
    text = f"the children exceed the parent in {100 * share:.0f} % of the time, by {excess:,.0f} W on average"
    return [Finding("exceeds", PARENT, 0.5 + 0.2 * share, text)]


def _drift(days: np.ndarray, parent: np.ndarray, total: np.ndarray, tolerance: float) -> list[Finding]:
    """Trend of the difference without what moves with the load, over block means: neighbouring intervals are no independent witnesses."""
    steps, jump = np.diff(total), np.diff(parent - total)
    share = float(steps @ jump / (steps @ steps)) if (steps @ steps) > 0 else 0.0
    blocks = np.array_split(np.arange(len(days)), min(len(days) // 4, DRIFT_BLOCKS))
    rest = parent - total * (1 + share)
    if len(blocks) < FEWEST:
        return []
    slope = trend(*(np.array([values[b].mean() for b in blocks]) for values in (days, rest)))
    moved = slope.w_per_day * float(days[-1] - days[0])
    if not (slope.low > 0 or slope.high < 0) or abs(moved) < tolerance * float(parent.mean()):
        return []
    text = (
        f"at equal load the difference moves {slope.w_per_day:+.2f} W a day ({slope.low:+.2f} to {slope.high:+.2f}), {moved:+,.0f} W in all"
    )
    return [Finding("drift", UNDECIDED, 0.4, text)]

"""Young series: what a series of a few rows may do next, learned by letting known series begin anew.

Every known series is cut as if it had begun L rows before many of its own rows, its scale is measured on those L rows alone, and the
changes that followed are kept in units of that scale. New series are taken as exchangeable with the known ones of their kind, so the
quantiles of these changes are those of a new series with L rows, uncertainty of its scale included. No family of distributions is assumed.

The scale leans on Taylor's law (Taylor 1961): over series, the log of the mean change grows in a line with the log of the level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from models.base import QUANTILES
from models.series import Panel, forward_fill

LENGTHS = (1, 2, 3, 6, 12, 24, 48, 96, 192)
PRIOR_CHANGES = 6.0  # one-step changes that weigh as much as what the level says
SPIKE_FACTOR = 10.0  # a change beyond this multiple of the 95th percentile is cut when a scale is measured
MOST_KINDS, MOST_SERIES, MOST_ROWS, REPLAYS = 24, 400, 2016, 6000
LEAST_SERIES = 3  # of a kind of its own; with fewer, all series are one kind
LEAST_REPLAYS = 64


def kinds_of(uid: str, family: str) -> tuple[str, ...]:
    """What a series is one of, finest first: its id up to the last ``-`` or ``/`` (``power/node/a100-0003`` is a ``power/node/a100``), its
    family, and ``""``, any series."""
    cut = max(uid.rfind("/"), uid.rfind("-"), 0)
    return tuple(dict.fromkeys([kind for kind in (uid[:cut], family) if kind] + [""]))


@dataclass(frozen=True)
class Kind:
    """What series of one kind do while they are young.

    Attributes:
        intercept, slope: of log(mean change) over log(level).
        changes: ``[L, H, Q]`` quantiles of the change after each step, in units of the scale, by rows of history ``LENGTHS``.
        from_zero: ``[L, H, Q]`` the same in the unit of y for series that were 0 so far.
    """

    intercept: float
    slope: float
    changes: np.ndarray
    from_zero: np.ndarray

    def scale(self, own: np.ndarray, count: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Unit of the changes: own mean change over ``count`` one-step changes, leaning on that of the level."""
        with np.errstate(divide="ignore"):
            usual = np.where(level > 0, np.exp(self.intercept + self.slope * np.log(level)), 0.0)
        return (count * own + PRIOR_CHANGES * usual) / (count + PRIOR_CHANGES)


@dataclass(frozen=True)
class YoungSeries:
    """Kinds by name; ``""`` is all series together."""

    horizon: int
    kinds: dict[str, Kind]

    @classmethod
    def fit(cls, panel: Panel, horizon: int, season_length: int, seed: int = 0) -> YoungSeries:
        """Learn from the series of a panel; bounded work, whatever the size of the panel.

        Where no series is longer than the horizon, changes over fewer steps are learned and grown by the square root of the steps as in a
        random walk. Where none has a whole season, every change also counts with its sign turned: what rose all morning need not go on.
        """
        rng = np.random.default_rng(seed)
        longest = max(len(values) for values in panel.values)
        reach = min(horizon, max(longest - 1, 1))
        usable = [i for i, values in enumerate(panel.values) if len(values) > reach]
        by_kind: dict[str, list[int]] = {}
        for i in usable:
            for kind in kinds_of(panel.ids[i], panel.families[i]):
                by_kind.setdefault(kind, []).append(i)
        large = sorted(
            (name for name, members in by_kind.items() if name and len(members) >= LEAST_SERIES), key=lambda k: (-len(by_kind[k]), k)
        )
        kinds = {}
        for name, members in {**{name: by_kind[name] for name in large[:MOST_KINDS]}, "": usable}.items():
            chosen = sorted(rng.choice(members, MOST_SERIES, replace=False)) if len(members) > MOST_SERIES else members
            found = _learn([forward_fill(panel.values[i])[-MOST_ROWS:] for i in chosen], reach, longest <= season_length, rng)
            if found is not None:
                kinds[name] = replace(found, changes=_grown(found.changes, horizon), from_zero=_grown(found.from_zero, horizon))
        return cls(horizon, kinds)

    def change_quantiles(self, kinds: tuple[str, ...], values: np.ndarray, horizon: int) -> np.ndarray | None:
        """Quantiles ``[H, Q]`` of the changes that follow ``values`` ``[T]`` (NaN gaps) of a series of ``kinds``, the first known of which
        counts; None when nothing comparable is known."""
        kind = next((self.kinds[name] for name in kinds if name in self.kinds), None)
        if kind is None:
            return None
        known = values[np.isfinite(values)][-LENGTHS[-1] :]
        if len(known) == LENGTHS[-1] and np.ptp(known) == 0:
            return np.zeros((horizon, len(QUANTILES)))  # it does not move
        steps = _winsorised(np.abs(np.diff(known)))
        place = np.interp(np.log(len(known)), np.log(LENGTHS), np.arange(len(LENGTHS)))
        if not known.any():
            return _between(kind.from_zero, place)[:horizon]
        own = np.array([steps.mean() if len(steps) else 0.0])
        scale = float(kind.scale(own, np.array([len(steps)]), np.array([np.abs(known).mean()]))[0])
        return scale * _between(kind.changes, place)[:horizon]

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        kinds = {name: {**asdict(k), "changes": k.changes.tolist(), "from_zero": k.from_zero.tolist()} for name, k in self.kinds.items()}
        return {"horizon": self.horizon, "kinds": kinds}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> YoungSeries:
        """What ``to_json`` gave."""
        kinds = {
            name: Kind(kind["intercept"], kind["slope"], np.array(kind["changes"]), np.array(kind["from_zero"]))
            for name, kind in stored["kinds"].items()
        }
        return cls(stored["horizon"], kinds)


def _between(tables: np.ndarray, place: float) -> np.ndarray:
    below = int(np.floor(place))
    above = min(below + 1, len(tables) - 1)
    return (1.0 - (place - below)) * tables[below] + (place - below) * tables[above]


def _grown(table: np.ndarray, horizon: int) -> np.ndarray:
    """Table ``[L, R, Q]`` continued to the horizon ``[L, H, Q]``."""
    reach = table.shape[1]
    growth = np.sqrt(np.arange(reach + 1, horizon + 1) / reach)
    return np.concatenate([table, table[:, -1:] * growth[None, :, None]], axis=1)


def _learn(series: Iterable[np.ndarray], horizon: int, symmetric: bool, rng: np.random.Generator) -> Kind | None:
    """Kind of some series without gaps, each longer than the horizon; None without series that ever move."""
    known = list(series)
    cut = [_winsorised(np.abs(np.diff(values))) for values in known]
    means = np.array([steps.mean() for steps in cut])
    levels = np.array([np.abs(values).mean() for values in known])
    moving = (means > 0) & (levels > 0)
    if not moving.any():
        return None
    intercept, slope = _line(np.log(levels[moving]), np.log(means[moving]))
    kind = Kind(intercept, slope, np.empty(0), np.empty(0))  # for its scale
    changes: list[np.ndarray] = []
    from_zero: list[np.ndarray] = []
    for length in LENGTHS:
        scaled, absolute = [], []
        for values, steps in zip(known, cut, strict=True):
            free = len(values) - horizon - length + 1
            if free < 1:
                continue
            ends = length - 1 + rng.integers(0, free, size=-(-REPLAYS // len(known)))  # rows at which it has had ``length`` rows
            total, sums = np.r_[0.0, np.cumsum(steps)], np.r_[0.0, np.cumsum(np.abs(values))]
            level = (sums[ends + 1] - sums[ends + 1 - length]) / length
            own = (total[ends] - total[ends + 1 - length]) / max(1, length - 1)
            after = values[ends[:, None] + 1 + np.arange(horizon)] - values[ends][:, None]  # [n, H]
            scale = kind.scale(own, np.full(len(ends), length - 1.0), level)
            scaled.append(after[level > 0] / scale[level > 0, None])
            scaled += [-scaled[-1]] * symmetric
            absolute.append(after[level == 0])
        changes.append(_quantiles(scaled, changes, horizon))
        from_zero.append(_quantiles(absolute, from_zero, horizon))
    return Kind(intercept, slope, np.stack(changes), np.stack(from_zero))


def _quantiles(parts: list[np.ndarray], shorter: list[np.ndarray], horizon: int) -> np.ndarray:
    """``[H, Q]`` of all parts; with too few of them those of the next shorter history, and 0 where there is none."""
    count = sum(len(part) for part in parts)
    if count >= LEAST_REPLAYS:
        return np.quantile(np.concatenate(parts), QUANTILES, axis=0).T
    return shorter[-1] if shorter else np.zeros((horizon, len(QUANTILES)))


def _winsorised(steps: np.ndarray) -> np.ndarray:
    """Changes with spikes cut; a series that rests in 95 % of its rows has none to tell from its life."""
    limit = np.quantile(steps, 0.95) if len(steps) else 0.0
    return np.minimum(steps, SPIKE_FACTOR * limit) if limit > 0 else steps


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of y over x, the slope within [0, 1] and drawn to 1 (pure proportion) as by two more points a unit apart."""
    centred = x - x.mean()
    slope = float(np.clip((centred @ (y - y.mean()) + 2.0) / (centred @ centred + 2.0), 0.0, 1.0))
    return float(y.mean() - slope * x.mean()), slope

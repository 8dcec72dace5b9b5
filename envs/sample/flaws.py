"""Flaws of real exports, planted in known numbers.

Names and counting rules are those of the quality report. Flaws never touch: every one reserves its samples and a margin around them for its
whole node, so that a count cannot depend on the order in which a reader repairs things.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from envs.sample.settings import NODE_FAILURE, SampleSettings
from telemetry.errors import InputError

MARGIN = 3


@dataclass
class Planted:
    """Counts of one file, and the reservations that keep flaws apart. ``bins`` = T intervals, ``sources`` = nodes and services."""

    bins: int
    sources: tuple[str, ...]
    rng: np.random.Generator
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._used = {name: np.zeros(self.bins, dtype=bool) for name in self.sources}
        for used in self._used.values():
            used[:MARGIN] = used[-MARGIN:] = True

    def pick(self, sources: tuple[str, ...], length: int = 1, wanted: np.ndarray | None = None) -> int:
        """First bin of a free stretch on all ``sources``, reserved. ``wanted``: bool ``[T]``, bins at which the stretch may begin.

        Raises:
            InputError: the period is too short for its flaws.
        """
        blocked = np.any([self._used[name] for name in sources], axis=0)
        reach = np.convolve(blocked, np.ones(length, dtype=int))[length - 1 :][: self.bins - length]
        open_bins = reach[: self.bins - length] == 0
        if wanted is not None:
            open_bins &= wanted[: len(open_bins)]
        choices = np.flatnonzero(open_bins)
        if not len(choices):
            raise InputError("no room left for the planted flaws", where="make_sample", remedy="a longer period (days=2 or more)")
        begin = int(self.rng.choice(choices))
        self.reserve(sources, begin, length)
        return begin

    def reserve(self, sources: tuple[str, ...], begin: int, length: int) -> None:
        """Keep other flaws away from a stretch."""
        for name in sources:
            self._used[name][max(begin - MARGIN, 0) : begin + length + MARGIN] = True

    def any_source(self, prefix: str = "") -> str:
        names = [name for name in self.sources if name.startswith(prefix)]
        return names[int(self.rng.integers(len(names)))]

    def gap(self, source: str, length: int, series: int, begin: int | None = None) -> range:
        """Bins missing from all ``series`` series of a source."""
        if begin is None:
            begin = self.pick((source,), length)
        else:
            self.reserve((source,), begin, length)
        self.counts["scrape_gap"] += series
        self.counts["scrape_gap_samples"] += series * length
        return range(begin, begin + length)


def scaled(count: int, settings: SampleSettings) -> int:
    """A flaw count stated for six weeks, in proportion for a shorter period; at least 1."""
    return max(1, round(count * settings.days / 42))


def failure_bins(settings: SampleSettings) -> tuple[str, range] | None:
    """Bins in which the failed node's GPU exporter was silent, when they lie in the period."""
    first, last = (settings.second_of(time) // 600 for time in NODE_FAILURE[1:])
    return (NODE_FAILURE[0], range(first, last)) if first >= MARGIN and last < settings.bins - MARGIN else None

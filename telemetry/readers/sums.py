"""Counters of one thing that come in parts (by status code, mode or replica) as one count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from telemetry.quality import QualityReport
from telemetry.raw import GOOD, SENTINEL, Labels, RawSamples, parse_times, parse_values

Part = tuple[Labels, Sequence[Any], Sequence[Any]]  # labels, times in seconds [N], values [N]


def add_sum(parts: Sequence[Part], raw: RawSamples, quality: QualityReport) -> None:
    """Add the increases of all parts, summed by time; a pod that is not that of all parts is left out.

    A part that falls has restarted, as in :func:`telemetry.counters.counter_rates`; its first point is no increase. Parts of delta
    temporality are increases as they are.
    """
    total: dict[int, float] = {}
    for labels, times, values in parts:
        value, state = parse_values(values)
        time_ns, bad = parse_times(times)
        good = (state == GOOD) & ~bad & (value >= 0)
        blank = (state == SENTINEL) & ~bad
        quality.add(raw.source, "sentinel", int(blank.sum()), labels.place)
        quality.add(raw.source, "unparseable", int((~good & ~blank).sum()), labels.place)
        at = np.argsort(time_ns[good], kind="stable")
        when, counts = time_ns[good][at], value[good][at]
        increase = counts
        if not labels.delta and len(counts):
            fell = np.diff(counts) < 0
            quality.add(raw.source, "counter_reset", int(fell.sum()), labels.place)
            increase = np.concatenate([[0.0], np.where(fell, counts[1:], np.diff(counts))])
        for time, more in zip(when.tolist(), increase.tolist(), strict=True):
            total[time] = total.get(time, 0.0) + more
    first = parts[0][0]
    same_pod = len({labels.pod for labels, _, _ in parts}) == 1
    whole = first._replace(delta=True, pod=first.pod if same_pod else "")
    raw.add_block(whole, [time / 1e9 for time in sorted(total)], [total[time] for time in sorted(total)])

"""The steps of cleaning (``telemetry/cleaning.py``), on points of whole entities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from telemetry import sorting
from telemetry.cleaned import Cleaned, codes_of
from telemetry.counters import WRAP_RANGE, counter_rates
from telemetry.gaps import NO_GAPS, Gaps, fill_gauges, find_gaps
from telemetry.implausible import (
    NEVER_ZERO,
    OF_PEERS,
    Typical,
    bounds_of,
    energy_mismatches,
    stuck_rows,
    typical_value,
    zero_series,
)
from telemetry.inventory import Inventory, NodeInfo
from telemetry.limits import is_gpu, limit_w
from telemetry.policy import DROP, REPAIR, QualityPolicy
from telemetry.quality import QualityReport
from telemetry.raw import GOOD, SENTINEL, UNPARSEABLE, Labels, Points
from telemetry.units import METRICS

DEFAULT_POLICY = QualityPolicy()
# Share of a node's points that must lie on one phase before its clock is called constantly off.
PHASE_SHARE = 0.8
# Missing samples of a gap that are told hour by hour; a longer gap is most likely a wrong time, and is counted as a whole.
MOST_LAID_OUT = 100_000


@dataclass(frozen=True)
class Common:
    """What is counted over all pieces before any is judged.

    Attributes:
        step_ns: usual distance of neighbouring samples per metric; 0 = unknown.
        phase_ns: phase of the grid that most entities keep to; None = no clock is off.
        factors: what a series (by its identity) has to be multiplied by to be like its peers; those that are unsuspected are absent.
    """

    step_ns: Mapping[str, int] = field(default_factory=dict)
    phase_ns: int | None = None
    factors: Mapping[tuple[str, ...], float] = field(default_factory=dict)


class Cleaner:
    """Points of whole entities, through the steps of the module: first counted, then (``finish``) judged.

    Args:
        points: N points in file order; they are sorted here, and what has no time is dropped and counted.
        policy, now: as for :func:`clean_samples`.
    """

    def __init__(
        self,
        source: str,
        points: Points,
        inventory: Inventory,
        quality: QualityReport,
        policy: QualityPolicy = DEFAULT_POLICY,
        now: pd.Timestamp | None = None,
    ) -> None:
        self.source, self.inventory, self.quality, self.policy = source, inventory, quality, policy
        self.labels = labels = points.labels
        self.places, self.place = codes_of([la.place for la in labels])
        self.entities, entity = codes_of([la.entity for la in labels])
        self.metrics, metric = codes_of([la.metric for la in labels])
        self.identities, self.series_of_group = codes_of([la.identity for la in labels])
        # per series
        self.metric, self.entity = np.zeros(len(self.identities), dtype=np.int64), np.zeros(len(self.identities), dtype=np.int64)
        self.metric[self.series_of_group], self.entity[self.series_of_group] = metric, entity
        # per label group
        self.is_counter = np.array([METRICS[la.metric].counter for la in labels], dtype=bool)
        self.is_delta = np.array([la.delta for la in labels], dtype=bool)
        self.gaps: Gaps = NO_GAPS
        self.filled: np.ndarray | None = None
        quality.saw(source, points=len(points.time_ns), devices=len(self.places))
        self._sort(points, np.inf if now is None else now.value + policy.future_s * 10**9)

    def __len__(self) -> int:
        return len(self.time_ns)

    def _sort(self, points: Points, now_ns: float) -> None:
        good = ~points.bad_time
        self.without_time, self.timed = len(good) - int(good.sum()), int(good.sum())
        if self.without_time:
            self._count_groups("unparseable", points.group[points.bad_time])
        early = good & (points.time_ns > now_ns)
        if early.any():
            self._count_groups("future_timestamp", points.group[early], points.time_ns[early])
            good = good & ~early if self.policy.of("future_timestamp") == DROP else good
        columns = (points.group, points.time_ns, points.value, points.state, points.stream)
        if not good.all():
            columns = tuple(column[good] if column is not None else None for column in columns)
        group, time_ns, value, state, stream = columns
        foreign = np.array([la.unit != (la.native_unit or METRICS[la.metric].unit) for la in self.labels], dtype=bool)
        foreign &= (points.scale != 1.0) | (points.shift != 0.0)
        if foreign.any():
            rows = foreign[group]
            self._count_groups("unit_converted", group[rows], time_ns[rows])
        series = self.series_of_group.astype(np.int32)[group]
        streams = stream if stream is not None else series
        late = sorting.earlier_than_before(streams, time_ns, int(streams.max(initial=-1)) + 1)
        self._count_groups("out_of_order", group[late], time_ns[late])
        rows = sorting.sorted_rows(series, time_ns, len(self.metric))
        self.scale, self.shift, self.series, self.group = points.scale, points.shift, series[rows], group[rows]
        self.time_ns, self.value, self.state = time_ns[rows], value[rows], state[rows]

    # Counting

    def _count_groups(self, flaw: str, groups: np.ndarray, time_ns: np.ndarray | None = None) -> None:
        """Count points, given by their label groups and times."""
        if len(groups):
            self.quality.add_per_device(self.source, flaw, self.place[groups], self.places, time_ns)

    def _count(self, flaw: str, rows: np.ndarray) -> None:
        """Count the points at ``rows`` (positions or mask)."""
        self._count_groups(flaw, self.group[rows], self.time_ns[rows])

    def _keep(self, rows: np.ndarray) -> None:
        """Leave only the points at ``rows`` (positions or mask)."""
        self.series, self.group, self.time_ns, self.value = self.series[rows], self.group[rows], self.time_ns[rows], self.value[rows]

    def _drop(self, flaw: str, mask: np.ndarray) -> None:
        if mask.any():
            self._count(flaw, mask)
            self._keep(~mask)

    def _judge(self, flaw: str, mask: np.ndarray) -> bool:
        """Count, and drop where that is the policy; whether the points at ``mask`` are there to be repaired."""
        if not mask.any():
            return False
        if self.policy.of(flaw) == DROP:
            self._drop(flaw, mask)
            return False
        self._count(flaw, mask)
        return self.policy.of(flaw) == REPAIR

    def step_counts(self) -> dict[str, dict[int, int]]:
        """Distances between neighbouring times per metric, ns, and how often each occurs."""
        metric, step, count = sorting.distance_runs(self.series, self.metric, self.time_ns)
        counts: dict[str, dict[int, int]] = {name: {} for name in self.metrics}
        for index, name in enumerate(self.metrics):
            own = metric == index
            steps, at = np.unique(step[own], return_inverse=True)
            counts[name] = dict(zip(steps.tolist(), _totals(at, count[own], len(steps)), strict=True))
        return counts

    def _step_of_series(self, step_ns: Mapping[str, int]) -> np.ndarray:
        return np.array([step_ns.get(name, 0) for name in self.metrics], dtype=np.int64)[self.metric]

    def own_phases(self, step_ns: Mapping[str, int]) -> dict[str, int]:
        """Phase of each entity that keeps to one, ns."""
        entity, phase, count = sorting.phase_runs(self.series, self.entity, self._step_of_series(step_ns), self.time_ns)
        pairs, at = np.unique(np.stack([entity, phase]), axis=1, return_inverse=True)
        counts: dict[int, dict[int, int]] = {}
        for own, value, total in zip(*pairs.tolist(), _totals(at.ravel(), count, pairs.shape[1]), strict=True):
            counts.setdefault(own, {})[value] = total
        return {
            self.entities[own]: most_common(phases)
            for own, phases in counts.items()
            if max(phases.values()) >= PHASE_SHARE * sum(phases.values())
        }

    def typical(self) -> list[Typical]:
        """Usual value of each series that has peers, of readable points in the metric's unit."""
        if not len(self):
            return []
        wanted = [i for i, identity in enumerate(self.identities) if identity[0] in OF_PEERS]
        first = np.searchsorted(self.series, np.arange(len(self.identities) + 1, dtype=self.series.dtype))
        found = []
        for index in wanted:
            own = slice(first[index], first[index + 1])
            group, time_ns = self.group[own], self.time_ns[own]
            last = np.ones(len(group), dtype=bool)
            last[:-1] = np.diff(time_ns) > 0
            last &= self.state[own] == GOOD
            group, time_ns = group[last], time_ns[last]
            if not len(group):
                continue
            value = self.value[own][last] * self.scale[group] + self.shift[group]
            counts = bool(self.is_counter[group[0]] and not self.is_delta[group[0]])
            found.append(Typical(self.identities[index], self._peers(self.labels[group[0]]), typical_value(time_ns, value, counts)))
        return found

    def _peers(self, labels: Labels) -> tuple[str, str, str]:
        """Equal for series that should be alike."""
        model = self.inventory.nodes.get(labels.node, NodeInfo()).gpu_model
        return labels.metric, "gpu" if is_gpu(labels.device) else labels.device.rstrip("0123456789"), model

    # Judging

    def finish(self, common: Common) -> None:
        """Judge every point by what was counted over all pieces; only those that are kept stay."""
        self._skew(common)
        self._duplicates()
        self._gaps(self._step_of_series(common.step_ns)[self.series])
        self._values()
        self._whole_series(common.factors)
        self._limits()
        self._stuck()
        self._rates()
        podless = np.array([la.metric == "hw.gpu.utilization" and not la.pod for la in self.labels], dtype=bool)
        if podless.any():
            self._count("missing_pod_label", podless[self.group] & (self.value > 0))
        if self.policy.of("scrape_gap") == REPAIR:
            self._fill()

    def _skew(self, common: Common) -> None:
        if common.phase_ns is None:
            return
        own, step = self.own_phases(common.step_ns), self._step_of_series(common.step_ns)
        off = {name: phase for name, phase in own.items() if phase != common.phase_ns}
        for name in off:
            self.quality.add(self.source, "clock_skew", 1, name)
        if self.policy.of("clock_skew") != REPAIR:
            return
        offset = np.array([off.get(name, common.phase_ns) - common.phase_ns for name in self.entities], dtype=np.int64)[self.entity]
        offset[step == 0] = 0
        half = step // 2
        offset = np.where(offset > half, offset - step, np.where(offset < -half, offset + step, offset))
        if offset.any():
            self.time_ns = self.time_ns - offset[self.series]

    def _duplicates(self) -> None:
        again = np.zeros(len(self), dtype=bool)
        again[:-1] = (np.diff(self.series) == 0) & (np.diff(self.time_ns) == 0)
        if not again.any():
            return
        if self.policy.duplicate == REPAIR:
            self._average(again)
        self.state = self.state[~again]
        self._drop("duplicate", again)

    def _average(self, again: np.ndarray) -> None:
        """Give the last of several points of a gauge the mean of those that have a value."""
        last = np.flatnonzero(~again)
        run = np.searchsorted(last, np.arange(len(again)))
        good = (self.state == GOOD) & ~self.is_counter[self.group]
        scale, shift = self.scale[self.group], self.shift[self.group]
        count = np.bincount(run[good], minlength=len(last))
        total = np.bincount(run[good], weights=(self.value * scale + shift)[good], minlength=len(last))
        size = np.bincount(run, minlength=len(last))
        rows = last[(size > 1) & (count > 0)]
        self.value[rows] = (total[run[rows]] / count[run[rows]] - shift[rows]) / scale[rows]
        self.state[rows] = GOOD

    def _gaps(self, step_ns: np.ndarray) -> None:
        self.gaps = gaps = find_gaps(self.series, self.time_ns, step_ns)
        if not len(gaps.after):
            return
        self._count("scrape_gap", gaps.after)
        long = gaps.samples > MOST_LAID_OUT
        times, of = gaps.missing_times(np.flatnonzero(~long))
        self._count_groups("scrape_gap_samples", self.group[gaps.after][of], times)
        for row in np.flatnonzero(long):
            place = self.places[self.place[self.group[gaps.after[row]]]]
            self.quality.add(self.source, "scrape_gap_samples", int(gaps.samples[row]), place)
        fills = gaps.fillable(self.is_counter[self.group[gaps.after]], self.policy)
        for row in gaps.longest():
            label = self.labels[self.group[gaps.after[row]]]
            self.quality.add_gap(self.source, gaps.told(row) | {"device": label.place, "metric": label.metric, "filled": bool(fills[row])})

    def _values(self) -> None:
        for flaw, state in (("unparseable", UNPARSEABLE), ("sentinel", SENTINEL)):
            bad = self.state == state
            if bad.any():
                self.state = self.state[~bad]
                self._drop(flaw, bad)
        if (self.scale != 1.0).any() or self.shift.any():
            self.value = self.value * self.scale[self.group] + self.shift[self.group]

    def _whole_series(self, factors: Mapping[tuple[str, ...], float]) -> None:
        """Series that cannot be believed."""
        never = np.array([identity[0] in NEVER_ZERO for identity in self.identities], dtype=bool)
        self._judge("unsupported_zero", zero_series(self.series, self.value, never))
        own = np.array([factors.get(identity, 1.0) for identity in self.identities])
        if (own != 1.0).any() and self._judge("unit_suspected", (own != 1.0)[self.series]):
            self.value = self.value * own[self.series]

    def _limits(self) -> None:
        """Values that cannot be true."""
        labels = self.labels
        known = [self.inventory.nodes.get(la.node, NodeInfo()) for la in labels]
        metrics = [METRICS[la.metric] for la in labels]
        flaw = sorting.limit(
            self.group, self.value,
            np.array([la.metric == "hw.power" for la in labels], dtype=bool),
            np.array([limit_w(la.device, info, self.policy.power_margin) for la, info in zip(labels, known, strict=True)], dtype=float),
            np.array([metric.unit == "1" for metric in metrics], dtype=bool),
            np.array([metric.low for metric in metrics], dtype=float),
            np.array([metric.high for metric in metrics], dtype=float),
        )  # fmt: skip
        if not flaw.any():
            return
        keep = np.ones(len(flaw), dtype=bool)
        for code, name in sorting.FLAWS.items():
            rows = flaw == code
            self._count(name, rows)
            if self.policy.of(name) == DROP:
                keep &= ~rows
        share = flaw == sorting.ABOVE_ONE
        self.value[share] = np.minimum(self.value[share], 1.0)
        self._keep(keep)

    def _stuck(self) -> None:
        at = bounds_of(self.series)
        labels = [self.labels[group] for group in self.group[at[:-1]]]
        rows = stuck_rows(at, self.time_ns, self.value, labels, self.policy)
        if len(rows):
            stuck = np.zeros(len(self), dtype=bool)
            stuck[rows] = True
            self._judge("stuck_value", stuck)

    def _rates(self) -> None:
        """Counters become rates; their first samples go."""
        counts = self.is_counter[self.group]
        rows = np.flatnonzero(counts)
        if not len(rows):
            return
        group, time_ns, value = self.group[rows], self.time_ns[rows], self.value[rows]
        modulus = np.where(self.shift == 0, WRAP_RANGE * self.scale, np.inf)[group]
        rates = counter_rates(self.series[rows], time_ns, value, self.is_delta[group], modulus)
        for place in energy_mismatches(self.series, self.time_ns, self.value, self.identities, rows, rates, self.policy.energy_share):
            self.quality.add(self.source, "energy_mismatch", 1, place)
        keep = ~counts
        keep[rows[rates.rows]] = True
        self.value[rows[rates.rows]] = rates.per_s
        for flaw, found in (("counter_reset", rates.resets), ("counter_wrap", rates.wraps)):
            if len(found):
                self._count(flaw, rows[found])
                if self.policy.of(flaw) == DROP:
                    keep[rows[found]] = False
        self._keep(keep)

    def _fill(self) -> None:
        gauges = ~self.is_counter[self.group]
        extra = fill_gauges(self.gaps, self.series[gauges], self.time_ns[gauges], self.value[gauges], self.policy)
        if not len(extra.value):
            return
        self.quality.note(self.source, f"samples filled in gaps ({self.policy.gap_fill})", len(extra.value))
        filled = np.concatenate([np.zeros(len(self), dtype=bool), np.ones(len(extra.value), dtype=bool)])
        self.series = np.concatenate([self.series, self.series[gauges][extra.before]])
        self.group = np.concatenate([self.group, self.group[gauges][extra.before]])
        self.time_ns, self.value = np.concatenate([self.time_ns, extra.time_ns]), np.concatenate([self.value, extra.value])
        order = np.lexsort((self.time_ns, self.series))
        self._keep(order)
        self.filled = filled[order]

    def cleaned(self) -> Cleaned:
        """What was kept."""
        metric = self.metric[self.series]
        return Cleaned(
            self.source, self.labels, self.inventory, metric, self.group, self.time_ns, self.value, self.filled, self.policy.gap_fill
        )


def _totals(at: np.ndarray, count: np.ndarray, size: int) -> list[int]:
    """Sums of ``count`` per index ``at``."""
    return np.bincount(at, weights=count, minlength=size).astype(np.int64).tolist()


def most_common(counts: Mapping[int, int]) -> int:
    """The most frequent value, the smallest of several; 0 where there is none."""
    return min(counts, key=lambda value: (-counts[value], value)) if counts else 0


def common_phase(own: Mapping[str, int], entities: int) -> int | None:
    """Phase that more than half of ``entities`` keep to, ns; None where there is none, or nobody is off it.

    Args:
        own: phase of each entity that keeps to one.
    """
    counts: dict[int, int] = {}
    for phase in own.values():
        counts[phase] = counts.get(phase, 0) + 1
    if len(counts) < 2 or max(counts.values()) * 2 <= entities:
        return None
    return most_common(counts)

"""From raw points to canonical samples: each flaw detected, counted, and repaired or dropped, by one rule for all readers.

What is done about a flaw is its policy (``telemetry/policy.py``); told here is the default. Order of the steps (each counts on what the
step before left):

1. points without a readable time are dropped (``unparseable``); points later than the clock (``future_timestamp``) and points in a foreign
   unit (``unit_converted``) are counted;
2. ``clock_skew``: where most nodes scrape at one phase of the grid, a node that keeps to another constant phase is shifted onto it, by at
   most half a step (a skew of more than that cannot be told from one of less);
3. ``out_of_order``: earlier than the predecessor in the file; sorted;
4. ``duplicate``: same series and time; the last in the file wins;
5. ``scrape_gap``: on the times that are left, before any value is judged. Before the first and after the last sample is no gap;
6. values: ``unparseable``, ``sentinel``; then series: ``unsupported_zero``, ``unit_suspected``; then ``negative_power``,
   ``implausible_power``, ``utilization_above_one``, other values that cannot be true (``unparseable``), ``stuck_value``;
7. counters become rates (``counter_reset``, ``counter_wrap``), and are held against power (``energy_mismatch``);
8. ``missing_pod_label``: a busy GPU without a pod; kept. Gaps of gauges are filled where the policy says so; counters never are: the rate
   after a gap is the mean over it, so energy is neither lost nor made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from telemetry.counters import WRAP_BITS, Rates, counter_rates
from telemetry.errors import InputError
from telemetry.gaps import NO_GAPS, Gaps, fill_gauges, find_gaps
from telemetry.limits import MAX_DEVICE_W, device_limit_w, is_gpu, node_limit_w
from telemetry.policy import DROP, REPAIR, QualityPolicy
from telemetry.quality import QualityReport
from telemetry.raw import GOOD, SENTINEL, UNPARSEABLE, Labels, RawArrays, RawSamples
from telemetry.schema import SAMPLE_COLUMNS
from telemetry.suspects import NEVER_ZERO, OF_PEERS, bounds_of, energy_mismatches, stuck_rows, typical_values, unit_factors, zero_series
from telemetry.units import METRICS

DEFAULT_POLICY = QualityPolicy()
# Up to 5 % above 1 is rounding of an exporter and is cut; more is no share.
SHARE_ROUNDING = 1.05
# Share of a node's points that must lie on one phase before its clock is called constantly off.
PHASE_SHARE = 0.8


@dataclass(frozen=True)
class NodeInfo:
    """What the inventory knows of a node; ``max_power_w`` of the node and ``gpu_max_power_w`` of each of its GPUs, 0 = not told."""

    site: str = ""
    pool: str = ""
    gpu_model: str = ""
    gpus: int = 0
    max_power_w: float = 0.0
    gpu_max_power_w: float = 0.0


@dataclass(frozen=True)
class Inventory:
    """Nodes by name, and how many Slurm shards make one GPU."""

    nodes: Mapping[str, NodeInfo] = field(default_factory=dict)
    shards_per_gpu: int = 4


def clean_samples(
    raw: RawSamples,
    inventory: Inventory,
    quality: QualityReport,
    *,
    where: str,
    policy: QualityPolicy = DEFAULT_POLICY,
    now: pd.Timestamp | None = None,
) -> pd.DataFrame:
    """Canonical samples of one file; flaws are counted in ``quality`` under ``raw.source``.

    Args:
        policy: what is done about each flaw; ``refuse`` is left to :meth:`QualityPolicy.check`.
        now: the clock that times are held against; None = they are not.

    Raises:
        InputError: a unit that cannot be converted, or no point with a readable time.
    """
    frame = _Cleaner(raw, inventory, quality, where, policy, now).run()
    quality.trim()
    return frame


class _Cleaner:
    def __init__(
        self, raw: RawSamples, inventory: Inventory, quality: QualityReport, where: str, policy: QualityPolicy, now: pd.Timestamp | None
    ) -> None:
        self.source, self.inventory, self.quality, self.where, self.policy = raw.source, inventory, quality, where, policy
        self.now_ns = None if now is None else now.value + policy.future_s * 10**9
        self.points: RawArrays = raw.arrays(where=where)
        labels = self.points.labels
        self.places, self.place = _codes([la.place for la in labels])
        self.entities, self.entity = _codes([la.entity for la in labels])
        self.metrics, self.metric = _codes([la.metric for la in labels])
        _, self.series = _codes([la.identity for la in labels])
        self.is_counter = np.array([METRICS[la.metric].counter for la in labels], dtype=bool)
        self.is_delta = np.array([la.delta for la in labels], dtype=bool)
        self.is_power = np.array([la.metric == "hw.power" for la in labels], dtype=bool)
        self.max_w = np.array([self._limit_w(la) for la in labels])
        self.is_share = np.array([METRICS[la.metric].unit == "1" for la in labels], dtype=bool)
        self.low = np.array([METRICS[la.metric].low for la in labels])
        self.high = np.array([np.inf if METRICS[la.metric].unit == "1" else METRICS[la.metric].high for la in labels])
        self.gaps: Gaps = NO_GAPS
        quality.saw(self.source, points=len(self.points.value), devices=len(self.places))

    def _limit_w(self, labels: Labels) -> float:
        info, margin = self.inventory.nodes.get(labels.node, NodeInfo()), self.policy.power_margin
        if not labels.device:
            return node_limit_w(info.gpu_model, info.gpus, info.max_power_w, info.gpu_max_power_w, margin)
        if not is_gpu(labels.device):
            return MAX_DEVICE_W
        return device_limit_w(info.gpu_model, info.gpu_max_power_w, margin)

    def run(self) -> pd.DataFrame:
        self._times()
        self._units()
        step_ns = self._steps()
        self._skew(step_ns)
        self._order()
        self._duplicates()
        self._gaps(self._steps())
        self._values()
        self._series()
        self._limits()
        return self._table()

    def _count(self, flaw: str, rows: np.ndarray) -> None:
        """Count the points at ``rows`` (positions or mask)."""
        p = self.points
        self.quality.add_per_device(self.source, flaw, self.place[p.group[rows]], self.places, p.time_ns[rows])

    def _drop(self, flaw: str, mask: np.ndarray) -> None:
        if mask.any():
            self._count(flaw, mask)
            self.points = self.points.take(~mask)

    def _judge(self, flaw: str, mask: np.ndarray) -> bool:
        """Count, and drop where that is the policy; whether the points at ``mask`` are there to be repaired."""
        if self.policy.of(flaw) == DROP:
            self._drop(flaw, mask)
            return False
        self._count(flaw, mask)
        return bool(mask.any()) and self.policy.of(flaw) == REPAIR

    def _times(self) -> None:
        bad = self.points.bad_time
        if len(bad) and bad.all():
            raise InputError(
                "no point has a time between 2000 and 2100", where=self.where, allowed="seconds since 1970", remedy="are they milliseconds?"
            )
        if bad.any():
            self.quality.add_per_device(self.source, "unparseable", self.place[self.points.group[bad]], self.places)
            self.points = self.points.take(~bad)
        if self.now_ns is not None:
            self._judge("future_timestamp", self.points.time_ns > self.now_ns)

    def _units(self) -> None:
        foreign = np.array([la.unit != (la.native_unit or METRICS[la.metric].unit) for la in self.points.labels], dtype=bool)
        foreign &= (self.points.scale != 1.0) | (self.points.shift != 0.0)
        self._count("unit_converted", foreign[self.points.group])

    def _steps(self) -> np.ndarray:
        """Most common distance between neighbouring times per metric, ns [metrics]; 0 where unknown."""
        p = self.points
        series = self.series[p.group]
        at = np.lexsort((p.time_ns, series))
        step = np.diff(p.time_ns[at])
        use = (np.diff(series[at]) == 0) & (step > 0)
        metric = self.metric[p.group[at]][1:]
        found = np.zeros(len(self.metrics), dtype=np.int64)
        for index in range(len(self.metrics)):
            steps, counts = np.unique(step[use & (metric == index)], return_counts=True)
            if len(steps):
                found[index] = steps[np.argmax(counts)]
        return found

    def _skew(self, step_ns: np.ndarray) -> None:
        p = self.points
        step = step_ns[self.metric[p.group]]
        known = step > 0
        if not known.any():
            return
        entity = self.entity[p.group]
        phase = np.where(known, p.time_ns % np.maximum(step, 1), -1)
        own = np.full(len(self.entities), -1, dtype=np.int64)
        for index in range(len(self.entities)):
            phases, counts = np.unique(phase[known & (entity == index)], return_counts=True)
            if len(phases) and counts.max() >= PHASE_SHARE * counts.sum():
                own[index] = phases[np.argmax(counts)]
        phases, counts = np.unique(own[own >= 0], return_counts=True)
        if len(phases) < 2 or counts.max() * 2 <= len(self.entities):
            return
        grid = phases[np.argmax(counts)]
        off = (own >= 0) & (own != grid)
        for index in np.flatnonzero(off):
            self.quality.add(self.source, "clock_skew", 1, self.entities[index])
        if self.policy.of("clock_skew") != REPAIR:
            return
        offset = np.where(off[entity] & known, own[entity] - grid, 0)
        half = step // 2
        offset = np.where(offset > half, offset - step, np.where(offset < -half, offset + step, offset))
        p.time_ns[:] = p.time_ns - offset

    def _order(self) -> None:
        p = self.points
        at = np.lexsort((p.order, p.stream))
        late = (np.diff(p.stream[at]) == 0) & (np.diff(p.time_ns[at]) < 0)
        self._count("out_of_order", at[1:][late])
        self.points = p.take(np.lexsort((p.order, p.time_ns, self.series[p.group])))

    def _duplicates(self) -> None:
        p = self.points
        series = self.series[p.group]
        again = np.zeros(len(series), dtype=bool)
        again[:-1] = (np.diff(series) == 0) & (np.diff(p.time_ns) == 0)
        if again.any() and self.policy.duplicate == REPAIR:
            self._average(again)
        self._drop("duplicate", again)

    def _average(self, again: np.ndarray) -> None:
        """Give the last of several points of a gauge the mean of those that have a value."""
        p = self.points
        last = np.flatnonzero(~again)
        run = np.searchsorted(last, np.arange(len(again)))
        good = (p.state == GOOD) & ~self.is_counter[p.group]
        scale, shift = p.scale[p.group], p.shift[p.group]
        count = np.bincount(run[good], minlength=len(last))
        total = np.bincount(run[good], weights=(p.value * scale + shift)[good], minlength=len(last))
        size = np.bincount(run, minlength=len(last))
        rows = last[(size > 1) & (count > 0)]
        p.value[rows] = (total[run[rows]] / count[run[rows]] - shift[rows]) / scale[rows]
        p.state[rows] = GOOD

    def _gaps(self, step_ns: np.ndarray) -> None:
        p = self.points
        self.gaps = gaps = find_gaps(self.series[p.group], p.time_ns, step_ns[self.metric[p.group]])
        self._count("scrape_gap", gaps.after)
        times, of = gaps.missing_times()
        place = self.place[p.group[gaps.after]]
        self.quality.add_per_device(self.source, "scrape_gap_samples", place[of], self.places, times)
        fills = gaps.fillable(self.is_counter[p.group[gaps.after]], self.policy)
        for row in gaps.longest():
            label = p.labels[p.group[gaps.after[row]]]
            self.quality.add_gap(self.source, gaps.told(row) | {"device": label.place, "metric": label.metric, "filled": bool(fills[row])})

    def _values(self) -> None:
        self._drop("unparseable", self.points.state == UNPARSEABLE)
        self._drop("sentinel", self.points.state == SENTINEL)
        p = self.points
        p.value[:] = p.value * p.scale[p.group] + p.shift[p.group]

    def _series(self) -> None:
        """Whole series that cannot be believed."""
        never = np.array([la.metric in NEVER_ZERO for la in self.points.labels], dtype=bool)
        p = self.points
        self._judge("unsupported_zero", zero_series(self.series[p.group], p.value, never[p.group]))
        p = self.points
        series = self.series[p.group]
        at = bounds_of(series)
        factors = unit_factors(
            typical_values(series, p.time_ns, p.value, self.is_counter[p.group] & ~self.is_delta[p.group]),
            [self._peers(p.labels[group]) for group in p.group[at[:-1]]],
        )
        factor = np.repeat(factors, np.diff(at))
        if self._judge("unit_suspected", factor != 1):
            p.value[:] = p.value * factor

    def _peers(self, labels: Labels) -> object:
        if labels.metric not in OF_PEERS:
            return None
        model = self.inventory.nodes.get(labels.node, NodeInfo()).gpu_model
        return labels.metric, "gpu" if is_gpu(labels.device) else labels.device.rstrip("0123456789"), model

    def _limits(self) -> None:
        """Values that cannot be true."""
        p = self.points
        self._drop("negative_power", self.is_power[p.group] & (p.value < 0))
        p = self.points
        self._judge("implausible_power", self.is_power[p.group] & (p.value > self.max_w[p.group]))
        p = self.points
        self._judge("utilization_above_one", self.is_share[p.group] & (p.value > SHARE_ROUNDING))
        p = self.points
        self._drop("unparseable", (p.value < self.low[p.group]) | (p.value > self.high[p.group]))
        p = self.points
        share = self.is_share[p.group]
        p.value[share] = np.minimum(p.value[share], 1.0)
        p = self.points
        series = self.series[p.group]
        labels = [p.labels[group] for group in p.group[bounds_of(series)[:-1]]]
        stuck = np.zeros(len(series), dtype=bool)
        stuck[stuck_rows(series, p.time_ns, p.value, labels, self.policy)] = True
        self._judge("stuck_value", stuck)

    def _rates(self, counters: np.ndarray) -> Rates:
        """Rates of the points at ``counters``, and what the policies leave of them."""
        c = self.points.take(counters)
        modulus = np.where(c.shift[c.group] == 0, WRAP_BITS * c.scale[c.group], np.inf)
        rates = counter_rates(self.series[c.group], c.time_ns, c.value, self.is_delta[c.group], modulus)
        gone = []
        for flaw, rows in (("counter_reset", rates.resets), ("counter_wrap", rates.wraps)):
            self._count(flaw, counters[rows])
            if self.policy.of(flaw) == DROP:
                gone.append(rows)
        is_energy = np.array([la.metric == "hw.energy" for la in c.labels], dtype=bool)[c.group]
        own = Rates(rates.rows[is_energy[rates.rows]], rates.per_s[is_energy[rates.rows]], rates.resets, rates.wraps)
        p = self.points
        for place in energy_mismatches(
            self.place[p.group], p.time_ns, p.value, self.is_power[p.group], counters, own, self.policy.energy_share
        ):
            self.quality.add(self.source, "energy_mismatch", 1, self.places[place])
        keep = ~np.isin(rates.rows, np.concatenate(gone)) if gone else slice(None)
        return Rates(rates.rows[keep], rates.per_s[keep], rates.resets, rates.wraps)

    def _table(self) -> pd.DataFrame:
        p = self.points
        counter = self.is_counter[p.group]
        gauges = np.flatnonzero(~counter)
        counters = np.flatnonzero(counter)
        rates = self._rates(counters)
        busy = np.array([la.metric == "hw.gpu.utilization" and not la.pod for la in p.labels], dtype=bool)
        self._count("missing_pod_label", busy[p.group] & (p.value > 0))
        rows = np.concatenate([gauges, counters[rates.rows]])
        group, time_ns, value = p.group[rows], p.time_ns[rows], np.concatenate([p.value[gauges], rates.per_s])
        filled = np.zeros(len(rows), dtype=bool)
        if self.policy.of("scrape_gap") == REPAIR:
            extra = fill_gauges(self.gaps, self.series[p.group[gauges]], p.time_ns[gauges], p.value[gauges], self.policy)
            self.quality.note(self.source, f"samples filled in gaps ({self.policy.gap_fill})", len(extra.value))
            group = np.concatenate([group, p.group[gauges][extra.before]])
            time_ns, value = np.concatenate([time_ns, extra.time_ns]), np.concatenate([value, extra.value])
            filled = np.concatenate([filled, np.ones(len(extra.value), dtype=bool)])
        return self._frame(group, time_ns, value, filled)

    def _frame(self, group: np.ndarray, time_ns: np.ndarray, value: np.ndarray, filled: np.ndarray) -> pd.DataFrame:
        at = np.lexsort((time_ns, self.series[group]))
        columns: dict[str, object] = {
            "time": pd.DatetimeIndex(time_ns[at].astype("datetime64[ns]")).tz_localize("UTC"),
            "value": value[at],
        }
        text = self._text()
        for name, told in text.items():
            names, code = _codes(told)
            columns[name] = pd.Categorical.from_codes(code[group[at]], categories=names)
        how = ["", self.policy.gap_fill] if filled.any() else [""]
        columns["filled"] = pd.Categorical.from_codes(filled[at].astype(np.int8), categories=how)
        return pd.DataFrame(columns)[list(SAMPLE_COLUMNS)]

    def _text(self) -> dict[str, list[str]]:
        """Text columns per label group."""
        labels = self.points.labels
        infos = [self.inventory.nodes.get(la.node, NodeInfo()) for la in labels]
        unknown = {la.node for la in labels if la.node and la.node not in self.inventory.nodes}
        self.quality.note(self.source, "nodes that are not in the inventory (no site, no pool)", len(unknown))
        metrics = [METRICS[la.metric] for la in labels]
        return {
            "metric": [m.rate or la.metric for m, la in zip(metrics, labels, strict=True)],
            "unit": [m.rate_unit or m.unit for m in metrics],
            "site": [la.site or info.site for la, info in zip(labels, infos, strict=True)],
            "pool": [info.pool for info in infos],
            "node": [la.node for la in labels],
            "device": [la.device for la in labels],
            "service": [la.service for la in labels],
            "pod_uid": [la.pod for la in labels],
            "namespace": [la.namespace for la in labels],
            "team": [la.team for la in labels],
            "project": [la.project for la in labels],
            "source": [self.source] * len(labels),
        }


def _codes(values: list) -> tuple[list, np.ndarray]:
    """Distinct values, sorted, and the code of each."""
    names = sorted(set(values))
    index = {name: code for code, name in enumerate(names)}
    return names, np.array([index[value] for value in values], dtype=np.int64)

"""From raw points to canonical samples: each flaw detected, counted, and repaired or dropped, by one rule for all readers.

Order of the steps (each counts on what the step before left):

1. points without a readable time are dropped (``unparseable``); points in a foreign unit are counted (``unit_converted``);
2. ``clock_skew``: where most nodes scrape at one phase of the grid, a node that keeps to another constant phase is shifted onto it, by at
   most half a step (a skew of more than that cannot be told from one of less);
3. ``out_of_order``: earlier than the predecessor in the file; sorted;
4. ``duplicate``: same series and time; the last in the file wins;
5. ``scrape_gap``: on the times that are left, before any value is judged. Before the first and after the last sample is no gap;
6. values: ``unparseable``, ``sentinel``, ``negative_power``, ``implausible_power``; dropped;
7. counters become rates (``counter_reset``);
8. ``missing_pod_label``: a busy GPU without a pod; kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from telemetry.counters import counter_rates
from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import SENTINEL, UNPARSEABLE, Points, RawArrays
from telemetry.schema import SAMPLE_COLUMNS, SAMPLE_TEXT
from telemetry.units import METRICS

# A GPU board draws below 1.5 kW and a node below 20 kW today; 65,535 W is what a BMC without a reading prints.
MAX_DEVICE_W = 3_000.0
MAX_NODE_W = 30_000.0
# Share of a node's points that must lie on one phase before its clock is called constantly off.
PHASE_SHARE = 0.8


@dataclass(frozen=True)
class NodeInfo:
    """What the inventory knows of a node."""

    site: str = ""
    pool: str = ""
    gpu_model: str = ""
    gpus: int = 0


@dataclass(frozen=True)
class Inventory:
    """Nodes by name, and how many Slurm shards make one GPU."""

    nodes: Mapping[str, NodeInfo] = field(default_factory=dict)
    shards_per_gpu: int = 4


def clean_samples(raw: Points, inventory: Inventory, quality: QualityReport, *, where: str) -> pd.DataFrame:
    """Canonical samples of one file; flaws are counted in ``quality`` under ``raw.source``.

    Raises:
        InputError: a unit that cannot be converted, or no point with a readable time.
    """
    return _Cleaner(raw, inventory, quality, where).run()


class _Cleaner:
    def __init__(self, raw: Points, inventory: Inventory, quality: QualityReport, where: str) -> None:
        self.source, self.inventory, self.quality, self.where = raw.source, inventory, quality, where
        self.points: RawArrays = raw.arrays(where=where)
        labels = self.points.labels
        self.places, self.place = _codes([la.place for la in labels])
        self.entities, self.entity = _codes([la.entity for la in labels])
        self.metrics, self.metric = _codes([la.metric for la in labels])
        _, self.series = _codes([la.identity for la in labels])
        self.is_counter = np.array([METRICS[la.metric].counter for la in labels])
        self.is_power = np.array([la.metric == "hw.power" for la in labels])
        self.max_w = np.array([MAX_DEVICE_W if la.device else MAX_NODE_W for la in labels])
        self.is_signed = np.array([METRICS[la.metric].signed for la in labels])
        self.is_share = np.array([METRICS[la.metric].unit == "1" for la in labels])

    def run(self) -> pd.DataFrame:
        self._times()
        self._units()
        step_ns = self._steps()
        self._skew(step_ns)
        self._order()
        self._duplicates()
        self._gaps(self._steps())
        self._values()
        return self._table()

    def _count(self, flaw: str, rows: np.ndarray) -> None:
        """Count the points at ``rows`` (positions or mask)."""
        self.quality.add_per_device(self.source, flaw, self.place[self.points.group[rows]], self.places)

    def _drop(self, flaw: str, mask: np.ndarray) -> None:
        if mask.any():
            self._count(flaw, mask)
            self.points = self.points.take(~mask)

    def _times(self) -> None:
        bad = self.points.bad_time
        if len(bad) and bad.all():
            raise InputError(
                "no point has a time between 2000 and 2100", where=self.where, allowed="seconds since 1970", remedy="are they milliseconds?"
            )
        self._drop("unparseable", bad)

    def _units(self) -> None:
        foreign = np.array([la.unit != (la.native_unit or METRICS[la.metric].unit) for la in self.points.labels])
        foreign &= self.points.scale != 1.0
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
        self._drop("duplicate", again)

    def _gaps(self, step_ns: np.ndarray) -> None:
        p = self.points
        step = step_ns[self.metric[p.group]][1:]
        inside = (np.diff(self.series[p.group]) == 0) & (step > 0)
        missing = np.where(inside, np.round(np.diff(p.time_ns) / np.maximum(step, 1)).astype(np.int64) - 1, 0)
        rows = np.flatnonzero(missing > 0)
        self._count("scrape_gap", rows + 1)
        lost = np.bincount(self.place[p.group[rows + 1]], weights=missing[rows], minlength=len(self.places))
        for place in np.flatnonzero(lost):
            self.quality.add(self.source, "scrape_gap_samples", int(lost[place]), self.places[place])

    def _values(self) -> None:
        self._drop("unparseable", self.points.state == UNPARSEABLE)
        self._drop("sentinel", self.points.state == SENTINEL)
        p = self.points
        p.value[:] = p.value * p.scale[p.group]
        power = self.is_power[p.group]
        self._drop("negative_power", power & (p.value < 0))
        p = self.points
        self._drop("implausible_power", self.is_power[p.group] & (p.value > self.max_w[p.group]))
        p = self.points
        # 5 % above 1 is rounding of an exporter and is cut; more is no share.
        wrong = ((p.value < 0) & ~self.is_signed[p.group]) | (self.is_share[p.group] & (p.value > 1.05))
        self._drop("unparseable", wrong)
        p = self.points
        share = self.is_share[p.group]
        p.value[share] = np.minimum(p.value[share], 1.0)

    def _table(self) -> pd.DataFrame:
        p = self.points
        counter = self.is_counter[p.group]
        gauges = np.flatnonzero(~counter)
        counters = np.flatnonzero(counter)
        c = p.take(counters)
        delta = np.array([la.delta for la in p.labels])[c.group]
        rates = counter_rates(self.series[c.group], c.time_ns, c.value, delta)
        self._count("counter_reset", counters[rates.resets])
        rows = np.concatenate([gauges, counters[rates.rows]])
        value = np.concatenate([p.value[gauges], rates.per_s])
        frame = self._frame(p.group[rows], p.time_ns[rows], value)
        busy = np.array([la.metric == "hw.gpu.utilization" and not la.pod for la in p.labels])
        self._count("missing_pod_label", busy[p.group] & (p.value > 0))
        return frame

    def _frame(self, group: np.ndarray, time_ns: np.ndarray, value: np.ndarray) -> pd.DataFrame:
        at = np.lexsort((time_ns, self.series[group]))
        columns: dict[str, object] = {
            "time": pd.DatetimeIndex(time_ns[at].astype("datetime64[ns]")).tz_localize("UTC"),
            "value": value[at],
        }
        text = self._text()
        for name in SAMPLE_TEXT:
            names, code = _codes(text[name])
            columns[name] = pd.Categorical.from_codes(code[group[at]], categories=names)
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

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

All but two of the steps look at one series alone, so a file may be cleaned in pieces that hold whole entities (:class:`Cleaner`): what the
pieces must be told is the usual step of each metric (5) and the common phase (2), which are counted over all of them before.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from telemetry import sorting
from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import Labels, Points, RawSamples
from telemetry.schema import SAMPLE_COLUMNS, SAMPLE_TEXT
from telemetry.units import METRICS

# A GPU board draws below 1.5 kW and a node below 20 kW today; 65,535 W is what a BMC without a reading prints.
MAX_DEVICE_W = 3_000.0
MAX_NODE_W = 30_000.0
# Share of a node's points that must lie on one phase before its clock is called constantly off.
PHASE_SHARE = 0.8
FATES: dict[int, str] = {
    sorting.DUPLICATE: "duplicate",
    sorting.UNPARSEABLE_VALUE: "unparseable",
    sorting.SENTINEL_VALUE: "sentinel",
    sorting.NEGATIVE_POWER: "negative_power",
    sorting.IMPLAUSIBLE_POWER: "implausible_power",
}


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


def clean_samples(raw: RawSamples, inventory: Inventory, quality: QualityReport, *, where: str) -> pd.DataFrame:
    """Canonical samples of one file; flaws are counted in ``quality`` under ``raw.source``.

    Raises:
        InputError: a unit that cannot be converted, or no point with a readable time.
    """
    cleaner = Cleaner(raw.source, raw.points(where=where), inventory, quality)
    if cleaner.without_time and not len(cleaner):
        raise no_time(where)
    step_ns = {metric: most_common(counts) for metric, counts in cleaner.step_counts().items()}
    cleaner.finish(step_ns, common_phase(cleaner.own_phases(step_ns), len(cleaner.entities)))
    note_unknown(raw.source, cleaner.labels, inventory, quality)
    return cleaner.frame()


def no_time(where: str) -> InputError:
    """What is raised where no point has a readable time."""
    return InputError(
        "no point has a time between 2000 and 2100", where=where, allowed="seconds since 1970", remedy="are they milliseconds?"
    )


def note_unknown(source: str, labels: Sequence[Labels], inventory: Inventory, quality: QualityReport) -> None:
    """Note how many nodes the inventory does not know."""
    unknown = {la.node for la in labels if la.node and la.node not in inventory.nodes}
    quality.note(source, "nodes that are not in the inventory (no site, no pool)", len(unknown))


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


class Cleaner:
    """Points of whole entities, through the steps of the module: first counted, then (``finish``) judged.

    Args:
        points: N points in file order; they are sorted here, and what has no time is dropped and counted.
    """

    def __init__(self, source: str, points: Points, inventory: Inventory, quality: QualityReport) -> None:
        self.source, self.inventory, self.quality = source, inventory, quality
        self.labels = labels = points.labels
        self.places, self.place = _codes([la.place for la in labels])
        self.entities, entity = _codes([la.entity for la in labels])
        self.metrics, metric = _codes([la.metric for la in labels])
        identities, self.series_of_group = _codes([la.identity for la in labels])
        # per series
        self.metric, self.entity = np.zeros(len(identities), dtype=np.int64), np.zeros(len(identities), dtype=np.int64)
        self.metric[self.series_of_group], self.entity[self.series_of_group] = metric, entity
        self._sort(points)

    def __len__(self) -> int:
        return len(self.time_ns)

    def _sort(self, points: Points) -> None:
        group, time_ns, value, state, stream = points.group, points.time_ns, points.value, points.state, points.stream
        foreign = np.array([la.unit != (la.native_unit or METRICS[la.metric].unit) for la in self.labels], dtype=bool) & (
            points.scale != 1.0
        )
        self.without_time = int(points.bad_time.sum())
        if self.without_time:
            self._count_groups("unparseable", group[points.bad_time])
            good = ~points.bad_time
            group, time_ns, value, state = group[good], time_ns[good], value[good], state[good]
            stream = stream[good] if stream is not None else None
        if foreign.any():
            self._count_groups("unit_converted", group[foreign[group]])
        series = self.series_of_group.astype(np.int32)[group]
        streams = stream if stream is not None else series
        late = sorting.earlier_than_before(streams, time_ns, int(streams.max(initial=-1)) + 1)
        self._count_groups("out_of_order", group[late])
        rows = sorting.sorted_rows(series, time_ns, len(self.metric))
        self.scale, self.series, self.group = points.scale, series[rows], group[rows]
        self.time_ns, self.value, self.state = time_ns[rows], value[rows], state[rows]

    def _count_groups(self, flaw: str, groups: np.ndarray) -> None:
        """Count points, given by their label groups."""
        if len(groups):
            self.quality.add_per_device(self.source, flaw, self.place[groups], self.places)

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

    def finish(self, step_ns: Mapping[str, int], phase_ns: int | None) -> None:
        """Judge every point by the step of its metric and the common phase (None = no clock is off); only those that are kept stay."""
        labels, step = self.labels, self._step_of_series(step_ns)
        self._skew(step_ns, step, phase_ns)
        fate, missing, reset = sorting.judge(
            self.series, self.group, self.time_ns, self.value, self.state, step, self.scale,
            np.array([la.metric == "hw.power" for la in labels], dtype=bool),
            np.array([MAX_DEVICE_W if la.device else MAX_NODE_W for la in labels], dtype=float),
            np.array([METRICS[la.metric].unit == "1" for la in labels], dtype=bool),
            np.array([METRICS[la.metric].counter for la in labels], dtype=bool),
            np.array([la.delta for la in labels], dtype=bool),
        )  # fmt: skip
        gaps = np.flatnonzero(missing)
        self._count_groups("scrape_gap", self.group[gaps])
        self._count_groups("scrape_gap_samples", np.repeat(self.group[gaps], missing[gaps]))
        for why, flaw in FATES.items():
            self._count_groups(flaw, self.group[fate == why])
        self._count_groups("counter_reset", self.group[reset])
        keep = np.flatnonzero(fate == sorting.KEPT)
        self.series, self.group, self.time_ns, self.value = self.series[keep], self.group[keep], self.time_ns[keep], self.value[keep]
        podless = np.array([la.metric == "hw.gpu.utilization" and not la.pod for la in labels], dtype=bool)
        if podless.any():
            self._count_groups("missing_pod_label", self.group[podless[self.group] & (self.value > 0)])

    def _skew(self, step_ns: Mapping[str, int], step: np.ndarray, phase_ns: int | None) -> None:
        if phase_ns is None:
            return
        own = self.own_phases(step_ns)
        off = {name: phase for name, phase in own.items() if phase != phase_ns}
        for name in off:
            self.quality.add(self.source, "clock_skew", 1, name)
        offset = np.array([off.get(name, phase_ns) - phase_ns for name in self.entities], dtype=np.int64)[self.entity]
        offset[step == 0] = 0
        half = step // 2
        offset = np.where(offset > half, offset - step, np.where(offset < -half, offset + step, offset))
        if offset.any():
            self.time_ns = self.time_ns - offset[self.series]

    def frame(self) -> pd.DataFrame:
        """The canonical table of what was kept, by series and time."""
        columns: dict[str, object] = {
            "time": pd.DatetimeIndex(self.time_ns.astype("datetime64[ns]")).tz_localize("UTC"),
            "value": self.value,
        }
        for name, (names, code) in self._text().items():
            columns[name] = pd.Categorical.from_codes(code[self.group], categories=names)
        return pd.DataFrame(columns)[list(SAMPLE_COLUMNS)]

    def tables(self) -> Sequence[pa.Table]:
        """The same as :meth:`frame`, one Arrow table a metric, text as dictionaries."""
        if not len(self):
            return []
        text, metric = self._text(), self.metric[self.series]
        bounds = [0, *(np.flatnonzero(np.diff(metric)) + 1).tolist(), len(metric)]
        found = []
        for first, end in itertools.pairwise(bounds):
            group = self.group[first:end]
            groups = np.flatnonzero(np.bincount(group, minlength=len(self.labels)))
            columns = {
                "time": pa.array(self.time_ns[first:end] // 1000, type=pa.timestamp("us", tz="UTC")),
                "value": pa.array(self.value[first:end]),
                **{name: _dictionary(code, names, group, groups) for name, (names, code) in text.items()},
            }
            found.append(pa.table({name: columns[name] for name in SAMPLE_COLUMNS}))
        return found

    def _text(self) -> dict[str, tuple[list[str], np.ndarray]]:
        """Text columns: their distinct values, and the code of each label group."""
        labels = self.labels
        infos = [self.inventory.nodes.get(la.node, NodeInfo()) for la in labels]
        metrics = [METRICS[la.metric] for la in labels]
        text = {
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
        return {name: _codes(text[name]) for name in SAMPLE_TEXT}


def _totals(at: np.ndarray, count: np.ndarray, size: int) -> list[int]:
    """Sums of ``count`` per index ``at``."""
    return np.bincount(at, weights=count, minlength=size).astype(np.int64).tolist()


def _dictionary(code: np.ndarray, names: list[str], group: np.ndarray, groups: np.ndarray) -> pa.DictionaryArray:
    """Text as Arrow holds it, with the names that occur alone.

    Args:
        code: name of each label group; group: label group of each row; groups: those that occur.
    """
    used = np.unique(code[groups])
    if len(used) == 1:
        zeros = pa.py_buffer(bytes(4 * len(group)))
        return pa.DictionaryArray.from_arrays(pa.Array.from_buffers(pa.int32(), len(group), [None, zeros]), [names[used[0]]])
    own = np.zeros(len(code), dtype=np.int32)
    own[groups] = np.searchsorted(used, code[groups])
    return pa.DictionaryArray.from_arrays(own[group], [names[index] for index in used])


def _codes(values: list) -> tuple[list, np.ndarray]:
    """Distinct values, sorted, and the code of each."""
    names = sorted(set(values))
    index = {name: code for code, name in enumerate(names)}
    return names, np.array([index[value] for value in values], dtype=np.int64)

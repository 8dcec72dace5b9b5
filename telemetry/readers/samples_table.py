"""Samples in columns: a Parquet or Arrow IPC file, or a folder of them, one row a sample, as Spark or a Thanos or Mimir export writes them.

=============================  ====================================================================================================
column (first of these found)  meaning
=============================  ====================================================================================================
time, timestamp, ts            timestamp (no zone = UTC), or seconds since 1970; ``time_ms``, ``timestamp_ms`` are milliseconds
metric, __name__, metric_name  canonical name, or that of a GPU, IPMI DCMI or HTTP request metric (``NATIVE``)
value                          number; blank, NaN and -1 are no reading; text is read as in the other formats
unit                           optional: of the value; blank = that of the exporter, or of the canonical metric
node, Hostname, hostname,      the machine
nodename, instance
device, gpu (and GPU_I_ID)     part of it: '' = the node as a whole; ``gpu`` 3 is device ``gpu3``
service, service_name          of a request counter
site, namespace, team,         optional, as in the table ``samples``; ``pod`` and ``exported_pod`` are pods as well
project, pod_uid
=============================  ====================================================================================================

Other columns are not read. A folder is read in the order of its files' names (so that "the last in the file wins" has a meaning);
``key=value`` folders, as Hive and Spark lay them out, are columns. Names that begin with ``.`` or ``_`` are left out.

Memory does not grow with the rows: :mod:`telemetry.spill` sorts them into buckets of whole nodes, and each bucket goes through the same
:class:`telemetry.cleaner.Cleaner` as every other format, told the steps and the phase that were counted over all buckets before. So the
result does not depend on the size of the buckets. A single node with more rows than a bucket is held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from telemetry.cleaner import Cleaner, Common, common_phase, most_common
from telemetry.cleaning import no_time, note_unknown
from telemetry.errors import InputError
from telemetry.implausible import Typical, unit_factors
from telemetry.quality import QualityReport
from telemetry.raw import Labels, Points, parse_values, scales, shifts
from telemetry.readers.base import Pieces, ReadContext, ReadResult
from telemetry.readers.columnar import ColumnarFile, columnar_files
from telemetry.readers.prometheus_metrics import EXPORTED, Exported
from telemetry.sample_labels import GroupIndex, times_of
from telemetry.spill import NO_TIME, Spill, ranges
from telemetry.units import METRICS

PIECE_ROWS = 3_000_000
BATCH_ROWS = 1 << 20
WORKERS = 2
# Exporters' metrics whose device the columns tell.
NATIVE: dict[str, Exported] = {
    name: exported
    for name, exported in EXPORTED.items()
    if exported.of in ("gpu", "service") or name == "ipmi_dcmi_power_consumption_watts" or name.startswith("instance:node_cpu")
}


_Load = Callable[[int, QualityReport], Cleaner]


class _Counted(NamedTuple):
    """What is counted of one bucket."""

    steps: dict[str, dict[int, int]]
    guess: dict[str, int]
    phases: dict[str, int]
    entities: list[str]
    typical: list[Typical]
    timed: int


@dataclass
class _Scan:
    """What is known of the whole input before any bucket is finished."""

    labels: list[Labels]
    zero_is_none: np.ndarray
    groups: list[np.ndarray]  # per bucket
    common: Common = field(default_factory=Common)


class SamplesTableReader:
    """See the module."""

    name = "samples_table"
    tested = "tables made by pandas and pyarrow, held to the same points as a Prometheus answer; 287 million rows"
    reads = "samples in columns: Parquet or Arrow IPC, a file or a folder of them"

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        quality = QualityReport()
        cleaners = list(_cleaners(path, context, quality, None))
        return ReadResult({"samples": cleaners[0].cleaned().frame()}, quality)

    def read_pieces(self, path: Path, context: ReadContext, piece_rows: int = PIECE_ROWS) -> Pieces:
        """The same in parts of about ``piece_rows`` rows at most, by node; each part is of one metric, sorted by series and time."""
        quality = QualityReport()

        def tables() -> Iterator[tuple[str, pa.Table]]:
            for cleaner in _cleaners(path, context, quality, piece_rows):
                for table in cleaner.cleaned().tables():
                    yield "samples", table

        return Pieces(tables(), quality)


def _cleaners(path: Path, context: ReadContext, quality: QualityReport, piece_rows: int | None) -> Iterator[Cleaner]:
    """Finished buckets, in order; ``piece_rows`` None = one."""
    files, total = columnar_files(path), 0
    entities: dict[str, int] = {}
    for file in files:
        total += file.rows
        if piece_rows is not None and sum(f.rows for f in files) > piece_rows:
            _count_entities(file, entities)
    bucket_of = ranges(list(entities), list(entities.values()), piece_rows) if entities and piece_rows else (lambda _: 0)
    with Spill(1 + max(map(bucket_of, entities), default=0), context.scratch) as spill:
        scan = _sort_in(files, total, spill, bucket_of, context, quality)
        yield from _finished(scan, spill, context, quality, str(path))


def _count_entities(file: ColumnarFile, entities: dict[str, int]) -> None:
    """Add the rows of each node or service."""
    for batch in file.batches(BATCH_ROWS, ("node", "service")):
        index = GroupIndex(("node", "service"))
        group = index.groups(batch)
        for (node, service), count in zip(index.texts(), np.bincount(group, minlength=index.count).tolist(), strict=True):
            entities[node or service] = entities.get(node or service, 0) + count


def _sort_in(
    files: list[ColumnarFile], total: int, spill: Spill, bucket_of: Callable[[str], int], context: ReadContext, quality: QualityReport
) -> _Scan:
    """Read everything once, into the buckets."""
    index, labels, zero, done = GroupIndex(), [], [], 0
    bucket_of_group = np.empty(0, dtype=np.int32)
    left_out: dict[str, set[int]] = {}
    for file in files:
        for batch in _ahead(file.batches(BATCH_ROWS)):
            known = index.count
            group = index.groups(batch)
            buckets = []
            for texts in index.texts(known):
                label, none = labels_of(dict(zip(index.columns, texts, strict=True)))
                labels.append(label)
                zero.append(none)
                buckets.append(bucket_of(label.entity) if label is not None else -1)
                if label is None:
                    left_out.setdefault(texts[0], set()).add(len(labels))
            bucket_of_group = np.concatenate([bucket_of_group, np.array(buckets, dtype=np.int32)])
            time_ns = times_of(batch.column("time"), file.time_unit, file.where)
            value = _values_of(batch.column("value"))
            if left_out:
                keep = bucket_of_group[group] >= 0
                group, time_ns, value = group[keep], time_ns[keep], value[keep]
            spill.add(bucket_of_group, group, time_ns, value)
            done += batch.num_rows
            if context.progress is not None:
                context.progress("read", done, total)
    spill.flush()
    for metric, found in sorted(left_out.items()):
        quality.note(context.source, f"series of metric {metric or '(blank)'}, which is not read", len(found))
    groups = [np.flatnonzero(bucket_of_group == b) for b in range(len(spill.rows))]
    return _Scan(labels, np.array(zero, dtype=bool), groups)


def _ahead(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same, each read while the one before is worked on."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def labels_of(texts: dict[str, str]) -> tuple[Labels | None, bool]:
    """Canonical labels of a row's text columns (None = a metric that is not read), and whether 0 means "not supported"."""
    name = texts["metric"]
    exported = NATIVE.get(name)
    metric = exported.metric if exported is not None else name
    if metric not in METRICS:
        return None, False
    native = exported.unit if exported is not None else METRICS[name].unit
    device = texts["device"]
    if not device and texts["gpu"]:
        device = f"gpu{texts['gpu']}" + (f"/mig{texts['mig']}" if texts["mig"] and not (exported and exported.board) else "")
    served = metric.startswith("http.")
    return (
        Labels(
            metric=metric,
            node="" if served else texts["node"],
            device="" if served or (exported and exported.of == "node") else device,
            service=texts["service"],
            site=texts["site"],
            pod=texts["pod_uid"],
            namespace=texts["namespace"],
            team=texts["team"],
            project=texts["project"],
            unit=texts["unit"] or native,
            native_unit=native if exported is not None else "",
        ),
        exported is not None and exported.zero_is_blank,
    )


def _values_of(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers [N]: NaN = no reading, infinite = not readable."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.float64(), safe=False).to_numpy().astype(float, copy=True)
    value, state = parse_values(column.to_pylist())
    value[state == 2] = np.inf
    return value


def _finished(scan: _Scan, spill: Spill, context: ReadContext, quality: QualityReport, where: str) -> Iterator[Cleaner]:
    total = sum(spill.rows)
    scale = [scales([scan.labels[g] for g in own], where) for own in scan.groups]

    def load(b: int, found: QualityReport) -> Cleaner:
        group, time_ns, value = spill.read(b)
        local = np.zeros(len(scan.labels), dtype=np.int32)
        local[scan.groups[b]] = np.arange(len(scan.groups[b]), dtype=np.int32)
        state = np.where(np.isinf(value), np.int8(2), np.where(np.isnan(value) | (value == -1), np.int8(1), np.int8(0)))
        if scan.zero_is_none.any():
            state[scan.zero_is_none[group] & (value == 0)] = 1
        labels = [scan.labels[g] for g in scan.groups[b]]
        good = np.where(state == 0, value, np.nan)
        points = Points(labels, scale[b], shifts(labels), local[group], time_ns, time_ns == NO_TIME, good, state)
        return Cleaner(context.source, points, context.inventory, found, context.policy, context.now)

    if not total:
        raise InputError("empty export: no samples of a known metric", where=where, allowed=", ".join((*METRICS, *NATIVE)))
    buckets, done = [b for b, rows in enumerate(spill.rows) if rows], 0
    only, timed = _count_first(scan, load, buckets, quality)
    if not timed:
        raise no_time(where)

    def finish(b: int) -> tuple[Cleaner, QualityReport]:
        found = QualityReport()
        cleaner = load(b, found) if only is None else only
        cleaner.finish(scan.common)
        return cleaner, found

    pool = ThreadPoolExecutor(WORKERS - 1)
    try:
        following: Future[tuple[Cleaner, QualityReport]] = pool.submit(finish, buckets[0])
        kept = 0
        for place, b in enumerate(buckets):
            cleaner, found = following.result()
            if place + 1 < len(buckets):
                following = pool.submit(finish, buckets[place + 1])
            quality.absorb(found)
            kept += len(cleaner.group)
            yield cleaner
            done += spill.rows[b]
            if context.progress is not None:
                context.progress("clean", done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    quality.trim()
    note_unknown(context.source, [la for la in scan.labels if la is not None], context.inventory, quality)


def _count_first(scan: _Scan, load: _Load, buckets: list[int], quality: QualityReport) -> tuple[Cleaner | None, int]:
    """What is common to all buckets into ``scan``. Returns the bucket itself where there is one, and how many points have a time."""
    if len(buckets) == 1:
        cleaner = load(buckets[0], quality)
        steps = {metric: most_common(found) for metric, found in cleaner.step_counts().items()}
        phase_ns = common_phase(cleaner.own_phases(steps), len(cleaner.entities))
        scan.common = Common(steps, phase_ns, unit_factors(cleaner.typical()))
        return cleaner, cleaner.timed

    def count(b: int) -> _Counted:
        cleaner = load(b, QualityReport())
        steps = cleaner.step_counts()
        guess = {metric: most_common(found) for metric, found in steps.items()}
        return _Counted(steps, guess, cleaner.own_phases(guess), cleaner.entities, cleaner.typical(), cleaner.timed)

    with ThreadPoolExecutor(WORKERS) as pool:
        counted = list(pool.map(count, buckets))
    totals: dict[str, dict[int, int]] = {metric: {} for one in counted for metric in one.steps}
    for metric, step, times in ((m, s, n) for one in counted for m, found in one.steps.items() for s, n in found.items()):
        totals[metric][step] = totals[metric].get(step, 0) + times
    step_ns = {metric: most_common(found) for metric, found in totals.items()}
    own: dict[str, int] = {}
    for b, one in zip(buckets, counted, strict=True):
        # A bucket whose own steps are not those of the whole is looked at once more.
        told = all(step_ns[metric] == step for metric, step in one.guess.items())
        own |= one.phases if told else load(b, QualityReport()).own_phases(step_ns)
    entities = {name for one in counted for name in one.entities}
    scan.common = Common(step_ns, common_phase(own, len(entities)), unit_factors([typical for one in counted for typical in one.typical]))
    return None, sum(one.timed for one in counted)

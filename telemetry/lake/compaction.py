"""Old samples made coarser: raw -> 10 minutes -> 1 hour, with the energy of every day kept.

A row of ``samples_10min`` or ``samples_1h`` is a bin ``time <= t < time + width`` of one series and one set of labels (a pod that comes or
goes begins another row): ``min``, ``max``, ``last`` and ``count`` of its samples, and

* ``seconds``: for how long its samples stand. A sample stands for the time since the sample before it in its series: at most three times
  the median distance of that series that day for a gauge (a gap has no energy), all of it for a rate, which is a mean over that time. The
  first sample of a series and day stands for the median distance; a single one for no time at all. Series, day (UTC) and file of the
  source are what the rule looks at, nothing beyond, so a day can be made coarser alone;
* ``mean``: sum of value x seconds / sum of seconds (the plain mean where seconds are 0).

So ``sum(mean * seconds)`` of a day, its energy in J for watts, is the same sum at every level, but for rounding (:func:`sample_seconds`
gives the seconds of raw rows). A sample belongs to the bin of its own time whole, also when it stands for some time before.

Each commit takes away the finer rows and brings the coarser in one replacement of the manifest; killed at any point, the lake is as before
or after it, and the next run goes on. Data that come late for such a day bring raw rows back (their source is read anew), and the next run
makes them coarser again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit

from telemetry.errors import InputError
from telemetry.lake.staging import DayFiles
from telemetry.lake.store import Lake
from telemetry.sample_labels import GroupIndex
from telemetry.schema import BIN_COLUMNS, BIN_NUMBERS, COMPACTED
from telemetry.storage import Storage
from telemetry.units import METRICS

GAP_STEPS = 3.0
RATES = frozenset(metric.rate for metric in METRICS.values() if metric.rate)
COMMIT_ROWS = 50_000_000
PIECE_ROWS = 500_000
US = 1_000_000
FINER = {"samples_10min": "samples", "samples_1h": "samples_10min"}
KEYS = ("metric", "unit", "service", "site", "namespace", "team", "project", "source", "pool", "node", "device", "pod_uid")
IDENTITY = tuple(KEYS.index(name) for name in ("metric", "node", "device", "service"))
_compiled = njit(nogil=True, cache=True)


@dataclass(frozen=True)
class Retention:
    """How long samples stay as they came, and in bins of 10 minutes: days, counted back from the newest day with samples, it included."""

    raw_days: int = 7
    ten_min_days: int = 90

    def __post_init__(self) -> None:
        if not 1 <= self.raw_days <= self.ten_min_days:
            raise InputError(
                f"raw_days {self.raw_days}, ten_min_days {self.ten_min_days}", where="retention", allowed="1 <= raw_days <= ten_min_days"
            )


@dataclass
class Compacted:
    """What was done: rows read and written per coarser table, and days of sources."""

    read: dict[str, int]
    written: dict[str, int]
    days: int = 0


def compact(
    lake: Lake, retention: Retention, newest: str | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Compacted:
    """Make old days coarser; a second time there is nothing to do.

    Args:
        newest: day (UTC, ``2026-01-31``) to count back from; default: the newest in the lake.
        progress: called with the coarser table, rows read, and rows to read.

    Raises:
        InputError: no day, or another writer is at work.
        OSError: the disk is full or not writable; the lake is as after the last commit.
    """
    done = Compacted(dict.fromkeys(COMPACTED, 0), dict.fromkeys(COMPACTED, 0))
    last = _day(newest) if newest is not None else _newest(lake)
    if last is None:
        return done
    for table, days in (("samples_10min", retention.raw_days), ("samples_1h", retention.ten_min_days)):
        edge = str(last - np.timedelta64(days, "D"))
        due = _due(lake.manifest(), FINER[table], edge)
        total = sum(rows for _, _, rows in due)
        for batch in _batches(due):
            lake.change(lambda manifest, folder, batch=batch, table=table: _work(lake.storage, manifest, folder, table, batch, done))
            if progress is not None:
                progress(table, done.read[table], total)
    if not done.days:
        lake.tidy()
    return done


def _day(text: str) -> np.datetime64:
    try:
        return np.datetime64(pd.Timestamp(text).date(), "D")
    except ValueError as error:
        raise InputError(f"{text!r} is no day", where="newest", allowed="a day such as 2026-01-31") from error


def _newest(lake: Lake) -> np.datetime64 | None:
    days = [part["date"] for table in ("samples", *COMPACTED) for part in lake.parts(table)]
    return np.datetime64(max(days), "D") if days else None


def _due(manifest: Mapping[str, Any], table: str, edge: str) -> list[tuple[str, str, int]]:
    """Source, day and rows of what is to be made coarser: days up to and with ``edge``."""
    found: dict[tuple[str, str], int] = {}
    for name, entry in manifest["sources"].items():
        for part in entry["tables"].get(table, ()):
            if part["date"] <= edge:
                found[name, part["date"]] = found.get((name, part["date"]), 0) + part["rows"]
    return [(name, date, rows) for (name, date), rows in sorted(found.items())]


def _batches(due: list[tuple[str, str, int]]) -> Iterator[list[tuple[str, str]]]:
    """Days that are committed together, so that many small ones are not as many commits."""
    batch: list[tuple[str, str]] = []
    held = 0
    for name, date, rows in due:
        if batch and held + rows > COMMIT_ROWS:
            yield batch
            batch, held = [], 0
        batch.append((name, date))
        held += rows
    if batch:
        yield batch


def _work(
    storage: Storage, manifest: Mapping[str, Any], folder: Path, table: str, batch: list[tuple[str, str]], done: Compacted
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The manifest's sources with those days coarser, and the files that were written for it."""
    entries, files, fine = dict(manifest["sources"]), {}, FINER[table]
    for name, date in batch:
        entry = entries.get(name)
        parts = [part for part in (entry or {"tables": {}})["tables"].get(fine, ()) if part["date"] == date]
        if entry is None or not parts:
            continue  # another ingest replaced the source meanwhile
        below = parts[0]["path"].split("/")
        key = "/".join(["tables", table, below[2], below[3]])
        with DayFiles(folder, key, table) as days:
            rows = 0
            for piece in _binned(storage, [part["path"] for part in parts], table):
                days.add(piece)
                rows += len(piece)
            written = days.close(files)
        tables = {other: [part for part in held if other != fine or part["date"] != date] for other, held in entry["tables"].items()}
        tables[table] = sorted([*tables.get(table, []), *written], key=lambda part: part["date"])
        entries[name] = {**entry, "tables": {other: held for other, held in tables.items() if held or other != fine}}
        done.read[table] += sum(part["rows"] for part in parts)
        done.written[table] += rows
        done.days += 1
    return entries, files


def _binned(storage: Storage, keys: list[str], table: str) -> Iterator[pa.Table]:
    """Coarser rows of a day's files, in pieces; every sample of the files is in one of them."""
    held, rows, read, counted = [], 0, 0, 0
    for key in keys:
        for piece in _whole_series(storage, key):
            read += len(piece) if table == "samples_10min" else int(piece.column("count").to_numpy().sum())
            bins = fold(piece, COMPACTED[table])
            counted += int(bins.column("count").to_numpy().sum())
            held.append(bins)
            rows += len(bins)
            if rows >= PIECE_ROWS:
                yield pa.concat_tables(held).unify_dictionaries().combine_chunks()
                held, rows = [], 0
    if held:
        yield pa.concat_tables(held).unify_dictionaries().combine_chunks()
    if read != counted:
        raise InputError(f"{counted:,} of {read:,} samples are in the bins", where=keys[0], remedy="the lake is as before; report this")


def _whole_series(storage: Storage, key: str) -> Iterator[pa.Table]:
    """Tables that hold series whole: a row group and what is left of the one before. A file that is not sorted comes as one table."""
    filesystem, place = storage.arrow(key)
    try:
        with pq.ParquetFile(filesystem.open_input_file(place) if filesystem is not None else place) as file:
            if file.num_row_groups == 1 or not all(file.metadata.row_group(g).sorting_columns for g in range(file.num_row_groups)):
                yield file.read()
                return
            left: pa.Table | None = None
            for g in range(file.num_row_groups):
                table = file.read_row_group(g)
                table = table if left is None else pa.concat_tables([left, table]).unify_dictionaries()
                cut = _last_series(table)
                left = table.slice(cut)
                if cut:
                    yield table.slice(0, cut)
            if left is not None and len(left):
                yield left
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"a file of the lake cannot be read ({error})", where=storage.place(key), remedy="ingest again") from error


def _last_series(table: pa.Table) -> int:
    """Row where the last series begins."""
    index = GroupIndex(("metric", "node", "device", "service"))
    group = index.groups(table.combine_chunks())
    other = np.flatnonzero(group != group[-1])
    return int(other[-1]) + 1 if len(other) else 0


def fold(table: pa.Table, width_s: int) -> pa.Table:
    """Bins of raw samples, or of finer bins: columns ``BIN_COLUMNS``, by series and time.

    Args:
        table: whole series of a day.
    """
    table = table.combine_chunks()
    index = GroupIndex(KEYS)
    group = index.groups(table)
    texts = list(index.texts())

    named = sorted({tuple(text[i] for i in IDENTITY) for text in texts})
    identities = {identity: code for code, identity in enumerate(named)}
    series_of = np.array([identities[tuple(text[i] for i in IDENTITY)] for text in texts], dtype=np.int64)
    time_us = table.column("time").cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64()).to_numpy()
    raw = "value" in table.column_names
    numbers = {name: table.column("value" if raw else name).to_numpy() for name in ("min", "mean", "max", "last")}
    count = np.ones(len(table), dtype=np.int64) if raw else table.column("count").to_numpy()
    order = np.lexsort((time_us, series_of[group])) if not _is_sorted(series_of[group], time_us) else slice(None)
    group, time_us, count = group[order], time_us[order], count[order]
    numbers = {name: values[order] for name, values in numbers.items()}
    if raw:
        rate = np.array([text[0] in RATES for text in texts], dtype=bool)
        seconds = stands_for(series_of[group], time_us, rate[group])
    else:
        seconds = table.column("seconds").to_numpy()[order]
    start = time_us - time_us % (width_s * US)
    rows = _runs(group, start, time_us, *numbers.values(), seconds, count)
    rows = _merged(rows, series_of)
    return _table(rows, texts)


def _is_sorted(series: np.ndarray, time_us: np.ndarray) -> bool:
    return bool(((series[1:] > series[:-1]) | ((series[1:] == series[:-1]) & (time_us[1:] >= time_us[:-1]))).all())


def stands_for(series: np.ndarray, time_us: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Seconds [N] that each sample stands for; see the module.

    Args:
        series: int [N]; rows are sorted by it and by ``time_us`` (int [N]), within one day and file.
        rate: bool [N], whether the value is a mean since the sample before.
    """
    seconds = np.zeros(len(series))
    edges = np.flatnonzero(np.diff(series, prepend=series[:1] - 1)) if len(series) else np.empty(0, dtype=np.int64)
    distance = np.diff(time_us, prepend=time_us[:1]) / US
    for first, end in zip(edges, [*edges[1:], len(series)], strict=True):
        own = distance[first + 1 : end]
        if not len(own):
            continue
        usual = float(np.median(own))
        seconds[first] = usual
        seconds[first + 1 : end] = own if rate[first] else np.minimum(own, GAP_STEPS * usual)
    return seconds


def sample_seconds(samples: pd.DataFrame) -> np.ndarray:
    """Seconds [N] that each row of the table ``samples`` stands for, so that ``sum(value * seconds)`` is what the coarser tables hold too.

    Args:
        samples: whole days, with time, metric, node, device, service and source; the files of a spool are one source here.
    """
    day = samples["time"].dt.floor("D").astype("int64")
    keys = [samples[name].astype(str) for name in ("source", "metric", "node", "device", "service")]
    series = pd.MultiIndex.from_arrays([*keys, day]).factorize()[0]
    time_us = samples["time"].astype("int64").to_numpy() // 1000
    order = np.lexsort((time_us, series))
    seconds = np.empty(len(samples))
    rate = keys[1].isin(RATES).to_numpy()
    seconds[order] = stands_for(series[order], time_us[order], rate[order])
    return seconds


@_compiled
def _runs(
    group: np.ndarray,
    start: np.ndarray,
    time: np.ndarray,
    low: np.ndarray,
    mean: np.ndarray,
    high: np.ndarray,
    last: np.ndarray,
    seconds: np.ndarray,
    count: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows that follow each other in one bin, made one.

    Returns:
        group, start, latest time, min, value x seconds, value x count, max, last, seconds, count.
    """
    runs = 0
    for i in range(len(group)):
        if i == 0 or group[i] != group[i - 1] or start[i] != start[i - 1]:
            runs += 1
    groups, starts, times = np.empty(runs, np.int64), np.empty(runs, np.int64), np.empty(runs, np.int64)
    lows, weighed, counted, highs = np.empty(runs), np.zeros(runs), np.zeros(runs), np.empty(runs)
    lasts, lengths, counts = np.empty(runs), np.zeros(runs), np.zeros(runs, np.int64)
    k = -1
    for i in range(len(group)):
        if i == 0 or group[i] != group[i - 1] or start[i] != start[i - 1]:
            k += 1
            groups[k], starts[k], lows[k], highs[k] = group[i], start[i], low[i], high[i]
        lows[k], highs[k] = min(lows[k], low[i]), max(highs[k], high[i])
        weighed[k] += mean[i] * seconds[i]
        counted[k] += mean[i] * count[i]
        lengths[k] += seconds[i]
        counts[k] += count[i]
        times[k], lasts[k] = time[i], last[i]
    return groups, starts, times, lows, weighed, counted, highs, lasts, lengths, counts


def _merged(rows: tuple[np.ndarray, ...], series_of: np.ndarray) -> dict[str, np.ndarray]:
    """Runs of one bin and set of labels put together (labels that alternate leave several), by series and time."""
    groups, starts, times, lows, weighed, counted, highs, lasts, lengths, counts = rows
    order = np.lexsort((times, groups, starts, series_of[groups]))
    groups, starts, lasts = groups[order], starts[order], lasts[order]
    edge = np.flatnonzero((np.diff(groups, prepend=-1) != 0) | (np.diff(starts, prepend=-1) != 0))
    end = np.append(edge[1:], len(groups)) - 1
    length, number = np.add.reduceat(lengths[order], edge), np.add.reduceat(counts[order], edge)
    whole = length > 0
    mean = np.where(
        whole, np.add.reduceat(weighed[order], edge) / np.where(whole, length, 1.0), np.add.reduceat(counted[order], edge) / number
    )
    return {
        "group": groups[edge], "time": starts[edge], "min": np.minimum.reduceat(lows[order], edge), "mean": mean,
        "max": np.maximum.reduceat(highs[order], edge), "last": lasts[end], "seconds": length, "count": number,
    }  # fmt: skip


def _table(rows: dict[str, np.ndarray], texts: list[tuple[str, ...]]) -> pa.Table:
    columns: dict[str, Any] = {"time": pa.array(rows["time"], type=pa.timestamp("us", tz="UTC")), "count": pa.array(rows["count"])}
    columns |= {name: pa.array(rows[name]) for name in BIN_NUMBERS}
    for place, name in enumerate(KEYS):
        names = sorted({text[place] for text in texts})
        code = {text: number for number, text in enumerate(names)}
        own = np.array([code[text[place]] for text in texts], dtype=np.int32)
        columns[name] = pa.DictionaryArray.from_arrays(own[rows["group"]], names)
    return pa.table({name: columns[name] for name in BIN_COLUMNS})

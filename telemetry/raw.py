"""What a reader of metrics hands over: points as exported, grouped by their labels, nothing repaired yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from telemetry.errors import NoPointsError
from telemetry.units import METRICS, factor, offset

GOOD, SENTINEL, UNPARSEABLE = 0, 1, 2
SENTINEL_TEXT: frozenset[str] = frozenset(
    {"", "-1", "nan", "na", "n/a", "none", "null", "no reading", "[not supported]", "[n/a]", "not supported", "disabled", "[unknown error]"}
)
# Beyond it a conversion of units may overflow; infinity is beyond it too.
LARGEST = 1e290
# 2000-01-01 to 2100-01-01: anything else is a time in another unit.
FIRST_S, LAST_S = 946_684_800, 4_102_444_800
# Device of a value over all GPUs of a node together.
ALL_GPUS = "gpus"


class Labels(NamedTuple):
    """Labels of a group of points.

    The identity of a series is ``metric, node, device, service``; a pod that comes or goes does not change it. ``service`` is whatever a
    value belongs to that is no machine: a service, a virtual cluster, a grid zone, a benchmark run.
    """

    metric: str
    node: str = ""
    device: str = ""
    service: str = ""
    site: str = ""
    pod: str = ""
    namespace: str = ""
    team: str = ""
    project: str = ""
    unit: str = ""
    native_unit: str = ""
    delta: bool = False

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return self.metric, self.node, self.device, self.service

    @property
    def entity(self) -> str:
        """Whose clock stamped the points: the node, or the service."""
        return self.node or self.service

    @property
    def place(self) -> str:
        """Device as the quality report calls it."""
        return "/".join(part for part in (self.entity, self.device) if part)


class PointSource(Protocol):
    """Points of one file, however they are held."""

    source: str

    def points(self, *, where: str) -> Points: ...


@dataclass
class RawSamples:
    """Points of one file, in file order.

    Attributes:
        source: name of the file's source.
        native_units: whether a label group's unit is its format's own; other units are converted *and* counted.
    """

    source: str
    _index: dict[tuple[Labels, Any], int] = field(default_factory=dict)
    _labels: list[Labels] = field(default_factory=list)
    _streams: list[Any] = field(default_factory=list)
    _times: list[list[float | int]] = field(default_factory=list)
    _values: list[list[Any]] = field(default_factory=list)
    _orders: list[list[int]] = field(default_factory=list)
    _order: int = 0

    def _group(self, labels: Labels, stream: Any) -> int:
        key = (labels, stream)
        group = self._index.get(key)
        if group is None:
            group = self._index[key] = len(self._labels)
            self._labels.append(labels)
            self._streams.append(stream)
            self._times.append([])
            self._values.append([])
            self._orders.append([])
        return group

    def add(self, labels: Labels, time_s: Any, value: Any) -> None:
        """One point; its order is judged against the other points of the same series."""
        group = self._group(labels, labels.identity)
        self._times[group].append(time_s)
        self._values[group].append(value)
        self._orders[group].append(self._order)
        self._order += 1

    def add_block(self, labels: Labels, time_s: Sequence[Any], value: Sequence[Any]) -> None:
        """A run of points that belong together; their order is judged within the run alone."""
        group = self._group(labels, len(self._labels))
        self._times[group].extend(time_s)
        self._values[group].extend(value)
        self._orders[group].extend(range(self._order, self._order + len(time_s)))
        self._order += len(time_s)

    def __len__(self) -> int:
        return self._order

    def points(self, *, where: str) -> Points:
        """Everything as arrays of N points, in file order.

        Raises:
            InputError: a unit that cannot be converted.
        """
        sizes = [len(times) for times in self._times]
        stream_index: dict[Any, int] = {}
        streams = [stream_index.setdefault(stream, len(stream_index)) for stream in self._streams]
        signed = np.repeat(np.asarray([METRICS[la.metric].signed for la in self._labels], dtype=bool), sizes)
        values, state = parse_values([v for chunk in self._values for v in chunk], signed)
        time_ns, bad_time = parse_times([t for chunk in self._times for t in chunk])
        rows = np.empty(self._order, dtype=np.int64)
        rows[np.asarray([o for chunk in self._orders for o in chunk], dtype=np.int64)] = np.arange(self._order)
        return Points(
            labels=self._labels,
            scale=scales(self._labels, where),
            shift=shifts(self._labels),
            group=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[rows],
            time_ns=time_ns[rows],
            bad_time=bad_time[rows],
            value=values[rows],
            state=state[rows],
            stream=np.repeat(np.asarray(streams, dtype=np.int32), sizes)[rows],
        )


@dataclass
class ColumnSamples:
    """Points that come as columns, each column a block of N points in file order.

    Many times faster than :class:`RawSamples` for tables, and the same arrays in the end.
    """

    source: str
    _labels: list[Labels] = field(default_factory=list)
    _blocks: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, labels: Sequence[Labels], group: np.ndarray, times: pd.Series, values: pd.Series) -> None:
        """One column.

        Args:
            labels: of the groups in the column.
            group: int [N], which of ``labels`` a row has.
            times: UTC [N]; NaT = a time that cannot be read.
            values: as in the file [N], numbers or texts.
        """
        signed = np.asarray([METRICS[la.metric].signed for la in labels], dtype=bool)[group]
        value, state = parse_column(values, signed)
        seconds = times.to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e9
        time_ns, bad_time = parse_times(np.where(times.isna(), np.nan, seconds))
        self._blocks.append(
            {
                "group": (group + len(self._labels)).astype(np.int32),
                "time_ns": time_ns,
                "bad_time": bad_time,
                "value": value,
                "state": state,
            }
        )
        self._labels.extend(labels)

    def __len__(self) -> int:
        return sum(len(block["group"]) for block in self._blocks)

    def points(self, *, where: str) -> Points:
        """Everything as arrays of N points.

        Raises:
            InputError: a unit that cannot be converted.
        """
        joined = {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}
        return Points(
            labels=self._labels, scale=scales(self._labels, where), shift=shifts(self._labels), stream=joined["group"].copy(), **joined
        )


def scales(labels: Sequence[Labels], where: str) -> np.ndarray:
    """Factor of each label group to the unit of its metric.

    Raises:
        InputError: a unit that cannot be converted.
    """
    found = [factor(la.unit, METRICS[la.metric].unit, where=f"{where}, metric {la.metric} of {la.place}") for la in labels]
    return np.asarray(found, dtype=float)


def shifts(labels: Sequence[Labels]) -> np.ndarray:
    """What is added after the factor, where the zeros of two scales differ."""
    return np.asarray([offset(la.unit, METRICS[la.metric].unit) for la in labels], dtype=float)


@dataclass(frozen=True)
class Points:
    """N points in file order; ``labels``, ``scale`` and ``shift`` (value in the metric's unit = value x scale + shift) are per group.

    Attributes:
        group: int32 [N], into ``labels``.
        time_ns: int64 [N], since 1970; of no meaning where ``bad_time`` (bool [N]).
        value: float [N], in the group's unit; NaN where ``state`` (int8 [N]) is not ``GOOD``.
        stream: int32 [N], points that are judged on their order together; None = those of a series.
    """

    labels: list[Labels]
    scale: np.ndarray
    shift: np.ndarray
    group: np.ndarray
    time_ns: np.ndarray
    bad_time: np.ndarray
    value: np.ndarray
    state: np.ndarray
    stream: np.ndarray | None = None


def parse_values(raw: Sequence[Any] | np.ndarray, signed: np.ndarray | bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N] and what each is: ``GOOD``, ``SENTINEL`` or ``UNPARSEABLE`` (NaN in the numbers).

    Args:
        signed: bool [N] or one for all, whether -1 is a value like any other (a temperature, a price) and no mark of a missing one.
    """
    try:
        value = _numbers(raw)
        state = np.zeros(len(value), dtype=np.int8)
    except (ValueError, TypeError, OverflowError):
        value, state = _parse_slowly(raw)
    state[(np.isnan(value) | ((value == -1) & ~np.asarray(signed))) & (state == GOOD)] = SENTINEL
    state[np.abs(value) > LARGEST] = UNPARSEABLE
    value[state != GOOD] = np.nan
    return value, state


def _numbers(raw: Sequence[Any]) -> np.ndarray:
    """All as numbers [N]; lists among them would make more dimensions.

    Raises:
        ValueError, TypeError, OverflowError: not all are numbers.
    """
    numbers = np.array(raw, dtype=float)
    if numbers.ndim != 1:
        raise ValueError("lists among the numbers")
    return numbers


def parse_column(values: pd.Series, signed: np.ndarray | bool = False) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`parse_values`, for a column of whatever kind it came as; truth values and times are no numbers."""
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        return np.full(len(values), np.nan), np.full(len(values), UNPARSEABLE, dtype=np.int8)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_complex_dtype(values):
        return parse_values(values.to_numpy(dtype=float, na_value=np.nan), signed)
    return parse_values(values.astype(object).where(values.notna(), None).tolist(), signed)


def _parse_slowly(raw: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    values, states = [], []
    for item in raw:
        state, number = GOOD, np.nan
        if item is None or (isinstance(item, str) and item.strip().lower() in SENTINEL_TEXT - {"-1"}):
            state = SENTINEL
        else:
            try:
                number = float(item)
            except (ValueError, TypeError, OverflowError):
                state = UNPARSEABLE
        values.append(number)
        states.append(state)
    return np.asarray(values, dtype=float), np.asarray(states, dtype=np.int8)


def parse_times(raw: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds since 1970 [N] of seconds (rounded to milliseconds), and which are no time."""
    try:
        seconds = _numbers(raw)
    except (ValueError, TypeError, OverflowError):
        seconds, _ = _parse_slowly(raw)
    bad = ~((seconds >= FIRST_S) & (seconds < LAST_S))
    return np.round(np.where(bad, 0.0, seconds) * 1e3).astype(np.int64) * 1_000_000, bad


def text_of(labels: Mapping[str, Any], *names: str) -> str:
    """First non-empty label of several spellings."""
    for name in names:
        value = labels.get(name)
        if value not in (None, ""):
            return str(value)
    return ""


def require_points(raw: RawSamples, where: str, known: str) -> None:
    """Refuse a file without a single usable point."""
    if not len(raw):
        raise NoPointsError(
            "empty export: no samples of a known metric", where=where, allowed=known, remedy="check the query and its time range"
        )

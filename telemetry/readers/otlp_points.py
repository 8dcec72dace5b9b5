"""Points of one OTLP export request: semantic conventions, old and new, to canonical labels.

Numbers come as ``asDouble`` or as ``asInt`` (a string, since JSON has no 64-bit integers), enums by name or number. Read are gauges,
cumulative and delta sums of the canonical metrics, ``hw.host.power`` and ``hw.host.energy`` (the node as a whole), and the count of
``http.server.request.duration`` (once ``http.server.duration``), a histogram, as the request counter. Not read, but told: other histograms,
exponential ones, summaries, and all other metrics (``container.*``, ``k8s.*``, ``system.cpu.time``, ``hw.gpu.io``).

What the Collector has scraped from a Prometheus exporter keeps its name and labels, and is read by the tables of ``prometheus_metrics``.

``hw.type`` and ``hw.id`` name the device: ``gpu`` and 0 is ``gpu0``, ``cpu`` ``cpu0``, ``power_supply`` ``psu0``; an id that begins with
its type's name stays; other types are ``TYPE/ID``, which nobody sums; without a type the id is the device. ``system.cpu.utilization`` has a
point per processor and mode: the node's is 1 less the mean of idle and iowait. Of ``hw.gpu.utilization`` the encoder's and decoder's tasks
are left out.

https://opentelemetry.io/docs/specs/otlp/ and https://opentelemetry.io/docs/specs/semconv/hardware/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from telemetry.raw import Labels, text_of
from telemetry.readers.prometheus_metrics import METRIC_NAMES
from telemetry.units import METRICS

DELTA = ("1", "AGGREGATION_TEMPORALITY_DELTA")
NO_RECORDED_VALUE = 1  # DataPointFlags
RENAMED: dict[str, str] = {"hw.host.power": "hw.power", "hw.host.energy": "hw.energy"}
DURATIONS = ("http.server.request.duration", "http.server.duration")
REQUESTS, CPU = "http.server.request.count", "system.cpu.utilization"
KINDS = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")
DEVICES: dict[str, str] = {"gpu": "gpu", "cpu": "cpu", "power_supply": "psu"}
IDLE_MODES = ("idle", "iowait", "wait")
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, OverflowError)


@dataclass
class Point:
    """A value at a time; ``part`` tells apart the points of one counter by what the labels do not hold."""

    labels: Labels
    time_ns: int
    value: Any
    part: tuple[tuple[str, str], ...] = ()


@dataclass
class RequestPoints:
    """What a request holds.

    Attributes:
        points: those that are read.
        exported: points of Prometheus exporters' metrics: name, labels, ns since 1970, value.
        unread: what is not read, one text per metric.
        malformed: points that are not shaped as OTLP.
        metrics: number of metrics, read or not.
    """

    points: list[Point] = field(default_factory=list)
    exported: list[tuple[str, tuple[tuple[str, str], ...], int, Any]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    malformed: int = 0
    metrics: int = 0

    @property
    def times_s(self) -> list[float]:
        """Times of all points that are read, seconds since 1970."""
        return [point.time_ns / 1e9 for point in self.points] + [time_ns / 1e9 for _, _, time_ns, _ in self.exported]


def request_points(request: Mapping[str, Any]) -> RequestPoints:
    """Points of one export request, as OTLP/JSON has it.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, OverflowError: the request is not shaped as OTLP/JSON above its points.
    """
    found = RequestPoints()
    for resource in request["resourceMetrics"]:
        shared = _attributes((resource.get("resource") or {}).get("attributes"))
        for metric in (metric for scope in resource.get("scopeMetrics") or () for metric in scope.get("metrics") or ()):
            found.metrics += 1
            _add_metric(metric, shared, found)
    return found


def _add_metric(metric: Mapping[str, Any], shared: dict[str, Any], found: RequestPoints) -> None:
    name = metric["name"]
    kind = next((kind for kind in KINDS if kind in metric), "")
    duration = name in DURATIONS and kind == "histogram"
    canonical = REQUESTS if duration else RENAMED.get(name, name)
    if name in METRIC_NAMES:
        _add_exported(name, kind, metric.get(kind) or {}, shared, found)
        return
    if canonical not in METRICS:
        found.unread.append(f"metrics named {name}, which are not read")
        return
    data = metric[kind] if kind else {}
    delta = kind in ("sum", "histogram") and str(data.get("aggregationTemporality", "2")) in DELTA
    if not duration and (kind not in ("gauge", "sum") or (delta and not METRICS[canonical].counter)):
        found.unread.append(f"{name} as {'delta ' if delta else ''}{kind or 'nothing'}, which is not read")
        return
    unit = "" if duration else str(metric.get("unit", ""))
    points: list[tuple[Point, dict[str, Any]]] = []
    for item in data.get("dataPoints") or ():
        try:
            attributes = _attributes(item.get("attributes"))
            everything = {**shared, **attributes}
            time_ns, value = int(item["timeUnixNano"]), _value(item, duration)
        except MALFORMED:
            found.malformed += 1
            continue
        if name == "hw.gpu.utilization" and text_of(everything, "hw.gpu.task") not in ("", "general"):
            found.unread.append("hw.gpu.utilization of an encoder's or decoder's task, which is not read")
            continue
        labels = labels_of(canonical, unit, everything, delta=delta, whole=name in RENAMED)
        part = tuple(sorted((key, str(value)) for key, value in everything.items())) if canonical == REQUESTS else ()
        points.append((Point(labels, time_ns, value, part), attributes))
    found.points += _node_utilisation(points) if canonical == CPU else [point for point, _ in points]


def _add_exported(name: str, kind: str, data: Mapping[str, Any], shared: dict[str, Any], found: RequestPoints) -> None:
    """Points of a metric that the Collector's Prometheus receiver has scraped; its target is in the resource."""
    if kind not in ("gauge", "sum") or (kind == "sum" and str(data.get("aggregationTemporality", "2")) in DELTA):
        found.unread.append(f"{name} as delta or {kind or 'nothing'}, which is not read")
        return
    target = {
        "instance": text_of(shared, "service.instance.id"),
        "job": text_of(shared, "service.name"),
        "node": text_of(shared, "host.name", "k8s.node.name"),
        "site": text_of(shared, "site", "cloud.region"),
    }
    for item in data.get("dataPoints") or ():
        try:
            labels = {**target, **{key: str(value) for key, value in _attributes(item.get("attributes")).items()}}
            point = (
                name,
                tuple(sorted((key, value) for key, value in labels.items() if value)),
                int(item["timeUnixNano"]),
                _value(item, False),
            )
        except MALFORMED:
            found.malformed += 1
            continue
        found.exported.append(point)


def _value(item: Mapping[str, Any], duration: bool) -> Any:
    if int(item.get("flags") or 0) & NO_RECORDED_VALUE:
        return None
    if duration:
        return item.get("count", 0)  # proto3 leaves a 0 out
    value = item.get("asDouble", item.get("asInt"))
    if isinstance(value, list | dict | bool):
        raise TypeError("no number")
    return value


def _node_utilisation(points: list[tuple[Point, dict[str, Any]]]) -> list[Point]:
    """Of points per processor and mode, one per node and time."""
    idle: dict[tuple[Labels, int], dict[str, float]] = {}
    busy: dict[tuple[Labels, int], list[float]] = {}
    plain: list[Point] = []
    for point, attributes in points:
        mode = text_of(attributes, "cpu.mode", "state", "system.cpu.state")
        cpu = text_of(attributes, "cpu.logical_number", "cpu", "system.cpu.logical_number")
        key = (point.labels, point.time_ns)
        if not mode and not cpu:
            plain.append(point)
            continue
        try:
            value = float(point.value)
        except (TypeError, ValueError, OverflowError):
            plain.append(point)  # counted with the other values that are none
            continue
        if not mode:
            busy.setdefault(key, []).append(value)
        elif mode in IDLE_MODES:
            own = idle.setdefault(key, {})
            own[cpu] = own.get(cpu, 0.0) + value
    plain += [Point(labels, time_ns, 1.0 - sum(own.values()) / len(own)) for (labels, time_ns), own in idle.items()]
    plain += [Point(labels, time_ns, sum(own) / len(own)) for (labels, time_ns), own in busy.items() if (labels, time_ns) not in idle]
    return plain


def _attributes(items: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Key/value list as a dict; the value's kind (stringValue, intValue ...) does not matter."""
    return {item["key"]: next(iter((item.get("value") or {}).values()), "") for item in items or ()}


def labels_of(name: str, unit: str, attributes: Mapping[str, Any], *, delta: bool, whole: bool = False) -> Labels:
    """Canonical labels of a point's attributes, with those of its resource."""
    is_request = name.startswith("http.")
    return Labels(
        metric=name,
        node="" if is_request else text_of(attributes, "host.name", "k8s.node.name", "host.id"),
        device="" if is_request or whole else device_of(attributes),
        service=text_of(attributes, "service.name") if is_request else "",
        site=text_of(attributes, "site", "cloud.region"),
        pod="" if is_request else text_of(attributes, "k8s.pod.uid", "k8s.pod.name"),
        namespace=text_of(attributes, "k8s.namespace.name", "service.namespace"),
        team=text_of(attributes, "team"),
        project=text_of(attributes, "project"),
        unit=unit,
        delta=delta,
    )


def device_of(attributes: Mapping[str, Any]) -> str:
    """Device of ``hw.type`` and ``hw.id``; see the module."""
    kind, name = text_of(attributes, "hw.type").lower(), text_of(attributes, "hw.id")
    if kind == "host" or not (kind or name):
        return ""
    if kind not in DEVICES:
        return f"{kind}/{name}" if kind else name
    name = text_of(attributes, "gpu.index") or name if kind == "gpu" else name
    return name if name.startswith(DEVICES[kind]) else f"{DEVICES[kind]}{name}"

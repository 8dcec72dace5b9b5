"""OpenTelemetry metrics as OTLP/JSON lines: one export request a line, plain or gzipped.

Numbers come as ``asDouble`` or as ``asInt`` (a string, since JSON has no 64-bit integers), enums by name or number. Gauges, cumulative and
delta sums are read; histograms and summaries are left out and told. A line that is not JSON is counted as ``unparseable``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from telemetry.cleaning import clean_samples
from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples, require_points, text_of
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text
from telemetry.units import METRICS

DELTA = ("1", "AGGREGATION_TEMPORALITY_DELTA")


Point = tuple[Labels, int, Any]


class OtlpReader:
    """See the module."""

    name = "otlp"
    reads = "OTLP/JSON lines, one ExportMetricsServiceRequest a line (.jsonl, .gz)"
    tested = "an export made in its documented form, damaged in many ways; the embedded sample"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [
            Mapped("every metric above, by its name", "samples", "as sent", "node = host.name or k8s.node.name, device = hw.id"),
            Mapped("http.server.request.count", "http.server.request.count", "as sent", "service = service.name"),
        ]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, raw = QualityReport(), RawSamples(context.source)
        good = 0
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):
                quality.add(context.source, "unparseable")
                continue
            if not isinstance(request, dict) or "resourceMetrics" not in request:
                raise InputError("missing key 'resourceMetrics'", where=f"{where}, line {number}", remedy="is this OTLP/JSON?")
            try:
                points, unread = request_points(request)
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
                quality.add(context.source, "unparseable")
                continue
            good += 1
            for labels, time_ns, value in points:
                raw.add(labels, time_ns / 1e9, value)
            for what in unread:
                quality.note(context.source, what)
        if not good:
            raise InputError("no line is an OTLP/JSON request", where=where, remedy="is the file truncated, or of another format?")
        require_points(raw, where, ", ".join(METRICS))
        return ReadResult({"samples": clean_samples(raw, context.inventory, quality, where=where)}, quality)


def request_points(request: dict[str, Any]) -> tuple[list[Point], list[str]]:
    """Points (labels, ns since 1970, value) of one export request, and what in it is not read.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, OverflowError: the request is not shaped as OTLP/JSON.
    """
    points: list[Point] = []
    unread: list[str] = []
    for resource in request["resourceMetrics"]:
        shared = _attributes(resource.get("resource", {}).get("attributes"))
        for metric in (metric for scope in resource.get("scopeMetrics", ()) for metric in scope.get("metrics", ())):
            name = metric["name"]
            if name not in METRICS:
                unread.append(f"metrics named {name}, which are not read")
            elif "gauge" in metric or "sum" in metric:
                points += _metric_points(metric, shared)
            else:
                unread.append(f"{name} as {', '.join(k for k in metric if k not in ('name', 'unit', 'description'))}, which is not read")
    return points, unread


def _metric_points(metric: dict[str, Any], shared: dict[str, Any]) -> list[Point]:
    data = metric["sum"] if "sum" in metric else metric["gauge"]
    delta = "sum" in metric and str(data.get("aggregationTemporality", "2")) in DELTA
    unit = str(metric.get("unit", ""))
    found: list[Point] = []
    for point in data.get("dataPoints", ()):
        labels = _labels(metric["name"], unit, {**shared, **_attributes(point.get("attributes"))}, delta)
        found.append((labels, int(point["timeUnixNano"]), point.get("asDouble", point.get("asInt"))))
    return found


def _attributes(items: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Key/value list as a dict; the value's kind (stringValue, intValue ...) does not matter."""
    return {item["key"]: next(iter(item.get("value", {}).values()), "") for item in items or ()}


def _labels(name: str, unit: str, attributes: dict[str, Any], delta: bool) -> Labels:
    is_request = name.startswith("http.")
    return Labels(
        metric=name,
        node="" if is_request else text_of(attributes, "host.name", "k8s.node.name"),
        device="" if is_request else text_of(attributes, "hw.id"),
        service=text_of(attributes, "service.name") if is_request else "",
        site=text_of(attributes, "site", "cloud.region"),
        pod="" if is_request else text_of(attributes, "k8s.pod.uid", "k8s.pod.name"),
        namespace=text_of(attributes, "k8s.namespace.name", "service.namespace"),
        team=text_of(attributes, "team"),
        project=text_of(attributes, "project"),
        unit=unit,
        delta=delta,
    )

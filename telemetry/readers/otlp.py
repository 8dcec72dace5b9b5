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
from telemetry.readers.base import ReadContext, ReadResult, read_text
from telemetry.units import METRICS

DELTA = ("1", "AGGREGATION_TEMPORALITY_DELTA")


class OtlpReader:
    """See the module."""

    name = "otlp"
    reads = "OTLP/JSON lines, one ExportMetricsServiceRequest a line (.jsonl, .gz)"

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, raw = QualityReport(), RawSamples(context.source)
        good = 0
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                request = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                quality.add(context.source, "unparseable")
                continue
            if not isinstance(request, dict) or "resourceMetrics" not in request:
                raise InputError("missing key 'resourceMetrics'", where=f"{where}, line {number}", remedy="is this OTLP/JSON?")
            good += 1
            for resource in request["resourceMetrics"]:
                self._resource(resource, f"{where}, line {number}", raw, quality)
        if not good:
            raise InputError("no line is JSON", where=where, remedy="is the file truncated, or of another format?")
        require_points(raw, where, ", ".join(METRICS))
        return ReadResult({"samples": clean_samples(raw, context.inventory, quality, where=where)}, quality)

    def _resource(self, resource: dict[str, Any], where: str, raw: RawSamples, quality: QualityReport) -> None:
        shared = _attributes(resource.get("resource", {}).get("attributes"))
        for scope in resource.get("scopeMetrics", ()):
            for metric in scope.get("metrics", ()):
                name = metric.get("name", "")
                if name not in METRICS:
                    quality.note(raw.source, f"metrics named {name}, which are not read")
                elif "gauge" in metric or "sum" in metric:
                    self._metric(metric, shared, raw, quality, where)
                else:
                    quality.note(raw.source, f"{name} as {', '.join(k for k in metric if k not in ('name', 'unit'))}, which is not read")

    def _metric(self, metric: dict[str, Any], shared: dict[str, Any], raw: RawSamples, quality: QualityReport, where: str) -> None:
        data = metric.get("sum") or metric.get("gauge") or {}
        delta = "sum" in metric and str(data.get("aggregationTemporality", "2")) in DELTA
        unit = str(metric.get("unit", ""))
        for point in data.get("dataPoints", ()):
            attributes = {**shared, **_attributes(point.get("attributes"))}
            try:
                time_s = int(point["timeUnixNano"]) / 1e9
            except (KeyError, TypeError, ValueError):
                quality.add(raw.source, "unparseable")
                continue
            value = point.get("asDouble", point.get("asInt"))
            raw.add(_labels(metric["name"], unit, attributes, delta), time_s, value)


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

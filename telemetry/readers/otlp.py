"""OpenTelemetry metrics: OTLP/JSON lines (one export request a line) or OTLP/protobuf (``.binpb``), plain or gzipped.

What is read of a request is in ``otlp_points``. A protobuf file holds one request, or several with their lengths before them, as the
Collector's file exporter and ``protodelim`` write them. A line that is not JSON, and a point that is not OTLP, is ``unparseable``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples, require_points
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_bytes, read_text
from telemetry.readers.otlp_points import MALFORMED, REQUESTS, Point, request_points
from telemetry.readers.prometheus_series import Series, add_series
from telemetry.readers.sums import add_sum
from telemetry.units import METRICS

BINARY = (".binpb", ".pb", ".binpb.gz", ".pb.gz")


class OtlpReader:
    """See the module."""

    name = "otlp"
    reads = "OTLP metrics: JSON lines, one ExportMetricsServiceRequest a line (.jsonl, .gz), or protobuf (.binpb)"
    reads = "OTLP/JSON lines, one ExportMetricsServiceRequest a line (.jsonl, .gz)"
    tested = "requests of the OpenTelemetry SDK's own exporter, in protobuf; the embedded sample; made requests, damaged in many ways"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [
            Mapped("every metric above, by its name", "samples", "as sent", "node = host.name, device = hw.type and hw.id"),
            Mapped("http.server.request.count", "http.server.request.count", "as sent", "service = service.name"),
        ]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, raw = QualityReport(), RawSamples(context.source)
        requests: dict[tuple[str, ...], dict[Any, list[Point]]] = {}
        exported: dict[tuple[Any, ...], Series] = {}
        good = 0
        for request in _binary(path) if path.name.endswith(BINARY) else _lines(path, quality, context.source):
            try:
                found = request_points(request)
            except MALFORMED:
                quality.add(context.source, "unparseable")
                continue
            good += 1
            quality.add(context.source, "unparseable", found.malformed)
            for point in found.points:
                if point.labels.metric == REQUESTS:
                    requests.setdefault(point.labels.identity, {}).setdefault(point.part, []).append(point)
                else:
                    raw.add(point.labels, point.time_ns / 1e9, point.value)
            for name, labels, time_ns, value in found.exported:
                series = exported.setdefault((name, labels), Series(name, dict(labels), [], []))
                series.times.append(time_ns / 1e9)
                series.values.append(value)
            for what in found.unread:
                quality.note(context.source, what)
        if not good:
            raise InputError("no line is an OTLP/JSON request", where=where, remedy="is the file truncated, or of another format?")
        add_series(list(exported.values()), raw, quality)
        for parts in requests.values():
            _add_requests(list(parts.values()), raw, quality)
        require_points(raw, where, ", ".join(METRICS))
        return ReadResult({"samples": context.cleaned(raw, quality, where=where)}, quality)


def _add_requests(parts: list[list[Point]], raw: RawSamples, quality: QualityReport) -> None:
    """Requests of one service: as they come, or summed where they come by method, status or replica."""
    if len(parts) == 1:
        for point in parts[0]:
            raw.add(point.labels, point.time_ns / 1e9, point.value)
        return
    blocks: list[tuple[Labels, list[float], list[Any]]] = [
        (part[0].labels, [point.time_ns / 1e9 for point in part], [point.value for point in part]) for part in parts
    ]
    add_sum(blocks, raw, quality)
    quality.note(raw.source, "request counters by method, status or replica that were summed", len(parts))


def _lines(path: Path, quality: QualityReport, source: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            quality.add(source, "unparseable")
            continue
        if not isinstance(request, dict) or "resourceMetrics" not in request:
            raise InputError("missing key 'resourceMetrics'", where=f"{path}, line {number}", remedy="is this OTLP/JSON?")
        yield request


def _binary(path: Path) -> Iterator[dict[str, Any]]:
    data = read_bytes(path)
    if not data.strip():
        raise InputError("empty export", where=str(path), remedy="check the exporter")
    delimited = [decode_request(message) for message in _delimited(data) or ()]
    requests = delimited if delimited and None not in delimited else [decode_request(data)]
    for request in requests:
        if request is None:
            raise InputError(
                "no OTLP/protobuf request, nor requests after their lengths", where=str(path), remedy="is it truncated, or JSON (.jsonl)?"
            )
        yield request


def _delimited(data: bytes) -> list[bytes] | None:
    """Messages that have their length before them as a varint; None if the lengths do not add up to the file."""
    messages, at = [], 0
    while at < len(data):
        length = shift = 0
        while True:
            if at >= len(data) or shift > 35:
                return None
            byte = data[at]
            at, length, shift = at + 1, length | (byte & 0x7F) << shift, shift + 7
            if not byte & 0x80:
                break
        if length > len(data) - at:
            return None
        messages.append(data[at : at + length])
        at += length
    return messages


def decode_request(data: bytes) -> dict[str, Any] | None:
    """An ``ExportMetricsServiceRequest`` of protobuf bytes as OTLP/JSON has it; None if it is none.

    Raises:
        InputError: opentelemetry-proto is not installed.
    """
    try:
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    except ImportError as error:
        raise InputError("OTLP/protobuf needs opentelemetry-proto", remedy="pip install -e '.[runtime]', or export JSON") from error
    try:
        request = ExportMetricsServiceRequest.FromString(data)
    except DecodeError:
        return None
    # Bytes of another format may parse as fields that a request does not have.
    if not request.resource_metrics and data:
        return None
    return {"resourceMetrics": [], **MessageToDict(request, use_integers_for_enums=True)}

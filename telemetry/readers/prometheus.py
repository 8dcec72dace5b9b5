"""Prometheus HTTP API answers (``query_range`` or ``query``), plain or gzipped: the exporters of ``prometheus_metrics``.

Label spellings of old and new exporters are read alike (``Hostname`` or ``hostname``, ``pod`` or ``pod_name`` or ``exported_pod``). A
device whose pod label is lost for a while is a second ``result`` entry: both are one series here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import RawSamples, require_points
from telemetry.readers.base import Mapped, ReadContext, ReadResult, mapping_at, read_json
from telemetry.readers.prometheus_metrics import METRIC_NAMES, exported_mapping
from telemetry.readers.prometheus_series import Series, add_series


class PrometheusReader:
    """See the module."""

    name = "prometheus"
    reads = "Prometheus query_range answer (JSON, .gz)"
    tested = "answers of a real Prometheus 2.42 that scrapes an exporter; the embedded sample; made answers, damaged in many ways"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return exported_mapping()

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        answer = read_json(path)
        if mapping_at(answer, "status", where) != "success":
            raise InputError(f"the query failed: {answer.get('error', answer['status'])}", where=where, remedy="repeat the query")
        results = mapping_at(mapping_at(answer, "data", where), "result", where)
        if not isinstance(results, list):
            raise InputError("'data.result' is no list", where=where)
        quality, raw = QualityReport(), RawSamples(context.source)
        warnings = answer.get("warnings")
        for text in warnings if isinstance(warnings, list) else ():
            quality.note(context.source, f"the server warned, so the answer may be partial: {text}")
        add_series([_series(entry, f"{where}, data.result[{index}]") for index, entry in enumerate(results)], raw, quality)
        require_points(raw, where, ", ".join(METRIC_NAMES))
        return ReadResult({"samples": context.cleaned(raw, quality, where=where)}, quality)


def _series(entry: Any, where: str) -> Series:
    metric = mapping_at(entry, "metric", where)
    if not isinstance(metric, dict):
        raise InputError("'metric' is no object of labels", where=where)
    labels = {key: str(value) for key, value in metric.items() if value is not None}
    name = labels.pop("__name__", "")
    if not name:
        raise InputError("no __name__ label", where=where, remedy="export the metric itself, not an expression over it")
    points = entry["values"] if "values" in entry else [mapping_at(entry, "value", where)]
    if not isinstance(points, list) or not set(map(type, points)) <= {list} or not set(map(len, points)) <= {2}:
        raise InputError("'values' is no list of [time, value] pairs", where=where)
    times, values = zip(*points, strict=True) if points else ((), ())
    return Series(name, labels, times, values)

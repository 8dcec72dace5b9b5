"""Prometheus HTTP API answers (``query_range`` or ``query``), plain or gzipped: DCGM, IPMI and HTTP request metrics.

Label spellings of old and new exporters are read alike (``Hostname`` or ``hostname``, ``pod`` or ``pod_name`` or ``exported_pod``). A
device whose pod label is lost for a while is a second ``result`` entry: both are one series here. Kepler's zones
overlap, so they are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from telemetry.cleaning import clean_samples
from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples, require_points, text_of
from telemetry.readers.base import Mapped, ReadContext, ReadResult, mapping_at, read_json

# name -> canonical metric, the exporter's own unit, whether 0 means "not supported"
METRIC_NAMES: dict[str, tuple[str, str, bool]] = {
    "DCGM_FI_DEV_POWER_USAGE": ("hw.power", "W", False),
    "DCGM_FI_DEV_GPU_UTIL": ("hw.gpu.utilization", "%", False),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("hw.energy", "mJ", False),
    "DCGM_FI_DEV_FB_USED": ("hw.gpu.memory.usage", "MiB", False),
    "ipmi_dcmi_power_consumption_watts": ("hw.power", "W", True),
    "http_server_request_count_total": ("http.server.request.count", "1", False),
    "http_requests_total": ("http.server.request.count", "1", False),
}


class PrometheusReader:
    """See the module."""

    name = "prometheus"
    reads = "Prometheus query_range answer (JSON, .gz)"
    tested = "an export made in its documented form, damaged in many ways; the embedded sample"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        gpu = "node = Hostname, device = gpuN or gpuN/migM"
        where = {"hw.power": gpu, "http.server.request.count": "service = service, service_name or job"}
        return [
            Mapped(name, metric, unit, "node = instance" if name.startswith("ipmi") else where.get(metric, gpu))
            for name, (metric, unit, _) in METRIC_NAMES.items()
        ]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        answer = read_json(path)
        if mapping_at(answer, "status", where) != "success":
            raise InputError(f"the query failed: {answer.get('error', answer['status'])}", where=where, remedy="repeat the query")
        results = mapping_at(mapping_at(answer, "data", where), "result", where)
        if not isinstance(results, list):
            raise InputError("'data.result' is no list", where=where)
        quality, raw = QualityReport(), RawSamples(context.source)
        for index, entry in enumerate(results):
            self._entry(entry, f"{where}, data.result[{index}]", raw, quality)
        require_points(raw, where, ", ".join(METRIC_NAMES))
        frame = clean_samples(raw, context.inventory, quality, where=where)
        return ReadResult({"samples": frame}, quality)

    def _entry(self, entry: Any, where: str, raw: RawSamples, quality: QualityReport) -> None:
        metric = mapping_at(entry, "metric", where)
        if not isinstance(metric, dict):
            raise InputError("'metric' is no object of labels", where=where)
        name = str(metric.get("__name__", ""))
        if not name:
            raise InputError("no __name__ label", where=where, remedy="export the metric itself, not an expression over it")
        if name not in METRIC_NAMES:
            quality.note(raw.source, f"series of metric {name}, which is not read")
            return
        points = entry["values"] if "values" in entry else [mapping_at(entry, "value", where)]
        if not isinstance(points, list) or any(not isinstance(p, list) or len(p) != 2 for p in points):
            raise InputError("'values' is no list of [time, value] pairs", where=where)
        labels = series_labels(name, metric)
        values = [p[1] for p in points]
        if METRIC_NAMES[name][2]:
            values = [None if v in ("0", 0) else v for v in values]
        raw.add_block(labels, [p[0] for p in points], values)


def series_labels(name: str, metric: dict[str, Any]) -> Labels:
    """Canonical labels of a Prometheus label set."""
    canonical, unit, _ = METRIC_NAMES[name]
    if canonical == "http.server.request.count":
        node, device, service = "", "", text_of(metric, "service", "service_name", "exported_service", "job")
    else:
        node, service = text_of(metric, "Hostname", "hostname", "node", "nodename", "instance"), ""
        gpu, mig = text_of(metric, "gpu"), text_of(metric, "GPU_I_ID")
        device = "" if name.startswith("ipmi") else f"gpu{gpu}" + (f"/mig{mig}" if mig else "")
    return Labels(
        metric=canonical,
        node=node,
        device=device,
        service=service,
        site=text_of(metric, "site"),
        pod=text_of(metric, "pod", "pod_name", "exported_pod"),
        namespace=text_of(metric, "namespace", "pod_namespace", "exported_namespace"),
        team=text_of(metric, "team", "label_team"),
        project=text_of(metric, "project", "label_project"),
        unit=unit,
        native_unit=unit,
    )

"""Azure Monitor: diagnostic settings records, and answers of the metrics REST API (``az monitor metrics list`` prints the same).

Diagnostic records are ``{records: [{time, resourceId, metricName, timeGrain, count, total, minimum, maximum, average}]}``, or one record a
line, as they lie in a storage account. A REST answer is ``{interval, value: [{id, name {value}, unit, timeseries: [{metadatavalues, data:
[{timeStamp, average, total}]}]}]}``; several stand one a line. Azure writes resource ids in capitals or not as it pleases: names are lower
case here. Diagnostic records carry no dimension, so metrics per instance or GPU come from REST answers alone (split by ``$filter``); a
series that lacks the dimension is a sum or mean over machines or GPUs: it is left out and told.
Sources: "Azure Monitor supported metrics", "Metrics - List" (REST API), "Azure resource logs to a storage account".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import ALL_GPUS, Labels, RawSamples, require_points
from telemetry.readers.base import Mapped, ReadContext, ReadResult
from telemetry.readers.cloud import MEAN, RATE, CloudMetric, json_documents, period_value
from telemetry.times import parse_time_s

GRAIN = re.compile(r"^P(?:(\d{1,4})D)?(?:T(?:(\d{1,4})H)?(?:(\d{1,5})M)?(?:(\d{1,6})S)?)?$")
RESOURCE = re.compile(r"/providers/([^/]+)/([^/]+)/([^/]+)((?:/[^/]+/[^/]+)*)", re.IGNORECASE)
INSTANCES = ("instanceid", "vmname", "nodeid", "node", "instance")
DEVICES = ("deviceid", "gpu")
MACHINE, INSTANCE, SERVICE = "machine", "instance", "service"
REPORT_S = 60.0  # "Energy is reported at one minute intervals"
SHARE = {"Percent": "%", "Count": "%", "Unspecified": "%"}
COUNT = {"Count": "1/s", "Unspecified": "1/s"}


@dataclass(frozen=True)
class AzureMetric(CloudMetric):
    """A metric of Azure Monitor.

    Attributes:
        place: ``machine``: the resource is the node; ``instance``: a dimension names the node; ``service``: the resource is a service.
        gpu: whether it is of GPUs: of one where a dimension numbers it, else of all of the node's.
        energy: whether it is joules of a period, which become mean watts.
    """

    place: str = MACHINE
    gpu: bool = False
    energy: bool = False


def _gpu(metric: str, units: dict[str, str], how: str = MEAN, *, energy: bool = False) -> AzureMetric:
    return AzureMetric(metric, units, how, INSTANCE, gpu=True, energy=energy)


REQUESTS = AzureMetric("http.server.request.rate", COUNT, RATE, SERVICE)
METRICS_READ: dict[str, AzureMetric] = {
    "percentage cpu": AzureMetric("system.cpu.utilization", SHARE),
    "cpuutilizationpercentage": AzureMetric("system.cpu.utilization", SHARE, MEAN, INSTANCE),
    "node_cpu_usage_percentage": AzureMetric("system.cpu.utilization", SHARE, MEAN, INSTANCE),
    "gpuutilizationpercentage": _gpu("hw.gpu.utilization", SHARE),
    "gpuutilization": _gpu("hw.gpu.utilization", SHARE),
    "gpumemoryutilizationpercentage": _gpu("hw.gpu.memory.utilization", SHARE),
    "gpumemoryutilization": _gpu("hw.gpu.memory.utilization", SHARE),
    "gpumemoryutilizationmegabytes": _gpu("hw.gpu.memory.usage", {"Count": "MBy", "Bytes": "By"}),
    "gpuenergyjoules": _gpu("hw.power", {"Count": "W", "Unspecified": "W"}, energy=True),
    "requests": REQUESTS,
    "totalrequests": REQUESTS,
    "requestcount": REQUESTS,
    "azureopenairequests": REQUESTS,
}


class AzureMonitorReader:
    """See the module."""

    name = "azure_monitor"
    tested = "records and answers made in their documented form, damaged in many ways"
    reads = "Azure diagnostic settings records, or answers of az monitor metrics list (.json, .jsonl, .gz)"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [Mapped(name, metric.metric, ", ".join(metric.units), f"of a {metric.place}") for name, metric in METRICS_READ.items()]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, raw = QualityReport(), RawSamples(context.source)
        good = 0
        for place, document in json_documents(path, quality, context.source, whole='"records"'):
            parts = _parts(document)
            if parts is None:
                quality.add(context.source, "unparseable")
                continue
            good += 1
            for index, (read, part) in enumerate(parts):
                try:
                    read(part, f"{place}, entry {index}", document, context, quality, raw)
                except (KeyError, TypeError, AttributeError, OverflowError):
                    quality.add(context.source, "unparseable")
        if not good:
            raise InputError(
                "neither diagnostic records nor an answer with 'value'", where=where, remedy="is this an Azure Monitor export, and whole?"
            )
        require_points(raw, where, ", ".join(METRICS_READ))
        return ReadResult({"samples": context.cleaned(raw, quality, where=where)}, quality)


def _parts(document: Any) -> list[tuple[Any, Any]] | None:
    """What a document holds, each with who reads it; None when it is no export."""
    if not isinstance(document, dict):
        return None
    if isinstance(document.get("records"), list):
        return [(_record, record) for record in document["records"]]
    if "metricName" in document:
        return [(_record, document)]
    if isinstance(document.get("value"), list):
        return [(_rest_metric, metric) for metric in document["value"]]
    return None


def _record(record: dict[str, Any], where: str, _: Any, context: ReadContext, quality: QualityReport, raw: RawSamples) -> None:
    """A diagnostic settings record."""
    metric, name = _named(record["metricName"], context, quality)
    if metric is None:
        return
    labels = _labels(metric, record["resourceId"], {}, next(iter(metric.units.values())), context, region="")
    if labels is None:
        quality.note(context.source, f"{name} of {_kind(record['resourceId'])} without a dimension, which sums what is read")
        return
    _point(raw, labels, metric, record["time"], grain_s(record["timeGrain"]), record)


def _rest_metric(
    part: dict[str, Any], where: str, document: dict[str, Any], context: ReadContext, quality: QualityReport, raw: RawSamples
) -> None:
    """One metric of a REST answer."""
    metric, name = _named(part["name"]["value"], context, quality)
    if metric is None:
        return
    if part.get("errorCode", "Success") not in ("Success", None):
        quality.note(context.source, f"{name}: {part['errorCode']}")
    unit, resource = metric.unit(part["unit"], where=f"{where}, metric {name}"), part["id"]
    period_s, region = grain_s(document["interval"]), str(document.get("resourceregion") or "")
    for series in part["timeseries"]:
        dimensions = {item["name"]["value"].lower(): item["value"] for item in series.get("metadatavalues") or ()}
        labels = _labels(metric, resource, dimensions, unit, context, region=region)
        if labels is None:
            told = ", ".join(sorted(dimensions)) or "no dimension"
            quality.note(context.source, f"{name} of {_kind(resource)} over {told}, which sums what is read")
            continue
        for point in series["data"]:
            _point(raw, labels, metric, point["timeStamp"], period_s, point)


def _named(name: str, context: ReadContext, quality: QualityReport) -> tuple[AzureMetric | None, str]:
    metric = METRICS_READ.get(name.lower())
    if metric is None:
        quality.note(context.source, f"metric {name}, which is not read")
    return metric, name


def _point(raw: RawSamples, labels: Labels, metric: AzureMetric, time: str, period_s: float | None, values: Mapping[str, Any]) -> None:
    """A grain without any value is no point: nothing was measured in it."""
    if period_s is None or not isinstance(time, str):
        raise TypeError("time")
    if metric.energy:
        # The sum over the grain where the service keeps it, else the mean of reports that each tell the joules of a minute.
        joules, over_s = (values["total"], period_s) if values.get("total") is not None else (values.get("average"), REPORT_S)
        value = period_value(RATE, mean=None, total=joules, count=None, period_s=over_s)
    else:
        value = period_value(
            metric.how, mean=values.get("average"), total=values.get("total"), count=values.get("count"), period_s=period_s
        )
    if value is not None:
        start_s = parse_time_s(time)
        raw.add(labels, None if start_s is None else start_s + period_s, value)


def grain_s(text: str) -> float | None:
    """Seconds of an ISO 8601 duration such as ``PT1M``, ``PT1H``, ``P1D``; None when it is none."""
    match = GRAIN.match(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(86400 * days + 3600 * hours + 60 * minutes + seconds) or None


def _kind(resource: str) -> str:
    """``provider/type`` of a resource id, for notes."""
    match = RESOURCE.search(resource)
    return f"{match.group(1)}/{match.group(2)}".lower() if match else "a resource"


def _labels(
    metric: AzureMetric, resource: str, dimensions: Mapping[str, Any], unit: str, context: ReadContext, *, region: str
) -> Labels | None:
    """Canonical labels; None where the series is over machines or GPUs."""
    match = RESOURCE.search(resource)
    if match is None:
        raise KeyError(resource)
    name, below = match.group(3).lower(), [part for part in match.group(4).lower().split("/") if part]
    below = below[: below.index("providers")] if "providers" in below else below
    named = {key: str(value).lower() for key, value in dimensions.items() if value not in (None, "")}
    others = set(named) - {*INSTANCES, *DEVICES}
    node = next((named[key] for key in INSTANCES if key in named), "")
    if metric.place == SERVICE:
        # Split by status code, region and the like: parts of the series that has no dimension.
        return None if named else Labels(metric.metric, service=name, site=region, unit=unit, native_unit=unit)
    if metric.place == MACHINE and not node:
        # Of a scale set, the machine is a part below it or a dimension.
        if match.group(2).lower() == "virtualmachinescalesets":
            node = f"{name}_{below[1]}" if len(below) >= 2 else ""
        else:
            node = name
    if not node or (others and not metric.gpu):
        return None
    device = next((f"gpu{named[key]}" for key in DEVICES if key in named), ALL_GPUS) if metric.gpu else ""
    site = "" if node in context.inventory.nodes else region
    return Labels(metric.metric, node=node, device=device, site=site, unit=unit, native_unit=unit)

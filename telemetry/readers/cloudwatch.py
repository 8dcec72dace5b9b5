"""Amazon CloudWatch: metric streams in their JSON format (one record a line), and saved answers of ``GetMetricData``.

A metric stream record is ``{metric_stream_name, account_id, region, namespace, metric_name, dimensions, timestamp (ms), value {max, min,
sum, count}, unit}`` of one minute. An answer of ``aws cloudwatch get-metric-data`` alone does not say what it measured, so it is read
together with its questions, as one object ``{MetricDataQueries, MetricDataResults}``::

    jq -n --slurpfile q queries.json --slurpfile a answer.json '{MetricDataQueries: $q[0]} + $a[0]' > export.json

Read are CPU and GPU metrics per machine and device (EC2, CloudWatch agent, Container Insights) and request counts (load balancers, API
Gateway, SageMaker). The same metric over fewer dimensions (an Auto Scaling group, a cluster) repeats them: it is left out and
told, as are pod and container series, which repeat their node's GPU without naming the node.
Sources: CloudWatch user guide, "Metric streams output in JSON format", "Collect NVIDIA GPU metrics", "Container Insights metrics".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.inventory import Inventory
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples, require_points
from telemetry.readers.base import Mapped, ReadContext, ReadResult, mapping_at
from telemetry.readers.cloud import MEAN, RATE, CloudMetric, finite, json_documents, period_value
from telemetry.times import parse_time_s

STREAM_PERIOD_S = 60.0
SHARE = {"Percent": "%", "None": "%"}
BYTES = {"Bytes": "By", "None": "By", "Kilobytes": "kBy", "Megabytes": "MBy", "Gigabytes": "GBy"}
# nvidia-smi counts in MiB; the agent passes its number on and calls it megabytes.
NVIDIA_SMI_BYTES = {"Megabytes": "MiBy", "None": "MiBy", "Bytes": "By"}
COUNT = {"Count": "1/s", "None": "1/s"}
NODE = ("NodeName", "InstanceId", "host")


@dataclass(frozen=True)
class CloudWatchMetric(CloudMetric):
    """A metric of CloudWatch.

    Attributes:
        namespace: the only one it is read from; '' = any (the agent's namespace is the user's choice).
        device: dimension that numbers the GPU; needed when named.
        service: dimension that names the service; '' for a metric of a machine.
        others: dimensions that may stand beside these without making it another series.
    """

    namespace: str = ""
    device: str = ""
    service: str = ""
    others: tuple[str, ...] = ()

    @property
    def statistic(self) -> str:
        """What ``GetMetricData`` is to be asked for."""
        return "Sum" if self.how == RATE else "Average"

    def labels(self, dimensions: dict[str, str], region: str, inventory: Inventory, *, unit: str) -> Labels | None:
        """Canonical labels; None where the dimensions are those of a sum or mean over machines or devices."""
        known = {*self.others, self.device, self.service, *(() if self.service else NODE)}
        if any(name not in known for name in dimensions):
            return None
        node = "" if self.service else next((dimensions[name] for name in NODE if dimensions.get(name)), "")
        place = dimensions.get(self.service, "") if self.service else node
        if not place or (self.device and not dimensions.get(self.device)):
            return None
        return Labels(
            metric=self.metric,
            node=node,
            device=_device(dimensions[self.device]) if self.device else "",
            service=place if self.service else "",
            site="" if node in inventory.nodes else region,
            unit=unit,
            native_unit=unit,
        )


# Dimensions that the agent appends to say more of the same machine and GPU.
AGENT = ("ImageId", "InstanceType", "AutoScalingGroupName", "name", "arch")
INSIGHTS = ("ClusterName", "InstanceType")


def _gpu(metric: str, units: dict[str, str], device: str, others: tuple[str, ...]) -> CloudWatchMetric:
    return CloudWatchMetric(metric, units, MEAN, device=device, others=others)


METRICS_READ: dict[str, CloudWatchMetric] = {
    "CPUUtilization": CloudWatchMetric("system.cpu.utilization", SHARE, MEAN, namespace="AWS/EC2"),
    "node_cpu_utilization": CloudWatchMetric("system.cpu.utilization", SHARE, MEAN, others=INSIGHTS),
    "nvidia_smi_utilization_gpu": _gpu("hw.gpu.utilization", SHARE, "index", AGENT),
    "nvidia_smi_utilization_memory": _gpu("hw.gpu.memory.bandwidth.utilization", SHARE, "index", AGENT),
    "nvidia_smi_memory_used": _gpu("hw.gpu.memory.usage", NVIDIA_SMI_BYTES, "index", AGENT),
    "nvidia_smi_power_draw": _gpu("hw.power", {"None": "W"}, "index", AGENT),
    "node_gpu_utilization": _gpu("hw.gpu.utilization", SHARE, "GpuDevice", INSIGHTS),
    "node_gpu_memory_utilization": _gpu("hw.gpu.memory.utilization", SHARE, "GpuDevice", INSIGHTS),
    "node_gpu_memory_used": _gpu("hw.gpu.memory.usage", BYTES, "GpuDevice", INSIGHTS),
    "node_gpu_power_draw": _gpu("hw.power", {"None": "W"}, "GpuDevice", INSIGHTS),
    "RequestCount": CloudWatchMetric("http.server.request.rate", COUNT, RATE, namespace="AWS/ApplicationELB", service="LoadBalancer"),
    "Count": CloudWatchMetric("http.server.request.rate", COUNT, RATE, namespace="AWS/ApiGateway", service="ApiName"),
    "Invocations": CloudWatchMetric(
        "http.server.request.rate", COUNT, RATE, namespace="AWS/SageMaker", service="EndpointName", others=("VariantName",)
    ),
}


class CloudWatchReader:
    """See the module."""

    name = "cloudwatch"
    tested = "records and answers made in their documented form, damaged in many ways; answers of moto"
    reads = "CloudWatch metric stream JSON lines, or get-metric-data queries and answer in one object (.json, .jsonl, .gz)"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [
            Mapped(name, metric.metric, ", ".join(metric.units), metric.namespace or "any namespace")
            for name, metric in METRICS_READ.items()
        ]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, raw = QualityReport(), RawSamples(context.source)
        good = 0
        for place, document in json_documents(path, quality, context.source, whole='"MetricData'):
            if isinstance(document, dict) and ("MetricDataResults" in document or "MetricDataQueries" in document):
                _Answer(document, place, context, quality).add(raw)
                good += 1
            elif isinstance(document, dict) and "metric_name" in document:
                good += _record(document, place, context, quality, raw)
            else:
                quality.add(context.source, "unparseable")
        if not good:
            raise InputError(
                "neither metric stream records nor MetricDataQueries with MetricDataResults", where=where,
                remedy="is this a CloudWatch export in JSON, and whole?",
            )  # fmt: skip
        require_points(raw, where, ", ".join(METRICS_READ))
        return ReadResult({"samples": context.cleaned(raw, quality, where=where)}, quality)


def metric_named(namespace: str, name: str) -> CloudWatchMetric | None:
    """What is read of a metric; None = nothing."""
    metric = METRICS_READ.get(name)
    return None if metric is None or metric.namespace not in ("", namespace) else metric


def _record(record: dict[str, Any], where: str, context: ReadContext, quality: QualityReport, raw: RawSamples) -> bool:
    """One record of a metric stream; False when it is damaged."""
    name, namespace, dimensions = record["metric_name"], record.get("namespace"), record.get("dimensions", {})
    value, time_ms = record.get("value"), finite(record.get("timestamp"))
    if not isinstance(name, str) or not isinstance(namespace, str) or not isinstance(value, dict) or time_ms is None:
        quality.add(context.source, "unparseable")
        return False
    if not isinstance(dimensions, dict) or not all(isinstance(v, str) for v in dimensions.values()):
        quality.add(context.source, "unparseable")
        return False
    labels, metric = _told(namespace, name, dimensions, str(record.get("region", "")), record.get("unit", "None"), where, context, quality)
    if labels is not None and metric is not None:
        total, count = value.get("sum"), value.get("count")
        point = period_value(metric.how, mean=None, total=total, count=count, period_s=STREAM_PERIOD_S)
        raw.add(labels, time_ms / 1e3 + STREAM_PERIOD_S, point)
    return True


def _told(
    namespace: str, name: str, dimensions: dict[str, str], region: str, unit: Any, where: str, context: ReadContext, quality: QualityReport
) -> tuple[Labels | None, CloudWatchMetric | None]:
    """Labels of a series that is read; what is left out is noted."""
    metric = metric_named(namespace, name)
    if metric is None:
        quality.note(context.source, f"metric {namespace} {name}, which is not read")
        return None, None
    chosen = metric.unit(str(unit), where=f"{where}, metric {name}")
    labels = metric.labels(dimensions, region, context.inventory, unit=chosen)
    if labels is None:
        told = ", ".join(sorted(dimensions)) or "no dimension"
        quality.note(context.source, f"{name} over {told}, which repeats or sums what is read")
    return labels, metric


class _Answer:
    """Questions and answer of ``GetMetricData``."""

    def __init__(self, document: dict[str, Any], where: str, context: ReadContext, quality: QualityReport) -> None:
        self.where, self.context, self.quality = where, context, quality
        if "MetricDataQueries" not in document:
            raise InputError(
                "missing key 'MetricDataQueries': the answer alone does not say what it measured",
                where=where,
                remedy="jq -n --slurpfile q queries.json --slurpfile a answer.json '{MetricDataQueries: $q[0]} + $a[0]'",
            )
        queries, self.results = document["MetricDataQueries"], mapping_at(document, "MetricDataResults", where)
        if not isinstance(queries, list) or not isinstance(self.results, list):
            raise InputError("MetricDataQueries or MetricDataResults is no list", where=where)
        self.region = str(document.get("Region", ""))
        self.queries = {q["Id"]: q for q in queries if isinstance(q, dict) and isinstance(q.get("Id"), str)}

    def add(self, raw: RawSamples) -> None:
        for index, result in enumerate(self.results):
            try:
                self._result(result, f"{self.where}, MetricDataResults[{index}]", raw)
            except (KeyError, TypeError, AttributeError):
                self.quality.add(self.context.source, "unparseable")

    def _result(self, result: dict[str, Any], where: str, raw: RawSamples) -> None:
        query = self.queries[result["Id"]]
        if "MetricStat" not in query:
            self.quality.note(self.context.source, "expressions, which are not read")
            return
        stat = query["MetricStat"]
        found, period_s = stat["Metric"], finite(stat["Period"])
        dimensions = {item["Name"]: item["Value"] for item in found.get("Dimensions", ())}
        if not all(isinstance(text, str) for text in (found["Namespace"], found["MetricName"], *dimensions, *dimensions.values())):
            raise TypeError("a name that is no text")
        unit = stat.get("Unit", "None")
        labels, metric = _told(found["Namespace"], found["MetricName"], dimensions, self.region, unit, where, self.context, self.quality)
        if labels is None or metric is None:
            return
        if stat["Stat"] != metric.statistic or not period_s or period_s < 0:
            told = f"{found['MetricName']} as {stat['Stat']}, where {metric.statistic} is read"
            self.quality.note(self.context.source, told)
            return
        if result.get("StatusCode", "Complete") != "Complete":
            self.quality.note(self.context.source, f"results with status {result['StatusCode']}: not all of their points")
        self._points(result["Timestamps"], result["Values"], labels, metric, period_s, raw)

    def _points(
        self, times: list[Any], values: list[Any], labels: Labels, metric: CloudWatchMetric, period_s: float, raw: RawSamples
    ) -> None:
        if not isinstance(times, list) or not isinstance(values, list) or len(times) != len(values):
            raise TypeError("times and values of different lengths")
        seconds = [parse_time_s(t) if isinstance(t, str) else finite(t) for t in times]
        ends = [None if s is None else s + period_s for s in seconds]
        points = [period_value(metric.how, mean=v, total=v, count=None, period_s=period_s) for v in values]
        # The newest comes first unless asked otherwise (ScanBy): that order is the API's and no flaw.
        known = [s for s in seconds if s is not None]
        back = -1 if len(known) > 1 and known == sorted(known, reverse=True) else 1
        raw.add_block(labels, ends[::back], points[::back])


def _device(text: str) -> str:
    """``0`` of the agent and ``nvidia0`` of Container Insights as ``gpu0``."""
    number = text.removeprefix("nvidia")
    return f"gpu{number}" if number.isdigit() else text

"""One collector per live system; ``COLLECTORS`` is the list that the command and its tests go by."""

from __future__ import annotations

from telemetry.collectors.azure_monitor import AzureMonitorCollector
from telemetry.collectors.base import Collector, UnavailableError, collect
from telemetry.collectors.cloudwatch import CloudWatchCollector
from telemetry.collectors.ipmi import IpmiCollector
from telemetry.collectors.prometheus import PrometheusCollector

COLLECTORS: dict[str, type[Collector]] = {
    "prometheus": PrometheusCollector,
    "cloudwatch": CloudWatchCollector,
    "azure_monitor": AzureMonitorCollector,
    "ipmi": IpmiCollector,
}

__all__ = ["COLLECTORS", "Collector", "UnavailableError", "collect"]

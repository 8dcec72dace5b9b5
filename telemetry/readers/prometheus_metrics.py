"""What Prometheus exporters call things: names, units and labels, and the canonical metrics that they become."""

from __future__ import annotations

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

"""What Prometheus exporters call things: names, units and labels, and the canonical metrics that they become.

Devices are named so that nobody sums a watt twice (``''`` is the node as a whole):

=====================  ==============================================================================================================
device                 read from
=====================  ==============================================================================================================
``''``                 ipmi_exporter (DCMI, or the sensor of the total), Kepler's platform, the ACPI power meter
``gpuN``               a GPU board: DCGM exporter, nvidia_gpu_exporter, Kepler; ``gpu<UUID>`` where its number is not exported
``gpuN/migI``          a MIG instance (its memory and activity; watts exist for the board alone)
``cpuN``               a processor package: RAPL's zone ``package`` by node_exporter or Kepler
``cpuN/dram``          memory, which RAPL counts beside the package; ``cpuN/core``, ``cpuN/uncore`` lie within it
``psys``               the platform zone, which holds all of them
``psuNAME``            a power supply (ipmi_exporter's sensors)
``pdu/NAME``           a whole rack PDU, with no node; ``pdu/NAME/OUTLET`` one outlet, whose node is known if the series has a ``node``
``feed/NAME/N``        a phase, inlet or infeed of a PDU: a part of its total beside the outlets, never to be summed with them
``NAMESPACE/POD/cpu``  what Kepler holds a pod to draw of it, also ``/dram`` and ``/gpu``; metrics ``k8s.pod.power`` and ``.energy``
=====================  ==============================================================================================================

Where several exporters measure one thing, the first of this table's order that has values is read. Sources: DCGM exporter
``etc/default-counters.csv``; Kepler ``docs/user/metrics.md`` and its metrics before 0.10; ipmi_exporter ``docs/metrics.md``; node_exporter
collectors rapl and hwmon; PowerNet-MIB (power of PDU and phase in hundredths of kW, energy in tenths of kWh, outlets in W); Sentry3-MIB and
Sentry4-MIB (W); Raritan PDU2-MIB (sensor type 5 is active power; W where the device states no decimal digits, as it does for watts).

Not read: ``node_cpu_seconds_total`` (a series per core and mode; the recording rule of the node mixin is read instead), Kepler's
containers, processes and active/idle parts where the whole is exported (they lie within it), and hwmon chips that are no power meter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from telemetry.raw import text_of
from telemetry.readers.base import Mapped
from telemetry.readers.ipmi import SUPPLY_SENSOR, TOTAL_SENSOR

LabelSet = Mapping[str, str]
PORT = re.compile(r":\d+$")
EXPORTERS_OWN_POD = re.compile(r"(^|-)(dcgm|kepler)(-exporter)?-")
ZONE = re.compile(r"(package|dram|core|uncore|psys)(?:-(\d+))?")
PACKAGE_PATH = re.compile(r"intel-rapl:(\d+)")
SERVER_CONTROL = re.compile(r"(server|system|chassis|node|total).*power", re.IGNORECASE)
UNWANTED = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Exported:
    """How an exporter's metric is read.

    Attributes:
        metric: canonical metric.
        unit: the exporter's own unit.
        device: device of a label set; None = this one is not read.
        zero_is_blank: whether 0 says "not supported".
        parts: whether series that differ in other labels are parts of one count, and so are summed.
        board: whether a MIG instance's series repeats its board's value.
        of: ``gpu``, ``node``, ``pod``, ``pdu`` or ``service``: what the series belongs to.
    """

    metric: str
    unit: str
    device: Callable[[LabelSet], str | None]
    zero_is_blank: bool = False
    parts: bool = False
    board: bool = False
    of: str = "node"


def node_of(labels: LabelSet) -> str:
    """Node, by the exporter's own label or the scrape's address without its port."""
    return text_of(labels, "Hostname", "hostname", "node_name", "node", "nodename") or PORT.sub("", text_of(labels, "instance"))


def pod_of(labels: LabelSet) -> str:
    """Workload's pod. Where the scrape has labels of its own, ``pod`` is the exporter's and the workload's is ``exported_pod``."""
    pod = text_of(labels, "exported_pod", "pod_name") or text_of(labels, "pod")
    return "" if EXPORTERS_OWN_POD.search(pod) else pod


def namespace_of(labels: LabelSet) -> str:
    """Namespace of the workload's pod."""
    own = text_of(labels, "exported_namespace", "pod_namespace", "container_namespace")
    return own or ("" if EXPORTERS_OWN_POD.search(text_of(labels, "pod")) else text_of(labels, "namespace"))


def _whole(labels: LabelSet) -> str:
    return ""


def _board(labels: LabelSet) -> str:
    return f"gpu{text_of(labels, 'gpu', 'index', 'minor_number') or text_of(labels, 'UUID', 'gpu_uuid', 'uuid')}"


def _gpu(labels: LabelSet) -> str:
    mig = text_of(labels, "GPU_I_ID")
    return _board(labels) + (f"/mig{mig}" if mig else "")


def _zone(labels: LabelSet) -> str | None:
    """RAPL zone of Kepler; a number that is in neither its name nor its path is 0, which then stands for all packages."""
    match = ZONE.fullmatch(text_of(labels, "zone"))
    if match is None:
        return None
    zone, number = match.group(1), match.group(2)
    if zone == "psys":
        return "psys"
    path = PACKAGE_PATH.search(text_of(labels, "path"))
    package = f"cpu{number or (path.group(1) if path else '0')}"
    return package if zone == "package" else f"{package}/{zone}"


def _rapl(zone: str) -> Callable[[LabelSet], str]:
    return lambda labels: f"cpu{text_of(labels, 'index', 'package') or '0'}{zone}"


def _pod_part(part: str) -> Callable[[LabelSet], str | None]:
    """Part of a pod; of Kepler's zones, package and dram, which do not overlap."""

    def device(labels: LabelSet) -> str | None:
        pod = text_of(labels, "pod_name") or pod_of(labels)
        zone = text_of(labels, "zone").partition("-")[0]
        name = part or {"package": "cpu", "dram": "dram"}.get(zone, "")
        return f"{namespace_of(labels)}/{pod}/{name}" if pod and name else None

    return device


def _sensor(labels: LabelSet) -> str | None:
    name = text_of(labels, "name")
    if TOTAL_SENSOR.search(name):
        return ""
    return f"psu{UNWANTED.sub('-', name)}" if SUPPLY_SENSOR.match(name) else None


def _control(labels: LabelSet) -> str | None:
    name = text_of(labels, "power_control_name")
    return "" if not name or (SERVER_CONTROL.search(name) and "sub" not in name.lower()) else None


def _power_meter(labels: LabelSet) -> str | None:
    chip = text_of(labels, "chip").lower()
    return "" if "acpi000d" in chip or "power_meter" in chip else None


def _pdu(labels: LabelSet) -> str:
    return f"pdu/{pdu_of(labels)}"


def pdu_of(labels: LabelSet) -> str:
    """Name of a PDU: what the scrape calls it."""
    return UNWANTED.sub("-", text_of(labels, "pdu", "sysName") or PORT.sub("", text_of(labels, "instance")) or "unknown")


def _outlet(*names: str) -> Callable[[LabelSet], str]:
    return lambda labels: f"pdu/{pdu_of(labels)}/{_index(labels, names)}"


def _feed(kind: str, *names: str) -> Callable[[LabelSet], str]:
    return lambda labels: f"feed/{pdu_of(labels)}/{kind}{_index(labels, names)}"


def _index(labels: LabelSet, names: tuple[str, ...]) -> str:
    return ".".join(UNWANTED.sub("-", labels[name]) for name in names if labels.get(name)) or "0"


def _raritan(kind: str, place: Callable[[LabelSet], str]) -> Callable[[LabelSet], str | None]:
    return lambda labels: place(labels) if text_of(labels, "sensorType").lower() in kind.split() else None


POWER = "5 activepower"
EXPORTED: dict[str, Exported] = {
    "DCGM_FI_DEV_POWER_USAGE": Exported("hw.power", "W", _board, board=True, of="gpu"),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": Exported("hw.power.limit", "W", _board, zero_is_blank=True, board=True, of="gpu"),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": Exported("hw.energy", "mJ", _board, board=True, of="gpu"),
    "DCGM_FI_DEV_GPU_UTIL": Exported("hw.gpu.utilization", "%", _gpu, of="gpu"),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": Exported("hw.gpu.utilization", "1", _gpu, of="gpu"),
    "DCGM_FI_PROF_DRAM_ACTIVE": Exported("hw.gpu.memory.bandwidth.utilization", "1", _gpu, of="gpu"),
    "DCGM_FI_DEV_MEM_COPY_UTIL": Exported("hw.gpu.memory.bandwidth.utilization", "%", _gpu, of="gpu"),
    "DCGM_FI_DEV_FB_USED": Exported("hw.gpu.memory.usage", "MiB", _gpu, of="gpu"),
    "DCGM_FI_DEV_GPU_TEMP": Exported("hw.temperature", "Cel", _board, board=True, of="gpu"),
    "DCGM_FI_DEV_SM_CLOCK": Exported("hw.gpu.speed", "MHz", _board, board=True, of="gpu"),
    "nvidia_smi_power_draw_watts": Exported("hw.power", "W", _board, of="gpu"),
    "nvidia_smi_utilization_gpu_ratio": Exported("hw.gpu.utilization", "1", _board, of="gpu"),
    "nvidia_smi_memory_used_bytes": Exported("hw.gpu.memory.usage", "By", _board, of="gpu"),
    "nvidia_smi_temperature_gpu": Exported("hw.temperature", "Cel", _board, of="gpu"),
    "ipmi_dcmi_power_consumption_watts": Exported("hw.power", "W", _whole, zero_is_blank=True),
    "ipmi_power_watts": Exported("hw.power", "W", _sensor, zero_is_blank=True),
    "kepler_platform_watts": Exported("hw.power", "W", _control),
    "node_hwmon_power_average_watt": Exported("hw.power", "W", _power_meter, zero_is_blank=True),
    "node_rapl_package_joules_total": Exported("hw.energy", "J", _rapl("")),
    "node_rapl_dram_joules_total": Exported("hw.energy", "J", _rapl("/dram")),
    "kepler_node_cpu_watts": Exported("hw.power", "W", _zone),
    "kepler_node_cpu_joules_total": Exported("hw.energy", "J", _zone),
    "kepler_node_gpu_watts": Exported("hw.power", "W", _board, of="gpu"),
    "kepler_node_gpu_joules_total": Exported("hw.energy", "J", _board, of="gpu"),
    "kepler_node_package_joules_total": Exported("hw.energy", "J", _rapl(""), parts=True),
    "kepler_node_dram_joules_total": Exported("hw.energy", "J", _rapl("/dram"), parts=True),
    "kepler_node_platform_joules_total": Exported("hw.energy", "J", lambda labels: "psys", parts=True),
    "kepler_pod_cpu_watts": Exported("k8s.pod.power", "W", _pod_part(""), of="pod"),
    "kepler_pod_gpu_watts": Exported("k8s.pod.power", "W", _pod_part("gpu"), of="pod"),
    "kepler_pod_cpu_joules_total": Exported("k8s.pod.energy", "J", _pod_part(""), of="pod"),
    "kepler_pod_gpu_joules_total": Exported("k8s.pod.energy", "J", _pod_part("gpu"), of="pod"),
    "kepler_container_package_joules_total": Exported("k8s.pod.energy", "J", _pod_part("cpu"), parts=True, of="pod"),
    "kepler_container_dram_joules_total": Exported("k8s.pod.energy", "J", _pod_part("dram"), parts=True, of="pod"),
    "kepler_container_gpu_joules_total": Exported("k8s.pod.energy", "J", _pod_part("gpu"), parts=True, of="pod"),
    "instance:node_cpu_utilisation:rate5m": Exported("system.cpu.utilization", "1", _whole),
    "instance:node_cpu_utilisation:rate1m": Exported("system.cpu.utilization", "1", _whole),
    "rPDU2DeviceStatusPower": Exported("hw.power", "daW", _pdu, of="pdu"),
    "rPDU2DeviceStatusEnergy": Exported("hw.energy", "hW.h", _pdu, of="pdu"),
    "rPDU2PhaseStatusPower": Exported("hw.power", "daW", _feed("phase", "rPDU2PhaseStatusIndex"), of="pdu"),
    "rPDU2OutletMeteredStatusPower": Exported("hw.power", "W", _outlet("rPDU2OutletMeteredStatusIndex"), of="pdu"),
    "systemTotalPower": Exported("hw.power", "W", _pdu, of="pdu"),
    "infeedPower": Exported("hw.power", "W", _feed("infeed", "towerIndex", "infeedIndex"), of="pdu"),
    "outletPower": Exported("hw.power", "W", _outlet("towerIndex", "infeedIndex", "outletIndex"), of="pdu"),
    "st4InputCordActivePower": Exported("hw.power", "W", _feed("cord", "st4UnitIndex", "st4InputCordIndex"), of="pdu"),
    "st4OutletActivePower": Exported("hw.power", "W", _outlet("st4UnitIndex", "st4InputCordIndex", "st4OutletIndex"), of="pdu"),
    "measurementsUnitSensorValue": Exported("hw.power", "W", _raritan(POWER, _pdu), of="pdu"),
    "measurementsInletSensorValue": Exported("hw.power", "W", _raritan(POWER, _feed("inlet", "inletId")), of="pdu"),
    "measurementsOutletSensorValue": Exported("hw.power", "W", _raritan(POWER, _outlet("outletId")), of="pdu"),
    "http_server_request_count_total": Exported("http.server.request.count", "1", _whole, parts=True, of="service"),
    "http_requests_total": Exported("http.server.request.count", "1", _whole, parts=True, of="service"),
}
RANK: dict[str, int] = {name: rank for rank, name in enumerate(EXPORTED)}
# Read beside others: free memory, which makes a share of the used; a GPU's number by its UUID; a pod's labels; whether a BMC answers.
FREE_MEMORY, USED_MEMORY = "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED"
GPU_NUMBER, POD_LABELS, BMC_UP = "nvidia_smi_index", "kube_pod_labels", "ipmi_up"
METRIC_NAMES: tuple[str, ...] = (*EXPORTED, FREE_MEMORY, GPU_NUMBER, POD_LABELS, BMC_UP)


def exported_mapping() -> list[Mapped]:
    """Rows of docs/telemetry.md; devices are in this module's table."""
    places = {"gpu": "a GPU", "node": "the node or a part of it", "pod": "a pod", "pdu": "a PDU or a part of it", "service": "a service"}
    return [Mapped(name, exported.metric, exported.unit, f"of {places[exported.of]}") for name, exported in EXPORTED.items()]

"""Units: what each metric is measured in, and which other units are converted (and counted) on the way in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from telemetry.errors import InputError

# Factors to the unit of the outer key. UCUM spellings as in OpenTelemetry, and those that exporters print.
CONVERSIONS: dict[str, dict[str, float]] = {
    "W": {
        "W": 1.0, "Watts": 1.0, "Watt": 1.0, "watts": 1.0, "kW": 1e3, "KW": 1e3, "MW": 1e6, "mW": 1e-3, "uW": 1e-6,
        "daW": 10.0,  # hundredths of kW, as APC's PDUs count
    },
    "J": {
        "J": 1.0, "joules": 1.0, "mJ": 1e-3, "uJ": 1e-6, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6, "W.h": 3600.0, "kW.h": 3.6e6,
        "hW.h": 360_000.0,  # tenths of kWh, as APC's PDUs count
    },
    "1": {"1": 1.0, "": 1.0, "ratio": 1.0, "%": 0.01, "percent": 0.01},
    "By": {
        "By": 1.0, "B": 1.0, "bytes": 1.0, "kBy": 1e3, "kB": 1e3, "KB": 1e3, "MBy": 1e6, "MB": 1e6, "GBy": 1e9, "GB": 1e9,
        "KiBy": 1024.0, "KiB": 1024.0, "MiBy": 1024.0**2,
        "MiB": 1024.0**2, "GiBy": 1024.0**3, "GiB": 1024.0**3, "TiBy": 1024.0**4,
    },
    "Cel": {
        "Cel": 1.0, "C": 1.0, "\u00b0C": 1.0, "degrees C": 1.0, "celsius": 1.0, "K": 1.0, "[degF]": 5 / 9, "F": 5 / 9, "degrees F": 5 / 9,
    },
    "Hz": {"Hz": 1.0, "hertz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "s": {"s": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0},
    "V": {"V": 1.0, "Volts": 1.0, "mV": 1e-3, "kV": 1e3},
    "rpm": {"rpm": 1.0, "RPM": 1.0, "{revolutions}/min": 1.0, "Hz": 60.0},
    "{cpu}": {"{cpu}": 1.0, "1": 1.0, "": 1.0, "cores": 1.0, "m{cpu}": 1e-3, "n{cpu}": 1e-9},
    "{request}": {"{request}": 1.0, "{requests}": 1.0, "1": 1.0, "": 1.0},
    "1/s": {"1/s": 1.0, "{request}/s": 1.0, "/s": 1.0, "1/min": 1 / 60, "/min": 1 / 60, "1/(5min)": 1 / 300},
    "{token}/s": {"{token}/s": 1.0},
    "{token}": {"{token}": 1.0},
    "{gpu}": {"{gpu}": 1.0},
    "{job}": {"{job}": 1.0},
    "USD/kWh": {"USD/kWh": 1.0, "USD/MWh": 1e-3},
    "g/kWh": {"g/kWh": 1.0, "kg/kWh": 1e3, "kg/MWh": 1.0, "lb/kWh": 453.59237, "t/kWh": 1e6},
    "m/s": {"m/s": 1.0, "km/h": 1 / 3.6},
    "{unstated}": {"{unstated}": 1.0},
}  # fmt: skip
# Added after the factor, where the zeros of two scales differ.
OFFSETS: dict[tuple[str, str], float] = {
    ("K", "Cel"): -273.15,
    ("[degF]", "Cel"): -160 / 9,
    ("F", "Cel"): -160 / 9,
    ("degrees F", "Cel"): -160 / 9,
}


@dataclass(frozen=True)
class Metric:
    """A canonical metric.

    Attributes:
        unit: canonical unit of the incoming value.
        counter: whether it only ever grows; counters enter the samples table as rates.
        rate: name of that rate, empty for gauges.
        rate_unit: unit of the rate.
        description: what is measured.
        low: least value that can be true, in the canonical unit.
        high: greatest value that can be true; watts are judged by the device's own limit instead (``telemetry/limits.py``).
        only: attribute and its value, where a metric is split by an attribute of which one value alone is wanted; points that carry another
            value are left out and told, those without the attribute are taken.
        signed: whether -1 is a value like any other, and no mark of a missing one.
    """

    unit: str
    counter: bool = False
    rate: str = ""
    rate_unit: str = ""
    description: str = ""
    low: float = 0.0
    high: float = math.inf
    only: tuple[str, str] | None = None
    signed: bool = False

    @property
    def kind(self) -> str:
        """``counter`` or ``gauge``."""
        return "counter" if self.counter else "gauge"


# Names, units and attributes of the OpenTelemetry semantic conventions for hardware, system and Kubernetes metrics.
METRICS: dict[str, Metric] = {
    "hw.power": Metric("W", description="electric power of a device, or of the whole node"),
    "hw.energy": Metric("J", True, "hw.energy.rate", "W", description="electric energy since the counter began"),
    "hw.gpu.utilization": Metric("1", description="share of the time in which a kernel ran", high=1.0, only=("hw.gpu.task", "general")),
    "hw.gpu.memory.utilization": Metric("1", description="share of the GPU's memory in use", high=1.0),
    "hw.gpu.memory.usage": Metric("By", description="memory of the GPU in use"),
    "hw.gpu.memory.limit": Metric("By", description="memory that the GPU has"),
    "hw.temperature": Metric("Cel", description="temperature of a sensor", low=-60.0, high=200.0),
    "hw.host.ambient_temperature": Metric("Cel", description="temperature of the air that enters the node", low=-60.0, high=100.0),
    "hw.fan.speed": Metric("rpm", description="speed of a fan"),
    "hw.voltage": Metric("V", description="voltage of a sensor", low=-1e6),
    "hw.cpu.speed": Metric("Hz", description="clock of the processor"),
    "system.cpu.utilization": Metric("1", description="share of the node's processors in use", high=1.0),
    "system.memory.utilization": Metric(
        "1", description="share of the node's memory in use", high=1.0, only=("system.memory.state", "used")
    ),
    "system.memory.usage": Metric("By", description="memory of the node in use", only=("system.memory.state", "used")),
    "system.memory.limit": Metric("By", description="memory that the node has"),
    "k8s.node.cpu.usage": Metric("{cpu}", description="processors of the node in use, as kubelet counts"),
    "k8s.node.memory.usage": Metric("By", description="memory of the node in use, as kubelet counts"),
    "http.server.request.count": Metric(
        "{request}", True, "http.server.request.rate", "1/s", description="requests that a service has answered"
    ),
    "hw.power.limit": Metric("W", description="cap that is set on a device's electric power"),
    "hw.gpu.memory.bandwidth.utilization": Metric("1", description="share of the time in which the GPU's memory moved data", high=1.0),
    "hw.gpu.speed": Metric("Hz", description="clock of the GPU"),
    "http.server.request.rate": Metric("1/s", description="requests answered, of exports that count per period, such as cloud monitors"),
    "k8s.pod.power": Metric("W", description="what a pod is held to draw of a device"),
    "k8s.pod.energy": Metric("J", True, "k8s.pod.energy.rate", "W", description="what a pod is held to have drawn of a device"),
    # Of requests, over the window that ends at the sample's time.
    "gen_ai.input_tokens.rate": Metric("{token}/s", description="tokens of prompts"),
    "gen_ai.output_tokens.rate": Metric("{token}/s", description="tokens generated"),
    "gen_ai.input_tokens.mean": Metric("{token}", description="tokens of a prompt, on average"),
    "gen_ai.output_tokens.mean": Metric("{token}", description="tokens generated for a request, on average"),
    # Of a scheduler's queue, per virtual cluster.
    "scheduler.gpus.running": Metric("{gpu}", description="GPUs of running jobs"),
    "scheduler.gpus.pending": Metric("{gpu}", description="GPUs that waiting jobs ask for"),
    "scheduler.gpus.capacity": Metric("{gpu}", description="GPUs that there are"),
    "scheduler.jobs.running": Metric("{job}", description="running jobs"),
    "scheduler.jobs.pending": Metric("{job}", description="waiting jobs"),
    # Of a grid zone or a place, over the step that begins at the sample's time.
    "grid.price": Metric("USD/kWh", description="wholesale price", low=-math.inf, signed=True),
    "grid.carbon_intensity": Metric("g/kWh", description="CO2 equivalents of a kWh, over the plants' life cycle"),
    "grid.carbon_intensity.direct": Metric("g/kWh", description="CO2 of a kWh, of burning alone"),
    "grid.carbon_intensity.marginal": Metric(
        "g/kWh",
        description="CO2 of one kWh more or less; below 0 where it lets a dirtier plant run less",
        low=-math.inf,
        signed=True,
    ),
    "grid.renewable_fraction": Metric("1", description="share of renewable plants in the generation", high=1.0),
    "grid.low_carbon_fraction": Metric("1", description="share of renewable and nuclear plants in the generation", high=1.0),
    "grid.generation": Metric("W", description="generation by a kind of plant; below 0 where it stores", low=-math.inf, signed=True),
    "weather.temperature": Metric("Cel", description="temperature outdoors", low=-90.0, high=70.0, signed=True),
    "weather.relative_humidity": Metric("1", description="relative humidity outdoors", high=1.0),
    "weather.cloud_cover": Metric("1", description="share of the sky in clouds", high=1.0),
    "weather.wind_speed": Metric("m/s", description="speed of the wind"),
    "source.value": Metric(
        "{unstated}",
        description="a number whose unit its source does not state; the device is the source's own name of it",
        low=-math.inf,
        signed=True,
    ),
}
SAMPLE_METRICS: tuple[str, ...] = tuple(dict.fromkeys(m.rate or name for name, m in METRICS.items()))


def factor(unit: str, target: str, *, where: str) -> float:
    """What a value in ``unit`` is multiplied by to be in ``target``.

    Raises:
        InputError: the unit does not measure the same thing, or is unknown.
    """
    known = CONVERSIONS.get(target, {target: 1.0})
    if unit not in known:
        raise InputError(f"unit {unit!r}", where=where, allowed=", ".join(u for u in known if u), remedy=f"export it in {target}")
    return known[unit]


def offset(unit: str, target: str) -> float:
    """What is added to a value in ``unit`` after :func:`factor`, to be in ``target``; 0 but for scales with another zero."""
    return OFFSETS.get((unit, target), 0.0)


def convert(value: float, unit: str, target: str, *, where: str) -> float:
    """A value in ``unit`` in ``target``.

    Raises:
        InputError: the unit does not measure the same thing, or is unknown.
    """
    return value * factor(unit, target, where=where) + offset(unit, target)

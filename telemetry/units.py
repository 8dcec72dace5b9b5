"""Units: what each metric is measured in, and which other units are converted (and counted) on the way in."""

from __future__ import annotations

from dataclasses import dataclass

from telemetry.errors import InputError

# Factors to the unit of the outer key. UCUM spellings as in OpenTelemetry, and those that exporters print.
CONVERSIONS: dict[str, dict[str, float]] = {
    "W": {"W": 1.0, "Watts": 1.0, "Watt": 1.0, "watts": 1.0, "kW": 1e3, "KW": 1e3, "MW": 1e6, "mW": 1e-3},
    "J": {"J": 1.0, "joules": 1.0, "mJ": 1e-3, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6, "W.h": 3600.0, "kW.h": 3.6e6},
    "1": {"1": 1.0, "": 1.0, "ratio": 1.0, "%": 0.01, "percent": 0.01},
    "By": {"By": 1.0, "B": 1.0, "KiBy": 1024.0, "MiBy": 1024.0**2, "MiB": 1024.0**2, "GiBy": 1024.0**3, "GiB": 1024.0**3},
    "{request}": {"{request}": 1.0, "{requests}": 1.0, "1": 1.0, "": 1.0},
    "1/s": {"1/s": 1.0, "{request}/s": 1.0, "/s": 1.0, "1/min": 1 / 60, "/min": 1 / 60},
    "Cel": {"Cel": 1.0, "C": 1.0, "celsius": 1.0},
    "Hz": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
}
CONVERSIONS["By"] |= {"kBy": 1e3, "kB": 1e3, "KB": 1e3, "MBy": 1e6, "MB": 1e6, "GBy": 1e9, "GB": 1e9}
CONVERSIONS["W"] |= {"daW": 10.0}  # hundredths of kW, as APC's PDUs count
CONVERSIONS["J"] |= {"hW.h": 360_000.0, "uJ": 1e-6}  # tenths of kWh, as APC's PDUs count; RAPL's own unit


@dataclass(frozen=True)
class Metric:
    """A canonical metric.

    Attributes:
        unit: canonical unit of the incoming value.
        counter: whether it only ever grows; counters enter the samples table as rates.
        rate: name of that rate, empty for gauges.
        rate_unit: unit of the rate.
    """

    unit: str
    counter: bool = False
    rate: str = ""
    rate_unit: str = ""


METRICS: dict[str, Metric] = {
    "hw.power": Metric("W"),
    "hw.energy": Metric("J", True, "hw.energy.rate", "W"),
    "hw.gpu.utilization": Metric("1"),
    "hw.gpu.memory.utilization": Metric("1"),
    "hw.gpu.memory.usage": Metric("By"),
    "system.cpu.utilization": Metric("1"),
    "http.server.request.count": Metric("{request}", True, "http.server.request.rate", "1/s"),
    "http.server.request.rate": Metric("1/s"),  # of exports that count per period, such as cloud monitors
    "hw.gpu.memory.bandwidth.utilization": Metric("1"),
    "hw.gpu.memory.limit": Metric("By"),
    "hw.gpu.speed": Metric("Hz"),
    "hw.temperature": Metric("Cel"),
    "k8s.pod.power": Metric("W"),
    "k8s.pod.energy": Metric("J", True, "k8s.pod.energy.rate", "W"),
}
SAMPLE_METRICS: tuple[str, ...] = tuple(dict.fromkeys(m.rate or name for name, m in METRICS.items()))


def factor(unit: str, target: str, *, where: str) -> float:
    """What a value in ``unit`` is multiplied by to be in ``target``.

    Raises:
        InputError: the unit does not measure the same thing, or is unknown.
    """
    known = CONVERSIONS[target]
    if unit not in known:
        raise InputError(f"unit {unit!r}", where=where, allowed=", ".join(u for u in known if u), remedy=f"export it in {target}")
    return known[unit]

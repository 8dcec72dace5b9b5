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
    "1/s": {"1/s": 1.0, "{request}/s": 1.0, "1/min": 1 / 60, "1/(5min)": 1 / 300},
    "{token}/s": {"{token}/s": 1.0},
    "{token}": {"{token}": 1.0},
    "{gpu}": {"{gpu}": 1.0},
    "{job}": {"{job}": 1.0},
    "USD/kWh": {"USD/kWh": 1.0, "USD/MWh": 1e-3},
    "g/kWh": {"g/kWh": 1.0, "kg/kWh": 1e3, "kg/MWh": 1.0, "lb/kWh": 453.59237, "t/kWh": 1e6},
    "Cel": {"Cel": 1.0},
    "m/s": {"m/s": 1.0, "km/h": 1 / 3.6},
    "{unstated}": {"{unstated}": 1.0},
}


@dataclass(frozen=True)
class Metric:
    """A canonical metric.

    Attributes:
        unit: canonical unit of the incoming value.
        counter: whether it only ever grows; counters enter the samples table as rates.
        rate: name of that rate, empty for gauges.
        rate_unit: unit of the rate.
        signed: whether a value below 0 is a value like any other; else it cannot be true, and -1 marks a missing one.
    """

    unit: str
    counter: bool = False
    rate: str = ""
    rate_unit: str = ""
    signed: bool = False


METRICS: dict[str, Metric] = {
    "hw.power": Metric("W"),
    "hw.energy": Metric("J", True, "hw.energy.rate", "W"),
    "hw.gpu.utilization": Metric("1"),
    "hw.gpu.memory.utilization": Metric("1"),
    "hw.gpu.memory.usage": Metric("By"),
    "system.cpu.utilization": Metric("1"),
    "http.server.request.count": Metric("{request}", True, "http.server.request.rate", "1/s"),
    # Rates that a source states itself, over the window that ends at the sample's time.
    "http.server.request.rate": Metric("1/s"),
    "gen_ai.input_tokens.rate": Metric("{token}/s"),
    "gen_ai.output_tokens.rate": Metric("{token}/s"),
    "gen_ai.input_tokens.mean": Metric("{token}"),
    "gen_ai.output_tokens.mean": Metric("{token}"),
    # Of a scheduler's queue, per virtual cluster.
    "scheduler.gpus.running": Metric("{gpu}"),
    "scheduler.gpus.pending": Metric("{gpu}"),
    "scheduler.gpus.capacity": Metric("{gpu}"),
    "scheduler.jobs.running": Metric("{job}"),
    "scheduler.jobs.pending": Metric("{job}"),
    # Of a grid zone or a place, over the step that begins at the sample's time.
    "grid.price": Metric("USD/kWh", signed=True),
    "grid.carbon_intensity": Metric("g/kWh"),
    "grid.carbon_intensity.direct": Metric("g/kWh"),
    # What one kWh more or less causes: below 0 where it lets a dirtier plant run less.
    "grid.carbon_intensity.marginal": Metric("g/kWh", signed=True),
    "grid.renewable_fraction": Metric("1"),
    "grid.low_carbon_fraction": Metric("1"),
    "grid.generation": Metric("W", signed=True),
    "weather.temperature": Metric("Cel", signed=True),
    "weather.relative_humidity": Metric("1"),
    "weather.cloud_cover": Metric("1"),
    "weather.wind_speed": Metric("m/s"),
    # A number whose unit or statistic its source does not state; the device is the source's own name of it.
    "source.value": Metric("{unstated}", signed=True),
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

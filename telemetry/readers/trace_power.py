"""Readers of public power measurements: watts over time become samples, everything that has no time becomes reference."""

from __future__ import annotations

import pandas as pd

from telemetry.errors import InputError
from telemetry.raw import Labels
from telemetry.readers.base import Mapped
from telemetry.readers.trace_file import SampleColumns, Trace, TraceReader, reference_tables
from telemetry.schema import UTC

PTD_TIME = "%m-%d-%Y %H:%M:%S.%f"
# The dirtiest coal stays below 2 kg/kWh: above 10 kg a decimal point is lost, as in one row of the source.
MAX_T_PER_KWH = 0.01
READING, ESTIMATE = "power_reading", "interconnect_power_est"


def _power(node: str, service: str = "", device: str = "", project: str = "") -> Labels:
    return Labels(metric="hw.power", node=node, service=service, device=device, project=project, unit="W", native_unit="W")


class MlperfPowerReader(TraceReader):
    """Watts of MLPerf runs: a wall meter's log (PTDaemon), or the nodes' own logs; the results of runs become reference.

    A run is a series of its own, so that the time between runs is no gap. The switches' ``interconnect_power_est`` is an estimate with a
    clock of 2022, two years before the runs: left out.
    """

    name = "mlperf_power"
    reads = (
        "MLPerf power logs as tables: PTDaemon (Time, Watts), node logs (time_ms, key, value), run results (key, value) (.parquet, .csv)"
    )
    maps = (
        Mapped("Watts", "hw.power", "W", "node = system, service = benchmark/scenario/phase, project = benchmark; Time is UTC"),
        Mapped("power_reading", "hw.power", "W", "node = system/node, service = benchmark/run, project = benchmark"),
        Mapped("key, value of a run", "reference", "as the key says", "by submitter, system, benchmark, scenario, phase"),
    )
    flaws = (
        "-1 W where the meter did not answer; node logs below 0 W and with repeated times; some node logs are copies of others; PTDaemon's "
        "times are UTC where they can be checked (8 and 6 hours after the local marks of two systems, equal to those of the third)"
    )

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        if trace.has("time_ms"):
            return self._nodes(trace)
        if trace.has("submitter"):
            return self._results(trace)
        keys = ("system", "benchmark", "scenario", "phase")
        trace.require(*keys, "Time", "Watts", also=("Mark",))
        trace.need_texts(*keys)
        frame = trace.frame
        times = pd.to_datetime(frame["Time"].astype(str), format=PTD_TIME, errors="coerce", utc=True).astype(UTC)
        columns = SampleColumns(trace)
        columns.add(frame["Watts"], times, self._joined(frame, keys), self._run)
        return columns.tables()

    def _joined(self, frame: pd.DataFrame, keys: tuple[str, ...]) -> pd.Series:
        joined = frame[keys[0]]
        for name in keys[1:]:
            joined = joined + "\x1f" + frame[name]
        return joined

    def _run(self, key: str) -> Labels:
        system, benchmark, *rest = key.split("\x1f")
        return _power(system, "/".join((benchmark, *rest)), project=benchmark)

    def _nodes(self, trace: Trace) -> dict[str, pd.DataFrame]:
        keys = ("system", "node", "benchmark", "run")
        trace.require(*keys, "time_ms", "key", "value")
        trace.need_texts(*keys, "key")
        trace.drop(trace.frame["key"] == ESTIMATE, note="estimates of the switches' power, with a clock of 2022, left out")
        trace.drop(trace.frame["key"] != READING, note="log lines that are no reading")
        trace.need_numbers({"time_ms": (0.0, 1e15)})
        frame = trace.frame
        times = trace.after(pd.Timestamp(0, tz="UTC"), frame["time_ms"] / 1000.0)
        columns = SampleColumns(trace)
        columns.add(frame["value"], times, self._joined(frame, keys), self._node_run)
        return columns.tables()

    def _node_run(self, key: str) -> Labels:
        system, node, benchmark, run = key.split("\x1f")[:4]
        return _power(f"{system}/{node}", f"{benchmark}/{run}", project=benchmark)

    def _results(self, trace: Trace) -> dict[str, pd.DataFrame]:
        keys = ("submitter", "system", "benchmark", "scenario", "phase", "key")
        trace.require(*keys, "value")
        trace.need_texts(*keys)
        text = pd.to_numeric(trace.frame["value"], errors="coerce").isna()
        trace.drop(text, note="results of runs that are no number, left out")
        return reference_tables(trace, keys, {"value": ("result", "as the key says")})


class KeplerModelsReader(TraceReader):
    """Watts of the server whose counters train Kepler's power models: its platform (ACPI), or its packages and memory (RAPL)."""

    name = "kepler_models"
    reads = "Kepler model training data: timestamp, platform_power or package_power and dram_power (.parquet, .csv)"
    options = {"node": "name of the server; default: nx12"}  # noqa: RUF012
    zones = ("package", "core", "uncore", "dram")
    maps = (
        Mapped("platform_power", "hw.power", "W", "node = nx12"),
        Mapped("package_power, dram_power", "hw.power", "W", "node = nx12, device = package, dram"),
        Mapped("core_power, uncore_power", "hw.power", "W", "only where not 0 throughout, which is not measured; core is part of package"),
    )
    flaws = "the hardware is not named; times are whole seconds"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        found = {name: name.removesuffix("_power") for name in (f"{zone}_power" for zone in self.zones) if trace.has(name)}
        if trace.has("platform_power") or not found:
            found = {"platform_power": ""} | found
        trace.require("timestamp", *found)
        node = str(trace.option("node", "nx12"))
        trace.need_numbers({"timestamp": (0.0, 1e11)})
        times = trace.after(pd.Timestamp(0, tz="UTC"), trace.frame["timestamp"])
        columns = SampleColumns(trace)
        for name, device in found.items():
            values = trace.frame[name]
            if device in ("core", "uncore") and (pd.to_numeric(values, errors="coerce") == 0).all():
                trace.note(f"values of {name}, 0 throughout: not measured, left out", len(values))
                continue
            columns.add(values, times, node, lambda name, device=device: _power(name, device=device))  # type: ignore[misc]
        return columns.tables()


class ZeusReader(TraceReader):
    """Zeus' sweeps of the power limit, and its training runs: measurements by setting, not over time."""

    name = "zeus"
    reads = "Zeus NSDI'23 summaries: power limit sweeps or training runs (.csv)"
    keys = ("dataset", "network", "batch_size", "optimizer")
    maps = (
        Mapped("time_per_epoch", "reference time_per_epoch", "s", "by dataset, network, batch_size, optimizer, power_limit (W)"),
        Mapped("average_power", "reference average_power", "W", "same"),
        Mapped("target_epoch", "reference target_epoch", "epoch", "by ..., learning_rate, run, target_metric; blank = never reached"),
    )

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        if trace.has("target_epoch"):
            keys = (*self.keys, "learning_rate", "run", "target_metric")
            return reference_tables(trace, keys, {"target_epoch": ("target_epoch", "epoch")})
        quantities = {"time_per_epoch": ("time_per_epoch", "s"), "average_power": ("average_power", "W")}
        return reference_tables(trace, (*self.keys, "power_limit"), quantities)


class AcmeReader(TraceReader):
    """Distributions and totals of Acme's GPU clusters (AcmeTrace)."""

    name = "acme"
    reads = "AcmeTrace quantile curves (file, curve, x, y) or its cluster summary (.parquet, .csv)"
    maps = (
        Mapped("x at y % of the samples", "reference quantile", "as the file says (W, %, GiB)", "by file, curve, y"),
        Mapped("columns of the summary", "reference", "not stated", "by cluster (id)"),
    )
    flaws = "distributions, no time; what some curves mean is not stated"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        if trace.has("curve"):
            trace.require("file", "curve", "y", "x")
            return reference_tables(trace, ("file", "curve", "y"), {"x": ("quantile", "as the file says")})
        trace.require("id", also=[name for name in trace.frame if name != "id"])
        numbers = [name for name in trace.frame if name != "id"]
        if not numbers:
            raise InputError("no column of values", where=trace.where)
        return reference_tables(trace, ("id",), {name: (name, "not stated") for name in numbers})


class CcfReader(TraceReader):
    """Coefficients of Cloud Carbon Footprint: watts per virtual CPU, embodied emissions, grid factors."""

    name = "ccf"
    reads = "Cloud Carbon Footprint coefficients: use, embodied or grid emission factors (.csv)"
    maps = (
        Mapped("Min Watts, Max Watts", "reference", "W", "by Architecture, per virtual CPU"),
        Mapped("GB/Chip", "reference", "GB", "by Architecture"),
        Mapped("total_mean", "reference embodied", "kgCO2e", "by machine type"),
        Mapped("CO2e (metric ton/kWh)", "reference grid emissions", "t/kWh", "by Region"),
    )
    flaws = "two rows of the Azure table have lost their decimal point (one of them also a field): dropped"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.frame = trace.frame.drop(columns=[name for name in trace.frame if name.startswith("Unnamed")])
        if trace.has("Region"):
            return reference_tables(trace, ("Region",), {"CO2e (metric ton/kWh)": ("grid emissions", "t/kWh")}, highest=MAX_T_PER_KWH)
        if trace.has("type"):
            return reference_tables(trace, ("type",), {"total_mean": ("embodied", "kgCO2e")})
        quantities = {"Min Watts": ("Min Watts", "W"), "Max Watts": ("Max Watts", "W"), "GB/Chip": ("GB/Chip", "GB")}
        return reference_tables(trace, ("Architecture",), quantities)

"""Readers of public series of clusters and clouds: Helios' queues, Azure's fleet, NAB's CloudWatch metrics."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from telemetry.raw import Labels
from telemetry.readers.base import Mapped
from telemetry.readers.trace_file import START, SampleColumns, Trace, TraceReader

AZURE_STEP_S = 300
HELIOS = {
    "running_gpu_num": ("scheduler.gpus.running", "{gpu}"),
    "pending_gpu_num": ("scheduler.gpus.pending", "{gpu}"),
    "total_gpu_num": ("scheduler.gpus.capacity", "{gpu}"),
    "running_gpujob_num": ("scheduler.jobs.running", "{job}"),
    "pending_gpujob_num": ("scheduler.jobs.pending", "{job}"),
}
# Part of the file's name -> metric and unit. CloudWatch's RequestCount is a sum: its average is 1 by definition, and these are above 1.
NAB_METRICS = {"cpu_utilization": ("system.cpu.utilization", "%"), "request_count": ("http.server.request.rate", "1/(5min)")}
NAB_NAME = re.compile(r"(.+?)(?:_([0-9a-f]{6}))?")


class HeliosReader(TraceReader):
    """GPUs and GPU jobs, running and waiting, of the virtual clusters of Helios "Earth", minute by minute."""

    name = "helios"
    reads = "Helios cluster sequence by virtual cluster (.parquet, .csv)"
    maps = tuple(Mapped(name, metric, unit.strip("{}"), "service = team = vc") for name, (metric, unit) in HELIOS.items())
    flaws = "one month; the zone of the times is not stated (read as UTC); gpu_utilization is the allocated share, not how busy GPUs are"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("vc", "time", *HELIOS)
        trace.need_texts("vc")
        times = trace.iso("time", note_naive=True)
        columns = SampleColumns(trace)
        for name, (metric, unit) in HELIOS.items():
            columns.add(
                trace.frame[name],
                times,
                trace.frame["vc"],
                lambda vc, metric=metric, unit=unit: Labels(metric=metric, service=vc, team=vc, unit=unit, native_unit=unit),  # type: ignore[misc]
            )
        return columns.tables()


class AzureVmReader(TraceReader):
    """CPU use and memory of Azure's VM fleet of 2019, summed by the source, in 300 s steps without a time column."""

    name = "azure_vm"
    reads = "Azure VM v2 fleet in 300 s rows: cpu_usage, assigned_mem (.parquet, .csv)"
    options = {"start": START + " (row k covers the 300 s from k x 300 s on)"}  # noqa: RUF012
    maps = (Mapped("cpu_usage, assigned_mem", "source.value", "not stated", "service = azure-vm, device = the column's name"),)
    flaws = "no time column; one aggregate of the whole fleet, its units not stated"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("cpu_usage", "assigned_mem")
        ends = trace.after(trace.start(), AZURE_STEP_S * (np.arange(len(trace.frame)) + 1.0))
        columns = SampleColumns(trace)
        for name in ("cpu_usage", "assigned_mem"):
            columns.add(trace.frame[name], ends, "azure-vm", _unstated(name))
        return columns.tables()


class NabReader(TraceReader):
    """One metric of the Numenta Anomaly Benchmark, what it is told by the file's name alone."""

    name = "nab"
    reads = "NAB series: timestamp, value (.csv)"
    maps = (
        Mapped("*cpu_utilization*", "system.cpu.utilization", "%", "node = the name's hexadecimal end, or the name"),
        Mapped("*request_count*", "http.server.request.rate", "1 in 5 min", "service = the name's hexadecimal end"),
        Mapped("any other", "source.value", "not stated", "service = file, device = the name without its end"),
    )
    flaws = "no zone: the change of clocks repeats some times and leaves out others; incidents are real"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("timestamp", "value")
        times = trace.iso("timestamp", note_naive=True)
        columns = SampleColumns(trace)
        columns.add(trace.frame["value"], times, trace.stem, self._labels)
        return columns.tables()

    def _labels(self, stem: str) -> Labels:
        found = NAB_NAME.fullmatch(stem)
        what, end = (found[1], found[2] or stem) if found else (stem, stem)
        for part, (metric, unit) in NAB_METRICS.items():
            if part in stem:
                node, service = (end, "") if metric.startswith("system.") else ("", end)
                return Labels(metric=metric, node=node, service=service, unit=unit, native_unit=unit)
        return _unstated(what)(stem)


def _unstated(device: str):
    return lambda service: Labels(metric="source.value", service=service, device=device, unit="{unstated}", native_unit="{unstated}")

"""One reader per export format; ``READERS`` is the list that commands and tests go by."""

from __future__ import annotations

from telemetry.errors import InputError
from telemetry.readers.azure_monitor import AzureMonitorReader
from telemetry.readers.base import ReadContext, Reader, ReadResult
from telemetry.readers.cloudwatch import CloudWatchReader
from telemetry.readers.csv_table import CsvReader
from telemetry.readers.grid import GridReader
from telemetry.readers.ipmi import IpmiReader
from telemetry.readers.jobs_table import JobsTableReader
from telemetry.readers.kubernetes import KubernetesReader
from telemetry.readers.otlp import OtlpReader
from telemetry.readers.prometheus import PrometheusReader
from telemetry.readers.prometheus_text import PrometheusTextReader
from telemetry.readers.slurm import SlurmReader
from telemetry.readers.swf import SwfReader

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        PrometheusReader(),
        OtlpReader(),
        IpmiReader(),
        SlurmReader(),
        KubernetesReader(),
        GridReader(),
        SwfReader(),
        JobsTableReader(),
        PrometheusTextReader(),
        CloudWatchReader(),
        AzureMonitorReader(),
        CsvReader(),
    )
}

__all__ = ["READERS", "ReadContext", "ReadResult", "Reader", "reader_named"]


def reader_named(name: str) -> Reader:
    """The reader of that name.

    Raises:
        InputError: there is none.
    """
    if name not in READERS:
        raise InputError(f"unknown reader '{name}'", where="source.files", allowed="; ".join(f"{n}: {r.reads}" for n, r in READERS.items()))
    return READERS[name]

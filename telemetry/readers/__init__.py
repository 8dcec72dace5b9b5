"""One reader per export format; ``READERS`` is the list that commands and tests go by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from telemetry.errors import InputError
from telemetry.readers.azure_monitor import AzureMonitorReader
from telemetry.readers.base import PieceReader, Pieces, ReadContext, Reader, ReadResult
from telemetry.readers.cloudwatch import CloudWatchReader
from telemetry.readers.csv_table import CsvReader
from telemetry.readers.grid import GridReader
from telemetry.readers.ipmi import IpmiReader
from telemetry.readers.jobs_table import JobsTableReader
from telemetry.readers.kubernetes import KubernetesReader
from telemetry.readers.otlp import OtlpReader
from telemetry.readers.prometheus import PrometheusReader
from telemetry.readers.prometheus_text import PrometheusTextReader
from telemetry.readers.samples_table import SamplesTableReader
from telemetry.readers.slurm import SlurmReader
from telemetry.readers.swf import SwfReader
from telemetry.readers.trace_cloud import AzureVmReader, HeliosReader, NabReader
from telemetry.readers.trace_grid import (
    AvertReader,
    EiaReader,
    ElectricityMapsReader,
    ErcotDamReader,
    IsoPriceReader,
    OpenMeteoReader,
    SgipMoerReader,
    WindReader,
)
from telemetry.readers.trace_jobs import EagleReader, GaiaReader, OpenbReader, PhillyGavelReader
from telemetry.readers.trace_power import AcmeReader, CcfReader, KeplerModelsReader, MlperfPowerReader, ZeusReader
from telemetry.readers.trace_requests import AzureFunctionsReader, AzureLlmReader, BurstGptReader, MooncakeReader, ServeGenReader

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
        CloudWatchReader(),
        AzureMonitorReader(),
        PrometheusTextReader(),
        SamplesTableReader(),
        CsvReader(),
        # Public traces, one line a kind: jobs, queues and clouds, requests, power, grid.
        *(OpenbReader(), PhillyGavelReader(), GaiaReader(), EagleReader()),
        *(HeliosReader(), AzureVmReader(), NabReader()),
        *(AzureLlmReader(), MooncakeReader(), ServeGenReader(), BurstGptReader(), AzureFunctionsReader()),
        *(MlperfPowerReader(), KeplerModelsReader(), ZeusReader(), AcmeReader(), CcfReader()),
        *(EiaReader(), ElectricityMapsReader(), IsoPriceReader(), OpenMeteoReader()),
        *(SgipMoerReader(), ErcotDamReader(), WindReader(), AvertReader()),
    )
}

__all__ = ["READERS", "ReadContext", "ReadResult", "Reader", "read_export", "read_pieces", "reader_named"]


def reader_named(name: str) -> Reader:
    """The reader of that name.

    Raises:
        InputError: there is none.
    """
    if name not in READERS:
        raise InputError(f"unknown reader '{name}'", where="source.files", allowed="; ".join(f"{n}: {r.reads}" for n, r in READERS.items()))
    return READERS[name]


def read_export(name: str, path: Path, context: ReadContext) -> ReadResult:
    """Read a file with the reader of that name, and refuse it where the context's policy says so.

    Raises:
        InputError: there is no such reader, it cannot read the file, or a flaw is refused.
    """
    result = reader_named(name).read(path, context)
    context.policy.check(result.quality, sum(len(table) for table in result.tables.values()), where=str(path))
    result.quality.policies[context.source] = context.policy.chosen()
    return result


def read_pieces(reader: PieceReader, path: Path, context: ReadContext) -> Pieces:
    """The same in pieces: what is refused is refused after the last one.

    Raises:
        InputError: (also while the pieces are taken) the file cannot be read, or a flaw is refused.
    """
    pieces = reader.read_pieces(path, context)

    def checked() -> Iterator[tuple[str, pa.Table]]:
        rows = 0
        for name, table in pieces.tables:
            rows += len(table)
            yield name, table
        context.policy.check(pieces.quality, rows, where=str(path))
        pieces.quality.policies[context.source] = context.policy.chosen()

    return Pieces(checked(), pieces.quality)

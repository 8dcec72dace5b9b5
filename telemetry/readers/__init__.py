"""One reader per export format; ``READERS`` is the list that commands and tests go by."""

from __future__ import annotations

from telemetry.errors import InputError
from telemetry.readers.base import ReadContext, Reader, ReadResult
from telemetry.readers.grid import GridReader
from telemetry.readers.ipmi import IpmiReader
from telemetry.readers.jobs_table import JobsTableReader
from telemetry.readers.kubernetes import KubernetesReader
from telemetry.readers.otlp import OtlpReader
from telemetry.readers.prometheus import PrometheusReader
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
        # Public traces, one line a kind: jobs, queues and clouds, requests, power, grid.
        *(OpenbReader(), PhillyGavelReader(), GaiaReader(), EagleReader()),
        *(HeliosReader(), AzureVmReader(), NabReader()),
        *(AzureLlmReader(), MooncakeReader(), ServeGenReader(), BurstGptReader(), AzureFunctionsReader()),
        *(MlperfPowerReader(), KeplerModelsReader(), ZeusReader(), AcmeReader(), CcfReader()),
        *(EiaReader(), ElectricityMapsReader(), IsoPriceReader(), OpenMeteoReader()),
        *(SgipMoerReader(), ErcotDamReader(), WindReader(), AvertReader()),
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

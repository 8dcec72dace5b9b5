"""Node watts from ``ipmitool`` text, plain or gzipped: blocks of a header line ``=== NODE TIME`` and the command's output.

Read are ``ipmitool dcmi power reading`` (the average over the sample period when there is one, else the instantaneous reading) and
``ipmitool sensor`` rows in watts (the system's total when there is one, else the sum of the power supplies). A block without a reading,
such as an IPMI session error, is ``unparseable``; its node was asked at that time, so it is no scrape gap.
"""

from __future__ import annotations

import re
from pathlib import Path

from telemetry.cleaning import clean_samples
from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples, require_points
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text
from telemetry.times import parse_time_s
from telemetry.units import CONVERSIONS

HEADER = re.compile(r"^===\s+(\S+)\s+(\S+)\s*$")
AVERAGE = re.compile(r"^\s*Average power reading over sample period:\s*(.*?)\s*$", re.IGNORECASE)
INSTANT = re.compile(r"^\s*Instantaneous power reading:\s*(.*?)\s*$", re.IGNORECASE)
READING = re.compile(r"^([-+]?[\d.]+)\s*([A-Za-z]+)$")
TOTAL_SENSOR = re.compile(r"pwr consumption|total.?power|sys.*power|power meter", re.IGNORECASE)
SUPPLY_SENSOR = re.compile(r"^(ps|psu)\s*\d.*|.*power in.*", re.IGNORECASE)


class IpmiReader:
    """See the module."""

    name = "ipmi"
    reads = "ipmitool dcmi power reading or sensor text under '=== NODE TIME' lines (.txt, .gz)"
    tested = "an export made in its documented form, damaged in many ways; the embedded sample"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [Mapped("average, else instantaneous reading; total or supplies of sensor", "hw.power", "W", "node = that of the header")]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, raw = QualityReport(), RawSamples(context.source)
        header: tuple[str, float] | None = None
        body: list[str] = []
        for line in read_text(path).splitlines():
            if line.startswith("==="):
                self._block(header, body, raw)
                body, header = [], self._header(line, quality, context.source)
            elif line.strip():
                body.append(line)
        self._block(header, body, raw)
        require_points(raw, where, "blocks that begin with '=== NODE TIME'")
        frame = clean_samples(raw, context.inventory, quality, where=where)
        if frame.empty:
            raise InputError("no block has a power reading", where=where, remedy="is this ipmitool's output?")
        return ReadResult({"samples": frame}, quality)

    def _header(self, line: str, quality: QualityReport, source: str) -> tuple[str, float] | None:
        match = HEADER.match(line)
        time_s = parse_time_s(match.group(2)) if match else None
        if match is None or time_s is None:
            quality.add(source, "unparseable")
            return None
        return match.group(1), time_s

    def _block(self, header: tuple[str, float] | None, body: list[str], raw: RawSamples) -> None:
        if header is None:
            return
        value, unit = reading(body)
        raw.add(Labels("hw.power", node=header[0], unit=unit, native_unit="W"), header[1], value)


def reading(body: list[str]) -> tuple[str, str]:
    """Value and unit of a block; a value that is no number says why."""
    found: dict[str, str] = {}
    for line in body:
        for name, pattern in (("average", AVERAGE), ("instant", INSTANT)):
            if match := pattern.match(line):
                found[name] = match.group(1)
    text = found.get("average", found.get("instant"))
    if text is None:
        return _sensors(body)
    if match := READING.match(text):
        unit = match.group(2)
        unit = "W" if unit.lower() in ("w", "watt", "watts") else unit
        return (match.group(1), unit) if unit in CONVERSIONS["W"] else (text, "W")
    return text, "W"


def _sensors(body: list[str]) -> tuple[str, str]:
    """Total of ``ipmitool sensor`` rows ``name | value | Watts | status | ...``."""
    rows = [[cell.strip() for cell in line.split("|")] for line in body if line.count("|") >= 2]
    watts = [(row[0], row[1]) for row in rows if row[2].lower() == "watts"]
    total = [value for name, value in watts if TOTAL_SENSOR.search(name)]
    if total:
        return total[0], "W"
    supplies = [value for name, value in watts if SUPPLY_SENSOR.match(name)]
    numbers = [float(v) for v in supplies if READING.match(f"{v} W")]
    if numbers and len(numbers) == len(supplies):
        return str(sum(numbers)), "W"
    return ("na" if supplies else "no power reading in the block"), "W"

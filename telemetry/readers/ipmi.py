"""Node watts from ``ipmitool`` text, plain or gzipped: blocks of a header line ``=== NODE TIME`` and the command's output.

Read are ``ipmitool dcmi power reading`` (the average over the sample period when there is one, else the instantaneous reading; nothing
while the power reading state is not ``activated``), and rows of ``ipmitool sensor``, ``sdr`` and ``sdr elist`` in watts (the system's total
when there is one, else the sum of the power supplies' inputs). Sensors in amperes and volts are told: their product is no measured power.
A block without a reading, such as an IPMI session error, is ``unparseable``; its node was asked at that time, so it is no scrape gap.
"""

from __future__ import annotations

import re
from pathlib import Path

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples, require_points
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text
from telemetry.times import parse_time_s
from telemetry.units import CONVERSIONS

HEADER = re.compile(r"^===\s+(\S+)\s+(\S+)\s*$")
AVERAGE = re.compile(r"^\s*Average power reading over sample period:\s*(.*?)\s*$", re.IGNORECASE)
INSTANT = re.compile(r"^\s*Instantaneous power reading:\s*(.*?)\s*$", re.IGNORECASE)
STATE = re.compile(r"^\s*Power reading state is:\s*(.*?)\s*$", re.IGNORECASE)
READING = re.compile(r"^([-+]?(?:\d+\.?\d*|\.\d+))\s*([A-Za-z]+)$")
TOTAL_SENSOR = re.compile(r"pw.? consumption|total.?power|sys.*(power|pwr)|power meter", re.IGNORECASE)
SUPPLY_SENSOR = re.compile(r"^(ps|psu)[\s_]*\d.*|.*power in.*", re.IGNORECASE)
POWER = re.compile(r"pow|pwr|watt", re.IGNORECASE)
ELIST_NUMBER = re.compile(r"^[0-9A-F]{2}h$", re.IGNORECASE)
BOUND = re.compile(r"cap\b|limit|budget|\bmax|\bmin|\bavail", re.IGNORECASE)
OUTPUT = re.compile(r"out", re.IGNORECASE)
# Units of sensors as ipmitool spells them; those that are told, since a reader might expect them to be read.
TOLD_UNITS = ("Amps", "Volts")


class IpmiReader:
    """See the module."""

    name = "ipmi"
    reads = "ipmitool dcmi power reading, sensor or sdr text under '=== NODE TIME' lines (.txt, .gz)"
    tested = "text of ipmitool 1.8.19 asking a simulated BMC; the embedded sample; made text, damaged in many ways"

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
                self._block(header, body, raw, quality)
                body, header = [], self._header(line, quality, context.source)
            elif line.strip():
                body.append(line)
        self._block(header, body, raw, quality)
        require_points(raw, where, "blocks that begin with '=== NODE TIME'")
        frame = context.cleaned(raw, quality, where=where)
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

    def _block(self, header: tuple[str, float] | None, body: list[str], raw: RawSamples, quality: QualityReport) -> None:
        if header is None:
            return
        value, unit = reading(body)
        raw.add(Labels("hw.power", node=header[0], unit=unit, native_unit="W"), header[1], value)
        for _, _, other in sensor_rows(body):
            if other in TOLD_UNITS:
                quality.note(raw.source, f"sensors in {other}, which are not read")


def reading(body: list[str]) -> tuple[str, str]:
    """Value and unit of a block; a value that is no number says why."""
    found: dict[str, str] = {}
    for line in body:
        for name, pattern in (("average", AVERAGE), ("instant", INSTANT), ("state", STATE)):
            if match := pattern.match(line):
                found[name] = match.group(1)
    text = found.get("average", found.get("instant"))
    if text is None:
        return _sensors(body)
    if found.get("state", "activated").lower() != "activated":
        return "disabled", "W"
    if match := READING.match(text):
        unit = match.group(2)
        unit = "W" if unit.lower() in ("w", "watt", "watts") else unit
        return (match.group(1), unit) if unit in CONVERSIONS["W"] else (text, "W")
    return text, "W"


def sensor_rows(body: list[str]) -> list[tuple[str, str, str]]:
    """Name, value and unit of the rows of a block; the unit is '' where a sensor has no reading.

    ``sensor`` prints ``name | value | unit | status | ...``, ``sdr`` ``name | value unit | status``, and ``sdr elist`` ``name | number |
    status | entity | value unit``.
    """
    rows: list[tuple[str, str, str]] = []
    for line in body:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 3:
            continue
        elist = len(cells) == 5 and ELIST_NUMBER.match(cells[1])
        if len(cells) == 3 or elist:
            text = cells[4] if elist else cells[1]
            value, _, unit = text.partition(" ")
            rows.append((cells[0], value, unit) if READING.match(f"{value} W") else (cells[0], text, ""))
        else:
            rows.append((cells[0], cells[1], cells[2]))
    return rows


def _sensors(body: list[str]) -> tuple[str, str]:
    """Watts of the system's total, or the sum of the power supplies' inputs (of their outputs where they tell no input)."""
    rows = [row for row in sensor_rows(body) if not BOUND.search(row[0])]
    watts = [(name, value) for name, value, unit in rows if unit.lower() == "watts"]
    silent = [(name, value) for name, value, unit in rows if not unit]
    total = [value for name, value in watts + silent if TOTAL_SENSOR.search(name)]
    if total:
        return total[0], "W"
    supplies = [(name, value) for name, value in watts + [row for row in silent if POWER.search(row[0])] if SUPPLY_SENSOR.match(name)]
    supplies = [pair for pair in supplies if not OUTPUT.search(pair[0])] or supplies
    numbers = [float(value) for _, value in supplies if READING.match(f"{value} W")]
    if numbers and len(numbers) == len(supplies):
        return str(sum(numbers)), "W"
    return ("na" if supplies else "no power reading in the block"), "W"

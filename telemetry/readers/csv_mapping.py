"""Mapping of a table's columns to canonical fields: a YAML or JSON file, checked whole before a row is read.

::

    table: samples                     # samples, jobs or grid
    delimiter: ";"                     # ',' unless given
    decimal: ","                       # '.' unless given; thousands: the sign between groups of three, if any
    missing: ["k.A.", "-9999"]         # texts that mean no value, besides the usual ones
    time: {column: Zeit, format: "%d.%m.%Y %H:%M", zone: Europe/Berlin, ambiguous: refuse}
    labels: {node: Host, device: GPU}  # canonical text field: column
    constants: {site: west}            # canonical text field: text

    values:                            # wide form: one column per metric
      Leistung: {metric: hw.power, unit: kW}
      Zaehler: {metric: hw.energy, unit: kWh, counter: true}

    long: {metric: name, value: value, unit: unit}    # long form: columns of the metric's name, of the value, and of its unit, if any
    metrics: {GpuPower: {metric: hw.power, unit: W}}  # names as in the column 'metric'; the unit of a row wins

For ``jobs`` and ``grid`` (in place of labels, values, long)::

    fields: {job_id: ID, submit_time: Beginn, duration_s: {column: Stunden, factor: 3600}}

``format`` is ``iso``, ``unix_s``, ``unix_ms``, ``unix_us``, ``unix_ns`` or strptime's. A time without a zone needs ``zone``, a name such as
``Europe/Berlin`` or ``UTC``. An hour that a change of the clocks repeats is refused, unless ``ambiguous`` says ``earlier``, ``later`` (all
of them the first, or the second, time round) or ``order`` (by the order of the rows).
"""

from __future__ import annotations

import difflib
import json
import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from telemetry.errors import InputError
from telemetry.readers.base import read_text
from telemetry.schema import GRID_COLUMNS, JOB_COLUMNS
from telemetry.units import METRICS, factor

TABLES = ("samples", "jobs", "grid")
LABELS = ("node", "device", "service", "site", "pod", "namespace", "team", "project")
UNIX = {"unix_s": 1.0, "unix_ms": 1e-3, "unix_us": 1e-6, "unix_ns": 1e-9}
AMBIGUOUS = ("refuse", "earlier", "later", "order")
KEYS = {
    "samples": ("table", "delimiter", "decimal", "thousands", "missing", "time", "labels", "constants", "values", "long", "metrics"),
    "jobs": ("table", "delimiter", "decimal", "thousands", "missing", "time", "constants", "fields"),
    "grid": ("table", "delimiter", "decimal", "thousands", "missing", "time", "constants", "fields"),
}


@dataclass(frozen=True)
class TimeRule:
    """How times are read; ``column`` is '' for tables whose fields name their time columns."""

    column: str = ""
    format: str = "iso"
    zone: str = ""
    ambiguous: str = "refuse"


@dataclass(frozen=True)
class Measure:
    """What a column, or a name in the long form, measures; ``delta``: a counter that tells the increase since the row before."""

    metric: str
    unit: str
    device: str = ""
    service: str = ""
    delta: bool = False


@dataclass(frozen=True)
class TakenField:
    """A column of the table that becomes a canonical one, multiplied by ``factor`` where it is a number."""

    column: str
    factor: float = 1.0


@dataclass(frozen=True)
class CsvMapping:
    """See the module; ``where`` it was written, for errors."""

    table: str
    time: TimeRule
    where: str
    delimiter: str = ","
    decimal: str = "."
    thousands: str = ""
    missing: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Measure] = field(default_factory=dict)
    long: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    fields: Mapping[str, TakenField] = field(default_factory=dict)

    def columns(self) -> list[str]:
        """Columns that the table must have."""
        named = [self.time.column, *self.labels.values(), *self.values, *self.long.values(), *(f.column for f in self.fields.values())]
        return list(dict.fromkeys(name for name in named if name))


def load_mapping(path: Path) -> dict[str, Any]:
    """What a mapping file says, as plain values.

    Raises:
        InputError: unreadable, or no object.
    """
    text = read_text(path)
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"no valid YAML or JSON: {' '.join(str(error).split())[:200]}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError(f"{type(value).__name__} and no mapping", where=str(path), allowed=", ".join(KEYS["samples"]))
    return value


def checked(value: Mapping[str, Any], where: str) -> CsvMapping:
    """A mapping whose every key and value is one that is known.

    Raises:
        InputError: names the key, and the ones near it.
    """
    table = value.get("table", "samples")
    if table not in TABLES:
        raise InputError(f"table {table!r}", where=where, allowed=", ".join(TABLES))
    _known(value, KEYS[table], where)
    signs = {name: _text(value.get(name, default), f"{where}, {name}") for name, default in (("delimiter", ","), ("decimal", "."))}
    thousands = _text(value["thousands"], f"{where}, thousands") if value.get("thousands") else ""
    if len(signs["delimiter"]) != 1 or signs["decimal"] not in (".", ",") or thousands == signs["decimal"] or len(thousands) > 1:
        raise InputError(f"{signs}, thousands {thousands!r}", where=where, allowed="one sign each, decimal . or ,")
    missing = value.get("missing", [])
    if not isinstance(missing, list):
        raise InputError(f"{missing!r}", where=f"{where}, missing", allowed="a list of texts")
    allowed = {"samples": LABELS, "jobs": JOB_COLUMNS, "grid": GRID_COLUMNS}[table]
    common: dict[str, Any] = {
        "table": table,
        "where": where,
        "time": _time(value.get("time", {}), f"{where}, time", table),
        "thousands": thousands,
        "missing": frozenset(str(item).strip().lower() for item in missing),
        "constants": {k: str(v) for k, v in _object(value.get("constants", {}), f"{where}, constants", allowed).items()},
        **signs,
    }
    if table == "samples":
        return CsvMapping(**common, **_samples(value, where))
    fields = {
        name: _field(item, f"{where}, fields.{name}") for name, item in _object(value.get("fields"), f"{where}, fields", allowed).items()
    }
    if not fields:
        raise InputError("no field", where=f"{where}, fields", allowed=", ".join(allowed))
    return CsvMapping(**common, fields=fields)


def _samples(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    if ("values" in value) == ("long" in value):
        raise InputError("'values' (wide form) or 'long', one of them", where=where)
    labels = _object(value.get("labels", {}), f"{where}, labels", LABELS)
    found: dict[str, Any] = {"labels": {name: _text(column, f"{where}, labels.{name}") for name, column in labels.items()}}
    if "values" in value:
        named = _object(value["values"], f"{where}, values")
        found["values"] = {column: _measure(item, f"{where}, values.{column}") for column, item in named.items()}
        if not named or "metrics" in value:
            raise InputError("no column, or 'metrics' beside it", where=f"{where}, values", allowed="COLUMN: {metric:, unit:}")
        return found
    long = _object(value["long"], f"{where}, long", ("metric", "value", "unit"))
    if not {"metric", "value"} <= set(long):
        raise InputError("'metric' and 'value' are needed", where=f"{where}, long")
    found["long"] = {name: _text(column, f"{where}, long.{name}") for name, column in long.items()}
    named = _object(value.get("metrics"), f"{where}, metrics")
    found["metrics"] = {name: _measure(item, f"{where}, metrics.{name}", unit_needed="unit" not in long) for name, item in named.items()}
    if not named:
        raise InputError("none", where=f"{where}, metrics", allowed="NAME: {metric:, unit:}")
    return found


def _time(value: Any, where: str, table: str) -> TimeRule:
    given = {
        name: _text(text, f"{where}.{name}") for name, text in _object(value, where, ("column", "format", "zone", "ambiguous")).items()
    }
    rule = TimeRule(**given)
    if (table == "samples") != bool(rule.column):
        raise InputError("'column' is for samples alone, and needed there", where=where)
    if rule.format not in ("iso", *UNIX) and "%" not in rule.format:
        raise InputError(f"format {rule.format!r}", where=where, allowed=", ".join(("iso", *UNIX, "or strptime's, such as %d.%m.%Y %H:%M")))
    if rule.ambiguous not in AMBIGUOUS:
        raise InputError(f"ambiguous {rule.ambiguous!r}", where=where, allowed=", ".join(AMBIGUOUS))
    if rule.zone:
        try:
            zoneinfo.ZoneInfo(rule.zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            near = difflib.get_close_matches(rule.zone, sorted(zoneinfo.available_timezones()), n=3)
            raise InputError(f"zone {rule.zone!r}", where=where, allowed="a name of the tz database", remedy=_near(near)) from error
    return rule


def _measure(value: Any, where: str, *, unit_needed: bool = True) -> Measure:
    given = _object(value, where, ("metric", "unit", "device", "service", "counter"))
    metric = _text(given.get("metric"), f"{where}.metric")
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=3)
        raise InputError(f"metric {metric!r}", where=where, allowed=", ".join(METRICS), remedy=_near(near))
    if unit_needed and "unit" not in given:
        raise InputError("no unit", where=where, allowed=f"such as {METRICS[metric].unit}")
    unit = str(given.get("unit", METRICS[metric].unit))
    factor(unit, METRICS[metric].unit, where=where)
    counter = given.get("counter", METRICS[metric].counter)
    if not isinstance(counter, bool) or (counter and not METRICS[metric].counter):
        counters = ", ".join(name for name, known in METRICS.items() if known.counter)
        raise InputError(f"counter {counter!r} of {metric}", where=where, allowed=f"true or false, and true for {counters} alone")
    texts = {name: _text(given[name], f"{where}.{name}") for name in ("device", "service") if name in given}
    return Measure(metric, unit, delta=METRICS[metric].counter and not counter, **texts)


def _field(value: Any, where: str) -> TakenField:
    if isinstance(value, str) and value:
        return TakenField(value)
    given = _object(value, where, ("column", "factor"))
    number = given.get("factor", 1.0)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < abs(number) < 1e12:
        raise InputError(f"factor {number!r}", where=where, allowed="a number other than 0")
    return TakenField(_text(given.get("column"), f"{where}.column"), float(number))


def _object(value: Any, where: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{value!r:.80} is no mapping of names", where=where, allowed=", ".join(known or ("NAME: ...",)))
    if known is not None:
        _known(value, tuple(known), where)
    return value


def _known(value: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [str(name) for name in value if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=3)
        raise InputError(f"unknown key '{unknown[0]}'", where=where, allowed=", ".join(known), remedy=_near(near))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{value!r:.80}", where=where, allowed="a text")
    return value


def _near(near: list[str]) -> str:
    return f"perhaps {', '.join(near)}" if near else ""

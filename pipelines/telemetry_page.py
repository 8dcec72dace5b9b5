"""The page ``docs/telemetry.md``: what telemetry means here, unit by unit, and how every source becomes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from telemetry.collectors import COLLECTORS
from telemetry.quality import FLAWS
from telemetry.readers import READERS
from telemetry.readers.base import Mapped
from telemetry.schema import COLUMNS
from telemetry.units import CONVERSIONS, METRICS

HEAD = """# Telemetry

Written by `python -m pipelines.document` from `telemetry/`; do not edit.

A *reader* turns an export in its native format into canonical tables; a *collector* asks a live system and keeps what it answered in the
native format of a reader. Tables are checked where they enter (`telemetry/schema.py`), stored by `python -m pipelines.ingest`, and queried
with SQL ([lake](lake.md)). No row goes silently: it is in a table, under a flaw of the quality report, or in a note that says why it
was left out on purpose.

```
python -m pipelines.ingest source=files 'source.files=[{path: answer.json.gz, reader: prometheus}]'
python -m pipelines.ingest source=files 'source.files=[{path: pods.parquet, reader: openb, options: {start: 2023-01-01}}]'
python -m pipelines.ingest source=traces lake.root=outputs/traces      # every public trace of the folder JOULEWISE_TRACES
```

## Tables

"""

METRIC_TEXT = """
All times are UTC. `samples` are one value of one metric at one time; the series is `metric, node, device, service`. `device` is empty for a
whole node, `gpu0`, `gpu1/mig2`, ... for its parts, and a word for what is no hardware (a fuel, a height). `service` is what a value belongs
to that is no machine: a service, a virtual cluster, a grid zone, a benchmark run. `reference` has no time: measurements in a laboratory,
coefficients, distributions, each with the unit of its source.

A value at time t is that of an instant, or the mean or rate over the window that *ends* at t, when it is known. Values of `grid.*` and
`weather.*` hold for the step that *begins* at t.

## Metrics

Counters enter as rates: the increase since the sample before, divided by the time between; a counter that falls has restarted from zero.
-1 marks a missing value, except for `grid.*`, `weather.*` and `source.value`. `grid` in the tables above needs price and carbon together:
sources of one of them become samples.

"""

CLEANING = """
## Flaws

One rule for all readers of samples (`telemetry/cleaning.py`), in this order: times, units, order, clocks, duplicates, gaps, values, rates.
Every count is kept by source and device. What is done about a flaw is its policy: [quality](quality.md).

"""

UNREAD = """
## Not read

Of the public traces: the MLPerf training logs' phases and list of copied files (texts), system descriptions (JSON), and NAB's windows of
labelled incidents (JSON, labels and no telemetry). Columns that a reader does not use are named in its note.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def metrics_table() -> str:
    """Every metric with unit, kind and rate."""
    rows = []
    for name, metric in METRICS.items():
        rate = f"`{metric.rate}` in {_code(metric.rate_unit)}" if metric.rate else ""
        rows.append((_code(name), _code(metric.unit), metric.kind, rate, metric.description))
    return _table(("metric", "unit", "kind", "enters as", "what it is"), rows)


def conversions_table() -> str:
    """Units that are converted, by canonical unit."""
    rows = []
    for unit, others in CONVERSIONS.items():
        told = ", ".join(f"`{other or 'no unit'}` x {factor:.10g}" for other, factor in others.items() if other != unit)
        if told:
            rows.append((_code(unit), told))
    return _table(("unit", "from"), rows)


def collectors_of(reader: str) -> dict[str, Any]:
    """Collectors whose answers the reader reads."""
    return {name: collector for name, collector in COLLECTORS.items() if collector.reader == reader}


def sources_table() -> str:
    """Every reader: from a file, live, and tested against what."""
    rows = []
    for name, reader in READERS.items():
        live = ", ".join(f"`{collector}`" for collector in collectors_of(name)) or "no"
        rows.append((_code(name), reader.reads, live, stated(reader, "tested"), stated(reader, "flaws")))
    return _table(("reader", "file", "live, by collector", "tested against", "known flaws of the source"), rows)


def collectors_table() -> str:
    """Every collector."""
    rows = [(_code(name), _code(kind.reader), stated(kind, "tested")) for name, kind in COLLECTORS.items()]
    return "\n" + _table(("collector", "reader", "tested against"), rows) if rows else ""


def stated(thing: Any, attribute: str) -> str:
    """An attribute of a reader or collector; empty where it has none."""
    return str(getattr(thing, attribute, ""))


def mapping_of(reader: Any) -> Sequence[Mapped]:
    """What a reader says it maps; nothing where it says nothing."""
    mapping = getattr(reader, "mapping", None)
    return mapping() if mapping is not None else ()


def mapping_table() -> str:
    """Name by name, source by source."""
    rows = [
        (_code(name), row.source, _code(row.canonical), row.unit, row.labels)
        for name, reader in READERS.items()
        for row in mapping_of(reader)
    ]
    return _table(("reader", "its name", "becomes", "its unit", "labels and remarks"), rows)


def options_table() -> str:
    """Options of the readers that have some."""
    rows = [
        (_code(name), _code(option), meaning)
        for name, reader in READERS.items()
        for option, meaning in getattr(reader, "options", {}).items()
    ]
    return _table(("reader", "option", "meaning"), rows)


def telemetry_page() -> str:
    """The whole page."""
    tables = _table(("table", "columns"), [(_code(name), ", ".join(columns)) for name, columns in COLUMNS.items()])
    parts = [
        HEAD + tables + METRIC_TEXT + metrics_table(),
        "\n## Units\n\nA value in another unit than its source is known for is converted and counted (`unit_converted`).\n\n"
        + conversions_table(),
        CLEANING + _table(("flaw", "what it is, and what is done"), [(_code(flaw), meaning) for flaw, meaning in FLAWS.items()]),
        "\n## Sources\n\n" + sources_table() + collectors_table(),
        "\n## Options\n\nKeys of `options` of a file in `source.files`; part of what makes a source changed.\n\n" + options_table(),
        "\n## Mapping\n\n" + mapping_table(),
        UNREAD,
    ]
    return "".join(parts)

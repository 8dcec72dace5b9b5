"""Quality report: how many of which flaw each source and device had, and what was left out on purpose."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FLAWS: dict[str, str] = {
    "counter_reset": "decreases of a counter; the rate restarts from zero",
    "scrape_gap": "runs of missing scrapes inside a series",
    "scrape_gap_samples": "samples missing in those runs",
    "duplicate": "extra rows of the same series and time; the last in the file wins",
    "sentinel": "blank, -1, NaN, 'No reading' and the like; dropped",
    "clock_skew": "nodes whose clock is off by a constant; shifted back",
    "missing_pod_label": "samples of a busy GPU without a pod",
    "out_of_order": "rows earlier than their predecessor; sorted",
    "negative_power": "negative watts; dropped",
    "unit_converted": "values in another unit than the metric's; converted",
    "unparseable": "rows or values that cannot be read or cannot be true; dropped",
    "implausible_power": "watts beyond what the device can draw; dropped",
}


@dataclass
class QualityReport:
    """Counts per source, device and flaw.

    Attributes:
        counts: source -> device ('' = the file as a whole) -> flaw -> count; zero counts are not kept.
        notes: source -> what was left out or assumed without being a flaw -> count.
        rows: source -> table -> rows kept.
    """

    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    notes: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, source: str, flaw: str, count: int = 1, device: str = "") -> None:
        """Count ``count`` more of ``flaw``."""
        if flaw not in FLAWS:
            raise KeyError(flaw)
        if count:
            flaws = self.counts.setdefault(source, {}).setdefault(device, {})
            flaws[flaw] = flaws.get(flaw, 0) + int(count)

    def add_per_device(self, source: str, flaw: str, index: np.ndarray, names: Sequence[str]) -> None:
        """Count one ``flaw`` for each entry of ``index``, an int array into device ``names``."""
        for position, count in enumerate(np.bincount(index, minlength=len(names))):
            self.add(source, flaw, int(count), names[position])

    def note(self, source: str, what: str, count: int = 1) -> None:
        """Count something left out or assumed on purpose."""
        if count:
            notes = self.notes.setdefault(source, {})
            notes[what] = notes.get(what, 0) + int(count)

    def set_rows(self, source: str, table: str, rows: int) -> None:
        """State how many rows of ``source`` were kept in ``table``."""
        self.rows.setdefault(source, {})[table] = int(rows)

    def total(self, source: str | None = None) -> dict[str, int]:
        """Counts over all devices of one source, or of all sources; flaws that do not occur are absent."""
        found: dict[str, int] = {}
        for name, devices in self.counts.items():
            if source is None or name == source:
                for flaws in devices.values():
                    for flaw, count in flaws.items():
                        found[flaw] = found.get(flaw, 0) + count
        return {flaw: found[flaw] for flaw in FLAWS if flaw in found}

    def sources(self) -> list[str]:
        return sorted({*self.counts, *self.notes, *self.rows})

    def merge(self, others: Iterable[QualityReport]) -> QualityReport:
        """A new report with the counts and rows of all."""
        merged = QualityReport()
        for report in (self, *others):
            for source, devices in report.counts.items():
                for device, flaws in devices.items():
                    for flaw, count in flaws.items():
                        merged.add(source, flaw, count, device)
            for source, notes in report.notes.items():
                for what, count in notes.items():
                    merged.note(source, what, count)
            for source, tables in report.rows.items():
                for table, rows in tables.items():
                    merged.set_rows(source, table, rows + merged.rows.get(source, {}).get(table, 0))
        return merged

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON: totals, and per source its rows, totals, devices and notes."""
        return {
            "total": self.total(),
            "sources": {
                source: {
                    "rows": dict(sorted(self.rows.get(source, {}).items())),
                    "total": self.total(source),
                    "devices": {d: dict(sorted(f.items())) for d, f in sorted(self.counts.get(source, {}).items())},
                    "notes": dict(sorted(self.notes.get(source, {}).items())),
                }
                for source in self.sources()
            },
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> QualityReport:
        """Inverse of :meth:`to_dict`."""
        sources = value["sources"]
        return cls(
            counts={s: {d: dict(f) for d, f in v["devices"].items()} for s, v in sources.items() if v["devices"]},
            notes={s: dict(v["notes"]) for s, v in sources.items() if v["notes"]},
            rows={s: dict(v["rows"]) for s, v in sources.items() if v["rows"]},
        )

    def _cells(self) -> list[list[str]]:
        """Table of sources by flaws; first row and column are headings."""
        flaws = [flaw for flaw in FLAWS if flaw in self.total()]
        table = [["source", "rows", *flaws]]
        for source in self.sources():
            total = self.total(source)
            rows = sum(self.rows.get(source, {}).values())
            table.append([source, f"{rows:,}", *(f"{total[f]:,}" if f in total else "-" for f in flaws)])
        return table

    def to_markdown(self) -> str:
        """Sources by flaws, then notes."""
        head, *body = self._cells()
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in body), ""]
        lines += [f"- {source}: {what}: {count:,}" for source, notes in sorted(self.notes.items()) for what, count in sorted(notes.items())]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """A page of its own: the table, the devices with most flaws, the notes, and what each flaw means."""
        head, *body = ([html.escape(cell) for cell in row] for row in self._cells())
        parts = [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Telemetry quality</title><style>",
            "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}",
            "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.25rem .6rem;text-align:right}",
            "td:first-child,th:first-child{text-align:left}</style></head><body>",
            "<h1>Telemetry quality</h1><table><tr>" + "".join(f"<th scope='col'>{c}</th>" for c in head) + "</tr>",
            *("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in body),
            "</table>",
        ]
        for source in self.sources():
            parts += [f"<h2>{html.escape(source)}</h2>", "<table><tr><th scope='col'>device</th><th scope='col'>flaws</th></tr>"]
            for device, flaws in sorted(self.counts.get(source, {}).items(), key=lambda item: -sum(item[1].values()))[:20]:
                told = ", ".join(f"{flaw} {count:,}" for flaw, count in sorted(flaws.items()))
                parts.append(f"<tr><td>{html.escape(device) or '(file)'}</td><td>{told}</td></tr>")
            parts.append("</table>")
            parts += [f"<p>{html.escape(what)}: {count:,}</p>" for what, count in sorted(self.notes.get(source, {}).items())]
        parts += ["<h2>What each flaw means</h2><dl>"]
        parts += [f"<dt>{flaw}</dt><dd>{html.escape(meaning)}</dd>" for flaw, meaning in FLAWS.items()]
        return "\n".join([*parts, "</dl></body></html>\n"])

"""Quality report: how many of which flaw each source and device had and when, its gaps, and what was left out on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from telemetry.quality_page import page

FLAWS: dict[str, str] = {
    "counter_reset": "decreases of a counter that began anew; the rate restarts from zero, or is left out",
    "scrape_gap": "runs of missing scrapes inside a series",
    "scrape_gap_samples": "samples missing in those runs",
    "duplicate": "extra rows of the same series and time; the last in the file, or their mean, stays",
    "sentinel": "blank, -1, NaN, 'No reading' and the like; dropped",
    "clock_skew": "nodes whose clock is off by a constant; shifted back unless that is kept",
    "missing_pod_label": "samples of a busy GPU without a pod",
    "out_of_order": "rows earlier than their predecessor; sorted",
    "negative_power": "negative watts; dropped",
    "unit_converted": "values in another unit than the metric's; converted",
    "unparseable": "rows or values that cannot be read or cannot be true; dropped",
    "implausible_power": "watts beyond what the device can draw; dropped unless that is kept",
    "counter_wrap": "decreases of a 32-bit counter that ran over; the rate goes on, or is left out",
    "unsupported_zero": "samples of a series that is zero throughout though its device cannot be, so that zero stands for unsupported",
    "unit_suspected": "samples of a device whose values are 1,000 times (or a thousandth of) those of its peers",
    "utilization_above_one": "shares above 1 by more than rounding; dropped, or cut to 1",
    "stuck_value": "watts that stay the very same while utilisation moves",
    "future_timestamp": "samples that are later than the clock at the time of reading",
    "energy_mismatch": "devices whose energy counter and power disagree over the file",
}
DAY = 10  # characters of a date
MAX_CELLS = 5_000
MAX_GAPS = 300


@dataclass
class QualityReport:
    """Counts per source, device and flaw.

    Attributes:
        counts: source -> device ('' = the file as a whole) -> flaw -> count; zero counts are not kept.
        notes: source -> what was left out or assumed without being a flaw -> count.
        rows: source -> table -> rows kept.
        seen: source -> ``points`` and ``devices`` that were read, before anything was dropped.
        when: source -> device -> flaw -> hour (``2026-01-05T13``, UTC; ``2026-01-05`` in a long list) -> count. Flaws without a time, such
            as a line that cannot be read, are absent.
        gaps: source -> its longest gaps, at most ``MAX_GAPS``: ``device, metric, start, end`` (samples around it), ``samples`` missing, and
            whether they were ``filled``.
        policies: source -> flaw -> policy that it was cleaned by.
    """

    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    notes: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    seen: dict[str, dict[str, int]] = field(default_factory=dict)
    when: dict[str, dict[str, dict[str, dict[str, int]]]] = field(default_factory=dict)
    gaps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    policies: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, source: str, flaw: str, count: int = 1, device: str = "") -> None:
        """Count ``count`` more of ``flaw``."""
        if flaw not in FLAWS:
            raise KeyError(flaw)
        if count:
            flaws = self.counts.setdefault(source, {}).setdefault(device, {})
            flaws[flaw] = flaws.get(flaw, 0) + int(count)

    def add_per_device(self, source: str, flaw: str, index: np.ndarray, names: Sequence[str], time_ns: np.ndarray | None = None) -> None:
        """Count one ``flaw`` for each entry of ``index``, an int array into device ``names``; ``time_ns`` [same] says when."""
        for position in np.flatnonzero(count := np.bincount(index, minlength=len(names))):
            self.add(source, flaw, int(count[position]), names[position])
        if time_ns is not None and len(index):
            hours = time_ns.astype("datetime64[ns]").astype("datetime64[h]")
            cells, counts = np.unique(np.stack([index, hours.astype(np.int64)]), axis=1, return_counts=True)
            texts = cells[1].astype("datetime64[h]").astype(str)
            devices = self.when.setdefault(source, {})
            for position, text, number in zip(cells[0].tolist(), texts.tolist(), counts.tolist(), strict=True):
                own = devices.setdefault(names[position], {}).setdefault(flaw, {})
                own[text] = own.get(text, 0) + number

    def add_gap(self, source: str, gap: Mapping[str, Any]) -> None:
        """Remember a gap (see ``gaps``) for the time line; it is counted elsewhere."""
        self.gaps.setdefault(source, []).append(dict(gap))

    def saw(self, source: str, *, points: int, devices: int = 0) -> None:
        """State what was read of a source, before anything was dropped."""
        self.seen[source] = {"points": int(points)} | ({"devices": int(devices)} if devices else {})

    def trim(self) -> None:
        """Bring long lists down: days instead of hours, the longest gaps alone."""
        for devices in self.when.values():
            if sum(len(hours) for flaws in devices.values() for hours in flaws.values()) > MAX_CELLS:
                for flaws in devices.values():
                    for flaw, hours in flaws.items():
                        flaws[flaw] = by_day(hours)
        for source, gaps in self.gaps.items():
            gaps.sort(key=lambda gap: (-gap["samples"], gap["start"], gap["device"], gap["metric"]))
            self.gaps[source] = gaps[:MAX_GAPS]

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
        return sorted({*self.counts, *self.notes, *self.rows, *self.seen})

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
            merged._merge_details(report)
        merged.trim()
        return merged

    def absorb(self, piece: QualityReport) -> None:
        """Add, in place, the counts of a piece of the same file, whose devices are not those of the other pieces."""
        for source, devices in piece.counts.items():
            for device, flaws in devices.items():
                for flaw, count in flaws.items():
                    self.add(source, flaw, count, device)
        for source, notes in piece.notes.items():
            for what, count in notes.items():
                self.note(source, what, count)
        devices_before = {source: seen.get("devices", 0) for source, seen in self.seen.items()}
        self._merge_details(piece)
        for source, seen in piece.seen.items():
            self.seen[source]["devices"] = devices_before.get(source, 0) + seen.get("devices", 0)

    def _merge_details(self, report: QualityReport) -> None:
        for source, seen in report.seen.items():
            own = self.seen.setdefault(source, {})
            own["points"] = own.get("points", 0) + seen["points"]
            if "devices" in seen:  # files of one source are windows of the same devices
                own["devices"] = max(own.get("devices", 0), seen["devices"])
        for source, devices in report.when.items():
            for device, flaws in devices.items():
                for flaw, hours in flaws.items():
                    cells = self.when.setdefault(source, {}).setdefault(device, {}).setdefault(flaw, {})
                    for hour, count in hours.items():
                        cells[hour] = cells.get(hour, 0) + count
        for source, gaps in report.gaps.items():
            self.gaps.setdefault(source, []).extend(gaps)
        self.policies.update(report.policies)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON: totals, and per source its rows, totals, devices and notes; ``docs/quality.md`` describes each key."""
        return {
            "total": self.total(),
            "sources": {
                source: {
                    "rows": dict(sorted(self.rows.get(source, {}).items())),
                    "seen": dict(self.seen.get(source, {})),
                    "total": self.total(source),
                    "devices": {d: dict(sorted(f.items())) for d, f in sorted(self.counts.get(source, {}).items())},
                    "when": {
                        device: {flaw: dict(sorted(hours.items())) for flaw, hours in sorted(flaws.items())}
                        for device, flaws in sorted(self.when.get(source, {}).items())
                    },
                    "gaps": [dict(gap) for gap in self.gaps.get(source, [])],
                    "policies": dict(self.policies.get(source, {})),
                    "notes": dict(sorted(self.notes.get(source, {}).items())),
                }
                for source in self.sources()
            },
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> QualityReport:
        """Inverse of :meth:`to_dict`; keys that a report of before does not have are empty."""
        sources = value["sources"]
        return cls(
            counts={s: {d: dict(f) for d, f in v["devices"].items()} for s, v in sources.items() if v["devices"]},
            notes={s: dict(v["notes"]) for s, v in sources.items() if v["notes"]},
            rows={s: dict(v["rows"]) for s, v in sources.items() if v["rows"]},
            seen={s: dict(v["seen"]) for s, v in sources.items() if v.get("seen")},
            when={
                s: {d: {f: dict(h) for f, h in flaws.items()} for d, flaws in v["when"].items()}
                for s, v in sources.items()
                if v.get("when")
            },
            gaps={s: [dict(gap) for gap in v["gaps"]] for s, v in sources.items() if v.get("gaps")},
            policies={s: dict(v["policies"]) for s, v in sources.items() if v.get("policies")},
        )

    def of(self, names: Sequence[str]) -> QualityReport:
        """A report of some sources alone."""
        return QualityReport(**{f.name: {n: getattr(self, f.name)[n] for n in names if n in getattr(self, f.name)} for f in fields(self)})

    def to_html(self) -> str:
        """A page of its own: sources, devices over time, gaps, notes, and what each flaw means."""
        return page(self.to_dict(), FLAWS)


def by_day(hours: Mapping[str, int]) -> dict[str, int]:
    """Counts per hour as counts per day."""
    days: dict[str, int] = {}
    for hour, count in hours.items():
        days[hour[:DAY]] = days.get(hour[:DAY], 0) + count
    return days

"""How far the sources disagree, layer by layer: slices, boards, node, supplies, outlets, PDUs, site; and which side is to be doubted.

========  ==================================================  ==========================================  =======
layer     children                                            parent                                      must be
========  ==================================================  ==========================================  =======
sources   another source or metric of the same device         the one that is used                        equal
slices    MIG slices                                          their board                                 within
zones     core and uncore                                     the node's processor packages               within
node      boards, packages, memory                            the node's reading                          within
supplies  power supplies                                      the node's own reading                      equal
psys      the platform's reading                              the node's own reading                      equal
outlets   the outlets that feed it                            the node's reading                          equal
pdu       its outlets                                         the PDU                                     within
site      PDUs, or nodes where there are none                 the site's meter                            within
========  ==================================================  ==========================================  =======

No zone counts twice: slices lie within their board, core and uncore within the package; supplies, psys and outlets repeat the node. Of
several readings one is used (``telemetry.energy.per_device`` for sources; for a node its own reading, then the supplies, then psys), and
the others are compared with it here.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from telemetry.devices import place_of
from telemetry.energy import DeviceEnergy, IntervalEnergy, per_device
from telemetry.verdicts import AGREES, UNDECIDED, Finding, Trend, judge, trend

LAYERS: tuple[str, ...] = ("sources", "slices", "zones", "node", "supplies", "psys", "outlets", "pdu", "site")
EQUAL = ("sources", "supplies", "psys", "outlets")
TOLERANCE = 0.05
COVERED = 0.99  # share of an interval that a reading must cover to be compared in it
DAY_S = 86_400.0


@dataclass(frozen=True)
class Comparison:
    """One parent and its children.

    Attributes:
        layer, place: which layer (``LAYERS``), and the node, device, PDU or site.
        parent, children: names of the readings.
        hours: time that all of them cover.
        parent_w, children_w: means over it, NaN where it is none.
        residual_w: parent minus children; ``residual_percent`` of the parent.
        slope: trend of the residual.
        suspect: '' = nothing to doubt, ``parent``, ``children``, ``clock``, ``undecided`` or the name of a child; ``confidence`` 0 to 1.
        findings: the rules that fired.
        day, residual: the residual by interval, ``[K]`` (days since the start of the grid, W).
    """

    layer: str
    place: str
    parent: str
    children: tuple[str, ...]
    hours: float
    parent_w: float
    children_w: float
    residual_w: float
    residual_percent: float
    slope: Trend
    suspect: str
    confidence: float
    findings: tuple[Finding, ...]
    day: np.ndarray
    residual: np.ndarray

    @property
    def verdict(self) -> str:
        if self.suspect == AGREES:
            return "agrees"
        sure = "" if self.suspect == UNDECIDED else f" ({100 * self.confidence:.0f} %)"
        return f"{self.suspect}{sure}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; numbers that are not known are None."""

        def plain(value: float) -> float | None:
            return None if np.isnan(value) else round(float(value), 6)

        return {
            "layer": self.layer,
            "place": self.place,
            "parent": self.parent,
            "children": list(self.children),
            "hours": plain(self.hours),
            "parent_w": plain(self.parent_w),
            "children_w": plain(self.children_w),
            "residual_w": plain(self.residual_w),
            "residual_percent": plain(self.residual_percent),
            "slope_w_per_day": [plain(self.slope.w_per_day), plain(self.slope.low), plain(self.slope.high)],
            "suspect": self.suspect or "agrees",
            "confidence": plain(self.confidence),
            "evidence": [
                {"rule": f.rule, "suspect": f.suspect, "confidence": plain(f.confidence), "text": f.evidence} for f in self.findings
            ],
        }


@dataclass(frozen=True)
class Reconciliation:
    """All comparisons, those to doubt first."""

    comparisons: tuple[Comparison, ...]

    def of(self, layer: str) -> list[Comparison]:
        return [one for one in self.comparisons if one.layer == layer]

    def doubtful(self) -> list[Comparison]:
        return [one for one in self.comparisons if one.suspect != AGREES]

    def to_dict(self) -> dict[str, Any]:
        """Per layer the number, energy and residual; and every comparison."""
        return {"layers": self.by_layer(), "comparisons": [one.to_dict() for one in self.comparisons]}

    def by_layer(self) -> dict[str, dict[str, float]]:
        """Comparisons, doubtful ones, kWh of parents and children in the time that both cover, and the residual in per cent."""
        found = {}
        for layer in LAYERS:
            some = [one for one in self.of(layer) if one.hours > 0]
            if some:
                parent, children = (sum(getattr(one, name) * one.hours for one in some) / 1000 for name in ("parent_w", "children_w"))
                found[layer] = {
                    "comparisons": len(some),
                    "doubtful": sum(one.suspect != AGREES for one in some),
                    "parent_kwh": round(parent, 6),
                    "children_kwh": round(children, 6),
                    "residual_percent": round(100 * (parent - children) / parent, 6) if parent > 0 else 0.0,
                }
        return found

    def to_html(self, most: int = 60) -> str:
        """Part of a page: a table by layer and one of comparisons, those to doubt first."""
        head = ("layer", "compared", "doubtful", "parent kWh", "children kWh", "residual %")
        rows = []
        for name, v in self.by_layer().items():
            energy = (f"{v['parent_kwh']:,.2f}", f"{v['children_kwh']:,.2f}", f"{v['residual_percent']:+.2f}")
            rows.append((name, f"{v['comparisons']:,}", f"{v['doubtful']:,}", *energy))
        parts = [_html_table(head, rows)]
        body = [
            (
                one.layer, one.place, f"{one.parent} = {_few(one.children)}", f"{one.hours:,.1f}", f"{one.residual_w:+,.1f}",
                f"{one.residual_percent:+.2f}", f"{one.slope.w_per_day:+.2f}", one.verdict, "; ".join(f.evidence for f in one.findings),
            )
            for one in self.comparisons[:most]
        ]  # fmt: skip
        parts.append(_html_table(("layer", "place", "compared", "hours", "residual W", "%", "trend W/day", "to doubt", "evidence"), body))
        if len(self.comparisons) > most:
            parts.append(f"<p>{len(self.comparisons) - most:,} more, all in the JSON.</p>")
        return "\n".join(parts)


def _few(names: tuple[str, ...]) -> str:
    return " + ".join(names) if len(names) <= 4 else f"{' + '.join(names[:3])} + {len(names) - 3} more"


def _html_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def reconcile(energy: IntervalEnergy, sources: tuple[str, ...] = (), tolerance: float = TOLERANCE) -> Reconciliation:
    """Compare all that can be compared in ``energy``.

    Args:
        sources: preferred sources, as for ``per_device``.
        tolerance: share of a reading that readings of the same watts may differ by.
    """
    devices = per_device(energy, sources)
    start = energy.grid.edges_ns[0]
    days = ((energy.grid.edges_ns[:-1] + energy.grid.edges_ns[1:]) / 2 - start) / 1e9 / DAY_S
    found = [
        _compare(layer, place, parent, children, days, energy.grid.seconds, tolerance)
        for layer, place, parent, children in (*_sources(energy, devices), *_layers(devices))
    ]
    found.sort(key=lambda one: (one.suspect == AGREES, one.suspect == UNDECIDED, LAYERS.index(one.layer), one.place))
    return Reconciliation(tuple(found))


@dataclass(frozen=True)
class _Reading:
    """Joules and covered seconds ``[T]``."""

    name: str
    energy_j: np.ndarray
    covered_s: np.ndarray


def _compare(
    layer: str, place: str, parent: _Reading, children: list[_Reading], days: np.ndarray, seconds: np.ndarray, tolerance: float
) -> Comparison:
    all_cover = np.all([one.covered_s >= COVERED * seconds for one in (parent, *children)], axis=0)
    top = (parent.energy_j / np.maximum(parent.covered_s, 1e-9))[all_cover]
    below = np.stack([(one.energy_j / np.maximum(one.covered_s, 1e-9))[all_cover] for one in children])
    day, total = days[all_cover], below.sum(axis=0)
    slope = trend(day, top - total)
    names = tuple(one.name for one in children)
    suspect, sure, findings = judge(names, day, top, below, equal=layer in EQUAL, tolerance=tolerance)
    mean, children_w = (float(side.mean()) if len(side) else float("nan") for side in (top, total))
    percent = 100 * (mean - children_w) / mean if mean > 0 else float("nan")
    return Comparison(
        layer, place, parent.name, names, float(seconds[all_cover].sum()) / 3600, mean, children_w, mean - children_w, percent, slope,
        suspect, sure, findings, day, top - total,
    )  # fmt: skip


Found = tuple[str, str, _Reading, list[_Reading]]


def _sources(energy: IntervalEnergy, devices: DeviceEnergy) -> Iterator[Found]:
    """Every other series of a device against the one that is preferred."""
    table = energy.series
    label = [f"{source} {metric}" for source, metric in zip(table["source"], table["metric"], strict=True)]
    rows = {(table["node"].iloc[s], table["device"].iloc[s], label[s]): s for s in range(len(table))}
    for node, device, chosen, other in devices.checks[["node", "device", "chosen", "other"]].itertuples(index=False):
        one, two = (
            _Reading(name, energy.energy_j[rows[node, device, name]], energy.covered_s[rows[node, device, name]])
            for name in (chosen, other)
        )
        yield "sources", "/".join(part for part in (node, device) if part), one, [two]


def _layers(devices: DeviceEnergy) -> Iterator[Found]:
    table = devices.devices
    kinds: dict[str, dict[str, list[tuple[str, _Reading]]]] = {}
    pdus: dict[str, _Reading] = {}
    outlets: dict[str, list[_Reading]] = {}
    sites: dict[str, list[_Reading]] = {}
    site_of: dict[str, str] = {}
    for row, (site, node, device) in enumerate(zip(table["site"], table["node"], table["device"], strict=True)):
        place = place_of(node, device)
        reading = _Reading(device or node or site, devices.energy_j[row], devices.covered_s[row])
        if place.kind == "pdu":
            pdus[device] = reading
            site_of[device] = site
        elif place.kind == "site":
            sites.setdefault(site, []).append(reading)
        else:
            kinds.setdefault(node, {}).setdefault(place.kind, []).append((place.parent, reading))
            site_of[node] = site
        if place.kind == "outlet":
            outlets.setdefault(place.parent, []).append(_Reading(f"{device} ({node})", reading.energy_j, reading.covered_s))
    own: dict[str, _Reading] = {}
    for node, of in sorted(kinds.items()):
        if node:
            yield from _node_layers(node, of, own)
    for name, meter in sorted(pdus.items()):
        if outlets.get(name):
            yield "pdu", name, meter, outlets[name]
    for site, meters in sorted(sites.items()):
        below = [meter for name, meter in pdus.items() if site_of[name] == site] or [r for name, r in own.items() if site_of[name] == site]
        if below:
            yield "site", site, meters[0], below


def _node_layers(node: str, of: dict[str, list[tuple[str, _Reading]]], own: dict[str, _Reading]) -> Iterator[Found]:
    """Layers within one node; its reading is put into ``own``."""

    def readings(kind: str) -> list[_Reading]:
        return [reading for _, reading in of.get(kind, ())]

    supplies = readings("psu")
    whole = _summed("supplies", supplies) if supplies else None
    meter = next(iter(readings("node")), None) or whole or next(iter(readings("psys")), None)
    boards = {reading.name: reading for reading in readings("gpu")}
    slices: dict[str, list[_Reading]] = {}
    for parent, reading in of.get("mig", ()):
        slices.setdefault(parent, []).append(reading)
    for name, parts in sorted(slices.items()):
        if name in boards:
            yield "slices", f"{node}/{name}", boards[name], parts
    if readings("zone") and readings("cpu"):
        yield "zones", node, _summed("packages", readings("cpu")), readings("zone")
    if meter is None:
        return
    own[node] = meter
    parts = [*readings("gpu"), *readings("cpu"), *readings("memory")]
    if parts:
        yield "node", node, meter, parts
    if readings("node"):
        if supplies:
            yield "supplies", node, meter, supplies
        if readings("psys"):
            yield "psys", node, meter, readings("psys")
    if readings("outlet"):
        yield "outlets", node, meter, readings("outlet")


def _summed(name: str, parts: list[_Reading]) -> _Reading:
    return _Reading(name, np.sum([one.energy_j for one in parts], axis=0), np.min([one.covered_s for one in parts], axis=0))

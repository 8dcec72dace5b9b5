"""The report: what it keeps, that it can be added up and written, and that its page is whole and safe."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from telemetry.policy import POLICIES, QualityPolicy
from telemetry.quality import FLAWS, MAX_CELLS, MAX_GAPS, QualityReport
from telemetry.quality_charts import MAX_ROWS, gap_lines, heat_map

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "quality.md"
T0 = np.datetime64("2026-01-05T00:00", "ns").astype(np.int64)
HOUR = 3_600 * 10**9
EVIL = "</title><script>alert('x')</script>\"'"


def filled(source: str = "s", devices: int = 3) -> QualityReport:
    report = QualityReport()
    report.saw(source, points=100, devices=devices)
    for device in range(devices):
        report.add_per_device(source, "sentinel", np.array([0, 0, 0]), [f"n{device}/gpu0"], T0 + np.array([0, 1, 30]) * HOUR)
    gap = {"device": "n0/gpu0", "metric": "hw.power", "start": "2026-01-05T02:00:00Z", "end": "2026-01-05T05:00:00Z", "samples": 2}
    report.add_gap(source, gap | {"filled": False})
    report.add(source, "scrape_gap", 1, "n0/gpu0")
    report.note(source, "left out", 4)
    report.set_rows(source, "samples", 90)
    report.policies[source] = QualityPolicy().chosen()
    return report


class Tags(HTMLParser):
    """Every tag is closed in order; names of the tags and what is linked from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_when_counts_hours_and_merges_by_adding():
    report = filled()
    assert report.when["s"]["n1/gpu0"] == {"sentinel": {"2026-01-05T00": 1, "2026-01-05T01": 1, "2026-01-06T06": 1}}
    both = report.merge([filled()])
    assert both.when["s"]["n1/gpu0"]["sentinel"]["2026-01-05T01"] == 2
    assert both.seen == {"s": {"points": 200, "devices": 3}}
    assert len(both.gaps["s"]) == 2
    assert both.total() == {"scrape_gap": 2, "sentinel": 18}
    assert QualityReport.from_dict(json.loads(json.dumps(both.to_dict()))) == both


def test_long_reports_are_cut_to_days_and_to_the_longest_gaps():
    report = QualityReport()
    hours = T0 + np.arange(MAX_CELLS + 1) * HOUR
    report.add_per_device("s", "duplicate", np.zeros(len(hours), dtype=int), ["n0"], hours)
    for k in range(MAX_GAPS + 5):
        report.add_gap(
            "s",
            {"device": "n0", "metric": "m", "start": "2026-01-05T00:00:00Z", "end": "2026-01-05T01:00:00Z", "samples": k, "filled": False},
        )
    report.trim()
    days = report.when["s"]["n0"]["duplicate"]
    assert sum(days.values()) == MAX_CELLS + 1
    assert days["2026-01-05"] == 24
    assert [gap["samples"] for gap in report.gaps["s"]] == list(range(MAX_GAPS + 4, 4, -1))


def test_a_report_of_before_is_read():
    old = {
        "total": {"duplicate": 1},
        "sources": {"a": {"rows": {"jobs": 3}, "total": {"duplicate": 1}, "devices": {"": {"duplicate": 1}}, "notes": {}}},
    }
    report = QualityReport.from_dict(old)
    assert report.total() == {"duplicate": 1}
    assert report.of(["b"]).sources() == []
    assert report.of(["a"]) == report


def test_page_is_whole_self_contained_and_sortable():
    text = filled().to_html()
    tags = Tags(text)
    assert tags.open == []
    assert tags.links == []
    assert tags.names.count("svg") == 2
    assert text.count("<script>") == 1
    for column in ("source", "rows", "flaws", "scrape gap", "sentinel"):
        assert f"<button>{column}</button>" in text
    for flaw in FLAWS:
        assert f"<code>{flaw}</code>" in text


def test_names_from_outside_are_escaped_everywhere():
    report = filled(EVIL)
    report.add_per_device(EVIL, "duplicate", np.array([0]), [EVIL], np.array([T0]))
    gap = {"device": EVIL, "metric": EVIL, "start": "2026-01-05T02:00:00Z", "end": "2026-01-05T05:00:00Z", "samples": 2, "filled": True}
    report.add_gap(EVIL, gap)
    report.note(EVIL, EVIL)
    text = report.to_html()
    assert "alert('x')" not in text
    assert text.count("<script>") == 1
    assert Tags(text).open == []


def test_an_empty_report_is_a_page_too():
    assert Tags(QualityReport().to_html()).open == []
    nothing = QualityReport()
    nothing.set_rows("s", "jobs", 3)
    assert "Nothing to tell" in nothing.to_html()


def cells(svg: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg[: svg.index("</svg>") + 6])
    return [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if len(rect)]


@pytest.mark.parametrize("hours", [1, 30, 400, 5_000])
def test_heat_map_puts_each_flaw_in_its_place(hours):
    when = {"n0": {"sentinel": {"2026-01-05T00": 3}}, "n1": {"duplicate": {str(np.datetime64("2026-01-05T00", "h") + hours): 1}}}
    found = cells(heat_map(when))
    assert [rect[0].text.split(", ")[0] for rect in found] == ["n0", "n1"]
    assert "sentinel 3" in found[0][0].text
    x = [float(rect.get("x")) for rect in found]
    assert x[0] == 220
    assert x[1] > x[0]
    assert x[1] + float(found[1].get("width")) <= 1080


def test_charts_show_the_worst_devices_and_say_how_many_are_left_out():
    when = {f"n{k:02}": {"sentinel": {"2026-01-05T00": k + 1}} for k in range(MAX_ROWS + 3)}
    svg = heat_map(when)
    assert len(cells(svg)) == MAX_ROWS
    assert "n00" not in svg
    assert "3 more with fewer" in svg
    assert heat_map({}) == gap_lines([]) == ""


def test_gap_bars_are_as_long_as_their_gaps():
    def gap(device: str, start: int, end: int, **more: bool) -> dict:
        stamp = "2026-01-05T{:02}:00:00Z"
        return {
            "device": device,
            "metric": "m",
            "start": stamp.format(start),
            "end": stamp.format(end),
            "samples": end - start - 1,
            "filled": False,
        } | more

    bars = cells(gap_lines([gap("a", 0, 10), gap("b", 10, 15, filled=True), gap("a", 18, 20)]))
    width = [float(bar.get("width")) / (1080 - 220) for bar in bars]
    assert width == pytest.approx([0.5, 0.25, 0.1], abs=1e-3)
    assert [bar.get("class") for bar in bars] == ["open", "filled", "open"]
    assert "filled" in bars[1][0].text


def test_the_document_names_every_flaw_policy_and_key():
    text = DOCUMENT.read_text()
    for flaw, allowed in POLICIES.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{flaw}`")), "")
        assert row, f"{flaw} has no row"
        cells_of = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells_of[2] == allowed[0]
        assert re.findall(r"(drop|repair|keep|refuse)\b(?= |,|$|:)", cells_of[3])
        assert all(choice in cells_of[3] for choice in allowed[1:])
    for key in filled().to_dict()["sources"]["s"]:
        assert f"`{key}`" in text

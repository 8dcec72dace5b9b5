"""Prometheus text exposition and OpenMetrics, plain or gzipped: what an exporter's ``/metrics`` answers, one scrape after another.

Times are the samples' own (milliseconds; seconds where a line ``# EOF`` tells that it is OpenMetrics), or those of the line before a scrape
``# scraped at TIME`` or ``# scraped at TIME from HOST`` (ISO 8601), which a loop around ``curl`` can write; HOST is then the ``instance``
label of series that have none. The metrics are those of ``prometheus_metrics``. A line that is no sample is counted as ``unparseable``; so
is a last line without a line end, since both formats ask for one: it may be cut short.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and the OpenMetrics 1.0 specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import RawSamples, require_points
from telemetry.readers.base import ReadContext, ReadResult, read_text
from telemetry.readers.prometheus_metrics import METRIC_NAMES
from telemetry.readers.prometheus_series import Series, add_series
from telemetry.times import parse_time_s

LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*"(?:[^"\\]|\\.)*"'
SAMPLE = re.compile(
    r"[ \t]*(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    rf"[ \t]*(?:\{{[ \t]*(?P<labels>(?:{LABEL}(?:[ \t]*,[ \t]*{LABEL})*(?:[ \t]*,)?)?)[ \t]*\}}[ \t]*|[ \t]+)"
    r"(?P<value>[^ \t{}]+)(?:[ \t]+(?P<time>[-+0-9.eE]+))?[ \t]*(?:#.*)?"
)
PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
ESCAPE = re.compile(r"\\(.)")
ESCAPED = {"n": "\n", "\\": "\\", '"': '"'}
SCRAPED = re.compile(r"#[ \t]*scraped at[ \t]+(\S+)(?:[ \t]+from[ \t]+(\S+))?[ \t]*", re.IGNORECASE)
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|inf|infinity|nan)", re.IGNORECASE)


class Sample(NamedTuple):
    """A line: metric name, labels as sorted pairs, value, and time as it is written, or None."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float
    time: float | None


def parse_sample(line: str) -> Sample | None:
    """The sample of a line; None if it is none."""
    match = SAMPLE.fullmatch(line)
    if match is None or not NUMBER.fullmatch(match["value"]) or (match["time"] is not None and not NUMBER.fullmatch(match["time"])):
        return None
    pairs = [(name, ESCAPE.sub(_unescaped, value)) for name, value in PAIR.findall(match["labels"] or "")]
    if len({name for name, _ in pairs}) < len(pairs):
        return None
    time = None if match["time"] is None else float(match["time"])
    return Sample(match["name"], tuple(sorted(pairs)), float(match["value"]), time)


def _unescaped(match: re.Match[str]) -> str:
    return ESCAPED.get(match[1], match[0])


class PrometheusTextReader:
    """See the module."""

    name = "prometheus_text"
    tested = "text written by prometheus-client; made scrapes, damaged in many ways"
    reads = "Prometheus text exposition or OpenMetrics with times, or '# scraped at TIME' before each scrape (.prom, .txt, .gz)"

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        quality, raw = QualityReport(), RawSamples(context.source)
        text = read_text(path)
        series: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = {}
        timeless, good = "", 0
        for number, sample, time_s in _samples(text, quality, context.source):
            good += 1
            if time_s is None:
                timeless = timeless or f"{where}, line {number}"
                continue
            found = series.setdefault(sample[:2], Series(sample.name, dict(sample.labels), [], []))
            found.times.append(time_s)
            found.values.append(sample.value)
        if timeless and not series:
            raise InputError(
                "a sample without a time", where=timeless, allowed="times in the lines, or a line '# scraped at TIME' before each scrape",
                remedy="(date -u '+# scraped at %FT%TZ from HOST'; curl -s HOST:9400/metrics) >> scrapes.prom",
            )  # fmt: skip
        if not good:
            raise InputError("no line is a sample", where=where, remedy="is this Prometheus text, and not another format?")
        if timeless:
            quality.note(context.source, "files with samples without a time, which are left out")
        add_series(list(series.values()), raw, quality)
        require_points(raw, where, ", ".join(METRIC_NAMES))
        return ReadResult({"samples": context.cleaned(raw, quality, where=where)}, quality)


def _samples(text: str, quality: QualityReport, source: str) -> Iterator[tuple[int, Sample, float | None]]:
    """Number, sample and time in seconds (None: unknown) of each line that is one."""
    lines = text.split("\n")
    cut = lines.pop()
    open_metrics = "# EOF" in lines or cut == "# EOF"
    if cut.strip() and cut != "# EOF":
        quality.add(source, "unparseable")
    scraped, host = None, ""
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            if match := SCRAPED.fullmatch(line.strip()):
                scraped, host = parse_time_s(match[1]), match[2] or ""
                quality.add(source, "unparseable", int(scraped is None))
            continue
        sample = parse_sample(line)
        if sample is None:
            quality.add(source, "unparseable")
            continue
        if host and not any(name == "instance" for name, _ in sample.labels):
            sample = sample._replace(labels=tuple(sorted([*sample.labels, ("instance", host)])))
        own = sample.time if sample.time is None or open_metrics else sample.time / 1000.0
        yield number, sample, scraped if own is None else own

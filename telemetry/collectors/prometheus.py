"""Prometheus HTTP API (also Thanos, Mimir, VictoriaMetrics): one ``query_range`` answer per window, of the metrics that the reader knows.

https://prometheus.io/docs/prometheus/latest/querying/api/#range-queries. Points lie on the multiples of ``step_s``, so that windows fit
together; each is the last sample of the five minutes before it (Prometheus' look-back), so the step should be the scrape interval. The
server allows 11,000 points per series in a request, and a number of samples in memory: a window that has more is asked for in parts, and
the parts are joined to one answer. What the server warns of (a partial answer of Thanos, say) is logged, kept in the answer, and noted by
the reader.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import requests

from telemetry.collectors.http import HttpConfig, checked_url, send
from telemetry.errors import InputError
from telemetry.readers.prometheus_metrics import METRIC_NAMES

LOG = logging.getLogger(__name__)
MAX_POINTS = 11_000
MATCHER = r'[a-zA-Z_][a-zA-Z0-9_]*\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"'
SELECTOR = re.compile(rf"\s*(?:{MATCHER}(?:\s*,\s*{MATCHER})*)?\s*,?\s*")


@dataclass(frozen=True)
class PrometheusCollector:
    """See the module.

    Attributes:
        url: address of the server, with its prefix if it has one.
        match: label matchers that choose series, such as ``cluster="a", job=~"dcgm.*"``.
        metrics: names to ask for; empty = all that the reader knows.
        step_s: distance of the points, seconds; the scrape interval.
        tenant: value of the header ``X-Scope-OrgID`` (Mimir, Cortex, Loki).
        http: time-outs, retries, credentials.
    """

    tested: ClassVar[str] = "a real Prometheus 2.42; a server of the test that fails in many ways"
    reader: ClassVar[str] = "prometheus"
    suffix: ClassVar[str] = "json"

    url: str
    match: str = ""
    metrics: tuple[str, ...] = ()
    step_s: int = 30
    tenant: str | None = None
    http: HttpConfig = field(default_factory=HttpConfig)

    def __post_init__(self) -> None:
        checked_url(self.url, "url")
        if self.step_s < 1:
            raise InputError(f"{self.step_s}", where="step_s", allowed="1 or more whole seconds")
        if not SELECTOR.fullmatch(self._matchers):
            raise InputError(f"'{self.match}'", where="match", allowed='label matchers such as cluster="a", job=~"dcgm.*"')
        for name in self.metrics:
            if name not in METRIC_NAMES:
                raise InputError(f"metric '{name}' is not read", where="metrics", allowed=", ".join(METRIC_NAMES))

    @property
    def _matchers(self) -> str:
        text = self.match.strip()
        return text[1:-1] if text.startswith("{") and text.endswith("}") else text

    @property
    def query(self) -> str:
        """Selector of the series that are fetched."""
        names = "|".join(self.metrics or METRIC_NAMES)
        own = self._matchers.strip().strip(",").strip()
        return f'{{__name__=~"{names}"' + (f", {own}" if own else "") + "}"

    def fetch(self, start: pd.Timestamp, end: pd.Timestamp) -> bytes:
        """Answer of all points with ``start <= time < end``; see :class:`telemetry.collectors.Collector`."""
        joined = _Joined()
        for first, last in _parts(start, end, self.step_s):
            self._ask(first, last, joined)
        if not joined.series:
            LOG.warning("%s: no series from %s to %s; query: %s", self.url, start, end, self.query)
        return joined.answer()

    def _ask(self, first: int, last: int, joined: _Joined) -> None:
        """Points from ``first`` to ``last`` (seconds, both inside), in halves if they are too many for the server's memory."""
        asked = {"query": self.query, "start": str(first), "end": str(last), "step": str(self.step_s)}
        headers = {"X-Scope-OrgID": self.tenant} if self.tenant is not None else None
        answer = send("POST", f"{checked_url(self.url, 'url')}/api/v1/query_range", self.http, data=asked, headers=headers)
        if answer.status_code == 422 and "too many samples" in answer.text and first < last:
            middle = first + (last - first) // (2 * self.step_s) * self.step_s
            self._ask(first, middle, joined)
            self._ask(middle + self.step_s, last, joined)
            return
        joined.add(self._content(answer), self.url)

    def _content(self, answer: requests.Response) -> dict[str, Any]:
        where = f"{self.url}/api/v1/query_range"
        try:
            content = answer.json()
        except (ValueError, RecursionError):
            content = None
        told = content.get("error") if isinstance(content, dict) else None
        if answer.status_code in (401, 403):
            raise InputError(
                f"refused with status {answer.status_code}",
                where=where,
                remedy="check token_file, or user and password_file",
            )
        if answer.status_code != 200:
            raise InputError(
                f"refused with status {answer.status_code}: {told or answer.reason}", where=where, remedy="check url, match and step_s"
            )
        if not isinstance(content, dict):
            raise InputError("the answer is no JSON object", where=where, remedy="is this the address of a Prometheus server?")
        if content.get("status") != "success":
            raise InputError(f"the query failed: {told}", where=where, remedy="check match")
        return content


class _Joined:
    """Answers for one part of a window after another, as one."""

    def __init__(self) -> None:
        self.series: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        self.told: dict[str, list[str]] = {"warnings": [], "infos": []}

    def add(self, content: dict[str, Any], url: str) -> None:
        """Append a later answer's points.

        Raises:
            InputError: it is no matrix.
        """
        data = content.get("data")
        result = data.get("result") if isinstance(data, dict) and data.get("resultType") == "matrix" else None
        if not isinstance(result, list):
            raise InputError("the answer is no matrix", where=url, remedy="is this the address of a Prometheus server?")
        for entry in result:
            if not isinstance(entry, dict) or not isinstance(entry.get("metric"), dict) or not isinstance(entry.get("values"), list):
                raise InputError("an entry of the answer is no series", where=url, remedy="is this the address of a Prometheus server?")
            key = tuple(sorted((str(k), str(v)) for k, v in entry["metric"].items()))
            self.series.setdefault(key, {"metric": entry["metric"], "values": []})["values"] += entry["values"]
        for kind, texts in self.told.items():
            for text in content.get(kind) or ():
                if text not in texts:
                    LOG.warning("%s: the answer has a remark, so it may be partial: %s", url, text)
                    texts.append(text)

    def answer(self) -> bytes:
        """As JSON, series in the order in which they first came."""
        whole: dict[str, Any] = {"status": "success", "data": {"resultType": "matrix", "result": list(self.series.values())}}
        whole |= {kind: texts for kind, texts in self.told.items() if texts}
        return json.dumps(whole, separators=(",", ":")).encode()


def _parts(start: pd.Timestamp, end: pd.Timestamp, step_s: int) -> Iterator[tuple[int, int]]:
    """First and last time of each request, seconds since 1970, on the multiples of the step in ``start <= time < end``."""
    step_ns = step_s * 1_000_000_000
    first, last = -(-start.value // step_ns), (end.value - 1) // step_ns
    for at in range(first, last + 1, MAX_POINTS):
        yield at * step_s, min(at + MAX_POINTS - 1, last) * step_s

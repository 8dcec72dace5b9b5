"""The Azure collector against a server on this machine that speaks the REST shape: retries, refusals, and no word of the token."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd
import pytest

from telemetry.collectors import COLLECTORS, UnavailableError, collect
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.spool import Spool

Collector = COLLECTORS["azure_monitor"]
START = pd.Timestamp("2026-01-05T00:00:00Z")
HOUR = pd.Timedelta("1h")
MACHINE = "/subscriptions/0000/resourceGroups/r g/providers/Microsoft.Compute/virtualMachines/n1"
TOKEN = "eyJ-not-a-real-token"


class Azure(BaseHTTPRequestHandler):
    """Answers with one point per period; ``server.faults`` are given first."""

    def do_GET(self):
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.server.asked.append((unquote(url.path), asked, self.headers.get("Authorization")))
        if self.server.faults:
            status, headers, body = self.server.faults.pop(0)
            return self._send(status, body, headers)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, json.dumps({"error": {"code": "InvalidAuthenticationToken", "message": "secret things"}}))
        start, end = (pd.Timestamp(text) for text in asked["timespan"].split("/"))
        times = pd.date_range(start, end, freq="5min", inclusive="left")
        points = [{"timeStamp": t.strftime("%Y-%m-%dT%H:%M:%SZ"), "average": 10.0 + t.minute} for t in times]
        resource = unquote(url.path).removesuffix("/providers/microsoft.insights/metrics")
        values = [
            {
                "id": f"{resource}/providers/Microsoft.Insights/metrics/{name}",
                "name": {"value": name},
                "unit": "Percent",
                "timeseries": [{"metadatavalues": [], "data": points}],
                "errorCode": "Success",
            }
            for name in asked["metricnames"].split(",")
        ]
        return self._send(200, json.dumps({"interval": asked["interval"], "value": values, "resourceregion": "westeurope"}))

    def _send(self, status, body, headers=()):
        data = body.encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def azure():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Azure)
    server.asked, server.faults = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make_collector(azure, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    given = {"resources": (MACHINE,), "metrics": ("Percentage CPU",), "token_file": str(tmp_path / "token"), "timeout_s": 5.0}

    def run(**change):
        return Collector(**(given | {"endpoint": f"http://127.0.0.1:{azure.server_port}"} | change))

    return run


@pytest.fixture
def waits(monkeypatch):
    told = []
    monkeypatch.setattr("telemetry.collectors.azure_monitor.time.sleep", told.append)
    return told


def test_windows_through_the_spool(azure, make_collector, tmp_path, context):
    spool = Spool(tmp_path / "azure")
    collect(make_collector(), spool, START, START + 2 * HOUR, chunk=HOUR, lookback=pd.Timedelta("5min"))
    path, asked, token = azure.asked[1]
    assert path == f"{MACHINE}/providers/microsoft.insights/metrics"
    assert asked["timespan"] == "2026-01-05T00:55:00Z/2026-01-05T02:00:00Z"
    assert (asked["interval"], asked["metricnames"], asked["api-version"]) == ("PT5M", "Percentage CPU", "2023-10-01")
    assert token == f"Bearer {TOKEN}"
    lake = Lake(tmp_path / "lake")
    result = ingest_sources(lake, [SourceSpec(tmp_path / "azure", "azure_monitor")], context.inventory)
    held = lake.table("samples", columns=["time", "value", "node"]).sort_values("time", ignore_index=True)
    assert len(held) == 24
    assert held["time"][0] == START
    assert held["value"].tolist()[:3] == pytest.approx([0.65, 0.10, 0.15])
    assert result.quality.total() == {}


def test_resources_names_and_split_make_the_requests(azure, make_collector):
    names = tuple(f"metric {index}" for index in range(21))
    data = make_collector(resources=(MACHINE, MACHINE + "2"), metrics=names, split=("InstanceId", "DeviceId")).fetch(START, START + HOUR)
    assert [len(json.loads(line)["value"]) for line in data.splitlines()] == [20, 1, 20, 1]
    assert {asked["$filter"] for _, asked, _ in azure.asked} == {"InstanceId eq '*' and DeviceId eq '*'"}


def test_what_passes_is_asked_again(azure, make_collector, waits):
    azure.faults += [(429, {"Retry-After": "7"}, ""), (503, {}, "<html>"), (500, {}, "")]
    data = make_collector().fetch(START, START + HOUR)
    assert len(json.loads(data)["value"][0]["timeseries"][0]["data"]) == 12
    assert waits == [7.0, 1.0, 2.0]
    azure.faults += [(503, {"Retry-After": "9999"}, "")] * 2
    with pytest.raises(UnavailableError, match="HTTP 503 after 2 attempts"):
        make_collector(attempts=2).fetch(START, START + HOUR)
    assert waits[3:] == [60.0]


@pytest.mark.parametrize(("status", "told"), [(400, "supported metrics"), (403, "Monitoring Reader"), (404, "resource id")])
def test_what_cannot_pass_is_asked_once(azure, make_collector, waits, status, told):
    azure.faults.append((status, {}, json.dumps({"error": {"code": "Code", "message": f"of {TOKEN}"}})))
    with pytest.raises(InputError, match=f"virtualMachines/n1: HTTP {status} Code.*{told}") as caught:
        make_collector().fetch(START, START + HOUR)
    assert len(azure.asked) == 1
    assert TOKEN not in str(caught.value)
    assert waits == []


def test_tokens_redirects_and_answers(azure, make_collector, tmp_path, waits):
    (tmp_path / "token").write_text("stale")
    with pytest.raises(InputError, match=r"HTTP 401 InvalidAuthenticationToken.*renew the token") as caught:
        make_collector().fetch(START, START + HOUR)
    assert "secret things" not in str(caught.value)
    for text in ("", "two words"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(InputError, match="no token"):
            make_collector().fetch(START, START + HOUR)
    with pytest.raises(InputError, match="the token cannot be read"):
        make_collector(token_file=str(tmp_path / "nowhere")).fetch(START, START + HOUR)
    (tmp_path / "token").write_text(TOKEN)
    before = len(azure.asked)
    azure.faults.append((302, {"Location": f"http://127.0.0.1:{azure.server_port}/elsewhere"}, ""))
    with pytest.raises(InputError, match="HTTP 302"):
        make_collector().fetch(START, START + HOUR)
    assert len(azure.asked) == before + 1
    for body in ("<html>", "[]", '{"items": []}'):
        azure.faults.append((200, {}, body))
        with pytest.raises(InputError, match="the answer"):
            make_collector().fetch(START, START + HOUR)


def test_an_unreachable_address_and_wrong_settings(make_collector, waits):
    with pytest.raises(UnavailableError, match=r"unreachable.*after 2 attempts"):
        make_collector(endpoint="http://127.0.0.1:9", attempts=2).fetch(START, START + HOUR)
    assert waits == [0.5]
    for wrong in (
        {"endpoint": "http://management.azure.com"},
        {"resources": ("vm1",)},
        {"resources": ()},
        {"metrics": ()},
        {"interval": "PT2M"},
        {"timeout_s": 0.0},
    ):
        with pytest.raises(InputError, match="allowed"):
            make_collector(**wrong)

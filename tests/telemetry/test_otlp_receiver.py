"""The OTLP receiver: what a real client sends arrives as samples, what is acknowledged is on disk, and each fault has its answer."""

from __future__ import annotations

import errno
import gzip
import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import pandas as pd
import pytest

from telemetry import otlp_store
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.otlp_receiver import JSON, PROTOBUF, Limits, Receiver
from telemetry.otlp_store import FullError, RequestStore, StoreConfig
from telemetry.spool import Spool

T0 = 1_767_571_200
WINDOW = StoreConfig(window_s=600, lookback_s=60, grace_s=120, ahead_s=30)


@contextmanager
def receiving(root, *, limits=None, token=None, store=None):
    receiver = Receiver(("127.0.0.1", 0), store or RequestStore(root), limits, token)
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.drain()
        receiver.shutdown()
        receiver.server_close()
        thread.join()
        receiver.store.close()


def a_request(time_s, watts=250, name="hw.power", **more):
    point = {
        "timeUnixNano": str(int(time_s * 1e9)),
        "asInt": str(watts),
        "attributes": [{"key": "hw.id", "value": {"stringValue": "gpu0"}}],
    }
    resource = {"attributes": [{"key": "host.name", "value": {"stringValue": "n0"}}]}
    metric = {"name": name, "unit": "W", "gauge": {"dataPoints": [{**point, **more}]}}
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]}


def post(receiver, body, *, kind=JSON, path="/v1/metrics", method="POST", **headers):
    """Status, headers and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", receiver.server_port, timeout=10)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def stored(root) -> list[dict]:
    """Requests in the open files."""
    return [json.loads(line) for path in sorted(root.glob(".open-*")) for line in path.read_bytes().splitlines()]


def test_what_a_real_client_sends_reaches_the_lake(tmp_path):
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    http_exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    resources = pytest.importorskip("opentelemetry.sdk.resources")
    token = "t0ken"
    with receiving(tmp_path / "otlp", token=token) as receiver:
        client = exporter.OTLPMetricExporter(
            f"http://127.0.0.1:{receiver.server_port}/v1/metrics",
            headers={"Authorization": f"Bearer {token}"},
            compression=http_exporter.Compression.Gzip,
        )
        reader = export.PeriodicExportingMetricReader(client, export_interval_millis=60_000)
        provider = sdk.MeterProvider([reader], resource=resources.Resource({"host.name": "n0", "service.name": "chat"}))
        meter = provider.get_meter("test")
        watts, energy = meter.create_gauge("hw.power", unit="W"), meter.create_counter("hw.energy", unit="J")
        took = meter.create_histogram("http.server.request.duration", unit="s")
        gpu = {"hw.type": "gpu", "hw.id": "0"}
        for step in range(3):
            watts.set(100.0 + step, gpu)
            energy.add(50, gpu)
            took.record(0.1, {"http.response.status_code": 200})
            took.record(0.2, {"http.response.status_code": 500})
            assert provider.force_flush()
            time.sleep(0.05)
        provider.shutdown()
        assert receiver.counts.requests >= 3
        assert (receiver.counts.rejected, receiver.counts.refused) == (0, 0)
        receiver.store.finish_all(time.time())
    lake = Lake(tmp_path / "lake")
    ingest_sources(lake, [SourceSpec(tmp_path / "otlp", "otlp")])
    frame = lake.table("samples")
    power = frame[frame["metric"] == "hw.power"].sort_values("time")
    assert set(power["value"]) == {100.0, 101.0, 102.0}
    assert set(power["device"]) == {"gpu0"}
    rate = frame[frame["metric"] == "hw.energy.rate"]
    assert len(rate) >= 2
    assert (rate["value"] >= 0).all()
    assert rate["value"].max() > 10
    assert set(frame[frame["metric"] == "http.server.request.rate"]["service"]) == {"chat"}


@pytest.mark.parametrize("packed", [False, True])
def test_json_is_on_disk_when_it_is_acknowledged(tmp_path, packed):
    made = a_request(time.time())
    data = json.dumps(made, indent=2).encode()
    with receiving(tmp_path) as receiver:
        extra = {"Content_Encoding": "gzip"} if packed else {}
        status, headers, body = post(receiver, gzip.compress(data) if packed else data, kind="application/json; charset=utf-8", **extra)
        assert (status, json.loads(body)) == (200, {})
        assert headers["Content-Type"] == JSON
        assert made in stored(tmp_path)


def test_points_that_cannot_be_taken_are_a_partial_success(tmp_path):
    now = time.time()
    made = a_request(now)
    points = made["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["gauge"]["dataPoints"]
    points += [dict(points[0], timeUnixNano=str(int(t * 1e9))) for t in (now - 86_400, now + 86_400)] + [{"asInt": "1"}]
    with receiving(tmp_path) as receiver:
        status, _, body = post(receiver, made)
        told = json.loads(body)["partialSuccess"]
        assert status == 200
        assert told == {"rejectedDataPoints": "3", "errorMessage": "malformed: 1, too old: 1, too far ahead: 1"}
        assert receiver.counts.points == 1
        service = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
        json_format = pytest.importorskip("google.protobuf.json_format")
        del points[0], points[-1]
        data = json_format.ParseDict(made, service.ExportMetricsServiceRequest()).SerializeToString()
        status, headers, body = post(receiver, data, kind=PROTOBUF)
        partial = service.ExportMetricsServiceResponse.FromString(body).partial_success
        assert (status, headers["Content-Type"]) == (200, PROTOBUF)
        assert (partial.rejected_data_points, partial.error_message) == (2, "too old: 1, too far ahead: 1")


REFUSED = [
    ({"body": b"{"}, 400, "no JSON"),
    ({"body": b"[1]"}, 400, "no JSON object"),
    ({"body": b"[" * 100_000}, 400, "no JSON"),
    ({"body": b'{"resourceMetrics": 5}'}, 400, "no ExportMetricsServiceRequest"),
    ({"body": b"dear diary", "kind": PROTOBUF}, 400, "no protobuf"),
    ({"body": b"no gzip", "Content_Encoding": "gzip"}, 400, "no gzip"),
    ({"body": gzip.compress(b"{}" * 99)[:-4], "Content_Encoding": "gzip"}, 400, "truncated gzip"),
    ({"body": gzip.compress(bytes(2 * 2**20)), "Content_Encoding": "gzip"}, 413, "when unpacked"),
    ({"body": b" " * (2**20 + 1)}, 413, "allowed: 1048576"),
    ({"body": b"{}", "Content_Encoding": "br"}, 415, "gzip"),
    ({"body": b"{}", "kind": "text/plain"}, 415, "application/json"),
    ({"body": b"{}", "path": "/v1/traces"}, 404, "/v1/metrics"),
    ({"body": b"{}", "method": "PUT"}, 405, "/v1/metrics"),
    ({"body": b"{}", "Transfer_Encoding": "chunked"}, 411, "Content-Length"),
    ({"body": b"{}", "Content_Length": "x"}, 411, "Content-Length"),
]


@pytest.mark.parametrize(("asked", "status", "told"), REFUSED, ids=[f"{told}-{status}" for _, status, told in REFUSED])
def test_what_is_no_request_is_refused_with_the_reason_and_the_next_is_taken(tmp_path, asked, status, told):
    with receiving(tmp_path, limits=Limits(max_request_mib=1)) as receiver:
        got, _, body = post(receiver, **asked)
        assert got == status
        assert told in body.decode("utf-8", "replace")
        assert stored(tmp_path) == []
        assert post(receiver, a_request(time.time()))[0] == 200


def test_only_the_token_opens(tmp_path):
    with receiving(tmp_path, token="t0ken") as receiver:
        for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "t0ken"}):
            status, headers, body = post(receiver, a_request(time.time()), **given)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert b"t0ken" not in body
        assert post(receiver, a_request(time.time()), Authorization="Bearer t0ken")[0] == 200
    assert len({json.dumps(line) for line in stored(tmp_path)}) == 1


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path, monkeypatch):
    with receiving(tmp_path) as receiver:
        assert post(receiver, a_request(time.time(), 1))[0] == 200
        before = stored(tmp_path)

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(otlp_store.os, "fsync", full)
            status, headers, body = post(receiver, a_request(time.time(), 2))
        assert (status, headers["Retry-After"]) == (503, "30")
        assert b"No space left" in body
        assert stored(tmp_path) == before
        assert post(receiver, a_request(time.time(), 3))[0] == 200


def test_a_busy_receiver_tells_to_come_back(tmp_path):
    with receiving(tmp_path, limits=Limits(max_concurrent=1)) as receiver:
        with socket.create_connection(("127.0.0.1", receiver.server_port), 10) as slow:
            slow.sendall(b"POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{")
            end = time.monotonic() + 10
            while receiver._busy == 0 and time.monotonic() < end:
                time.sleep(0.01)
            assert post(receiver, a_request(time.time()))[0] == 503
            slow.sendall(b"}")
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
        receiver.closing = True
        assert post(receiver, a_request(time.time()))[0] == 503


def test_a_sender_that_stalls_is_let_go(tmp_path):
    with (
        receiving(tmp_path, limits=Limits(idle_s=0.1)) as receiver,
        socket.create_connection(("127.0.0.1", receiver.server_port), 10) as slow,
    ):
        slow.sendall(b"POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        assert slow.recv(100) == b""
        assert receiver._busy == 0


def test_many_senders_at_once_lose_nothing(tmp_path):
    now = time.time()
    with receiving(tmp_path) as receiver:
        statuses: list[int] = []

        def sender(number):
            for step in range(5):
                statuses.append(post(receiver, a_request(now, number * 100 + step))[0])

        threads = [threading.Thread(target=sender, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 40
    values = {line["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["gauge"]["dataPoints"][0]["asInt"] for line in stored(tmp_path)}
    assert values == {str(n * 100 + step) for n in range(8) for step in range(5)}


def line(number: int) -> bytes:
    return json.dumps(a_request(T0 + 60 * number, 100 + number)).encode()


def test_windows_hold_their_points_and_reach_back_and_are_finished_after_their_grace(tmp_path):
    store = RequestStore(tmp_path, WINDOW)
    for k in range(20):
        assert store.add(line(k), [T0 + 60 * k], T0 + 60 * k) == (0, 0)
        store.finish_due(T0 + 60 * k)
    assert [window.start for window, _ in Spool(tmp_path).files()] == [pd.Timestamp(T0, unit="s", tz="UTC")]
    store.finish_all(T0 + 1199)
    store.close()
    lines = [gzip.decompress(path.read_bytes()).splitlines() for _, path in Spool(tmp_path).files()]
    assert lines == [[line(k) for k in range(10)], [line(k) for k in range(9, 20)]]
    lake = Lake(tmp_path.parent / f"lake-{tmp_path.name}")
    ingest_sources(lake, [SourceSpec(tmp_path, "otlp", "otlp")])
    frame = lake.table("samples").sort_values("time")
    assert frame["value"].to_list() == [100.0 + k for k in range(20)]


def test_late_and_early_points_are_refused(tmp_path):
    store = RequestStore(tmp_path, WINDOW)
    now = T0 + 719.0
    assert store.add(b"{}", [T0, now + 30], now) == (0, 0)
    assert store.add(b"{}", [T0 - 1, now + 31], now) == (1, 1)
    assert store.add(b"{}", [T0], T0 + 720.0) == (1, 0)
    store.finish_all(now)
    assert store.add(b"{}", [now], now) == (1, 0), "its window was finished before its time"
    store.close()


def test_a_killed_store_goes_on_without_the_line_that_was_cut(tmp_path):
    store = RequestStore(tmp_path, WINDOW)
    for k in range(3):
        store.add(line(k), [T0 + 60 * k], T0 + 60 * k)
    path = next(tmp_path.glob(".open-*"))
    with path.open("ab") as file:
        file.write(line(3)[:50])
    again = RequestStore(tmp_path, WINDOW)
    again.add(line(4), [T0 + 240], T0 + 240)
    finished = again.finish_due(T0 + 720)
    assert gzip.decompress(finished[0].read_bytes()).splitlines() == [line(k) for k in (0, 1, 2, 4)]
    assert not list(tmp_path.glob(".open-*"))
    # A kill between the rename and the removal of the open file.
    path.write_bytes(line(0) + b"\n")
    assert RequestStore(tmp_path, WINDOW)._files == {}
    assert not path.exists()
    store.close()


def test_a_full_window_takes_no_more(tmp_path):
    store = RequestStore(tmp_path, StoreConfig(max_window_mib=1, window_s=600))
    big = b"x" * 600_000
    store.add(big, [T0], T0)
    with pytest.raises(FullError, match="1 MiB"):
        store.add(big, [T0], T0)
    assert next(tmp_path.glob(".open-*")).stat().st_size == 600_001
    store.close()


@pytest.mark.parametrize("change", [{"window_s": 0}, {"lookback_s": -1}, {"lookback_s": 601}, {"max_window_mib": 0}])
def test_wrong_values_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        StoreConfig(**change)

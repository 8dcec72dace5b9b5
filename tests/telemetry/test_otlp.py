"""OTLP: devices by type, values and enums in each spelling, processors to their node, histograms' counts, and protobuf as JSON."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.errors import InputError
from telemetry.readers import READERS, ReadContext
from telemetry.schema import validate

T0 = 1_767_571_200


def attributes(values: dict) -> list[dict]:
    return [{"key": key, "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}} for key, v in values.items()]


def request(name, points, *, kind="gauge", unit="W", resource=None, **data):
    """A request of one metric; ``points`` are (minute, value fields, attributes)."""
    items = [{"timeUnixNano": str((T0 + 60 * k) * 10**9), "attributes": attributes(own), **value} for k, value, own in points]
    metric = {"name": name, "unit": unit, kind: {"dataPoints": items, **data}}
    shared = {"host.name": "n0"} if resource is None else resource
    return {"resourceMetrics": [{"resource": {"attributes": attributes(shared)}, "scopeMetrics": [{"metrics": [metric]}]}]}


@pytest.fixture
def read(tmp_path, context):
    def reading(*requests, name="metrics.jsonl", data=None):
        path = tmp_path / name
        path.write_bytes(data if data is not None else "".join(json.dumps(r) + "\n" for r in requests).encode())
        result = READERS["otlp"].read(path, context)
        return result.tables["samples"], result.quality

    return reading


@pytest.mark.parametrize(
    ("own", "device"),
    [
        ({"hw.type": "gpu", "hw.id": "0"}, "gpu0"),
        ({"hw.type": "gpu", "hw.id": "GPU-1", "gpu.index": 3}, "gpu3"),
        ({"hw.type": "gpu", "hw.id": "gpu2"}, "gpu2"),
        ({"hw.type": "cpu", "hw.id": "1"}, "cpu1"),
        ({"hw.type": "power_supply", "hw.id": "2"}, "psu2"),
        ({"hw.type": "fan", "hw.id": "7"}, "fan/7"),
        ({"hw.type": "host", "hw.id": "x"}, ""),
        ({"hw.id": "gpu0"}, "gpu0"),
        ({}, ""),
    ],
)
def test_the_device_is_named_by_type_and_id(read, own, device):
    frame, _ = read(request("hw.power", [(0, {"asInt": "250"}, own)]))
    assert frame[["node", "device", "value"]].to_numpy().tolist() == [["n0", device, 250.0]]


@pytest.mark.parametrize("value", [{"asDouble": 250}, {"asDouble": "250"}, {"asInt": 250}, {"asInt": "250"}])
def test_a_number_in_each_spelling(read, value):
    assert read(request("hw.power", [(0, value, {})]))[0]["value"].to_list() == [250.0]


@pytest.mark.parametrize("temporality", [1, "1", "AGGREGATION_TEMPORALITY_DELTA"])
def test_delta_energy_is_watts(read, temporality):
    points = [(k, {"asInt": "6000"}, {"hw.type": "gpu", "hw.id": "0"}) for k in range(3)]
    frame, _ = read(request("hw.energy", points, kind="sum", unit="J", aggregationTemporality=temporality, isMonotonic=True))
    assert frame["value"].to_list() == pytest.approx([100.0, 100.0])


def test_the_hosts_own_power_and_energy_are_the_node(read):
    power = request("hw.host.power", [(0, {"asInt": "400"}, {"hw.id": "board"})])
    energy = request("hw.host.energy", [(k, {"asInt": str(6000 * k)}, {"hw.id": "board"}) for k in range(3)], kind="sum", unit="J")
    frame, _ = read(power, energy)
    assert set(frame["device"]) == {""}
    assert set(frame["metric"]) == {"hw.power", "hw.energy.rate"}


def test_a_processors_modes_are_one_utilisation_of_the_node(read):
    modes = {"idle": (0.5, 0.8), "iowait": (0.1, 0.0), "user": (0.3, 0.2), "system": (0.1, 0.0)}
    points = [
        (0, {"asDouble": v}, {"cpu.logical_number": cpu, "cpu.mode": mode}) for mode, both in modes.items() for cpu, v in enumerate(both)
    ]
    frame, quality = read(request("system.cpu.utilization", points, unit="1"))
    assert frame["value"].to_list() == pytest.approx([1 - (0.6 + 0.8) / 2])
    assert quality.total() == {}
    old = [(0, {"asDouble": v}, {"cpu": str(cpu), "state": "idle"}) for cpu, v in enumerate((0.5, 0.7))]
    assert read(request("system.cpu.utilization", old, unit="1"))[0]["value"].to_list() == pytest.approx([0.4])
    assert read(request("system.cpu.utilization", [(0, {"asDouble": 0.3}, {})], unit="1"))[0]["value"].to_list() == [0.3]


@pytest.mark.parametrize("name", ["http.server.request.duration", "http.server.duration"])
def test_a_histogram_of_durations_counts_requests_over_all_its_attributes(read, name):
    points = [(k, {"count": str(60 * k), "sum": 1.5 * k}, {"http.response.status_code": 200}) for k in range(3)]
    points += [(k, {"count": str(6 * k)} if k else {}, {"http.response.status_code": 500}) for k in range(3)]
    made = request(name, points, kind="histogram", unit="s", resource={"service.name": "chat"}, aggregationTemporality=2)
    frame, quality = read(made)
    assert set(frame["service"]) == {"chat"}
    assert frame["value"].to_list() == pytest.approx([1.1, 1.1])
    assert quality.total() == {}


def test_what_the_collector_scraped_is_read_as_the_exporters_metrics(read):
    resource = {"service.name": "dcgm", "service.instance.id": "10.0.0.1:9400"}
    own = {"gpu": "3", "Hostname": "n0", "exported_pod": "train-0"}
    power = request("DCGM_FI_DEV_POWER_USAGE", [(k, {"asDouble": 250.0}, own) for k in range(3)], unit="", resource=resource)
    energy = request(
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", [(k, {"asDouble": 6e6 * k}, own) for k in range(3)], kind="sum", resource=resource
    )
    meter = request("ipmi_dcmi_power_consumption_watts", [(0, {"asDouble": 400.0}, {})], resource=resource)
    delta = request("DCGM_FI_DEV_FB_USED", [(0, {"asInt": "1"}, own)], kind="sum", aggregationTemporality=1)
    frame, quality = read(power, energy, meter, delta)
    found = frame.groupby(["metric", "node", "device"], observed=True)["value"].agg(["size", "mean"]).reset_index().to_numpy().tolist()
    assert found == [
        ["hw.energy.rate", "n0", "gpu3", 2, 100.0],
        ["hw.power", "10.0.0.1", "", 1, 400.0],
        ["hw.power", "n0", "gpu3", 3, 250.0],
    ]
    assert set(frame[frame["device"] == "gpu3"]["pod_uid"]) == {"train-0"}
    assert quality.notes["src"]["DCGM_FI_DEV_FB_USED as delta or sum, which is not read"] == 1


def test_what_is_not_read_is_told(read):
    good = request("hw.power", [(0, {"asInt": "1"}, {})])
    other = [
        request("hw.power", [(0, {"count": "3"}, {})], kind="exponentialHistogram"),
        request("hw.gpu.memory.usage", [(0, {"asInt": "3"}, {})], kind="sum", unit="By", aggregationTemporality=1),
        request("container.cpu.usage", [(0, {"asInt": "3"}, {})]),
        request("hw.gpu.utilization", [(0, {"asDouble": 0.5}, {"hw.gpu.task": "encoder"})], unit="1"),
    ]
    frame, quality = read(good, *other)
    assert len(frame) == 1
    assert {what for what in quality.notes["src"] if "not read" in what} == {
        "hw.gpu.memory.usage as delta sum, which is not read",
        "hw.gpu.utilization of an encoder's or decoder's task, which is not read",
        "hw.power as exponentialHistogram, which is not read",
        "metrics named container.cpu.usage, which are not read",
    }


def test_a_point_without_a_recorded_value_and_a_malformed_one_cost_only_themselves(read):
    points = [(0, {"asInt": "1"}, {}), (1, {"asInt": "2", "flags": 1}, {}), (2, {"asInt": [3]}, {}), (3, {"asInt": "4"}, {})]
    frame, quality = read(request("hw.power", points))
    assert frame["value"].to_list() == [1.0, 4.0]
    assert {flaw: quality.total()[flaw] for flaw in ("sentinel", "unparseable")} == {"sentinel": 1, "unparseable": 1}


def as_protobuf(lines: list[dict]) -> list[bytes]:
    json_format = pytest.importorskip("google.protobuf.json_format")
    service = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
    return [json_format.ParseDict(line, service.ExportMetricsServiceRequest()).SerializeToString() for line in lines]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("packed", [False, True])
def test_protobuf_gives_the_rows_of_json(make, read, packed):
    import gzip

    lines = [make["otlp"](k) for k in range(make["steps"])]
    messages = as_protobuf(lines)
    expected, _ = read(*lines)
    delimited = b"".join(varint(len(message)) + message for message in messages)
    # Messages without lengths are one message: protobuf's repeated fields add up.
    for data in (delimited, b"".join(messages)):
        frame, quality = read(name="metrics.binpb" + (".gz" if packed else ""), data=gzip.compress(data) if packed else data)
        pd.testing.assert_frame_equal(frame, expected)
        assert quality.total() == {}


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "zeros"])
def test_a_damaged_protobuf_is_refused(make, read, damage):
    whole = b"".join(varint(len(m)) + m for m in as_protobuf([make["otlp"](k) for k in range(3)]))
    data = {"empty": b"", "cut": whole[:-7], "text": b"dear diary\n", "zeros": bytes(50)}[damage]
    with pytest.raises(InputError, match=r"metrics\.binpb"):
        read(name="metrics.binpb", data=data)


def test_a_real_clients_request_is_read(read):
    """What the SDK and its exporter make of a gauge and a counter."""
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.metrics_encoder")
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    resources = pytest.importorskip("opentelemetry.sdk.resources")
    reader = export.InMemoryMetricReader()
    provider = sdk.MeterProvider([reader], resource=resources.Resource({"host.name": "n0"}))
    meter = provider.get_meter("test")
    meter.create_gauge("hw.power", unit="W").set(321.5, {"hw.type": "gpu", "hw.id": "0"})
    meter.create_counter("hw.energy", unit="J").add(5, {"hw.type": "gpu", "hw.id": "0"})
    meter.create_histogram("hw.voltage", unit="V").record(12)
    data = encoder.encode_metrics(reader.get_metrics_data()).SerializeToString()
    provider.shutdown()
    frame, quality = read(name="metrics.binpb", data=data)
    assert frame[["metric", "node", "device", "value"]].to_numpy().tolist() == [["hw.power", "n0", "gpu0", 321.5]]
    assert quality.notes["src"]["metrics named hw.voltage, which are not read"] == 1


NUMBERS = [-1, 0, 1, 2, 10**30, -0.5, math.nan, "1", "NaN", "1e999", str(T0 * 10**9)]
WORDS = ["", "x", "DCGM_FI_DEV_POWER_USAGE", "http_requests_total", "hw.host.power"]
SCALARS = st.sampled_from([*NUMBERS, *WORDS, None, True, [], {}, [1], {"a": 1}])
PLACES = st.sampled_from(
    ["name", "unit", "kind", "temporality", "points", "time", "value", "flags", "attributes", "resource", "scopes", "second", "whole"]
)


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(PLACES, SCALARS), min_size=1, max_size=3))
def test_whatever_is_in_it_it_is_read_or_refused(tmp_path_factory, changes):
    """Structure-aware: a request of two metrics with other values in its places."""
    point = {"timeUnixNano": str(T0 * 10**9), "asInt": "5", "attributes": attributes({"hw.id": "0", "hw.type": "gpu"})}
    metric = {"name": "hw.energy", "unit": "J", "sum": {"dataPoints": [point, dict(point)], "aggregationTemporality": 2}}
    scope = {"metrics": [metric, {"name": "system.cpu.utilization", "gauge": {"dataPoints": [dict(point)]}}]}
    resource = {"resource": {"attributes": attributes({"host.name": "n0"})}, "scopeMetrics": [scope]}
    whole = {"resourceMetrics": [resource]}
    targets = {
        "name": (metric, "name"), "unit": (metric, "unit"), "kind": (metric, "gauge"), "points": (metric["sum"], "dataPoints"),
        "temporality": (metric["sum"], "aggregationTemporality"), "time": (point, "timeUnixNano"), "value": (point, "asInt"),
        "flags": (point, "flags"), "attributes": (point, "attributes"), "resource": (resource, "resource"),
        "scopes": (resource, "scopeMetrics"), "second": (scope["metrics"][1], "name"), "whole": (whole, "resourceMetrics"),
    }  # fmt: skip
    for place, value in changes:
        target, key = targets[place]
        target[key] = value
    path = tmp_path_factory.getbasetemp() / "odd.jsonl"
    path.write_text(json.dumps(whole) + "\n")
    try:
        result = READERS["otlp"].read(path, ReadContext("src"))
    except InputError as error:
        assert path.name in str(error)  # noqa: PT017
    else:
        validate("samples", result.tables["samples"], where="odd")

"""CloudWatch: records by value and period end, sums left out, units refused, and the collector against a mocked service."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_json import spoiled

from telemetry.errors import InputError
from telemetry.readers import READERS
from telemetry.schema import validate

READER = READERS["cloudwatch"]


@pytest.fixture
def read(tmp_path, context):
    def run(content, name: str = "export.json"):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(data)
        result = READER.read(tmp_path / name, context)
        return result.tables["samples"], result.quality

    return run


def by_metric(frame: pd.DataFrame) -> dict[str, float]:
    return dict(zip(frame["metric"].astype(str), frame["value"], strict=True))


def test_stream_values_are_means_dated_by_the_end_of_the_minute(read, make):
    record = make["cloudwatch"]
    lines = [
        record(0),
        record(0, "nvidia_smi_utilization_gpu", 120.0, "Percent"),
        record(0, "nvidia_smi_memory_used", 2048.0, "Megabytes"),
        record(0, "nvidia_smi_utilization_memory", 20.0, "Percent"),
        record(0, "CPUUtilization", 50.0, "Percent", namespace="AWS/EC2", dimensions={"InstanceId": "n0"}),
    ]
    frame, quality = read(make["text"]([json.dumps(line) for line in lines]))
    assert by_metric(frame) == {
        "hw.power": 200.0, "hw.gpu.utilization": 0.6, "hw.gpu.memory.usage": 1024 * 2.0**20, "system.cpu.utilization": 0.25,
        "hw.gpu.memory.bandwidth.utilization": 0.1,
    }  # fmt: skip
    assert set(frame["time"]) == {pd.Timestamp("2026-01-05T00:01:00Z")}
    power = frame[frame["metric"] == "hw.power"].iloc[0]
    assert (power["node"], power["device"], power["site"]) == ("n0", "gpu0", "west")
    assert frame[frame["metric"] == "system.cpu.utilization"]["device"].tolist() == [""]
    assert quality.total() == {"missing_pod_label": 1}


def test_a_machine_outside_the_inventory_is_at_its_region(read, make):
    frame, quality = read(make["text"]([json.dumps(make["cloudwatch"](0, node="i-0abc"))]))
    assert frame[["node", "site"]].to_numpy().tolist() == [["i-0abc", "us-west-2"]]
    assert quality.notes == {"src": {"nodes that are not in the inventory (no site, no pool)": 1}}


def test_requests_become_a_rate_and_a_silent_minute_is_a_gap(read, make):
    def line(k, **change):
        balancer = {"LoadBalancer": "app/chat/50dc6c495c0c9188"}
        given = {"namespace": "AWS/ApplicationELB", "dimensions": balancer, "unit": "Count"} | change
        return json.dumps(make["cloudwatch"](k, "RequestCount", 60.0 * (k + 1), **given))

    zone = {"LoadBalancer": "app/chat/50dc6c495c0c9188", "AvailabilityZone": "us-west-2a"}
    frame, quality = read(make["text"]([line(0), line(1), line(2), line(4), line(0, dimensions=zone)]))
    assert frame["value"].tolist() == [1.0, 2.0, 3.0, 5.0]
    assert set(frame["service"]) == {"app/chat/50dc6c495c0c9188"}
    assert set(frame["unit"]) == {"1/s"}
    assert quality.total() == {"scrape_gap": 1, "scrape_gap_samples": 1}
    assert quality.notes["src"] == {"RequestCount over AvailabilityZone, LoadBalancer, which repeats or sums what is read": 1}


def test_container_insights_per_device_is_read_and_sums_are_told(read, make):
    whole = {"ClusterName": "c", "NodeName": "n1", "InstanceId": "i-1", "InstanceType": "p4d.24xlarge", "GpuDevice": "nvidia3"}
    pod = {"ClusterName": "c", "Namespace": "ns", "PodName": "p", "FullPodName": "p-0", "GpuDevice": "nvidia3"}
    lines = [
        make["cloudwatch"](0, "node_gpu_power_draw", 500.0, namespace="ContainerInsights", dimensions=whole),
        make["cloudwatch"](0, "node_gpu_power_draw", 500.0, namespace="ContainerInsights", dimensions={"ClusterName": "c"}),
        make["cloudwatch"](0, "node_gpu_memory_used", 2e9, "Bytes", namespace="ContainerInsights", dimensions=whole),
        make["cloudwatch"](0, "pod_gpu_power_draw", 500.0, namespace="ContainerInsights", dimensions=pod),
    ]
    frame, quality = read(make["text"]([json.dumps(line) for line in lines]))
    assert by_metric(frame) == {"hw.power": 250.0, "hw.gpu.memory.usage": 1e9}
    assert set(frame["node"]) == {"n1"}
    assert set(frame["device"]) == {"gpu3"}
    assert quality.notes["src"] == {
        "node_gpu_power_draw over ClusterName, which repeats or sums what is read": 1,
        "metric ContainerInsights pod_gpu_power_draw, which is not read": 1,
    }


def test_flaws_of_a_stream_are_counted(read, make):
    text = make["text"]
    lines = [json.dumps(make["cloudwatch"](k)) for k in (0, 1, 1, 3, 2)]
    lines += [
        "{broken",
        json.dumps(make["cloudwatch"](4, value="many")),
        json.dumps(make["cloudwatch"](5) | {"value": {"sum": 0.0, "count": 0.0}}),
        json.dumps(make["cloudwatch"](6) | {"timestamp": "yesterday"}),
    ]
    frame, quality = read(text(lines))
    assert frame["value"].tolist() == [200.0, 200.5, 201.0, 201.5]
    assert quality.total() == {"duplicate": 1, "sentinel": 1, "out_of_order": 1, "unparseable": 3}


def test_an_unknown_unit_and_another_export_are_refused(read, make):
    with pytest.raises(InputError, match=r"unit 'Seconds'.*None"):
        read(make["text"]([json.dumps(make["cloudwatch"](0, unit="Seconds"))]))
    with pytest.raises(InputError, match="neither metric stream records"):
        read({"status": "success"})
    with pytest.raises(InputError, match="empty export"):
        read(make["text"]([json.dumps(make["cloudwatch"](0, "DiskReadOps"))]))


def answer(**change):
    stat = {
        "Metric": {"Namespace": "CWAgent", "MetricName": "nvidia_smi_power_draw", "Dimensions": [
            {"Name": "InstanceId", "Value": "n0"}, {"Name": "index", "Value": "1"},
        ]},
        "Period": 300,
        "Stat": "Average",
    }  # fmt: skip
    requests = {
        "Metric": {"Namespace": "AWS/ApplicationELB", "MetricName": "RequestCount", "Dimensions": [{"Name": "LoadBalancer", "Value": "a"}]},
        "Period": 300,
        "Stat": "Sum",
        "Unit": "Count",
    }
    times = ["2026-01-05T00:10:00+00:00", "2026-01-05T00:05:00+00:00", "2026-01-05T00:00:00+00:00"]
    return {
        "MetricDataQueries": [{"Id": "p", "MetricStat": stat}, {"Id": "r", "MetricStat": requests}, {"Id": "e", "Expression": "p*2"}],
        "MetricDataResults": [
            {"Id": "p", "Label": "x", "Timestamps": times, "Values": [102.0, 101.0, 100.0], "StatusCode": "Complete"},
            {"Id": "r", "Label": "y", "Timestamps": times, "Values": [900.0, 600.0, 300.0], "StatusCode": "PartialData"},
            {"Id": "e", "Label": "z", "Timestamps": times, "Values": [1.0, 2.0, 3.0]},
        ],
        "Messages": [],
    } | change


def test_get_metric_data_with_its_queries(read):
    frame, quality = read(answer())
    power = frame[frame["metric"] == "hw.power"]
    assert power["value"].tolist() == [100.0, 101.0, 102.0]
    assert power["time"].tolist()[0] == pd.Timestamp("2026-01-05T00:05:00Z")
    assert set(power["device"]) == {"gpu1"}
    assert frame[frame["metric"] == "http.server.request.rate"]["value"].tolist() == [1.0, 2.0, 3.0]
    assert quality.total() == {}
    assert quality.notes["src"] == {"expressions, which are not read": 1, "results with status PartialData: not all of their points": 1}


def test_an_answer_alone_another_statistic_and_a_cut_answer_are_told(read):
    whole = answer()
    with pytest.raises(InputError, match=r"missing key 'MetricDataQueries'.*jq -n"):
        read({"MetricDataResults": whole["MetricDataResults"]})
    whole["MetricDataQueries"][0]["MetricStat"]["Stat"] = "Maximum"
    frame, quality = read(whole)
    assert set(frame["metric"]) == {"http.server.request.rate"}
    assert quality.notes["src"]["nvidia_smi_power_draw as Maximum, where Average is read"] == 1
    with pytest.raises(InputError, match="truncated"):
        read(json.dumps(whole, indent=2).encode()[:-40])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_anywhere_is_counted_or_refused_by_name(data, tmp_path, context, make):
    if data.draw(st.booleans()):
        documents = [data.draw(spoiled(answer()))]
    else:
        documents = [make["cloudwatch"](0), data.draw(spoiled(make["cloudwatch"](1))), make["cloudwatch"](2)]
    path = tmp_path / "odd.json"
    path.write_text("\n".join(json.dumps(document) for document in documents))
    try:
        result = READER.read(path, context)
    except InputError as error:
        assert "odd.json" in str(error)  # noqa: PT017
    else:
        validate("samples", result.tables["samples"], where="test")

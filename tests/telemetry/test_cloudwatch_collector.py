"""The CloudWatch collector against a mocked service: discovery, pages, limits, credentials, and the way through the spool."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from telemetry.collectors import COLLECTORS, UnavailableError, collect
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.readers import READERS
from telemetry.spool import Spool

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")

Collector = COLLECTORS["cloudwatch"]
HOUR = pd.Timedelta("1h")
SECRET = "not-a-real-secret"


@pytest.fixture
def start():
    return pd.Timestamp.now(tz="UTC").floor("1h") - 3 * HOUR


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cloud(start):
    """Three hours of two GPUs of one machine, its CPU, a balancer, and series that are not read."""
    with moto.mock_aws():
        client = boto3.client("cloudwatch", region_name="us-west-2")

        def put(namespace, name, value, unit="None", **dimensions):
            for k in range(36):
                point = {"MetricName": name, "Value": float(value + k), "Unit": unit, "Timestamp": start + k * pd.Timedelta("5min")}
                point["Dimensions"] = [{"Name": key, "Value": text} for key, text in dimensions.items()]
                client.put_metric_data(Namespace=namespace, MetricData=[point])

        for index in "01":
            put("CWAgent", "nvidia_smi_power_draw", 100 + 100 * int(index), InstanceId="i-1", index=index)
        put("AWS/EC2", "CPUUtilization", 10, "Percent", InstanceId="i-1")
        put("AWS/EC2", "CPUUtilization", 10, "Percent", AutoScalingGroupName="all")
        put("AWS/ApplicationELB", "RequestCount", 300, "Count", LoadBalancer="app/chat/1")
        put("AWS/EC2", "DiskReadOps", 1, "Count", InstanceId="i-1")
        yield client


def test_a_window_is_fetched_and_read(cloud, start, tmp_path, context):
    data = Collector(region="us-west-2").fetch(start, start + HOUR)
    asked = json.loads(data)
    names = sorted(query["MetricStat"]["Metric"]["MetricName"] for query in asked["MetricDataQueries"])
    assert names == ["CPUUtilization", "RequestCount", "nvidia_smi_power_draw", "nvidia_smi_power_draw"]
    (tmp_path / "answer.json").write_bytes(data)
    result = READERS["cloudwatch"].read(tmp_path / "answer.json", context)
    frame = result.tables["samples"]
    power = frame[frame["metric"] == "hw.power"]
    assert power.groupby("device", observed=True)["value"].agg(["first", "last", "size"]).to_numpy().tolist() == [
        [100.0, 111.0, 12.0], [200.0, 211.0, 12.0],
    ]  # fmt: skip
    assert power["time"].min() == start + pd.Timedelta("5min")
    assert frame[frame["metric"] == "http.server.request.rate"]["value"].tolist()[:2] == [1.0, 301 / 300]
    assert set(frame["site"]) == {"us-west-2"}
    assert result.quality.total() == {}


def test_filters_and_pages(cloud, start, monkeypatch):
    monkeypatch.setattr("telemetry.collectors.cloudwatch.QUERIES_PER_CALL", 2)
    whole = json.loads(Collector(region="us-west-2").fetch(start, start + HOUR))
    assert [len(result["Values"]) for result in whole["MetricDataResults"]] == [12, 12, 12, 12]
    assert len({result["Id"] for result in whole["MetricDataResults"]}) == 4
    one = json.loads(Collector(region="us-west-2", dimensions=("index=1",)).fetch(start, start + HOUR))
    assert [result["Values"][0] for result in one["MetricDataResults"]] == [200.0]


def test_the_spool_holds_what_one_fetch_would(cloud, start, tmp_path, context):
    collector, period = Collector(region="us-west-2"), pd.Timedelta("5min")
    spool = Spool(tmp_path / "aws")
    assert len(collect(collector, spool, start, start + 3 * HOUR, chunk=HOUR, lookback=period)) == 3
    lake = Lake(tmp_path / "lake")
    result = ingest_sources(lake, [SourceSpec(tmp_path / "aws", "cloudwatch")], context.inventory)
    held = lake.table("samples", columns=["time", "metric", "device"])
    assert len(held) == 4 * 35  # the 36th period ends at the end of the last window, and so belongs to the next
    assert not held.duplicated().any()
    assert result.quality.total() == {}


def test_what_cannot_be_is_refused_without_the_secret(cloud, start, monkeypatch):
    with pytest.raises(InputError, match="no metric that is read"):
        Collector(region="us-west-2", dimensions=("InstanceId=i-9",)).fetch(start, start + HOUR)
    for wrong in ({"period_s": 90}, {"dimensions": ("InstanceId",)}, {"namespaces": ()}, {"attempts": 0}):
        with pytest.raises(InputError, match="allowed"):
            Collector(region="us-west-2", **wrong)
    with pytest.raises(InputError, match=r"ProfileNotFound.*vendor's chain"):
        Collector(region="us-west-2", profile="nobody").fetch(start, start + HOUR)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"NoCredentialsError.*vendor's chain"):
        Collector(region="us-west-2").fetch(start, start + HOUR)


def test_an_unreachable_endpoint_and_a_refusal_are_told(start):
    with pytest.raises(UnavailableError, match="EndpointConnectionError") as caught:
        Collector(region="us-west-2", endpoint_url="http://127.0.0.1:9", attempts=1).fetch(start, start + HOUR)
    assert SECRET not in str(caught.value)
    from botocore.exceptions import ClientError

    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "User: arn:aws:iam::1:user/x is not authorized"}}, "ListMetrics")
    told = str(Collector(region="us-west-2")._told(denied))
    assert "AccessDenied" in told
    assert "cloudwatch:GetMetricData" in told
    assert "arn:aws" not in told

"""Azure Monitor: diagnostic records and REST answers by value, sums left out, and odd documents counted or refused."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_json import spoiled

from telemetry.errors import InputError
from telemetry.readers import READERS
from telemetry.readers.azure_monitor import grain_s
from telemetry.schema import validate

READER = READERS["azure_monitor"]
GROUP = "/subscriptions/0000/resourceGroups/rg/providers"


@pytest.fixture
def read(tmp_path, context):
    def run(content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "export.json").write_bytes(data)
        result = READER.read(tmp_path / "export.json", context)
        return result.tables["samples"], result.quality

    return run


def rest(name: str, unit: str, *series: tuple[dict, list], resource: str = "Microsoft.Compute/virtualMachines/n1", grain: str = "PT5M"):
    """An answer; each series is its dimensions and its points, five minutes apart."""
    return {
        "cost": 0,
        "timespan": "2026-01-05T00:00:00Z/2026-01-05T01:00:00Z",
        "interval": grain,
        "value": [
            {
                "id": f"{GROUP}/{resource}/providers/Microsoft.Insights/metrics/{name}",
                "type": "Microsoft.Insights/metrics",
                "name": {"value": name, "localizedValue": name},
                "unit": unit,
                "timeseries": [
                    {
                        "metadatavalues": [{"name": {"value": k, "localizedValue": k}, "value": v} for k, v in dimensions.items()],
                        "data": [{"timeStamp": f"2026-01-05T00:{5 * i:02d}:00Z"} | point for i, point in enumerate(points)],
                    }
                    for dimensions, points in series
                ],
                "errorCode": "Success",
            }
        ],
        "namespace": "any",
        "resourceregion": "westeurope",
    }


def test_records_in_capitals_and_by_line_are_means_dated_by_their_end(read, make):
    records = [make["azure"](k) for k in range(3)]
    frame, quality = read({"records": records})
    assert frame["value"].tolist() == [0.5, 0.51, 0.52]
    assert frame["time"].tolist()[0] == pd.Timestamp("2026-01-05T00:01:00Z")
    assert set(frame["node"]) == {"n0"}
    assert set(frame["site"]) == {"west"}
    assert quality.total() == {}
    lines, _ = read(make["text"]([json.dumps(record) for record in records]))
    pd.testing.assert_frame_equal(lines, frame)


def test_records_without_a_mean_and_those_of_a_scale_set(read, make):
    bare = make["azure"](0)
    del bare["average"]
    scale_set = make["azure"](0, "MICROSOFT.COMPUTE/VIRTUALMACHINESCALESETS/POOL")
    machine = make["azure"](0, "MICROSOFT.COMPUTE/VIRTUALMACHINESCALESETS/POOL/VIRTUALMACHINES/3")
    web = make["azure"](0, "MICROSOFT.WEB/SITES/CHAT", "Requests", total=120.0, timeGrain="PT1H")
    frame, quality = read({"records": [bare, scale_set, machine, web]})
    cpu = frame[frame["metric"] == "system.cpu.utilization"]
    assert dict(zip(cpu["node"], cpu["value"], strict=True)) == {"n0": 0.5, "pool_3": 0.5}
    served = frame[frame["metric"] == "http.server.request.rate"].iloc[0]
    assert (served["service"], served["value"], served["time"]) == ("chat", 120 / 3600, pd.Timestamp("2026-01-05T01:00Z"))
    assert (
        quality.notes["src"]["Percentage CPU of microsoft.compute/virtualmachinescalesets without a dimension, which sums what is read"]
        == 1
    )


def test_rest_answers_one_a_line(read, make):
    answers = [
        rest("Percentage CPU", "Percent", ({}, [{"average": 12.5}, {}, {"average": 25.0}])),
        rest("Requests", "Count", ({}, [{"total": 600.0}, {"total": 0.0}]), resource="Microsoft.Web/sites/Chat"),
    ]
    frame, quality = read(make["text"]([json.dumps(answer) for answer in answers]))
    cpu = frame[frame["metric"] == "system.cpu.utilization"]
    assert cpu["value"].tolist() == [0.125, 0.25]
    assert cpu["time"].tolist() == [pd.Timestamp("2026-01-05T00:05Z"), pd.Timestamp("2026-01-05T00:15Z")]
    assert set(cpu["site"]) == {"west"}
    served = frame[frame["metric"] == "http.server.request.rate"]
    assert served["value"].tolist() == [2.0, 0.0]
    assert served["site"].tolist() == ["westeurope", "westeurope"]
    assert quality.total() == {}


def test_gpus_need_their_instance_and_joules_become_watts(read):
    of_gpu = ({"InstanceId": "I-7", "DeviceId": "2"}, [{"total": 90_000.0}])
    energy = rest(
        "GpuEnergyJoules", "Count", of_gpu, ({"runId": "r"}, [{"total": 1.0}]), resource="Microsoft.MachineLearningServices/workspaces/w"
    )
    frame, quality = read(energy)
    assert frame[["metric", "node", "device", "value"]].astype(str).to_numpy().tolist() == [["hw.power", "i-7", "gpu2", "300.0"]]
    assert quality.notes["src"]["GpuEnergyJoules of microsoft.machinelearningservices/workspaces over runid, which sums what is read"] == 1
    online = "Microsoft.MachineLearningServices/workspaces/w/onlineEndpoints/e"
    frame, _ = read(rest("GpuEnergyJoules", "Count", ({"instanceId": "i-8"}, [{"average": 240_000.0}]), resource=online))
    # 4 kW is too much for one GPU, and not for all of a node
    assert frame[["device", "value"]].to_numpy().tolist() == [["gpus", 4000.0]]
    frame, _ = read(rest("GpuUtilizationPercentage", "Percent", ({"instanceId": "i-8"}, [{"average": 80.0}]), resource=online))
    assert frame["value"].tolist() == [0.8]


def test_units_other_exports_and_damage(read, make):
    with pytest.raises(InputError, match=r"metric Percentage CPU: unit 'Bytes'.*Percent"):
        read(rest("Percentage CPU", "Bytes", ({}, [{"average": 1.0}])))
    with pytest.raises(InputError, match="neither diagnostic records"):
        read({"items": []})
    with pytest.raises(InputError, match="empty export"):
        read(rest("Disk Read Bytes", "Bytes", ({}, [{"total": 1.0}])))
    with pytest.raises(InputError, match="truncated"):
        read(json.dumps({"records": [make["azure"](0)]}).encode()[:-3])
    records = [make["azure"](0), make["azure"](1, average="many"), make["azure"](2, timeGrain="monthly"), make["azure"](3, time="never"), 7]
    frame, quality = read({"records": records})
    assert len(frame) == 1
    assert quality.total() == {"unparseable": 4}


def test_time_grains():
    assert [grain_s(text) for text in ("PT1M", "PT1H", "P1D", "PT90S", "P1DT12H", "PT0S", "P", "1M")] == [
        60.0, 3600.0, 86400.0, 90.0, 129600.0, None, None, None,
    ]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_anywhere_is_counted_or_refused_by_name(data, tmp_path, context, make):
    whole = data.draw(
        st.sampled_from(
            [
                {"records": [make["azure"](0), make["azure"](1)]},
                rest("GpuUtilization", "Count", ({"NodeId": "n1", "DeviceId": "0"}, [{"average": 5.0}, {"average": 6.0}])),
                make["azure"](3),
            ]
        )
    )
    path = tmp_path / "odd.json"
    path.write_text("\n".join(json.dumps(document) for document in (data.draw(spoiled(whole)), make["azure"](9))))
    try:
        result = READER.read(path, context)
    except InputError as error:
        assert "odd.json" in str(error)  # noqa: PT017
    else:
        validate("samples", result.tables["samples"], where="test")

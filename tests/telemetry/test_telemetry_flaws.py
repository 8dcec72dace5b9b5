"""Each flaw of real metric exports, planted alone: counted, and repaired or dropped as the rules say."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from telemetry.cleaner import Cleaner, Common
from telemetry.errors import InputError
from telemetry.inventory import Inventory
from telemetry.quality import QualityReport
from telemetry.raw import Labels, Points
from telemetry.readers import READERS


@pytest.fixture
def read(tmp_path, context):
    def run(reader: str, content) -> tuple[pd.DataFrame, QualityReport]:
        if isinstance(content, bytes):
            data = content
        elif isinstance(content, dict):
            data = json.dumps(content).encode()
        else:
            data = "\n".join(json.dumps(line) if isinstance(line, dict) else line for line in content).encode()
        path = tmp_path / "export"
        path.write_bytes(data)
        result = READERS[reader].read(path, context)
        return next(iter(result.tables.values())), result.quality

    return run


def power(frame: pd.DataFrame, node: str = "n0") -> pd.DataFrame:
    return frame[(frame["metric"] == "hw.power") & (frame["node"] == node)].reset_index(drop=True)


def entry(answer: dict, name: str, node: str) -> dict:
    return next(
        e
        for e in answer["data"]["result"]
        if e["metric"]["__name__"] == name and node in (e["metric"].get("Hostname"), e["metric"].get("hostname"))
    )


def test_prometheus_units_labels_and_inventory(read, make):
    frame, _ = read("prometheus", make["prometheus"]())
    row = power(frame).iloc[0]
    assert (row["value"], row["unit"], row["site"], row["pool"], row["device"], row["pod_uid"], row["namespace"]) == (
        100.0, "W", "west", "west-a100", "gpu0", "p", "ns",
    )  # fmt: skip
    assert frame.loc[frame["metric"] == "hw.gpu.utilization", "value"].unique() == pytest.approx([0.5])
    rate = frame[frame["metric"] == "hw.energy.rate"]
    # 1e6 mJ/s x 600 s / 10 per step = 100 W, and one sample fewer than scrapes.
    assert rate["value"].to_numpy() == pytest.approx(100.0)
    assert len(rate) == 3 * (make["steps"] - 1)


def test_old_and_new_label_spellings_read_alike(read, make):
    old, _ = read("prometheus", make["prometheus"]())
    new, _ = read("prometheus", make["prometheus"](old=False))
    pd.testing.assert_frame_equal(old, new)


@pytest.mark.parametrize("text", ["-1", "NaN", "", "[Not Supported]", "na", "No reading"])
def test_sentinels_are_dropped_and_are_no_gap(read, make, text):
    frame, quality = read("prometheus", make["prometheus"]({("n0", 4): text}))
    assert quality.total() == {"sentinel": 1}
    assert quality.counts["src"]["n0/gpu0"] == {"sentinel": 1}
    assert len(power(frame)) == make["steps"] - 1


@pytest.mark.parametrize(
    ("text", "flaw"), [("-45.5", "negative_power"), ("65535", "implausible_power"), ("twelve", "unparseable"), ("+Inf", "unparseable")]
)
def test_impossible_watts_are_dropped(read, make, text, flaw):
    frame, quality = read("prometheus", make["prometheus"]({("n1", 0): text}))
    assert quality.total() == {flaw: 1}
    assert len(power(frame, "n1")) == make["steps"] - 1
    assert power(frame)["value"].min() >= 100


def test_gap_duplicate_and_disorder(read, make):
    answer = make["prometheus"]()
    values = entry(answer, "DCGM_FI_DEV_POWER_USAGE", "n0")["values"]
    del values[3:5], values[7]
    values.append([values[0][0], "77"])  # the first time again, last in the file
    frame, quality = read("prometheus", answer)
    assert quality.total() == {"scrape_gap": 2, "scrape_gap_samples": 3, "duplicate": 1, "out_of_order": 1}
    own = power(frame)
    assert own["value"].iloc[0] == 77
    assert own["time"].is_monotonic_increasing


def test_counter_reset_restarts_from_zero(read, make):
    answer = make["prometheus"]()
    values = entry(answer, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "n0")["values"]
    values[6:] = [[t, str(30_000_000 * (k + 1))] for k, (t, _) in enumerate(values[6:])]
    frame, quality = read("prometheus", answer)
    assert quality.total() == {"counter_reset": 1}
    rate = frame[(frame["metric"] == "hw.energy.rate") & (frame["node"] == "n0")]["value"].to_numpy()
    assert rate[:5] == pytest.approx(100.0)
    assert rate[5:] == pytest.approx(50.0)


def test_lost_pod_label_is_counted_where_the_gpu_is_busy(read, make):
    answer = make["prometheus"]()
    whole = entry(answer, "DCGM_FI_DEV_GPU_UTIL", "n2")
    bare = {k: v for k, v in whole["metric"].items() if k not in ("pod", "namespace")}
    lost = [[t, "0" if k == 1 else v] for k, (t, v) in enumerate(whole["values"][4:7])]
    answer["data"]["result"].append({"metric": bare, "values": lost})
    del whole["values"][4:7]
    frame, quality = read("prometheus", answer)
    assert quality.total() == {"missing_pod_label": 2}
    own = frame[(frame["metric"] == "hw.gpu.utilization") & (frame["node"] == "n2")]
    assert len(own) == make["steps"]
    assert (own["pod_uid"] == "").sum() == 3


@pytest.mark.parametrize("offset", [37, -41])
def test_clock_skew_is_shifted_back(read, make, offset):
    answer = make["prometheus"]()
    for e in answer["data"]["result"]:
        if e["metric"]["Hostname"] == "n1":
            e["values"] = [[t + offset, v] for t, v in e["values"]]
    frame, quality = read("prometheus", answer)
    assert quality.counts == {"src": {"n1": {"clock_skew": 1}}}
    assert power(frame, "n1")["time"].tolist() == power(frame)["time"].tolist()


def test_clocks_without_a_majority_are_left_alone(read, make):
    answer = make["prometheus"](nodes=("n0", "n1"))
    for e in answer["data"]["result"]:
        if e["metric"]["Hostname"] == "n1":
            e["values"] = [[t + 37, v] for t, v in e["values"]]
    frame, quality = read("prometheus", answer)
    assert quality.total() == {}
    assert (power(frame, "n1")["time"] - power(frame)["time"]).unique() == [pd.Timedelta(seconds=37)]


def test_prometheus_milliseconds_truncation_failed_and_empty_answers(read, make):
    answer = make["prometheus"]()
    for e in answer["data"]["result"]:
        e["values"] = [[t * 1000, v] for t, v in e["values"]]
    with pytest.raises(InputError, match="milliseconds"):
        read("prometheus", answer)
    with pytest.raises(InputError, match=r"truncated JSON|no valid JSON"):
        read("prometheus", json.dumps(make["prometheus"]()).encode()[:-200])
    with pytest.raises(InputError, match="query failed: boom"):
        read("prometheus", {"status": "error", "error": "boom"})
    with pytest.raises(InputError, match="empty export"):
        read("prometheus", {"status": "success", "data": {"resultType": "matrix", "result": []}})
    with pytest.raises(InputError, match=r"result\[0\].*missing key 'metric'"):
        read("prometheus", {"status": "success", "data": {"result": [{"values": []}]}})


def test_metrics_that_are_not_read_are_told(read, make):
    answer = make["prometheus"]()
    entry(answer, "DCGM_FI_DEV_GPU_UTIL", "n0")["metric"]["__name__"] = "kepler_node_package_watts"
    _, quality = read("prometheus", answer)
    assert quality.notes["src"] == {"series of metric kepler_node_package_watts, which is not read": 1}


def test_otlp_numbers_enums_and_rates(read, make):
    by_number, _ = read("otlp", [make["otlp"](k) for k in range(6)])
    by_name, _ = read("otlp", [make["otlp"](k, temporality="AGGREGATION_TEMPORALITY_CUMULATIVE") for k in range(6)])
    pd.testing.assert_frame_equal(by_number, by_name)
    assert power(by_number)["value"].tolist() == [200.0 + k for k in range(6)]
    rate = by_number[by_number["metric"] == "http.server.request.rate"]
    assert rate["service"].unique().tolist() == ["chat"]
    assert rate["value"].to_numpy() == pytest.approx(1.0)


def test_otlp_delta_sums(read, make):
    frame, quality = read("otlp", [make["otlp"](k, requests=1200, temporality="AGGREGATION_TEMPORALITY_DELTA") for k in range(6)])
    assert quality.total() == {}
    assert frame.loc[frame["metric"] == "http.server.request.rate", "value"].to_numpy() == pytest.approx(2.0)


def test_otlp_kilowatts_are_converted_and_counted(read, make):
    frame, quality = read("otlp", [make["otlp"](k, watts=0.25, unit="kW") if k in (2, 3) else make["otlp"](k) for k in range(6)])
    assert quality.total() == {"unit_converted": 2}
    assert power(frame)["value"].tolist() == [200.0, 201.0, 250.0, 250.0, 204.0, 205.0]


def test_otlp_wrong_unit_is_refused_with_the_choices(read, make):
    with pytest.raises(InputError, match=r"unit 'Cel'.*allowed: W.*kW"):
        read("otlp", [make["otlp"](k, unit="Cel") for k in range(3)])


def test_otlp_broken_and_late_lines(read, make):
    lines = [json.dumps(make["otlp"](k)) for k in range(8)]
    lines[2], lines[5] = lines[5], lines[2]
    lines.insert(4, '{"resourceMetrics": [')
    frame, quality = read("otlp", lines)
    # Order 0 1 5 3 4 2 6 7: 3 and 2 come after a later one, in each of the 3 series.
    assert quality.total() == {"out_of_order": 6, "unparseable": 1}
    assert power(frame)["value"].tolist() == [200.0 + k for k in range(8)]


@pytest.mark.parametrize(
    ("reading", "flaw"),
    [("No reading", "sentinel"), ("-1 Watts", "sentinel"), ("-20 Watts", "negative_power"), ("65535 Watts", "implausible_power")],
)
def test_ipmi_bad_readings(read, make, reading, flaw):
    blocks = [make["ipmi"](node, k, reading if (node, k) == ("n1", 3) else "500 Watts") for k in range(6) for node in ("n0", "n1", "n2")]
    frame, quality = read("ipmi", "".join(blocks).encode())
    assert quality.total() == {flaw: 1}
    assert len(power(frame, "n1")) == 5
    assert frame["value"].unique().tolist() == [500.0]


def test_ipmi_session_error_is_unparseable_and_no_gap(read, make):
    blocks = [make["ipmi"]("n0", k) for k in range(6)]
    blocks[2] = blocks[2].split("\n")[0] + "\nError: Unable to establish IPMI v2 / RMCP+ session\n\n"
    frame, quality = read("ipmi", "".join(blocks).encode())
    assert quality.total() == {"unparseable": 1}
    assert len(frame) == 5


def test_ipmi_kilowatts_sensor_text_and_instant_reading(read, make):
    blocks = [make["ipmi"]("n0", k, "0.5 kW") for k in range(3)]
    blocks.append(make["ipmi"]("n0", 3).split("\n")[0] + "\nInlet Temp | 23.000 | degrees C | ok\nPwr Consumption | 462.000 | Watts | ok\n")
    blocks.append(make["ipmi"]("n0", 4).split("\n")[0] + "\nPS1 Power | 200 | Watts | ok\nPS2 Power | 210 | Watts | ok\n")
    blocks.append(make["ipmi"]("n0", 5).split("\n")[0] + "\n    Instantaneous power reading:     321 Watts\n")
    frame, quality = read("ipmi", "".join(blocks).encode())
    assert quality.total() == {"unit_converted": 3}
    assert frame["value"].tolist() == [500.0, 500.0, 500.0, 462.0, 410.0, 321.0]


def test_counter_rates_by_hand():
    labels = [Labels("hw.energy", "n0", "gpu0", unit="J"), Labels("hw.energy", "n1", "gpu0", unit="J")]
    points = Points(
        labels, np.ones(2), np.zeros(2), np.array([0, 0, 0, 0, 1, 1], dtype=np.int32),
        np.array([0, 1, 3, 4, 0, 2]) * 10**9, np.zeros(6, dtype=bool),
        np.array([5.0, 7.0, 13.0, 4.0, 100.0, 100.0]), np.zeros(6, dtype=np.int8),
    )  # fmt: skip
    quality = QualityReport()
    cleaner = Cleaner("s", points, Inventory(), quality)
    cleaner.finish(Common())
    assert cleaner.value.tolist() == [2.0, 3.0, 4.0, 0.0]
    assert (cleaner.time_ns // 10**9).tolist() == [1, 3, 4, 2]
    assert quality.total() == {"counter_reset": 1}


def test_quality_report_round_trip_and_pages():
    report = QualityReport()
    report.add("a", "duplicate", 2, "n0")
    report.add("a", "duplicate", 3, "n<1>")
    report.add("b", "sentinel", 1)
    report.note("b", "left out", 7)
    report.set_rows("a", "samples", 1234)
    assert report.total() == {"duplicate": 5, "sentinel": 1}
    assert QualityReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    page = report.to_html()
    assert "n&lt;1&gt;" in page
    assert "left out: 7" in page
    with pytest.raises(KeyError):
        report.add("a", "typo")

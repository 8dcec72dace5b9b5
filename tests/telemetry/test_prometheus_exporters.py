"""Every exporter that the prometheus reader knows: unit, device and node of its metrics, and that nothing is read twice."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from telemetry.readers import READERS
from telemetry.readers.prometheus_metrics import EXPORTED, METRIC_NAMES
from telemetry.series import SeriesConfig, power
from telemetry.units import METRICS

T0 = 1_767_571_200
STEPS = 4


@pytest.fixture
def read(tmp_path, context):
    """``read((name, labels, values), ...)`` gives the samples and the quality report; points are a minute apart."""

    def reading(*series):
        result = []
        for name, labels, values in series:
            values = values if isinstance(values, list) else [values] * STEPS
            points = [[T0 + 60 * k, str(v)] for k, v in enumerate(values) if v is not None]
            result.append({"metric": {"__name__": name, **labels}, "values": points})
        path = tmp_path / "answer.json"
        path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}))
        found = READERS["prometheus"].read(path, context)
        return found.tables["samples"], found.quality

    return reading


GPU = {"gpu": "0", "UUID": "GPU-1", "Hostname": "n0"}
MIG = {**GPU, "GPU_I_PROFILE": "1g.10gb", "GPU_I_ID": "7"}
IPMI = {"instance": "n1:9290"}
CASES = [
    ("DCGM_FI_DEV_POWER_USAGE", GPU, 250, ("hw.power", "n0", "gpu0", 250)),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", MIG, 0.4, ("hw.gpu.utilization", "n0", "gpu0/mig7", 0.4)),
    ("DCGM_FI_PROF_DRAM_ACTIVE", MIG, 0.3, ("hw.gpu.memory.bandwidth.utilization", "n0", "gpu0/mig7", 0.3)),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", GPU, 30, ("hw.gpu.memory.bandwidth.utilization", "n0", "gpu0", 0.3)),
    ("DCGM_FI_DEV_FB_USED", MIG, 1024, ("hw.gpu.memory.usage", "n0", "gpu0/mig7", 2**30)),
    ("DCGM_FI_DEV_GPU_TEMP", GPU, 61, ("hw.temperature", "n0", "gpu0", 61)),
    ("DCGM_FI_DEV_SM_CLOCK", GPU, 1410, ("hw.gpu.speed", "n0", "gpu0", 1.41e9)),
    ("nvidia_smi_power_draw_watts", {"uuid": "abc", "instance": "n1:9835"}, 28, ("hw.power", "n1", "gpuabc", 28)),
    ("ipmi_dcmi_power_consumption_watts", IPMI, 415, ("hw.power", "n1", "", 415)),
    ("ipmi_power_watts", {**IPMI, "id": "90", "name": "Pwr Consumption"}, 416, ("hw.power", "n1", "", 416)),
    ("ipmi_power_watts", {**IPMI, "id": "3", "name": "PS1 Input Power"}, 200, ("hw.power", "n1", "psuPS1-Input-Power", 200)),
    ("kepler_platform_watts", {"node_name": "n1", "power_control_name": "Server Power Control"}, 400, ("hw.power", "n1", "", 400)),
    ("node_hwmon_power_average_watt", {"instance": "n1:9100", "chip": "lnxsybus:00_acpi000d:00"}, 211, ("hw.power", "n1", "", 211)),
    ("kepler_node_cpu_watts", {"node_name": "n1", "zone": "package-1"}, 90, ("hw.power", "n1", "cpu1", 90)),
    ("kepler_node_cpu_watts", {"node_name": "n1", "zone": "package", "path": "/sys/class/powercap/intel-rapl:1"}, 90,
     ("hw.power", "n1", "cpu1", 90)),
    ("kepler_node_cpu_watts", {"node_name": "n1", "zone": "core"}, 60, ("hw.power", "n1", "cpu0/core", 60)),
    ("kepler_node_cpu_watts", {"node_name": "n1", "zone": "psys"}, 160, ("hw.power", "n1", "psys", 160)),
    ("kepler_node_gpu_watts", {"node_name": "n1", "gpu": "2", "gpu_uuid": "GPU-2", "vendor": "nvidia"}, 65, ("hw.power", "n1", "gpu2", 65)),
    ("kepler_pod_cpu_watts", {"node_name": "n1", "zone": "package", "pod_name": "p", "pod_namespace": "ns"}, 5,
     ("k8s.pod.power", "n1", "ns/p/cpu", 5)),
    ("instance:node_cpu_utilisation:rate5m", {"instance": "n1:9100"}, 0.25, ("system.cpu.utilization", "n1", "", 0.25)),
    ("rPDU2DeviceStatusPower", {"instance": "pdu-a"}, 613, ("hw.power", "", "pdu/pdu-a", 6130)),
    ("rPDU2PhaseStatusPower", {"instance": "pdu-a", "rPDU2PhaseStatusIndex": "2"}, 57, ("hw.power", "", "feed/pdu-a/phase2", 570)),
    ("rPDU2OutletMeteredStatusPower", {"instance": "pdu-a", "rPDU2OutletMeteredStatusIndex": "4", "node": "n1"}, 300,
     ("hw.power", "n1", "pdu/pdu-a/4", 300)),
    ("systemTotalPower", {"instance": "pdu-b"}, 8000, ("hw.power", "", "pdu/pdu-b", 8000)),
    ("infeedPower", {"instance": "pdu-b", "towerIndex": "1", "infeedIndex": "2"}, 3900, ("hw.power", "", "feed/pdu-b/infeed1.2", 3900)),
    ("st4OutletActivePower", {"instance": "pdu-c", "st4UnitIndex": "1", "st4InputCordIndex": "1", "st4OutletIndex": "9"}, 210,
     ("hw.power", "", "pdu/pdu-c/1.1.9", 210)),
    ("measurementsInletSensorValue", {"instance": "pdu-d", "inletId": "1", "sensorType": "5"}, 180,
     ("hw.power", "", "feed/pdu-d/inlet1", 180)),
    ("measurementsOutletSensorValue", {"instance": "pdu-d", "outletId": "3", "sensorType": "activePower"}, 20,
     ("hw.power", "", "pdu/pdu-d/3", 20)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "labels", "value", "expected"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_a_gauge_has_its_unit_device_and_node(read, name, labels, value, expected):
    frame, quality = read((name, labels, value))
    assert quality.total().keys() <= {"missing_pod_label"}
    assert len(frame) == STEPS
    row = frame.iloc[0]
    assert (row["metric"], row["node"], row["device"]) == expected[:3]
    assert row["value"] == pytest.approx(expected[3])
    assert row["unit"] == METRICS[row["metric"]].unit


COUNTERS = [
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", GPU, 6_000_000, ("hw.energy.rate", "gpu0", 100)),
    ("node_rapl_package_joules_total", {"instance": "n0:9100", "index": "1", "path": "x"}, 6000, ("hw.energy.rate", "cpu1", 100)),
    ("node_rapl_dram_joules_total", {"instance": "n0:9100", "index": "0"}, 600, ("hw.energy.rate", "cpu0/dram", 10)),
    ("kepler_node_cpu_joules_total", {"node_name": "n0", "zone": "package"}, 6000, ("hw.energy.rate", "cpu0", 100)),
    (
        "kepler_pod_gpu_joules_total",
        {"node_name": "n0", "pod_name": "p", "pod_namespace": "ns"},
        60,
        ("k8s.pod.energy.rate", "ns/p/gpu", 1),
    ),
    ("rPDU2DeviceStatusEnergy", {"instance": "pdu-a"}, 2, ("hw.energy.rate", "pdu/pdu-a", 12_000)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "labels", "increase", "expected"), COUNTERS, ids=[c[0] for c in COUNTERS])
def test_a_counter_becomes_watts(read, name, labels, increase, expected):
    frame, quality = read((name, labels, [10 * increase + k * increase for k in range(STEPS)]))
    assert quality.total() == {}
    assert set(zip(frame["metric"], frame["device"], strict=True)) == {expected[:2]}
    assert frame["value"].to_list() == pytest.approx([expected[2]] * (STEPS - 1))


NOT_READ = [
    ("ipmi_power_watts", {**IPMI, "name": "CPU Power"}),
    ("node_hwmon_power_average_watt", {"instance": "n1:9100", "chip": "0000:03:00_0"}),
    ("kepler_platform_watts", {"node_name": "n1", "power_control_name": "CPU Sub-system Power"}),
    ("kepler_node_cpu_watts", {"node_name": "n1", "zone": "accelerator"}),
    ("kepler_pod_cpu_watts", {"node_name": "n1", "zone": "core", "pod_name": "p", "pod_namespace": "ns"}),
    ("measurementsInletSensorValue", {"instance": "pdu-d", "inletId": "1", "sensorType": "1"}),
    ("kepler_container_cpu_watts", {"node_name": "n1", "zone": "package"}),
    ("node_cpu_seconds_total", {"instance": "n1:9100", "cpu": "0", "mode": "idle"}),
]


@pytest.mark.parametrize(("name", "labels"), NOT_READ, ids=[c[0] for c in NOT_READ])
def test_parts_within_others_are_left_out_and_told(read, name, labels):
    frame, quality = read((name, labels, 5), ("DCGM_FI_DEV_POWER_USAGE", GPU, 250))
    assert set(frame["device"]) == {"gpu0"}
    assert sum(count for what, count in quality.notes["src"].items() if name in what) == 1


def test_a_boards_watts_are_read_once_whatever_its_mig_instances_repeat(read):
    copies = [("DCGM_FI_DEV_POWER_USAGE", {**MIG, "GPU_I_ID": str(i), "pod": f"p{i}"}, 300) for i in range(7)]
    frame, quality = read(*copies)
    assert len(frame) == STEPS
    assert set(frame["device"]) == {"gpu0"}
    assert set(frame["pod_uid"]) == {""}
    assert quality.total() == {}
    assert any("MIG" in what and count == 6 for what, count in quality.notes["src"].items())


def test_a_mig_instances_activity_stands_for_its_utilisation_which_dcgm_says_is_zero(read):
    frame, _ = read(("DCGM_FI_DEV_GPU_UTIL", MIG, 0), ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", MIG, 0.5))
    assert frame["value"].to_list() == [0.5] * STEPS


def test_one_of_several_exporters_of_the_same_is_read_the_first_that_has_values(read):
    dcmi, meter = ("ipmi_dcmi_power_consumption_watts", IPMI), ("node_hwmon_power_average_watt", {"instance": "n1", "chip": "acpi000d"})
    frame, quality = read((*meter, 390), (*dcmi, 400))
    assert frame["value"].to_list() == [400] * STEPS
    assert quality.total() == {}
    assert any("node_hwmon_power_average_watt, since ipmi_dcmi" in what for what in quality.notes["src"])
    frame, _ = read((*meter, 390), (*dcmi, 0))
    assert frame["value"].to_list() == [390] * STEPS


def test_memory_has_its_share_where_free_memory_is_exported(read):
    frame, _ = read(("DCGM_FI_DEV_FB_USED", GPU, [10, 20, 30, None]), ("DCGM_FI_DEV_FB_FREE", GPU, [30, 20, None, 0]))
    share = frame[frame["metric"] == "hw.gpu.memory.utilization"]
    assert share["value"].to_list() == [0.25, 0.5]


def test_requests_of_a_service_are_summed_over_code_and_replica_with_each_ones_reset(read):
    series = [
        ("http_requests_total", {"service": "chat", "code": "200", "instance": "a:80"}, [0, 60, 120, 180]),
        ("http_requests_total", {"service": "chat", "code": "500", "instance": "a:80"}, [600, 600, 6, 12]),
        ("http_requests_total", {"service": "chat", "code": "200", "instance": "b:80"}, [None, 6000, 6120, 6240]),
    ]
    frame, quality = read(*series)
    assert set(frame["metric"]) == {"http.server.request.rate"}
    assert frame["value"].to_list() == pytest.approx([1.0, (60 + 6 + 120) / 60, (60 + 6 + 120) / 60])
    assert quality.total() == {"counter_reset": 1}


def test_old_keplers_modes_and_containers_are_summed_to_package_and_pod(read):
    labels = {"instance": "n0:9102", "package": "1"}
    pods = {"instance": "n0:9102", "pod_name": "p", "container_namespace": "ns", "namespace": "kepler", "pod": "kepler-exporter-x1"}
    frame, _ = read(
        ("kepler_node_package_joules_total", {**labels, "mode": "dynamic"}, [0, 600, 1200, 1800]),
        ("kepler_node_package_joules_total", {**labels, "mode": "idle"}, [0, 3000, 6000, 9000]),
        ("kepler_container_package_joules_total", {**pods, "container_name": "a", "mode": "dynamic"}, [0, 60, 120, 180]),
        ("kepler_container_package_joules_total", {**pods, "container_name": "b", "mode": "dynamic"}, [0, 120, 240, 360]),
    )
    assert frame[frame["device"] == "cpu1"]["value"].to_list() == pytest.approx([60.0] * 3)
    pod = frame[frame["device"] == "ns/p/cpu"]
    assert pod["value"].to_list() == pytest.approx([3.0] * 3)
    assert set(pod["pod_uid"]) == {"p"}
    assert set(pod["namespace"]) == {"ns"}


def test_the_exporters_own_pod_is_not_the_workloads(read):
    own = {**GPU, "pod": "nvidia-dcgm-exporter-x1", "namespace": "gpu-operator"}
    frame, _ = read(
        ("DCGM_FI_DEV_POWER_USAGE", {**own, "exported_pod": "train-0", "exported_namespace": "ml"}, 250),
        ("DCGM_FI_DEV_POWER_USAGE", {**own, "gpu": "1"}, 80),
    )
    assert frame[["device", "pod_uid", "namespace"]].astype(str).drop_duplicates().to_numpy().tolist() == [
        ["gpu0", "train-0", "ml"], ["gpu1", "", ""],
    ]  # fmt: skip


def test_numbers_of_gpus_and_labels_of_pods_come_from_series_beside(read):
    frame, quality = read(
        ("nvidia_smi_power_draw_watts", {"uuid": "abc", "instance": "n1:9835"}, 28),
        ("nvidia_smi_index", {"uuid": "abc", "instance": "n1:9835"}, 3),
        ("DCGM_FI_DEV_POWER_USAGE", {**GPU, "pod": "p", "namespace": "ns"}, 250),
        ("kube_pod_labels", {"pod": "p", "namespace": "ns", "label_team": "vision", "label_project": "x"}, 1),
        ("ipmi_up", {"instance": "n1", "collector": "dcmi"}, [1, 0, 0, 1]),
    )
    assert set(frame["device"]) == {"gpu3", "gpu0"}
    assert set(frame[frame["device"] == "gpu0"]["team"]) == {"vision"}
    assert quality.notes["src"]["scrapes at which ipmi_exporter had no answer of a BMC"] == 2


def test_a_node_without_a_meter_is_the_sum_of_its_boards_alone(read):
    frame, _ = read(
        ("DCGM_FI_DEV_POWER_USAGE", GPU, 250),
        ("DCGM_FI_DEV_POWER_USAGE", {**GPU, "gpu": "1"}, 150),
        ("kepler_node_cpu_watts", {"node_name": "n0", "zone": "package"}, 90),
        ("kepler_node_cpu_watts", {"node_name": "n0", "zone": "psys"}, 500),
        ("rPDU2DeviceStatusPower", {"instance": "pdu-a"}, 613),
    )
    found = power(frame, SeriesConfig(freq="1min")).frame
    assert set(found["unique_id"]) == {"power/node/n0", "power/pool/west-a100", "power/site/west"}
    assert np.allclose(found["y"], 400)


def test_processors_alone_make_no_series_of_a_node(read):
    frame, _ = read(("kepler_node_cpu_watts", {"node_name": "n0", "zone": "package"}, 90))
    assert power(frame, SeriesConfig(freq="1min")).frame.empty


def test_a_pdus_watts_may_be_more_than_a_boards(read):
    frame, quality = read(("rPDU2DeviceStatusPower", {"instance": "pdu-a"}, [2000, 20_000, -1, 2000]))
    assert frame["value"].to_list() == [20_000, 20_000]
    assert quality.total() == {"sentinel": 1, "implausible_power": 1}


@pytest.mark.parametrize("odd", [[], [1], {}, True])
def test_parts_that_are_no_numbers_are_counted(tmp_path, context, odd):
    labels = {"__name__": "http_requests_total", "service": "chat", "code": "200"}
    entry = {"metric": labels, "values": [[T0 + 60 * k, "1"] for k in range(3)]}
    other = {"metric": {**labels, "code": "500"}, "values": [[odd, "1"], [odd, "2"]]}
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [entry, other]}}))
    found = READERS["prometheus"].read(path, context)
    assert len(found.tables["samples"]) == 2
    assert found.quality.total() == {"unparseable": 2}


@pytest.mark.parametrize("value", ["1.7e302", "-1.7e302", "+Inf", "1e400"])
def test_a_number_too_large_to_convert_is_counted(read, value):
    frame, quality = read(("DCGM_FI_DEV_FB_USED", GPU, ["1024", value, "1024", "1024"]))
    assert len(frame) == 3
    assert quality.total() == {"unparseable": 1}


def test_every_name_is_a_prometheus_name_and_every_metric_is_canonical():
    assert len(set(METRIC_NAMES)) == len(METRIC_NAMES)
    for name in METRIC_NAMES:
        assert pd.Series([name]).str.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*").all()
    assert {exported.metric for exported in EXPORTED.values()} <= set(METRICS)

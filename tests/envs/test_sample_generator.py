"""The sample generator: reproducible, small, flawed in the numbers it states, and consistent in its energy.

The counts are taken here from the raw text by plain code, without the project's readers.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.cluster_io import load_cluster
from envs.power.curves import levels_for
from envs.sample.build import FILE_KINDS, build_sample, make_scene
from envs.sample.grid import make_grid
from envs.sample.metric_exports import Scene
from envs.sample.settings import INTERVAL_S, NEVER, NODE_FAILURE, SampleSettings, local_weekday
from envs.sample.workload import request_rates, rhythm
from pipelines.make_sample import write_files
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample"
CLUSTER = load_cluster("sample", ROOT / "conf")
MANIFEST = json.loads((SAMPLE / "manifest.json").read_text())


def text_of(name: str) -> str:
    content = (SAMPLE / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(SampleSettings(), CLUSTER)


def series_counts(series: dict[object, list[tuple[int, object]]], counters: set[object] = frozenset()) -> dict[str, int]:
    """Flaws of timing and of counters. ``series``: key -> (unix seconds, value or None) in file order."""
    found: dict[str, int] = defaultdict(int)
    for key, points in series.items():
        times = np.array([time for time, _ in points])
        found["out_of_order"] += int((np.diff(times) < 0).sum())
        last = dict(points)
        found["duplicate"] += len(points) - len(last)
        ordered = np.array(sorted(last))
        missing = np.diff(ordered) // INTERVAL_S - 1
        found["scrape_gap"] += int((missing > 0).sum())
        found["scrape_gap_samples"] += int(missing.sum())
        if key in counters:
            found["counter_reset"] += int((np.diff([float(last[time]) for time in ordered.tolist()]) < 0).sum())
    return {flaw: count for flaw, count in found.items() if count}


def skewed(series: dict[object, list[tuple[int, object]]], node_of) -> set[str]:
    return {node_of(key) for key, points in series.items() if all(time % INTERVAL_S for time, _ in points)}


def test_the_committed_files_are_what_the_generator_writes():
    built = build_sample(SampleSettings(), CLUSTER)
    assert sorted(built) == sorted(path.name for path in SAMPLE.iterdir())
    for name, content in built.items():
        ours = gzip.decompress(content).decode() if name.endswith(".gz") else content.decode()
        assert ours == text_of(name), f"{name} differs from data/sample: run python -m pipelines.make_sample"


def test_a_rerun_gives_the_same_bytes_and_another_seed_does_not():
    settings = SampleSettings(days=3)
    first, second = build_sample(settings, CLUSTER), build_sample(settings, CLUSTER)
    assert first == second
    other = build_sample(SampleSettings(days=3, seed=1), CLUSTER)
    assert all(first[name] != other[name] for name in FILE_KINDS)


def test_the_sample_is_small_and_complete():
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 3_000_000
    assert MANIFEST["files"] == FILE_KINDS
    assert list(MANIFEST["nodes"]) == list(CLUSTER.node_names)
    assert "Synthetic" in (SAMPLE / "README.md").read_text()


def test_prometheus_flaws_are_in_the_text_as_stated():
    result = json.loads(text_of("dcgm_query_range.json.gz"))["data"]["result"]
    series: dict[object, list[tuple[int, object]]] = defaultdict(list)
    found = {"sentinel": 0, "negative_power": 0, "missing_pod_label": 0}
    for entry in result:
        labels = entry["metric"]
        key = (labels["__name__"], labels["Hostname"], labels["gpu"])
        for time, value in entry["values"]:
            series[key].append((time, value))
            found["sentinel"] += value in ("NaN", "-1")
            found["negative_power"] += value.startswith("-") and value != "-1"
            found["missing_pod_label"] += "pod" not in labels and key[0].endswith("GPU_UTIL") and float(value) > 0
    for points in series.values():
        points.sort(key=lambda point: point[0])  # two label sets of one device
    counters = {key for key in series if key[0].endswith("ENERGY_CONSUMPTION")}
    assert {**found, **series_counts(series, counters)} == MANIFEST["planted"]["dcgm_query_range.json.gz"]


def test_otlp_flaws_are_in_the_text_as_stated():
    series: dict[object, list[tuple[int, object]]] = defaultdict(list)
    found: dict[str, int] = defaultdict(int)
    counters = set()
    seen = set()
    for line in text_of("otel_metrics.jsonl.gz").splitlines():
        for resource in json.loads(line)["resourceMetrics"]:
            source = resource["resource"]["attributes"][0]["value"]["stringValue"]
            for metric in resource["scopeMetrics"][0]["metrics"]:
                body = metric.get("gauge") or metric["sum"]
                for point in body["dataPoints"]:
                    attributes = {a["key"]: a["value"]["stringValue"] for a in point.get("attributes", [])}
                    key = (metric["name"], source, attributes.get("hw.id"))
                    value = point.get("asInt", point.get("asDouble"))
                    time = int(point["timeUnixNano"]) // 10**9
                    series[key].append((time, value))
                    if "sum" in metric:
                        counters.add(key)
                    if (key, time) in seen:
                        continue
                    seen.add((key, time))
                    found["sentinel"] += value is None
                    found["unit_converted"] += metric["unit"] == "kW"
                    found["missing_pod_label"] += key[0] == "hw.gpu.utilization" and value > 0 and "k8s.pod.name" not in attributes
    found["clock_skew"] = len(skewed(series, lambda key: key[1]))
    assert {**found, **series_counts(series, counters)} == MANIFEST["planted"]["otel_metrics.jsonl.gz"]


def test_ipmi_flaws_are_in_the_text_as_stated():
    series: dict[object, list[tuple[int, object]]] = defaultdict(list)
    found: dict[str, int] = defaultdict(int)
    for block in re.split(r"^=== ", text_of("ipmi_nodes.txt.gz"), flags=re.M)[1:]:
        node, stamp = block.split()[:2]
        series[node].append((int(datetime.fromisoformat(stamp).timestamp()), None))
        reading = re.search(r"Average power reading over sample period:\s+(.*)", block)
        if reading is None:
            found["unparseable"] += 1
        elif reading[1] in ("No reading", "-1 Watts"):
            found["sentinel"] += 1
        else:
            watts = int(reading[1].removesuffix(" Watts"))
            found["negative_power"] += watts < 0
            found["implausible_power"] += watts > 20_000
    found["clock_skew"] = len(skewed(series, str))
    assert {**found, **series_counts(series)} == MANIFEST["planted"]["ipmi_nodes.txt.gz"]
    assert set(series) == set(CLUSTER.node_names)


def test_job_and_grid_flaws_are_in_the_text_as_stated():
    head, *rows = [line.split("|") for line in text_of("sacct.txt.gz").splitlines()]
    ids = [row[0] for row in rows]
    found = {"unparseable": sum(len(row) < len(head) for row in rows), "duplicate": len(ids) - len(set(ids))}
    assert found == MANIFEST["planted"]["sacct.txt.gz"]
    names = [item["metadata"]["name"] for item in json.loads(text_of("k8s_jobs.json.gz"))["items"]]
    assert {"duplicate": len(names) - len(set(names))} == MANIFEST["planted"]["k8s_jobs.json.gz"]
    grid = [line.split(",") for line in text_of("grid.csv").splitlines()[1:]]
    keys = [tuple(row[:2]) for row in grid]
    counted = {"sentinel": sum(cell == "" for row in grid for cell in row), "duplicate": len(keys) - len(set(keys))}
    assert counted == MANIFEST["planted"]["grid.csv"]


def test_a_node_draws_the_sum_of_its_parts(scene: Scene):
    watts = scene.watts
    by_node = watts.gpu_w.reshape(len(CLUSTER.node_names), -1, scene.settings.bins).sum(axis=1)
    np.testing.assert_allclose(watts.node_w, by_node + watts.cpu_w + watts.node_idle_w, rtol=1e-12)
    running = np.array([pool.node_idle_w for pool in CLUSTER.pools for _ in range(pool.nodes)])
    failed = CLUSTER.node_names.index(NODE_FAILURE[0])
    assert (watts.node_idle_w[np.arange(12) != failed] == running[np.arange(12) != failed, None]).all()
    assert watts.node_w[failed].min() == 14.0


def test_energy_counter_integrates_the_exported_power():
    result = json.loads(text_of("dcgm_query_range.json.gz"))["data"]["result"]
    of = {
        name: {
            time: float(value)
            for entry in result
            if entry["metric"]["__name__"] == name and entry["metric"]["Hostname"] == "west-v100-0000" and entry["metric"]["gpu"] == "0"
            for time, value in entry["values"]
        }
        for name in ("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")
    }
    power_w, energy_mj = of.values()
    steps = [
        (power_w[t], (energy_mj[t] - energy_mj[t - INTERVAL_S]) / 1000 / INTERVAL_S)
        for t in energy_mj
        if t - INTERVAL_S in energy_mj and power_w.get(t, -1) > 0 and energy_mj[t] > energy_mj[t - INTERVAL_S]
    ]
    assert len(steps) > 5500
    assert np.mean([abs(a - b) > 0.5 for a, b in steps]) < 0.002  # duplicates with a stale first value


def test_gpu_watts_stay_between_idle_and_the_measured_curve(scene: Scene):
    gpus = 4
    for p, pool in enumerate(CLUSTER.pools):
        watts = scene.watts.gpu_w[p * pool.nodes * gpus : (p + 1) * pool.nodes * gpus]
        top_w = levels_for(pool.gpu_model, (1.0,))[1].max()
        assert watts[watts > 0].min() > 0.85 * pool.gpu_idle_w
        assert watts.max() < 1.08 * top_w
        assert watts.max() > 0.85 * top_w


def test_no_gpu_is_held_beyond_its_capacity(scene: Scene):
    jobs = scene.replay.jobs
    events: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for share in scene.replay.shares:
        events[share.device] += [(int(jobs["start_s"][share.job]), share.milli), (int(jobs["run_until_s"][share.job]), -share.milli)]
    for changes in events.values():
        held = np.cumsum([milli for _, milli in sorted(changes)])
        assert held.max() <= 1000
        assert held.min() >= 0


def test_gangs_get_all_their_gpus_in_one_pool_of_their_site(scene: Scene):
    jobs = scene.replay.jobs
    started = jobs[jobs["start_s"] < NEVER]
    milli = pd.Series([share.milli for share in scene.replay.shares]).groupby([share.job for share in scene.replay.shares]).sum()
    wanted = (1000 * started["gpus"] * started["workers"]).round().astype(int)
    assert milli.loc[started.index].tolist() == wanted.tolist()
    assert (started["start_s"] >= started["submit_s"]).all()
    site = {pool.name: pool.site for pool in CLUSTER.pools}
    assert (started["pool"].map(site) == started["site"]).all()
    model = {pool.name: pool.gpu_model for pool in CLUSTER.pools}
    asked = started[started["gpu_model"].notna()]
    assert (asked["pool"].map(model) == asked["gpu_model"]).all()


def test_the_work_is_what_was_asked_for(scene: Scene):
    jobs = scene.replay.jobs
    assert 4000 <= len(jobs) <= 6000
    assert set(jobs["kind"]) == set(WORKLOAD_CLASSES)
    started = jobs[jobs["start_s"] < NEVER]
    busy_s = (started["run_until_s"] - started["start_s"].clip(lower=0)) * started["gpus"] * started["workers"]
    assert 0.52 < busy_s.sum() / (CLUSTER.total_gpus * scene.settings.length_s) < 0.66
    assert (started["start_s"] - started["submit_s"]).quantile(0.97) > 3600  # peaks queue
    assert {0.25, 0.5, 1.0, 2.0, 4.0} == set(jobs["gpus"])
    assert (jobs["gpus"] * jobs["workers"]).max() == 8
    fractional = jobs.loc[jobs["gpus"] < 1, "kind"]
    assert set(fractional) <= {"realtime_inference", "interactive"}
    assert jobs["deadline_s"].notna().mean() > 0.1
    assert jobs["max_watts"].notna().sum() > 30
    finished = jobs[jobs["state"] == "completed"]
    asked = finished["requested_s"] / finished["duration_s"]
    assert asked.min() >= 1
    assert asked.median() > 1.5
    assert (started["run_until_s"] - started["start_s"]).max() < 22 * 3600


def test_a_job_keeps_its_watt_limit_at_some_level(scene: Scene):
    limited = scene.replay.jobs[scene.replay.jobs["max_watts"].notna()]
    floor_w = {pool.gpu_model: levels_for(pool.gpu_model, CLUSTER.level_fractions)[1][-1] for pool in CLUSTER.pools}
    for job in limited.itertuples():
        best = min(power_w[CLASS_INDEX[job.kind]] for power_w in floor_w.values()) * job.gpus * job.workers
        assert best <= job.max_watts


def test_rhythm_trend_holiday_and_incidents_are_present(scene: Scene):
    jobs, settings = scene.replay.jobs, scene.settings
    arrived = jobs[jobs["submit_s"] >= 0]
    weekend = local_weekday(arrived["submit_s"].to_numpy(), "west") >= 5
    assert (weekend.sum() / 2) < 0.65 * ((~weekend).sum() / 5)
    power = scene.watts.node_w.sum(axis=0)
    assert np.corrcoef(power[1008:], power[:-1008])[0, 1] > 0.3  # the week
    assert 0.4 < np.corrcoef(power[18:], power[:-18])[0, 1] < 0.95  # forecastable, not trivially
    holiday = settings.second_of("2026-01-19T12:00") + np.arange(0, 43_200, 600)
    before = holiday - 7 * 86_400
    assert (
        rhythm("training", holiday, "west", settings.start_time).mean()
        < 0.7 * rhythm("training", before, "west", settings.start_time).mean()
    )
    rates = request_rates(settings)
    outage = settings.second_of("2026-02-04T17:00") // INTERVAL_S
    assert all(rate[outage] < 0.1 * np.median(rate) for rate in rates.values())
    for rate in rates.values():
        assert np.corrcoef(rate[144:], rate[:-144])[0, 1] > 0.4  # the day
    assert (jobs["state"] == "node_fail").any()


def test_grid_has_its_shapes():
    grid = make_grid(SampleSettings())
    assert not grid.duplicated(["time", "site"]).any()
    hour = grid["time"].dt.hour
    west, east = grid["site"] == "west", grid["site"] == "east"
    noon, evening = hour.isin([19, 20, 21]), hour.isin([2, 3])  # UTC; Pacific 11-13 h and 18-19 h
    for column, factor in (("price_usd_per_kwh", 2.0), ("carbon_g_per_kwh", 1.3)):
        assert grid.loc[west & evening, column].mean() > factor * grid.loc[west & noon, column].mean()
    night, day = hour.isin([6, 7, 8]), hour.isin([14, 15, 23])  # Eastern 1-3 h
    assert grid.loc[east & night, "price_usd_per_kwh"].mean() < 0.75 * grid.loc[east & day, "price_usd_per_kwh"].mean()
    assert grid.loc[east, "temperature_c"].mean() < grid.loc[west, "temperature_c"].mean()
    assert grid["renewable_fraction"].between(0, 1).all()
    assert grid["price_usd_per_kwh"].max() > 0.25
    start = pd.Timestamp(SampleSettings().start)
    assert grid["time"].min() <= start - pd.Timedelta(days=7)
    assert grid["time"].max() >= start + pd.Timedelta(days=48)


def test_settings_and_folder_errors_are_clear(tmp_path: Path):
    with pytest.raises(InputError, match="days=0"):
        SampleSettings(days=0)
    with pytest.raises(InputError, match="zone"):
        SampleSettings(start="2026-01-05")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="out=DIR"):
        write_files({"a.txt": b"x"}, tmp_path / "file")
    write_files({"a.txt": b"x"}, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]

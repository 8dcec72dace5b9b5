"""Writers of the metric exports: Prometheus answer, OTLP/JSON lines, ipmitool text. Each plants its flaws and returns text and counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.sample.flaws import Planted, failure_bins, scaled
from envs.sample.replay import Replay, Watts
from envs.sample.settings import INTERVAL_S, SampleSettings

MODEL_NAMES = {"V100": "Tesla V100-PCIE-16GB", "A40": "NVIDIA A40"}
IPMI_SKEW = ("west-a40-0002", 137)
OTLP_SKEW = ("east-a40-0002", 95)


@dataclass(frozen=True)
class Scene:
    """Everything the writers draw from. ``request_rate``: requests a second by service, ``[T]``."""

    settings: SampleSettings
    cluster: ClusterSpec
    replay: Replay
    watts: Watts
    request_rate: dict[str, np.ndarray]

    def times(self) -> np.ndarray:
        """Unix seconds of the samples: the ends of the intervals, int64 ``[T]``."""
        return self.settings.start_s + INTERVAL_S * np.arange(1, self.settings.bins + 1)

    def nodes_of(self, site: str) -> list[tuple[int, str, str]]:
        """(node index, node name, GPU model) of a site."""
        models = [(pool.site, pool.gpu_model) for pool in self.cluster.pools for _ in range(pool.nodes)]
        return [(i, name, models[i][1]) for i, name in enumerate(self.cluster.node_names) if models[i][0] == site]

    def gpu_watts(self, node: int, gpu: int) -> np.ndarray:
        """Board watts in whole watts, int64 ``[T]``."""
        return np.rint(self.watts.gpu_w[node * self.replay.gpus_per_node + gpu]).astype(np.int64)


def _uuid(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"


def _counter(step: np.ndarray, first: int, resets: list[int]) -> np.ndarray:
    """A counter that grows by ``step`` and restarts from 0 in the given bins, int64 ``[T]``."""
    total = first + np.cumsum(step)
    for bin_index in resets:
        total[bin_index:] -= total[bin_index] - step[bin_index] // 3
    return total


# Prometheus ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Series:
    source: str
    labels: dict[str, str]
    times: np.ndarray
    values: list[str]
    keep: np.ndarray
    bare: np.ndarray
    doubled: dict[int, str]


def prometheus_text(scene: Scene) -> tuple[str, dict[str, int]]:
    """The answer to a range query over the recorded 10-minute means of the west GPUs.

    Power of every GPU; utilisation of all GPUs and the energy counter of GPU 0 on the first node of each pool.
    """
    nodes = scene.nodes_of("west")
    planted = Planted(scene.settings.bins, tuple(name for _, name, _ in nodes), scene.settings.rng("flaws_prometheus"))
    series: list[_Series] = []
    for node, name, model in nodes:
        with_utilization = name.endswith("-0000")
        for gpu in range(scene.replay.gpus_per_node):
            series.append(_prometheus_series(scene, "DCGM_FI_DEV_POWER_USAGE", name, model, gpu, scene.gpu_watts(node, gpu)))
            if with_utilization:
                percent = np.rint(100 * scene.watts.utilization[node * scene.replay.gpus_per_node + gpu]).astype(np.int64)
                series.append(_prometheus_series(scene, "DCGM_FI_DEV_GPU_UTIL", name, model, gpu, percent))
        if with_utilization:
            step = scene.gpu_watts(node, 0) * INTERVAL_S * 1000
            resets = sorted(planted.pick((name,)) for _ in range(scaled(3, scene.settings)))
            planted.counts["counter_reset"] += len(resets)
            counter = _counter(step, int(planted.rng.integers(1, 9)) * 10**11, resets)
            series.append(_prometheus_series(scene, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", name, model, 0, counter))
    _plant_prometheus(scene.settings, planted, series)
    result = [entry for one in series for entry in _entries(one)]
    answer = {"status": "success", "data": {"resultType": "matrix", "result": result}}
    return json.dumps(answer, separators=(",", ":")), dict(planted.counts)


def _prometheus_series(scene: Scene, metric: str, node: str, model: str, gpu: int, values: np.ndarray) -> _Series:
    labels = {
        "__name__": metric,
        "gpu": str(gpu),
        "UUID": _uuid(f"{node}/{gpu}"),
        "device": f"nvidia{gpu}",
        "modelName": MODEL_NAMES[model],
        "Hostname": node,
        "pod": f"slurm-worker-{node}",
        "namespace": "slurm",
        "container": "slurmd",
    }
    T = scene.settings.bins
    return _Series(node, labels, scene.times(), [str(v) for v in values.tolist()], np.ones(T, dtype=bool), np.zeros(T, dtype=bool), {})


def _plant_prometheus(settings: SampleSettings, planted: Planted, series: list[_Series]) -> None:
    gauges = [one for one in series if not one.labels["__name__"].endswith("CONSUMPTION")]
    power = [one for one in series if one.labels["__name__"].endswith("POWER_USAGE")]
    utilization = [one for one in series if one.labels["__name__"].endswith("GPU_UTIL")]
    failure = failure_bins(settings)
    if failure and failure[0] in planted.sources:
        _silence(planted, series, failure[0], len(failure[1]), failure[1].start)
    for _ in range(scaled(14, settings)):
        _silence(planted, series, planted.any_source(), int(planted.rng.integers(1, 9)))
    busy = [one for one in utilization if sum(int(value) > 0 for value in one.values) > settings.bins // 4]
    for _ in range(scaled(6, settings)):
        _lose_pod(planted, series, _any(planted, busy), int(planted.rng.integers(4, 30)))
    for count, mark in ((70, "NaN"), (25, "-1")):
        for _ in range(scaled(count, settings)):
            one = _any(planted, gauges)
            one.values[planted.pick((one.source,))] = mark
            planted.counts["sentinel"] += 1
    for _ in range(scaled(5, settings)):
        one = _any(planted, power)
        one.values[planted.pick((one.source,))] = f"-{int(planted.rng.integers(2, 40))}"
        planted.counts["negative_power"] += 1
    for _ in range(scaled(40, settings)):
        _double(planted, _any(planted, gauges))


def _any(planted: Planted, series: list[_Series]) -> _Series:
    return series[int(planted.rng.integers(len(series)))]


def _silence(planted: Planted, series: list[_Series], node: str, length: int, begin: int | None = None) -> None:
    """The exporter of a node did not answer."""
    of_node = [one for one in series if one.source == node]
    silent = planted.gap(node, length, len(of_node), begin)
    for one in of_node:
        one.keep[silent.start : silent.stop] = False


def _lose_pod(planted: Planted, series: list[_Series], one: _Series, length: int) -> None:
    """The exporter lost the pod mapping of a device for some hours, in every metric of the device."""
    begin = planted.pick((one.source,), length, wanted=np.array([int(value) > 0 for value in one.values]))
    for twin in series:
        if (twin.source, twin.labels["gpu"]) == (one.source, one.labels["gpu"]):
            twin.bare[begin : begin + length] = True
    planted.counts["missing_pod_label"] += sum(int(value) > 0 for value in one.values[begin : begin + length])


def _double(planted: Planted, one: _Series) -> None:
    """A sample that comes twice; when the two differ the first is stale, the last one in file order is right."""
    begin = planted.pick((one.source,))
    one.doubled[begin] = one.values[begin]
    if planted.rng.random() >= 0.7:
        one.values[begin] = str(max(int(one.values[begin]) - 3, 0))
    planted.counts["duplicate"] += 1


def _entries(one: _Series) -> Iterator[dict[str, object]]:
    """One result entry per label set: the samples without pod labels are a series of their own, as in a real answer."""
    for bare in (False, True):
        chosen = np.flatnonzero(one.keep & (one.bare == bare))
        if not len(chosen):
            continue
        values: list[list[object]] = []
        for i in chosen.tolist():
            values.append([int(one.times[i]), one.values[i]])
            if i in one.doubled:
                values.append([int(one.times[i]), one.doubled[i]])
        drop = ("pod", "namespace", "container") if bare else ()
        yield {"metric": {key: value for key, value in one.labels.items() if key not in drop}, "values": values}


# OpenTelemetry ------------------------------------------------------------------------------------------------------------------------


def otlp_text(scene: Scene) -> tuple[str, dict[str, int]]:
    """OTLP/JSON lines of the east pool, one export a scrape.

    Power of every GPU; utilisation of all GPUs and the energy counter of GPU 0 on the first node; request counters of the services.
    """
    nodes = scene.nodes_of("east")
    services = tuple(scene.request_rate)
    settings = scene.settings
    planted = Planted(settings.bins, (*(name for _, name, _ in nodes), *services), settings.rng("flaws_otlp"))
    first = nodes[0][1]
    resets = {name: [planted.pick((name,))] for name in (first, services[0], services[-1])}
    planted.counts["counter_reset"] += len(resets)
    counters = {first: _counter(scene.gpu_watts(nodes[0][0], 0) * INTERVAL_S, 3 * 10**8, resets[first])}
    requests = settings.rng("request_counts")
    for service in services:
        arrived = requests.poisson(scene.request_rate[service] * INTERVAL_S)
        counters[service] = _counter(arrived, int(requests.integers(10**6)), resets.get(service, []))
    silent, bare, kilowatt, blank = _plant_otlp(scene, planted, first, services)
    pods = _pod_names(scene)
    times = scene.times()
    lines = []
    for i in range(settings.bins):
        resources = [
            _node_resource(scene, node, name, i, int(times[i]), counters if name == first else {}, pods, bare, kilowatt, blank)
            for node, name, _ in nodes
            if i not in silent[name]
        ]
        resources += [
            _service_resource(service, int(times[i]), int(counters[service][i])) for service in services if i not in silent[service]
        ]
        lines.append(json.dumps({"resourceMetrics": resources}, separators=(",", ":")))
    per_line = len(nodes) * scene.replay.gpus_per_node + scene.replay.gpus_per_node + 1 + len(services)
    return "\n".join(_shuffle_lines(planted, settings, lines, per_line)) + "\n", dict(planted.counts)


def _plant_otlp(
    scene: Scene, planted: Planted, first: str, services: tuple[str, ...]
) -> tuple[dict[str, set[int]], set[tuple[str, int, int]], set[tuple[str, int]], set[tuple[str, int, int]]]:
    """Silent bins by source; (node, gpu, bin) without pod attributes; (node, bin) in kW; (node, gpu, bin) without a value."""
    settings, gpus = scene.settings, scene.replay.gpus_per_node
    silent: dict[str, set[int]] = {name: set() for name in planted.sources}
    for _ in range(scaled(9, settings)):
        source = planted.any_source()
        series = 1 if source in services else gpus + (gpus + 1 if source == first else 0)
        silent[source].update(planted.gap(source, int(planted.rng.integers(1, 7)), series))
    bare: set[tuple[str, int, int]] = set()
    node = scene.cluster.node_names.index(first)
    for _ in range(scaled(5, settings)):
        gpu, length = int(planted.rng.integers(gpus)), int(planted.rng.integers(4, 25))
        used = np.round(scene.watts.utilization[node * gpus + gpu], 2) > 0
        begin = planted.pick((first,), length, wanted=used)
        bare.update((first, gpu, i) for i in range(begin, begin + length))
        planted.counts["missing_pod_label"] += int(used[begin : begin + length].sum())
    kilowatt: set[tuple[str, int]] = set()
    changed = OTLP_SKEW[0]
    length = min(36, settings.bins // 12)
    begin = planted.pick((changed,), length)
    kilowatt.update((changed, i) for i in range(begin, begin + length))
    planted.counts["unit_converted"] += length * gpus
    blank: set[tuple[str, int, int]] = set()
    for _ in range(scaled(24, settings)):
        source = planted.any_source("east-")
        blank.add((source, int(planted.rng.integers(gpus)), planted.pick((source,))))
        planted.counts["sentinel"] += 1
    planted.counts["clock_skew"] += 1
    return silent, bare, kilowatt, blank


def _pod_names(scene: Scene) -> list[tuple[str, str]]:
    """(pod, namespace) of every job row."""
    jobs = scene.replay.jobs
    tails = [hashlib.sha256(f"pod{i}".encode()).hexdigest()[:5] for i in range(len(jobs))]
    return [(f"{name}-{tail}", f"team-{team}") for name, tail, team in zip(jobs["job_id"], tails, jobs["team"], strict=True)]


def _attribute(key: str, value: str) -> dict[str, object]:
    return {"key": key, "value": {"stringValue": value}}


def _node_resource(
    scene: Scene,
    node: int,
    name: str,
    i: int,
    time_s: int,
    counters: dict[str, np.ndarray],
    pods: list[tuple[str, str]],
    bare: set[tuple[str, int, int]],
    kilowatt: set[tuple[str, int]],
    blank: set[tuple[str, int, int]],
) -> dict[str, object]:
    gpus = scene.replay.gpus_per_node
    nanos = f"{time_s + (OTLP_SKEW[1] if name == OTLP_SKEW[0] else 0)}000000000"
    power, use = [], []
    in_kilowatt = (name, i) in kilowatt
    for gpu in range(gpus):
        d = node * gpus + gpu
        attributes = [_attribute("hw.id", f"gpu{gpu}")]
        holder = int(scene.watts.holder[d, i])
        if holder >= 0 and (name, gpu, i) not in bare:
            attributes += [_attribute("k8s.pod.name", pods[holder][0]), _attribute("k8s.namespace.name", pods[holder][1])]
        watts = round(float(scene.watts.gpu_w[d, i]))
        reading: dict[str, object] = {"asDouble": watts / 1000} if in_kilowatt else {"asInt": str(watts)}
        if (name, gpu, i) in blank:
            reading = {"flags": 1}
        power.append({"attributes": attributes, "timeUnixNano": nanos, **reading})
        use.append({"attributes": attributes, "timeUnixNano": nanos, "asDouble": round(float(scene.watts.utilization[d, i]), 2)})
    metrics: list[dict[str, object]] = [{"name": "hw.power", "unit": "kW" if in_kilowatt else "W", "gauge": {"dataPoints": power}}]
    if counters:
        metrics.append({"name": "hw.gpu.utilization", "unit": "1", "gauge": {"dataPoints": use}})
        energy = {"attributes": [_attribute("hw.id", "gpu0")], "timeUnixNano": nanos, "asInt": str(int(counters[name][i]))}
        metrics.append(
            {"name": "hw.energy", "unit": "J", "sum": {"dataPoints": [energy], "aggregationTemporality": 2, "isMonotonic": True}}
        )
    return {
        "resource": {"attributes": [_attribute("host.name", name)]},
        "scopeMetrics": [{"scope": {"name": "hw.gpu"}, "metrics": metrics}],
    }


def _service_resource(service: str, time_s: int, count: int) -> dict[str, object]:
    point = {"timeUnixNano": f"{time_s}000000000", "asInt": str(count)}
    total = {"dataPoints": [point], "aggregationTemporality": 2, "isMonotonic": True}
    return {
        "resource": {"attributes": [_attribute("service.name", service), _attribute("service.namespace", "serving")]},
        "scopeMetrics": [
            {"scope": {"name": "http"}, "metrics": [{"name": "http.server.request.count", "unit": "{request}", "sum": total}]}
        ],
    }


def _shuffle_lines(planted: Planted, settings: SampleSettings, lines: list[str], per_line: int) -> list[str]:
    """Late exports (a line after its successor) and retried exports (a line twice)."""
    for _ in range(scaled(8, settings)):
        i = planted.pick(planted.sources, 2)
        lines[i], lines[i + 1] = lines[i + 1], lines[i]
        planted.counts["out_of_order"] += per_line
    twice = {planted.pick(planted.sources) for _ in range(scaled(5, settings))}
    planted.counts["duplicate"] += per_line * len(twice)
    return [line for i, line in enumerate(lines) for _ in range(2 if i in twice else 1)]


# IPMI ---------------------------------------------------------------------------------------------------------------------------------


def ipmi_text(scene: Scene) -> tuple[str, dict[str, int]]:
    """Blocks of ``ipmitool dcmi power reading`` per node and scrape, in the order in which a collecting script writes them."""
    settings, names = scene.settings, scene.cluster.node_names
    planted = Planted(settings.bins, names, settings.rng("flaws_ipmi"))
    noise = settings.rng("ipmi_noise").normal(0.0, 1.0, size=scene.watts.node_w.shape)
    # A board controller's meter: 0.4 % of the reading and a watt or two.
    watts = np.maximum(np.rint(scene.watts.node_w * (1 + 0.004 * noise) + 1.5 * noise), 1).astype(np.int64)
    readings = [[f"{value} Watts" for value in row] for row in watts.tolist()]
    silent: set[tuple[int, int]] = set()
    broken: set[tuple[int, int]] = set()
    doubled: set[tuple[int, int]] = set()
    late: set[tuple[int, int]] = set()
    place = {name: n for n, name in enumerate(names)}

    def somewhere(length: int = 1) -> tuple[int, int]:
        name = planted.any_source()
        return place[name], planted.pick((name,), length)

    for _ in range(scaled(16, settings)):
        name = planted.any_source()
        silent.update((place[name], i) for i in planted.gap(name, int(planted.rng.integers(1, 7)), 1))
    for count, flaw, text in ((26, "sentinel", "No reading"), (10, "sentinel", "-1 Watts"), (4, "implausible_power", "65535 Watts")):
        for _ in range(scaled(count, settings)):
            n, i = somewhere()
            readings[n][i] = text
            planted.counts[flaw] += 1
    for _ in range(scaled(6, settings)):
        n, i = somewhere()
        readings[n][i] = f"-{int(planted.rng.integers(2, 60))} Watts"
        planted.counts["negative_power"] += 1
    for count, flaw, chosen in ((8, "unparseable", broken), (15, "duplicate", doubled), (10, "out_of_order", late)):
        for _ in range(scaled(count, settings)):
            chosen.add(somewhere(2))
            planted.counts[flaw] += 1
    planted.counts["clock_skew"] += 1
    stamps = pd.to_datetime(scene.times(), unit="s")
    plain = stamps.strftime("%Y-%m-%dT%H:%M:%SZ").tolist()
    skewed = (stamps + pd.Timedelta(seconds=IPMI_SKEW[1])).strftime("%Y-%m-%dT%H:%M:%SZ").tolist()
    blocks: list[str] = []
    for i in range(settings.bins):
        delayed = [(n, i - 1) for n, _ in enumerate(names) if (n, i - 1) in late]
        for n, at in [(n, i) for n in range(len(names)) if (n, i) not in late] + delayed:
            if (n, at) in silent:
                continue
            stamp = (skewed if names[n] == IPMI_SKEW[0] else plain)[at]
            block = _ipmi_block(names[n], stamp, readings[n][at], (n, at) in broken)
            blocks.extend([block] * (2 if (n, at) in doubled else 1))
    return "\n".join(blocks), dict(planted.counts)


def _ipmi_block(node: str, stamp: str, reading: str, broken: bool) -> str:
    head = f"=== {node} {stamp}\n"
    if broken:
        return head + "Error: Unable to establish IPMI v2 / RMCP+ session\n"
    return (
        f"{head}    Average power reading over sample period:      {reading}\n"
        "    Sampling period:                               00000600 Seconds.\n"
        "    Power reading state is:                        activated\n"
    )

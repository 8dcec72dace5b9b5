"""From series as Prometheus exporters label them to raw points: one source per device, parts summed, copies left out, each told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from telemetry.quality import QualityReport
from telemetry.raw import GOOD, Labels, RawSamples, parse_times, parse_values, text_of
from telemetry.readers.prometheus_metrics import (
    BMC_UP,
    EXPORTED,
    FREE_MEMORY,
    GPU_NUMBER,
    POD_LABELS,
    RANK,
    USED_MEMORY,
    Exported,
    namespace_of,
    node_of,
    pod_of,
)  # fmt: skip
from telemetry.readers.sums import add_sum
from telemetry.units import METRICS

ZERO = ("0", "0.0", 0, 0.0)


@dataclass
class Series:
    """One series of an export: N times in seconds and N values, as exported."""

    name: str
    labels: Mapping[str, str]
    times: list[Any]
    values: list[Any]


@dataclass
class _Read:
    series: Series
    exported: Exported
    labels: Labels


@dataclass
class _Beside:
    """What some series tell of others."""

    gpu_number: dict[str, str] = field(default_factory=dict)
    pod_labels: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    free: dict[tuple[str, str], list[Series]] = field(default_factory=dict)


def add_series(found: Sequence[Series], raw: RawSamples, quality: QualityReport) -> None:
    """Add the points of all series that are read to ``raw``; what is not read is noted in ``quality``."""
    beside = _beside(found, raw.source, quality)
    groups: dict[tuple[str, str, str, str], list[_Read]] = {}
    for series in found:
        exported = EXPORTED.get(series.name)
        if exported is None:
            if series.name not in (FREE_MEMORY, GPU_NUMBER, POD_LABELS, BMC_UP):
                quality.note(raw.source, f"series of metric {series.name}, which is not read")
            continue
        device = exported.device(series.labels)
        if device is None:
            quality.note(raw.source, f"series of metric {series.name} of a part that lies within another or is unknown, not read")
            continue
        read = _Read(series, exported, _labels(exported, device, series.labels, beside))
        groups.setdefault(read.labels.identity, []).append(read)
    for group in groups.values():
        _add_group(group, raw, quality)
    _add_memory_share(groups, beside, raw)


def _add_group(group: list[_Read], raw: RawSamples, quality: QualityReport) -> None:
    """Add the series of one identity: those of the best-ranked metric that has a value."""
    usable = [read for read in group if _has_value(read)] if len({read.series.name for read in group}) > 1 else []
    best = min((read.series.name for read in usable or group), key=RANK.__getitem__)
    chosen = [read for read in group if read.series.name == best]
    for read in group:
        if read.series.name != best:
            quality.note(raw.source, f"series of metric {read.series.name}, since {best} measures the same")
    if len(chosen) > 1 and chosen[0].exported.parts:
        add_sum([(read.labels, read.series.times, _values(read)) for read in chosen], raw, quality)
        quality.note(raw.source, f"series of metric {best} that were summed with others of the same", len(chosen))
    elif chosen[0].exported.board and any(text_of(read.series.labels, "GPU_I_ID") for read in chosen):
        _add_board(chosen, raw, quality)
    else:
        for read in chosen:
            raw.add_block(read.labels, read.series.times, _values(read))


def _has_value(read: _Read) -> bool:
    """Whether a point says something; DCGM counts no GPU utilisation of a MIG instance and says 0 (dcgm-exporter issue 216)."""
    _, state = parse_values(_values(read))
    silent = read.series.name == "DCGM_FI_DEV_GPU_UTIL" and bool(text_of(read.series.labels, "GPU_I_ID"))
    return bool((state == GOOD).any()) and not silent


def _values(read: _Read) -> Sequence[Any]:
    if not read.exported.zero_is_blank:
        return read.series.values
    return [None if value in ZERO else value for value in read.series.values]


def _add_board(chosen: list[_Read], raw: RawSamples, quality: QualityReport) -> None:
    """A board's reading, which DCGM repeats for each of its MIG instances (dcgm-exporter issue 257): once, and of no one's pod."""
    points: dict[Any, Any] = {}
    for read in chosen:
        for time, value in zip(read.series.times, read.series.values, strict=True):
            points.setdefault(_key(time), (time, value))
    labels = chosen[0].labels._replace(pod="", namespace="", team="", project="")
    raw.add_block(labels, [time for time, _ in points.values()], [value for _, value in points.values()])
    if len(chosen) > 1:
        quality.note(raw.source, f"series of metric {chosen[0].series.name} that repeat the board's for a MIG instance", len(chosen) - 1)


def _key(time: Any) -> Any:
    return time if isinstance(time, int | float | str) else str(time)


def _add_memory_share(groups: Mapping[tuple[str, str, str, str], list[_Read]], beside: _Beside, raw: RawSamples) -> None:
    """Share of a GPU's memory in use, at the times that have both used and free memory."""
    for (metric, node, device, _), group in groups.items():
        free = beside.free.get((node, device))
        if metric != "hw.gpu.memory.usage" or free is None:
            continue
        known = {time: value for series in free for time, value in _good_points(series)}
        for read in (read for read in group if read.series.name == USED_MEMORY):
            both = [(time, used, known[time]) for time, used in _good_points(read.series) if time in known]
            share = [(time / 1e9, used / (used + rest)) for time, used, rest in both if used + rest > 0]
            if share:
                labels = read.labels._replace(metric="hw.gpu.memory.utilization", unit="1", native_unit="1")
                raw.add_block(labels, [time for time, _ in share], [value for _, value in share])


def _good_points(series: Series) -> list[tuple[int, float]]:
    """Times (ns) and values that can be true: numbers from 0."""
    (values, state), (times, bad) = parse_values(series.values), parse_times(series.times)
    good = (state == GOOD) & ~bad & (values >= 0)
    return list(zip(times[good].tolist(), values[good].tolist(), strict=True))


def _beside(found: Sequence[Series], source: str, quality: QualityReport) -> _Beside:
    beside = _Beside()
    for series in found:
        labels = series.labels
        if series.name == POD_LABELS:
            beside.pod_labels[namespace_of(labels), pod_of(labels)] = labels
        elif series.name == GPU_NUMBER:
            numbers, state = parse_values(series.values)
            if (state == GOOD).any() and text_of(labels, "uuid"):
                beside.gpu_number[text_of(labels, "uuid")] = f"{numbers[state == GOOD][-1]:.0f}"
        elif series.name == FREE_MEMORY:
            beside.free.setdefault((node_of(labels), EXPORTED[USED_MEMORY].device(labels) or ""), []).append(series)
        elif series.name == BMC_UP:
            numbers, _ = parse_values(series.values)
            quality.note(source, "scrapes at which ipmi_exporter had no answer of a BMC", int((numbers == 0).sum()))
    return beside


def _labels(exported: Exported, device: str, labels: Mapping[str, str], beside: _Beside) -> Labels:
    """Canonical labels of a Prometheus label set."""
    node, service, pod, namespace = node_of(labels), "", "", ""
    if exported.of in ("gpu", "pod"):
        pod, namespace = pod_of(labels), namespace_of(labels)
    if exported.of == "gpu":
        number = beside.gpu_number.get(text_of(labels, "uuid"), "")
        device = f"gpu{number}" if number and device == f"gpu{text_of(labels, 'uuid')}" else device
    elif exported.of == "pdu":
        node = text_of(labels, "node", "nodename") if device.startswith("pdu/") and device.count("/") > 1 else ""
    elif exported.of == "service":
        node, service = "", text_of(labels, "exported_service", "service", "service_name", "exported_job", "job")
        pod, namespace = text_of(labels, "pod", "pod_name", "exported_pod"), namespace_of(labels)
    told = {**beside.pod_labels.get((namespace, pod), {}), **labels} if pod else labels
    assert exported.metric in METRICS
    return Labels(
        metric=exported.metric,
        node=node,
        device=device,
        service=service,
        site=text_of(labels, "site"),
        pod=pod,
        namespace=namespace,
        team=text_of(told, "team", "label_team"),
        project=text_of(told, "project", "label_project"),
        unit=exported.unit,
        native_unit=exported.unit,
    )

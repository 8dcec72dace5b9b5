"""GPUs and CPUs of this machine: NVML through pynvml, and RAPL through the kernel's powercap files; OTLP/JSON lines, one sample a line.

The bindings are those of the package ``nvidia-ml-py``. What a GPU does not tell (``NVMLError``) is left out of its sample and counted.
Sources: NVML API reference (units: mW, mJ, per cent, bytes); Linux "Power Capping Framework" (``energy_uj`` wraps at
``max_energy_range_uj``); OpenTelemetry semantic conventions for hardware (``hw.power``, ``hw.energy``, ``hw.id``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from telemetry.errors import InputError

POWERCAP = Path("/sys/class/powercap")
PROC = Path("/proc")
POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
PACKAGE = re.compile(r"package-(\d+)")
Point = tuple[str, str, str, float | int, dict[str, str]]  # metric, unit, device, value, further attributes


@dataclass
class Nvml:
    """GPUs by index.

    Attributes:
        library: the ``pynvml`` module.
        unknown: NVML function -> times that it raised ``NVMLError``.
    """

    library: Any
    proc: Path = PROC
    unknown: dict[str, int] = field(default_factory=dict)

    @classmethod
    def opened(cls) -> Nvml:
        """NVML of this machine.

        Raises:
            InputError: no bindings, no driver, or no GPU.
        """
        try:
            import pynvml
        except ImportError as error:
            raise InputError("pynvml is not installed", where="NVML", remedy="pip install -e '.[cloud]' (nvidia-ml-py)") from error
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise InputError(
                f"no NVIDIA driver answers ({error})", where="NVML", remedy="run it where nvidia-smi lists GPUs, or give nvml=false"
            ) from error
        if not count:
            raise InputError("the driver knows no GPU", where="NVML", remedy="run it where nvidia-smi lists GPUs, or give nvml=false")
        return cls(pynvml)

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self.library, function)(*arguments)
        except self.library.NVMLError:
            self.unknown[function] = self.unknown.get(function, 0) + 1
            return None

    def points(self) -> Iterator[Point]:
        """Of every GPU and MIG instance; a GPU that has fallen off the bus has none."""
        for index in range(self._ask("nvmlDeviceGetCount") or 0):
            gpu = self._ask("nvmlDeviceGetHandleByIndex", index)
            if gpu is None:
                continue
            name = self._ask("nvmlDeviceGetName", gpu)
            more = {"hw.name": name.decode() if isinstance(name, bytes) else str(name or "")} | self._pods(gpu)
            yield from self._board(gpu, f"gpu{index}", more)
            mode = self._ask("nvmlDeviceGetMigMode", gpu)
            if mode and mode[0]:
                yield from self._instances(gpu, f"gpu{index}", more["hw.name"])

    def _board(self, gpu: Any, device: str, more: dict[str, str]) -> Iterator[Point]:
        power_mw = self._ask("nvmlDeviceGetPowerUsage", gpu)
        if power_mw is not None:
            yield "hw.power", "W", device, power_mw / 1e3, more
        energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu)
        if energy_mj is not None:
            yield "hw.energy", "J", device, energy_mj / 1e3, more
        rates = self._ask("nvmlDeviceGetUtilizationRates", gpu)
        if rates is not None:
            yield "hw.gpu.utilization", "1", device, rates.gpu / 100, more
        yield from self._memory(gpu, device, more)

    def _memory(self, gpu: Any, device: str, more: dict[str, str]) -> Iterator[Point]:
        memory = self._ask("nvmlDeviceGetMemoryInfo", gpu)
        if memory is not None:
            yield "hw.gpu.memory.usage", "By", device, int(memory.used), more
            if memory.total:
                yield "hw.gpu.memory.utilization", "1", device, memory.used / memory.total, more

    def _instances(self, gpu: Any, device: str, name: str) -> Iterator[Point]:
        """Memory of MIG instances; their power and utilization NVML does not tell."""
        for index in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
            instance = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", gpu, index)
            number = None if instance is None else self._ask("nvmlDeviceGetGpuInstanceId", instance)
            if number is not None:
                yield from self._memory(instance, f"{device}/mig{number}", {"hw.name": name} | self._pods(instance))

    def _pods(self, gpu: Any) -> dict[str, str]:
        """Processes on the GPU, and the pod where they are all of one."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", gpu) or ()
        pids = sorted(int(process.pid) for process in processes)
        pods = {self._pod(pid) for pid in pids}
        told = {"process.pids": " ".join(map(str, pids))} if pids else {}
        return told | ({"k8s.pod.uid": pods.pop()} if len(pods) == 1 and "" not in pods else {})

    def _pod(self, pid: int) -> str:
        """UID of the pod whose cgroup a process is in; '' when it is in none."""
        try:
            match = POD.search((self.proc / str(pid) / "cgroup").read_text())
        except (OSError, UnicodeDecodeError):
            return ""
        return match.group(1).replace("_", "-") if match else ""


@dataclass
class Rapl:
    """Energy counters of CPU packages (``cpu0``) and their parts (``cpu0/dram``), made to grow for ever."""

    root: Path = POWERCAP
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)  # zone -> last raw reading, sum, both in microjoules

    def zones(self) -> list[tuple[str, Path]]:
        """Device name and folder of every zone whose counter can be read (root alone may, on most kernels)."""
        found = []
        for zone in sorted(self.root.glob("intel-rapl:*")):
            parent = zone.name.split(":")[1]
            package = PACKAGE.search(_text(self.root / f"intel-rapl:{parent}" / "name"))
            name = _text(zone / "name")
            if package and name and _text(zone / "energy_uj").isdigit():
                part = "" if PACKAGE.search(name) else f"/{name}"
                found.append((f"cpu{package.group(1)}{part}", zone))
        return found

    def points(self) -> Iterator[Point]:
        for device, zone in self.zones():
            now, most = _text(zone / "energy_uj"), _text(zone / "max_energy_range_uj")
            if not now.isdigit():
                continue
            before, total = self._seen.get(zone, (int(now), int(now)))
            grown = int(now) - before
            if grown < 0:
                grown += int(most) + 1 if most.isdigit() else before
            self._seen[zone] = int(now), total + grown
            yield "hw.energy", "J", device, (total + grown) / 1e6, {"hw.name": "RAPL"}


@dataclass
class LocalSampler:
    """One OTLP/JSON line a sample.

    Attributes:
        node: name of this machine in the samples.
        parts: each gives its points.
    """

    node: str
    parts: tuple[Callable[[], Iterator[Point]], ...]

    reader: ClassVar[str] = "otlp"
    suffix: ClassVar[str] = "jsonl"
    counts: ClassVar[bool] = True

    def sample(self, now: pd.Timestamp) -> bytes:
        """A line with every point at ``now``."""
        metrics: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for part in self.parts:
            for name, unit, device, value, more in part():
                point = {"timeUnixNano": str(now.value), "asDouble": float(value), "attributes": _attributes({"hw.id": device} | more)}
                metrics.setdefault((name, unit), []).append(point)
        described = [_metric(name, unit, points) for (name, unit), points in metrics.items()]
        resource = {"attributes": _attributes({"host.name": self.node})}
        line = {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": described}]}]}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _metric(name: str, unit: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    if name == "hw.energy":
        return {"name": name, "unit": unit, "sum": {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": points}}
    return {"name": name, "unit": unit, "gauge": {"dataPoints": points}}


def _attributes(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items() if value]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""

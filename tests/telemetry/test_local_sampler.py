"""Local sampling with a pynvml that is made up and raises as the real one does, RAPL files in a folder, and files through ingest.

No GPU was at hand: what is tested is what becomes of NVML's answers, not the answers.
"""

from __future__ import annotations

import json
import sys
import threading
import types

import pandas as pd
import pytest

from telemetry.collectors.local import LocalSampler, Nvml, Rapl
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake
from telemetry.readers import READERS
from telemetry.sampling import Pace, sample_into
from telemetry.spool import Spool

NOW = pd.Timestamp("2026-01-05T00:00:00Z")
POD = "0f1e2d3c-0000-1111-2222-333344445555"


class NVMLError(Exception):
    pass


def made_up(gpus=2, mig=(), unsupported=(), pids=()):
    """A pynvml of ``gpus`` boards; GPU 1 draws 200 W. ``unsupported`` are functions that raise."""
    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    energy = {"mj": 0}

    def answer(name, value):
        def call(*arguments):
            if name in unsupported:
                raise NVMLError("Not Supported")
            return value(*arguments)

        setattr(module, name, call)

    def grown(gpu):
        energy["mj"] += 100_000
        return energy["mj"] + gpu

    memory = types.SimpleNamespace(used=20 * 2**30, total=80 * 2**30)
    for name, value in {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: gpus,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda gpu: b"NVIDIA A100-SXM4-80GB",
        "nvmlDeviceGetPowerUsage": lambda gpu: 100_000 * (gpu + 1),
        "nvmlDeviceGetTotalEnergyConsumption": grown,
        "nvmlDeviceGetUtilizationRates": lambda gpu: types.SimpleNamespace(gpu=50, memory=10),
        "nvmlDeviceGetMemoryInfo": lambda gpu: memory,
        "nvmlDeviceGetMigMode": lambda gpu: (int(gpu in mig), 0),
        "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: 2,
        "nvmlDeviceGetMigDeviceHandleByIndex": lambda gpu, index: f"mig{index}",
        "nvmlDeviceGetGpuInstanceId": lambda instance: 7 + int(instance[-1]),
        "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [types.SimpleNamespace(pid=pid) for pid in pids],
    }.items():
        answer(name, value)
    return module


@pytest.fixture
def read(tmp_path, context):
    def run(data: bytes):
        (tmp_path / "local.jsonl").write_bytes(data)
        result = READERS["otlp"].read(tmp_path / "local.jsonl", context)
        return result.tables["samples"], result.quality

    return run


def values(frame, metric):
    own = frame[frame["metric"] == metric]
    return dict(zip(own["device"], own["value"], strict=True))


def test_two_samples_of_two_gpus(read):
    sampler = LocalSampler("n0", (Nvml(made_up()).points,))
    frame, quality = read(sampler.sample(NOW) + sampler.sample(NOW + pd.Timedelta("1s")))
    assert quality.total() == {"missing_pod_label": 4}
    assert values(frame, "hw.power") == {"gpu0": 100.0, "gpu1": 200.0}
    assert values(frame, "hw.energy.rate") == pytest.approx({"gpu0": 200.0, "gpu1": 200.0})
    assert values(frame, "hw.gpu.utilization") == {"gpu0": 0.5, "gpu1": 0.5}
    assert values(frame, "hw.gpu.memory.usage") == {"gpu0": 20 * 2**30, "gpu1": 20 * 2**30}
    assert values(frame, "hw.gpu.memory.utilization") == {"gpu0": 0.25, "gpu1": 0.25}
    assert set(frame["node"]) == {"n0"}
    assert set(frame["site"]) == {"west"}


def test_what_a_gpu_does_not_tell_is_left_out_and_counted(read):
    unsupported = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMigMode")
    nvml = Nvml(made_up(gpus=1, unsupported=unsupported))
    frame, _ = read(LocalSampler("n0", (nvml.points,)).sample(NOW))
    assert set(frame["metric"]) == {"hw.power", "hw.gpu.memory.usage", "hw.gpu.memory.utilization"}
    assert nvml.unknown == dict.fromkeys(unsupported, 1)
    lost = Nvml(made_up(unsupported=("nvmlDeviceGetHandleByIndex",)))
    assert list(lost.points()) == []
    assert lost.unknown == {"nvmlDeviceGetHandleByIndex": 2}


def test_mig_instances_have_memory_of_their_own(read):
    frame, _ = read(LocalSampler("n0", (Nvml(made_up(mig=(1,))).points,)).sample(NOW))
    assert set(values(frame, "hw.gpu.memory.usage")) == {"gpu0", "gpu1", "gpu1/mig7", "gpu1/mig8"}
    assert set(values(frame, "hw.power")) == {"gpu0", "gpu1"}


def test_processes_of_one_pod_give_its_uid(read, tmp_path):
    for pid, pod in ((11, POD), (12, POD.replace("-", "_")), (13, "")):
        (tmp_path / str(pid)).mkdir()
        text = f"0::/kubepods.slice/kubepods-pod{pod}.slice/cri-containerd-abc.scope" if pod else "0::/user.slice"
        (tmp_path / str(pid) / "cgroup").write_text(text)
    for pids, pod in (((11, 12), POD), ((11, 13), ""), ((11, 99), ""), ((), "")):
        line = LocalSampler("n0", (Nvml(made_up(gpus=1, pids=pids), tmp_path).points,)).sample(NOW)
        frame, _ = read(line)
        assert set(frame["pod_uid"]) == {pod}
        assert (f'"stringValue":"{" ".join(map(str, pids))}"' in line.decode()) == bool(pids)


def zone(root, name, called, energy_uj, most=10**9):
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, text in (("name", called), ("energy_uj", energy_uj), ("max_energy_range_uj", most)):
        (root / name / file).write_text(f"{text}\n")


def test_rapl_counts_on_over_a_wrap(tmp_path, read):
    zone(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    zone(tmp_path, "intel-rapl:0:0", "dram", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 5_000_000)
    (tmp_path / "intel-rapl").mkdir()
    rapl = Rapl(tmp_path)
    assert [name for name, _ in rapl.zones()] == ["cpu0", "cpu0/dram"]
    sampler = LocalSampler("n0", (rapl.points,))
    lines = sampler.sample(NOW)
    zone(tmp_path, "intel-rapl:0", "package-0", 49_999_999)
    zone(tmp_path, "intel-rapl:0:0", "dram", 8_000_000)
    frame, quality = read(lines + sampler.sample(NOW + pd.Timedelta("1s")))
    assert quality.total() == {}
    assert values(frame, "hw.energy.rate") == pytest.approx({"cpu0": 150.0, "cpu0/dram": 3.0})
    assert Rapl(tmp_path / "nowhere").zones() == []


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (made_up(unsupported=("nvmlInit",)), "no NVIDIA driver answers"),
        (made_up(gpus=0), "knows no GPU"),
        (None, "pynvml is not installed"),
    ],
)
def test_without_bindings_driver_or_gpu(monkeypatch, module, told):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with pytest.raises(InputError, match=told):
        Nvml.opened()


def test_the_real_bindings_have_every_function_that_is_asked():
    real = pytest.importorskip("pynvml")
    assert issubclass(real.NVMLError, Exception)
    assert [name for name in vars(made_up()) if name.startswith("nvml") and not hasattr(real, name)] == []


def test_files_are_whole_and_lose_no_interval(tmp_path, context):
    sampler, spool = LocalSampler("n0", (Nvml(made_up(gpus=1)).points,)), Spool(tmp_path / "spool")
    written = sample_into(spool, sampler, Pace(interval_s=0.25, window_s=1.0, seconds=3.0), threading.Event())
    assert len(written) == 3
    assert [before.end for before in written[:-1]] == [after.start for after in written[1:]]
    lake = Lake(tmp_path / "lake")
    result = ingest_sources(lake, [SourceSpec(tmp_path / "spool", "otlp")], context.inventory)
    held = lake.table("samples", columns=["time", "metric"]).astype({"metric": str})
    samples = int((held["metric"] == "hw.power").sum())
    # every interval between two samples has its rate, over the edges of the files too
    assert int((held["metric"] == "hw.energy.rate").sum()) == samples - 1
    assert "duplicate" not in result.quality.total()
    again = sample_into(spool, sampler, Pace(interval_s=0.25, window_s=1.0, seconds=1.0), threading.Event())
    assert again[0].start >= written[-1].end
    assert len(spool.files()) == 3 + len(again)


def test_a_fault_and_a_stop_keep_what_was_sampled(tmp_path):
    stop = threading.Event()

    class Breaking:
        reader, suffix, counts, times = "otlp", "jsonl", True, 0

        def sample(self, now):
            self.times += 1
            if self.times == 2:
                raise InputError("gone")
            return b"{}\n"

    with pytest.raises(InputError, match="gone"):
        sample_into(Spool(tmp_path / "a"), Breaking(), Pace(0.05, 5.0, 5.0), stop)
    assert len(Spool(tmp_path / "a").files()) == 1
    sampler = LocalSampler("n0", ())
    sampler.parts = (lambda: stop.set() or iter(()),)
    assert len(sample_into(Spool(tmp_path / "b"), sampler, Pace(0.05, 5.0), stop)) == 1
    stop.set()
    assert sample_into(Spool(tmp_path / "c"), sampler, Pace(0.05, 5.0), stop) == []


def test_pace_and_line(tmp_path):
    for wrong in ({"interval_s": 0.0}, {"window_s": 0.5}, {"seconds": -1.0}, {"interval_s": float("nan")}):
        with pytest.raises(InputError, match="seconds"):
            Pace(**wrong)
    line = json.loads(LocalSampler("n0", (Nvml(made_up(gpus=1)).points,)).sample(NOW))
    metrics = line["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    assert [metric["name"] for metric in metrics if "sum" in metric] == ["hw.energy"]

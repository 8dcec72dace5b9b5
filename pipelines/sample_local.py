"""``python -m pipelines.sample_local``: power, energy, utilization and memory of this machine's GPUs and CPUs into a spool."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from omegaconf import DictConfig

from pipelines.cli import build, hydra_command
from pipelines.sampling import run
from telemetry.collectors.local import LocalSampler, Nvml, Rapl
from telemetry.errors import InputError
from telemetry.sampling import Pace


@dataclass(frozen=True)
class LocalConfig:
    """Keys of ``conf/sample_local.yaml``; ``seconds=0`` goes on until stopped, ``node=''`` takes the machine's own name."""

    out: str
    seconds: float = 60.0
    interval_s: float = 1.0
    window_s: float = 60.0
    node: str = ""
    nvml: bool = True
    rapl: bool = True


@hydra_command("sample_local")
def main(cfg: DictConfig) -> int:
    """Sample, write, print."""
    config = build(LocalConfig, {key: cfg[key] for key in LocalConfig.__dataclass_fields__}, "sample_local")
    pace = Pace(config.interval_s, config.window_s, config.seconds)
    nvml = Nvml.opened() if config.nvml else None
    rapl = Rapl() if config.rapl else None
    zones = rapl.zones() if rapl else []
    if nvml is None and not zones:
        raise InputError("no counter can be read", where="/sys/class/powercap", remedy="run it as root where RAPL is, or give nvml=true")
    if rapl and not zones:
        print("RAPL: no counter can be read (not there, or root's alone); GPUs only")
    parts = [part.points for part in (nvml, rapl if zones else None) if part is not None]
    run(LocalSampler(config.node or platform.node(), tuple(parts)), pace, config.out)
    for function, times in sorted(nvml.unknown.items()) if nvml else ():
        print(f"note: {function} was not answered {times} time(s)")
    return 0


if __name__ == "__main__":
    main()

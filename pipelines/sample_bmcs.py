"""``python -m pipelines.sample_bmcs``: node power of BMCs, asked every so often, into a spool."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from pipelines.cli import build, hydra_command
from pipelines.sampling import run
from telemetry.collectors.ipmi import IpmiCollector
from telemetry.sampling import Pace


@dataclass(frozen=True)
class BmcConfig:
    """Keys of ``conf/sample_bmcs.yaml`` besides the collector; ``seconds=0`` goes on until stopped."""

    out: str
    seconds: float = 0.0
    window_s: float = 600.0


@hydra_command("sample_bmcs")
def main(cfg: DictConfig) -> int:
    """Sample, write, print."""
    fields = {key: value for key, value in OmegaConf.to_container(cfg.collector, resolve=True).items() if key != "kind"}
    collector = build(IpmiCollector, fields, "collector")
    config = build(BmcConfig, {key: cfg[key] for key in BmcConfig.__dataclass_fields__}, "sample_bmcs")
    asker = collector.asker()
    run(asker, Pace(collector.interval_s, config.window_s, config.seconds), config.out)
    for node, times in sorted(asker.failures.items()):
        print(f"note: {node} gave no reading {times} time(s)")
    return 0


if __name__ == "__main__":
    main()

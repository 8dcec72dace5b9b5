"""What the shield does to a policy that wants the wrong thing, and what it costs one that does not: prints a table, writes JSON.

Windows of the embedded sample. ``idler`` holds whenever it may and then takes the run that ends last; ``random`` draws among what the mask
allows; ``lookahead`` is the judge. Each alone and behind the shield at several deadline margins (seconds, and a share of the run).

    python -m benchmarks.shield_effect --out shield_effect.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from envs.cluster_io import load_cluster
from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.job_table import prepare_jobs
from envs.observation import CANDIDATE_FEATURES, ObservationLayout
from envs.shield import ShieldConfig
from envs.shielded import ShieldedPolicy, shielded
from envs.state import Policy
from envs.windows import cut_windows
from envs.world import World, build_world
from pipelines.cli import compose_config, quiet_libraries
from pipelines.ingest import ingest
from pipelines.stages.features import to_reference_gpu
from telemetry.errors import InputError

MARGINS = ((0.0, 0.0), (600.0, 0.05), (1800.0, 0.25))
SHOWN = ("objective_usd", "cost_usd", "penalty_usd", "missed_deadlines", "late_starts", "mean_wait_s")
SLACK = [name for name, _ in CANDIDATE_FEATURES].index("slack")


class Idler:
    """Holds while it may, then runs as slowly as it may."""

    name, settings = "idler", JUDGES["lookahead"].settings

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        mask = layout.mask(observation)
        slowest = np.where(mask, layout.candidates(observation)[..., SLACK], np.inf)
        slowest[:, 0] = np.where(mask[:, 0], -np.inf, np.inf)
        return slowest.argmin(axis=1)


class Random:
    """Any allowed action."""

    name, settings = "random", JUDGES["lookahead"].settings

    def __init__(self) -> None:
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        mask = layout.mask(observation)
        return (self.generator.random(mask.shape) * mask).argmax(axis=1)


def sample_world(windows: int, hours: int) -> World:
    """Windows of the embedded sample on its own cluster."""
    source = compose_config("ingest").source
    files = [file for file in source.files if file.reader in ("slurm", "kubernetes", "grid")]
    with tempfile.TemporaryDirectory() as folder:
        lake, _ = ingest({**source, "files": files}, {"root": f"{folder}/lake"})
        cluster = load_cluster("sample")
        jobs, _ = to_reference_gpu(lake.table("jobs"), cluster)
        return build_world(cluster, cut_windows(prepare_jobs(jobs, cluster), lake.table("grid"), hours * 3600, windows, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("shield_effect.json"))
    options = parser.parse_args()
    quiet_libraries()
    try:
        world = sample_world(options.windows, options.hours)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    policies: dict[str, Policy] = {}
    for policy in (Idler(), Random(), JUDGES["lookahead"]):
        policies[policy.name] = policy
        for seconds, share in MARGINS:
            config = ShieldConfig(deadline_margin_s=seconds, deadline_margin_share=share)
            policies[f"{policy.name}, {seconds:.0f} s + {share:.0%}"] = shielded(policy, config, world.cluster)
    frame = evaluate(world, policies)
    means = frame.groupby("policy", sort=False)[list(SHOWN)].mean()
    print(f"{int(world.jobs.count.sum())} jobs in {world.n_windows} windows of {options.hours} h, means by window")
    print(means.to_string(float_format=lambda value: f"{value:,.3f}"))
    counts = {name: dict(policy.counts) for name, policy in policies.items() if isinstance(policy, ShieldedPolicy)}
    for name, count in counts.items():
        print(f"{name}: {', '.join(f'{key} {value:,}' for key, value in sorted(count.items()) if value)}")
    options.out.write_text(json.dumps({"means": means.to_dict("index"), "counts": counts}, indent=2) + "\n")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How close the lower bound comes to the judges on public traces, and what it takes: prints a table, writes JSON.

    python -m benchmarks.lower_bound --windows 10 --out outputs/lower_bound.json

Windows of 48 h of the test part of Philly's jobs on conf/cluster/two_site.yaml with CAISO and NYISO prices, as experiment=real_traces cuts
them. ``free`` is the bound of schedules with discipline free, ``every`` that of all disciplines, both without reviews.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pandas as pd

from envs.bound import bounds
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.reward import RewardSpec
from envs.windows import cut_windows, prepare_jobs
from envs.world import World, build_world
from pipelines.stages.agent import split_spans
from pipelines.stages.real_traces import load_trace, public_grid

ZONES = {"west": "US-CAL-CISO", "east": "US-NY-NYIS"}
SPLIT = (0.6, 0.15, 0.25)


def real_world(traces: Path, windows: int, seed: int) -> World:
    """Test windows of the public traces."""
    cluster = load_cluster("two_site")
    jobs, _ = load_trace("philly", traces, {})
    start, end = split_spans(jobs, SPLIT)["test"]
    cut = cut_windows(prepare_jobs(jobs, cluster), public_grid(traces, ZONES), 48 * 3600, windows, seed, start=start, end=end)
    return build_world(cluster, cut)


def measure(world: World, reward: RewardSpec, time_limit_s: float) -> pd.DataFrame:
    """One row per window: judges and bounds in USD, seconds of the bounds."""
    judged = pd.DataFrame({name: run_policy(world, judge, reward).objective_usd for name, judge in JUDGES.items()})
    rows = {"jobs": world.jobs.count, "lookahead": judged["lookahead"], "best_judge": judged.min(axis=1), "judge": judged.idxmin(axis=1)}
    for name, only_free in (("free", True), ("every", False)):
        found = bounds(world, reward, reviews=False, only_free=only_free, time_limit_s=time_limit_s, progress=True)
        rows |= {name: found["bound_usd"], f"{name}_s": found["seconds"], f"{name}_rounds": found["rounds"]}
    table = pd.DataFrame(rows)
    return table.assign(lookahead_over_free=table["lookahead"] / table["free"], best_over_free=table["best_judge"] / table["free"])


def main() -> None:
    """Print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds of the solver a window")
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")))
    parser.add_argument("--out", type=Path, default=Path("outputs/lower_bound.json"))
    options = parser.parse_args()
    table = measure(real_world(options.traces, options.windows, options.seed), RewardSpec(), options.time_limit)
    total = table[["lookahead", "best_judge", "free", "every"]].sum()
    print(table.round(3).to_string())
    print(f"sums: {total.round(2).to_dict()}")
    print(f"lookahead / free {total['lookahead'] / total['free']:.3f}, best judge / free {total['best_judge'] / total['free']:.3f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"windows": table.to_dict("records"), "sums": total.to_dict()}, indent=1, default=float))


if __name__ == "__main__":
    main()

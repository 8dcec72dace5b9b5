"""Placement on the open GPU cluster: share of the GPUs allocated, and watts, under four node rules.

python -m benchmarks.open_cluster [--seeds 10] [--traces DIR] [--out outputs/benchmarks/open_cluster.json]

The stream is that of the published experiments: the trace's pods in drawn order, then pods drawn from it with replacement, until they ask
for 1.3 times the cluster's GPUs. Nobody leaves; who fits nowhere is dropped. Ties between nodes go by an order drawn with the seed. The
published figures are read where the arrived pods have asked for 100 % of the GPUs. Sources: docs/fragmentation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.open_cluster_driver import FGD, PWR_FGD, RULES, Nodes, Pods, place_all, scratch
from envs.fragmentation import ALL_MODELS, FragmentTable, fragment_table, typical_kinds
from telemetry.errors import InputError

POD_FILE, NODE_FILE = "openb_pod_list_default.parquet", "openb_node_list_all_node.parquet"
PUBLISHED = {"random": (86.30, 0.31), "best_fit": (92.86, 0.14), "fgd": (95.23, 0.10)}
PUBLISHED_SAVING_PERCENT = (13.0, 16.0)
ASKED_SHARE, READ_PERCENT, FIRST_SEED = 1.3, 100, 42
PWR_WEIGHTS = (50, 100, 200)
DEFAULT_PWR_WEIGHT = 100
SAVING_AT_PERCENT = (20, 40, 60, 80, 90, 100)
GPU_WATTS: dict[str, tuple[int, int]] = {  # idle, in use
    "T4": (10, 70),
    "A10": (30, 150),
    "G2": (30, 150),
    "P100": (25, 250),
    "V100M16": (30, 300),
    "V100M32": (30, 300),
    "G3": (50, 400),
}
SOCKET_WATTS, SOCKET_CORES = (15, 120), 16


@dataclass(frozen=True)
class Trace:
    """The trace as arrays: P pods, each of one of K kinds; N nodes with GPUs."""

    pod_kind: np.ndarray  # int64 [P]
    kinds: np.ndarray  # int64 [K, 3], CPU thousandths, GPU thousandths, MiB
    nodes: pd.DataFrame  # by name: cpu_milli, memory_mib, gpu, model
    typical: FragmentTable

    @property
    def gpu_milli(self) -> int:
        return int(self.nodes["gpu"].sum()) * 1000


@dataclass(frozen=True)
class Outcome:
    """One stream under one rule, after each of W pods."""

    arrived_percent: np.ndarray  # float64 [W], asked GPUs so far, of the cluster's
    allocated_percent: np.ndarray  # float64 [W]
    watts: np.ndarray  # float64 [W]
    pods_per_s: float

    def allocated_at(self, percent: int) -> float:
        """Mean while the arrived share rounds to ``percent``, as in the published tables."""
        return float(self.allocated_percent[np.rint(self.arrived_percent) == percent].mean())

    def watts_at(self, percent: int) -> float:
        return float(self.watts[np.rint(self.arrived_percent) == percent].mean())


def load(traces: Path) -> Trace:
    """Read the trace. Raises `InputError` when it is not there or names a GPU model without watts."""
    folder = traces / "a_jobs"
    for name in (POD_FILE, NODE_FILE):
        if not (folder / name).is_file():
            raise InputError("no such file", where=str(folder / name), remedy="set JOULEWISE_TRACES or pass --traces")
    pods = pd.read_parquet(folder / POD_FILE)
    nodes = pd.read_parquet(folder / NODE_FILE)
    nodes = nodes[nodes["gpu"] > 0].sort_values("sn").reset_index(drop=True)
    unknown = sorted(set(nodes["model"]) - set(GPU_WATTS))
    if unknown:
        raise InputError(f"GPU model '{unknown[0]}'", where=NODE_FILE, allowed=", ".join(GPU_WATTS))
    gpu_milli = (pods["num_gpu"] * pods["gpu_milli"]).to_numpy()
    kinds, pod_kind = np.unique(np.column_stack([pods["cpu_milli"], gpu_milli, pods["memory_mib"]]), axis=0, return_inverse=True)
    rows, count = typical_kinds(np.column_stack([pods["cpu_milli"], gpu_milli, np.full(len(pods), ALL_MODELS)]))
    return Trace(pod_kind.ravel().astype(np.int64), kinds, nodes, fragment_table(rows[:, 0], rows[:, 1], count))


def stream(trace: Trace, seed: int) -> tuple[Nodes, Pods]:
    """The pods in the order in which they arrive, and the nodes in the order in which ties are broken."""
    rng = np.random.default_rng(seed)
    count = len(trace.pod_kind)
    order = rng.permutation(count)
    asked = trace.kinds[trace.pod_kind, 1]
    more = int(2 * max(0.0, ASKED_SHARE * trace.gpu_milli - asked.sum()) / asked.mean()) + 1000
    order = np.concatenate([order, rng.integers(0, count, more)])
    order = order[: np.searchsorted(np.cumsum(asked[order]), ASKED_SHARE * trace.gpu_milli, side="right")]
    nodes = trace.nodes.iloc[rng.permutation(len(trace.nodes))]
    models = sorted(GPU_WATTS)
    watts = [[1000 * w for w in (*GPU_WATTS[model], *SOCKET_WATTS)] + [SOCKET_CORES] for model in nodes["model"]]
    return (
        Nodes(
            first_gpu=np.append(0, np.cumsum(nodes["gpu"])).astype(np.int64),
            cpu_milli=nodes["cpu_milli"].to_numpy(dtype=np.int64, copy=True),
            memory_mib=nodes["memory_mib"].to_numpy(dtype=np.int64, copy=True),
            model=np.array([models.index(model) for model in nodes["model"]], dtype=np.int64),
            watts=np.array(watts, dtype=np.int64),
            largest=np.array([nodes["gpu"].max() * 1000, nodes["cpu_milli"].max()], dtype=np.int64),
        ),
        Pods(
            kind=trace.pod_kind[order],
            draw=rng.integers(0, 1 << 63, (len(order), 2), dtype=np.uint64),
            cpu_milli=np.ascontiguousarray(trace.kinds[:, 0]),
            gpu_milli=np.ascontiguousarray(trace.kinds[:, 1]),
            memory_mib=np.ascontiguousarray(trace.kinds[:, 2]),
        ),
    )


def run(trace: Trace, rule: int, seed: int, pwr_weight: int = DEFAULT_PWR_WEIGHT) -> Outcome:
    """Place one stream. ``rule`` indexes `RULES`; ``pwr_weight`` in thousandths, the rest goes to fragmentation."""
    nodes, pods = stream(trace, seed)
    state = scratch(nodes, pods)
    placed_on, total_mw = np.empty(len(pods.kind), dtype=np.int64), np.empty(len(pods.kind), dtype=np.int64)
    begin = time.perf_counter()
    place_all(trace.typical, nodes, pods, state, rule, pwr_weight, placed_on, total_mw)
    seconds = time.perf_counter() - begin
    asked = pods.gpu_milli[pods.kind]
    return Outcome(
        arrived_percent=np.cumsum(asked) * 100.0 / trace.gpu_milli,
        allocated_percent=np.cumsum(np.where(placed_on >= 0, asked, 0)) * 100.0 / trace.gpu_milli,
        watts=total_mw / 1000.0,
        pods_per_s=len(asked) / seconds,
    )


def saving_percent(trace: Trace, seeds: list[int], pwr_weight: int) -> dict[int, float]:
    """Watts saved against FGD when so many percent of the GPUs have been asked for, mean over the seeds."""
    pairs = [(run(trace, FGD, seed), run(trace, PWR_FGD, seed, pwr_weight)) for seed in seeds]
    return {at: 100.0 * float(np.mean([1.0 - pwr.watts_at(at) / fgd.watts_at(at) for fgd, pwr in pairs])) for at in SAVING_AT_PERCENT}


def measure(trace: Trace, seeds: list[int]) -> dict:
    """All figures. Standard deviations are those of the population, as published."""
    run(trace, FGD, seeds[0])  # compiles
    rules: dict[str, dict] = {}
    for rule, name in enumerate(RULES):
        outcomes = [run(trace, rule, seed) for seed in seeds]
        at_read = [outcome.allocated_at(READ_PERCENT) for outcome in outcomes]
        at_end = [float(outcome.allocated_percent[-1]) for outcome in outcomes]
        rules[name] = {
            "allocated_percent": float(np.mean(at_read)),
            "deviation": float(np.std(at_read)),
            "at_end_percent": float(np.mean(at_end)),
            "at_end_deviation": float(np.std(at_end)),
            "published_percent": PUBLISHED.get(name, (None, None))[0],
            "published_deviation": PUBLISHED.get(name, (None, None))[1],
            "pods_per_s": float(np.median([outcome.pods_per_s for outcome in outcomes])),
        }
    saving = {weight: saving_percent(trace, seeds, weight) for weight in PWR_WEIGHTS}
    return {"seeds": seeds, "rules": rules, "pwr_weight": DEFAULT_PWR_WEIGHT, "saving_percent": saving, "machine": platform.machine()}


def report(result: dict) -> str:
    """The figures as text."""
    lines = [
        f"GPUs allocated, mean and deviation over {len(result['seeds'])} seeds",
        f"{'rule':10s} {'100 % asked':>14s} {'published':>14s} {'off':>6s} {'130 % asked':>14s} {'pods/s':>9s}",
    ]
    for name, row in result["rules"].items():
        ours = f"{row['allocated_percent']:.2f} ± {row['deviation']:.2f}"
        end = f"{row['at_end_percent']:.2f} ± {row['at_end_deviation']:.2f}"
        known = row["published_percent"] is not None
        published = f"{row['published_percent']:.2f} ± {row['published_deviation']:.2f}" if known else "-"
        off = f"{row['allocated_percent'] - row['published_percent']:+.2f}" if known else "-"
        lines.append(f"{name:10s} {ours:>14s} {published:>14s} {off:>6s} {end:>14s} {row['pods_per_s']:9,.0f}")
    low, high = PUBLISHED_SAVING_PERCENT
    lines += [
        "",
        f"% of watts saved by pwr_fgd against fgd when so many % of the GPUs are asked for (published: {low:.0f}-{high:.0f})",
    ]
    lines.append(f"{'weight':10s} " + " ".join(f"{at:6d}" for at in SAVING_AT_PERCENT))
    for weight, row in result["saving_percent"].items():
        lines.append(f"{weight / 1000:<10.3f} " + " ".join(f"{row[at]:6.1f}" for at in SAVING_AT_PERCENT))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/open_cluster.json"), help="JSON file for the results")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: at least 1")
    try:
        trace = load(options.traces)
    except InputError as error:
        raise SystemExit(f"open_cluster: {error}") from error
    result = measure(trace, list(range(FIRST_SEED, FIRST_SEED + options.seeds)))
    print(report(result))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = options.out.with_name(options.out.name + ".new")
    fresh.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(fresh, options.out)
    print(f"-> {options.out}")


if __name__ == "__main__":
    main()

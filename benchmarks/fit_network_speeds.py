"""Fit ``envs/power/networks.csv`` from public measurements: ``python -m benchmarks.fit_network_speeds [--traces DIR] [--out FILE]``.

Input: ``a_jobs/gavel_simulation_throughputs_isolated.parquet`` of the trace folder (``$JOULEWISE_TRACES``, else ``../shared/traces``), the
isolated throughputs of 26 training jobs that Gavel measured (Narayanan et al., OSDI 2020; stanford-futuredata/gavel @ c4fa40097339,
``scheduler/simulation_throughputs.json``, MIT). Only ratios of them are written: steps per second on one GPU of a model over those on one
V100 (``scale_factor`` 1, consolidated). A ratio is left out, so that the job's class speaks for it, where

1. either throughput is not above 0;
2. either GPU does less than three quarters of the samples per second that it does at a smaller batch of the same network: a larger batch
   is never that much worse. Of a pair that contradicts itself so, the larger batch goes, whichever of the two was measured wrongly.
   (K80: ResNet-18 at 128 and 256, half of 64. V100: Transformer at 256, 0.59 of 128; then no other GPU can be compared with it.)
3. a GPU that has less of everything than a V100 (data sheets: P100 0.68 of its FP32 rate and 0.81 of its bandwidth, a K80 die 0.28 and
   0.27) is more than a quarter faster: that tells of the hosts, not of the GPUs. (All Recommendation jobs on a P100, 2.0 to 2.3, and four
   of five on a K80, 1.4 to 1.5. The smaller excess of small batches on a P100, at most 1.20, is kept: launches bind there.)
   A network left out for a host-bound V100 is left out on every GPU: the fifth, 0.95 on a K80, has the same slow reference.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd

from envs.power.curves import REFERENCE_GPU
from envs.power.networks import COLUMNS, NETWORKS_FILE
from telemetry.errors import InputError

THROUGHPUTS = "a_jobs/gavel_simulation_throughputs_isolated.parquet"
SOURCE = "gavel@c4fa40097339/scheduler/simulation_throughputs.json"
GPU_MODELS: dict[str, str] = {"v100": "V100", "p100": "P100", "k80": "K80"}
LEAST_SHARE_OF_SMALLER_BATCH = 0.75
MOST_OF_AN_OLDER_GPU = 1.25


def throughputs(table: pd.DataFrame) -> pd.DataFrame:
    """``network, gpu_model, throughput`` (steps/s on one GPU), ``family`` and ``batch`` from the network's name (batch 1 without one)."""
    rows = table[(table["scale_factor"] == 1) & table["worker_type"].isin(GPU_MODELS)]
    rows = rows.assign(gpu_model=rows["worker_type"].map(GPU_MODELS), network=rows["job_type"])
    parts = rows["network"].str.extract(r"^(?P<family>.*?)(?: \(batch size (?P<batch>\d+)\))?$")
    rows = rows.assign(family=parts["family"], batch=parts["batch"].astype(float).fillna(1))
    return rows[["network", "gpu_model", "family", "batch", "throughput"]].sort_values(["family", "batch", "gpu_model"], ignore_index=True)


def plausible(rows: pd.DataFrame) -> pd.Series:
    """Whether each row of `throughputs` is above 0 and no contradiction to a smaller batch (rules 1 and 2)."""
    samples = rows["throughput"] * rows["batch"]
    best_before = samples.groupby([rows["gpu_model"], rows["family"]]).cummax()
    return (rows["throughput"] > 0) & (samples >= LEAST_SHARE_OF_SMALLER_BATCH * best_before)


def fit_networks(table: pd.DataFrame) -> pd.DataFrame:
    """The ratios, as committed; every network has a row of the reference GPU, 1.0, also when nothing else is known of it."""
    rows = throughputs(table)
    rows["ok"] = plausible(rows)
    reference = rows[rows["gpu_model"] == REFERENCE_GPU].set_index("network")
    base = rows["network"].map(reference["throughput"])
    ratio = rows["throughput"] / base
    is_reference = rows["gpu_model"] == REFERENCE_GPU
    host_bound = set(rows.loc[~is_reference & rows["ok"] & (ratio > MOST_OF_AN_OLDER_GPU), "network"])
    kept = rows["ok"] & rows["network"].map(reference["ok"]).astype(bool) & ~rows["network"].isin(host_bound)
    speed = ratio.where(~is_reference, 1.0)
    what = SOURCE + ":" + rows["gpu_model"].str.lower() + "/v100"
    result = pd.DataFrame({"network": rows["network"], "gpu_model": rows["gpu_model"], "speed": speed, "source": what})
    result.loc[is_reference, "source"] = "reference"
    return result[kept | is_reference].round({"speed": 4})[list(COLUMNS)].reset_index(drop=True)


def fit(traces: Path) -> pd.DataFrame:
    """`fit_networks` of the trace folder. Raises `InputError` when the measurements are not there."""
    file = traces / THROUGHPUTS
    if not file.is_file():
        raise InputError("no such file", where=str(file), remedy="set JOULEWISE_TRACES")
    return fit_networks(pd.read_parquet(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")))
    parser.add_argument("--out", type=Path, default=NETWORKS_FILE)
    arguments = parser.parse_args()
    table = fit(arguments.traces)
    fresh = arguments.out.with_name(arguments.out.name + ".new")
    table.to_csv(fresh, index=False)
    os.replace(fresh, arguments.out)
    print(table.pivot_table(index="network", columns="gpu_model", values="speed").to_string(na_rep="class"))
    print(f"{len(table)} rows -> {arguments.out}")


if __name__ == "__main__":
    main()

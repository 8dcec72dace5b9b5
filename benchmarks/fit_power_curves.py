"""Fit ``envs/power/curves.csv`` from public measurements: ``python -m benchmarks.fit_power_curves [--traces DIR] [--out FILE]``.

Inputs, under ``c_power/`` of the trace folder (``$JOULEWISE_TRACES``, else ``../shared/traces``):

- Zeus (You et al., NSDI'23; ml-energy/zeus, Apache-2.0): power limit -> seconds per epoch and average board watts on V100, A40, P100.
- MLPerf Training v4.0, Sustainable Metal Cloud, 8 x H100-SXM5 per node, AC node watts (mlcommons/training_results_v4.0, Apache-2.0).
- MLPerf Inference v3.0, 8 x A100-PCIe-80GB (MaxQ), wall watts (mlcommons/inference_results_v3.0, Apache-2.0).

The sweeps are made monotone by isotonic regression. H100 and A100 get their full-power board watts from node watts: idle board
watts plus (loaded - idle node watts) / GPUs, at most the board limit; CPUs and power supplies are in that difference, so it is an
upper estimate. Their levels follow the A40's relative curve and the speed of the heavy classes is the ratio of memory bandwidths
(NVIDIA data sheets): all of this is marked ``derived:``. Idle watts: A100 50 W and T4 10 W (and T4 full 70 W) as in the PWR study of
the open GPU cluster; H100 70 W, assumed.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from envs.power.curves import COLUMNS, CURVES_FILE, REFERENCE_GPU
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

NETWORKS: dict[str, tuple[str, str, int, str]] = {
    "training": ("imagenet", "resnet50", 128, "adadelta"),
    "fine_tuning": ("sentiment140", "bert_base_uncased", 64, "adamw"),
    "batch_inference": ("librispeech", "deepspeech2", 64, "adamw"),
    "realtime_inference": ("cifar100", "shufflenetv2", 128, "adadelta"),
    "interactive": ("movielens-1m", "ncf", 1024, "adam"),
}
SWEEPS: dict[str, tuple[str, float]] = {
    "V100": ("zeus_summary_power_v100.csv", 250.0),
    "A40": ("zeus_summary_power_a40.csv", 300.0),
    "P100": ("zeus_summary_power_p100.csv", 250.0),
}
LIGHT_KINDS = ("realtime_inference", "interactive")
V100_BANDWIDTH_GB_S = 900.0


@dataclass(frozen=True)
class NodeLog:
    """A node whose wall watts give a model's full-power figures. ``benchmarks``: class -> column values that select its runs."""

    gpu_model: str
    file: str
    gpus: int
    board_limit_w: float
    gpu_idle_w: float
    bandwidth_gb_s: float
    benchmarks: dict[str, dict[str, str]]
    label: str


NODE_LOGS: tuple[NodeLog, ...] = (
    NodeLog(
        "H100",
        "mlperf_train40_smc_1_8node_watts.parquet",
        8,
        700.0,
        70.0,
        3350.0,
        {"training": {"benchmark": "resnet"}, "fine_tuning": {"benchmark": "llama2_70b_lora"}, "batch_inference": {"benchmark": "ssd"}},
        "mlperf_training_v4.0/1xSMC-H100-SXM-80GB",
    ),
    NodeLog(
        "A100",
        "mlperf_inf30_a100x8_watts.parquet",
        8,
        300.0,
        50.0,
        1935.0,
        {
            "training": {"benchmark": "retinanet", "scenario": "Offline"},
            "fine_tuning": {"benchmark": "bert-99", "scenario": "Offline"},
            "batch_inference": {"benchmark": "rnnt", "scenario": "Offline"},
        },
        "mlperf_inference_v3.0/A100-PCIe-80GBx8_MaxQ",
    ),
)
T4_IDLE_FULL_W = (10.0, 70.0)  # PWR study of the open GPU cluster
T4_BANDWIDTH_GB_S = 320.0


def fit_sweep(table: pd.DataFrame, board_limit_w: float, kind: str) -> pd.DataFrame:
    """Monotone ``level_fraction, seconds, power_w`` of one class, rising limits. ``table``: a Zeus power summary."""
    dataset, network, batch, optimizer = NETWORKS[kind]
    rows = table[
        (table["dataset"] == dataset) & (table["network"] == network) & (table["batch_size"] == batch) & (table["optimizer"] == optimizer)
    ].sort_values("power_limit")
    if len(rows) < 3:
        raise InputError(f"{len(rows)} power limits for {dataset}/{network}@{batch}", where="Zeus sweep", allowed="at least 3")
    return pd.DataFrame(
        {
            "level_fraction": rows["power_limit"].to_numpy(dtype=float) / board_limit_w,
            "seconds": isotonic_regression(rows["time_per_epoch"].to_numpy(dtype=float), increasing=False).x,
            "power_w": isotonic_regression(rows["average_power"].to_numpy(dtype=float), increasing=True).x,
        }
    )


def measured_curves(folder: Path) -> pd.DataFrame:
    """Curves of the models with a power-limit sweep."""
    tables = {model: pd.read_csv(folder / file) for model, (file, _) in SWEEPS.items()}
    parts = []
    for kind in WORKLOAD_CLASSES:
        dataset, network, batch, _ = NETWORKS[kind]
        fits = {model: fit_sweep(tables[model], limit, kind) for model, (_, limit) in SWEEPS.items()}
        reference_s = float(fits[REFERENCE_GPU]["seconds"].iloc[-1])
        for model, fit in fits.items():
            parts.append(
                pd.DataFrame(
                    {
                        "gpu_model": model,
                        "kind": kind,
                        "level_fraction": fit["level_fraction"],
                        "speed": reference_s / fit["seconds"],
                        "power_w": fit["power_w"],
                        "source": f"zeus_nsdi23/{SWEEPS[model][0]}:{dataset}/{network}@{batch}",
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def node_watts(folder: Path, log: NodeLog, select: dict[str, str]) -> tuple[float, float]:
    """Idle (1st percentile) and loaded (median above mid-range) node watts of the selected runs; sentinels and negatives left out."""
    rows = pd.read_parquet(folder / log.file)
    if "key" in rows.columns:
        rows = rows[(rows["key"] == "power_reading") & (rows["system"] == "1xSMC-H100-SXM-80GB")].rename(columns={"value": "Watts"})
    watts_all = rows.loc[rows["Watts"] > 0, "Watts"].to_numpy(dtype=float)
    for column, value in select.items():
        rows = rows[rows[column] == value]
    watts = rows.loc[rows["Watts"] > 0, "Watts"].to_numpy(dtype=float)
    idle_w, top_w = float(np.percentile(watts_all, 1)), float(np.percentile(watts, 99))
    return idle_w, float(np.median(watts[watts > (idle_w + top_w) / 2]))


def derived_curves(folder: Path, measured: pd.DataFrame) -> pd.DataFrame:
    """Curves of the models without a sweep, from node watts, bandwidth ratios and the A40's relative levels."""
    parts = []
    for log in NODE_LOGS:
        full_w: dict[str, float] = {}
        for kind, select in log.benchmarks.items():
            idle_w, loaded_w = node_watts(folder, log, select)
            full_w[kind] = min(log.board_limit_w, log.gpu_idle_w + (loaded_w - idle_w) / log.gpus)
        parts.append(_like_a40(measured, log.gpu_model, full_w, log.gpu_idle_w, log.bandwidth_gb_s, log.label))
    t4_full = {kind: T4_IDLE_FULL_W[1] for kind in WORKLOAD_CLASSES if kind not in LIGHT_KINDS}
    parts.append(_like_a40(measured, "T4", t4_full, T4_IDLE_FULL_W[0], T4_BANDWIDTH_GB_S, "pwr_study/T4"))
    return pd.concat(parts, ignore_index=True)


def _like_a40(
    measured: pd.DataFrame, model: str, full_w: dict[str, float], idle_w: float, bandwidth_gb_s: float, label: str
) -> pd.DataFrame:
    """Scale the A40's curves; a light class draws above idle what the A40 draws, relative to training."""
    a40 = measured[measured["gpu_model"] == "A40"].sort_values("level_fraction")
    a40_idle_w = 30.0
    a40_full = a40.groupby("kind").tail(1).set_index("kind")["power_w"]
    parts = []
    for kind in WORKLOAD_CLASSES:
        curve = a40[a40["kind"] == kind]
        light = kind in LIGHT_KINDS
        share = (a40_full[kind] - a40_idle_w) / (a40_full["training"] - a40_idle_w)
        top_w = idle_w + share * (full_w["training"] - idle_w) if light else full_w[kind]
        # Launch-bound work gains nothing from bandwidth: it keeps the A40's speed.
        scale = 1.0 if light else bandwidth_gb_s / V100_BANDWIDTH_GB_S / curve["speed"].iloc[-1]
        above_idle = (curve["power_w"] - a40_idle_w) / (curve["power_w"].iloc[-1] - a40_idle_w)
        speed_label = "A40 speed" if light else "bandwidth ratio"
        parts.append(
            pd.DataFrame(
                {
                    "gpu_model": model,
                    "kind": kind,
                    "level_fraction": curve["level_fraction"],
                    "speed": curve["speed"] * scale,
                    "power_w": idle_w + above_idle * (top_w - idle_w),
                    "source": f"derived:{label}; {speed_label}; levels like A40",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def fit(traces: Path) -> pd.DataFrame:
    """All curves, rounded as committed. Raises `InputError` when the traces are not there."""
    folder = traces / "c_power"
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), remedy="set JOULEWISE_TRACES")
    measured = measured_curves(folder)
    table = pd.concat([measured, derived_curves(folder, measured)], ignore_index=True)
    table = table.round({"level_fraction": 4, "speed": 4, "power_w": 1})
    return table.sort_values(["gpu_model", "kind", "level_fraction"], ascending=[True, True, False])[list(COLUMNS)].reset_index(drop=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")))
    parser.add_argument("--out", type=Path, default=CURVES_FILE)
    arguments = parser.parse_args()
    table = fit(arguments.traces)
    fresh = arguments.out.with_name(arguments.out.name + ".new")
    table.to_csv(fresh, index=False)
    os.replace(fresh, arguments.out)
    print(table[table["level_fraction"].isin([1.0, 0.75, 0.5])].drop(columns="source").to_string(index=False))
    print(f"{len(table)} rows -> {arguments.out}")


if __name__ == "__main__":
    main()

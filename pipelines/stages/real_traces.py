"""Public research traces as the main job's input (``experiment=real_traces``); their origin is in ``telemetry/readers/public_traces.py``.

Nobody measured the power of these virtual clusters: their power series are *replayed*, running GPUs through the measured V100 curve, and
are named so (``power/pool/replayed-...``). For replayed GPUs and nodes see ``replayed_levels``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.power.curves import levels_for
from envs.worlds.transform import tag_classes
from models.power import PowerCurve
from telemetry.classes import CLASS_INDEX
from telemetry.errors import InputError
from telemetry.readers.public_jobs import read_eagle, read_gaia, read_openb
from telemetry.readers.public_traces import read_helios_demand, read_philly_gavel, read_public_grid, read_servegen_rates

HELIOS = "a_jobs/helios_earth_vc_sequence.parquet"
PHILLY = "a_jobs/philly_gavel_seed0_vcs.parquet"
THROUGHPUTS = "a_jobs/gavel_simulation_throughputs_isolated.parquet"
SERVEGEN = "b_requests/servegen_m-small_trace.parquet"
PRICES = "d_grid/iso_price_train.parquet"
CARBON = "d_grid/electricitymaps_ci_train.parquet"
TEMPERATURE = "d_grid/openmeteo_train.parquet"
# Dates that the sources do not state; the grid data of this year goes with them.
SERVEGEN_START, PHILLY_START = "2023-03-06", "2022-03-07"
READERS: dict[str, tuple[Callable[..., tuple[pd.DataFrame, dict[str, int]]], str]] = {
    "openb": (read_openb, "a_jobs/openb_pod_list_default.parquet"),
    "gaia": (read_gaia, "a_jobs/azure_100k.parquet"),
    "eagle": (read_eagle, "a_jobs/sample_eagle_data.csv"),
}
IDLE_GPU_W, NODE_SHARE_W = 30.0, 62.5
REPLAYED_POOL, REPLAYED_SITE = "power/pool/replayed-", "power/site/replayed-earth"
LONGEST_JOB_S = 2 * 86_400
REQUEST_SEED = 0
# Gavel kept 2,000 jobs of each virtual cluster; the first of these four runs out after 31 days, and the load falls off.
SPAN_DAYS = 31


def _require(root: Path) -> None:
    if not (root / HELIOS).exists():
        raise InputError(
            "the public traces are not there", where=str(root), remedy="set JOULEWISE_TRACES to their folder, or train on the sample"
        )


def public_series(root: Path, target: str, freq: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Helios demand and the total ServeGen rate (``workload``), or Helios power replayed (``power``)."""
    _require(root)
    if target == "workload":
        demand, counts = read_helios_demand(root / HELIOS, freq=freq)
        rates, rate_counts = read_servegen_rates(root / SERVEGEN, start=SERVEGEN_START, total=True)
        busiest = rates.groupby("unique_id")["y"].mean().nlargest(8).index
        rates = rates[rates["unique_id"].isin(busiest)]
        return pd.concat([demand, rates], ignore_index=True), {**counts, **{f"servegen_{k}": v for k, v in rate_counts.items()}}
    return replayed_power(root / HELIOS, freq), {}


def replayed_power(path: Path, freq: str) -> pd.DataFrame:
    """Mean watts per virtual cluster and bin: idle GPUs and node shares, and running GPUs at the V100's measured training power."""
    raw = pd.read_parquet(path, columns=["vc", "time", "running_gpu_num", "idle_gpu_num"])
    gpus = raw["running_gpu_num"] + raw["idle_gpu_num"]
    raw["y"] = gpus * (NODE_SHARE_W + IDLE_GPU_W) + raw["running_gpu_num"] * (_active_w() - IDLE_GPU_W)
    raw["ds"] = pd.to_datetime(raw["time"]).dt.floor(freq) + pd.Timedelta(freq)
    table = raw.groupby(["vc", "ds"], as_index=False)["y"].mean()
    table["unique_id"] = REPLAYED_POOL + table["vc"]
    site = table.groupby("ds", as_index=False)["y"].sum().assign(unique_id=REPLAYED_SITE)
    return pd.concat([table, site], ignore_index=True)[["unique_id", "ds", "y"]].sort_values(["unique_id", "ds"], ignore_index=True)


def _active_w() -> float:
    return float(levels_for("V100", (1.0,))[1][0][CLASS_INDEX["training"]])


def replayed_power_parents(series: pd.DataFrame) -> dict[str, str]:
    """Virtual clusters of :func:`replayed_power` -> the whole of them."""
    return {uid: REPLAYED_SITE for uid in series["unique_id"].unique() if str(uid).startswith(REPLAYED_POOL)}


def replayed_power_curves(path: Path) -> tuple[dict[str, PowerCurve], dict[str, tuple[float, float]]]:
    """Curve of every virtual cluster on its ``gpu_demand``, and bounds in W: all its GPUs idle, all busy.

    The size of a virtual cluster is what its owner knows: running plus idle GPUs. It stays the same over the month.
    """
    raw = pd.read_parquet(path, columns=["vc", "running_gpu_num", "idle_gpu_num"])
    size = (raw["running_gpu_num"] + raw["idle_gpu_num"]).groupby(raw["vc"]).max()
    idle_w, span_w = NODE_SHARE_W + IDLE_GPU_W, _active_w() - IDLE_GPU_W
    curves, bounds = {}, {}
    for vc, gpus in size.astype(float).items():
        curves[REPLAYED_POOL + vc] = PowerCurve(f"gpu_demand/{vc}", gpus * idle_w, span_w, max(gpus, 1.0))
        bounds[REPLAYED_POOL + vc] = (gpus * idle_w, gpus * (idle_w + span_w))
    low, high = zip(*bounds.values(), strict=True)
    return curves, {**bounds, REPLAYED_SITE: (sum(low), sum(high))}


def public_jobs(root: Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """Philly jobs of the four virtual clusters that fit a 96-GPU cluster together.

    The trace names no classes: jobs of one GPU are taken as ``fine_tuning``, larger ones as ``training``, by what was known on submission.
    Requested times are modelled (``public_traces.model_requests``).
    """
    _require(root)
    jobs, counts = read_philly_gavel(
        root / PHILLY,
        root / THROUGHPUTS,
        start=PHILLY_START,
        vcs=("6214e9", "b436b2", "103959", "ed69ec"),
        max_duration_s=LONGEST_JOB_S,
        request_seed=REQUEST_SEED,
    )
    inside = jobs["submit_time"] < pd.Timestamp(PHILLY_START, tz="UTC") + pd.Timedelta(days=SPAN_DAYS)
    counts["after_span"] = int((~inside).sum())
    jobs = jobs[inside].reset_index(drop=True)
    jobs["workload_class"] = np.where(jobs["gpus"] * jobs["workers"] <= 1, "fine_tuning", "training")
    return jobs, counts


def load_trace(kind: str, root: Path, options: Mapping[str, Any] | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Canonical jobs of a public trace (a ``kind`` of ``conf/trace``) under ``root``, and counts of what was left out.

    Args:
        options: keyword arguments of the trace's reader. Jobs that state no class get one by their shape.

    Raises:
        InputError: unknown kind or option, or a file that is missing.
    """
    if kind == "philly" and not options:
        return public_jobs(root)
    if kind not in READERS:
        raise InputError(f"no job trace '{kind}'", allowed=", ".join(("philly", *READERS)))
    reader, file = READERS[kind]
    try:
        jobs, counts = reader(root / file, **dict(options or {}))
    except TypeError as error:
        raise InputError(str(error), where=f"trace '{kind}', options") from error
    return tag_classes(jobs), counts


def public_grid(root: Path, zones: dict[str, str]) -> pd.DataFrame:
    """ISO prices, carbon intensity and temperature; ``zones`` maps our sites to the sources' zones."""
    _require(root)
    of_zone = {zone: site for site, zone in zones.items()}
    return read_public_grid(root / PRICES, root / CARBON, of_zone, temperature_path=root / TEMPERATURE)[0]

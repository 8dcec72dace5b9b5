"""Grids and loads of the agent's benchmark: public traces of months and jobs that ``experiment=real_traces`` does not train on.

python -m benchmarks.agent_data GRID LOAD FOLDER [--traces DIR]

writes one of them as ``jobs.parquet`` and ``grid.csv``, for ``python -m pipelines.evaluate`` with all that it can tell of a policy.

Every grid is brought to April to June 2022. Both sites of the cluster are on the same grid, so that a policy can choose when and on which
GPUs, not where; only ``CAISO+NYIS`` has a site on each.

| grid | price | carbon intensity | temperature |
|---|---|---|---|
| CAISO, NYIS, CAISO+NYIS | ISO, 2022 | Electricity Maps, life cycle, 2022 | Open-Meteo, 2022 |
| ERCOT | day-ahead, hub average, same weeks of 2021 | EPA AVERT, Texas, marginal, same weeks of 2023; below 0 taken as 0 | none: 15 °C |
| PJM | none in the traces: NYIS's, 2022 | EIA-930 generation mix, 2022; missing hours as the day before | none: 15 °C |
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.forecast_data import traces_root
from benchmarks.simulator_worlds import capacity
from envs.cluster import ClusterSpec
from envs.cluster_io import load_cluster
from envs.worlds.transform import thin
from pipelines.cli import CONF_DIR
from pipelines.stages.real_traces import (
    LONGEST_JOB_S,
    PHILLY,
    PHILLY_START,
    PRICES,
    REQUEST_SEED,
    SPAN_DAYS,
    THROUGHPUTS,
    public_grid,
)
from telemetry.errors import InputError
from telemetry.readers.public_traces import read_iso_prices, read_philly_gavel

CLUSTER = "two_site"
ERCOT = "d_grid/ercot_dam_2021.parquet"
AVERT = "d_grid/epa_avert_2023_co2_lb_per_kwh.parquet"
EIA_PJM = "d_grid/eia_2022_PJM.parquet"
GRIDS: dict[str, dict[str, str]] = {
    "CAISO": {"west": "US-CAL-CISO", "east": "US-CAL-CISO"},
    "NYIS": {"west": "US-NY-NYIS", "east": "US-NY-NYIS"},
    "CAISO+NYIS": {"west": "US-CAL-CISO", "east": "US-NY-NYIS"},
    "ERCOT": {},
    "PJM": {},
}
LOADS: dict[str, float] = {"light": 0.25, "heavy": 0.75}
# Training's jobs end with its span; after eight more weeks hardly any jobs are submitted.
HELD_OUT_FROM = pd.Timestamp(PHILLY_START, tz="UTC") + pd.Timedelta(days=SPAN_DAYS)
HELD_OUT_WEEKS = 8
WEEK = pd.Timedelta(weeks=1)
YEAR = 52 * WEEK  # keeps the day of the week
KG_PER_LB = 0.45359237


@dataclass(frozen=True)
class HeldOut:
    """Jobs and the span that windows are cut from."""

    jobs: pd.DataFrame
    start: pd.Timestamp
    end: pd.Timestamp
    offered: float

    @property
    def months(self) -> list[str]:
        return [str(month) for month in pd.period_range(self.start.tz_localize(None), self.end.tz_localize(None), freq="M")]


def held_out_jobs(root: Path, cluster: ClusterSpec, load: float, seed: int = 0) -> HeldOut:
    """Philly jobs of all ten virtual clusters after the span that training knows, thinned or repeated to an offered load.

    Offered load = GPU-hours at the reference speed over those that the cluster has in the span. Repeated jobs come a whole number of weeks
    later (around the end of the span to its begin), at the hour and on the day of the week of the originals. Classes are by size as in
    training: one GPU ``fine_tuning``, more ``training``.
    """
    jobs, _ = read_philly_gavel(
        root / PHILLY, root / THROUGHPUTS, start=PHILLY_START, max_duration_s=LONGEST_JOB_S, request_seed=REQUEST_SEED
    )
    end = HELD_OUT_FROM + HELD_OUT_WEEKS * WEEK
    jobs = jobs[(jobs["submit_time"] >= HELD_OUT_FROM) & (jobs["submit_time"] < end)].reset_index(drop=True)
    jobs["workload_class"] = np.where(jobs["gpus"] * jobs["workers"] <= 1, "fine_tuning", "training")
    hours = (end - HELD_OUT_FROM) / pd.Timedelta(hours=1) * capacity(cluster)
    jobs = repeated(jobs, load / (_gpu_hours(jobs) / hours), HELD_OUT_FROM, HELD_OUT_WEEKS, seed)
    return HeldOut(jobs, HELD_OUT_FROM, end, _gpu_hours(jobs) / hours)


def repeated(jobs: pd.DataFrame, factor: float, start: pd.Timestamp, weeks: int, seed: int) -> pd.DataFrame:
    """``factor`` times as many jobs: whole copies moved by weeks within ``[start, start + weeks)``, and a random share for the rest."""
    if not 0 < factor <= weeks:
        raise InputError(f"{factor:.2f} times the jobs", where="load", allowed=f"above 0, at most {weeks} (a copy for every week)")
    whole, parts = int(factor), []
    for copy in range(whole + 1):
        taken = jobs if copy < whole else thin(jobs, factor - whole, seed) if factor > whole else jobs.iloc[:0]
        moved = (taken["submit_time"] - start + copy * WEEK) % (weeks * WEEK)
        parts.append(taken.assign(submit_time=start + moved, job_id=taken["job_id"] + (f"+{copy}" if copy else "")))
    return pd.concat(parts, ignore_index=True).sort_values(["submit_time", "job_id"], ignore_index=True)


def _gpu_hours(jobs: pd.DataFrame) -> float:
    return float((jobs["duration_s"] * jobs["gpus"] * jobs["workers"]).sum() / 3600)


def grid_of(root: Path, name: str, sites: tuple[str, ...]) -> tuple[pd.DataFrame, list[str]]:
    """Canonical grid of a benchmark's grid, and what was repaired or replaced.

    Raises:
        InputError: an unknown name.
    """
    if name not in GRIDS:
        raise InputError(f"no grid '{name}'", where="--grids", allowed=", ".join(GRIDS))
    if name in ("ERCOT", "PJM"):
        one, notes = _ercot(root) if name == "ERCOT" else _pjm(root)
        one = one.assign(renewable_fraction=0.0, temperature_c=15.0)
    else:
        zones = dict(zip(sites, GRIDS[name].values(), strict=True))
        if len(set(zones.values())) == len(zones):
            return public_grid(root, zones), []
        one, notes = public_grid(root, {sites[0]: zones[sites[0]]}).drop(columns="site"), []
    return pd.concat([one.assign(site=site) for site in sites], ignore_index=True), notes


def _ercot(root: Path) -> tuple[pd.DataFrame, list[str]]:
    raw = pd.read_parquet(root / ERCOT)
    raw = raw[raw["Settlement Point"] == "HB_BUSAVG"]
    begin = pd.to_datetime(raw["Delivery Date"], format="%m/%d/%Y") + pd.to_timedelta(raw["Hour Ending"].str[:2].astype(int) - 1, unit="h")
    # The hour that the end of summer time repeats is marked: the first one is still summer time.
    time = begin.dt.tz_localize("America/Chicago", ambiguous=(raw["Repeated Hour Flag"] == "N").to_numpy()).dt.tz_convert("UTC")
    price = pd.DataFrame({"time": time + YEAR, "price_usd_per_kwh": raw["Settlement Point Price"].astype(float) / 1000})
    factor = pd.read_parquet(root / AVERT, columns=["Timestamp", "TE"]).rename(columns={"TE": "lb"})
    standard = pd.Timestamp("2023-01-01") + pd.to_timedelta(factor["Timestamp"], unit="h")
    carbon = pd.DataFrame({"time": (standard + pd.Timedelta(hours=6)).dt.tz_localize("UTC") - YEAR, "kg": factor["lb"] * KG_PER_LB})
    table = price.merge(carbon, on="time", validate="one_to_one").sort_values("time", ignore_index=True)
    below = int((table["kg"] < 0).sum())
    table["carbon_g_per_kwh"] = 1000 * table["kg"].clip(lower=0.0)
    notes = ["ERCOT: prices of 2021 and marginal intensities of 2023 at the same weeks of 2022", f"ERCOT: {below} intensities below 0"]
    return table.drop(columns="kg"), notes


def _pjm(root: Path) -> tuple[pd.DataFrame, list[str]]:
    raw = pd.read_parquet(root / EIA_PJM)
    carbon = pd.DataFrame({"time": pd.to_datetime(raw["timestamp"], utc=True), "carbon_g_per_kwh": raw["avg_CI"].astype(float)})
    carbon = carbon.sort_values("time", ignore_index=True)
    # Hours in which most fuels are missing give intensities far below the days around them.
    partial = carbon["carbon_g_per_kwh"] < 0.75 * carbon["carbon_g_per_kwh"].rolling(49, center=True, min_periods=10).median()
    broken = carbon["carbon_g_per_kwh"].isna() | partial
    values = carbon["carbon_g_per_kwh"].mask(broken)
    carbon["carbon_g_per_kwh"] = values.fillna(values.shift(24))
    price, _ = read_iso_prices(root / PRICES, {"US-NY-NYIS": "price"})
    table = price.drop(columns="site").merge(carbon, on="time", validate="one_to_one").sort_values("time", ignore_index=True)
    return table, [
        "PJM: no price in the traces, NYIS's stands in",
        f"PJM: {int(broken.sum())} hours of intensity replaced by the day before",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Write jobs and grid of one cell, and print the command that evaluates policies on it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agent_data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("grid", choices=list(GRIDS))
    parser.add_argument("load", choices=list(LOADS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=Path, default=None)
    options = parser.parse_args(arguments)
    root, cluster = options.traces or traces_root(), load_cluster(CLUSTER, CONF_DIR)
    held = held_out_jobs(root, cluster, LOADS[options.load])
    table, notes = grid_of(root, options.grid, tuple(site.name for site in cluster.sites))
    around = (table["time"] >= held.start - 2 * WEEK) & (table["time"] < held.end + 2 * WEEK)
    options.folder.mkdir(parents=True, exist_ok=True)
    held.jobs.to_parquet(options.folder / "jobs.parquet", index=False)
    table[around].to_csv(options.folder / "grid.csv", index=False)
    print("\n".join([f"{len(held.jobs):,} jobs, offered load {held.offered:.2f}, {', '.join(held.months)}", *notes]))
    print(
        f"python -m pipelines.evaluate jobs={options.folder}/jobs.parquet grid={options.folder}/grid.csv cluster={CLUSTER} window_hours=48"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

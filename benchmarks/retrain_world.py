"""The smallest world that can be retrained on: 75 days of jobs whose daily rhythm turns over after 30, and prices of two sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

MODEL = "workload-forecaster"
DAYS, TURN_DAY = 75, 30
POOLS = 3
START = pd.Timestamp("2026-01-05", tz="UTC")
SITES = ("west", "east")


def write_world(folder: Path, seed: int = 0) -> None:
    """``jobs.csv`` and ``grid.csv``: about thirty jobs of forty minutes an hour, most by day up to ``TURN_DAY``, then most by night."""
    rng = np.random.default_rng(seed)
    hours = np.arange(DAYS * 24)
    phase = np.where(hours < TURN_DAY * 24, 0.0, np.pi)
    counts = rng.poisson(30.0 + 25.0 * np.sin(2 * np.pi * hours / 24 + phase))
    submit_s = np.sort(np.repeat(hours * 3600, counts) + rng.integers(0, 3600, counts.sum()))
    jobs = pd.DataFrame({"job_id": [f"job-{place}" for place in range(len(submit_s))]})
    jobs["submit_time"] = [moment.isoformat() for moment in START + pd.to_timedelta(submit_s, unit="s")]
    jobs = jobs.assign(duration_s=rng.integers(1200, 3600, len(jobs)), gpus=1, workers=1, workload_class="training", team="a", project="b")
    jobs["pool"] = [f"pool-{place % POOLS}" for place in range(len(jobs))]  # none of the cluster's: no reserve is simulated
    jobs["start_time"] = jobs["submit_time"]
    jobs.to_csv(folder / "jobs.csv", index=False)
    times = [moment.isoformat() for moment in START + pd.to_timedelta(hours, unit="h")]
    sites = [pd.DataFrame({"time": times, "site": site, "price_usd_per_kwh": 0.05, "carbon_g_per_kwh": 300.0}) for site in SITES]
    pd.concat(sites).to_csv(folder / "grid.csv", index=False)


def overrides(folder: Path) -> list[str]:
    """Arguments of ``python -m pipelines.retrain`` for the world in ``folder``; everything is kept there."""
    files = f"[{{path: {folder}/jobs.csv, reader: jobs_table}}, {{path: {folder}/grid.csv, reader: grid}}]"
    return [
        "source=files",
        f"source.files={files}",
        f"lake.root={folder}/lake",
        "cluster=small",
        "target=workload",
        "target.freq=1h",
        "target.horizon=6",
        "target.season_length=24",
        "backtest=quick",
        "backtest.origins=20",
        "forecaster=lightgbm",
        "forecaster.n_estimators=60",
        "forecaster.min_data_in_leaf=20",
        "engine.workers=1",
        "reserve.required=false",
        "+registry.gates.turned_off.seed_stability='sixty trees on a rhythm that has just turned: seeds differ'",
        f"registry.tracking_uri=sqlite:///{folder}/mlflow.db",
        f"registry.artifact_root={folder}/artifacts",
        f"state={folder}/state",
        f"triggers={folder}/triggers.jsonl",
        f"models={MODEL}",
    ]


def until(day: float) -> str:
    """Override for a run at that day of the world."""
    return f"now={(START + pd.Timedelta(days=day)).tz_localize(None).isoformat()}"

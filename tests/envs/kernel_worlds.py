"""Small worlds for the tests of the compiled simulator."""

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.windows import WindowTables, prepare_jobs
from envs.world import build_world
from telemetry.classes import WORKLOAD_CLASSES

START = pd.Timestamp("2024-01-08", tz="UTC")


def cluster(nodes=2, gpus=4, **pool):
    """Two sites, two pools."""
    pools = (PoolSpec("v", "east", "V100", nodes, gpus, **pool), PoolSpec("a", "west", "A100", nodes, gpus, **pool))
    return ClusterSpec("test", (SiteSpec("east"), SiteSpec("west")), pools)


def grid(sites=("east", "west"), days=10, step="1h", price=None, carbon=None, temperature=10.0):
    """Constant 0.1 USD/kWh and 400 g/kWh, or daily profiles of 24 hourly values."""
    times = pd.date_range(START - pd.Timedelta(days=2), START + pd.Timedelta(days=days), freq=step)
    hour = times.hour.to_numpy()
    prices = np.full(len(times), 0.1) if price is None else np.asarray(price, dtype=float)[hour]
    carbons = np.full(len(times), 400.0) if carbon is None else np.asarray(carbon, dtype=float)[hour]
    rows = {"price_usd_per_kwh": prices, "carbon_g_per_kwh": carbons, "renewable_fraction": 0.25, "temperature_c": temperature}
    return pd.concat([pd.DataFrame({"time": times, "site": site, **rows}) for site in sites], ignore_index=True)


def job(job_id, submit_s=0, duration_s=3600, gpus=1.0, workers=1, workload_class="interactive", **more):
    return {
        "job_id": job_id,
        "submit_time": START + pd.Timedelta(seconds=submit_s),
        "duration_s": duration_s,
        "gpus": gpus,
        "workers": workers,
        "workload_class": workload_class,
        "requested_duration_s": duration_s,
    } | more


def world_of(spec, rows, table=None, **more):
    """One window with the given jobs."""
    columns = list(job("x"))
    jobs = prepare_jobs(pd.DataFrame(rows, columns=None if rows else columns), spec)
    return build_world(spec, [WindowTables(START, jobs, grid() if table is None else table)], **more)


def random_rows(seed, count, span_s=40_000):
    rng = np.random.default_rng(seed)
    return [
        job(
            f"j{index:03d}",
            submit_s=int(rng.integers(0, span_s)),
            duration_s=int(rng.integers(1, 12_000)),
            gpus=float(rng.choice([0.2, 0.35, 0.5, 1, 2, 3, 4])),
            workers=int(rng.choice([1, 1, 2, 3])),
            workload_class=str(rng.choice(WORKLOAD_CLASSES)),
            requested_duration_s=int(rng.integers(1, 14_000)),
            priority=int(rng.integers(0, 3)),
            max_watts=float(rng.choice([np.inf, 900.0, 150.0])),
            gpu_utilization=float(rng.random()),
            gpu_model=[None, None, "V100", "A100"][int(rng.integers(4))],
        )
        for index in range(count)
    ]


def daily_grid(seed):
    rng = np.random.default_rng(seed)
    return grid(price=rng.uniform(-0.02, 0.3, 24), carbon=rng.uniform(50, 600, 24), temperature=22.0)


def random_world(seed, count=25, nodes=2, windows=1, **more):
    spec = cluster(nodes=nodes)
    tables = []
    for window in range(windows):
        jobs = prepare_jobs(pd.DataFrame(random_rows(seed * 100 + window, count)), spec)
        tables.append(WindowTables(START, jobs, daily_grid(seed + window)))
    return build_world(spec, tables, **more)


def windows_of(spec, windows, table):
    """One window for each list of jobs, all on the same grid."""
    return build_world(spec, [WindowTables(START, prepare_jobs(pd.DataFrame(rows), spec), table) for rows in windows])

"""The warm reserve that forecasts set, played in the simulator: what each forecaster costs in kWh, USD and missed objectives.

A window is the horizon of one forecast of the backtest: it begins at ``issued_at``, and what was forecast then decides how many nodes of
each pool are kept awake until the horizon ends (afterwards none is). Jobs that run or wait at that moment are carried over with what is
left of them. Each pool is a cluster of its own, so that the jobs which made its demand are the jobs that meet its reserve; a window's
figures are the sums over pools. All forecasters play the very same windows, so differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec, PoolSpec
from envs.evaluate import paired_difference, window_metrics
from envs.heuristics import Judge
from envs.job_table import prepare_jobs
from envs.kernel import run_policy
from envs.kernel_choosers import TIGHTEST
from envs.reserve import with_reserve
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.windows import DAY_S, WindowTables
from envs.world import World, build_world
from models.base import QUANTILE_COLUMNS
from models.metrics import quantile_at
from telemetry.errors import InputError

SERIES = "gpu_demand/{pool}"
PERFECT, NO_SLEEP, ALWAYS_SLEEP = "perfect", "no_sleep", "always_sleep"
BOUNDS = (PERFECT, NO_SLEEP, ALWAYS_SLEEP)
SUMS = ("energy_kwh", "idle_kwh", "cost_usd", "carbon_kg", "penalty_usd", "objective_usd", "late_starts", "missed_deadlines", "sla_misses")
FIGURES = (*SUMS, "sla_violation_rate", "waited_gpu_hours", "total_usd")


@dataclass(frozen=True)
class PoolCase:
    """One pool's windows. ``issued`` are their starts, tz-naive UTC; ``demand`` is what came, GPUs ``[M, H]``, NaN where not observed."""

    pool: PoolSpec
    world: World
    issued: pd.DatetimeIndex
    demand: np.ndarray
    step: pd.Timedelta

    @property
    def capacity(self) -> int:
        """GPUs of the pool."""
        return self.pool.nodes * self.pool.gpus_per_node

    def tables(self, gpus: np.ndarray) -> list[pd.DataFrame]:
        """Reserve tables that keep ``gpus`` ``[M, H]`` ready, in whole nodes; GPUs that are not known (NaN) take the last known step.

        The nodes of a step cover its end and as many steps ahead as a wake takes, so that they are awake when demand is there.
        """
        filled = pd.DataFrame(gpus).ffill(axis=1).bfill(axis=1).fillna(0.0).to_numpy()
        nodes = np.ceil(np.clip(filled, 0.0, self.capacity) / self.pool.gpus_per_node - 1e-9).astype(np.int64)
        ahead = math.ceil(self.pool.wake_latency_s / self.step.total_seconds())
        later = [nodes[:, np.minimum(np.arange(nodes.shape[1]) + k, nodes.shape[1] - 1)] for k in range(ahead)]
        kept = np.pad(np.max(later, axis=0), ((0, 0), (0, 1)))  # [M, H + 1], none after the horizon
        moments = np.arange(kept.shape[1]) * self.step
        starts = self.issued.tz_localize("UTC")
        return [pd.DataFrame({"time": at + moments, "pool": self.pool.name, "nodes": row}) for at, row in zip(starts, kept, strict=True)]


def with_wake_latency(cluster: ClusterSpec, seconds: int | None) -> ClusterSpec:
    """The cluster with another wake latency of all its nodes; None = its own."""
    if seconds is None:
        return cluster
    return replace(cluster, pools=tuple(replace(pool, wake_latency_s=seconds) for pool in cluster.pools))


def pools_with_demand(cluster: ClusterSpec, jobs: pd.DataFrame, series: Iterable[str]) -> list[PoolSpec]:
    """Pools whose demand is forecast and whose jobs are known to have been theirs."""
    known, ran_in = set(series), set(jobs["pool"].dropna().unique()) if "pool" in jobs else set()
    return [pool for pool in cluster.pools if SERIES.format(pool=pool.name) in known and pool.name in ran_in]


def reserve_capacity(cluster: ClusterSpec, series: Iterable[str]) -> dict[str, float]:
    """GPUs that can be kept warm for each demand series of the cluster's pools."""
    known = set(series)
    wanted = {SERIES.format(pool=pool.name): float(pool.nodes * pool.gpus_per_node) for pool in cluster.pools}
    return {uid: gpus for uid, gpus in wanted.items() if uid in known}


def carried_over(jobs: pd.DataFrame, start: pd.Timestamp) -> pd.DataFrame:
    """Jobs that ran or waited at ``start``, submitted then with what is left of them; without a start time a job ran from its submission.

    A deadline that has passed by then is left out: no reserve can meet it.
    """
    submit = jobs["submit_time"]
    begin = jobs.get("start_time", submit).fillna(submit)
    took = pd.to_timedelta(jobs["duration_s"], unit="s")
    end = jobs.get("end_time", begin + took).fillna(begin + took)
    there = (submit < start) & (end > start)
    rows, begin, end = jobs[there].copy(), begin[there], end[there]
    left = ((end - start) / (end - begin)).clip(upper=1.0).astype(float)
    rows["duration_s"] = np.maximum(rows["duration_s"] * left, 1.0)
    if "requested_duration_s" in rows:
        rows["requested_duration_s"] = np.maximum(rows["requested_duration_s"] - (1.0 - left) * jobs["duration_s"][there], 1.0)
    if "deadline" in rows:
        rows["deadline"] = rows["deadline"].where(rows["deadline"] > start)
    rows["submit_time"] = start
    return rows


def pool_case(
    cluster: ClusterSpec, pool: PoolSpec, jobs: pd.DataFrame, grid: pd.DataFrame, forecasts: pd.DataFrame, freq: str, horizon: int
) -> PoolCase:
    """The windows of one pool.

    Args:
        jobs: canonical jobs; those whose ``pool`` it is are played.
        grid: canonical grid; brought to ``freq`` where its steps are longer.
        forecasts: ``unique_id, issued_at, ds, y`` rows of the windows wanted, one forecaster's.

    Raises:
        InputError: no forecast of the pool's demand.
    """
    rows = forecasts[forecasts["unique_id"] == SERIES.format(pool=pool.name)]
    if rows.empty:
        raise InputError(f"no forecast of {SERIES.format(pool=pool.name)}", where="reserve", remedy="forecast the demand of the pool")
    step = pd.Timedelta(freq)
    issued = pd.DatetimeIndex(sorted(rows["issued_at"].unique()))
    site = next(site for site in cluster.sites if site.name == pool.site)
    alone = replace(cluster, sites=(site,), pools=(pool,), maintenance=())
    own = jobs[jobs["pool"] == pool.name].drop(columns=["gpu_model", "data_gib", "data_site"], errors="ignore")
    table = _at_freq(grid[grid["site"] == site.name], step)
    length_s = int(horizon * step.total_seconds())
    starts = list(issued.tz_localize("UTC"))
    played = _played(own, starts, length_s, alone)
    windows = []
    for number, start in enumerate(starts):
        near = table[table["time"].between(start - pd.Timedelta(seconds=DAY_S), start + pd.Timedelta(seconds=length_s + DAY_S))]
        windows.append(WindowTables(start, played[played["reserve_window"] == number], near.reset_index(drop=True), length_s))
    return PoolCase(pool, build_world(alone, windows), issued, _wide(rows, rows["y"].to_numpy(), issued, step, horizon), step)


def _played(jobs: pd.DataFrame, starts: list[pd.Timestamp], length_s: int, cluster: ClusterSpec) -> pd.DataFrame:
    """Prepared jobs of all windows, with the number of their window: those carried over, and those submitted in it."""
    parts = []
    for number, start in enumerate(starts):
        inside = jobs["submit_time"].between(start, start + pd.Timedelta(seconds=length_s), inclusive="left")
        part = pd.concat([carried_over(jobs, start), jobs[inside]], ignore_index=True)
        parts.append(part.assign(reserve_window=number, job_id=f"{number}/" + part["job_id"].astype(str)))
    return prepare_jobs(pd.concat(parts, ignore_index=True), cluster)


def reserves_of(case: PoolCase, forecasts: pd.DataFrame, fractile: float) -> dict[str, list[pd.DataFrame]]:
    """Reserve tables by name: each forecaster at the fractile, the demand itself, all nodes, and none."""
    rows = forecasts[forecasts["unique_id"] == SERIES.format(pool=case.pool.name)]
    horizon = case.demand.shape[1]
    gpus = {
        str(name): _wide(
            own, quantile_at(own[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64), fractile), case.issued, case.step, horizon
        )
        for name, own in rows.groupby("model", sort=False)
    }
    for name, ready in gpus.items():
        unknown = np.isnan(ready).all(axis=1)
        if unknown.any():  # would count as a reserve of nothing, which saves energy
            missing = f"{int(unknown.sum())} of {len(ready)} windows without a forecast"
            raise InputError(missing, where=f"reserve by {name}", allowed="one for each window")
    gpus |= {
        PERFECT: case.demand,
        NO_SLEEP: np.full_like(case.demand, float(case.capacity)),
        ALWAYS_SLEEP: np.zeros_like(case.demand),
    }
    return {name: case.tables(values) for name, values in gpus.items()}


def play(case: PoolCase, tables: list[pd.DataFrame], reward: RewardSpec, sleep_after_s: int) -> pd.DataFrame:
    """Figures of each window under one reserve.

    ``idle_kwh`` is what no running job is charged for, ``waited_gpu_hours`` the time from submission to start times GPUs, and ``total_usd``
    energy, carbon and that waiting, priced as in ``reward`` (waiting like lateness): it sets a reserve's cost against its use.
    """
    policy = Judge("reserve", PolicySettings(sleep_after_s=sleep_after_s, queue_order="fcfs"), TIGHTEST, "fullest node first, full power")
    world = with_reserve(case.world, tables)
    totals = run_policy(world, policy, reward)
    frame = window_metrics(world, totals, reward)
    count = np.arange(world.jobs.submit_s.shape[1])[None, :] < world.jobs.count[:, None]
    waited_s = np.where(count & (totals.job_start_s >= 0), totals.job_start_s - world.jobs.submit_s, 0)
    gpus = world.jobs.gpu_milli * world.jobs.workers / 1000.0
    waited_gpu_hours = (waited_s * gpus).sum(axis=1) / 3600.0
    priced = reward.carbon_usd_per_kg * frame["carbon_kg"] + reward.late_usd_per_gpu_hour * waited_gpu_hours
    return frame.assign(
        idle_kwh=totals.idle_energy_kwh.sum(axis=(1, 2)),
        waited_gpu_hours=waited_gpu_hours,
        total_usd=frame["cost_usd"] + priced,
        sla_misses=(frame["sla_violation_rate"] * frame["jobs_submitted"]).fillna(0.0).round(),
    )


def compare_reserves(
    cluster: ClusterSpec,
    jobs: pd.DataFrame,
    grid: pd.DataFrame,
    forecasts: pd.DataFrame,
    *,
    freq: str,
    horizon: int,
    fractile: float,
    reward: RewardSpec,
    sleep_after_s: int = 0,
) -> pd.DataFrame:
    """Every forecaster's reserve, and the three bounds, in the windows of ``forecasts``.

    Args:
        forecasts: test rows of the backtest: ``unique_id, issued_at, ds, model, q10 ... q90, y``.
        sleep_after_s: idle nodes beyond the reserve sleep after so many seconds.

    Returns:
        One row per (policy, window): ``policy`` (the forecaster's name), ``window, window_start, jobs_submitted`` and ``FIGURES``, summed
        over pools. Empty when no pool has both jobs and a forecast of its demand.
    """
    begins = pd.DatetimeIndex(forecasts["issued_at"]).tz_localize("UTC")
    lasts = begins + horizon * pd.Timedelta(freq)
    forecasts = forecasts[(begins >= grid["time"].min()) & (lasts <= grid["time"].max())]  # where price and carbon are known
    pools = pools_with_demand(cluster, jobs, forecasts["unique_id"].unique())
    first = forecasts[forecasts["model"] == forecasts["model"].iloc[0]] if len(forecasts) else forecasts
    parts = []
    for pool in pools:
        case = pool_case(cluster, pool, jobs, grid, first, freq, horizon)
        for name, tables in reserves_of(case, forecasts, fractile).items():
            parts.append(play(case, tables, reward, sleep_after_s).assign(policy=name))
    if not parts:
        return pd.DataFrame(columns=["policy", "window", "window_start", "jobs_submitted", *FIGURES])
    keys = ["policy", "window", "window_start"]
    frame = pd.concat(parts).groupby(keys, sort=False, as_index=False)[["jobs_submitted", *SUMS, "waited_gpu_hours", "total_usd"]].sum()
    frame["sla_violation_rate"] = frame["sla_misses"] / frame["jobs_submitted"].clip(lower=1)
    return frame


def summarise_reserves(frame: pd.DataFrame, reference: str) -> dict[str, dict[str, dict[str, float]]]:
    """Sums and means per forecaster (``means``), and their differences to the reference with 95 % intervals (``paired``).

    ``sla_violation_rate`` of ``means`` is over all jobs; ``paired`` holds, per forecaster and figure, what
    ``envs.evaluate.paired_difference`` gives.
    """
    means = frame.groupby("policy", sort=False)[["jobs_submitted", *FIGURES]].mean()
    means["sla_violation_rate"] = means["sla_misses"] / means["jobs_submitted"].where(means["jobs_submitted"] > 0, 1.0)
    paired: dict[str, dict[str, dict[str, float]]] = {}
    for row in paired_difference(frame, reference, metrics=FIGURES).to_dict("records"):
        paired.setdefault(row["policy"], {})[row["metric"]] = {k: v for k, v in row.items() if k not in ("policy", "baseline", "metric")}
    return {"means": means.to_dict("index"), "paired": paired}


def reserve_table(summary: Mapping[str, Mapping[str, Mapping[str, float]]], ratios: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """What the commands print: decision pinball against the naive, then the simulator's figures per window."""
    rows = []
    for name, means in summary["means"].items():
        ratio = ratios.get(name)
        paired = summary["paired"].get(name, {}).get("energy_kwh")
        rows.append(
            {
                "reserve": name,
                "pinball ratio": ratio["ratio"] if ratio else math.nan,
                "95 %": f"[{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio else "",
                **{
                    key: means[key]
                    for key in ("energy_kwh", "idle_kwh", "cost_usd", "late_starts", "missed_deadlines", "waited_gpu_hours", "total_usd")
                },
                "kWh against naive": f"{paired['relative']:+.2%} [{paired['relative_low']:+.2%}, {paired['relative_high']:+.2%}]"
                if paired
                else "",
            }
        )
    return pd.DataFrame(rows)


def _at_freq(grid: pd.DataFrame, step: pd.Timedelta) -> pd.DataFrame:
    """One site's grid in steps of at most ``step``: longer ones are held."""
    times = pd.DatetimeIndex(grid["time"]).sort_values()
    if len(times) < 2 or times[1] - times[0] <= step:
        return grid.reset_index(drop=True)
    fine = pd.date_range(times[0], times[-1] + (times[1] - times[0]) - step, freq=step, name="time")
    columns = [name for name in ("price_usd_per_kwh", "carbon_g_per_kwh", "renewable_fraction", "temperature_c") if name in grid]
    return grid.set_index("time").sort_index()[columns].reindex(fine, method="ffill").assign(site=grid["site"].iloc[0]).reset_index()


def _wide(rows: pd.DataFrame, values: np.ndarray, issued: pd.DatetimeIndex, step: pd.Timedelta, horizon: int) -> np.ndarray:
    """Values of forecast rows as ``[M, H]``, NaN where there is none."""
    out = np.full((len(issued), horizon), np.nan)
    at = issued.get_indexer(pd.DatetimeIndex(rows["issued_at"]))
    ahead = ((rows["ds"] - rows["issued_at"]) // step).to_numpy(dtype=np.int64) - 1
    kept = (at >= 0) & (ahead < horizon)
    out[at[kept], ahead[kept]] = values[kept]
    return out

"""Every total of an episode from its event log and the facts alone, without the simulator (formulas: docs/simulator.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.replay.facts import POOL_WATTS, Facts
from envs.replay.history import AWAKE, DOWN, PLACING, SLEEPING, WAKING, History, history_of

KWH_PER_WS = 1.0 / 3.6e6
UNITS = ("energy_kwh", "cost_usd", "carbon_kg")
IDLE = {AWAKE: "idle", WAKING: "waking", SLEEPING: "sleeping"}
SMALL_SLICES = (1, 2, 3, 4, 7)


@dataclass(frozen=True)
class Recomputed:
    """Totals of one window.

    Attributes:
        sites: by site name: ``energy_kwh, cost_usd, carbon_kg, penalty_usd`` and the first three of each idle state (``idle_energy_kwh``).
        jobs: by job index: ``start_s, end_s, wait_s`` (-1 = never), ``energy_kwh, cost_usd, carbon_kg, penalty_usd, busy_gpu_s,
            late_start, missed_deadline, rejected`` (0 or the reason), ``withdrawn, interruptions``.
        end_s: second of the last event.
        objective_usd: weighted sum (``envs.reward``), before scaling.
    """

    sites: pd.DataFrame
    jobs: pd.DataFrame
    end_s: int
    objective_usd: float


class StepSums:
    """Integral over time of a function that is constant on each step and keeps its last value after the end."""

    def __init__(self, values: np.ndarray, step_s: int) -> None:
        self._values, self._step_s = values, step_s
        self._sums = np.concatenate([[0.0], np.cumsum(values) * step_s])

    def until(self, time_s: np.ndarray) -> np.ndarray:
        step = np.minimum(np.asarray(time_s) // self._step_s, len(self._values) - 1)
        return self._sums[step] + (np.asarray(time_s) - step * self._step_s) * self._values[step]

    def between(self, begin_s: np.ndarray, end_s: np.ndarray) -> np.ndarray:
        return self.until(end_s) - self.until(begin_s)


def recompute(events: pd.DataFrame, facts: Facts) -> Recomputed:
    """Add up what happened.

    Args:
        events: from ``envs.events.events_frame``, or ``events.parquet``; ``time_s, event, job, pool, level, node, extra`` matter.

    Raises:
        InputError: a log that is not whole (:func:`envs.replay.history.history_of`).
    """
    history = history_of(events, facts)
    grid = Integrals(facts)
    jobs = _job_times(events, facts, history)
    sites = pd.DataFrame(0.0, index=pd.Index(facts.sites, name="site"), columns=_site_columns())
    _add_nodes(sites, facts, history, grid)
    _add_runs(sites, jobs, facts, history, grid)
    _add_transfers(sites, jobs, events, facts, grid)
    _add_penalties(sites, jobs, events, facts, history)
    reward, total = facts.reward, sites.sum()
    objective = (
        reward.w_cost * total["cost_usd"]
        + reward.w_carbon * reward.carbon_usd_per_kg * total["carbon_kg"]
        + reward.w_energy * reward.energy_usd_per_kwh * total["energy_kwh"]
        + reward.w_sla * total["penalty_usd"]
    )
    return Recomputed(sites, jobs, history.end_s, float(objective))


def _site_columns() -> list[str]:
    return [*UNITS, "penalty_usd", *(f"{state}_{unit}" for state in IDLE.values() for unit in UNITS)]


class Integrals:
    """Per site, the integrals of 1 kW of IT load: kWh, USD and kg, PUE included."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        rows = [facts.grid[facts.grid["site"] == site].sort_values("step") for site in range(len(facts.sites))]
        self._factors = [
            {unit: (row["pue"] * factor).to_numpy() for unit, factor in zip(UNITS, _per_kwh(row), strict=True)} for row in rows
        ]
        self._plain = [{unit: np.asarray(factor) for unit, factor in zip(UNITS, _per_kwh(row), strict=True)} for row in rows]
        self._sums = [{unit: StepSums(values, facts.step_s) for unit, values in site.items()} for site in self._factors]

    def of_watt(self, site: int, unit: str, begin_s: np.ndarray, end_s: np.ndarray) -> np.ndarray:
        """kWh, USD or kg of one watt drawn from ``begin_s`` to ``end_s``."""
        return self._sums[site][unit].between(begin_s, end_s) * KWH_PER_WS

    def of_load(self, site: int, unit: str, share: np.ndarray, begin_s: np.ndarray, end_s: np.ndarray) -> np.ndarray:
        """The same of one watt times ``share`` [T] of its step."""
        factor = np.ones(1) if unit == "it_kwh" else self._factors[site][unit]
        steps = max(len(factor), len(share))
        factor, share = (np.pad(values, (0, steps - len(values)), mode="edge") for values in (factor, share))
        return StepSums(factor * share, self._facts.step_s).between(begin_s, end_s) * KWH_PER_WS

    def of_kwh(self, site: int, unit: str, time_s: int) -> float:
        """USD or kg of one kWh at a moment, without PUE."""
        values = self._plain[site][unit]
        return float(values[min(time_s // self._facts.step_s, len(values) - 1)])


def _per_kwh(row: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.ones(len(row)), row["price_usd_per_kwh"].to_numpy(), row["carbon_kg_per_kwh"].to_numpy()


def held_milli(gpu_milli: np.ndarray, mig_slices: int) -> np.ndarray:
    """Thousandths of one GPU that a worker holds: shares rounded up to the pool's slice profiles."""
    held = np.asarray(gpu_milli, dtype=np.int64).copy()
    if mig_slices <= 0:
        return held
    profiles = np.array(SMALL_SLICES if mig_slices == 7 else range(1, mig_slices + 1))
    largest = -(-1000 * profiles // mig_slices)
    share = (held > 0) & (held < 1000)
    held[share] = 1000 * profiles[np.searchsorted(largest, held[share])] // mig_slices
    return held


def job_gpus(facts: Facts, job: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """GPUs that the gangs hold in their pools, ``[R]``."""
    milli, workers = facts.jobs["gpu_milli"].to_numpy()[job], facts.jobs["workers"].to_numpy()[job]
    slices = facts.pools["mig_slices"].to_numpy().astype(int)
    gpus = np.zeros(len(job))
    for p in np.unique(pool):
        rows = pool == p
        gpus[rows] = workers[rows] * held_milli(milli[rows], int(slices[p])) / 1000.0
    return gpus


def job_watts(facts: Facts, job: np.ndarray, pool: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of running gangs ``[R]``: watts that do not depend on utilisation, watts at utilisation 1 beyond those, and their idle share."""
    of_pool = {name: facts.pools[name].to_numpy()[pool] for name in (*POOL_WATTS, "gpus_per_node")}
    places = pd.MultiIndex.from_arrays([pool, level, facts.jobs["curve"].to_numpy()[job]])
    active = facts.curves.set_index(["pool", "level", "curve"])["gpu_power_w"].reindex(places).to_numpy()
    gpus = job_gpus(facts, job, pool)
    cpus = (facts.jobs["workers"] * facts.jobs["cpu_milli"] / 1000.0).to_numpy()[job]
    above_idle = active - of_pool["gpu_idle_w"]
    context = np.minimum(of_pool["gpu_context_w"], above_idle)
    fixed = gpus * context + gpus * of_pool["cpu_w_per_gpu"] + cpus * of_pool["cpu_w_per_cpu"]
    share = gpus * (of_pool["node_idle_w"] + of_pool["gpus_per_node"] * of_pool["gpu_idle_w"]) / of_pool["gpus_per_node"]
    return fixed, gpus * (above_idle - context), share


def _add_nodes(sites: pd.DataFrame, facts: Facts, history: History, grid: Integrals) -> None:
    pools = facts.pools
    watts = {
        AWAKE: (pools["node_idle_w"] + pools["gpus_per_node"] * pools["gpu_idle_w"]).to_numpy(),
        WAKING: pools["wake_power_w"].to_numpy(),
        SLEEPING: pools["node_sleep_w"].to_numpy(),
    }
    spans = history.nodes[history.nodes["state"] != DOWN]
    for (pool, state), rows in spans.groupby(["pool", "state"]):
        site = int(pools["site"].iloc[pool])
        for unit in UNITS:
            amount = watts[state][pool] * grid.of_watt(site, unit, rows["begin_s"].to_numpy(), rows["end_s"].to_numpy()).sum()
            sites.loc[facts.sites[site], [unit, f"{IDLE[state]}_{unit}"]] += amount


def _add_runs(sites: pd.DataFrame, jobs: pd.DataFrame, facts: Facts, history: History, grid: Integrals) -> None:
    segments = history.segments
    if segments.empty:
        return
    job, pool, level = (segments[name].to_numpy() for name in ("job", "pool", "level"))
    begin, end = segments["begin_s"].to_numpy(), segments["end_s"].to_numpy()
    fixed, span, share = job_watts(facts, job, pool, level)
    site = facts.pools["site"].to_numpy()[pool]
    service = facts.jobs["service"].to_numpy()[job]
    utilization = facts.jobs["utilization"].to_numpy()[job]
    jobs["busy_gpu_s"] += np.bincount(job, job_gpus(facts, job, pool) * (end - begin), len(jobs))
    dynamic_w = fixed + np.where(service < 0, span * utilization, 0.0)
    shares = replica_shares(facts, job, pool, level, service)
    for at in np.unique(site):
        rows = np.flatnonzero(site == at)
        for unit in UNITS:
            watt = grid.of_watt(int(at), unit, begin[rows], end[rows])
            dynamic = dynamic_w[rows] * watt
            for place, row in enumerate(rows):
                if service[row] >= 0:
                    load = grid.of_load(int(at), unit, shares[int(row)], begin[row : row + 1], end[row : row + 1])
                    dynamic[place] += span[row] * load[0]
            idle_share = share[rows] * watt
            sites.loc[facts.sites[at], unit] += dynamic.sum()
            sites.loc[facts.sites[at], f"idle_{unit}"] -= idle_share.sum()
            jobs[unit] += np.bincount(job[rows], dynamic + idle_share, len(jobs))


def replica_shares(facts: Facts, job: np.ndarray, pool: np.ndarray, level: np.ndarray, service: np.ndarray) -> dict[int, np.ndarray]:
    """Row of a run of a service's replica -> its utilisation in each step."""
    rows = np.flatnonzero(service >= 0)
    if not len(rows):
        return {}
    speed = facts.curves.set_index(["pool", "level", "curve"])["speed"]
    curve = facts.jobs["curve"].to_numpy()
    loads = {key: table.sort_values("step")["load"].to_numpy() for key, table in facts.loads.groupby("service")}
    return {int(row): np.minimum(1.0, loads[service[row]] / speed.loc[(pool[row], level[row], curve[job[row]])]) for row in rows}


def transfers_of(events: pd.DataFrame, facts: Facts) -> Iterator[tuple[int, int, int, float]]:
    """Second, job, destination site and kWh of all data sent: at each placement at another site than where the job's data lies."""
    lies = facts.jobs["data_site"].to_numpy().copy()
    placed = events[events["event"].isin(PLACING)]
    site_of = facts.pools["site"].to_numpy()
    for now, job, pool in zip(placed["time_s"], placed["job"], placed["pool"], strict=True):
        site = int(site_of[pool])
        if lies[job] < 0 or lies[job] == site:
            continue
        lies[job] = site
        yield int(now), int(job), site, float(facts.jobs["transfer_kwh"].iloc[job])


def _add_transfers(sites: pd.DataFrame, jobs: pd.DataFrame, events: pd.DataFrame, facts: Facts, grid: Integrals) -> None:
    for now, job, site, kwh in transfers_of(events, facts):
        for unit in UNITS:
            amount = kwh * grid.of_kwh(site, unit, now)
            sites.loc[facts.sites[site], unit] += amount
            jobs.loc[job, unit] += amount


# ---------------------------------------------------------------- times and penalties


def _job_times(events: pd.DataFrame, facts: Facts, history: History) -> pd.DataFrame:
    count = len(facts.jobs)
    table = pd.DataFrame({name: np.full(count, -1, dtype=np.int64) for name in ("start_s", "end_s", "wait_s")})
    for name in (*UNITS, "penalty_usd", "busy_gpu_s"):
        table[name] = np.zeros(count)
    table["late_start"] = table["missed_deadline"] = False
    table["rejected"] = 0
    table["withdrawn"] = False
    table["interruptions"] = 0
    starts = events[events["event"] == "start"].drop_duplicates("job")
    table.loc[starts["job"], "start_s"] = starts["time_s"].to_numpy()
    ends = history.stays[history.stays["ending"] == "end"]
    table.loc[ends["job"], "end_s"] = ends["stop_s"].to_numpy()
    started = table["start_s"] >= 0
    table.loc[started, "wait_s"] = table["start_s"] - facts.jobs["submit_s"]
    rejects = events[events["event"] == "reject"]
    table.loc[rejects["job"], "rejected"] = rejects["extra"].to_numpy()
    leaves = events[events["event"] == "withdraw"]
    had_started = started.to_numpy()[leaves["job"]]
    table.loc[leaves["job"][had_started], "end_s"] = leaves["time_s"].to_numpy()[had_started]
    table.loc[leaves["job"][~had_started], "withdrawn"] = True
    stops = history.stays.loc[history.stays["ending"] == "interrupt", "job"].value_counts()
    table.loc[stops.index, "interruptions"] = stops.to_numpy()
    return table


def _add_penalties(sites: pd.DataFrame, jobs: pd.DataFrame, events: pd.DataFrame, facts: Facts, history: History) -> None:
    work = facts.jobs
    started = jobs["start_s"] >= 0
    late_s = jobs["start_s"] - work["latest_start_s"]
    jobs["late_start"] = (started & work["start_bound"] & (late_s > 0)) | jobs["withdrawn"]
    over_s = jobs["end_s"] - work["deadline_s"]
    jobs["missed_deadline"] = (jobs["end_s"] >= 0) & (over_s > 0) & (work["until_s"] < 0)
    site_of = facts.pools["site"].to_numpy()
    stays = history.stays
    first = stays[stays["start_s"] >= 0].drop_duplicates("job").set_index("job")["pool"]
    last = stays.drop_duplicates("job", keep="last").set_index("job")["pool"]
    for job in np.flatnonzero(jobs["late_start"] & started):
        _penalise(sites, jobs, facts, job, int(site_of[first[job]]), int(late_s[job]))
    for job in np.flatnonzero(jobs["missed_deadline"]):
        _penalise(sites, jobs, facts, job, int(site_of[last[job]]), int(over_s[job]))
    for now, job in events.loc[events["event"] == "withdraw", ["time_s", "job"]].to_numpy():
        never_late_s = int(now) - int(work["latest_start_s"].iloc[job])
        if jobs["withdrawn"].iloc[job] and never_late_s > 0:
            _penalise(sites, jobs, facts, int(job), 0, never_late_s)


def _penalise(sites: pd.DataFrame, jobs: pd.DataFrame, facts: Facts, job: int, site: int, late_s: int) -> None:
    reward, row = facts.reward, facts.jobs.iloc[job]
    gpus = row["workers"] * row["gpu_milli"] / 1000.0
    hours = min(late_s / 3600.0, reward.late_cap_hours)
    usd = gpus * (reward.miss_usd_per_gpu + reward.late_usd_per_gpu_hour * hours)
    sites.loc[facts.sites[site], "penalty_usd"] += usd
    jobs.loc[job, "penalty_usd"] += usd

"""Where it came from: results of each workload class and of each site, and what intervals and comparisons need beside means.

Energy, cost and carbon of a class are those that its jobs are charged (docs/simulator.md); what no job is charged for is the idle remainder
of the sites, so that all classes and the idle remainder of all sites sum to the whole.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from envs.state import EpisodeTotals
from envs.world import World
from telemetry.classes import WORKLOAD_CLASSES

CLASS_COUNTS: tuple[str, ...] = ("jobs", "jobs_completed", "sla_violations", "late_starts", "missed_deadlines")
CHARGED: tuple[str, ...] = ("energy_kwh", "cost_usd", "carbon_kg")
CLASS_COLUMNS: tuple[str, ...] = (*CLASS_COUNTS, "wait_s", *CHARGED)
SITE_COLUMNS: tuple[str, ...] = (*CHARGED, "idle_energy_kwh")


def class_rows(world: World, totals: EpisodeTotals) -> pd.DataFrame:
    """Sums of each class with jobs in each window.

    Returns:
        ``window, workload_class`` and ``CLASS_COLUMNS``; ``wait_s`` is summed over completed jobs.
    """
    width = world.jobs.submit_s.shape[1]
    live = np.arange(width)[None, :] < world.jobs.count[:, None]  # [M, J]
    window, job = np.nonzero(live)
    start, end = totals.job_start_s[live], totals.job_end_s[live]
    done = end >= 0
    late, missed = totals.job_late_start[live], totals.job_missed_deadline[live]
    table = pd.DataFrame(
        {
            "window": window,
            "workload_class": np.array(WORKLOAD_CLASSES, dtype=object)[world.jobs.kind[live]],
            "jobs": 1,
            "jobs_completed": done.astype(np.int64),
            "sla_violations": (late | missed | (totals.job_rejected[live] > 0)).astype(np.int64),
            "late_starts": late.astype(np.int64),
            "missed_deadlines": missed.astype(np.int64),
            "wait_s": np.where(done, start - world.jobs.submit_s[window, job], 0).astype(np.float64),
            "energy_kwh": totals.job_energy_kwh[window, job],
            "cost_usd": totals.job_cost_usd[window, job],
            "carbon_kg": totals.job_carbon_kg[window, job],
        }
    )
    return table.groupby(["window", "workload_class"], as_index=False)[[*CLASS_COLUMNS]].sum()


def site_rows(world: World, totals: EpisodeTotals) -> pd.DataFrame:
    """Totals of each site in each window: ``window, site`` and ``SITE_COLUMNS``; idle is whatever no running job is charged for."""
    windows, sites = totals.energy_kwh.shape
    names = np.array([site.name for site in world.cluster.sites], dtype=object)
    return pd.DataFrame(
        {
            "window": np.repeat(np.arange(windows), sites),
            "site": np.tile(names, windows),
            **{name: getattr(totals, name).ravel() for name in CHARGED},
            "idle_energy_kwh": totals.idle_energy_kwh.sum(axis=2).ravel(),
        }
    )


class Breakdown:
    """Collects both while policies run (``inspect`` of :func:`envs.evaluate.evaluate`)."""

    def __init__(self) -> None:
        self._classes: list[pd.DataFrame] = []
        self._sites: list[pd.DataFrame] = []

    def __call__(self, policy: str, seed: int, world: World, totals: EpisodeTotals) -> None:
        self._classes.append(class_rows(world, totals).assign(policy=policy, seed=seed))
        self._sites.append(site_rows(world, totals).assign(policy=policy, seed=seed, windows=world.n_windows))

    def by_class(self) -> pd.DataFrame:
        """One row per (policy, class with jobs).

        Counts and amounts are means per window and seed. ``mean_wait_s`` is over all completed jobs and ``sla_violation_rate`` over all
        jobs of the class, windows pooled: many windows hold few jobs of a class.
        """
        runs = self._runs()
        sums = pd.concat(self._classes, ignore_index=True).groupby(["policy", "workload_class"], sort=False)[[*CLASS_COLUMNS]].sum()
        names = [(policy, name) for policy in runs.index for name in WORKLOAD_CLASSES]
        sums = sums.reindex([pair for pair in names if pair in sums.index])
        means = sums.div(runs.reindex(sums.index.get_level_values("policy")).to_numpy(), axis=0)
        waits = sums["wait_s"].div(sums["jobs_completed"].where(sums["jobs_completed"] > 0))
        means = means.drop(columns="wait_s")
        means.insert(len(CLASS_COUNTS), "sla_violation_rate", sums["sla_violations"] / sums["jobs"])
        means.insert(len(CLASS_COUNTS) + 1, "mean_wait_s", waits)
        return means

    def by_site(self) -> pd.DataFrame:
        """One row per (policy, site): means per window and seed, and ``idle_energy_share`` of the kWh of all windows."""
        rows = pd.concat(self._sites, ignore_index=True)
        means = rows.groupby(["policy", "site"], sort=False)[[*SITE_COLUMNS]].mean()
        means["idle_energy_share"] = means["idle_energy_kwh"].div(means["energy_kwh"].where(means["energy_kwh"] > 0))
        return means

    def _runs(self) -> pd.Series:
        """Windows x seeds of each policy."""
        rows = pd.concat([table.iloc[:1][["policy", "windows"]] for table in self._sites], ignore_index=True)
        return rows.groupby("policy", sort=False)["windows"].sum()

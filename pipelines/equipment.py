"""What befalls and what is added to the windows of an evaluation: outages of nodes, and replicas of services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from envs.outages import check_outages, with_outages
from envs.service_report import SERVICE_METRICS, service_metrics
from envs.services import ServicePlan, add_services
from envs.state import EpisodeTotals
from envs.windows import WindowTables
from envs.world import World
from envs.world_arrays import REJECT_REASONS
from pipelines.service_files import load_services
from pipelines.trials import Trial
from telemetry.tables import read_table


def equipped(cfg: DictConfig, trial: Trial) -> tuple[Trial, tuple[ServicePlan, ...]]:
    """The trial with the outages of its cluster and of ``outages=FILE`` and the replicas of ``services=FILE``, and the services' plans."""
    trial = _with_outages(cfg, trial)
    if not cfg.services:
        return trial, ()
    cut = [window for tables in trial.windows.values() for window in tables]
    begin = min(window.start for window in cut)
    end = max(window.start + pd.Timedelta(seconds=max(window.length_s, 1)) for window in cut)
    plans = load_services(str(cfg.services), str(cfg.traces), begin, end)

    def served(by_seed: Mapping[int, list[WindowTables]]) -> dict[int, list[WindowTables]]:
        return {seed: [add_services(window, plans, trial.cluster) for window in tables] for seed, tables in by_seed.items()}

    windows, reported = served(trial.windows), served(trial.reported or {}) or None
    leases = sum(int(window.jobs["until"].notna().sum()) for tables in windows.values() for window in tables)
    names = ", ".join(plan.spec.name for plan in plans)
    return replace(
        trial, windows=windows, reported=reported, notes=[*trial.notes, f"services: {names}; {leases:,} leases in the windows of all seeds"]
    ), plans


def _with_outages(cfg: DictConfig, trial: Trial) -> Trial:
    """The trial with maintenance and failures of its cluster, drawn by each seed, and given outages."""
    given = check_outages(read_table(str(cfg.outages)), trial.cluster, str(cfg.outages)) if cfg.outages else None
    failing = sum(pool.mtbf_hours > 0 for pool in trial.cluster.pools)
    if given is None and not failing and not trial.cluster.maintenance:
        return trial

    def befallen(by_seed: Mapping[int, list[WindowTables]]) -> dict[int, list[WindowTables]]:
        return {seed: with_outages(tables, trial.cluster, seed, given) for seed, tables in by_seed.items()}

    windows, reported = befallen(trial.windows), befallen(trial.reported or {}) or None
    count = sum(len(table.outages) for tables in windows.values() for table in tables if table.outages is not None)
    sources = [f"{failing} pools with failures"] if failing else []
    sources += ["maintenance"] if trial.cluster.maintenance else []
    sources += [str(cfg.outages)] if given is not None else []
    told = f"outages: {count:,} in or after the windows of all seeds ({', '.join(sources)})"
    return replace(trial, windows=windows, reported=reported, notes=[*trial.notes, told])


def rejected_leases(worlds: Mapping[int, World]) -> list[str]:
    """A line for each service and reason for which its replicas are rejected by the cluster."""
    count: Counter[tuple[str, str]] = Counter()
    for world in worlds.values():
        for m, job in zip(*np.nonzero((world.jobs.reject > 0) & (world.jobs.service >= 0)), strict=True):
            count[world.services[m][world.jobs.service[m, job]], REJECT_REASONS[int(world.jobs.reject[m, job])]] += 1
    return [f"service {name}: {number:,} leases can run nowhere ({reason})" for (name, reason), number in count.items()]


class ServiceRows:
    """Collects the metrics of services while policies run (``observe`` of :func:`envs.evaluate.evaluate`)."""

    def __init__(self, trial: Trial, plans: tuple[ServicePlan, ...]) -> None:
        self._trial, self._plans = trial, plans
        self._rows: list[pd.DataFrame] = []

    def __call__(self, policy: str, seed: int, world: World, totals: EpisodeTotals) -> None:
        table = service_metrics(world, self._trial.windows[seed], totals, self._plans)
        self._rows.append(table.assign(policy=policy, seed=seed))

    @property
    def frame(self) -> pd.DataFrame:
        """``policy, service, window, seed`` and ``SERVICE_METRICS``; empty without services."""
        if not self._rows:
            return pd.DataFrame()
        return pd.concat(self._rows, ignore_index=True)[["policy", "service", "window", "seed", *SERVICE_METRICS]]


def service_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of every metric over windows and seeds, one row per (service, policy) in the order of first appearance."""
    return rows.groupby(["service", "policy"], sort=False)[[*SERVICE_METRICS]].mean()

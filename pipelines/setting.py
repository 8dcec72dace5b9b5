"""What policies are played in: the worlds of an evaluation, one a seed, and how its windows are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from envs.cluster import ClusterSpec
from envs.evaluate import evaluate
from envs.reward import RewardSpec
from envs.services import ServicePlan
from envs.state import EpisodeTotals, Policy
from envs.windows import WindowTables
from envs.world import World, build_world
from pipelines.equipment import equipped, rejected_leases
from pipelines.trials import Trial

Observer = Callable[[str, int, World, EpisodeTotals], None]


@dataclass(frozen=True)
class Setting:
    """A trial made ready.

    Attributes:
        plans: of the services whose replicas are among the jobs.
        worlds: by seed, as they are billed.
        seen: by seed, as policies see them where that is not the truth; else empty.
    """

    trial: Trial
    plans: tuple[ServicePlan, ...]
    worlds: dict[int, World]
    seen: dict[int, World]
    reward: RewardSpec
    slowdown_threshold_s: float
    progress: bool

    def play(
        self,
        policies: Mapping[str, Policy],
        *,
        reward: RewardSpec | None = None,
        observe: Observer | None = None,
        inspect: Observer | None = None,
    ) -> pd.DataFrame:
        """Rows of :func:`envs.evaluate.evaluate`, under other weights when ``reward`` is given."""
        return evaluate(
            self.seen or self.worlds,
            policies,
            tuple(self.worlds),
            billed=self.worlds if self.seen else None,
            reward=reward or self.reward,
            slowdown_threshold_s=self.slowdown_threshold_s,
            progress=self.progress,
            observe=observe,
            inspect=inspect,
        )

    def with_cluster(self, cluster: ClusterSpec) -> Setting:
        """The same windows on another cluster of the same sites, pools and nodes."""
        trial = replace(self.trial, cluster=cluster)
        return replace(self, trial=trial, worlds=_worlds(cluster, trial.windows), seen=_worlds(cluster, trial.reported or {}))


def some_windows(world: World, windows: Sequence[int] | np.ndarray) -> World:
    """A world of some windows of another, in the order given."""
    pick = np.asarray(windows, dtype=np.int64)
    lists = {name: getattr(world, name) for name in ("window_start", "job_ids", "outages", "services")}
    return replace(
        world,
        jobs=type(world.jobs)(*(values[pick] for values in world.jobs)),
        grid=type(world.grid)(*(values[pick] for values in world.grid)),
        **{name: tuple(values[m] for m in pick) if values else values for name, values in lists.items()},
    )


def setting_of(cfg: DictConfig, trial: Trial, reward: RewardSpec) -> Setting:
    """The trial with its outages and services, as worlds; leases that can run nowhere are noted."""
    trial, plans = equipped(cfg, trial)
    worlds, seen = _worlds(trial.cluster, trial.windows), _worlds(trial.cluster, trial.reported or {})
    trial.notes.extend(rejected_leases(worlds))
    return Setting(trial, plans, worlds, seen, reward, float(cfg.trace.bounded_slowdown_threshold_s), bool(cfg.progress))


def _worlds(cluster: ClusterSpec, windows: Mapping[int, Sequence[WindowTables]]) -> dict[int, World]:
    return {seed: build_world(cluster, tables) for seed, tables in windows.items()}

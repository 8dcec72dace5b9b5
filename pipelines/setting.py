"""What policies are played in: the worlds of an evaluation, one a seed, and how its windows are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from envs.cluster import ClusterSpec
from envs.evaluate import evaluate
from envs.reward import RewardSpec
from envs.services import ServicePlan
from envs.shield import with_warm_floor
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
        warm_nodes: nodes that stay awake under every policy, by pool.
    """

    trial: Trial
    plans: tuple[ServicePlan, ...]
    worlds: dict[int, World]
    seen: dict[int, World]
    reward: RewardSpec
    slowdown_threshold_s: float
    progress: bool
    warm_nodes: Mapping[str, int] = field(default_factory=dict)

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
        return replace(
            self,
            trial=trial,
            worlds=_worlds(cluster, trial.windows, self.warm_nodes),
            seen=_worlds(cluster, trial.reported or {}, self.warm_nodes),
        )


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


def setting_of(cfg: DictConfig, trial: Trial, reward: RewardSpec, warm_nodes: Mapping[str, int]) -> Setting:
    """The trial with its outages and services, as worlds; leases that can run nowhere are noted."""
    trial, plans = equipped(cfg, trial)
    worlds, seen = _worlds(trial.cluster, trial.windows, warm_nodes), _worlds(trial.cluster, trial.reported or {}, warm_nodes)
    if warm_nodes:
        trial.notes.append(f"under every policy so many nodes stay awake: {dict(warm_nodes)}")
    trial.notes.extend(rejected_leases(worlds))
    return Setting(trial, plans, worlds, seen, reward, float(cfg.trace.bounded_slowdown_threshold_s), bool(cfg.progress), warm_nodes)


def _worlds(cluster: ClusterSpec, windows: Mapping[int, Sequence[WindowTables]], warm_nodes: Mapping[str, int]) -> dict[int, World]:
    return {seed: with_warm_floor(build_world(cluster, tables), warm_nodes) for seed, tables in windows.items()}

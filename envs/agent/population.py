"""Several trainings from different seeds, of which validation keeps the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.agent.config import AgentConfig
from envs.agent.train import Metrics, TrainingResult, Validate, train_agent
from envs.multi_world import MultiWorldVecEnv
from envs.state import PolicySettings
from envs.vec_env import ClusterVecEnv

SEED_STRIDE = 1009  # seeds of members and those of neighbouring runs do not meet


@dataclass(frozen=True)
class Population:
    """All members' results; ``chosen`` is the place of the one with the least objective on the windows to choose on.

    The windows to confirm on take no part in the choice, so that ``result.verdict`` is not flattered by it.
    """

    members: tuple[TrainingResult, ...]
    seeds: tuple[int, ...]
    chosen: int

    @property
    def result(self) -> TrainingResult:
        """The chosen member."""
        return self.members[self.chosen]

    def described(self) -> list[dict[str, Any]]:
        """One row a member, as plain values."""
        rows = []
        for place, (member, seed) in enumerate(zip(self.members, self.seeds, strict=True)):
            row = {"seed": seed, "chosen": place == self.chosen, "best_step": member.best_step, "best_objective_usd": member.best_objective}
            rows.append(row | {"steps": member.curve[-1][0] if member.curve else 0, "stopped_early": member.stopped_early})
            if member.verdict is not None:
                rows[-1]["verdict"] = member.verdict.described()
        return rows


def train_population(
    make_env: Callable[[int], ClusterVecEnv | MultiWorldVecEnv],
    settings: PolicySettings,
    config: AgentConfig,
    validate: Validate,
    *,
    seed: int,
    judge: np.ndarray | None = None,
    checkpoint: Path | None = None,
    report: Callable[[int], Metrics] = lambda member: lambda step, metrics: None,
    start: Mapping[str, np.ndarray] | None = None,
) -> Population:
    """Train ``config.population`` agents one after the other (each uses ``config.threads``) and choose the best.

    Args:
        make_env: training environments of a member by its seed.
        checkpoint: folder that holds a checkpoint of every member; finished members are not trained again.
        report: what each member reports to, by its place.
        start: weights of an earlier agent that every member starts from.
    """
    seeds = tuple(seed + SEED_STRIDE * place for place in range(config.population))
    members = []
    for place, own in enumerate(seeds):
        folder = None if checkpoint is None else checkpoint / f"member-{place}"
        if folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
        env = make_env(own)
        members.append(
            train_agent(env, settings, config, validate, seed=own, judge=judge, checkpoint=folder, report=report(place), start=start)
        )
        env.close()
    chosen = int(np.argmin([member.best_objective for member in members]))
    return Population(tuple(members), seeds, chosen)

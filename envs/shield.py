"""The shield: hard rules outside the network that tighten the mask of a question, from the observation row alone.

The mask already keeps ``max_watts`` and the power budgets of rack, pool and site (docs/simulator.md); the shield trusts it and adds:

| rule | removes |
|---|---|
| ``mask`` | what the mask excludes: a proposal of it is refused |
| ``not_deferrable`` | hold (pause) for a class that is not deferrable, when a run is allowed |
| ``deadline`` | while a run allowed now ends in time by estimate: runs that do not, and hold when none would at the next question |
| ``latest_start`` | the same for the first start of a class whose start is bound |
| ``class_floor`` | runs below the least power level of the class, when another is allowed or the job may wait |

A rule never removes the last action. With a margin, a run must end ``deadline_margin_s + deadline_margin_share x its run time`` before the
deadline; when no run does, the one with most to spare is kept, which is never less strict than without a margin. Estimates are those of
the observation; they can be wrong, and the margin is for that. One code serves training, evaluation and the runtime (docs/shield.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from envs.cluster import DEFAULT_OBJECTIVES, ClassObjective, ClusterSpec
from envs.observation import CANDIDATE_FEATURES, GLOBAL_FEATURES, ObservationLayout
from envs.reserve import with_reserve
from envs.shield_rows import KEPT, MASK, shield_rows
from envs.state import PolicySettings
from envs.world import World
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

RULES: tuple[str, ...] = ("", "mask", "not_deferrable", "latest_start", "deadline", "class_floor")
RULE_WORDS: dict[str, str] = {
    "mask": "the mask excludes it",
    "not_deferrable": "its class is not deferrable",
    "latest_start": "its start would be later than the latest one, and another run is in time",
    "deadline": "by estimate it would miss the deadline, and another run meets it",
    "class_floor": "its power level is below the least of its class",
}
_PLACES = ("valid", "level_fraction", "slack", "start_delay", "runtime", "is_current")
_GLOBAL_PLACES = ("class_training", "latest_start", "deadline", "in_review")


@dataclass(frozen=True)
class ShieldConfig:
    """Settings of the shield and of the fallback.

    Attributes:
        deadline_margin_s, deadline_margin_share: by how much a run must end before its deadline: seconds, and a share of its run time.
        start_margin_s: by how much a bound start must come before the latest one.
        class_floor_level: least power level by class, as a fraction of the board's limit; classes without one have none.
        minimum_warm_nodes: nodes that stay awake, by pool (:func:`with_warm_floor`).
        telemetry_age_s, forecast_age_s: oldest cluster state and newest price that a policy may decide on.
        fallback: judge that answers in its place; the look-ahead, where that is a planner and the policy keeps no plans.
    """

    deadline_margin_s: float = 0.0
    deadline_margin_share: float = 0.0
    start_margin_s: float = 0.0
    class_floor_level: Mapping[str, float] = field(default_factory=dict)
    minimum_warm_nodes: Mapping[str, int] = field(default_factory=dict)
    telemetry_age_s: float = 300.0
    forecast_age_s: float = 7200.0
    fallback: str = "planner"

    def __post_init__(self) -> None:
        for name in ("deadline_margin_s", "deadline_margin_share", "start_margin_s", "telemetry_age_s", "forecast_age_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} {getattr(self, name)}", where="shield", allowed="a finite number from 0")
        for name, level in self.class_floor_level.items():
            if name not in WORKLOAD_CLASSES:
                raise InputError(f"class_floor_level of '{name}'", where="shield", allowed=", ".join(WORKLOAD_CLASSES))
            if not 0.0 <= level <= 1.0:
                raise InputError(f"class_floor_level {level} of '{name}'", where="shield", allowed="0 to 1, of the board's power limit")
        for pool, nodes in self.minimum_warm_nodes.items():
            if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 0:
                raise InputError(f"minimum_warm_nodes {nodes!r} of '{pool}'", where="shield", allowed="a whole number from 0")


class Shield:
    """Rules for the questions of one cluster.

    Args:
        hold_s: seconds until a held job is asked about again, of the policy's settings.
        objectives: service objectives by class.
    """

    def __init__(self, config: ShieldConfig, hold_s: int, objectives: Mapping[str, ClassObjective] = DEFAULT_OBJECTIVES) -> None:
        self.config = config
        self.hold_s = hold_s
        rows = [
            (objectives[name].deferrable, objectives[name].start_bound, config.class_floor_level.get(name, 0.0))
            for name in WORKLOAD_CLASSES
        ]
        self._classes = np.array(rows, dtype=np.float64)
        self._numbers = np.array([config.deadline_margin_s, config.deadline_margin_share, config.start_margin_s, hold_s], dtype=np.float64)
        self._places: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def of(cls, config: ShieldConfig, cluster: ClusterSpec, settings: PolicySettings) -> Shield:
        """The shield of a cluster for a policy with ``settings``.

        Raises:
            InputError: ``minimum_warm_nodes`` names a pool that the cluster has not.
        """
        _known_pools(config, cluster)
        return cls(config, settings.hold_s, cluster.objectives)

    def removed(self, observation: np.ndarray, layout: ObservationLayout) -> tuple[np.ndarray, np.ndarray]:
        """The verdict on every action.

        Args:
            observation: float32 ``[B, D]``, finite.

        Returns:
            Place in ``RULES`` of the rule that removes the action, 0 where it is kept, int8 ``[B, A]``; and whether the class floor had
            to yield, bool ``[B]``.
        """
        rows = np.ascontiguousarray(observation, dtype=np.float32)
        verdicts = np.empty((len(rows), layout.n_candidates), dtype=np.int8)
        yielded = np.empty(len(rows), dtype=np.bool_)
        shield_rows(rows, self._layout_places(layout), self._classes, self._numbers, verdicts, yielded)
        return verdicts, yielded

    def tighten(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Zero, in place, the candidates that a rule removes, as the mask leaves excluded ones; returns the verdicts ``[B, A]``."""
        verdicts, _ = self.removed(observation, layout)
        layout.candidates(observation)[verdicts != KEPT] = 0.0
        return verdicts

    def _layout_places(self, layout: ObservationLayout) -> np.ndarray:
        key = (layout.n_pools, layout.n_levels)
        if key not in self._places:
            candidate = [name for name, _ in CANDIDATE_FEATURES]
            global_ = [name for name, _ in GLOBAL_FEATURES]
            split = layout.n_candidates * layout.n_candidate_features
            self._places[key] = np.array(
                [layout.n_candidates, layout.n_levels, layout.n_candidate_features, len(WORKLOAD_CLASSES)]
                + [candidate.index(name) for name in _PLACES]
                + [split + global_.index(name) for name in _GLOBAL_PLACES],
                dtype=np.int64,
            )
        return self._places[key]


class Guard:
    """A shield in front of a batch of environments: what it removes is gone from observation and mask, and refused as an action.

    Args:
        shield: None lets everything through that the simulator allows.
        layout: of the observations.
        num_envs: environments in the batch, B.
    """

    def __init__(self, shield: Shield | None, layout: ObservationLayout, num_envs: int) -> None:
        self.shield, self.layout = shield, layout
        self._removed = np.zeros((num_envs, layout.n_candidates), dtype=np.int8)

    def tighten(self, observations: np.ndarray) -> np.ndarray:
        """Take out, in place, what the shield removes from fresh observations ``[B, D]``."""
        if self.shield is not None:
            self._removed = self.shield.tighten(observations, self.layout)
        return observations

    def masks(self, allowed: np.ndarray) -> np.ndarray:
        """What is left of the simulator's masks, bool ``[B, A]``."""
        return allowed if self.shield is None else allowed & (self._removed == KEPT)

    def refuse(self, actions: np.ndarray) -> None:
        """Actions int ``[B]``; those outside of the space are the simulator's to refuse.

        Raises:
            InputError: an action that the shield removed, with its rule.
        """
        if self.shield is None:
            return
        inside = (actions >= 0) & (actions < self.layout.n_candidates)
        rules = np.where(inside, self._removed[np.arange(len(actions)), np.where(inside, actions, 0)], KEPT)
        if (rules > MASK).any():
            b = int(np.flatnonzero(rules > MASK)[0])
            name = self.layout.action_name(int(actions[b]))
            kept = ", ".join(map(str, np.flatnonzero(self._removed[b] == KEPT)))
            raise InputError(f"action {actions[b]} ({name}) removed by rule '{RULES[rules[b]]}'", where=f"environment {b}", allowed=kept)


def with_warm_floor(world: World, minimum_warm_nodes: Mapping[str, int]) -> World:
    """The world in which no pool ever has fewer awake and waking nodes than its minimum, as far as its nodes are up and budgets allow.

    A reserve that asks for more stays. The policy cannot lower it: nodes fall asleep in the simulator's own step 6 (docs/simulator.md).
    """
    config = ShieldConfig(minimum_warm_nodes=minimum_warm_nodes)
    _known_pools(config, world.cluster)
    first = pd.Timestamp("1970-01-01", tz="UTC")
    table = pd.DataFrame([{"time": first, "pool": pool, "nodes": nodes} for pool, nodes in minimum_warm_nodes.items()])
    if table.empty:
        return world
    floor = with_reserve(world, [table] * world.n_windows).grid.keep_awake
    return with_keep_awake(world, np.maximum(world.grid.keep_awake, floor))


def with_keep_awake(world: World, nodes: np.ndarray) -> World:
    """The world with ``nodes`` ``[M, P, T]`` to keep awake."""
    return replace(world, grid=world.grid._replace(keep_awake=nodes))


def _known_pools(config: ShieldConfig, cluster: ClusterSpec) -> None:
    pools = [pool.name for pool in cluster.pools]
    if unknown := sorted(set(config.minimum_warm_nodes) - set(pools)):
        raise InputError(f"minimum_warm_nodes of '{unknown[0]}'", where="shield", allowed=", ".join(pools))

"""What a run tells of its rollouts: what was done, at what regret, and how the windows that ended in them went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter

from envs.observation import GLOBAL_FEATURES, IS_CURRENT, N_CANDIDATE_FEATURES, ObservationLayout

IN_REVIEW = [name for name, _ in GLOBAL_FEATURES].index("in_review")
EPISODE_KEYS: tuple[str, ...] = ("objective_usd", "cost_usd", "energy_kwh", "penalty_usd", "sla_violation_rate")


class Capture(KVWriter):
    """Keeps the last values that Stable-Baselines3 logged."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.last = {key: float(value) for key, value in key_values.items() if isinstance(value, int | float | np.floating)}

    def take(self) -> dict[str, float]:
        """What was logged since the last call."""
        taken, self.last = self.last, {}
        return taken

    def close(self) -> None:
        """Nothing to release."""


def action_shares(layout: ObservationLayout, observations: np.ndarray, actions: np.ndarray) -> dict[str, float]:
    """Shares of the answers: to waiting jobs (hold, run by level), and to running jobs in review (pause, stay, change of level, migrate).

    Args:
        observations: float32 ``[N, D]``.
        actions: int ``[N]``.

    Returns:
        Shares by name; those of waiting jobs sum to 1, those of reviews too (absent without a review).
    """
    split = layout.n_candidates * N_CANDIDATE_FEATURES
    review = observations[:, split + IN_REVIEW] > 0.5
    level = np.where(actions > 0, (actions - 1) % layout.n_levels, -1)
    shares = {"actions/reviews": float(review.mean())}
    waiting = ~review
    if waiting.any():
        shares["actions/hold"] = float((actions[waiting] == 0).mean())
        shares |= {f"actions/run_level_{one}": float((level[waiting] == one).mean()) for one in range(layout.n_levels)}
    if review.any():
        current = layout.candidates(observations)[review][..., IS_CURRENT].argmax(axis=1)
        taken = actions[review]
        runs, same_pool = taken > 0, (taken - 1) // layout.n_levels == (current - 1) // layout.n_levels
        shares["actions/review_pause"] = float((~runs).mean())
        shares["actions/review_stay"] = float((taken == current).mean())
        shares["actions/review_change_level"] = float((runs & same_pool & (taken != current)).mean())
        shares["actions/review_migrate"] = float((runs & ~same_pool).mean())
    return shares


def episode_means(ended: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Means over the windows that ended, by name; ``{}`` when none did."""
    rows = list(ended)
    if not rows:
        return {}
    means = {f"episode/{key}": float(np.mean([row[key] for row in rows])) for key in EPISODE_KEYS}
    return {**means, "episode/ended": float(len(rows)), "episode/decisions": float(np.mean([row["episode"]["l"] for row in rows]))}

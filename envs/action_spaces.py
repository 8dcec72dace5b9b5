"""Action spaces that know which actions are allowed now, so that ``sample`` draws only from those."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


class MaskedDiscrete(gym.spaces.Discrete):
    """Discrete actions of which, at any moment, only some are allowed; ``sample`` draws from those.

    ``contains`` accepts every action, as the space is the same for the whole episode; the environment refuses a masked one.
    """

    def __init__(self, n: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(n, seed=seed)
        self.allowed = np.ones(n, dtype=np.int8)

    def allow(self, mask: np.ndarray) -> None:
        """Allow the actions of ``mask`` ``[A]``; all of them when it is empty, as then nothing is asked and any answer is ignored."""
        self.allowed = mask.astype(np.int8) if mask.any() else np.ones(int(self.n), dtype=np.int8)

    def sample(self, mask: np.ndarray | None = None, probability: np.ndarray | None = None) -> np.int64:
        if mask is None and probability is None:
            mask = self.allowed
        return super().sample(mask=mask, probability=probability)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskedDiscrete) and self.n == other.n

    def __hash__(self) -> int:
        return hash((type(self), int(self.n)))


class MaskedMultiDiscrete(gym.spaces.MultiDiscrete):
    """One :class:`MaskedDiscrete` for each of B environments; ``sample`` draws an allowed action for every one."""

    def __init__(self, num_envs: int, n: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(np.full(num_envs, n, dtype=np.int64), seed=seed)
        self.allowed = np.ones((num_envs, n), dtype=np.int8)

    def allow(self, mask: np.ndarray) -> None:
        """Allow the actions of ``mask`` ``[B, A]``; all of them in rows where nothing is asked."""
        self.allowed = np.where(mask.any(axis=1, keepdims=True), mask, True).astype(np.int8)

    def sample(self, mask: tuple[np.ndarray, ...] | None = None, probability: tuple[np.ndarray, ...] | None = None) -> np.ndarray:
        if mask is None and probability is None:
            mask = tuple(self.allowed)
        return super().sample(mask=mask, probability=probability)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskedMultiDiscrete) and self.allowed.shape == other.allowed.shape

    def __hash__(self) -> int:
        return hash((type(self), self.allowed.shape))

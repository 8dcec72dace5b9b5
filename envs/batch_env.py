"""What batched environments of Stable-Baselines3 have alike when one call steps them all: every environment answers as the batch."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from envs.observation import ObservationLayout
from telemetry.errors import InputError


class BatchVecEnv(VecEnv):
    """The part of the interface that has nothing to do with clusters."""

    layout: ObservationLayout
    _actions: np.ndarray | None = None

    @abstractmethod
    def step_into(self, actions: np.ndarray, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all environments and write the observations into float32 ``[B, D]``; rewards ``[B]``, dones ``[B]`` and infos."""

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = np.asarray(actions, dtype=np.int64).reshape(self.num_envs)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations ``[B, D]``, and what :meth:`step_into` returns."""
        assert self._actions is not None
        observations = np.empty((self.num_envs, self.layout.size), np.float32)
        return observations, *self.step_into(self._actions, observations)

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise InputError(f"attribute '{attr_name}' cannot be set", where="environments", allowed="attributes are fixed when it is made")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method once for the batch; ``action_masks`` gives one row per environment."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        rows = list(self._get_indices(indices))
        if method_name == "action_masks":
            return [result[row] for row in rows]
        return [result] * len(rows)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))

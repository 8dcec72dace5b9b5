"""What batched environments of Stable-Baselines3 have alike when one call steps them all: every environment answers as the batch."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from telemetry.errors import InputError


class BatchVecEnv(VecEnv):
    """The part of the interface that has nothing to do with clusters."""

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

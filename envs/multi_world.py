"""Several worlds in one batch: clusters with other pools, loads or prices, for one agent that serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np

from envs.batch_env import BatchVecEnv
from envs.episodes import observation_box
from envs.heuristics import Judge
from envs.kernel import run_policy
from envs.observation import ObservationLayout
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv
from envs.world import World
from telemetry.errors import InputError


def split_envs(num_envs: int, shares: Sequence[float]) -> list[int]:
    """Environments of each world, in proportion to ``shares`` by largest remainder, at least one each.

    Raises:
        InputError: fewer environments than worlds.
    """
    if num_envs < len(shares):
        raise InputError(f"{num_envs} environments for {len(shares)} worlds", where="worlds", allowed="at least one for each world")
    exact = np.asarray(shares, dtype=float) / sum(shares) * num_envs
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() < num_envs:
        counts[int((exact - counts).argmax())] += 1
    while counts.sum() > num_envs:
        counts[int(np.where(counts > 1, counts - exact, -np.inf).argmax())] -= 1
    return [int(count) for count in counts]


def objective_per_decision(world: World, judge: Judge, reward: RewardSpec) -> float:
    """Mean objective in USD that one decision of ``judge`` answers for: what makes rewards of small and large clusters comparable."""
    totals = run_policy(world, judge, reward)
    return float(np.abs(totals.objective_usd).sum() / max(int(totals.decisions.sum()), 1))


class MultiWorldVecEnv(BatchVecEnv):
    """Environments of several worlds side by side.

    The observation is that of the world with the most pools; candidates that another world does not have are all zeros there, which is
    masked. All worlds must have as many power levels, so that an action means the same level everywhere.

    Args:
        envs: made by the caller, each with a reward scale that suits its world.
    """

    def __init__(self, envs: Sequence[ClusterVecEnv]) -> None:
        if not envs:
            raise InputError("no environments", where="worlds", allowed="at least one world")
        levels = sorted({env.layout.n_levels for env in envs})
        if len(levels) > 1:
            raise InputError(f"power levels {levels}", where="worlds", allowed="the same number in every world")
        modes = sorted({env.reward_mode for env in envs})
        if len(modes) > 1:
            raise InputError(f"reward modes {modes}", where="worlds", allowed="one for all")
        self.envs = list(envs)
        self.layout = ObservationLayout(max(env.layout.n_pools for env in envs), levels[0])
        self.reward_mode = modes[0]
        edges = np.cumsum([0, *(env.num_envs for env in envs)])
        self.rows = [slice(int(low), int(high)) for low, high in pairwise(edges)]
        self._buffers = [np.zeros((env.num_envs, env.layout.size), np.float32) for env in envs]
        self.render_mode = None
        super().__init__(int(edges[-1]), observation_box(self.layout), gym.spaces.Discrete(self.layout.n_candidates))

    @property
    def scales_usd(self) -> np.ndarray:
        """USD of a reward of 1, float64 ``[B]``."""
        return np.concatenate([env.scales_usd for env in self.envs])

    def _pad(self, part: int, observations: np.ndarray, out: np.ndarray) -> None:
        """Observations ``[b, d]`` of one world into rows ``[b, D]`` of the common layout."""
        own = self.envs[part].layout
        split, wide = own.n_candidates * own.n_candidate_features, self.layout.n_candidates * own.n_candidate_features
        out[:, :split] = observations[:, :split]
        out[:, split:wide] = 0.0
        out[:, wide:] = observations[:, split:]

    # ---------------------------------------------------------------- stepping

    def reset(self) -> np.ndarray:
        """Begin anew in all environments; observations ``[B, D]``."""
        observations = np.empty((self.num_envs, self.layout.size), np.float32)
        for part, (env, rows) in enumerate(zip(self.envs, self.rows, strict=True)):
            self._pad(part, env.reset(), observations[rows])
        return observations

    def step_into(self, actions: np.ndarray, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all environments and write the observations into float32 ``[B, D]``; rewards, dones and infos as ``ClusterVecEnv``."""
        rewards, dones = np.empty(self.num_envs, np.float32), np.empty(self.num_envs, np.bool_)
        infos: list[dict[str, Any]] = []
        for part, (env, rows) in enumerate(zip(self.envs, self.rows, strict=True)):
            same = env.layout == self.layout
            target = observations[rows] if same else self._buffers[part]
            rewards[rows], dones[rows], more = env.step_into(actions[rows], target)
            if not same:
                self._pad(part, target, observations[rows])
                self._pad_terminal(part, more)
            infos += more
        return rewards, dones, infos

    def _pad_terminal(self, part: int, infos: list[dict[str, Any]]) -> None:
        for info in infos:
            if "terminal_observation" in info:
                wide = np.empty((1, self.layout.size), np.float32)
                self._pad(part, info["terminal_observation"][None], wide)
                info["terminal_observation"] = wide[0]

    def action_masks(self) -> np.ndarray:
        """Allowed actions of the pending questions, bool ``[B, A]``."""
        masks = np.zeros((self.num_envs, self.layout.n_candidates), np.bool_)
        for env, rows in zip(self.envs, self.rows, strict=True):
            masks[rows, : env.layout.n_candidates] = env.action_masks()
        return masks

    # ---------------------------------------------------------------- exact resume

    def state_dict(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """As ``ClusterVecEnv.state_dict``, of all worlds."""
        states = [env.state_dict() for env in self.envs]
        arrays = {f"{part}.{name}": array for part, (_, own) in enumerate(states) for name, array in own.items()}
        return {"worlds": [meta for meta, _ in states]}, arrays

    def load_state_dict(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        if len(meta["worlds"]) != len(self.envs):
            raise InputError(
                f"state of {len(meta['worlds'])} worlds", where="resume", allowed=str(len(self.envs)), remedy="use the same worlds"
            )
        for part, (env, own) in enumerate(zip(self.envs, meta["worlds"], strict=True)):
            prefix = f"{part}."
            env.load_state_dict(own, {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)})

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the windows' order of every world from the next reset on."""
        for part, env in enumerate(self.envs):
            env.seed(None if seed is None else seed + part)
        return [seed] * self.num_envs

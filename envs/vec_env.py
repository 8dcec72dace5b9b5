"""Stable-Baselines3 vectorised environment directly on the compiled simulator: one call steps the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from envs.batch_env import BatchVecEnv
from envs.episodes import episode_totals, first_observations, observation_box, playable_windows
from envs.kernel import Simulator
from envs.kernel_choosers import LOOKAHEAD, PLANNER
from envs.reward import RewardSpec
from envs.shield import Guard, Shield
from envs.state import PolicySettings
from envs.world import World
from telemetry.errors import InputError

REWARD_MODES: tuple[str, ...] = ("exact", "regret")
DECISIONS_PER_REVIEWED_JOB = 20
PREFERENCES: tuple[str, ...] = ("w_cost", "w_carbon", "w_energy", "w_sla")


class ClusterVecEnv(BatchVecEnv):
    """``num_envs`` clusters, each in a random window of ``world``, restarted in another one when it ends.

    Observation: float32 ``[D]`` as in ``envs.observation``, the mask within it. Action: 0 holds the job in question, 1 + p L + l runs it.

    Reward ``exact``: minus the objective (``envs.reward``) accrued until the next question, over ``scale_usd``. Reward ``regret``: the
    same sum at better moments. Every job carries a plan; a decision is charged what its job's new plan costs beyond the last one, and a
    plan costs what it would really cost (watts over the true duration at the prices and intensities that come, and penalties). Under
    settings that keep plans, the plan is the action and then the cheapest slots (:mod:`envs.kernel_hindsight`); under others it is the
    look-ahead's: run makes it final, hold makes it the cheapest later start. The idle remainder of the sites is charged as it accrues.
    Over a window the rewards sum to minus (objective - plans at arrival); which decision cost what is told at once instead of hours later,
    and a held job does not vanish from sight.

    Args:
        preferences: ``{weight: (low, high)}``: the objective's weights are drawn uniformly anew for every window.
        stagger: the environments begin at random decisions of their first windows, played there by the starting judge.
        threads: Python threads that share a step.
        shield: rules beyond the mask; observations and masks are those that it leaves, and an action that it removed is refused.
    """

    def __init__(
        self,
        world: World,
        num_envs: int,
        reward_spec: RewardSpec,
        settings: PolicySettings,
        seed: int,
        *,
        preferences: dict[str, tuple[float, float]] | None = None,
        reward_mode: str = "exact",
        stagger: bool = True,
        threads: int = 1,
        shield: Shield | None = None,
    ) -> None:
        if reward_mode not in REWARD_MODES:
            raise InputError(f"reward_mode '{reward_mode}'", where="vec_env", allowed=", ".join(REWARD_MODES))
        unknown = sorted(set(preferences or {}) - set(PREFERENCES))
        if unknown:
            raise InputError(f"unknown preference '{unknown[0]}'", where="vec_env", allowed=", ".join(PREFERENCES))
        for name, (low, high) in (preferences or {}).items():
            if not 0.0 <= low <= high < np.inf:
                raise InputError(f"preference '{name}' from {low} to {high}", where="vec_env", allowed="0 <= low <= high, finite")
        playable_windows(world, "vec_env")
        self.simulator = Simulator(world, num_envs, settings, reward_spec, plan_regret=reward_mode == "regret", threads=threads)
        self.layout = self.simulator.layout
        self.world = world
        self.reward_mode = reward_mode
        self.scales_usd = np.full(num_envs, reward_spec.scale_usd)
        self._preferences = preferences or {}
        self._stagger, self._settings = stagger, settings
        self._guard = Guard(shield, self.layout, num_envs)
        self._generator = np.random.default_rng(seed)
        self._episode_reward = np.zeros(num_envs)
        self.render_mode = None
        super().__init__(num_envs, observation_box(self.layout), gym.spaces.Discrete(self.layout.n_candidates))

    # ---------------------------------------------------------------- stepping

    def reset(self) -> np.ndarray:
        """Begin anew in all environments; observations ``[B, D]``."""
        self._begin(np.ones(self.num_envs, dtype=np.bool_))
        if self._stagger:
            self._fast_forward()
        return self._guard.tighten(first_observations(self.simulator, np.ones(self.num_envs, dtype=np.bool_)).copy())

    def step_into(self, actions: np.ndarray, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all environments and write the observations into float32 ``[B, D]``, for example a row of a rollout buffer.

        Returns:
            Rewards float32 ``[B]``, dones bool ``[B]``, and infos that are empty except at the end of a window, where they hold its totals.
        """
        simulator, own = self.simulator, self.simulator.observations
        simulator.observations = observations
        try:
            return self._step(np.asarray(actions, dtype=np.int64))
        finally:
            simulator.observations = own

    def _step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        simulator = self.simulator
        self._guard.refuse(actions)
        simulator.step(actions, observe=True)
        rewards = simulator.rewards[:, REWARD_MODES.index(self.reward_mode)].astype(np.float32)
        self._episode_reward += rewards
        dones = simulator.done
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            for b in np.flatnonzero(dones):
                infos[b] = self._summary(int(b))
                infos[b]["terminal_observation"] = simulator.observations[b].copy()
                infos[b]["TimeLimit.truncated"] = False
            self._begin(dones)
            first_observations(simulator, dones)
        self._guard.tighten(simulator.observations)
        return rewards, dones, infos

    def action_masks(self) -> np.ndarray:
        """Allowed actions of the pending questions, bool ``[B, A]``."""
        return self._guard.masks(self.simulator.mask)

    def _summary(self, b: int) -> dict[str, Any]:
        state = self.simulator.state
        return {
            "episode": {"r": float(self._episode_reward[b]), "l": int(state.decisions[b]), "t": float(state.time_s[b])},
            "window": int(state.window[b]),
            **episode_totals(self.simulator, b),
        }

    # ---------------------------------------------------------------- windows

    def _begin(self, which: np.ndarray) -> None:
        """Begin random windows in the chosen environments; windows without a question are drawn again."""
        left = which.copy()
        while left.any():
            windows = np.full(self.num_envs, -1, dtype=np.int64)
            for b in np.flatnonzero(left):
                windows[b] = self._generator.integers(self.world.n_windows)
                for name, (low, high) in sorted(self._preferences.items()):
                    self.simulator.params.weights[b, PREFERENCES.index(name)] = self._generator.uniform(low, high)
                self._episode_reward[b] = 0.0
            self.simulator.reset(windows)
            left &= self.simulator.done

    def _fast_forward(self) -> None:
        """Bring each environment to a random place of its window, so that their batches are not all mornings."""
        state = self.simulator.state
        jobs = self.world.jobs.count[state.window]
        each = DECISIONS_PER_REVIEWED_JOB if self._settings.review_s else 1
        limits = (self._generator.random(self.num_envs) * jobs * each).astype(np.int64)
        self.simulator.play(PLANNER if self._settings.plans else LOOKAHEAD, limits)
        ended = self.simulator.done
        if ended.any():
            self._begin(ended)

    # ---------------------------------------------------------------- exact resume

    def state_dict(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Everything that a resumed run needs: JSON-serialisable meta data and arrays."""
        state = self.simulator.packed_state
        meta = {"generator": self._generator.bit_generator.state, "num_envs": self.num_envs, "windows": self.world.n_windows}
        arrays = {f"state.{name}": array.copy() for name, array in zip(state._fields, state, strict=True)}
        arrays["weights"] = self.simulator.params.weights.copy()
        arrays["episode_reward"] = self._episode_reward.copy()
        return meta, arrays

    def load_state_dict(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go on exactly where :meth:`state_dict` was taken, in an environment made with the same arguments."""
        state = self.simulator.packed_state
        for name, array in zip(state._fields, state, strict=True):
            saved = arrays[f"state.{name}"]
            if saved.shape != array.shape:
                raise InputError(
                    f"state of shape {saved.shape} for '{name}'",
                    where="resume",
                    allowed=str(array.shape),
                    remedy="use the same world and num_envs",
                )
            array[...] = saved
        self.simulator.params.weights[...] = arrays["weights"]
        self._episode_reward[...] = arrays["episode_reward"]
        self._generator.bit_generator.state = meta["generator"]

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the windows' order from the next reset on."""
        self._generator = np.random.default_rng(seed)
        return [seed] * self.num_envs

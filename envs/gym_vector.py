"""Gymnasium's vector environment directly on the compiled simulator: one call steps the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.action_spaces import MaskedDiscrete, MaskedMultiDiscrete
from envs.episodes import allowed_actions, episode_totals, first_observations, job_in_question, observation_box, playable_windows
from envs.kernel import Simulator
from envs.render import FRAMES_PER_SECOND, RENDER_MODES, render_frame
from envs.reward import RewardSpec
from envs.shield import Guard, Shield
from envs.state import PolicySettings
from envs.world import World
from telemetry.errors import InputError

Infos = dict[str, Any]


class ClusterVectorEnv(VectorEnv):
    """``num_envs`` copies of :class:`envs.gym_env.ClusterEnv` in one simulator; spaces, rewards and windows are those of its data sheet.

    It gives what ``gymnasium.vector.SyncVectorEnv`` over single environments gives, value for value: ``reset(seed=s)`` seeds environment b
    with s + b, and every environment draws its windows from a generator of its own.

    Autoreset (``metadata["autoreset_mode"]``, as Gymnasium defines it):

    | mode        | in the step that ends a window                        | afterwards                                                     |
    |-------------|-------------------------------------------------------|----------------------------------------------------------------|
    | `NEXT_STEP` | last observation (zeros) and the window's totals      | the next step ignores the action, begins a window, reward 0    |
    | `SAME_STEP` | first observation of the next window; the old ones in | goes on                                                        |
    |             | ``infos["final_obs"]`` and ``infos["final_info"]``    |                                                                |
    | `DISABLED`  | last observation and totals                           | ``reset(options={"reset_mask": done})`` before the next step   |

    Infos are arrays over the environments, each with a mask ``_name`` of where it holds: ``action_mask`` (int8 ``[B, A]``), ``time_s``,
    ``window``, ``job_id``, and at the end of a window its totals.

    Args:
        world, reward_spec, settings, render_mode, shield: as for the single environment.
        num_envs: environments in the batch.
        autoreset_mode: an ``AutoresetMode`` or its value; Gymnasium's default, ``NEXT_STEP``.
        threads: Python threads that share a step.

    Raises:
        InputError (a ValueError): on a masked action of an environment that asks; no environment has moved then.
    """

    metadata = {  # noqa: RUF012 - gymnasium's interface
        "render_modes": list(RENDER_MODES),
        "render_fps": FRAMES_PER_SECOND,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        world: World,
        num_envs: int = 1,
        reward_spec: RewardSpec | None = None,
        settings: PolicySettings | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        threads: int = 1,
        shield: Shield | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise InputError(f"render_mode '{render_mode}'", where="ClusterVectorEnv", allowed=", ".join(RENDER_MODES))
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.world = world
        self.render_mode = render_mode
        self._windows = playable_windows(world, "ClusterVectorEnv")
        self.simulator = Simulator(world, num_envs, settings or PolicySettings(), reward_spec or RewardSpec(), threads=threads)
        self.layout = self.simulator.layout
        self._guard = Guard(shield, self.layout, num_envs)
        self.single_observation_space = observation_box(self.layout)
        self.single_action_space = MaskedDiscrete(self.layout.n_candidates)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = MaskedMultiDiscrete(num_envs, self.layout.n_candidates)
        self._generators, self._generator_seeds = [list(pair) for pair in zip(*map(seeding.np_random, [None] * num_envs), strict=True)]
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._begun = np.zeros(num_envs, dtype=np.bool_)

    # ---------------------------------------------------------------- interface

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generator of each environment."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:
        """The seed of each environment's generator."""
        return tuple(self._generator_seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin windows and go on to their first questions.

        Args:
            seed: of environment 0, b more for environment b; or one for each; None goes on with the generators as they are.
            options: ``window``, a number for all; ``reset_mask``, bool ``[B]``, the environments to begin anew.

        Returns:
            Observations float32 ``[B, D]`` and infos, which hold only where a window began.
        """
        chosen = dict(options or {})
        which = _reset_mask(chosen.get("reset_mask"), self.num_envs)
        for b, one in enumerate(_seeds(seed, self.num_envs)):
            if which[b] and one is not None:
                self._generators[b], self._generator_seeds[b] = seeding.np_random(one)
        self._begin(which, chosen.get("window"))
        infos = self._infos(which)
        return self.simulator.observations.copy(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Answer every pending question.

        Args:
            actions: int ``[B]``; where a window has ended (``NEXT_STEP``) the action is ignored.

        Returns:
            Observations float32 ``[B, D]``, rewards float64 ``[B]`` in units of ``scale_usd``, terminations and truncations bool ``[B]``,
            infos.
        """
        asked = ~self._ended
        chosen = self._checked(actions, asked)
        self._guard.refuse(chosen)
        self.simulator.step(chosen, observe=True)
        self._guard.tighten(self.simulator.observations)
        terminated = self.simulator.done & asked
        rewards = np.where(asked, self.simulator.rewards[:, 0], 0.0)
        infos: Infos = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            if terminated.any():
                infos = self._final(terminated)
                self._begin(terminated)
        else:
            reborn = ~asked
            self._ended = terminated.copy()
            if reborn.any():
                self._begin(reborn)
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        infos |= self._infos(everyone)
        return self.simulator.observations.copy(), rewards, terminated, np.zeros(self.num_envs, dtype=np.bool_), infos

    def action_masks(self) -> np.ndarray:
        """Allowed actions of the pending questions, bool ``[B, A]``; all False where a window has ended."""
        return self._guard.masks(allowed_actions(self.simulator))

    def render(self) -> tuple[Any, ...] | None:
        """A frame for each environment, as the single environment renders it."""
        if self.render_mode is None:
            return None
        if not self._begun.all():
            raise InputError("no window has begun", where="render", remedy="call reset first")
        return tuple(render_frame(self.simulator, b, self.render_mode) for b in range(self.num_envs))

    # ---------------------------------------------------------------- windows

    def _begin(self, which: np.ndarray, wanted: int | None = None) -> None:
        """Begin windows where ``which`` says; the simulator's observations are then those of all environments."""
        if wanted is not None and wanted not in self._windows:
            raise InputError(f"window {wanted}", where="reset", allowed=f"a window with jobs: {self._windows.tolist()}")
        windows = np.full(self.num_envs, -1, dtype=np.int64)
        for b in np.flatnonzero(which):
            windows[b] = self._windows[self._generators[b].integers(len(self._windows))] if wanted is None else wanted
        self.simulator.reset(windows)
        self._guard.tighten(first_observations(self.simulator, which))
        self._ended[which] = False
        self._begun |= which

    def _checked(self, actions: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Actions int64 ``[B]``, -1 where they are ignored."""
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise InputError(f"actions {chosen.dtype} {chosen.shape}", where="step", allowed=f"whole numbers ({self.num_envs},)")
        if not self._begun.all():
            raise InputError("no window has begun", where="step", remedy="call reset first")
        if self.autoreset_mode is AutoresetMode.DISABLED and not asked.all():
            b = int(np.flatnonzero(~asked)[0])
            raise InputError("its window has ended", where=f"step, environment {b}", remedy='call reset(options={"reset_mask": ...})')
        outside = asked & ((chosen < 0) | (chosen >= self.layout.n_candidates))
        if outside.any():
            b = int(np.flatnonzero(outside)[0])
            raise InputError(f"action {chosen[b]}", where=f"step, environment {b}", allowed=f"0 to {self.layout.n_candidates - 1}")
        return np.where(asked, chosen, -1).astype(np.int64)

    # ---------------------------------------------------------------- infos

    def _infos(self, which: np.ndarray) -> Infos:
        """Infos of the environments ``which``, at the pending question or the end."""
        simulator = self.simulator
        masks = self.action_masks()
        self.action_space.allow(masks)
        infos: Infos = {
            "action_mask": np.where(which[:, None], masks, False).astype(np.int8),
            "time_s": np.where(which, simulator.time_s, 0),
            "window": np.where(which, simulator.state.window, 0),
        }
        infos |= {f"_{name}": which.copy() for name in tuple(infos)}
        asking = which & (simulator.asking >= 0)
        if asking.any():
            ids = np.full(self.num_envs, None, dtype=object)
            for b in np.flatnonzero(asking):
                ids[b] = job_in_question(simulator, int(b))
            infos |= {"job_id": ids, "_job_id": asking}
        for b in np.flatnonzero(which & simulator.done):
            infos = self._add_info(infos, episode_totals(simulator, int(b)), int(b))
        return infos

    def _final(self, ended: np.ndarray) -> Infos:
        """Last observations and infos of windows that are about to be left."""
        last = np.full(self.num_envs, None, dtype=object)
        for b in np.flatnonzero(ended):
            last[b] = self.simulator.observations[b].copy()
        return {"final_obs": last, "_final_obs": ended.copy(), "final_info": self._infos(ended), "_final_info": ended.copy()}


def _mode(value: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(value)
    except ValueError as error:
        allowed = ", ".join(mode.value for mode in AutoresetMode)
        raise InputError(f"autoreset_mode '{value}'", where="ClusterVectorEnv", allowed=allowed) from error


def _seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    seeds = [seed + b for b in range(num_envs)] if isinstance(seed, int | np.integer) else list(seed)
    if len(seeds) != num_envs:
        raise InputError(f"{len(seeds)} seeds", where="reset", allowed=f"one number, or {num_envs} of them")
    return seeds


def _reset_mask(mask: Any, num_envs: int) -> np.ndarray:
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    chosen = np.asarray(mask)
    if chosen.shape != (num_envs,) or chosen.dtype != np.bool_ or not chosen.any():
        raise InputError(f"reset_mask {mask}", where="reset", allowed=f"bool ({num_envs},) with at least one True")
    return chosen

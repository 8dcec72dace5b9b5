"""Gymnasium environment: one cluster, one window an episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.action_spaces import MaskedDiscrete
from envs.episodes import allowed_actions, episode_totals, first_observations, job_in_question, observation_box, playable_windows
from envs.kernel import Simulator, SimulatorCopy
from envs.render import FRAMES_PER_SECOND, RENDER_MODES, render_frame
from envs.reward import RewardSpec
from envs.shield import Guard, Shield
from envs.state import PolicySettings
from envs.world import World
from telemetry.errors import InputError

ENV_ID = "Joulewise/Cluster-v0"


class ClusterEnv(gym.Env):
    """A GPU cluster with jobs, prices and carbon; one question is asked again and again: this job, now: hold it, or run it where and how?

    ## Action space

    ``MaskedDiscrete(1 + P x L)`` for P pools and L power levels. ``info["action_mask"]`` (int8 ``[1 + P x L]``) tells which are allowed;
    ``action_space.sample()`` draws only from those, and a masked action raises.

    | action      | meaning                                                                                                    |
    |-------------|------------------------------------------------------------------------------------------------------------|
    | 0           | hold the job; it is asked about again after ``settings.hold_s`` seconds, at its latest start at the latest |
    | 1 + p L + l | run it now in pool p at power level l (level 0 = full power), on nodes that ``settings.node_rule`` picks   |

    Hold is allowed for deferrable classes before their latest start; a run where the GPU model fits, the watts stay within the job's
    ``max_watts`` and the whole gang finds room now, on nodes that are awake, waking or asleep.

    ## Observation space

    ``Box(-10, 10, (D,), float32)`` with D = 20 (1 + P L) + 31: the same 20 features for each action (all zeros where it is masked), then 31
    of the job, the queue, the hour, the objective's weights and the cluster. Units are in the table of ``envs.observation``;
    ``env.layout.describe()`` names every index. Hours, kWh, USD and counts enter as log(1 + x), scores, prices and intensities as relative
    differences, shares as 0 to 1; all are cut to the bounds. True durations and future prices are not in it: estimates and forecasts are.
    The observation after the last question is all zeros.

    ## Reward

    reward = -(w_cost USD + w_carbon price_c kgCO2e + w_energy price_e kWh + w_sla penalty USD) / scale_usd,

    accrued exactly from this question to the next (``envs.reward``); the last one reaches to the window's end. What accrues before the
    first question belongs to no action. Rewards are below 0 unless a price is negative.

    ## Start and end

    ``reset`` draws one of the windows that hold a runnable job from the seeded generator, or begins ``options={"window": m}``: at second 0
    with all nodes awake and idle, on to the first question. The episode *terminates* when every job of the window has ended or was
    rejected. It is never truncated. The step count is not fixed: one step for each question.

    ## Info

    ``action_mask``, ``time_s`` (second of the window), ``window``, and ``job_id`` of the job in question; after the last question, instead
    of it, ``objective_usd, cost_usd, energy_kwh, penalty_usd, sla_violation_rate`` of the whole window, the time before the first question
    included.

    ## Rendering

    ``ansi``: a text, one line for each pool and the question. ``rgb_array``: uint8 ``[640, 960, 3]``, a picture of nodes by state, GPUs by
    class of their jobs, queue, watts by site, price and carbon of the last and the next 24 h, and the question with its candidates.

    Args:
        world: cluster, jobs and grid (``envs.world.build_world``).
        reward_spec: weights of the objective and ``scale_usd``; ``RewardSpec()`` when None.
        settings: what the policy fixes beside its choices (node rule, sleep, queue order and discipline, hold time); ``PolicySettings()``
            when None.
        render_mode: None, ``ansi`` or ``rgb_array``.
        shield: rules beyond the mask (``envs.shield``); observation and mask are those that it leaves, and what it removed raises.

    Raises:
        InputError (a ValueError): on a masked action, naming the action, the job and what is allowed. No action is ever replaced. Also on a
            step after the end, an unknown render mode or window, and a world in which nothing can run.

    Example:
        >>> env = gymnasium.make("envs.gym_env:Joulewise/Cluster-v0", world=world)  # doctest: +SKIP
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": FRAMES_PER_SECOND}  # noqa: RUF012 - gymnasium's interface

    def __init__(
        self,
        world: World,
        reward_spec: RewardSpec | None = None,
        settings: PolicySettings | None = None,
        *,
        render_mode: str | None = None,
        shield: Shield | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise InputError(f"render_mode '{render_mode}'", where="ClusterEnv", allowed=", ".join(RENDER_MODES))
        self.world = world
        self.render_mode = render_mode
        self._windows = playable_windows(world, "ClusterEnv")
        self._begun = False
        self.simulator = Simulator(world, 1, settings or PolicySettings(), reward_spec or RewardSpec())
        self.layout = self.simulator.layout
        self._guard = Guard(shield, self.layout, 1)
        self.observation_space = observation_box(self.layout)
        self.action_space = MaskedDiscrete(self.layout.n_candidates)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a window and go on to its first question."""
        super().reset(seed=seed)
        wanted = (options or {}).get("window")
        if wanted is not None and wanted not in self._windows:
            raise InputError(f"window {wanted}", where="reset", allowed=f"a window with jobs: {self._windows.tolist()}")
        window = int(self._windows[self.np_random.integers(len(self._windows))]) if wanted is None else int(wanted)
        self.simulator.reset([window])
        self._begun = True
        return self._guard.tighten(first_observations(self.simulator, np.ones(1, dtype=np.bool_)))[0].copy(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Answer the question; reward in units of ``scale_usd``."""
        if self.simulator.asking[0] < 0:
            raise InputError("the window has ended", where="step", remedy="call reset first")
        if not self.action_space.contains(np.int64(action)):
            raise InputError(f"action {action!r}", where="step", allowed=f"0 to {self.layout.n_candidates - 1}")
        actions = np.array([action], dtype=np.int64)
        self._guard.refuse(actions)
        self.simulator.step(actions, observe=True)
        self._guard.tighten(self.simulator.observations)
        done = bool(self.simulator.done[0])
        return self.simulator.observations[0].copy(), float(self.simulator.rewards[0, 0]), done, False, self._info()

    def copy_state(self) -> tuple[SimulatorCopy, dict[str, Any]]:
        """The episode at this moment and the generator of windows, for :meth:`restore_state`; for search."""
        return self.simulator.copy(), self.np_random.bit_generator.state

    def restore_state(self, saved: tuple[SimulatorCopy, dict[str, Any]]) -> tuple[np.ndarray, dict[str, Any]]:
        """Go back to where :meth:`copy_state` was called; observation and info of the question that was pending then."""
        copied, generator = saved
        self.simulator.restore(copied)
        self.np_random.bit_generator.state = generator
        return self._guard.tighten(self.simulator.observe())[0].copy(), self._info()

    def action_masks(self) -> np.ndarray:
        """Allowed actions, bool ``[A]``."""
        return self._guard.masks(allowed_actions(self.simulator))[0]

    def _info(self) -> dict[str, Any]:
        mask = self.action_masks()
        self.action_space.allow(mask)
        info: dict[str, Any] = {
            "action_mask": mask.astype(np.int8),
            "time_s": int(self.simulator.time_s[0]),
            "window": int(self.simulator.state.window[0]),
        }
        if self.simulator.done[0]:
            return info | episode_totals(self.simulator, 0)
        return info | {"job_id": job_in_question(self.simulator, 0)}

    def render(self) -> str | np.ndarray | None:
        """The cluster and the question, as ``render_mode`` says: a text, or uint8 ``[640, 960, 3]``; None without a mode."""
        if not self._begun:
            raise InputError("no window has begun", where="render", remedy="call reset first")
        return render_frame(self.simulator, 0, self.render_mode)


if ENV_ID not in gym.registry:
    gym.register(ENV_ID, entry_point="envs.gym_env:ClusterEnv", vector_entry_point="envs.gym_vector:ClusterVectorEnv")

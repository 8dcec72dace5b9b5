"""Gymnasium environment: one cluster, one window an episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.kernel import Simulator, SimulatorCopy
from envs.observation import LIMIT
from envs.reward import RewardSpec
from envs.state import COST, ENERGY, PENALTY, PolicySettings
from envs.world import World
from telemetry.errors import InputError

ENV_ID = "Joulewise/Cluster-v0"


class MaskedDiscrete(gym.spaces.Discrete):
    """Discrete actions of which, at any moment, only some are allowed; ``sample`` draws from those.

    ``contains`` accepts every action, as the space is the same for the whole episode; the environment refuses a masked one.
    """

    def __init__(self, n: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(n, seed=seed)
        self.allowed = np.ones(n, dtype=np.int8)

    def sample(self, mask: np.ndarray | None = None, probability: np.ndarray | None = None) -> np.int64:
        if mask is None and probability is None:
            mask = self.allowed
        return super().sample(mask=mask, probability=probability)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskedDiscrete) and self.n == other.n

    def __hash__(self) -> int:
        return hash((type(self), int(self.n)))


class ClusterEnv(gym.Env):
    """The question "this job, now: hold it, or run it in which pool at which power level?" until the window's last job has ended.

    Observation float32 ``[D]`` in [-10, 10] (``envs.observation`` describes every index); action 0 holds, 1 + p L + l runs in pool p at
    level l. ``info["action_mask"]`` is int8 ``[A]``. The reward is minus the objective (``envs.reward``) since the last question, over
    ``scale_usd``. An episode terminates at the window's end and is never truncated. ``reset(options={"window": m})`` chooses the window,
    else it is drawn from the seeded generator.

    Raises:
        InputError (a ValueError): on a masked action, naming the action, the job and what is allowed. No action is ever replaced.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - gymnasium's interface

    def __init__(
        self,
        world: World,
        reward_spec: RewardSpec | None = None,
        settings: PolicySettings | None = None,
        *,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise InputError(f"render_mode '{render_mode}'", where="ClusterEnv", allowed=", ".join(self.metadata["render_modes"]))
        self.world = world
        self.render_mode = render_mode
        self.simulator = Simulator(world, 1, settings or PolicySettings(), reward_spec or RewardSpec())
        self.layout = self.simulator.layout
        self.observation_space = gym.spaces.Box(-LIMIT, LIMIT, (self.layout.size,), np.float32)
        self.action_space = MaskedDiscrete(self.layout.n_candidates)
        live = np.arange(world.jobs.reject.shape[1])[None, :] < world.jobs.count[:, None]
        self._windows = np.flatnonzero((live & (world.jobs.reject == 0)).any(axis=1))
        if not len(self._windows):
            raise InputError("no window has a job that the cluster can run", where="ClusterEnv")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a window and go on to its first question."""
        super().reset(seed=seed)
        wanted = (options or {}).get("window")
        if wanted is not None and wanted not in self._windows:
            raise InputError(f"window {wanted}", where="reset", allowed=f"a window with jobs: {self._windows.tolist()}")
        window = int(self._windows[self.np_random.integers(len(self._windows))]) if wanted is None else int(wanted)
        self.simulator.reset([window])
        observation = self.simulator.observe()[0].copy()
        state = self.simulator.state
        state.marked_usd[:], state.marked_regret[:] = state.objective_usd, state.regret_usd
        return observation, self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Answer the question; reward in units of ``scale_usd``."""
        if self.simulator.asking[0] < 0:
            raise InputError("the window has ended", where="step", remedy="call reset first")
        if not self.action_space.contains(np.int64(action)):
            raise InputError(f"action {action!r}", where="step", allowed=f"0 to {self.layout.n_candidates - 1}")
        self.simulator.step(np.array([action], dtype=np.int64), observe=True)
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
        return self.simulator.observe()[0].copy(), self._info()

    def action_masks(self) -> np.ndarray:
        """Allowed actions, bool ``[A]``."""
        return self.simulator.mask[0] & (self.simulator.asking[0] >= 0)

    def _info(self) -> dict[str, Any]:
        mask = self.action_masks().astype(np.int8)
        self.action_space.allowed = mask if mask.any() else np.ones_like(mask)
        info: dict[str, Any] = {"action_mask": mask, "time_s": int(self.simulator.time_s[0]), "window": int(self.simulator.state.window[0])}
        if self.simulator.done[0]:
            totals = self.simulator.state.site_totals[0].sum(axis=0)
            info |= {"cost_usd": float(totals[COST]), "energy_kwh": float(totals[ENERGY]), "penalty_usd": float(totals[PENALTY])}
            info["objective_usd"] = float(self.simulator.state.objective_usd[0])
        else:
            info["job_id"] = self.world.job_ids[info["window"]][self.simulator.asking[0]]
        return info

    def render(self) -> str | None:
        """One line per pool: nodes by state, free GPUs, price; and the question."""
        if self.render_mode != "ansi":
            return None
        state, grid = self.simulator.state, self.world.grid
        window, now = int(state.window[0]), int(state.time_s[0])
        column = min(int(grid.history_steps[window]) + now // int(grid.step_s[window]), grid.price.shape[2] - 1)
        lines = [f"window {window}, second {now}, {int(state.waiting[0])} jobs waiting"]
        for p, pool in enumerate(self.world.cluster.pools):
            site = int(self.world.static.pool_site[p])
            awake, waking, asleep, down = (int(n) for n in state.state_count[0, :, p])
            lines.append(
                f"{pool.name}: {awake} awake, {waking} waking, {asleep} asleep, {down} down, {state.pool_free[0, p] / 1000:g} GPUs free, "
                f"{grid.price[window, site, column]:.3f} USD/kWh, {grid.carbon[window, site, column] * 1000:.0f} g/kWh"
            )
        if self.simulator.asking[0] >= 0:
            allowed = ", ".join(self.layout.action_name(int(a)) for a in np.flatnonzero(self.simulator.mask[0]))
            lines.append(f"job '{self.world.job_ids[window][self.simulator.asking[0]]}': {allowed}")
        return "\n".join(lines)


if ENV_ID not in gym.registry:
    gym.register(ENV_ID, entry_point="envs.gym_env:ClusterEnv")

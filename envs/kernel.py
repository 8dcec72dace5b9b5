"""The compiled simulator: a batch of clusters that advance from question to question (definition: docs/simulator.md)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from envs import fields as fx
from envs.kernel_entry import CLEAR, drive
from envs.observation import ObservationLayout
from envs.packed import PackedParams, PackedState, allocate_state, make_params, pack_world, params_views, state_views
from envs.reward import RewardSpec
from envs.state import (
    CARBON,
    COST,
    ENERGY,
    LATE_START,
    LOG_FIELDS,
    MISSED_DEADLINE,
    PENALTY,
    REJECTED,
    WITHDRAWN,
    EpisodeTotals,
    Policy,
    PolicySettings,
)
from envs.world import World
from envs.world_arrays import STRANDED
from telemetry.errors import InputError

ENVS_PER_THREAD = 8


@dataclass(frozen=True)
class SimulatorCopy:
    """A moment of a :class:`Simulator`: its arrays in a fixed order and the drained event logs."""

    world: World
    arrays: tuple[np.ndarray, ...]
    logs: tuple[tuple[np.ndarray, ...], ...]


class Simulator:
    """B clusters of one world, each in a window of its own.

    Attributes:
        layout: of the observations.
        rewards: float64 ``[B, 2]`` of the last step: exact, and by regret against the jobs' plans.

    Args:
        settings: of all environments; ``params`` may then be changed per environment before a reset.
        threads: Python threads over which a call is spread; results do not depend on it.
    """

    def __init__(
        self,
        world: World,
        num_envs: int,
        settings: PolicySettings,
        reward: RewardSpec,
        *,
        plan_regret: bool = False,
        event_log: bool = False,
        threads: int = 1,
    ) -> None:
        if num_envs < 1 or threads < 1:
            raise InputError(f"{num_envs} environments on {threads} threads", where="simulator", allowed="at least 1 of each")
        self.world = world
        self.num_envs = num_envs
        self.packed_world = pack_world(world, event_log=event_log)
        self.packed_params: PackedParams = make_params(num_envs, settings, reward, plan_regret=plan_regret)
        self.packed_state: PackedState
        self.packed_state, self._log = allocate_state(self.packed_world, num_envs)
        self.params, self.state = params_views(self.packed_params), state_views(self.packed_world, self.packed_state)
        self._log_rows = int(self.packed_world.o[fx.N_LOG])
        pools, levels, _ = world.static.speed.shape
        self.layout = ObservationLayout(pools, levels)
        self.rewards = np.zeros((num_envs, 2))
        self.observations = np.zeros((num_envs, self.layout.size), dtype=np.float32)
        self._logs: list[list[np.ndarray]] = [[] for _ in range(num_envs)]
        self._none = np.full(num_envs, -1, dtype=np.int64)
        self._event_log = event_log
        self._threads = max(1, min(threads, num_envs // ENVS_PER_THREAD))
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self.state.done[:] = 1
        self.state.asking[:] = -1

    @property
    def asking(self) -> np.ndarray:
        """Job in question of each environment, or -1; int64 ``[B]``."""
        return self.state.asking

    @property
    def time_s(self) -> np.ndarray:
        """Second of each environment's window; int64 ``[B]``."""
        return self.state.time_s

    @property
    def done(self) -> np.ndarray:
        """Whether each environment's window has ended; bool ``[B]``."""
        return self.state.done != 0

    @property
    def mask(self) -> np.ndarray:
        """Allowed actions of the questions; bool ``[B, A]``."""
        return self.state.mask != 0

    def reset(self, windows: np.ndarray | Sequence[int]) -> None:
        """Begin a window in each environment and go on to its first question; -1 leaves an environment as it is."""
        chosen = np.asarray(windows, dtype=np.int64)
        if chosen.shape != (self.num_envs,) or (chosen >= self.world.n_windows).any() or (chosen < -1).any():
            raise InputError(
                f"windows {chosen.tolist()}", where="reset", allowed=f"{self.num_envs} numbers from -1 to {self.world.n_windows - 1}"
            )
        for b in np.flatnonzero(chosen >= 0):
            self._logs[b] = []
        self._drive(windows=chosen)
        self._drain()

    def clear(self, windows: np.ndarray | Sequence[int]) -> None:
        """Lay out a window in each environment without beginning it, for a state that is filled in by hand (``envs.snapshot``)."""
        self._drive(windows=np.asarray(windows, dtype=np.int64), chooser=CLEAR)

    def step(self, actions: np.ndarray, *, observe: bool = False) -> None:
        """Answer every pending question and go on to the next; environments that are done ignore their action, and -1 answers nothing.

        Raises:
            InputError: an action that the mask excludes (a ValueError); nothing has moved then.
        """
        chosen = np.asarray(actions, dtype=np.int64)
        self._check(chosen)
        self._drive(actions=chosen, observe=observe)
        self._drain()
        if observe and self._event_log:
            self.observe()

    def observe(self) -> np.ndarray:
        """Observations float32 ``[B, D]`` of the pending questions (a buffer that the next call overwrites); zeros without a question."""
        self._drive(observe=True)
        return self.observations

    def play(self, chooser: int, limits: np.ndarray | None = None) -> None:
        """Let a compiled judge decide until each environment is done or has made ``limits[b]`` decisions."""
        most = np.full(self.num_envs, np.iinfo(np.int64).max) if limits is None else np.asarray(limits, dtype=np.int64)
        while True:
            self._drive(chooser=chooser, limits=most)
            if not self._drain(resume=False):
                return

    def copy(self) -> SimulatorCopy:
        """Everything that decides the future of all environments, for a search that comes back to this moment."""
        arrays = (*self.packed_state, self._log, *self.packed_params, self.rewards, self.observations)
        return SimulatorCopy(self.world, tuple(array.copy() for array in arrays), tuple(tuple(log) for log in self._logs))

    def restore(self, saved: SimulatorCopy) -> None:
        """Go back to the moment at which ``saved`` was copied; it may be restored any number of times.

        Raises:
            InputError: ``saved`` was copied from another world or another number of environments; nothing has changed then.
        """
        arrays = (*self.packed_state, self._log, *self.packed_params, self.rewards, self.observations)
        same = [array.shape for array in arrays] == [array.shape for array in saved.arrays]
        if saved.world is not self.world or not same:
            raise InputError("a copy of another simulator", where="restore", allowed="a copy of this world and number of environments")
        for array, kept in zip(arrays, saved.arrays, strict=True):
            array[...] = kept
        self._logs = [list(log) for log in saved.logs]

    def _check(self, actions: np.ndarray) -> None:
        if actions.shape != (self.num_envs,):
            raise InputError(f"actions of shape {actions.shape}", where="step", allowed=f"({self.num_envs},)")
        asked = (self.asking >= 0) & (actions != -1)
        inside = (actions >= 0) & (actions < self.layout.n_candidates)
        bad = asked & ~(inside & self.mask[np.arange(self.num_envs), np.where(inside, actions, 0)])
        if bad.any():
            b = int(np.flatnonzero(bad)[0])
            allowed = ", ".join(f"{a} = {self.layout.action_name(int(a))}" for a in np.flatnonzero(self.mask[b]))
            name = self.layout.action_name(int(actions[b])) if inside[b] else "no action"
            job = self.world.job_ids[self.state.window[b]][self.asking[b]]
            raise InputError(f"action {actions[b]} ({name}) for job '{job}' is masked", where=f"environment {b}", allowed=allowed)

    def _drive(
        self,
        *,
        windows: np.ndarray | None = None,
        actions: np.ndarray | None = None,
        chooser: int = -1,
        limits: np.ndarray | None = None,
        observe: bool = False,
    ) -> None:
        none = self._none
        arguments = (
            self.packed_world,
            self.packed_params,
            self.packed_state,
            self._log,
            none if windows is None else np.ascontiguousarray(windows),
            none if actions is None else np.ascontiguousarray(actions),
            chooser,
            none if limits is None else np.ascontiguousarray(limits),
            observe,
            self.rewards,
            self.observations,
        )
        if self._pool is None:
            drive(*arguments, 0, self.num_envs)
            return
        edges = [self.num_envs * part // self._threads for part in range(self._threads + 1)]
        others = [self._pool.submit(drive, *arguments, low, high) for low, high in pairwise(edges[1:])]
        drive(*arguments, edges[0], edges[1])
        for other in others:
            other.result()

    def _drain(self, *, resume: bool = True) -> bool:
        """Move full event logs to memory and go on; whether anything was stopped by a full log."""
        if not self._event_log:
            return False
        state = self.state
        stopped = False
        while True:
            stuck = (state.asking < 0) & (state.done == 0)
            if not stuck.any():
                return stopped
            stopped = True
            for b in np.flatnonzero(stuck):
                self._logs[b].append(self._new_events(b).copy())
                state.log_count[b] = 0
            if not resume:
                return True
            self._drive()

    def events(self, b: int) -> np.ndarray:
        """Event log of environment ``b`` so far, int64 ``[E, 7]``."""
        if not self._event_log:
            raise InputError("no event log", where="simulator", remedy="make it with event_log=True")
        return np.concatenate([*self._logs[b], self._new_events(b)])

    def _new_events(self, b: int) -> np.ndarray:
        return self._log[b, : int(self.state.log_count[b]) * LOG_FIELDS].reshape(-1, LOG_FIELDS)

    def totals(self) -> EpisodeTotals:
        """Totals so far of all environments, one row each."""
        s = self.state
        jobs = self.world.jobs.submit_s.shape[1]
        reasons = self.world.jobs.reject[s.window]
        rejected = np.where(s.status[:, :jobs] == REJECTED, np.where(reasons > 0, reasons, STRANDED), 0)
        return EpisodeTotals(
            energy_kwh=s.site_totals[:, :, ENERGY].copy(),
            cost_usd=s.site_totals[:, :, COST].copy(),
            carbon_kg=s.site_totals[:, :, CARBON].copy(),
            penalty_usd=s.site_totals[:, :, PENALTY].copy(),
            idle_energy_kwh=s.idle_totals[..., ENERGY].copy(),
            idle_cost_usd=s.idle_totals[..., COST].copy(),
            idle_carbon_kg=s.idle_totals[..., CARBON].copy(),
            objective_usd=s.objective_usd.copy(),
            busy_gpu_s=s.busy_gpu_s.copy(),
            end_s=s.time_s.copy(),
            decisions=s.decisions.copy(),
            job_start_s=s.start_s[:, :jobs].copy(),
            job_end_s=s.end_s[:, :jobs].copy(),
            job_pool=s.pool[:, :jobs].copy(),
            job_level=s.level[:, :jobs].copy(),
            job_energy_kwh=s.job_kwh.copy(),
            job_cost_usd=s.job_usd.copy(),
            job_carbon_kg=s.job_kg.copy(),
            job_penalty_usd=s.job_penalty.copy(),
            job_late_start=(s.violation[:, :jobs] & LATE_START) > 0,
            job_missed_deadline=(s.violation[:, :jobs] & MISSED_DEADLINE) > 0,
            job_rejected=rejected,
            job_withdrawn=s.status[:, :jobs] == WITHDRAWN,
            events=tuple(self.events(b) for b in range(self.num_envs)) if self._event_log else None,
        )


def run_policy(world: World, policy: Policy, reward: RewardSpec, *, event_log: bool = False, threads: int = 1) -> EpisodeTotals:
    """Run every window of ``world`` to its end under ``policy``.

    A policy with a compiled ``chooser`` (the judges) stays in compiled code; any other is asked in batches over the windows.
    """
    simulator = Simulator(world, world.n_windows, policy.settings, reward, event_log=event_log, threads=threads)
    simulator.reset(np.arange(world.n_windows))
    chooser = getattr(policy, "chooser", None)
    if chooser is not None:
        simulator.play(chooser)
        return simulator.totals()
    observations = simulator.observe()
    while not simulator.done.all():
        asked = np.flatnonzero(simulator.asking >= 0)
        actions = np.full(world.n_windows, -1, dtype=np.int64)
        actions[asked] = policy.act(observations[asked], simulator.layout)
        simulator.step(actions, observe=True)
    return simulator.totals()

"""What every environment on the simulator does alike: which windows can be played, how one begins, what is told at its end."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.kernel import Simulator
from envs.observation import LIMIT, ObservationLayout
from envs.state import COST, ENERGY, PENALTY
from envs.world import World
from telemetry.errors import InputError


def observation_box(layout: ObservationLayout) -> gym.spaces.Box:
    """Space of one observation, float32 ``[D]``."""
    return gym.spaces.Box(-LIMIT, LIMIT, (layout.size,), np.float32)


def playable_windows(world: World, where: str) -> np.ndarray:
    """Windows with at least one job that the cluster can run, int64 ``[W]``; in any other nothing is ever asked.

    Raises:
        InputError: there is none.
    """
    live = np.arange(world.jobs.reject.shape[1])[None, :] < world.jobs.count[:, None]
    windows = np.flatnonzero((live & (world.jobs.reject == 0)).any(axis=1))
    if not len(windows):
        raise InputError("no window has a job that the cluster can run", where=where, remedy="take other windows or a larger cluster")
    return windows


def first_observations(simulator: Simulator, fresh: np.ndarray) -> np.ndarray:
    """Observations ``[B, D]`` after windows began in ``fresh`` (bool ``[B]``); what accrued before the first question is no reward."""
    observations = simulator.observe()
    state = simulator.state
    state.marked_usd[fresh] = state.objective_usd[fresh]
    state.marked_regret[fresh] = state.regret_usd[fresh]
    return observations


def allowed_actions(simulator: Simulator) -> np.ndarray:
    """Allowed actions of the pending questions, bool ``[B, A]``; all False where nothing is asked."""
    return simulator.mask & (simulator.asking >= 0)[:, None]


def job_in_question(simulator: Simulator, b: int) -> str | None:
    """Id of the job that environment ``b`` asks about, or None."""
    job = int(simulator.asking[b])
    return None if job < 0 else simulator.world.job_ids[simulator.state.window[b]][job]


def episode_totals(simulator: Simulator, b: int) -> dict[str, Any]:
    """Totals of environment ``b`` so far: USD, kWh, penalty, objective, and the share of jobs that violated their service level."""
    state = simulator.state
    totals = state.site_totals[b].sum(axis=0)
    count = int(simulator.world.jobs.count[state.window[b]])
    return {
        "objective_usd": float(state.objective_usd[b]),
        "cost_usd": float(totals[COST]),
        "energy_kwh": float(totals[ENERGY]),
        "penalty_usd": float(totals[PENALTY]),
        "sla_violation_rate": float((state.violation[b, :count] > 0).mean()) if count else 0.0,
    }

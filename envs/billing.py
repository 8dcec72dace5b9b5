"""Runs of one world billed on the grid of another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.events import events_frame
from envs.replay.facts import facts_of
from envs.replay.recompute import IDLE, recompute
from envs.reward import RewardSpec
from envs.state import IDLE_STATES, EpisodeTotals, Policy
from envs.world import World

AMOUNTS = ("energy_kwh", "cost_usd", "carbon_kg", "penalty_usd")


def billed_totals(world: World, totals: EpisodeTotals, policy: Policy, reward: RewardSpec) -> EpisodeTotals:
    """What happened, with energy, cost, carbon and objective on the grid of ``world``, of the same windows, jobs and cluster.

    Args:
        totals: of a run with an event log.
    """
    assert totals.events is not None, "a run without an event log cannot be billed anew"
    assert tuple(IDLE.values()) == IDLE_STATES
    fresh = {name: np.zeros_like(getattr(totals, name)) for name in AMOUNTS}
    fresh |= {f"job_{name}": np.zeros_like(getattr(totals, f"job_{name}")) for name in AMOUNTS}
    fresh |= {f"idle_{name}": np.zeros_like(getattr(totals, f"idle_{name}")) for name in AMOUNTS[:3]}
    objective = np.zeros_like(totals.objective_usd)
    for m, events in enumerate(totals.events):
        bill = recompute(events_frame(world, m, events), facts_of(world, m, policy.name, policy.settings, reward))
        for name in AMOUNTS:
            fresh[name][m] = bill.sites[name].to_numpy()
            fresh[f"job_{name}"][m, : len(bill.jobs)] = bill.jobs[name].to_numpy()
        for name in AMOUNTS[:3]:
            fresh[f"idle_{name}"][m] = bill.sites[[f"{state}_{name}" for state in IDLE_STATES]].to_numpy()
        objective[m] = bill.objective_usd
    return replace(totals, **fresh, objective_usd=objective)

"""The judges: policies without learning that the agent has to beat, behind the interface of the agent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.kernel_choosers import GREEDY, LOOKAHEAD, PLANNER, ROOMIEST, TIGHTEST
from envs.kernel_entry import choose_rows
from envs.observation import ObservationLayout
from envs.state import PolicySettings

SLEEP_AFTER_S = 600


@dataclass(frozen=True)
class Judge:
    """A policy with a compiled chooser.

    Attributes:
        chooser: one of ``envs.kernel_choosers``: ROOMIEST (pool with most free GPUs), TIGHTEST (fewest nodes woken, then fewest free GPUs),
            GREEDY (least expected objective now), LOOKAHEAD (the same, or hold when a later start promises less),
            PLANNER (least price in the calendar of bookings).
    """

    name: str
    settings: PolicySettings
    chooser: int
    summary: str

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Actions int64 ``[B]``; the very choices of the compiled chooser."""
        actions = np.zeros(len(observation), dtype=np.int64)
        choose_rows(np.ascontiguousarray(observation, dtype=np.float32), layout.n_candidates, self.chooser, actions)
        return actions


def _judges() -> dict[str, Judge]:
    spread = PolicySettings(node_rule="least_allocated", sleep_after_s=-1, discipline="free", queue_order="fcfs")
    packed = {"node_rule": "best_fit", "sleep_after_s": SLEEP_AFTER_S}
    judges = (
        Judge("k8s_default", spread, ROOMIEST, "least allocated node, pool with most free GPUs, full power, nodes never sleep"),
        Judge(
            "most_allocated",
            PolicySettings(**packed, discipline="free", queue_order="fcfs"),
            TIGHTEST,
            "fullest node and pool, full power, idle nodes sleep",
        ),
        Judge("fifo", PolicySettings(**packed, discipline="strict", queue_order="fcfs"), TIGHTEST, "first come first served, strictly"),
        Judge("sjf", PolicySettings(**packed, discipline="free", queue_order="sjf"), TIGHTEST, "shortest estimate first"),
        Judge("easy", PolicySettings(**packed, discipline="easy", queue_order="fcfs"), TIGHTEST, "first come first served, EASY backfill"),
        Judge(
            "greedy_cost",
            PolicySettings(**packed, discipline="free", queue_order="priority"),
            GREEDY,
            "pool and level of least expected objective, at once",
        ),
        Judge(
            "lookahead",
            PolicySettings(**packed, discipline="free", queue_order="priority", hold_s=1800, hold_margin=0.05),
            LOOKAHEAD,
            "pool, level and start hour of least expected objective by forecast prices",
        ),
        Judge(
            "planner",
            PolicySettings(**packed, discipline="free", queue_order="priority", hold_s=1800, hold_margin=0.02, plans=True),
            PLANNER,
            "cheapest start, pool and level in a calendar of bookings, by forecast prices and the nodes that it keeps awake",
        ),
    )
    return {judge.name: judge for judge in judges}


JUDGES: dict[str, Judge] = _judges()

"""The judges: policies without learning that the agent has to beat, behind the interface of the agent.

| judge | after | rule |
|---|---|---|
| ``k8s_default`` | Kubernetes LeastAllocated | emptiest node and pool, full power, nodes never sleep |
| ``most_allocated`` | Kubernetes MostAllocated | fewest nodes woken, then the pool with fewest free GPUs, fullest node |
| ``fifo``, ``sjf``, ``easy`` | Feitelson; Lifka 1995 | as ``most_allocated`` in another order or discipline of the queue |
| ``best_fit`` | Johnson 1974 | the pool that is left with the fewest free GPUs, whether or not nodes have to wake for it, fullest node |
| ``fgd`` | Weng et al., ATC 2023 | the node of all pools whose fragmentation falls most (docs/fragmentation.md) |
| ``pwr_fgd`` | Lettich et al., CCGrid 2025 | the same with a tenth of the weight on the watts that are added |
| ``ces`` | Hu et al., SC 2021 | as ``most_allocated``, nodes sleep and wake by forecast demand (``envs.kernel_ces``) |
| ``threshold`` | usual in carbon-aware work | deferrable jobs wait while a kWh is dear by the last 24 h, else cheapest pool, full power |
| ``greedy_cost`` | | pool and level of least expected objective, at once |
| ``lookahead`` | | pool, level and start hour of least expected objective by forecast prices |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from envs.kernel_choosers import BEST_NODE, GREEDY, LEAST_LEFT, LOOKAHEAD, PLANNER, ROOMIEST, THRESHOLD, TIGHTEST
from envs.kernel_entry import choose_rows
from envs.observation import ObservationLayout
from envs.state import PolicySettings
from telemetry.errors import InputError

SLEEP_AFTER_S = 600


@dataclass(frozen=True)
class Parameter:
    """A setting that may be tuned: a field of :class:`~envs.state.PolicySettings` and its range; whole numbers where both ends are."""

    name: str
    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Judge:
    """A policy with a compiled chooser.

    Attributes:
        chooser: one of ``envs.kernel_choosers``: ROOMIEST (pool with most free GPUs), TIGHTEST (fewest nodes woken, then fewest free GPUs),
            GREEDY (least expected objective now), LOOKAHEAD (the same, or hold when a later start promises less), PLANNER (least price in
            the calendar of bookings), LEAST_LEFT (fewest free GPUs, then fewest nodes woken), BEST_NODE (pool of the node that the node
            rule prefers), THRESHOLD (hold in dear hours).
        space: what :mod:`pipelines.tune_judges` may change; empty = nothing.
    """

    name: str
    settings: PolicySettings
    chooser: int
    summary: str
    space: tuple[Parameter, ...] = ()

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Actions int64 ``[B]``; the very choices of the compiled chooser."""
        actions = np.zeros(len(observation), dtype=np.int64)
        rows = np.ascontiguousarray(observation, dtype=np.float32)
        choose_rows(rows, layout.n_pools, layout.n_levels, self.chooser, self.settings.threshold_quantile, actions)
        return actions

    def tuned(self, values: Mapping[str, float]) -> Judge:
        """The judge with other values of its parameters.

        Raises:
            InputError: not a parameter of this judge, or a value outside what the settings allow.
        """
        names = [parameter.name for parameter in self.space]
        unknown = sorted(set(values) - set(names))
        if unknown:
            allowed = ", ".join(names) or "nothing: it has no parameters"
            raise InputError(f"parameter '{unknown[0]}'", where=f"judge '{self.name}'", allowed=allowed)
        return replace(self, settings=replace(self.settings, **values))


SLEEP = Parameter("sleep_after_s", 1, 7200, log=True)
HOLD = Parameter("hold_s", 300, 7200, log=True)


PLANNER_SPACE = (
    SLEEP,
    HOLD,
    Parameter("review_s", 450, 3600, log=True),
    Parameter("expected_share", 0.1, 1.2),
    Parameter("padded_share", 0.3, 1.5),
    Parameter("node_weight", 0.1, 1.5),
    Parameter("share_weight", 0.0, 2.5),
    Parameter("hold_margin", 0.0, 0.6),
    Parameter("move_margin", 0.0, 0.6),
    Parameter("overbooked_usd_per_gpu_hour", 0.003, 0.3, log=True),
)


def _judges() -> dict[str, Judge]:
    spread = PolicySettings(node_rule="least_allocated", sleep_after_s=-1, discipline="free", queue_order="fcfs")
    packed = PolicySettings(node_rule="best_fit", sleep_after_s=SLEEP_AFTER_S, discipline="free", queue_order="fcfs")
    urgent = replace(packed, queue_order="priority")
    planner = replace(
        urgent,
        sleep_after_s=45,
        hold_s=900,
        review_s=900,
        price_forecast="last_week",
        plans=True,
        expected_share=0.6,
        padded_share=0.8,
        node_weight=0.35,
        share_weight=1.9,
        hold_margin=0.06,
        move_margin=0.03,
        overbooked_usd_per_gpu_hour=0.03,
    )
    judges = (
        Judge("k8s_default", spread, ROOMIEST, "least allocated node, pool with most free GPUs, full power, nodes never sleep"),
        Judge("most_allocated", packed, TIGHTEST, "fullest node and pool, full power, idle nodes sleep", (SLEEP,)),
        Judge("fifo", replace(packed, discipline="strict"), TIGHTEST, "first come first served, strictly", (SLEEP,)),
        Judge("sjf", replace(packed, queue_order="sjf"), TIGHTEST, "shortest estimate first", (SLEEP,)),
        Judge("easy", replace(packed, discipline="easy"), TIGHTEST, "first come first served, EASY backfill", (SLEEP,)),
        Judge("best_fit", packed, LEAST_LEFT, "pool that is left with the fewest free GPUs, fullest node, full power", (SLEEP,)),
        Judge("fgd", replace(packed, node_rule="fgd"), BEST_NODE, "node whose fragmentation falls most, full power", (SLEEP,)),
        Judge(
            "pwr_fgd",
            replace(packed, node_rule="pwr_fgd"),
            BEST_NODE,
            "node by fragmentation and added watts, full power",
            (SLEEP, Parameter("pwr_weight", 0.0, 1.0)),
        ),
        Judge(
            "ces",
            replace(packed, sleep_after_s=0, ces_buffer=1),
            TIGHTEST,
            "fullest node and pool, full power, nodes sleep and wake by forecast demand",
            (Parameter("ces_buffer", 0, 4), Parameter("ces_trend", 0.0, 2.0), Parameter("ces_keep_s", 600, 14_400, log=True)),
        ),
        Judge(
            "threshold",
            replace(urgent, hold_s=1800),
            THRESHOLD,
            "deferrable jobs wait in dear hours, else the cheapest pool at full power",
            (SLEEP, HOLD, Parameter("threshold_quantile", 0.0, 1.0)),
        ),
        Judge("greedy_cost", urgent, GREEDY, "pool and level of least expected objective, at once", (SLEEP,)),
        Judge(
            "lookahead",
            replace(urgent, hold_s=1800, hold_margin=0.05),
            LOOKAHEAD,
            "pool, level and start hour of least expected objective by forecast prices",
            (SLEEP, HOLD, Parameter("hold_margin", 0.0, 0.5)),
        ),
        Judge("planner", planner, PLANNER, "cheapest slots, pool and level in a calendar of bookings, by forecast prices", PLANNER_SPACE),
    )
    return {judge.name: judge for judge in judges}


JUDGES: dict[str, Judge] = _judges()


def _with_foresight(name: str) -> Judge:
    judge = JUDGES[name]
    settings = replace(judge.settings, price_forecast="perfect")
    summary = f"{name}, knowing prices, carbon and temperature to come: for comparison only"
    return Judge(f"{name}_perfect", settings, judge.chooser, summary)


# What perfect forecasts would be worth. No judges: nothing is measured against them, and none is ever promoted.
FORESIGHTED: dict[str, Judge] = {f"{name}_perfect": _with_foresight(name) for name in ("lookahead", "planner")}

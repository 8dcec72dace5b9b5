"""When an experiment must stop and a champion must go: rules on what decisions turned out to cost, looked at after every one of them.

A rule of comparison fires when a bound that holds at every moment at once (``envs.sequential``) says that the watched arm is worse than the
reference by more than a tolerance: continuous looking does not raise the chance of a false stop above ``alpha``. Hard limits fire at once.
What stops is written to a file beside the log, which the runtime reads before it draws an arm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.sequential import Excess, excess_of
from telemetry.errors import InputError

STOPPED_FILE = "stopped.json"
RULES: tuple[str, ...] = ("sla", "cost", "hard_sla", "hard_cost")


@dataclass(frozen=True)
class GuardConfig:
    """Limits of an experiment, or of a champion against the version before it.

    Attributes:
        alpha: probability of a false stop, over all comparisons and all time.
        violation_tolerance: share of jobs by which the watched arm may violate its service objectives more often.
        cost_tolerance: share of ``cost_cap_usd`` by which a job may cost more on average.
        cost_cap_usd: costs above count as this much; the comparison is of means of costs so capped.
        hard_violation_rate, hard_cost_usd: highest share of violations and mean cost of the last ``hard_jobs`` jobs of the watched arm.
        hard_jobs: none of the hard limits looks at fewer.
        sustained: UTC days in a row at whose ends a comparison must have fired before the champion is rolled back.
    """

    alpha: float = 0.05
    violation_tolerance: float = 0.0
    cost_tolerance: float = 0.0
    cost_cap_usd: float = 10.0
    hard_violation_rate: float = 0.5
    hard_cost_usd: float = float("inf")
    hard_jobs: int = 50
    sustained: int = 3

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("alpha", 0 < self.alpha < 1, "above 0, below 1"),
            ("violation_tolerance", 0 <= self.violation_tolerance <= 1, "0 to 1"),
            ("cost_tolerance", 0 <= self.cost_tolerance <= 1, "0 to 1"),
            ("cost_cap_usd", 0 < self.cost_cap_usd < float("inf"), "USD above 0"),
            ("hard_violation_rate", 0 < self.hard_violation_rate <= 1, "above 0 to 1"),
            ("hard_jobs", self.hard_jobs >= 1, "jobs from 1"),
            ("sustained", self.sustained >= 1, "days from 1"),
        ):
            if not good:
                raise InputError(f"{name} {getattr(self, name)}", where="guardrails", allowed=allowed)


@dataclass(frozen=True)
class Breach:
    """The first rule that fired."""

    rule: str
    time: str
    job: int
    reason: str


@dataclass(frozen=True)
class Watched:
    """What the rules saw.

    Attributes:
        jobs, reference: outcomes of the watched arm and of the other.
        breach: None while all is within the limits.
        lost_days: UTC days in a row, up to the last one, at whose end a comparison had fired.
        sla, cost: bounds of the excess after every outcome, for a plot.
    """

    jobs: int
    reference: int
    breach: Breach | None
    lost_days: int
    sla: Excess
    cost: Excess

    def sustained(self, config: GuardConfig) -> bool:
        """Whether the watched version has lost for long enough to be rolled back."""
        return self.lost_days >= config.sustained


def watch(outcomes: pd.DataFrame, config: GuardConfig) -> Watched:
    """Apply the rules to jobs in the order in which their outcomes were known.

    Args:
        outcomes: ``time`` (UTC), ``watched`` (bool), ``cost_usd``, ``violated`` (bool or 0/1), one row a job.

    Raises:
        InputError: a missing column, or a cost that is not finite.
    """
    missing = sorted({"time", "watched", "cost_usd", "violated"} - set(outcomes))
    if missing:
        raise InputError(f"no column {', '.join(missing)}", where="guardrails", allowed="time, watched, cost_usd, violated")
    rows = outcomes.sort_values("time", kind="stable", ignore_index=True)
    cost, arm = rows["cost_usd"].to_numpy(dtype=float), rows["watched"].to_numpy(dtype=bool)
    if not np.isfinite(cost).all():
        raise InputError("a cost that is not finite", where=f"guardrails, outcome {int(np.flatnonzero(~np.isfinite(cost))[0])}")
    violated = rows["violated"].to_numpy(dtype=float)
    sla = excess_of(violated, arm, config.alpha / 2)
    capped = excess_of(np.clip(cost, 0.0, config.cost_cap_usd), arm, config.alpha / 2, largest=config.cost_cap_usd)
    fired = {
        "sla": sla.low > config.violation_tolerance,
        "cost": capped.low > config.cost_tolerance * config.cost_cap_usd,
        "hard_sla": _recent(violated, arm, config.hard_jobs) > config.hard_violation_rate,
        "hard_cost": _recent(cost, arm, config.hard_jobs) > config.hard_cost_usd,
    }
    return Watched(int(arm.sum()), int((~arm).sum()), _first(fired, rows, sla, capped, config), _lost_days(fired, rows), sla, capped)


def _recent(values: np.ndarray, arm: np.ndarray, jobs: int) -> np.ndarray:
    """After each outcome the mean of the watched arm's last ``jobs``; -inf while it has fewer."""
    mine = np.concatenate([[0.0], np.cumsum(values[arm])])
    count = np.cumsum(arm)
    return np.where(count >= jobs, (mine[count] - mine[np.maximum(count - jobs, 0)]) / jobs, -np.inf)


def _first(fired: Mapping[str, np.ndarray], rows: pd.DataFrame, sla: Excess, cost: Excess, config: GuardConfig) -> Breach | None:
    when = {rule: int(np.flatnonzero(hits)[0]) for rule, hits in fired.items() if hits.any()}
    if not when:
        return None
    rule = min(when, key=lambda name: (when[name], RULES.index(name)))
    at = when[rule]
    said = {
        "sla": f"jobs violate their objectives more often by at least {sla.low[at]:.2%}, allowed are {config.violation_tolerance:.2%}",
        "cost": f"a job costs more by at least {cost.low[at]:.4f} USD (costs capped at {config.cost_cap_usd:g}), allowed are "
        f"{config.cost_tolerance * config.cost_cap_usd:.4f}",
        "hard_sla": f"more than {config.hard_violation_rate:.0%} of the last {config.hard_jobs} jobs violated their objectives",
        "hard_cost": f"the last {config.hard_jobs} jobs cost more than {config.hard_cost_usd:g} USD on average",
    }
    return Breach(rule, pd.Timestamp(rows["time"][at]).isoformat(), at, said[rule])


def _lost_days(fired: Mapping[str, np.ndarray], rows: pd.DataFrame) -> int:
    if rows.empty:
        return 0
    lost = pd.Series(np.logical_or.reduce(list(fired.values())))
    last = lost.groupby(pd.to_datetime(rows["time"], utc=True).dt.floor("D")).last().to_numpy()
    kept = np.flatnonzero(~last)
    return int(len(last) - 1 - kept[-1]) if len(kept) else len(last)


# ---------------------------------------------------------------- the file that stops


def stop(folder: Path, experiment: str, breach: Breach) -> None:
    """Write that ``experiment`` has stopped; what was stopped before stays as it was."""
    stopped = stopped_experiments(folder)
    if experiment in stopped:
        return
    entry = {**asdict(breach), "written": datetime.now(UTC).isoformat(timespec="seconds")}
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{STOPPED_FILE}.new"
    fresh.write_text(json.dumps({**stopped, experiment: entry}, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, folder / STOPPED_FILE)


def stopped_experiments(folder: Path) -> dict[str, Any]:
    """What has been stopped, by experiment.

    Raises:
        InputError: the file is there and cannot be read: nobody knows then what runs, so nothing may.
    """
    path = folder / STOPPED_FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), remedy="repair it, or remove it when nothing was stopped") from error
    if not isinstance(content, dict):
        raise InputError(f"{content!r}", where=str(path), allowed="stopped experiments by name")
    return content

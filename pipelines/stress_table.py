"""How much worse each stress makes each policy: its degradation from its own calm result, beside that of the best judge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from envs.evaluate import paired_difference
from pipelines.against import CHOSEN, best_judge
from pipelines.evaluation_report import interval_text

METRICS = ("objective_usd", "cost_usd", "energy_kwh", "carbon_kg", "sla_violation_rate")
SHOWN = ("objective_usd", "sla_violation_rate")
KEYS = ["policy", "window", "seed"]


@dataclass(frozen=True)
class StressSection:
    """Degradations by (stress, policy, metric), and what is stated about each stress.

    Attributes:
        rows: ``stress, policy, metric, calm, stressed, mean, low, high, relative, windows`` (stressed minus calm) and
            ``beyond_judge, beyond_judge_low, beyond_judge_high``: that degradation minus the best judge's, paired (0 for itself).
    """

    judge: str
    rows: pd.DataFrame
    told: dict[str, Any]

    def extend(self, document: dict[str, Any]) -> None:
        """``stress_table``: the best judge, per stress its options and times, and ``policies.<name>.<metric>``."""
        stresses: dict[str, Any] = {name: {**told, "policies": {}} for name, told in self.told.items()}
        for row in self.rows.to_dict("records"):
            stresses[row.pop("stress")]["policies"].setdefault(row.pop("policy"), {})[row.pop("metric")] = row
        document["stress_table"] = {"judge": self.judge, "chosen": CHOSEN, "stresses": stresses}

    def lines(self) -> list[str]:
        lines = [
            f"under stress: change from the policy's own calm result, and beyond that of the best judge, {self.judge} ({CHOSEN}); "
            "95 % intervals over windows"
        ]
        for stress, rows in self.rows.groupby("stress", sort=False):
            lines.append(f"  {stress}")
            for row in rows[rows["metric"].isin(SHOWN)].to_dict("records"):
                relative = f" ({100 * row['relative']:+.1f} %)" if math.isfinite(row["relative"]) else ""
                beyond = (
                    ""
                    if row["policy"] == self.judge
                    else f"; beyond the judge {row['beyond_judge']:+.4g} {interval_text(row, 'beyond_judge_low', 'beyond_judge_high')}"
                )
                lines.append(f"    {row['policy']:<16} {row['metric']:<18} {row['mean']:+.4g} {interval_text(row)}{relative}{beyond}")
        return lines


def stress_section(calm: pd.DataFrame, stressed: Mapping[str, pd.DataFrame], told: Mapping[str, Any]) -> StressSection:
    """Compare rows of the same policies, windows and seeds without and with each stress."""
    judge = best_judge(calm)
    rows = [degradations(calm, frame, judge).assign(stress=name) for name, frame in stressed.items()]
    return StressSection(judge, pd.concat(rows, ignore_index=True), dict(told))


def degradations(calm: pd.DataFrame, stressed: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Rows of :class:`StressSection` for one stress, without its name."""
    change = stressed.set_index(KEYS)[[*METRICS]] - calm.set_index(KEYS)[[*METRICS]]
    beyond = paired_difference(change.reset_index(), judge, metrics=METRICS).set_index(["policy", "metric"])
    found = []
    for name in dict.fromkeys(calm["policy"]):
        pair = pd.concat([part[part["policy"] == name].assign(policy=kind) for kind, part in (("calm", calm), ("stressed", stressed))])
        own = paired_difference(pair, "calm", metrics=METRICS).drop(columns=["policy", "baseline"]).assign(policy=name)
        own["calm"] = [float(pair.loc[pair["policy"] == "calm", metric].mean()) for metric in own["metric"]]
        own["stressed"] = [float(pair.loc[pair["policy"] == "stressed", metric].mean()) for metric in own["metric"]]
        for column, source in (("beyond_judge", "mean"), ("beyond_judge_low", "low"), ("beyond_judge_high", "high")):
            own[column] = [0.0 if name == judge else float(beyond.loc[(name, metric), source]) for metric in own["metric"]]
        found.append(own)
    return pd.concat(found, ignore_index=True)

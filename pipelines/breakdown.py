"""The section of an evaluation by workload class and by site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

CLASS_SHOWN = ("jobs", "sla_violations", "late_starts", "missed_deadlines", "mean_wait_s", "energy_kwh", "cost_usd", "carbon_kg")
SITE_SHOWN = ("energy_kwh", "cost_usd", "carbon_kg", "idle_energy_share")


@dataclass(frozen=True)
class BreakdownSection:
    """Means by (policy, class) and (policy, site), from :class:`envs.breakdown.Breakdown`."""

    by_class: pd.DataFrame
    by_site: pd.DataFrame

    def extend(self, document: dict[str, Any]) -> None:
        """``summary.<policy>.by_class`` and ``by_site``."""
        for name, means in document["summary"].items():
            means["by_class"] = _of_policy(self.by_class, name)
            means["by_site"] = _of_policy(self.by_site, name)

    def lines(self) -> list[str]:
        return [
            "by workload class, mean per window (kWh, USD, kg: what its jobs are charged)",
            _table(self.by_class[[*CLASS_SHOWN]]),
            "",
            "by site, mean per window",
            _table(self.by_site[[*SITE_SHOWN]]),
        ]


def _of_policy(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """Rows of one policy; none when no window holds a job."""
    return frame.loc[name].to_dict("index") if name in frame.index.get_level_values("policy") else {}


def _table(frame: pd.DataFrame) -> str:
    return frame.to_string(float_format=lambda v: f"{v:,.3f}", index_names=False)

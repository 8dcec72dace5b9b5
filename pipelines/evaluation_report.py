"""What an evaluation found, as the JSON contract and as printed tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from envs.evaluate import CONTRACT_METRICS, summarise
from pipelines.equipment import service_means
from pipelines.trials import Trial

TABLE_COLUMNS = (*CONTRACT_METRICS, "objective_usd")
DIFFERENCES_SHOWN = ("energy_kwh", "cost_usd", "carbon_kg", "sla_violation_rate", "objective_usd")


class Section(Protocol):
    """A part of the report beside means and differences to the baseline."""

    def extend(self, document: dict[str, Any]) -> None:
        """Add to the JSON document; what is there stays."""
        ...

    def lines(self) -> list[str]:
        """Printed lines, the first one a heading."""
        ...


@dataclass(frozen=True)
class Report:
    """What the command found: rows of :func:`envs.evaluate.evaluate`, paired differences (empty without a baseline), rows of services."""

    frame: pd.DataFrame
    differences: pd.DataFrame
    trial: Trial
    seeds: tuple[int, ...]
    services: pd.DataFrame = field(default_factory=pd.DataFrame)
    sections: tuple[Section, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The contract: per policy and window the metrics, their means, and the difference to the baseline with its interval."""
        names = list(dict.fromkeys(self.frame["policy"]))
        rows = {name: self.frame[self.frame["policy"] == name].drop(columns="policy") for name in names}
        document = {
            **self.trial.description,
            "seeds": list(self.seeds),
            "notes": list(self.trial.notes),
            **({"stress": self.trial.stress} if self.trial.stress else {}),
            "policies": {name: {"windows": table.to_dict("records")} for name, table in rows.items()},
            "summary": summarise(self.frame).to_dict("index"),
            "paired_difference": differences_json(self.differences),
            **self._services_json(),
        }
        for section in self.sections:
            section.extend(document)
        return plain(document)

    def _services_json(self) -> dict[str, Any]:
        """Nothing without services; else per service and policy the windows and their means."""
        found: dict[str, dict[str, Any]] = {}
        for (service, policy), rows in self.services.groupby(["service", "policy"], sort=False) if len(self.services) else ():
            means = service_means(rows).iloc[0].to_dict()
            windows = rows.drop(columns=["service", "policy"]).to_dict("records")
            found.setdefault(str(service), {})[str(policy)] = {"mean": means, "windows": windows}
        return {"services": found} if found else {}


def differences_json(differences: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Rows of :func:`envs.evaluate.paired_difference` as ``{policy: {metric: row}}``."""
    found: dict[str, dict[str, Any]] = {}
    for row in differences.to_dict("records"):
        found.setdefault(row.pop("policy"), {})[row.pop("metric")] = row
    return found


def plain(value: Any) -> Any:
    """JSON values only: NaN and infinity become null, times ISO 8601."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, bool | str) or value is None:
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) or (hasattr(value, "dtype") and value.dtype.kind in "iu") else number


def render(report: Report) -> str:
    """The printed tables: means by policy, sections, then the difference of cost, energy, carbon and violations to the baseline."""
    means = summarise(report.frame)[list(TABLE_COLUMNS)]
    lines = [f"{key}: {value}" for key, value in report.trial.description.items()]
    lines += [f"note: {note}" for note in report.trial.notes]
    lines += ["", "mean over windows and seeds", means.to_string(float_format=lambda v: f"{v:,.3f}")]
    for service, rows in service_means(report.services).groupby("service", sort=False) if len(report.services) else ():
        table = rows.droplevel("service").T.to_string(float_format=lambda v: f"{v:,.4g}")
        lines += ["", f"service {service}, mean over windows and seeds (envs/service_report.py)", table]
    lines += difference_lines(report.differences)
    for section in report.sections:
        lines += ["", *section.lines()]
    return "\n".join(lines)


def difference_lines(differences: pd.DataFrame, metrics: Sequence[str] = DIFFERENCES_SHOWN, about: str = "") -> list[str]:
    """Printed paired differences, a heading first; nothing without differences."""
    if not len(differences):
        return []
    shown = differences[differences["metric"].isin(metrics)]
    lines = ["", f"paired difference to {shown['baseline'].iloc[0]}{about}, 95 % interval over windows"]
    for row in shown.to_dict("records"):
        relative = f"  ({100 * row['relative']:+.1f} %)" if math.isfinite(row["relative"]) else ""
        lines.append(f"  {row['policy']:<16} {row['metric']:<20} {row['mean']:+.4g} {interval_text(row)}{relative}")
    return lines


def interval_text(row: dict[str, Any], low: str = "low", high: str = "high") -> str:
    """An interval, or why there is none."""
    return f"[{row[low]:+.4g}, {row[high]:+.4g}]" if math.isfinite(row[low]) else "[one window: no interval]"

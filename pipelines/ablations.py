"""What each lever of a policy is worth: the policy without it on the same windows (``envs.levers``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from envs.evaluate import paired_difference
from envs.heuristics import JUDGES
from envs.levers import LEVERS, with_settings
from envs.state import Policy
from pipelines.against import CHOSEN, best_judge
from pipelines.evaluation_report import interval_text
from pipelines.setting import Setting
from telemetry.errors import InputError

NO_WARM_START = "no_warm_start"
ABLATIONS = (*LEVERS, NO_WARM_START)
WORTH = ("energy_kwh", "cost_usd", "carbon_kg", "objective_usd", "sla_violation_rate", "jobs_rejected")
SHOWN = ("energy_kwh", "cost_usd", "carbon_kg", "objective_usd")


def ablation_names(value: Any) -> tuple[str, ...]:
    """The option ``ablations``: false or null, true (all), or a list of names."""
    if value is None or value is False:
        return ()
    if value is True:
        return ABLATIONS
    names = tuple(str(name) for name in value) if OmegaConf.is_list(value) or isinstance(value, list | tuple) else (str(value),)
    unknown = [name for name in names if name not in ABLATIONS]
    if unknown or not names:
        raise InputError(
            f"ablations={', '.join(unknown) or value}", where="ablations", allowed=f"true, or a list of {', '.join(ABLATIONS)}"
        )
    return names


@dataclass(frozen=True)
class AblationSection:
    """Paired differences of the policy without a lever to the whole policy; ``missing`` says why a lever could not be taken away."""

    policy: str
    chosen: str
    differences: pd.DataFrame
    missing: dict[str, str]

    def extend(self, document: dict[str, Any]) -> None:
        """``ablations``: the policy, and per lever ``worth.<metric>`` (without the lever minus with it) or ``not_available``."""
        levers: dict[str, Any] = {}
        for row in self.differences.to_dict("records"):
            levers.setdefault(row.pop("policy"), {"worth": {}})["worth"][row.pop("metric")] = row
        levers |= {name: {"not_available": why} for name, why in self.missing.items()}
        document["ablations"] = {"policy": self.policy, "chosen": self.chosen, "levers": levers}

    def lines(self) -> list[str]:
        lines = [
            f"what each lever of {self.policy} ({self.chosen}) is worth: without it minus with it, per window, 95 % interval over windows"
        ]
        for lever, rows in self.differences.groupby("policy", sort=False) if len(self.differences) else ():
            for row in rows[rows["metric"].isin(SHOWN)].to_dict("records"):
                relative = f"  ({100 * row['relative']:+.1f} %)" if math.isfinite(row["relative"]) else ""
                lines.append(f"  {lever!s:<18} {row['metric']:<14} {row['mean']:+.4g} {interval_text(row)}{relative}")
        return lines + [f"  {lever:<18} not available: {why}" for lever, why in self.missing.items()]


def ablation_section(
    setting: Setting,
    frame: pd.DataFrame,
    policies: Mapping[str, Policy],
    levers: tuple[str, ...],
    named: str | None = None,
    scratch: Policy | None = None,
) -> AblationSection:
    """Play a policy without each lever.

    Args:
        frame: rows of all ``policies`` in ``setting``.
        named: the policy; by default the champion when it was evaluated, else the best judge.
        scratch: the agent trained without a warm start.

    Raises:
        InputError: ``named`` was not evaluated.
    """
    if named is not None and named not in policies:
        raise InputError(f"policy '{named}' was not evaluated", where="ablation_policy", allowed=", ".join(policies))
    name = named or ("champion" if "champion" in policies else best_judge(frame))
    chosen = "named" if named else "the promoted policy" if name == "champion" else CHOSEN
    found, missing = [frame[frame["policy"] == name]], {}
    for lever in levers:
        rows = _without(setting, policies[name], name, lever, scratch)
        if isinstance(rows, str):
            missing[lever] = rows
        else:
            found.append(rows)
    together = pd.concat(found, ignore_index=True)
    return AblationSection(name, chosen, paired_difference(together, name, metrics=WORTH), missing)


def _without(setting: Setting, policy: Policy, name: str, lever: str, scratch: Policy | None) -> pd.DataFrame | str:
    """Rows of the policy without a lever, or why there are none."""
    if lever == NO_WARM_START:
        if name in JUDGES:
            return "a judge is not trained"
        if scratch is None:
            return "no policy trained from scratch was given (scratch=FOLDER or alias)"
        return setting.play({lever: scratch})
    change = LEVERS[lever]
    if not change.available:
        return f"the simulator has no setting {change.needs}"
    settings, cluster = change.settings(policy.settings), change.cluster(setting.trial.cluster)
    if settings == policy.settings and cluster == setting.trial.cluster:
        return "the policy does not have it"
    changed = setting if cluster == setting.trial.cluster else setting.with_cluster(cluster)
    return changed.play({lever: with_settings(policy, settings)})

"""What preferences buy: every policy under a grid of reward weights, the fronts of its results, and the volume that they dominate.

The weights are those of the objective (``envs/reward.py``), which policies see in their observation. They change what a policy does and not
how it is measured: a point is the mean USD, kWh, kgCO2e and SLA violation rate of a window.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.hypervolume import hypervolume, undominated
from envs.kernel_choosers import ROOMIEST, TIGHTEST
from envs.reward import RewardSpec
from envs.state import Policy
from pipelines.against import CHOSEN, best_judge
from pipelines.setting import Setting
from registry.preference_plots import preference_fronts
from telemetry.errors import InputError

AXES = ("cost_usd", "energy_kwh", "carbon_kg", "sla_violation_rate")
VOLUMES: dict[str, tuple[str, ...]] = {
    "cost_sla": ("cost_usd", "sla_violation_rate"),
    "energy_sla": ("energy_kwh", "sla_violation_rate"),
    "carbon_sla": ("carbon_kg", "sla_violation_rate"),
    "cost_carbon_sla": ("cost_usd", "carbon_kg", "sla_violation_rate"),
}
SPREAD = 10.0
# They look at no score and so at no weight: one run stands for all preferences.
BLIND = (ROOMIEST, TIGHTEST)
SAMPLES = 500
MARGIN = 0.1


def preferences(reward: RewardSpec, count: int) -> list[RewardSpec]:
    """``count`` x ``count`` weights: SLA and carbon from a tenth to ten times the configured ones, evenly on a log scale.

    An odd ``count`` holds the configured weights themselves. A carbon or SLA weight of 0 is swept around 1.
    """
    factors = np.geomspace(1 / SPREAD, SPREAD, count) if count > 1 else np.ones(1)
    return [
        replace(reward, w_sla=float((reward.w_sla or 1.0) * sla), w_carbon=float((reward.w_carbon or 1.0) * carbon))
        for sla in factors
        for carbon in factors
    ]


@dataclass(frozen=True)
class ParetoSection:
    """Points of every policy and the volumes of their fronts.

    Attributes:
        points: ``policy, w_sla, w_carbon, configured``, ``AXES`` and ``on_front`` (that none of the policy's own points beats in cost,
            carbon and violations together).
        volumes: ``policy, volume, value, low, high, beyond_judge, beyond_judge_low, beyond_judge_high``: shares of the box between
            ``ideal`` and ``reference``, 95 % bootstrap intervals over windows, and the paired difference to the judge's.
        ideal, reference: by axis, the least value of all points, and the most plus a tenth of the range.
    """

    judge: str
    points: pd.DataFrame
    volumes: pd.DataFrame
    ideal: dict[str, float]
    reference: dict[str, float]

    def extend(self, document: dict[str, Any]) -> None:
        """``pareto``: reference points, and per policy ``points`` and ``hypervolume``."""
        told: dict[str, Any] = {"judge": self.judge, "chosen": CHOSEN, "ideal": self.ideal, "reference": self.reference, "policies": {}}
        for name, rows in self.points.groupby("policy", sort=False):
            own = self.volumes[self.volumes["policy"] == name].drop(columns="policy").set_index("volume")
            points = rows.drop(columns="policy").astype({"configured": object, "on_front": object}).to_dict("records")
            told["policies"][str(name)] = {"points": points, "hypervolume": own.to_dict("index")}
        document["pareto"] = told

    def lines(self) -> list[str]:
        lines = [
            "preferences: share of the box from the best to the worst of all points that each policy's front dominates; in brackets the "
            f"difference to {self.judge} ({CHOSEN}) with its 95 % interval over windows",
            f"  {'policy':<16} {'front':>5} " + " ".join(f"{name:<34}" for name in VOLUMES),
        ]
        table = self.volumes.set_index(["policy", "volume"])
        for name, rows in self.points.groupby("policy", sort=False):
            cells = []
            for volume in VOLUMES:
                row = table.loc[(name, volume)]
                beyond = f"({row['beyond_judge']:+.3f} [{row['beyond_judge_low']:+.3f}, {row['beyond_judge_high']:+.3f}])"
                cells.append(f"{row['value']:.3f} {'' if name == self.judge else beyond}")
            lines.append(f"  {name!s:<16} {int(rows['on_front'].sum()):>5} " + " ".join(f"{cell:<34}" for cell in cells))
        return lines

    def write(self, out: Path) -> list[Path]:
        """The chart as PNG and SVG beside ``out``, highlighting the champion or the agent."""
        names = list(self.points["policy"].unique())
        figure = preference_fronts(self.points, highlight=next((name for name in ("champion", "agent") if name in names), self.judge))
        written = []
        for kind in ("png", "svg"):
            path = out.with_suffix(f".pareto.{kind}")
            fresh = path.with_name(path.name + ".new")
            figure.savefig(fresh, format=kind, dpi=110)
            os.replace(fresh, path)
            written.append(path)
        return written


def pareto_section(setting: Setting, policies: Mapping[str, Policy], frame: pd.DataFrame, count: int, *, seed: int = 0) -> ParetoSection:
    """Play every policy under every preference.

    Args:
        frame: rows of all ``policies`` under the configured weights, which also choose the best judge.
        count: values of each weight.

    Raises:
        InputError: no judge was evaluated, or no window holds a job (windows without jobs have no violation rate and are left out).
    """
    runs: list[tuple[str, RewardSpec, pd.DataFrame]] = []
    specs = preferences(setting.reward, count)
    own = [spec for spec in specs if _same(spec, setting.reward)]
    for name, policy in policies.items():
        runs.append((name, own[0] if own else setting.reward, frame[frame["policy"] == name]))
        if getattr(policy, "chooser", None) not in BLIND:
            runs += [(name, spec, setting.play({name: policy}, reward=spec)) for spec in specs if not _same(spec, setting.reward)]
    means = np.stack([_by_window(rows) for _, _, rows in runs])  # [R, W, AXES]
    means = means[:, np.isfinite(means).all(axis=(0, 2))]
    if not means.shape[1]:
        raise InputError("no window holds a job", where="pareto", allowed="at least one job")
    points = pd.DataFrame(
        {
            "policy": [name for name, _, _ in runs],
            "w_sla": [spec.w_sla for _, spec, _ in runs],
            "w_carbon": [spec.w_carbon for _, spec, _ in runs],
            "configured": [_same(spec, setting.reward) for _, spec, _ in runs],
        }
    ).join(pd.DataFrame(np.mean(means, axis=1), columns=[*AXES]))
    points["on_front"] = False
    for _, rows in points.groupby("policy"):
        points.loc[rows.index, "on_front"] = undominated(rows[[*VOLUMES["cost_carbon_sla"]]].to_numpy())
    judge = best_judge(frame)
    ideal, reference = _box(points)
    return ParetoSection(judge, points, _volumes(points["policy"], means, ideal, reference, judge, seed), ideal, reference)


def _same(spec: RewardSpec, configured: RewardSpec) -> bool:
    return bool(np.isclose(spec.w_sla, configured.w_sla) and np.isclose(spec.w_carbon, configured.w_carbon))


def _by_window(rows: pd.DataFrame) -> np.ndarray:
    """Means over seeds, ``[W, AXES]``."""
    return rows.groupby("window")[[*AXES]].mean().sort_index().to_numpy()


def _box(points: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    low, high = points[[*AXES]].min(), points[[*AXES]].max()
    span = (high - low).where(high > low, 1.0)
    return low.to_dict(), (high + MARGIN * span).to_dict()


def _volumes(
    owner: pd.Series, means: np.ndarray, ideal: Mapping[str, float], reference: Mapping[str, float], judge: str, seed: int
) -> pd.DataFrame:
    """Hypervolumes on all windows and on resampled ones, the same draws for every policy."""
    windows = means.shape[1]
    rng = np.random.default_rng(seed)
    draws = [np.arange(windows), *(rng.integers(0, windows, windows) for _ in range(SAMPLES if windows > 1 else 0))]
    low, high = np.array([ideal[axis] for axis in AXES]), np.array([reference[axis] for axis in AXES])
    names = list(dict.fromkeys(owner))
    values = {name: np.zeros((len(VOLUMES), len(draws))) for name in names}
    for d, draw in enumerate(draws):
        scaled = (np.mean(means[:, draw], axis=1) - low) / (high - low)  # [R, AXES]
        for name in names:
            own = scaled[(owner == name).to_numpy()]
            for v, axes in enumerate(VOLUMES.values()):
                columns = [AXES.index(axis) for axis in axes]
                values[name][v, d] = hypervolume(own[:, columns], np.ones(len(columns)))
    rows = []
    for name in names:
        beyond = values[name] - values[judge]
        for v, volume in enumerate(VOLUMES):
            row = {"policy": name, "volume": volume, "value": values[name][v, 0]}
            row |= dict(zip(("low", "high"), _interval(values[name][v, 1:]), strict=True)) | {"beyond_judge": beyond[v, 0]}
            rows.append(row | dict(zip(("beyond_judge_low", "beyond_judge_high"), _interval(beyond[v, 1:]), strict=True)))
    return pd.DataFrame(rows)


def _interval(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)

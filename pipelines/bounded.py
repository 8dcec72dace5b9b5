"""The clairvoyant lower bound of an evaluation: per window, and how far each policy's objective is above it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from envs.evaluate import paired_difference
from envs.reward import RewardSpec
from envs.state import Policy
from envs.world import World
from pipelines.config import BOUNDS
from pipelines.setting import some_windows
from telemetry.errors import InputError

TOLERANCE = 1e-6


def window_bounds(world: World, reward: RewardSpec, kind: str, policies: Collection[Policy]) -> np.ndarray:
    """Lower bound of the objective in USD of each window, ``[M]``, for whatever these policies may do.

    Args:
        kind: ``lp`` or ``milp`` (``BOUNDS``).
    """
    from envs.bound import bounds  # the solver is loaded only for those who ask

    reviews = any(policy.settings.review_s > 0 for policy in policies)
    free = all(policy.settings.discipline == "free" for policy in policies)
    return bounds(world, reward, method=kind, reviews=reviews, only_free=free)["bound_usd"].to_numpy(dtype=np.float64)


def with_bounds(
    frame: pd.DataFrame,
    worlds: Mapping[int, World],
    reward: RewardSpec,
    kind: str,
    policies: Collection[Policy],
    windows: int | None = None,
) -> pd.DataFrame:
    """Rows of :func:`envs.evaluate.evaluate` with a column ``bound_usd``, valid for all ``policies``.

    Args:
        worlds: by seed; seeds that share a world share its bounds.
        windows: a linear program takes seconds to minutes: so many windows of the first seed alone, evenly spread (NaN for the others).
    """
    first = next(iter(worlds))
    known: dict[int, np.ndarray] = {}
    for seed, world in worlds.items():
        if id(world) not in known:
            chosen = np.arange(world.n_windows) if windows is None else _spread(world.n_windows, windows if seed == first else 0)
            known[id(world)] = np.full(world.n_windows, np.nan)
            if len(chosen):
                part = world if len(chosen) == world.n_windows else some_windows(world, chosen)
                known[id(world)][chosen] = window_bounds(part, reward, kind, policies)
    values = [known[id(worlds[seed])][window] for seed, window in zip(frame["seed"], frame["window"], strict=True)]
    return frame.assign(bound_usd=values)


def _spread(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int))


def bound_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean objective over mean bound of each policy, with a 95 % bootstrap interval over windows (their seeds averaged first).

    Rows without a bound are left out.

    Returns:
        Indexed by policy: ``bound_usd`` (mean), ``ratio, low, high, windows``; no ratio where the mean bound is not above 0, and
        ``below``: rows whose objective is below the bound, which must be 0.
    """
    names, frame = list(dict.fromkeys(frame["policy"])), frame[frame["bound_usd"].notna()]
    one = frame[frame["policy"] == names[0]].assign(policy="bound", objective_usd=lambda rows: rows["bound_usd"])
    differences = paired_difference(pd.concat([one, frame], ignore_index=True), "bound", metrics=["objective_usd"]).set_index("policy")
    slack = TOLERANCE * frame["bound_usd"].abs().clip(lower=1.0)
    mean = float(one["bound_usd"].mean())
    table = pd.DataFrame({"bound_usd": mean}, index=pd.Index(names, name="policy"))
    for name, source in (("ratio", "relative"), ("low", "relative_low"), ("high", "relative_high")):
        table[name] = 1.0 + differences[source] if np.isfinite(mean) and mean > 0 else np.nan
    table["windows"] = differences["windows"]
    table["below"] = (frame["objective_usd"] < frame["bound_usd"] - slack).groupby(frame["policy"]).sum()
    return table


@dataclass(frozen=True)
class BoundSection:
    """Ratios of :func:`bound_ratios`."""

    kind: str
    ratios: pd.DataFrame

    def extend(self, document: dict[str, Any]) -> None:
        """``summary.<policy>.bound``; ``bound_usd`` is in every window's row already."""
        document["bound"] = self.kind
        for name, means in document["summary"].items():
            means["bound"] = self.ratios.loc[name].to_dict()

    def lines(self) -> list[str]:
        bound, windows = self.ratios[["bound_usd", "windows"]].iloc[0]
        lines = [
            f"objective over the clairvoyant lower bound ({self.kind}, {bound:,.4g} USD a window), 95 % interval over {windows:.0f} windows"
        ]
        for name, row in self.ratios.iterrows():
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if np.isfinite(row["low"]) else "[no interval]"
            broken = f"  BELOW THE BOUND in {int(row['below'])} windows: the bound is wrong" if row["below"] else ""
            lines.append(f"  {name:<16} {row['ratio']:.3f} {interval}{broken}")
        return lines


def bound_kind(value: Any) -> str:
    """The option ``bound``, checked."""
    kind = "none" if value is None else str(value)
    if kind not in BOUNDS:
        raise InputError(f"bound={value}", where="bound", allowed=", ".join(BOUNDS))
    return kind

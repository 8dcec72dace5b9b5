"""Data sets for cold starts: generated tenants, public traces, the embedded sample's node power; and the groups that begin together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import forecast_data
from benchmarks.forecast_data import FREQ
from telemetry.errors import InputError

SEASON = 144
KNOWN_SHARE = 0.5  # of the history, before the first issue time


@dataclass(frozen=True)
class YoungData:
    """Series, and which of them are new at the same time."""

    name: str
    frame: pd.DataFrame
    groups: dict[str, list[str]] | None = None

    def folds(self, count: int, seed: int = 0) -> list[list[str]]:
        """Series that are held out together: the groups where there are any, else ``count`` random parts."""
        if self.groups:
            return list(self.groups.values())
        ids = np.random.default_rng(seed).permutation(sorted(self.frame["unique_id"].unique()))
        return [list(part) for part in np.array_split(ids, min(count, len(ids))) if len(part)]


def generated(rows: int = 2304, tenants: int = 24, seed: int = 0) -> YoungData:
    """Tenants of four kinds with levels that differ by two orders of magnitude: daily traffic, bursts, GPU demand in steps, node power."""
    rng = np.random.default_rng(seed)
    day = 2 * np.pi * np.arange(rows) / SEASON
    parts = []
    for i in range(tenants):
        level, phase = 10 ** rng.uniform(0, 2), rng.normal(scale=0.4)
        wave = 1 + 0.6 * np.sin(day + phase) + 0.15 * np.sin(2 * day + phase)
        slow = np.exp(0.02 * np.cumsum(rng.normal(size=rows)) - 0.01 * np.arange(rows) / SEASON)
        kind = ("traffic", "bursts", "demand", "power")[i % 4]
        if kind == "traffic":
            y = rng.poisson(600 * level * wave * slow) / 600.0
        elif kind == "bursts":
            active = np.repeat(rng.random(rows // 6 + 1) < 0.15 * wave[::6][: rows // 6 + 1].mean(), 6)[:rows]
            y = np.where(active, rng.gamma(3.0, level / 3.0, size=rows), 0.0)
        elif kind == "demand":
            starts = rng.poisson(0.4 * wave)
            ends = np.repeat(np.arange(rows), starts) + rng.exponential(30.0, size=starts.sum()).astype(int) + 1
            gpus = 2.0 ** rng.integers(0, 4, size=starts.sum())
            change = np.zeros(rows + ends.max() + 1)
            np.add.at(change, np.repeat(np.arange(rows), starts), gpus)
            np.add.at(change, ends, -gpus)
            y = np.cumsum(change)[:rows]
        else:
            y = 60 * level * (1 + np.clip(0.5 * wave * slow + 0.05 * rng.normal(size=rows), 0, 2.5))
        parts.append(pd.DataFrame({"unique_id": f"{kind}/{i:02d}", "ds": pd.date_range("2025-03-03", periods=rows, freq=FREQ), "y": y}))
    return YoungData("generated", pd.concat(parts, ignore_index=True))


def node_power(traces: Path, made: Path) -> YoungData:
    """Watts of the nodes of the embedded sample (synthetic); each pool has its own kind of node and is new as a whole."""
    frame = forecast_data.load_data("sample_power", traces, made)
    nodes = frame[frame["unique_id"].str.startswith("power/node/")].reset_index(drop=True)
    ids = pd.Series(sorted(nodes["unique_id"].unique()))
    return YoungData("sample_power", nodes, {str(k): list(v) for k, v in ids.groupby(ids.str.rsplit("-", n=1).str[0])})


DATA_SETS = ("generated", "sample_power", "helios", "servegen")
PUBLIC = ("helios", "servegen")


def load_data(name: str, traces: Path, made: Path) -> YoungData:
    """A data set by name, as in ``benchmarks.forecast_data`` but for the generated tenants and the groups of the sample's nodes.

    Raises:
        InputError: unknown name, or public traces that are not there.
    """
    if name not in DATA_SETS:
        raise InputError(f"unknown data set {name!r}", where="--data", allowed=", ".join(DATA_SETS))
    if name == "generated":
        return generated()
    if name == "sample_power":
        return node_power(traces, made)
    if name == "servegen":
        forecast_data.check_traces(traces)
        return YoungData(name, forecast_data.servegen(traces, made, KNOWN_SHARE))
    return YoungData(name, forecast_data.load_data(name, traces, made))

"""Data sets for cold starts: generated tenants, public traces, the embedded sample's node power; and the groups that begin together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pipelines.ingest import ingest
from pipelines.stages.real_traces import HELIOS, SERVEGEN, SERVEGEN_START
from telemetry.errors import InputError
from telemetry.readers.public_traces import read_helios_demand, read_servegen_rates
from telemetry.series import SeriesConfig, cut_series

ROOT = Path(__file__).parents[1]
FREQ = "10min"
SEASON = 144
LEAST_ACTIVE = 0.1


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


def generated(traces: Path, rows: int = 2304, tenants: int = 24, seed: int = 0) -> YoungData:
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


def helios(traces: Path) -> YoungData:
    """GPU demand by virtual cluster."""
    return YoungData("helios", read_helios_demand(traces / HELIOS, freq=FREQ)[0])


def servegen(traces: Path) -> YoungData:
    """Requests per second of the clients that ask anything in a tenth of the windows of the first half."""
    rates, _ = read_servegen_rates(traces / SERVEGEN, start=SERVEGEN_START)
    first = rates[rates["ds"] <= rates["ds"].min() + (rates["ds"].max() - rates["ds"].min()) / 2]
    active = (first["y"] > 0).groupby(first["unique_id"]).mean()
    return YoungData("servegen", rates[rates["unique_id"].isin(active[active >= LEAST_ACTIVE].index)].reset_index(drop=True))


def sample_power(traces: Path) -> YoungData:
    """Watts of the nodes of the embedded sample (synthetic); each pool has its own kind of node and is new as a whole."""
    source = yaml.safe_load((ROOT / "conf/source/sample.yaml").read_text())
    source["inventory"] = str(ROOT / source["inventory"])
    source["files"] = [{**entry, "path": str(ROOT / entry["path"])} for entry in source["files"]]
    with tempfile.TemporaryDirectory() as scratch:
        lake, _ = ingest(source, {"root": scratch}, replace=True)
        frame = cut_series(["power"], lake.table("samples"), None, SeriesConfig(freq=FREQ)).frame
    nodes = frame[frame["unique_id"].str.startswith("power/node/")].reset_index(drop=True)
    ids = pd.Series(sorted(nodes["unique_id"].unique()))
    return YoungData("sample_power", nodes, {str(k): list(v) for k, v in ids.groupby(ids.str.rsplit("-", n=1).str[0])})


DATA_SETS: dict[str, tuple[Callable[[Path], YoungData], bool]] = {
    "generated": (generated, False),
    "sample_power": (sample_power, False),
    "helios": (helios, True),
    "servegen": (servegen, True),
}


def load_data(name: str, traces: Path) -> YoungData:
    """A data set by name.

    Raises:
        InputError: unknown name, or public traces that are not there.
    """
    if name not in DATA_SETS:
        raise InputError(f"unknown data set {name!r}", where="--data", allowed=", ".join(DATA_SETS))
    make, public = DATA_SETS[name]
    if public and not traces.is_dir():
        raise InputError("the public traces are not there", where=str(traces), remedy="set JOULEWISE_TRACES to their folder")
    return make(traces)

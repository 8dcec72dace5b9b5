"""Measured GPU speed per network, for jobs that name theirs (``workload`` of the jobs table).

``networks.csv`` beside this module is written by ``python -m benchmarks.fit_network_speeds`` from Gavel's measured throughputs: the speed
of one GPU relative to one V100 at full power, for 26 training jobs (a network and its batch size) on P100 and K80; each row names its
source. What was left out as implausible is stated there. A pair of network and GPU model that has no row (A40, A100, H100 and T4 always)
works at the speed of the job's workload class.

Gavel measured speed alone, at full power: how a network slows down at lower levels, and its watts, are those of its class.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.classes import CLASS_INDEX
from telemetry.errors import InputError

NETWORKS_FILE = Path(__file__).with_name("networks.csv")
COLUMNS: tuple[str, ...] = ("network", "gpu_model", "speed", "source")
NEAREST = 5


def load_networks(path: Path | str | None = None) -> pd.DataFrame:
    """The table ``network, gpu_model, speed, source``; the committed one when ``path`` is None.

    Raises:
        InputError: missing file or column, a speed that is not above 0, or a pair that occurs twice.
    """
    file = NETWORKS_FILE if path is None else Path(path)
    if not file.is_file():
        raise InputError("no such file", where=str(file), remedy="python -m benchmarks.fit_network_speeds writes it")
    table = pd.read_csv(file)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=str(file), allowed=", ".join(COLUMNS))
    speed = pd.to_numeric(table["speed"], errors="coerce").to_numpy(dtype=float)
    if not (np.isfinite(speed).all() and (speed > 0).all()):
        raise InputError("a speed is not above 0", where=str(file), allowed="finite figures above 0")
    again = table.duplicated(["network", "gpu_model"])
    if again.any():
        row = table[again].iloc[0]
        raise InputError(f"{row['network']} on {row['gpu_model']} occurs twice", where=str(file))
    return table[list(COLUMNS)]


@lru_cache(maxsize=1)
def _committed() -> tuple[dict[str, str], dict[tuple[str, str], float]]:
    """Casefolded name -> name, and (network, GPU model) -> speed."""
    table = load_networks()
    names = {name.casefold(): name for name in dict.fromkeys(table["network"])}
    return names, dict(zip(zip(table["network"], table["gpu_model"], strict=True), table["speed"].astype(float), strict=True))


def network_names() -> tuple[str, ...]:
    """Networks that a job may name."""
    return tuple(_committed()[0].values())


def network_named(text: str, where: str) -> str:
    """The network of that name, upper and lower case alike.

    Raises:
        InputError: there is none; it lists the nearest.
    """
    names = _committed()[0]
    wanted = text.strip().casefold()
    if wanted not in names:
        near = [name for name in names if _plain(name).startswith(_plain(wanted))] if _plain(wanted) else []
        near = near or difflib.get_close_matches(wanted, names, n=NEAREST, cutoff=0.5) or list(names)
        raise InputError(
            f"unknown workload '{text}'",
            where=where,
            allowed=", ".join(names[name] for name in near),
            remedy="leave it empty to use the speed of the job's class",
        )
    return names[wanted]


def _plain(name: str) -> str:
    """Letters and digits alone, so that ``resnet50`` finds ``ResNet-50 (batch size 64)``."""
    return "".join(filter(str.isalnum, name))


def network_speed(network: str, gpu_model: str) -> float | None:
    """Speed of one GPU of the model for a network of `network_names`, relative to a V100, at full power; None = not measured."""
    return _committed()[1].get((network, gpu_model))


def with_networks(
    gpu_model: str, speed: np.ndarray, power_w: np.ndarray, networks: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Speed and watts of a GPU model with curves for networks after those of the classes.

    Args:
        speed, power_w: ``[L, K]`` of the classes (`envs.power.curves.levels_for`), the first level at full power.
        networks: (class, network) of each curve to add. A network slows down with the level as its class does; one that is not measured
            on this model has its class's speed. Its watts are its class's.

    Returns:
        Both as float64 ``[L, K + len(networks)]``.
    """
    kinds = [CLASS_INDEX[kind] for kind, _ in networks]
    more = speed[:, kinds]
    for place, (_, network) in enumerate(networks):
        measured = network_speed(network, gpu_model)
        if measured is not None:
            more[:, place] = measured * (more[:, place] / more[0, place])
    return np.concatenate([speed, more], axis=1), np.concatenate([power_w, power_w[:, kinds]], axis=1)

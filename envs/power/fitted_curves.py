"""From fitted watts to the rows of a curve table (``cluster.curves=FILE``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from envs.power.curves import COLUMNS
from envs.power.fit import DeviceFit
from envs.power.readings import Board
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

BAND = ("power_low_w", "power_high_w")  # 5 and 95 % of the fitted curve; readers of curve tables leave them out


def level_rows(known: pd.DataFrame, like: str, kind: str) -> pd.DataFrame:
    """Levels and speeds of a model's class in the table of known curves, falling. Raises `InputError` for a model without curves."""
    rows = known[(known["gpu_model"] == like) & (known["kind"] == kind)]
    if rows.empty:
        raise InputError(
            f"no speeds for GPU model '{like}', class {kind}",
            where="like",
            allowed=", ".join(sorted(set(known["gpu_model"]))),
            remedy="say whose speeds it has: 'like={MODEL: KNOWN}'; power readings do not tell speed",
        )
    return rows.sort_values("level_fraction", ascending=False)


def class_ratios(known: pd.DataFrame, like: str, board: Board, hours: Mapping[str, float]) -> dict[str, float]:
    """Active watts of each class at full power relative to the mix of classes, by a model's known curves.

    Args:
        board: of ``like``.
        hours: GPU hours by class; a class counts in the mix by its hours and, as it draws more, by its watts.
    """
    active = {}
    for kind in WORKLOAD_CLASSES:
        rows = level_rows(known, like, kind)
        active[kind] = max(float(rows["power_w"].iloc[0]) - board.idle_w, 1.0)
    weight = np.array([(hours.get(kind, 0.0) if hours else 1.0) * active[kind] for kind in WORKLOAD_CLASSES])
    if weight.sum() <= 0:
        weight = np.array(list(active.values()))
    mean = float(weight @ np.array(list(active.values())) / weight.sum())
    return {kind: value / mean for kind, value in active.items()}


def fitted_rows(fit: DeviceFit, known: pd.DataFrame, like: str, source: str) -> pd.DataFrame:
    """Rows of one model: its fitted watts at full utilisation under each level, and the speeds of ``like``."""
    parts = []
    for kind in WORKLOAD_CLASSES:
        rows = level_rows(known, like, kind)
        level = rows["level_fraction"].to_numpy(dtype=np.float64)
        limit = level * fit.board.limit_w
        band = np.array([fit.curve_band(np.ones(1), float(at), kind)[:, 0] for at in limit])
        own = fit.class_rows.get(kind, 0)
        told = f"{own} readings of the class" if own else "class as in the known curves"
        speeds = "" if like == fit.board.gpu_model else f"; speed like {like}"
        part = pd.DataFrame({"gpu_model": fit.board.gpu_model, "kind": kind, "level_fraction": level, "speed": rows["speed"].to_numpy()})
        watts = fit.watts(1.0, limit, kind)
        part["power_w"] = np.minimum.accumulate(np.maximum(watts, 0.1)).round(1)
        part["source"] = f"fitted:{source}; {fit.rows} readings; {told}{speeds}"
        part[list(BAND)] = band.round(1)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)[[*COLUMNS, *BAND]]

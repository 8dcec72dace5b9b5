"""Measured GPU speed and power against power limit, per GPU model and workload class.

``curves.csv`` beside this module is written by ``python -m benchmarks.fit_power_curves`` from public measurements; each row names
its source, and rows that are not a direct measurement of that model at that limit begin with ``derived:``.

Workload classes are mapped to measured networks (Zeus, NSDI'23, power-limit sweeps of *training* runs on one GPU):

==================== ============================== ==========================================================
class                network (data set, batch)      why
==================== ============================== ==========================================================
training             ResNet-50 (ImageNet, 128)      convolutional training near the board limit
fine_tuning          BERT base (Sentiment140, 64)   transformer fine-tuning, the strongest draw
batch_inference      DeepSpeech2 (LibriSpeech, 64)  long sequences, medium draw
realtime_inference   ShuffleNetV2 (CIFAR-100, 128)  small kernels, launch bound
interactive          NCF (MovieLens-1M, 1024)       a mostly waiting GPU with a context open
==================== ============================== ==========================================================

Caveat: the sweep holds no inference runs, so the two inference classes and ``interactive`` are stand-ins of like intensity, not
measurements of serving. Batch size is the same on every model, as a job that moves keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

CURVES_FILE = Path(__file__).with_name("curves.csv")
COLUMNS: tuple[str, ...] = ("gpu_model", "kind", "level_fraction", "speed", "power_w", "source")
FIGURES: tuple[str, ...] = ("level_fraction", "speed", "power_w")
REFERENCE_GPU = "V100"


@dataclass(frozen=True)
class CurvePoint:
    """A row of a curve table."""

    gpu_model: str
    kind: str
    level_fraction: float
    speed: float
    power_w: float
    source: str = ""


def load_curves(path: Path | str | None = None) -> pd.DataFrame:
    """The curve table, sorted by model, class and falling level.

    Args:
        path: a CSV of the same columns; the committed one when None.

    Returns:
        ``gpu_model, kind, level_fraction`` (power limit / board limit), ``speed`` (relative to the reference GPU at full power),
        ``power_w`` (board watts while running), ``source``.

    Raises:
        InputError: missing file or column, unknown class, non-positive figure, or a speed or power that rises as the level falls.
    """
    file = CURVES_FILE if path is None else Path(path)
    if not file.is_file():
        raise InputError("no such file", where=str(file), remedy="python -m benchmarks.fit_power_curves writes it")
    table = pd.read_csv(file)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=str(file), allowed=", ".join(COLUMNS))
    return _checked(table[list(COLUMNS)], str(file))


def read_curves(path: Path | str) -> tuple[CurvePoint, ...]:
    """A curve table of one's own, as `ClusterSpec.curves` carries it: the columns of ``curves.csv``, of which ``source`` may be absent.

    Raises:
        InputError: as `load_curves`.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError("no such file", where=str(file), allowed=f"a CSV of the columns {', '.join(COLUMNS)}")
    try:
        table = pd.read_csv(file)
    except (ValueError, OSError) as error:
        raise InputError(f"no CSV: {str(error).strip()}", where=str(file)) from error
    missing = [name for name in COLUMNS[:-1] if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=str(file), allowed=", ".join(COLUMNS))
    table = table.assign(source=table["source"].fillna("").astype(str) if "source" in table else str(file.name))
    return points_of(table, str(file))


def points_of(table: pd.DataFrame, where: str) -> tuple[CurvePoint, ...]:
    """A table with the columns of ``curves.csv``, as `ClusterSpec.curves` carries it. Raises `InputError` as `load_curves`."""
    return checked_points([CurvePoint(*row) for row in table[list(COLUMNS)].itertuples(index=False, name=None)], where)


def checked_points(points: Sequence[CurvePoint], where: str) -> tuple[CurvePoint, ...]:
    """The points sorted by model, class and falling level.

    Raises:
        InputError: as `load_curves`, and without points.
    """
    if not points:
        raise InputError("no rows", where=where, allowed="at least one curve")
    table = _checked(pd.DataFrame([astuple(point) for point in points], columns=list(COLUMNS)), where)
    return tuple(CurvePoint(*row) for row in table.itertuples(index=False, name=None))


@lru_cache(maxsize=8)
def curve_table(points: tuple[CurvePoint, ...]) -> pd.DataFrame:
    """The committed table with ``points`` in place of its curves of the same model and class, and beside the others."""
    own = pd.DataFrame([astuple(point) for point in points], columns=list(COLUMNS))
    known = _committed()
    replaced = pd.MultiIndex.from_frame(known[["gpu_model", "kind"]]).isin(pd.MultiIndex.from_frame(own[["gpu_model", "kind"]]))
    return pd.concat([known[~replaced], own], ignore_index=True)


def _checked(table: pd.DataFrame, where: str) -> pd.DataFrame:
    _check(table, where)
    table = table.astype(dict.fromkeys(FIGURES, float) | {"gpu_model": str, "kind": str})
    return table.sort_values(["gpu_model", "kind", "level_fraction"], ascending=[True, True, False], ignore_index=True)


def _check(table: pd.DataFrame, where: str) -> None:
    unknown = sorted(set(table["kind"].astype(str)) - set(WORKLOAD_CLASSES))
    if unknown:
        raise InputError(f"unknown class {', '.join(unknown)}", where=where, allowed=", ".join(WORKLOAD_CLASSES))
    for name in FIGURES:
        figures = pd.to_numeric(table[name], errors="coerce")
        bad = ~(np.isfinite(figures) & (figures > 0))
        if bad.any():
            row = table[bad].iloc[0]
            at = f"{where}, {row['gpu_model']}, {row['kind']}, level {row['level_fraction']}"
            raise InputError(f"{name} {row[name]}", where=at, allowed="finite figures above 0")
    for (model, kind), rows in table.groupby(["gpu_model", "kind"], sort=False):
        at = f"{where}, {model}, {kind}"
        twice = rows["level_fraction"].duplicated()
        if twice.any():
            raise InputError(f"level {rows['level_fraction'][twice].iloc[0]} twice", where=at, allowed="one row for each level")
        ordered = rows.sort_values("level_fraction", ascending=False)
        for name in ("speed", "power_w"):
            values = ordered[name].to_numpy(dtype=float)
            rises = np.flatnonzero(np.diff(values) > 0)
            if len(rises):
                level, high, low = ordered["level_fraction"].iloc[rises[0] + 1], values[rises[0]], values[rises[0] + 1]
                raise InputError(
                    f"{name} rises from {high:g} to {low:g} as the level falls to {level:g}",
                    where=at,
                    allowed="monotone curves",
                    remedy="smooth the measurements, for instance by isotonic regression",
                )


@lru_cache(maxsize=1)
def _committed() -> pd.DataFrame:
    return load_curves()


def levels_for(gpu_model: str, level_fractions: Sequence[float], curves: pd.DataFrame | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Speed and active board watts of a GPU model at power levels, linear between measured limits.

    Args:
        gpu_model: a model of the table.
        level_fractions: ``[L]`` power limits as fractions of the board limit.
        curves: a table of `load_curves` or `curve_table`, or one like it, checked here; the committed one when None.

    Returns:
        ``speed`` and ``power_w``, both float64 ``[L, K]`` with K the workload classes in order.

    Raises:
        InputError: unknown model, or a level outside the measured range of the model.
    """
    table = _committed() if curves is None else curves
    if curves is not None:
        _check(table, "curves")
    rows = table[table["gpu_model"] == gpu_model]
    if rows.empty:
        raise InputError(
            f"no power curves for GPU model '{gpu_model}'",
            where="levels_for",
            allowed=", ".join(sorted(set(table["gpu_model"]))),
            remedy="give curves of your own (curves: FILE.csv in the cluster file)",
        )
    wanted = np.asarray(level_fractions, dtype=np.float64)
    speed = np.empty((len(wanted), len(WORKLOAD_CLASSES)))
    power_w = np.empty_like(speed)
    for k, kind in enumerate(WORKLOAD_CLASSES):
        curve = rows[rows["kind"] == kind].sort_values("level_fraction")
        x = curve["level_fraction"].to_numpy(dtype=float)
        if not len(x) or wanted.min() < x[0] - 1e-9 or wanted.max() > x[-1] + 1e-9:
            span = f"{x[0]:.3g} .. {x[-1]:.3g}" if len(x) else "none measured"
            raise InputError(f"level fractions {tuple(level_fractions)}", where=f"{gpu_model}, class {kind}", allowed=span)
        speed[:, k] = np.interp(wanted, x, curve["speed"].to_numpy(dtype=float))
        power_w[:, k] = np.interp(wanted, x, curve["power_w"].to_numpy(dtype=float))
    return speed, power_w

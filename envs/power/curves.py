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

Curves of your own are a table of the same columns: ``add_curves(load_curves("mine.csv"))`` sets them beside the committed ones, and
``with use_curves(table): build_world(...)`` builds a world on them.

Caveat: the sweep holds no inference runs, so the two inference classes and ``interactive`` are stand-ins of like intensity, not
measurements of serving. Batch size is the same on every model, as a job that moves keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

CURVES_FILE = Path(__file__).with_name("curves.csv")
COLUMNS: tuple[str, ...] = ("gpu_model", "kind", "level_fraction", "speed", "power_w", "source")
REFERENCE_GPU = "V100"


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
    return check_curves(table, str(file))


def check_curves(table: pd.DataFrame, where: str = "curve table") -> pd.DataFrame:
    """A curve table in order, with the columns of `load_curves` only. Raises `InputError` as that does."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=where, allowed=", ".join(COLUMNS))
    table = table[list(COLUMNS)].sort_values(["gpu_model", "kind", "level_fraction"], ascending=[True, True, False]).reset_index(drop=True)
    _check(table, where)
    return table


def add_curves(table: pd.DataFrame) -> pd.DataFrame:
    """The committed curves with those of ``table`` beside them; a model that is in both is taken from ``table`` alone."""
    own, committed = check_curves(table), _committed()
    return check_curves(pd.concat([committed[~committed["gpu_model"].isin(own["gpu_model"])], own], ignore_index=True))


_in_use: ContextVar[pd.DataFrame | None] = ContextVar("curves_in_use", default=None)


@contextmanager
def use_curves(table: pd.DataFrame) -> Iterator[None]:
    """Worlds that are built inside the block take their speeds and watts from ``table`` instead of the committed curves."""
    token = _in_use.set(check_curves(table))
    try:
        yield
    finally:
        _in_use.reset(token)


def _check(table: pd.DataFrame, where: str) -> None:
    unknown = sorted(set(table["kind"]) - set(WORKLOAD_CLASSES))
    if unknown:
        raise InputError(f"unknown class {', '.join(unknown)}", where=where, allowed=", ".join(WORKLOAD_CLASSES))
    figures = table[["level_fraction", "speed", "power_w"]].to_numpy(dtype=float)
    if not (np.isfinite(figures).all() and (figures > 0).all()):
        raise InputError("a level, speed or power is not above 0", where=where, allowed="finite figures above 0")
    for (model, kind), rows in table.groupby(["gpu_model", "kind"], sort=False):
        for name in ("speed", "power_w"):
            if (np.diff(rows[name].to_numpy(dtype=float)) > 0).any():
                raise InputError(f"{name} rises as the level falls", where=f"{where}, {model}, {kind}", allowed="monotone curves")


@lru_cache(maxsize=1)
def _committed() -> pd.DataFrame:
    return load_curves()


def levels_for(gpu_model: str, level_fractions: Sequence[float], curves: pd.DataFrame | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Speed and active board watts of a GPU model at power levels, linear between measured limits.

    Args:
        gpu_model: a model of the table.
        level_fractions: ``[L]`` power limits as fractions of the board limit.
        curves: a table of `load_curves`; when None that of `use_curves`, else the committed one.

    Returns:
        ``speed`` and ``power_w``, both float64 ``[L, K]`` with K the workload classes in order.

    Raises:
        InputError: unknown model, or a level outside the measured range of the model.
    """
    in_use = _in_use.get() if curves is None else curves
    table = _committed() if in_use is None else in_use
    rows = table[table["gpu_model"] == gpu_model]
    if rows.empty:
        raise InputError(
            f"no power curves for GPU model '{gpu_model}'", where="levels_for", allowed=", ".join(sorted(set(table["gpu_model"])))
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

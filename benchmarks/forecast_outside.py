"""Peers in an interpreter of their own (``benchmarks/forecast_neural.py``): files out, files in, and the same scoring as everybody's."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from benchmarks import forecast_runs as runs
from benchmarks.forecast_peers import on_grid
from models.backtest import BacktestConfig
from models.base import QUANTILE_COLUMNS, QUANTILES, monotone
from models.naive import Persistence
from models.series import default_season_length
from telemetry.errors import InputError

OUTSIDE: dict[str, str] = {"nhits": "neuralforecast", "patchtst": "neuralforecast", "autogluon": "autogluon.timeseries"}
SCRIPT = Path(__file__).with_name("forecast_neural.py")
Progress = Callable[[str, int, int], None]


class Recorded:
    """Forecasts that were made elsewhere, handed out origin by origin: each must have been issued at just what is known then."""

    name = "recorded"

    def __init__(self, forecasts: pd.DataFrame, **options: Any) -> None:
        quantiles = forecasts[list(QUANTILE_COLUMNS)].to_numpy(dtype=float)
        self.raw_crossings = 0  # rows handed out whose quantiles crossed before they were sorted
        self._crossed = pd.Series((np.diff(quantiles, axis=1) < 0).any(axis=1), index=forecasts.index)
        self._forecasts = forecasts.assign(**dict(zip(QUANTILE_COLUMNS, monotone(quantiles).T, strict=True)))
        self._known: dict[str, pd.Timestamp] = {}
        self._least: dict[str, float] = {}

    def fit(self, series: pd.DataFrame) -> Self:
        self._known, self._least = {}, {}
        return self.update(series)

    def update(self, series: pd.DataFrame) -> Self:
        for uid, rows in series.groupby("unique_id"):
            self._known[str(uid)] = rows["ds"].max()
            self._least[str(uid)] = min(self._least.get(str(uid), np.inf), rows["y"].min())
        return self

    def predict(self) -> pd.DataFrame:
        """``unique_id, issued_at, ds, q10 ... q90, model``; like the members, not below 0 for a series that never was."""
        issued = self._forecasts["unique_id"].map(self._known)
        rows = self._forecasts[self._forecasts["issued_at"] == issued].copy()
        self.raw_crossings += int(self._crossed[rows.index].sum())
        positive = (rows["unique_id"].map(self._least) >= 0).to_numpy()[:, None]
        values = rows[list(QUANTILE_COLUMNS)].to_numpy()
        rows[list(QUANTILE_COLUMNS)] = np.where(positive, np.maximum(values, 0.0), values)
        return rows.assign(model=self.name)


class Witness(Persistence):
    """Notes what it knew whenever it was asked."""

    def __init__(self, *, seen: list[pd.DataFrame], **options: Any) -> None:
        super().__init__(**options)
        self.seen = seen

    def predict(self, horizon: int | None = None, covariates: pd.DataFrame | None = None) -> pd.DataFrame:
        forecasts = super().predict(horizon, covariates)
        self.seen.append(forecasts[["unique_id", "issued_at"]].drop_duplicates(ignore_index=True))
        return forecasts


def windows_of(series: pd.DataFrame, freq: str, config: BacktestConfig) -> pd.DataFrame:
    """``unique_id, issued_at, origin``: the last time known of every series at every origin of ``run_backtest``, oldest first."""
    seen: list[pd.DataFrame] = []
    _, scored, _, _ = runs.backtest_of(partial(Witness, seen=seen), series, freq, config)
    if scored.error:
        raise InputError(scored.error, where="windows")
    return pd.concat([known.assign(origin=number) for number, known in enumerate(seen)], ignore_index=True)


def with_covariates(series: pd.DataFrame, freq: str) -> pd.DataFrame:
    """Series on their grids with gaps filled forward, covariates likewise."""
    names = [name for name in series.columns if name not in ("unique_id", "ds", "y")]
    table = on_grid(series, freq).merge(series[["unique_id", "ds", *names]], on=["unique_id", "ds"], how="left")
    table[names] = table.groupby("unique_id", sort=False)[names].ffill() if names else table[names]
    return table


def play_outside(
    python: str, peer: str, folder: Path, series: pd.DataFrame, windows: pd.DataFrame, task: dict[str, Any], progress: Progress
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Run the peer in its interpreter.

    Returns:
        ``unique_id, issued_at, ds, q10 ... q90``, and its ``cpu_s``, ``fits`` and ``versions``.

    Raises:
        InputError: the interpreter is not there, or the peer failed (with the last lines it said).
    """
    series.to_parquet(folder / "series.parquet", index=False)
    windows.to_parquet(folder / "windows.parquet", index=False)
    (folder / "task.json").write_text(json.dumps(task))
    log = folder / "log.txt"
    try:
        with log.open("w") as errors:
            child = subprocess.Popen([python, str(SCRIPT), peer, str(folder)], stdout=subprocess.PIPE, stderr=errors, text=True)
    except OSError as error:
        raise InputError(error.strerror or str(error), where=f"--peer-python {python}", remedy="give an interpreter that has it") from error
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            words = line.split()
            if words[:1] == ["progress"]:
                progress(peer, int(words[1]), int(words[2]))
    if child.returncode:
        said = " | ".join(log.read_text().strip().splitlines()[-3:])
        raise InputError(f"{peer} ended with {child.returncode}: {said}", where=python, remedy=f"pip install {OUTSIDE[peer]} there")
    return pd.read_parquet(folder / "forecasts.parquet"), json.loads((folder / "result.json").read_text())


def run_outside(
    out: Path,
    data: str,
    series: pd.DataFrame,
    freq: str,
    peer: str,
    python: str,
    config: BacktestConfig,
    options: dict[str, Any],
    progress: Progress,
    fresh: bool = False,
) -> dict[str, Any]:
    """The result of an outside peer: from disk, or played and stored like everybody's."""
    key = runs.result_key(series, peer, config, options=options, script=SCRIPT.read_text())
    known = None if fresh else runs.stored_result(out, data, peer, key)
    if known is not None:
        return known
    covariates = [name for name in series.columns if name not in ("unique_id", "ds", "y")]
    task = {
        "freq": freq,
        "horizon": config.horizon,
        "season_length": config.season_length or default_season_length(freq),
        "quantiles": list(QUANTILES),
        "columns": list(QUANTILE_COLUMNS),
        "covariates": covariates,
        "refit_every": config.refit_every,
        "seed": config.seed,
        "options": options,
    }
    with tempfile.TemporaryDirectory(prefix="forecast_peer.") as folder:
        try:
            played, told = play_outside(
                python, peer, Path(folder), with_covariates(series, freq), windows_of(series, freq, config), task, progress
            )
        except InputError as error:
            record = {"key": None, "error": str(error)}
            runs.store_result(out, data, peer, record, pd.DataFrame())
            return record
    result, scored, _, made = runs.backtest_of(partial(Recorded, played), series, freq, config)
    record = runs.record_of(key, result, scored, told["cpu_s"], made)
    record |= {"fits": told["fits"], "versions": told["versions"], "options": options}
    runs.store_result(out, data, peer, record, scored.forecasts)
    return record

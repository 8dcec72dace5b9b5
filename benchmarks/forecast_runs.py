"""One data set and one forecaster: walk the origins, count CPU seconds, keep forecasts and scores on disk.

A result is two files, ``<out>/<data set>/<forecaster>.json`` and ``.parquet`` (all forecasts of the test windows); the JSON is written
last and atomically, and holds the fingerprint of the data, the settings and the code that it came from. A run that finds the same
fingerprint takes the result as it is, so a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.forecast_peers import PEERS, VARIANTS
from models.backtest import BacktestConfig, BacktestResult, ForecasterScore, run_backtest
from models.base import QUANTILE_COLUMNS
from models.catalog import FORECASTERS
from models.intervals import horizon_bands
from models.metrics import coverage80, quantile_loss
from pipelines.workspace import fingerprint, read_json, write_json
from telemetry.errors import InputError

HORIZON, ORIGINS, TEST_FRACTION = 18, 48, 0.3
BAND_NAMES = ("near", "middle", "far")
ROOT = Path(__file__).parents[1]
PACKAGES = ("lightgbm", "mlforecast", "numpy", "pandas", "prophet", "scipy", "statsforecast", "statsmodels", "torch")
METERED = "benchmarked"
SETTINGS = ("horizon", "origins", "calibration_origins", "test_fraction", "refit_every", "align", "season_length", "seed")
# Part of every fingerprint: raise it when what is stored of a run changes.
RECORD_VERSION = 1


def backtest_config(quick: bool = False, refit_every: int = 0) -> BacktestConfig:
    """The windows of the benchmark, the same for all: origins over the last ``TEST_FRACTION`` of the history, none for calibration."""
    origins = 8 if quick else ORIGINS
    return BacktestConfig(
        horizon=HORIZON, origins=origins, calibration_origins=0, test_fraction=TEST_FRACTION, refit_every=refit_every, seed=0
    )


def cpu_seconds() -> float:
    """User and system seconds of this process, all its threads and the children it has waited for (Stan is such a child)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Metered:
    """A forecaster with a CPU clock around it; ``inner`` makes it."""

    per_series = False  # all series at once, whatever the forecaster could do in parts: its clock is of the whole

    def __init__(self, *, inner: Callable[..., Any], spent: dict[str, float], **options: Any) -> None:
        self.inner, self.spent = inner(**options), spent

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        begin = cpu_seconds()
        yield
        self.spent[part] = self.spent.get(part, 0.0) + cpu_seconds() - begin

    def fit(self, series: pd.DataFrame) -> Metered:
        with self._clock("fit"):
            self.inner.fit(series)
        return self

    def update(self, series: pd.DataFrame) -> Metered:
        with self._clock("update"):
            self.inner.update(series)
        return self

    def predict(self) -> pd.DataFrame:
        with self._clock("predict"):
            return self.inner.predict()

    @property
    def fallbacks(self) -> dict[str, str]:
        return dict(getattr(self.inner, "fallbacks", {}))


def backtest_of(
    maker: Callable[..., Any],
    series: pd.DataFrame,
    freq: str,
    config: BacktestConfig,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[BacktestResult, ForecasterScore, dict[str, float], list[Any]]:
    """``run_backtest`` of whatever ``maker`` makes, with its CPU seconds and the object itself (for what it counted)."""
    spent: dict[str, float] = {}
    made: list[Any] = []

    class Registered(Metered):
        def __init__(self, **options: Any) -> None:
            super().__init__(inner=maker, spent=spent, **options)
            made.append(self.inner)

    FORECASTERS[METERED] = Registered  # type: ignore[assignment]  # run_backtest takes forecasters by name
    try:
        result = run_backtest(series, freq, [METERED], config, progress)
    finally:
        del FORECASTERS[METERED]
    return result, result.scores[METERED], spent, made


def maker_of(name: str) -> Callable[..., Any]:
    """What makes a member or a peer of this environment.

    Raises:
        InputError: unknown name.
    """
    makers: dict[str, Callable[..., Any]] = {**FORECASTERS, **PEERS, **VARIANTS}
    if name not in makers:
        raise InputError(f"unknown forecaster '{name}'", where="--only", allowed=", ".join(makers))
    return makers[name]


def result_key(series: pd.DataFrame, name: str, config: BacktestConfig, **more: Any) -> str:
    """Fingerprint of everything that a result depends on."""
    rows = pd.util.hash_pandas_object(series, index=False).to_numpy()
    code = sorted((ROOT / "models").glob("*.py")) if name in FORECASTERS else [ROOT / "benchmarks" / "forecast_peers.py"]
    return fingerprint(
        {
            "data": hashlib.sha256(rows.tobytes()).hexdigest(),
            "forecaster": name,
            "config": {name: getattr(config, name) for name in SETTINGS},
            "record": RECORD_VERSION,
            "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in code],
            "packages": {package: _version(package) for package in PACKAGES},
            **more,
        }
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def stored_result(out: Path, data: str, name: str, key: str | None = None) -> dict[str, Any] | None:
    """A result that is on disk, whole and, when a key is given, of that key and no failure; else None."""
    path = out / data / f"{name}.json"
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except ValueError:
        return None
    if key is not None and (record.get("error") or record.get("key") != key):
        return None  # of other data, settings or code; or a failure, which may have been the machine's
    return record if record.get("error") or path.with_suffix(".parquet").is_file() else None


def store_result(out: Path, data: str, name: str, record: dict[str, Any], forecasts: pd.DataFrame) -> None:
    """Write forecasts, then the record, each atomically."""
    path = out / data / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(forecasts):
        columns = ["unique_id", "issued_at", "ds", "origin", "step", "y", *QUANTILE_COLUMNS]
        fresh = path.with_suffix(".parquet.new")
        forecasts[columns].to_parquet(fresh, index=False)
        os.replace(fresh, path.with_suffix(".parquet"))
    write_json(path, record)


def record_of(key: str, result: BacktestResult, scored: ForecasterScore, spent: dict[str, float], made: list[Any]) -> dict[str, Any]:
    """What is kept of one walk, beside its forecasts."""
    if scored.error:
        return {"key": key, "error": scored.error, "traceback": scored.traceback, "cpu_s": spent}
    rows = scored.forecasts
    quantiles = rows[list(QUANTILE_COLUMNS)].to_numpy()
    loss = quantile_loss(rows["y"].to_numpy(), quantiles)
    per_series = pd.Series(loss).groupby(rows["unique_id"].to_numpy()).mean()
    bands = horizon_bands(result.config.horizon)[rows["step"].to_numpy() - 1]
    return {
        "key": key,
        "error": None,
        "overall": scored.overall,
        "coverage80_by_band": {
            name: coverage80(rows["y"].to_numpy()[bands == band], quantiles[bands == band]) for band, name in enumerate(BAND_NAMES)
        },
        "crossings": int((np.diff(quantiles, axis=1) < 0).any(axis=1).sum()),
        "crossings_before_sorting": sum(int(getattr(one, "raw_crossings", 0)) for one in made),
        "series_loss": {str(uid): float(value) for uid, value in per_series.items()},
        "scales": result.scales,
        "cpu_s": {part: spent.get(part, 0.0) for part in ("fit", "update", "predict")},
        "fits": scored.fits,
        "fallbacks": scored.fallbacks,
        "reference": result.reference,
        "windows": {
            "origins": result.n_origins,
            "step": result.plan.step,
            "align": result.plan.align,
            "series": len(result.scales),
            "rows": len(rows),
        },
        "config": {name: getattr(result.config, name) for name in SETTINGS},
        "notes": result.notes,
    }


def run_one(
    out: Path, data: str, series: pd.DataFrame, freq: str, name: str, config: BacktestConfig, fresh: bool = False
) -> dict[str, Any]:
    """The result of a member or a peer of this environment: from disk, or walked and stored."""
    key = result_key(series, name, config)
    known = None if fresh else stored_result(out, data, name, key)
    if known is not None:
        return known
    result, scored, spent, made = backtest_of(maker_of(name), series, freq, config)
    record = record_of(key, result, scored, spent, made)
    store_result(out, data, name, record, scored.forecasts)
    return record

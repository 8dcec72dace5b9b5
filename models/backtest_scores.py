"""What a backtest found: scores of every forecaster on the same windows, and their document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from models.backtest_chunk import Seconds
from models.backtest_plan import BacktestConfig, OriginPlan
from models.metrics import METRIC_NAMES, bootstrap_ratio
from models.score_sums import INDEX, ScoreSums, coverage_by_band, metrics_of, peak_and_ramp
from models.series import SeriesReport
from models.series_store import SeriesStore
from telemetry.errors import InputError


@dataclass
class ForecasterScore:
    """What one forecaster achieved; ``error`` is set and the rest empty where it failed.

    Seconds are added up over chunks of series, so that they do not depend on the number of workers.
    """

    name: str
    overall: dict[str, float] = field(default_factory=dict)
    series: dict[str, dict[str, float]] = field(default_factory=dict)
    by_horizon: list[dict[str, float]] = field(default_factory=list)
    calibration: dict[str, float] = field(default_factory=dict)
    coverage80_by_band: dict[str, float] = field(default_factory=dict)  # near, middle and far third of the horizon
    crossings: int = 0  # scored rows whose quantiles are out of order
    skill: dict[str, float] = field(default_factory=dict)
    fit_s: float = float("nan")
    update_s: float = float("nan")
    predict_s: float = float("nan")
    cpu_s: dict[str, float] = field(default_factory=dict)  # fit, update, predict in CPU seconds
    fits: int = 0
    fallbacks: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    origins: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # [O, 2] scored rows and loss by test origin
    forecasts: pd.DataFrame = field(default_factory=pd.DataFrame)  # unique_id, issued_at, ds, q10..q90, model, y, step, origin, part

    def fill(self, sums: ScoreSums, ids: list[str], calibration: int, seconds: Seconds) -> None:
        """Metrics and times from their sums.

        Raises:
            InputError: nothing was scored.
        """
        total = sums.series.sum(axis=0)
        if not total[INDEX["rows"]]:
            raise InputError("no test window has an observation", where="backtest", remedy="give a longer or less broken history")
        self.overall = {**metrics_of(total), **peak_and_ramp(total)}
        self.series = {
            uid: {**metrics_of(row), "peak_error": peak_and_ramp(row)["peak_error"]}
            for uid, row in zip(ids, sums.series, strict=True)
            if row[INDEX["rows"]]
        }
        self.by_horizon = [{"step": h, **metrics_of(row)} for h, row in enumerate(sums.steps, start=1) if row[INDEX["rows"]]]
        self.calibration = metrics_of(sums.calibration) if sums.calibration[INDEX["rows"]] else {}
        self.coverage80_by_band = coverage_by_band(sums.steps)
        self.crossings = int(total[INDEX["crossings"]])
        self.origins = sums.origins[calibration:]
        self.fit_s, self.update_s, self.predict_s = seconds.fit, seconds.update, seconds.predict
        self.cpu_s = {"fit": seconds.cpu_fit, "update": seconds.cpu_update, "predict": seconds.cpu_predict}


@dataclass
class BacktestResult:
    """Scores of every forecaster on the same windows."""

    freq: str
    season_length: int
    config: BacktestConfig
    plan: OriginPlan
    report: SeriesReport
    scores: dict[str, ForecasterScore]
    reference: str  # the better of persistence and seasonal_naive by test WQL; empty when neither could be scored
    reference_scores: dict[str, ForecasterScore]
    scales: dict[str, float]
    store: SeriesStore
    notes: list[str]

    @property
    def actual(self) -> pd.DataFrame:
        """The validated series as a long frame, made anew at each call."""
        return self.store.to_frame()

    @property
    def n_origins(self) -> int:
        """Test origins."""
        return len(self.plan.test)

    @property
    def failed(self) -> dict[str, str]:
        """Errors by forecaster."""
        return {name: score.error for name, score in self.scores.items() if score.error}

    def to_json(self) -> dict[str, Any]:
        """The document of ``pipelines.backtest``: plain types, undefined numbers as None."""
        return _plain(
            {
                "n_origins": self.n_origins,
                "n_series": len(self.scales),
                "n_rows": self.report.rows,
                "freq": self.freq,
                "horizon": self.config.horizon,
                "season_length": self.season_length,
                "origin_step": self.plan.step,
                "n_calibration_origins": len(self.plan.calibration),
                "refit_every": self.config.refit_every,
                "align": self.plan.align,
                "seed": self.config.seed,
                "quality": vars(self.report),
                "reference": {"name": self.reference, "wql": {n: s.overall.get("wql") for n, s in self.reference_scores.items()}},
                "notes": self.notes,
                "forecasters": {name: _score_json(s) for name, s in self.scores.items()},
            }
        )


def skill(scored: ForecasterScore, reference: ForecasterScore, seed: int = 0) -> dict[str, float]:
    """WQL, SQL and MASE as a ratio to the reference on the same windows, the first with its 95 % block-bootstrap interval."""
    windows = scored.origins[:, 0] > 0
    theirs = np.where(reference.origins[:, 0] > 0, reference.origins[:, 1], np.nan)
    point, low, high = bootstrap_ratio(scored.origins[windows, 1], theirs[windows], seed=seed)
    out = {"wql_ratio": point, "wql_ratio_low": low, "wql_ratio_high": high}
    for metric in ("sql", "mase"):
        base = reference.overall[metric]
        out[f"{metric}_ratio"] = scored.overall[metric] / base if base else (1.0 if scored.overall[metric] == 0 else float("nan"))
    return out


def _score_json(scored: ForecasterScore) -> dict[str, Any]:
    if scored.error:
        return {"status": "failed", "error": scored.error, **dict.fromkeys([*METRIC_NAMES, "fit_s", "predict_s"])}
    times = {"fit_s": scored.fit_s, "update_s": scored.update_s, "predict_s": scored.predict_s}
    overall = {**scored.overall, **times}
    # a global fit has no cost of its own per series: each carries an equal share
    share = {key: value / max(len(scored.series), 1) for key, value in times.items()}
    return {
        "status": "ok",
        **{key: overall[key] for key in [*METRIC_NAMES, "fit_s", "predict_s"]},
        "overall": overall,
        "series": {uid: {**metrics, **share} for uid, metrics in scored.series.items()},
        "by_horizon": scored.by_horizon,
        "calibration": scored.calibration,
        "coverage80_by_band": scored.coverage80_by_band,
        "crossings": scored.crossings,
        "skill": scored.skill,
        "cpu_s": scored.cpu_s,
        "fits": scored.fits,
        "fallbacks": scored.fallbacks,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value

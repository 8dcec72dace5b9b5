"""Rolling-origin backtest: fit on the past, walk forward, score what was forecast against what came.

The history is cut into train | calibration origins | test origins, in this order and disjoint: the targets of the last calibration origin
end where the first test origin begins. Origins are a fixed step apart that shares no factor with the season: a step that divides the day
would always look at the same hours. Parameters are renewed every ``refit_every`` origins (0: fitted once); between origins a forecaster
only receives the new observations. Calibration scores serve the choice among forecasters, test scores the judgement.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS, Forecaster
from models.catalog import forecaster_class, make_forecaster
from models.metrics import METRIC_NAMES, bootstrap_ratio, peak_error, quantile_loss, ramp_error, score
from models.series import Panel, SeriesReport, concat_frames, default_season_length, freq_step_ns, seasonal_scale, validate_series
from telemetry.errors import InputError

NAIVES = ("persistence", "seasonal_naive")
ALIGNMENTS = ("auto", "time", "end")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BacktestConfig:
    """How to cut and walk the history.

    Args:
        horizon: steps of a forecast.
        origins: test origins wanted; fewer when the history is short, which the result says.
        calibration_origins: origins between train and test, for choosing among forecasters; left out of a short history.
        test_fraction: share of the history over which the test origins are spread.
        refit_every: origins between two fits; 0 fits once, before the first origin.
        align: ``time``: all series share the origins' times; ``end``: origins count back from the end of each series, for series of
            different periods; ``auto``: time, unless that would leave series unscored.
        season_length: steps in a season; None takes the default of the frequency.
        seed: of forecasters and bootstrap.
    """

    horizon: int = 18
    origins: int = 20
    calibration_origins: int = 8
    test_fraction: float = 0.25
    refit_every: int = 0
    align: str = "auto"
    season_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("horizon", 1), ("origins", 1), ("calibration_origins", 0), ("refit_every", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}", where="backtest", allowed=f"a whole number from {least}")
        if not 0 < self.test_fraction < 1:
            raise InputError(f"test_fraction is {self.test_fraction}", where="backtest", allowed="between 0 and 1")
        if self.align not in ALIGNMENTS:
            raise InputError(f"align is {self.align!r}", where="backtest", allowed=", ".join(ALIGNMENTS))


@dataclass(frozen=True)
class OriginPlan:
    """Origins as steps counted back from the end: an origin at offset k knows all but the last k steps."""

    step: int
    calibration: tuple[int, ...]
    test: tuple[int, ...]
    align: str

    @property
    def all(self) -> tuple[int, ...]:
        """Calibration, then test offsets, oldest first."""
        return self.calibration + self.test


@dataclass
class ForecasterScore:
    """What one forecaster achieved; ``error`` is set and the rest empty where it failed."""

    name: str
    overall: dict[str, float] = field(default_factory=dict)
    series: dict[str, dict[str, float]] = field(default_factory=dict)
    by_horizon: list[dict[str, float]] = field(default_factory=list)
    calibration: dict[str, float] = field(default_factory=dict)
    skill: dict[str, float] = field(default_factory=dict)
    fit_s: float = float("nan")
    update_s: float = float("nan")
    predict_s: float = float("nan")
    fits: int = 0
    fallbacks: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    forecasts: pd.DataFrame = field(default_factory=pd.DataFrame)  # unique_id, issued_at, ds, q10..q90, model, y, step, origin, part


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
    actual: pd.DataFrame  # the validated series
    notes: list[str]

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


def run_backtest(
    series: pd.DataFrame,
    freq: str,
    forecasters: Mapping[str, Mapping[str, Any]] | Iterable[str],
    config: BacktestConfig | None = None,
    progress: Progress | None = None,
    plan: OriginPlan | None = None,
) -> BacktestResult:
    """Score forecasters by rolling origin.

    Args:
        series: ``unique_id, ds, y``.
        freq: step of the grid.
        forecasters: names, or names with their options.
        config: how to cut the history.
        progress: called with forecaster, origins done and origins in all.
        plan: origins shared with another backtest; None plans them for these series.

    Returns:
        Scores of all forecasters; one that raises is reported with its error and does not stop the others.

    Raises:
        InputError: the series, the frequency or a name cannot be used.
    """
    config = config or BacktestConfig()
    members = {n: dict(o) for n, o in forecasters.items()} if isinstance(forecasters, Mapping) else {n: {} for n in forecasters}
    for name in members:
        forecaster_class(name)
    table, report = validate_series(series, freq)
    panel = Panel.from_frame(table, freq_step_ns(freq))
    season_length = config.season_length or default_season_length(freq)
    plan = plan or plan_origins(panel, config, season_length)
    walk = _Walk(table, panel, plan, config, freq, season_length)
    scales = {uid: seasonal_scale(values, season_length) for uid, values in walk.train_values().items()}
    scores = {}
    for name in dict.fromkeys([*NAIVES, *members]):
        scores[name] = _score_one(name, members.get(name, {}), walk, scales, progress or _silent)
    naive = {name: scores[name] for name in NAIVES if scores[name].error is None and _finite(scores[name].overall.get("wql"))}
    reference = min(naive, key=lambda name: naive[name].overall["wql"]) if naive else ""
    for scored in scores.values():
        if reference and scored.error is None:
            scored.skill = skill(scored, scores[reference], seed=config.seed)
    chosen = {name: scores[name] for name in members}
    return BacktestResult(
        freq, season_length, config, plan, report, chosen, reference, naive, scales, table, walk.notes(list(scales), chosen.values())
    )


def plan_origins(panel: Panel, config: BacktestConfig, season_length: int) -> OriginPlan:
    """Offsets of the origins for these series.

    Raises:
        InputError: no series is longer than the horizon.
    """
    lengths = np.array([len(values) for values in panel.values])
    starts, ends = np.array(panel.starts_ns), panel.ends_ns
    align = config.align
    whole = int((ends.max() - starts.min()) // panel.step_ns) + 1
    if align == "auto":
        needed = _offsets(whole, config, season_length)[1]
        late = (ends.max() - ends) // panel.step_ns  # steps that a series ends before the latest
        scored = late < needed[0] if needed else np.zeros(len(panel), dtype=bool)
        align = "time" if needed and scored.all() else "end"
    length = whole if align == "time" else int(np.median(lengths[lengths > config.horizon])) if (lengths > config.horizon).any() else 0
    step, test, calibration = _offsets(length, config, season_length)
    if not test:
        raise InputError(
            f"longest series has {lengths.max()} steps, horizon is {config.horizon}",
            where="backtest",
            allowed=f"at least {config.horizon + 1} steps",
            remedy="give a longer history or a shorter horizon",
        )
    return OriginPlan(step, calibration, test, align)


def _offsets(length: int, config: BacktestConfig, season_length: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Step, test offsets and calibration offsets for a history of ``length`` steps."""
    horizon = config.horizon
    room = length - max(1, min(length // 3, 2 * horizon))  # what the train part can spare
    span = min(max(int(config.test_fraction * length), horizon + config.origins - 1), max(room, min(length - 1, horizon)))
    if span < horizon or length <= horizon:
        return 1, (), ()
    origins = min(config.origins, span - horizon + 1)
    step = coprime_step((span - horizon) // (origins - 1), season_length) if origins > 1 else 1
    test = tuple(horizon + k * step for k in range(origins - 1, -1, -1))
    first = test[0] + horizon
    spare = length // 2 - first  # train keeps at least half
    count = min(config.calibration_origins, spare // step + 1) if spare >= 0 else 0
    return step, test, tuple(first + k * step for k in range(count - 1, -1, -1))


def coprime_step(largest: int, season_length: int) -> int:
    """Largest step up to ``largest`` without a common factor with the season; at least 1."""
    return next((s for s in range(largest, 1, -1) if math.gcd(s, season_length) == 1), 1)


def skill(scored: ForecasterScore, reference: ForecasterScore, seed: int = 0) -> dict[str, float]:
    """WQL, SQL and MASE as a ratio to the reference on the same windows, the first with its 95 % block-bootstrap interval."""
    ours, theirs = (_loss_by_origin(s.forecasts) for s in (scored, reference))
    point, low, high = bootstrap_ratio(ours.to_numpy(), theirs.reindex(ours.index).to_numpy(), seed=seed)
    out = {"wql_ratio": point, "wql_ratio_low": low, "wql_ratio_high": high}
    for metric in ("sql", "mase"):
        base = reference.overall[metric]
        out[f"{metric}_ratio"] = scored.overall[metric] / base if base else (1.0 if scored.overall[metric] == 0 else float("nan"))
    return out


def _loss_by_origin(forecasts: pd.DataFrame) -> pd.Series:
    rows = forecasts[forecasts["part"] == "test"]
    loss = quantile_loss(rows["y"].to_numpy(), rows[list(QUANTILE_COLUMNS)].to_numpy())
    return pd.Series(loss, index=rows["origin"].to_numpy()).groupby(level=0).sum()


class _Walk:
    """The windows of a backtest: what is known at each origin, and what came."""

    def __init__(self, table: pd.DataFrame, panel: Panel, plan: OriginPlan, config: BacktestConfig, freq: str, season_length: int) -> None:
        self.table, self.plan, self.config = table, plan, config
        self.freq, self.season_length = freq, season_length
        ends = panel.ends_ns if plan.align == "end" else np.full(len(panel), panel.ends_ns.max())
        behind = (table["unique_id"].map(dict(zip(panel.ids, ends, strict=True))).to_numpy() - table["ds"].to_numpy().astype(np.int64)) // (
            panel.step_ns
        )
        self.behind = behind  # [rows], steps from each row to the end that its origins count back from
        self.step_ns = panel.step_ns

    def before(self, offset: int) -> pd.DataFrame:
        """Rows known at the origin at ``offset``."""
        return self.table[self.behind >= offset]

    def between(self, older: int, newer: int) -> pd.DataFrame:
        """Rows that became known from one origin to the next."""
        return self.table[(self.behind < older) & (self.behind >= newer)]

    def train_values(self) -> dict[str, np.ndarray]:
        """Observed grid of every series up to the first origin; series that begin later are left out."""
        known = self.before(self.plan.all[0])
        panel = Panel.from_frame(known, self.step_ns) if len(known) else Panel(self.step_ns)
        return dict(zip(panel.ids, panel.values, strict=True))

    def walk(self, forecaster: Forecaster, scored: ForecasterScore, progress: Progress) -> pd.DataFrame:
        """Forecasts of all origins joined with what came; times are added to ``scored``."""
        parts, previous, since_fit = [], None, 0
        scored.fit_s = scored.update_s = scored.predict_s = 0.0
        for number, offset in enumerate(self.plan.all):
            refit = previous is None or (self.config.refit_every and since_fit >= self.config.refit_every)
            begun = time.perf_counter()
            if refit:
                known = self.before(offset)
                if known.empty:
                    continue
                forecaster.fit(known)
                scored.fit_s, scored.fits, since_fit = scored.fit_s + time.perf_counter() - begun, scored.fits + 1, 0
            else:
                forecaster.update(self.between(previous, offset))
                scored.update_s += time.perf_counter() - begun
            begun = time.perf_counter()
            forecast = forecaster.predict()
            scored.predict_s += time.perf_counter() - begun
            parts.append(self._with_actual(forecast, number, offset))
            previous, since_fit = offset, since_fit + 1
            progress(scored.name, number + 1, len(self.plan.all))
        return concat_frames(parts)

    def _with_actual(self, forecast: pd.DataFrame, number: int, offset: int) -> pd.DataFrame:
        future = self.table[(self.behind < offset) & (self.behind >= offset - self.config.horizon)]
        joined = forecast.merge(future, on=["unique_id", "ds"], how="inner", sort=False)
        joined["step"] = ((joined["ds"] - joined["issued_at"]).to_numpy().astype(np.int64) // self.step_ns).astype(np.int64)
        joined["origin"] = number
        joined["part"] = "calibration" if number < len(self.plan.calibration) else "test"
        return joined

    def notes(self, trained: list[str], scores: Iterable[ForecasterScore]) -> list[str]:
        """What a reader of the result should know."""
        notes = []
        if len(self.plan.test) < self.config.origins:
            notes.append(f"history allows {len(self.plan.test)} of {self.config.origins} origins")
        if len(self.plan.calibration) < self.config.calibration_origins:
            notes.append(f"history allows {len(self.plan.calibration)} of {self.config.calibration_origins} calibration origins")
        all_ids = self.table["unique_id"].unique()
        if len(trained) < len(all_ids):
            notes.append(f"{len(all_ids) - len(trained)} series begin after the train part and have no scaled metrics")
        scored_ids = set().union(*(s.series for s in scores)) if scores else set()
        if len(scored_ids) < len(all_ids):
            notes.append(f"{len(all_ids) - len(scored_ids)} series have no observation in any test window")
        return notes


def _score_one(name: str, options: dict[str, Any], walk: _Walk, scales: dict[str, float], progress: Progress) -> ForecasterScore:
    scored = ForecasterScore(name)
    config = walk.config
    try:
        common = {"freq": walk.freq, "horizon": config.horizon, "season_length": walk.season_length, "seed": config.seed}
        forecaster = make_forecaster(name, **{**common, **options})
        forecasts = walk.walk(forecaster, scored, progress)
        if not len(forecasts) or not (forecasts["part"] == "test").any():
            raise InputError("no test window has an observation", where="backtest", remedy="give a longer or less broken history")
        scored.forecasts = forecasts
        scored.fallbacks = dict(getattr(forecaster, "fallbacks", {}))
        _fill_scores(scored, scales)
    except Exception as error:  # one forecaster's failure is its own result
        return ForecasterScore(name, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    return scored


def _fill_scores(scored: ForecasterScore, scales: dict[str, float]) -> None:
    test = scored.forecasts[scored.forecasts["part"] == "test"]
    scored.overall = {**score(test, scales), "peak_error": peak_error(test), "ramp_error": ramp_error(test)}
    scored.series = {
        str(uid): {**score(rows, scales), "peak_error": peak_error(rows)} for uid, rows in test.groupby("unique_id", sort=True)
    }
    scored.by_horizon = [{"step": int(step), **score(rows, scales)} for step, rows in test.groupby("step", sort=True)]
    calibration = scored.forecasts[scored.forecasts["part"] == "calibration"]
    scored.calibration = score(calibration, scales) if len(calibration) else {}


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
        "skill": scored.skill,
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


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _silent(name: str, done: int, total: int) -> None:
    """No progress wanted."""

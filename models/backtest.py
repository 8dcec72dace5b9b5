"""Rolling-origin backtest: fit on the past, walk forward, score what was forecast against what came.

Parameters are renewed every ``refit_every`` origins (0: fitted once); between origins a forecaster only receives the new observations.
Calibration scores serve the choice among forecasters, test scores the judgement.

The series are walked in chunks. A forecaster that knows each series from its own history alone is fitted chunk by chunk; one that learns
from all series is fitted once and then continued over each chunk. Chunks are reduced to sums where they run (``models.backtest_chunk``,
``models.score_sums``), by whatever engine.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from models.backtest_chunk import ChunkResult, ChunkTask, Fitted, Seconds, corrections_at, fit_pooled, in_order, run_chunk, run_fold
from models.backtest_plan import BacktestConfig, OriginPlan, plan_origins
from models.backtest_scores import BacktestResult, ForecasterScore, skill
from models.calibrated import REPLAY_SERIES, CalibratedForecaster
from models.catalog import forecaster_class, make_forecaster
from models.engine import Engine, Serial
from models.member import PanelForecaster
from models.partial_results import MemberResults, PartialResults, digest, source_digest, store_digest
from models.score_sums import ScoreSums
from models.series import default_season_length, seasonal_scale
from models.series_store import SeriesStore, frame_batches, known_before, read_store
from telemetry.errors import InputError

NAIVES = ("persistence", "seasonal_naive")
KEEPING = ("memory", "files", "none")
Progress = Callable[[str, int, int], None]
Watch = Callable[[str, int, float], None]


class StoppedError(Exception):
    """Raised by ``watch`` to end a backtest early; it goes on to the caller."""


def run_backtest(
    series: pd.DataFrame | SeriesStore,
    freq: str,
    forecasters: Mapping[str, Mapping[str, Any]] | Iterable[str],
    config: BacktestConfig | None = None,
    progress: Progress | None = None,
    *,
    engine: Engine | None = None,
    partials: PartialResults | None = None,
    forecasts: str = "memory",
    plan: OriginPlan | None = None,
    watch: Watch | None = None,
) -> BacktestResult:
    """Score forecasters by rolling origin.

    Args:
        series: ``unique_id, ds, y`` as a frame, or read by ``read_store``.
        freq: step of the grid.
        forecasters: names, or names with their options.
        config: how to cut the history.
        progress: called with forecaster, pieces of work done and pieces in all.
        engine: where chunks of series run; None is this process. Every engine gives the same scores.
        partials: keeps finished chunks under ``backtest_key``, from which a killed backtest goes on; None keeps nothing.
        forecasts: ``memory`` keeps them as frames in the result, ``files`` as Parquet files in ``partials``, ``none`` keeps only scores.
        plan: origins shared with another backtest, which no key of ``partials`` knows; None plans them for these series.
        watch: called with forecaster, origins walked and the WQL over them, after each origin of a forecaster that is walked in one chunk
            from one fit; it may raise ``StoppedError``.

    Returns:
        Scores of all forecasters; one that raises is reported with its error and does not stop the others.

    Raises:
        InputError: the series, the frequency or a name cannot be used.
    """
    config = config or BacktestConfig()
    if forecasts not in KEEPING or (forecasts == "files" and partials is None):
        raise InputError(f"forecasts are {forecasts!r}", where="backtest", allowed=f"{', '.join(KEEPING)}; files needs partials")
    members = {n: dict(o) for n, o in forecasters.items()} if isinstance(forecasters, Mapping) else {n: {} for n in forecasters}
    for name in members:
        forecaster_class(name)
    store = series if isinstance(series, SeriesStore) else read_store(frame_batches(series), freq)
    season_length = config.season_length or default_season_length(freq)
    if plan is not None and partials is not None:
        raise InputError("origins of another backtest", where="backtest", allowed="a plan of its own where partial results are kept")
    plan = plan or plan_origins(store, config, season_length)
    job = _Job(store, freq, config, plan, season_length, engine or Serial(), forecasts, watch)
    scores = {}
    for name in dict.fromkeys([*NAIVES, *members]):
        scores[name] = _score_one(name, members.get(name, {}), job, partials, progress or _silent)
    naive = {name: scores[name] for name in NAIVES if scores[name].error is None and math.isfinite(scores[name].overall["wql"])}
    reference = min(naive, key=lambda name: naive[name].overall["wql"]) if naive else ""
    for scored in scores.values():
        if reference and scored.error is None:
            scored.skill = skill(scored, scores[reference], seed=config.seed)
    chosen = {name: scores[name] for name in members}
    scales = {uid: scale for uid, scale, cut in zip(store.ids, job.scales.tolist(), job.cuts(job.plan.all[0]), strict=True) if cut > 0}
    return BacktestResult(
        freq, season_length, config, job.plan, store.report, chosen, reference, naive, scales, store, job.notes(len(scales), chosen)
    )


def backtest_key(store: SeriesStore, freq: str, config: BacktestConfig) -> str:
    """Digest of everything that all forecasters of a backtest share, the source of this package included."""
    return digest([store_digest(store), freq, asdict(config), source_digest()])


class _Job:
    """The windows of a backtest and where its pieces run: what all forecasters share."""

    def __init__(
        self,
        store: SeriesStore,
        freq: str,
        config: BacktestConfig,
        plan: OriginPlan,
        season_length: int,
        engine: Engine,
        forecasts: str,
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
        self.store, self.config, self.plan, self.engine, self.forecasts = store, config, plan, engine, forecasts
        self.common = {"freq": freq, "horizon": config.horizon, "season_length": season_length, "seed": config.seed}
        ends = store.ends_ns if plan.align == "end" else np.full(len(store), store.ends_ns.max())
        self.last = (ends - store.starts_ns) // store.step_ns  # [N] grid position that origins count back from
        self.scales = np.full(len(store), np.nan)
        for first, last in self.chunks(config.chunk_series):
            panel = store.panel(first, last)
            place = {uid: first + k for k, uid in enumerate(panel.ids)}
            known = known_before(panel, self.cuts(plan.all[0])[first:last])
            for uid, values in zip(known.ids, known.values, strict=True):
                self.scales[place[uid]] = seasonal_scale(values, season_length)

    def cuts(self, offset: int) -> np.ndarray:
        """Grid points of each series known at an origin ``[N]``; 0 or less for one that begins later."""
        return self.last - offset + 1

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """First and last (exclusive) series of each chunk."""
        return [(first, min(first + size, len(self.store))) for first in range(0, len(self.store), size)]

    def notes(self, trained: int, scores: Mapping[str, ForecasterScore]) -> list[str]:
        """What a reader of the result should know."""
        notes, plan, store = [], self.plan, self.store
        if len(plan.test) < self.config.origins:
            notes.append(f"history allows {len(plan.test)} of {self.config.origins} origins")
        if len(plan.calibration) < self.config.calibration_origins:
            notes.append(f"history allows {len(plan.calibration)} of {self.config.calibration_origins} calibration origins")
        if trained < len(store):
            notes.append(f"{len(store) - trained} series begin after the train part and have no scaled metrics")
        scored = set().union(*(score.series for score in scores.values()))
        if len(scored) < len(store):
            notes.append(f"{len(store) - len(scored)} series have no observation in any test window")
        readers = ", ".join(name for name in scores if not forecaster_class(name).per_series) or "none of these forecasters"
        if store.covariates:
            notes.append(f"covariates, known at their ds: {', '.join(store.covariates)}; read by {readers}")
        if store.static:
            notes.append(f"kinds of series: {', '.join(store.static)}; read by {readers}")
        notes += [f"column {name!r} is left out: {reason}" for name, reason in store.left_out.items()]
        return notes


@dataclass
class _Member:
    """One forecaster's way through the job."""

    name: str
    options: dict[str, Any]
    job: _Job

    def __post_init__(self) -> None:
        self.options = {**self.job.common, **self.options}
        self.prototype = make_forecaster(self.name, **self.options)
        self.per_series = self.prototype.per_series
        in_chunks = self.per_series or isinstance(self.prototype, PanelForecaster)
        self.chunks = self.job.chunks(self.job.config.chunk_series if in_chunks else len(self.job.store))
        parts = len(self.chunks) * (1 if self.fitted_before else len(self.job.plan.segments(self.job.config.refit_every)))
        self.engine = self.job.engine if parts > 1 else Serial()  # one part is not worth a process

    @property
    def pooled(self) -> bool:
        """Whether it is fitted once on all series and then continued over each chunk."""
        return isinstance(self.prototype, PanelForecaster) and not self.per_series

    @property
    def learns_from_all(self) -> bool:
        """Whether anything of it is learned from all series before they are parted."""
        return self.pooled or (isinstance(self.prototype, PanelForecaster) and self.prototype.learns_youth and len(self.chunks) > 1)

    @property
    def fitted_before(self) -> bool:
        """Whether a fit has to be there before its chunks are parted; else fits and their chunks run in any order, side by side."""
        return self.learns_from_all and len(self.chunks) > 1

    def fit(self, numbers: range, spent: Seconds) -> Fitted:
        """What is learned from all series at the first of these origins; adds the time to ``spent``."""
        job = self.job
        offsets = tuple(job.plan.all[k] for k in numbers)
        known = known_before(job.store.panel(), job.cuts(offsets[0]))
        if not self.pooled:
            with spent.spent_on("fit"):
                return Fitted(young=self.prototype.learn_youth(known))
        fitted = fit_pooled(self.name, self.options, known, spent)
        if not isinstance(fitted, CalibratedForecaster):
            return Fitted(fitted)
        with spent.spent_on("predict"):
            chosen = np.unique(np.linspace(0, len(job.store) - 1, min(len(job.store), REPLAY_SERIES)).astype(np.int64))
            return Fitted(fitted, corrections_at(fitted, job.store.select(chosen), job.last[chosen], offsets))

    def task(self, segment: int, numbers: range, chunk: int) -> ChunkTask:
        """The work on one chunk from one fit to the next."""
        job, (first, last) = self.job, self.chunks[chunk]
        offsets = tuple(job.plan.all[k] for k in numbers)
        panel = job.store.panel(first, last)
        known_earlier = int((job.cuts(offsets[0])[:first] > 0).sum())
        options = self._chunk_options(panel.ids, known_earlier)
        return ChunkTask(
            member=self.name,
            options=options,
            panel=panel,
            last=job.last[first:last],
            scales=job.scales[first:last],
            offsets=offsets,
            numbers=numbers,
            calibration=len(job.plan.calibration),
            origins=len(job.plan.all),
            segment=segment,
            chunk=chunk,
            keep=job.forecasts != "none",
        )

    def _chunk_options(self, ids: list[str], known_earlier: int) -> dict[str, Any]:
        """Options of one chunk: its share of ``max_fits``, its bounds, and no workers inside a worker."""
        options, own = dict(self.options), getattr(self.prototype, "options", None)
        if self.per_series and hasattr(own, "max_fits"):
            options["max_fits"] = max(own.max_fits - known_earlier, 0)
        if self.engine.workers > 1 and hasattr(own, "workers"):
            options["workers"] = 1
        if options.get("bounds"):
            options["bounds"] = {uid: options["bounds"][uid] for uid in ids if uid in options["bounds"]}
        return options


def _score_one(name: str, options: dict[str, Any], job: _Job, partials: PartialResults | None, progress: Progress) -> ForecasterScore:
    scored = ForecasterScore(name)
    try:
        member = _Member(name, options, job)
        kept = partials.member(name, options) if partials else None
        results, seconds = _run_member(member, kept, progress)
        sums = ScoreSums.empty(len(job.store), job.config.horizon, len(job.plan.all))
        for (segment, chunk), result in sorted(results.items()):
            sums.add(result.sums, member.chunks[chunk][0])
            seconds.add(result.seconds)
            if segment == len(job.plan.segments(job.config.refit_every)) - 1:
                scored.fallbacks.update(result.fallbacks)
        scored.fill(sums, job.store.ids, len(job.plan.calibration), seconds)
        scored.fits = len(job.plan.segments(job.config.refit_every))
        if job.forecasts == "memory":
            scored.forecasts = in_order([result.forecasts for _, result in sorted(results.items())])
    except StoppedError:
        raise
    except Exception as error:  # one forecaster's failure is its own result
        return ForecasterScore(name, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    return scored


def _run_member(member: _Member, kept: MemberResults | None, progress: Progress) -> tuple[dict[tuple[int, int], ChunkResult], Seconds]:
    """Results by segment and chunk, and the time of the fits on all series."""
    job, seconds = member.job, Seconds()
    segments = job.plan.segments(job.config.refit_every)
    count = _Count(progress, member.name, len(member.chunks) * len(job.plan.all))
    places = [(segment, chunk) for segment in range(len(segments)) for chunk in range(len(member.chunks))]
    results = _kept_results(places, kept, job.forecasts)
    count.add(sum(len(segments[segment]) for segment, _ in results))
    todo = [place for place in places if place not in results]
    for part in [[place for place in todo if place[0] == segment] for segment in range(len(segments))] if member.fitted_before else [todo]:
        fitted = _fit(member, segments[part[0][0]], part[0][0], kept) if part and member.fitted_before else None
        for place, result in _map(member, segments, part, fitted, count):
            if kept:
                kept.write(*place, result)
            if job.forecasts == "files":
                result.forecasts = pd.DataFrame()
            results[place] = result
        if fitted:
            seconds.add(fitted[0])
    if kept and member.fitted_before:  # fits of an earlier run whose pieces are all done
        for segment in {segment for segment, _ in places} - {segment for segment, _ in todo}:
            seconds.add(kept.read_fit(segment) or Seconds())
    return results, seconds


def _kept_results(places: list[tuple[int, int]], kept: MemberResults | None, forecasts: str) -> dict[tuple[int, int], ChunkResult]:
    """What an earlier run of this backtest had finished."""
    results = {}
    for place in places:
        found = kept.read(*place, forecasts=forecasts != "none") if kept else None
        if kept and found is not None:
            if forecasts == "memory":
                found.forecasts = pd.read_parquet(kept.forecast_file(*place))
            results[place] = found
    return results


def _fit(member: _Member, numbers: range, segment: int, kept: MemberResults | None) -> tuple[Seconds, Fitted]:
    """A fit on all series and its time."""
    spent = Seconds()
    fitted = member.fit(numbers, spent)
    if kept:
        kept.write_fit(segment, spent)
    return spent, fitted


def _map(
    member: _Member, segments: list[range], todo: list[tuple[int, int]], fitted: tuple[Seconds, Fitted] | None, count: _Count
) -> Iterator[tuple[tuple[int, int], ChunkResult]]:
    """Results of pieces, by segment and chunk, as they finish."""
    engine, shared = member.engine, fitted[1] if fitted else None
    tasks = (member.task(segment, segments[segment], chunk) for segment, chunk in todo)
    run = run_chunk if member.fitted_before or not member.learns_from_all else run_fold
    if isinstance(engine, Serial):
        watch = member.job.watch if len(member.chunks) == len(segments) == 1 else None
        watched = {"watch": partial(watch, member.name)} if watch else {}
        run = partial(run, tick=lambda: count.add(1), **watched)
    for place, result in engine.map(run, tasks, shared):
        if not isinstance(engine, Serial):
            count.add(len(segments[todo[place][0]]))
        yield todo[place], result


class _Count:
    """Pieces of work done: origins times chunks."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.progress, self.name, self.total, self.done = progress, name, total, 0

    def add(self, pieces: int) -> None:
        self.done += pieces
        self.progress(self.name, self.done, self.total)


def _silent(name: str, done: int, total: int) -> None:
    """No progress wanted."""

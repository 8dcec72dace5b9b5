"""One run for one target: observe, learn how the last forecasts did, forecast, correct, write, remember.

The state of a target is one folder::

    champion.json, package/     last good champion
    state.json                  where the last run ended, and the adaptive intervals by model version; replaced last, the only commit point
    observations-<run>.npz      what was observed since training (state.json names which)
    pending/<time>-v<version>/  forecasts whose values are not known yet

A run that is killed leaves the last state; the next one does the same work again and writes the same files. The forecaster itself is not
saved: it is loaded from its package and given all observations since training again, which costs about as much as saving and loading it
(docs/forecasts_live.md), puts late rows where they belong, and needs nothing to be migrated when another version is promoted. Its own
correction of intervals is only where the adaptive state starts from: from then on that learns from what was issued.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.conformal import AdaptiveIntervals
from models.intervals import horizon_bands
from models.series import freq_step_ns
from pipelines.live.champion import Champion, Known, Served, load_champion
from pipelines.live.observations import Merged, ObservationLog
from pipelines.live.pending import PendingForecasts
from pipelines.workspace import read_json, write_json
from registry.loading import VerificationError
from telemetry.errors import InputError
from telemetry.forecasts import ForecastTable

STATE, FORMAT = "state.json", 1
KEPT_VERSIONS = 3
COVERAGE_LIMITS, COVERAGE_STEPS = (0.7, 0.9), 72
Source = Callable[[str, pd.Timestamp, str], pd.DataFrame]


@dataclass(frozen=True)
class LiveSettings:
    """How a run behaves.

    Args:
        tracking_uri: the registry.
        state: folder that is kept between runs.
        out: root of the lake that gets the table ``forecasts``.
        lookback_steps: how long after its time a sample may come and still be used.
        stale_steps: steps behind now beyond which the newest observation raises an alert.
        retain_days: forecasts older than this many days are dropped; 0 keeps all.
    """

    tracking_uri: str
    state: Path
    out: Path
    lookback_steps: int = 144
    stale_steps: int = 3
    retain_days: int = 30


@dataclass
class TargetReport:
    """What a run did for one target; times are UTC."""

    target: str
    status: str = "written"  # written, unchanged, not promoted, failed
    model: str = ""
    version: str = ""
    issued_at: str | None = None
    staleness_s: float | None = None
    series: int = 0
    rows: int = 0
    file: str = ""
    observations: dict[str, int] = field(default_factory=dict)
    matured: int = 0
    coverage: list[dict[str, Any]] = field(default_factory=list)
    new_series: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    fallbacks: dict[str, str] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    traceback: str = ""

    @property
    def good(self) -> bool:
        """Nothing failed and the registry's own champion served, or there is none."""
        return self.status != "failed" and not any(alert.startswith("champion refused") for alert in self.alerts)


@dataclass
class _State:
    """``state.json``: number of runs, file of observations, and adaptive intervals by version, newest last."""

    run: int = 0
    observations: str = ""
    adaptive: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, alerts: list[str]) -> _State:
        if not path.exists():
            return cls()
        try:
            stored = read_json(path)
            if stored.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**stored)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            alerts.append(f"state started afresh: {path} cannot be read ({error})")
            return cls()

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, **vars(self)})


def run_target(target: str, settings: LiveSettings, read: Source, now: pd.Timestamp, clock: Callable[[], float]) -> TargetReport:
    """One run for one target; whatever the data do, it reports and leaves a usable state.

    Args:
        target: ``workload`` or ``power``; its champion is ``<target>-forecaster``.
        settings: see :class:`LiveSettings`.
        read: ``(target, since, freq) -> frame`` of observations after ``since``.
        now: time of the run, UTC without zone; rows after it are left out.
        clock: seconds, for the report.
    """
    report, begun = TargetReport(target), clock()
    try:
        champion = load_champion(f"{target}-forecaster", settings.tracking_uri, settings.state / target)
        if champion is None:
            report.status = "not promoted"
            return report
        report.seconds["load"] = clock() - begun
        _Run(target, settings, champion, report, clock).go(read, now)
    except (InputError, VerificationError, OSError) as error:
        report.status = "failed"
        report.alerts.append(str(error))
    except Exception as error:  # whatever a model raises, the other targets are forecast
        report.status, report.traceback = "failed", traceback.format_exc()
        report.alerts.append(f"{type(error).__name__}: {error}")
    return report


def _after(trained: Known, frame: pd.DataFrame) -> np.ndarray:
    """Which rows ``[n]`` the package does not cover: those after the end of their series in it, and all of other series."""
    codes, names = pd.factorize(frame["unique_id"].to_numpy())
    at = pd.Index(trained.ids).get_indexer(pd.Index(names))
    ends = np.where(at >= 0, trained.ends_ns[at], np.iinfo(np.int64).min)
    return frame["ds"].to_numpy().astype("datetime64[ns]").astype(np.int64) > ends[codes]


class _Run:
    """The steps of a run over one champion."""

    def __init__(self, target: str, settings: LiveSettings, champion: Champion, report: TargetReport, clock: Callable[[], float]) -> None:
        self.target, self.settings, self.champion, self.report, self.clock = target, settings, champion, report, clock
        self.forecaster, self.served = champion.forecaster, Served(champion.forecaster)
        self.step_ns = freq_step_ns(self.forecaster.freq)
        self.bands = horizon_bands(self.forecaster.horizon)
        self.folder = settings.state / target
        self.state = _State.load(self.folder / STATE, report.alerts)
        self.pending = PendingForecasts(self.folder / "pending", champion.version, self.step_ns, self.forecaster.horizon, report.alerts)
        self._lap = clock()
        report.model, report.version = champion.model, champion.version
        if champion.refusal:
            report.alerts.append(f"champion refused, version {champion.version} stays in service: {champion.refusal}")

    def go(self, read: Source, now: pd.Timestamp) -> None:
        """Numbered phases; nothing before the last is seen by the next run."""
        # 1. What the package knows, and what came since.
        trained = self.served.known()
        log = self._log()
        merged = self._observe(log, trained, read, now)
        self._took("observe")
        # 2. The forecaster continues to the newest row.
        later = log.later_than(dict(zip(trained.ids.tolist(), trained.ends_ns.tolist(), strict=True)))
        if len(later):
            self.forecaster.update(later)
        current = self.served.known()
        fresh = self._sort_series(trained, current, now)
        self._took("update")
        # 3. Intervals learn from the forecasts whose values came.
        self.adaptive, scale = self._adaptive(current), self.served.scale()
        self._learn(merged, pd.Series(scale, index=current.ids))
        self._took("learn")
        # 4. Forecast what has a new row, corrected.
        if fresh.any():
            self._issue(current, fresh, scale)
        else:
            self.report.status = "unchanged"
        # 5. Commit.
        self._commit(log, current)
        self._took("write")

    # --- phases -------------------------------------------------------------------------------------------------------------------------

    def _observe(self, log: ObservationLog, trained: Known, read: Source, now: pd.Timestamp) -> Merged:
        log.know(trained.ids, trained.ends_ns % self.step_ns)
        since_ns = self._since(log, int(trained.ends_ns.max()))
        frame = read(self.target, pd.Timestamp(since_ns), self.forecaster.freq)
        future = (frame["ds"] > now).to_numpy()
        # What this package covers, an older one may need: a log that reaches further back than this package stays whole.
        wanted = _after(trained, frame) | (frame["ds"] > pd.Timestamp(log.whole_after_ns)).to_numpy()
        merged = log.merge(frame[~future & wanted])
        # More than a forecaster looks back on is never needed again.
        log.trim(self.forecaster.history_rows + self.settings.lookback_steps)
        self.report.observations = {
            "new": len(merged),
            "late": merged.late,
            "revised": merged.revised,
            "off_grid": merged.off_grid,
            "too_old": merged.too_old,
            "after_now": int(future.sum()),
        }
        return merged

    def _since(self, log: ObservationLog, trained_ns: int) -> int:
        """From when on to read: late rows and what is new to a log that continues the package; else all since the package."""
        lookback_ns = self.settings.lookback_steps * self.step_ns
        seen_ns = int(log.newest_ns.max(initial=0))
        long_enough = seen_ns - log.whole_after_ns > (self.forecaster.history_rows - 1) * self.step_ns
        continues = log.whole_after_ns <= trained_ns or long_enough
        since_ns = (max(trained_ns, seen_ns) if continues else trained_ns) - lookback_ns
        if not continues or since_ns > seen_ns:
            log.begin(since_ns, trained_ns)
        return since_ns

    def _sort_series(self, trained: Known, current: Known, now: pd.Timestamp) -> np.ndarray:
        """Which series are forecast ``[N]``: those with a row since their last forecast that have not vanished; the rest is reported."""
        newest_ns = int(current.ends_ns.max())
        vanished = current.ends_ns <= newest_ns - self.forecaster.horizon * self.step_ns
        behind = ~vanished & (current.ends_ns <= newest_ns - self.step_ns)
        issued = self.pending.last_issued_ns()
        last = np.array([issued.get(uid, np.iinfo(np.int64).min) for uid in current.ids.tolist()], dtype=np.int64)
        report = self.report
        report.new_series = sorted(set(current.ids.tolist()) - set(trained.ids.tolist()))
        report.behind, report.vanished = current.ids[behind].tolist(), current.ids[vanished].tolist()
        report.issued_at = pd.Timestamp(newest_ns).isoformat()
        report.staleness_s = (now - pd.Timestamp(newest_ns)).total_seconds()
        if report.staleness_s * 1e9 > self.settings.stale_steps * self.step_ns:
            report.alerts.append(f"stale: the newest observation is {report.staleness_s / 60:,.0f} min old")
        if vanished.any():
            report.alerts.append(f"{int(vanished.sum())} series without a row for {self.forecaster.horizon} steps or more are not forecast")
        return ~vanished & (current.ends_ns > last)

    def _learn(self, merged: Merged, scale: pd.Series) -> None:
        for time_ns in np.unique(merged.times_ns).tolist():  # in time order
            rows = merged.times_ns == time_ns
            told = self.pending.matured(time_ns, merged.ids[rows], merged.values[rows])
            if len(told.ids):
                self.adaptive.observe(
                    told.actual, told.raw, self.bands[told.steps - 1], scale=scale[told.ids].to_numpy(), issued=told.issued
                )
                self.report.matured += len(told.ids)
        self.report.coverage = self.adaptive.report()
        for row in self.report.coverage:
            if row["steps"] >= COVERAGE_STEPS and not COVERAGE_LIMITS[0] <= row["coverage80"] <= COVERAGE_LIMITS[1]:
                self.report.alerts.append(f"80 % intervals of band {row['band']} cover {row['coverage80']:.0%}")

    def _issue(self, current: Known, fresh: np.ndarray, scale: np.ndarray) -> None:
        report = self.report
        raw = self.served.said()
        self._took("predict")
        issued = self.served.corrected(raw, self.adaptive, scale)
        table = self.served.frame(issued)[np.repeat(fresh, self.served.horizon)].reset_index(drop=True)
        table["issued_at"], table["ds"] = table["issued_at"].dt.tz_localize("UTC"), table["ds"].dt.tz_localize("UTC")
        table["version"] = self.champion.version
        store, source = ForecastTable(self.settings.out), f"{self.target}-forecaster"
        at = pd.Timestamp(int(current.ends_ns[fresh].max()), tz="UTC")
        report.file = str(store.write(table, source, at, self.champion.version))
        # Learned from within bounds, as a member's own replay is: a quantile below the floor is no wider than one at it.
        self.pending.write(current.ids[fresh], current.ends_ns[fresh], self.served.within_bounds(raw)[fresh], issued[fresh])
        if self.settings.retain_days:
            store.prune(source, at - pd.Timedelta(days=self.settings.retain_days))
        report.series, report.rows = int(fresh.sum()), len(table)
        forecast = set(current.ids[fresh].tolist())
        report.fallbacks = {uid: why for uid, why in self.forecaster.fallbacks.items() if uid in forecast}

    def _commit(self, log: ObservationLog, current: Known) -> None:
        state, newest_ns = self.state, int(current.ends_ns.max())
        state.adaptive.pop(self.champion.version, None)
        state.adaptive[self.champion.version] = {"until_ns": newest_ns, **self.adaptive.to_json()}
        state.adaptive = dict(list(state.adaptive.items())[-KEPT_VERSIONS:])
        state.run += 1
        state.observations = f"observations-{state.run}.npz"  # not the file that the last state names
        log.save(self.folder / state.observations)
        state.save(self.folder / STATE)
        for file in self.folder.glob("observations-*.npz"):
            if file.name != state.observations:
                file.unlink(missing_ok=True)
        # Every step of an issue counts for rows up to a horizon late; keeping it as long as rows may come would be many times the disk.
        self.pending.prune(newest_ns - self.pending.span_ns)

    # --- state --------------------------------------------------------------------------------------------------------------------------

    def _adaptive(self, current: Known) -> AdaptiveIntervals:
        """That of this version; a new one where there is none, or where nothing was learned for longer than rows may be late."""
        stored = self.state.adaptive.get(self.champion.version)
        if stored is not None:
            try:
                behind_ns = int(current.ends_ns.max()) - int(stored["until_ns"])
                if behind_ns <= self.settings.lookback_steps * self.step_ns:
                    return AdaptiveIntervals.from_json(stored)
            except (InputError, KeyError, TypeError) as error:
                self.report.alerts.append(f"intervals start afresh: {error}")
        return self.served.first_correction()

    def _log(self) -> ObservationLog:
        if self.state.observations:
            try:
                return ObservationLog.load(self.folder / self.state.observations, self.step_ns)
            except InputError as error:
                self.report.alerts.append(f"observations are read anew: {error}")
        return ObservationLog(self.step_ns)

    def _took(self, phase: str) -> None:
        now = self.clock()
        self.report.seconds[phase], self._lap = now - self._lap, now

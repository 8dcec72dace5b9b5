"""One shot for one target: new blocks, rules over all of them, findings; and the state that makes the next shot continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.drift.blocks import SIGNALS, Training, chosen_rows, score_blocks
from models.drift.rules import Judged, Rule, judge
from pipelines.triggers import Trigger
from pipelines.watching.settings import EXTRA_SIGNALS, WatchConfig
from pipelines.watching.signals import look_at_series, policy_outcomes, power_residual
from pipelines.watching.state import WatchState
from registry.manifest import Manifest, read_manifest
from telemetry.errors import InputError
from telemetry.forecasts import ForecastTable

STATE = "state.json"
DAY_NS = 86_400 * 10**9
Reader = Callable[[str, pd.Timestamp, str], pd.DataFrame]


@dataclass(frozen=True)
class Finding:
    """One thing found, as it is told, logged and offered; ``key`` is what it is told once by."""

    key: str
    severity: str
    trigger: Trigger


@dataclass
class WatchReport:
    """What a shot found.

    Attributes:
        status: ``watched``, ``no forecasts``, ``unchanged`` or ``failed``.
        fresh: findings that no earlier shot told.
        ongoing: rules in alarm that was told before.
        judged: by rule, what it made of the blocks.
        not_watched: by rule or kind, why not.
    """

    target: str
    status: str = "watched"
    model: str = ""
    version: str = ""
    new_blocks: int = 0
    promised: dict[str, float] = field(default_factory=dict)
    fresh: list[Finding] = field(default_factory=list)
    ongoing: list[str] = field(default_factory=list)
    judged: dict[str, Judged] = field(default_factory=dict)
    blocks: pd.DataFrame = field(default_factory=pd.DataFrame)
    block_ns: int = 0
    not_watched: dict[str, str] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)


class TargetWatch:
    """The steps of a shot. ``look`` reads, scores and stores blocks; ``told`` notes what was reported."""

    def __init__(self, target: str, config: WatchConfig, read: Reader, now: pd.Timestamp) -> None:
        self.target, self.config, self.read, self.now = target, config, read, now
        self.report = WatchReport(target)
        self.path = config.state / target / STATE
        self.state = WatchState.load(self.path, self.report.alerts)
        self.name = f"{target}-forecaster"

    def look(self) -> WatchReport:
        """Blocks are stored before anything is reported: a shot that is killed later finds the same again, and calls it the same."""
        own = self._forecasts(ForecastTable(self.config.forecasts))
        if own.empty:
            self.report.status = "no forecasts"
            return self.report
        step_ns, horizon = _grid(own)
        observed = self._observed(own, step_ns)
        if observed.empty:
            raise InputError("no observation of late", where=f"target {self.target}", remedy="check lake.root or series")
        manifest = self._manifest()
        self._train(own, observed, horizon, manifest)
        scored = self._final(score_blocks(chosen_rows(own, step_ns, horizon), observed, self.state.training, step_ns), own, observed)
        self.report.new_blocks = self.state.add(self._with_extras(scored, observed, step_ns))
        self.state.save(self.path)
        self.report.blocks = self.state.frame()
        self._judge(manifest)
        self._look_at_series(observed, manifest)
        return self.report

    def told(self, findings: list[Finding]) -> None:
        """Note that findings were reported."""
        self.state.told += [one.key for one in findings]
        self.state.save(self.path)

    # --- input --------------------------------------------------------------------------------------------------------------------------

    def _forecasts(self, table: ForecastTable) -> pd.DataFrame:
        """Of the newest version the first issue of every block that is not stored yet; a month of all issues would not fit into memory."""
        issues = [(_issue(file), file) for file in table.files(self.name, None, _after(self.now))]
        if not issues:
            return table.read(self.name)
        (at, version), _ = issues[-1]
        last = table.read(self.name, at, _after(at))
        last = last[last["version"] == version]
        step_ns, horizon = _grid(last)
        self.report.model, self.report.version, self.report.block_ns = str(last["model"].iloc[-1]), version, step_ns * horizon
        if self.state.version != version:
            self.state = WatchState(version)
        since, first = max(self.state.blocks, default=0) - 1, {}
        for (time, other), _ in issues:
            if other == version and (block := time.value // self.report.block_ns) >= since:
                first.setdefault(block, time)
        rows = pd.concat([table.read(self.name, time, _after(time)) for time in first.values()], ignore_index=True)
        rows = rows[rows["version"] == version].copy()
        for column in ("issued_at", "ds"):
            rows[column] = rows[column].dt.tz_localize(None)
        return rows.sort_values("issued_at", kind="stable")

    def _observed(self, own: pd.DataFrame, step_ns: int) -> pd.DataFrame:
        days = 3.0 if self.state.training else self.config.training_days
        since = own["issued_at"].min() - pd.Timedelta(days=days)
        since = min(since, self.now - pd.Timedelta((self.config.series_rules.dead_steps + 1) * step_ns, unit="ns"))
        frame = self.read(self.target, since, f"{step_ns // 10**9}s")
        return frame[frame["ds"] <= self.now]

    def _manifest(self) -> Manifest | None:
        """The champion's, as ``pipelines.forecast`` keeps it; None when there is none, or it is another version's."""
        folder = self.config.live_state / self.target
        try:
            record = json.loads((folder / "champion.json").read_text())
            return read_manifest(folder / "package") if str(record["version"]) == self.report.version else None
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return None

    def _train(self, own: pd.DataFrame, observed: pd.DataFrame, horizon: int, manifest: Manifest | None) -> None:
        """What series were like before the version's first forecast, once a version."""
        if self.state.training:
            return
        before = observed[observed["ds"] <= own["issued_at"].min()]
        known = set(manifest.layout.get("series", ())) if manifest is not None else set()
        for uid, rows in before.sort_values("ds").groupby("unique_id"):
            if len(rows) > 2 * horizon and (not known or str(uid) in known):
                self.state.training[str(uid)] = Training.of(rows["y"].to_numpy(dtype=np.float64), horizon)
        if not self.state.training:
            raise InputError(
                f"no series has more than {2 * horizon} rows before version {self.report.version}'s first forecast",
                where=f"target {self.target}",
                remedy="keep the observations of its training (training_days) in the source",
            )

    def _final(self, scored: pd.DataFrame, own: pd.DataFrame, observed: pd.DataFrame) -> pd.DataFrame:
        """Blocks whose values can no longer come: those that ended ``late_steps`` before the newest observation."""
        step_ns = self.report.block_ns // _grid(own)[1]
        newest_ns = int(observed["ds"].max().value) - self.config.late_steps * step_ns
        ends = (scored.index.to_numpy(dtype=np.int64) + 2) * self.report.block_ns  # issued within a block, a value is at most two later
        return scored[ends <= newest_ns]

    def _with_extras(self, scored: pd.DataFrame, observed: pd.DataFrame, step_ns: int) -> pd.DataFrame:
        out, block_ns = scored.copy(), self.report.block_ns
        if self.target == "power" and self.config.curves:
            loads = self.read("workload", observed["ds"].min(), f"{step_ns // 10**9}s")
            out["power"] = power_residual(observed, loads, self.config.curves, block_ns).reindex(out.index)
        if self.config.outcomes is not None:
            out = out.join(policy_outcomes(self.config.outcomes, block_ns))
        return out

    # --- judgement ----------------------------------------------------------------------------------------------------------------------

    def _judge(self, manifest: Manifest | None) -> None:
        blocks, report = self.report.blocks, self.report
        if not len(blocks):
            report.not_watched["all rules"] = "no block is whole yet"
            return
        numbers = blocks.index.to_numpy(dtype=np.int64)
        per_day = max(1, DAY_NS // report.block_ns)
        for rule in self.config.rules:
            if why := self._not_watched(rule, blocks):
                report.not_watched[rule.name] = why
                continue
            judged = judge(rule, numbers, blocks[rule.signal].to_numpy(dtype=np.float64), per_day)
            report.judged[rule.name] = judged
            if judged.waiting:
                report.not_watched[rule.name] = f"{judged.waiting} more blocks are needed to know what is normal"
            for alarm in judged.alarms:
                finding = self._finding(rule, alarm, judged, blocks)
                if finding.key not in self.state.told:
                    report.fresh.append(finding)
                elif alarm > numbers[-1] - rule.cooldown_blocks:
                    report.ongoing.append(f"{rule.name} since {_when(alarm + 1, report.block_ns)}")
        if manifest is not None:
            report.promised = {key: float(manifest.metrics[key]) for key in ("wql", "coverage80") if key in manifest.metrics}

    def _not_watched(self, rule: Rule, blocks: pd.DataFrame) -> str:
        if rule.signal in SIGNALS or (rule.signal in blocks and blocks[rule.signal].notna().any()):
            return ""
        assert rule.signal in EXTRA_SIGNALS
        if rule.signal == "power":
            if self.target != "power":
                return "only the target power has watts"
            return "no power curves: power_curves=FILE" if self.config.curves is None else "no rows of both watts and load for its curves"
        return "no outcomes of decisions: outcomes=FILE" if self.config.outcomes is None else f"no outcomes in {self.config.outcomes}"

    def _finding(self, rule: Rule, alarm: int, judged: Judged, blocks: pd.DataFrame) -> Finding:
        values = blocks.loc[:alarm, rule.signal]
        recent = values.dropna().tail(max(rule.min_blocks, 8))
        when, hours = _when(alarm + 1, self.report.block_ns), len(recent) * self.report.block_ns / 3.6e12
        against = "allowed" if rule.detector.kind == "limit" else "when it began"
        reason = (
            f"{rule.name}: {rule.signal} of {self.name} version {self.report.version} at {when}: {recent.mean():.3g} over {hours:.0f} h,"
            f" {judged.reference:.3g} {against} ({rule.detector.kind})"
        )
        evidence = {
            "severity": rule.severity,
            "signal": rule.signal,
            "detector": rule.detector.kind,
            "threshold": rule.detector.threshold,
            "recent": float(recent.mean()),
            "reference": judged.reference,
            "blocks": int(values.notna().sum()),
            "version": self.report.version,
        }
        digest = _digest([self.report.version, rule.name, [[int(b), float(v)] for b, v in values.dropna().items()]])
        trigger = Trigger(self.name, rule.name, reason, evidence, digest, when)
        return Finding(f"{rule.name}@{alarm}", rule.severity, trigger)

    def _look_at_series(self, observed: pd.DataFrame, manifest: Manifest | None) -> None:
        known = set(manifest.layout.get("series", ())) if manifest is not None else set()
        known = known or set(self.state.training)
        when = pd.Timestamp(observed["ds"].max()).tz_localize("UTC").isoformat()
        for seen in look_at_series(observed, known, self.state.training, self.config.series_rules):
            digest = _digest([self.report.version, seen.rule, sorted(seen.series)])
            evidence = {"severity": seen.severity, "series": list(seen.series), "version": self.report.version}
            trigger = Trigger(self.name, seen.rule, f"{seen.rule}: {seen.reason}", evidence, digest, when)
            finding = Finding(f"{seen.rule}@{digest[:16]}", seen.severity, trigger)
            if finding.key in self.state.told:
                self.report.ongoing.append(seen.rule)
            else:
                self.report.fresh.append(finding)


def _grid(rows: pd.DataFrame) -> tuple[int, int]:
    """Step in ns and horizon of the newest issue of a forecast frame."""
    last = rows[(rows["issued_at"] == rows["issued_at"].iloc[-1]) & (rows["unique_id"] == rows["unique_id"].iloc[-1])]
    ahead = np.sort((last["ds"] - last["issued_at"]).to_numpy().astype("timedelta64[ns]").astype(np.int64))
    return int(ahead[0]), len(ahead)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _when(block: int, block_ns: int) -> str:
    return pd.Timestamp(block * block_ns, tz="UTC").isoformat()


def _after(time: pd.Timestamp) -> pd.Timestamp:
    """A second later, in UTC: the end of a span that holds the issue of ``time``."""
    return (time if time.tzinfo else time.tz_localize("UTC")) + pd.Timedelta(seconds=1)


def _issue(file: Path) -> tuple[pd.Timestamp, str]:
    """Time and version of an issue, from the name that ``ForecastTable.path`` gave its file."""
    time, _, version = file.stem.removeprefix("issued=").partition("-v")
    return pd.Timestamp(time).tz_convert("UTC"), version


def report_json(report: WatchReport) -> Mapping[str, Any]:
    """A report as ``summary.json`` holds it."""
    rules = {
        name: {"reference": j.reference, "level": j.level, "alarms": list(j.alarms), "waiting": j.waiting, "to_alarm": _last(j.path)}
        for name, j in report.judged.items()
    }
    plain = {key: getattr(report, key) for key in ("target", "status", "model", "version", "new_blocks", "promised", "ongoing")}
    fresh = [
        {"rule": one.trigger.rule, "severity": one.severity, "reason": one.trigger.reason, "id": one.trigger.id} for one in report.fresh
    ]
    return {**plain, "fresh": fresh, "rules": rules, "not_watched": report.not_watched, "alerts": report.alerts}


def _last(path: np.ndarray) -> float | None:
    known = path[np.isfinite(path)]
    return float(known[-1]) if len(known) else None

"""``python -m pipelines.watch``: does the champion still keep what it promised; if not, why, and what follows.

Compares the table ``forecasts`` with what came, by rules of ``conf/watch.yaml``. See docs/drift.md.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from pipelines.cli import hydra_command
from pipelines.forecast import source_of
from pipelines.triggers import Offered, TriggerLog
from pipelines.watching.plot import watch_figure
from pipelines.watching.settings import WatchConfig, watch_config
from pipelines.watching.target import Finding, TargetWatch, WatchReport, report_json
from pipelines.workspace import write_json
from registry.locks import exclusive
from registry.mlflow_client import open_client
from registry.promotion import PromotionError, champion_version, rollback
from registry.tracking import open_tracking
from telemetry.errors import InputError

SUMMARY = "summary.json"
ACTS_ON = ("retrain", "rollback")
Run = Callable[[list[str]], int]


def run_retraining(command: list[str]) -> int:
    """Run a command to its end; its exit code."""
    return subprocess.run(command, check=False).returncode


def run_once(config: WatchConfig, run: Run = run_retraining) -> tuple[list[WatchReport], list[str]]:
    """One shot over all targets, alone on its state folder.

    Args:
        run: what starts ``pipelines.retrain``.

    Returns:
        A report by target, and lines about what was done.

    Raises:
        InputError: another shot holds the state folder, or no target has any forecast.
    """
    now = config.now if config.now is not None else pd.Timestamp.now("UTC").tz_localize(None)
    log = TriggerLog(config.triggers, 3600.0 * config.cooldown_h)
    reports: list[WatchReport] = []
    done: list[str] = []
    with exclusive(config.state / ".lock", config.lock_timeout_s):
        for target in config.targets:
            watch = _looked(target, config, now)
            reports.append(watch.report)
            if len(watch.report.blocks):
                _draw(watch.report, config)
            told, lines = _act(watch.report.fresh, watch.report, config, log)
            if watch.report.fresh and config.track:
                _track(watch.report, config)
            if told:
                watch.told(told)
            done += lines
        if all(report.status == "no forecasts" for report in reports):
            raise InputError(
                f"no forecasts of {', '.join(config.targets)}",
                where=str(config.forecasts),
                remedy="run `python -m pipelines.forecast` every few minutes, or name its table's root with forecasts=",
            )
        write_json(config.state / SUMMARY, {"now": now.isoformat(), "targets": [report_json(report) for report in reports], "done": done})
    if config.retrain:
        done += _retrain(log, run)
    return reports, done


def _looked(target: str, config: WatchConfig, now: pd.Timestamp) -> TargetWatch:
    watch = TargetWatch(target, config, _reader(config), now)
    try:
        watch.look()
    except (InputError, OSError) as error:  # the other targets are watched
        watch.report.status = "failed"
        watch.report.alerts.append(str(error))
    return watch


def _reader(config: WatchConfig) -> Any:
    """Observations as ``pipelines.forecast`` reads them."""
    asked = SimpleNamespace(targets=config.targets, series=config.series, lake_root=config.lake_root, max_fill_steps=config.max_fill_steps)
    return source_of(asked)  # type: ignore[arg-type]


def _act(findings: list[Finding], report: WatchReport, config: WatchConfig, log: TriggerLog) -> tuple[list[Finding], list[str]]:
    """Offer what asks for retraining, roll back where that is asked for; which findings need not be told again, and lines."""
    told: list[Finding] = []
    lines: list[str] = []
    for one in findings:
        if one.severity not in ACTS_ON:
            told.append(one)
            continue
        waiting = [other for other in log.open() if other.model == one.trigger.model]
        offered = log.offer(one.trigger) if not waiting else Offered(False, f"trigger {waiting[0].id} ({waiting[0].rule}) is still open")
        lines.append(f"{one.trigger.rule}: {'retraining asked for' if offered.accepted else 'not asked for again'}: {offered.why}")
        # What looks at the series has no detector that would find it again after the cool-down.
        if offered.accepted or waiting or "cool-down" not in offered.why or one.trigger.rule in report.judged:
            told.append(one)
        if one.severity == "rollback":
            lines.append(_roll_back(one, report, config))
    return told, lines


def _roll_back(one: Finding, report: WatchReport, config: WatchConfig) -> str:
    name = one.trigger.model
    if not config.rollback:
        return f"{one.trigger.rule}: rolling back is left to you (rollback=true would): python -m pipelines.promote rollback"
    client = open_client(config.tracking_uri)
    current = champion_version(client, name)
    if str(current) != report.version:
        return f"{one.trigger.rule}: version {report.version} no longer serves ({current} does): nothing to roll back"
    try:
        rollback(client, name, reason=one.trigger.reason, state_folder=config.promotions)
    except PromotionError as error:
        return f"{one.trigger.rule}: cannot roll back: {error}"
    return f"{one.trigger.rule}: rolled back from version {report.version} to {champion_version(client, name)}"


def _retrain(log: TriggerLog, run: Run) -> list[str]:
    """Start a retraining for every open trigger, also those that an earlier shot was killed before."""
    lines = []
    for trigger in log.open():
        code = run([sys.executable, "-m", "pipelines.retrain", f"trigger={trigger.id}"])
        lines.append(f"{trigger.rule}: python -m pipelines.retrain trigger={trigger.id} ended with {code}")
    return lines


def _draw(report: WatchReport, config: WatchConfig) -> Path:
    path = config.out / f"{report.target}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{report.target}.new.png")
    watch_figure(report, config.rules).savefig(fresh, dpi=110)
    fresh.replace(path)
    return path


def _track(report: WatchReport, config: WatchConfig) -> None:
    tracking = open_tracking(config.tracking_uri)
    tags = {
        "stage": "watch",
        "trigger": ", ".join(one.trigger.id for one in report.fresh),
        "drift": ", ".join(one.key for one in report.fresh),
    }
    with tracking.run(f"watch {report.target}", tags=tags) as run:
        run.log_figure(watch_figure(report, config.rules), f"watch_{report.target}")
        run.log_text("\n".join(one.trigger.reason for one in report.fresh) + "\n", "reasons.txt")
        run.log_metrics({f"{name}.level": judged.level for name, judged in report.judged.items()})


def summary_lines(report: WatchReport) -> list[str]:
    """What is printed for one target."""
    lines = [f"{report.target}: {report.status}"]
    if report.version:
        lines = [
            f"{report.target}: {report.model} version {report.version}: {len(report.blocks):,} blocks, {report.new_blocks:,} of them new;"
            f" {len(report.fresh)} new findings"
        ]
    for name, judged in report.judged.items():
        if not judged.waiting:
            at = report_json(report)["rules"][name]["to_alarm"]
            far = "silent after an alarm" if at is None else f"{at:.0%} of the way to an alarm"
            lines.append(f"  {name}: {judged.level:.3g} over the last day, {judged.reference:.3g} when it began, or allowed; {far}")
    by_reason: dict[str, list[str]] = {}
    for name, why in report.not_watched.items():
        by_reason.setdefault(why, []).append(name)
    lines += [f"  not watched: {', '.join(names)}: {why}" for why, names in by_reason.items()]
    lines += [f"  {one.severity}: {one.trigger.reason}" for one in report.fresh]
    lines += [f"  told before: {one}" for one in report.ongoing]
    return lines + [f"  alert: {alert}" for alert in report.alerts]


@hydra_command("watch")
def main(cfg: DictConfig) -> int:
    """Look once, or every ``every_s`` seconds."""
    raw: Any = OmegaConf.to_container(cfg, resolve=True)
    config = watch_config(raw)
    begun, shots, worst = time.monotonic(), 0, 0
    while True:
        try:
            reports, done = run_once(config)
            for report in reports:
                print("\n".join(summary_lines(report)), flush=True)
            for line in done:
                print(line, flush=True)
            worst = max(worst, 1 if any(report.fresh or report.status == "failed" for report in reports) else 0)
        except InputError as error:
            if config.every_s is None:
                raise
            print(f"error: {error}", flush=True)
            worst = 1
        shots += 1
        if config.every_s is None or shots == config.runs:
            return worst
        time.sleep(max(0.0, begun + shots * config.every_s - time.monotonic()))


if __name__ == "__main__":
    main()

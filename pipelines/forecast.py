"""``python -m pipelines.forecast``: the promoted forecasters on the newest observations, every few minutes.

Appends to the table ``forecasts`` of the lake (``telemetry/forecasts.py``), prints a short summary and writes it as ``summary.json`` into
the state folder. What happens to gaps, late rows, new and vanished series: docs/forecasts_live.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from pipelines.cli import hydra_command
from pipelines.live.observations import from_file, from_lake
from pipelines.live.target import LiveSettings, Source, TargetReport, run_target
from pipelines.workspace import write_json
from registry.locks import exclusive
from telemetry.errors import InputError
from telemetry.series import FAMILIES
from telemetry.times import utc_times

SUMMARY = "summary.json"
BAND_NAMES = ("near", "middle", "far")
MOST_NAMED = 3


@dataclass(frozen=True)
class ForecastConfig:
    """The command's configuration, checked."""

    targets: tuple[str, ...]
    settings: LiveSettings
    series: dict[str, str | None]
    lake_root: str
    max_fill_steps: int
    now: pd.Timestamp | None
    every_s: float | None
    runs: int | None
    lock_timeout_s: float


def forecast_config(cfg: DictConfig) -> ForecastConfig:
    """Check and convert.

    Raises:
        InputError: a value outside its range.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=True)
    targets = [raw["targets"]] if isinstance(raw["targets"], str) else list(raw["targets"] or ())
    if not targets or set(targets) - set(FAMILIES):
        raise InputError(f"{targets}", where="targets", allowed=", ".join(FAMILIES))
    series = raw["series"] if isinstance(raw["series"], Mapping) else dict.fromkeys(FAMILIES, raw["series"])
    if set(series) - set(FAMILIES):
        raise InputError(f"{', '.join(series)}", where="series", allowed=f"a file, or one by target: {', '.join(FAMILIES)}")
    settings = LiveSettings(
        tracking_uri=str(raw["registry"]["tracking_uri"]),
        state=Path(str(raw["state"])),
        out=Path(str(raw["out"])),
        **{name: _number(raw, name, 0, int) for name in ("lookback_steps", "stale_steps", "retain_days")},
    )
    return ForecastConfig(
        targets=tuple(dict.fromkeys(targets)),
        settings=settings,
        series={target: None if file is None else str(file) for target, file in series.items()},
        lake_root=str(raw["lake"]["root"]),
        max_fill_steps=_number(raw, "max_fill_steps", 0, int),
        now=_time(raw["now"]),
        every_s=None if raw["every_s"] is None else _number(raw, "every_s", 1, float),
        runs=None if raw["runs"] is None else _number(raw, "runs", 1, int),
        lock_timeout_s=_number(raw, "lock_timeout_s", 0, float),
    )


def _number(raw: Mapping[str, Any], key: str, low: float, kind: type) -> Any:
    value = raw[key]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)) or not value >= low:
        raise InputError(f"{value!r}", where=key, allowed=f"a {'whole ' if kind is int else ''}number from {low}")
    return kind(value)


def _time(value: Any) -> pd.Timestamp | None:
    if value is None:
        return None
    times, wrong = utc_times([str(value)])
    if wrong.any() or times.isna().any():
        raise InputError(f"{value!r}", where="now", allowed="a time such as 2026-01-05T12:00 (UTC)")
    return times.iloc[0].tz_localize(None)


def source_of(config: ForecastConfig) -> Source:
    """Where observations are read: a series file, or the lake."""

    def read(target: str, since: pd.Timestamp, freq: str) -> pd.DataFrame:
        file = config.series.get(target)
        if file is None:
            return from_lake(config.lake_root, target, freq, since, config.max_fill_steps)
        shared = sum(config.series.get(other) == file for other in config.targets) > 1
        return _of_target(from_file(Path(file), since), target, "workload" if shared else target)

    return read


def _of_target(frame: pd.DataFrame, target: str, unnamed: str) -> pd.DataFrame:
    """Rows whose ``unique_id`` begins with a name of ``target``; ids that begin with no target's name are those of ``unnamed``."""
    owner = {name: other for other, names in FAMILIES.items() for name in names}
    codes, ids = pd.factorize(frame["unique_id"].to_numpy())
    own = np.array([owner.get(str(uid).partition("/")[0], unnamed) == target for uid in ids], dtype=bool)
    return frame[own[codes]]


def run_once(config: ForecastConfig) -> list[TargetReport]:
    """One run over all targets, alone on its state folder.

    Raises:
        InputError: another run holds the state folder, or no target has a champion.
    """
    now = config.now if config.now is not None else pd.Timestamp.now("UTC").tz_localize(None)
    with exclusive(config.settings.state / ".lock", config.lock_timeout_s):
        reports = [run_target(target, config.settings, source_of(config), now, time.perf_counter) for target in config.targets]
        if all(report.status == "not promoted" for report in reports):
            raise InputError(
                f"nothing was promoted yet for {', '.join(config.targets)}",
                where=config.settings.tracking_uri,
                remedy="run `python -m pipelines.train` first, or name another registry with registry.tracking_uri=",
            )
        write_json(config.settings.state / SUMMARY, {"now": now.isoformat(), "targets": [asdict(report) for report in reports]})
    return reports


def summary_lines(report: TargetReport) -> list[str]:
    """What is printed for one target."""
    if report.status == "not promoted":
        return [f"{report.target}: nothing was promoted yet"]
    lines = []
    if report.issued_at is not None:
        stale = f"newest observation {report.issued_at} ({report.staleness_s / 60:,.0f} min old)"
        done = f"{report.series:,} series, {report.rows:,} rows" if report.status == "written" else report.status
        lines.append(f"{report.target}: {report.model} version {report.version}: {done}; {stale}")
        told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.observations.items() if count or name == "new")
        lines.append(f"  observations: {told}; {report.matured:,} forecast values came true")
    else:
        lines.append(f"{report.target}: {report.status}")
    covered = [
        f"{name} {row['coverage80']:.1%} (width x{row['width80_ratio']:.2f})"
        for name, row in zip(BAND_NAMES, report.coverage, strict=False)
        if row["coverage80"] is not None and row["width80_ratio"] is not None
    ]
    if covered:
        lines.append(f"  80 % intervals cover: {', '.join(covered)}")
    for what, names in (("new since training", report.new_series), ("behind", report.behind), ("vanished", report.vanished)):
        if names:
            lines.append(f"  {what}: {_named(names)}")
    lines += _fallback_lines(report.fallbacks)
    lines += [f"  alert: {alert}" for alert in report.alerts]
    if report.file:
        took = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in report.seconds.items())
        lines.append(f"  wrote {report.file}; seconds: {took}")
    return lines


def _fallback_lines(fallbacks: Mapping[str, str]) -> list[str]:
    """One line a reason, the most frequent first; rare ones of many together."""
    by_reason: dict[str, list[str]] = {}
    for uid, why in fallbacks.items():
        by_reason.setdefault(why, []).append(uid)
    most = sorted(by_reason.items(), key=lambda group: -len(group[1]))
    lines = [f"  on empirical persistence: {_named(names)}: {why}" for why, names in most[:MOST_NAMED]]
    if rest := [uid for _, names in most[MOST_NAMED:] for uid in names]:
        lines.append(f"  on empirical persistence: {_named(rest)}: for {len(most) - MOST_NAMED:,} other reasons, see {SUMMARY}")
    return lines


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{len(names):,} series ({', '.join(names[:MOST_NAMED])}{rest})"


@hydra_command("forecast")
def main(cfg: DictConfig) -> int:
    """Run once, or every ``every_s`` seconds."""
    config = forecast_config(cfg)
    begun, done, worst = time.monotonic(), 0, 0
    while True:
        try:
            reports = run_once(config)
            for report in reports:
                print("\n".join(summary_lines(report)), flush=True)
            worst = max(worst, 0 if all(report.good for report in reports) else 1)
        except InputError as error:
            if config.every_s is None:
                raise
            print(f"error: {error}", flush=True)
            worst = 1
        done += 1
        if config.every_s is None or done == config.runs:
            return worst
        time.sleep(max(0.0, begun + done * config.every_s - time.monotonic()))


if __name__ == "__main__":
    main()

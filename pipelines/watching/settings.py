"""The configuration of ``python -m pipelines.watch``, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from models.drift.blocks import SIGNALS
from models.drift.detectors import Detector
from models.drift.rules import SEVERITIES, Rule
from models.power import PowerCurve
from pipelines.cli import build
from pipelines.workspace import read_json
from registry.access import Access
from telemetry.errors import InputError
from telemetry.series import FAMILIES
from telemetry.times import utc_times

EXTRA_SIGNALS = ("power", "policy_cost", "policy_sla")


@dataclass(frozen=True)
class SeriesRules:
    """What is found by looking at the set of series.

    Attributes:
        new_share: part of all load that series have which training did not know, from which on it is a new tenant.
        new_severity, dead_severity: of the findings.
        dead_steps: a series that moved in training and has had one and the same value for so many steps is dead.
    """

    new_share: float = 0.1
    new_severity: str = "retrain"
    dead_steps: int = 288
    dead_severity: str = "warn"

    def __post_init__(self) -> None:
        if not 0 < self.new_share <= 1 or self.dead_steps < 2:
            raise InputError(f"{self.new_share}, {self.dead_steps}", where="series_rules", allowed="new_share in (0, 1], dead_steps from 2")
        if {self.new_severity, self.dead_severity} - set(SEVERITIES):
            raise InputError(f"{self.new_severity}, {self.dead_severity}", where="series_rules", allowed=", ".join(SEVERITIES))


@dataclass(frozen=True)
class WatchConfig:
    """Everything a shot needs."""

    targets: tuple[str, ...]
    rules: tuple[Rule, ...]
    series_rules: SeriesRules
    series: dict[str, str | None]
    lake_root: str
    forecasts: Path
    live_state: Path
    state: Path
    out: Path
    triggers: Path
    cooldown_h: float
    tracking_uri: str
    promotions: Path | None
    curves: dict[str, PowerCurve] | None
    outcomes: Path | None
    training_days: float
    late_steps: int
    max_fill_steps: int
    track: bool
    retrain: bool
    rollback: bool
    now: pd.Timestamp | None
    every_s: float | None
    runs: int | None
    lock_timeout_s: float


def watch_config(raw: Mapping[str, Any]) -> WatchConfig:
    """Check and convert a plain configuration.

    Raises:
        InputError: a value outside its range, an unknown rule, detector or signal, or a file that is not there.
    """
    targets = [raw["targets"]] if isinstance(raw["targets"], str) else list(raw["targets"] or ())
    if not targets or set(targets) - set(FAMILIES):
        raise InputError(f"{targets}", where="targets", allowed=", ".join(FAMILIES))
    series = raw["series"] if isinstance(raw["series"], Mapping) else dict.fromkeys(FAMILIES, raw["series"])
    if set(series) - set(FAMILIES):
        raise InputError(f"{', '.join(series)}", where="series", allowed=f"a file, or one by target: {', '.join(FAMILIES)}")
    return WatchConfig(
        targets=tuple(dict.fromkeys(targets)),
        rules=_rules(raw["rules"]),
        series_rules=build(SeriesRules, raw["series_rules"], "series_rules"),
        series={target: None if file is None else str(file) for target, file in series.items()},
        lake_root=str(raw["lake"]["root"]),
        curves=_curves(raw["power_curves"]),
        outcomes=None if raw["outcomes"] is None else _there(raw["outcomes"], "outcomes"),
        **{name: Path(str(raw[name])) for name in ("forecasts", "live_state", "state", "out", "triggers")},
        cooldown_h=_number(raw, "cooldown_h", 0, float),
        tracking_uri=str(raw["registry"]["tracking_uri"]),
        promotions=build(Access, raw["registry"].get("access") or {}, "registry.access").state,
        training_days=_number(raw, "training_days", 1, float),
        **{name: _number(raw, name, 0, int) for name in ("late_steps", "max_fill_steps")},
        **{name: _flag(raw, name) for name in ("track", "retrain", "rollback")},
        now=_time(raw["now"]),
        every_s=None if raw["every_s"] is None else _number(raw, "every_s", 1, float),
        runs=None if raw["runs"] is None else _number(raw, "runs", 1, int),
        lock_timeout_s=_number(raw, "lock_timeout_s", 0, float),
    )


def _rules(raw: Any) -> tuple[Rule, ...]:
    if not isinstance(raw, Mapping) or not raw:
        raise InputError(f"{raw!r}", where="rules", allowed="a mapping of names to rules")
    named = {one.name for one in fields(Rule)} - {"name"}
    rules = []
    for name, given in raw.items():
        if given is None:  # switched off on the command line: rules.NAME=null
            continue
        if not isinstance(given, Mapping) or set(given) - named:
            raise InputError(f"{given!r}", where=f"rules.{name}", allowed=", ".join(sorted(named)))
        if given.get("signal") not in (*SIGNALS, *EXTRA_SIGNALS):
            raise InputError(f"{given.get('signal')!r}", where=f"rules.{name}.signal", allowed=", ".join((*SIGNALS, *EXTRA_SIGNALS)))
        detector = build(Detector, given.get("detector"), f"rules.{name}.detector")
        rules.append(_rule(str(name), given, detector))
    return tuple(rules)


def _rule(name: str, given: Mapping[str, Any], detector: Detector) -> Rule:
    numbers = {key: given[key] for key in ("reference_blocks", "min_blocks", "cooldown_blocks") if key in given}
    for key in numbers:
        _number(numbers, key, 0, int)
    return Rule(name, str(given["signal"]), detector, str(given.get("severity", "retrain")), **numbers)


def _curves(file: Any) -> dict[str, PowerCurve] | None:
    if file is None:
        return None
    path = _there(file, "power_curves")
    try:
        stored = read_json(path)
        return {str(uid): build(PowerCurve, one, f"{path}: {uid}") for uid, one in stored.get("curves", stored).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"cannot be read: {error}", where=str(path), allowed='{"curves": {power series: {load_id, idle_w, ...}}}'
        ) from error


def _there(file: Any, where: str) -> Path:
    path = Path(str(file))
    if not path.is_file():
        raise InputError("no such file", where=f"{where}={path}")
    return path


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    if not isinstance(raw[key], bool):
        raise InputError(f"{raw[key]!r}", where=key, allowed="true, false")
    return raw[key]


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

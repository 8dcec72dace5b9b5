"""Gates of a forecaster: skill, coverage, and what is decided by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from registry.gates.base import MissingEvidenceError, Verdict, entry_of, number_of, require


@dataclass(frozen=True)
class SkillOverNaive:
    """The interval of the skill over the better naive forecaster lies above ``min_skill``.

    Evidence ``skill_over_naive``: ``naive`` (name), ``skill, low, high, windows``.
    """

    name: ClassVar[str] = "skill_over_naive"
    min_skill: float = 0.0
    min_windows: int = 20

    @property
    def threshold(self) -> str:
        return f"lower bound of the 95 % interval > {self.min_skill:g} over at least {self.min_windows} windows"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, self.name, "naive", "skill", "low", "high", "windows")
        skill, low, high, windows = (number_of(entry, self.name, key) for key in ("skill", "low", "high", "windows"))
        reason = f"skill {skill:+.3f} [{low:+.3f}, {high:+.3f}] over {entry['naive']}, {windows:.0f} windows"
        return Verdict(self.name, low > self.min_skill and windows >= self.min_windows, reason, self.threshold, dict(entry))


@dataclass(frozen=True)
class Coverage:
    """The nominal interval covers between ``low`` and ``high`` of what came, and in each third of the horizon between the wider
    ``band_low`` and ``band_high``: an interval that is too narrow far out and too wide near by may be right on average.

    Evidence ``coverage``: ``observed`` and ``bands`` (observed share by ``near``, ``middle``, ``far``; a horizon of fewer than three steps
    leaves some of them out).
    """

    name: ClassVar[str] = "coverage"
    nominal: float = 0.8
    low: float = 0.70
    high: float = 0.92
    band_low: float = 0.65
    band_high: float = 0.95

    def __post_init__(self) -> None:
        for key in ("low", "band_low"):
            high = getattr(self, key.replace("low", "high"))
            require(
                0 <= getattr(self, key) < self.nominal < high <= 1, getattr(self, key), f"gates.{self.name}.{key}", "low < nominal < high"
            )

    @property
    def threshold(self) -> str:
        return (
            f"{self.nominal:.0%} interval covers {self.low:.0%} to {self.high:.0%}, each band {self.band_low:.0%} to {self.band_high:.0%}"
        )

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, self.name, "observed", "bands")
        observed, told = number_of(entry, self.name, "observed"), entry_of(entry, "bands")
        bands = {name: number_of(told, f"{self.name}.bands", name) for name, share in told.items() if share is not None}
        if not bands:
            raise MissingEvidenceError(f"'{self.name}.bands' has no band")
        passed = self.low <= observed <= self.high and all(self.band_low <= share <= self.band_high for share in bands.values())
        by_band = ", ".join(f"{name} {share:.1%}" for name, share in bands.items())
        reason = f"{self.nominal:.0%} interval covered {observed:.1%} ({by_band})"
        return Verdict(self.name, passed, reason, self.threshold, {"observed": observed, "bands": bands, "steps": entry.get("steps")})


@dataclass(frozen=True)
class Decision:
    """What is decided by the forecast costs no more than what the naive's would decide.

    The pinball loss at the critical fractile is at most the naive's, and the interval of the ratio ends at most at 1 + ``tolerance``. Where
    the decision was ``simulated``: the relative change of the simulator's kWh ends at most at ``kwh_tolerance``, and of all jobs at most
    ``sla_tolerance`` more miss an objective.

    Evidence ``decision``: ``naive`` (name), ``fractile, ratio, low, high, windows``; when simulated also ``kwh, kwh_low, kwh_high``
    (relative to the naive's), ``sla_violation_rate, naive_sla_violation_rate, simulated_windows``; else ``not_simulated`` (why).
    """

    name: ClassVar[str] = "decision"
    simulated: bool = True
    tolerance: float = 0.05
    kwh_tolerance: float = 0.005
    sla_tolerance: float = 0.001
    min_windows: int = 20

    @property
    def threshold(self) -> str:
        pinball = f"pinball ratio at most 1, upper end at most {1 + self.tolerance:g}, over at least {self.min_windows} windows"
        if not self.simulated:
            return pinball
        return f"{pinball}; upper end of the change of kWh at most {self.kwh_tolerance:+.1%}, SLA misses at most {self.sla_tolerance:+.1%}"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        names = ("fractile", "ratio", "low", "high", "windows")
        entry = entry_of(evidence, self.name, "naive", *names)
        fractile, ratio, low, high, windows = (number_of(entry, self.name, key) for key in names)
        passed = ratio <= 1.0 and high <= 1.0 + self.tolerance and windows >= self.min_windows
        reason = f"pinball at {fractile:.3f} is {ratio:.3f} [{low:.3f}, {high:.3f}] of {entry['naive']}'s, {windows:.0f} windows"
        if self.simulated:
            sound, told = self._simulation(entry)
            passed, reason = passed and sound, f"{reason}; {told}"
        else:
            reason = f"{reason}; not simulated: {entry_of(evidence, self.name, 'not_simulated')['not_simulated']}"
        return Verdict(self.name, passed, reason, self.threshold, dict(entry))

    def _simulation(self, entry: Mapping[str, Any]) -> tuple[bool, str]:
        if "not_simulated" in entry:
            return False, f"not simulated, which it has to be: {entry['not_simulated']}"
        names = ("kwh", "kwh_low", "kwh_high", "sla_violation_rate", "naive_sla_violation_rate", "simulated_windows")
        entry_of({self.name: entry}, self.name, *names)
        kwh, low, high, sla, naive_sla, windows = (number_of(entry, self.name, key) for key in names)
        passed = high <= self.kwh_tolerance and sla - naive_sla <= self.sla_tolerance and windows >= self.min_windows
        return (
            passed,
            f"kWh {kwh:+.2%} [{low:+.2%}, {high:+.2%}], SLA misses {sla:.2%} against {naive_sla:.2%}, {windows:.0f} simulated windows",
        )

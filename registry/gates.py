"""Gates: what must be true before something is promoted. Missing evidence is a refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from registry.digest import differences
from registry.manifest import package_digests
from registry.scan import scan_folder


@dataclass(frozen=True)
class Verdict:
    """One gate's word. ``reason`` is one sentence with the numbers; ``threshold`` says what would have passed."""

    gate: str
    passed: bool
    reason: str
    threshold: str
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """``passed: reason`` or ``refused: reason``, as shown in a version tag."""
        return f"{'passed' if self.passed else 'refused'}: {self.reason}"


class MissingEvidenceError(LookupError):
    """A gate did not get what it needs."""


class Gate(Protocol):
    """A gate reads what it needs from the evidence and gives a verdict; it raises :class:`MissingEvidenceError` without it."""

    name: ClassVar[str]

    @property
    def threshold(self) -> str: ...

    def judge(self, evidence: Mapping[str, Any]) -> Verdict: ...


def run_gates(gates: Sequence[Gate], evidence: Mapping[str, Any]) -> list[Verdict]:
    """Every gate's verdict, in order; a gate that cannot judge refuses."""
    verdicts = []
    for gate in gates:
        try:
            verdicts.append(gate.judge(evidence))
        except MissingEvidenceError as missing:
            verdicts.append(Verdict(gate.name, False, f"no evidence: {missing}", gate.threshold))
    return verdicts


def all_passed(verdicts: Sequence[Verdict]) -> bool:
    """True when there is at least one verdict and none refuses."""
    return bool(verdicts) and all(verdict.passed for verdict in verdicts)


@dataclass(frozen=True)
class Interval:
    """A mean with its ``level`` interval over ``n`` paired windows."""

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95


def skill_interval(
    losses: np.ndarray, baseline_losses: np.ndarray, *, block: int = 4, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Skill 1 - sum(losses) / sum(baseline) over the same windows ``[N]`` with a circular block-bootstrap interval.

    Neighbouring windows share weather, so blocks of ``block`` windows are drawn (Politis and Romano 1992).

    Raises:
        ValueError: different lengths, fewer than two windows, or a baseline without loss.
    """
    model, naive = np.asarray(losses, dtype=float), np.asarray(baseline_losses, dtype=float)
    if model.shape != naive.shape or model.ndim != 1 or len(model) < 2:
        raise ValueError(f"losses {model.shape} and baseline {naive.shape}: two vectors of one length, at least 2, are needed")
    if not (np.isfinite(model).all() and np.isfinite(naive).all() and naive.sum() > 0):
        raise ValueError("losses must be finite and the baseline's sum positive")
    n, width = len(model), max(1, min(block, len(model) // 2))
    starts = np.random.default_rng(seed).integers(0, n, size=(samples, math.ceil(n / width)))  # [S, blocks]
    rows = ((starts[..., None] + np.arange(width)) % n).reshape(samples, -1)[:, :n]  # [S, N]
    base = naive[rows].sum(1)
    skills = 1.0 - model[rows].sum(1)[base > 0] / base[base > 0]
    tail = (1 - level) / 2
    low, high = np.quantile(skills, [tail, 1 - tail])
    return Interval(float(1 - model.sum() / naive.sum()), float(low), float(high), n, level)


def _entry(evidence: Mapping[str, Any], key: str, *fields: str) -> Mapping[str, Any]:
    value = evidence.get(key)
    if not isinstance(value, Mapping):
        raise MissingEvidenceError(f"'{key}' was not given")
    for name in fields:
        if name not in value:
            raise MissingEvidenceError(f"'{key}.{name}' was not given")
    return value


def _number(entry: Mapping[str, Any], key: str, name: str) -> float:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise MissingEvidenceError(f"'{key}.{name}' is {value!r}, not a finite number")
    return float(value)


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
        entry = _entry(evidence, self.name, "naive", "skill", "low", "high", "windows")
        skill, low, high, windows = (_number(entry, self.name, key) for key in ("skill", "low", "high", "windows"))
        reason = f"skill {skill:+.3f} [{low:+.3f}, {high:+.3f}] over {entry['naive']}, {windows:.0f} windows"
        return Verdict(self.name, low > self.min_skill and windows >= self.min_windows, reason, self.threshold, dict(entry))


@dataclass(frozen=True)
class Coverage:
    """The nominal interval covers between ``low`` and ``high`` of what came. Evidence ``coverage``: ``observed``."""

    name: ClassVar[str] = "coverage"
    nominal: float = 0.8
    low: float = 0.70
    high: float = 0.92

    @property
    def threshold(self) -> str:
        return f"{self.nominal:.0%} interval covers {self.low:.0%} to {self.high:.0%}"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        observed = _number(_entry(evidence, self.name, "observed"), self.name, "observed")
        passed = self.low <= observed <= self.high
        reason = f"{self.nominal:.0%} interval covered {observed:.1%}"
        return Verdict(self.name, passed, reason, self.threshold, {"observed": observed})


@dataclass(frozen=True)
class BeatsChampion:
    """On the very same windows, the lower bound of the gain over the current champion is above ``min_gain``.

    Evidence ``champion``: ``version`` (None when there is no champion yet), and otherwise ``gain, low, high`` (relative; positive = better)
    and ``windows_sha256, champion_windows_sha256``, the digests of the windows that each was scored on.
    """

    name: ClassVar[str] = "beats_champion"
    min_gain: float = 0.0

    @property
    def threshold(self) -> str:
        return f"lower bound of the gain > {self.min_gain:g} on the same windows, or no champion yet"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = _entry(evidence, "champion", "version")
        if entry["version"] is None:
            return Verdict(self.name, True, "there is no champion yet", self.threshold, {"version": None})
        entry = _entry(evidence, "champion", "version", "gain", "low", "high", "windows_sha256", "champion_windows_sha256")
        if entry["windows_sha256"] != entry["champion_windows_sha256"]:
            return Verdict(self.name, False, "champion and challenger were scored on different windows", self.threshold, dict(entry))
        gain, low, high = (_number(entry, "champion", key) for key in ("gain", "low", "high"))
        reason = f"gain {gain:+.3f} [{low:+.3f}, {high:+.3f}] over version {entry['version']}"
        return Verdict(self.name, low > self.min_gain, reason, self.threshold, dict(entry))


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
        entry = _entry(evidence, self.name, "naive", *names)
        fractile, ratio, low, high, windows = (_number(entry, self.name, key) for key in names)
        passed = ratio <= 1.0 and high <= 1.0 + self.tolerance and windows >= self.min_windows
        reason = f"pinball at {fractile:.3f} is {ratio:.3f} [{low:.3f}, {high:.3f}] of {entry['naive']}'s, {windows:.0f} windows"
        if self.simulated:
            sound, told = self._simulation(entry)
            passed, reason = passed and sound, f"{reason}; {told}"
        else:
            reason = f"{reason}; not simulated: {_entry(evidence, self.name, 'not_simulated')['not_simulated']}"
        return Verdict(self.name, passed, reason, self.threshold, dict(entry))

    def _simulation(self, entry: Mapping[str, Any]) -> tuple[bool, str]:
        if "not_simulated" in entry:
            return False, f"not simulated, which it has to be: {entry['not_simulated']}"
        names = ("kwh", "kwh_low", "kwh_high", "sla_violation_rate", "naive_sla_violation_rate", "simulated_windows")
        _entry({self.name: entry}, self.name, *names)
        kwh, low, high, sla, naive_sla, windows = (_number(entry, self.name, key) for key in names)
        passed = high <= self.kwh_tolerance and sla - naive_sla <= self.sla_tolerance and windows >= self.min_windows
        return (
            passed,
            f"kWh {kwh:+.2%} [{low:+.2%}, {high:+.2%}], SLA misses {sla:.2%} against {naive_sla:.2%}, {windows:.0f} simulated windows",
        )


@dataclass(frozen=True)
class AgentOverJudge:
    """The agent beats the best judge on the objective, clear of zero, at no more SLA violations.

    Evidence ``best_judge``: ``judge`` (name), ``gain, low, high`` (relative objective, positive = better), ``sla_violation_rate,
    judge_sla_violation_rate, windows``.
    """

    name: ClassVar[str] = "agent_over_judge"
    min_gain: float = 0.0
    min_windows: int = 20

    @property
    def threshold(self) -> str:
        return f"lower bound of the gain > {self.min_gain:g}, no more SLA violations, at least {self.min_windows} windows"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        key, names = "best_judge", ("gain", "low", "high", "sla_violation_rate", "judge_sla_violation_rate", "windows")
        entry = _entry(evidence, key, "judge", *names)
        gain, low, high, sla, judge_sla, windows = (_number(entry, key, name) for name in names)
        passed = low > self.min_gain and sla <= judge_sla and windows >= self.min_windows
        reason = (
            f"gain {gain:+.3f} [{low:+.3f}, {high:+.3f}] over {entry['judge']}, "
            f"SLA violations {sla:.2%} against {judge_sla:.2%}, {windows:.0f} windows"
        )
        return Verdict(self.name, passed, reason, self.threshold, dict(entry))


@dataclass(frozen=True)
class StandIn:
    """For a naive forecaster or a judge: it serves because what was learned did not pass.

    Evidence ``stand_in``: ``learned`` (name of what was refused, or None when nothing was trained) and ``refusals`` (its reasons).
    """

    name: ClassVar[str] = "stand_in"

    @property
    def threshold(self) -> str:
        return "what was learned was refused, or nothing was learned"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = _entry(evidence, self.name, "learned", "refusals")
        if entry["learned"] is None:
            return Verdict(self.name, True, "nothing was learned", self.threshold, dict(entry))
        refusals = list(entry["refusals"])
        if not refusals:
            return Verdict(self.name, False, f"{entry['learned']} passed its gates and should serve", self.threshold, dict(entry))
        return Verdict(
            self.name, True, f"serves because {entry['learned']} was refused ({'; '.join(refusals)})", self.threshold, dict(entry)
        )


@dataclass(frozen=True)
class NoPickle:
    """Nothing in the package runs code when read. Evidence ``package``: a ``packaging.Draft``."""

    name: ClassVar[str] = "no_pickle"

    @property
    def threshold(self) -> str:
        return "no pickle, archive, link or unknown file kind"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        draft = _draft(evidence)
        findings = scan_folder(draft.folder)
        reason = "; ".join(findings[:5]) if findings else f"{len(draft.files)} files of known, non-executable kinds"
        return Verdict(self.name, not findings, reason, self.threshold, {"findings": findings})


@dataclass(frozen=True)
class Digest:
    """The package on disk is what was drafted, and has weights. Evidence ``package``: a ``packaging.Draft``."""

    name: ClassVar[str] = "digest"

    @property
    def threshold(self) -> str:
        return "every file matches its SHA-256"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        draft = _draft(evidence)
        try:
            problems = differences(draft.files, package_digests(draft.folder))
        except ValueError as error:
            problems = [str(error)]
        if not any(name.startswith("weights/") for name in draft.files):
            problems.append("there are no weights")
        reason = "; ".join(problems[:5]) if problems else f"{len(draft.files)} files match"
        return Verdict(self.name, not problems, reason, self.threshold, {"problems": problems})


def _draft(evidence: Mapping[str, Any]) -> Any:
    draft = evidence.get("package")
    if draft is None:
        raise MissingEvidenceError("'package' was not given")
    return draft

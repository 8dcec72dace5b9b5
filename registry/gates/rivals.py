"""Gates that compare with what serves or could serve instead: the champion, the best judge, what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from registry.gates.base import MissingEvidenceError, Verdict, entry_of, number_of, require


@dataclass(frozen=True)
class BeatsChampion:
    """On the very same windows the candidate beats the current champion by two tests.

    The lower bound of the gain (paired circular block bootstrap) is above ``min_gain``, and the one-sided Diebold-Mariano test with
    the small-sample correction rejects equal losses at ``max_p_value``.

    Evidence ``champion``: ``version`` (None when there is no champion yet), otherwise ``gain, low, high`` (relative, positive = better),
    ``dm_statistic, dm_p_value, overlap`` (``statistics.diebold_mariano``), and ``windows_sha256, champion_windows_sha256``, the digests of
    the windows that each was scored on.
    """

    name: ClassVar[str] = "beats_champion"
    min_gain: float = 0.0
    max_p_value: float = 0.05

    def __post_init__(self) -> None:
        require(0 < self.max_p_value < 1, self.max_p_value, f"gates.{self.name}.max_p_value", "between 0 and 1")

    @property
    def threshold(self) -> str:
        return (
            f"lower bound of the gain > {self.min_gain:g} and Diebold-Mariano p at most {self.max_p_value:g} on the same windows, "
            "or no champion yet"
        )

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, "champion", "version")
        if entry["version"] is None:
            return Verdict(self.name, True, "there is no champion yet", self.threshold, {"version": None})
        if "unusable" in entry:
            raise MissingEvidenceError(f"version {entry['version']} could not be compared: {entry['unusable']}")
        numbers = ("gain", "low", "high", "dm_statistic", "dm_p_value", "overlap")
        entry = entry_of(evidence, "champion", "version", *numbers, "windows_sha256", "champion_windows_sha256")
        if entry["windows_sha256"] != entry["champion_windows_sha256"]:
            return Verdict(self.name, False, "champion and challenger were scored on different windows", self.threshold, dict(entry))
        gain, low, high, statistic, p_value, overlap = (number_of(entry, "champion", key) for key in numbers)
        reason = (
            f"gain {gain:+.3f} [{low:+.3f}, {high:+.3f}] over version {entry['version']}, "
            f"Diebold-Mariano {statistic:+.2f}, p {p_value:.3f} (overlap {overlap:.0f})"
        )
        return Verdict(self.name, low > self.min_gain and p_value <= self.max_p_value, reason, self.threshold, dict(entry))


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
        entry = entry_of(evidence, key, "judge", *names)
        gain, low, high, sla, judge_sla, windows = (number_of(entry, key, name) for name in names)
        passed = low > self.min_gain and sla <= judge_sla and windows >= self.min_windows
        reason = (
            f"gain {gain:+.3f} [{low:+.3f}, {high:+.3f}] over {entry['judge']}, "
            f"SLA violations {sla:.2%} against {judge_sla:.2%}, {windows:.0f} windows"
        )
        return Verdict(self.name, passed, reason, self.threshold, dict(entry))


@dataclass(frozen=True)
class ClassSla:
    """No class of jobs pays for the others: each misses its objectives at most ``margin`` more often than under the best judge, and
    meets them at least as often as its floor says.

    A class with fewer than ``min_jobs`` jobs over all windows is named and not judged: one job would decide.

    Evidence ``class_sla``: ``judge`` (name) and ``classes``: by class ``jobs``, ``rate`` and ``judge_rate`` (shares of its jobs that miss).

    Args:
        margin: largest excess of a class's miss rate over the best judge's.
        floor: least share of a class's jobs that meet their objectives.
        floors: floors of named classes, in place of ``floor``.
        min_jobs: jobs of a class below which it is not judged.
    """

    name: ClassVar[str] = "class_sla"
    margin: float = 0.01
    floor: float = 0.5
    floors: Mapping[str, float] = field(default_factory=dict)
    min_jobs: int = 30

    def __post_init__(self) -> None:
        require(self.margin >= 0, self.margin, f"gates.{self.name}.margin", "from 0")
        for key, value in {"floor": self.floor, **{f"floors.{name}": value for name, value in self.floors.items()}}.items():
            sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
            require(sound, value, f"gates.{self.name}.{key}", "a share between 0 and 1")

    @property
    def threshold(self) -> str:
        own = "".join(f", {name} {value:.0%}" for name, value in sorted(self.floors.items()))
        return f"every class misses at most {self.margin:.1%} more than under the best judge and meets at least {self.floor:.0%}{own}"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, self.name, "judge", "classes")
        classes = entry_of(entry, "classes")
        broken, judged, few = [], {}, []
        for kind in classes:
            jobs, rate, theirs = (number_of(entry_of(classes, kind, "jobs", "rate", "judge_rate"), kind, key) for key in _CLASS_FIELDS)
            if jobs < self.min_jobs:
                few.append(f"{kind} ({jobs:.0f} jobs)")
                continue
            judged[kind] = rate - theirs
            if rate - theirs > self.margin:
                broken.append(f"{kind} misses {rate:.1%} against {theirs:.1%}")
            floor = self.floors.get(kind, self.floor)
            if 1 - rate < floor:
                broken.append(f"{kind} meets {1 - rate:.1%}, below its floor of {floor:.0%}")
        if not judged:
            raise MissingEvidenceError(f"no class has {self.min_jobs} jobs: {', '.join(few) or 'none at all'}")
        worst = max(judged, key=lambda kind: judged[kind])
        reason = "; ".join(broken) or f"{len(judged)} classes, the worst is {worst} with {judged[worst]:+.1%} over {entry['judge']}"
        if few:
            reason += f"; too few to judge: {', '.join(few)}"
        return Verdict(self.name, not broken, reason, self.threshold, dict(entry))


_CLASS_FIELDS = ("jobs", "rate", "judge_rate")


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
        entry = entry_of(evidence, self.name, "learned", "refusals")
        if entry["learned"] is None:
            return Verdict(self.name, True, "nothing was learned", self.threshold, dict(entry))
        refusals = list(entry["refusals"])
        if not refusals:
            return Verdict(self.name, False, f"{entry['learned']} passed its gates and should serve", self.threshold, dict(entry))
        return Verdict(
            self.name, True, f"serves because {entry['learned']} was refused ({'; '.join(refusals)})", self.threshold, dict(entry)
        )

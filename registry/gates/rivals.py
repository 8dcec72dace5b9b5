"""Gates that compare with what serves or could serve instead: the champion, the best judge, what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from registry.gates.base import Verdict, entry_of, number_of


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
        entry = entry_of(evidence, "champion", "version")
        if entry["version"] is None:
            return Verdict(self.name, True, "there is no champion yet", self.threshold, {"version": None})
        entry = entry_of(evidence, "champion", "version", "gain", "low", "high", "windows_sha256", "champion_windows_sha256")
        if entry["windows_sha256"] != entry["champion_windows_sha256"]:
            return Verdict(self.name, False, "champion and challenger were scored on different windows", self.threshold, dict(entry))
        gain, low, high = (number_of(entry, "champion", key) for key in ("gain", "low", "high"))
        reason = f"gain {gain:+.3f} [{low:+.3f}, {high:+.3f}] over version {entry['version']}"
        return Verdict(self.name, low > self.min_gain, reason, self.threshold, dict(entry))


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

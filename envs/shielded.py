"""A policy behind the shield, and the judge that answers when the policy must not: counted and said, never silent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.cluster import ClusterSpec
from envs.heuristics import JUDGES
from envs.observation import CANDIDATE_FEATURES, LIMIT, ObservationLayout
from envs.shield import RULES, Shield, ShieldConfig
from envs.shield_rows import KEPT, MASK
from envs.state import Policy, PolicySettings
from telemetry.errors import InputError

CLOCK_SKEW_S = 5.0
ANSWERED_BY: tuple[str, ...] = ("policy", "policy_again", "fallback", "least_score")
OUT_OF_BOUNDS = LIMIT * (1.0 + 1e-6)
# A candidate's figure that cannot be read counts as the worst it could be; all others as 0, and with no ``valid`` it is not offered.
_DEAR = ("score", "greedy_score", "planned", "energy", "start_delay", "expected_penalty", "runtime")
_WORST = dict.fromkeys(_DEAR, LIMIT) | {"slack": -LIMIT}


@dataclass(frozen=True)
class Ages:
    """How old what a question rests on is, in seconds; None = not told and not looked at, infinite or NaN = missing."""

    telemetry_s: float | None = None
    forecast_s: float | None = None


@dataclass(frozen=True)
class ShieldedDecisions:
    """B answers and how they came about; rules are places in ``envs.shield.RULES``."""

    actions: np.ndarray  # int64 [B]
    proposals: np.ndarray  # int64 [B], what the policy wanted; -1 where the fallback answered in its place
    overruled: np.ndarray  # int8 [B], the rule against the proposal, 0 = none
    removed: np.ndarray  # int8 [B, A], the rule against each action, 0 = kept
    yielded: np.ndarray  # bool [B], the class floor could not be kept
    answered_by: np.ndarray  # int8 [B], place in ANSWERED_BY
    rows: np.ndarray  # float32 [B, D], what was chosen from: the observation (no copy), or what rules and repairs left of it
    reasons: tuple[str, ...]  # [B], why the policy was not asked, "" where it was


class ShieldedPolicy:
    """Any policy, with actions that keep the rules in every decision.

    A proposal that a rule removes is put to the policy once more without the removed actions, and then to the fallback. The fallback also
    answers where telemetry or forecasts are missing or older than the limits, and where an observation holds values that are not finite or
    out of bounds, which then count as the worst they could be.

    Attributes:
        counts: ``decisions``; ``overruled.<rule>``; ``asked_again`` (the policy answered within the rules at the second time);
            ``replaced`` (the fallback had to); ``floor_yielded``; ``fallback.<cause>`` with the causes ``telemetry_missing,
            telemetry_stale, forecast_missing, forecast_stale, observation``; ``unanswerable``.

    Args:
        fallback: a judge, which acts on the same observation.
        alert: called with ``(cause, reason)`` whenever the fallback answers because of stale or bad input.
    """

    def __init__(
        self, policy: Policy, shield: Shield, fallback: Policy | None = None, *, alert: Callable[[str, str], None] | None = None
    ) -> None:
        self.policy, self.shield = policy, shield
        self.fallback = fallback if fallback is not None else fallback_of(shield.config, policy.settings)
        self.name, self.settings = policy.name, policy.settings
        self.counts: Counter[str] = Counter()
        self._alert = alert

    @property
    def reseed(self) -> Any:
        """That of the policy, None where it draws no random numbers."""
        return getattr(self.policy, "reseed", None)

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Actions int64 ``[B]`` within the rules for observations ``[B, D]``."""
        return self.decide(observation, layout).actions

    def decide(self, observation: np.ndarray, layout: ObservationLayout, ages: Ages | None = None) -> ShieldedDecisions:
        """Answers with their record. ``ages`` holds for all rows.

        A row in which no action is allowed, or can be read to be, gets 0 and, where it was a question, counts as ``unanswerable``.
        """
        rows, bad = _repaired(observation, layout)
        removed, yielded = self.shield.removed(rows, layout)
        cause, reason = self._age_cause(ages)
        answerable = removed.min(axis=1) == KEPT
        if reason or bad is not None or not answerable.all():
            return self._decide_doubtful(rows, layout, removed, yielded, answerable, bad, cause, reason)
        proposals = np.asarray(self.policy.act(rows, layout), dtype=np.int64)
        overruled = _rule_of(removed, proposals)
        self._count(len(rows), overruled, yielded)
        answered, used, actions = np.zeros(len(rows), dtype=np.int8), rows, proposals
        if overruled.any():
            actions = proposals.copy()
            used = self._correct(rows, layout, removed, overruled != KEPT, np.ones(len(rows), dtype=np.bool_), actions, answered)
        return ShieldedDecisions(actions, proposals, overruled, removed, yielded, answered, used, ("",) * len(rows))

    def _decide_doubtful(
        self,
        rows: np.ndarray,
        layout: ObservationLayout,
        removed: np.ndarray,
        yielded: np.ndarray,
        answerable: np.ndarray,
        bad: np.ndarray | None,
        cause: str,
        reason: str,
    ) -> ShieldedDecisions:
        """As :meth:`decide` where rows are old, spoilt or without a question."""
        spoilt = np.zeros(len(rows), dtype=np.int64) if bad is None else bad
        reasons = tuple(reason or (_bad_values(count) if count else "") for count in spoilt.tolist())
        trusted = np.array([not text for text in reasons], dtype=np.bool_) & answerable
        proposals = np.full(len(rows), -1, dtype=np.int64)
        if trusted.any():
            proposals[trusted] = self.policy.act(rows[trusted], layout)
        overruled = np.where(trusted, _rule_of(removed, proposals), KEPT).astype(np.int8)
        actions, answered = np.where(trusted, proposals, 0), np.zeros(len(rows), dtype=np.int8)
        open_ = (~trusted | (overruled != KEPT)) & answerable
        used = self._correct(rows, layout, removed, open_, trusted, actions, answered) if open_.any() else rows
        self.counts["unanswerable"] += int((~answerable & (rows.any(axis=1) | (spoilt > 0))).sum())
        self._count(len(rows), overruled, yielded)
        self._alarm(cause, reasons, spoilt)
        return ShieldedDecisions(actions, proposals, overruled, removed, yielded, answered, used, reasons)

    def _correct(
        self,
        rows: np.ndarray,
        layout: ObservationLayout,
        removed: np.ndarray,
        open_: np.ndarray,
        trusted: np.ndarray,
        actions: np.ndarray,
        answered: np.ndarray,
    ) -> np.ndarray:
        """Settle the rows ``open_`` in ``actions`` and ``answered``, by the policy again where it is trusted; what was decided from."""
        tight = rows.copy()
        layout.candidates(tight)[removed != KEPT] = 0.0
        used, open_ = np.where(open_[:, None], tight, rows), open_.copy()
        again = np.flatnonzero(trusted & open_)
        if len(again):
            actions[again] = self.policy.act(tight[again], layout)
            settled = again[_rule_of(removed[again], actions[again]) == KEPT]
            self.counts["asked_again"] += len(settled)
            self.counts["replaced"] += len(again) - len(settled)
            answered[settled] = ANSWERED_BY.index("policy_again")
            open_[settled] = False
        left = np.flatnonzero(open_)
        answered[left] = ANSWERED_BY.index("fallback")
        actions[left] = self.fallback.act(tight[left], layout) if len(left) else 0
        for row in left[_rule_of(removed[left], actions[left]) != KEPT]:
            kept = np.flatnonzero(removed[row] == KEPT)
            actions[row] = kept[layout.candidates(tight)[row, kept, layout.score_index].argmin()]
            answered[row] = ANSWERED_BY.index("least_score")
        return used

    def too_old(self, ages: Ages | None) -> str:
        """Why the fallback would answer a question of these ages, or empty."""
        return self._age_cause(ages)[1]

    def _age_cause(self, ages: Ages | None) -> tuple[str, str]:
        config, ages = self.shield.config, ages or Ages()
        for what, age, limit in (
            ("telemetry", ages.telemetry_s, config.telemetry_age_s),
            ("forecast", ages.forecast_s, config.forecast_age_s),
        ):
            if age is None or -CLOCK_SKEW_S <= age <= limit:
                continue
            if not math.isfinite(age):
                return f"{what}_missing", f"{what} is missing"
            if age < 0:
                return f"{what}_stale", f"{what} is from {-age:.0f} s in the future: a clock is wrong"
            return f"{what}_stale", f"{what} is {age:.0f} s old, allowed are {limit:.0f} s"
        return "", ""

    def _count(self, rows: int, overruled: np.ndarray, yielded: np.ndarray) -> None:
        self.counts["decisions"] += rows
        if yielded.any():
            self.counts["floor_yielded"] += int(yielded.sum())
        if overruled.any():
            for rule, count in zip(*np.unique(overruled[overruled != KEPT], return_counts=True), strict=True):
                self.counts[f"overruled.{RULES[rule]}"] += int(count)

    def _alarm(self, cause: str, reasons: tuple[str, ...], spoilt: np.ndarray) -> None:
        """Count and tell the rows that the policy was not asked about."""
        for text, count in zip(reasons, spoilt, strict=True):
            if not text:
                continue
            self.counts[f"fallback.{cause or 'observation'}"] += 1
            if count and cause:
                self.counts["fallback.observation"] += 1
            if self._alert is not None:
                self._alert(cause or "observation", text)


def fallback_of(config: ShieldConfig, settings: PolicySettings) -> Policy:
    """The judge of ``config``; a planner can answer only where questions come with plans, else the look-ahead does."""
    judge = judge_named(config.fallback)
    return judge if settings.plans or not judge.settings.plans else JUDGES["lookahead"]


def judge_named(name: str) -> Policy:
    """The judge that answers as fallback.

    Raises:
        InputError: no such judge.
    """
    if name not in JUDGES:
        raise InputError(f"fallback '{name}'", where="shield", allowed=", ".join(JUDGES))
    return JUDGES[name]


def shielded(policy: Policy, config: ShieldConfig, cluster: ClusterSpec, **more: Any) -> ShieldedPolicy:
    """``policy`` behind the shield of ``cluster``, with the fallback that ``config`` names."""
    return ShieldedPolicy(policy, Shield.of(config, cluster, policy.settings), **more)


def _rule_of(removed: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Rule against the action of each row, int8 ``[B]``; an action that does not exist is masked."""
    inside = (actions >= 0) & (actions < removed.shape[1])
    rules = removed[np.arange(len(removed)), np.where(inside, actions, 0)]
    rules[~inside] = MASK
    return rules


def _bad_values(count: int) -> str:
    return f"{count} value{'s' if count > 1 else ''} of the observation not finite or out of bounds"


def _repaired(observation: np.ndarray, layout: ObservationLayout) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows float32 ``[B, D]`` without values that are not finite or out of bounds, and how many each had ``[B]``; None = no row any."""
    if observation.ndim != 2 or observation.shape[1] != layout.size:
        raise InputError(f"observations of shape {observation.shape}", where="shield", allowed=f"[B, {layout.size}]")
    rows = np.ascontiguousarray(observation, dtype=np.float32)
    if not rows.size or np.abs(rows).max() <= OUT_OF_BOUNDS:
        return rows, None
    wrong = ~(np.abs(rows) <= OUT_OF_BOUNDS)
    rows = np.where(wrong, np.float32(0.0), rows)
    spoilt, candidates = layout.candidates(wrong), layout.candidates(rows)
    for place, (name, _) in enumerate(CANDIDATE_FEATURES):
        if name in _WORST:
            candidates[..., place][spoilt[..., place]] = _WORST[name]
    return rows, wrong.sum(axis=1)

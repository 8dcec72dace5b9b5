"""Rules: which detector on which signal, from how much evidence, means what. A rule over the same values always says the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.drift.detectors import Detector
from models.drift.standard import Reference
from telemetry.errors import InputError

SEVERITIES = ("warn", "retrain", "rollback")
MISS_MARGIN = 0.05  # on what the reference missed: its own share is an estimate


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: shown and logged.
        signal: column of the blocks.
        detector: what reads it.
        severity: ``warn`` is told, ``retrain`` starts a retraining, ``rollback`` also asks for the previous version.
        reference_blocks: first blocks of a version that say what is normal; a ``limit`` asks for none.
        min_blocks: judged blocks that an alarm needs at least.
        cooldown_blocks: after an alarm the rule is silent so long, and then begins anew.
    """

    name: str
    signal: str
    detector: Detector
    severity: str = "retrain"
    reference_blocks: int = 56
    min_blocks: int = 4
    cooldown_blocks: int = 24

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise InputError(f"unknown severity '{self.severity}'", where=f"rule '{self.name}'", allowed=", ".join(SEVERITIES))
        for name, least in (("reference_blocks", 8), ("min_blocks", 1), ("cooldown_blocks", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{getattr(self, name)}", where=f"rule '{self.name}'.{name}", allowed=f"a whole number from {least}")


@dataclass(frozen=True)
class Judged:
    """What a rule made of a signal.

    Attributes:
        alarms: blocks at which it alarmed, in order.
        path: how far to an alarm after each judged block ``[n]`` (1 = alarm), restarted as the rule is; NaN while it learns or is silent.
        reference: mean of the signal over the reference; NaN while that is not whole; the threshold of a ``limit``.
        level: mean of the signal over the last day of blocks.
        waiting: blocks that the reference still needs.
    """

    alarms: tuple[int, ...]
    path: np.ndarray
    reference: float
    level: float
    waiting: int


def judge(rule: Rule, blocks: np.ndarray, values: np.ndarray, per_day: int) -> Judged:
    """Run a rule over all blocks of a version, restarting after every alarm and its cool-down.

    Args:
        blocks: ``[n]`` numbers of blocks since the epoch, ascending; missing ones are missing.
        values: ``[n]`` of the signal.
        per_day: blocks a day.
    """
    path, finite = np.full(len(values), np.nan), np.isfinite(values)
    needed = 0 if rule.detector.kind == "limit" else rule.reference_blocks
    held = np.flatnonzero(finite)[:needed]
    level = float(np.mean(values[finite][-per_day:])) if finite.any() else float("nan")
    if len(held) < needed:
        return Judged((), path, float("nan"), level, needed - len(held))
    first = int(held[-1]) + 1 if needed else 0
    detector, scores = prepared(rule.detector, values, blocks % per_day, held)
    alarms, at = [], first
    while at < len(scores):
        told = detector.path(scores[at:])
        hits = np.flatnonzero(told[rule.min_blocks - 1 :] >= 1.0)
        if not len(hits):
            path[at:] = told
            break
        end = at + int(hits[0]) + rule.min_blocks - 1
        path[at : end + 1] = told[: end - at + 1]
        alarms.append(int(blocks[end]))
        at = int(np.searchsorted(blocks, blocks[end] + rule.cooldown_blocks, side="right"))
    return Judged(tuple(alarms), path, float(np.mean(values[held])) if needed else rule.detector.threshold, level, 0)


def prepared(detector: Detector, values: np.ndarray, phases: np.ndarray, held: np.ndarray) -> tuple[Detector, np.ndarray]:
    """The detector and what it reads ``[n]``, both fitted to the reference rows ``held``.

    Shares are read against the larger of what was promised and what the reference missed; raw values over the largest of the reference.
    """
    if detector.on_scores:
        per_day = int(phases.max()) + 1
        reference = Reference.of(values[held], phases[held], per_day)
        return detector, reference.scores(values, phases)
    if detector.kind == "betting":
        return replace(detector, promised=min(max(detector.promised, float(values[held].mean()) + MISS_MARGIN), 0.49)), values
    if detector.kind == "limit":
        return detector, values
    return replace(detector, threshold=detector.threshold * max(float(values[held].max()), 1e-9)), values

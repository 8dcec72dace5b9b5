"""What a gate is: a verdict with its evidence and what was needed. Missing evidence is a refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from telemetry.errors import InputError


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


def require(sound: bool, value: object, where: str, allowed: str) -> None:
    """Refuse a threshold that makes no sense, at the configuration's edge.

    Raises:
        InputError: ``sound`` is false.
    """
    if not sound:
        raise InputError(f"{value!r}", where=f"registry.{where}", allowed=allowed)


def entry_of(evidence: Mapping[str, Any], key: str, *fields: str) -> Mapping[str, Any]:
    value = evidence.get(key)
    if not isinstance(value, Mapping):
        raise MissingEvidenceError(f"'{key}' was not given")
    for name in fields:
        if name not in value:
            raise MissingEvidenceError(f"'{key}.{name}' was not given")
    return value


def number_of(entry: Mapping[str, Any], key: str, name: str) -> float:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise MissingEvidenceError(f"'{key}.{name}' is {value!r}, not a finite number")
    return float(value)

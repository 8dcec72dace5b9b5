"""Who takes part in an experiment, and in which arm: by a stable hash of team or pod, never by chance at the time of the question.

Two independent digests of (experiment, unit) are taken: the first enrols a unit when it lies below the share, the second picks its arm.
So a larger share enrols more units and never moves one that takes part already to the other arm, and each experiment splits anew. Units
that are not enrolled are served by the champion and are no part of the comparison.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from telemetry.errors import InputError

UNITS: tuple[str, ...] = ("team", "pod", "day")
WHOLE = 1000


@dataclass(frozen=True)
class Split:
    """An experiment.

    Attributes:
        experiment: its name, which salts the digests.
        share_permille: units that take part, of a thousand.
        challenger_permille: units of the challenger's arm, of a thousand that take part; changing it moves units: begin another experiment.
        unit: ``team`` (one team always sees one arm), ``pod`` (finer, but a team's pods differ), or ``day`` (UTC; the whole cluster is one
            arm's for a day, so that arms do not compete for the same nodes).
    """

    experiment: str
    share_permille: int
    challenger_permille: int = 500
    unit: str = "team"

    def __post_init__(self) -> None:
        if not self.experiment:
            raise InputError("no name", where="experiment", allowed="a name, which salts the split")
        if self.unit not in UNITS:
            raise InputError(f"unit '{self.unit}'", where=f"experiment '{self.experiment}'", allowed=", ".join(UNITS))
        for name, least, most in (("share_permille", 0, WHOLE), ("challenger_permille", 1, WHOLE - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"{name} {value!r}", where=f"experiment '{self.experiment}'", allowed=f"a whole number, {least} to {most}")

    def arm_of(self, unit: str) -> str:
        """``champion`` or ``challenger``; ``outside`` for a unit without a name or not enrolled."""
        if not unit or self._place("enrol", unit) >= self.share_permille:
            return "outside"
        return "challenger" if self._place("arm", unit) < self.challenger_permille else "champion"

    def probability(self, arm: str) -> float:
        """With which a unit that takes part is in ``arm``; 1 outside."""
        share = self.challenger_permille / WHOLE
        return {"challenger": share, "champion": 1.0 - share, "outside": 1.0}[arm]

    def _place(self, purpose: str, unit: str) -> int:
        digest = hashlib.sha256("\x00".join((self.experiment, purpose, self.unit, unit)).encode()).digest()
        return int.from_bytes(digest[:8], "big") % WHOLE

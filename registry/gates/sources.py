"""Gates of what a candidate was made from: licences of data and software, and training data that still look like today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from registry.gates.base import MissingEvidenceError, Verdict, entry_of, number_of, require
from registry.licences import licence_ids

ALLOWED_LICENCES = (
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "ISC", "LLVM-exception"),
    *("MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
)


@dataclass(frozen=True)
class Licence:
    """Every data set that was learned from and every package that serving needs is under a licence of the allow list.

    Unknown is refused, and so is a licence text of which a part is not recognised. ``exceptions`` names what is allowed all the same, with
    the reason, which the verdict repeats.

    Evidence ``licence``: ``data`` and ``dependencies``, each name -> licence as written, or None where nobody says.

    Args:
        allowed: SPDX identifiers.
        exceptions: data set or package -> why it is allowed.
    """

    name: ClassVar[str] = "licence"
    allowed: tuple[str, ...] = ALLOWED_LICENCES
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.allowed), self.allowed, f"gates.{self.name}.allowed", "at least one SPDX identifier")
        for name, why in self.exceptions.items():
            require(isinstance(why, str) and bool(why.strip()), why, f"gates.{self.name}.exceptions.{name}", "the reason, as text")

    @property
    def threshold(self) -> str:
        return f"known, and one of {', '.join(self.allowed)}, or an exception with its reason"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, self.name, "data", "dependencies")
        data, packages = entry_of(entry, "data"), entry_of(entry, "dependencies")
        if not data or not packages:
            raise MissingEvidenceError(f"'{self.name}' names {len(data)} data sets and {len(packages)} packages; both need some")
        refused, excepted = [], []
        for name, text in [*data.items(), *packages.items()]:
            if self._allows(text):
                continue
            if name in self.exceptions:
                excepted.append(f"{name} ({self.exceptions[name]})")
            else:
                refused.append(f"{name}: {text or 'unknown'}")
        told = {"data": dict(data), "dependencies": len(packages), "refused": refused, "exceptions": excepted}
        if refused:
            more = f" and {len(refused) - 4} more" if len(refused) > 4 else ""
            return Verdict(self.name, False, f"not allowed: {'; '.join(refused[:4])}{more}", self.threshold, told)
        by_exception = f"; by exception {'; '.join(excepted)}" if excepted else ""
        return Verdict(self.name, True, f"{len(data)} data sets, {len(packages)} packages{by_exception}", self.threshold, told)

    def _allows(self, text: str | None) -> bool:
        alternatives = licence_ids(text)
        return any(parts and None not in parts and set(parts) <= set(self.allowed) for parts in alternatives)


@dataclass(frozen=True)
class TrainingData:
    """The data that were learned from span enough time, end recently, and their newest part looks like the rest.

    A series has *drifted* when the population stability index (PSI) of its newest block against all others is above ``max_psi`` and above
    that of every earlier block against its others: load has seasons, so that an index alone would refuse every Monday. A series is
    *dead* when it varied before and is constant through the newest block.

    Evidence ``training_data`` (``models.population_shift``): ``span_days, series, drifted, dead, flat, median_psi`` (counts but the last),
    ``blocks, block_days``; ``age_days``, or ``recorded`` (why there is no age: a recorded data set is not compared with today's date).

    Args:
        min_span_days: of time between first and last row.
        max_age_days: from the last row to now.
        max_psi: 0.25 is the usual mark of a shifted population (Siddiqi 2006, Credit Risk Scorecards).
        max_drifted_share, max_dead_share: of the series that vary at all.
    """

    name: ClassVar[str] = "training_data"
    min_span_days: float = 14.0
    max_age_days: float = 14.0
    max_psi: float = 0.25
    max_drifted_share: float = 0.5
    max_dead_share: float = 0.2

    def __post_init__(self) -> None:
        for key in ("min_span_days", "max_age_days", "max_psi"):
            require(getattr(self, key) > 0, getattr(self, key), f"gates.{self.name}.{key}", "above 0")
        for key in ("max_drifted_share", "max_dead_share"):
            require(0 <= getattr(self, key) <= 1, getattr(self, key), f"gates.{self.name}.{key}", "a share between 0 and 1")

    @property
    def threshold(self) -> str:
        return (
            f"at least {self.min_span_days:g} days, at most {self.max_age_days:g} days old, at most {self.max_drifted_share:.0%} of the "
            f"series drifted (PSI > {self.max_psi:g} and above every earlier block) and {self.max_dead_share:.0%} dead"
        )

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        key, names = self.name, ("span_days", "series", "drifted", "dead", "flat", "median_psi")
        entry = entry_of(evidence, key, *names)
        span, series, drifted, dead, flat, psi = (number_of(entry, key, name) for name in names)
        living = series - flat
        problems = []
        if living < 1:
            problems.append(f"all {series:.0f} series are constant")
        if span < self.min_span_days:
            problems.append(f"only {span:.1f} days")
        if "recorded" in entry:
            age = f"age not judged: {entry['recorded']}"
        else:
            days = number_of(entry_of(evidence, key, "age_days"), key, "age_days")
            age = f"{days:.1f} days old"
            if days > self.max_age_days:
                problems.append(f"{age}, too old")
            elif days < -1:
                problems.append(f"it ends {-days:.1f} days in the future")
        if drifted > self.max_drifted_share * living:
            problems.append(f"{drifted:.0f} of {living:.0f} series drifted")
        if dead > self.max_dead_share * living:
            problems.append(f"{dead:.0f} of {living:.0f} series are dead")
        facts = f"{span:.1f} days, {age}, {drifted:.0f} of {living:.0f} varying series drifted (median PSI {psi:.2f}), {dead:.0f} dead"
        reason = f"{'; '.join(problems)} ({facts})" if problems else facts
        return Verdict(key, not problems, reason, self.threshold, dict(entry))

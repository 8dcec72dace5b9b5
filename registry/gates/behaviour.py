"""Gates of how a candidate behaves: it does not know the future, its seed does not matter, and it is fast and small enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from registry.gates.base import MissingEvidenceError, Verdict, entry_of, number_of, require


@dataclass(frozen=True)
class NoLeakage:
    """What was forecast at an origin stays the same to the last bit when everything after the origin is shuffled or blown up.

    Evidence ``leakage`` (``models.refit_probe.probe_leaks``): ``compared`` (forecast rows), ``differing`` (of them), ``futures`` (how many
    changed futures), ``series, origins`` (of the probe).
    """

    name: ClassVar[str] = "no_leakage"
    min_compared: int = 20

    def __post_init__(self) -> None:
        require(self.min_compared >= 1, self.min_compared, f"gates.{self.name}.min_compared", "from 1")

    @property
    def threshold(self) -> str:
        return f"no forecast row changes with the future, of at least {self.min_compared}"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, "leakage", "compared", "differing", "futures", "series", "origins")
        compared, differing, futures = (number_of(entry, "leakage", key) for key in ("compared", "differing", "futures"))
        if compared < self.min_compared:
            raise MissingEvidenceError(f"only {compared:.0f} rows were compared, at least {self.min_compared} are needed")
        reason = f"{differing:.0f} of {compared:.0f} forecast rows changed under {futures:.0f} shuffled futures"
        return Verdict(self.name, differing == 0, reason, self.threshold, dict(entry))


@dataclass(frozen=True)
class SeedStability:
    """Refitted with other seeds, the candidate loses about the same: (largest - smallest) / mean of the losses is at most ``max_spread``.

    A forecaster whose forecasts are the same for every seed passes, and the verdict says that nothing in it is random.

    Evidence ``seed_stability`` (``models.refit_probe.seed_losses``): ``losses`` (one a seed, on the same windows), ``identical`` (whether
    all forecasts were), ``series, origins``.
    """

    name: ClassVar[str] = "seed_stability"
    seeds: int = 3
    max_spread: float = 0.10

    def __post_init__(self) -> None:
        require(self.seeds >= 2, self.seeds, f"gates.{self.name}.seeds", "from 2")
        require(self.max_spread > 0, self.max_spread, f"gates.{self.name}.max_spread", "above 0")

    @property
    def threshold(self) -> str:
        return f"the losses of {self.seeds} seeds lie within {self.max_spread:.0%} of their mean"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, self.name, "losses", "identical", "series", "origins")
        losses = np.asarray(entry["losses"], dtype=float)
        if losses.ndim != 1 or len(losses) < self.seeds or not np.isfinite(losses).all() or not losses.mean() > 0:
            raise MissingEvidenceError(f"'{self.name}.losses' are {entry['losses']!r}, not {self.seeds} finite losses above 0")
        spread = float(np.ptp(losses) / losses.mean())
        told = {**entry, "spread": spread}
        if entry["identical"] is True:
            return Verdict(self.name, True, f"0 random parts: {len(losses)} seeds give the same forecasts", self.threshold, told)
        reason = f"the losses of {len(losses)} seeds spread over {spread:.1%} of their mean"
        return Verdict(self.name, spread <= self.max_spread, reason, self.threshold, told)


@dataclass(frozen=True)
class LatencyAndSize:
    """One answer of the package, loaded from its own files, takes at most so long at the 95th percentile, and its files so many MiB.

    Evidence ``serving`` (``registry.serving_cost``): ``kind`` (``forecaster`` or ``policy``), ``p95_ms, calls, bytes``.

    Args:
        max_forecast_p95_ms: of one forecast of all series of the package.
        max_decision_p95_ms: of one decision.
        max_mib: of all files of the package.
        min_calls: fewer measured calls are no evidence.
    """

    name: ClassVar[str] = "latency_and_size"
    max_forecast_p95_ms: float = 10_000.0
    max_decision_p95_ms: float = 100.0
    max_mib: float = 256.0
    min_calls: int = 5

    def __post_init__(self) -> None:
        for key in ("max_forecast_p95_ms", "max_decision_p95_ms", "max_mib", "min_calls"):
            require(getattr(self, key) > 0, getattr(self, key), f"gates.{self.name}.{key}", "above 0")

    @property
    def threshold(self) -> str:
        return (
            f"95th percentile at most {self.max_forecast_p95_ms:g} ms a forecast, {self.max_decision_p95_ms:g} ms a decision; "
            f"at most {self.max_mib:g} MiB"
        )

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        entry = entry_of(evidence, "serving", "kind", "p95_ms", "calls", "bytes")
        p95, calls, size = (number_of(entry, "serving", key) for key in ("p95_ms", "calls", "bytes"))
        limits = {"forecaster": self.max_forecast_p95_ms, "policy": self.max_decision_p95_ms}
        if entry["kind"] not in limits:
            raise MissingEvidenceError(f"'serving.kind' is {entry['kind']!r}, not one of {', '.join(limits)}")
        if calls < self.min_calls:
            raise MissingEvidenceError(f"{calls:.0f} calls were measured, at least {self.min_calls} are needed")
        passed = p95 <= limits[entry["kind"]] and size <= self.max_mib * 2**20
        reason = f"95th percentile {p95:.3g} ms over {calls:.0f} calls, {size / 2**20:.2f} MiB"
        return Verdict(self.name, passed, reason, self.threshold, dict(entry))

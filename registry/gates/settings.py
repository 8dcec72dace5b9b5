"""The configured gates (``registry.gates`` in the configuration): one frozen gate a key, and which of them are turned off, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from registry.gates.base import Gate, Verdict, require, run_gates
from registry.gates.behaviour import LatencyAndSize, NoLeakage, SeedStability
from registry.gates.forecasts import Coverage, Decision, SkillOverNaive
from registry.gates.rivals import AgentOverJudge, BeatsChampion, ClassSla
from registry.gates.sources import Licence, TrainingData

TURNED_OFF = "turned_off"


@dataclass(frozen=True)
class GateSettings:
    """Every gate with a threshold, by its name.

    ``turned_off`` names gates that are not asked, each with the reason; what guards the package's own files (digest, scan, signature)
    cannot be turned off.
    """

    skill_over_naive: SkillOverNaive = field(default_factory=SkillOverNaive)
    beats_champion: BeatsChampion = field(default_factory=BeatsChampion)
    coverage: Coverage = field(default_factory=Coverage)
    decision: Decision = field(default_factory=Decision)
    no_leakage: NoLeakage = field(default_factory=NoLeakage)
    seed_stability: SeedStability = field(default_factory=SeedStability)
    class_sla: ClassSla = field(default_factory=ClassSla)
    agent_over_judge: AgentOverJudge = field(default_factory=AgentOverJudge)
    latency_and_size: LatencyAndSize = field(default_factory=LatencyAndSize)
    licence: Licence = field(default_factory=Licence)
    training_data: TrainingData = field(default_factory=TrainingData)
    turned_off: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [entry.name for entry in fields(self) if entry.name != "turned_off"]
        for name, why in self.turned_off.items():
            require(name in names, name, "gates.turned_off", ", ".join(names))
            require(isinstance(why, str) and bool(why.strip()), why, f"gates.turned_off.{name}", "the reason, as text")


def run_configured(gates: Sequence[Gate], evidence: Mapping[str, Any], off: Mapping[str, str]) -> list[Verdict]:
    """Verdicts as ``run_gates`` gives them; a gate that is turned off lets through, and its verdict says that it did not judge."""
    return [
        Verdict(gate.name, True, f"not judged: turned off ({off[gate.name]})", gate.threshold, {TURNED_OFF: off[gate.name]})
        if gate.name in off
        else run_gates([gate], evidence)[0]
        for gate in gates
    ]

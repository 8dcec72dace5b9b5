"""Gates: what must be true before something is promoted. Missing evidence is a refusal."""

from registry.gates.base import Gate, MissingEvidenceError, Verdict, all_passed, run_gates
from registry.gates.behaviour import LatencyAndSize, NoLeakage, SeedStability
from registry.gates.forecasts import Coverage, Decision, SkillOverNaive
from registry.gates.integrity import Digest, NoPickle
from registry.gates.rivals import AgentOverJudge, BeatsChampion, ClassSla, StandIn
from registry.gates.settings import GateSettings, run_configured
from registry.gates.sources import Licence, TrainingData
from registry.gates.statistics import DieboldMariano, Interval, diebold_mariano, skill_interval

__all__ = [
    "AgentOverJudge",
    "BeatsChampion",
    "ClassSla",
    "Coverage",
    "Decision",
    "DieboldMariano",
    "Digest",
    "Gate",
    "GateSettings",
    "Interval",
    "LatencyAndSize",
    "Licence",
    "MissingEvidenceError",
    "NoLeakage",
    "NoPickle",
    "SeedStability",
    "SkillOverNaive",
    "StandIn",
    "TrainingData",
    "Verdict",
    "all_passed",
    "diebold_mariano",
    "run_configured",
    "run_gates",
    "skill_interval",
]

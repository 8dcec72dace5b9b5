"""Gates: what must be true before something is promoted. Missing evidence is a refusal."""

from registry.gates.base import Gate, MissingEvidenceError, Verdict, all_passed, run_gates
from registry.gates.forecasts import Coverage, Decision, SkillOverNaive
from registry.gates.integrity import Digest, NoPickle
from registry.gates.rivals import AgentOverJudge, BeatsChampion, StandIn
from registry.gates.statistics import Interval, skill_interval

__all__ = [
    "AgentOverJudge",
    "BeatsChampion",
    "Coverage",
    "Decision",
    "Digest",
    "Gate",
    "Interval",
    "MissingEvidenceError",
    "NoPickle",
    "SkillOverNaive",
    "StandIn",
    "Verdict",
    "all_passed",
    "run_gates",
    "skill_interval",
]

"""A decision with what surrounds it: the arm that answers, the challengers that listen, and the line in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from envs.exploration import Exploration
from envs.heuristics import JUDGES
from envs.state import Policy
from registry.decision_log import DecisionLog, DecisionRecord
from registry.loading import VerificationError, load_version
from registry.manifest import Manifest
from runtime.decision import Decision
from runtime.guardrails import arm_in_force
from runtime.jobs import JobRequest
from runtime.shadow import BUDGET_S, Challenger, ShadowAnswer, shadow_answers
from runtime.split import Split
from telemetry.errors import InputError

POLICY_NAME = "scheduling-policy"
ALIASES: tuple[str, ...] = ("challenger", "previous")


@dataclass(frozen=True)
class Logging:
    """What is recorded of decisions, and who listens.

    Attributes:
        folder: of the log; None = none is written.
        shadow: names of challengers: judges, or aliases of the registry (``challenger``, ``previous``).
        budget_s: for all challengers together.
        explore: how far the answers may stray.
        split: of the experiment that runs; None = the champion answers everyone.
    """

    folder: Path | None = None
    shadow: tuple[str, ...] = ()
    budget_s: float = BUDGET_S
    explore: Exploration = field(default_factory=Exploration)
    split: Split | None = None

    def __post_init__(self) -> None:
        allowed = (*JUDGES, *ALIASES)
        for name in self.shadow:
            if name not in allowed:
                raise InputError(f"challenger '{name}'", where="--shadow", allowed=", ".join(allowed))
        if not self.explore.none and self.folder is None:
            raise InputError("exploration without a log", where="--explore", remedy="--decision-log FOLDER: what is not logged is wasted")

    def arm_of(self, job: JobRequest) -> tuple[str, str]:
        """The arm that answers this job, and why it is not the drawn one."""
        if self.split is None:
            return "champion", ""
        units = {"team": job.team, "pod": job.job_id, "day": datetime.now(UTC).strftime("%Y-%m-%d")}
        return arm_in_force(self.split, units[self.split.unit], self.folder)


def promoted(alias: str, tracking_uri: str) -> tuple[Policy, Manifest, str]:
    """The verified policy that ``alias`` points to, its manifest and its version.

    Raises:
        VerificationError: no such version, any check failed, or it decides by prices that are yet to come.
        InputError: ``tracking_uri`` names no registry.
    """
    loaded = load_version(POLICY_NAME, "policy", alias, tracking_uri)
    if loaded.model.settings.price_forecast == "perfect":
        raise VerificationError(f"{POLICY_NAME}@{alias}: decides by prices that are yet to come, which is for comparison only")
    return loaded.model, loaded.manifest, loaded.version


def challengers_of(names: Sequence[str], tracking_uri: str, notices: list[str]) -> list[Challenger]:
    """Challengers by name; one that cannot be loaded is told in ``notices`` and left out: it must not cost an answer."""
    found = []
    for name in dict.fromkeys(names):
        if name in JUDGES:
            found.append(Challenger(name, JUDGES[name]))
            continue
        try:
            policy, _, version = promoted(name, tracking_uri)
        except (VerificationError, InputError) as doubt:
            notices.append(f"shadow '{name}' does not listen: {doubt}")
            continue
        found.append(Challenger(name, policy, version))
    return found


def listen(decision: Decision, challengers: Sequence[Challenger], budget_s: float) -> tuple[ShadowAnswer, ...]:
    """What the challengers say to the question that was answered; nothing when none was asked."""
    question = decision.question
    if question is None or not challengers:
        return ()
    return shadow_answers(challengers, question.row, question.layout, question.allowed, budget_s=budget_s)


def write(
    logging: Logging, decision: Decision, job: JobRequest, version: str, arm: str, answers: Sequence[ShadowAnswer], notices: list[str]
) -> str | None:
    """Append the decision to the log; its id. A log that cannot be written is told in ``notices``: the answer stands."""
    question = decision.question
    if logging.folder is None or question is None:
        return None
    split = logging.split
    try:
        record = DecisionRecord(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            job_id=decision.job_id,
            pools=question.layout.n_pools,
            levels=question.layout.n_levels,
            observation=tuple(float(value) for value in question.row),
            allowed=tuple(int(action) for action in question.allowed.nonzero()[0]),
            propensities=tuple(float(value) for value in question.propensities),
            action=question.action,
            policy=decision.policy if question.answered_by != "fallback" else str(decision.fallback["policy"]),
            version=version if question.answered_by != "fallback" else "",
            answered_by=question.answered_by,
            team=job.team,
            pod=job.job_id,
            arm=arm,
            arm_propensity=1.0 if split is None else split.probability(arm),
            experiment="" if split is None else split.experiment,
            shadow=tuple(answer.plain() for answer in answers),
        )
        DecisionLog(logging.folder).append(record)
    except InputError as error:
        notices.append(f"the decision was not logged: {error}")
        return None
    return record.decision_id

"""One decision: put the question to a policy behind the shield, and say what each choice is expected to cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from envs.candidates import Candidate, candidates_of, gpu_watts, iso_time, objective_parts, place_of, why_masked
from envs.explain import explain, preferences, probabilities, score_parts
from envs.exploration import Exploration, drawn
from envs.kernel import Simulator
from envs.observation import ObservationLayout
from envs.reward import RewardSpec
from envs.shield import RULE_WORDS, RULES, ShieldConfig
from envs.shield_rows import KEPT
from envs.shielded import ANSWERED_BY, Ages, ShieldedDecisions, ShieldedPolicy, shielded
from envs.snapshot import Snapshot, forecast_integral, grid_column, rejection, restore
from envs.state import Policy
from runtime.jobs import JobRefusedError

DAY_S = 86_400


@dataclass(frozen=True)
class Question:
    """What was put to the policy, and with which probability it would have answered what.

    Attributes:
        row: the observation, float32 ``[D]``, with only the answers in ``allowed`` (bool ``[A]``: mask and shield) open.
        propensities: of every answer, float64 ``[A]``.
        action: the answer given.
        answered_by: one of ``envs.shielded.ANSWERED_BY``, or ``explored``.
    """

    row: np.ndarray
    layout: ObservationLayout
    allowed: np.ndarray
    propensities: np.ndarray
    action: int
    answered_by: str


@dataclass(frozen=True)
class Decision:
    """What to do with the job now, why, and what else there was.

    Attributes:
        blocked: no run is possible now; the answer is hold without a question to the policy.
        ahead: decisions on jobs that come first in the queue, which were made on the way.
        shield: ``removed``, the actions that a rule beyond the mask removes, each with name and rule; ``rule``, the one against what the
            policy proposed, None when the proposal stands; ``proposed``, its name; ``counts`` of this and of the decisions ahead.
        fallback: ``used``, ``reason`` and ``policy``: whether a judge answered in the policy's place, why, and which it is.
        explanation: shares of the features in the choice against the runner-up (``envs.explain``), when asked for and there are two.
        question: what was answered, for the log; None when nothing was asked.
    """

    job_id: str
    time: str
    chosen: Candidate
    blocked: bool
    reasons: tuple[str, ...]
    alternatives: tuple[Candidate, ...]
    ahead: tuple[str, ...]
    policy: str
    shield: dict[str, Any]
    fallback: dict[str, Any]
    explanation: dict[str, Any] | None = None
    question: Question | None = None


def decide(
    snapshot: Snapshot,
    job_id: str,
    policy: Policy,
    reward: RewardSpec,
    *,
    shield: ShieldConfig | None = None,
    ages: Ages | None = None,
    explained: bool = False,
    explore: Exploration | None = None,
    uniform: float = 0.0,
) -> Decision:
    """Ask ``policy``, behind the shield, about ``job_id``, after the jobs that come before it in the policy's queue order.

    Args:
        ages: of the snapshot and of the newest price; beyond the limits of ``shield`` its fallback answers.
        explained: whether the decision carries an explanation.
        explore: how far the answer may stray among what the shield leaves, drawn by ``uniform`` in [0, 1); None = not at all. Answers of
            the fallback, and those on jobs ahead, never stray.

    Raises:
        JobRefusedError: no empty cluster could run the job within its limits.
        InputError: the snapshot is inconsistent.
    """
    simulator = restore(snapshot, policy.settings, reward)
    _refuse_impossible(simulator, job_id)
    guarded = shielded(policy, shield or ShieldConfig(), snapshot.cluster)
    target = simulator.world.job_ids[0].index(job_id)
    ahead: list[str] = []
    observation = simulator.observe()
    while not simulator.done[0] and int(simulator.asking[0]) != target:
        action = int(guarded.decide(observation, simulator.layout, ages).actions[0])
        ahead.append(f"{simulator.world.job_ids[0][int(simulator.asking[0])]}: {_verb(simulator, action)}")
        simulator.step(np.array([action]))
        observation = simulator.observe()
    if simulator.done[0]:
        return _blocked(simulator, target, guarded, tuple(ahead), guarded.too_old(ages))
    observed = observation.copy()
    answer = guarded.decide(observed, simulator.layout, ages)
    question = _question(simulator.layout, guarded, answer, explore or Exploration(), uniform)
    action, own = question.action, int(answer.actions[0])
    candidates = _marked(candidates_of(simulator), simulator, guarded, answer, observed)
    chosen = candidates[action]
    strayed = () if action == own else (_strayed(question, candidates[own]),)
    others = sorted((c for c in candidates if c.action != action), key=lambda c: (not c.allowed, c.objective_usd or 0.0, c.action))
    return Decision(
        job_id,
        iso_time(simulator, simulator.state.time_s[0]),
        chosen,
        False,
        (*_interventions(answer, candidates, guarded), *strayed, *_reasons(simulator, target, chosen, candidates)),
        tuple(others),
        tuple(ahead),
        policy.name,
        _shield_record(answer, candidates, guarded),
        _fallback_record(answer.reasons[0], guarded, answered=ANSWERED_BY[answer.answered_by[0]]),
        _explanation(simulator, guarded, answer, candidates) if explained and not strayed else None,
        question,
    )


# ---------------------------------------------------------------- exploration


def _question(
    layout: ObservationLayout, guarded: ShieldedPolicy, answer: ShieldedDecisions, explore: Exploration, uniform: float
) -> Question:
    """The question as answered; the draw comes after the shield, so that nothing it removes can be drawn."""
    allowed, answered = answer.removed[0] == KEPT, ANSWERED_BY[answer.answered_by[0]]
    row = answer.rows[:1].copy()
    layout.candidates(row)[0][~allowed] = 0.0
    if answer.reasons[0] or not answered.startswith("policy"):
        explore, answered = Exploration(), "fallback" if answer.reasons[0] else answered
    chances = explore.propensities(guarded.policy, row, layout, allowed=allowed[None], own=answer.actions[:1])
    action = int(drawn(chances, np.array([uniform]))[0])
    if action != answer.actions[0]:
        answered = "explored"
    return Question(row[0], layout, allowed, chances[0], action, answered)


def _strayed(question: Question, own: Candidate) -> str:
    chance = question.propensities[question.action]
    return f"explored: drawn with probability {chance:.3f} in place of the policy's own choice ({own.name})"


# ---------------------------------------------------------------- shield, fallback, explanation


def _decider(guarded: ShieldedPolicy, answer: ShieldedDecisions) -> Policy:
    return guarded.policy if ANSWERED_BY[answer.answered_by[0]].startswith("policy") else guarded.fallback


def _marked(
    candidates: list[Candidate], simulator: Simulator, guarded: ShieldedPolicy, answer: ShieldedDecisions, observed: np.ndarray
) -> list[Candidate]:
    """The candidates with the rules of the shield, the look-ahead score, and what the policy that decided thinks of them."""
    layout, decider = simulator.layout, _decider(guarded, answer)
    row = observed[0] if not answer.reasons[0] else answer.rows[0]
    ranked = preferences(decider, row, layout)
    shares = probabilities(ranked) if ranked is not None and decider.name == "agent" and np.isfinite(ranked).any() else None
    scores = layout.candidates(observed)[0, :, layout.score_index]
    marked = []
    for candidate in candidates:
        a, rule = candidate.action, RULES[answer.removed[0, candidate.action]]
        if candidate.objective_usd is None:
            marked.append(candidate)
            continue
        marked.append(
            replace(
                candidate,
                allowed=not rule,
                rule=rule,
                why_not=f"shield: {RULE_WORDS[rule]}" if rule else "",
                score=float(scores[a]) if np.isfinite(scores[a]) else None,
                preference=float(ranked[a]) + 0.0 if ranked is not None and np.isfinite(ranked[a]) else None,
                probability=None if shares is None else float(shares[a]),
            )
        )
    return marked


def _shield_record(answer: ShieldedDecisions, candidates: list[Candidate], guarded: ShieldedPolicy) -> dict[str, Any]:
    removed = [
        {"action": candidate.action, "name": candidate.name, "rule": candidate.rule}
        for candidate in candidates
        if candidate.rule and candidate.objective_usd is not None
    ]
    proposal = int(answer.proposals[0])
    named = candidates[proposal].name if 0 <= proposal < len(candidates) else None
    counts = {name: count for name, count in sorted(guarded.counts.items()) if count}
    return {"removed": removed, "rule": RULES[answer.overruled[0]] or None, "proposed": named, "counts": counts}


def _fallback_record(reason: str, guarded: ShieldedPolicy, *, answered: str) -> dict[str, Any]:
    used = bool(reason) or answered in ("fallback", "least_score")
    if used and not reason:
        reason = f"'{guarded.policy.name}' proposed twice what the shield removes"
    return {"used": used, "reason": reason or None, "policy": guarded.fallback.name}


def _interventions(answer: ShieldedDecisions, candidates: list[Candidate], guarded: ShieldedPolicy) -> tuple[str, ...]:
    """What shield and fallback did, as reasons."""
    said = []
    if answer.reasons[0]:
        said.append(f"FALLBACK: the judge '{guarded.fallback.name}' decides, because {answer.reasons[0]}")
    if rule := RULES[answer.overruled[0]]:
        proposal = int(answer.proposals[0])
        named = candidates[proposal].name if 0 <= proposal < len(candidates) else f"action {proposal}"
        said.append(f"the shield refused what '{guarded.policy.name}' proposed ({named}): {RULE_WORDS[rule]}")
    if answer.yielded[0]:
        said.append("no power level at or above the least of its class is possible; the shield let a lower one pass")
    return tuple(said)


def _explanation(
    simulator: Simulator, guarded: ShieldedPolicy, answer: ShieldedDecisions, candidates: list[Candidate]
) -> dict[str, Any] | None:
    """Against the candidate that the deciding policy ranks next; None where there is no other, or the policy ranks in no known way."""
    layout, action, row = simulator.layout, int(answer.actions[0]), answer.rows[0]
    decider = _decider(guarded, answer)
    ranked = preferences(decider, row, layout)
    others = [c.action for c in candidates if c.allowed and c.action != action and ranked is not None and np.isfinite(ranked[c.action])]
    if ranked is None or not others or not np.isfinite(ranked[action]):
        return None
    runner_up = max(others, key=lambda a: ranked[a])
    why = explain(decider, row, layout, action, runner_up)
    parts = score_parts(objective_parts(simulator, candidates), row, layout, action, runner_up)
    return {
        **asdict(why),
        "policy": decider.name,
        "chosen": candidates[action].name,
        "runner_up": candidates[runner_up].name,
        "score_parts": parts,
    }


def _refuse_impossible(simulator: Simulator, job_id: str) -> None:
    reason = rejection(simulator, job_id)
    if reason is None:
        return
    world = simulator.world
    jobs, cluster = world.jobs, world.cluster
    job = world.job_ids[0].index(job_id)
    gpus = jobs.workers[0, job] * jobs.gpu_milli[0, job] / 1000
    models = ", ".join(sorted({pool.gpu_model for pool in cluster.pools}))
    if reason == "no_gpu_model":
        raise JobRefusedError(f"no pool has the GPU model that it asks for; there are {models}")
    if reason == "too_large":
        sizes = ", ".join(f"{pool.name} {pool.nodes} x {pool.gpus_per_node}" for pool in cluster.pools)
        shape = f"{int(jobs.workers[0, job])} workers of {jobs.gpu_milli[0, job] / 1000:g} GPUs"
        raise JobRefusedError(f"{shape} fit no pool even when empty (nodes x GPUs: {sizes})")
    allowed = jobs.pool_mask[0, job]
    least = gpus * world.static.gpu_power_w[allowed][:, :, jobs.curve[0, job]].min()
    raise JobRefusedError(
        f"max_watts {jobs.max_watts[0, job]:g} is impossible: at the lowest power level its {gpus:g} GPUs draw {least:.0f} W or more"
    )


def _blocked(simulator: Simulator, job: int, guarded: ShieldedPolicy, ahead: tuple[str, ...], stale: str) -> Decision:
    policy = guarded.policy
    state, world = simulator.state, simulator.world
    levels = len(world.cluster.level_fractions)
    others = [
        Candidate(
            action=1 + pool * levels + level,
            verb="run",
            allowed=False,
            why_not=why_masked(simulator, job, pool, level),
            rule="mask",
            **place_of(simulator, pool, level),
        )
        for pool in range(len(world.cluster.pools))
        for level in range(levels)
    ]
    reasons = ["no pool can place it now; it is asked again as soon as something changes"]
    if policy.settings.discipline == "strict":
        reasons.append("the policy serves its queue strictly in order")
    hold = Candidate(action=0, verb="hold", pool=None, site=None, level=None, power_limit=None, allowed=True)
    moment = iso_time(simulator, state.time_s[0])
    counts = {name: count for name, count in sorted(guarded.counts.items()) if count}
    record = {"removed": [], "rule": None, "proposed": None, "counts": counts}
    fallback = _fallback_record(stale, guarded, answered="policy")
    return Decision(world.job_ids[0][job], moment, hold, True, tuple(reasons), tuple(others), ahead, policy.name, record, fallback)


def _reasons(simulator: Simulator, job: int, chosen: Candidate, candidates: list[Candidate]) -> tuple[str, ...]:
    allowed = [candidate for candidate in candidates if candidate.allowed]
    reasons = [_against_the_best(chosen, allowed)]
    state, world = simulator.state, simulator.world
    if chosen.verb == "hold":
        reasons.append(f"planned: {chosen.pool} at {chosen.power_limit:.0%} power from {chosen.start}")
    pool = next(index for index, spec in enumerate(world.cluster.pools) if spec.name == chosen.pool)
    reasons.append(_price_now(simulator, int(world.static.pool_site[pool])))
    if chosen.nodes_woken:
        reasons.append(f"wakes {chosen.nodes_woken} sleeping node{'s' if chosen.nodes_woken > 1 else ''}")
    end = int(state.expected_end_s[0, chosen.action])
    slack_h = (int(world.jobs.deadline_s[0, job]) - end) / 3600
    reasons.append(f"finishes {abs(slack_h):.1f} h {'before' if slack_h >= 0 else 'AFTER'} its deadline")
    if np.isfinite(world.jobs.max_watts[0, job]) and chosen.verb == "run":
        watts = gpu_watts(simulator, job, pool, int(chosen.level or 0))
        reasons.append(f"its GPUs draw {watts:.0f} W, within max_watts {world.jobs.max_watts[0, job]:g}")
    return tuple(reasons)


def _against_the_best(chosen: Candidate, allowed: list[Candidate]) -> str:
    if len(allowed) == 1:
        return "the only choice allowed"
    rest = [candidate for candidate in allowed if candidate.action != chosen.action]
    best = min(rest, key=lambda candidate: candidate.objective_usd or 0.0)
    gap = (best.objective_usd or 0.0) - (chosen.objective_usd or 0.0)
    if gap >= 0:
        return f"least expected objective of {len(allowed)} allowed choices, {gap:.3f} USD below the next ({best.name})"
    return f"the policy prefers it although {best.name} is expected to be {-gap:.3f} USD better by itself"


def _price_now(simulator: Simulator, site: int) -> str:
    world = simulator.world
    now = int(simulator.state.time_s[0])
    price, carbon = world.grid.price[0, site], world.grid.carbon[0, site]
    column = grid_column(simulator)
    ahead = forecast_integral(simulator, price, now, now + DAY_S) / 24
    relative = f", {(price[column] - ahead) / abs(ahead):+.0%} against the next 24 h by forecast" if abs(ahead) > 1e-6 else ""
    name = world.cluster.sites[site].name
    return f"power in {name} costs {price[column]:.4f} USD/kWh now{relative}, at {1000 * carbon[column]:.0f} gCO2/kWh"


def _verb(simulator: Simulator, action: int) -> str:
    if action == 0:
        return "hold"
    place = place_of(simulator, *divmod(action - 1, len(simulator.world.cluster.level_fractions)))
    return f"run in {place['pool']} at {place['power_limit']:.0%} power"

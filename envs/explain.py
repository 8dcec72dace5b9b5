"""Why one candidate and not the other: shares of the features in the difference of what the policy ranks by.

A policy ranks candidates by a *preference*: the agent by its logit, a judge by minus its score. The agent's logit is

    logit[a] = -kappa x starting score[a] + residual(candidate a | job, queue, hour, all candidates)

Two candidates of one question share everything to the right of the bar, so the difference of their logits is one of their own features:
the first term's belongs to ``score`` exactly, and the residual's is divided by integrated gradients (Sundararajan et al. 2017) along the
straight line from the runner-up's features to the chosen one's, the rest held. The network is piecewise linear, so the integral is taken
exactly, piece by piece, and the shares sum to the difference of the logits (``check``, at most 1e-6 off). Plain numpy in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from envs.agent.policy import AgentPolicy
from envs.heuristics import Judge
from envs.kernel_choosers import GREEDY, LOOKAHEAD, PLANNER, ROOMIEST, TIGHTEST
from envs.observation import CANDIDATE_FEATURES, ObservationLayout
from envs.state import Policy
from telemetry.errors import InputError

NAMES: tuple[str, ...] = tuple(name for name, _ in CANDIDATE_FEATURES)
COMPLETENESS = 1e-6
AGENT_METHOD = (
    "score term exact; residual by integrated gradients from the runner-up to the chosen candidate, with job, queue, hour and context "
    "held, integrated exactly piece by piece"
)
JUDGE_METHOD = "the judge ranks by this feature alone"


@dataclass(frozen=True)
class Explanation:
    """Why ``chosen`` ranks above ``runner_up``; shares in units of the preference, by feature, zeros left out, largest first.

    Attributes:
        difference: preference of the chosen candidate minus the runner-up's; negative when the shield or a rule of the judge chose.
        lookahead: part of the difference that is the score's that the agent started from (planner or look-ahead).
        residual: part that is the network's; 0 for a judge.
        check: what the shares' sum misses the difference by.
    """

    chosen: int
    runner_up: int
    method: str
    difference: float
    lookahead: float
    residual: float
    shares: dict[str, float]
    check: float


def preferences(policy: Policy, row: np.ndarray, layout: ObservationLayout) -> np.ndarray | None:
    """What ``policy`` ranks the candidates of an observation ``[D]`` by, float64 ``[A]``, -inf where the mask excludes; None if unknown."""
    candidates = layout.candidates(row[None])[0].astype(np.float64)
    if isinstance(policy, AgentPolicy):
        values = _Network(policy, row, layout).logits()
    elif isinstance(policy, Judge) and policy.chooser in (PLANNER, LOOKAHEAD, GREEDY, ROOMIEST, TIGHTEST):
        values = _judge_values(policy.chooser, candidates)
    else:
        return None
    return np.where(candidates[:, 0] > 0.5, values, -np.inf)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits ``[A]``; 0 where they are -inf."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def explain(policy: Policy, row: np.ndarray, layout: ObservationLayout, chosen: int, runner_up: int) -> Explanation:
    """Shares of the features in the preference of ``chosen`` over ``runner_up``, both allowed by the mask in ``row`` ``[D]``.

    Raises:
        InputError: a candidate that the mask excludes, or a policy that is neither an agent nor a judge.
    """
    ranked = preferences(policy, row, layout)
    if ranked is None:
        raise InputError(f"policy '{policy.name}'", where="explain", allowed="an agent or a judge")
    for action in (chosen, runner_up):
        if not np.isfinite(ranked[action]):
            raise InputError(f"action {action} ({layout.action_name(action)}) is masked", where="explain")
    difference = float(ranked[chosen] - ranked[runner_up])
    if isinstance(policy, AgentPolicy):
        network = _Network(policy, row, layout)
        shares = network.residual_shares(chosen, runner_up)
        residual = float(network.residuals[chosen] - network.residuals[runner_up])
        step = network.candidates[chosen] - network.candidates[runner_up]
        shares[policy.score_index] -= network.kappa * step[policy.score_index]
        named, method = dict(zip(NAMES, shares.tolist(), strict=True)), AGENT_METHOD
    else:
        assert isinstance(policy, Judge)
        residual, method = 0.0, JUDGE_METHOD
        named = {_judge_feature(policy.chooser, layout.candidates(row[None])[0], chosen, runner_up): difference}
    check = abs(sum(named.values()) - difference)
    assert check <= COMPLETENESS * max(1.0, abs(difference)), f"shares miss the difference by {check}"
    ordered = {name: share for name, share in sorted(named.items(), key=lambda item: -abs(item[1])) if share != 0.0}
    return Explanation(chosen, runner_up, method, difference, difference - residual, residual, ordered, check)


def score_parts(parts: dict[str, np.ndarray], row: np.ndarray, layout: ObservationLayout, chosen: int, runner_up: int) -> dict[str, float]:
    """The difference of two look-ahead scores (chosen minus runner-up, less is better) by the parts of the objective.

    Args:
        parts: USD ``[A]`` by ``envs.candidates.OBJECTIVE_PARTS``, NaN where the mask excludes.

    Returns:
        A share of the difference for each part, and ``rounding``: what single precision and the bounds of the feature take away.
    """
    total = np.sum(list(parts.values()), axis=0)
    scale = max(abs(float(np.nanmin(total))), 1e-6)
    shares = {name: float(values[chosen] - values[runner_up]) / scale for name, values in parts.items()}
    scores = layout.candidates(row[None])[0, :, layout.score_index].astype(np.float64)
    shares["rounding"] = float(scores[chosen] - scores[runner_up]) - sum(shares.values())
    return shares


def _judge_values(chooser: int, candidates: np.ndarray) -> np.ndarray:
    """Minus the score; of judges without prices the free GPUs, or the fewest nodes woken and then the fewest free GPUs."""

    def feature(name: str) -> np.ndarray:
        return candidates[:, NAMES.index(name)]

    if chooser == PLANNER:
        return -feature("planned")
    if chooser == LOOKAHEAD:
        return -feature("score")
    runs = np.arange(len(candidates)) > 0
    if chooser == GREEDY:
        return np.where(runs, -feature("greedy_score"), -np.inf)
    stays = 1e6 * feature("is_current")
    if chooser == ROOMIEST:
        return np.where(runs, feature("free_gpus") + stays, -np.inf)
    return np.where(runs, stays - 1e3 * feature("nodes_woken") - feature("free_gpus"), -np.inf)


def _judge_feature(chooser: int, candidates: np.ndarray, chosen: int, runner_up: int) -> str:
    """The feature that decides between two candidates."""
    if chooser == PLANNER:
        return "planned"
    if chooser in (LOOKAHEAD, GREEDY):
        return "score" if chooser == LOOKAHEAD else "greedy_score"
    ordered = ("is_current", "free_gpus") if chooser == ROOMIEST else ("is_current", "nodes_woken", "free_gpus")
    differing = [name for name in ordered if candidates[chosen, NAMES.index(name)] != candidates[runner_up, NAMES.index(name)]]
    return differing[0] if differing else ordered[-1]


class _Network:
    """The agent's network on one row, in float64."""

    def __init__(self, policy: AgentPolicy, row: np.ndarray, layout: ObservationLayout) -> None:
        w = {name: values.astype(np.float64) for name, values in policy.weights.items()}
        split = layout.n_candidates * layout.n_candidate_features
        self.candidates = layout.candidates(row[None])[0].astype(np.float64)
        self.kappa, self.score_index = float(np.exp(np.float32(policy.weights["log_kappa"]))), policy.score_index
        self.first, self.second, self.out = w["from_candidate.weight"], w["mix.weight"], w["residual.weight"][0]
        self.first_bias = w["from_candidate.bias"] + w["from_global.weight"] @ row[split:].astype(np.float64)
        valid = self.candidates[:, 0] > 0.5
        embedded = np.maximum(self.candidates @ self.first.T + self.first_bias, 0.0)
        pooled = embedded[valid].mean(axis=0) if valid.any() else np.zeros(len(self.first_bias))
        self.second_bias = w["mix.bias"] + w["mix_context.weight"] @ pooled
        mixed = np.maximum(embedded @ self.second.T + self.second_bias, 0.0)
        self.residuals = mixed @ self.out + w["residual.bias"][0]

    def logits(self) -> np.ndarray:
        """Logits ``[A]``, masked candidates not yet left out."""
        return self.residuals - self.kappa * self.candidates[:, self.score_index]

    def residual_shares(self, chosen: int, runner_up: int) -> np.ndarray:
        """Exact integrated gradients ``[F]`` of the residual from the runner-up to the chosen candidate, context held.

        Along the line the first layer is linear between the places where a unit changes sign; in such a piece the second layer's inputs
        are linear too, and a unit is on for a part of it that follows from its two ends.
        """
        begin, end = self.candidates[runner_up], self.candidates[chosen]
        at, slope = self.first @ begin + self.first_bias, self.first @ (end - begin)
        with np.errstate(divide="ignore", invalid="ignore"):
            turns = -at / slope
        edges = np.unique(np.concatenate([[0.0], turns[(turns > 0.0) & (turns < 1.0)], [1.0]]))
        gradient = np.zeros(len(begin))
        for low, high in pairwise(edges.tolist()):
            on = at + slope * (0.5 * (low + high)) > 0.0
            ends = [self.second @ np.where(on, at + slope * t, 0.0) + self.second_bias for t in (low, high)]
            gradient += (high - low) * (((self.out * _share_on(*ends)) @ self.second * on) @ self.first)
        return gradient * (end - begin)


def _share_on(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Part of a piece in which units that go linearly from ``low`` to ``high`` are above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = low / (low - high)
    before, after = low > 0.0, high > 0.0
    return np.where(before & after, 1.0, np.where(before, crossing, np.where(after, 1.0 - crossing, 0.0)))

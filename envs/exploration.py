"""Deliberate variety in answers: probabilities by which a policy's choice is swapped for another safe one, so that logs teach.

A log of a policy that always answers the same says nothing of any other answer. With probability ``1 - epsilon`` the answer is drawn from a
softmax of what the policy ranks by, else evenly, both over *safe* candidates only: those that mask and shield allow, whose look-ahead score
is within ``within`` of the best, and (``sla_safe``) whose expected SLA penalty is not above that of the policy's own choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from envs.explain import preferences
from envs.heuristics import Judge
from envs.kernel_choosers import BEST_NODE, GREEDY, LOOKAHEAD, PLANNER
from envs.observation import CANDIDATE_FEATURES, GLOBAL_FEATURES, GREEDY_SCORE, PLANNED, PREFERRED_POOL, SCORE, ObservationLayout
from envs.state import Policy
from telemetry.errors import InputError

EXPECTED_PENALTY = [name for name, _ in CANDIDATE_FEATURES].index("expected_penalty")
OBJECTIVE = [name for name, _ in GLOBAL_FEATURES].index("objective")
_SCORES = {LOOKAHEAD: SCORE, GREEDY: GREEDY_SCORE, PLANNER: PLANNED}


@dataclass(frozen=True)
class Exploration:
    """How far answers stray.

    Attributes:
        temperature: of the softmax, in units of what the policy ranks by (a judge's relative score, an agent's logit); 0 = its own choice.
        epsilon: probability of an even draw among the safe candidates.
        within: look-ahead score above the best, relative, up to which a candidate is safe.
        sla_safe: whether a candidate with a higher expected SLA penalty than the policy's own choice is unsafe.
    """

    temperature: float = 0.0
    epsilon: float = 0.0
    within: float = 0.5
    sla_safe: bool = True

    def __post_init__(self) -> None:
        for name, most in (("temperature", math.inf), ("epsilon", 1.0), ("within", math.inf)):
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise InputError(f"{name} {value}", where="exploration", allowed="0 or more" if most == math.inf else f"0 to {most:g}")

    @property
    def none(self) -> bool:
        """Whether answers are the policy's own."""
        return self.temperature == 0.0 and self.epsilon == 0.0

    def propensities(
        self,
        policy: Policy,
        rows: np.ndarray,
        layout: ObservationLayout,
        *,
        allowed: np.ndarray | None = None,
        own: np.ndarray | None = None,
    ) -> np.ndarray:
        """Probability of every answer, float64 ``[B, A]``; rows sum to 1.

        Args:
            rows: observations float32 ``[B, D]``, each with an allowed action.
            allowed: what mask and shield leave, bool ``[B, A]``; None = the mask in the observation.
            own: the policy's own choices int64 ``[B]``; None = asked for here.
        """
        own = np.asarray(policy.act(rows, layout) if own is None else own, dtype=np.int64)
        everyone = np.arange(len(rows))
        chosen = np.zeros((len(rows), layout.n_candidates))
        chosen[everyone, own] = 1.0
        if self.none:
            return chosen
        safe = self.safe(rows, layout, own, allowed)
        if self.temperature > 0.0 and (ranked := ranks(policy, rows, layout)) is not None:
            chosen = _softmax(np.where(safe, ranked, -np.inf) / self.temperature, chosen)
        return (1.0 - self.epsilon) * chosen + self.epsilon * safe / safe.sum(axis=1, keepdims=True)

    def safe(self, rows: np.ndarray, layout: ObservationLayout, own: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
        """Candidates that may be drawn, bool ``[B, A]``; the policy's own choice is always among them."""
        candidates, everyone = layout.candidates(rows), np.arange(len(rows))
        open_ = layout.mask(rows) if allowed is None else np.array(allowed, dtype=np.bool_)
        score, penalty = candidates[..., SCORE], candidates[..., EXPECTED_PENALTY]
        least = np.where(open_, score, np.inf).min(axis=1, keepdims=True)
        safe = open_ & (score <= least + self.within)
        if self.sla_safe:
            safe &= penalty <= penalty[everyone, own][:, None]
        safe[everyone, own] = True
        return safe


def ranks(policy: Policy, rows: np.ndarray, layout: ObservationLayout) -> np.ndarray | None:
    """What ``policy`` ranks candidates by, larger is better, float64 ``[B, A]``; -inf where the mask excludes; None when not known."""
    if isinstance(policy, Judge) and policy.chooser in _SCORES:
        values = -layout.candidates(rows)[..., _SCORES[policy.chooser]].astype(np.float64)
        open_ = layout.mask(rows)
        if policy.chooser == GREEDY:
            open_ = open_ & (np.arange(layout.n_candidates) > 0)
        return np.where(open_, values, -np.inf)
    known = [preferences(policy, row, layout) for row in rows]
    return None if any(values is None for values in known) else np.array(known)


def blind_spot(policy: Policy, rows: np.ndarray, layout: ObservationLayout) -> str:
    """Why ``policy`` cannot answer questions that were put to another, or empty: they lack plans, or the pool of its node rule."""
    candidates, several = layout.candidates(rows), layout.mask(rows).sum(axis=1) > 1
    if policy.settings.plans and several.any() and not candidates[several][..., PLANNED].any():
        return f"'{policy.name}' decides by plans, and the policy that was asked keeps none"
    split = layout.n_candidates * layout.n_candidate_features
    if getattr(policy, "chooser", None) == BEST_NODE and not rows[:, split + PREFERRED_POOL].any():
        return f"'{policy.name}' decides by its node rule, and the policy that was asked has another"
    return ""


def answer_features(rows: np.ndarray, layout: ObservationLayout) -> tuple[np.ndarray, np.ndarray]:
    """What is known of each answer, float32 ``[N, A, F]`` (its candidate features, then the question's), and its scale in USD ``[N]``.

    The scale is the best allowed answer's expected objective, which the observation holds as its logarithm.
    """
    split = layout.n_candidates * layout.n_candidate_features
    shared = np.repeat(rows[:, None, split:], layout.n_candidates, axis=1)
    return np.concatenate([layout.candidates(rows), shared], axis=2), 10.0 ** rows[:, split + OBJECTIVE].astype(np.float64)


def drawn(propensities: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Actions int64 ``[B]`` by the inverse of each row's distribution function at ``uniform`` ``[B]`` in [0, 1)."""
    total = propensities.cumsum(axis=1)
    picked = (total > (uniform * total[:, -1])[:, None]).argmax(axis=1)
    return picked.astype(np.int64)


def uniform_of(*keys: np.ndarray | int) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on the keys alone (SplitMix64 of Steele, Lea and Flood 2014), shape of the keys together."""
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for key in keys:
            state = _mixed(np.asarray(key).astype(np.uint64) + state * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray((state >> np.uint64(11)).astype(np.float64) / 2.0**53)


def _mixed(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _softmax(logits: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Softmax of each row; rows in which nothing is finite are those of ``otherwise``."""
    top = logits.max(axis=1, keepdims=True)
    usable = np.isfinite(top)
    weights = np.exp(np.where(usable, logits - np.where(usable, top, 0.0), -np.inf))
    total = weights.sum(axis=1, keepdims=True)
    return np.where(usable, weights / np.where(total > 0, total, 1.0), otherwise)

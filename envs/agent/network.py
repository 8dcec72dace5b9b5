"""The action-scoring network of the agent, in torch, and its Stable-Baselines3 policy.

Every candidate action passes through the same weights (permutation-equivariant over pools and levels, in the manner of Deep Sets,
Zaheer et al. 2017), so that one network serves any number of pools. Logits start from the look-ahead judge's own scores:

    logit[a] = -kappa x look-ahead score[a] + residual[a],    residual = 0 at the start,

hence an untrained agent is the (softened) judge, and training only adds what improves on it.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from envs.observation import ObservationLayout

MASKED_LOGIT = -1e8


class ActionScorer(nn.Module):
    """Scores candidates and values states.

    Args:
        candidate_features: F, features per candidate; feature 0 is the mask, ``score_index`` the look-ahead score.
        global_features: G, features of job, queue and time.
        hidden: width H of the hidden layers.
        kappa: start of the learned inverse temperature on the look-ahead score.
    """

    def __init__(self, candidate_features: int, global_features: int, score_index: int, hidden: int = 64, kappa: float = 80.0) -> None:
        super().__init__()
        self.score_index = score_index
        self.from_candidate = nn.Linear(candidate_features, hidden)
        self.from_global = nn.Linear(global_features, hidden, bias=False)
        self.mix = nn.Linear(hidden, hidden)
        self.mix_context = nn.Linear(hidden, hidden, bias=False)
        self.residual = nn.Linear(hidden, 1)
        self.value_hidden = nn.Linear(hidden + global_features, hidden)
        self.value = nn.Linear(hidden, 1)
        self.log_kappa = nn.Parameter(torch.log(torch.tensor(float(kappa))))
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def forward(self, candidates: torch.Tensor, globals_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[B, A]`` and values ``[B]`` from candidates ``[B, A, F]`` and globals ``[B, G]``."""
        valid = candidates[..., 0] > 0.5
        embedded = torch.relu(self.from_candidate(candidates) + self.from_global(globals_)[:, None, :])
        weight = valid.to(embedded.dtype)
        pooled = torch.bmm(weight[:, None, :], embedded)[:, 0] / weight.sum(1, keepdim=True).clamp(min=1.0)
        mixed = torch.relu(self.mix(embedded) + self.mix_context(pooled)[:, None, :])
        logits = self.residual(mixed)[..., 0] - torch.exp(self.log_kappa) * candidates[..., self.score_index]
        value = self.value(torch.relu(self.value_hidden(torch.cat([pooled, globals_], dim=-1))))[..., 0]
        return torch.where(valid, logits, torch.full_like(logits, MASKED_LOGIT)), value


class CandidatePolicy(ActorCriticPolicy):
    """Stable-Baselines3 policy around :class:`ActionScorer`; the mask travels inside the observation."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        *,
        layout: ObservationLayout,
        score_index: int,
        hidden: int = 64,
        kappa: float = 80.0,
        **kwargs: Any,
    ) -> None:
        self.layout = layout
        self.scorer_options = {"score_index": score_index, "hidden": hidden, "kappa": kappa}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        layout = self.layout
        self.scorer = ActionScorer(layout.n_candidate_features, layout.n_global_features, **self.scorer_options)
        self.action_dist = CategoricalDistribution(layout.n_candidates)
        self.optimizer = self.optimizer_class(self.scorer.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _score(self, obs: torch.Tensor) -> tuple[CategoricalDistribution, torch.Tensor]:
        layout = self.layout
        split = layout.n_candidates * layout.n_candidate_features
        candidates = obs[:, :split].reshape(-1, layout.n_candidates, layout.n_candidate_features)
        logits, value = self.scorer(candidates, obs[:, split:])
        return self.action_dist.proba_distribution(action_logits=logits), value

    def forward(self, obs: torch.Tensor, deterministic: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution, value = self._score(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, value[:, None], distribution.log_prob(actions)

    def evaluate_actions(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        distribution, value = self._score(obs)
        return value[:, None], distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: torch.Tensor) -> CategoricalDistribution:
        return self._score(obs)[0]

    def predict_values(self, obs: torch.Tensor) -> torch.Tensor:
        return self._score(obs)[1][:, None]

    def _predict(self, observation: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        return self._score(observation)[0].get_actions(deterministic=deterministic)

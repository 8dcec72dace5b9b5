"""PPO (Stable-Baselines3) on the compiled VecEnv: validated, checkpointed, resumable to the bit on one machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import set_random_seed

from envs.agent.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from envs.agent.config import AgentConfig
from envs.agent.network import CandidatePolicy
from envs.agent.policy import AgentPolicy
from envs.agent.ppo import CompiledPPO
from envs.state import PolicySettings
from envs.vec_env import ClusterVecEnv

Metrics = Callable[[int, dict[str, float]], None]
Validate = Callable[[AgentPolicy], float]


@dataclass
class TrainingResult:
    """What training leaves behind.

    Attributes:
        policy: the best validated policy (the untrained one when nothing was better).
        best_step: decisions after which it was found; 0 = the start.
        validation: ``(step, objective)`` of every validation, lower is better.
        curve: ``(step, metrics)`` per rollout.
    """

    policy: AgentPolicy
    best_step: int
    best_objective: float
    validation: list[tuple[int, float]] = field(default_factory=list)
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class _Capture(KVWriter):
    """Keeps the last values that Stable-Baselines3 logged."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.last = {key: float(value) for key, value in key_values.items() if isinstance(value, int | float | np.floating)}

    def close(self) -> None:
        """Nothing to release."""


class _Trainer(BaseCallback):
    """Validates, keeps the best weights, checkpoints, and stops early, always between two rollouts."""

    def __init__(self, config: AgentConfig, settings: PolicySettings, validate: Validate, checkpoint: Path | None, report: Metrics) -> None:
        super().__init__()
        self.config, self.settings, self.validate, self.checkpoint, self.report = config, settings, validate, checkpoint, report
        self.capture = _Capture()
        self.rollouts = 0
        self.best_objective = float("inf")
        self.best_step = 0
        self.best_weights: dict[str, np.ndarray] = {}
        self.stale = 0
        self.validation: list[tuple[int, float]] = []
        self.curve: list[tuple[int, dict[str, float]]] = []
        self.stopping = False

    def export(self) -> AgentPolicy:
        scorer = self.model.policy.scorer
        weights = {key: value.detach().cpu().numpy().copy() for key, value in scorer.state_dict().items()}
        return AgentPolicy(weights, self.settings, scorer.score_index)

    def _validate(self) -> None:
        policy = self.export()
        objective = float(self.validate(policy))
        self.validation.append((self.model.num_timesteps, objective))
        self.report(self.model.num_timesteps, {"validation/objective_usd": objective})
        if objective < self.best_objective:
            self.best_objective, self.best_step, self.best_weights, self.stale = objective, self.model.num_timesteps, policy.weights, 0
        else:
            self.stale += 1
        self.stopping = bool(self.config.patience) and self.stale >= self.config.patience

    def _on_rollout_start(self) -> None:
        if self.rollouts and self.capture.last:
            metrics = dict(self.capture.last)
            self.curve.append((self.model.num_timesteps, metrics))
            self.report(self.model.num_timesteps, metrics)
        if self.checkpoint is not None and self.rollouts and self.rollouts % self.config.checkpoint_every == 0:
            self._save()
        if self.rollouts % self.config.validate_every == 0:
            self._validate()
        warmup = self.rollouts < self.config.value_warmup
        for name, parameter in self.model.policy.scorer.named_parameters():
            parameter.requires_grad_(name.startswith("value") or not warmup)
        self.rollouts += 1

    def _on_step(self) -> bool:
        return not self.stopping

    def _on_rollout_end(self) -> None:
        rewards = self.model.rollout_buffer.rewards
        self.logger.record("rollout/reward_per_decision", float(rewards.mean()))
        actions = self.model.rollout_buffer.actions
        self.logger.record("rollout/share_hold", float((actions == 0).mean()))

    def _save(self) -> None:
        extra = {
            "rollouts": self.rollouts,
            "best_objective": self.best_objective,
            "best_step": self.best_step,
            "stale": self.stale,
            "validation": self.validation,
            "curve": self.curve,
        }
        save_checkpoint(self.checkpoint, self.model, extra, self.best_weights)

    def restore(self, extra: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint's trainer state."""
        self.rollouts, self.stale = int(extra["rollouts"]), int(extra["stale"])
        self.best_objective, self.best_step = float(extra["best_objective"]), int(extra["best_step"])
        self.validation = [(int(step), float(value)) for step, value in extra["validation"]]
        self.curve = [(int(step), dict(values)) for step, values in extra["curve"]]
        self.best_weights = arrays


def make_model(env: ClusterVecEnv, config: AgentConfig, seed: int) -> CompiledPPO:
    """The untrained agent in its environments."""
    set_random_seed(seed)
    return CompiledPPO(
        CandidatePolicy,
        env,
        learning_rate=config.learning_rate,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        target_kl=config.target_kl,
        policy_kwargs={
            "layout": env.layout,
            "hidden": config.hidden,
            "kappa": config.kappa,
            "optimizer_kwargs": {"eps": 1e-5, "fused": True},
        },
        seed=seed,
        threads=config.threads,
        device="cpu",
    )


def train_agent(
    env: ClusterVecEnv,
    settings: PolicySettings,
    config: AgentConfig,
    validate: Validate,
    *,
    seed: int,
    checkpoint: Path | None = None,
    report: Metrics = lambda step, metrics: None,
) -> TrainingResult:
    """Train the agent, or continue where a killed run left its checkpoint.

    Args:
        env: training environments; ``config.num_envs`` of them.
        validate: objective of a policy on held-out windows, lower is better.
        checkpoint: folder of the checkpoint; None trains without one.
        report: called with ``(step, metrics)`` after each rollout and validation.

    Returns:
        The best policy that validation accepted.
    """
    model = make_model(env, config, seed)
    trainer = _Trainer(config, settings, validate, checkpoint, report)
    model.set_logger(Logger(folder=None, output_formats=[trainer.capture]))
    remaining = config.total_steps
    if checkpoint is not None and has_checkpoint(checkpoint):
        trainer.model = model
        trainer.restore(*load_checkpoint(checkpoint, model))
        remaining -= model.num_timesteps
    if remaining > 0:
        model.learn(remaining, callback=trainer, reset_num_timesteps=False, log_interval=1)
    trainer.model = model
    if not trainer.validation or trainer.validation[-1][0] != model.num_timesteps:
        trainer._validate()
    best = AgentPolicy(trainer.best_weights, settings, model.policy.scorer.score_index)
    return TrainingResult(best, trainer.best_step, trainer.best_objective, trainer.validation, trainer.curve)

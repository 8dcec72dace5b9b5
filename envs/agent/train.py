"""PPO (Stable-Baselines3) on the compiled VecEnv: validated, checkpointed, resumable to the bit on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed

from envs.agent.checkpoint import has_checkpoint, load_checkpoint, load_scorer, save_checkpoint
from envs.agent.config import AgentConfig
from envs.agent.network import CandidatePolicy
from envs.agent.policy import AgentPolicy
from envs.agent.ppo import CompiledPPO
from envs.agent.selection import Verdict, halves, verdict
from envs.agent.tracking import Capture, action_shares, episode_means
from envs.multi_world import MultiWorldVecEnv
from envs.state import PolicySettings
from envs.vec_env import ClusterVecEnv

Metrics = Callable[[int, dict[str, float]], None]
Validate = Callable[[AgentPolicy], float | np.ndarray]


@dataclass
class TrainingResult:
    """What training leaves behind.

    Attributes:
        policy: the best validated policy when it is better than the judge, else the untrained one, which decides as the judge.
        best_step: decisions after which the best weights were found; 0 = the start.
        best_objective: their mean objective on the windows to choose on.
        validation: ``(step, objective)`` of every validation on the windows to choose on, lower is better.
        confirmation: the same on the windows to confirm on.
        curve: ``(step, metrics)`` per rollout.
        verdict: the best weights against the judge on the windows to confirm on.
        windows: objectives ``[W]`` of the best weights on all validation windows.
        judge: objectives ``[W]`` of the judge.
        stopped_early: whether patience ran out.
    """

    policy: AgentPolicy
    best_step: int
    best_objective: float
    validation: list[tuple[int, float]] = field(default_factory=list)
    confirmation: list[tuple[int, float]] = field(default_factory=list)
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    verdict: Verdict | None = None
    windows: np.ndarray = field(default_factory=lambda: np.zeros(0))
    judge: np.ndarray = field(default_factory=lambda: np.zeros(0))
    stopped_early: bool = False

    @property
    def improved(self) -> bool:
        """Whether the agent is better than the judge that it started from."""
        return self.verdict is not None and self.verdict.improved


class _Trainer(BaseCallback):
    """Validates, keeps the best weights, checkpoints, and stops early, always between two rollouts."""

    def __init__(
        self,
        config: AgentConfig,
        settings: PolicySettings,
        validate: Validate,
        checkpoint: Path | None,
        report: Metrics,
        judge: np.ndarray | None,
    ) -> None:
        super().__init__()
        self.config, self.settings, self.validate, self.checkpoint, self.report = config, settings, validate, checkpoint, report
        self.capture = Capture()
        self.rollouts = 0
        self.judge = judge
        self.best_objective = float("inf")
        self.best_step = 0
        self.best_weights: dict[str, np.ndarray] = {}
        self.start_weights: dict[str, np.ndarray] = {}
        self.best_windows = np.zeros(0)
        self.stale = 0
        self.validation: list[tuple[int, float]] = []
        self.confirmation: list[tuple[int, float]] = []
        self.curve: list[tuple[int, dict[str, float]]] = []
        self.ended: list[dict[str, Any]] = []
        self.pending = False

    @property
    def stopping(self) -> bool:
        """Whether patience has run out."""
        return bool(self.config.patience) and self.stale >= self.config.patience

    def export(self) -> AgentPolicy:
        scorer = self.model.policy.scorer
        weights = {key: value.detach().cpu().numpy().copy() for key, value in scorer.state_dict().items()}
        return AgentPolicy(weights, self.settings, scorer.score_index)

    def _validate(self) -> None:
        step, policy = self.model.num_timesteps, self.export()
        windows = np.atleast_1d(np.asarray(self.validate(policy), dtype=np.float64))
        choosing, confirming = halves(len(windows))
        objective, confirmation = float(windows[choosing].mean()), float(windows[confirming].mean())
        if not self.validation:
            self.start_weights = self.start_weights or policy.weights
            self.judge = windows if self.judge is None else self.judge
        self.validation.append((step, objective))
        self.confirmation.append((step, confirmation))
        judge = float(self.judge[choosing].mean())
        metrics = {"validation/objective_usd": objective, "validation/confirmation_usd": confirmation, "validation/judge_usd": judge}
        self.report(step, metrics)
        if objective < self.best_objective:
            self.best_objective, self.best_step, self.best_weights, self.best_windows, self.stale = (
                objective,
                step,
                policy.weights,
                windows,
                0,
            )
        else:
            self.stale += 1

    def _record(self) -> None:
        """Metrics of the last rollout and update, once."""
        if not self.pending:
            return
        self.pending = False
        self.model.dump_logs(self.rollouts)
        metrics = self.capture.take()
        self.curve.append((self.model.num_timesteps, metrics))
        self.report(self.model.num_timesteps, metrics)

    def _on_rollout_start(self) -> None:
        self._record()
        if self.checkpoint is not None and self.rollouts and self.rollouts % self.config.checkpoint_every == 0:
            self.save()
        if self.rollouts % self.config.validate_every == 0:
            self._validate()
        warmup = self.rollouts < self.config.value_warmup
        for name, parameter in self.model.policy.scorer.named_parameters():
            parameter.requires_grad_(name.startswith("value") or not warmup)
        self.rollouts += 1
        self.ended = []

    def _on_step(self) -> bool:
        self.ended += [info for info in self.locals["infos"] if info]
        return not self.stopping

    def _on_rollout_end(self) -> None:
        buffer, layout = self.model.rollout_buffer, self.model.policy.layout
        shares = action_shares(layout, buffer.flat("observations"), buffer.flat("actions"))
        env = self.model.get_env()
        metrics = {"rollout/reward_per_decision": float(buffer.rewards.mean()), **shares, **episode_means(self.ended)}
        name = "regret" if env.reward_mode == "regret" else "cost"
        metrics[f"rollout/{name}_per_decision_usd"] = -float((buffer.rewards * env.scales_usd).mean())
        for name, value in metrics.items():
            self.logger.record(name, value)
        self.pending = True

    def finish(self) -> None:
        """After the last rollout: its metrics, a checkpoint (from which a longer run could go on), and a last validation."""
        unsaved = self.pending or self.stopping
        self._record()
        if self.checkpoint is not None and unsaved:
            self.save()
        if not self.stopping and (not self.validation or self.validation[-1][0] != self.model.num_timesteps):
            self._validate()

    def save(self) -> None:
        extra = {
            "rollouts": self.rollouts,
            "best_objective": self.best_objective,
            "best_step": self.best_step,
            "best_windows": self.best_windows.tolist(),
            "judge": None if self.judge is None else self.judge.tolist(),
            "stale": self.stale,
            "validation": self.validation,
            "confirmation": self.confirmation,
            "curve": self.curve,
        }
        arrays = {f"best.{key}": value for key, value in self.best_weights.items()}
        arrays |= {f"start.{key}": value for key, value in self.start_weights.items()}
        save_checkpoint(self.checkpoint, self.model, extra, arrays)

    def restore(self, extra: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint's trainer state."""
        self.rollouts, self.stale = int(extra["rollouts"]), int(extra["stale"])
        self.best_objective, self.best_step = float(extra["best_objective"]), int(extra["best_step"])
        self.best_windows = np.array(extra["best_windows"])
        self.judge = None if extra["judge"] is None else np.array(extra["judge"])
        self.validation = [(int(step), float(value)) for step, value in extra["validation"]]
        self.confirmation = [(int(step), float(value)) for step, value in extra["confirmation"]]
        self.curve = [(int(step), dict(values)) for step, values in extra["curve"]]
        self.best_weights, self.start_weights = (
            {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)} for prefix in ("best.", "start.")
        )

    def result(self) -> TrainingResult:
        """The best weights where they are better than the judge, else those of the start."""
        found = verdict(self.best_windows, self.judge, self.config.accept)
        weights = self.best_weights if found.improved else self.start_weights
        return TrainingResult(
            policy=AgentPolicy(weights, self.settings, self.model.policy.scorer.score_index),
            best_step=self.best_step,
            best_objective=self.best_objective,
            validation=self.validation,
            confirmation=self.confirmation,
            curve=self.curve,
            verdict=found,
            windows=self.best_windows,
            judge=self.judge,
            stopped_early=self.stopping,
        )


def make_model(env: ClusterVecEnv | MultiWorldVecEnv, settings: PolicySettings, config: AgentConfig, seed: int) -> CompiledPPO:
    """The untrained agent in its environments: the softened planner where the settings keep plans, else the softened look-ahead."""
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
            "score_index": env.layout.planned_index if settings.plans else env.layout.score_index,
            "hidden": config.hidden,
            "kappa": config.kappa,
            "optimizer_kwargs": {"eps": 1e-5, "fused": True},
        },
        seed=seed,
        threads=config.threads,
        device="cpu",
    )


def train_agent(
    env: ClusterVecEnv | MultiWorldVecEnv,
    settings: PolicySettings,
    config: AgentConfig,
    validate: Validate,
    *,
    seed: int,
    judge: np.ndarray | None = None,
    checkpoint: Path | None = None,
    report: Metrics = lambda step, metrics: None,
    start: Mapping[str, np.ndarray] | None = None,
) -> TrainingResult:
    """Train the agent, or continue where a killed run left its checkpoint.

    Args:
        env: training environments, of one world or of several.
        validate: objectives ``[W]`` of a policy on held-out windows, lower is better (or their mean).
        judge: objectives ``[W]`` of the judge that the agent starts from, on the same windows; None = those of the untrained agent.
        checkpoint: folder of the checkpoint; None trains without one.
        report: called with ``(step, metrics)`` after each rollout and validation.
        start: weights of an earlier agent that training starts from; without a better one the untrained agent stays all the same.

    Returns:
        The best policy that validation accepted.
    """
    model = make_model(env, settings, config, seed)
    trainer = _Trainer(config, settings, validate, checkpoint, report, judge)
    model.set_logger(Logger(folder=None, output_formats=[trainer.capture]))
    trainer.model = model
    if checkpoint is not None and has_checkpoint(checkpoint):
        trainer.restore(*load_checkpoint(checkpoint, model))
    elif start is not None:
        trainer.start_weights = trainer.export().weights
        load_scorer(model.policy.scorer, start)
    remaining = config.total_steps - model.num_timesteps
    if remaining > 0 and not trainer.stopping:
        model.learn(remaining, callback=trainer, reset_num_timesteps=False, log_interval=None)
    trainer.finish()
    return trainer.result()

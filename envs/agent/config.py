"""Settings of the agent's training."""

from __future__ import annotations

from dataclasses import dataclass

from envs.agent.selection import ACCEPT
from telemetry.errors import InputError


@dataclass(frozen=True)
class WorldChoice:
    """One of the worlds that the agent learns in, made from the training part of the trace.

    Attributes:
        load: jobs in the same time, as a multiple of the trace's (thinned below 1, copied above).
        cluster: a cluster of ``conf/cluster`` instead of the configured one; None = the configured one.
        grid_shift_hours: prices and intensities met so many hours later.
        share: of the environments, relative to the other worlds'.
    """

    load: float = 1.0
    cluster: str | None = None
    grid_shift_hours: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        for key in ("load", "share"):
            if not 0 < getattr(self, key) < float("inf"):
                raise InputError(f"{key} = {getattr(self, key)}", where="agent.worlds", allowed="a finite number above 0")


@dataclass(frozen=True)
class Preference:
    """A weight of the objective (``w_cost, w_carbon, w_energy, w_sla``) that training draws uniformly from ``[low, high]``."""

    weight: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high < float("inf"):
            raise InputError(f"{self.weight} from {self.low} to {self.high}", where="agent.preferences", allowed="0 <= low <= high, finite")


@dataclass(frozen=True)
class AgentConfig:
    """PPO and its schedule; names as in Stable-Baselines3 where it has them.

    Attributes:
        total_steps: environment steps (decisions) in all.
        num_envs, n_steps: a rollout is num_envs x n_steps decisions.
        gamma: discount per decision; at 0.999, with thousands of decisions a window, putting work off for ever pays.
        kappa: start of the inverse temperature on the starting judge's score.
        validate_every: rollouts between two validations.
        patience: validations without a better one before training stops; 0 = never.
        accept: when the agent is better than its judge on the validation windows held back: ``interval``, with the
            whole 95 % interval of the paired gain; ``mean``, on average (so too where a single number is all that validation tells).
        threads: over which rollouts and updates are spread; results do not depend on it.
        worlds: what the agent learns in; none = the configured cluster under the trace as it is.
        preferences: weights of the objective drawn anew for every window of training; none = those of the reward.
        population: trainings from different seeds, one after the other, of which the best is kept.
        value_warmup: rollouts in which only the value function learns.
    """

    total_steps: int = 600_000
    num_envs: int = 256
    n_steps: int = 64
    batch_size: int = 2048
    n_epochs: int = 4
    learning_rate: float = 3e-4
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float = 0.03
    hidden: int = 32
    kappa: float = 30.0
    value_warmup: int = 2
    validate_every: int = 8
    patience: int = 6
    accept: str = "interval"
    checkpoint_every: int = 4
    threads: int = 2
    population: int = 1
    worlds: tuple[WorldChoice, ...] = ()
    preferences: tuple[Preference, ...] = ()

    def __post_init__(self) -> None:
        positive = ("total_steps", "num_envs", "n_steps", "batch_size", "n_epochs", "learning_rate", "hidden", "kappa", "validate_every")
        positive = (*positive, "checkpoint_every", "threads", "population")
        for key in positive:
            if getattr(self, key) <= 0:
                raise InputError(f"{key} = {getattr(self, key)}", where="agent", allowed="above 0")
        if not 0.0 < self.gamma <= 1.0:
            raise InputError(f"gamma = {self.gamma}", where="agent", allowed="0 < gamma <= 1")
        if self.accept not in ACCEPT:
            raise InputError(f"accept = '{self.accept}'", where="agent", allowed=", ".join(ACCEPT))
        if self.num_envs * self.n_steps < self.batch_size:
            raise InputError(
                f"batch_size = {self.batch_size} for rollouts of {self.num_envs * self.n_steps}",
                where="agent",
                allowed="at most num_envs x n_steps",
            )

"""PPO of Stable-Baselines3 with compiled rollouts and updates: the same algorithm and results, without its per-step overhead.

Kept from Stable-Baselines3: the policy object and its optimiser, generalised advantage estimation, schedules, the order of minibatches,
callbacks, logging. Replaced: sampling in ``collect_rollouts`` and the minibatch gradient in ``train``, both from
:mod:`envs.agent.compiled`; observations are written by the environment straight into the rollout buffer, and are never copied again.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from envs.agent.compiled import STATISTICS, act, loss_gradient

# Work is cut into the same parts whatever the number of threads, so that results do not depend on it.
PARTS = 8  # of a minibatch
PART_OBSERVATIONS = 128  # of a step: handing work to a thread costs as much as sampling for some 60


class PlainRolloutBuffer(RolloutBuffer):
    """A rollout buffer that allocates once and keeps its order ``[T, B]``; a further row holds the observations after the last step."""

    def reset(self) -> None:
        """Begin anew; nothing is cleared, every place is written during a rollout."""
        if not hasattr(self, "rows"):
            super().reset()
            self.rows = np.zeros((self.buffer_size + 1, self.n_envs, *self.obs_shape), np.float32)
            self.observations = self.rows[:-1]
        self.pos, self.full, self.generator_ready = 0, False, False

    def flat(self, name: str) -> np.ndarray:
        """View ``[T B, ...]`` of a buffer."""
        array = getattr(self, name)
        return array.reshape(self.buffer_size * self.n_envs, *(array.shape[2:] if name == "observations" else ()))

    def minibatches(self, batch_size: int) -> Generator[np.ndarray, None, None]:
        """Places of the samples of each minibatch, in the random order of Stable-Baselines3."""
        order = np.random.permutation(self.buffer_size * self.n_envs)
        for begin in range(0, len(order), batch_size):
            yield order[begin : begin + batch_size]

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """The same minibatches as tensors, for the update of Stable-Baselines3 itself."""
        names = ("observations", "actions", "values", "log_probs", "advantages", "returns")
        for index in self.minibatches(batch_size or self.buffer_size * self.n_envs):
            yield RolloutBufferSamples(*(torch.from_numpy(self.flat(name)[index]) for name in names))


@contextmanager
def _one_torch_thread() -> Generator[None, None, None]:
    """Torch is left with tensors of a few thousand numbers; its waiting threads would take the cores from those that work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class CompiledPPO(PPO):
    """PPO over :class:`envs.agent.network.CandidatePolicy` and an environment that can ``step_into``.

    Args:
        threads: over which sampling and gradients are spread; results do not depend on it.
    """

    def __init__(self, *args: Any, threads: int = 1, **kwargs: Any) -> None:
        self.threads = threads
        super().__init__(*args, rollout_buffer_class=PlainRolloutBuffer, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        layout, scorer = self.policy.layout, self.policy.scorer
        hidden = scorer.mix.out_features
        self.shape = np.array(
            [layout.n_candidates, layout.n_candidate_features, layout.n_global_features, hidden, scorer.score_index], dtype=np.int64
        )
        parameters = list(scorer.parameters())
        self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.flat_gradient = torch.zeros_like(self.flat)
        self._gradients: list[torch.Tensor] = []
        at = 0
        for parameter in parameters:
            size = parameter.numel()
            parameter.data = self.flat[at : at + size].view(parameter.shape)
            self._gradients.append(self.flat_gradient[at : at + size].view(parameter.shape))
            at += size
        self.sampling = np.random.default_rng(self.seed)
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None

    # ---------------------------------------------------------------- rollouts

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        """As in Stable-Baselines3; the environment writes its observations into the buffer."""
        assert isinstance(rollout_buffer, PlainRolloutBuffer)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        rollout_buffer.rows[0] = self._last_obs
        callback.on_rollout_start()
        dones = self._last_episode_starts
        for step in range(n_rollout_steps):
            actions = rollout_buffer.actions[step].reshape(-1)
            self._sample(rollout_buffer.rows[step], actions, rollout_buffer.log_probs[step], rollout_buffer.values[step])
            rewards, dones, infos = env.step_into(actions, rollout_buffer.rows[step + 1])
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            rollout_buffer.rewards[step] = rewards
            rollout_buffer.episode_starts[step] = self._last_episode_starts
            self._last_obs, self._last_episode_starts = rollout_buffer.rows[step + 1], dones
        rollout_buffer.pos, rollout_buffer.full = n_rollout_steps, True
        last = np.zeros(env.num_envs, np.float32)
        self._forward(rollout_buffer.rows[n_rollout_steps], np.zeros(env.num_envs), *self._unused(), last)
        rollout_buffer.compute_returns_and_advantage(last_values=torch.from_numpy(last), dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _unused(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(self.n_envs, np.int64), np.zeros(self.n_envs, np.float32)

    def _sample(self, observations: np.ndarray, actions: np.ndarray, log_probs: np.ndarray, values: np.ndarray) -> None:
        self._forward(observations, self.sampling.random(len(observations)), actions, log_probs, values)

    def _forward(self, observations: np.ndarray, *outputs: np.ndarray) -> None:
        """Sample by the uniforms ``outputs[0]`` into ``outputs[1:]`` (actions, log-probabilities, values)."""
        flat, count = self.flat.numpy(), len(observations)
        parts = -(-count // PART_OBSERVATIONS)
        edges = [count * part // parts for part in range(parts + 1)]
        self._spread(lambda part: act(flat, self.shape, observations, *outputs, edges[part], edges[part + 1]), parts)

    def _spread(self, work: Any, parts: int) -> None:
        """Call ``work(part)`` for every part, over the threads."""
        if self._pool is None or parts == 1:
            for part in range(parts):
                work(part)
            return
        lots = min(self.threads, parts)

        def lot(which: int) -> None:
            for part in range(which, parts, lots):
                work(part)

        others = [self._pool.submit(lot, which) for which in range(1, lots)]
        lot(0)
        for other in others:
            other.result()

    # ---------------------------------------------------------------- updates

    def train(self) -> None:
        """One update, minibatch by minibatch as in Stable-Baselines3: the same order, losses, early stop by KL, clipping and logs."""
        with _one_torch_thread():
            self._train()

    def _train(self) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)
        for parameter, gradient in zip(self.policy.scorer.parameters(), self._gradients, strict=True):
            parameter.grad = gradient if parameter.requires_grad else None
        history: list[np.ndarray] = []
        last_epoch: list[float] = []
        going_on = True
        for _ in range(self.n_epochs):
            last_epoch = []
            for index in self.rollout_buffer.minibatches(self.batch_size):
                statistics = self._minibatch_gradient(index, clip_range)
                history.append(statistics)
                last_epoch.append(float(statistics[STATISTICS.index("approx_kl")]))
                if self.target_kl is not None and last_epoch[-1] > 1.5 * self.target_kl:
                    going_on = False
                    break
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if not going_on:
                break
        self._log_update(np.array(history), last_epoch, clip_range)

    def _minibatch_gradient(self, index: np.ndarray, clip_range: float) -> np.ndarray:
        """Write the loss's gradient at the samples ``index``; mean statistics by ``STATISTICS``."""
        buffer, count = self.rollout_buffer, len(index)
        advantages = buffer.flat("advantages")
        chosen = advantages[index]
        center, spread = 0.0, 1.0
        if self.normalize_advantage and count > 1:
            center, spread = float(chosen.mean()), 1.0 / (float(chosen.std(ddof=1)) + 1e-8)
        numbers = np.array([1.0 / count, clip_range, self.ent_coef, self.vf_coef, center, spread], np.float32)
        samples = (buffer.flat("observations"), buffer.flat("actions"), buffer.flat("log_probs"), advantages, buffer.flat("returns"))
        flat = self.flat.numpy()
        gradients, sums = np.zeros((PARTS, len(flat)), np.float32), np.zeros((PARTS, len(STATISTICS)))
        edges = [count * part // PARTS for part in range(PARTS + 1)]

        def work(part: int) -> None:
            loss_gradient(flat, gradients[part], self.shape, *samples, index, edges[part], edges[part + 1], numbers, sums[part])

        self._spread(work, PARTS)
        gradients.sum(axis=0, out=self.flat_gradient.numpy())
        return sums.sum(axis=0) / count

    def _log_update(self, history: np.ndarray, last_epoch: list[float], clip_range: float) -> None:
        mean = dict(zip(STATISTICS, history.mean(axis=0), strict=True))
        buffer = self.rollout_buffer
        last = dict(zip(STATISTICS, history[-1], strict=True))
        loss = last["policy_loss"] - self.ent_coef * last["entropy"] + self.vf_coef * last["value_loss"]
        self.logger.record("train/entropy_loss", -mean["entropy"])
        self.logger.record("train/policy_gradient_loss", mean["policy_loss"])
        self.logger.record("train/value_loss", mean["value_loss"])
        self.logger.record("train/approx_kl", float(np.mean(last_epoch)))
        self.logger.record("train/clip_fraction", mean["clip_fraction"])
        self.logger.record("train/loss", loss)
        self.logger.record("train/explained_variance", explained_variance(buffer.flat("values"), buffer.flat("returns")))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)

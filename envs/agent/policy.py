"""The trained agent without torch: numpy inference from safetensors weights and a JSON layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from envs.observation import ObservationLayout
from envs.state import PolicySettings
from telemetry.errors import InputError

WEIGHTS_FILE = "policy.safetensors"
CONFIG_FILE = "policy.json"
MASKED_LOGIT = np.float32(-1e8)


class AgentPolicy:
    """Scores candidates with shared weights; serves any number of pools and levels.

    Args:
        weights: arrays named as in ``envs.agent.network.ActionScorer``.
        settings: node rule, sleep and queue settings that the agent was trained with.
        score_index: candidate feature that holds the look-ahead score.
    """

    name = "agent"

    def __init__(self, weights: dict[str, np.ndarray], settings: PolicySettings, score_index: int) -> None:
        self.weights = {key: np.asarray(value, dtype=np.float32) for key, value in weights.items()}
        self.settings = settings
        self.score_index = score_index

    def logits(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Masked logits ``[B, A]`` for observations ``[B, D]``."""
        w = self.weights
        features = w["from_candidate.weight"].shape[1]
        if layout.n_candidate_features != features or layout.n_global_features != w["from_global.weight"].shape[1]:
            raise InputError(
                f"observation with {layout.n_candidate_features} candidate and {layout.n_global_features} global features",
                where="agent policy",
                allowed=f"{features} and {w['from_global.weight'].shape[1]}, as in training",
                remedy="serve the agent with the release that trained it, or retrain",
            )
        split = layout.n_candidates * features
        candidates = observation[:, :split].reshape(-1, layout.n_candidates, features)
        globals_ = observation[:, split:]
        valid = candidates[..., 0] > 0.5
        shared = globals_ @ w["from_global.weight"].T
        embedded = np.maximum(candidates @ w["from_candidate.weight"].T + w["from_candidate.bias"] + shared[:, None, :], 0.0)
        weight = valid[..., None].astype(np.float32)
        pooled = (embedded * weight).sum(1) / np.maximum(weight.sum(1), 1.0)
        context = pooled @ w["mix_context.weight"].T
        mixed = np.maximum(embedded @ w["mix.weight"].T + w["mix.bias"] + context[:, None, :], 0.0)
        residual = mixed @ w["residual.weight"][0] + w["residual.bias"][0]
        logits = residual - np.exp(w["log_kappa"]) * candidates[..., self.score_index]
        return np.where(valid, logits, MASKED_LOGIT)

    def act(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Most likely action per row, int64 ``[B]``."""
        return self.logits(observation, layout).argmax(axis=1).astype(np.int64)

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` under ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.weights, str(folder / WEIGHTS_FILE))
        config = {"kind": "agent", "settings": asdict(self.settings), "score_index": self.score_index}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> AgentPolicy:
        """Read what :meth:`save` wrote."""
        config = json.loads((folder / CONFIG_FILE).read_text())
        return cls(load_file(str(folder / WEIGHTS_FILE)), PolicySettings(**config["settings"]), int(config["score_index"]))

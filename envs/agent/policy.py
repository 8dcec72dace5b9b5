"""The trained agent without torch: numpy inference from safetensors weights and a JSON layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from envs.agent.inference import pack_scorer, score_rows
from envs.observation import ObservationLayout
from envs.state import PolicySettings
from telemetry.errors import InputError

WEIGHTS_FILE = "policy.safetensors"
CONFIG_FILE = "policy.json"


# Shapes by name: F candidate features, G global features, H hidden units. The value head is exported with the rest but never read here.
SHAPES: dict[str, tuple[str, ...]] = {
    "from_candidate.weight": ("H", "F"),
    "from_candidate.bias": ("H",),
    "from_global.weight": ("H", "G"),
    "mix.weight": ("H", "H"),
    "mix.bias": ("H",),
    "mix_context.weight": ("H", "H"),
    "residual.weight": ("1", "H"),
    "residual.bias": ("1",),
    "log_kappa": (),
}
VALUE_HEAD = ("value_hidden.weight", "value_hidden.bias", "value.weight", "value.bias")
LARGEST_LOG_KAPPA = 30.0


def check_weights(weights: dict[str, np.ndarray], score_index: int, where: str = "agent policy") -> None:
    """Refuse weights that are not those of one network.

    Raises:
        InputError: a name missing or unknown, a shape that does not fit the others, no floating type, a value that is not finite.
    """
    if missing := [name for name in SHAPES if name not in weights]:
        raise InputError(f"no weights '{missing[0]}'", where=where, allowed=", ".join(SHAPES))
    if unknown := sorted(set(weights) - set(SHAPES) - set(VALUE_HEAD)):
        raise InputError(f"unknown weights '{unknown[0]}'", where=where, allowed=", ".join((*SHAPES, *VALUE_HEAD)))
    sizes = {"1": 1}
    if weights["from_candidate.weight"].ndim == 2:
        sizes["H"], sizes["F"] = weights["from_candidate.weight"].shape
    if weights["from_global.weight"].ndim == 2:
        sizes["G"] = weights["from_global.weight"].shape[1]
    for name, letters in SHAPES.items():
        expected, found = tuple(sizes.get(letter, letter) for letter in letters), weights[name].shape
        if expected != found or 0 in found:
            raise InputError(f"'{name}' has shape {list(found)}", where=where, allowed=f"[{', '.join(map(str, expected))}]")
    for name, values in weights.items():
        if values.dtype.kind != "f":
            raise InputError(f"'{name}' holds {values.dtype}", where=where, allowed="floating-point numbers")
        if not np.isfinite(values).all():
            raise InputError(f"'{name}' holds {int((~np.isfinite(values)).sum())} values that are not finite", where=where)
    if abs(float(weights["log_kappa"])) > LARGEST_LOG_KAPPA:
        raise InputError(
            f"log_kappa {float(weights['log_kappa']):g}", where=where, allowed=f"-{LARGEST_LOG_KAPPA:g} to {LARGEST_LOG_KAPPA:g}"
        )
    if not 0 <= score_index < sizes["F"]:
        raise InputError(f"score_index {score_index}", where=where, allowed=f"0 to {sizes['F'] - 1}")


class AgentPolicy:
    """Scores candidates with shared weights; serves any number of pools and levels.

    Args:
        weights: arrays named as in ``envs.agent.network.ActionScorer``; whoever changes one makes a new policy.
        settings: node rule, sleep and queue settings that the agent was trained with.
        score_index: candidate feature that holds the look-ahead score.

    Raises:
        InputError: weights that :func:`check_weights` refuses.
    """

    name = "agent"

    def __init__(self, weights: dict[str, np.ndarray], settings: PolicySettings, score_index: int) -> None:
        arrays = {key: np.asarray(value) for key, value in weights.items()}
        if "log_kappa" in arrays and arrays["log_kappa"].size == 1:
            arrays["log_kappa"] = arrays["log_kappa"].reshape(())  # checkpoints keep it as [1]
        check_weights(arrays, score_index)
        self.weights = {key: value.astype(np.float32) for key, value in arrays.items()}
        self.settings = settings
        self.score_index = score_index
        self._packed = pack_scorer(self.weights)

    def logits(self, observation: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        """Masked logits float32 ``[B, A]`` for observations ``[B, D]``; a row gives the same bits alone and in any batch."""
        features, globals_ = self._packed.from_candidate.shape[0], self._packed.from_global.shape[0]
        if layout.n_candidate_features != features or layout.n_global_features != globals_:
            raise InputError(
                f"observation with {layout.n_candidate_features} candidate and {layout.n_global_features} global features",
                where="agent policy",
                allowed=f"{features} and {globals_}, as in training",
                remedy="serve the agent with the release that trained it, or retrain",
            )
        if observation.ndim != 2 or observation.shape[1] != layout.size:
            raise InputError(f"observations of shape {observation.shape}", where="agent policy", allowed=f"[B, {layout.size}]")
        rows = np.ascontiguousarray(observation, dtype=np.float32)
        logits = np.empty((len(rows), layout.n_candidates), dtype=np.float32)
        score_rows(rows, layout.n_candidates, self.score_index, self._packed, logits)
        return logits

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
        """Read what :meth:`save` wrote; safetensors and JSON can carry no code.

        Raises:
            InputError: a file that is missing or cannot be read, settings that do not fit, or weights that :func:`check_weights` refuses.
        """
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            settings, score_index = PolicySettings(**config["settings"]), int(config["score_index"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot be read ({type(error).__name__}: {error})", where=str(folder / CONFIG_FILE)) from error
        try:
            weights = load_file(str(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot be read ({error})", where=str(folder / WEIGHTS_FILE), allowed="a safetensors file") from error
        return cls(weights, settings, score_index)

"""Exact checkpoints of a PPO run: weights, optimiser, environments and random states, in safetensors and JSON, never pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from envs.agent.ppo import CompiledPPO
from telemetry.errors import InputError

TENSORS_FILE = "state.safetensors"
META_FILE = "state.json"


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).clone()
    return tensors


def save_checkpoint(folder: Path, model: CompiledPPO, extra: dict[str, Any], extra_arrays: dict[str, np.ndarray]) -> None:
    """Write the whole state of ``model`` and its VecEnv to ``folder``; the previous checkpoint stays until the new one is complete.

    Args:
        extra: JSON-serialisable trainer state.
        extra_arrays: further arrays of the trainer (best weights).
    """
    env_meta, env_arrays = model.get_env().state_dict()
    legacy = np.random.get_state(legacy=False)
    tensors = {f"policy.{key}": value.clone() for key, value in model.policy.state_dict().items()}
    tensors |= _optimizer_tensors(model.policy.optimizer)
    tensors |= {f"env.{key}": torch.from_numpy(np.ascontiguousarray(value)) for key, value in env_arrays.items()}
    tensors |= {f"extra.{key}": torch.tensor(value) for key, value in extra_arrays.items()}
    tensors["rng.torch"] = torch.get_rng_state()
    tensors["rng.numpy"] = torch.from_numpy(legacy["state"]["key"].astype(np.int64))
    tensors["last_obs"] = torch.from_numpy(np.ascontiguousarray(model._last_obs))
    tensors["last_episode_starts"] = torch.from_numpy(np.ascontiguousarray(model._last_episode_starts))
    meta = {
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "sampling": model.sampling.bit_generator.state,
        "numpy_rng": {"pos": legacy["state"]["pos"], "has_gauss": legacy["has_gauss"], "gauss": legacy["gauss"]},
        "env": env_meta,
        "extra": extra,
    }
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(tensors, str(fresh / TENSORS_FILE))
    (fresh / META_FILE).write_text(json.dumps(meta))
    stale = folder.with_name(folder.name + ".old")
    shutil.rmtree(stale, ignore_errors=True)
    if folder.exists():
        os.replace(folder, stale)
    os.replace(fresh, folder)
    shutil.rmtree(stale, ignore_errors=True)


def load_scorer(scorer: torch.nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Give the network the exported weights of an earlier agent.

    Raises:
        InputError: weights of another size.
    """
    own = scorer.state_dict()
    wrong = [name for name, tensor in own.items() if name not in weights or weights[name].size != tensor.numel()]
    if wrong:
        raise InputError(f"weights '{wrong[0]}' are missing or of another size", where="agent", remedy="start cold, or keep agent.hidden")
    scorer.load_state_dict({name: torch.from_numpy(np.array(weights[name])).reshape(tensor.shape) for name, tensor in own.items()})


def has_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` (or the copy it replaces) holds a complete checkpoint."""
    stale = folder.with_name(folder.name + ".old")
    if not folder.exists() and (stale / META_FILE).exists():
        os.replace(stale, folder)
    return (folder / META_FILE).exists() and (folder / TENSORS_FILE).exists()


def load_checkpoint(folder: Path, model: CompiledPPO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Restore what :func:`save_checkpoint` wrote into ``model`` and its VecEnv.

    Returns:
        The trainer's ``extra`` and ``extra_arrays``.

    Raises:
        InputError: the checkpoint does not fit the model (another network, another number of environments).
    """
    meta = json.loads((folder / META_FILE).read_text())
    tensors = load_file(str(folder / TENSORS_FILE))

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

    weights = part("policy.")
    expected = {key: tuple(value.shape) for key, value in model.policy.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if expected != found or tensors["last_episode_starts"].shape[0] != model.n_envs:
        raise InputError(
            "the checkpoint was written by another configuration",
            where=str(folder),
            remedy="delete the folder or restore its configuration",
        )
    model.policy.load_state_dict(weights)
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in part("optimizer.").items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    groups = model.policy.optimizer.state_dict()["param_groups"]
    model.policy.optimizer.load_state_dict({"state": states, "param_groups": groups})
    try:
        model.get_env().load_state_dict(meta["env"], {key: value.numpy() for key, value in part("env.").items()})
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the checkpoint was written by another release ({error})", where=str(folder), remedy="delete it, or train with resume=false"
        ) from error
    model.num_timesteps = int(meta["num_timesteps"])
    model._n_updates = int(meta["n_updates"])
    model.sampling.bit_generator.state = meta["sampling"]
    model._last_obs = tensors["last_obs"].numpy()
    model._last_episode_starts = tensors["last_episode_starts"].numpy()
    torch.set_rng_state(tensors["rng.torch"])
    rng = meta["numpy_rng"]
    np.random.set_state(("MT19937", tensors["rng.numpy"].numpy().astype(np.uint32), rng["pos"], rng["has_gauss"], rng["gauss"]))
    return meta["extra"], {key: value.numpy() for key, value in part("extra.").items()}

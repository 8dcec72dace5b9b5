"""Policies by name: the judges of ``envs.heuristics``, the promoted policies of the registry, and exported agents by folder."""

from __future__ import annotations

from pathlib import Path

from envs.agent.policy import CONFIG_FILE, AgentPolicy
from envs.heuristics import JUDGES
from envs.state import Policy
from registry.loading import VerificationError, load_policy
from registry.mlflow_client import DEFAULT_URI
from telemetry.errors import InputError

PROMOTED: tuple[str, ...] = ("champion", "challenger", "previous")


def policy_names() -> tuple[str, ...]:
    """Every name that :func:`resolve_policy` knows."""
    return (*JUDGES, *PROMOTED)


def resolve_policy(name: str, tracking_uri: str = DEFAULT_URI) -> Policy:
    """A policy by its name.

    Args:
        name: a judge; an alias of the registered ``scheduling-policy``, which is verified before it is loaded; or the folder of an agent
            (``AgentPolicy.save``; ``agent/policy`` of a training run), which nobody has signed: for evaluation only.
        tracking_uri: where the registry is; used for aliases only.

    Raises:
        InputError: unknown name, no version with that alias, or one that fails verification.
    """
    if name in JUDGES:
        return JUDGES[name]
    if name in PROMOTED:
        try:
            return load_policy(alias=name, tracking_uri=tracking_uri)[0]
        except VerificationError as error:
            raise InputError(str(error), where=f"policies, '{name}'", remedy="train and promote one first, or name a judge") from error
    if is_folder(name):
        return AgentPolicy.load(Path(name))
    allowed = f"{', '.join(policy_names())}, or the folder of an exported agent"
    raise InputError(f"unknown policy '{name}'", where="policies", allowed=allowed)


def is_folder(name: str) -> bool:
    """Whether a name is the folder of an exported agent."""
    return name not in policy_names() and (Path(name) / CONFIG_FILE).is_file()

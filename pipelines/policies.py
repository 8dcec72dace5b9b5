"""Policies by name: the judges of ``envs.heuristics`` and the promoted policies of the registry."""

from __future__ import annotations

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
        name: a judge, or an alias of the registered ``scheduling-policy``, which is verified before it is loaded.
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
    raise InputError(f"unknown policy '{name}'", where="policies", allowed=", ".join(policy_names()))

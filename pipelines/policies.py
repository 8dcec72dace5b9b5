"""Policies by name: the judges of ``envs.heuristics``, the promoted policies of the registry, and exported agents by folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from envs.agent.policy import CONFIG_FILE, AgentPolicy
from envs.heuristics import FORESIGHTED, JUDGES, Judge
from envs.state import Policy
from registry.loading import VerificationError, load_policy
from registry.mlflow_client import DEFAULT_URI
from telemetry.errors import InputError

PROMOTED: tuple[str, ...] = ("champion", "challenger", "previous")


def policy_names() -> tuple[str, ...]:
    """Every name that :func:`resolve_policy` knows."""
    return (*JUDGES, *FORESIGHTED, *PROMOTED)


@dataclass(frozen=True)
class TunedJudges:
    """Judges with the parameters of a file that ``pipelines.tune_judges`` wrote.

    Attributes:
        about: what they were tuned on; ``trained_until`` is the end of that span.
    """

    judges: Mapping[str, Judge]
    about: Mapping[str, Any]


def read_judges(path: str | Path) -> TunedJudges:
    """Tuned judges of a YAML file: ``judges: {NAME: {settings: {FIELD: VALUE}}}`` and ``about``.

    Raises:
        InputError: no such file, not of this form, or a judge or parameter that does not exist.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(str(error).splitlines()[0], where=str(path), remedy="give a file that pipelines.tune_judges wrote") from error
    form = "judges: {NAME: {settings: {PARAMETER: VALUE}}}"
    entries = content.get("judges") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise InputError("no judges in it", where=str(path), allowed=form)
    found: dict[str, Judge] = {}
    for name, entry in entries.items():
        if name not in JUDGES:
            raise InputError(f"judge '{name}'", where=str(path), allowed=", ".join(JUDGES))
        settings = entry.get("settings") if isinstance(entry, dict) else None
        if not isinstance(settings, dict) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in settings.values()):
            raise InputError(f"{entry!r}", where=f"{path}, judge '{name}'", allowed=form)
        found[name] = JUDGES[name].tuned(settings)
    return TunedJudges(found, content.get("about") or {})


def resolve_policy(name: str, tracking_uri: str = DEFAULT_URI, judges: Mapping[str, Judge] | None = None) -> Policy:
    """A policy by its name.

    Args:
        name: a judge; an alias of the registered ``scheduling-policy``, which is verified before it is loaded; or the folder of an agent
            (``AgentPolicy.save``; ``agent/policy`` of a training run), which nobody has signed: for evaluation only.
        tracking_uri: where the registry is; used for aliases only.
        judges: tuned judges that stand in the place of those of the same name.

    Raises:
        InputError: unknown name, no version with that alias, or one that fails verification.
    """
    if name in JUDGES:
        return {**JUDGES, **(judges or {})}[name]
    if name in FORESIGHTED:
        return FORESIGHTED[name]
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

"""What a sweep searches: keys of the main job's configuration, each with its range or its choices."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from models.catalog import forecaster_class
from pipelines.cli import build
from telemetry.errors import InputError

OBJECTIVES = ("forecaster", "agent")
Values = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A range ``low`` to ``high`` (on a logarithmic scale, of whole numbers), or ``choices``."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if end is not None and (isinstance(end, bool) or not isinstance(end, int | float)):
                raise InputError(f"{end!r}", where="sweep_space.parameters", allowed="a number")
        ranged = self.low is not None and self.high is not None
        if ranged == bool(self.choices) or (self.low is None) != (self.high is None):
            raise InputError(f"low={self.low}, high={self.high}, choices={self.choices}", where="sweep_space", allowed="a range or choices")
        if ranged and (not self.low < self.high or (self.log and self.low <= 0)):  # type: ignore[operator]
            raise InputError(f"{self.low} to {self.high}", where="sweep_space", allowed="low < high, above 0 where log")
        if self.whole and (self.low != int(self.low or 0) or self.high != int(self.high or 0)):
            raise InputError(f"{self.low} to {self.high}", where="sweep_space", allowed="whole numbers where whole is true")

    def suggested(self, trial: Any, key: str) -> Any:
        """The value that an Optuna trial proposes."""
        if self.choices:
            return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in self.choices]))
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)  # type: ignore[arg-type]
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def stored(self, value: Any) -> Any:
        """A value as Optuna keeps it."""
        return json.dumps(value) if self.choices else value

    def read(self, stored: Any) -> Any:
        """A value as the configuration has it."""
        return json.loads(stored) if self.choices else stored

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        if self.choices:
            return json.dumps(value) in [json.dumps(choice) for choice in self.choices]
        return isinstance(value, int | float) and not isinstance(value, bool) and bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        name: of the space, and by default of the study.
        objective: ``forecaster``: WQL of ``member`` on validation windows as a share of persistence's; ``agent``: its mean objective on
            validation windows in USD.
        parameters: by configuration key, such as ``forecaster.lightgbm.num_leaves``.
    """

    name: str
    objective: str
    parameters: Mapping[str, Parameter]
    member: str | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"{self.objective!r}", where="sweep_space.objective", allowed=", ".join(OBJECTIVES))
        if self.objective == "forecaster":
            forecaster_class(str(self.member))
        if not self.parameters:
            raise InputError("nothing to search", where="sweep_space.parameters", allowed="at least one key")

    def suggested(self, trial: Any) -> Values:
        """What an Optuna trial proposes for every key."""
        return {key: one.suggested(trial, key) for key, one in self.parameters.items()}

    def stored(self, values: Mapping[str, Any]) -> Values:
        """Values as Optuna keeps them."""
        return {key: one.stored(values[key]) for key, one in self.parameters.items()}

    def read(self, stored: Mapping[str, Any]) -> Values:
        """The other way round."""
        return {key: one.read(stored[key]) for key, one in self.parameters.items()}

    def described(self) -> dict[str, Any]:
        """As plain values, to tell two spaces apart."""
        return json.loads(json.dumps(asdict(self), sort_keys=True))


def space_of(cfg: DictConfig) -> Space:
    """The configured space; every key must be one of the configuration.

    Raises:
        InputError: an unknown key or a range that is none.
    """
    raw = OmegaConf.to_container(cfg.sweep_space, resolve=True)
    parameters = {
        key: build(Parameter, value, f"sweep_space.parameters, {key}") for key, value in (raw.pop("parameters", None) or {}).items()
    }
    space = build(Space, {**raw, "parameters": {}}, "sweep_space") if not parameters else Space(**raw, parameters=parameters)
    for key in parameters:
        group = "agent." if space.objective == "agent" else f"forecaster.{space.member}."
        if not key.startswith(group):
            raise InputError(f"key {key}", where="sweep_space.parameters", allowed=f"keys of {group}*", remedy="see --help")
    return space


def current(raw: Mapping[str, Any], space: Space) -> Values:
    """Values of the space's keys in a configuration.

    Raises:
        InputError: a key that is not there.
    """
    found = {}
    for key in space.parameters:
        node: Any = _rooted(raw, key)
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                raise InputError(
                    f"no such key: {key}", where="sweep_space.parameters", remedy="python -m pipelines.train --help lists the keys"
                )
            node = node[part]
        found[key] = node
    return found


def overridden(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with these keys set."""
    fresh = copy.deepcopy(dict(raw))
    for key, value in values.items():
        node: Any = _rooted(fresh, key)
        *parents, last = key.split(".")
        for part in parents:
            node = node[part]
        node[last] = value
    return fresh


def _rooted(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """``raw``, or with one chosen forecaster (``forecaster=lightgbm``) the same under its name, as with all of them."""
    node = raw.get("forecaster")
    if key.startswith("forecaster.") and isinstance(node, Mapping) and "name" in node:
        return {"forecaster": {node["name"]: node}}
    return raw

"""Read the shield's settings from YAML: the fields of :class:`~envs.shield.ShieldConfig`, each of them optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from envs.shield import ShieldConfig
from envs.shielded import judge_named
from telemetry.errors import InputError


def load_shield(path: Path) -> ShieldConfig:
    """Settings from a file.

    Raises:
        InputError: no such file, YAML that does not parse, an unknown key, a value of another type or out of bounds.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from error
    return shield_from_mapping({} if values is None else values, str(path))


def shield_from_mapping(values: Any, where: str) -> ShieldConfig:
    """Settings from a plain mapping. Raises as :func:`load_shield`."""
    known = {field.name: field.type for field in fields(ShieldConfig)}
    if not isinstance(values, Mapping):
        raise InputError(f"{type(values).__name__}", where=where, allowed=f"a mapping with {', '.join(known)}")
    if unknown := sorted(str(key) for key in values if key not in known):
        raise InputError(f"unknown key '{unknown[0]}'", where=where, allowed=", ".join(known))
    typed: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{where}, {key}"
        if known[key] == "float":
            typed[key] = _number(value, place)
        elif known[key] == "str":
            if not isinstance(value, str):
                raise InputError(f"{value!r}", where=place, allowed="a name")
            typed[key] = value
        else:
            if not isinstance(value, Mapping):
                raise InputError(f"{value!r}", where=place, allowed="a mapping of names to numbers")
            whole = known[key] == "Mapping[str, int]"
            typed[key] = {str(name): _whole(item, place) if whole else _number(item, place) for name, item in value.items()}
    config = ShieldConfig(**typed)
    judge_named(config.fallback)
    return config


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{value!r}", where=where, allowed="a number")
    return float(value)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{value!r}", where=where, allowed="a whole number")
    return value

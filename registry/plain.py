"""Nested values as JSON, as flat parameters, and within MLflow's lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``{"a.b.c": value}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def plain(value: Any) -> Any:
    """``value`` in JSON types: mappings and sequences rebuilt, numpy scalars unboxed, non-finite floats None, anything else its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def clip(text: str, limit: int) -> str:
    """``text``, cut to ``limit`` characters with a mark where it was longer."""
    mark = " ... [clipped]"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark

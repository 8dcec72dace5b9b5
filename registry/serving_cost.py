"""How long one answer of a package takes when it is loaded from its own files, and how many bytes those are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MOST_CALLS = 50


def serving_cost(kind: str, answer: Callable[[], object], folder: Path, *, budget_s: float = 2.0, least_calls: int = 5) -> dict[str, Any]:
    """Evidence of the gate ``latency_and_size``.

    Args:
        kind: ``forecaster`` or ``policy``.
        answer: gives one answer; called once beforehand, which is not counted, then for ``budget_s`` seconds but at least ``least_calls``
            and at most 50 times.
        folder: the package.

    Returns:
        ``kind, p95_ms, median_ms, calls, bytes``.
    """
    answer()
    seconds: list[float] = []
    while len(seconds) < MOST_CALLS and (len(seconds) < least_calls or sum(seconds) < budget_s):
        begun = time.perf_counter()
        answer()
        seconds.append(time.perf_counter() - begun)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    p50, p95 = (float(value) for value in np.quantile(np.array(seconds) * 1000, [0.5, 0.95]))
    return {"kind": kind, "p95_ms": p95, "median_ms": p50, "calls": len(seconds), "bytes": size}

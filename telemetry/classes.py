"""Workload classes, the one list that every package shares."""

from __future__ import annotations

WORKLOAD_CLASSES: tuple[str, ...] = (
    "training",
    "fine_tuning",
    "batch_inference",
    "realtime_inference",
    "interactive",
)
CLASS_INDEX: dict[str, int] = {name: index for index, name in enumerate(WORKLOAD_CLASSES)}

"""Colours and words of the replay page."""

from __future__ import annotations

import pandas as pd

from envs.replay.history import AWAKE, DOWN, SLEEPING, WAKING
from envs.replay.power import TRANSFER
from telemetry.classes import WORKLOAD_CLASSES

# Okabe and Ito (2008): told apart by readers with any colour vision.
CLASS_COLOURS = dict(zip(WORKLOAD_CLASSES, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), strict=True))
STATE_COLOURS = {AWAKE: "#FFFFFF", WAKING: "#E8CF4A", SLEEPING: "#D9E0E8", DOWN: "#3A3A3A"}
LABELS = {"idle": "idle (awake, GPUs not held)", "waking": "waking node", "sleeping": "sleeping node", "down": "node down"}
CATEGORY_COLOURS = {"idle": "#A9A9A9", "waking": "#E8CF4A", "sleeping": "#C3CEDB", **CLASS_COLOURS, TRANSFER: "#5E3C99"}
SITE_COLOURS = ("#1B1B1B", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
INK, MUTED, RULE, ALARM = "#222222", "#6B6B6B", "#E3E3E3", "#C4161C"


def paler(colour: str, strength: float) -> str:
    """A colour mixed with white; strength 1 = itself."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - strength * (255 - value)):02X}" for value in channels)


def level_strength(levels: int, level: int) -> float:
    """How strong a colour is at a power level: 1 at full power, 0.35 at the lowest."""
    return 1.0 if levels < 2 else 1.0 - 0.65 * level / (levels - 1)


def words(name: str) -> str:
    return name.replace("_", " ")


def lasting(seconds: float) -> str:
    """A duration in the largest unit that keeps two figures."""
    if pd.isna(seconds):
        return "-"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 1.5 * length or (unit == "h" and abs(seconds) >= length):
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"

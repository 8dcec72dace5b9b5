"""What is kept between two shots: the blocks of the version that is watched, and what was told of them. JSON, replaced by one rename.

Detectors are not kept: they run over the blocks again, which gives the same alarms, so that a shot that is killed anywhere loses
nothing and counts nothing twice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from models.drift.blocks import Training
from pipelines.workspace import read_json, write_json

FORMAT = 1


@dataclass
class WatchState:
    """State of one target.

    Attributes:
        version: of the champion; another one begins anew.
        training: by series, from what was before the version's first forecast.
        blocks: signals by number of block.
        told: keys of findings that were reported.
    """

    version: str = ""
    training: dict[str, Training] = field(default_factory=dict)
    blocks: dict[int, dict[str, float]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path, alerts: list[str]) -> WatchState:
        """Read what ``save`` wrote; what cannot be read is begun anew, with an alert."""
        if not path.exists():
            return cls()
        try:
            stored = read_json(path)
            if stored.pop("format") != FORMAT:
                raise ValueError("another format")
            training = {uid: _training(one) for uid, one in stored["training"].items()}
            blocks = {int(number): {str(k): float(v) for k, v in row.items()} for number, row in stored["blocks"].items()}
            return cls(str(stored["version"]), training, blocks, [str(key) for key in stored["told"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            alerts.append(f"state started afresh: {path} cannot be read ({error})")
            return cls()

    def save(self, path: Path) -> None:
        """Write atomically."""
        training = {uid: asdict(one) for uid, one in self.training.items()}
        write_json(path, {"format": FORMAT, "version": self.version, "training": training, "blocks": self.blocks, "told": self.told})

    def add(self, scored: pd.DataFrame) -> int:
        """Take in blocks that are not yet known; returns how many. A known one stays as it is."""
        fresh = [number for number in scored.index if int(number) not in self.blocks]
        for number in fresh:
            self.blocks[int(number)] = {str(k): float(v) for k, v in scored.loc[number].items()}
        return len(fresh)

    def frame(self) -> pd.DataFrame:
        """Signals by block, ascending."""
        return pd.DataFrame.from_dict(self.blocks, orient="index").sort_index()


def _training(stored: dict[str, Any]) -> Training:
    numbers = {name: float(stored[name]) for name in ("scale", "mean", "deviation")}
    return Training(**numbers, edges=tuple(map(float, stored["edges"])), shares=tuple(map(float, stored["shares"])))

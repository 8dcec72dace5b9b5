"""How often the shield stepped in, as a part of an evaluation's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ShieldSection:
    """Interventions by policy that was evaluated behind the shield."""

    counts: Mapping[str, Mapping[str, int]]

    def _counted(self) -> dict[str, dict[str, int]]:
        return {name: {key: count for key, count in sorted(counts.items()) if count} for name, counts in self.counts.items()}

    def extend(self, document: dict[str, Any]) -> None:
        """``shield.<policy>``: counts by kind."""
        document["shield"] = self._counted()

    def lines(self) -> list[str]:
        """A line for each policy."""
        told = {name: ", ".join(f"{key} {count:,}" for key, count in counts.items()) for name, counts in self._counted().items()}
        return ["interventions of the shield (docs/shield.md)", *(f"  {name}: {what}" for name, what in told.items())]

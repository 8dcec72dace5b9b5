"""The second baseline of an evaluation: the best judge on the data shown, or a policy by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from envs.evaluate import METRICS, paired_difference
from envs.heuristics import JUDGES
from pipelines.evaluation_report import difference_lines, differences_json
from telemetry.errors import InputError

BEST_JUDGE = "best_judge"
CHOSEN = "least mean objective among the judges evaluated, chosen on the data shown"


def best_judge(frame: pd.DataFrame) -> str:
    """The judge of the least mean objective in rows of :func:`envs.evaluate.evaluate`.

    Raises:
        InputError: no judge was evaluated.
    """
    means = frame.groupby("policy")["objective_usd"].mean()
    judges = [name for name in means.index if name in JUDGES]
    if not judges:
        raise InputError("no judge was evaluated", where=BEST_JUDGE, allowed=", ".join(JUDGES), remedy="name one in policies=[...]")
    return str(means[judges].idxmin())


@dataclass(frozen=True)
class AgainstSection:
    """Paired differences of the other policies to ``policy``."""

    policy: str
    chosen: str
    differences: pd.DataFrame

    def extend(self, document: dict[str, Any]) -> None:
        """``against``: the policy, how it was chosen, and ``paired_difference`` as that to the baseline."""
        document["against"] = {
            "policy": self.policy,
            "chosen": self.chosen,
            "paired_difference": differences_json(self.differences),
        }

    def lines(self) -> list[str]:
        if not len(self.differences):
            return [f"best judge: {self.policy} ({self.chosen}); no other policy was evaluated"]
        return difference_lines(self.differences, about=f" ({self.chosen})")[1:]


def against_section(frame: pd.DataFrame, against: str) -> AgainstSection:
    """Differences to the policy that ``against`` names (``best_judge`` or one that was evaluated).

    Against the best judge, policies that are no judges are compared; when there is none, the other judges are.
    """
    names = list(dict.fromkeys(frame["policy"]))
    if against != BEST_JUDGE:
        return AgainstSection(against, "named", paired_difference(frame, against, metrics=METRICS))
    best = best_judge(frame)
    others = [name for name in names if name not in JUDGES] or [name for name in names if name != best]
    shown = frame[frame["policy"].isin([best, *others])]
    return AgainstSection(best, CHOSEN, paired_difference(shown, best, metrics=METRICS))

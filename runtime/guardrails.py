"""The guardrails at work: outcomes come in one by one, a breach stops the experiment, a sustained loss puts the last good version back.

The rules and the file that stops are ``registry.guardrails``'; here they are applied to what is known so far, and acted on once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from registry.guardrails import Breach, GuardConfig, Watched, stop, stopped_experiments, watch
from runtime.split import Split
from telemetry.errors import InputError


class Guard:
    """Watches one arm of an experiment, or a champion against the version before it.

    Args:
        folder: of the log, where what has stopped is written.
        on_stop: called once with the first breach, after it is on disk.
        on_rollback: called once with the reason, when the loss has lasted for ``config.sustained`` days: ``registry.promotion.rollback``.
    """

    def __init__(
        self,
        experiment: str,
        config: GuardConfig,
        folder: Path,
        *,
        on_stop: Callable[[Breach], None] | None = None,
        on_rollback: Callable[[str], None] | None = None,
    ) -> None:
        if not experiment:
            raise InputError("no name", where="guardrails", allowed="the experiment's name")
        self.experiment, self.config, self.folder = experiment, config, folder
        self._on_stop, self._on_rollback = on_stop, on_rollback
        self._outcomes: list[tuple[pd.Timestamp, bool, float, bool]] = []
        self._stopped = experiment in stopped_experiments(folder)
        self._rolled_back = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    def add(self, time: pd.Timestamp, watched: bool, cost_usd: float, violated: bool) -> Watched:
        """One more outcome of a job; acts when a rule fires.

        Raises:
            InputError: a cost that is not finite.
        """
        self._outcomes.append((time, watched, cost_usd, violated))
        found = watch(pd.DataFrame(self._outcomes, columns=["time", "watched", "cost_usd", "violated"]), self.config)
        if found.breach is not None and not self._stopped:
            stop(self.folder, self.experiment, found.breach)
            self._stopped = True
            if self._on_stop is not None:
                self._on_stop(found.breach)
        if found.breach is not None and found.sustained(self.config) and not self._rolled_back:
            self._rolled_back = True
            if self._on_rollback is not None:
                self._on_rollback(f"{found.lost_days} days in a row: {found.breach.reason}")
        return found


def arm_in_force(split: Split | None, unit: str, folder: Path | None) -> tuple[str, str]:
    """The arm that answers a unit now, and why it is not the drawn one (empty when it is).

    A stopped experiment, or a file of stopped ones that cannot be read, leaves everyone to the champion.
    """
    if split is None:
        return "champion", ""
    drawn = split.arm_of(unit)
    if folder is not None:
        try:
            stopped = stopped_experiments(folder)
        except InputError as error:
            return "outside", str(error)
        if split.experiment in stopped:
            return "outside", f"experiment '{split.experiment}' was stopped: {stopped[split.experiment].get('reason', '')}"
    return drawn, ""

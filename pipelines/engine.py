"""Where a command's work runs: the config group ``engine``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.engine import KINDS, Engine, make_engine
from telemetry.errors import InputError


@dataclass(frozen=True)
class EngineConfig:
    """Where the work runs.

    Args:
        kind: ``local``: processes on this machine; ``ray``: a Ray cluster (the extra ``ray``).
        workers: pieces of work at a time.
        address: of a running Ray cluster; None starts one on this machine.
    """

    kind: str
    workers: int
    address: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"{self.kind!r}", where="engine.kind", allowed=", ".join(KINDS))
        if self.workers < 1:
            raise InputError(f"{self.workers}", where="engine.workers", allowed="at least 1")

    def start(self, initializer: Callable[[], None] | None = None) -> Engine:
        """Engine to enter; ``initializer`` is called once in each local worker process."""
        return make_engine(self.kind, self.workers, self.address, initializer)

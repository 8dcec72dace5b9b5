"""An exclusive lock between processes of one machine."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from telemetry.errors import InputError

_POLL_S = 0.02


@contextmanager
def exclusive(path: Path, timeout_s: float = 60.0) -> Iterator[None]:
    """Hold ``path`` locked; the kernel releases it when the holder ends, killed or not.

    Raises:
        InputError: another process held the lock for ``timeout_s``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + timeout_s
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    raise InputError(
                        f"still held by another process after {timeout_s:g} s",
                        where=str(path),
                        remedy="wait for that process, or look for one that hangs",
                    ) from error
                time.sleep(_POLL_S)
        yield

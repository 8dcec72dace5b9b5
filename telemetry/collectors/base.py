"""The one interface of all collectors: ask a live system for a window of time, get an export in its native format."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import pandas as pd

from telemetry.errors import InputError
from telemetry.spool import Spool, Window


class UnavailableError(InputError):
    """The system did not answer although asked again and again: a later run may find it well."""


class Collector(Protocol):
    """Fetches from one live system. A frozen dataclass: its fields are the keys of its config group.

    ``fetch`` answers with a whole export in the native format of the reader named ``reader``: what is saved is what the system said.
    Requests are retried with back-off where the fault may pass, and never where it cannot (wrong credentials, a bad query). Credentials
    come from files or from the vendor's own chain, never from a config key, and are in no message.

    Attributes:
        reader: name in ``telemetry.readers.READERS``.
        suffix: of the native format, such as ``json``.
    """

    reader: ClassVar[str]
    suffix: ClassVar[str]
    # What its tests ask, for docs/telemetry.md.
    tested: ClassVar[str]

    def fetch(self, start: pd.Timestamp, end: pd.Timestamp) -> bytes:
        """Export of ``start <= time < end`` (UTC).

        Raises:
            InputError: unreachable, refused, or an answer that is not what it should be; with the address and what to do.
        """
        ...


def collect(
    collector: Collector,
    spool: Spool,
    start: pd.Timestamp,
    end: pd.Timestamp,
    *,
    chunk: pd.Timedelta,
    lookback: pd.Timedelta,
    progress: Callable[[Window, bool], None] | None = None,
) -> list[Window]:
    """Fetch the windows that the spool lacks, oldest first, each stored before the next is asked for.

    Args:
        chunk: length of a window.
        lookback: how far a file reaches back before its window: at least one scrape, so that no counter interval is lost between files.
        progress: called with each window before (False) and after (True) it is fetched.

    Returns:
        The windows that were fetched; none if all were there.
    """
    wanted = spool.missing(start, end, chunk)
    for window in wanted:
        if progress is not None:
            progress(window, False)
        spool.write(window, collector.suffix, collector.fetch(window.start - lookback, window.end))
        if progress is not None:
            progress(window, True)
    return wanted

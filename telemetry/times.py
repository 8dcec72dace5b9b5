"""Times as exports write them, read as UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pandas as pd

from telemetry.errors import InputError

ZONED = r":.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"
NO_TIME: frozenset[str] = frozenset({"", "unknown", "none", "n/a", "nan", "nat"})


def parse_time_s(text: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time (no zone = UTC); None when it is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def utc_times(values: Sequence[str | None]) -> tuple[pd.Series, pd.Series]:
    """UTC times [N] of ISO 8601 texts (no zone = UTC), NaT where there is none; and which texts were meant as a time but are none."""
    text = pd.Series(values, dtype=object).map(lambda v: "" if v is None else str(v).strip())
    blank = text.str.lower().isin(NO_TIME)
    # Apart, because pandas gives a text without a zone the zone of the text before it.
    zoned = text.str.contains(ZONED)
    parts = [pd.to_datetime(text[own & ~blank], utc=True, format="ISO8601", errors="coerce") for own in (zoned, ~zoned)]
    times = pd.concat([part for part in parts if len(part)] or parts[:1]).reindex(text.index).astype("datetime64[ns, UTC]")
    return times, times.isna() & ~blank


def utc_column(values: pd.Series, *, where: str, nullable: bool = False) -> pd.Series:
    """A column as UTC times.

    Raises:
        InputError: a value that is no time, or a missing one where none may be; names row and value.
    """
    if pd.api.types.is_datetime64_any_dtype(values):
        times = values.dt.tz_localize("UTC") if values.dt.tz is None else values.dt.tz_convert("UTC")
        times, wrong = times.astype("datetime64[ns, UTC]"), pd.Series(False, index=values.index)
    elif pd.api.types.is_numeric_dtype(values) and values.notna().any():
        raise InputError(f"column {values.name!r} holds numbers (first {values.iloc[0]!r})", where=where, allowed="ISO 8601 times")
    else:
        times, wrong = utc_times(values.where(values.notna(), None).tolist())
        times.index = wrong.index = values.index
    if not nullable:
        wrong = wrong | times.isna()
    if wrong.any():
        at = wrong.idxmax()
        raise InputError(
            f"column {values.name!r}, row {at}: {values[at]!r} is no time ({int(wrong.sum())} row(s))",
            where=where,
            allowed="ISO 8601, UTC unless it has a zone",
        )
    return times

"""What the readers of cloud monitors share: which metric a vendor's name stands for, in what unit, and when its value was known.

Cloud monitors date a value by the START of its period; here it is dated by the END, when it could first be known. Gauges are the mean over
the period; counts of a period become rates, so a period without requests that the monitor leaves out is no error, only a gap.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.readers.base import read_text

MEAN, RATE = "mean", "rate"


@dataclass(frozen=True)
class CloudMetric:
    """What a vendor's metric is here.

    Attributes:
        metric: name in ``telemetry.units.METRICS``.
        units: the vendor's unit -> a unit of ``telemetry.units.CONVERSIONS``; a unit that is not there is refused.
        how: ``mean`` over the period, or ``rate``: the sum over the period, divided by its length.
    """

    metric: str
    units: dict[str, str]
    how: str = MEAN

    def unit(self, name: str, *, where: str) -> str:
        """Unit of the vendor's ``name``.

        Raises:
            InputError: it does not measure this.
        """
        if name not in self.units:
            raise InputError(f"unit {name!r}", where=where, allowed=", ".join(self.units), remedy=f"export it as {next(iter(self.units))}")
        return self.units[name]


def finite(value: Any) -> float | None:
    """A finite number, or None; text and truth values are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def period_value(how: str, *, mean: Any, total: Any, count: Any, period_s: float) -> float | str | None:
    """Value of one period from what the monitor says of it: a number, None where it says nothing, or a text that is no number."""
    numbers = {"mean": finite(mean), "total": finite(total), "count": finite(count)}
    given = {"mean": mean, "total": total, "count": count}
    if how == RATE:
        if total is None:
            return None
        return "no number" if numbers["total"] is None else numbers["total"] / period_s
    if mean is not None:
        return "no number" if numbers["mean"] is None else numbers["mean"]
    if given["total"] is None or given["count"] is None or numbers["count"] == 0:
        return None
    if numbers["total"] is None or numbers["count"] is None:
        return "no number"
    return numbers["total"] / numbers["count"]


def json_documents(path: Path, quality: QualityReport, source: str, *, whole: str) -> list[tuple[str, Any]]:
    """Documents of a file of one JSON document, or of one a line, each with its place.

    Args:
        whole: a text that only a file of one document begins with; such a file must be complete. Elsewhere a line that is no JSON object
            is counted as ``unparseable``.

    Raises:
        InputError: empty, or not one line is a JSON object.
    """
    text = read_text(path)
    try:
        return [(str(path), json.loads(text))]
    except RecursionError as error:
        raise InputError("deep nesting", where=str(path), remedy="export the file again") from error
    except ValueError as error:
        if whole in text[:2000]:
            raise InputError("truncated or no valid JSON", where=f"{path}, {error}", remedy="export the file again") from error
    found: list[tuple[str, Any]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append((f"{path}, line {number}", value))
        else:
            quality.add(source, "unparseable")
    if not found:
        raise InputError("no line is a JSON object", where=str(path), remedy="is the file truncated, or of another format?")
    return found

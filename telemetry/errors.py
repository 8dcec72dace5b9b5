"""Errors that a user can cause, each saying what, where, what is allowed and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a value that cannot be accepted or repaired.

    Args:
        problem: what is wrong, with the offending value.
        where: file, line, row, column or key; empty when the problem has no place.
        allowed: what would have been accepted.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, *, where: str = "", allowed: str = "", remedy: str = "") -> None:
        parts = [f"{where}: {problem}" if where else problem]
        if allowed:
            parts.append(f"allowed: {allowed}")
        if remedy:
            parts.append(f"remedy: {remedy}")
        super().__init__("; ".join(parts))
        self.problem, self.where, self.allowed, self.remedy = problem, where, allowed, remedy


class NoPointsError(InputError):
    """A whole export without a point of a known metric: an error of a file, but an outage of a window that was fetched."""

"""Forecasts whose values are not all known yet: what the model said and what was issued, kept until they can be compared."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS

IDS, ISSUED, QUANTILES = "ids.npy", "issued_ns.npy", "quantiles.npy"


@dataclass(frozen=True)
class Matured:
    """Rows whose value is known now: ``ids [n]``, ``steps [n]`` from 1, ``actual [n]``, ``raw [n, Q]``, ``issued [n, Q]``."""

    ids: np.ndarray
    steps: np.ndarray
    actual: np.ndarray
    raw: np.ndarray
    issued: np.ndarray


@dataclass(frozen=True)
class _Issue:
    """One issue as it lies on disk: ``quantiles`` are mapped, not read."""

    newest_ns: int
    ids: np.ndarray
    issued_ns: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def load(cls, newest_ns: int, folder: Path, horizon: int) -> _Issue:
        """Raises OSError, ValueError or EOFError for files that are missing, damaged or do not belong together."""
        ids, issued_ns = (np.array(np.lib.format.open_memmap(folder / name, mode="r")) for name in (IDS, ISSUED))
        quantiles = np.lib.format.open_memmap(folder / QUANTILES, mode="r")
        if issued_ns.shape != ids.shape or quantiles.shape != (horizon, len(ids), 2, len(QUANTILE_COLUMNS)):
            raise ValueError(f"{ids.shape} ids, {issued_ns.shape} times, quantiles {quantiles.shape}")
        return cls(newest_ns, ids, issued_ns, quantiles)


class PendingForecasts:
    """One folder an issue and version: ``ids [N]``, ``issued_ns [N]`` and ``quantiles [H, N, 2, Q]`` (said, issued), read by step.

    Issues are read once, when they are first asked for. One that cannot be read is dropped, which ``alerts`` tells.
    """

    def __init__(self, root: Path, version: str, step_ns: int, horizon: int, alerts: list[str]) -> None:
        self.root, self.version, self.step_ns, self.horizon, self.alerts = root, version, step_ns, horizon, alerts
        self.span_ns = horizon * step_ns

    def write(self, ids: np.ndarray, issued_ns: np.ndarray, raw: np.ndarray, issued: np.ndarray) -> None:
        """Keep an issue: ``raw`` and ``issued`` are ``[N, H, Q]``. One of the same time and version is replaced."""
        target = self.root / f"{int(issued_ns.max())}-v{self.version}"
        fresh = self.root / f".{target.name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        np.save(fresh / IDS, ids.astype(np.str_))
        np.save(fresh / ISSUED, issued_ns)
        np.save(fresh / QUANTILES, np.ascontiguousarray(np.stack([raw, issued], axis=2).swapaxes(0, 1)))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)

    @cached_property
    def _issues(self) -> list[_Issue]:
        """Issues of this version, oldest first."""
        named = [(folder.name.partition("-v"), folder) for folder in self.root.glob(f"[0-9]*-v{self.version}")]
        found = []
        for newest_ns, folder in sorted((int(name[0]), folder) for name, folder in named if name[2] == self.version):
            try:
                found.append(_Issue.load(newest_ns, folder, self.horizon))
            except (OSError, ValueError, EOFError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                self.alerts.append(f"intervals do not learn from one issue, which is dropped: {folder} cannot be read ({error})")
        return found

    def last_issued_ns(self) -> dict[str, int]:
        """Newest ``issued_ns`` by series, of the issues that are kept."""
        last: dict[str, int] = {}
        for issue in self._issues:
            last.update(zip(issue.ids.tolist(), issue.issued_ns.tolist(), strict=True))
        return last

    def matured(self, time_ns: int, ids: np.ndarray, values: np.ndarray) -> Matured:
        """All forecasts of ``ids`` ``[n]`` for ``time_ns``, against their ``values`` ``[n]``."""
        found: list[Matured] = []
        wanted = pd.Index(ids)
        for issue in self._issues:
            if issue.newest_ns < time_ns - self.span_ns:
                continue
            at = wanted.get_indexer(pd.Index(issue.ids))
            step, rest = np.divmod(time_ns - issue.issued_ns, self.step_ns)
            rows = np.flatnonzero((at >= 0) & (rest == 0) & (step >= 1) & (step <= self.horizon))
            if len(rows):
                both = issue.quantiles[step[rows] - 1, rows]  # [m, 2, Q]
                found.append(Matured(issue.ids[rows], step[rows], values[at[rows]], both[:, 0], both[:, 1]))
        if not found:
            none = np.empty((0, len(QUANTILE_COLUMNS)))
            return Matured(np.empty(0, dtype=np.str_), np.empty(0, dtype=np.int64), np.empty(0), none, none)
        parts = [np.concatenate([getattr(part, name) for part in found]) for name in ("ids", "steps", "actual", "raw", "issued")]
        return Matured(*parts)

    def prune(self, before_ns: int) -> None:
        """Drop issues of every version whose last step was before ``before_ns``, and what a killed run left."""
        for folder in self.root.glob("*"):
            stamp = folder.name.partition("-v")[0]
            if not stamp.isdigit() or int(stamp) + self.span_ns < before_ns:
                shutil.rmtree(folder, ignore_errors=True)

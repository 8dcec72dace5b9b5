"""The forecasters to beat: last value, last value with its own history of changes, and last season."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.base import QUANTILES
from models.intervals import NORMAL_SCORES, change_quantiles, residual_quantiles, step_differences
from models.member import NS_PER_HOUR, PanelForecaster, filled, reading
from models.metrics import quantile_loss
from models.series import Panel, forward_fill
from telemetry.errors import InputError

PARAMETERS = "empirical_persistence.json"
CONDITIONS = ("none", "hour", "activity", "auto")


def _root_mean_square(differences: np.ndarray) -> float:
    known = differences[np.isfinite(differences)]
    return float(np.sqrt(np.mean(known**2))) if known.size else 0.0


class Persistence(PanelForecaster):
    """The last value, with a Gaussian random walk around it: sigma_h = sigma_1 sqrt(h) (Hyndman and Athanasopoulos, 5.5)."""

    name = "persistence"
    per_series = True

    def _fit(self, panel: Panel) -> None:
        """Nothing to learn: the history tail is the model."""

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        last = np.array([values[-1] for values in panel.values])
        sigma = np.array([_root_mean_square(np.diff(values)) for values in panel.values])
        spread = np.sqrt(1.0 + np.arange(horizon))[:, None] * NORMAL_SCORES  # [H, Q]
        return last[:, None, None] + sigma[:, None, None] * spread


class SeasonalNaive(PanelForecaster):
    """The value one season before, Gaussian around it: sigma_h = sigma_season sqrt(seasons ahead); short series repeat the last value."""

    name = "seasonal_naive"
    per_series = True

    def _fit(self, panel: Panel) -> None:
        """Nothing to learn: the history tail is the model."""

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        m = self.season_length
        step = np.arange(horizon)
        seasons = step // m + 1  # whole seasons back to a known value, [H]
        out = np.empty((len(panel), horizon, len(QUANTILES)))
        for i, values in enumerate(panel.values):
            if len(values) < m + 1:
                out[i] = self._fall_back(panel, i, horizon, f"history of {len(values)} rows is not above one season of {m}")
                continue
            self.fallbacks.pop(panel.ids[i], None)
            centre = forward_fill(values)[len(values) + step - m * seasons]
            sigma = _root_mean_square(values[m:] - values[:-m])
            out[i] = centre[:, None] + sigma * np.sqrt(seasons)[:, None] * NORMAL_SCORES
        return out


@dataclass(frozen=True)
class EmpiricalPersistenceOptions:
    """Options of ``empirical_persistence``.

    Args:
        condition: which historical changes count: ``none`` all; ``hour`` those issued near the same time of day; ``activity`` those
            issued after a similarly busy spell; ``auto`` the one of the three with the least loss over the last quarter of the history.
        hours: half width of the time-of-day window.
        activity_rows: length of the spell whose mean absolute change measures activity.
        max_rows: history rows looked back on.
    """

    condition: str = "auto"
    hours: float = 2.0
    activity_rows: int = 12
    max_rows: int = 4320

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise InputError(f"condition {self.condition!r}", where="empirical_persistence", allowed=", ".join(CONDITIONS))


class EmpiricalPersistence(PanelForecaster):
    """The last value plus the quantiles of the historical h-step changes."""

    name = "empirical_persistence"
    per_series = True
    options_class = EmpiricalPersistenceOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.conditions: dict[str, str] = {}  # by series, chosen at fit when the condition is auto

    @property
    def history_rows(self) -> int:
        return self.options.max_rows

    def _fit(self, panel: Panel) -> None:
        self.conditions = {}
        if self.options.condition == "auto":
            tail = panel.tail(self.options.max_rows)
            for i, (values, dense) in enumerate(zip(tail.values, filled(tail), strict=True)):
                self.conditions[tail.ids[i]] = self._best_condition(values, dense, tail.times_ns(i), self.horizon)

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        out = np.empty((len(panel), horizon, len(QUANTILES)))
        for i, (values, dense) in enumerate(zip(panel.values, filled(panel), strict=True)):
            condition = self.options.condition
            if condition == "auto":
                condition = self.conditions.get(panel.ids[i], "none")
            rows = None
            if condition != "none":
                rows = self._masks(dense, panel.times_ns(i), np.array([len(dense) - 1]))[condition][0]
            out[i] = values[-1] + change_quantiles(values, horizon, rows)
        return out

    def _save_parameters(self, folder: Path) -> None:
        (folder / PARAMETERS).write_text(json.dumps(self.conditions))

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            self.conditions = json.loads((folder / PARAMETERS).read_text())

    def _masks(self, dense: np.ndarray, times_ns: np.ndarray, issues: np.ndarray) -> dict[str, np.ndarray]:
        """Per condition, the historical rows ``[I, T]`` that resemble each issue row."""
        hour = (times_ns / NS_PER_HOUR) % 24.0
        apart = np.abs(hour[None, :] - hour[issues, None])
        change = np.abs(np.diff(dense, prepend=dense[:1]))
        total = np.concatenate([[0.0], np.cumsum(change)])
        begin = np.maximum(np.arange(len(dense)) + 1 - self.options.activity_rows, 0)
        activity = total[1:] - total[begin]
        edges = np.quantile(activity, (1 / 3, 2 / 3))
        level = np.searchsorted(edges, activity, side="left")
        return {
            "none": np.ones((len(issues), len(dense)), dtype=bool),
            "hour": np.minimum(apart, 24.0 - apart) <= self.options.hours,
            "activity": level[None, :] == level[issues, None],
        }

    def _best_condition(self, values: np.ndarray, dense: np.ndarray, times_ns: np.ndarray, horizon: int, probes: int = 24) -> str:
        """Condition with the least quantile loss at probe rows of the last quarter, each judged on changes that were complete by then."""
        first, last = 3 * len(values) // 4, len(values) - horizon - 1
        if last - first < probes or first < 4 * horizon:
            return "none"
        differences = step_differences(values, horizon)
        issues = np.unique(np.linspace(first, last, probes).astype(np.int64))
        masks = self._masks(dense, times_ns, issues)
        losses = dict.fromkeys(masks, 0.0)
        for k, issue in enumerate(issues):
            known = np.isfinite(differences[issue])
            for condition, mask in masks.items():
                past = differences[: issue - horizon + 1][mask[k, : issue - horizon + 1]]
                losses[condition] += quantile_loss(differences[issue, known], residual_quantiles(past)[known]).sum()
        return min(losses, key=lambda condition: losses[condition])

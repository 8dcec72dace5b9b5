"""Power forecasts that know of workload: direct, conditional on a load forecast and a power curve, blended, and made coherent.

A power series with a ``PowerCurve`` has two forecasts. The *direct* one comes from its own past. The *conditional* one asks the load
forecast what will run, and the curve what that draws::

    P(t+h) = P(t) + gain (g(N(t+h)) - g(N(t))) + pull (g(N(t)) - P(t)) + e(h),      g(N) = idle + watts per unit x min(N, capacity)

Gain (1 where the curve is right) and pull (0 where a deviation from the curve lasts) are fitted by horizon band on history with the
loads that came; the quantiles of ``e(h)`` are what was left then, and the distribution of ``N(t+h)`` is the load forecast's. The sum of
the two is the forecast, so an uncertain load makes uncertain watts. Direct and conditional quantiles are averaged with the share that
lost least on calibration windows, by level and horizon band; where conditioning does not help, its share is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS, QUANTILES, monotone
from models.distribution import sum_of_independent
from models.hierarchy import Bounds, Reconciler
from models.intervals import BANDS, horizon_bands, residual_quantiles
from models.metrics import quantile_loss
from telemetry.errors import InputError

PRIOR_ROWS = 50.0
MOST_ROWS = 4320
FEWEST_ROWS = 50
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
NAME = "power"
Q = list(QUANTILE_COLUMNS)


@dataclass(frozen=True)
class PowerCurve:
    """What a load draws: ``idle_w`` without any, ``watts_per_unit`` more for each unit (a GPU, mostly) up to ``capacity`` units.

    ``load_id`` names the series of the load. Demand beyond the capacity waits, and draws nothing.
    """

    load_id: str
    idle_w: float
    watts_per_unit: float
    capacity: float = float("inf")

    def __post_init__(self) -> None:
        if not (self.idle_w >= 0 and self.watts_per_unit >= 0 and self.capacity > 0):
            raise InputError(
                f"idle {self.idle_w} W, {self.watts_per_unit} W a unit, capacity {self.capacity}",
                where=f"power curve on {self.load_id!r}",
                allowed="watts from 0, a capacity above 0",
            )

    def watts(self, load: np.ndarray) -> np.ndarray:
        """Watts that a load draws, elementwise."""
        return self.idle_w + self.watts_per_unit * np.clip(load, 0.0, self.capacity)


@dataclass(frozen=True)
class Response:
    """How one power series followed its curve: ``gain [B]``, ``pull [B]`` by horizon band, ``rest [H, Q]`` quantiles of what was left."""

    gain: np.ndarray
    pull: np.ndarray
    rest: np.ndarray

    @classmethod
    def fit(cls, watts: np.ndarray, drawn: np.ndarray, horizon: int) -> Response:
        """From history on one grid: ``watts [T]`` measured and ``drawn [T]`` by the curve for the load that was there; NaN gaps."""
        gain, pull = np.ones(BANDS), np.zeros(BANDS)
        bands = horizon_bands(horizon)
        rest = np.full((len(watts), horizon), np.nan)
        rows = [_changes(watts, drawn, h) for h in range(1, horizon + 1)]
        for band in range(BANDS):
            picked = [rows[h] for h in np.flatnonzero(bands == band)]
            if picked:
                gain[band], pull[band] = _regression(*(np.concatenate(parts) for parts in zip(*picked, strict=True)))
        for h, (change, load, gap) in enumerate(rows):
            rest[: len(change), h] = change - gain[bands[h]] * load - pull[bands[h]] * gap
        return cls(gain, pull, residual_quantiles(rest))

    def quantiles(self, steps: np.ndarray, watts: np.ndarray, drawn: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """Conditional quantiles ``[n, Q]``.

        Args:
            steps: ``[n]`` from 1.
            watts, drawn: ``[n]`` measured and by the curve, at issue.
            ahead: ``[n, Q]`` watts by the curve of the quantiles of the load forecast.
        """
        bands = horizon_bands(len(self.rest))[steps - 1]
        gain, pull = self.gain[bands], self.pull[bands]
        moved = (watts + pull * (drawn - watts))[:, None] + gain[:, None] * (ahead - drawn[:, None])
        return sum_of_independent(monotone(moved), self.rest[steps - 1])

    def to_json(self) -> dict[str, list]:
        """Plain lists."""
        return {"gain": self.gain.tolist(), "pull": self.pull.tolist(), "rest": self.rest.tolist()}


def _changes(watts: np.ndarray, drawn: np.ndarray, h: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Change of the watts over h steps, change by the curve, and distance from the curve at the begin, each ``[T - h]``."""
    return watts[h:] - watts[:-h], drawn[h:] - drawn[:-h], (drawn - watts)[:-h]


def _regression(change: np.ndarray, load: np.ndarray, gap: np.ndarray) -> tuple[float, float]:
    """Gain and pull by least squares, leaning on 1 and 0 with the weight of ``PRIOR_ROWS`` rows."""
    known = np.isfinite(change) & np.isfinite(load) & np.isfinite(gap)
    change, load, gap = change[known], load[known], gap[known]
    if not len(change) or not (load.any() or gap.any()):
        return 1.0, 0.0
    factors = np.stack([load, gap], axis=1)
    prior = PRIOR_ROWS * (factors**2).mean(axis=0) + 1e-9
    left = factors.T @ factors + np.diag(prior)
    gain, pull = np.linalg.solve(left, factors.T @ change + prior * np.array([1.0, 0.0]))
    return float(np.clip(gain, 0.0, 2.0)), float(np.clip(pull, 0.0, 1.0))


def level_of(unique_id: str) -> str:
    """``gpu``, ``node``, ``pool``, ``site`` of ``power/LEVEL/...``; ``all`` for other names."""
    parts = unique_id.split("/")
    return parts[1] if len(parts) > 2 else "all"


@dataclass(frozen=True)
class PowerModel:
    """Everything that turns direct power forecasts and load forecasts into the final ones; see the module.

    Attributes:
        horizon: steps of a forecast.
        curves: by power series; series without one have only the direct forecast.
        responses: by power series, for those with a curve and a known load.
        shares: share of the conditional forecast ``[B]`` by level.
        reconciler: what makes the levels agree.
    """

    horizon: int
    curves: dict[str, PowerCurve]
    responses: dict[str, Response]
    shares: dict[str, np.ndarray]
    reconciler: Reconciler
    bounds: dict[str, Sequence[float | None]] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        direct: pd.DataFrame,
        loads: pd.DataFrame | None,
        power_history: pd.DataFrame,
        load_history: pd.DataFrame | None,
        *,
        curves: Mapping[str, PowerCurve] | None = None,
        parents: Mapping[str, str] | None = None,
        bounds: Bounds | None = None,
        horizon: int,
    ) -> PowerModel:
        """Learn from calibration windows and from the history before them.

        Args:
            direct: direct forecasts of past windows with what came: ``unique_id, issued_at, ds, step, origin, q10 ... q90, y``. Without
                rows nothing is learned, and levels are only reconciled.
            loads: load forecasts of the same issues (``unique_id, issued_at, ds, q10 ... q90``), or None.
            power_history, load_history: ``unique_id, ds, y``. Curves are fitted on rows up to the first issue of ``direct`` only; of later
                rows only the value at each issue is read.
            curves: by power series, in the units of the load series.
            parents: child -> parent.
            bounds: ``{unique_id: (floor, cap)}`` in W.
            horizon: steps of a forecast.
        """
        if direct.empty:
            return cls(horizon, dict(curves or {}), {}, {}, Reconciler(dict(parents or {}), dict(bounds or {}), {}), dict(bounds or {}))
        begin = direct["issued_at"].min()
        known, responses = dict(curves or {}), {}
        if loads is not None and load_history is not None:
            past = (_wide(power_history, begin), _wide(load_history, begin))
            responses = {uid: r for uid, curve in known.items() if (r := _response(uid, curve, *past, horizon)) is not None}
        model = cls(horizon, known, responses, {}, Reconciler({}, {}, {}), dict(bounds or {}))
        conditional = model.conditional(direct, loads, power_history, load_history)
        model = cls(horizon, known, responses, conditional_shares(direct, conditional, horizon), model.reconciler, model.bounds)
        blended = model.blend(direct, conditional)
        return cls(horizon, known, responses, model.shares, Reconciler.fit(blended, parents or {}, bounds), model.bounds)

    def conditional(
        self, direct: pd.DataFrame, loads: pd.DataFrame | None, power_history: pd.DataFrame, load_history: pd.DataFrame | None
    ) -> np.ndarray:
        """Conditional quantiles ``[n, Q]`` for the rows of ``direct``; NaN where there is no curve or no load forecast.

        The load forecast of a row is the latest one issued at or before the row's own issue.
        """
        out = np.full((len(direct), len(QUANTILES)), np.nan)
        if loads is None or load_history is None or not self.responses:
            return out
        rows = direct[["unique_id", "issued_at", "ds", "step"]].reset_index(drop=True).assign(row=np.arange(len(direct)))
        rows = rows[rows["unique_id"].isin(self.responses)]
        rows = rows.assign(load_id=rows["unique_id"].map({uid: self.curves[uid].load_id for uid in self.responses}))
        matched = rows.merge(
            loads[["unique_id", "issued_at", "ds", *Q]].rename(columns={"unique_id": "load_id", "issued_at": "load_issued_at"}),
            on=["load_id", "ds"],
        )
        matched = matched[matched["load_issued_at"] <= matched["issued_at"]].sort_values("load_issued_at", kind="stable")
        matched = matched.drop_duplicates("row", keep="last")
        matched = matched.merge(_at_issue(power_history, "unique_id", "issued_at", "watts"), on=["unique_id", "issued_at"])
        matched = matched.merge(_at_issue(load_history, "load_id", "load_issued_at", "load"), on=["load_id", "load_issued_at"])
        for uid, own in matched.groupby("unique_id", sort=False):
            curve, response = self.curves[str(uid)], self.responses[str(uid)]
            ahead, drawn = curve.watts(own[Q].to_numpy(dtype=np.float64)), curve.watts(own["load"].to_numpy(dtype=np.float64))
            quantiles = response.quantiles(own["step"].to_numpy(), own["watts"].to_numpy(dtype=np.float64), drawn, ahead)
            out[own["row"].to_numpy()] = np.clip(quantiles, *_limits(self.bounds.get(str(uid))))
        return out

    def blend(self, direct: pd.DataFrame, conditional: np.ndarray) -> pd.DataFrame:
        """``direct`` with quantiles averaged with the conditional ones where there are any, by the learned shares."""
        bands = horizon_bands(self.horizon)[direct["step"].to_numpy() - 1]
        levels = direct["unique_id"].map(level_of).to_numpy()
        share = np.array([self.shares[level][band] if level in self.shares else 0.0 for level, band in zip(levels, bands, strict=True)])
        share = np.where(np.isnan(conditional).any(axis=1), 0.0, share)[:, None]
        mixed = share * np.nan_to_num(conditional) + (1.0 - share) * direct[Q].to_numpy(dtype=np.float64)
        return direct.assign(**dict(zip(QUANTILE_COLUMNS, mixed.T, strict=True)))

    def apply(
        self, direct: pd.DataFrame, loads: pd.DataFrame | None, power_history: pd.DataFrame, load_history: pd.DataFrame | None
    ) -> pd.DataFrame:
        """Final forecasts: the rows of ``direct`` with coherent quantiles, ``mean``, and ``model`` = ``power``.

        Args: as for :meth:`fit`; ``origin`` may be absent where there is one issue only.
        """
        blended = self.blend(direct, self.conditional(direct, loads, power_history, load_history))
        return self.reconciler.apply(blended).assign(model=NAME)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "horizon": self.horizon,
            "curves": {uid: asdict(curve) for uid, curve in self.curves.items()},
            "responses": {uid: response.to_json() for uid, response in self.responses.items()},
            "shares": {level: share.tolist() for level, share in self.shares.items()},
            "reconciler": self.reconciler.to_json(),
            "bounds": {uid: list(pair) for uid, pair in self.bounds.items()},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> PowerModel:
        """What :meth:`to_json` gave."""
        return cls(
            int(stored["horizon"]),
            {uid: PowerCurve(**curve) for uid, curve in stored["curves"].items()},
            {uid: Response(*(np.array(r[key]) for key in ("gain", "pull", "rest"))) for uid, r in stored["responses"].items()},
            {level: np.array(share) for level, share in stored["shares"].items()},
            Reconciler.from_json(stored["reconciler"]),
            dict(stored["bounds"]),
        )


def _wide(history: pd.DataFrame, until: pd.Timestamp) -> pd.DataFrame:
    """Values by time and series, up to ``until``."""
    return history[history["ds"] <= until].pivot_table(index="ds", columns="unique_id", values="y", aggfunc="last")


def _response(uid: str, curve: PowerCurve, power: pd.DataFrame, load: pd.DataFrame, horizon: int) -> Response | None:
    """Response of one series from its and its load's past; None where they have fewer than two horizons in common."""
    if uid not in power or curve.load_id not in load:
        return None
    both = pd.concat([power[uid], load[curve.load_id]], axis=1, keys=["watts", "load"]).dropna()
    if len(both) <= 2 * horizon:
        return None
    step = both.index.to_series().diff().min()
    both = both.reindex(pd.date_range(both.index[0], both.index[-1], freq=step))[-MOST_ROWS:]
    return Response.fit(both["watts"].to_numpy(), curve.watts(both["load"].to_numpy()), horizon)


def _at_issue(history: pd.DataFrame, uid: str, issued_at: str, value: str) -> pd.DataFrame:
    return history[["unique_id", "ds", "y"]].rename(columns={"unique_id": uid, "ds": issued_at, "y": value})


def _limits(pair: Sequence[float | None] | None) -> tuple[float, float]:
    low, high = pair or (None, None)
    return (-np.inf if low is None else float(low)), (np.inf if high is None else float(high))


def conditional_shares(direct: pd.DataFrame, conditional: np.ndarray, horizon: int) -> dict[str, np.ndarray]:
    """Share of the conditional forecast by level and horizon band: least loss on known rows, 0 where they are fewer than 50."""
    usable = direct["y"].notna().to_numpy() & ~np.isnan(conditional).any(axis=1)
    levels = direct["unique_id"].map(level_of).to_numpy()
    bands = horizon_bands(horizon)[direct["step"].to_numpy() - 1]
    shares = {}
    y, table = direct["y"].to_numpy(dtype=np.float64), direct[Q].to_numpy(dtype=np.float64)
    for level in sorted(set(levels[usable])):
        share = np.zeros(BANDS)
        for band in range(BANDS):
            rows = usable & (levels == level) & (bands == band)
            if rows.sum() >= FEWEST_ROWS:
                losses = [quantile_loss(y[rows], s * conditional[rows] + (1.0 - s) * table[rows]).sum() for s in SHARES]
                share[band] = SHARES[int(np.argmin(losses))]
        shares[str(level)] = share
    return shares

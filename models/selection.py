"""Which forecaster serves: the best one if it beats the naive beyond doubt and costs no more in what is decided by it, else the naive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from models.backtest import NAIVES
from models.backtest_scores import BacktestResult, ForecasterScore, skill
from models.base import QUANTILE_COLUMNS
from models.metrics import bootstrap_ratio, critical_fractile, decision_pinball
from telemetry.errors import InputError


@dataclass(frozen=True)
class Decision:
    """What is decided by the forecast: a reserve at the critical fractile of two costs.

    Args:
        shortage_usd_per_gpu_hour: cost of demand that finds no warm GPU.
        idle_usd_per_gpu_hour: cost of a warm GPU that finds no demand.
        capacity: series that reserves are set for, with the most that each can reserve, in its unit. Empty: all series, unbounded.
        tolerance: by how much the upper end of the interval of the ratio to the naive's cost may lie above 1.
        tie: candidates within this share of the least calibration WQL are alike in it, and the cheaper one in decisions is taken.
    """

    shortage_usd_per_gpu_hour: float = 0.045
    idle_usd_per_gpu_hour: float = 0.009
    capacity: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.05
    tie: float = 0.01

    def __post_init__(self) -> None:
        critical_fractile(self.shortage_usd_per_gpu_hour, self.idle_usd_per_gpu_hour)
        for name in ("tolerance", "tie"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}", where="decision", allowed="from 0, below 1")

    @property
    def fractile(self) -> float:
        """The quantile that the reserve covers."""
        return critical_fractile(self.shortage_usd_per_gpu_hour, self.idle_usd_per_gpu_hour)


@dataclass(frozen=True)
class DecisionRatio:
    """Decision pinball of a forecaster over that of the naive on the same windows, with its 95 % block-bootstrap interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Champion:
    """The choice and why.

    ``wql_ratio`` and ``decision_ratio`` with their intervals are the candidate's against the reference on the test windows; ``promoted``
    says whether the candidate became the champion (``name``) or the naive stayed.
    """

    name: str
    candidate: str
    reference: str
    wql_ratio: float
    wql_ratio_low: float
    wql_ratio_high: float
    sql_ratio: float
    fractile: float
    decision_ratio: float
    decision_ratio_low: float
    decision_ratio_high: float
    promoted: bool
    reason: str


def decision_ratio(
    scored: ForecasterScore, reference: ForecasterScore, decision: Decision, part: str = "test", seed: int = 0
) -> DecisionRatio:
    """Decision pinball against the reference over the origins of ``part`` (test or calibration); NaN when there are none."""
    ours, theirs = (decision_loss_by_origin(s.forecasts, decision, part) for s in (scored, reference))
    if ours.empty:
        return DecisionRatio(math.nan, math.nan, math.nan)
    return DecisionRatio(*bootstrap_ratio(ours.to_numpy(), theirs.reindex(ours.index).to_numpy(), seed=seed))


def decision_loss_by_origin(forecasts: pd.DataFrame, decision: Decision, part: str = "test") -> pd.Series:
    """Decision pinball summed by origin over the series that reserves are set for; ``forecasts`` as in ``ForecasterScore``."""
    rows = forecasts[forecasts["part"] == part]
    capacity = None
    if decision.capacity:
        rows = rows[rows["unique_id"].isin(decision.capacity)]
        capacity = rows["unique_id"].map(dict(decision.capacity)).to_numpy(dtype=np.float64)
    quantiles = rows[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64)
    loss = decision_pinball(rows["y"].to_numpy(dtype=np.float64), quantiles, decision.fractile, capacity)
    if not np.isfinite(loss).all():
        unknown = int((~np.isfinite(loss)).sum())
        raise InputError(f"{unknown} forecast(s) without a loss", where="decision", allowed="finite quantiles and values")
    return pd.Series(loss, index=rows["origin"].to_numpy()).groupby(level=0).sum()


def choose_champion(result: BacktestResult, *, margin: float = 0.0, decision: Decision | None = None) -> Champion:
    """Pick the candidate by its calibration losses and judge it on the test windows, which had no say in the pick.

    The pick: of the forecasters that are not beyond doubt worse than the naive in decision pinball (the interval of the ratio does not lie
    above 1), the one of least WQL; among those within ``decision.tie`` of the least WQL, the one of least decision pinball. The judgement:
    the interval of the WQL ratio lies below 1 - ``margin``, the SQL ratio is at most 1, and the decision ratio is at most 1 with an upper
    end of at most 1 + ``decision.tolerance``.

    Args:
        result: of ``run_backtest``. Without calibration origins the test windows pick, and the reason says so.
        margin: by how much the upper end of the WQL ratio's interval must lie below 1.
        decision: what is decided by the forecasts; the default costs on all series when None.

    Raises:
        InputError: neither naive could be scored.
    """
    if not result.reference:
        raise InputError("neither persistence nor seasonal_naive could be scored", where="champion", remedy="see the backtest's errors")
    decision = decision or Decision()
    reference = result.reference_scores[result.reference]
    calibrated = bool(result.plan.calibration)
    candidates = [s for s in result.scores.values() if s.error is None and s.name not in NAIVES and math.isfinite(_pick(s, calibrated))]
    if not candidates:
        reason = "no forecaster but the naive could be scored"
        ones = dict.fromkeys(("wql_ratio", "wql_ratio_low", "wql_ratio_high", "sql_ratio"), 1.0)
        ones |= dict.fromkeys(("decision_ratio", "decision_ratio_low", "decision_ratio_high"), 1.0)
        return Champion(result.reference, "", result.reference, fractile=decision.fractile, promoted=False, reason=reason, **ones)
    best = _best(candidates, reference, decision, calibrated, result.config.seed)
    gains = skill(best, reference, seed=result.config.seed)
    costs = decision_ratio(best, reference, decision, seed=result.config.seed)
    picked = "calibration" if calibrated else "test (no calibration origins fit the history)"
    told = f"{best.name}, best on {picked}, has {gains['wql_ratio']:.3f} of the WQL of {result.reference}"
    promoted, word = _judge(gains, costs, decision, margin)
    return Champion(
        name=best.name if promoted else result.reference,
        candidate=best.name,
        reference=result.reference,
        wql_ratio=gains["wql_ratio"],
        wql_ratio_low=gains["wql_ratio_low"],
        wql_ratio_high=gains["wql_ratio_high"],
        sql_ratio=gains["sql_ratio"],
        fractile=decision.fractile,
        decision_ratio=costs.ratio,
        decision_ratio_low=costs.low,
        decision_ratio_high=costs.high,
        promoted=promoted,
        reason=f"{told}, {word}",
    )


def _best(
    candidates: list[ForecasterScore], reference: ForecasterScore, decision: Decision, calibrated: bool, seed: int
) -> ForecasterScore:
    part = "calibration" if calibrated else "test"
    costs = {s.name: decision_ratio(s, reference, decision, part, seed) for s in candidates}
    sound = [s for s in candidates if not costs[s.name].low > 1.0] or candidates
    least = min(_pick(s, calibrated) for s in sound)
    alike = [s for s in sound if _pick(s, calibrated) <= least * (1.0 + decision.tie)]
    return min(alike, key=lambda s: (_last(costs[s.name].ratio), _pick(s, calibrated)))


def _judge(gains: dict[str, float], costs: DecisionRatio, decision: Decision, margin: float) -> tuple[bool, str]:
    """Whether the candidate serves, and the rest of the sentence that says why."""
    interval = f"[{gains['wql_ratio_low']:.3f}, {gains['wql_ratio_high']:.3f}]"
    cost = f"{costs.ratio:.3f} [{costs.low:.3f}, {costs.high:.3f}] of its cost at the fractile {decision.fractile:.3f}"
    if not gains["wql_ratio_high"] < 1.0 - margin:
        return False, f"but the 95 % interval {interval} is not below {1.0 - margin:g}"
    if not gains["sql_ratio"] <= 1.0:  # nor where it is not defined: the naive without a loss, the candidate with one
        return False, f"interval {interval}, but {gains['sql_ratio']:.3f} of its SQL: one large series carries the gain"
    if not (costs.ratio <= 1.0 and costs.high <= 1.0 + decision.tolerance):
        return False, f"interval {interval}, but {cost}: allowed is 1, and {1.0 + decision.tolerance:g} at the upper end"
    return True, f"interval {interval}, and {cost}"


def _pick(scored: ForecasterScore, calibrated: bool) -> float:
    return (scored.calibration if calibrated else scored.overall).get("wql", float("nan"))


def _last(value: float) -> float:
    return value if math.isfinite(value) else math.inf

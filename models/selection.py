"""Which forecaster serves: the best one if it beats the naive beyond doubt, else the naive."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.backtest import NAIVES
from models.backtest_scores import BacktestResult, ForecasterScore, skill
from telemetry.errors import InputError


@dataclass(frozen=True)
class Champion:
    """The choice and why.

    ``wql_ratio`` and its interval are the candidate's against the reference on the test windows; ``promoted`` says whether the candidate
    became the champion (``name``) or the naive stayed.
    """

    name: str
    candidate: str
    reference: str
    wql_ratio: float
    wql_ratio_low: float
    wql_ratio_high: float
    sql_ratio: float
    promoted: bool
    reason: str


def choose_champion(result: BacktestResult, *, margin: float = 0.0) -> Champion:
    """Pick the candidate by calibration WQL and judge it on the test windows, which had no say in the pick.

    Args:
        result: of ``run_backtest``. Without calibration origins the test WQL picks, and the reason says so.
        margin: by how much the upper end of the WQL ratio's interval must lie below 1.

    Raises:
        InputError: neither naive could be scored.
    """
    if not result.reference:
        raise InputError("neither persistence nor seasonal_naive could be scored", where="champion", remedy="see the backtest's errors")
    reference = result.reference_scores[result.reference]
    calibrated = bool(result.plan.calibration)
    candidates = [s for s in result.scores.values() if s.error is None and s.name not in NAIVES and math.isfinite(_pick(s, calibrated))]
    if not candidates:
        return Champion(result.reference, "", result.reference, 1.0, 1.0, 1.0, 1.0, False, "no forecaster but the naive could be scored")
    best = min(candidates, key=lambda s: _pick(s, calibrated))
    gains = skill(best, reference, seed=result.config.seed)
    high, sql = gains["wql_ratio_high"], gains["sql_ratio"]
    picked = "calibration" if calibrated else "test (no calibration origins fit the history)"
    told = f"{best.name}, best on {picked}, has {gains['wql_ratio']:.3f} of the WQL of {result.reference}"
    interval = f"[{gains['wql_ratio_low']:.3f}, {high:.3f}]"
    if not high < 1.0 - margin:
        promoted, reason = False, f"{told}, but the 95 % interval {interval} is not below {1.0 - margin:g}"
    elif sql > 1.0:
        promoted, reason = False, f"{told}, interval {interval}, but {sql:.3f} of its SQL: one large series carries the gain"
    else:
        promoted, reason = True, f"{told}, interval {interval}"
    return Champion(
        best.name if promoted else result.reference,
        best.name,
        result.reference,
        gains["wql_ratio"],
        gains["wql_ratio_low"],
        high,
        sql,
        promoted,
        reason,
    )


def _pick(scored: ForecasterScore, calibrated: bool) -> float:
    return (scored.calibration if calibrated else scored.overall).get("wql", float("nan"))

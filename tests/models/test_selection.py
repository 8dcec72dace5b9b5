"""Who serves: calibration picks, test windows judge, and neither WQL nor what is decided may be worse than the naive's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from series_makers import series_frame

from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig
from models.backtest_scores import BacktestResult, ForecasterScore
from models.base import QUANTILE_COLUMNS, QUANTILES, monotone
from models.metrics import quantile_loss, score
from models.selection import Decision, choose_champion, decision_loss_by_origin, decision_ratio
from telemetry.errors import InputError

COSTS = Decision(0.04, 0.01)  # the fractile is 0.8
NORMAL = norm.ppf(QUANTILES)


@pytest.fixture(scope="module")
def template() -> BacktestResult:
    """Windows of one series of standard normal noise."""
    noise = series_frame({"a": np.random.default_rng(3).normal(size=900)})
    return run_backtest(noise, "10min", ["persistence"], BacktestConfig())


def made_up(template: BacktestResult, quantiles: dict[str, np.ndarray]) -> BacktestResult:
    """The same windows with forecasters that always give the same nine quantiles; the first is the naive."""
    rows = template.reference_scores["persistence"].forecasts
    scores = {}
    for name, values in quantiles.items():
        forecasts = rows.assign(**dict(zip(QUANTILE_COLUMNS, monotone(values), strict=True)))
        parts = {part: score(forecasts[forecasts["part"] == part], {"a": 1.0}) for part in ("test", "calibration")}
        test = forecasts[forecasts["part"] == "test"]
        losses = pd.Series(quantile_loss(test["y"].to_numpy(), test[list(QUANTILE_COLUMNS)].to_numpy()), index=test["origin"])
        origins = losses.groupby(level=0).agg(["count", "sum"]).to_numpy(dtype=float)  # [O, 2]
        scores[name] = ForecasterScore(name, overall=parts["test"], calibration=parts["calibration"], origins=origins, forecasts=forecasts)
    naive = next(iter(quantiles))
    return replace(template, scores=scores, reference=naive, reference_scores={naive: scores.pop(naive)})


def high_tail(shift: float) -> np.ndarray:
    """The true quantiles, except that the two above the fractile of 0.7 are moved."""
    return NORMAL + np.where(np.asarray(QUANTILES) > 0.75, shift, 0.0)


def wide_but_for(at_fractile: float) -> np.ndarray:
    """Much too wide quantiles, except for the one at 0.8."""
    wide = np.minimum(4.0 * NORMAL, at_fractile)
    wide[-1] = 4.0 * NORMAL[-1]
    return wide


def test_better_in_wql_but_worse_in_decisions_is_refused(template: BacktestResult) -> None:
    naive = wide_but_for(NORMAL[7])
    champion = choose_champion(made_up(template, {"persistence": naive, "sharp": high_tail(1.0)}), decision=COSTS)
    assert champion.wql_ratio_high < 1.0
    assert champion.decision_ratio > 1.0
    assert (champion.name, champion.candidate, champion.promoted) == ("persistence", "sharp", False)
    assert "fractile 0.800: allowed is 1" in champion.reason
    sound = choose_champion(made_up(template, {"persistence": naive, "sharp": high_tail(0.0)}), decision=COSTS)
    assert (sound.name, sound.promoted) == ("sharp", True)
    assert sound.decision_ratio == pytest.approx(1.0)


def test_an_undefined_scaled_loss_is_no_pass(template: BacktestResult) -> None:
    """The naive without a loss in units of scale and the candidate with one: the ratio is not defined."""
    result = made_up(template, {"persistence": wide_but_for(NORMAL[7]), "sharp": high_tail(0.0)})
    assert choose_champion(result, decision=COSTS).promoted
    result.reference_scores["persistence"].overall["sql"] = 0.0
    champion = choose_champion(result, decision=COSTS)
    assert np.isnan(champion.sql_ratio)
    assert not champion.promoted


def test_a_forecast_without_a_loss_does_not_count_as_free(template: BacktestResult) -> None:
    result = made_up(template, {"persistence": wide_but_for(NORMAL[7]), "sharp": high_tail(0.0)})
    result.scores["sharp"].forecasts.loc[5, "q80"] = np.nan
    with pytest.raises(InputError, match="1 forecast"):
        decision_loss_by_origin(result.scores["sharp"].forecasts, COSTS, result.scores["sharp"].forecasts.loc[5, "part"])


def test_the_tolerance_bounds_the_upper_end(template: BacktestResult) -> None:
    result = made_up(template, {"persistence": wide_but_for(0.0), "other": high_tail(0.96)})
    ratio = decision_ratio(result.scores["other"], result.reference_scores["persistence"], COSTS)
    assert ratio.low < ratio.ratio < 1.0 < ratio.high
    assert choose_champion(result, decision=replace(COSTS, tolerance=ratio.high - 1.0 + 1e-9)).promoted
    assert not choose_champion(result, decision=replace(COSTS, tolerance=ratio.high - 1.0 - 1e-9)).promoted


def test_of_those_alike_in_wql_the_cheaper_in_decisions_is_the_candidate(template: BacktestResult) -> None:
    result = made_up(template, {"persistence": 3.0 * NORMAL, "dear": high_tail(0.4), "cheap": 1.4 * NORMAL, "wide": 2.5 * NORMAL})
    wql = {name: scored.calibration["wql"] for name, scored in result.scores.items()}
    assert wql["dear"] < wql["cheap"] < wql["wide"]
    tie = wql["cheap"] / wql["dear"] - 1.0
    assert choose_champion(result, decision=replace(COSTS, tie=tie - 1e-6)).candidate == "dear"
    ratios = {name: decision_ratio(result.scores[name], result.reference_scores["persistence"], COSTS, "calibration") for name in wql}
    assert ratios["cheap"].ratio < ratios["dear"].ratio
    assert choose_champion(result, decision=replace(COSTS, tie=tie + 1e-6)).candidate == "cheap"


def test_what_is_beyond_doubt_worse_in_decisions_is_no_candidate(template: BacktestResult) -> None:
    naive = wide_but_for(NORMAL[7])
    result = made_up(template, {"persistence": naive, "sharp": high_tail(1.5), "wide": high_tail(3.0)})
    assert result.scores["sharp"].calibration["wql"] < result.scores["wide"].calibration["wql"]
    assert choose_champion(result, decision=Decision(0.04, 0.01, tolerance=0.9)).candidate == "sharp", "none is left, so all compete"
    fair = made_up(template, {"persistence": naive, "sharp": high_tail(1.5), "fair": high_tail(0.0) * 1.02})
    assert choose_champion(fair, decision=COSTS).candidate == "fair"


def test_only_series_with_a_reserve_count_and_up_to_their_capacity(template: BacktestResult) -> None:
    forecasts = template.reference_scores["persistence"].forecasts
    assert decision_loss_by_origin(forecasts, COSTS).sum() > 0
    assert decision_loss_by_origin(forecasts, replace(COSTS, capacity={"other": 4.0})).empty
    beyond = decision_loss_by_origin(forecasts, replace(COSTS, capacity={"a": -99.0}))
    assert beyond.sum() == pytest.approx(0.0), "demand and reserve both lie beyond the capacity"
    assert len(beyond) == template.n_origins


def test_decision_loss_is_the_cost_of_the_reserve(template: BacktestResult) -> None:
    rows = pd.DataFrame({"unique_id": "a", "y": [10.0, 2.0], "origin": [0, 1], "part": "test"})
    rows = rows.assign(**dict.fromkeys(QUANTILE_COLUMNS, 6.0))
    loss = decision_loss_by_origin(rows, COSTS)
    cost = loss * (COSTS.shortage_usd_per_gpu_hour + COSTS.idle_usd_per_gpu_hour)
    assert cost.tolist() == pytest.approx([4 * 0.04, 4 * 0.01])


@pytest.mark.parametrize("wrong", [{"shortage_usd_per_gpu_hour": 0.0}, {"idle_usd_per_gpu_hour": -1.0}, {"tolerance": -0.1}, {"tie": 1.0}])
def test_senseless_decisions_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Decision(**wrong)

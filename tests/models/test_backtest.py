"""Rolling origin: disjoint parts, honest updates, failures contained, the naive as the judge."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from series_makers import daily, series_frame

from models import catalog
from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig, coprime_step, plan_origins
from models.naive import Persistence
from models.selection import choose_champion
from models.series import Panel, freq_step_ns, validate_series
from models.young import YoungSeries
from telemetry.errors import InputError

NAIVE = ["persistence", "empirical_persistence", "seasonal_naive"]
STEP_NS = freq_step_ns("10min")


def panel_of(lengths: list[int], starts: list[int] | None = None) -> Panel:
    starts = starts or [0] * len(lengths)
    return Panel(STEP_NS, [str(i) for i in range(len(lengths))], [s * STEP_NS for s in starts], [np.arange(float(n)) for n in lengths])


def test_plan_is_disjoint_and_coprime_to_the_season() -> None:
    plan = plan_origins(panel_of([6048, 6048]), BacktestConfig(), 144)
    assert len(plan.test) == 20
    assert math.gcd(plan.step, 144) == 1
    assert plan.test[-1] >= 18  # the last target exists
    assert plan.calibration[-1] - 18 >= plan.test[0]  # calibration targets end where the first test origin begins
    assert plan.calibration[0] < 6048 * 0.5
    assert len({offset % 144 for offset in plan.test}) == 20  # twenty different times of day
    assert plan.align == "time"


@pytest.mark.parametrize(("length", "origins"), [(19, 1), (25, 1), (60, 20), (200, 20)])
def test_short_histories_get_fewer_origins(length: int, origins: int) -> None:
    plan = plan_origins(panel_of([length]), BacktestConfig(), 144)
    assert len(plan.test) == origins
    assert plan.test[0] <= length - 1


def test_too_short_is_refused() -> None:
    with pytest.raises(InputError, match="at least 19 steps"):
        plan_origins(panel_of([18, 3]), BacktestConfig(), 144)


def test_series_of_different_periods_are_aligned_at_their_ends() -> None:
    assert plan_origins(panel_of([1000, 1000], [0, 50_000]), BacktestConfig(), 144).align == "end"
    assert plan_origins(panel_of([1000, 900], [0, 100]), BacktestConfig(), 144).align == "time"


def test_coprime_step() -> None:
    assert [coprime_step(n, 144) for n in (0, 1, 2, 78, 77, 144)] == [1, 1, 1, 77, 77, 143]


@pytest.mark.parametrize("bad", [{"horizon": 0}, {"origins": 0}, {"test_fraction": 1.0}, {"align": "left"}, {"refit_every": -1}])
def test_config_is_checked(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        BacktestConfig(**bad)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return series_frame({"a": daily(1000, 1), "b": daily(1000, 2, level=400.0)})


def test_scores_are_complete_and_plain(frame: pd.DataFrame) -> None:
    result = run_backtest(frame, "10min", NAIVE)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["n_origins"] == 20
    assert list(document["forecasters"]) == NAIVE
    for entry in document["forecasters"].values():
        for key in ("wql", "sql", "mase", "coverage80", "width80", "fit_s", "predict_s"):
            assert entry[key] == entry["overall"][key] >= 0
            assert all(entry["series"][uid][key] >= 0 for uid in ("a", "b"))
        assert [row["step"] for row in entry["by_horizon"]] == list(range(1, 19))
    assert document["reference"]["name"] in ("persistence", "seasonal_naive")


def test_pooled_wql_is_that_of_the_kept_forecasts(frame: pd.DataFrame) -> None:
    result = run_backtest(frame, "10min", ["persistence"])
    rows = result.scores["persistence"].forecasts.query("part == 'test'")
    truth = frame.set_index(["unique_id", "ds"])["y"]
    assert (rows.set_index(["unique_id", "ds"])["y"] == truth.reindex(pd.MultiIndex.from_frame(rows[["unique_id", "ds"]]))).all()
    losses = [
        np.maximum(q * (rows["y"] - rows[f"q{round(100 * q)}"]), (q - 1) * (rows["y"] - rows[f"q{round(100 * q)}"])).sum()
        for q in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    ]
    assert result.scores["persistence"].overall["wql"] == pytest.approx(2 * np.mean(losses) / rows["y"].abs().sum())
    last = rows["issued_at"].map(frame[frame["unique_id"] == "a"].set_index("ds")["y"])
    in_a = rows["unique_id"] == "a"
    np.testing.assert_allclose(rows.loc[in_a, "q50"], last[in_a])
    assert len(rows) == 20 * 18 * 2


def test_what_comes_after_an_origin_does_not_touch_its_forecast(frame: pd.DataFrame) -> None:
    options = {"lightgbm": {"n_estimators": 8, "max_train_rows": 2000, "threads": 1}, "empirical_persistence": {}}
    config = BacktestConfig(origins=4, calibration_origins=1)
    whole = run_backtest(frame, "10min", options, config)
    cut_at = whole.scores["lightgbm"].forecasts["issued_at"].unique()[2]
    future = frame["ds"] > cut_at
    rng = np.random.default_rng(0)
    changed = frame.assign(y=np.where(future, rng.permutation(frame["y"].to_numpy()) * 3, frame["y"]))
    other = run_backtest(changed, "10min", options, config)
    for name in options:
        keep = [c for c in whole.scores[name].forecasts.columns if c not in ("y", "part")]
        old, new = (f.loc[f["issued_at"] <= cut_at, keep] for f in (r.scores[name].forecasts for r in (whole, other)))
        pd.testing.assert_frame_equal(old, new, check_exact=True)
        assert not whole.scores[name].forecasts[keep].equals(other.scores[name].forecasts[keep])


class Counting(Persistence):
    """Persistence that keeps what it was given."""

    name = "counting"
    calls: list[tuple[str, int]]

    def fit_history(self, panel: Panel, young: YoungSeries | None = None) -> Counting:
        self.__class__.calls.append(("fit", sum(map(len, panel.values))))
        return super().fit_history(panel, young)

    def update_panel(self, newer: Panel) -> Counting:
        self.__class__.calls.append(("update", sum(map(len, newer.values))))
        return super().update_panel(newer)


class Failing(Persistence):
    """Fails at its third forecast."""

    name = "failing"

    def predict(self, horizon: int | None = None, covariates: pd.DataFrame | None = None) -> pd.DataFrame:
        self.seed += 1
        if self.seed == 3:
            raise RuntimeError("out of luck")
        return super().predict(horizon, covariates)


@pytest.mark.parametrize(("every", "fits"), [(0, 1), (4, 3), (100, 1)])
def test_refit_cadence_and_updates(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, every: int, fits: int) -> None:
    monkeypatch.setitem(catalog.FORECASTERS, "counting", Counting)
    monkeypatch.setattr(Counting, "calls", [], raising=False)
    config = BacktestConfig(origins=8, calibration_origins=2, refit_every=every)
    result = run_backtest(frame, "10min", ["counting"], config)
    assert [kind for kind, _ in Counting.calls].count("fit") == result.scores["counting"].fits == fits
    if not every:
        steps = [rows for kind, rows in Counting.calls if kind == "update"]
        assert len(steps) == len(result.plan.all) - 1
        assert set(steps[2:]) == {2 * result.plan.step}
    persistence = run_backtest(frame, "10min", ["persistence"], config)
    assert result.scores["counting"].overall["wql"] == pytest.approx(persistence.scores["persistence"].overall["wql"])


def test_a_failure_is_reported_and_the_others_go_on(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.FORECASTERS, "failing", Failing)
    seen = []
    result = run_backtest(frame, "10min", ["failing", "persistence"], progress=lambda *call: seen.append(call))
    assert result.failed == {"failing": "RuntimeError: out of luck"}
    assert result.scores["persistence"].error is None
    entry = result.to_json()["forecasters"]["failing"]
    assert (entry["status"], entry["wql"]) == ("failed", None)
    assert seen[-1] == ("failing", 2, 28)


def test_unknown_names_stop_before_any_work(frame: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="unknown forecaster 'oracle'"):
        run_backtest(frame, "10min", ["oracle"])


def test_gaps_cost_rows_not_origins(frame: pd.DataFrame) -> None:
    holes = frame.sample(frac=0.85, random_state=1)
    result = run_backtest(holes, "10min", ["persistence"])
    assert result.report.gap_rows > 200
    assert result.n_origins == 20
    assert 0.75 * 720 < result.scores["persistence"].overall["rows"] < 0.95 * 720
    assert result.scores["persistence"].forecasts["step"].max() >= 18


def test_late_and_ended_series_are_noted() -> None:
    frame = pd.concat(
        [series_frame({"a": daily(1000, 1), "ended": daily(300, 2)}), series_frame({"late": daily(100, 3)}, start="2025-03-09 06:50")]
    )
    result = run_backtest(frame, "10min", ["persistence"], BacktestConfig(align="time"))
    assert "ended" not in result.scores["persistence"].series
    assert "late" in result.scores["persistence"].series
    assert len(result.notes) == 2


@pytest.mark.parametrize(("freq", "rows"), [("1min", 400), ("1h", 300), ("1D", 120), ("7D", 80)])
def test_other_frequencies(freq: str, rows: int) -> None:
    result = run_backtest(series_frame({"only": daily(rows, 1, season=24)}, freq), freq, NAIVE, BacktestConfig(horizon=7))
    assert not result.failed
    assert result.n_origins == 20


@pytest.mark.parametrize("values", [np.zeros(600), np.full(600, 3.0)])
def test_constant_series_keep_the_naive(values: np.ndarray) -> None:
    result = run_backtest(series_frame({"a": values}), "10min", NAIVE)
    assert result.scores["empirical_persistence"].overall["wql"] == 0.0
    champion = choose_champion(result)
    assert (champion.name, champion.promoted) == (result.reference, False)


def test_champion_must_beat_the_naive_beyond_doubt() -> None:
    rng = np.random.default_rng(7)
    walk = series_frame({str(i): 500 + np.cumsum(rng.normal(size=900)) for i in range(3)})
    kept = choose_champion(run_backtest(walk, "10min", NAIVE))
    assert not kept.promoted
    assert kept.name == "persistence"
    assert "interval" in kept.reason
    jumps = np.where(rng.random((3, 900)) < 0.02, rng.normal(scale=30, size=(3, 900)), 0.0).cumsum(axis=1) + 500
    calm = run_backtest(series_frame({str(i): y for i, y in enumerate(jumps)}), "10min", NAIVE)
    won = choose_champion(calm)
    assert won.promoted
    assert won.name == won.candidate == "empirical_persistence"
    assert won.wql_ratio_low < won.wql_ratio < won.wql_ratio_high < 1.0
    assert not choose_champion(calm, margin=0.9).promoted


def test_gain_on_one_large_series_is_not_enough() -> None:
    rng = np.random.default_rng(7)
    jumps = np.where(rng.random((3, 900)) < 0.02, rng.normal(scale=30, size=(3, 900)), 0.0).cumsum(axis=1) + 500
    result = run_backtest(series_frame({str(i): y for i, y in enumerate(jumps)}), "10min", NAIVE)
    lost = result.scores["empirical_persistence"]
    lost.overall = {**lost.overall, "sql": 10.0 * result.reference_scores[result.reference].overall["sql"]}
    champion = choose_champion(result)
    assert not champion.promoted
    assert "SQL" in champion.reason


def test_choice_needs_a_naive(frame: pd.DataFrame) -> None:
    result = run_backtest(frame, "10min", ["persistence"])
    with pytest.raises(InputError, match="neither persistence nor seasonal_naive"):
        choose_champion(replace(result, reference=""))


def test_validated_frame_is_what_is_scored(frame: pd.DataFrame) -> None:
    result = run_backtest(frame.assign(price=1.0, ds=frame["ds"].dt.tz_localize("UTC")), "10min", ["persistence"])
    pd.testing.assert_frame_equal(result.actual.drop(columns="price"), validate_series(frame, "10min")[0])

"""Chunks, engines, resumed runs and batches change nothing but where and when the work is done."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from series_makers import daily, series_frame

from models import backtest
from models.backtest import backtest_key, run_backtest
from models.backtest_plan import BacktestConfig
from models.backtest_scores import BacktestResult
from models.base import QUANTILE_COLUMNS
from models.engine import make_engine
from models.metrics import peak_error, quantile_loss, ramp_error, score
from models.partial_results import PartialResults
from models.series import freq_step_ns, validate_series
from models.series_store import SPARSE_POINTS, SeriesStore, frame_batches, leading_series, read_store
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
LIGHTGBM = {"n_estimators": 6, "max_train_rows": 2000, "min_data_in_leaf": 20, "threads": 1}
MEMBERS = {"persistence": {}, "empirical_persistence": {"condition": "none", "max_rows": 200}, "lightgbm": LIGHTGBM}
CONFIG = BacktestConfig(horizon=6, origins=5, calibration_origins=2)
IN_CHUNKS = BacktestConfig(horizon=6, origins=5, calibration_origins=2, chunk_series=3)


def fleet(series: int = 10, rows: int = 320) -> pd.DataFrame:
    """Different levels, late, ended, gappy, constant, zero and negative series."""
    rng = np.random.default_rng(3)
    parts = []
    for i in range(series):
        y = (daily(rows, i) - (50 if i % 5 == 3 else 0)) * 10.0 ** (i % 4 - 2)
        y = np.zeros(rows) if i == 4 else np.full(rows, 7.0) if i == 6 else y
        part = series_frame({f"s{i:02d}": y})
        part = part.iloc[rows - 30 :] if i == 5 else part.iloc[: rows - 20] if i == 2 else part
        parts.append(part[rng.random(len(part)) > 0.4] if i in (1, 8) else part)
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return fleet()


@pytest.fixture(scope="module")
def whole(frame: pd.DataFrame) -> BacktestResult:
    return run_backtest(frame, "10min", MEMBERS, CONFIG)


def assert_same_scores(one: BacktestResult, other: BacktestResult, rtol: float = 0.0) -> None:
    """Equal documents up to ``rtol``, times apart."""
    for name, ours in one.scores.items():
        theirs = other.scores[name]
        assert (ours.error, theirs.error) == (None, None)
        pairs = [(ours.overall, theirs.overall), (ours.calibration, theirs.calibration), (ours.skill, theirs.skill)]
        pairs += [(ours.series[uid], theirs.series[uid]) for uid in ours.series]
        pairs += list(zip(ours.by_horizon, theirs.by_horizon, strict=True))
        for a, b in pairs:
            np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=rtol, atol=0, err_msg=name)
        assert ours.fallbacks == theirs.fallbacks


@pytest.mark.parametrize("name", MEMBERS)
def test_sums_are_the_scores_of_the_whole_frame(whole: BacktestResult, name: str) -> None:
    scored = whole.scores[name]
    test = scored.forecasts[scored.forecasts["part"] == "test"]
    close = {"rtol": 1e-12, "atol": 0}
    expected = {**score(test, whole.scales), "peak_error": peak_error(test), "ramp_error": ramp_error(test)}
    np.testing.assert_allclose([scored.overall[key] for key in expected], list(expected.values()), **close)
    for uid, rows in test.groupby("unique_id"):
        expected = {**score(rows, whole.scales), "peak_error": peak_error(rows)}
        np.testing.assert_allclose([scored.series[str(uid)][key] for key in expected], list(expected.values()), **close)
    for told, (step, rows) in zip(scored.by_horizon, test.groupby("step"), strict=True):
        assert told["step"] == step
        np.testing.assert_allclose([told[key] for key in score(rows, whole.scales)], list(score(rows, whole.scales).values()), **close)
    calibration = score(scored.forecasts[scored.forecasts["part"] == "calibration"], whole.scales)
    np.testing.assert_allclose(list(scored.calibration.values()), list(calibration.values()), **close)
    loss = quantile_loss(test["y"].to_numpy(), test[list(QUANTILE_COLUMNS)].to_numpy())
    np.testing.assert_allclose(scored.origins[:, 1], pd.Series(loss).groupby(test["origin"].to_numpy()).sum(), **close)
    inside = test["y"].between(test["q10"], test["q90"])
    bands = inside.groupby(np.array(["near", "middle", "far"])[(test["step"].to_numpy() - 1) // 2]).mean()
    np.testing.assert_allclose([scored.coverage80_by_band[band] for band in bands.index], bands, **close)
    assert scored.crossings == 0


def test_two_origins_without_news_between_them_share_their_window() -> None:
    holes = series_frame({"a": daily(200, 1), "b": daily(200, 2)})
    holes = holes[(holes["unique_id"] == "b") | ~holes.groupby("unique_id").cumcount().between(150, 175)]
    scored = run_backtest(holes, "10min", ["persistence"], BacktestConfig(horizon=30, origins=15, calibration_origins=0)).scores[
        "persistence"
    ]
    of_a = scored.forecasts[scored.forecasts["unique_id"] == "a"]
    assert of_a["issued_at"].nunique() < of_a["origin"].nunique()
    assert scored.overall["peak_error"] == pytest.approx(peak_error(scored.forecasts), rel=1e-12)
    assert scored.overall["ramp_error"] == pytest.approx(ramp_error(scored.forecasts), rel=1e-12)


def test_chunks_do_not_change_the_forecasts(frame: pd.DataFrame, whole: BacktestResult) -> None:
    parts = run_backtest(frame, "10min", MEMBERS, IN_CHUNKS)
    assert_same_scores(whole, parts, rtol=1e-12)
    for name in MEMBERS:
        pd.testing.assert_frame_equal(whole.scores[name].forecasts, parts.scores[name].forecasts, check_exact=True)


def test_processes_give_the_same_bits(frame: pd.DataFrame) -> None:
    here = run_backtest(frame, "10min", MEMBERS, IN_CHUNKS, forecasts="none")
    with make_engine("local", 2) as engine:
        there = run_backtest(frame, "10min", MEMBERS, IN_CHUNKS, engine=engine, forecasts="none")
    assert_same_scores(here, there)
    assert here.scores["lightgbm"].forecasts.empty


def test_folds_run_side_by_side_with_the_same_bits(frame: pd.DataFrame) -> None:
    refitted = replace(CONFIG, refit_every=3)
    members = {"lightgbm": LIGHTGBM, "seasonal_naive": {}}
    here = run_backtest(frame, "10min", members, refitted)
    with make_engine("local", 2) as engine:
        ran: list[tuple[int, int]] = []
        real = engine.map

        def counted(function, tasks, shared=None):  # type: ignore[no-untyped-def]
            listed = list(tasks)
            ran.extend((task.segment, task.chunk) for task in listed)
            return real(function, listed, shared)

        engine.map = counted  # type: ignore[method-assign]
        there = run_backtest(frame, "10min", members, refitted, engine=engine)
    assert len({segment for segment, _ in ran}) > 1, "folds did not reach the engine"
    assert_same_scores(here, there)
    for name in members:
        pd.testing.assert_frame_equal(here.scores[name].forecasts, there.scores[name].forecasts, check_exact=True)


def test_nothing_imports_ray_unless_asked() -> None:
    importlib.import_module("pipelines.backtest")
    with make_engine("local", 2):
        assert "ray" not in sys.modules


@pytest.mark.parametrize(("options", "said"), [({"kind": "slurm"}, "local, ray"), ({"workers": 0}, "at least 1")])
def test_engines_name_what_they_do_not_know(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_engine(**options)  # type: ignore[arg-type]


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_killed_backtest_goes_on_where_it_stopped(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = read_store(frame_batches(frame), "10min")
    partials = PartialResults(tmp_path, backtest_key(store, "10min", IN_CHUNKS))
    ran: list[tuple[str, int]] = []
    real = backtest.run_chunk

    def counted(task, fitted, tick=None):  # type: ignore[no-untyped-def]
        if len(ran) == kill_at:
            raise Killed
        ran.append((task.member, task.chunk))
        return real(task, fitted, tick)

    monkeypatch.setattr(backtest, "run_chunk", counted)
    kill_at = 10
    with pytest.raises(Killed):
        run_backtest(store, "10min", MEMBERS, IN_CHUNKS, partials=partials)
    kill_at = -1
    resumed = run_backtest(store, "10min", MEMBERS, IN_CHUNKS, partials=partials)
    assert len(ran) == len(set(ran)) == 4 * 4  # each chunk of each forecaster once
    fresh = run_backtest(store, "10min", MEMBERS, IN_CHUNKS)
    assert_same_scores(fresh, resumed)
    pd.testing.assert_frame_equal(fresh.scores["lightgbm"].forecasts, resumed.scores["lightgbm"].forecasts, check_exact=True)
    before = len(ran)
    again = run_backtest(store, "10min", {**MEMBERS, "lightgbm": {**LIGHTGBM, "num_leaves": 7}}, IN_CHUNKS, partials=partials)
    assert {member for member, _ in ran[before:]} == {"lightgbm"}  # other options are other work
    assert again.scores["lightgbm"].overall["wql"] != resumed.scores["lightgbm"].overall["wql"]
    partials.forget()
    assert not any(tmp_path.rglob("*.npz"))


def test_the_key_of_partial_results_covers_values_and_config(frame: pd.DataFrame) -> None:
    keys = {
        backtest_key(read_store(frame_batches(table), freq), freq, config)
        for table, freq, config in (
            (frame, "10min", CONFIG),
            (frame.assign(y=frame["y"].where(frame.index != 5, 1.25)), "10min", CONFIG),
            (frame, "10min", IN_CHUNKS),
            (frame, "5min", CONFIG),
            (frame.assign(price=1.0), "10min", CONFIG),
        )
    }
    assert len(keys) == 5


def test_a_limit_on_fits_holds_over_all_chunks(frame: pd.DataFrame) -> None:
    options = {"arima": {"max_rows": 60, "max_fits": 4, "orders": [[0, 1, 1]], "fourier_terms": 0}}
    one, other = (run_backtest(frame, "10min", options, config) for config in (CONFIG, IN_CHUNKS))
    assert_same_scores(one, other, rtol=1e-12)
    assert len(other.scores["arima"].fallbacks) >= 6
    assert "max_fits" in other.scores["arima"].fallbacks["s09"]


# --- the store ----------------------------------------------------------------------------------------------------------------------


def same_store(one: SeriesStore, other: SeriesStore) -> None:
    assert (one.ids, one.report, one.static, one.left_out) == (other.ids, other.report, other.static, other.left_out)
    np.testing.assert_array_equal(one.starts_ns, other.starts_ns)
    np.testing.assert_array_equal(one.values, other.values)
    for name in one.covariates:
        np.testing.assert_array_equal(one.covariates[name], other.covariates[name])


def test_order_and_batches_do_not_matter(frame: pd.DataFrame, tmp_path: Path) -> None:
    table = frame.assign(price=np.arange(len(frame)) % 17 * 1.0, pool=frame["unique_id"].str[:2])
    dirty = pd.concat([table, table.head(40), table.tail(5).assign(y=np.nan)]).sample(frac=1.0, random_state=0)
    store = read_store(frame_batches(dirty), "10min")
    same_store(store, read_store(frame_batches(dirty, rows=113), "10min", folder=tmp_path))
    assert not list(tmp_path.iterdir())  # the file has no name
    valid, report = validate_series(dirty, "10min")
    pd.testing.assert_frame_equal(store.to_frame(), valid)
    assert store.report == report
    assert report.exact_duplicates == 40
    at = table.iloc[700]
    i = store.ids.index(at["unique_id"])
    k = store.begins[i] + (at["ds"].value - store.starts_ns[i]) // store.step_ns
    assert (store.values[k], store.covariates["price"][k]) == (at["y"], at["price"])


def test_further_columns_are_kept_or_said_to_be_left_out(frame: pd.DataFrame) -> None:
    table = frame.assign(
        price=1.5,
        pool=pd.Categorical(frame["unique_id"].str[-1]),
        note=[str(k) for k in range(len(frame))],
        seen=frame["ds"],
        mixed=pd.Series([1 if k % 2 else "a" for k in range(len(frame))], dtype=object),
    )
    store = read_store(frame_batches(table), "10min")
    assert list(store.covariates) == ["price"]
    assert store.static == {"pool": [uid[-1] for uid in store.ids]}
    assert store.left_out == {name: reason for name, reason in store.left_out.items() if name in ("note", "seen", "mixed")}
    notes = run_backtest(table, "10min", {"persistence": {}, "lightgbm": LIGHTGBM}, CONFIG, forecasts="none").notes
    assert "covariates, known at their ds: price; read by lightgbm" in notes
    assert "kinds of series: pool; read by lightgbm" in notes
    assert sum("left out" in note for note in notes) == 3
    panel = store.panel(3, 5)
    assert panel.families == ["3", "4"]
    assert len(panel.covariate("price", 0)) == len(panel.values[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="y"), "missing column.*y"),
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: f.assign(y=np.nan), "every y is missing"),
        (lambda f: f.assign(y="many"), "y is not numeric"),
        (lambda f: f.assign(y=-np.inf), "infinite value.*in y"),
        (lambda f: f.assign(y=f["y"] * 1e105), "y reaches .*allowed: up to 1e.100"),
        (lambda f: f.assign(ds="someday"), "cannot be read as time: 'someday'"),
        (lambda f: f.assign(ds=np.arange(len(f))), "numbers"),
        (lambda f: f.assign(ds=pd.NaT), "without a ds"),
        (lambda f: f.assign(ds=f["ds"].astype(str).where(f.index != 2)), "1 row.* without a ds"),
        (lambda f: f.assign(unique_id=None), "without a unique_id"),
        (lambda f: pd.concat([f, f.assign(y=9.5)]), "two different values, first 's"),
        (
            lambda f: f.assign(ds=f["ds"].where(f.index != 2, f["ds"] + pd.Timedelta("3min"))),
            "off the 10min grid, first 's00' at 2025-03-03 00:23",
        ),
    ],
)
@pytest.mark.parametrize("rows", [50, 10_000])
def test_what_cannot_be_used_is_named(frame: pd.DataFrame, change: object, said: str, rows: int) -> None:
    with pytest.raises(InputError, match=said):
        read_store(frame_batches(change(frame), rows), "10min")  # type: ignore[operator]


def test_a_grid_that_is_nearly_empty_is_refused() -> None:
    step_ns = freq_step_ns("1s")
    ds = pd.Timestamp("2025-01-01") + pd.to_timedelta([0, (SPARSE_POINTS + 1) * step_ns], unit="ns")
    with pytest.raises(InputError, match="2 rows over 20000002 steps of 1s"):
        read_store(frame_batches(pd.DataFrame({"unique_id": "a", "ds": ds, "y": 1.0})), "1s")


def test_the_frequency_is_found_in_the_first_series(frame: pd.DataFrame) -> None:
    rows = leading_series(frame_batches(frame, rows=113))
    assert len(rows) == len(frame)
    assert set(rows["unique_id"]) == set(frame["unique_id"])

"""Power fits: planted curves come back, with lag, limits, contexts and outliers; bands cover; few readings borrow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from envs.power.boards import load_boards
from envs.power.caps import CapCurve
from envs.power.curves import load_curves, points_of
from envs.power.fit import LEVELS, Belief, conformal_quantiles, fit_device, fit_models
from envs.power.fitted_curves import class_ratios, fitted_rows
from envs.power.node_fit import fit_nodes
from envs.power.readings import Board, best_lag, split_idle
from envs.power.shape import EARLY, LINEAR, Prior, Shape, design, fit_rows, pooled_shape
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

BOARD = Board("X", 300.0, 30.0)
U = np.linspace(0.05, 1.0, 20)


def true_shape(u):
    """Concave, 1 at full use (Fan, Weber and Barroso 2007, r = 1.6)."""
    return 2 * u - u**1.6


def readings(
    *,
    count=1500,
    devices=2,
    seed=0,
    active=220.0,
    idle=32.0,
    context=0.0,
    lag=0,
    limits=(),
    noise=0.03,
    outliers=0.02,
    kinds=None,
    cap=None,
):
    """Sorted by device and time; utilisation holds for ten readings and jitters."""
    rng = np.random.default_rng(seed)
    parts = []
    for device in range(devices):
        u = np.clip(np.repeat(rng.uniform(0, 1, count // 10 + 1), 10)[:count] + rng.normal(0, 0.05, count), 0.01, 1)
        u[np.repeat(rng.random(count // 10 + 1) < 0.25, 10)[:count]] = 0.0
        held = (u > 0) | (np.repeat(rng.random(count // 10 + 1) < 0.5, 10)[:count])
        kind = np.full(count, "", dtype=object) if kinds is None else rng.choice(list(kinds), count)
        factor = np.array([1.0 if kinds is None else kinds[k] for k in kind])
        seen = np.roll(u, lag)
        demand = np.minimum(idle + context * np.roll(held, lag) + active * factor * true_shape(seen), BOARD.limit_w)
        limit = rng.choice([np.nan, *limits], count) if limits else np.full(count, np.nan)
        watts = np.where(np.isnan(limit), demand, (cap or CapCurve()).watts(demand, limit)) * (1 + rng.normal(0, noise, count))
        wild = rng.random(count) < outliers
        watts[wild] = rng.uniform(1, 300, wild.sum())
        time = pd.date_range("2026-01-05", periods=count, freq="60s", tz="UTC")
        parts.append(
            pd.DataFrame(
                {"time": time, "device": f"n/{device}", "power_w": watts, "utilization": u, "limit_w": limit, "kind": kind, "held": held}
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_a_planted_curve_comes_back_and_its_bands_hold_the_truth_and_the_readings():
    fit = fit_device(readings(), BOARD)
    truth = 32.0 + 220.0 * true_shape(U)
    np.testing.assert_allclose(fit.watts(U), truth, rtol=0.02)
    assert fit.idle_w == pytest.approx(32.0, rel=0.01)
    assert fit.context_w == 0.0
    assert fit.lag_steps == 0
    fresh = readings(seed=9, outliers=0.0)
    fresh = fresh[fresh["utilization"] > 0]
    bands = fit.quantiles(fresh["utilization"].to_numpy())
    inside = (fresh["power_w"].to_numpy() >= bands[:, 0]) & (fresh["power_w"].to_numpy() <= bands[:, -1])
    assert 0.87 < inside.mean() < 0.99
    low, high = fit.curve_band(U)
    assert (low <= fit.watts(U) * 1.001).all()
    assert (fit.watts(U) <= high * 1.001).all()
    assert (high - low).max() < 8.0


def test_the_lag_is_found_and_taken_out():
    table = readings(lag=2)
    assert best_lag(table, BOARD) == 2
    fit = fit_device(table, BOARD)
    assert fit.lag_steps == 2
    np.testing.assert_allclose(fit.watts(U), 32.0 + 220.0 * true_shape(U), rtol=0.03)
    assert best_lag(readings(lag=0), BOARD) == 0


def test_idle_and_idle_with_a_context_are_told_apart():
    fit = fit_device(readings(context=25.0), BOARD)
    assert fit.idle_w == pytest.approx(32.0, abs=1.0)
    assert fit.context_w == pytest.approx(25.0, abs=1.5)
    assert float(fit.watts(0.0)) == pytest.approx(32.0, abs=1.0)
    assert float(fit.watts(0.0, held=True)) == pytest.approx(57.0, abs=1.5)
    np.testing.assert_allclose(fit.watts(U), np.minimum(57.0 + 220.0 * true_shape(U), 300.0), rtol=0.03)


def test_two_groups_are_found_without_labels_and_one_group_is_not_split():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(30, 0.7, 300), rng.normal(52, 0.7, 100)])
    idle, context, share = split_idle(two)
    assert idle == pytest.approx(30, abs=0.5)
    assert context == pytest.approx(22, abs=0.7)
    assert share == pytest.approx(0.25, abs=0.02)
    assert split_idle(rng.normal(30, 0.7, 300))[1:] == (0.0, 0.0)
    assert np.isnan(split_idle(np.empty(0))[0])


def test_limits_are_learned_and_the_demand_under_them_is_not_mistaken_for_the_curve():
    planted = CapCurve(0.95, 8.0)
    fit = fit_device(readings(limits=(200.0, 150.0), cap=planted), BOARD)
    np.testing.assert_allclose(fit.watts(U), 32.0 + 220.0 * true_shape(U), rtol=0.03)
    expected = planted.watts(32.0 + 220.0 * true_shape(U), 150.0)
    np.testing.assert_allclose(fit.watts(U, 150.0), expected, rtol=0.04)
    assert fit.cap.headroom == pytest.approx(0.95, abs=0.02)


def test_where_every_reading_is_under_a_limit_the_curve_still_comes_back():
    table = readings(limits=(200.0,), outliers=0.0)
    table = table[table["limit_w"].notna() | (table["utilization"] == 0)]
    fit = fit_device(table, BOARD)
    half = U[U < 0.5]
    np.testing.assert_allclose(fit.watts(half), 32.0 + 220.0 * true_shape(half), rtol=0.06)


def test_classes_have_factors_of_their_own():
    kinds = {"training": 1.0, "interactive": 0.4}
    fit = fit_device(readings(kinds=kinds), BOARD)
    for kind, factor in kinds.items():
        np.testing.assert_allclose(fit.watts(U, kind=kind), 32.0 + 220.0 * factor * true_shape(U), rtol=0.08)
    assert fit.class_rows["training"] > 500


@pytest.mark.parametrize("seed", range(6))
def test_curves_never_fall_with_use_and_stay_between_idle_and_the_limit(seed):
    rng = np.random.default_rng(seed)
    table = readings(count=200, devices=1, seed=seed, noise=0.3, outliers=0.2, context=float(rng.choice([0.0, 20.0])))
    fit = fit_device(table, BOARD)
    fine = np.linspace(0, 1, 101)
    for kind in ("", "training"):
        for limit in (np.inf, 200.0, 120.0, 60.0):
            watts = fit.watts(fine, limit, kind, held=True)
            assert (np.diff(watts) >= -1e-9).all()
            assert watts.max() <= min(limit, BOARD.limit_w) + 1e-9 or watts.max() <= fit.idle_w + 1e-9
            assert watts.min() >= fit.idle_w - 1e-9
        assert (fit.watts(0.8, 200.0, kind) >= fit.watts(0.8, 150.0, kind)).all()
    assert (np.diff(fit.quantiles(fine), axis=1) >= 0).all()


def test_a_model_with_few_readings_borrows_shape_and_level_and_one_with_many_keeps_its_own():
    rich = readings(count=2000)
    poor = readings(count=40, devices=1, seed=3, outliers=0.0)
    boards = {"rich": BOARD, "poor": BOARD}
    alone, together = fit_device(poor, BOARD), fit_models({"rich": rich, "poor": poor}, boards)["poor"]
    truth = 32.0 + 220.0 * true_shape(U)

    def error(fit):
        return float(np.mean(np.abs(fit.watts(U) / truth - 1)))

    assert error(together) < error(alone)
    other = readings(count=2000, active=120.0, seed=5)
    fits = fit_models({"rich": rich, "other": other}, {"rich": BOARD, "other": BOARD})
    assert float(fits["other"].watts(1.0)) == pytest.approx(152.0, rel=0.03)


def test_without_any_use_the_data_sheet_speaks():
    idle = readings(count=100, devices=1)
    idle = idle.assign(utilization=0.0, power_w=40.0, held=False)
    fit = fit_device(idle, BOARD, Belief(active_share=0.5))
    assert fit.idle_w == pytest.approx(40.0)
    assert float(fit.watts(1.0)) == pytest.approx(40.0 + 0.5 * 270.0, rel=0.02)


def test_cap_curve_and_its_inverse():
    cap = CapCurve(0.97, 6.0)
    demand = np.array([20.0, 80.0, 140.0])
    np.testing.assert_allclose(cap.demand(cap.watts(demand, 150.0), 150.0), demand, rtol=1e-9)
    assert (cap.watts(demand, 150.0) < np.minimum(demand, 0.97 * 150.0)).all()
    np.testing.assert_allclose(cap.watts(demand, np.inf), demand)
    np.testing.assert_allclose(cap.watts(demand, np.nan), demand)
    assert float(cap.watts(0.0, 100.0)) == 0.0
    rng = np.random.default_rng(0)
    d, limit = rng.uniform(50, 300, 400), rng.uniform(60, 250, 400)
    found = CapCurve.fit(d, limit, cap.watts(d, limit) * np.exp(rng.normal(0, 0.03, 400)))
    assert found.headroom == pytest.approx(0.97, abs=0.02)
    assert found.sharpness == pytest.approx(6.0, rel=0.15)
    few = CapCurve.fit(d[:2], limit[:2], 0.5 * cap.watts(d[:2], limit[:2]), CapCurve())
    assert few.headroom > 0.85  # two odd readings do not overrule the sweeps


def test_shapes():
    shape = Shape((0.2, 0.0, 0.3, 0.0, 0.5, 0.0, 0.0, 0.0))
    assert float(shape(0.0)) == 0.0
    assert float(shape(1.0)) == pytest.approx(1.0)
    assert float(shape(0.05)) == pytest.approx(0.2 * 0.5 + 0.3 * 0.1 + 0.5 * 0.05)
    assert pooled_shape([], []).weights == pytest.approx(LINEAR)
    pooled = pooled_shape([shape], [20_000])
    assert sum(pooled.weights) == pytest.approx(1.0)
    assert 0.0 < pooled.weights[0] < 0.2
    rows = design(np.linspace(0.01, 1, 500))
    watts = 30 + 200 * shape(np.linspace(0.01, 1, 500))
    found, weight = fit_rows(rows, watts, Prior(30.0, 200.0), 300.0)
    np.testing.assert_allclose(rows @ found * 300.0, watts, rtol=0.01)
    assert weight.mean() == pytest.approx(1.0)
    assert len(found) == 1 + len(LINEAR)
    assert len(EARLY) == 5


def test_conformal_quantiles_step_outward():
    rest = np.arange(100.0)
    stepped = conformal_quantiles(rest)
    plain = np.quantile(rest, LEVELS)
    assert stepped[0] < plain[0]
    assert stepped[-1] > plain[-1]
    assert stepped[2] == pytest.approx(plain[2])


def test_nodes_come_back():
    rng = np.random.default_rng(0)
    devices = np.where(rng.random((400, 4)) < 0.6, rng.uniform(80, 250, (400, 4)), 30.0)
    used = (devices > 40).sum(axis=1)
    table = pd.DataFrame(devices, columns=["d0", "d1", "d2", "d3"])
    table["gpu_w"], table["gpus"], table["node"] = devices.sum(axis=1), 4, "a"
    table["time"] = pd.date_range("2026-01-05", periods=400, freq="60s", tz="UTC")
    table["node_w"] = 200.0 + 18.0 * used + 1.05 * table["gpu_w"] + rng.normal(0, 3, 400)
    fit = fit_nodes(table, 30.0)
    assert fit.node_idle_w == pytest.approx(200.0, rel=0.03)
    assert fit.cpu_w_per_gpu == pytest.approx(18.0, rel=0.1)
    assert fit.loss == pytest.approx(0.05, abs=0.015)
    assert fit.mape < 1.0
    assert fit_nodes(table.head(10), 30.0) is None


def test_fitted_rows_are_a_curve_table():
    fit = fit_device(readings(kinds={"training": 1.0, "fine_tuning": 1.1}), replace(BOARD, gpu_model="new"))
    known = load_curves()
    table = fitted_rows(fit, known, "A40", "lake abc")
    points = points_of(table, "test")
    assert {point.kind for point in points} == set(WORKLOAD_CLASSES)
    training = table[table["kind"] == "training"]
    speeds = known[(known["gpu_model"] == "A40") & (known["kind"] == "training")]["speed"]
    assert sorted(training["speed"]) == pytest.approx(sorted(speeds))
    assert training["source"].str.contains("speed like A40").all()
    assert (training["power_low_w"] <= training["power_w"] + 0.1).all()
    with pytest.raises(InputError, match=r"no speeds for GPU model 'new'.*like"):
        fitted_rows(fit, known, "new", "lake abc")


def test_ratios_of_classes_have_the_mix_as_their_mean():
    known, board = load_curves(), load_boards()["V100"]
    ratios = class_ratios(known, "V100", board, {"training": 100.0})
    assert ratios["training"] == pytest.approx(1.0)
    assert ratios["interactive"] < 0.1
    assert class_ratios(known, "V100", board, {}) == class_ratios(known, "V100", board, {"nothing": 5.0})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpu_model,limit_w\nX,300\n", "missing column idle_w"),
        ("gpu_model,limit_w,idle_w\nX,300,400\n", "idle 400"),
        ("gpu_model,limit_w,idle_w\nX,lots,4\n", "lots"),
        ("", "no CSV"),
    ],
)
def test_bad_boards_are_named(tmp_path, text, told):
    file = tmp_path / "boards.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        load_boards(file)
    with pytest.raises(InputError, match="no such file"):
        load_boards(tmp_path / "gone.csv")


def test_own_boards_stand_beside_the_committed_ones(tmp_path):
    file = tmp_path / "boards.csv"
    file.write_text("gpu_model,limit_w,idle_w\nX,310,33\nV100,300,40\n")
    boards = load_boards(file)
    assert boards["X"].limit_w == 310.0
    assert boards["V100"].limit_w == 300.0
    assert boards["A40"].limit_w == 300.0

"""Figures hold what the tables say. With JOULEWISE_PLOTS=FOLDER they are also written there, to look at."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from models.base import QUANTILE_COLUMNS, QUANTILES
from registry import plots, policy_plots
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

FORECASTERS = ["persistence", "seasonal_naive", "lightgbm", "lstm"]


def show(figure, name):
    assert plt.get_fignums() == []
    figure.canvas.draw()
    if folder := os.environ.get("JOULEWISE_PLOTS"):
        figure.savefig(Path(folder) / f"{name}.png", dpi=110)
    return figure


def labels(axes) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])


def fan_tables():
    rng = np.random.default_rng(0)
    ds = pd.date_range("2026-02-01", periods=144 + 18, freq="10min")
    names = ["gpu_demand/west-v100", "gpu_demand/west-a40", "gpu_demand/east-a40"]
    y = {name: 8 + 4 * np.sin(np.arange(162) / 20 + k) + rng.normal(0, 0.4, 162) for k, name in enumerate(names)}
    whole = pd.concat([pd.DataFrame({"unique_id": name, "ds": ds, "y": values}) for name, values in y.items()])
    rows = []
    for name, values in y.items():
        spread = np.sqrt(np.arange(1, 19))[:, None] * 0.5 * (np.array(QUANTILES) - 0.5) * 2.5
        frame = pd.DataFrame(values[144:, None] + rng.normal(0, 0.3, (18, 1)) + spread, columns=list(QUANTILE_COLUMNS))
        rows.append(frame.assign(unique_id=name, ds=ds[144:]))
    return whole[whole["ds"] < ds[144]], pd.concat(rows), whole[whole["ds"] >= ds[144]]


def test_fan_shows_history_bands_median_and_actual_per_series():
    history, forecast, actual = fan_tables()
    figure = show(plots.forecast_fan(history, forecast, actual, unit="GPUs"), "forecast_fan")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in shown] == list(forecast["unique_id"].unique())
    for axes in shown:
        assert len(axes.collections) == 4
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), history[history["unique_id"] == axes.get_title("left")]["y"])
        np.testing.assert_array_equal(axes.lines[1].get_ydata(), forecast[forecast["unique_id"] == axes.get_title("left")]["q50"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["history", "80 % band", "median", "actual"]
    assert len(plots.forecast_fan(history, forecast, limit=1).axes) == 1


def test_error_by_horizon_has_a_line_a_forecaster_in_hours():
    steps = np.arange(1, 19)
    frame = pd.concat(
        [pd.DataFrame({"forecaster": name, "step": steps, "error": 0.1 + k * 0.02 + 0.01 * steps}) for k, name in enumerate(FORECASTERS)]
    )
    axes = show(plots.error_by_horizon(frame, step_minutes=10), "error_by_horizon").axes[0]
    assert labels(axes) == set(FORECASTERS)
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(3.0)
    assert axes.get_xlabel() == "hours ahead"


def test_calibration_has_the_ideal_and_a_line_a_forecaster():
    frame = pd.concat(
        [
            pd.DataFrame({"forecaster": n, "nominal": QUANTILES, "observed": np.array(QUANTILES) ** (0.8 + k / 5)})
            for k, n in enumerate(FORECASTERS)
        ]
    )
    axes = show(plots.calibration(frame), "calibration").axes[0]
    assert labels(axes) == {"ideal", *FORECASTERS}
    assert axes.get_xlim() == axes.get_ylim() == (0, 1)


def test_skill_bars_are_sorted_and_coloured_by_their_interval():
    frame = pd.DataFrame(
        {"forecaster": ["arima", "lightgbm", "lstm"], "skill": [-0.2, 0.25, 0.03], "low": [-0.3, 0.15, -0.02], "high": [-0.1, 0.33, 0.08]}
    )
    axes = show(plots.skill_bars(frame), "skill_bars").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["arima", "lstm", "lightgbm"]
    assert [bar.get_width() for bar in axes.patches] == [-0.2, 0.03, 0.25]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 3


def test_learning_curves_show_bands_and_references():
    steps = np.linspace(0, 4e5, 30)
    value = 60 - 8 * (1 - np.exp(-steps / 1e5))
    frame = pd.DataFrame({"step": steps, "name": "agent", "value": value, "low": value - 1, "high": value + 1})
    axes = show(plots.learning_curves(frame, references={"lookahead": 55.0, "k8s_default": 62.0}), "learning_curves").axes[0]
    assert labels(axes) == {"agent", "lookahead", "k8s_default"}
    assert len(axes.collections) == 1


def test_pareto_averages_windows_and_joins_only_undominated_policies():
    points = {
        "k8s_default": (75, 0.11),
        "fifo": (53, 0.12),
        "greedy_cost": (44, 0.03),
        "lookahead": (39, 0.029),
        "champion": (37, 0.035),
        "easy": (45, 0.031),
    }
    rows = [{"policy": name, "cost_usd": cost + d, "sla_violation_rate": sla} for name, (cost, sla) in points.items() for d in (-1, 1)]
    axes = show(policy_plots.pareto(pd.DataFrame(rows)), "pareto").axes[0]
    assert labels(axes) == {"best trade-offs", *points}
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [37, 39])
    assert {text.get_text() for text in axes.texts} == set(points)


def schedule():
    rng = np.random.default_rng(3)
    rows, classes = [], {}
    day = pd.Timestamp("2026-02-02", tz="UTC")
    for job in range(70):
        start = day + pd.Timedelta(minutes=int(rng.integers(0, 1300)))
        pool, level = int(rng.integers(0, 3)), int(rng.integers(0, 3))
        common = {"job": job, "pool": pool, "level": level, "pool_name": ["west-v100", "west-a40", "east-a40"][pool], "node": pool}
        rows.append({"time": start, "type": 3, **common})
        if job != 5:
            rows.append({"time": start + pd.Timedelta(minutes=int(rng.integers(10, 240))), "type": 1, **common})
        classes[job] = WORKLOAD_CLASSES[job % 5]
    times = pd.date_range(day, periods=30, freq="h")
    price = pd.concat(
        [
            pd.DataFrame({"time": times, "site": s, "price_usd_per_kwh": 0.1 + a * np.sin(np.arange(30) / 4)})
            for s, a in (("west", 0.05), ("east", 0.03))
        ]
    )
    return pd.DataFrame(rows).sort_values("time"), classes, price


@pytest.mark.parametrize("misses", [[0.02, 0.02, 0.02, 0.02], [0.0, 0.0, 0.0, 0.0], [0.04, 0.01, 0.02, 0.03]])
def test_reserves_are_points_of_energy_against_misses_and_waiting(misses):
    names = ["persistence", "lightgbm", "no_sleep", "always_sleep"]
    table = pd.DataFrame({"policy": names, "energy_kwh": [101.0, 100.0, 103.0, 99.0], "sla_violation_rate": misses})
    table["waited_gpu_hours"] = [5.0, 5.1, 4.9, 5.6]
    figure = show(policy_plots.reserve_trade(table, highlight="lightgbm", bounds=names[2:]), f"reserve_{misses[0]}")
    for axes, column in zip(figure.axes, ("sla_violation_rate", "waited_gpu_hours"), strict=True):
        points = np.array([collection.get_offsets()[0] for collection in axes.collections])
        np.testing.assert_allclose(points, table[["energy_kwh", column]])
        assert {text.get_text() for text in axes.texts} == set(names)
        low, high = axes.get_ylim()
        assert low <= table[column].min() <= table[column].max() < high


def test_gantt_has_a_bar_a_job_a_section_a_pool_and_prices():
    events, classes, price = schedule()
    figure = show(policy_plots.gantt(events, classes, prices=price), "gantt")
    assert len(figure.axes) == 4
    assert sum(len(axes.patches) for axes in figure.axes) == 70
    assert [axes.get_ylabel() for axes in figure.axes] == ["west-v100", "west-a40", "east-a40", "USD/kWh"]
    assert labels(figure.axes[-1]) == {"west", "east"}
    assert len({bar.get_alpha() for axes in figure.axes for bar in axes.patches}) == 3
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [name.replace("_", " ") for name in WORKLOAD_CLASSES] + ["full power", "power level 1", "power level 2"]


def test_gantt_bars_of_one_lane_do_not_overlap():
    events, classes, _ = schedule()
    for axes in policy_plots.gantt(events, classes).axes:
        lanes: dict[float, list[tuple[float, float]]] = {}
        for bar in axes.patches:
            lanes.setdefault(bar.get_y(), []).append((bar.get_x(), bar.get_x() + bar.get_width()))
        for spans in lanes.values():
            spans.sort()
            assert all(left[1] <= right[0] + 1e-9 for left, right in pairwise(spans))


def test_power_stack_adds_up_and_shows_the_budget():
    times = pd.date_range("2026-02-02", periods=144, freq="10min", tz="UTC")
    running = 4000 + 2500 * np.sin(np.arange(144) / 23)
    frame = pd.DataFrame({"time": times, "running_w": running, "idle_w": 1500.0, "sleeping_w": 60.0, "cooling_w": 0.15 * running})
    axes = show(policy_plots.power_stack(frame, budget_kw=9), "power_stack").axes[0]
    assert labels(axes) == {"running", "idle", "sleeping", "cooling", "budget"}
    top = max(path.vertices[:, 1].max() for collection in axes.collections for path in collection.get_paths())
    assert top == pytest.approx(frame.drop(columns="time").sum(axis=1).max() / 1000)


def test_missing_columns_and_empty_tables_are_named():
    with pytest.raises(InputError, match="columns low, high missing"):
        plots.skill_bars(pd.DataFrame({"forecaster": ["a"], "skill": [0.1]}))
    with pytest.raises(InputError, match="no rows"):
        plots.calibration(pd.DataFrame({"forecaster": [], "nominal": [], "observed": []}))
    with pytest.raises(InputError, match="no job starts"):
        policy_plots.gantt(pd.DataFrame({"time": [pd.Timestamp(0)], "type": [4], "job": [-1], "pool": [-1], "level": [-1]}), {})

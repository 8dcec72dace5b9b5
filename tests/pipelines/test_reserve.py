"""The warm reserve under forecasts: from quantiles to nodes, jobs carried into a window, and what too much and too little cost."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.reward import RewardSpec
from envs.windows import constant_grid
from models.base import QUANTILE_COLUMNS
from pipelines.reserve import (
    ALWAYS_SLEEP,
    BOUNDS,
    NO_SLEEP,
    PERFECT,
    carried_over,
    compare_reserves,
    pool_case,
    reserve_capacity,
    reserves_of,
    summarise_reserves,
)
from pipelines.stages.reserve import decision_evidence
from pipelines.workspace import write_json
from registry.gates import Decision, run_gates
from telemetry.errors import InputError
from telemetry.series import SeriesConfig, gpu_demand

START = pd.Timestamp("2026-03-02", tz="UTC")
FREQ, HORIZON, SLOW_WAKE_S = "10min", 12, 900
ISSUED = [pd.Timestamp("2026-03-02T06:00") + k * pd.Timedelta(hours=2) for k in range(8)]


def cluster(wake_latency_s: int = SLOW_WAKE_S) -> ClusterSpec:
    pools = tuple(PoolSpec(name, "here", "V100", 4, 2, wake_latency_s=wake_latency_s) for name in ("left", "right"))
    return ClusterSpec("two", (SiteSpec("here"),), pools)


def jobs() -> pd.DataFrame:
    """A job of one GPU that takes half an hour, every ten minutes at night and two by day, in each pool."""
    rows = []
    for minute in range(0, 26 * 60, 10):
        for pool in ("left", "right"):
            for copy in range(2 if 480 <= minute < 1080 else 1):
                at = START + pd.Timedelta(minutes=minute + 3 * copy)
                rows.append({"job_id": f"{pool}-{minute}-{copy}", "submit_time": at, "start_time": at, "pool": pool})
    table = pd.DataFrame(rows)
    return table.assign(
        end_time=table["start_time"] + pd.Timedelta(minutes=30),
        duration_s=1800.0,
        requested_duration_s=2400.0,
        gpus=1.0,
        workers=1,
        workload_class="interactive",
    )


def forecasts(**gpus: float | None) -> pd.DataFrame:
    """Every forecaster always forecasts the same GPUs, or what comes (None)."""
    demand = gpu_demand(jobs(), SeriesConfig(FREQ)).frame
    parts = []
    for issued in ISSUED:
        window = demand[(demand["ds"] > issued) & (demand["ds"] <= issued + HORIZON * pd.Timedelta(FREQ))]
        for name, value in gpus.items():
            quantiles = window["y"].to_numpy() if value is None else np.full(len(window), float(value))
            parts.append(window.assign(issued_at=issued, model=name, **dict.fromkeys(QUANTILE_COLUMNS, quantiles)))
    return pd.concat(parts, ignore_index=True)


def grid() -> pd.DataFrame:
    return constant_grid(["here"], START - pd.Timedelta(days=2), START + pd.Timedelta(days=4))


@functools.cache
def compared(**gpus: float | None) -> pd.DataFrame:
    return compare_reserves(cluster(), jobs(), grid(), forecasts(**gpus), freq=FREQ, horizon=HORIZON, fractile=0.8, reward=RewardSpec())


def test_jobs_that_run_or_wait_are_carried_over_with_what_is_left_of_them():
    now = START + pd.Timedelta(hours=1)
    times = {"submit_time": [-90, -30, -20, -90, 10], "start_time": [-60, -30, 15, -80, 10], "end_time": [60, 30, 75, -5, 20]}
    table = pd.DataFrame({name: now + pd.to_timedelta(minutes, unit="min") for name, minutes in times.items()})
    table = table.assign(job_id=list("abcde"), duration_s=[14_400.0, 3600.0, 3600.0, 600.0, 600.0], requested_duration_s=9000.0)
    table["deadline"] = [now + pd.Timedelta(hours=3), now - pd.Timedelta(minutes=1), pd.NaT, pd.NaT, pd.NaT]
    carried = carried_over(table, now).set_index("job_id")
    assert list(carried.index) == ["a", "b", "c"], "one is over by then, one has not come"
    assert carried["duration_s"].tolist() == [7200.0, 1800.0, 3600.0], "half, half, and all of one that waits"
    assert carried["requested_duration_s"].tolist() == [1800.0, 7200.0, 9000.0]
    assert (carried["submit_time"] == now).all()
    assert carried["deadline"].notna().tolist() == [True, False, False]


def test_a_reserve_is_whole_nodes_early_enough_and_ends_with_the_horizon():
    frame = forecasts(a=0.0)
    case = pool_case(cluster(), cluster().pools[0], jobs(), grid(), frame, FREQ, HORIZON)
    gpus = np.tile([0.0, 0.5, 2.0, 2.1, np.nan, 99.0, 0, 0, 0, 0, 0, 0], (len(ISSUED), 1))
    first = case.tables(gpus)[0]
    assert first["nodes"].tolist() == [1, 1, 2, 2, 4, 4, 0, 0, 0, 0, 0, 0, 0], "a wake of 15 minutes is begun a step ahead"
    assert first["time"].iloc[0] == ISSUED[0].tz_localize("UTC")
    quick = pool_case(cluster(60), cluster(60).pools[0], jobs(), grid(), frame, FREQ, HORIZON)
    assert quick.tables(gpus)[0]["nodes"].tolist()[:7] == [0, 1, 1, 2, 2, 4, 0]


def test_every_forecaster_and_the_bounds_have_a_reserve():
    frame = forecasts(a=1.0, b=None)
    case = pool_case(cluster(), cluster().pools[1], jobs(), grid(), frame, FREQ, HORIZON)
    reserves = reserves_of(case, frame, 0.8)
    assert set(reserves) == {"a", "b", *BOUNDS}
    pd.testing.assert_frame_equal(reserves["b"][3], reserves[PERFECT][3])
    assert case.demand.shape == (len(ISSUED), HORIZON)


def test_too_little_misses_objectives_too_much_wastes_energy_and_a_perfect_forecast_does_neither():
    frame = compared(low=0.0, right=None, high=99.0)
    means = frame.groupby("policy")[["energy_kwh", "idle_kwh", "late_starts", "waited_gpu_hours", "jobs_submitted", "total_usd"]].mean()
    for one, same in (("low", ALWAYS_SLEEP), ("right", PERFECT), ("high", NO_SLEEP)):
        pd.testing.assert_series_equal(means.loc[one], means.loc[same], check_names=False)
    assert means["jobs_submitted"].nunique() == 1
    assert means.loc["low", "late_starts"] >= 1.0, "a wake of 15 minutes is longer than the 10 that a user accepts"
    assert means.loc["right", "late_starts"] == means.loc["high", "late_starts"] == 0.0
    assert means.loc["low", "waited_gpu_hours"] > 0.2
    assert means.loc["right", "idle_kwh"] < means.loc["high", "idle_kwh"] - 0.2
    assert means.loc["right", "total_usd"] < min(means.loc["low", "total_usd"], means.loc["high", "total_usd"])


def test_differences_are_paired_with_the_naive():
    summary = summarise_reserves(compared(persistence=4.0, right=None, high=99.0), "persistence")
    change = summary["paired"]["high"]["energy_kwh"]
    assert 0 < change["relative_low"] <= change["relative"] <= change["relative_high"]
    assert change["windows"] == len(ISSUED)
    assert set(summary["means"]) == {"persistence", "right", "high", *BOUNDS}
    assert "persistence" not in summary["paired"]


def evidence_of(tmp_path, candidate: str, pinball: float, naive: float = 3.0) -> dict:
    """Evidence of the gate as the stages leave it, for a candidate that was played against a naive of ``naive`` GPUs."""
    frame = compared(persistence=naive, low=0.0, right=None, high=99.0)
    choice = {"reference": "persistence", "candidate": candidate, "fractile": 0.8}
    choice |= {"decision_ratio": pinball, "decision_ratio_low": pinball - 0.02, "decision_ratio_high": pinball + 0.02}
    write_json(tmp_path / "workload" / "champion.json", choice)
    write_json(tmp_path / "workload" / "backtest.json", {"n_origins": 8})
    summary = {"simulated": True, "reference": "persistence", "windows": 8, **summarise_reserves(frame, "persistence")}
    write_json(tmp_path / "reserve.json", summary)
    simulated, evidence = decision_evidence(tmp_path, tmp_path, "workload", required=True)
    assert simulated
    return {"decision": evidence}


@pytest.mark.parametrize(
    ("candidate", "pinball", "naive", "passes", "said"),
    [
        ("right", 0.8, 8.0, True, "kWh -"),
        ("right", 1.1, 8.0, False, "pinball at 0.800 is 1.100"),
        ("high", 0.8, 3.0, False, "kWh +"),
        ("low", 0.8, 8.0, False, "SLA misses"),
        ("absent", 0.8, 8.0, False, "no evidence"),
    ],
)
def test_the_gate_judges_what_was_played(tmp_path, candidate, pinball, naive, passes, said):
    (verdict,) = run_gates([Decision(min_windows=8)], evidence_of(tmp_path, candidate, pinball, naive))
    assert verdict.passed == passes, verdict
    assert said in verdict.reason


def test_a_target_without_a_reserve_is_judged_by_its_pinball_alone(tmp_path):
    choice = {"reference": "persistence", "candidate": "lstm", "fractile": 0.8}
    choice |= {"decision_ratio": 0.9, "decision_ratio_low": 0.8, "decision_ratio_high": 1.0}
    write_json(tmp_path / "power" / "champion.json", choice)
    write_json(tmp_path / "power" / "backtest.json", {"n_origins": 20})
    write_json(tmp_path / "reserve.json", {"simulated": False, "why": "nothing"})
    simulated, evidence = decision_evidence(tmp_path, tmp_path, "power", required=True)
    (verdict,) = run_gates([Decision(simulated)], {"decision": evidence})
    assert verdict.passed
    assert "not simulated: no reserve is set by power forecasts" in verdict.reason


@pytest.mark.parametrize(("required", "passes"), [(True, False), (False, True)])
def test_demand_that_could_not_be_simulated_is_refused_unless_allowed(tmp_path, required, passes):
    choice = {"reference": "persistence", "candidate": "lstm", "fractile": 0.8}
    choice |= {"decision_ratio": 0.9, "decision_ratio_low": 0.8, "decision_ratio_high": 1.0}
    write_json(tmp_path / "workload" / "champion.json", choice)
    write_json(tmp_path / "workload" / "backtest.json", {"n_origins": 20})
    write_json(tmp_path / "reserve.json", {"simulated": False, "why": "no pool of that name"})
    simulated, evidence = decision_evidence(tmp_path, tmp_path, "workload", required=required)
    (verdict,) = run_gates([Decision(simulated)], {"decision": evidence})
    assert verdict.passed is passes
    assert "no pool of that name" in verdict.reason


def test_a_forecaster_without_a_forecast_of_a_window_is_no_reserve_of_nothing():
    rows = forecasts(a=1.0, b=2.0)
    short = rows[(rows["model"] != "b") | (rows["issued_at"] != rows["issued_at"].max())]
    with pytest.raises(InputError, match="reserve by b: 1 of 8 windows without a forecast"):
        compare_reserves(cluster(), jobs(), grid(), short, freq=FREQ, horizon=HORIZON, fractile=0.8, reward=RewardSpec())


def test_without_pools_or_windows_nothing_is_played():
    arguments = {"freq": FREQ, "horizon": HORIZON, "fractile": 0.8, "reward": RewardSpec()}
    assert compare_reserves(cluster(), jobs().drop(columns="pool"), grid(), forecasts(a=1.0), **arguments).empty
    late = grid().assign(time=lambda table: table["time"] + pd.Timedelta(days=90))
    assert compare_reserves(cluster(), jobs(), late, forecasts(a=1.0), **arguments).empty
    with pytest.raises(InputError, match="no forecast of gpu_demand/left"):
        pool_case(cluster(), cluster().pools[0], jobs(), grid(), forecasts(a=1.0).assign(unique_id="x"), FREQ, HORIZON)
    assert reserve_capacity(cluster(), ["gpu_demand/left", "request_rate/chat"]) == {"gpu_demand/left": 8.0}

"""Readers of public traces, on small tables of the same form and, where they are at hand, on the traces themselves."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.readers.public_traces import (
    ROUND_REQUESTS_S,
    model_requests,
    read_azure_vm,
    read_electricitymaps,
    read_helios_demand,
    read_iso_prices,
    read_nab,
    read_openmeteo,
    read_philly_gavel,
    read_public_grid,
    read_servegen_rates,
)

TRACES = Path(os.environ.get("JOULEWISE_TRACES", Path(__file__).parents[2] / ".." / "shared" / "traces"))
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"no traces at {TRACES}")
ZONES = {"US-CAL-CISO": "west", "US-NY-NYIS": "east"}


def philly(tmp_path, rows, throughputs):
    jobs, table = tmp_path / "jobs.parquet", tmp_path / "throughputs.parquet"
    pd.DataFrame(rows, columns=["vc", "job_type", "total_steps", "arrival_time", "scale_factor"]).to_parquet(jobs)
    pd.DataFrame(throughputs, columns=["worker_type", "job_type", "scale_factor", "throughput"]).to_parquet(table)
    return jobs, table


def test_philly_durations_gangs_and_counts(tmp_path):
    paths = philly(
        tmp_path,
        [
            ("a", "LM (batch size 5)", 1000, 5.0, 1),
            ("a", "LM (batch size 5)", 1000, 9.0, 16),
            ("b", "LM (batch size 5)", 9000, 0.0, 24),
            ("b", "A3C", 100, 1.0, 1),
            ("b", "new", 100, 2.0, 1),
            ("b", "LM (batch size 5)", 10**9, 3.0, 2),
        ],
        [
            ("v100", "LM (batch size 5)", 1, 10.0),
            ("v100", "LM (batch size 5)", 8, 40.0),
            ("p100", "LM (batch size 5)", 1, 1.0),
            ("v100", "A3C", 1, 0.0),
        ],
    )
    jobs, counts = read_philly_gavel(*paths, start="2021-03-01", gpus_per_worker=8, max_duration_s=10**6)
    assert counts == {"unknown_job_type": 1, "zero_throughput": 1, "too_long": 1, "smaller_scale_throughput": 2}
    assert list(jobs["job_id"]) == ["b-00000", "a-00000", "a-00001"]
    assert list(jobs["duration_s"]) == [225.0, 100.0, 25.0]
    assert list(zip(jobs["gpus"], jobs["workers"], strict=True)) == [(8.0, 3), (1.0, 1), (8.0, 2)]
    assert set(jobs["workload"]) == {"LM (batch size 5)"}
    assert jobs["submit_time"].iloc[1] == pd.Timestamp("2021-03-01T00:00:05Z")
    with pytest.raises(InputError, match="unknown virtual cluster 'c'"):
        read_philly_gavel(*paths, start="2021-03-01", vcs=("c",))


def test_modelled_requests_cover_the_run_and_are_round():
    durations = np.geomspace(10, 4e6, 500)
    requests = model_requests(durations, seed=1)
    assert (requests >= durations).all()
    assert (requests[durations < 80_000] <= 604_800).all()
    assert set(requests[requests <= 604_800]) <= set(ROUND_REQUESTS_S)
    assert len(np.unique(requests / durations)) > 400, "an estimate must not give the run time away"
    assert (requests == model_requests(durations, seed=1)).all()
    assert (requests != model_requests(durations, seed=2)).any()


def test_helios_demand_is_known_at_the_end_of_its_bin(tmp_path):
    path = tmp_path / "helios.parquet"
    times = pd.date_range("2020-05-01", periods=25, freq="min")
    frame = pd.DataFrame({"vc": "v", "time": times.astype(str), "running_gpu_num": np.arange(25), "pending_gpu_num": 100})
    frame.drop(index=range(10, 20)).to_parquet(path)
    series, counts = read_helios_demand(path)
    assert list(series["unique_id"].unique()) == ["gpu_demand/v"]
    assert series["y"].tolist() == [109.0, 124.0]
    assert series["ds"].tolist() == [pd.Timestamp("2020-05-01T00:10"), pd.Timestamp("2020-05-01T00:30")]
    assert counts == {"missing_bins": 1}


def test_helios_running_gpus_come_with_what_waits(tmp_path):
    path = tmp_path / "helios.parquet"
    times = pd.date_range("2020-05-01", periods=20, freq="min").astype(str)
    frame = {"vc": "v", "time": times, "running_gpu_num": np.arange(20), "pending_gpu_num": 100, "pending_gpujob_num": np.arange(20) + 5}
    pd.DataFrame(frame).to_parquet(path)
    series, _ = read_helios_demand(path, quantity="running")
    assert list(series.columns) == ["unique_id", "ds", "y", "pending_gpus", "queue_length"]
    assert series.drop(columns="ds").to_numpy().tolist() == [["gpu_running/v", 9.0, 100.0, 14.0], ["gpu_running/v", 19.0, 100.0, 24.0]]
    with pytest.raises(InputError, match="quantity 'idle'"):
        read_helios_demand(path, quantity="idle")


def test_azure_vm_rows_become_means_known_at_the_end_of_their_bin(tmp_path):
    path = tmp_path / "azure.parquet"
    pd.DataFrame({"cpu_usage": [1.0, 3.0, 5.0, 9.0, 20.0], "assigned_mem": 0.0}).to_parquet(path)
    series, counts = read_azure_vm(path, start="2019-04-01")
    assert series["y"].tolist() == [2.0, 7.0, 20.0]
    assert series["ds"].tolist() == list(pd.date_range("2019-04-01T00:10", periods=3, freq="10min"))
    assert counts == {"missing_bins": 0}


def test_cloudwatch_values_are_binned_and_oddities_counted(tmp_path):
    path = tmp_path / "ec2_cpu.csv"
    stamps = ["00:04", "00:09", "00:10", "00:10", "00:11", "00:34"]
    path.write_text("timestamp,value\n" + "".join(f"2014-03-09 {stamp}:00,{k}\n" for k, stamp in enumerate(stamps)))
    series, counts = read_nab(path)
    assert set(series["unique_id"]) == {"cloudwatch/ec2_cpu"}
    assert dict(zip(series["ds"].dt.strftime("%H:%M"), series["y"], strict=True)) == {"00:10": 1.5, "00:20": 4.0, "00:40": 5.0}
    assert counts == {"missing_bins": 1, "repeated_times": 1}


@pytest.mark.parametrize("text", ["timestamp,value\nsoon,1\n", "time,value\n2014-03-09,1\n", "timestamp,value\n2014-03-09,much\n", ""])
def test_a_file_that_is_no_cloudwatch_metric_is_refused(tmp_path, text):
    path = tmp_path / "metric.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"metric\.csv"):
        read_nab(path)
    with pytest.raises(InputError, match="no such file"):
        read_nab(tmp_path / "none.csv")


def test_servegen_rates_and_their_total(tmp_path):
    path = tmp_path / "rates.parquet"
    pd.DataFrame({"chunk": [0, 0, 7], "timestamp": [0, 600, 0], "rate": [1.0, 2.0, 3.0]}).to_parquet(path)
    series, counts = read_servegen_rates(path, start="2024-01-01", total=True)
    values = series.set_index(["unique_id", "ds"])["y"].to_dict()
    assert values["request_rate/total", pd.Timestamp("2024-01-01T00:10")] == 4.0
    assert values["request_rate/client-07", pd.Timestamp("2024-01-01T00:10")] == 3.0
    assert counts == {"missing_bins": 0}


def grid_files(tmp_path):
    times = pd.date_range("2021-01-01", periods=6, freq="h")
    prices, carbon, weather = [], [], []
    for zone, offset in (("US-CAL-CISO", -2), ("US-NY-NYIS", -1)):
        prices.append(
            pd.DataFrame(
                {"zone": zone, "Datetime (UTC)": times.strftime("%Y-%m-%d %H:%M:%S+00:00"), "Price (USD/MWh)": [-5.0, 50, 50, 70, 80, 90]}
            )
        )
        carbon.append(
            pd.DataFrame(
                {
                    "Zone Id": zone,
                    "Datetime (UTC)": times.strftime("%Y-%m-%d %H:%M:%S"),
                    "Carbon Intensity gCO₂eq/kWh (LCA)": 300.0,
                    "Carbon Intensity gCO₂eq/kWh (direct)": 200.0,
                    "Renewable Percentage": 40.0,
                    "Data Estimated": [True] + [False] * 5,
                }
            )
        )
        weather.append(
            pd.DataFrame(
                {
                    "zone": zone,
                    "time": times.strftime("%Y-%m-%dT%H:%M"),
                    "temperature_2m": np.arange(6.0),
                    "utc_offset_seconds": offset * 3600,
                }
            )
        )
    paths = [tmp_path / f"{name}.parquet" for name in ("prices", "carbon", "weather")]
    for path, parts in zip(paths, (prices, carbon, weather), strict=True):
        pd.concat(parts).to_parquet(path)
    return paths


def test_grid_units_zones_and_local_times(tmp_path):
    prices, carbon, weather = grid_files(tmp_path)
    table, counts = read_iso_prices(prices, {"US-NY-NYIS": "ny"})
    assert table["price_usd_per_kwh"].tolist() == [-0.005, 0.05, 0.05, 0.07, 0.08, 0.09]
    assert counts == {"flat_runs": 1, "negative_price": 1}
    assert read_electricitymaps(carbon, ZONES)[0]["carbon_g_per_kwh"].unique() == [300.0]
    assert read_electricitymaps(carbon, ZONES, kind="direct")[0]["carbon_g_per_kwh"].unique() == [200.0]
    assert read_openmeteo(weather, {"US-CAL-CISO": "west"})[0]["time"].iloc[0] == pd.Timestamp("2021-01-01T02:00Z")
    grid, counts = read_public_grid(prices, carbon, ZONES, temperature_path=weather)
    assert grid["time"].min() == pd.Timestamp("2021-01-01T02:00Z")
    assert (grid.groupby("time")["site"].nunique() == 2).all()
    west = grid[grid["site"] == "west"].set_index("time")
    assert west["temperature_c"].iloc[0] == 0.0
    assert west["price_usd_per_kwh"].iloc[0] == 0.05
    assert west["renewable_fraction"].iloc[0] == 0.4
    assert counts["hours_not_shared"] == 12 - len(grid)
    with pytest.raises(InputError, match="unknown zone 'FR'"):
        read_public_grid(prices, carbon, {"FR": "west"})


def test_missing_file_and_column_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_helios_demand(tmp_path / "none.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_helios_demand(broken)
    pd.DataFrame({"vc": ["a"]}).to_parquet(broken)
    with pytest.raises(InputError, match="missing column time"):
        read_helios_demand(broken)


@needs_traces
def test_real_traces_have_the_stated_spans():
    jobs, counts = read_philly_gavel(
        TRACES / "a_jobs" / "philly_gavel_seed0_vcs.parquet",
        TRACES / "a_jobs" / "gavel_simulation_throughputs_isolated.parquet",
        start="2021-03-01",
    )
    assert len(jobs) + counts["zero_throughput"] + counts["unknown_job_type"] == 9152
    assert jobs["duration_s"].min() > 0
    grid, _ = read_public_grid(TRACES / "d_grid" / "iso_price_train.parquet", TRACES / "d_grid" / "electricitymaps_ci_train.parquet", ZONES)
    assert len(grid) == 2 * 3 * 8760
    demand, counts = read_helios_demand(TRACES / "a_jobs" / "helios_earth_vc_sequence.parquet")
    assert demand["unique_id"].nunique() == 8
    assert counts == {"missing_bins": 0}

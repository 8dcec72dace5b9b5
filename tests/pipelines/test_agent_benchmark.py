"""The agent's benchmark: loads are what they say, grids are whole and of held-out months, and tables come from paired windows."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import agent as benchmark
from benchmarks.agent_data import GRIDS, HELD_OUT_FROM, HELD_OUT_WEEKS, LOADS, grid_of, held_out_jobs, repeated
from envs.agent.policy import AgentPolicy
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from pipelines.cli import CONF_DIR
from pipelines.stages.real_traces import public_jobs
from telemetry.errors import InputError

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT / ".." / "shared" / "traces")).resolve()
there = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not there")
START = pd.Timestamp("2026-01-05", tz="UTC")


def jobs_table(count=400, weeks=2):
    rng = np.random.default_rng(0)
    submit = START + pd.to_timedelta(np.sort(rng.integers(0, weeks * 7 * 86_400, count)), unit="s")
    return pd.DataFrame(
        {"job_id": [f"j{i:03d}" for i in range(count)], "submit_time": submit, "duration_s": 100.0, "gpus": 1.0, "workers": 1}
    )


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.6, 2.0])
def test_repeated_jobs_keep_hour_and_weekday_and_never_repeat_at_once(factor):
    jobs = jobs_table()
    more = repeated(jobs, factor, START, 2, seed=1)
    assert len(more) == pytest.approx(factor * len(jobs), rel=0.12)
    assert more["job_id"].is_unique
    assert more["submit_time"].between(START, START + pd.Timedelta(weeks=2), inclusive="left").all()
    assert more["submit_time"].is_monotonic_increasing
    moved = more["submit_time"] - more["job_id"].str[:4].map(jobs.set_index("job_id")["submit_time"])
    assert set(moved.unique()) <= {pd.Timedelta(weeks=weeks) for weeks in (-1, 0, 1)}
    again = more.assign(base=more["job_id"].str[:4])
    assert not again.duplicated(["base", "submit_time"]).any()


def test_more_copies_than_weeks_would_coincide_and_are_refused():
    with pytest.raises(InputError, match=r"2\.50 times the jobs"):
        repeated(jobs_table(), 2.5, START, 2, seed=0)


@there
@pytest.mark.parametrize("load", list(LOADS))
def test_held_out_jobs_offer_the_load_and_were_never_trained_on(load):
    cluster = load_cluster("two_site", CONF_DIR)
    held = held_out_jobs(TRACES, cluster, LOADS[load])
    assert held.offered == pytest.approx(LOADS[load], rel=0.1)
    trained = public_jobs(TRACES)[0]
    assert held.jobs["submit_time"].min() >= held.start >= trained["submit_time"].max()
    assert not set(held.jobs["job_id"]) & set(trained["job_id"])
    assert held.months == ["2022-04", "2022-05", "2022-06"]


@there
@pytest.mark.parametrize("name", list(GRIDS))
def test_grids_are_whole_over_the_held_out_weeks(name):
    table, notes = grid_of(TRACES, name, ("west", "east"))
    end = HELD_OUT_FROM + pd.Timedelta(weeks=HELD_OUT_WEEKS + 1)
    inside = table[table["time"].between(HELD_OUT_FROM - pd.Timedelta(days=7), end, inclusive="left")]
    hours = (HELD_OUT_WEEKS + 2) * 168
    assert inside.groupby("site").size().to_dict() == {"west": hours, "east": hours}
    assert np.isfinite(inside[["price_usd_per_kwh", "carbon_g_per_kwh"]]).all().all()
    assert inside["carbon_g_per_kwh"].between(0, 1200).all()
    wide = inside.pivot_table(index="time", columns="site", values="price_usd_per_kwh")
    assert (wide["west"] == wide["east"]).all() == (name != "CAISO+NYIS")
    assert bool(notes) == (name in ("ERCOT", "PJM"))


@there
def test_ercot_hours_are_brought_to_utc_over_the_change_of_clocks():
    """Delivery hour 01:00 of 2021-05-03 is midnight to one in Texas, 05:00 UTC in summer, and stands 52 weeks later."""
    table = grid_of(TRACES, "ERCOT", ("west",))[0].set_index("time")
    raw = pd.read_parquet(TRACES / "d_grid/ercot_dam_2021.parquet")
    raw = raw[(raw["Settlement Point"] == "HB_BUSAVG") & (raw["Hour Ending"] == "01:00")].set_index("Delivery Date")
    for day, hour in (("05/03/2021", 5), ("01/11/2021", 6)):
        time = pd.Timestamp(day, tz="UTC") + pd.Timedelta(weeks=52, hours=hour)
        assert table.loc[time, "price_usd_per_kwh"] == pytest.approx(raw.loc[day, "Settlement Point Price"] / 1000)
    steps = table.index.to_series().diff().dropna()
    assert (steps == pd.Timedelta(hours=1)).all()


@there
def test_unknown_grid_and_judge_are_named(capsys):
    with pytest.raises(InputError, match=r"no grid 'SPP'.*ERCOT"):
        grid_of(TRACES, "SPP", ("west",))
    assert benchmark.main(["--policies", "champion", "--traces", str(TRACES)]) == 2
    assert "no judge 'champion'" in capsys.readouterr().out


@there
def test_a_small_run_prints_and_writes_paired_tables(tmp_path, capsys, monkeypatch):
    class Agent:
        name, settings = "agent", JUDGES["greedy_cost"].settings

        def act(self, observation, layout):
            return JUDGES["greedy_cost"].act(observation, layout)

    monkeypatch.setattr(AgentPolicy, "load", classmethod(lambda cls, folder: Agent()))
    out = tmp_path / "agent.json"
    small = ["--windows", "3", "--seeds", "1", "--window-hours", "12", "--traces", str(TRACES), "--out", str(out)]
    assert benchmark.main([*small, "--grids", "CAISO", "--policies", "lookahead", "greedy_cost", "--agent", "somewhere"]) == 0
    record, text = json.loads(out.read_text()), capsys.readouterr().out
    assert list(record["cells"]) == ["CAISO, light", "CAISO, heavy"]
    for cell in record["cells"].values():
        means = cell["summary"]
        assert set(means) == {"k8s_default", "lookahead", "greedy_cost", "agent"}
        assert means["agent"]["objective_usd"] == pytest.approx(means["greedy_cost"]["objective_usd"])
        assert cell["best_judge"] == min(("k8s_default", "lookahead", "greedy_cost"), key=lambda name: means[name]["objective_usd"])
        row = cell["to_k8s_default"]["agent"]["objective_usd"]
        assert row["mean"] == pytest.approx(means["agent"]["objective_usd"] - means["k8s_default"]["objective_usd"])
        assert row["windows"] == 3
        assert cell["months"] == ["2022-04", "2022-05", "2022-06"]
    light, heavy = (record["cells"][f"CAISO, {load}"] for load in LOADS)
    assert heavy["summary"]["k8s_default"]["energy_kwh"] > light["summary"]["k8s_default"]["energy_kwh"]
    ratios = [cell["summary"]["agent"]["objective_usd"] / cell["summary"]["k8s_default"]["objective_usd"] for cell in (light, heavy)]
    assert record["geometric_means"]["agent"]["to_k8s_default"] == pytest.approx(np.sqrt(np.prod(ratios)) - 1)
    assert "CAISO, heavy load" in text
    assert "2022-04, 2022-05, 2022-06" in text
    assert "to best judge" in text

"""Stress through the commands: when it comes, what it changes, what stays, and what is said."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.billing import billed_totals
from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.evaluate import evaluate, window_metrics
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.reward import RewardSpec
from envs.windows import cut_windows, prepare_jobs
from envs.world import build_world
from pipelines import evaluate as command
from pipelines import make_trace
from pipelines.cli import compose_config, group_choices
from pipelines.stress import KINDS, Occasions, one_by_one, stress_of
from telemetry.errors import InputError

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT / ".." / "shared" / "traces")).resolve()
START = pd.Timestamp("2026-01-05", tz="UTC")
END = START + pd.Timedelta(days=6)
CLUSTER = """
level_fractions: [1.0, 0.6]
sites: [{name: west}, {name: east}]
pools:
  - {name: w, site: west, gpu_model: V100, nodes: 2, gpus_per_node: 2}
  - {name: e, site: east, gpu_model: V100, nodes: 2, gpus_per_node: 2}
"""


def jobs_table(count=150, seed=0):
    rng = np.random.default_rng(seed)
    second = np.sort(rng.integers(0, 6 * 86_400, count))
    frame = pd.DataFrame({"job_id": [f"j{i:03d}" for i in range(count)], "submit_time": START + pd.to_timedelta(second, unit="s")})
    return frame.assign(
        duration_s=rng.integers(600, 20_000, count).astype(float),
        gpus=rng.choice([1.0, 2.0], count),
        workers=1,
        workload_class="training",
        team="t",
        project="p",
    )


def grid_table(sites=("west", "east")):
    times = pd.date_range(START - pd.Timedelta(days=2), END + pd.Timedelta(days=3), freq="h")
    hour = np.arange(len(times))
    one = pd.DataFrame({"time": times, "price_usd_per_kwh": 0.1 + 0.06 * np.sin(hour / 24 * 2 * np.pi), "temperature_c": 20.0})
    one = one.assign(carbon_g_per_kwh=300.0 + 100 * np.cos(hour / 24 * 2 * np.pi), renewable_fraction=0.2)
    return pd.concat([one.assign(site=site) for site in sites], ignore_index=True)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run evaluate in a folder with jobs, grid and cluster; answer exit code, JSON (None when not written) and streams."""
    monkeypatch.chdir(tmp_path)
    jobs_table().to_parquet("jobs.parquet")
    grid_table().to_parquet("grid.parquet")
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    tables = ("jobs=jobs.parquet", "grid=grid.parquet", "cluster=cluster.yaml", "windows=2", "policies=[k8s_default,lookahead]")

    def call(*arguments, given=tables):
        (tmp_path / "out.json").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["evaluate", *given, *arguments, "out=out.json", "progress=false"])
        with pytest.raises(SystemExit) as ended:
            command.main()
        out = tmp_path / "out.json"
        return ended.value.code, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr()

    call.tables = tables
    return call


def rows(found, policy, name):
    return np.array([window[name] for window in found["policies"][policy]["windows"]])


# ---------------------------------------------------------------- when


def test_one_occasion_in_every_stretch_at_a_time_that_the_seed_draws():
    when = Occasions(at=None, every_hours=24.0, hours=6.0)
    times = when.times(START, END, (0, 0), "x")
    assert len(times) == 6
    for place, time in enumerate(times):
        begin = START + pd.Timedelta(hours=24 * place)
        assert begin <= time <= begin + pd.Timedelta(hours=18)
        assert time == time.floor("h")
    assert times == when.times(START, END, (0, 0), "x")
    assert times != when.times(START, END, (1, 0), "x") != when.times(START, END, (1, 1), "x")
    assert len({time.hour for seed in range(40) for time in when.times(START, END, (seed, 0), "x")}) == 19, "every hour that leaves room"
    assert len(when.times(START, START + pd.Timedelta(hours=6), (0, 0), "x")) == 1
    assert len(when.times(START, END - pd.Timedelta(minutes=30), (0, 0), "x")) == 6, "a little less than six stretches"
    assert len(Occasions(None, 6.0, 6.0).times(START, START + pd.Timedelta(hours=23), (0, 0), "x")) == 3, "never on top of each other"
    with pytest.raises(InputError, match=r"at most the 5\.0 h"):
        when.times(START, START + pd.Timedelta(hours=5), (0, 0), "x")


def test_a_time_of_ones_own_and_wrong_options():
    assert Occasions("2026-01-07T12:30", 1.0, 2.0).times(START, END, (0, 0), "x") == [pd.Timestamp("2026-01-07T12:30Z")]
    assert Occasions("2026-01-07T12:30+02:00", 1.0, 2.0).times(START, END, (0, 0), "x") == [pd.Timestamp("2026-01-07T10:30Z")]
    with pytest.raises(InputError, match=r"x, at"):
        Occasions("soon", 1.0, 2.0).times(START, END, (0, 0), "x")
    for wrong in ({"hours": 0.0}, {"hours": float("nan")}, {"every_hours": 3.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Occasions(**{"at": None, "every_hours": 24.0, "hours": 6.0, **wrong})
    with pytest.raises(InputError, match=r"unknown key factr"):
        stress_of({"flash_crowd": {"at": None, "every_hours": 24.0, "hours": 6.0, "factr": 2.0}})
    with pytest.raises(InputError, match=r"flash_mob.*flash_crowd"):
        stress_of({"flash_mob": {}})


def test_every_choice_of_the_group_is_a_stress_and_composes():
    assert set(group_choices("stress")) == {"none", "all", *KINDS}
    assert not stress_of(compose_config("evaluate").stress)
    every = stress_of(compose_config("evaluate", ["stress=[site_loss,flash_crowd,price_spike,heat_wave,telemetry_loss]"]).stress)
    assert list(every.specs) == list(KINDS)
    assert list(one_by_one(compose_config("evaluate", ["stress=all"]).stress)) == list(KINDS)
    assert one_by_one(compose_config("evaluate", ["stress=[price_spike,heat_wave]"]).stress) == {}
    with pytest.raises(InputError, match=r"stress=all.*pipelines\.evaluate stress=all"):
        stress_of(compose_config("replay", ["stress=all"]).stress)
    with pytest.raises(InputError, match=r"stress=\[price_spike,heat\]: no such choice; allowed: .*heat_wave"):
        compose_config("evaluate", ["stress=[price_spike,heat]"])
    with pytest.raises(InputError, match=r"stress\.price_spike\.factr"):
        compose_config("evaluate", ["stress=[price_spike,heat_wave]", "stress.price_spike.factr=2"])
    with pytest.raises(InputError, match="reward=flood: no such choice"):
        compose_config("evaluate", ["jobs=x.csv", "reward=flood"])


def test_site_loss_makes_a_table_of_outages_by_node_name():
    pools = (PoolSpec("a", "west", "V100", 2, 4), PoolSpec("b", "east", "V100", 1, 4))
    cluster = ClusterSpec("c", (SiteSpec("west"), SiteSpec("east")), pools)
    stress = stress_of({"site_loss": {"at": None, "every_hours": 48.0, "hours": 3.0, "site": None}})
    found = stress.apply(jobs_table(), None, cluster, seed=1)
    assert found.outages["node"].tolist() == ["a-0000", "a-0001"] * len(found.occasions["site_loss"])
    assert (found.outages["end"] - found.outages["begin"] == pd.Timedelta(hours=3)).all()
    assert str(found.outages["begin"].dtype) == "datetime64[ns, UTC]"


# ---------------------------------------------------------------- evaluate


def test_the_world_without_stress_says_nothing_of_it(run):
    code, found, _ = run()
    assert code == 0
    assert "stress" not in found
    again = run("stress=none")[1]
    assert again == found


def test_a_price_spike_costs_and_moves_only_who_looks_at_prices(run):
    plain, (code, found, streams) = run()[1], run("stress=price_spike", "stress.price_spike.hours=12", "seeds=2")
    assert code == 0
    assert "stress price_spike: 3 times with seed 0" in streams.out
    begins = found["stress"]["price_spike"]["begin"]
    assert set(begins) == {"0", "1"}
    assert begins["0"] != begins["1"]
    assert found["stress"]["price_spike"]["factor"] == 10.0
    assert rows(found, "k8s_default", "energy_kwh")[:2] == pytest.approx(rows(plain, "k8s_default", "energy_kwh"))
    assert (rows(found, "k8s_default", "cost_usd")[:2] > 1.2 * rows(plain, "k8s_default", "cost_usd")).all()
    assert rows(found, "k8s_default", "window_start")[:2].tolist() == rows(plain, "k8s_default", "window_start").tolist()
    assert rows(found, "lookahead", "mean_wait_s")[:2].tolist() != rows(plain, "lookahead", "mean_wait_s").tolist()


def test_a_heat_wave_takes_energy_and_can_come_with_dear_power(run):
    plain, hot, both = run()[1], run("stress=heat_wave")[1], run("stress=[heat_wave,price_spike]")[1]
    assert (rows(hot, "k8s_default", "energy_kwh") > rows(plain, "k8s_default", "energy_kwh")).all()
    assert rows(both, "k8s_default", "energy_kwh") == pytest.approx(rows(hot, "k8s_default", "energy_kwh"))
    assert (rows(both, "k8s_default", "cost_usd") > rows(hot, "k8s_default", "cost_usd")).all()
    assert list(both["stress"]) == ["price_spike", "heat_wave"]


def test_a_crowd_adds_jobs_to_the_same_windows(run):
    plain, found = run()[1], run("stress=flash_crowd", "stress.flash_crowd.every_hours=24")[1]
    assert rows(found, "k8s_default", "window_start").tolist() == rows(plain, "k8s_default", "window_start").tolist()
    assert (rows(found, "k8s_default", "jobs_submitted") > rows(plain, "k8s_default", "jobs_submitted")).all()
    assert any("jobs added by seed: 0: " in note for note in found["notes"])
    assert found["jobs_in_table"] > plain["jobs_in_table"]


def test_telemetry_loss_changes_decisions_and_never_the_tariff(run):
    plain, found = run()[1], run("stress=telemetry_loss", "stress.telemetry_loss.every_hours=24")[1]
    for name in ("energy_kwh", "cost_usd", "carbon_kg", "penalty_usd", "objective_usd", "mean_wait_s"):
        assert rows(found, "k8s_default", name) == pytest.approx(rows(plain, "k8s_default", name), rel=1e-9), "sees no price"
    assert rows(found, "lookahead", "mean_wait_s").tolist() != rows(plain, "lookahead", "mean_wait_s").tolist()
    assert any("recomputed from the event log on the true values" in note for note in found["notes"])


def test_a_lost_site_takes_its_nodes_down(run):
    plain, (code, found, _) = run()[1], run("stress=site_loss", "stress.site_loss.every_hours=24")
    assert code == 0
    assert rows(plain, "k8s_default", "down_node_hours").tolist() == [0.0] * len(rows(plain, "k8s_default", "down_node_hours"))
    assert rows(found, "k8s_default", "down_node_hours").max() > 0
    assert rows(found, "k8s_default", "mean_wait_s").tolist() != rows(plain, "k8s_default", "mean_wait_s").tolist()


def test_stress_on_a_constant_grid_on_windows_of_jobs_and_on_an_archive(run, tmp_path):
    tables = [part for part in run.tables if not part.startswith("grid=")]
    plain, found = run(given=tables)[1], run("stress=price_spike", given=tables)[1]
    assert (rows(found, "k8s_default", "cost_usd") > rows(plain, "k8s_default", "cost_usd")).all()
    by_jobs = run("stress=[telemetry_loss,flash_crowd]", "trace.length=30")[1]
    assert rows(by_jobs, "k8s_default", "jobs_submitted").tolist() == [30, 30]
    lines = [f"{i} {i * 900} -1 600 1 -1 -1 1 900 -1 1 1 1 1 1 -1 -1 -1" for i in range(1, 200)]
    (tmp_path / "log.swf").write_text("; MaxProcs: 4\n; UnixStartTime: 1767571200\n" + "\n".join(lines) + "\n")
    archive = run("stress=flash_crowd", given=("jobs=log.swf",))[1]
    assert rows(archive, "fcfs_strict", "jobs_submitted")[0] > 199


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stress=price_spike", "stress.price_spike.at=2031-01-01"), "no grid row"),
        (("stress=price_spike", "stress.price_spike.at=whenever"), "ISO 8601"),
        (("stress=price_spike", "stress.price_spike.sites=[north]"), "unknown site 'north'"),
        (("stress=price_spike", "stress.price_spike.factor=1"), "above 1"),
        (("stress=heat_wave", "stress.heat_wave.hours=1000", "stress.heat_wave.every_hours=2000"), "at most the"),
        (("stress=flash_crowd", "stress.flash_crowd.factor=many"), "factor"),
        (("stress=flood",), "flash_crowd"),
    ],
)
def test_wrong_stress_is_named(run, arguments, words):
    code, found, streams = run(*arguments)
    assert (code, found) == (2, None)
    assert words in streams.err


def test_bills_on_the_same_grid_are_the_simulators_own(tmp_path):
    pools = (PoolSpec("w", "west", "V100", 2, 2), PoolSpec("e", "east", "V100", 2, 2))
    cluster = ClusterSpec("c", (SiteSpec("west"), SiteSpec("east")), pools)
    jobs, spec = prepare_jobs(jobs_table(), cluster), RewardSpec()
    world = build_world(cluster, cut_windows(jobs, grid_table(), 48 * 3600, 2, 0))
    policy = JUDGES["lookahead"]
    totals = run_policy(world, policy, spec, event_log=True)
    metrics = window_metrics(world, totals, spec)
    again = billed_totals(world, totals, policy, spec)
    pd.testing.assert_frame_equal(window_metrics(world, again, spec), metrics, rtol=1e-9)
    for name in ("job_energy_kwh", "job_cost_usd", "job_carbon_kg", "idle_energy_kwh", "idle_cost_usd", "energy_kwh", "objective_usd"):
        assert getattr(again, name) == pytest.approx(getattr(totals, name), abs=1e-9), name
    dear = build_world(cluster, cut_windows(jobs, grid_table().assign(price_usd_per_kwh=1.0), 48 * 3600, 2, 0))
    frame = evaluate({0: world}, {"lookahead": policy}, (0,), reward=spec, billed={0: dear})
    assert frame["energy_kwh"].to_numpy() == pytest.approx(metrics["energy_kwh"].to_numpy())
    assert frame["cost_usd"].to_numpy() == pytest.approx(metrics["energy_kwh"].to_numpy())


# ---------------------------------------------------------------- make_trace


@pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not there")
def test_make_trace_adds_crowds_and_refuses_what_is_not_about_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JOULEWISE_TRACES", str(TRACES))

    def call(*arguments):
        out = f"out={tmp_path}/jobs.parquet"
        monkeypatch.setattr(sys, "argv", ["make_trace", "trace=philly", out, f"hydra.run.dir={tmp_path}/h", *arguments])
        with pytest.raises(SystemExit) as ended:
            make_trace.main()
        return ended.value.code, capsys.readouterr()

    assert call()[0] == 0
    plain = pd.read_parquet(tmp_path / "jobs.parquet")
    code, streams = call("stress=flash_crowd", "seed=4")
    assert code == 0, streams.err
    table = pd.read_parquet(tmp_path / "jobs.parquet")
    crowd = table["job_id"].str.startswith("crowd")
    pd.testing.assert_frame_equal(table[~crowd].reset_index(drop=True), plain)
    assert f"jobs added by seed: 4: {crowd.sum()}" in streams.out
    assert table["job_id"].is_unique
    code, streams = call("stress=[flash_crowd,price_spike]")
    assert code == 2
    assert "pipelines.evaluate stress=" in streams.err

"""``python -m pipelines.replay``: totals from the written files alone, the same answer as the evaluation, and bad input."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.replay.episode import tell_again
from envs.reward import RewardSpec
from envs.windows import check_grid, prepare_jobs, window_at
from envs.world import build_world
from pipelines import evaluate as evaluate_command
from pipelines import replay as command
from pipelines.cli import compose_config
from pipelines.setting import some_windows

START = pd.Timestamp("2026-01-05", tz="UTC")
CLUSTER = """
level_fractions: [1.0, 0.6]
sites: [{name: west}, {name: east, pue_base: 1.3}]
pools:
  - {name: w, site: west, gpu_model: V100, nodes: 2, gpus_per_node: 2}
  - {name: e, site: east, gpu_model: A100, nodes: 2, gpus_per_node: 2}
"""
SWF = "; MaxProcs: 4\n" + "\n".join(
    f"{i} {60 * i} -1 {300 + 40 * i} {1 + i % 4} -1 -1 {1 + i % 4} 600 -1 1 1 1 1 1 1 -1 -1" for i in range(1, 31)
)
TABLES = ("jobs=jobs.csv", "grid=grid.csv", "cluster=cluster.yaml")
NEAR = {"rel": 1e-9, "abs": 1e-9}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with jobs, grid and cluster; two jobs cannot run."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    count = 120
    jobs = pd.DataFrame({"job_id": [f"j{i:03d}" for i in range(count)]})
    seconds = np.sort(generator.integers(0, 60 * 3600, count))
    jobs["submit_time"] = [(START + pd.Timedelta(seconds=int(s))).isoformat() for s in seconds]
    jobs["duration_s"] = generator.integers(60, 14_400, count).astype(float)
    jobs["gpus"] = generator.choice([0.5, 1.0, 2.0], count)
    jobs["workers"] = generator.choice([1, 1, 1, 2], count)
    jobs["workload_class"] = generator.choice(["training", "interactive", "batch_inference"], count)
    jobs["team"], jobs["project"] = "t", "p"
    jobs.loc[7, "workers"] = 9
    jobs.to_csv("jobs.csv", index=False)
    times = pd.date_range(START - pd.Timedelta(days=2), periods=24 * 9, freq="h")
    day = np.sin(np.arange(len(times)) / 24 * 2 * np.pi)
    rows = [pd.DataFrame({"time": times, "site": site, "price_usd_per_kwh": 0.1 + k * day, "carbon_g_per_kwh": 300.0 - 900 * k * day})
            for site, k in (("west", 0.05), ("east", -0.2))]  # fmt: skip
    pd.concat(rows).to_csv("grid.csv", index=False)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "log.swf").write_text(SWF)
    return tmp_path


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Run the command into ``out``; answer exit code and streams."""

    def run(*arguments, module=command, out="out"):
        monkeypatch.setattr(sys, "argv", ["replay", *arguments, f"out={out}", "progress=false"])
        with pytest.raises(SystemExit) as ended:
            module.main()
        return ended.value.code, capsys.readouterr()

    return run


def _world(folder, length_s):
    from envs.cluster_io import load_cluster
    from pipelines.cli import CONF_DIR
    from pipelines.trials import read_grid, read_jobs

    cluster = load_cluster("cluster.yaml", CONF_DIR)
    jobs = prepare_jobs(read_jobs("jobs.csv", []), cluster)
    return build_world(cluster, [window_at(jobs, check_grid(read_grid("grid.csv", [])), START, length_s)])


@pytest.mark.parametrize("policy", ["k8s_default", "lookahead"])
def test_every_total_follows_from_the_files(call, folder, policy):
    code, streams = call(*TABLES, f"policy={policy}", "window=2026-01-05")
    assert code == 0, streams.err
    totals = run_policy(_world(folder, 7 * 86_400), JUDGES[policy], RewardSpec())
    away = folder / "elsewhere"
    away.mkdir()
    for name in ("events", "jobs", "grid", "pools", "curves", "loads"):  # these alone
        shutil.copy(folder / "out" / f"{name}.parquet", away)
    again = tell_again(away)
    sites = again.found.sites
    for name, whole in (("energy_kwh", totals.energy_kwh), ("cost_usd", totals.cost_usd), ("carbon_kg", totals.carbon_kg)):
        assert sites[name].to_numpy() == pytest.approx(whole[0], **NEAR)
        idle = getattr(totals, f"idle_{name}")[0]
        assert sites[[f"{state}_{name}" for state in ("idle", "waking", "sleeping")]].to_numpy() == pytest.approx(idle, **NEAR)
        assert again.found.jobs[name].to_numpy() == pytest.approx(getattr(totals, f"job_{name}")[0], **NEAR)
        assert again.power.groupby("site")[name].sum().reindex(sites.index).to_numpy() == pytest.approx(whole[0], **NEAR)
    assert again.found.jobs["start_s"].tolist() == totals.job_start_s[0].tolist()
    assert again.found.jobs["missed_deadline"].tolist() == totals.job_missed_deadline[0].tolist()
    metrics = evaluate(_world(folder, 7 * 86_400), {policy: JUDGES[policy]}).iloc[0]
    written = json.loads((folder / "out" / "totals.json").read_text())
    for name, value in again.totals["window"].items():
        assert written["window"][name] == pytest.approx(value, **NEAR)
        if name in metrics:
            assert value == pytest.approx(metrics[name], **NEAR)
    assert written["window"]["jobs_rejected"] == 1
    assert written["misses"]["rejected"] == {"too_large": 1}


def test_derived_tables_agree_with_the_totals(call, folder):
    call(*TABLES, "policy=easy")
    out = folder / "out"
    written = json.loads((out / "totals.json").read_text())
    tables = {name: pq.read_table(out / f"{name}.parquet").to_pandas() for name in ("outcomes", "power", "misses", "segments", "jobs")}
    kwh = written["window"]["energy_kwh"]
    assert tables["power"]["energy_kwh"].sum() == pytest.approx(kwh, **NEAR)
    assert tables["outcomes"]["energy_kwh"].sum() + sum(s["energy_kwh"] for s in written["states"].values()) == pytest.approx(kwh, **NEAR)
    violated = tables["outcomes"][["late_start", "missed_deadline"]].any(axis=1) | (tables["outcomes"]["rejected"] > 0)
    assert set(tables["misses"]["job_id"]) == set(tables["outcomes"].loc[violated, "job_id"])
    seconds = (tables["segments"]["end_s"] - tables["segments"]["begin_s"]) * (tables["jobs"]["gpu_milli"] * tables["jobs"]["workers"])[
        tables["segments"]["job"]
    ].to_numpy()
    assert seconds.sum() / 1000 / 8 / written["window"]["end_s"] == pytest.approx(written["window"]["gpu_utilization"])
    page = (out / "replay.html").read_text()
    assert "Replay: easy on" in page
    assert f"{written['window']['cost_usd']:,.2f}" in page


def test_a_window_of_the_evaluation_is_replayed_alike(call, folder):
    which = ("windows=4", "window_hours=12", "seed=5")
    code, _ = call(*TABLES, *which, "policies=[sjf]", "baseline=sjf", module=evaluate_command, out="found.json")
    assert code == 0
    rows = json.loads((folder / "found.json").read_text())["policies"]["sjf"]["windows"]
    code, _ = call(*TABLES, *which, "policy=sjf", "window=2")
    assert code == 0
    written = json.loads((folder / "out" / "totals.json").read_text())
    assert written["window_start"] == rows[2]["window_start"]
    for name in ("energy_kwh", "cost_usd", "carbon_kg", "objective_usd", "p95_wait_s", "mean_bounded_slowdown", "gpu_utilization"):
        assert written["window"][name] == pytest.approx(rows[2][name], **NEAR)


def test_one_window_of_a_world(call, folder):
    generated = _world(folder, 86_400)
    assert some_windows(generated, [0]).job_ids == generated.job_ids


def test_windows_of_time_and_what_is_left_out(call, folder):
    code, streams = call(*TABLES, "policy=easy", "window=2026-01-06T06:30", "window_hours=10")
    assert code == 0
    assert "jobs submitted outside the window left out" in streams.out
    written = json.loads((folder / "out" / "totals.json").read_text())
    assert written["window_start"] == "2026-01-06T06:00:00+00:00"
    jobs = pd.read_csv("jobs.csv")
    times = pd.to_datetime(jobs["submit_time"], utc=True, format="ISO8601")
    inside = times.between(pd.Timestamp("2026-01-06T06:00Z"), pd.Timestamp("2026-01-06T15:59:59Z"))
    assert written["window"]["jobs_submitted"] == inside.sum()


def test_archives_run_their_queue(call, folder):
    code, streams = call("jobs=log.swf", "queue.order=sjf", "queue.discipline=easy", "trace.length=10", "trace.start=5")
    assert code == 0, streams.err
    written = json.loads((folder / "out" / "totals.json").read_text())
    assert (written["policy"], written["window"]["jobs_submitted"], written["window"]["gpus"]) == ("sjf_easy", 10, 4)
    code, streams = call("jobs=log.swf", "policy=fifo", "cluster=cluster.yaml")
    assert code == 0, streams.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*TABLES,), ("policy", "lookahead", "champion")),
        ((*TABLES, "policy=best"), ("unknown policy 'best'", "k8s_default")),
        (("policy=easy",), ("no jobs given",)),
        ((*TABLES, "policy=easy", "window=soon"), ("window=soon", "2017-10-09T00:00")),
        ((*TABLES, "policy=easy", "window=9", "windows=3"), ("window=9 of 3 windows", "0 to 2")),
        ((*TABLES, "policy=easy", "windows=3"), ("window=None of 3 windows",)),
        ((*TABLES, "policy=easy", "window=2027-01-01"), ("2027", "grid")),
        ((*TABLES, "policy=easy", "window=2026-01-10"), ("no job", "jobs from 2026-01-05")),
        ((*TABLES, "policy=easy", "queue.order=f1"), ("queue.* given",)),
        ((*TABLES, "policy=champion", "registry.tracking_uri=sqlite:///none.db"), ("no model registry", "pipelines.train")),
        (("jobs=nowhere.csv", "policy=easy"), ("nowhere.csv",)),
        ((*TABLES, "policy=easy", "polcy=easy"), ("polcy", "policy")),
    ],
)
def test_bad_input_is_one_clear_line(call, folder, arguments, words):
    code, streams = call(*arguments)
    assert code == 2
    assert streams.err.startswith("error: ")
    assert len(streams.err.strip().splitlines()) == 1
    for word in words:
        assert word in streams.err
    assert not (folder / "out").exists()


def test_folders_of_others_are_refused_and_failures_leave_the_old_replay(call, folder, monkeypatch):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("x")
    code, streams = call(*TABLES, "policy=easy", out="mine")
    assert code == 2
    assert "was not written by a replay" in streams.err
    assert call(*TABLES, "policy=easy", "window_hours=6")[0] == 0
    before = (folder / "out" / "totals.json").read_text()
    monkeypatch.setattr(command, "page_of", lambda episode: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.write_replay(tell_again(folder / "out"), folder / "out")
    assert (folder / "out" / "totals.json").read_text() == before
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".out")) == []


def test_defaults_are_those_of_the_evaluation():
    ours, theirs = compose_config("replay"), compose_config("evaluate")
    compares = {
        "policies",
        "judges",
        "baseline",
        "seeds",
        "against",
        "bound",
        "bound_windows",
        "pareto",
        "ablations",
        "ablation_policy",
        "scratch",
        "shield",
    }
    assert set(theirs) - set(ours) == compares
    for key in set(ours) & set(theirs) - {"out"}:
        assert ours[key] == theirs[key]

"""``python -m pipelines.evaluate``: the fixed contract, archives, and bad input."""

import json
import math
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest

from envs.evaluate import CONTRACT_METRICS
from pipelines import evaluate as command

START = pd.Timestamp("2026-01-05", tz="UTC")
CLUSTER = """
level_fractions: [1.0, 0.6]
sites: [{name: west}]
pools: [{name: w, site: west, gpu_model: V100, nodes: 2, gpus_per_node: 2}]
"""


def jobs_table(count=60, hours=60, seed=0):
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "job_id": [f"j{i}" for i in range(count)],
            "submit_time": (START + pd.to_timedelta(np.sort(generator.integers(0, hours * 3600, count)), unit="s")).map(
                lambda t: t.isoformat()
            ),
            "duration_s": generator.integers(60, 7200, count).astype(float),
            "gpus": generator.choice([0.5, 1.0, 2.0], count),
            "workers": 1,
            "workload_class": generator.choice(["training", "interactive", "batch_inference"], count),
            "team": "t",
            "project": "p",
        }
    )


def grid_table(hours=24 * 12, price=0.1):
    times = pd.date_range(START - pd.Timedelta(days=2), periods=hours, freq="h")
    values = price + 0.05 * np.sin(np.arange(hours) / 24 * 2 * np.pi)
    return pd.DataFrame({"time": times, "site": "west", "price_usd_per_kwh": values, "carbon_g_per_kwh": 300.0})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with jobs.csv, grid.csv and cluster.yaml."""
    monkeypatch.chdir(tmp_path)
    jobs_table().to_csv("jobs.csv", index=False)
    grid_table().to_csv("grid.csv", index=False)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    return tmp_path


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Run the command; answer exit code, parsed JSON (None when not written) and the two streams."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "out=out.json", "progress=false"])
        with pytest.raises(SystemExit) as ended:
            command.main()
        streams = capsys.readouterr()
        out = folder / "out.json"
        return ended.value.code, json.loads(out.read_text()) if out.exists() else None, streams

    return run


TABLES = ("jobs=jobs.csv", "grid=grid.csv", "cluster=cluster.yaml")


def test_contract(call):
    code, found, streams = call(*TABLES, "policies=[k8s_default,easy,lookahead]", "windows=3", "seeds=2", "window_hours=24")
    assert code == 0
    assert list(found["policies"]) == ["k8s_default", "easy", "lookahead"]
    for policy in found["policies"].values():
        assert len(policy["windows"]) == 6
        for row in policy["windows"]:
            assert set(CONTRACT_METRICS) <= set(row)
            assert row["jobs_completed"] + row["jobs_rejected"] == row["jobs_submitted"]
    same = [[(r["window"], r["seed"], r["window_start"], r["jobs_submitted"]) for r in p["windows"]] for p in found["policies"].values()]
    assert same[0] == same[1] == same[2]
    assert len({row[2] for row in same[0]}) > 3, "seeds move the windows"
    for name in ("easy", "lookahead"):
        cost = found["paired_difference"][name]["cost_usd"]
        assert cost["baseline"] == "k8s_default"
        assert cost["low"] <= cost["mean"] <= cost["high"] < 0
        values = [np.mean([r["cost_usd"] for r in found["policies"][p]["windows"]]) for p in (name, "k8s_default")]
        assert cost["mean"] == pytest.approx(values[0] - values[1])
        assert found["summary"][name]["cost_usd"] == pytest.approx(values[0])
    assert "paired difference to k8s_default" in streams.out


def test_networks_and_own_curves_reach_the_simulator(call, folder):
    """A V100 pool that is said to be twice as fast and to draw the same; a job that names an unknown network is refused."""
    rows = [
        f"V100,{kind},{level},{2 * level},{300 * level}\n" for kind in ("training", "interactive", "batch_inference") for level in (1, 0.5)
    ]
    (folder / "mine.csv").write_text("gpu_model,kind,level_fraction,speed,power_w\n" + "".join(rows))
    asked = (*TABLES, "policies=[k8s_default]", "windows=1", "trace.start=0", "trace.length=60")
    _, plain, _ = call(*asked)
    jobs_table().assign(workload="a3c").to_csv("jobs.csv", index=False)
    _, named, _ = call(*asked)
    assert named["summary"] == plain["summary"], "a V100 is the reference of both"
    jobs_table().to_csv("jobs.csv", index=False)
    code, fast, _ = call(*asked, "cluster.curves=mine.csv")
    assert code == 0
    assert fast["summary"]["k8s_default"]["gpu_utilization"] < 0.7 * plain["summary"]["k8s_default"]["gpu_utilization"]
    jobs_table().assign(workload="Resnet50").to_csv("jobs.csv", index=False)
    code, _, streams = call(*asked)
    assert code == 2
    assert "unknown workload 'Resnet50'; allowed: ResNet-50 (batch size 16)" in streams.err


def test_parquet_tables_give_the_same_answer(call, folder):
    _, from_csv, _ = call(*TABLES, "policies=[easy]", "windows=2")
    jobs = jobs_table()
    jobs.assign(submit_time=pd.to_datetime(jobs["submit_time"])).to_parquet("jobs.parquet")
    grid_table().to_parquet("grid.parquet")
    _, from_parquet, _ = call("jobs=jobs.parquet", "grid=grid.parquet", "cluster=cluster.yaml", "policies=[easy]", "windows=2")
    for name in CONTRACT_METRICS:
        assert from_parquet["summary"]["easy"][name] == pytest.approx(from_csv["summary"]["easy"][name], rel=1e-12)
    assert list(from_csv["policies"]) == ["k8s_default", "easy"], "the baseline joins when it is not named"


def test_without_a_grid_it_is_constant_and_said(call):
    code, found, _streams = call(
        "jobs=jobs.csv", "cluster=cluster.yaml", "policies=[k8s_default]", "windows=1", "grid.price_usd_per_kwh=0.5"
    )
    assert code == 0
    assert any("constant 0.5 USD/kWh" in note for note in found["notes"])
    row = found["policies"]["k8s_default"]["windows"][0]
    assert row["cost_usd"] == pytest.approx(0.5 * row["energy_kwh"], rel=1e-9)


def test_negative_prices_are_income(call):
    grid_table(price=-0.2).to_csv("grid.csv", index=False)
    code, found, _ = call(*TABLES, "policies=[k8s_default]", "windows=1")
    assert code == 0
    assert found["summary"]["k8s_default"]["cost_usd"] < 0


def test_short_price_gap_is_repaired_and_told(call):
    grid_table().drop(index=[60, 61]).to_csv("grid.csv", index=False)
    code, found, _ = call(*TABLES, "policies=[k8s_default]", "windows=1")
    assert code == 0
    assert any("2 x scrape_gap_samples" in note for note in found["notes"])


def test_job_larger_than_the_cluster_is_rejected_and_counted(call):
    jobs = jobs_table()
    jobs.loc[7, ["gpus", "workers"]] = [8.0, 4]
    jobs.to_csv("jobs.csv", index=False)
    code, found, _ = call(*TABLES, "policies=[k8s_default]", "windows=1", "trace.start=0", "trace.length=60")
    assert code == 0
    assert found["summary"]["k8s_default"]["jobs_rejected"] == 1
    assert found["summary"]["k8s_default"]["jobs_completed"] == 59


BAD = {
    "unknown policy": (("policies=[k8s_default,best]",), "unknown policy 'best'"),
    "unknown cluster": (("cluster=nowhere",), "no cluster 'nowhere'"),
    "no windows": (("windows=0",), "windows=0"),
    "seeds no number": (("seeds=many",), "seeds=many"),
    "unknown key": (("polices=[easy]",), "no such key"),
    "no file": (("jobs=none.csv",), "none.csv"),
    "too many windows": (("windows=500", "window_hours=24"), "500 distinct windows"),
    "queue without archive": (("queue.order=sjf",), "queue"),
    "no list": (("policies=easy",), "policies=easy"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_arguments_give_one_line_and_exit_2(call, name):
    arguments, words = BAD[name]
    code, found, streams = call(*TABLES, *arguments)
    assert code == 2
    assert found is None
    assert words in streams.err
    assert len(streams.err.strip().splitlines()) == 1


def _rewrite(name, frame):
    frame.to_parquet(name) if name.endswith(".parquet") else frame.to_csv(name, index=False)


BAD_TABLES = {
    "zero jobs": ("jobs.csv", lambda: jobs_table().iloc[:0], "no rows"),
    "missing column": ("jobs.csv", lambda: jobs_table().drop(columns="duration_s"), "missing column duration_s"),
    "negative duration": ("jobs.csv", lambda: jobs_table().assign(duration_s=-5.0), "duration_s"),
    "grid without price": ("grid.csv", lambda: grid_table().drop(columns="price_usd_per_kwh"), "missing column price_usd_per_kwh"),
    "NaN price": ("grid.parquet", lambda: grid_table().assign(price_usd_per_kwh=np.nan), "price_usd_per_kwh nan"),
    "long price gap": ("grid.csv", lambda: grid_table().drop(index=range(60, 120)), "gap of 60 h"),
    "another site": ("grid.csv", lambda: grid_table().assign(site="moon"), "no rows of site 'west'"),
    "another year": ("grid.csv", lambda: grid_table().assign(time=lambda f: f["time"] + pd.Timedelta(days=365)), "do not meet"),
}


@pytest.mark.parametrize("name", list(BAD_TABLES))
def test_bad_tables_give_one_line_and_exit_2(call, name):
    file, make, words = BAD_TABLES[name]
    _rewrite(file, make())
    kind = file.partition(".")[0]
    code, found, streams = call(*[a for a in TABLES if not a.startswith(kind)], f"{kind}={file}", "policies=[k8s_default]", "windows=1")
    assert code == 2
    assert found is None
    assert words in streams.err
    assert len(streams.err.strip().splitlines()) == 1


def swf(rows, header="; MaxProcs: 10\n; UnixStartTime: 1000000000\n"):
    """Rows of (submit, run, processors, requested time)."""
    lines = [f"{i + 1} {s} -1 {r} {p} -1 -1 {p} {q} -1 1 1 1 1 1 1 -1 -1" for i, (s, r, p, q) in enumerate(rows)]
    return header + "\n".join(lines) + "\n"


# The textbook example of backfilling; waits by hand in tests/envs/test_reference_simulator.py.
TEXTBOOK = [(0, 100, 6, 100), (1, 50, 8, 50), (2, 90, 4, 90), (3, 500, 2, 500), (4, 500, 2, -1)]
WAITS = {"easy": [0, 99, 0, 89, 146], "strict": [0, 99, 148, 147, 146], "free": [0, 591, 0, 89, 88]}


@pytest.mark.parametrize("discipline", list(WAITS))
def test_archive_runs_its_own_queue_order(call, folder, discipline):
    (folder / "log.swf").write_text(swf(TEXTBOOK))
    code, found, _ = call("jobs=log.swf", f"queue.discipline={discipline}", "queue.order=fcfs")
    assert code == 0
    assert found["gpus"] == 10
    (row,) = found["policies"][f"fcfs_{discipline}"]["windows"]
    waits, runs = np.array(WAITS[discipline]), np.array([r for _, r, _, _ in TEXTBOOK])
    assert row["mean_wait_s"] == pytest.approx(waits.mean())
    assert row["mean_bounded_slowdown"] == pytest.approx(np.maximum(1, (waits + runs) / np.maximum(runs, 10)).mean())
    ends = np.array([s for s, *_ in TEXTBOOK]) + waits + runs
    busy = sum(r * p for _, r, p, _ in TEXTBOOK)
    assert row["gpu_utilization"] == pytest.approx(busy / (10 * ends.max()))
    assert found["paired_difference"] == {}


def test_archive_windows_begin_empty_at_a_job(call, folder):
    (folder / "log.swf").write_text(swf([(i * 10, 1000, 10, 1000) for i in range(6)]))
    _, found, _ = call("jobs=log.swf", "trace.start=2", "trace.length=3")
    assert found["summary"]["fcfs_strict"]["jobs_completed"] == 3
    assert found["summary"]["fcfs_strict"]["mean_wait_s"] == pytest.approx((0 + 990 + 1980) / 3)


def test_archive_options(call, folder):
    rows = [(0, 100, 10, 100), (1, 100, 10, 100), (1, 10, 10, 10)]
    (folder / "log.swf").write_text(swf(rows, header="; Version: 2.2\n"))
    code, _, streams = call("jobs=log.swf")
    assert code == 2
    assert "cluster.processors=N" in streams.err
    _, fcfs, _ = call("jobs=log.swf", "cluster.processors=10")
    _, sjf, _ = call("jobs=log.swf", "cluster.processors=10", "queue.order=sjf", "trace.bounded_slowdown_threshold_s=1000")
    _, f1, _ = call("jobs=log.swf", "cluster.processors=10", "queue.order=f1")
    assert fcfs["summary"]["fcfs_strict"]["mean_wait_s"] == pytest.approx((0 + 99 + 199) / 3)
    assert sjf["summary"]["sjf_strict"]["mean_wait_s"] == pytest.approx((0 + 109 + 99) / 3)
    assert sjf["summary"]["sjf_strict"]["mean_bounded_slowdown"] == 1.0
    assert f1["summary"]["f1_strict"]["mean_wait_s"] == pytest.approx((0 + 109 + 99) / 3)
    code, _, streams = call("jobs=log.swf", "cluster.processors=10", "queue.order=longest")
    assert code == 2
    assert "fcfs, sjf, f1, wfp3, unicep, priority" in streams.err


def list_schedule(jobs, processors, order, discipline):
    """Start times by a scheduler of its own, forty lines, for rigid jobs (submit, run, processors, estimate) on ``processors``."""
    free, running, queue, arrived, start = processors, [], [], 0, [0] * len(jobs)
    while arrived < len(jobs) or running:
        t = min([end for end, _ in running] + ([jobs[arrived][0]] if arrived < len(jobs) else []))
        for end, j in list(running):
            if end == t:
                running.remove((end, j))
                free += jobs[j][2]
        while arrived < len(jobs) and jobs[arrived][0] == t:
            queue.append(arrived)
            arrived += 1
        queue.sort(key=partial(order, t))
        reservation, left = None, []
        for place, j in enumerate(queue):
            _, run, need, estimate = jobs[j]
            in_time = reservation is None or t + estimate <= reservation[0]
            if need <= free and (in_time or need <= reservation[1]):
                if not in_time:
                    reservation[1] -= need
                free, start[j] = free - need, t
                running.append((t + run, j))
                continue
            left.append(j)
            if discipline == "strict":
                left += queue[place + 1 :]
                break
            if discipline == "easy" and reservation is None:
                ends = sorted((max(start[k] + jobs[k][3], t + 1), jobs[k][2]) for _, k in running)
                shadow = next(s for s in [t, *[end for end, _ in ends]] if free + sum(n for end, n in ends if end <= s) >= need)
                reservation = [shadow, free + sum(n for end, n in ends if end <= shadow) - need]
        queue = left
    return np.array(start)


@pytest.mark.parametrize("discipline", ["strict", "easy", "free"])
@pytest.mark.parametrize("order", ["fcfs", "sjf", "f1", "wfp3", "unicep"])
def test_archive_agrees_with_a_list_scheduler(call, folder, discipline, order):
    generator = np.random.default_rng(3)
    submit = np.cumsum(generator.exponential(120, 250)).astype(int)
    run = np.clip(generator.lognormal(6, 1.5, 250), 1, 20000).astype(int)
    need = 2 ** generator.integers(0, 6, 250)
    asked = (np.ceil(run * generator.uniform(0.7, 4, 250) / 300) * 300).astype(int)
    jobs = list(zip((submit - submit[0]).tolist(), run.tolist(), need.tolist(), asked.tolist(), strict=True))
    (folder / "log.swf").write_text(swf(jobs, header="; MaxProcs: 48\n"))
    key = {
        "fcfs": lambda t, j: j,
        "sjf": lambda t, j: (jobs[j][3], jobs[j][0], j),
        "f1": lambda t, j: (math.log10(jobs[j][3]) * jobs[j][2] + 870 * math.log10(max(1, jobs[j][0])), j),
        "wfp3": lambda t, j: (-(((t - jobs[j][0]) / jobs[j][3]) ** 3) * jobs[j][2], j),
        "unicep": lambda t, j: (-(t - jobs[j][0]) / (math.log2(max(2, jobs[j][2])) * jobs[j][3]), j),
    }[order]
    waits = list_schedule(jobs, 48, key, discipline) - (submit - submit[0])
    _, found, _ = call("jobs=log.swf", f"queue.discipline={discipline}", f"queue.order={order}")
    means = found["summary"][f"{order}_{discipline}"]
    assert means["mean_wait_s"] == pytest.approx(waits.mean(), rel=1e-12)
    assert means["p95_wait_s"] == pytest.approx(np.percentile(waits, 95), rel=1e-12)
    assert means["mean_bounded_slowdown"] == pytest.approx(np.maximum(1, (waits + run) / np.maximum(run, 10)).mean(), rel=1e-12)


def test_outages_of_a_file_and_of_the_cluster(call, folder):
    begin = (START + pd.Timedelta(hours=10)).tz_localize(None).isoformat()
    end = (START + pd.Timedelta(hours=20)).isoformat()
    (folder / "out.csv").write_text(f"node,begin,end\nw-0000,{begin},{end}\nw-0001,{end},2026-01-06T05:00:00Z\n")
    more = ("policies=[k8s_default]", "windows=1", "window_hours=48", "trace.start=0", "trace.length=60")
    code, found, streams = call(*TABLES, *more, "outages=out.csv")
    assert code == 0
    assert found["policies"]["k8s_default"]["windows"][0]["down_node_hours"] == pytest.approx(10 + 9)
    assert "outages: 2 in or after the windows of all seeds (out.csv)" in streams.out
    (folder / "cluster.yaml").write_text(
        CLUSTER.replace("gpus_per_node: 2", "gpus_per_node: 2, mtbf_hours: 100")
        + f"maintenance: [{{pool: w, begin: '{begin}', end: '{end}', nodes: 2}}]\n"
    )
    code, found, streams = call(*TABLES, *more)
    assert code == 0
    assert found["policies"]["k8s_default"]["windows"][0]["down_node_hours"] >= 20
    assert "(1 pools with failures, maintenance)" in streams.out


def test_wrong_outages_name_file_and_row(call, folder):
    (folder / "out.csv").write_text("node,begin,end\nw-0009,2026-01-05,2026-01-06\n")
    code, _, streams = call(*TABLES, "outages=out.csv")
    assert code == 2
    assert "out.csv: unknown node 'w-0009', row 0" in streams.err
    code, _, streams = call(*TABLES, "outages=none.csv")
    assert code == 2
    assert "none.csv: no such file" in streams.err


def test_a_policy_behind_the_shield_is_compared_with_itself(call, folder):
    (folder / "shield.yaml").write_text(
        "deadline_margin_s: 1800\nclass_floor_level: {training: 1.0, batch_inference: 1.0}\nminimum_warm_nodes: {w: 1}\n"
    )
    names = "policies=[lookahead,shielded:lookahead,shielded:k8s_default]"
    code, answer, (out, _) = call(*TABLES, names, "shield=shield.yaml", "windows=2")
    assert code == 0
    assert set(answer["shield"]) == {"shielded:lookahead", "shielded:k8s_default"}
    counts = answer["shield"]["shielded:lookahead"]
    assert counts["overruled.class_floor"] > 0
    assert counts["decisions"] > counts["asked_again"] > 0
    assert "shielded:lookahead: asked_again" in out
    assert any("stay awake: {'w': 1}" in note for note in answer["notes"])
    bare, guarded = (answer["summary"][name] for name in ("lookahead", "shielded:lookahead"))
    assert bare["objective_usd"] != guarded["objective_usd"]
    assert guarded["jobs_completed"] == bare["jobs_completed"]


def test_unusable_shields_are_refused(call, folder):
    (folder / "shield.yaml").write_text("minimum_warm_nodes: {nowhere: 1}\n")
    arguments = ("jobs=jobs.csv", "grid=grid.csv", "cluster=cluster.yaml", "shield=shield.yaml", "windows=1")
    for policies in ("policies=[shielded:lookahead]", "policies=[shielded:nobody]"):
        code, answer, (_, err) = call(*arguments, policies)
        assert (code, answer) == (2, None)
        assert "nowhere" in err or "unknown policy 'nobody'" in err

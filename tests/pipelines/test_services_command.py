"""``services=`` of ``python -m pipelines.evaluate``: replicas join the jobs, figures of requests are printed and written."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.service_report import SERVICE_METRICS
from pipelines import evaluate as command

START = pd.Timestamp("2026-01-05", tz="UTC")
TRACES = Path(os.environ.get("JOULEWISE_TRACES", Path(__file__).parents[2] / ".." / "shared" / "traces")).resolve()
CLUSTER = """
level_fractions: [1.0, 0.6]
sites: [{name: west}]
pools: [{name: w, site: west, gpu_model: V100, nodes: 3, gpus_per_node: 4}]
"""
SERVICES = """
rates: {table: rates.csv, repeat: true}
services:
  chat: {tokens_per_request: 200, tokens_per_s: 100, objective_s: 9, warm_replicas: 1, max_replicas: 6, scale_down_delay_s: 1200}
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in a folder with jobs, a cluster and services; answer exit code, parsed JSON and the two streams."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    submit = START + pd.to_timedelta(np.sort(rng.integers(0, 48 * 3600, 40)), unit="s")
    jobs = pd.DataFrame({"job_id": [f"j{i}" for i in range(40)], "submit_time": submit.map(lambda t: t.isoformat())})
    jobs.assign(
        duration_s=rng.integers(600, 9000, 40).astype(float), gpus=1.0, workers=1, workload_class="training", team="t", project="p"
    ).to_csv("jobs.csv", index=False)
    times = [(START + pd.Timedelta(minutes=10 * i)).isoformat() for i in range(144)]
    rate = 1 + np.sin(np.arange(144) / 144 * 2 * np.pi)
    pd.DataFrame({"time": times, "service": "chat", "requests_per_s": rate}).to_csv("rates.csv", index=False)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "services.yaml").write_text(SERVICES)

    def run(*arguments):
        given = ("jobs=jobs.csv", "cluster=cluster.yaml", "services=services.yaml", "out=out.json", "progress=false")
        monkeypatch.setattr(sys, "argv", ["evaluate", *given, *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        out = tmp_path / "out.json"
        return ended.value.code, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr()

    return run


def test_services_are_told_by_policy_and_window(call):
    code, found, streams = call("policies=[k8s_default,greedy_cost]", "windows=2", "window_hours=12", "seeds=2")
    assert code == 0
    assert list(found["services"]) == ["chat"]
    assert list(found["services"]["chat"]) == ["k8s_default", "greedy_cost"]
    for policy in found["services"]["chat"].values():
        assert [(row["window"], row["seed"]) for row in policy["windows"]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
        assert set(SERVICE_METRICS) <= set(policy["mean"])
        assert policy["mean"]["leases_rejected"] == 0
        assert 2 < policy["mean"]["mean_response_s"] < 9
        assert 0 <= policy["mean"]["beyond_share"] < 0.1
        assert policy["mean"]["energy_kwh_per_1000_requests"] > 0
    same = [[row["requests"] for row in policy["windows"]] for policy in found["services"]["chat"].values()]
    assert same[0] == pytest.approx(same[1], rel=1e-12)
    assert "service chat, mean over windows and seeds" in streams.out
    assert "energy_kwh_per_1000_requests" in streams.out
    ours = found["policies"]["k8s_default"]["windows"][0]
    assert ours["jobs_completed"] + ours["jobs_rejected"] + ours["jobs_withdrawn"] == ours["jobs_submitted"]


def test_services_beside_an_archive_and_under_outages(call, tmp_path):
    (tmp_path / "out.csv").write_text("node,begin,end\nw-0000,2026-01-05T06:00:00,2026-01-05T18:00:00\n")
    code, found, _ = call("policies=[k8s_default]", "windows=1", "trace.start=0", "trace.length=40", "outages=out.csv")
    assert code == 0
    chat = found["services"]["chat"]["k8s_default"]["mean"]
    assert chat["interruptions"] > 0
    lines = [f"{i + 1} {i * 600} 0 3000 2 -1 -1 2 4000 -1 1 1 1 1 1 -1 -1 -1" for i in range(30)]
    (tmp_path / "log.swf").write_text("; MaxProcs: 16\n; UnixStartTime: 1767571200\n" + "\n".join(lines) + "\n")
    code, found, streams = call("jobs=log.swf", "cluster.processors=null", "cluster.source=null")
    assert code == 0, streams.err
    assert found["services"]["chat"]["fcfs_strict"]["mean"]["requests"] > 0


def test_replicas_that_can_run_nowhere_are_told(call, tmp_path):
    (tmp_path / "services.yaml").write_text(SERVICES.replace("objective_s: 9", "objective_s: 9, planned_speed: 1.2"))
    code, found, streams = call("policies=[k8s_default]", "windows=1", "window_hours=12")
    assert code == 0
    mean = found["services"]["chat"]["k8s_default"]["mean"]
    assert mean["leases_rejected"] == mean["leases"] > 0
    assert mean["shed_share"] == 1
    assert mean["mean_response_s"] is None
    assert f"note: service chat: {mean['leases']:.0f} leases can run nowhere (too_slow)" in streams.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SERVICES.replace("chat:", "talk:"), "no series 'talk'"),
        (SERVICES.replace("objective_s: 9", "objective_s: 9, replicas: 3"), "service 'chat': unknown key replicas"),
        (SERVICES.replace("objective_s: 9, ", ""), "objective_s"),
        (SERVICES.replace("repeat: true", "repeat: false"), "allowed: within the series"),
        (SERVICES.replace("rates.csv", "none.csv"), "none.csv: no such file"),
        ("rates: rates.csv\n", "keys rates; allowed: rates and services"),
        (
            "rates: {trace: wikipedia, start: 2026-01-05}\nservices: {chat: {objective_s: 9, mean_service_s: 1}}",
            "no request trace 'wikipedia'",
        ),
        ("rates: {trace: mooncake}\nservices: {chat: {objective_s: 9, mean_service_s: 1}}", "trace and start at least"),
        ("rates: [", "not YAML"),
    ],
)
def test_wrong_files_say_what_is_wrong(call, tmp_path, text, message):
    (tmp_path / "services.yaml").write_text(text)
    code, _, streams = call("policies=[k8s_default]", "windows=2", "window_hours=12", "seeds=2")
    assert code == 2
    assert message in streams.err


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no traces at {TRACES}")
def test_real_request_traces(call, tmp_path):
    servegen = "rates: {trace: servegen_mm_image, start: 2026-01-05, repeat: true}\n"
    (tmp_path / "services.yaml").write_text(
        servegen + "services: {images: {series: total, rate_factor: 0.2, mean_service_s: 1.5, objective_s: 8, max_replicas: 8}}"
    )
    code, found, streams = call("policies=[k8s_default]", "windows=1", "window_hours=24", f"traces={TRACES}")
    assert code == 0, streams.err
    images = found["services"]["images"]["k8s_default"]["mean"]
    assert images["requests"] > 100_000
    assert images["shed_share"] < 0.05
    azure = "rates: {trace: azure_llm_2023, start: 2026-01-05T12:00:00, repeat: true}\n"
    (tmp_path / "services.yaml").write_text(
        f"{azure}services:\n"
        "  code: {tokens_per_request: 28, tokens_per_s: 50, objective_s: 3}\n"
        "  conv: {tokens_per_request: 211, tokens_per_s: 50, objective_s: 20}\n"
    )
    code, found, streams = call("policies=[k8s_default]", "windows=1", "window_hours=3", f"traces={TRACES}")
    assert code == 0, streams.err
    assert set(found["services"]) == {"code", "conv"}

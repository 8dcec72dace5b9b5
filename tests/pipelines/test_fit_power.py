"""``python -m pipelines.fit_power``: from a small lake to a curve table that the simulator takes; refusals are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.power.curves import read_curves
from pipelines.cli import compose_config
from pipelines.fit_power import config_of, fit_power, summary
from telemetry.errors import InputError
from telemetry.lake import Lake, SourceTables
from telemetry.quality import QualityReport
from telemetry.schema import empty

REPOSITORY = Path(__file__).resolve().parents[2]
NODES = {"n1": ("east", "p1", "V100"), "n2": ("east", "p2", "A40"), "n3": ("east", "p3", "T4")}


def sample_rows(metric, values, node, device, pod=""):
    site, pool, _ = NODES[node]
    rows = pd.DataFrame({"time": pd.date_range("2026-01-05", periods=len(values), freq="60s", tz="UTC"), "value": values})
    text = {"metric": metric, "unit": "W", "site": site, "pool": pool, "node": node, "device": device, "pod_uid": pod, "source": "t"}
    for name in empty("samples").columns:
        if name not in rows:
            rows[name] = text.get(name, "")
    return rows[list(empty("samples").columns)].astype({"time": "datetime64[ns, UTC]"})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A lake with two GPUs of a V100 node, few readings of an A40, watts alone of a T4; its inventory."""
    folder = tmp_path_factory.mktemp("power")
    rng = np.random.default_rng(0)
    parts = []
    total = np.zeros(600)
    for device in ("gpu0", "gpu1"):
        u = np.repeat(rng.uniform(0, 1, 60), 10)
        u[np.repeat(rng.random(60) < 0.25, 10)] = 0.0
        watts = (31.0 + 190.0 * u) * (1 + rng.normal(0, 0.02, 600))
        total += watts
        parts += [sample_rows("hw.power", watts, "n1", device, "job-1-abcde"), sample_rows("hw.gpu.utilization", u, "n1", device)]
    parts.append(sample_rows("hw.power", total + 205.0, "n1", ""))
    parts += [sample_rows("hw.power", [100.0] * 12, "n2", "gpu0"), sample_rows("hw.gpu.utilization", [0.5] * 12, "n2", "gpu0")]
    parts.append(sample_rows("hw.power", [30.0] * 5, "n3", "gpu0"))
    jobs = empty("jobs")
    jobs.loc[0, ["job_id", "workload_class", "pool"]] = ["job-1", "training", "p1"]
    jobs["submit_time"] = pd.Series([pd.Timestamp("2026-01-05", tz="UTC")]).astype("datetime64[ns, UTC]")
    jobs[["gpus", "workers", "duration_s"]] = [1.0, 1.0, 36_000.0]
    jobs = jobs.astype({name: dtype for name, dtype in empty("jobs").dtypes.items() if str(dtype) != "object"})
    tables = {"samples": pd.concat(parts, ignore_index=True), "jobs": jobs}
    Lake(folder / "lake").ingest(SourceTables("t", "0" * 64, tables, QualityReport()))
    nodes = {name: {"site": site, "pool": pool, "gpu_model": model, "gpus": 2} for name, (site, pool, model) in NODES.items()}
    (folder / "nodes.json").write_text(json.dumps({"nodes": nodes}))
    return folder


def config(place, *overrides):
    return config_of(compose_config("fit_power", [f"lake.root={place}/lake", f"inventory={place}/nodes.json", *overrides]))


def test_the_planted_model_is_fitted_and_the_others_are_refused_by_name(place):
    fits = fit_power(config(place))
    assert set(fits.devices) == {"V100"}
    fit = fits.devices["V100"]
    assert float(fit.watts(0.7, kind="training")) == pytest.approx(31.0 + 0.7 * 190.0, rel=0.02)
    assert fits.nodes["p1"].node_idle_w == pytest.approx(205.0, rel=0.02)
    assert "12 device minutes in use, 60 needed: 48 more" in fits.refused["A40"]
    assert "no reading has both" in fits.refused["T4"]
    told = summary(fits)
    assert "refused: A40" in told
    assert "5 readings, no utilisation of the device" in told


def test_end_to_end_the_written_table_is_taken_by_the_simulator(place, evaluation):
    out = place / "out"
    run = subprocess.run(
        [sys.executable, "-m", "pipelines.fit_power", f"lake.root={place}/lake", f"inventory={place}/nodes.json", f"out={out}"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 1, run.stderr  # two models are refused
    assert (out / "power_V100.png").stat().st_size > 10_000
    report = json.loads((out / "report.json").read_text())
    assert report["devices"]["V100"]["idle_w"] == pytest.approx(31.0, rel=0.02)
    assert report["refused"].keys() == {"A40", "T4"}
    points = read_curves(out / "curves.csv")
    assert {point.gpu_model for point in points} == {"V100"}
    times = pd.date_range("2026-01-05", periods=4, freq="6h", tz="UTC")
    jobs = pd.DataFrame(
        {"job_id": list("abcd"), "submit_time": times, "duration_s": 3600.0, "gpus": 1.0, "workers": 1, "workload_class": "training"}
    )
    jobs[["team", "project"]] = "t"
    hours = pd.date_range("2026-01-04", periods=96, freq="h", tz="UTC")
    grid = pd.DataFrame({"time": hours, "site": "s", "price_usd_per_kwh": 0.1, "carbon_g_per_kwh": 400.0})
    grid[["renewable_fraction", "temperature_c"]] = [0.2, 15.0]
    cluster = "name: one\nsites: [{name: s}]\npools: [{name: p, site: s, gpu_model: V100, nodes: 1, gpus_per_node: 2, gpu_idle_w: 31.0}]\n"
    call = evaluation(jobs, grid, cluster, "policies=[k8s_default]", "windows=1", "window_hours=24")
    energy = {}
    for name, extra in (("known", ()), ("fitted", (f"cluster.curves={out}/curves.csv",))):
        status, document, printed = call(*extra)
        assert status == 0, printed.err
        energy[name] = document
    assert json.dumps(energy["known"]) != json.dumps(energy["fitted"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["min_minutes=100000"], "V100: .* needed"),
        (["min_minutes=-1"], "min_minutes"),
        (["min_minutes=many"], "'many'"),
        (["lake.root=nowhere"], "no hw.power samples"),
        (["inventory=gone.json"], "gone.json"),
        (["inventory=null"], "inventory"),
        (["boards=gone.csv"], "gone.csv"),
        (["like={V100: Z9}"], "no speeds for GPU model 'Z9'"),
        (["like=3"], "like"),
    ],
)
def test_bad_input_is_named(place, overrides, told):
    with pytest.raises(InputError, match=told):
        fit_power(config(place, *overrides))


def test_a_model_without_a_data_sheet_is_named(place, tmp_path):
    nodes = json.loads((place / "nodes.json").read_text())
    nodes["nodes"]["n1"]["gpu_model"] = "Z9"
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    with pytest.raises(InputError, match=r"no limit of GPU model 'Z9'.*boards=FILE"):
        fit_power(config(place, f"inventory={tmp_path}/nodes.json"))
    (tmp_path / "boards.csv").write_text("gpu_model,limit_w,idle_w\nZ9,250,30\n")
    fits = fit_power(config(place, f"inventory={tmp_path}/nodes.json", f"boards={tmp_path}/boards.csv", "like={Z9: V100}"))
    assert set(fits.curves["gpu_model"]) == {"Z9"}


def test_help_names_every_key():
    run = subprocess.run(
        [sys.executable, "-m", "pipelines.fit_power", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0
    for key in ("inventory", "boards", "like", "min_minutes", "out"):
        assert key in run.stdout

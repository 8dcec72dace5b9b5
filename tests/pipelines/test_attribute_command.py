"""``python -m pipelines.attribute`` on a week of the sample: sums, prices and files; and the true energy of its jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.cluster_io import load_cluster
from envs.sample.build import FILE_KINDS, build_sample, make_scene
from envs.sample.settings import SampleSettings
from pipelines.attribute import KEYS, AttributeConfig, files_of, run, summary
from pipelines.cli import CONF_DIR, build, compose_config
from pipelines.ingest import ingest
from telemetry.attribution_totals import interval_rates, job_totals, totals, with_costs
from telemetry.energy import Grid
from telemetry.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = SampleSettings(days=7)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("week")
    for name, content in build_sample(SETTINGS, load_cluster("sample", CONF_DIR)).items():
        (folder / name).write_bytes(content)
    files = [{"path": str(folder / name), "reader": reader} for name, reader in FILE_KINDS.items()]
    ingest({"files": files, "inventory": str(folder / "manifest.json")}, {"root": str(folder / "lake")})
    return folder / "lake"


def config(root, *overrides):
    cfg = compose_config("attribute", [f"lake.root={root}", *overrides])
    return build(AttributeConfig, {key: cfg[key] for key in KEYS}, "attribute")


@pytest.fixture(scope="module")
def outcome(lake):
    return run(config(lake))


def test_jobs_get_close_to_their_true_energy(outcome):
    """Exact truth is the generator's; labels name one pod a board, Slurm jobs only their node, and meters are noisy."""
    scene = make_scene(SETTINGS, load_cluster("sample", CONF_DIR))
    truth = pd.Series(scene.watts.job_j, index=scene.replay.jobs["job_id"]) / 3.6e6
    jobs = job_totals(outcome.rows).set_index("job_id")["kwh"].reindex(truth.index).fillna(0.0)
    error = float((jobs - truth).abs().sum() / truth.sum())
    bias = float((jobs - truth).sum() / truth.sum())
    print(f"error per job {100 * error:.2f} %, bias {100 * bias:+.2f} %")
    assert error < 0.05
    assert abs(bias) < 0.02
    team = scene.replay.jobs.set_index("job_id")["team"]
    by_team = (jobs.groupby(team).sum() / truth.groupby(team).sum() - 1).abs()
    assert by_team.max() < 0.08


def test_rows_sum_to_the_nodes_and_to_each_total(outcome):
    assert outcome.rows["energy_j"].sum() == pytest.approx(outcome.found.node_j.sum(), rel=1e-9)
    sums = outcome.sums.groupby("by")
    for column in ("kwh", "cost_usd", "carbon_kg", "share_percent"):
        whole = sums[column].sum()
        np.testing.assert_allclose(whole, whole["kind"], rtol=1e-9)
    assert set(outcome.sums.loc[outcome.sums["by"] == "kind", "name"]) == {"job", "idle", "unattributed", "overhead"}
    assert outcome.sums.loc[outcome.sums["by"] == "site", "name"].tolist() == ["west", "east"]


def test_energy_is_that_of_the_generator(outcome):
    scene = make_scene(SETTINGS, load_cluster("sample", CONF_DIR))
    true_kwh = scene.watts.node_w.sum() * 600 / 3.6e6
    assert outcome.found.node_j.sum() / 3.6e6 == pytest.approx(true_kwh, rel=0.005)


def test_files_and_summary(outcome):
    files = files_of(outcome, {"freq": "10min"})
    assert set(files) == {
        "attribution.parquet", "totals.csv", "jobs.csv", "report.json", "report.html", "energy.png", "residuals.png",
    }  # fmt: skip
    report = json.loads(files["report.json"])
    assert report["priced_share_of_energy"] == pytest.approx(1.0)
    assert report["reconciliation"]["layers"]["node"]["comparisons"] == 12
    assert sum(row["kwh"] for row in report["totals"] if row["by"] == "team") == pytest.approx(report["kwh"])
    page = files["report.html"].decode()
    assert "data:image/png;base64," in page
    assert "How far the sources disagree" in page
    told = summary(outcome)
    for name in ("[idle]", "[unattributed]", "vision", "training", "worker pods"):
        assert name in told


def test_no_reading_of_the_sample_is_doubted(outcome):
    assert [one.place for one in outcome.checked.doubtful()] == []
    assert {one.layer for one in outcome.checked.comparisons} == {"sources", "node"}


def test_hours_agree_with_ten_minutes(lake, outcome):
    hours = run(config(lake, "freq=1h", "start=2026-01-06", "end=2026-01-08"))
    span = (outcome.rows["interval_start"] >= "2026-01-06") & (outcome.rows["interval_start"] < "2026-01-08")
    assert hours.rows["energy_j"].sum() == pytest.approx(outcome.rows.loc[span, "energy_j"].sum(), rel=1e-9)
    assert len(hours.found.grid) == 48


def test_price_and_carbon_are_those_of_the_time():
    start = pd.Timestamp("2026-01-05", tz="UTC")
    grid = Grid.of(start, start + pd.Timedelta(hours=3), "1h30min")
    table = pd.DataFrame(
        {
            "time": start + pd.to_timedelta([0, 1], unit="h"),
            "site": "west",
            "price_usd_per_kwh": [0.1, 0.4],
            "carbon_g_per_kwh": [100.0, 400.0],
        }
    )
    assert interval_rates(table, grid, "price_usd_per_kwh")["west"].tolist()[0] == pytest.approx(0.2)
    rows = pd.DataFrame(
        {"interval_start": [*grid.starts, grid.starts[0]], "site": ["west", "west", "mars"], "energy_j": 3.6e6, "kind": "job", "team": "a"}
    )
    priced = with_costs(rows, table, grid)
    assert priced["cost_usd"].tolist() == pytest.approx([0.2, np.nan, np.nan], nan_ok=True)
    assert priced["carbon_kg"].tolist() == pytest.approx([0.2, np.nan, np.nan], nan_ok=True)
    total = totals(priced, ("team",))
    assert total.loc[0, ["name", "kwh", "cost_usd"]].tolist() == ["a", 3.0, pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("start=2026-01-10 end=2026-01-09", "end after the start"),
        ("start=2031-01-01 end=2031-01-02", "no power of any node"),
        ("start=soon", "'soon' is no time"),
        ("freq=often", "freq"),
        ("energy.gauge=guess", "trapezoid, hold, mean"),
        ("energy.max_gap_s=0", "max_gap_s"),
        ("reconciliation.tolerance=2", "reconciliation.tolerance"),
        ("attribution.overhead=gone", "shared, kept"),
    ],
)
def test_bad_input_is_named(lake, override, told):
    with pytest.raises(InputError) as caught:
        run(config(lake, *override.split()))
    assert told in str(caught.value)


def test_an_empty_lake_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"pipelines\.ingest"):
        run(config(tmp_path / "none"))


def test_the_command_writes_and_prints(lake, tmp_path):
    arguments = [f"lake.root={lake}", f"out={tmp_path}/out", "start=2026-01-06", "end=2026-01-07", f"hydra.run.dir={tmp_path}/hydra"]
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.attribute", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "kWh of 12 nodes from 2026-01-06T00:00 to 2026-01-07T00:00 UTC" in ran.stdout
    rows = pd.read_parquet(tmp_path / "out" / "attribution.parquet")
    assert list(rows.columns) == [
        "interval_start", "interval_end", "site", "node", "pod_uid", "job_id", "team", "project", "workload_class", "kind", "energy_j",
        "source_layer", "cost_usd", "carbon_kg",
    ]  # fmt: skip
    assert len(rows.groupby("interval_start")) == 144

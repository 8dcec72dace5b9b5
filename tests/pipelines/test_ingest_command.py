"""``python -m pipelines.ingest``: one's own files in, one clear line when they are bad."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pipelines.cli import build, compose_config
from pipelines.ingest import ingest
from registry.mlflow_client import open_client
from telemetry.errors import InputError
from telemetry.lake import Lake
from telemetry.policy import QualityPolicy

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = "job_id,submit_time,duration_s,gpus,workers\na,2026-01-05T00:00:00Z,600,1,1\nb,2026-01-05T01:00:00Z,600,2,1\n"


def command(*overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.ingest", *overrides], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_own_files_are_stored_and_reported(tmp_path):
    (tmp_path / "jobs.csv").write_text(JOBS)
    run = command("source=files", f"source.files=[{{path: {tmp_path}/jobs.csv, reader: jobs_table}}]", f"lake.root={tmp_path}/lake")
    assert run.returncode == 0, run.stderr
    assert "jobs.csv" in run.stdout
    assert "jobs 2 rows" in run.stdout
    assert (tmp_path / "lake" / "quality" / "report.html").is_file()
    assert Lake(tmp_path / "lake").rows()["jobs"] == 2


def test_bad_input_is_one_line_on_stderr_and_exit_2(tmp_path):
    (tmp_path / "jobs.csv").write_text(JOBS.replace(",2,1", ",-2,1"))
    run = command("source=files", f"source.files=[{{path: {tmp_path}/jobs.csv, reader: jobs_table}}]", f"lake.root={tmp_path}/lake")
    assert run.returncode == 2
    told = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "column 'gpus', row 2: '-2'" in told[0]
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "lake" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["source=files"], "no files"),
        (["source=files", "source.files=[{path: x.json, reader: prometeus}]"], "unknown reader 'prometeus'"),
        (["source=files", "source.files=[{path: x.json}]"], "reader"),
        (["source=files", "source.files=[{path: x.json, reader: grid, colour: red}]"], "colour"),
        (["source=files", "source.files=[{path: gone.csv, reader: grid}]"], "gone.csv"),
        (["source.inventory=gone.json"], "gone.json"),
        (["source.max_grid_gap_h=-1"], "max_grid_gap_h"),
    ],
)
def test_wrong_configuration_is_named(tmp_path, overrides, told):
    config = compose_config("ingest", overrides)
    with pytest.raises(InputError, match=told):
        ingest(config.source, {"root": str(tmp_path / "lake")})
    assert not (tmp_path / "lake" / "manifest.json").exists()


def test_unwritable_lake_is_an_input_error(tmp_path):
    (tmp_path / "jobs.csv").write_text(JOBS)
    (tmp_path / "lake").write_text("a file where the folder should be")
    files = [{"path": str(tmp_path / "jobs.csv"), "reader": "jobs_table"}]
    with pytest.raises(InputError, match=r"cannot be written.*lake is as before"):
        ingest({"files": files}, {"root": str(tmp_path / "lake")})


def flawed(folder: Path) -> str:
    """A jobs export of which one row of three repeats another, as a value of ``source.files``."""
    head = "JobID|User|Account|Partition|State|Submit|Start|End|ElapsedRaw|TimelimitRaw|ReqTRES|NNodes"
    row = "{}|u|t|west-a100|COMPLETED|2026-01-05T00:00:00|2026-01-05T00:10:00|2026-01-05T01:10:00|3600|120|cpu=4,gres/gpu=1|1"
    (folder / "sacct.txt").write_text("\n".join([head, *(row.format(job) for job in "112")]) + "\n")
    return f"source.files=[{{path: {folder}/sacct.txt, reader: slurm}}]"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("quality=harsh", "quality=harsh: no such choice; allowed: default, lenient, strict"),
        ("quality.duplicat=drop", "quality.duplicat"),
        ("+quality.rust=drop", r"unknown key rust.*duplicate"),
        ("quality.duplicate=keep", r"quality\.duplicate: policy 'keep'; allowed: drop, repair, refuse"),
        ("quality.refuse_above=much", r"quality\.refuse_above: 'much'"),
    ],
)
def test_a_wrong_policy_is_named(override, told):
    with pytest.raises(InputError, match=told):
        build(QualityPolicy, compose_config("ingest", [override]).quality, "quality")


@pytest.mark.parametrize("choice", ["default", "strict", "lenient"])
def test_policies_of_the_group_are_whole(choice):
    config = compose_config("ingest", [f"quality={choice}"]).quality
    policy = build(QualityPolicy, config, "quality")
    assert {field.name for field in fields(QualityPolicy)} == set(config)
    assert (policy == QualityPolicy()) == (choice == "default")


def test_a_refused_source_exits_2_and_leaves_nothing(tmp_path):
    run = command("source=files", flawed(tmp_path), "quality=strict", f"lake.root={tmp_path}/lake")
    assert run.returncode == 2
    assert "duplicate: 1 (33.33%" in run.stderr
    assert "quality.duplicate=drop|repair" in run.stderr
    assert not (tmp_path / "lake" / "manifest.json").exists()


def test_a_tracked_ingest_logs_its_report_and_another_logs_nothing(tmp_path):
    overrides = ["source=files", flawed(tmp_path), f"lake.root={tmp_path}/lake", f"registry.tracking_uri=sqlite:///{tmp_path}/mlflow.db"]
    overrides.append(f"registry.artifact_root={tmp_path}/artifacts")
    assert command(*overrides).returncode == 0
    assert not (tmp_path / "mlflow.db").exists()
    run = command(*overrides, "track=true")
    assert run.returncode == 0, run.stderr
    run_id = next(line for line in run.stdout.splitlines() if line.startswith("logged as run ")).split()[3]
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", must_exist=True)
    logged = client.get_run(run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {"rows/samples": 0, "rows/jobs": 2, "rows/grid": 0, "flaws/duplicate": 1}
    assert logged.data.params["quality.duplicate"] == "drop"
    assert {item.path for item in client.list_artifacts(run_id)} >= {"quality.html", "quality.json", "quality.txt", "config.json"}
    kept = json.loads(next((tmp_path / "artifacts").rglob("quality.json")).read_text())
    assert kept == Lake(tmp_path / "lake").quality().to_dict()

"""``python -m pipelines.ingest``: one's own files in, one clear line when they are bad."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import compose_config
from pipelines.ingest import ingest
from telemetry.errors import InputError
from telemetry.lake import Lake

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

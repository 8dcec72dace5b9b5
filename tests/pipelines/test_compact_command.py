"""``python -m pipelines.compact``: what it does is told, what it cannot do is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import compose_config
from pipelines.compact import compact_lake
from pipelines.ingest import ingest
from telemetry.errors import InputError
from telemetry.lake import Lake
from telemetry.lake.compaction import Retention

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path) -> Path:
    """A lake of three days of one node's watts, every ten seconds."""
    time = pd.date_range("2026-01-05", periods=3 * 8640, freq="10s", tz="UTC")
    frame = pd.DataFrame({"time": time, "metric": "hw.power", "node": "n0", "value": np.arange(len(time)) % 300 + 100.0})
    frame.to_parquet(tmp_path / "in.parquet", index=False)
    ingest({"files": [{"path": str(tmp_path / "in.parquet"), "reader": "samples_table"}]}, {"root": str(tmp_path / "lake")})
    return tmp_path / "lake"


def command(*overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.compact", *overrides], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_old_days_are_made_coarser_and_told(root):
    run = command(f"lake.root={root}", "raw_days=1", "ten_min_days=2")
    assert run.returncode == 0, run.stderr
    assert "samples_10min: 288 rows of 17,280" in run.stdout
    assert "samples_1h: 24 rows of 144" in run.stdout
    assert "samples 8,640 rows" in run.stdout
    assert Lake(root).rows() == {"samples": 8640, "jobs": 0, "grid": 0, "samples_10min": 144, "samples_1h": 24}


def test_wrong_values_and_another_writer_are_named(root):
    with pytest.raises(InputError, match="raw_days 0"):
        Retention(raw_days=0)
    run = command(f"lake.root={root}", "raw_days=soon")
    assert run.returncode == 2
    assert "raw_days" in run.stderr
    with Lake(root).lock(), pytest.raises(InputError, match="another ingest is running"):
        compact_lake({"root": str(root)}, Retention(1, 2))
    assert Lake(root).rows()["samples"] == 3 * 8640


def test_the_default_configuration_composes():
    config = compose_config("compact")
    assert (config.raw_days, config.ten_min_days, config.newest) == (7, 90, None)
    assert compose_config("compact", ["lake=s3"]).lake.root is None

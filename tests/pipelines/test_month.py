"""Eight days of the scripted month on a real trace: a bad model gets in, is found, put back, and nothing else moves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.month import MODEL, Month, play
from pipelines.cli import quiet_libraries
from registry.loading import load_forecaster
from registry.promotion import history

TRACES = Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces"))
pytestmark = pytest.mark.skipif(
    not (TRACES / "a_jobs/philly_gavel_seed0_vcs.parquet").exists(), reason=f"no public traces under {TRACES}: set JOULEWISE_TRACES"
)


@pytest.mark.filterwarnings("ignore")
def test_a_planted_bad_model_is_put_back_by_itself(tmp_path):
    quiet_libraries()
    month = Month(tmp_path, days=8, history_days=47, seed=0)
    blocks = play(TRACES, month, shift_day=1, bad_day=3)
    planted = next(one for one in month.happenings if "bad model" in one.text)
    bad = planted.text.split("version ")[1].split(":")[0]
    changes = history(month.tracking().client, MODEL)
    rolled = [one for one in changes if one["action"] == "rollback"]
    assert [one["before"]["champion"] for one in rolled] == [bad]
    assert "worthless" in rolled[0]["reason"]
    later = changes[changes.index(rolled[0]) :]
    assert all(one["after"].get("champion") != bad for one in later)
    _, manifest = load_forecaster(MODEL, tracking_uri=month.uri)
    assert manifest.gates_passed
    assert set(blocks["version"]) >= {bad}
    found = next(one for one in month.happenings if one.what == "rollback")
    assert planted.at < found.at

"""A small run of the benchmark of racing and killed promotions: nothing is lost, double or corrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_races_and_kills_leave_nothing_lost_double_or_corrupted(tmp_path):
    out = tmp_path / "out.json"
    arguments = ["--tries", "12", "--kills", "2", "--seed", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.racing_promotions", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(out.read_text())
    racing, killed = answer["racing"], answer["kills"]
    assert (racing["lost"], racing["double"], racing["inconsistent"]) == (0, 0, 0)
    assert racing["answers"]["won"] >= 1
    assert sum(racing["answers"].values()) == 12
    assert set(racing["answers"]) <= {"won", "changed", "champion already"}
    assert killed["corrupted"] == 0, killed["wrong"]
    assert killed["killed"] >= 1

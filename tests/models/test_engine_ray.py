"""``engine=ray``: a killed worker loses nothing, and what cannot be tried again is said (``ray_script.py FOLDER node``: a lost node)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("ray_script.py")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (the extra 'ray')")
@pytest.mark.parametrize("case", ["worker"])
def test_nothing_is_lost_with_a(case, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{SCRIPT.parent}",
        "OMP_NUM_THREADS": "1",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_agent_register_timeout_ms": "120000",
    }
    command = [sys.executable, "-W", "error::ResourceWarning", str(SCRIPT), str(tmp_path), case]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("same")
    assert "Warning" not in done.stderr, done.stderr

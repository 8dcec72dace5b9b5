"""The kernel as plain Python over rows that refuse every index outside them: compiled, such a slip is wrong or fatal by chance."""

import os
import subprocess
import sys
from pathlib import Path

PLAY = Path(__file__).with_name("interpreted_play.py")


def test_no_index_lies_outside_its_row():
    command = [sys.executable, str(PLAY)]
    done = subprocess.run(
        command, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    played = dict(line.split() for line in done.stdout.splitlines())
    assert int(played.pop("hindsight")) > 50
    assert len(played) > 12  # the judges
    assert all(int(count) > 10 for count in played.values())


def test_an_index_outside_is_refused():
    code = """
import numpy as np
from envs.kernel_compile import pointer, view
row = pointer(np.zeros(3))
row[2] = 1.0
for slip in (lambda: row[-1], lambda: row[3], lambda: row.__setitem__(-2, 1.0), lambda: view(row, 1, 3), lambda: view(row, -1, 2)):
    try:
        slip()
    except IndexError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 5

"""The split: even, stable, salted by experiment, and never moving a unit that takes part."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from runtime.split import Split
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
UNITS = [f"team-{k}" for k in range(20_000)]


def arms(split, units=UNITS):
    return [split.arm_of(unit) for unit in units]


def test_shares_are_as_asked():
    counts = Counter(arms(Split("exp", 300)))
    for arm, expected in (("outside", 14_000), ("challenger", 3000), ("champion", 3000)):
        assert abs(counts[arm] - expected) < 4.5 * np.sqrt(expected), counts
    counts = Counter(arms(Split("exp", 1000, challenger_permille=100)))
    assert abs(counts["challenger"] - 2000) < 4.5 * np.sqrt(2000)
    assert counts["outside"] == 0


def test_places_are_uniform():
    split = Split("exp", 1000)
    for purpose in ("enrol", "arm"):
        places = np.array([split._place(purpose, unit) for unit in UNITS])
        counts = np.histogram(places, 20, (0, 1000))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 45.3  # chi square of 19 degrees, one in a thousand


def test_a_larger_share_never_moves_a_unit_that_takes_part():
    before = dict.fromkeys(UNITS[:3000], "outside")
    for share in (0, 1, 50, 200, 500, 999, 1000):
        now = dict(zip(UNITS[:3000], arms(Split("grow", share), UNITS[:3000]), strict=True))
        assert all(now[unit] == arm for unit, arm in before.items() if arm != "outside")
        before = now
    assert "outside" not in before.values()


def test_experiments_and_enrolment_are_independent():
    one, two = (np.array(arms(Split(name, 1000))) == "challenger" for name in ("a", "b"))
    assert abs((one == two).mean() - 0.5) < 0.02
    enrolled = Split("a", 200)
    inside = [unit for unit in UNITS if enrolled.arm_of(unit) != "outside"]
    assert abs(np.mean([enrolled.arm_of(unit) == "challenger" for unit in inside]) - 0.5) < 0.04


def test_another_process_with_another_hash_seed_agrees():
    code = "from runtime.split import Split; print([Split('exp', 400).arm_of(f'team-{k}') for k in range(50)])"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == f"{arms(Split('exp', 400), UNITS[:50])}\n"


def test_a_unit_without_a_name_takes_no_part():
    assert Split("exp", 1000).arm_of("") == "outside"


def test_probabilities_of_arms():
    split = Split("exp", 500, challenger_permille=200)
    assert (split.probability("challenger"), split.probability("champion"), split.probability("outside")) == (0.2, 0.8, 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experiment": ""}, "name"),
        ({"share_permille": 1001}, "0 to 1000"),
        ({"share_permille": 0.5}, "whole number"),
        ({"challenger_permille": 0}, "1 to 999"),
        ({"unit": "node"}, "team, pod, day"),
    ],
)
def test_impossible_splits_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        Split(**({"experiment": "exp", "share_permille": 10} | change))

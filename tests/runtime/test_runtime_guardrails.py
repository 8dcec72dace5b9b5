"""The guardrails at work: stop once, roll back once, and no one is served by what has stopped."""

from __future__ import annotations

import numpy as np
import pandas as pd

from registry.guardrails import STOPPED_FILE, GuardConfig, stopped_experiments
from runtime.guardrails import Guard, arm_in_force
from runtime.split import Split

START = pd.Timestamp("2026-03-01", tz="UTC")


def feed(guard, jobs, rate, watched_rate, start=START, minutes=30, seed=0):
    rng = np.random.default_rng(seed)
    for k in range(jobs):
        watched = bool(rng.random() < 0.5)
        guard.add(start + pd.Timedelta(minutes=minutes * k), watched, 1.0, bool(rng.random() < (watched_rate if watched else rate)))


def test_a_breach_stops_once_and_everyone_goes_back_to_the_champion(tmp_path):
    stops, rollbacks = [], []
    guard = Guard("exp", GuardConfig(hard_jobs=20, sustained=400), tmp_path, on_stop=stops.append, on_rollback=rollbacks.append)
    split = Split("exp", 1000)
    teams = [f"team-{k}" for k in range(40)]
    assert {arm_in_force(split, team, tmp_path)[0] for team in teams} == {"champion", "challenger"}
    feed(guard, 120, 0.0, 0.9)
    assert len(stops) == 1
    assert guard.stopped
    assert rollbacks == []
    for team in teams:
        arm, why = arm_in_force(split, team, tmp_path)
        assert arm == "outside"
        assert "was stopped" in why
    other = Split("another", 1000)
    assert {arm_in_force(other, team, tmp_path)[0] for team in teams} == {"champion", "challenger"}


def test_equal_arms_stop_nothing(tmp_path):
    stops = []
    feed(Guard("exp", GuardConfig(), tmp_path, on_stop=stops.append), 200, 0.05, 0.05)
    assert stops == []
    assert stopped_experiments(tmp_path) == {}


def test_a_sustained_loss_rolls_back_once_with_its_reason(tmp_path):
    rollbacks = []
    guard = Guard("champion", GuardConfig(sustained=2), tmp_path, on_rollback=rollbacks.append)
    feed(guard, 250, 0.0, 0.9)
    assert len(rollbacks) == 1
    assert "2 days in a row" in rollbacks[0]


def test_a_new_process_knows_what_has_stopped(tmp_path):
    feed(Guard("exp", GuardConfig(hard_jobs=10), tmp_path), 60, 0.0, 1.0)
    again = []
    guard = Guard("exp", GuardConfig(hard_jobs=10), tmp_path, on_stop=again.append)
    assert guard.stopped
    feed(guard, 60, 0.0, 1.0)
    assert again == []


def test_a_file_that_cannot_be_read_leaves_everyone_to_the_champion(tmp_path):
    (tmp_path / STOPPED_FILE).write_text("{")
    arm, why = arm_in_force(Split("exp", 1000), "team-1", tmp_path)
    assert arm == "outside"
    assert STOPPED_FILE in why


def test_without_an_experiment_the_champion_answers(tmp_path):
    assert arm_in_force(None, "team-1", tmp_path) == ("champion", "")
    assert arm_in_force(Split("exp", 1000), "", None) == ("outside", "")
